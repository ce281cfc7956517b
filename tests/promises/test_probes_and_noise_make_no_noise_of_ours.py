"""Health checks leave nothing above debug; what is no PostgreSQL client is closed, with nothing echoed."""

import contextlib
import random
import ssl

import pytest

from fixtures import wire
from fixtures.deployments import config, in_clear, passthrough, with_tls
from fixtures.fake_backend import asks_for_scram
from fixtures.shared_proxy import complete_log, events_of, refusal_of


@pytest.fixture(scope="module")
def backend(shared_fake_backend):
    return shared_fake_backend(asks_for_scram("unknown"))


@pytest.fixture(scope="module")
def running(shared_proxy, certs, backend):
    return shared_proxy(
        config({"tls": with_tls(certs), "clear": in_clear()}, primary=passthrough(backend, certs))
        | {"log": {"level": "debug"}},
        {"pg_hba.conf": "host all all all scram-sha-256\n"},
    )


def hang_up(client):
    """Say that it is over and wait until the proxy has seen it."""
    client.end()
    return client.read_to_end()


def assert_probe(running, client):
    """One event at most, of kind probe, at level debug."""
    for event in events_of(running, client):
        assert (event["level"], event["kind"]) == ("debug", "probe"), event


@pytest.mark.parametrize("listener", ["tls", "clear"])
@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_a_look_at_the_port_is_no_event_at_all(running, listener, how):
    with wire.WireClient(("127.0.0.1", running.port(listener)), source=wire.another_source()) as client:
        if how == "RST":
            client.reset()
        else:
            assert hang_up(client) == b""
    complete_log(running, listener)
    assert events_of(running, client) == []


@pytest.mark.parametrize(
    ("listener", "sent", "answer"),
    [
        ("tls", wire.SSL_REQUEST, b"S"),
        ("tls", wire.GSSENC_REQUEST, b"N"),
        ("tls", wire.GSSENC_REQUEST + wire.SSL_REQUEST, b"NS"),
        ("clear", wire.SSL_REQUEST, b"N"),
        ("clear", wire.SSL_REQUEST + wire.GSSENC_REQUEST, b"NN"),
    ],
)
def test_an_encryption_request_and_a_close_are_a_probe(running, listener, sent, answer):
    with wire.WireClient(("127.0.0.1", running.port(listener)), source=wire.another_source()) as client:
        client.send(sent)
        assert client.read_exactly(len(answer)) == answer
        assert hang_up(client) == b""
        running.wait_for_event("session_decided", kind="probe", level="debug", **client.where)
        assert_probe(running, client)


def test_a_handshake_and_a_close_are_a_probe(running):
    with wire.connected(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        hang_up(client)
        running.wait_for_event("session_decided", kind="probe", level="debug", **client.where)
        assert_probe(running, client)


@pytest.mark.parametrize("listener", ["tls", "clear"])
def test_a_startup_message_and_a_close_at_the_password_request_are_a_probe(running, listener):
    """pg_isready, HAProxy's pgsql-check, and psql before it asks for a password."""
    with wire.WireClient(("127.0.0.1", running.port(listener)), source=wire.another_source()) as client:
        if listener == "tls":
            assert client.ask_for_tls() == b"S"
            client.start_tls()
        client.send(wire.startup(user="alice"))
        assert client.read_message().code == 10
        hang_up(client)
        decided = running.wait_for_event("session_decided", **client.where)
        assert (decided["level"], decided["kind"], decided["user"]) == ("debug", "probe", "alice")
        assert_probe(running, client)


RANDOM = random.Random(7)
NOISE = {
    "HTTP": b"GET / HTTP/1.1\r\nHost: db\r\n\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "SMTP": b"EHLO mail.example.com\r\n",
    "line feeds": b"\r\n\r\n",
    "NULs": b"\x00" * 64,
    "random": b"\xc3" + RANDOM.randbytes(1_000_000),
    "a message with a type": wire.query("SELECT 1"),
    "SSLv2 hello": bytes.fromhex("802e0100020015000000100100800200800300800400800500800600400700c0")
    + b"x" * 16,
}


@pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE.keys())
@pytest.mark.parametrize("listener", ["tls", "clear"])
def test_what_is_no_startup_packet_is_closed_with_nothing_echoed(running, backend, listener, noise):
    backend.forget()
    with wire.WireClient(("127.0.0.1", running.port(listener)), source=wire.another_source()) as client:
        with contextlib.suppress(ConnectionError):  # it may be closed before all of it is sent
            client.send(noise)
        assert hang_up(client) == b""
        decided = refusal_of(running, client)
        assert (decided["kind"], decided["sqlstate"], decided["level"]) == ("client_protocol", None, "info")
    assert backend.conversations == []


TLS_NOISE = {
    "0x16 and text": b"\x16" + b"GET / HTTP/1.1\r\n" * 40,
    "0x16 and NULs": b"\x16" + b"\x00" * 512,
    "0x16 and random bytes": b"\x16\x03\x01" + RANDOM.randbytes(2000),
    "a record of nothing": b"\x16\x03\x01\x00\x00" * 3,
    "an alert": b"\x16\x03\x01\x00\x02\x02\x28",
    "a hello that lies about its length": b"\x16\x03\x01\x00\x05\x01\xff\xff\xff\x03",
}


@pytest.mark.parametrize("noise", TLS_NOISE.values(), ids=TLS_NOISE.keys())
@pytest.mark.parametrize("asked", [True, False], ids=["after SSLRequest", "direct"])
def test_what_is_no_client_hello_gets_an_alert_at_most(running, backend, asked, noise):
    backend.forget()
    with wire.WireClient(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        assert not asked or client.ask_for_tls() == b"S"
        client.send(noise)
        said = hang_up(client)
        assert said == b"" or (said[0], len(said)) == (0x15, 7), said
        decided = refusal_of(running, client)
        assert (decided["kind"], decided["level"]) == ("client_tls", "info")
    assert backend.conversations == []


def test_after_all_of_it_a_session_still_begins(running):
    with wire.connected(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        assert isinstance(client.tls, ssl.SSLObject)
        client.send(wire.startup(user="alice"))
        assert client.read_message().code == 10
