"""For each client certificate the verdict is that of PostgreSQL 15 and 17 with the same line, or a stricter one."""

import contextlib
import re
import ssl
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fixtures import wire
from fixtures.certs import Authority, Issued, common_names
from fixtures.deployments import config, passthrough, with_tls
from fixtures.fake_backend import lets_everybody_in
from fixtures.shared_proxy import events_of, refusal_of

HBA = "hostssl all all all cert\n"
LET_IN = "let in"
CLOSED = "closed"
NO_CERTIFICATE = "28000", "connection requires a valid client certificate"
NOT_ALICE = "28000", 'certificate authentication failed for user "alice"'

VERDICTS = {
    "alice": (LET_IN, None),
    "alice, by an intermediate": (LET_IN, None),
    "alice, no usage": (LET_IN, None),
    "none": (NO_CERTIFICATE, None),
    "bob": (NOT_ALICE, None),
    "ALICE": (NOT_ALICE, None),
    "a blank behind": (NOT_ALICE, None),
    "a fullwidth letter": (NOT_ALICE, None),
    "a zero-width space": (NOT_ALICE, None),
    "a combining accent": (NOT_ALICE, None),
    "a Cyrillic letter": (NOT_ALICE, None),
    "a star": (NOT_ALICE, None),
    "a star for alice": (NOT_ALICE, None),
    "a T61String": (LET_IN, None),
    "a line feed": (NOT_ALICE, None),
    "an escape": (NOT_ALICE, None),
    "a DEL": (NOT_ALICE, None),
    "nobody, alice as DNS name": (NOT_ALICE, None),
    "no common name": (NOT_ALICE, None),
    "bob and alice": (NOT_ALICE, None),
    "alice and bob": (NOT_ALICE, LET_IN),
    "another CA": (CLOSED, None),
    "another CA's chain": (CLOSED, None),
    "self-signed": (CLOSED, None),
    "alice, forged": (CLOSED, None),
    "the CA, forged": (CLOSED, None),
    "expired": (CLOSED, None),
    "not yet valid": (CLOSED, None),
    "a server's": (CLOSED, None),
    "an email's": (CLOSED, None),
    "any usage": (CLOSED, None),
    "no usage at all": (CLOSED, None),
    "a NUL": (CLOSED, None),
    "a BMPString": (CLOSED, None),
    "a UniversalString": (CLOSED, None),
    "over 16 kB": (CLOSED, LET_IN),
}
"""Our verdict on user alice with this certificate, and PostgreSQL's where that differs: it takes the first name, and
whatever OpenSSL takes."""

BALLAST = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), bytes(20_000))

TLS_ERRORS = {
    "another CA": "unable to get local issuer certificate",
    "another CA's chain": "self-signed certificate in certificate chain",
    "self-signed": "self-signed certificate",
    "alice, forged": "certificate signature failure",
    "expired": "certificate has expired",
    "not yet valid": "certificate is not yet valid",
    "a server's": "unsuitable certificate purpose",
}


def forged(issued, folder):
    """A copy of a certificate, names and key ids and all, with a new key and a signature by that."""
    folder.mkdir()
    original, key = issued.certificate, ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateBuilder(original.issuer, original.subject, key.public_key())
    builder = builder.serial_number(original.serial_number)
    builder = builder.not_valid_before(original.not_valid_before_utc)
    builder = builder.not_valid_after(original.not_valid_after_utc)
    for extension in original.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    certificate = builder.sign(key, hashes.SHA256())
    crt, key_file = folder / "forged.crt", folder / "forged.key"
    crt.write_bytes(certificate.public_bytes(Encoding.PEM))
    key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return Issued(certificate, key, crt, key_file)


@pytest.fixture(scope="module")
def certificates(certs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clients")
    ca, alice = certs.ca, common_names("alice")
    foreign = certs.other_ca.client("alice")
    chain = folder / "chain.crt"
    chain.write_bytes(foreign.crt.read_bytes() + certs.other_ca.crt.read_bytes())

    def encoded(kind):
        name = x509.NameAttribute(NameOID.COMMON_NAME, "alice", _type=kind)
        return ca.issue(x509.Name([name]), usage="client")

    def named(name):
        return ca.issue(common_names(name), usage="client")

    def usages(*listed):
        return ca.issue(alice, usage=None, extensions=[x509.ExtendedKeyUsage(listed)])

    return {
        "none": None,
        "alice": certs.client("alice"),
        "alice, by an intermediate": ca.intermediate("clients").client("alice"),
        "alice, no usage": ca.issue(alice, usage=None),
        "bob": certs.client("bob"),
        "ALICE": named("ALICE"),
        "a blank behind": named("alice "),
        "a fullwidth letter": named("\uff41lice"),
        "a zero-width space": named("ali\u200bce"),
        "a combining accent": named("alice\u0301"),
        "a Cyrillic letter": named("ali\u0441e"),
        "a star": named("*"),
        "a star for alice": named("*lice"),
        "a T61String": encoded(x509.name._ASN1Type.T61String),
        "a line feed": named('alice\nevent="forged"'),
        "an escape": named("alice\x1b[2J"),
        "a DEL": named("alice\x7f"),
        "nobody, alice as DNS name": ca.issue(common_names("nobody"), names=("alice",), usage="client"),
        "no common name": ca.issue(
            x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "alice")]), usage="client"
        ),
        "bob and alice": certs.client("bob", "alice"),
        "alice and bob": certs.client("alice", "bob"),
        "another CA": foreign,
        "another CA's chain": Issued(foreign.certificate, foreign.private_key, chain, foreign.key),
        "self-signed": Authority.root(folder / "self", "alice").issued,
        "alice, forged": forged(certs.client("alice"), folder / "alice"),
        "the CA, forged": forged(ca.issued, folder / "ca"),
        "expired": ca.expired(alice, usage="client"),
        "not yet valid": ca.issue(alice, usage="client", not_before=datetime.now(UTC) + timedelta(days=1)),
        "a server's": ca.issue(alice, usage="server"),
        "an email's": usages(ExtendedKeyUsageOID.EMAIL_PROTECTION),
        "any usage": usages(ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE),
        "no usage at all": usages(),
        "a NUL": named("alice\x00.evil"),
        "a BMPString": encoded(x509.name._ASN1Type.BMPString),
        "a UniversalString": encoded(x509.name._ASN1Type.UniversalString),
        "over 16 kB": ca.issue(alice, usage="client", extensions=[BALLAST]),
    }


@pytest.fixture(scope="module")
def running(shared_proxy, shared_fake_backend, certs):
    shown = certs.client("pgtlsproxy")
    backend = shared_fake_backend(lets_everybody_in)
    return shared_proxy(
        config(
            {"tls": with_tls(certs)},
            primary=passthrough(backend, certs, login="certificate", sslcert=shown.crt, sslkey=shown.key),
        ),
        {"pg_hba.conf": HBA},
    )


def outcome(client, certificate, version):
    """What alice hears with this certificate: that she is let in, an error, or nothing."""
    assert client.ask_for_tls() == b"S"
    try:
        client.start_tls(wire.tls_context(certificate=certificate, versions=(version, version)))
        client.send(wire.startup(user="alice"))
        first = client.read_message()
    except (ssl.SSLError, EOFError, ConnectionError):
        return CLOSED
    if first.kind == b"E":
        return first.error
    client.read_until(b"Z")
    return LET_IN


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda v: v.name)
@pytest.mark.parametrize("name", VERDICTS)
def test_the_verdict_is_postgresqls_or_stricter(running, tls_cluster, certificates, name, version):
    verdict, theirs = VERDICTS[name]
    with wire.WireClient(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        assert outcome(client, certificates[name], version) == verdict
        decided = running.wait_for_event("session_decided", **client.where)
        assert events_of(running, client) == [decided] or verdict == LET_IN
    if verdict == LET_IN:
        assert (decided["verdict"], decided["proof"], decided["cert_verified"]) == ("allowed", "cert", True)
    elif verdict == CLOSED:
        assert (decided["verdict"], decided["kind"]) == ("refused", "client_certificate")
    else:
        assert (decided["verdict"], decided["sqlstate"], decided["kind"]) == ("refused", "28000", "denied")
    for major in (15, 17):
        cluster = tls_cluster(major, HBA)
        with wire.WireClient((cluster.host, cluster.port)) as direct:
            assert outcome(direct, certificates[name], version) == (theirs or verdict), major


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda v: v.name)
@pytest.mark.parametrize("name", TLS_ERRORS)
def test_a_refused_handshake_says_in_the_log_whose_certificate_it_was_and_why(
    running, certs, certificates, name, version
):
    offered = certificates[name].certificate
    with wire.WireClient(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        assert outcome(client, certificates[name], version) == CLOSED
        decided = running.wait_for_event("session_decided", **client.where)
    assert decided["tls_error"].startswith(TLS_ERRORS[name])
    assert decided["cert_verified"] is False
    if name == "another CA's chain":  # what does not verify here is the root behind the certificate
        assert decided["cert_cn"] == "pgtlsproxy other test CA"
        return
    assert decided["cert_cn"] == "alice"
    assert decided["cert_serial"] == f"{offered.serial_number:x}"
    assert decided["cert_issuer"] == offered.issuer.rfc4514_string()
    assert len(decided["cert_sha256"]) == 64


def test_a_long_certificate_is_refused_unread_whoever_issued_it(running, certs):
    for ca, reason in (
        (certs.ca, r"the certificate is 20\d\d\d octets long, and 16384 are the most that are read"),
        (certs.other_ca, "Client certificate verification failed at depth 0"),
    ):
        long = ca.issue(common_names("alice"), usage="client", extensions=[BALLAST])
        with wire.WireClient(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
            assert outcome(client, long, ssl.TLSVersion.TLSv1_3) == CLOSED
            decided = refusal_of(running, client)
        assert decided["kind"] == "client_certificate"
        assert re.match(reason, decided["reason"])
        assert "octets long" in decided["tls_error"]
        assert decided["cert_cn"] is None


def test_a_certificate_for_several_purposes_is_a_clients_too(running, certs):
    usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    both = certs.ca.issue(common_names("alice"), usage=None, extensions=[usages])
    with wire.WireClient(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        assert outcome(client, both, ssl.TLSVersion.TLSv1_3) == LET_IN


def test_a_certificate_is_shown_inside_direct_tls_too(running, certs):
    with wire.WireClient(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        client.start_tls(wire.tls_context(certificate=certs.client("alice")))
        client.send(wire.startup(user="alice"))
        client.read_until(b"Z")


def issued_by_openssl(certs, folder, key, digest):
    """A certificate of alice by the good CA, as weak as wanted: cryptography does not make such ones."""
    request = x509.CertificateSigningRequestBuilder(common_names("alice")).sign(key, hashes.SHA256())
    csr, crt, key_file = folder / "alice.csr", folder / "alice.crt", folder / "alice.key"
    csr.write_bytes(request.public_bytes(Encoding.PEM))
    key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    signer = [
        "-CA",
        certs.ca.crt,
        "-CAkey",
        certs.ca.issued.key,
        "-CAserial",
        folder / "serial",
        "-CAcreateserial",
    ]
    command = ["openssl", "x509", "-req", "-in", csr, *signer, digest, "-days", "1", "-out", crt]
    subprocess.run(command, check=True, capture_output=True)
    return Issued(x509.load_pem_x509_certificate(crt.read_bytes()), key, crt, key_file)


@pytest.mark.parametrize(
    ("bits", "digest", "weakness"),
    [
        (1024, "-sha256", "EE certificate key too weak"),
        (2048, "-sha1", "CA signature digest algorithm too weak"),
    ],
)
def test_a_weak_certificate_is_refused(running, certs, tmp_path, bits, digest, weakness):
    shown = issued_by_openssl(certs, tmp_path, rsa.generate_private_key(65537, bits), digest)
    context = wire.tls_context(certificate=shown, ciphers="ALL:@SECLEVEL=0")
    with wire.WireClient(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        assert client.ask_for_tls() == b"S"
        with contextlib.suppress(ssl.SSLError):
            client.start_tls(context)
        assert client.read_to_end() == b""
        decided = refusal_of(running, client)
        assert (decided["kind"], decided["tls_error"]) == ("client_certificate", weakness)
