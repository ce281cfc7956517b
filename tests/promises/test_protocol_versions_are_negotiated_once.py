"""NegotiateProtocolVersion comes from the proxy, exactly once and only where it is due, as from PostgreSQL 18."""

import struct

import pytest

from fixtures import wire
from fixtures.deployments import config, passthrough, with_tls
from fixtures.fake_backend import lets_everybody_in
from fixtures.postgres import password

HBA = "hostssl all all all scram-sha-256\n"
X, Y = "_pq_.x", "_pq_.y"

CASES = {
    "3.0": ((3, 0), [], None),
    "3.1": ((3, 1), [], None),
    "3.2": ((3, 2), [], None),
    "3.3": ((3, 3), [], ((3, 2), [])),
    "3.9999": ((3, 9999), [], ((3, 2), [])),
    "3.0 and an option": ((3, 0), [X], ((3, 0), [X])),
    "3.2 and an option": ((3, 2), [X], ((3, 2), [X])),
    "3.9999 and two options": ((3, 9999), [X, Y], ((3, 2), [X, Y])),
}
"""The version and the options of a client; the version and the options of the answer, or None for none."""


@pytest.fixture(scope="module", params=[15, 17, 18])
def cluster(request, tls_cluster):
    return tls_cluster(request.param)


@pytest.fixture(scope="module")
def running(cluster, shared_proxy, certs):
    return shared_proxy(
        config({"tls": with_tls(certs)}, primary=passthrough(cluster, certs)), {"pg_hba.conf": HBA}
    )


def negotiated(message):
    version, count = struct.unpack_from("!II", message.body)
    names = message.body[8:].split(b"\x00")[:-1]
    assert len(names) == count
    return (version >> 16, version & 0xFFFF), [name.decode() for name in names]


def log_in(address, version, options):
    """Log in as alice. What was negotiated, if anything, and the length of the cancel key."""
    with wire.connected(address) as client:
        client.send(wire.startup(("user", "alice"), *((name, "on") for name in options), version=version))
        answered = None
        first = client.read_message()
        if first.kind == b"v":
            answered = negotiated(first)
            first = client.read_message()
        assert first.code == 10
        rest = wire.log_in(client, password("alice"), opening=first)
        assert b"v" not in {message.kind for message in rest}
        (key,) = [message.body[4:] for message in rest if message.kind == b"K"]
        client.send(wire.TERMINATE)
        client.end()
        client.read_to_end()
        return answered, len(key)


@pytest.mark.parametrize(("version", "options", "answer"), CASES.values(), ids=CASES.keys())
def test_a_client_gets_one_answer_where_it_is_due(running, cluster, tls_cluster, version, options, answer):
    found, key = log_in(("127.0.0.1", running.port("tls")), version, options)
    assert found == answer
    assert key == (32 if cluster.installation.major == 18 and version >= (3, 2) else 4)
    reference = tls_cluster(18)
    assert log_in((reference.host, reference.port), version, options)[0] == answer


@pytest.fixture(scope="module")
def backend(shared_fake_backend):
    return shared_fake_backend(lets_everybody_in)


@pytest.fixture(scope="module")
def before_a_fake(backend, shared_proxy, certs):
    primary = passthrough(backend, certs, require_auth="none")
    old = passthrough(backend, certs, require_auth="none", max_protocol_version="3.0")
    return shared_proxy(
        config({"tls": with_tls(certs), "old": with_tls(certs, backend="old")}, primary=primary, old=old),
        {"pg_hba.conf": "hostssl all all all trust\n"},
    )


@pytest.mark.parametrize(
    ("listener", "version", "spoken"),
    [
        ("tls", (3, 0), (3, 0)),
        ("tls", (3, 1), (3, 0)),
        ("tls", (3, 2), (3, 2)),
        ("tls", (3, 9999), (3, 2)),
        ("old", (3, 0), (3, 0)),
        ("old", (3, 2), (3, 0)),
        ("old", (3, 9999), (3, 0)),
    ],
)
def test_the_backend_has_nothing_to_negotiate(before_a_fake, backend, listener, version, spoken):
    backend.forget()
    with wire.connected(("127.0.0.1", before_a_fake.port(listener))) as client:
        client.send(wire.startup(("user", "alice"), (X, "1"), ("_pq_.", ""), (X, "2"), version=version))
        first = client.read_message()
        assert negotiated(first) == (min(version, (3, 0) if listener == "old" else (3, 2)), [X, "_pq_."])
        client.read_until(b"Z")
    conversation = backend.conversation()
    assert conversation.version == spoken
    assert conversation.startup == {"user": "alice", "database": "alice"}


@pytest.mark.parametrize("extra", [b"", b"again"], ids=["once", "twice"])
def test_what_the_backend_negotiates_stays_with_the_proxy(before_a_fake, backend, extra):
    own = wire.message(b"v", struct.pack("!II", 0x00030000, 0))

    def script(conversation):
        conversation.accept()
        conversation.send(own + (own if extra else b""))
        conversation.let_in()
        conversation.answer_queries()

    backend.script = script
    try:
        with wire.connected(("127.0.0.1", before_a_fake.port("tls"))) as client:
            client.send(wire.startup(user="alice", version=(3, 2)))
            if extra:
                assert client.read_error().error == ("57P03", "the database system is not available")
            else:
                assert "v" not in {message.kind for message in client.read_until(b"Z")}
    finally:
        backend.script = lets_everybody_in
