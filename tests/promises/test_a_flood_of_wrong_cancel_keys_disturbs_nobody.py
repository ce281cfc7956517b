"""CancelRequests that name no session here have a budget; those that do are outside it, and nobody waits for either."""

import time

import pytest

from fixtures import wire
from fixtures.deployments import config, in_clear, passthrough, with_tls
from fixtures.fake_backend import asks_for_scram
from fixtures.postgres import password
from fixtures.shared_proxy import complete_log

RATE = 5
FLOOD = 300
IN_FLIGHT = 32
FOLD_AFTER = 10
"""Equal refusals of a source that are told in a second."""
LOG_IN = asks_for_scram(password("alice"))


@pytest.fixture
def backend(fake_backend):
    return fake_backend(LOG_IN)


@pytest.fixture
def running(proxy, certs, backend):
    return proxy(
        config(
            {"tls": with_tls(certs), "drop": in_clear(backend="drop")},
            primary=passthrough(backend, certs),
            drop=passthrough(backend, certs, cancel_unknown="drop"),
        )
        | {"cancel_rate": RATE},
        {"pg_hba.conf": "host all all all scram-sha-256\n"},
    )


@pytest.fixture
def session(running):
    with wire.connected(("127.0.0.1", running.port("tls"))) as client:
        client.send(wire.startup(user="alice"))
        wire.log_in(client, password("alice"))
        yield client


def cancel(running, pid, key, listener="tls", source=None):
    """Send a CancelRequest and wait for the end; not a byte may come."""
    with wire.WireClient(("127.0.0.1", running.port(listener)), source=source) as client:
        client.send(wire.cancel_request(pid, key))
        assert client.read_to_end() == b""


def cancels(backend):
    return [each.cancel for each in backend.conversations if each.cancel is not None]


def test_most_of_them_are_dropped_and_sessions_go_on(running, backend, session):
    start = time.monotonic()
    for number in range(FLOOD):
        cancel(running, number, b"none")
    seconds = time.monotonic() - start
    session.send(wire.query("SELECT 1"))
    assert session.read_until(b"Z")[0].kind == b"C"
    forwarded = cancels(backend)
    assert RATE <= len(forwarded) <= RATE * (seconds + 2)
    assert all(key == b"none" for _, key in forwarded)
    dropped = [each for each in complete_log(running, "tls") if each["event"] == "cancel_dropped"]
    assert dropped
    assert "cancel_rate" in dropped[0]["reason"]


def test_those_that_are_dropped_are_counted_in_the_log_and_do_not_flood_it(running, backend):
    start = time.monotonic()
    for number in range(FLOOD):
        cancel(running, number, b"none", listener="drop")
    seconds = time.monotonic() - start
    running.stop()
    told = len(running.log_events("cancel_dropped"))
    assert told <= FOLD_AFTER * (seconds + 2)
    folded = running.log_events("refusals_folded")
    assert {(each["folded"], each["client_addr"]) for each in folded} == {("cancel_dropped", "127.0.0.1")}
    assert told + sum(each["count"] for each in folded) == FLOOD


def test_a_key_of_a_session_here_is_outside_the_budget(running, backend, session):
    for number in range(3 * RATE):
        cancel(running, number, b"none")
    for _ in range(3 * RATE):
        cancel(running, 4711, b"keys")
    assert cancels(backend).count((4711, b"keys")) == 3 * RATE


def test_another_source_has_a_budget_of_its_own(running, backend):
    for number in range(3 * RATE):
        cancel(running, number, b"none")
    for number in range(RATE):
        cancel(running, number, b"mine", source="127.0.0.2")
    assert [key for _, key in cancels(backend)].count(b"mine") == RATE


def test_unknown_keys_are_dropped_where_the_backend_says_so(running, backend):
    cancel(running, 1, b"none", listener="drop")
    assert backend.conversations == []
    dropped = running.wait_for_event("cancel_dropped", listener="drop")
    assert "cancel_unknown: drop" in dropped["reason"]


def test_a_backend_that_takes_no_cancels_does_not_use_up_the_slots_of_known_keys(running, backend, session):
    """Unknown ones wait for the backend; beyond 32 they are dropped, and a session's own cancel passes."""

    def stalls(conversation):
        conversation.accept()

    def never_ends(conversation):
        try:
            conversation.accept()
        except EOFError:
            conversation._sock.recv(1)

    backend.script = never_ends
    waiting = []
    for number in range(IN_FLIGHT + 4):
        client = wire.WireClient(("127.0.0.1", running.port("tls")), source=f"127.0.1.{number + 1}")
        client.send(wire.cancel_request(number, b"none"))
        waiting.append(client)
    try:
        running.wait_for_event("cancel_dropped")
        backend.script = stalls
        start = time.monotonic()
        cancel(running, 4711, b"keys")
        assert time.monotonic() - start < wire.PROMPTLY
        assert (4711, b"keys") in cancels(backend)
    finally:
        for client in waiting:
            client.close()


@pytest.mark.parametrize("how", ["in clear", "inside TLS", "inside direct TLS"])
@pytest.mark.parametrize("key", [b"keys", b"k" * 32, b"k" * 256], ids=len)
def test_a_key_of_any_length_passes_unchanged(running, backend, certs, how, key):
    def script(conversation):
        conversation.accept()
        conversation.do_scram(password("alice"))
        conversation.let_in(key=key)
        conversation.answer_queries()

    backend.script = script
    address = "127.0.0.1", running.port("tls")
    with wire.connected(address) as session:
        session.send(wire.startup(user="alice", version=(3, 2)))
        wire.log_in(session, password("alice"))
        with wire.WireClient(address) as client:
            if how == "inside TLS":
                assert client.ask_for_tls() == b"S"
            if how != "in clear":
                client.start_tls()
            client.send(wire.cancel_request(4711, key))
            assert client.receive() == b"", "a clean end, or libpq 17 says that the cancel failed"
        assert cancels(backend) == [(4711, key)]


def test_a_key_is_dead_when_its_session_is(running, backend):
    with wire.connected(("127.0.0.1", running.port("tls"))) as session:
        session.send(wire.startup(user="alice"))
        wire.log_in(session, password("alice"))
        session.send(wire.TERMINATE)
        session.end()
        session.read_to_end()
    running.wait_for_event("session_ended")
    for _ in range(3 * RATE):
        cancel(running, 4711, b"keys")
    assert cancels(backend).count((4711, b"keys")) < 3 * RATE
