"""Two servers may give two sessions the same number and key: which one a CancelRequest means cannot be told."""

import pytest

from fixtures import wire
from fixtures.deployments import config, passthrough, with_tls
from fixtures.fake_backend import asks_for_scram
from fixtures.postgres import password

KEY = 4711, b"keys"
"""What the fakes give everybody."""


@pytest.fixture
def backends(fake_backend):
    return {name: fake_backend(asks_for_scram(password("alice"))) for name in ("one", "other")}


@pytest.fixture
def running(proxy, certs, backends):
    """`pair` has both servers behind one listener; `one` and `other` have a listener each."""
    ports = ",".join(str(each.port) for each in backends.values())
    pair = passthrough(
        backends["one"], certs, host="localhost,localhost", hostaddr="127.0.0.1,127.0.0.1", port=ports
    )
    listeners = {name: with_tls(certs, backend=name) for name in ("pair", "one", "other")}
    each = {name: passthrough(backend, certs) for name, backend in backends.items()}
    return proxy(config(listeners, pair=pair, **each), {"pg_hba.conf": "host all all all scram-sha-256\n"})


def log_in(client):
    client.send(wire.startup(user="alice"))
    wire.log_in(client, password("alice"))
    return client


def hangs_up(conversation):
    conversation._sock.close()


def cancel(running, listener):
    with wire.WireClient(("127.0.0.1", running.port(listener))) as client:
        client.send(wire.cancel_request(*KEY))
        assert client.read_to_end() == b""


def cancels(backend):
    return [each.cancel for each in backend.conversations if each.cancel is not None]


def test_behind_one_listener_neither_is_cancelled_until_one_is_gone(running, backends):
    address = "127.0.0.1", running.port("pair")
    with wire.connected(address) as first:
        log_in(first)
        usual, backends["one"].script = backends["one"].script, hangs_up
        with wire.connected(address) as second:
            log_in(second)
            assert backends["other"].conversations[0].startup["user"] == "alice"
            backends["one"].script = usual
            cancel(running, "pair")
            dropped = running.wait_for_event("cancel_dropped", listener="pair")
            assert "two live sessions have this key" in dropped["reason"]
            assert [cancels(backend) for backend in backends.values()] == [[], []]
            since = running.mark()
            second.send(wire.TERMINATE)
            second.end()
            second.read_to_end()
            running.wait_for_event("session_ended", since=since)
        cancel(running, "pair")
        assert [cancels(backend) for backend in backends.values()] == [[KEY], []]


def test_each_listener_cancels_its_own(running, backends):
    with (
        wire.connected(("127.0.0.1", running.port("one"))) as first,
        wire.connected(("127.0.0.1", running.port("other"))) as second,
    ):
        log_in(first)
        log_in(second)
        cancel(running, "other")
        assert [cancels(backend) for backend in backends.values()] == [[], [KEY]]
        cancel(running, "one")
        assert [cancels(backend) for backend in backends.values()] == [[KEY], [KEY]]
