"""Sessions end by every way there is while others stream: no byte goes astray, and nobody ends who was not told to."""

import contextlib
import errno
import os
import random
import socket
import struct
import threading

import pytest
import trio
import trio.testing

from fixtures.relayed import LEGS, MODES, open_bench, read_exactly
from pgtlsproxy.proxy.relay_ending import Ending, When, Wish
from pgtlsproxy.tls.stream import LegLost

SHUTDOWN = Ending("shutdown", "the proxy ends", is_clean=True)
FAREWELL = b"E\x00\x00\x00\x05\x00"
IDLE = b"Z\x00\x00\x00\x05I"
AT_ONCE = 4
SESSIONS = 30
STRANGERS = 8


@pytest.fixture(params=[(legs, mode) for legs in LEGS for mode in MODES], ids="-".join)
async def bench(request, monkeypatch):
    legs, mode = request.param
    async with open_bench(LEGS[legs], mode, monkeypatch, seconds=120) as opened:
        yield opened


class Strangers:
    """Sockets that come and go as fast as they can, and get no byte from anybody. A context manager.

    A descriptor that a session has left is most likely to be one of them next.
    """

    def __init__(self):
        self.astray = []
        self.came = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        while not self._is_over.is_set():
            pairs = [socket.socketpair() for _ in range(STRANGERS)]
            self._is_over.wait(0.0005)
            for sock in (each for pair in pairs for each in pair):
                sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    self.astray.append(sock.recv(100))
            for sock in (each for pair in pairs for each in pair):
                sock.close()
            self.came += len(pairs)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._is_over.set()
        self._thread.join()


class Stream:
    """A session that sends an octet of its own each way, all the time.

    Attributes:
        may_end: whether somebody has told it to.
        foreign: what came that was not its own, or why it ended without being told to.
        received: octets.
    """

    def __init__(self, number, relayed):
        self.relayed = relayed
        self.may_end = False
        self.foreign = []
        self.received = 0
        self._progress = trio.Event()
        self._is_over = trio.Event()
        self._traffic = trio.CancelScope()
        self._up, self._down = bytes([number % 120]), bytes([120 + number % 120])

    async def run(self):
        """Until the session is over. Its own ends are closed when nobody waits for them any more."""
        with self._traffic:
            async with trio.open_nursery() as nursery:
                for leg, octet in ((self.relayed.client, self._up), (self.relayed.backend, self._down)):
                    nursery.start_soon(self._send, leg, octet)
                for leg, octet in ((self.relayed.client, self._down), (self.relayed.backend, self._up)):
                    nursery.start_soon(self._read, leg, octet)
                await self.relayed.over.wait()
                nursery.cancel_scope.cancel()
        self._is_over.set()
        await self.relayed.over.wait()
        self.relayed.close()
        if self.relayed.failure is not None or not self.may_end:
            self.foreign.append(self.relayed.failure or self.relayed.end)

    async def fall_silent(self):
        self._traffic.cancel()
        await self._is_over.wait()

    async def until_received(self, octets):
        while self.received < octets:
            await self._progress.wait()

    async def _send(self, leg, octet):
        with contextlib.suppress(LegLost):
            while True:
                await leg.send(octet * 3000)

    async def _read(self, leg, octet):
        with contextlib.suppress(LegLost):
            while data := await leg.receive(16384):
                self.received += len(data)
                self._progress.set()
                self._progress = trio.Event()
                if not self.may_end and (strange := set(data) - set(octet)):
                    self.foreign.append(strange)


def ways_to_be_ended(bench, relayed):
    """In the middle of its traffic: cancelled, told to by the proxy, its connection shut down."""

    def told(when):
        bench.relay.end(relayed.session, Wish(SHUTDOWN, when, FAREWELL))

    return (
        relayed.cut,
        lambda: told(When.NOW),
        lambda: (told(When.IDLE), relayed.cut()),
        lambda: (told(When.BOUNDARY), told(When.NOW)),
        lambda: relayed.client.sock.shutdown(socket.SHUT_RDWR),
        lambda: relayed.backend.sock.shutdown(socket.SHUT_RDWR),
    )


def ways_to_leave(relayed):
    """Reset by one side or closed by both, with octets in flight. In clear, one side's end is a half-close."""
    return (
        relayed.client.abort,
        relayed.backend.abort,
        lambda: (relayed.client.close(), relayed.backend.close()),
        lambda: (relayed.backend.close(), relayed.client.close()),
    )


async def test_no_byte_goes_astray_and_nobody_ends_who_was_not_told_to(bench):
    numbers = random.Random(6)
    everybody, live = [], []
    with Strangers() as strangers:
        async with trio.open_nursery() as nursery:
            for number in range(SESSIONS):
                stream = Stream(number, await bench.session())
                everybody.append(stream)
                live.append(stream)
                nursery.start_soon(stream.run)
                if len(live) > AT_ONCE:
                    leaving = live.pop(numbers.randrange(len(live)))
                    await leaving.until_received(1)
                    leaving.may_end = True
                    ways = ways_to_be_ended(bench, leaving.relayed)
                    if number % 3 == 0:
                        await leaving.fall_silent()
                        ways = ways_to_leave(leaving.relayed)
                    ways[number % len(ways)]()
            for stream in live:
                await stream.until_received(stream.received + 1)
            for stream in live:
                stream.may_end = True
                stream.relayed.cut()
    assert [stream.foreign for stream in everybody if stream.foreign] == []
    assert (strangers.astray, strangers.came > STRANGERS) == ([], True)


@contextlib.asynccontextmanager
async def held(bench):
    """The relay's thread does nothing while the context lasts."""
    is_held, may_go_on = threading.Event(), threading.Event()

    def hold():
        is_held.set()
        may_go_on.wait(20)

    bench.relay._loop.post(hold)
    try:
        assert await trio.to_thread.run_sync(is_held.wait, 20)
        yield
    finally:
        may_go_on.set()


async def test_a_session_that_is_cut_keeps_its_sockets_until_the_thread_has_let_go_of_them(bench):
    relayed = await bench.session()
    async with held(bench):
        relayed.cut()
        await trio.testing.wait_all_tasks_blocked()
        assert not relayed.over.is_set()
        assert relayed.session.client_leg.sock.fileno() != -1
        assert relayed.session.backend_leg.sock.fileno() != -1
    await relayed.over.wait()
    assert relayed.session.client_leg.sock.fileno() == -1


def reset(leg):
    leg.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    leg.sock.close()


async def test_why_the_backend_went_is_told_though_the_clients_next_query_fails_first(bench):
    """Everything has happened before the thread looks: it is the query that meets the broken connection first."""
    relayed = await bench.session()
    await relayed.backend.send(IDLE)
    assert await relayed.client.receive(6) == IDLE
    async with held(bench):
        await relayed.client.send(b"question")
        await relayed.backend.send(b"FATAL: terminating connection")
        reset(relayed.backend)
    assert await read_exactly(relayed.client, 29) == b"FATAL: terminating connection"
    relayed.client.close()
    assert (await relayed.ended()).kind == "backend_lost"


@pytest.mark.parametrize("kind", ["clear", "TLSv1.3"])
async def test_last_words_that_come_after_the_query_has_failed_arrive_too(monkeypatch, kind):
    """Over TLS they could not be read any more."""

    def write(fd, data):
        if bytes(data) == b"question":
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        return original(fd, data)

    original = os.write
    monkeypatch.setattr(os, "write", write)
    async with open_bench((kind, "clear"), "fast", monkeypatch) as bench:
        relayed = await bench.session()
        await relayed.client.send(b"question")
        await trio.sleep(0.1)
        await relayed.backend.send(b"FATAL: terminating connection")
        await relayed.backend.send_eof()
        assert await read_exactly(relayed.client, 29) == b"FATAL: terminating connection"
        relayed.client.close()
        assert (await relayed.ended()).kind == "backend_lost"
