"""The relay: every byte once, ends as what they were, and a peer that stops reading stops the other."""

import contextlib
import gc
import hashlib
import os
import random
import socket
import threading
import weakref

import pytest
import trio
import trio.testing
from OpenSSL import SSL

from fixtures import key_updates
from fixtures.relayed import (
    LEGS,
    MODES,
    SERVER,
    connection,
    open_bench,
    read_exactly,
    read_to_end,
    sockets,
)
from pgtlsproxy.proxy import relay_session
from pgtlsproxy.proxy.relay import RelayDied
from pgtlsproxy.proxy.relay_ending import Ending, When, Wish
from pgtlsproxy.proxy.relay_loop import Moments
from pgtlsproxy.proxy.relay_session import RelaySession
from pgtlsproxy.tls.contexts import KeyPair, TLSOptions, server_context
from pgtlsproxy.tls.raw_tls import RawFastTLS, raw_leg
from pgtlsproxy.tls.stream import ClearLeg, LegLost, accept_tls

MEGABYTE = 1_000_000

MESSAGES = int(os.environ.get("PGTLSPROXY_FUZZ", "0")) or 3000
"""Over all pairs of legs and both modes, a tenth each."""

SECONDS = 120 + MESSAGES // 300


@pytest.fixture(params=[(legs, mode) for legs in LEGS for mode in MODES], ids="-".join)
async def bench(request, monkeypatch):
    legs, mode = request.param
    async with open_bench(LEGS[legs], mode, monkeypatch, SECONDS) as opened:
        yield opened


@pytest.fixture
async def relayed(bench):
    return await bench.session()


async def exchange(numbers, one, other, octets):
    """Random traffic both ways at once, in random pieces, read in random pieces: digests sent and received."""
    digests = {}

    async def send(name, leg):
        digest, left = hashlib.sha256(), octets
        while left:
            data = numbers.randbytes(min(left, numbers.choice((1, 5, 100, 8192, 16384, 16385, 200_000))))
            digest.update(data)
            left -= len(data)
            await leg.send(data)
        digests["sent", name] = digest.hexdigest()

    async def read(name, leg):
        digest, left = hashlib.sha256(), octets
        while left:
            data = await leg.receive(min(left, numbers.choice((1000, 16384, 100_000))))
            assert data
            digest.update(data)
            left -= len(data)
        digests["received", name] = digest.hexdigest()

    async with trio.open_nursery() as both:
        both.start_soon(send, "up", one)
        both.start_soon(send, "down", other)
        both.start_soon(read, "up", other)
        both.start_soon(read, "down", one)
    return digests


async def test_what_was_read_before_the_hand_over_comes_first(bench):
    started = await bench.session(b"from the client, ", b"from the backend, ")
    await started.client.send(b"and more")
    await started.backend.send(b"and more")
    assert await read_exactly(started.backend, 25) == b"from the client, and more"
    assert await read_exactly(started.client, 26) == b"from the backend, and more"


async def test_random_traffic_both_ways_arrives_once_and_in_order(bench, relayed):
    digests = await exchange(random.Random(1), relayed.client, relayed.backend, 4 * MEGABYTE)
    assert digests["sent", "up"] == digests["received", "up"]
    assert digests["sent", "down"] == digests["received", "down"]
    await relayed.client.send_eof()
    await relayed.backend.send_eof()
    end = await relayed.ended()
    assert (end.kind, end.bytes_from_client, end.bytes_from_backend) == ("ok", 4 * MEGABYTE, 4 * MEGABYTE)


async def test_tiny_windows_lose_nothing(bench):
    relayed = await bench.session(buffer_octets=4096)
    digests = await exchange(random.Random(2), relayed.client, relayed.backend, MEGABYTE)
    assert digests["sent", "up"] == digests["received", "up"]
    assert digests["sent", "down"] == digests["received", "down"]


async def test_small_messages_go_on_after_a_bulk_transfer(relayed):
    """The memory that stood between OpenSSL and the sockets goes, with nothing in it."""
    for size in (1, 3 * MEGABYTE, 10, 8192, 1, 2 * MEGABYTE, 100):
        data = random.Random(size).randbytes(size)
        async with trio.open_nursery() as both:
            both.start_soon(relayed.backend.send, data)
            assert await read_exactly(relayed.client, size) == data
        for number in range(20):
            question = f"SELECT {number}".encode()
            await relayed.client.send(question)
            assert await read_exactly(relayed.backend, len(question)) == question
            await relayed.backend.send(question[::-1])
            assert await read_exactly(relayed.client, len(question)) == question[::-1]


async def test_a_client_that_half_closes_still_gets_its_answer(relayed):
    await relayed.client.send(b"question")
    await relayed.client.send_eof()
    assert await read_to_end(relayed.backend) == b"question"
    await relayed.backend.send(b"answer" * 100_000)
    await relayed.backend.send_eof()
    assert await read_to_end(relayed.client) == b"answer" * 100_000
    end = await relayed.ended()
    assert (end.kind, end.reason) == ("ok", "the client closed the session")
    assert (end.bytes_from_client, end.bytes_from_backend) == (8, 600_000)


async def test_a_backend_that_half_closes_ends_the_session_with_all_it_said(relayed):
    async with trio.open_nursery() as both:
        both.start_soon(relayed.backend.send, b"r" * 300_000)
        assert await read_exactly(relayed.client, 300_000) == b"r" * 300_000
    await relayed.backend.send_eof()
    assert await read_to_end(relayed.client) == b""
    await relayed.client.send_eof()
    assert (await relayed.ended()).reason == "the backend closed the session"


async def test_terminate_is_waited_on_until_the_backend_ends(relayed):
    await relayed.client.send(b"X\x00\x00\x00\x04")
    relayed.client.close()
    assert await read_exactly(relayed.backend, 5) == b"X\x00\x00\x00\x04"
    await relayed.backend.send_eof()
    end = await relayed.ended()
    assert (end.kind, end.reason) == ("ok", "the client closed the session")
    with pytest.raises(LegLost):
        while True:
            await relayed.backend.receive(100)
            await relayed.backend.send(b"x")


async def test_the_backends_last_words_reach_a_client_that_is_still_talking(relayed):
    async with trio.open_nursery() as talking:
        talking.start_soon(relayed.client.send, b"q" * 100_000)
        await relayed.backend.send(b"FATAL: terminating connection")
        await relayed.backend.send_eof()
        assert await read_to_end(relayed.client) == b"FATAL: terminating connection"
        await relayed.client.send(b"more")
        talking.cancel_scope.cancel()
    relayed.client.close()
    assert (await relayed.ended()).reason == "the backend closed the session"


async def test_last_words_arrive_even_where_the_backend_refuses_to_read(relayed):
    await relayed.backend.send(b"FATAL: terminating connection")
    await relayed.backend.send_eof()
    relayed.backend.close()
    await relayed.client.send(b"question")
    assert await read_to_end(relayed.client) == b"FATAL: terminating connection"


@pytest.mark.parametrize("side", ["client", "backend"])
async def test_a_reset_is_passed_on_as_one(relayed, side):
    here, there = (relayed.client, relayed.backend) if side == "client" else (relayed.backend, relayed.client)
    await here.send(b"half a message")
    assert await read_exactly(there, 14) == b"half a message"
    here.abort()
    with pytest.raises(LegLost):
        while True:
            assert await there.receive(100), "a broken session was given a clean end"
    assert (await relayed.ended()).kind == f"{side}_lost"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("side", "kinds"),
    [
        ("client", ("TLSv1.3", "clear")),
        ("client", ("TLSv1.2", "TLSv1.2")),
        ("backend", ("clear", "TLSv1.3")),
        ("backend", ("TLSv1.3", "TLSv1.3")),
        ("backend", ("TLSv1.2", "TLSv1.2")),
    ],
)
async def test_a_truncated_leg_gives_nobody_a_clean_end(monkeypatch, side, kinds, mode):
    """In clear, FIN is all the end there is."""
    async with open_bench(kinds, mode, monkeypatch) as bench:
        await truncate(await bench.session(), side)


async def truncate(relayed, side):
    here, there = (relayed.client, relayed.backend) if side == "client" else (relayed.backend, relayed.client)
    await here.send(b"half a message")
    here.sock.shutdown(socket.SHUT_WR)
    assert await read_exactly(there, 14) == b"half a message"
    with pytest.raises(LegLost):
        while True:
            assert await there.receive(100), "a truncated session was given a clean end"
    end = await relayed.ended()
    assert (end.kind, "without close_notify" in end.reason) == (f"{side}_lost", True)


@pytest.mark.parametrize("side", ["client", "backend"])
async def test_a_peer_that_does_not_read_stops_the_other_and_loses_nothing(relayed, side):
    reader, writer = (
        (relayed.client, relayed.backend) if side == "client" else (relayed.backend, relayed.client)
    )
    sent = []

    async def write():
        while True:
            data = os.urandom(65536)
            sent.append(data)
            await writer.send(data)
            progress.set()

    async with trio.open_nursery() as writing:
        progress = trio.Event()
        writing.start_soon(write)
        stalled = False
        while not stalled:
            progress = trio.Event()
            with trio.move_on_after(0.5) as waiting:
                await progress.wait()
            stalled = waiting.cancelled_caught
            assert len(sent) < 1000, "the relay queues what nobody reads"
        expected = b"".join(sent[:-1])
        assert await read_exactly(reader, len(expected)) == expected
        writing.cancel_scope.cancel()


async def test_a_cut_session_is_broken_at_both_ends_and_its_traffic_is_known(bench, relayed):
    await relayed.client.send(b"hello")
    assert await read_exactly(relayed.backend, 5) == b"hello"
    relayed.cut()
    await relayed.over.wait()
    assert (relayed.end, relayed.traffic.from_client) == (None, 5)
    for leg in (relayed.client, relayed.backend):
        with pytest.raises(LegLost):
            await leg.receive(1)


async def test_two_sessions_never_see_each_others_bytes(bench):
    numbers = random.Random(3)
    many = [await bench.session(buffer_octets=16384) for _ in range(8)]
    received = {}

    async def read(name, leg):
        data = set()
        left = MEGABYTE
        while left:
            got = await leg.receive(min(left, numbers.choice((1, 777, 16384))))
            data |= set(got)
            left -= len(got)
            if numbers.random() < 0.01:
                await trio.sleep(0.001)  # a reader that stalls is what this is about
        received[name] = data

    async with trio.open_nursery() as everybody:
        for number, one in enumerate(many):
            everybody.start_soon(one.backend.send, bytes([number]) * MEGABYTE)
            everybody.start_soon(one.client.send, bytes([100 + number]) * MEGABYTE)
            everybody.start_soon(read, number, one.client)
            everybody.start_soon(read, 100 + number, one.backend)
    assert received == {number + side: {number + side} for number in range(8) for side in (0, 100)}


async def test_a_record_behind_close_notify_ends_nothing_but_its_own_session(bench):
    relayed, other = await bench.session(), await bench.session()
    await relayed.client.send(b"last")
    await relayed.client.send_eof()
    assert await read_to_end(relayed.backend) == b"last"
    await relayed.backend.send_eof()
    assert (await relayed.ended()).kind == "ok"
    await other.client.send(b"on")
    assert await read_exactly(other.backend, 2) == b"on"


async def test_ends_of_many_kinds_at_random_leave_the_relay_as_it_was(bench):
    """Forty resets, truncations and ends in the middle of transfers; then the next session is served."""
    numbers = random.Random(4)
    for number in range(40):
        relayed = await bench.session()
        side = relayed.client if number % 2 else relayed.backend
        end = numbers.choice((side.abort, side.close, lambda side=side: side.sock.shutdown(socket.SHUT_RDWR)))
        with (
            trio.move_on_after(numbers.random() * 0.02),
            pytest.raises((LegLost, AssertionError, ValueError)),
        ):
            await exchange_until_broken(relayed)
        end()
        relayed.close()
        await relayed.over.wait()
        assert relayed.failure is None
    last = await bench.session()
    digests = await exchange(numbers, last.client, last.backend, 100_000)
    assert digests["sent", "up"] == digests["received", "up"]


async def test_many_messages_of_many_sizes_on_many_sessions_beside_ones_that_break(bench):
    """Every message comes back as it was sent, in order, whatever happens to the neighbours."""
    numbers = random.Random(5)
    sessions = [await bench.session(buffer_octets=numbers.choice((None, 4096, 65536))) for _ in range(8)]
    is_over = trio.Event()

    async def echo(leg):
        with contextlib.suppress(LegLost, trio.ClosedResourceError):
            while data := await leg.receive(numbers.choice((16384, 65536))):
                await leg.send(data)

    async def converse(relayed):
        for _ in range(MESSAGES // len(LEGS) // len(MODES) // len(sessions) + 1):
            message = numbers.randbytes(min(int(numbers.paretovariate(0.5)), 300_000))
            async with trio.open_nursery() as both:
                both.start_soon(relayed.client.send, message)
                assert await read_exactly(relayed.client, len(message)) == message

    async def break_neighbours():
        while not is_over.is_set():
            neighbour = await bench.session()
            with trio.move_on_after(numbers.random() * 0.05):
                await neighbour.client.send(b"x" * numbers.choice((10, MEGABYTE)))
                await neighbour.over.wait()
            numbers.choice((neighbour.client, neighbour.backend)).abort()
            neighbour.close()
            await neighbour.over.wait()
            assert neighbour.failure is None

    async with trio.open_nursery() as everybody:
        everybody.start_soon(break_neighbours)
        for relayed in sessions:
            everybody.start_soon(echo, relayed.backend)
        async with trio.open_nursery() as conversations:
            for relayed in sessions:
                conversations.start_soon(converse, relayed)
        is_over.set()
        for relayed in sessions:
            relayed.close()


async def exchange_until_broken(relayed):
    async with trio.open_nursery() as both:
        both.start_soon(relayed.client.send, b"u" * 10 * MEGABYTE)
        both.start_soon(relayed.backend.send, b"d" * 10 * MEGABYTE)
        both.start_soon(read_exactly, relayed.client, 10 * MEGABYTE)
        await read_exactly(relayed.backend, 10 * MEGABYTE)


async def test_now_is_now(bench, relayed):
    await relayed.client.send(b"question")
    assert await read_exactly(relayed.backend, 8) == b"question"
    bench.relay.end(relayed.session, Wish(Ending("shutdown", "the proxy ends"), When.NOW))
    with pytest.raises(LegLost):
        await relayed.client.receive(100)
    assert (await relayed.ended()).kind == "shutdown"


async def test_an_exception_in_the_thread_ends_its_session_alone(bench, relayed, monkeypatch):
    other = await bench.session()
    original = RelaySession.source_ended

    def broken(session, direction):
        if direction.octets == 4:
            raise RuntimeError("made to fail")
        original(session, direction)

    monkeypatch.setattr(RelaySession, "source_ended", broken)
    await relayed.client.send(b"boom")
    await relayed.client.send_eof()
    await relayed.over.wait()
    assert str(relayed.failure) == "made to fail"
    await other.client.send(b"on")
    assert await read_exactly(other.backend, 2) == b"on"


async def test_a_thread_that_ends_by_itself_is_no_secret(monkeypatch):
    with pytest.raises(ExceptionGroup) as caught:
        async with open_bench(LEGS["clear-clear"], "fast", monkeypatch) as bench:
            relayed = await bench.session()
            bench.relay._loop.post(lambda: 1 / 0)
            await relayed.over.wait()
            await trio.sleep_forever()
    assert caught.value.subgroup(RelayDied)


@pytest.mark.parametrize("requested", [False, True])
@pytest.mark.parametrize("is_bulk", [False, True])
@pytest.mark.parametrize("mode", MODES)
async def test_a_flood_of_key_updates_ends_its_own_session(monkeypatch, mode, is_bulk, requested):
    """In the middle of a bulk transfer, too, where memory stands between OpenSSL and the socket."""
    async with open_bench(LEGS["clear-clear"], mode, monkeypatch) as bench:
        other = await bench.session()
        ours, theirs = sockets()
        theirs.setblocking(True)
        made = {}

        def shake_hands():
            _, made["sender"] = key_updates.handshake(theirs, SSL.Context(SSL.TLS_METHOD))

        context = server_context(KeyPair((SERVER.certificate,), SERVER.key), None, TLSOptions())
        async with trio.open_nursery() as both:
            both.start_soon(trio.to_thread.run_sync, shake_hands)
            client_leg = await accept_tls(ours, context)
        flooded = bench.start(client_leg, ClearLeg(theirs), *await connection("clear", False))
        data = b"x" * 16_000
        records = b"".join(made["sender"].record(data) for _ in range(10 if is_bulk else 0))
        records += made["sender"].flood(30_000, requested=requested)

        def flood():
            with contextlib.suppress(OSError):
                theirs.sendall(records)

        async with trio.open_nursery() as both:
            both.start_soon(trio.to_thread.run_sync, flood)
            both.start_soon(read_to_the_break, flooded.backend)
            for _ in range(100):
                await other.client.send(b"ping")
                assert await read_exactly(other.backend, 4) == b"ping"
            await flooded.over.wait()
        assert flooded.end.kind == "tls_abuse"


async def read_to_the_break(leg):
    with contextlib.suppress(LegLost):
        while await leg.receive(65536):
            pass


class Polls:
    """Counts how often the thread has looked for events."""

    def __init__(self, monkeypatch):
        self.count = 0
        original = Moments.seconds_to_next

        def counted(moments):
            self.count += 1
            return original(moments)

        monkeypatch.setattr(Moments, "seconds_to_next", counted)


async def test_the_thread_sleeps_when_there_is_nothing_to_do(monkeypatch):
    """After a bulk transfer that was followed by small messages, by silence, or by a reset."""
    polls = Polls(monkeypatch)
    async with open_bench(LEGS["tls-tls"], "fast", monkeypatch) as bench:
        for number in range(3):
            relayed = await bench.session()
            async with trio.open_nursery() as both:
                both.start_soon(relayed.backend.send, b"x" * MEGABYTE)
                await read_exactly(relayed.client, MEGABYTE)
            for _ in range(20 if number == 0 else 0):
                await relayed.client.send(b"ping")
                await read_exactly(relayed.backend, 4)
            if number == 2:
                relayed.client.abort()
            before = polls.count
            await trio.sleep(2.5)  # longer than the look for silent sessions takes
            assert polls.count - before < 20


async def test_a_wake_up_that_comes_late_is_read_all_the_same(monkeypatch):
    polls = Polls(monkeypatch)
    async with open_bench(LEGS["clear-clear"], "fast", monkeypatch) as bench:
        loop = bench.relay._loop
        for _ in range(100):
            loop.post(lambda: os.eventfd_write(loop._wake, 1))
        await trio.sleep(0.1)
        before = polls.count
        await trio.sleep(0.5)
        assert polls.count - before < 20


async def test_a_session_that_is_over_leaves_nothing_to_the_garbage_collector(monkeypatch):
    """Most of what it would keep is OpenSSL's, of whose size the collector knows nothing."""
    async with open_bench(LEGS["tls-tls"], "fast", monkeypatch) as bench:
        gc.disable()
        try:
            relayed = await bench.session()
            legs = [weakref.ref(leg) for leg in (relayed.session.client_leg, relayed.session.backend_leg)]
            await relayed.client.send_eof()
            await relayed.backend.send_eof()
            await relayed.over.wait()
            relayed.session = None
            thread_has_gone_on = threading.Event()
            bench.relay._loop.post(thread_has_gone_on.set)
            await trio.to_thread.run_sync(thread_has_gone_on.wait)
            assert [leg() for leg in legs] == [None, None]
        finally:
            gc.enable()


async def test_an_answer_that_takes_longer_than_the_half_close_is_delivered_whole(bench, monkeypatch):
    monkeypatch.setattr(relay_session, "HALF_CLOSE_SECONDS", 0.3)
    relayed = await bench.session()
    await relayed.client.send(b"question")
    await relayed.client.send_eof()
    assert await read_to_end(relayed.backend) == b"question"
    for number in range(12):
        await relayed.backend.send(bytes([number]))
        assert await read_exactly(relayed.client, 1) == bytes([number])
        await trio.sleep(0.1)
    await relayed.backend.send_eof()
    assert await read_to_end(relayed.client) == b""
    assert (await relayed.ended()).kind == "ok"


async def test_an_answer_that_never_comes_is_cut_off_and_not_ended(bench, monkeypatch):
    monkeypatch.setattr(relay_session, "HALF_CLOSE_SECONDS", 0.3)
    relayed = await bench.session()
    await relayed.client.send(b"question")
    await relayed.client.send_eof()
    await relayed.backend.send(b"half an ans")
    assert await read_exactly(relayed.client, 11) == b"half an ans"
    with pytest.raises(LegLost):
        while True:
            assert await relayed.client.receive(100), "an answer that was cut off was given a clean end"


async def test_what_only_looks_like_terminate_costs_nobody_the_answer(bench, monkeypatch):
    monkeypatch.setattr(relay_session, "TERMINATED_SECONDS", 0.2)
    relayed = await bench.session()
    await relayed.client.send(b"data that ends with X\x00\x00\x00\x04")
    await relayed.client.send_eof()
    assert await read_to_end(relayed.backend) == b"data that ends with X\x00\x00\x00\x04"
    await relayed.backend.send(b"answer")
    await relayed.backend.send_eof()
    assert await read_to_end(relayed.client) == b"answer"


async def test_a_backend_that_is_gone_while_the_client_does_not_read_is_named(bench, monkeypatch):
    monkeypatch.setattr(relay_session, "PAUSED_SECONDS", 0.3)
    relayed = await bench.session(buffer_octets=4096)
    with trio.move_on_after(0.5):
        await relayed.backend.send(b"x" * 10 * MEGABYTE)
    relayed.backend.abort()
    end = await relayed.ended()
    assert (end.kind, "backend" in end.reason) == ("backend_lost", True)


async def test_what_is_dropped_is_not_counted(bench):
    relayed = await bench.session()
    await relayed.client.send(b"q" * 1000)
    assert await read_exactly(relayed.backend, 1000) == b"q" * 1000
    relayed.backend.sock.shutdown(socket.SHUT_RD)
    await relayed.backend.send(b"FATAL")
    await relayed.backend.send_eof()
    relayed.backend.close()
    with contextlib.suppress(LegLost):
        for _ in range(50):
            await relayed.client.send(b"q" * 10_000)
    relayed.client.close()
    assert (await relayed.ended()).bytes_from_client < 450_000


async def test_a_session_that_comes_after_the_threads_end_is_refused(monkeypatch):
    late = []
    with pytest.raises(ExceptionGroup):
        async with open_bench(LEGS["clear-clear"], "fast", monkeypatch) as bench:
            bench.relay._loop.post(lambda: 1 / 0)
            with trio.CancelScope(shield=True):
                await bench.relay._has_ended.wait()
                late.append(await bench.session())
                await late[0].over.wait()
    assert isinstance(late[0].failure, RelayDied)


async def test_last_words_outlive_an_answer_of_openssl_that_cannot_be_sent(monkeypatch):
    async with open_bench(LEGS["tls-tls"], "fast", monkeypatch) as bench:
        leg, peer = await connection("TLSv1.3", False)
        raw = raw_leg(leg, bench.relay._loop.buffers)
        raw.buffer()
        await peer.send(b"FATAL")
        await trio.lowlevel.wait_readable(leg.sock)

        def broken(_leg):
            raise LegLost("Broken pipe")

        monkeypatch.setattr(RawFastTLS, "flush", broken)
        assert raw.receive(16384) == 5
        assert bench.relay._loop.buffers.plain[:5] == b"FATAL"
        leg.close()
        peer.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["TLSv1.3", "TLSv1.2"])
async def test_what_openssl_has_decrypted_already_needs_no_event(monkeypatch, kind, mode):
    """The rest of a record of which the login has read the beginning: no socket announces it."""
    async with open_bench(("clear", kind), mode, monkeypatch) as bench:
        client_leg, client = await connection(kind, True)
        backend_leg, backend = await connection(kind, False)
        await client.send(b"startupquestion")
        assert await client_leg.receive(7) == b"startup"
        await backend.send(b"readynotice")
        assert await backend_leg.receive(5) == b"ready"
        bench.start(client_leg, client, backend_leg, backend)
        assert await read_exactly(backend, 8) == b"question"
        assert await read_exactly(client, 6) == b"notice"


@pytest.mark.parametrize("legs", ["clear-clear", "tls-tls"])
async def test_a_reset_of_a_side_that_is_not_being_read_is_no_work(monkeypatch, legs):
    """It is told once, not for as long as the other side lets it wait."""
    polls = Polls(monkeypatch)
    async with open_bench(LEGS[legs], "fast", monkeypatch) as bench:
        relayed = await bench.session(buffer_octets=4096)
        with trio.move_on_after(0.5):
            await relayed.backend.send(b"x" * 10 * MEGABYTE)
        relayed.backend.abort()
        await trio.sleep(0.1)
        before = polls.count
        await trio.sleep(0.5)
        assert polls.count - before < 20
