"""A backend that refuses TLS or is not who it should be is told nothing, and what it says reaches nobody.

The client gets 57P03 with a constant text, so that libpq does not fall back to clear text; the reason is in the log.
(CVE-2024-10977, CVE-2021-23222)
"""

import json
import ssl
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fixtures import wire
from fixtures.certs import Authority, Issued, common_names
from fixtures.chains import NO_CA, Node, node, saved
from fixtures.deployments import config, passthrough, with_tls
from fixtures.fake_backend import Script, asks_for_scram, silent
from fixtures.postgres import password
from fixtures.shared_proxy import complete_log, refusal_of

NOT_AVAILABLE = "57P03", "the database system is not available"
MARKER = "ATTACKER"
EVIL = wire.error_response("28000", f"{MARKER}: your password is needed at https://evil.example")
LOG_IN = asks_for_scram(password("alice"))


@dataclass(frozen=True)
class Impostor:
    """A backend that must not be believed.

    Args:
        reason: what the log says of it.
        script: what it does.
        certificate: a name of `certificates`; None for none.
        settings: of the backend's configuration.
        fake: arguments more of the fake.
        hears: what it hears in clear; None for a ClientHello.
    """

    reason: str
    script: Script = LOG_IN
    certificate: str | None = "good"
    settings: dict[str, Any] = field(default_factory=dict)
    fake: dict[str, Any] = field(default_factory=dict)
    hears: bytes | None = wire.SSL_REQUEST


def says(answer):
    def script(conversation):
        conversation.answer_ssl_request(answer)

    return script


def closes(conversation):
    assert conversation.read_exactly(8) == wire.SSL_REQUEST
    conversation._sock.shutdown(2)


def behind_s(said):
    """`S`, and bytes in clear where the handshake should begin."""

    def script(conversation):
        conversation.answer_ssl_request(b"S" + said)
        conversation.start_tls()
        conversation.read_startup()

    return script


def at_once(conversation):
    """The server's side of direct TLS."""
    conversation.start_tls()
    conversation.read_startup()


def in_clear_at_once(said):
    def script(conversation):
        conversation.send(said)

    return script


DIRECT = {"sslnegotiation": "direct"}
OLD = (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1)
BY_ADDRESS = {"host": "127.0.0.1"}
LAB = {"host": "db.lab.test", "hostaddr": "127.0.0.1"}
MISMATCH = 'does not match host name "localhost"'
LET_IN = wire.AUTHENTICATION_OK + wire.backend_key_data(1, b"keys") + wire.ready_for_query()

IMPOSTORS = {
    "another CA": Impostor("unable to get local issuer certificate", certificate="other_ca"),
    "self-signed": Impostor("self-signed certificate", certificate="self_signed"),
    "expired": Impostor("certificate has expired", certificate="expired"),
    "not yet valid": Impostor("certificate is not yet valid", certificate="not_yet_valid"),
    "a client's certificate": Impostor("unsuitable certificate purpose", certificate="client_usage"),
    "a missing intermediate": Impostor("unable to get local issuer certificate", certificate="without_chain"),
    "revoked": Impostor("certificate revoked", certificate="revoked", settings={"sslcrl": "ca.crl"}),
    "no CRL of its CA": Impostor("unable to get certificate CRL", settings={"sslcrl": "other.crl"}),
    "another name": Impostor(MISMATCH, certificate="other_name"),
    "a CN beside a SAN": Impostor(MISMATCH, certificate="cn_beside_san"),
    "no name": Impostor("could not get server's host name", certificate="no_name"),
    "a wildcard too deep": Impostor(
        'does not match host name "db.lab.test"', certificate="wildcard_test", settings=LAB
    ),
    "a wildcard for a host that its CA may not certify": Impostor(
        'forbid host name "db.lab.test"', certificate="wildcard_of_a_limited_ca", settings=LAB
    ),
    "an address as CN": Impostor("does not match", certificate="address_as_cn", settings=BY_ADDRESS),
    "an address as DNS name": Impostor("does not match", certificate="address_as_dns", settings=BY_ADDRESS),
    "another address": Impostor("does not match", certificate="other_address", settings=BY_ADDRESS),
    "TLS 1.1 at most": Impostor("protocol", fake={"versions": OLD}),
    "N": Impostor("does not support TLS", says(b"N"), None),
    "E and a text": Impostor("sent an error", says(EVIL), None),
    "E of protocol 2": Impostor("sent an error", says(b"EATTACKER\n\x00"), None),
    "nothing but an end": Impostor("the server closed", closes, None),
    "G": Impostor("unexpected answer G", says(b"G"), None),
    "a NUL": Impostor(r"unexpected answer \x00", says(b"\x00"), None),
    "SS": Impostor("", behind_s(b"S")),
    "S and an error": Impostor("", behind_s(EVIL)),
    "S and AuthenticationOk": Impostor("", behind_s(LET_IN)),
    "S and one byte": Impostor("", behind_s(b"\x00")),
    "direct TLS without ALPN": Impostor(
        "without ALPN", at_once, settings=DIRECT, fake={"alpn": False}, hears=b""
    ),
    "direct TLS, another CA": Impostor(
        "unable to get local issuer certificate", at_once, "other_ca", settings=DIRECT, hears=b""
    ),
    "direct TLS, another name": Impostor(MISMATCH, at_once, "other_name", settings=DIRECT, hears=b""),
    "direct TLS, an error in clear": Impostor("", in_clear_at_once(EVIL), None, settings=DIRECT, hears=None),
}


@pytest.fixture(scope="module")
def certificates(certs, tmp_path_factory):
    """Certificates of every kind that a server could show."""
    folder = tmp_path_factory.mktemp("impostors")
    ca, localhost, now = certs.ca, common_names("localhost"), datetime.now(UTC)
    chained = ca.intermediate("an intermediate").server("localhost")
    leaf_only = folder / "leaf.crt"
    leaf_only.write_bytes(chained.certificate.public_bytes(Encoding.PEM))
    limits = x509.NameConstraints(None, [x509.DNSName("db.lab.test")])
    limited = node("limited", Node(ca.issued.certificate, ca.issued.private_key), critical=(limits,))
    wildcard = x509.SubjectAlternativeName([x509.DNSName("*.lab.test")])
    address_as_dns = x509.SubjectAlternativeName([x509.DNSName("127.0.0.1")])
    return {
        "good": certs.server,
        "other_ca": certs.other_ca.server("localhost"),
        "self_signed": Authority.root(folder / "self", "localhost").issued,
        "expired": ca.expired(localhost, names=("localhost",)),
        "not_yet_valid": ca.issue(localhost, names=("localhost",), not_before=now + timedelta(days=1)),
        "client_usage": ca.issue(localhost, names=("localhost",), usage="client"),
        "without_chain": Issued(chained.certificate, chained.private_key, leaf_only, chained.key),
        "revoked": ca.issue(localhost, names=("localhost",)),
        "other_name": ca.server("db.example.com", "other.example.com"),
        "cn_beside_san": ca.issue(localhost, names=("db.example.com",)),
        "no_name": ca.issue(x509.Name([])),
        "wildcard_test": ca.issue(common_names("x"), names=("*.test",)),
        "wildcard_of_a_limited_ca": saved(folder / "wild", node("x", limited, (NO_CA, wildcard)), limited),
        "address_as_cn": ca.issue(common_names("127.0.0.1")),
        "address_as_dns": ca.issue(common_names("x"), extensions=[address_as_dns]),
        "other_address": ca.issue(common_names("127.0.0.1"), names=("127.0.0.2",)),
        "cn_only": ca.issue(localhost),
        "no_usage": ca.issue(localhost, names=("localhost",), usage=None),
        "wildcard": ca.issue(common_names("x"), names=("*.lab.test",)),
        "chained": chained,
    }


@pytest.fixture(scope="module")
def backends(shared_fake_backend, certificates):
    return {
        name: shared_fake_backend(
            each.script, certificates.get(each.certificate), tls=each.certificate is not None, **each.fake
        )
        for name, each in IMPOSTORS.items()
    }


@pytest.fixture(scope="module")
def running(shared_proxy, certs, certificates, backends):
    """One listener for each impostor, with a pg_hba.conf of its own: what the log folds is told apart by its line."""
    names = {name: f"b{index}" for index, name in enumerate(IMPOSTORS)}
    running = shared_proxy(
        config(
            {key: with_tls(certs, backend=key, hba_file=f"{key}.conf") for key in names.values()},
            **{
                key: passthrough(backends[name], certs, **IMPOSTORS[name].settings)
                for name, key in names.items()
            },
        ),
        {
            **{f"{key}.conf": "host all all all scram-sha-256\n" for key in names.values()},
            "ca.crl": certs.ca.crl(certificates["revoked"]).read_bytes(),
            "other.crl": certs.other_ca.crl().read_bytes(),
        },
    )
    running.names = names
    return running


@pytest.mark.parametrize("impostor", IMPOSTORS)
def test_it_hears_nothing_and_what_it_says_reaches_nobody(running, backends, impostor):
    backend, expected = backends[impostor], IMPOSTORS[impostor]
    backend.forget()
    with wire.connected(("127.0.0.1", running.port(running.names[impostor]))) as client:
        client.send(wire.startup(user="alice"))
        error = client.read_error()
        decided = refusal_of(running, client)
    assert error.error == NOT_AVAILABLE
    assert set(error.fields) == set("SVCMD")
    assert MARKER not in str(error.fields)
    assert (decided["kind"], decided["sqlstate"]) == ("backend_tls", "57P03")
    assert expected.reason in decided["reason"], decided["reason"]
    conversation = backend.conversation()
    assert conversation.inside == b""
    if expected.hears is None:
        assert (conversation.clear[:1], b"alice" in conversation.clear) == (b"\x16", False)
    else:
        assert conversation.clear == expected.hears
    assert len(backend.conversations) == 1


@pytest.mark.parametrize(
    "impostor", ["another CA", "another name", "N", "E and a text", "nothing but an end", "SS"]
)
def test_libpq_does_not_fall_back_to_clear_text(running, each_psql, impostor):
    """The listener would take clear text from this host, and pg_hba.conf would, too."""
    since = running.mark()
    done = each_psql.run(
        "SELECT 1", host="127.0.0.1", port=running.port(running.names[impostor]), user="alice", dbname="alice",
        password=password("alice"), sslmode="prefer",
    )  # fmt: skip
    assert done.returncode == 2
    assert "the database system is not available" in done.stderr
    assert MARKER not in done.stderr
    listener = running.names[impostor]
    events = [
        event for event in complete_log(running, listener)[since:] if event["event"] == "session_decided"
    ]
    assert [event["tls_version"] for event in events] == ["TLSv1.3"], "libpq came a second time"


def test_nothing_that_they_said_is_in_the_log(running):
    assert MARKER not in json.dumps(running.log_events())


GOOD = {
    "a SAN": ("good", {}),
    "a CN without SAN": ("cn_only", {}),
    "no extended key usage": ("no_usage", {}),
    "a wildcard of one label": ("wildcard", LAB),
    "an address": ("good", BY_ADDRESS),
    "an intermediate": ("chained", {}),
    "direct TLS": ("good", DIRECT),
    "a CRL": ("good", {"sslcrl": "ca.crl"}),
}


@pytest.fixture(scope="module")
def good(shared_fake_backend, shared_proxy, certs, certificates):
    def direct(conversation):
        conversation.start_tls()
        conversation.read_startup()
        conversation.do_scram(password("alice"))
        conversation.let_in()

    fakes = [
        shared_fake_backend(direct if settings == DIRECT else LOG_IN, certificates[certificate])
        for certificate, settings in GOOD.values()
    ]
    return shared_proxy(
        config(
            {f"b{index}": with_tls(certs, backend=f"b{index}") for index in range(len(GOOD))},
            **{
                f"b{index}": passthrough(fake, certs, **settings)
                for index, (fake, (_, settings)) in enumerate(zip(fakes, GOOD.values(), strict=True))
            },
        ),
        {
            "pg_hba.conf": "host all all all scram-sha-256\n",
            "ca.crl": certs.ca.crl(certificates["revoked"]).read_bytes(),
        },
    )


@pytest.mark.parametrize("index", range(len(GOOD)), ids=GOOD)
def test_the_right_one_is_believed(good, index):
    with wire.connected(("127.0.0.1", good.port(f"b{index}"))) as client:
        client.send(wire.startup(user="alice"))
        assert wire.log_in(client, password("alice"))[-1].kind == b"Z"


def test_the_next_host_is_tried(fake_backend, certificates, proxy, certs):
    impostors = [
        fake_backend(LOG_IN, certificates["other_ca"]),
        fake_backend(LOG_IN, certificates["other_name"]),
        fake_backend(says(b"N"), tls=False),
        fake_backend(says(EVIL), tls=False),
    ]
    backend = fake_backend(LOG_IN)
    backends = [*impostors, backend]
    several = passthrough(
        backend,
        certs,
        host=["localhost"] * len(backends),
        hostaddr=["127.0.0.1"] * len(backends),
        port=[each.port for each in backends],
    )
    running = proxy(
        config({"tls": with_tls(certs)}, primary=several), {"pg_hba.conf": "host all all all scram-sha-256\n"}
    )
    with wire.connected(("127.0.0.1", running.port("tls"))) as client:
        client.send(wire.startup(user="alice"))
        wire.log_in(client, password("alice"))
        decided = running.wait_for_event("session_decided", verdict="allowed")
        assert decided["backend_addr"] == f"localhost (127.0.0.1:{backend.port})"
    for each in impostors:
        assert b"alice" not in each.conversation().received


def stalls_after_s(conversation):
    conversation.answer_ssl_request(b"S")


def stalls_inside_the_handshake(conversation):
    """Half a ServerHello."""
    conversation.answer_ssl_request(b"S" + bytes.fromhex("1603030200") + b"\x02")


@pytest.mark.parametrize("script", [silent, stalls_after_s, stalls_inside_the_handshake])
def test_connect_timeout_bounds_one_that_stalls_and_the_next_is_tried(fake_backend, proxy, certs, script):
    slow, backend = fake_backend(script), fake_backend(LOG_IN)
    both = passthrough(
        backend,
        certs,
        host=["localhost", "localhost"],
        hostaddr=["127.0.0.1", "127.0.0.1"],
        port=[slow.port, backend.port],
        connect_timeout="1s",
    )
    alone = passthrough(slow, certs, connect_timeout="1s")
    running = proxy(
        config(
            {"both": with_tls(certs), "alone": with_tls(certs, backend="alone")}, primary=both, alone=alone
        ),
        {"pg_hba.conf": "host all all all scram-sha-256\n"},
    )
    start = time.monotonic()
    with wire.connected(("127.0.0.1", running.port("both"))) as client:
        client.send(wire.startup(user="alice"))
        wire.log_in(client, password("alice"))
    with wire.connected(("127.0.0.1", running.port("alone"))) as client:
        client.send(wire.startup(user="alice"))
        assert client.read_error().error == NOT_AVAILABLE
        decided = refusal_of(running, client)
        assert (decided["kind"], "connect_timeout" in decided["reason"]) == ("backend_unreachable", True)
    assert time.monotonic() - start < 20


def test_with_login_certificate_it_is_the_same(fake_backend, proxy, certs, certificates):
    """The proxy's own certificate is not shown to a server that refuses TLS, and nobody is let in by it."""
    backend = fake_backend(LOG_IN, certificates["other_name"])
    shown = certs.client("pgtlsproxy")
    primary = passthrough(backend, certs, login="certificate", sslcert=shown.crt, sslkey=shown.key)
    running = proxy(
        config({"tls": with_tls(certs)}, primary=primary), {"pg_hba.conf": "hostssl all all all cert\n"}
    )
    context = wire.tls_context(certificate=certs.client("alice"))
    with wire.connected(("127.0.0.1", running.port("tls")), context) as client:
        client.send(wire.startup(user="alice"))
        assert client.read_error().error == NOT_AVAILABLE
    conversation = backend.conversation()
    assert (bytes(conversation.clear), bytes(conversation.inside)) == (wire.SSL_REQUEST, b"")


def test_a_server_that_rotates_to_an_untrusted_certificate_loses_new_sessions_alone(
    fake_backend, proxy, certs, certificates
):
    backend = fake_backend(LOG_IN)
    running = proxy(
        config({"tls": with_tls(certs)}, primary=passthrough(backend, certs)),
        {"pg_hba.conf": "host all all all scram-sha-256\n"},
    )
    address = "127.0.0.1", running.port("tls")
    with wire.connected(address) as open_session:
        open_session.send(wire.startup(user="alice"))
        wire.log_in(open_session, password("alice"))
        rotated = fake_backend(LOG_IN, certificates["other_ca"])
        backend._context = rotated._context
        with wire.connected(address) as client:
            client.send(wire.startup(user="alice"))
            assert client.read_error().error == NOT_AVAILABLE
        open_session.send(wire.query("SELECT 1"))
        assert [each.kind for each in open_session.read_until(b"Z")] == [b"C", b"Z"]
