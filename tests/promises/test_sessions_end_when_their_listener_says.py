"""Idle for too long, too old, or by a certificate that has run out: a session ends then, and never within a transaction."""

from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from fixtures import wire
from fixtures.certs import common_names
from fixtures.deployments import config, in_clear, passthrough, with_tls
from fixtures.drivers import by_password
from fixtures.fake_backend import lets_everybody_in

SECONDS = 2
SLEEPS = 5
"""Longer than it takes until an idle session is ended."""


@pytest.fixture(scope="module")
def running(shared_proxy, tls_cluster, certs):
    listeners = {
        "idle": in_clear(idle_session_timeout=f"{SECONDS}s"),
        "old": in_clear(session_lifetime=f"{SECONDS}s"),
        "free": in_clear(),
    }
    files = {"pg_hba.conf": "host all,replication all all scram-sha-256\n"}
    return shared_proxy(config(listeners, primary=passthrough(tls_cluster(17), certs)), files)


def connect(stack, running, listener, name, user="alice", **words):
    target = by_password(running, listener, user, application_name=name).words
    return stack.enter_context(psycopg.connect(**target, autocommit=True, **words))


def end_of(running, name):
    ended = running.wait_for_event("session_ended", application_name=name)
    return ended["kind"], ended["reason"].rpartition(" ")[2]


def told(connection):
    """What a client hears when it asks again, without our DETAIL.

    libpq takes a FATAL that it reads together with the answer before for a notice.
    """
    notices = []
    connection.add_notice_handler(lambda notice: notices.append((notice.sqlstate, notice.message_primary)))
    with pytest.raises(psycopg.OperationalError) as ended:
        connection.execute("SELECT 1")
    return notices[0] if notices else (ended.value.sqlstate, str(ended.value).splitlines()[0])


def test_an_idle_session_hears_what_postgresql_says(running):
    with ExitStack() as stack:
        ours = connect(stack, running, "idle", "ours")
        servers = connect(stack, running, "free", "servers")
        servers.execute(f"SET idle_session_timeout = '{SECONDS}s'")
        assert end_of(running, "ours") == ("timeout", "(idle_session_timeout)")
        assert end_of(running, "servers")[0] == "ok"
        heard = told(ours)
        assert heard == told(servers)
        assert heard[0] == "57P05"


def test_a_query_and_a_transaction_are_not_idle(running):
    with ExitStack() as stack:
        waiting = connect(stack, running, "idle", "waiting")
        waiting.execute("BEGIN")
        busy = connect(stack, running, "idle", "busy")
        connect(stack, running, "idle", "idle")
        busy.execute(f"SELECT pg_sleep({SLEEPS})")
        assert end_of(running, "idle") == ("timeout", "(idle_session_timeout)")
        assert waiting.execute("SELECT 1").fetchone() == (1,)
        ended = {each["application_name"] for each in running.log_events("session_ended")}
        assert not ended & {"waiting", "busy"}
        waiting.execute("COMMIT")
        assert end_of(running, "waiting")[0] == "timeout"
        assert told(waiting)[0] == "57P05"


def test_an_old_session_ends_when_its_transaction_does(running):
    with ExitStack() as stack:
        stream = connect(stack, running, "old", "stream", "postgres", replication="database")
        busy = connect(stack, running, "old", "old and busy")
        busy.execute("CREATE TEMP TABLE kept (n int)")
        busy.execute("BEGIN")
        connect(stack, running, "old", "aged")
        assert end_of(running, "aged") == ("timeout", "(session_lifetime)")
        busy.execute("SELECT pg_sleep(1)")
        heard = []
        busy.add_notice_handler(lambda notice: heard.append((notice.sqlstate, notice.message_primary)))
        busy.execute("COMMIT")
        assert end_of(running, "old and busy") == ("timeout", "(session_lifetime)")
        assert (heard or [told(busy)]) == [("57P01", "terminating connection due to administrator command")]
        assert stream.execute("IDENTIFY_SYSTEM").fetchone() is not None


@pytest.fixture(scope="module")
def admitting(shared_proxy, certs, shared_fake_backend):
    backend = passthrough(shared_fake_backend(lets_everybody_in), certs, login="certificate")
    shown = certs.client("pgtlsproxy")
    listeners = {name: with_tls(certs, expired_sessions=name) for name in ("keep", "close")}
    return shared_proxy(
        config(listeners, primary=backend | {"sslcert": shown.crt, "sslkey": shown.key}),
        {"pg_hba.conf": "hostssl all all all cert\n"},
    )


@pytest.fixture
def short_lived(certs, admitting):
    """alice's certificate, which runs out soon."""
    now = datetime.now(UTC).replace(microsecond=0)
    return certs.ca.issue(
        common_names("alice"),
        usage="client",
        not_before=now - timedelta(days=1),
        not_after=now + timedelta(seconds=5),
    )


def log_in(stack, running, listener, certificate):
    address = "127.0.0.1", running.port(listener)
    client = stack.enter_context(wire.connected(address, wire.tls_context(certificate=certificate)))
    client.send(wire.startup(user="alice"))
    client.read_until(b"Z")
    return client


def answers(client):
    client.send(wire.query("SELECT 1"))
    return [message.kind for message in client.read_until(b"Z")] == [b"C", b"Z"]


def test_a_session_outlives_its_certificate_only_where_it_may(admitting, certs, short_lived):
    with ExitStack() as stack:
        kept = log_in(stack, admitting, "keep", short_lived)
        others = log_in(stack, admitting, "close", certs.client("alice"))
        closed = log_in(stack, admitting, "close", short_lived)
        assert closed.read_error().error == ("57P01", "terminating connection due to administrator command")
        assert closed.read_to_end() == b""
        ended = admitting.wait_for_event("session_ended", **closed.where)
        assert (ended["kind"], "expired_sessions" in ended["reason"]) == ("client_certificate", True)
        assert answers(kept)
        assert answers(others)


def test_one_that_is_never_idle_ends_when_its_certificate_does(admitting, short_lived):
    with ExitStack() as stack:
        busy = log_in(stack, admitting, "close", short_lived)
        busy.send(wire.query("BEGIN")[:-1])  # and no more: a request that is under way
        ended = admitting.wait_for_event("session_ended", timeout=60.0, **busy.where)
        assert (ended["kind"], "did not end" in ended["reason"]) == ("client_certificate", True)
