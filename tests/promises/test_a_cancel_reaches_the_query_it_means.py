"""Ctrl-C in psql and the drivers' cancels reach their query and no other, in clear, in TLS, and with long keys."""

import contextlib
import signal
import socket
import threading

import psycopg
import pytest

from fixtures import wire
from fixtures.deployments import config, in_clear, passthrough, with_tls
from fixtures.drivers import Target
from fixtures.postgres import password
from fixtures.waiting import until

SLEEP = "SELECT pg_sleep(60)"
CANCELED = "canceling statement due to user request"
LISTENERS = ("clear", "tls")


@pytest.fixture(scope="module", params=[17, 18])
def cluster(request, tls_cluster):
    return tls_cluster(request.param)


@pytest.fixture(scope="module")
def running(cluster, shared_proxy, certs):
    gone = free_port()
    nowhere = {"host": "localhost", "hostaddr": "127.0.0.1", "port": gone, "login": "passthrough"}
    listeners = {
        "clear": in_clear(),
        "tls": with_tls(certs, certs.ca.server("localhost")),
        "nowhere": in_clear(backend="nowhere"),
    }
    backends = {"primary": passthrough(cluster, certs), "nowhere": nowhere | {"sslrootcert": certs.ca.crt}}
    settings = config(listeners, **backends) | {"cancel_rate": 1000}
    return shared_proxy(settings, {"pg_hba.conf": "host all all all scram-sha-256\n"})


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def target(running, certs, listener):
    return Target(
        running.port(listener), "alice", "alice", password("alice"),
        ca=certs.ca.crt if listener == "tls" else None, channel_binding="disable",
    )  # fmt: skip


def until_sleeping(cluster, name):
    asked = f"SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND application_name = '{name}'"
    return int(until(lambda: cluster.psql(asked).stdout))


def complaints(running, since):
    return [event for event in running.log_events()[since:] if event["event"].startswith("cancel")]


@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize("major", [15, 17])
def test_ctrl_c_in_psql(running, cluster, certs, psql, major, listener):
    since = running.mark()
    name = f"ctrl-c-{listener}-{major}"
    words = target(running, certs, listener).words | {"application_name": name}
    with psql(major).start(**words) as session:
        session.stdin.write(f"{SLEEP};\n".encode())
        session.stdin.flush()
        until_sleeping(cluster, name)
        session.send_signal(signal.SIGINT)
        _, complained = session.communicate(timeout=20)
    assert complained.decode() == f"Cancel request sent\nERROR:  {CANCELED}\n"
    running.wait_for_event("session_ended", since=since, application_name=name)
    assert complaints(running, since) == []


def sleep_until_cancelled(connection, errors):
    try:
        connection.execute(SLEEP)
    except psycopg.Error as error:
        errors.append(error)


@contextlib.contextmanager
def sleeping(cluster, words, name):
    """A session that sleeps, and what it was told when the context is over."""
    errors = []
    with psycopg.connect(**words | {"application_name": name}, autocommit=True) as connection:
        sleeper = threading.Thread(target=sleep_until_cancelled, args=(connection, errors))
        sleeper.start()
        until_sleeping(cluster, name)
        yield connection, errors
        sleeper.join(20)
        assert not sleeper.is_alive()
        assert connection.execute("SELECT 'goes on'").fetchone() == ("goes on",)


@pytest.mark.parametrize("protocol", ["3.0", "latest"])
@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize("way", ["cancel", "cancel_safe"])
def test_psycopg_cancels(running, cluster, certs, listener, protocol, way):
    words = target(running, certs, listener).words | {"max_protocol_version": protocol}
    with sleeping(cluster, words, f"{way}-{listener}-{protocol}") as (connection, errors):
        assert connection.pgconn.full_protocol_version == {"3.0": 30000, "latest": 30002}[protocol]
        getattr(connection, way)()
    assert [(error.sqlstate, error.diag.message_primary) for error in errors] == [("57014", CANCELED)]


def test_keys_are_as_long_as_the_server_makes_them(running, cluster):
    with wire.connected(("127.0.0.1", running.port("tls"))) as client:
        assert len(key_of(client)[1]) == {17: 4, 18: 32}[cluster.installation.major]


def key_of(client):
    """Log a client in as alice; the number and the key of its session."""
    client.send(wire.startup(user="alice", application_name="keys", version=(3, 2)))
    messages = wire.log_in(client, password("alice"))
    (body,) = [message.body for message in messages if message.kind == b"K"]
    return int.from_bytes(body[:4], "big"), body[4:]


def cancel(address, pid, key, *, tls=False, certificate=None):
    """Send a CancelRequest; whatever comes back until the end."""
    with wire.WireClient(address) as client:
        if tls:
            assert client.ask_for_tls() == b"S"
            client.start_tls(wire.tls_context(certificate=certificate))
        client.send(wire.cancel_request(pid, key))
        return client.read_to_end()


@pytest.mark.parametrize("tls", [False, True], ids=["in clear", "in TLS"])
def test_it_reaches_the_right_one_of_two_and_gets_no_answer(running, cluster, tls):
    address = ("127.0.0.1", running.port("tls"))
    with wire.connected(address) as one, wire.connected(address) as other:
        keys = {client: key_of(client) for client in (one, other)}
        for client in (one, other):
            client.send(wire.query(SLEEP))
        until(lambda: all(is_sleeping(cluster, pid) for pid, _ in keys.values()))
        assert cancel(address, *keys[other], tls=tls) == b""
        assert until_error(other) == ("57014", CANCELED)
        assert is_sleeping(cluster, keys[one][0])
        assert cancel(address, *keys[one], tls=tls) == b""
        assert until_error(one) == ("57014", CANCELED)


@pytest.mark.parametrize("name", ["alice", "somebody else"])
def test_the_name_in_a_certificate_makes_no_difference(running, cluster, certs, name):
    """The key is the proof, as at PostgreSQL: libpq shows the session's certificate, a pooler its own."""
    address = ("127.0.0.1", running.port("tls"))
    with wire.connected(address) as client:
        pid, key = key_of(client)
        client.send(wire.query(SLEEP))
        until(lambda: is_sleeping(cluster, pid))
        assert cancel(address, pid, key, tls=True, certificate=certs.client(name)) == b""
        assert until_error(client) == ("57014", CANCELED)


def is_sleeping(cluster, pid):
    return cluster.psql(f"SELECT wait_event FROM pg_stat_activity WHERE pid = {pid}").stdout == "PgSleep\n"


def until_error(client):
    while (message := client.read_message()).kind != b"E":
        pass
    return message.error


@pytest.mark.parametrize("tls", [False, True], ids=["in clear", "in TLS"])
def test_a_wrong_key_cancels_nothing_and_gets_no_answer(running, cluster, tls):
    address = ("127.0.0.1", running.port("tls"))
    with wire.connected(address) as client:
        pid, key = key_of(client)
        client.send(wire.query(SLEEP))
        until(lambda: is_sleeping(cluster, pid))
        wrong = (key[:-1] + bytes([key[-1] ^ 1]), key[:-1] or b"x", key + b"x", b"\0" * len(key))
        for each in wrong:
            assert cancel(address, pid, each, tls=tls) == b""
        assert cancel(address, pid + 1, key, tls=tls) == b""
        assert is_sleeping(cluster, pid)
        assert cancel(address, pid, key, tls=tls) == b""
        assert until_error(client) == ("57014", CANCELED)


def test_a_cancel_that_comes_too_late_hits_nothing(running, cluster):
    address = ("127.0.0.1", running.port("clear"))
    with wire.WireClient(address) as client:
        pid, key = key_of(client)
        client.send(wire.query("SELECT 1"))
        client.read_until(b"Z")
        assert cancel(address, pid, key) == b""
        client.send(wire.query("SELECT count(*) FROM generate_series(1, 100000)"))
        assert client.read_until(b"Z")[-1].body == b"I"
        client.send(wire.TERMINATE)
        assert client.read_to_end() == b""
    assert cancel(address, pid, key) == b""


def test_a_cancel_for_a_server_that_is_gone_ends_without_an_answer(running):
    since = running.mark()
    assert cancel(("127.0.0.1", running.port("nowhere")), 1234, b"1234") == b""
    event = running.wait_for_event("cancel_not_delivered", since=since)
    assert "refused" in event["reason"]
