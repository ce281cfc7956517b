"""Where a line says `clientname=SAN_...`, one subjectAltName of that kind has to be the user's, byte for byte."""

import ssl

import pytest
from cryptography import x509

from fixtures import wire
from fixtures.certs import common_names
from fixtures.deployments import config, passthrough, with_tls
from fixtures.fake_backend import lets_everybody_in
from fixtures.shared_proxy import refusal_of

HBA = """
hostssl dns    all all cert clientname=SAN_DNS
hostssl uri    all all cert clientname=SAN_URI
hostssl email  all all cert clientname=SAN_EMAIL
hostssl spiffe all all cert clientname=SAN_URI map=spiffe
hostssl cn     all all cert
"""
IDENT = r"spiffe /^spiffe://prod\.corp/ns/crm/sa/([a-z0-9_]+)$ \1"

CLOSED = "closed"
NOT_ALLOWED = "28000"

DNS, URI, EMAIL = x509.DNSName, x509.UniformResourceIdentifier, x509.RFC822Name

CERTIFICATES = {
    "dns": [DNS("alice")],
    "uri": [URI("alice")],
    "email": [EMAIL("alice")],
    "all kinds": [DNS("x"), URI("y"), EMAIL("z"), DNS("alice"), URI("alice"), EMAIL("alice")],
    "capitals": [DNS("Alice"), URI("ALICE"), EMAIL("alicE")],
    "more than the name": [DNS("alice.corp.example"), URI("spiffe://alice"), EMAIL("alice@corp.example")],
    "wildcard": [DNS("*"), DNS("*lice")],
    "spiffe": [DNS("x"), URI("https://corp.example"), URI("spiffe://prod.corp/ns/crm/sa/alice")],
    "spiffe of bob": [URI("spiffe://prod.corp/ns/crm/sa/bob")],
    "spiffe of another domain": [URI("spiffe://prod-corp/ns/crm/sa/alice")],
    "other kinds": [
        x509.RegisteredID(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1")),
        x509.DirectoryName(common_names("alice")),
        x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x0c\x05alice"),
    ],
    "common name": [],
    "DNS with NUL": [DNS("alice"), DNS("alice\0.evil")],
    "URI with NUL": [URI("alice\0")],
}

LET_IN = {
    "dns": {"dns"},
    "uri": {"uri"},
    "email": {"email"},
    "all kinds": {"dns", "uri", "email"},
    "spiffe": {"spiffe"},
    "common name": {"cn"},
}
"""Into which databases alice gets with which certificate."""


@pytest.fixture(scope="module")
def certificates(certs):
    def issued(names):
        subject = common_names("nobody") if names else common_names("alice")
        extensions = [x509.SubjectAlternativeName(names)] if names else []
        return certs.ca.issue(subject, usage="client", extensions=extensions)

    return {which: issued(names) for which, names in CERTIFICATES.items()}


@pytest.fixture(scope="module")
def running(shared_proxy, shared_fake_backend, certs):
    shown, backend = certs.client("pgtlsproxy"), shared_fake_backend(lets_everybody_in)
    primary = passthrough(backend, certs, login="certificate", sslcert=shown.crt, sslkey=shown.key)
    listener = with_tls(certs, ident_file="pg_ident.conf")
    return shared_proxy(
        config({"tls": listener}, primary=primary), {"pg_hba.conf": HBA, "pg_ident.conf": IDENT}
    )


def connect(running):
    return wire.WireClient(("127.0.0.1", running.port("tls")), source=wire.another_source())


def verdict(client, certificate, database):
    """None where alice is let in."""
    assert client.ask_for_tls() == b"S"
    try:
        client.start_tls(wire.tls_context(certificate=certificate))
        client.send(wire.startup(user="alice", database=database))
        first = client.read_message()
    except (ssl.SSLError, EOFError, ConnectionError):
        return CLOSED
    if first.kind == b"E":
        return first.error[0]
    client.read_until(b"Z")
    return None


@pytest.mark.parametrize("which", CERTIFICATES)
def test_one_name_of_the_kind_that_the_line_wants_lets_in(running, certificates, which):
    for database in ("dns", "uri", "email", "spiffe", "cn"):
        with connect(running) as client:
            expected = None if database in LET_IN.get(which, ()) else NOT_ALLOWED
            if "NUL" in which:
                expected = CLOSED
            assert verdict(client, certificates[which], database) == expected, database


def test_the_log_has_the_name_and_the_line_of_the_map(running, certificates):
    with connect(running) as client:
        assert verdict(client, certificates["spiffe"], "spiffe") is None
        decided = running.wait_for_event("session_decided", **client.where)
    assert (decided["identity"], decided["proof"]) == ("spiffe://prod.corp/ns/crm/sa/alice", "cert")
    assert (decided["hba_line"], decided["ident_line"], decided["cert_dn"]) == (5, 1, "CN=nobody")
    assert "URI:spiffe://prod.corp/ns/crm/sa/alice" in decided["cert_san"]
    with connect(running) as client:
        assert verdict(client, certificates["spiffe of bob"], "spiffe") == NOT_ALLOWED
        decided = refusal_of(running, client)
    assert decided["decided_by"] == "ident"
    assert 'authenticated as "spiffe://prod.corp/ns/crm/sa/bob"' in decided["reason"]


def test_a_certificate_with_a_nul_in_a_name_is_refused_whatever_the_line(running, certificates):
    with connect(running) as client:
        assert verdict(client, certificates["DNS with NUL"], "cn") == CLOSED
        decided = refusal_of(running, client)
    assert decided["kind"] == "client_certificate"
    assert decided["reason"] == "a subjectAltName of the certificate contains embedded null"
