"""tcp_user_timeout ends nobody who merely does not read: it is off while a socket is full, and on again behind that."""

import socket

import pytest
import trio

from fixtures.relayed import LEGS, MODES, open_bench, read_exactly

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
