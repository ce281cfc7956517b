"""Key, certificate and CRL files: who may read them, what they may hold, and errors that help."""

import contextlib
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from pgtlsproxy import pki
from pgtlsproxy.identity import Secret
from pgtlsproxy.tls import file_access
from pgtlsproxy.tls.file_access import (
    UnusableFile,
    key_file_problem,
    read_directory,
    read_file,
    read_key_file,
    system_roots,
)
from pgtlsproxy.tls.files import (
    certificate_chain,
    chain_warnings,
    dh_parameters,
    key_pair,
    private_key,
    revocation_lists,
    revocation_lists_in_directory,
    trusted_certificates,
)

ROOT_CA = pki.make_ca("Root")
INTERMEDIATE = pki.make_intermediate(ROOT_CA, "Intermediate")
SERVER = pki.issue_server(INTERMEDIATE, ["db.example.com"])
OTHER = pki.issue_server(ROOT_CA, ["other.example.com"])

CHAIN = SERVER.certificate_pem()
KEY = SERVER.key_pem().reveal()
ROOT_PEM = ROOT_CA.certificate_pem()
DH = b"-----BEGIN DH PARAMETERS-----\nMAYCAQUCAQI=\n-----END DH PARAMETERS-----\n"

PROXY, STRANGER, SUPERUSER = 1000, 2000, 0


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def encoded(
    key: PrivateKeyTypes, encoding: Encoding, form: PrivateFormat, password: bytes | None = None
) -> bytes:
    encryption: KeySerializationEncryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(encoding, form, encryption)


def status(mode: int, owner: int) -> os.stat_result:
    kind = 0 if mode & ~0o7777 else stat.S_IFREG
    return os.stat_result((kind | mode, 1, 1, 1, owner, owner, 10, 0, 0, 0))


# Who may read a key file: PostgreSQL's rule for a user, libpq's for root.


@pytest.mark.parametrize(
    ("mode", "owner", "uid", "allowed"),
    [
        (0o600, PROXY, PROXY, True),
        (0o400, PROXY, PROXY, True),
        (0o700, PROXY, PROXY, True),
        (0o640, PROXY, PROXY, False),
        (0o604, PROXY, PROXY, False),
        (0o644, PROXY, PROXY, False),
        (0o660, PROXY, PROXY, False),
        (0o610, PROXY, PROXY, False),
        (0o601, PROXY, PROXY, False),
        (0o640, SUPERUSER, PROXY, True),
        (0o440, SUPERUSER, PROXY, True),
        (0o600, SUPERUSER, PROXY, True),
        (0o644, SUPERUSER, PROXY, False),
        (0o660, SUPERUSER, PROXY, False),
        (0o650, SUPERUSER, PROXY, False),
        (0o642, SUPERUSER, PROXY, False),
        (0o600, STRANGER, PROXY, False),
        (0o400, STRANGER, PROXY, False),
        (0o640, SUPERUSER, SUPERUSER, True),
        (0o644, SUPERUSER, SUPERUSER, False),
        (0o600, STRANGER, SUPERUSER, True),
        (0o640, STRANGER, SUPERUSER, False),
        (0o604, STRANGER, SUPERUSER, False),
    ],
)
def test_permission_rule_is_postgresqls_and_for_root_libpqs(
    mode: int, owner: int, uid: int, *, allowed: bool
) -> None:
    problem = key_file_problem("server.key", status(mode, owner), uid)
    assert (problem is None) is allowed


@given(
    st.integers(0, 0o777), st.sampled_from([SUPERUSER, PROXY, STRANGER]), st.sampled_from([SUPERUSER, PROXY])
)
def test_no_key_that_the_world_can_touch_is_ever_taken(mode: int, owner: int, uid: int) -> None:
    problem = key_file_problem("server.key", status(mode, owner), uid)
    if mode & 0o007 or (mode & 0o070 and owner != SUPERUSER) or mode & 0o030:
        assert problem is not None


@pytest.mark.parametrize("kind", [stat.S_IFDIR, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK])
def test_key_that_is_no_regular_file_is_refused(kind: int) -> None:
    problem = key_file_problem("server.key", status(kind | 0o600, PROXY), PROXY)
    assert problem is not None
    assert 'private key file "server.key" is not a regular file' in problem


def test_permission_error_tells_the_mode_and_the_cure() -> None:
    problem = key_file_problem("/etc/tls/server.key", status(0o644, PROXY), PROXY)
    assert problem == (
        'private key file "/etc/tls/server.key" has group or world access: its mode is 0644 and must be '
        "0600 or less; chmod 0600 /etc/tls/server.key"
    )
    foreign = key_file_problem("server.key", status(0o600, STRANGER), PROXY)
    assert foreign is not None
    assert (
        "must be owned by the database user or root: it belongs to uid 2000 and we run as uid 1000" in foreign
    )


@pytest.mark.parametrize(
    ("path", "mode", "owner", "mentioned"),
    [
        ("/etc/tls/tls.key", 0o644, SUPERUSER, True),
        ("/etc/tls/..data/tls.key", 0o640, PROXY, True),
        ("/etc/tls/tls.key", 0o660, SUPERUSER, False),
        ("/etc/tls/tls.key", 0o644, PROXY, False),
    ],
)
def test_kubernetes_cure_is_named_where_it_is_kubernetes(
    path: str, mode: int, owner: int, *, mentioned: bool
) -> None:
    problem = key_file_problem(path, status(mode, owner), PROXY)
    assert problem is not None
    assert ("defaultMode: 0440" in problem and "fsGroup" in problem) is mentioned


# Opening them.


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can enter, which pytest's own is not when root runs it."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        yield path
        path.chmod(0o755)


@pytest.fixture
def as_nobody() -> Iterator[int]:
    """Run as a user whom permissions bind; yields its uid."""
    if os.geteuid() != SUPERUSER:
        yield os.geteuid()
        return
    os.seteuid(65534)
    try:
        yield 65534
    finally:
        os.seteuid(SUPERUSER)


def written(path: Path, content: bytes, mode: int = 0o600) -> str:
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


def test_key_is_read_through_the_two_links_of_kubernetes(folder: Path) -> None:
    (folder / "..2026").mkdir()
    written(folder / "..2026" / "tls.key", KEY)
    (folder / "..data").symlink_to("..2026")
    (folder / "tls.key").symlink_to("..data/tls.key")
    assert read_key_file(str(folder / "tls.key"), os.geteuid()) == KEY


def test_permissions_of_the_target_count_and_not_those_of_the_link(folder: Path) -> None:
    written(folder / "real.key", KEY, 0o644)
    (folder / "link.key").symlink_to("real.key")
    with pytest.raises(UnusableFile, match="has group or world access: its mode is 0644"):
        read_key_file(str(folder / "link.key"), os.geteuid())


def test_fifo_neither_hangs_nor_is_read(folder: Path) -> None:
    os.mkfifo(folder / "fifo", 0o600)
    with pytest.raises(UnusableFile, match="is not a regular file"):
        read_key_file(str(folder / "fifo"), os.geteuid())
    with pytest.raises(UnusableFile, match="is not a regular file"):
        read_file(str(folder / "fifo"), "certificate file")


def test_directory_and_socket_are_refused(folder: Path) -> None:
    with pytest.raises(UnusableFile, match="is not a regular file"):
        read_key_file(str(folder), os.geteuid())
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "socket"))
        with pytest.raises(UnusableFile, match="could not open private key file"):
            read_key_file(str(folder / "socket"), os.geteuid())


def test_key_file_over_its_limit_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(folder / "big.key", b"x" * ((1 << 20) + 1))
    with pytest.raises(UnusableFile, match="is over 1 MB"):
        read_key_file(path, os.geteuid())
    assert len(read_file(path, "certificate file")) == (1 << 20) + 1
    monkeypatch.setattr(file_access, "MAX_FILE_OCTETS", 1 << 20)
    with pytest.raises(UnusableFile, match="is over 1 MB"):
        read_file(path, "certificate file")


def test_missing_file_and_missing_directory_are_told_apart(folder: Path) -> None:
    with pytest.raises(UnusableFile, match=r'certificate file ".*/none.crt": it does not exist'):
        read_file(str(folder / "none.crt"), "certificate file")
    with pytest.raises(UnusableFile, match=r'there is no directory ".*/none"'):
        read_file(str(folder / "none" / "further" / "x.crt"), "certificate file")


def test_directory_that_cannot_be_entered_is_named(folder: Path, request: pytest.FixtureRequest) -> None:
    live = folder / "live"
    (live / "db").mkdir(parents=True)
    written(live / "db" / "privkey.pem", KEY)
    live.chmod(0o000)
    try:
        uid = request.getfixturevalue("as_nobody")
        with pytest.raises(UnusableFile) as caught:
            read_key_file(str(live / "db" / "privkey.pem"), uid)
        assert f'the directory "{live}" (mode 0000) cannot be entered by uid {uid}' in str(caught.value)
        assert "No such file" not in str(caught.value)
    finally:
        _give_back(live)


def test_directory_behind_a_link_that_cannot_be_entered_is_named(
    folder: Path, request: pytest.FixtureRequest
) -> None:
    archive = folder / "letsencrypt" / "archive"
    archive.mkdir(parents=True)
    written(archive / "privkey1.pem", KEY)
    (folder / "letsencrypt" / "privkey.pem").symlink_to("archive/privkey1.pem")
    archive.chmod(0o000)
    try:
        uid = request.getfixturevalue("as_nobody")
        with pytest.raises(
            UnusableFile, match=r'"[^"]*/archive" \(mode 0000\) cannot be entered.*--deploy-hook'
        ):
            read_key_file(str(folder / "letsencrypt" / "privkey.pem"), uid)
    finally:
        _give_back(archive)


def test_file_that_may_not_be_read_says_so(folder: Path, request: pytest.FixtureRequest) -> None:
    path = written(folder / "server.crt", CHAIN, 0o000)
    uid = request.getfixturevalue("as_nobody")
    with pytest.raises(UnusableFile, match=f"permission denied to uid {uid}$"):
        read_file(path, "certificate file")


def _give_back(path: Path) -> None:
    effective = os.geteuid()
    if os.getuid() != effective:
        os.seteuid(os.getuid())
    path.chmod(0o700)
    if os.geteuid() != effective:
        os.seteuid(effective)


def test_path_with_a_nul_is_an_error_and_no_exception_of_pythons() -> None:
    with pytest.raises(UnusableFile, match="null byte"):
        read_file("a\0b", "certificate file")


def test_directory_is_read_in_order_each_content_once_and_without_dead_links(folder: Path) -> None:
    written(folder / "b.crl", b"two")
    written(folder / "a.crl", b"one")
    written(folder / ".hidden", b"three")
    (folder / "0a1b2c3d.r0").symlink_to("a.crl")
    (folder / "dead.r0").symlink_to("none")
    (folder / "sub").mkdir()
    assert read_directory(str(folder), "ssl_crl_dir") == (("0a1b2c3d.r0", b"one"), ("b.crl", b"two"))
    with pytest.raises(UnusableFile, match=r'could not open ssl_crl_dir ".*none": it does not exist'):
        read_directory(str(folder / "none"), "ssl_crl_dir")


def test_directory_over_its_limit_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_access, "MAX_DIRECTORY_OCTETS", 1 << 20)
    for number in range(3):
        written(folder / f"{number}.crl", bytes([number]) * 400_000)
    with pytest.raises(UnusableFile, match="holds over 1 MB"):
        read_directory(str(folder), "ssl_crl_dir")


# The roots of the system.


def test_system_roots_come_from_the_first_bundle_that_exists(folder: Path) -> None:
    bundle = written(folder / "ca-bundle.crt", ROOT_PEM, 0o644)
    roots = system_roots({}, [str(folder / "none"), bundle, str(folder)])
    assert (roots.place, roots.content) == (bundle, ROOT_PEM)


def test_system_roots_obey_openssls_variables_before_the_usual_places(folder: Path) -> None:
    file = written(folder / "my.pem", ROOT_PEM, 0o644)
    directory = folder / "certs"
    directory.mkdir()
    written(directory / "0a1b2c3d.0", pem(OTHER.certificate), 0o644)
    written(directory / "README", b"no certificate", 0o644)
    bundle = written(folder / "bundle.crt", b"never read", 0o644)
    only_file = system_roots({"SSL_CERT_FILE": file}, [bundle])
    assert only_file.place == f"SSL_CERT_FILE={file}"
    both = system_roots({"SSL_CERT_FILE": file, "SSL_CERT_DIR": f"{folder / 'certs'}:"}, [bundle])
    assert "SSL_CERT_FILE=" in both.place
    assert "SSL_CERT_DIR=" in both.place
    found = trusted_certificates(both.content, both.place)
    assert found == (ROOT_CA.certificate, OTHER.certificate)


def test_system_roots_not_found_is_an_error_that_names_the_places(folder: Path) -> None:
    with pytest.raises(UnusableFile, match=r"looked at /none/a, /none/b: install the ca-certificates"):
        system_roots({}, ["/none/a", "/none/b"])
    with pytest.raises(UnusableFile, match="looked at SSL_CERT_DIR="):
        system_roots({"SSL_CERT_DIR": str(folder)})
    with pytest.raises(UnusableFile, match="does not exist"):
        system_roots({"SSL_CERT_FILE": str(folder / "none.pem")})


# What a file holds.


@pytest.mark.parametrize(
    "content",
    [
        CHAIN + KEY,
        KEY + CHAIN,
        DH + KEY + CHAIN + DH,
        CHAIN + ROOT_PEM + KEY + DH,
        pem(SERVER.certificate) + KEY + pem(INTERMEDIATE.certificate),
        b"Subject: CN = db\n  comment -----BEGIN nothing\n" + CHAIN.replace(b"\n", b"\r\n") + b"\n\n" + KEY,
    ],
)
def test_key_and_chain_may_share_a_file_in_any_order(content: bytes) -> None:
    chain = certificate_chain(content, "all.pem")
    pair = key_pair(chain, private_key(content, "all.pem"), certificate_file="all.pem", key_file="all.pem")
    assert pair.leaf == SERVER.certificate
    assert pair.chain[1] == INTERMEDIATE.certificate
    assert chain_warnings(chain, "all.pem") == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b" \n", "the file is empty"),
        (b"garbage\n", "it is not PEM: no line in it begins a certificate"),
        (KEY, "there is no certificate in it, only PRIVATE KEY: is it the right file?"),
        (DH + KEY, "only DH PARAMETERS, PRIVATE KEY"),
        (SERVER.certificate.public_bytes(Encoding.DER), "looks like DER"),
        (CHAIN[: len(CHAIN) // 3], '"-----BEGIN CERTIFICATE-----" in line 1 has no counterpart'),
        (CHAIN + ROOT_PEM[:200], "has no counterpart: the file is cut off or damaged"),
        (b"-----END CERTIFICATE-----\n" + CHAIN, '"-----END CERTIFICATE-----" in line 1'),
        (CHAIN.replace(b"END CERTIFICATE", b"END X509 CRL", 1), "in line 1 has no counterpart"),
        (
            CHAIN + b"\n-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
            f"block 3 (CERTIFICATE, line {CHAIN.count(10) + 2}) is no certificate",
        ),
        (CHAIN.replace(b"CERTIFICATE", b"TRUSTED CERTIFICATE", 2), "block 1 (TRUSTED CERTIFICATE, line 1)"),
    ],
)  # fmt: skip
def test_certificate_file_that_holds_none_says_what_it_holds(content: bytes, reason: str) -> None:
    with pytest.raises(UnusableFile) as caught:
        certificate_chain(content, "server.crt")
    assert str(caught.value).startswith('could not load certificate file "server.crt": ')
    assert reason in str(caught.value)


def test_ca_file_with_two_roots_is_taken_in_both_orders() -> None:
    other = pki.make_ca("Other").certificate_pem()
    assert len(trusted_certificates(ROOT_PEM + other, "ca.crt")) == 2
    assert len(trusted_certificates(other + ROOT_PEM, "ca.crt")) == 2
    with pytest.raises(UnusableFile, match=r'root certificate file "ca\.crt": there is no certificate in it'):
        trusted_certificates(KEY, "ca.crt")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"garbage", "it is not PEM: no line in it begins a private key"),
        (CHAIN, "there is no private key in it, only CERTIFICATE: is it the right file?"),
        (KEY[: len(KEY) // 2], "has no counterpart"),
        (
            b"-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n",
            "block 1 (PRIVATE KEY, line 1) is no private key",
        ),
        (b"0 is how DER begins", "it is no private key"),
    ],
)  # fmt: skip
def test_key_file_that_holds_none_says_what_it_holds(content: bytes, reason: str) -> None:
    with pytest.raises(UnusableFile) as caught:
        private_key(content, "server.key")
    assert str(caught.value).startswith('could not load private key file "server.key": ')
    assert reason in str(caught.value)


RSA_KEY = rsa.generate_private_key(65537, 2048)


@pytest.mark.parametrize("key", [SERVER.key, RSA_KEY], ids=["ec", "rsa"])
@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_keys_in_clear_are_read_in_every_form_with_a_needless_passphrase_or_without(
    key: PrivateKeyTypes, encoding: Encoding, form: PrivateFormat
) -> None:
    content = encoded(key, encoding, form)
    for passphrase in (None, Secret(b""), Secret(b"needless")):
        assert private_key(content, "server.key", passphrase).public_key() == key.public_key()


@pytest.mark.parametrize(
    ("encoding", "form"),
    [
        (Encoding.PEM, PrivateFormat.PKCS8),
        (Encoding.DER, PrivateFormat.PKCS8),
        (Encoding.PEM, PrivateFormat.TraditionalOpenSSL),
    ],
)
def test_encrypted_keys_need_their_passphrase(encoding: Encoding, form: PrivateFormat) -> None:
    content = encoded(SERVER.key, encoding, form, b"canary")
    assert private_key(content, "server.key", Secret(b"canary")).public_key() == SERVER.key.public_key()
    for passphrase in (None, Secret(b"")):
        with pytest.raises(UnusableFile, match="is encrypted and there is no passphrase for it"):
            private_key(content, "server.key", passphrase)
    with pytest.raises(UnusableFile, match="cannot be decrypted: is the passphrase right"):
        private_key(content, "server.key", Secret(b"wrong"))


def test_errors_never_carry_key_or_passphrase() -> None:
    content = encoded(SERVER.key, Encoding.PEM, PrivateFormat.PKCS8, b"canary")
    with pytest.raises(UnusableFile) as caught:
        private_key(content, "server.key", Secret(b"wrong canary"))
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert "PrivateKey" not in repr(
        key_pair((SERVER.certificate,), SERVER.key, certificate_file="", key_file="")
    )


def test_key_of_another_certificate_is_a_mismatch() -> None:
    with pytest.raises(UnusableFile) as caught:
        key_pair((OTHER.certificate,), SERVER.key, certificate_file="server.crt", key_file="server.key")
    assert 'could not load private key file "server.key" for certificate file "server.crt"' in str(
        caught.value
    )
    assert "key values mismatch" in str(caught.value)


def test_chain_with_the_leaf_behind_its_issuer_is_named() -> None:
    chain = (INTERMEDIATE.certificate, SERVER.certificate)
    with pytest.raises(UnusableFile, match="key of certificate 2 in the file, and the leaf must come first"):
        key_pair(chain, SERVER.key, certificate_file="server.crt", key_file="server.key")


def test_chain_out_of_order_is_a_warning_that_names_both_certificates() -> None:
    warnings = chain_warnings(
        (SERVER.certificate, ROOT_CA.certificate, INTERMEDIATE.certificate), "server.crt"
    )
    assert len(warnings) == 2
    assert "certificate 1 (CN=db.example.com) was not issued by certificate 2 (CN=Root)" in warnings[0]
    assert chain_warnings((SERVER.certificate, INTERMEDIATE.certificate, ROOT_CA.certificate), "x") == []


def test_issuer_of_the_same_name_and_another_key_is_no_issuer() -> None:
    impostor = pki.make_intermediate(ROOT_CA, "Intermediate")
    assert len(chain_warnings((SERVER.certificate, impostor.certificate), "server.crt")) == 1


# Revocation lists.

CRL_A = pki.make_crl(ROOT_CA, [1])
CRL_B = pki.make_crl(INTERMEDIATE, [2])


def test_crls_are_read_in_pem_several_in_a_file_and_in_der() -> None:
    both = CRL_A.public_bytes(Encoding.PEM) + ROOT_PEM + CRL_B.public_bytes(Encoding.PEM)
    assert [len(crl) for crl in revocation_lists(both, "ca.crl")] == [1, 1]
    assert revocation_lists(both, "ca.crl")[1].get_revoked_certificate_by_serial_number(2) is not None
    assert revocation_lists(CRL_A.public_bytes(Encoding.DER), "ca.crl") == (CRL_A,)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"garbage", "no line in it begins a CRL"),
        (ROOT_PEM, "there is no CRL in it, only CERTIFICATE"),
        (CRL_A.public_bytes(Encoding.PEM)[:100], "has no counterpart"),
        (ROOT_PEM + b"-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n", "block 2 (X509 CRL, line"),
        (CRL_A.public_bytes(Encoding.DER)[:-1], "it is no CRL in DER"),
    ],
    ids=["empty", "garbage", "a certificate", "PEM cut off", "no CRL inside", "DER cut off"],
)
def test_crl_file_that_cannot_be_used_is_an_error(content: bytes, reason: str) -> None:
    with pytest.raises(UnusableFile) as caught:
        revocation_lists(content, "ca.crl")
    assert str(caught.value).startswith('could not load certificate revocation list file "ca.crl": ')
    assert reason in str(caught.value)


def test_crl_directory_takes_every_crl_in_it_and_leaves_the_rest() -> None:
    files = [
        ("0a1b2c3d.r0", CRL_A.public_bytes(Encoding.PEM)),
        ("ca.pem", CRL_B.public_bytes(Encoding.PEM)),
        ("0a1b2c3d.0", ROOT_PEM),
        ("README", b"text"),
    ]
    assert revocation_lists_in_directory(files, "crl") == (CRL_A, CRL_B)
    assert revocation_lists_in_directory([], "crl") == ()


@pytest.mark.parametrize("name", ["0a1b2c3d.r0", "ca.crl"])
def test_damaged_crl_in_a_directory_is_an_error(name: str) -> None:
    with pytest.raises(UnusableFile, match=f'"crl/{name}"'):
        revocation_lists_in_directory([(name, b"garbage")], "crl")


# Whatever the bytes are.


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@given(
    st.lists(
        st.sampled_from([CHAIN, KEY, DH, CRL_A.public_bytes(Encoding.PEM), b"x\n", b"-----"]), max_size=4
    ),
    st.data(),
)
def test_nothing_but_unusable_file_escapes_from_damaged_files(
    parts: list[bytes], data: st.DataObject
) -> None:
    content = bytearray(b"".join(parts))
    for _ in range(data.draw(st.integers(0, 3))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 127))
    for read in (certificate_chain, private_key, revocation_lists, trusted_certificates):
        with contextlib.suppress(UnusableFile):
            assert read(bytes(content), "file")


def test_times_do_not_matter_to_reading() -> None:
    past = pki.Validity(
        datetime(2001, 1, 1, tzinfo=UTC), datetime(2001, 1, 1, tzinfo=UTC) + timedelta(days=1)
    )
    expired = pki.issue_client(ROOT_CA, "alice", lifetime=past)
    assert certificate_chain(expired.certificate_pem(), "alice.crt") == (expired.certificate,)


# Diffie-Hellman parameters.


def test_dh_parameters_are_found_behind_other_blocks() -> None:
    assert dh_parameters(b"a comment\n" + CHAIN + DH + DH, "dh.pem") == DH


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "the file is empty"),
        (CHAIN, "there is no DH PARAMETERS in it, only CERTIFICATE: is it the right file"),
        (DH[:-5], "has no counterpart: the file is cut off or damaged"),
    ],
)
def test_a_file_without_whole_dh_parameters_is_an_error(content: bytes, text: str) -> None:
    with pytest.raises(UnusableFile, match=f'could not load DH parameters file "dh.pem": .*{text}'):
        dh_parameters(content, "dh.pem")
