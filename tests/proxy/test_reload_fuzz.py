"""Whatever a file becomes, a reload ends in a snapshot. `PGTLSPROXY_FUZZ=100000` raises their number."""

import base64
import os
import re
import textwrap
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from random import Random

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from pgtlsproxy import pki
from pgtlsproxy.proxy.snapshot import Reloaded, Snapshot, load, reload

FUZZ_EXAMPLES = int(os.environ.get("PGTLSPROXY_FUZZ", "200"))

# Certificates of a mutant may have a serial number that a later cryptography will not read.
pytestmark = pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")

YAML = b"""listeners:
  a:
    listen: ["127.0.0.1:0"]
    ssl: on
    ssl_cert_file: server.crt
    ssl_key_file: server.key
    ssl_ca_file: ca.crt
    ssl_crl_file: ca.crl
    ssl_ciphers: HIGH
    hba_file: pg_hba.conf
    ident_file: pg_ident.conf
    backend: shared
  u: {listen: [unix:/tmp], ssl: off, hba_file: local_hba.conf, backend: users, plaintext_from: [10.0.0.0/8]}
backends:
  shared:
    {host: localhost, port: 5432, sslrootcert: ca.crt, sslcrldir: crls, sslcert: client.crt,
     sslkey: client.key, login: certificate}
  users:
    {host: localhost, sslrootcert: ca.crt, sslcert: "users/{user}.crt", sslkey: "users/{user}.key",
     sslpassword: secret, login: certificate, connect_timeout: 10}
"""

HBA = b"""hostssl all all all cert map=people
hostssl db,"all" carl,"Dan" 10.0.0.0/8 cert clientname=DN map=dn
hostssl all "bob" samehost cert clientcert=verify-full
host all all ::1/128 reject
"""
IDENT = b'people /^(.*)@example\\.com$ \\1\npeople alice bob\ndn "/^CN=(.*),O=x$" \\1\n'

PIECES = (
    b"[", b"{", b"&a ", b"*a", b"!!python/x ", b"\x00", b"\xff", b"0x", b"1e999", b"- ", b"? ", b": ", b"<<: ", b'"',
    b"2001-01-01", b"9" * 20, b"(", b"\\", b"/", b"/^(a*)*$", b"\\ud800", b"\xed\xa0\x80", b"@include x\n", b"=", b",",
    b"-----BEGIN CERTIFICATE-----\n", b"-----END X509 CRL-----\n", b"\r\n", b"~", b"on", b".inf", b"!!set {a}",
)  # fmt: skip


def original_files() -> dict[str, bytes]:
    day = timedelta(days=30)
    ca = pki.make_ca("CA", lifetime=day)
    server, client = (
        pki.issue_server(ca, ["localhost"], lifetime=day),
        pki.issue_client(ca, "p", lifetime=day),
    )
    crl = pki.make_crl(ca, [5, 6], lifetime=day)

    def key(issued: pki.Issued) -> bytes:
        return issued.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    return {
        "pgtlsproxy.yaml": YAML,
        "pg_hba.conf": HBA,
        "local_hba.conf": b"local all all peer\n",
        "pg_ident.conf": IDENT,
        "ca.crt": ca.certificate_pem(),
        "ca.crl": crl.public_bytes(Encoding.PEM),
        "crls/der.crl": crl.public_bytes(Encoding.DER),
        "server.crt": server.certificate_pem(),
        "server.key": key(server),
        "client.crt": client.certificate_pem(),
        "client.key": key(client),
    }


ORIGINAL = original_files()
TEXTS = ("pgtlsproxy.yaml", "pg_hba.conf", "local_hba.conf", "pg_ident.conf")
KEYS_AND_CERTIFICATES = tuple(name for name in ORIGINAL if name not in TEXTS)


def tags(der: bytes, start: int, end: int) -> Iterator[int]:
    """Where the elements of a DER encoding begin, those inside others included."""
    while start < end:
        yield start
        size, content = der[start + 1], start + 2
        if size & 0x80:
            content += size & 0x7F
            size = int.from_bytes(der[start + 2 : content])
        if der[start] & 0x20:
            yield from tags(der, content, content + size)
        start = content + size


def mutated_der(random: Random, der: bytes) -> bytes:
    """A wrong type, value or length somewhere: parsers differ in what they refuse."""
    data = bytearray(der)
    places = list(tags(der, 0, len(der)))
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        at = random.choice(places) + random.choice((0, 0, 1, 2, 2, 3))
        at = min(at, len(data) - 1)
        cut = random.choice((0, 1, 1, 1, 1, 1, 2))
        bit = bytes([data[at] ^ 1 << random.randrange(8)])
        data[at : at + cut] = random.choice((bit, bit, random.randbytes(cut), b"\x00", b"\x0c", b"\x1e"))
    return bytes(data)


def mutated(random: Random, content: bytes) -> bytes:
    """A file with some bytes changed, cut out or put in; in PEM and DER, mostly inside its structure."""
    block = re.fullmatch(rb"(-----BEGIN .*-----\n)([^-]*)(-----END .*-----\n)", content)
    if block and random.random() < 0.9:
        der = mutated_der(random, base64.b64decode(block[2]))
        lines = "\n".join(textwrap.wrap(base64.b64encode(der).decode(), 64))
        return block[1] + lines.encode() + b"\n" + block[3]
    if content.startswith(b"\x30") and random.random() < 0.9:
        return mutated_der(random, content)
    data = bytearray(content)
    for _ in range(random.choice((1, 2, 4))):
        at, cut = random.randrange(len(data) + 1), random.choice((0, 0, 1, 1, 2, 8))
        data[at : at + cut] = random.choice((random.randbytes(1), b"", *random.choices(PIECES, k=2)))
    return bytes(data)


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.touch(mode=0o600)
        path.write_bytes(content)


@pytest.fixture
def in_service(tmp_path: Path) -> Snapshot:
    (tmp_path / "users").mkdir()
    write(tmp_path, ORIGINAL)
    return load(str(tmp_path / "pgtlsproxy.yaml")).snapshot


@pytest.mark.parametrize("files", [TEXTS, KEYS_AND_CERTIFICATES], ids=["texts", "keys-and-certificates"])
def test_a_reload_of_damaged_files_keeps_every_listener_and_backend(
    in_service: Snapshot, files: Sequence[str]
) -> None:
    folder = Path(in_service.path).parent
    for seed in range(FUZZ_EXAMPLES):
        random = Random(seed)
        names = random.sample(files, random.choice((1, 1, 2)))
        write(folder, {name: mutated(random, ORIGINAL[name]) for name in names})
        try:
            result = reload(in_service)
        except Exception as error:
            error.add_note(f"seed {seed}: {names}")
            raise
        assert isinstance(result, Reloaded)
        if "pgtlsproxy.yaml" not in names or in_service.path in result.kept:
            assert in_service.listeners.keys() <= result.snapshot.listeners.keys(), seed
            assert in_service.backends.keys() <= result.snapshot.backends.keys(), seed
        for listener in result.snapshot.listeners.values():
            assert (listener.tls_context is not None) == listener.settings.ssl, seed
        write(folder, {name: ORIGINAL[name] for name in names})


def test_a_reload_of_intact_files_takes_everything(in_service: Snapshot) -> None:
    result = reload(in_service)
    assert (result.mistakes, result.kept) == ((), ())
