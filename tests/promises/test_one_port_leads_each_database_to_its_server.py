"""`databases`: one port for databases on several servers, by name, and nobody unproven learns which there are."""

import contextlib
import json
import re
import subprocess
import threading
from pathlib import Path

import psycopg
import pytest
import yaml

from fixtures import wire
from fixtures.deployments import (
    PROXY_CERTIFICATE_HBA,
    PROXY_CERTIFICATE_IDENT,
    config,
    passthrough,
    with_certificate,
    with_tls,
)
from fixtures.drivers import by_certificate
from fixtures.fake_backend import asks_for_scram
from fixtures.postgres import password
from fixtures.waiting import until
from fixtures.wire import another_source, tls_context

PAGE = Path(__file__).parents[2] / "docs" / "policy.md"
WHERE = "SELECT inet_server_port(), current_database()"
SLEEP = "SELECT pg_sleep(60)"
CANCELED = "canceling statement due to user request"
DATABASES = {
    "alice": "asking",
    "alice_here": {"backend": "asking", "dbname": "alice"},
    "alice_there": {"backend": "believing", "dbname": "alice"},
    "bob": "believing",
}
HBA = """\
hostssl rejected all all reject
hostssl alice,alice_here,by_password alice all scram-sha-256
hostssl alice_there,bob,by_certificate alice all cert
hostssl replication postgres all cert
hostssl all postgres all cert
"""


def leading(certs, databases, **settings):
    """A listener with TLS and without `backend`."""
    listener = with_tls(certs, databases=databases, **settings)
    return {key: value for key, value in listener.items() if key != "backend"}


@pytest.fixture(scope="module")
def clusters(tls_cluster):
    """The one that asks for a password, and the one that believes the proxy."""
    return tls_cluster(17), tls_cluster(17, PROXY_CERTIFICATE_HBA, ident=PROXY_CERTIFICATE_IDENT)


@pytest.fixture(scope="module")
def backends(clusters, certs):
    asking, believing = clusters
    return {"asking": passthrough(asking, certs), "believing": with_certificate(believing, certs)}


@pytest.fixture(scope="module")
def running(shared_proxy, backends, certs):
    listeners = {
        "listed": leading(certs, DATABASES),
        "all": leading(certs, DATABASES | {"*": "believing"}, hba_file="all.conf"),
    }
    others = HBA.replace("alice_here,by_password", "alice_here")
    return shared_proxy(config(listeners, **backends), {"pg_hba.conf": HBA, "all.conf": others})


def words(running, certs, database, user="alice", listener="listed", **more):
    target = by_certificate(running, listener, certs, user, database=database, channel_binding="disable")
    return target.words | {"password": password(user)} | more


def test_two_databases_reach_two_servers_and_may_be_called_otherwise_there(running, clusters, certs, psql):
    asking, believing = clusters
    found = {}
    for database in DATABASES:
        since = running.mark()
        found[database] = psql(17).run(WHERE, **words(running, certs, database)).stdout.strip()
        decided = running.wait_for_event("session_decided", since=since, database=database)
        assert (decided["backend"], decided["backend_database"]) == {
            "alice": ("asking", "alice"),
            "alice_here": ("asking", "alice"),
            "alice_there": ("believing", "alice"),
            "bob": ("believing", "bob"),
        }[database]
    assert found == {
        "alice": f"{asking.port}|alice",
        "alice_here": f"{asking.port}|alice",
        "alice_there": f"{believing.port}|alice",
        "bob": f"{believing.port}|bob",
    }


def refusal(running, certs, database, user="alice", name="alice", listener="listed", **more):
    """What the first message says of a database, and the event."""
    address = "127.0.0.1", running.port(listener)
    context = tls_context(certificate=None if name is None else certs.client(name))
    with wire.connected(address, context, source=another_source()) as client:
        client.send(wire.startup(user=user, database=database, **more))
        error = client.read_error().error
        return error, running.wait_for_event("session_decided", **client.where)


def test_a_database_that_is_not_listed_is_told_to_those_alone_who_are_proved(running, certs):
    error, decided = refusal(running, certs, "by_certificate")
    assert error == ("3D000", 'database "by_certificate" does not exist')
    assert (decided["decided_by"], decided["hba_line"], decided["backend"]) == ("databases", 3, None)
    assert 'database "by_certificate", which is not listed' in decided["reason"]
    error, decided = refusal(running, certs, "by_password")
    assert error == ("28P01", 'password authentication failed for user "alice"')
    assert decided["decided_by"] == "databases"


def test_postgresql_says_the_same_of_one_that_is_not_there(clusters, certs):
    _, believing = clusters
    with wire.connected(
        ("127.0.0.1", believing.port), tls_context(certificate=certs.client("pgtlsproxy"))
    ) as client:
        client.send(wire.startup(user="alice", database="by_certificate"))
        client.read_message()
        assert client.read_error().error == ("3D000", 'database "by_certificate" does not exist')


@pytest.mark.parametrize(
    ("database", "user", "name", "reply"),
    [
        ("rejected", "alice", "alice", "pg_hba.conf rejects connection for host"),
        ("nowhere", "alice", "alice", "no pg_hba.conf entry for host"),
        ("by_certificate", "alice", None, "connection requires a valid client certificate"),
        ("by_certificate", "alice", "bob", 'certificate authentication failed for user "alice"'),
        ("bob", "alice", None, "connection requires a valid client certificate"),
        ("bob", "alice", "bob", 'certificate authentication failed for user "alice"'),
    ],
)
def test_the_refusal_of_pg_hba_comes_first_listed_or_not(running, certs, database, user, name, reply):
    error, _ = refusal(running, certs, database, user, name)
    assert (error[0], error[1][: len(reply)]) == ("28000", reply)


def test_with_a_star_whatever_is_not_listed_goes_there(running, clusters, certs, psql):
    _, believing = clusters
    done = psql(17).run(WHERE, **words(running, certs, "app", "postgres", "all"))
    assert done.stdout == f"{believing.port}|app\n"
    done = psql(17).run(WHERE, **words(running, certs, "no_such", "postgres", "all"))
    assert 'database "no_such" does not exist' in done.stderr


def test_physical_replication_goes_to_the_star_whatever_database_is_named(running, clusters, certs, psql):
    for database in ("replication", "alice"):
        since = running.mark()
        asked = words(running, certs, database, "postgres", "all", replication="true")
        assert psql(17).run("SHOW port", **asked).stdout == f"{clusters[1].port}\n"
        decided = running.wait_for_event("session_decided", since=since, replication="physical")
        assert decided["backend"] == "believing"


def test_physical_replication_without_a_star_is_refused(running, certs):
    error, decided = refusal(running, certs, "alice", "postgres", "postgres", replication="true")
    reply = "pg_hba.conf rejects replication connection for host"
    assert (error[0], error[1][: len(reply)]) == ("28000", reply)
    assert (decided["decided_by"], decided["hba_line"]) == ("databases", 4)


def is_sleeping(cluster, name):
    asked = f"SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND application_name = '{name}'"
    return cluster.psql(asked).stdout == "1\n"


@contextlib.contextmanager
def sleeping(cluster, words, name):
    """A session that sleeps, and what it is told."""
    errors = []

    def sleep():
        try:
            connection.execute(SLEEP)
        except psycopg.Error as error:
            errors.append(error.diag.message_primary)

    with psycopg.connect(**words | {"application_name": name}, autocommit=True) as connection:
        sleeper = threading.Thread(target=sleep)
        sleeper.start()
        try:
            until(lambda: is_sleeping(cluster, name))
            yield connection, errors
        finally:
            cluster.psql(
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{name}'"
            )
            sleeper.join(20)


def test_a_cancel_reaches_the_server_of_its_session(running, clusters, certs):
    asking, believing = clusters
    here, there = (words(running, certs, database) for database in ("alice_here", "alice_there"))
    with (
        sleeping(asking, here, "sleeps here") as (one, told_one),
        sleeping(believing, there, "sleeps there") as (other, told_other),
    ):
        other.cancel_safe()
        until(lambda: told_other == [CANCELED])
        assert is_sleeping(asking, "sleeps here")
        one.cancel_safe()
        until(lambda: told_one == [CANCELED])


def test_a_cancel_for_nobody_here_goes_to_the_backends_that_wish_for_it(proxy, fake_backend, certs):
    script = asks_for_scram(password("alice"))
    servers = {name: fake_backend(script, certs.server) for name in ("one", "two", "unasked")}
    wishes = {"one": {"cancel_unknown": "forward"}, "two": {"cancel_unknown": "forward"}, "unasked": {}}
    running = proxy(
        config(
            {
                "several": leading(certs, {name: name for name in servers}),
                "none": leading(certs, {"unasked": "unasked"}),
            },
            **{name: passthrough(servers[name], certs, **wishes[name]) for name in servers},
        ),
        {"pg_hba.conf": "hostssl all all all scram-sha-256\n"},
    )
    for listener in ("several", "none"):
        with wire.WireClient(("127.0.0.1", running.port(listener))) as client:
            client.send(wire.cancel_request(4711, b"none"))
            assert client.read_to_end() == b""
    found = {name: [each.cancel for each in server.conversations] for name, server in servers.items()}
    assert found == {"one": [(4711, b"none")], "two": [(4711, b"none")], "unasked": []}
    assert "cancel_unknown: drop" in running.wait_for_event("cancel_dropped", listener="none")["reason"]


def rewrite(running, **listeners):
    """Change settings of listeners."""
    settings = yaml.safe_load(running.config.read_text())
    for name, changes in listeners.items():
        settings["listeners"][name] |= changes
    running.config.write_text(yaml.safe_dump(settings))


@pytest.mark.parametrize("moved", [{"bob": "asking"}, {"bob": {"backend": "believing", "dbname": "app"}}, {}])
def test_a_reload_that_moves_a_database_moves_new_sessions_and_with_close_ends_the_old(
    proxy, clusters, backends, certs, moved
):
    asking, believing = clusters
    keeping = leading(certs, DATABASES)
    running = proxy(
        config({"close": leading(certs, DATABASES, revoked_sessions="close"), "keep": keeping}, **backends),
        {"pg_hba.conf": "hostssl all alice all cert\n"},
    )
    with contextlib.ExitStack() as stack:

        def connect(listener, database):
            known = words(running, certs, database, listener=listener)
            return stack.enter_context(psycopg.connect(**known, autocommit=True))

        ended, kept, staying = (
            connect("close", "bob"),
            connect("keep", "bob"),
            connect("close", "alice_there"),
        )
        databases = {name: each for name, each in DATABASES.items() if name != "bob"} | moved
        rewrite(running, close={"databases": databases}, keep={"databases": databases})
        assert running.reload()["event"] == "reloaded"
        event = running.wait_for_event("session_ended", listener="close", database="bob")
        assert (event["kind"], event["backend"]) == ("denied", "believing")
        with pytest.raises(
            psycopg.OperationalError, match="terminating connection due to administrator command"
        ):
            ended.execute(WHERE)
        for connection, database in ((kept, "bob"), (staying, "alice")):
            assert connection.execute(WHERE).fetchone() == (believing.port, database)
        if not moved:
            with pytest.raises(psycopg.OperationalError, match='database "bob" does not exist'):
                connect("keep", "bob")
            return
        port, database = (asking.port, "bob") if moved == {"bob": "asking"} else (believing.port, "app")
        assert connect("keep", "bob").execute(WHERE).fetchone() == (port, database)


def test_a_cancel_after_a_move_reaches_the_server_to_which_the_session_is_connected(
    proxy, clusters, backends, certs
):
    _, believing = clusters
    listener = leading(certs, DATABASES)
    running = proxy(config({"l": listener}, **backends), {"pg_hba.conf": "hostssl all alice all cert\n"})
    known = words(running, certs, "bob", listener="l")
    with sleeping(believing, known, "sleeps on") as (connection, told):
        rewrite(running, l={"databases": {"bob": "asking"}})
        assert running.reload()["event"] == "reloaded"
        connection.cancel_safe()
        until(lambda: told == [CANCELED])


def check(command_line, proxy, listener, backends, hba):
    path = proxy.write(config({"l": listener}, **backends), {"pg_hba.conf": hba})
    return command_line("check", "-c", path)


@pytest.mark.parametrize(
    ("hba", "refused"),
    [
        ("hostssl alice all all scram-sha-256\n", False),
        ("hostssl alice,bob all all scram-sha-256\n", True),
        ("hostssl all all all scram-sha-256\n", True),
        ("hostssl /^b all all scram-sha-256\n", True),
        ("hostssl nowhere all all scram-sha-256\nhostssl all all all cert\n", False),
    ],
)
def test_a_line_loads_only_where_it_is_sound_for_every_backend_that_its_databases_reach(
    command_line, proxy, backends, certs, hba, refused
):
    done = check(command_line, proxy, leading(certs, DATABASES), backends, hba)
    assert done.returncode == (1 if refused else 0)
    assert ("scram-sha-256 with login: certificate (backend believing)" in done.stderr) is refused


def test_with_a_star_a_database_that_nobody_listed_is_held_against_it(command_line, proxy, backends, certs):
    listener = leading(certs, DATABASES | {"*": "believing"})
    done = check(command_line, proxy, listener, backends, "hostssl nowhere all all scram-sha-256\n")
    assert done.returncode == 1
    assert "(backend believing)" in done.stderr


def test_the_example_of_the_manual_loads_and_what_it_calls_a_mistake_is_one(
    command_line, proxy, backends, certs
):
    (example,) = re.findall(r"```\n# (databases: .*?)```", PAGE.read_text(), re.DOTALL)
    listener = leading(certs, yaml.safe_load(example.partition("\n")[0])["databases"])
    named = {
        "crm_cluster": backends["believing"],
        "crm_replicas": backends["believing"],
        "primary": backends["asking"],
    }
    hba = "# " + example
    done = check(command_line, proxy, listener, named, hba)
    assert done.returncode == 0
    assert "mistake" not in done.stderr
    done = check(command_line, proxy, listener, named, hba.replace("shop,stock", "all"))
    assert done.returncode == 1
    assert "pg_hba.conf:4: scram-sha-256 with login: certificate (backend crm_cluster)" in done.stderr


def explain(command_line, running, database):
    done: subprocess.CompletedProcess[str] = command_line(
        "explain", "-c", running.config, "--listener", "listed", "--user", "alice", "--database", database,
        "--address", "127.0.0.1", "--cn", "alice", "--json",
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout)


def test_explain_says_where_a_database_leads(command_line, running):
    for database, leads in (
        ("alice_here", ("asking", "alice", "passthrough")),
        ("bob", ("believing", "bob", "certificate")),
    ):
        status, found = explain(command_line, running, database)
        assert (status, found["backend"], found["backend_database"], found["login"]) == (0, *leads)
    status, found = explain(command_line, running, "by_certificate")
    assert (status, found["sqlstate"], found["decided_by"], found["backend"]) == (
        2,
        "3D000",
        "databases",
        None,
    )
