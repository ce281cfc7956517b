"""Many handshakes at once, begun and left, or by certificates that lead nowhere: who comes and who is there goes on.

`PGTLSPROXY_FLOOD=10000` in the environment raises their number.
"""

import contextlib
import os
import ssl
import time
from contextlib import ExitStack

import pytest

from fixtures import wire
from fixtures.deployments import config, in_clear, passthrough, with_tls
from fixtures.fake_backend import lets_everybody_in

CROWD = int(os.environ.get("PGTLSPROXY_FLOOD", "0")) or 150
MAX_PENDING = 100
AT_ONCE = 50
"""Fewer than may be pending, so that all are begun and none is displaced before."""


@pytest.fixture
def running(proxy, certs, fake_backend):
    shown = certs.client("pgtlsproxy")
    backend = passthrough(fake_backend(lets_everybody_in), certs, login="certificate")
    return proxy(
        config(
            {"tls": with_tls(certs), "clear": in_clear(hba_file="clear.conf")},
            primary=backend | {"sslcert": shown.crt, "sslkey": shown.key},
        )
        | {"max_pending": MAX_PENDING, "startup_timeout": "600s"},
        {
            "pg_hba.conf": "hostssl all all all cert\n",
            "clear.conf": "host all alice 127.0.0.1/32 trust\n",
        },
    )


def client_hello():
    """What a client says first; nobody has to be there for what it answers."""
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def answers(client):
    client.send(wire.query("SELECT 1"))
    return [message.kind for message in client.read_until(b"Z")] == [b"C", b"Z"]


def log_in(stack, running, certs, listener):
    client = stack.enter_context(wire.WireClient(("127.0.0.1", running.port(listener))))
    if listener == "tls":
        assert client.ask_for_tls() == b"S"
        client.start_tls(wire.tls_context(certificate=certs.client("alice")))
    client.send(wire.startup(user="alice"))
    client.read_until(b"Z")
    return client


def test_handshakes_that_are_begun_and_left(running, certs):
    hello = client_hello()
    source = wire.another_source()
    with ExitStack() as stack:
        session = log_in(stack, running, certs, "tls")
        for _ in range(0, CROWD, AT_ONCE):
            crowd = []
            for _ in range(AT_ONCE):
                client = wire.WireClient(("127.0.0.1", running.port("tls")), source=source)
                crowd.append(stack.enter_context(client))
                assert client.ask_for_tls() == b"S"
            for client in crowd:
                client.send_raw(hello)
            begin = time.monotonic()
            assert answers(session)
            for listener in ("clear", "tls"):
                assert answers(log_in(stack, running, certs, listener))
            assert time.monotonic() - begin < wire.PROMPTLY
    decided = running.log_events("session_decided")
    assert {each["kind"] for each in decided if each["verdict"] == "refused"} <= {"limit", "client_tls"}


def test_handshakes_with_certificates_that_lead_nowhere(running, certs):
    stranger = wire.tls_context(certificate=certs.other_ca.client("alice"))
    with ExitStack() as stack:
        session = log_in(stack, running, certs, "tls")
        for number in range(CROWD):
            refused = stack.enter_context(wire.WireClient(("127.0.0.1", running.port("tls"))))
            assert refused.ask_for_tls() == b"S"
            with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):
                refused.start_tls(stranger)
                refused.send(wire.startup(user="alice"))
                refused.read_message()
            if number % AT_ONCE == 0:
                begin = time.monotonic()
                assert answers(session)
                assert answers(log_in(stack, running, certs, "tls"))
                assert time.monotonic() - begin < wire.PROMPTLY
    kinds = [each["kind"] for each in running.log_events("session_decided")]
    assert set(kinds) == {None, "client_certificate"}
