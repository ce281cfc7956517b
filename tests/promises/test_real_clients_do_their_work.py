"""psql, psycopg, psycopg2, asyncpg and pg8000 log in, cancel, copy, replicate and listen through the proxy."""

import asyncio
import hashlib
import signal
import ssl
import subprocess
import threading

import pytest

from fixtures.deployments import (
    PROXY_CERTIFICATE_HBA,
    PROXY_CERTIFICATE_IDENT,
    config,
    in_clear,
    passthrough,
    with_certificate,
    with_tls,
)
from fixtures.postgres import TLS_HBA, password

HBA = {
    "clear_hba.conf": "host all all 127.0.0.1/32 scram-sha-256\nhost replication all 127.0.0.1/32 scram-sha-256\n",
    "tls_hba.conf": "hostssl all all 127.0.0.1/32 cert\nhostssl replication all 127.0.0.1/32 cert\n",
}


@pytest.fixture
def running(tls_cluster, certs, proxy):
    by_password = tls_cluster(17)
    by_certificate = tls_cluster(17, PROXY_CERTIFICATE_HBA, ident=PROXY_CERTIFICATE_IDENT)
    return proxy(
        config(
            {
                "clear": in_clear(hba_file="clear_hba.conf"),
                "tls": with_tls(certs, hba_file="tls_hba.conf", backend="by_certificate"),
            },
            primary=passthrough(by_password, certs),
            by_certificate=with_certificate(by_certificate, certs, reserved_users=["postgres"]),
        ),
        HBA,
    )


def words(running, certs, listener, user="alice"):
    """libpq's words for a listener, with the credential that it asks for."""
    port = running.port(listener)
    if listener == "clear":
        return {
            "host": "127.0.0.1", "port": port, "user": user, "dbname": user, "password": password(user),
            "sslmode": "disable",
        }  # fmt: skip
    client = certs.client(user)
    return {
        "host": "localhost", "hostaddr": "127.0.0.1", "port": port, "user": user, "dbname": user,
        "sslmode": "verify-full", "sslrootcert": str(certs.ca.crt), "sslcert": str(client.crt),
        "sslkey": str(client.key),
    }  # fmt: skip


each_listener = pytest.mark.parametrize("listener", ["clear", "tls"])


@each_listener
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_libpq_drivers_log_in_and_query(running, certs, listener, driver):
    module = __import__(driver)
    with module.connect(**words(running, certs, listener)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT current_user, %s::int + 1", (41,))
        assert cursor.fetchone() == ("alice", 42)
    connection.close()
    running.wait_for_event("session_ended", kind="ok")


@each_listener
def test_asyncpg_logs_in_and_queries(running, certs, listener):
    import asyncpg

    async def main():
        context = None
        if listener == "tls":
            client = certs.client("alice")
            context = ssl.create_default_context(cafile=str(certs.ca.crt))
            context.load_cert_chain(client.crt, client.key)
        connection = await asyncpg.connect(
            host="localhost" if listener == "tls" else "127.0.0.1", port=running.port(listener), user="alice",
            database="alice", password=password("alice"), ssl=context or False,
        )  # fmt: skip
        row = await connection.fetchrow("SELECT current_user, $1::int + 1", 41)
        await connection.close()
        return tuple(row)

    assert asyncio.run(main()) == ("alice", 42)
    running.wait_for_event("session_ended", kind="ok")


@each_listener
def test_pg8000_logs_in_and_queries(running, certs, listener):
    import pg8000.native

    context = None
    if listener == "tls":
        client = certs.client("alice")
        context = ssl.create_default_context(cafile=str(certs.ca.crt))
        context.load_cert_chain(client.crt, client.key)
    connection = pg8000.native.Connection(
        "alice", host="localhost" if listener == "tls" else "127.0.0.1", port=running.port(listener),
        database="alice", password=password("alice"), ssl_context=context,
    )  # fmt: skip
    assert connection.run("SELECT current_user, :n + 1", n=41) == [["alice", 42]]
    connection.close()


def test_a_wrong_password_is_the_servers_own_refusal(running, certs):
    import psycopg

    with pytest.raises(psycopg.OperationalError) as caught:
        psycopg.connect(**{**words(running, certs, "clear"), "password": "wrong"})
    assert 'password authentication failed for user "alice"' in str(caught.value)
    assert "pgtlsproxy session" not in str(caught.value)
    event = running.wait_for_event("session_decided", verdict="refused")
    assert (event["kind"], event["sqlstate"]) == ("backend_refused", "28P01")


@each_listener
def test_ctrl_c_in_psql_cancels(running, certs, each_psql, listener):
    session = each_psql.start("-c", "SELECT pg_sleep(60)", **words(running, certs, listener))
    with session:
        running.wait_for_event("session_decided", verdict="allowed")
        session.send_signal(signal.SIGINT)
        errors = session.stderr.read().decode()
        assert session.wait(20) != 0
    assert "canceling statement due to user request" in errors


@each_listener
@pytest.mark.parametrize("version", ["3.0", "3.2"])
def test_long_and_short_cancel_keys_reach_a_postgresql_18(tls_cluster, certs, proxy, listener, version):
    import psycopg

    cluster = tls_cluster(18, PROXY_CERTIFICATE_HBA + TLS_HBA, ident=PROXY_CERTIFICATE_IDENT)
    backend = with_certificate(cluster, certs) if listener == "tls" else passthrough(tls_cluster(18), certs)
    hba = {"pg_hba.conf": HBA[f"{listener}_hba.conf"]}
    shape = with_tls(certs) if listener == "tls" else in_clear()
    running = proxy(config({listener: shape}, primary=backend), hba)
    with psycopg.connect(
        **words(running, certs, listener), max_protocol_version=version, autocommit=True
    ) as connection:
        threading.Timer(0.5, connection.cancel_safe).start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("SELECT pg_sleep(60)")
        assert connection.execute("SELECT 'goes on'").fetchone() == ("goes on",)


@pytest.mark.parametrize("listener", ["clear", "tls"])
@pytest.mark.parametrize("backend_leg", ["tls", "unix"])
def test_a_copy_arrives_whole_in_both_directions(tls_cluster, certs, proxy, listener, backend_leg):
    import psycopg

    hba = PROXY_CERTIFICATE_HBA + "local all all trust\n"
    cluster = tls_cluster(17, hba, ident=PROXY_CERTIFICATE_IDENT)
    backend = (
        with_certificate(cluster, certs)
        if backend_leg == "tls"
        else {"host": str(cluster.socket_dir), "port": cluster.port, "login": "certificate"}
    )
    shape = with_tls(certs) if listener == "tls" else in_clear()
    rule = (
        "hostssl all all 127.0.0.1/32 cert\n" if listener == "tls" else "host all alice 127.0.0.1/32 trust\n"
    )
    running = proxy(config({listener: shape}, primary=backend), {"pg_hba.conf": rule})
    connect = words(running, certs, listener)
    sent, received = hashlib.sha256(), hashlib.sha256()
    chunk = bytes(range(97, 123)) * 4000 + b"\n"
    with psycopg.connect(**connect) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE t (line text)")
        with cursor.copy("COPY t FROM STDIN") as copy:
            for _ in range(2000):  # 208 MB
                copy.write(chunk)
                sent.update(chunk)
        with cursor.copy("COPY t TO STDOUT") as copy:
            for data in copy:
                received.update(data)
    assert received.digest() == sent.digest()
    ended = running.wait_for_event("session_ended")
    assert ended["bytes_from_client"] > 208_000_000 < ended["bytes_from_backend"]


def test_pg_basebackup_streams_with_a_certificate(running, certs, postgres17, psql, tmp_path):
    target = tmp_path / "backup"
    connect = words(running, certs, "tls", "postgres")
    connect.pop("dbname")
    # postgres is reserved: a general line does not let it in where the server believes the proxy.
    command = [
        postgres17.program("pg_basebackup"), "-D", str(target), "-X", "stream", "-c", "fast", "-d",
        " ".join(f"{name}={value}" for name, value in connect.items()),
    ]  # fmt: skip
    refused = subprocess.run(
        command, env=psql(17).environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert refused.returncode != 0
    assert "pg_hba.conf rejects replication connection" in refused.stderr
    hba = running.config.parent / "tls_hba.conf"
    hba.write_text("hostssl replication postgres 127.0.0.1/32 cert\n" + hba.read_text())
    assert running.reload()["event"] == "reloaded"
    done = subprocess.run(
        command, env=psql(17).environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (target / "PG_VERSION").read_text() == "17\n"


@each_listener
def test_notifications_and_pipelines_pass(running, certs, listener):
    import psycopg

    connect = words(running, certs, listener)
    with (
        psycopg.connect(**connect, autocommit=True) as one,
        psycopg.connect(**connect, autocommit=True) as other,
    ):
        one.execute("LISTEN news")
        other.execute("NOTIFY news, 'hello'")
        assert next(iter(one.notifies(timeout=10, stop_after=1))).payload == "hello"
        with other.pipeline():
            cursors = [other.execute("SELECT %s::int", (number,)) for number in range(200)]
        assert [cursor.fetchone()[0] for cursor in cursors] == list(range(200))


def test_100_sessions_at_once(running, certs):
    import asyncpg

    async def one(number):
        connection = await asyncpg.connect(
            host="127.0.0.1", port=running.port("clear"), user="alice", database="alice", ssl=False,
            password=password("alice"), timeout=60,
        )  # fmt: skip
        value = await connection.fetchval("SELECT $1::int FROM pg_sleep(0.2)", number)
        await connection.close()
        return value

    async def main():
        return await asyncio.gather(*(one(number) for number in range(100)))

    assert asyncio.run(main()) == list(range(100))
