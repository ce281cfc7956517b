"""tcp_user_timeout ends nobody who merely does not read: it is off while a socket is full, and on again behind that."""

import contextlib
import socket
from types import SimpleNamespace

import pytest
import trio

from fixtures.relayed import LEGS, MODES, connection, open_bench, read_exactly
from pgtlsproxy.proxy import relay_patience
from pgtlsproxy.tls.stream import LegLost

MILLISECONDS = 60_000
OCTETS = 4_000_000


@pytest.fixture(params=[(legs, mode) for legs in ("clear-clear", "tls-tls") for mode in MODES], ids="-".join)
async def bench(request, monkeypatch):
    legs, mode = request.param
    async with open_bench(LEGS[legs], mode, monkeypatch) as opened:
        yield opened


def user_timeout(leg):
    return leg.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)


async def until(condition):
    while not condition():  # noqa: ASYNC110 - nobody tells when the relay's thread sets an option
        await trio.sleep(0.01)


@pytest.mark.parametrize("reader", ["client", "backend"])
async def test_a_side_that_does_not_read_for_a_while(bench, reader):
    relayed = await bench.session(buffer_octets=16384)
    legs = {"client": relayed.session.client_leg, "backend": relayed.session.backend_leg}
    for leg in legs.values():
        leg.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, MILLISECONDS)
    reads = getattr(relayed, reader)
    writes = relayed.backend if reader == "client" else relayed.client
    full, other = legs.pop(reader), *legs.values()
    data = b"x" * OCTETS
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writes.send, data)
        await until(lambda: user_timeout(full) == 0)
        assert user_timeout(other) == MILLISECONDS
        assert await read_exactly(reads, OCTETS) == data
    await until(lambda: user_timeout(full) == MILLISECONDS)
    await writes.send(b"and so on")
    assert await read_exactly(reads, 9) == b"and so on"


async def test_without_one_there_is_none_behind_it(bench):
    relayed = await bench.session(buffer_octets=16384)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relayed.backend.send, b"x" * OCTETS)
        await read_exactly(relayed.client, OCTETS)
    assert user_timeout(relayed.session.client_leg) == 0


class Gone(socket.socket):
    """A socket whose peer answers nothing any more, as the kernel would say of it."""

    def getsockopt(self, level, option, *size):
        if option != socket.TCP_INFO:
            return super().getsockopt(level, option, *size)
        return relay_patience._INFO.pack(relay_patience.UNANSWERED, 0, MILLISECONDS)


class There(socket.socket):
    """One whose peer has answered the last probe, which was long ago, as they get rarer."""

    def getsockopt(self, level, option, *size):
        if option != socket.TCP_INFO:
            return super().getsockopt(level, option, *size)
        return relay_patience._INFO.pack(0, 1, 2 * MILLISECONDS)


def test_of_a_session_whose_two_peers_are_gone_one_is_told():
    """The first ends it: both legs are forgotten, and their sockets may be closed by then."""
    with contextlib.ExitStack() as stack:
        legs = []
        for _ in range(2):
            sock = Gone(fileno=socket.socket().detach())
            stack.callback(sock.close)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, MILLISECONDS)
            legs.append(SimpleNamespace(sock=sock, fd=sock.fileno(), unsent=b"x"))
        patience = relay_patience.Patience()
        for leg in legs:
            patience.note(leg)
        told = []
        for fd in patience.lost():
            told.append(fd)
            for leg in legs:
                patience.forget(leg.fd)
        assert told == [legs[0].fd]


@pytest.fixture
def looked_at(monkeypatch):
    """Set at every look at the full sockets."""
    looks = []
    lost = relay_patience.Patience.lost

    def look(self):
        looks.append(tuple(self._full))
        return lost(self)

    monkeypatch.setattr(relay_patience.Patience, "lost", look)
    return looks


@pytest.mark.parametrize(("kind", "is_lost"), [(Gone, True), (There, False)])
async def test_a_peer_that_vanishes_with_a_full_socket_is_lost(bench, looked_at, kind, is_lost):
    client_leg, client = await connection(bench.kinds[0], True, 16384)
    backend_leg, backend = await connection(bench.kinds[1], False, 16384)
    real = backend_leg.sock
    backend_leg.sock = kind(fileno=socket.dup(real.fileno()))
    backend_leg.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, MILLISECONDS)
    relayed = bench.start(client_leg, client, backend_leg, backend)
    with trio.move_on_after(600) as writing:

        async def write():
            with contextlib.suppress(LegLost):
                await client.send(b"x" * OCTETS)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            if is_lost:
                end = await relayed.ended()
                assert (end.kind, end.reason) == ("backend_lost", "backend: Connection timed out")
            else:
                await until(lambda: [fds for fds in looked_at if fds][2:])
                assert relayed.end is None
            nursery.cancel_scope.cancel()
    assert not writing.cancelled_caught
    real.close()
