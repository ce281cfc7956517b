"""Connections that prove nothing have a limit of their own: the oldest goes first, and whoever can prove comes in."""

import contextlib
import sys
import threading
import time

import pytest

from fixtures import wire
from fixtures.deployments import config, in_clear, passthrough, with_tls
from fixtures.fake_backend import asks_for_scram, lets_everybody_in
from fixtures.postgres import password
from fixtures.shared_proxy import complete_log, events_of, refusal_of

SESSIONS, PENDING, CROWD = 8, 4, 40


class Slow:
    """A backend that lets nobody in before the test says so."""

    def __init__(self):
        self.goes_on = threading.Event()

    def __call__(self, conversation):
        conversation.accept()
        assert self.goes_on.wait(wire.PATIENCE)
        conversation.let_in()
        conversation.answer_queries()


@pytest.fixture
def slow():
    slow = Slow()
    yield slow
    slow.goes_on.set()


@pytest.fixture
def running(proxy, certs, fake_backend, slow):
    shown = certs.client("pgtlsproxy")
    believing = {"login": "certificate", "sslcert": shown.crt, "sslkey": shown.key, "connect_timeout": "60s"}
    files = {
        "cert.conf": "hostssl all all all cert\n",
        "scram.conf": "host all all all scram-sha-256\n",
    }
    return proxy(
        config(
            {
                "cert": with_tls(certs, hba_file="cert.conf", backend="good"),
                "slow": with_tls(certs, hba_file="cert.conf", backend="slow"),
                "scram": in_clear(hba_file="scram.conf", backend="asks"),
            },
            good=passthrough(fake_backend(lets_everybody_in), certs, **believing),
            slow=passthrough(fake_backend(slow), certs, **believing),
            asks=passthrough(fake_backend(asks_for_scram(password("alice"))), certs),
        )
        | {"max_connections": SESSIONS, "max_pending": PENDING, "startup_timeout": "600s"},
        files,
    )


@pytest.fixture
def connect(running):
    """Opens clients that are closed when the test is over."""
    with contextlib.ExitStack() as stack:

        def open_one(listener, source):
            address = "127.0.0.1", running.port(listener)
            return stack.enter_context(wire.WireClient(address, source=source))

        yield open_one


def log_in(connect, certs, listener="cert"):
    """alice, proved by her certificate."""
    client = connect(listener, wire.another_source())
    assert client.ask_for_tls() == b"S"
    client.start_tls(wire.tls_context(certificate=certs.client("alice")))
    client.send(wire.startup(user="alice"))
    return client


def answers(client):
    client.send(wire.query("SELECT 1"))
    return [message.kind for message in client.read_until(b"Z")] == [b"C", b"Z"]


def says_nothing(connect, source):
    return connect("cert", source)


def stops_before_its_handshake(connect, source):
    client = connect("cert", source)
    assert client.ask_for_tls() == b"S"
    return client


def stops_behind_its_handshake(connect, source):
    client = stops_before_its_handshake(connect, source)
    client.start_tls()
    return client


def does_not_prove_itself(connect, source):
    client = connect("scram", source)
    client.send(wire.startup(user="alice"))
    assert client.read_message().code == 10
    return client


@pytest.mark.parametrize(
    "behaviour",
    [says_nothing, stops_before_its_handshake, stops_behind_its_handshake, does_not_prove_itself],
)
def test_the_oldest_goes_first_and_sessions_begin_and_go_on(running, certs, connect, behaviour):
    session = log_in(connect, certs)
    session.read_until(b"Z")
    sources = [wire.another_source() for _ in range(CROWD // 5)]
    crowd = [behaviour(connect, sources[number // 5]) for number in range(CROWD)]
    start = time.monotonic()
    newcomer = log_in(connect, certs)
    newcomer.read_until(b"Z")
    assert time.monotonic() - start < wire.PROMPTLY
    assert answers(session)
    assert answers(newcomer)
    gone, left = crowd[: CROWD - PENDING + 1], crowd[CROWD - PENDING + 1 :]
    for client in gone:
        assert client.read_to_end() == b""
        refused = refusal_of(running, client)
        assert (refused["kind"], refused["sqlstate"]) == ("limit", None)
        assert "max_pending" in refused["reason"]
    for client in left:
        assert events_of(running, client) == []


def test_whom_the_proxy_has_proved_waits_for_the_backend_undisturbed(certs, connect, slow):
    waiting = log_in(connect, certs, "slow")
    crowd = [says_nothing(connect, wire.another_source()) for _ in range(CROWD)]
    assert crowd[CROWD - PENDING - 1].read_to_end() == b""
    slow.goes_on.set()
    waiting.read_until(b"Z")
    assert answers(waiting)


def test_who_finds_no_session_left_is_told_and_may_cancel(running, certs, connect):
    """As with PostgreSQL, which takes CancelRequests however full it is."""
    sessions = []
    for _ in range(SESSIONS):
        sessions.append(log_in(connect, certs))
        sessions[-1].read_until(b"Z")
    refused = log_in(connect, certs)
    assert refused.read_error().error == ("53300", "sorry, too many clients already")
    event = refusal_of(running, refused)
    assert (event["kind"], event["user"]) == ("limit", "alice")
    assert "max_connections" in event["reason"]
    cancelling = connect("cert", wire.another_source())
    cancelling.send(wire.cancel_request(4711, b"keys"))
    assert cancelling.read_to_end() == b""
    assert [
        each["reason"] for each in complete_log(running, "scram") if each["event"] == "cancel_dropped"
    ] == ["two live sessions have this key: which one is meant cannot be told"]
    sessions[0].send(wire.TERMINATE)
    assert sessions[0].read_to_end() == b""
    running.wait_for_event("session_ended", **sessions[0].where)
    log_in(connect, certs).read_until(b"Z")


WITH_A_LOW_HARD_LIMIT = """
import sys
from pgtlsproxy.proxy import admission
admission.HARD_LIMIT_MARGIN = -4
from pgtlsproxy.cli import main
main(sys.argv[1:])
"""


def test_beyond_all_limits_connections_are_closed_at_once(proxy, certs, fake_backend):
    running = proxy(
        config({"clear": in_clear()}, primary=passthrough(fake_backend(), certs))
        | {"max_connections": 1, "max_pending": 5},
        {"pg_hba.conf": "host all all all scram-sha-256\n"},
        command=(sys.executable, "-c", WITH_A_LOW_HARD_LIMIT),
    )
    address = "127.0.0.1", running.port("clear")
    with wire.WireClient(address) as first, wire.WireClient(address) as second:
        for _ in range(50):
            with wire.WireClient(address, source=wire.another_source()) as client:
                start = time.monotonic()
                assert client.read_to_end() == b""
                assert time.monotonic() - start < wire.PROMPTLY
        folded = running.wait_for_event("refusals_folded")
        assert "max_connections" in folded["reason"]
        refused = [each for each in running.log_events("session_decided") if each["kind"] == "limit"]
        assert len(refused) < 50
        for client in (first, second):
            client.sock.settimeout(0)
            with pytest.raises(BlockingIOError):
                client.sock.recv(1)


def test_silence_and_garbage_are_over_in_time_and_counted_once_each(proxy, certs, fake_backend):
    silent, noisy, seconds = 40, 20, 2
    backend = passthrough(fake_backend(lets_everybody_in), certs, require_auth="none")
    running = proxy(
        config({"clear": in_clear()}, primary=backend) | {"startup_timeout": f"{seconds}s"},
        {"pg_hba.conf": "host all all all trust\n"},
    )
    address = "127.0.0.1", running.port("clear")
    with contextlib.ExitStack() as stack:
        crowd = [
            stack.enter_context(wire.WireClient(address, source=f"127.0.1.{number + 1}"))
            for number in range(silent + noisy)
        ]
        for client in crowd[silent:]:
            client.send_raw(b"\xff" * 64)
        start = time.monotonic()
        legitimate = stack.enter_context(wire.WireClient(address, source=wire.another_source()))
        legitimate.send(wire.startup(user="alice"))
        legitimate.read_until(b"Z")
        assert time.monotonic() - start < wire.PROMPTLY
        for client in crowd:
            assert client.read_to_end() == b""
        assert answers(legitimate)
    kinds = [each["kind"] for each in running.log_events("session_decided")]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        None: 1,
        "timeout": silent,
        "client_protocol": noisy,
    }
