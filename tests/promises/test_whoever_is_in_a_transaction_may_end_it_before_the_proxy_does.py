"""Told to end, the proxy tells idle sessions so, lets transactions end, and never forges the end of an answer."""

import os
import signal
import socket
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path

import psycopg
import pytest

import pgtlsproxy
from fixtures import wire
from fixtures.clients import clean_environment
from fixtures.conversations import EXECUTE, SYNC, bind, parse
from fixtures.deployments import config, in_clear, passthrough, with_tls
from fixtures.fake_backend import silent
from fixtures.legs import LEGS, SERVER_HBA, Legs, start_legs
from fixtures.postgres import password
from fixtures.proxy import COMMAND
from fixtures.waiting import until

TERMINATED = "terminating connection due to administrator command"
ENDED, CUT = 0, 3

ALL_TLS = "tls_tls"


@pytest.fixture
def start(proxy, tls_cluster, certs):
    def go(**general):
        legs = start_legs(proxy, tls_cluster(17, SERVER_HBA), certs, **general)
        legs.running.wait_for_event("ready")
        return legs

    return go


class Session(psycopg.Connection):
    """A connection that remembers what it was told. libpq takes a FATAL that comes between two queries for a notice."""

    def told(self):
        """What the server said last, in its words."""
        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError as error:
            return [*getattr(self, "notices", []), str(error)]
        return []


def session(stack, legs, leg=ALL_TLS, *, name="draining"):
    words = legs.target(leg, application_name=name).words
    connection = stack.enter_context(Session.connect(**words, autocommit=True))
    connection.notices = []
    connection.add_notice_handler(lambda notice: connection.notices.append(notice.message_primary))
    return connection


def is_told(connection):
    return any(TERMINATED in words for words in connection.told())


def is_refused(legs, leg=ALL_TLS):
    try:
        socket.create_connection(("127.0.0.1", legs.running.port(leg))).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("workers", [1, 2])
def test_idle_sessions_are_told_at_once_over_every_pair_of_legs(start, workers):
    legs = start(workers=workers)
    with ExitStack() as stack:
        idle = [session(stack, legs, leg) for leg in LEGS for _ in range(3)]
        for connection in idle:
            connection.execute("SELECT 1")
        listening = session(stack, legs)
        listening.execute("LISTEN something")
        legs.running.signal(signal.SIGTERM)
        assert legs.running.wait() == ENDED
        assert all(map(is_told, [*idle, listening]))
    ended = legs.running.log_events("session_ended")
    assert {(event["kind"], event["reason"]) for event in ended} == {("shutdown", "the proxy shuts down")}
    assert len(ended) == len(idle) + 1


@pytest.mark.parametrize("leg", ["clear_tls", "tls_tls"])
def test_a_client_that_reads_late_has_its_farewell_and_no_reset(start, leg):
    """What a reset overtakes on its way is lost."""
    legs = start()
    with wire.WireClient(("127.0.0.1", legs.running.port(leg))) as client:
        if leg == "tls_tls":
            assert client.ask_for_tls() == b"S"
            client.start_tls()
        client.send(wire.startup(user="alice"))
        wire.log_in(client, password("alice"))
        legs.running.signal(signal.SIGTERM)
        assert legs.running.wait() == ENDED
        assert client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert TERMINATED.encode() in client.read_to_end()


@pytest.mark.parametrize("leg", LEGS)
def test_a_transaction_ends_before_its_session_does_and_nobody_else_gets_in(start, leg):
    legs = start()
    with ExitStack() as stack:
        busy = session(stack, legs, leg)
        busy.execute("BEGIN")
        busy.execute("CREATE TEMP TABLE kept AS SELECT 1 AS one")
        legs.running.signal(signal.SIGTERM)
        until(lambda: is_refused(legs, leg))
        assert busy.execute("SELECT one FROM kept").fetchall() == [(1,)]
        assert busy.execute("COMMIT").statusmessage == "COMMIT"
        assert is_told(busy)
        assert legs.running.wait() == ENDED


def test_a_query_under_way_has_its_answer(start):
    legs = start()
    with ExitStack() as stack, ThreadPoolExecutor() as beside:
        busy = session(stack, legs, name="sleeps")
        answer = beside.submit(busy.execute, "SELECT pg_sleep(3), 'all of it'")
        until(lambda: is_active(legs, "sleeps"))
        legs.running.signal(signal.SIGTERM)
        until(lambda: is_refused(legs))
        assert not answer.done()
        assert answer.result().fetchall() == [("", "all of it")]
        assert legs.running.wait() == ENDED


def is_active(legs, name):
    asked = f"SELECT 1 FROM pg_stat_activity WHERE application_name = '{name}' AND state = 'active'"
    return legs.cluster.psql(asked).stdout


@pytest.mark.parametrize("leg", LEGS)
def test_a_transaction_that_takes_too_long_is_told_between_two_requests(start, leg):
    legs = start(drain_timeout="1s")
    with ExitStack() as stack:
        busy = session(stack, legs, leg)
        busy.execute("BEGIN")
        legs.running.signal(signal.SIGTERM)
        assert legs.running.wait() == CUT
        assert is_told(busy)
    ended = legs.running.wait_for_event("session_ended")
    assert (ended["kind"], ended["reason"]) == (
        "shutdown",
        "the proxy shuts down, and drain_timeout was over",
    )


@pytest.mark.parametrize("leg", ["clear_tls", "tls_tls"])
def test_an_answer_that_does_not_end_is_cut_off_without_a_word(start, leg):
    """Neither an ErrorResponse nor close_notify: the client must not take what it has for whole."""
    legs = start(drain_timeout="500ms")
    with wire.WireClient(("127.0.0.1", legs.running.port(leg))) as client:
        if leg == "tls_tls":
            assert client.ask_for_tls() == b"S"
            client.start_tls()
        client.send(wire.startup(user="alice"))
        wire.log_in(client, password("alice"))
        client.send(wire.query("COPY (SELECT generate_series(1, 1000000000), repeat('x', 50)) TO STDOUT"))
        client.read_until(b"d")
        legs.running.signal(signal.SIGTERM)
        end = b""
        with pytest.raises(ConnectionResetError):
            while data := client.receive():
                end = (end + data)[-100_000:]
        assert b"xxx" in end
        assert b"57P01" not in end
        assert legs.running.wait() == CUT
    assert legs.running.wait_for_event("session_ended")["kind"] == "shutdown"


def test_transfers_under_way_arrive_whole(start):
    legs = start(workers=2)
    rows = "SELECT md5(i::text) FROM generate_series(1, 400000) AS i"
    with ExitStack() as stack:
        readers = [session(stack, legs, leg) for leg in LEGS]
        expected = legs.cluster.psql(rows).stdout.splitlines()[-1].encode() + b"\n"
        copies = [stack.enter_context(reader.cursor().copy(f"COPY ({rows}) TO STDOUT")) for reader in readers]
        digests = [sha256(bytes(copy.read())) for copy in copies]
        legs.running.signal(signal.SIGTERM)
        until(lambda: is_refused(legs))
        last = [b""] * len(copies)
        for index, copy in enumerate(copies):
            for data in copy:
                digests[index].update(data)
                last[index] = bytes(data)
        assert last == [expected] * len(copies)
        assert len({digest.hexdigest() for digest in digests}) == 1
        assert legs.running.wait() == ENDED


def test_whoever_has_not_been_let_in_yet_is_turned_away(proxy, fake_backend, certs, tls_cluster):
    """Silent, in a handshake, asked for its password, or waiting for a backend that is being dialled."""
    backend = fake_backend(silent)
    hanging = passthrough(backend, certs, connect_timeout="60s")
    legs_config = config({"dials": in_clear()}, primary=hanging)
    running = proxy(legs_config, {"pg_hba.conf": "host all all all trust\n"})
    running.wait_for_event("ready")
    address = ("127.0.0.1", running.port("dials"))
    with ExitStack() as stack:
        silent_ones = [stack.enter_context(wire.WireClient(address)) for _ in range(5)]
        dialling = [stack.enter_context(wire.WireClient(address)) for _ in range(5)]
        for client in dialling:
            client.send(wire.startup(user="alice"))
        until(lambda: len(backend.conversations) >= len(dialling))
        running.signal(signal.SIGTERM)
        assert running.wait() == ENDED
        for client in dialling:
            refusal = client.read_error().fields
            assert (refusal["C"], refusal["M"]) == ("57P01", TERMINATED)
        for client in silent_ones:
            client.read_to_end()
    refused = [event for event in running.log_events("session_decided") if event["kind"] == "shutdown"]
    assert len(refused) >= len(dialling)


def test_unfinished_handshakes_are_broken_off(start):
    legs = start()
    with ExitStack() as stack:
        for _ in range(20):
            client = stack.enter_context(wire.WireClient(("127.0.0.1", legs.running.port(ALL_TLS))))
            assert client.ask_for_tls() == b"S"
        legs.running.signal(signal.SIGTERM)
        assert legs.running.wait() == ENDED


def test_nobody_is_ended_between_the_answers_of_a_pipeline(start):
    """The first ReadyForQuery is followed by two seconds of silence, and is not the end of what was asked."""
    legs = start()
    with logged_in(legs) as client:
        client.send(parse("SELECT $1::int") + bind(b"1") + EXECUTE + SYNC)
        client.send(parse("SELECT pg_sleep($1)") + bind(b"2") + EXECUTE + SYNC)
        client.read_until(b"Z")
        legs.running.signal(signal.SIGTERM)
        assert [message.kind for message in client.read_until(b"Z")] == [b"1", b"2", b"D", b"C", b"Z"]
        assert client.read_error().fields["C"] == "57P01"
        assert legs.running.wait() == ENDED


@contextmanager
def logged_in(legs, leg="clear_tls"):
    with wire.WireClient(("127.0.0.1", legs.running.port(leg))) as client:
        client.send(wire.startup(user="alice"))
        wire.log_in(client, password("alice"))
        yield client


@pytest.mark.parametrize("streams", [False, True], ids=["without transfers", "with transfers"])
def test_of_all_kinds_at_once_each_ends_as_it_should(proxy, tls_cluster, certs, fake_backend, streams):
    dialled = fake_backend(silent)
    backends = {
        "primary": passthrough(tls_cluster(17, SERVER_HBA), certs),
        "silent": passthrough(dialled, certs, connect_timeout="60s"),
    }
    listeners = {"clear_tls": in_clear(), "dials": in_clear(backend="silent"), ALL_TLS: with_tls(certs)}
    settings = config(listeners, **backends) | {"drain_timeout": "4s", "workers": 2}
    files = {"pg_hba.conf": "host all all all scram-sha-256\n"}
    running = proxy(settings, files)
    legs = Legs(running, tls_cluster(17, SERVER_HBA), certs)
    running.wait_for_event("ready")
    with ExitStack() as stack, ThreadPoolExecutor() as beside:
        idle = [session(stack, legs, leg) for leg in ("clear_tls", ALL_TLS) for _ in range(3)]
        idle[0].execute("LISTEN something")
        busy = [session(stack, legs, leg) for leg in ("clear_tls", ALL_TLS)]
        for connection in busy:
            connection.execute("BEGIN")
        sleeping = session(stack, legs, name="sleeps")
        answer = beside.submit(sleeping.execute, "SELECT pg_sleep(2), 'all of it'")
        until(lambda: is_active(legs, "sleeps"))
        transfers = []
        if streams:
            out, into = (stack.enter_context(logged_in(legs)) for _ in range(2))
            out.send(wire.query("COPY (SELECT generate_series(1, 1000000000)) TO STDOUT"))
            out.read_until(b"d")
            into.send(wire.query("CREATE TEMP TABLE t (n int)"))
            into.read_until(b"Z")
            into.send(wire.query("COPY t FROM STDIN"))
            into.read_until(b"G")
            into.send(wire.message(b"d", b"1\n"))
            transfers = [out, into]
        dialling = stack.enter_context(wire.WireClient(("127.0.0.1", running.port("dials"))))
        dialling.send(wire.startup(user="alice"))
        until(lambda: dialled.conversations)
        shaking = stack.enter_context(wire.WireClient(("127.0.0.1", running.port(ALL_TLS))))
        assert shaking.ask_for_tls() == b"S"
        running.signal(signal.SIGTERM)
        for connection in idle:
            until(partial(is_told, connection))
        assert dialling.read_error().fields["C"] == "57P01"
        assert shaking.read_to_end() == b""
        for connection in busy:
            assert connection.execute("COMMIT").statusmessage == "COMMIT"
            until(partial(is_told, connection))
        assert answer.result().fetchall() == [("", "all of it")]
        until(partial(is_told, sleeping))
        for client in transfers:
            with pytest.raises(ConnectionResetError):
                while client.receive():
                    pass
        assert running.wait() == (CUT if streams else ENDED)
    ended = running.log_events("session_ended")
    assert Counter(event["reason"] for event in ended) == Counter(
        {"the proxy shuts down": len(idle) + len(busy) + 1}
    ) + Counter({"the proxy shuts down, and its answer did not end by drain_timeout": len(transfers)})


def test_told_twice_it_ends_at_once(start):
    legs = start(drain_timeout="1h")
    with ExitStack() as stack:
        busy = session(stack, legs)
        busy.execute("BEGIN")
        legs.running.signal(signal.SIGTERM)
        until(lambda: is_refused(legs))
        legs.running.signal(signal.SIGTERM)
        assert legs.running.wait() == CUT
        with pytest.raises(psycopg.OperationalError):
            busy.execute("SELECT 1")
    assert legs.running.log_events("shutting_down_at_once")


def test_a_reload_meanwhile_changes_nothing(start):
    legs = start(drain_timeout="1h")
    with ExitStack() as stack:
        busy = session(stack, legs)
        busy.execute("BEGIN")
        legs.running.signal(signal.SIGTERM)
        until(lambda: is_refused(legs))
        for _ in range(5):
            legs.running.signal(signal.SIGHUP)
        busy.execute("COMMIT")
        assert legs.running.wait() == ENDED
    assert legs.running.log_events("reloading") == []


def test_drain_delay_lets_clients_in_for_a_while(start):
    """A balancer that has not heard of it yet still sends some."""
    legs = start(drain_delay="2s", workers=2)
    with ExitStack() as stack:
        legs.running.signal(signal.SIGTERM)
        legs.running.wait_for_event("shutting_down")
        late = session(stack, legs)
        assert late.execute("SELECT 'still'").fetchall() == [("still",)]
        assert legs.running.wait() == ENDED
        assert is_told(late)


def test_a_signal_to_every_process_drains_too(certs, tls_cluster, proxy, empty_home):
    """systemd says SIGTERM to all processes of a unit."""
    cluster = tls_cluster(17, SERVER_HBA)
    path = proxy.write(
        config({"clear": in_clear()}, primary=passthrough(cluster, certs)) | {"log": {"format": "json"}},
        {"pg_hba.conf": "host all all all scram-sha-256\n"},
    )
    with subprocess.Popen(
        [*COMMAND, "serve", "-c", str(path)],
        cwd=Path(pgtlsproxy.__file__).parents[1], env=clean_environment(empty_home),
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        lines = []
        while '"ready"' not in (lines[-1] if lines else ""):
            lines.append(process.stderr.readline())
        (port,) = [line.rpartition("127.0.0.1:")[2].split('"')[0] for line in lines if '"listening"' in line]
        words = {"host": "127.0.0.1", "port": port, "user": "alice", "dbname": "alice", "sslmode": "disable"}
        with psycopg.connect(**words, password=password("alice"), autocommit=True) as busy:
            busy.execute("BEGIN")
            os.killpg(process.pid, signal.SIGTERM)
            while "shutting_down" not in lines[-1]:
                lines.append(process.stderr.readline())
            assert busy.execute("SELECT 1").fetchall() == [(1,)]
            busy.execute("COMMIT")
            process.stderr.read()
            assert process.wait() == ENDED


def test_what_was_killed_starts_again_at_once_at_its_old_addresses(proxy, certs, tls_cluster, tmp_path):
    cluster = tls_cluster(17, SERVER_HBA)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tmp_path / "s"
    folder.mkdir()
    listener = in_clear(listen=[f"127.0.0.1:{port}", f"unix:{folder}:5432"])
    files = {"pg_hba.conf": "host all all all scram-sha-256\nlocal all all scram-sha-256\n"}
    settings = config({"clear": listener}, primary=passthrough(cluster, certs))
    first = proxy(settings, files)
    first.wait_for_event("ready")
    first.kill()
    assert (folder / ".s.PGSQL.5432").exists()
    second = proxy(settings, files)
    second.wait_for_event("ready")
    for host in ("127.0.0.1", str(folder)):
        words = {"host": host, "user": "alice", "dbname": "alice", "password": password("alice")}
        with psycopg.connect(**words, port=port if host[0] == "1" else 5432, sslmode="disable") as connection:
            assert connection.execute("SELECT 1").fetchall() == [(1,)]
    assert second.stop() == ENDED
    assert list(folder.iterdir()) == []
