"""KeyUpdates of a peer that does not read what it is sent: answered in their turn, and not without bound."""

import random
from contextlib import asynccontextmanager

import pytest
import trio
from OpenSSL import SSL

from fixtures import key_updates
from fixtures.relayed import CA, SERVER, connection, open_bench, read_exactly, sockets
from pgtlsproxy.proxy import relay_bulk
from pgtlsproxy.tls.contexts import KeyPair, TLSOptions, backend_context, server_context
from pgtlsproxy.tls.raw import BUFFER_OCTETS
from pgtlsproxy.tls.raw_tls import CHOKED_OCTETS, EMPTY_RECORDS
from pgtlsproxy.tls.stream import MAX_RECORD_OCTETS, accept_tls, connect_tls
from pgtlsproxy.tls.trust import Trust

FULL = {4096: 300_000, None: 20_000_000}
"""By the size of the sockets' buffers: more octets than they hold, with what the system lets them grow to."""

PIECE = 4000

NEVER = 2**62


class Pair:
    """A session of which one leg's peer makes its records by hand.

    Attributes:
        sock, connection, sender: that peer's: what it reads through, and what it writes with.
        other: the other peer's leg.
        raw: the relay's leg to the peer.
        bulk: the relay's.
        has_written: whether all has been sent that the other peer was to write.
    """

    def __init__(self, bench, relayed, made, other, raw):
        self.bench = bench
        self.relayed = relayed
        self.sock, self.connection, self.sender = made
        self.other = other
        self.raw = raw
        self.bulk = bench.relay._loop._bulk
        self.has_written = trio.Event()
        self.has_written.set()

    async def send(self, data):
        await trio.to_thread.run_sync(self.sock.sendall, data)

    async def read(self, octets):
        def read():
            received = bytearray()
            while len(received) < octets:
                received += self.connection.recv(min(65536, octets - len(received)))
            return bytes(received)

        return await trio.to_thread.run_sync(read)

    async def until(self, condition):
        """Wait until something holds between two batches of the relay's thread."""
        token = trio.lowlevel.current_trio_token()
        holds = False
        while not holds:
            looked = trio.Event()

            def look(looked=looked):
                nonlocal holds
                holds = condition()
                token.run_sync_soon(looked.set)

            self.bench.relay._loop.post(look)
            await looked.wait()
            await trio.sleep(0.002)

    async def write_until_stuck(self, numbers, nursery, octets):
        """Have the other peer write more than the sockets take, and wait until they are full."""
        data = numbers.randbytes(octets)

        async def write():
            for at in range(0, octets, PIECE):
                await self.other.send(data[at : at + PIECE])
            self.has_written.set()

        self.has_written = trio.Event()
        nursery.start_soon(write)
        await self.until(lambda: self.raw.unsent)
        return data


@asynccontextmanager
async def open_pair(monkeypatch, side, kind, buffer_octets):
    """A pair whose hand-made peer is on one side, and whose other leg is of a kind."""
    async with open_bench((kind, kind), "fast", monkeypatch, 120) as bench:
        ours, theirs = sockets(buffer_octets)
        theirs.setblocking(True)
        pair, made, legs = KeyPair((SERVER.certificate,), SERVER.key), [], []

        def shake_hands():
            context = SSL.Context(SSL.TLS_METHOD)
            if side == "backend":
                context.use_certificate(SERVER.certificate)
                context.use_privatekey(SERVER.key)
            made.extend(key_updates.handshake(theirs, context, is_server=side == "backend"))

        async with trio.open_nursery() as both:
            both.start_soon(trio.to_thread.run_sync, shake_hands)
            if side == "client":
                legs.append(await accept_tls(ours, server_context(pair, None, TLSOptions())))
            else:
                context = backend_context(None, Trust((CA.certificate,)), TLSOptions())
                legs.append(await connect_tls(ours, context, b"localhost"))
        relays, other = await connection(kind, side == "backend", buffer_octets)
        if side == "client":
            relayed = bench.start(legs[0], Closing(theirs), relays, other)
        else:
            relayed = bench.start(relays, other, legs[0], Closing(theirs))
        directions = bench.relay._loop._directions
        while ours.fileno() not in directions:  # noqa: ASYNC110 - the thread sets no event
            await trio.sleep(0.002)
        yield Pair(bench, relayed, (theirs, *made), other, directions[ours.fileno()].source)


class Closing:
    def __init__(self, sock):
        self.close = sock.close


SIDES = pytest.mark.parametrize("side", ["client", "backend"])
KINDS = pytest.mark.parametrize("kind", ["clear", "TLSv1.3"])
BUFFERS = pytest.mark.parametrize("buffer_octets", FULL)


@SIDES
@KINDS
@BUFFERS
@pytest.mark.parametrize("is_bulk", [False, True])
async def test_a_peer_that_updates_its_keys_while_its_socket_is_full_is_served(
    monkeypatch, side, kind, buffer_octets, is_bulk
):
    """Each of its records comes through before it reads anything, and everything that was sent to it after."""
    if not is_bulk:
        monkeypatch.setattr(relay_bulk, "LARGES_TO_BEGIN", NEVER)
    numbers = random.Random(1)
    async with open_pair(monkeypatch, side, kind, buffer_octets) as pair, trio.open_nursery() as nursery:
        if is_bulk:
            pair.bench.relay._loop.post(lambda: make_bulk(pair))
        for _ in range(3):
            data = await pair.write_until_stuck(numbers, nursery, FULL[buffer_octets])
            for number in range(20):
                update = pair.sender.key_update(requested=number % 3 != 2)
                question = b"question %d" % number * 50
                await pair.send(update + pair.sender.record(question))
                assert await read_exactly(pair.other, len(question)) == question
            assert await pair.read(len(data)) == data
            await pair.send(pair.sender.record(b"thanks"))
            assert await read_exactly(pair.other, 6) == b"thanks"
            await pair.other.send(b"welcome")
            assert await pair.read(7) == b"welcome"
        if not is_bulk:
            await pair.until(lambda: not pair.raw.is_buffered)
        assert (pair.relayed.end, pair.relayed.failure) == (None, None)


def make_bulk(pair):
    direction = pair.bench.relay._loop._directions[pair.raw.fd]
    direction.pace.larges = relay_bulk.LARGES_TO_BEGIN
    direction.pace.large_until = direction.octets
    assert pair.bulk.note_large(direction, 0)


def held(raw):
    return len(raw.unsent) + (raw._bios.untaken() if raw._bios is not None else 0)


@SIDES
@pytest.mark.parametrize("state", ["nothing else was sent", "its socket is full", "in a bulk transfer"])
async def test_answers_to_key_updates_that_nobody_reads_stop_the_reading_of_more(monkeypatch, side, state):
    """And all is well once they are read."""
    if state != "in a bulk transfer":
        monkeypatch.setattr(relay_bulk, "LARGES_TO_BEGIN", NEVER)
    most = (
        CHOKED_OCTETS + 2 * MAX_RECORD_OCTETS + 2 * EMPTY_RECORDS * len(key_updates.Sender(b"").record(b""))
    )
    async with open_pair(monkeypatch, side, "clear", 4096) as pair, trio.open_nursery() as nursery:
        data = b""
        if state != "nothing else was sent":
            if state == "in a bulk transfer":
                pair.bench.relay._loop.post(lambda: make_bulk(pair))
                most += BUFFER_OCTETS
            data = await pair.write_until_stuck(random.Random(2), nursery, FULL[4096])
        flood = pair.sender.flood(5000, requested=True) + pair.sender.record(b"done")
        is_taken = trio.Event()

        async def send():
            await pair.send(flood)
            is_taken.set()

        nursery.start_soon(send)
        await pair.until(lambda: held(pair.raw) > CHOKED_OCTETS)
        with trio.move_on_after(1.0):
            await is_taken.wait()
        assert not is_taken.is_set()
        await pair.until(lambda: CHOKED_OCTETS < held(pair.raw) < most)
        nursery.start_soon(check_read, pair, data + b"welcome")
        assert await read_exactly(pair.other, 4) == b"done"
        await pair.has_written.wait()
        await pair.other.send(b"welcome")
        if state != "in a bulk transfer":
            await pair.until(lambda: not pair.raw.is_buffered)
        assert (pair.relayed.end, pair.relayed.failure) == (None, None)


async def check_read(pair, data):
    assert await pair.read(len(data)) == data
