"""Whoever is slow, the client or the backend, at whatever stage: the session is closed in time and without a word."""

import contextlib
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from fixtures import wire
from fixtures.deployments import config, passthrough, with_tls
from fixtures.fake_backend import lets_everybody_in, silent

STARTUP_SECONDS, LOGIN_SECONDS = 1.0, 2.0
LATE = 10.0
"""How many times longer than its deadline a stage may take on a busy machine."""

INTERVAL = 0.2
STARTUP = wire.startup(user="alice", application_name="x" * 500)
ASK = wire.authentication(3)


def after_s(conversation):
    conversation.answer_ssl_request()


def inside_the_handshake(conversation):
    conversation.answer_ssl_request(b"S" + bytes.fromhex("160303020002"))


def after_the_handshake(conversation):
    conversation.answer_ssl_request()
    conversation.start_tls()


def after_the_startup_message(conversation):
    conversation.accept()


def after_half_a_message(conversation):
    conversation.accept()
    conversation.send(ASK[:3])


def after_a_password_request(conversation):
    conversation.accept()
    conversation.send(ASK)


def after_authentication_ok(conversation):
    conversation.accept()
    conversation.send(wire.AUTHENTICATION_OK)


def with_notices_for_ever(conversation):
    conversation.accept()
    while True:
        conversation.send(wire.message(b"N", b"Mpatience\x00\x00"))
        time.sleep(INTERVAL)


BACKENDS = {
    "nothing": silent,
    "after S": after_s,
    "inside the handshake": inside_the_handshake,
    "after the handshake": after_the_handshake,
    "after the StartupMessage": after_the_startup_message,
    "after half a message": after_half_a_message,
    "after AuthenticationOk": after_authentication_ok,
    "with notices for ever": with_notices_for_ever,
}


def says_nothing(_client):
    """Not a byte."""


def asks_for_tls_alone(client):
    client.ask_for_tls()


def sends_half_a_hello(client):
    client.ask_for_tls()
    client.hello()
    client.send_raw(client.pending()[:50])


def sends_nothing_inside_tls(client):
    client.ask_for_tls()
    client.start_tls()


def sends_half_a_startup_message(client):
    client.send(STARTUP[:20])


def drips(client, data):
    """One byte an interval, until the other side has enough."""
    with contextlib.suppress(OSError, ssl.SSLError):
        for number in range(len(data)):
            client.send(data[number : number + 1])
            time.sleep(INTERVAL)


def drips_a_hello(client):
    client.ask_for_tls()
    client.hello()
    drips(client, client.pending())


def drips_a_startup_message(client):
    drips(client, STARTUP)


def drips_inside_tls(client):
    client.ask_for_tls()
    client.start_tls()
    drips(client, STARTUP)


def logs_in(client):
    client.ask_for_tls()
    client.start_tls()
    client.send(STARTUP)


def is_silent_at_the_password_request(client):
    logs_in(client)
    assert client.read_message().code == 3


def drips_its_password(client):
    is_silent_at_the_password_request(client)
    drips(client, wire.password_message("x" * 1000))


SLOW_CLIENTS = [
    says_nothing,
    asks_for_tls_alone,
    sends_half_a_hello,
    sends_nothing_inside_tls,
    sends_half_a_startup_message,
    drips_a_hello,
    drips_a_startup_message,
    drips_inside_tls,
]


@dataclass(frozen=True)
class Ended:
    """How it went for a slow client.

    Args:
        seconds: from connecting to the end.
        said: what it heard at last.
        event: the proxy's.
    """

    seconds: float
    said: bytes
    event: dict


@pytest.fixture(scope="module")
def running(shared_proxy, shared_fake_backend, certs):
    fakes = {name: shared_fake_backend(script) for name, script in BACKENDS.items()}
    fakes["asks"] = shared_fake_backend(after_a_password_request)
    fakes["good"] = shared_fake_backend(lets_everybody_in)
    keys = {name: f"b{number}" for number, name in enumerate(fakes)}
    running = shared_proxy(
        config(
            {key: with_tls(certs, backend=key) for key in keys.values()},
            **{
                keys[name]: passthrough(
                    fake,
                    certs,
                    connect_timeout="60s",
                    **({"require_auth": "none"} if name in {"good", "after AuthenticationOk"} else {}),
                )
                for name, fake in fakes.items()
            },
        )
        | {"startup_timeout": f"{STARTUP_SECONDS:g}s", "authentication_timeout": f"{LOGIN_SECONDS:g}s"},
        {"pg_hba.conf": "host all all all trust\n"},
    )
    running.keys = keys
    return running


@pytest.fixture(scope="module")
def endings(running):
    """All of them at once: the deadlines run side by side."""

    def run(behaviour, listener):
        start = time.monotonic()
        with wire.WireClient(
            ("127.0.0.1", running.port(running.keys[listener])), source=wire.another_source()
        ) as client:
            behaviour(client)
            said = client.read_to_end()
            seconds = time.monotonic() - start
            event = running.wait_for_event("session_decided", **client.where)
            return Ended(seconds, said, event)

    cases = {behaviour.__name__: (behaviour, "good") for behaviour in SLOW_CLIENTS}
    cases |= {
        behaviour.__name__: (behaviour, "asks")
        for behaviour in (is_silent_at_the_password_request, drips_its_password)
    }
    cases |= {name: (logs_in, name) for name in BACKENDS}
    with (
        ThreadPoolExecutor(len(cases)) as pool,
        wire.connected(
            ("127.0.0.1", running.port(running.keys["good"])), source=wire.another_source()
        ) as patient,
    ):
        patient.send(STARTUP)
        patient.read_until(b"Z")
        found = {name: pool.submit(run, *case) for name, case in cases.items()}
        results = {name: future.result() for name, future in found.items()}
        patient.send(wire.query("SELECT 1"))
        results["an open session"] = patient.read_until(b"Z")
        return results


@pytest.mark.parametrize("name", [behaviour.__name__ for behaviour in SLOW_CLIENTS])
def test_a_client_that_does_not_say_what_it_wants_is_closed(endings, name):
    ended = endings[name]
    assert STARTUP_SECONDS * 0.9 < ended.seconds < STARTUP_SECONDS * LATE
    assert ended.said == b""
    assert (ended.event["verdict"], ended.event["kind"]) == ("refused", "timeout")
    assert "startup_timeout" in ended.event["reason"]


@pytest.mark.parametrize("name", ["is_silent_at_the_password_request", "drips_its_password"])
def test_a_client_that_does_not_answer_is_closed_as_by_postgresql(endings, name):
    ended = endings[name]
    assert LOGIN_SECONDS * 0.9 < ended.seconds < LOGIN_SECONDS * LATE
    assert ended.said == b""
    assert (ended.event["kind"], ended.event["sqlstate"], ended.event["user"]) == ("timeout", None, "alice")
    assert "authentication_timeout" in ended.event["reason"]


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_that_stalls_does_not_hold_a_client(endings, name):
    ended = endings[name]
    assert LOGIN_SECONDS * 0.9 < ended.seconds < LOGIN_SECONDS * LATE
    assert ended.said == b""
    assert (ended.event["verdict"], ended.event["kind"]) == ("refused", "timeout")


def test_a_session_that_is_open_has_no_deadline(endings):
    assert [message.kind for message in endings["an open session"]] == [b"C", b"Z"]
