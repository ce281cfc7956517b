"""Notifications, pipelines, odd segments, many sessions: what works against PostgreSQL works through the proxy."""

import asyncio
import time

import psycopg
import pytest

from fixtures import wire
from fixtures.deployments import (
    PROXY_CERTIFICATE_HBA,
    PROXY_CERTIFICATE_IDENT,
    config,
    with_certificate,
    with_tls,
)
from fixtures.drivers import asyncpg_connect
from fixtures.legs import LEGS
from fixtures.postgres import password
from fixtures.processes import open_descriptors
from fixtures.waiting import until

SESSIONS = 100


@pytest.mark.parametrize(("listening", "notifying"), [
    ("tls_tls", "clear_tls"), ("clear_socket", "tls_socket"),
])  # fmt: skip
def test_a_notification_crosses_from_session_to_session(legs, listening, notifying):
    with (
        psycopg.connect(**legs.target(listening).words, autocommit=True) as listener,
        psycopg.connect(**legs.target(notifying).words, autocommit=True) as notifier,
    ):
        listener.execute("LISTEN news")
        for number in range(3):
            notifier.execute("SELECT pg_notify('news', %s)", [f"number {number}"])
        heard = list(listener.notifies(timeout=20, stop_after=3))
        assert [(each.channel, each.payload) for each in heard] == [("news", f"number {n}") for n in range(3)]
        assert {each.pid for each in heard} == {notifier.info.backend_pid}


@pytest.mark.parametrize("name", LEGS)
def test_a_pipeline_of_a_thousand_statements_with_errors_between(legs, name):
    with psycopg.connect(**legs.target(name).words, autocommit=True) as connection:
        with connection.pipeline() as pipeline:
            cursors = []
            for number in range(1000):
                cursors.append(connection.execute("SELECT %s::int, repeat('.', %s::int)", [number, number]))
                if number % 100 == 99:
                    pipeline.sync()
            for number, cursor in enumerate(cursors):
                assert cursor.fetchone() == (number, "." * number)
        with pytest.raises(psycopg.errors.DivisionByZero), connection.pipeline():
            connection.execute("SELECT 1")
            connection.execute("SELECT 1 / 0")
            connection.execute("SELECT 2")
        assert connection.execute("SELECT 'goes on'").fetchone() == ("goes on",)


async def ask_all(target):
    """100 sessions at once, each with a number and an answer of its own; what servers answered."""
    connections = await asyncio.gather(*(asyncpg_connect(target) for _ in range(SESSIONS)))
    asked = "SELECT pg_backend_pid(), $1::int, length(repeat($2, 10000)), repeat($2, 3)"
    try:
        return await asyncio.gather(
            *(each.fetchrow(asked, number, chr(ord("0") + number % 64))
              for number, each in enumerate(connections))
        )  # fmt: skip
    finally:
        await asyncio.gather(*(each.close() for each in connections))


@pytest.mark.parametrize("name", ["clear_tls", "tls_tls"])
def test_a_hundred_sessions_at_once_and_again_leave_nothing_behind(legs, name):
    running = legs.running
    before = open_descriptors(running.workers[0])
    for turn in range(3):
        turns_name = f"turn {turn} of {name}"
        rows = asyncio.run(ask_all(legs.target(name, application_name=turns_name)))
        assert len({row[0] for row in rows}) == SESSIONS
        assert [tuple(row)[1:] for row in rows] == [
            (number, 10000, chr(ord("0") + number % 64) * 3) for number in range(SESSIONS)
        ]
        ended = until(lambda name=turns_name: all_ended(running, name))
        assert {event["kind"] for event in ended} == {"ok"}
    until(lambda: open_descriptors(running.workers[0]) < before + 10)


def all_ended(running, name):
    ended = [each for each in running.log_events("session_ended") if each["application_name"] == name]
    return ended if len(ended) == SESSIONS else None


def logged_in(legs, name, **settings):
    """A wire client of alice's that is ready for a query."""
    client = wire.WireClient(("127.0.0.1", legs.running.port(name)), **settings)
    if name.startswith("tls_"):
        assert client.ask_for_tls() == b"S"
        client.start_tls()
    client.send(wire.startup(user="alice"))
    wire.log_in(client, password("alice"))
    return client


def scram_final(client):
    """Take a SCRAM exchange to where the client's last message is due; that message."""
    return wire.message(b"p", wire.begin_scram(client).final(password("alice")))


@pytest.mark.parametrize("name", LEGS)
def test_queries_in_the_same_record_as_the_last_login_message_are_answered(legs, name):
    with wire.WireClient(("127.0.0.1", legs.running.port(name))) as client:
        if name.startswith("tls_"):
            assert client.ask_for_tls() == b"S"
            client.start_tls()
        client.send(wire.startup(user="alice"))
        client.send(scram_final(client) + wire.query("SELECT 'first'") + wire.query("SELECT 'second'"))
        client.read_until(b"Z")
        for answer in (b"first", b"second"):
            (row,) = [each for each in client.read_until(b"Z") if each.kind == b"D"]
            assert row.body.endswith(answer)


def test_a_query_in_the_same_record_as_the_startup_message_is_answered(tls_cluster, shared_proxy, certs):
    cluster = tls_cluster(17, PROXY_CERTIFICATE_HBA, ident=PROXY_CERTIFICATE_IDENT)
    running = shared_proxy(
        config({"central": with_tls(certs)}, primary=with_certificate(cluster, certs)),
        {"pg_hba.conf": "hostssl all all all cert\n"},
    )
    context = wire.tls_context(certificate=certs.client("alice"))
    with wire.connected(("127.0.0.1", running.port("central")), context) as client:
        client.send(wire.startup(user="alice") + wire.query("SELECT 'first'"))
        client.read_until(b"Z")
        (row,) = [each for each in client.read_until(b"Z") if each.kind == b"D"]
        assert row.body.endswith(b"first")


@pytest.mark.parametrize("name", ["tls_tls", "clear_socket"])
@pytest.mark.parametrize("sizes", [(1,), (1, 2, 3, 5, 7, 11, 13, 8191)], ids=["single bytes", "prime chunks"])
def test_any_segments_carry_the_same(legs, name, sizes):
    text = "".join(chr(ord("a") + n % 26) for n in range(4096 if sizes == (1,) else 262_144))
    with logged_in(legs, name, transport=wire.in_pieces(*sizes)) as client:
        client.send(wire.query(f"SELECT '{text}'"))
        (row,) = [each for each in client.read_until(b"Z") if each.kind == b"D"]
        assert row.body.endswith(text.encode())


@pytest.mark.parametrize("name", ["tls_tls", "clear_tls"])
def test_small_messages_to_and_fro_do_not_wait_for_each_other(legs, name):
    with logged_in(legs, name) as client:
        begun = time.monotonic()
        for _ in range(200):
            client.send(wire.message(b"S"))  # Sync: the smallest question that is answered
            assert client.read_message().kind == b"Z"
        # Nagle's algorithm against delayed acknowledgements costs 40 ms a turn: 8 s.
        assert time.monotonic() - begun < 4


@pytest.mark.parametrize("name", LEGS)
def test_the_answer_still_arrives_when_the_client_has_ended_its_direction(legs, name):
    octets = 20_000_000
    with logged_in(legs, name) as client:
        client.send(wire.query(f"COPY (SELECT repeat('.', {octets})) TO STDOUT") + wire.TERMINATE)
        client.end()
        received = bytearray()
        while data := client.receive():
            received += data
    assert received.count(b".") == octets
    assert received.endswith(wire.ready_for_query())
    assert legs.running.wait_for_event("session_ended", **client.where)["kind"] == "ok"
