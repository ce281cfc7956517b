"""Terminated, killed, disconnected: the other side hears it at once and as it was, and the log says which."""

import os
import signal

import psycopg
import pytest

from fixtures import wire
from fixtures.deployments import config, in_clear, passthrough
from fixtures.drivers import DRIVERS, Target, by_password
from fixtures.legs import LEGS
from fixtures.postgres import password
from fixtures.waiting import until

SOON = 3.0
"""Seconds; a tenth of it does where the machine has nothing else to do."""

TERMINATED = "terminating connection due to administrator command"


def pid_of(cluster, name, *, event=None):
    """The server process of a session, as soon as it waits for this."""
    waiting = f" AND wait_event = '{event}'" if event else ""
    asked = f"SELECT pid FROM pg_stat_activity WHERE application_name = '{name}'{waiting}"
    return int(until(lambda: cluster.psql(asked).stdout))


def until_gone(cluster, pid):
    asked = f"SELECT 1 FROM pg_stat_activity WHERE pid = {pid}"
    until(lambda: cluster.psql(asked).stdout == "", timeout=SOON)


def end_of(running, name):
    ended = running.wait_for_event("session_ended", application_name=name)
    return ended["kind"]


def start_psql(psql, legs, leg, sql, **words):
    session = psql(17).start(**legs.target(leg).words | words)
    session.stdin.write(f"{sql};\n".encode())
    session.stdin.flush()
    return session


@pytest.mark.parametrize("leg", LEGS)
def test_pg_terminate_backend_in_the_middle_of_a_query_reaches_the_client(legs, psql, leg):
    name = f"terminated {leg}"
    with start_psql(psql, legs, leg, "SELECT pg_sleep(60)", application_name=name) as session:
        pid = pid_of(legs.cluster, name, event="PgSleep")
        legs.cluster.psql(f"SELECT pg_terminate_backend({pid})")
        _, complained = session.communicate(timeout=20)
    assert complained.decode().startswith(f"FATAL:  {TERMINATED}\n")
    assert end_of(legs.running, name) == "ok"


@pytest.mark.parametrize("leg", LEGS)
def test_the_servers_last_words_arrive_while_the_client_is_still_sending(legs, psql, leg):
    name = f"writing {leg}"
    endless = "CREATE TEMP TABLE received (line text);\n\\copy received FROM PROGRAM 'yes'\n"
    asked = (
        "SELECT pid FROM pg_stat_progress_copy JOIN pg_stat_activity USING (pid) "
        f"WHERE application_name = '{name}' AND bytes_processed > 1000000"
    )
    with psql(17).start(**legs.target(leg, application_name=name).words) as session:
        session.stdin.write(endless.encode())
        session.stdin.flush()
        pid = until(lambda: legs.cluster.psql(asked).stdout)
        legs.cluster.psql(f"SELECT pg_terminate_backend({pid})")
        _, complained = session.communicate(timeout=20)
    assert f"FATAL:  {TERMINATED}\n" in complained.decode()
    # A server that closes with input unread resets the connection behind its last words, or just before.
    assert end_of(legs.running, name) in {"ok", "backend_lost"}


@pytest.mark.parametrize("leg", LEGS)
def test_a_client_killed_while_it_sleeps_takes_its_server_session_along(legs, psql, leg):
    name = f"killed {leg}"
    # As PostgreSQL does with a client of its own: it looks for it when it is told to.
    words = {"application_name": name, "options": "-c client_connection_check_interval=100"}
    with start_psql(psql, legs, leg, "SELECT pg_sleep(60)", **words) as session:
        pid = pid_of(legs.cluster, name, event="PgSleep")
        session.kill()
        until_gone(legs.cluster, pid)
    assert end_of(legs.running, name) == ("client_lost" if leg.startswith("tls_") else "ok")


@pytest.mark.parametrize("leg", LEGS)
def test_a_client_killed_while_it_receives_takes_its_server_session_along(legs, psql, leg):
    name = f"killed reader {leg}"
    endless = "COPY (SELECT generate_series(1, 1000000000), repeat('.', 1000)) TO STDOUT"
    with start_psql(psql, legs, leg, endless, application_name=name) as session:
        # Nobody reads psql's output: it stops, and so does the server.
        pid = pid_of(legs.cluster, name, event="ClientWrite")
        session.kill()
        until_gone(legs.cluster, pid)
    assert end_of(legs.running, name) == "client_lost"


@pytest.mark.parametrize("leg", LEGS)
def test_a_client_that_resets_its_connection_is_lost(legs, leg):
    with wire.WireClient(("127.0.0.1", legs.running.port(leg))) as client:
        if leg.startswith("tls_"):
            assert client.ask_for_tls() == b"S"
            client.start_tls()
        client.send(wire.startup(user="alice", application_name=f"reset {leg}"))
        wire.log_in(client, password("alice"))
        pid = pid_of(legs.cluster, f"reset {leg}")
        client.reset()
        until_gone(legs.cluster, pid)
    assert end_of(legs.running, f"reset {leg}") == "client_lost"


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("leg", ["clear_tls", "tls_socket"])
def test_a_clean_disconnect_is_a_clean_end_of_both_legs(legs, driver, leg):
    name = f"{driver} over {leg}"
    # Over the socket no channel binding is offered, so every driver logs in by its defaults.
    with DRIVERS[driver](legs.target(leg, application_name=name, channel_binding="prefer")) as connection:
        ((pid,),) = connection.rows("SELECT pg_backend_pid()")
    until_gone(legs.cluster, pid)
    assert end_of(legs.running, name) == "ok"
    complaints = (
        "could not receive data",
        "unexpected EOF",
        "could not send data",
        "connection to client lost",
    )
    lines = [line for line in legs.cluster.log_lines if f"[{pid}]" in line]
    assert not [line for line in lines if any(each in line for each in complaints)]


@pytest.mark.parametrize("major", [15, 17])
@pytest.mark.parametrize("leg", LEGS)
def test_psql_quits_cleanly(legs, psql, leg, major):
    name = f"psql {major} over {leg}"
    done = psql(major).run("SELECT 1", **legs.target(leg, application_name=name).words)
    assert (done.stdout, done.stderr) == ("1\n", "")
    assert end_of(legs.running, name) == "ok"


def test_a_server_process_that_is_killed_is_a_lost_backend_and_its_successor_is_reached(
    own_cluster, certs, proxy, psql
):
    cluster = own_cluster(17)
    running = proxy(
        config({"legacy": in_clear()}, primary=passthrough(cluster, certs)),
        {"pg_hba.conf": "host all all all scram-sha-256\n"},
    )
    target = by_password(running, "legacy", application_name="crash")
    with psql(17).start(**target.words) as session:
        session.stdin.write(b"SELECT pg_sleep(60);\n")
        session.stdin.flush()
        pid = pid_of(cluster, "crash", event="PgSleep")
        since = len(cluster.log_lines)
        os.kill(pid, signal.SIGKILL)
        _, complained = session.communicate(timeout=SOON)
    assert b"server closed the connection unexpectedly" in complained
    assert end_of(running, "crash") == "backend_lost"

    cluster.wait_for_log("ready to accept connections", since=since)
    done = psql(17).run("SELECT 'again'", **target.words | {"application_name": "successor"})
    assert (done.stdout, done.stderr) == ("again\n", "")


def test_a_server_that_stops_says_so_to_every_session(own_cluster, certs, proxy):
    cluster = own_cluster(15)
    running = proxy(
        config({"legacy": in_clear()}, primary=passthrough(cluster, certs)),
        {"pg_hba.conf": "host all all all scram-sha-256\n"},
    )
    target: Target = by_password(running, "legacy", application_name="stopped")
    told = []
    with psycopg.connect(**target.words, autocommit=True) as connection:
        # libpq takes a FATAL that comes between two queries for a notice.
        connection.add_notice_handler(lambda notice: told.append(notice.message_primary))
        connection.execute("SELECT 1")
        os.kill(cluster.pid, signal.SIGINT)  # fast shutdown
        with pytest.raises(psycopg.OperationalError) as ended:
            while True:
                connection.execute("SELECT 1")
    assert TERMINATED in " ".join([*told, str(ended.value)])
    assert end_of(running, "stopped") == "ok"
    # A server on its way down may still take a connection and close it at SSLRequest.
    until(lambda: not (cluster.data / "postmaster.pid").exists())
    with pytest.raises(psycopg.OperationalError, match="the database system is not available"):
        until(lambda: psycopg.connect(**target.words | {"application_name": "too late"}).close())
    refused = running.wait_for_event("session_decided", verdict="refused")
    assert (refused["sqlstate"], refused["kind"]) == ("57P03", "backend_unreachable")
