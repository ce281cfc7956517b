"""A client or a backend whose machine is gone says nothing more: the kernel asks on both legs, when the settings say."""

import os
import socket
from pathlib import Path

import pytest

from fixtures import wire
from fixtures.deployments import config, in_clear, passthrough
from fixtures.fake_backend import lets_everybody_in
from fixtures.waiting import until
from pgtlsproxy.config.backend import Backend
from pgtlsproxy.config.listener import Listener
from pgtlsproxy.proxy.keepalive import keep_client_alive, keep_server_alive

KEEPALIVE_TIMER = "02"
"""proc(5), /proc/net/tcp, field `tr`: the timer that runs while nothing is under way."""

TICKS = os.sysconf("SC_CLK_TCK")

CLIENTS_SECONDS, SERVERS_SECONDS = 1000, 2000

OPTIONS = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")


@pytest.fixture
def backend(fake_backend):
    return fake_backend(lets_everybody_in)


@pytest.fixture
def running(proxy, certs, backend):
    listener = in_clear(tcp_keepalives_idle=f"{CLIENTS_SECONDS}s")
    server = passthrough(backend, certs, require_auth="none", keepalives_idle=f"{SERVERS_SECONDS}s")
    return proxy(config({"clear": listener}, primary=server), {"pg_hba.conf": "host all all all trust\n"})


def timer(local_port, remote_port):
    """Of an open IPv4 connection on this machine, seen from one end: which it is, and in how many seconds."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, remote, _, _, pending = line.split()[1:6]
        if (int(local[-4:], 16), int(remote[-4:], 16)) == (local_port, remote_port):
            return pending[:2], int(pending[3:], 16) / TICKS
    raise LookupError(f"no connection from {local_port} to {remote_port}")


def test_both_legs_are_asked_when_their_settings_say(running, backend):
    with wire.WireClient(("127.0.0.1", running.port("clear"))) as client:
        client.send(wire.startup(user="alice"))
        client.read_until(b"Z")
        decided = running.wait_for_event("session_decided", verdict="allowed")
        legs = {
            CLIENTS_SECONDS: (running.port("clear"), client.where["client_port"]),
            SERVERS_SECONDS: (decided["backend_local_port"], backend.port),
        }
        for seconds, leg in legs.items():
            until(lambda leg=leg: timer(*leg)[0] == KEEPALIVE_TIMER, timeout=5.0)
            assert seconds - 60 < timer(*leg)[1] <= seconds


@pytest.fixture
def connected():
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as sock,
    ):
        yield sock


def options(sock):
    asked = sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    return [asked, *(sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in OPTIONS)]


def settings(kind, **given):
    """Of a listener or a backend, with its defaults otherwise."""
    return kind.model_construct(**given)


DEFAULTS = {Listener: [1, 60, 10, 6, 0], Backend: [1, 60, 10, 6, 30_000]}


@pytest.mark.parametrize(
    ("kind", "keep_alive"), [(Listener, keep_client_alive), (Backend, keep_server_alive)]
)
def test_the_kernel_has_the_settings(connected, kind, keep_alive):
    system = options(connected)[1:]
    keep_alive(connected, settings(kind))
    assert options(connected) == DEFAULTS[kind]
    prefix = "tcp_" if kind is Listener else ""
    names = [f"{prefix}keepalives_{name}" for name in ("idle", "interval", "count")]
    keep_alive(
        connected, settings(kind, **dict(zip(names, (7.0, 8.0, 9), strict=True)), tcp_user_timeout=1.5)
    )
    assert options(connected) == [1, 7, 8, 9, 1500]
    with socket.create_connection(connected.getpeername()) as other:
        keep_alive(other, settings(kind, **dict.fromkeys([*names, "tcp_user_timeout"], 0)))
        assert options(other) == [1, *system]


def test_a_server_is_not_asked_where_keepalives_are_off(connected):
    before = options(connected)
    keep_server_alive(connected, settings(Backend, keepalives=False, tcp_user_timeout=0.0))
    assert options(connected) == before
