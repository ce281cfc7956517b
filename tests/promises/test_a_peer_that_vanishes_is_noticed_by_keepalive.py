"""A client or a backend whose machine is gone says nothing more: the kernel asks, on both legs, as PostgreSQL has it."""

from pathlib import Path

import pytest

from fixtures import wire
from fixtures.deployments import config, in_clear, passthrough
from fixtures.fake_backend import lets_everybody_in
from fixtures.waiting import until

KEEPALIVE_TIMER = "02"
"""proc(5), /proc/net/tcp, field `tr`: the timer that runs while nothing is under way."""


@pytest.fixture
def backend(fake_backend):
    return fake_backend(lets_everybody_in)


@pytest.fixture
def running(proxy, certs, backend):
    return proxy(
        config({"clear": in_clear()}, primary=passthrough(backend, certs, require_auth="none")),
        {"pg_hba.conf": "host all all all trust\n"},
    )


def timer(local_port, remote_port):
    """Of an open IPv4 connection on this machine, seen from one end."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, remote, _, _, pending = line.split()[1:6]
        if (int(local[-4:], 16), int(remote[-4:], 16)) == (local_port, remote_port):
            return pending[:2]
    raise LookupError(f"no connection from {local_port} to {remote_port}")


def test_both_legs_are_kept_alive(running, backend):
    with wire.WireClient(("127.0.0.1", running.port("clear"))) as client:
        client.send(wire.startup(user="alice"))
        client.read_until(b"Z")
        decided = running.wait_for_event("session_decided", verdict="allowed")
        legs = {
            "client": (running.port("clear"), client.where["client_port"]),
            "backend": (decided["backend_local_port"], backend.port),
        }
        for leg in legs.values():
            until(lambda leg=leg: timer(*leg) == KEEPALIVE_TIMER, timeout=5.0)
