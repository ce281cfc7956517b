"""A peer that keeps OpenSSL busy and sends nothing is cut off. `PGTLSPROXY_FLOOD` makes the flood longer."""

import contextlib
import os
import socket
import threading
import time

import pytest
from OpenSSL import SSL

from fixtures import key_updates, wire
from fixtures.deployments import config, passthrough, with_tls
from fixtures.fake_backend import asks_for_scram
from fixtures.postgres import password

UPDATES = int(os.environ.get("PGTLSPROXY_FLOOD", "0")) or 100_000
"""What one read of OpenSSL would take most of a second for."""


@pytest.fixture
def running(proxy, certs, fake_backend):
    backend = fake_backend(asks_for_scram(password("alice")))
    return proxy(
        config({"tls": with_tls(certs)}, primary=passthrough(backend, certs)),
        {"pg_hba.conf": "host all all all scram-sha-256\n"},
    )


@pytest.fixture
def flooder(running):
    """A client in TLS that has said nothing yet, and its hand-made sender of records."""
    with socket.create_connection(("127.0.0.1", running.port("tls")), wire.PATIENCE) as sock:
        sock.sendall(wire.SSL_REQUEST)
        assert sock.recv(1) == b"S"
        sock.settimeout(None)
        connection, sender = key_updates.handshake(sock, SSL.Context(SSL.TLS_METHOD))
        yield sock, connection, sender


@pytest.mark.parametrize("requested", [False, True])
def test_before_the_login(running, flooder, requested):
    sock, _, sender = flooder
    records = sender.flood(UPDATES, requested=requested)

    def flood():
        with contextlib.suppress(OSError):
            sock.sendall(records)

    flooding = threading.Thread(target=flood)
    flooding.start()
    slowest = max(seconds_of_a_login(running) for _ in range(10))
    assert slowest < wire.PROMPTLY
    refusal = running.wait_for_event("session_decided", timeout=wire.PATIENCE, kind="tls_abuse")
    assert "without data" in refusal["reason"]
    flooding.join()


def seconds_of_a_login(running):
    start = time.monotonic()
    with wire.connected(("127.0.0.1", running.port("tls"))) as client:
        client.send(wire.startup(user="alice"))
        wire.log_in(client, password("alice"))
    return time.monotonic() - start
