"""psycopg, psycopg2, asyncpg and pg8000 log in in clear and by certificate, and see whose error it is."""

import re

import pytest

from fixtures import wire
from fixtures.deployments import (
    PROXY_CERTIFICATE_HBA,
    PROXY_CERTIFICATE_IDENT,
    config,
    in_clear,
    passthrough,
    with_certificate,
    with_tls,
)
from fixtures.drivers import DRIVERS, LIBPQ_DRIVERS, Refused, by_certificate, by_password
from fixtures.postgres import password

LEGACY_HBA = "host all alice,bob all scram-sha-256\n"
CENTRAL_HBA = "hostssl all alice,app all cert\n"
OURS = re.compile(r"pgtlsproxy session ([0-9a-f]{16})")


@pytest.fixture(scope="module")
def asking_cluster(tls_cluster):
    return tls_cluster(17)


@pytest.fixture(scope="module")
def running(asking_cluster, tls_cluster, shared_proxy, certs):
    believing = tls_cluster(17, PROXY_CERTIFICATE_HBA, ident=PROXY_CERTIFICATE_IDENT)
    return shared_proxy(
        config(
            {
                "legacy": in_clear(hba_file="legacy.conf", backend="asking"),
                "central": with_tls(certs, hba_file="central.conf", backend="believing"),
            },
            asking=passthrough(asking_cluster, certs),
            believing=with_certificate(believing, certs),
        ),
        {"legacy.conf": LEGACY_HBA, "central.conf": CENTRAL_HBA},
    )


@pytest.fixture(params=DRIVERS)
def driver(request):
    return request.param


@pytest.fixture(params=["legacy", "central"])
def target(request, running, certs, driver):
    if request.param == "legacy":
        return by_password(running, "legacy", application_name=driver)
    return by_certificate(running, "central", certs, application_name=driver)


def refused(driver, target):
    with pytest.raises(Refused) as caught:
        DRIVERS[driver](target)
    return caught.value


def test_it_logs_in_asks_with_parameters_and_ends_cleanly(running, driver, target):
    since = running.mark()
    with DRIVERS[driver](target) as connection:
        assert connection.rows("SELECT current_user::text, session_user::text") == [("alice", "alice")]
        asked = "SELECT $1::text || $2::text, 6 * $3::int"
        assert connection.rows(asked, "späte ", "Grüße", 7) == [("späte Grüße", 42)]
        assert connection.rows("SELECT count(*), sum(n) FROM generate_series(1, $1::int) n", 20000) == [
            (20000, 200010000)
        ]
        ((encrypted,),) = connection.rows("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        assert encrypted
    ended = running.wait_for_event("session_ended", since=since, application_name=driver)
    assert (ended["kind"], ended["tls_version"]) == ("ok", "TLSv1.3" if target.ca else None)


def test_what_the_audit_says_is_what_the_server_sees(running, driver, target):
    since = running.mark()
    asked = (
        "SELECT session_user::text, current_database()::text, pid, client_port, version "
        "FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) WHERE pid = pg_backend_pid()"
    )
    with DRIVERS[driver](target) as connection:
        seen = connection.rows(asked)
    decided = running.wait_for_event("session_decided", since=since, application_name=driver)
    names = ("user", "database", "backend_pid", "backend_local_port", "backend_tls_version")
    assert seen == [tuple(decided[name] for name in names)]


def test_a_wrong_password_is_the_servers_own_error(running, driver):
    since = running.mark()
    target = by_password(running, "legacy", password="wrong", application_name=driver)
    error = refused(driver, target)
    assert 'password authentication failed for user "alice"' in error.message
    if driver not in LIBPQ_DRIVERS:
        assert (error.sqlstate, error.detail) == ("28P01", None)
    assert OURS.search(error.text) is None
    decided = running.wait_for_event("session_decided", since=since, application_name=driver)
    found = {name: decided[name] for name in ("verdict", "kind", "sqlstate")}
    assert found == {"verdict": "refused", "kind": "backend_refused", "sqlstate": "28P01"}


def test_our_own_refusal_names_the_session_that_the_log_names(running, certs, driver):
    for target in (
        by_password(running, "legacy", user="app", application_name=driver),
        by_certificate(running, "central", certs, user="bob", application_name=driver),
        by_certificate(running, "central", certs, user="app", certificate=None, application_name=driver),
    ):
        error = refused(driver, target)
        (session,) = OURS.findall(error.text)
        decided = running.wait_for_event("session_decided", session=session)
        found = {name: decided[name] for name in ("verdict", "kind", "sqlstate", "application_name", "user")}
        assert found == {
            "verdict": "refused", "kind": "denied", "sqlstate": "28000", "application_name": driver,
            "user": target.user,
        }  # fmt: skip
        if driver not in LIBPQ_DRIVERS:
            assert (error.sqlstate, error.detail) == ("28000", f"pgtlsproxy session {session}")


def test_errors_after_the_login_are_the_servers_own(driver, target):
    with DRIVERS[driver](target) as connection:
        with pytest.raises(Refused) as caught:
            connection.rows("SELECT $1::int / 0", 1)
        assert (caught.value.sqlstate, caught.value.detail) == ("22012", None)
        connection.rows("CREATE TEMP TABLE t (n int PRIMARY KEY)")
        with pytest.raises(Refused) as caught:
            connection.rows("INSERT INTO t VALUES (1), (1)")
        assert (caught.value.sqlstate, caught.value.detail) == ("23505", "Key (n)=(1) already exists.")
        assert connection.rows("SELECT 1") == [(1,)]


class Listening(wire.WireClient):
    """Keeps the last message that came."""

    last = None

    def read_message(self):
        self.last = super().read_message()
        return self.last


def last_words(port, secret, *, encrypted, **parameters):
    """The ErrorResponse that ends a login by SCRAM."""
    with Listening(("127.0.0.1", port)) as client:
        if encrypted:
            assert client.ask_for_tls() == b"S"
            client.start_tls()
        client.send(wire.startup(user="alice", **parameters))
        with pytest.raises(AssertionError):
            wire.log_in(client, secret)
        assert client.read_to_end() == b""
        return client.last


@pytest.mark.parametrize(("secret", "parameters", "sqlstate"), [
    ("wrong", {}, "28P01"),
    (password("alice"), {"database": "nowhere"}, "3D000"),
    (password("alice"), {"work_mem": "much"}, "22023"),
    (password("alice"), {"options": "-c no_such_setting=1"}, "42704"),
])  # fmt: skip
def test_the_servers_errors_arrive_byte_for_byte(running, asking_cluster, secret, parameters, sqlstate):
    through = last_words(running.port("legacy"), secret, encrypted=False, **parameters)
    assert through.error[0] == sqlstate
    assert through == last_words(asking_cluster.port, secret, encrypted=True, **parameters)
