"""max_connections and the budget of CancelRequests are one for all workers, and a cancel reaches its query through any.

`PGTLSPROXY_FLOOD=200000` in the environment raises the number of wrong keys, and that of silent connections to 4,000.
"""

import contextlib
import os
import resource
import signal
import threading
import time
from contextlib import ExitStack

import pytest

from fixtures import wire
from fixtures.deployments import config, in_clear, passthrough, with_tls
from fixtures.fake_backend import lets_everybody_in
from fixtures.processes import open_descriptors
from fixtures.waiting import until
from fixtures.wire import WireClient, another_source

WORKERS = 4
MAX_CONNECTIONS = 12
RATE = 5
CANCELS = 100
FLOOD = int(os.environ.get("PGTLSPROXY_FLOOD", "0")) or 10_000
WRONG_KEYS = FLOOD
SILENT = FLOOD // 50
SOURCES = 50
KNOWN_AFTER = 1000
"""Wrong ones; the sessions' own keys come between them, while the fake backend still waits for a query."""


@pytest.fixture
def backend(fake_backend):
    return fake_backend(lets_everybody_in)


@pytest.fixture
def start(proxy, certs, backend):
    def go(**words):
        running = proxy(
            config(
                {"clear": in_clear(), "tls": with_tls(certs)},
                primary=passthrough(backend, certs, require_auth="none"),
            )
            | {"workers": WORKERS, "cancel_rate": RATE}
            | words,
            {"pg_hba.conf": "host all all all trust\n"},
        )
        running.wait_for_event("ready")
        return running

    return go


def connect(stack, running, **words):
    address = "127.0.0.1", running.port("clear")
    return stack.enter_context(WireClient(address, source=another_source(), **words))


def log_in(stack, running):
    """A session, and the worker that has it; None where it was refused for being one too many."""
    client = connect(stack, running)
    client.send(wire.startup(user="alice"))
    if (message := client.read_message()).kind == b"E":
        assert message.error[0] == "53300"
        return client, None
    client.read_until(b"Z")
    return client, running.wait_for_event("session_decided", **client.where)["worker"]


def fill(stack, running):
    """As many sessions as there may be, and the workers that have them."""
    sessions = [log_in(stack, running) for _ in range(MAX_CONNECTIONS)]
    assert None not in {worker for _, worker in sessions}
    assert len({worker for _, worker in sessions}) > 1
    return sessions


def test_max_connections_is_the_sum_over_all_workers(start):
    running = start(max_connections=MAX_CONNECTIONS)
    with ExitStack() as stack:
        sessions = fill(stack, running)
        for _ in range(2 * WORKERS):
            assert log_in(stack, running)[1] is None
        sessions[0][0].send(wire.TERMINATE)
        sessions[0][0].read_to_end()
        running.wait_for_event("session_ended", **sessions[0][0].where)
        until(lambda: log_in(stack, running)[1] is not None)
        assert log_in(stack, running)[1] is None


def test_a_crowd_that_comes_and_goes_at_the_limit_leaves_it_where_it_was(start):
    running = start(max_connections=MAX_CONNECTIONS)
    refused = []

    def come_and_go():
        for _ in range(15):
            with ExitStack() as stack:
                client, worker = log_in(stack, running)
                if worker is None:
                    refused.append(client)
                else:
                    client.send(wire.TERMINATE)

    with ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS - 1):  # so that most of the crowd find none left
            log_in(stack, running)
        crowd = [threading.Thread(target=come_and_go) for _ in range(12)]
        for each in crowd:
            each.start()
        for each in crowd:
            each.join()
        assert refused
        until(lambda: log_in(stack, running)[1] is not None)
        running.wait_for_event("session_ended")
    until(
        lambda: (
            len(running.log_events("session_ended"))
            == len([each for each in running.log_events("session_decided") if each["verdict"] == "allowed"])
        )
    )
    with ExitStack() as stack:
        fill(stack, running)
        assert log_in(stack, running)[1] is None


def test_the_sessions_of_a_dead_worker_are_counted_no_more(start):
    running = start(max_connections=MAX_CONNECTIONS)
    with ExitStack() as stack:
        sessions = fill(stack, running)
        victim = running.workers[0]
        os.kill(victim, signal.SIGKILL)
        dead = running.wait_for_event("worker_died")["worker"]
        freed = [worker for _, worker in sessions].count(dead)
        assert freed > 0
        again = [log_in(stack, running)[1] for _ in range(freed + 1)]
        assert None not in again[:freed]
        assert again[freed] is None


def test_the_oldest_unproven_connection_goes_first_whichever_worker_has_it(start):
    pending, crowd = 8, 60
    running = start(max_pending=pending)
    with ExitStack() as stack:
        session, _ = log_in(stack, running)
        silent = [connect(stack, running) for _ in range(crowd)]
        # Whose turn it is to accept is chance, so that "oldest" is so within a few.
        for client in silent[: crowd - 3 * pending]:
            assert client.read_to_end() == b""
        until(lambda: len(running.log_events("session_decided")) == 1 + crowd - pending)
        gone = running.log_events("session_decided")[1:]
        assert len({each["worker"] for each in gone}) == WORKERS
        assert {each["reason"].partition(":")[0] for each in gone} == {"younger connections took its place"}
        ports = {each["client_port"] for each in gone}
        left = [client for client in silent if client.where["client_port"] not in ports]
        assert len(left) == pending
        for client in left:
            client.send(wire.startup(user="alice"))
            client.read_until(b"Z")
        session.send(wire.query("SELECT 1"))
        session.read_until(b"Z")


def test_a_worker_that_hangs_keeps_no_younger_connections_from_taking_the_place_of_older_ones(start):
    pending = 40
    running = start(max_pending=pending)
    with ExitStack() as stack:
        before = {pid: open_descriptors(pid) for pid in running.workers}

        def taken():
            return {pid: open_descriptors(pid) - before[pid] for pid in before}

        for _ in range(pending):
            connect(stack, running)
        until(lambda: sum(taken().values()) == pending)
        hanging = max(before, key=taken().get)
        os.kill(hanging, signal.SIGSTOP)
        try:
            younger = connect(stack, running)

            def is_gone():
                for _ in range(pending):
                    connect(stack, running)
                younger.sock.settimeout(0.5)
                with contextlib.suppress(TimeoutError):
                    return younger.sock.recv(1) == b""

            until(is_gone)
            begin = time.monotonic()
            assert log_in(stack, running)[1] is not None
            assert time.monotonic() - begin < wire.PROMPTLY
        finally:
            os.kill(hanging, signal.SIGCONT)


@pytest.fixture
def many_descriptors():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_login_gets_through_a_crowd_of_silent_connections_and_unfinished_handshakes(
    start, many_descriptors
):
    running = start(max_connections=1000)
    sources = [another_source() for _ in range(SOURCES)]
    with ExitStack() as stack:
        for number in range(SILENT):
            address = "127.0.0.1", running.port("tls")
            client = stack.enter_context(WireClient(address, source=sources[number % SOURCES]))
            if number % 2:
                client.send_raw(wire.SSL_REQUEST)
        for _ in range(5):
            begin = time.monotonic()
            assert log_in(stack, running)[1] is not None
            assert time.monotonic() - begin < wire.PROMPTLY


def test_sessions_that_stay_are_spread_evenly(start):
    running = start()
    with ExitStack() as stack:
        counts = dict.fromkeys(range(1, WORKERS + 1), 0)
        for _ in range(20 * WORKERS):
            counts[log_in(stack, running)[1]] += 1
    assert min(counts.values()) >= 10, counts


def keys_of_their_own(backend):
    """Sessions get a key each; a list of them grows as they are given out."""
    given = []

    def script(conversation):
        conversation.accept()
        given.append((len(given) + 1000, os.urandom(32)))
        pid, key = given[-1]
        conversation.let_in(pid=pid, key=key)
        conversation.answer_queries()

    backend.script = script
    return given


def cancel(running, pid, key, *, source=None):
    """Send a CancelRequest and wait for the end, which comes without a word."""
    with WireClient(("127.0.0.1", running.port("clear")), source=source) as client:
        client.send(wire.cancel_request(pid, key))
        assert client.read_to_end() == b""


def cancels(backend):
    return [each.cancel for each in backend.conversations if each.cancel is not None]


def session_of_each(stack, running, backend):
    """By worker, the cancel key of a session that it has."""
    given = keys_of_their_own(backend)
    keys = {}

    def all_have_one():
        client = connect(stack, running)
        client.send(wire.startup(user="alice", version=(3, 2)))
        messages = client.read_until(b"Z")
        (body,) = [message.body for message in messages if message.kind == b"K"]
        worker = running.wait_for_event("session_decided", **client.where)["worker"]
        keys[worker] = int.from_bytes(body[:4], "big"), body[4:]
        assert keys[worker] == given[-1]
        return len(keys) == WORKERS

    until(all_have_one)
    return keys


def test_a_hundred_of_a_hundred_cancels_reach_the_session_whichever_workers_get_them(start, backend):
    """One a second may arrive as unknown; the others must have been known."""
    running = start(cancel_rate=1)
    with ExitStack() as stack:
        keys = session_of_each(stack, running, backend)
        for number in range(CANCELS):
            cancel(running, *list(keys.values())[number % WORKERS])
        arrived = cancels(backend)
        assert {key: arrived.count(key) for key in keys.values()} == dict.fromkeys(
            keys.values(), CANCELS // WORKERS
        )
        assert len(arrived) == CANCELS, "each once"
    assert running.log_events("cancel_dropped") == []
    shown = str(running.log_events())
    assert not [key for _, key in keys.values() if key.hex() in shown or repr(key) in shown]


def test_the_key_of_a_session_that_another_worker_had_is_dead_with_it_and_with_its_worker(start, backend):
    running = start(cancel_rate=1)
    with ExitStack() as stack:
        keys = session_of_each(stack, running, backend)
        victim = running.workers[0]
        os.kill(victim, signal.SIGKILL)
        dead = running.wait_for_event("worker_died")["worker"]
        until(lambda: victim not in running.workers and len(running.workers) == WORKERS)
        for _ in range(20):
            cancel(running, *keys[dead])
    assert running.wait_for_event("cancel_dropped")["reason"].startswith("more CancelRequests with unknown")


def test_cancels_find_the_sessions_of_the_others_when_a_worker_has_been_killed_under_load(start, backend):
    """The sessions of the one that takes its place, too."""
    running = start(cancel_rate=1)
    is_over = threading.Event()

    def come_and_go():
        while not is_over.is_set():
            with contextlib.suppress(ConnectionError, EOFError), ExitStack() as stack:
                client = connect(stack, running)
                client.send(wire.startup(user="alice"))
                client.read_until(b"Z")
                client.send(wire.query("SELECT 1"))
                client.read_until(b"Z")

    with ExitStack() as stack:
        before = session_of_each(stack, running, backend)
        crowd = [threading.Thread(target=come_and_go) for _ in range(WORKERS)]
        for each in crowd:
            each.start()
        os.kill(running.workers[0], signal.SIGKILL)
        dead = running.wait_for_event("worker_died")["worker"]
        until(lambda: len(running.workers) == WORKERS)
        is_over.set()
        for each in crowd:
            each.join()
        now = session_of_each(stack, running, backend)
        keys = [*now.values(), *(key for worker, key in before.items() if worker != dead)]
        for key in keys * 5:
            cancel(running, *key)
        arrived = cancels(backend)
        assert {arrived.count(key) for key in keys} == {5}
    assert running.log_events("cancel_dropped") == []


def test_two_sessions_of_different_workers_with_one_key_are_both_left_alone(start, backend):
    running = start()
    with ExitStack() as stack:
        until(lambda: len({log_in(stack, running)[1] for _ in range(WORKERS)}) > 1)
        for _ in range(4 * WORKERS):
            cancel(running, 4711, b"keys")
    assert cancels(backend) == []
    assert "two live sessions" in running.wait_for_event("cancel_dropped")["reason"]


def test_all_wrong_keys_share_one_budget_and_slow_nobody(start, backend):
    running = start()
    with ExitStack() as stack:
        keys = session_of_each(stack, running, backend)
        session, _ = log_in(stack, running)
        begin = asked = time.monotonic()
        slowest = 0.0
        for number in range(WRONG_KEYS):
            cancel(running, number % 1000, b"none", source="127.0.0.9")
            if time.monotonic() > asked + 1:
                asked = time.monotonic()
                session.send(wire.query("SELECT 1"))
                session.read_until(b"Z")
                slowest = max(slowest, time.monotonic() - asked)
            if number == KNOWN_AFTER:
                for key in keys.values():
                    cancel(running, *key, source="127.0.0.9")
        seconds = time.monotonic() - begin
        arrived = cancels(backend)
        assert {arrived.count(key) for key in keys.values()} == {1}, "known keys are outside the budget"
        assert RATE <= len(arrived) - WORKERS <= RATE * (seconds + 2)
        assert slowest < wire.PROMPTLY


def test_cancels_that_a_backend_does_not_take_are_at_most_32_over_all_workers(start, backend):
    def never_ends(conversation):
        try:
            conversation.accept()
        except EOFError:
            conversation._sock.recv(1)

    running = start()
    backend.script = never_ends
    with ExitStack() as stack:
        clients = [connect(stack, running) for _ in range(64)]
        for number, client in enumerate(clients):
            client.send(wire.cancel_request(number, b"none"))
        for _ in range(3):
            running.wait_for_event(
                "cancel_dropped", reason="too many CancelRequests with unknown keys are under way"
            )
        until(lambda: len(running.log_events("cancel_dropped")) == 32)
        until(lambda: len(backend.conversations) == 32)
