"""The relay: every byte once, ends as what they were, and a peer that stops reading stops the other."""

import random
import socket

import pytest
import trio
import trio.testing

from pgtlsproxy.identity import Proof, ProofKind
from pgtlsproxy.proxy.relay import Traffic, relay
from pgtlsproxy.proxy.stages import BackendAddress, LoggedIn
from pgtlsproxy.tls.stream import ClearLeg


def connection():
    """What the relay gets, and the peer that the test plays."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        peer = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
    for sock in (peer, ours):
        sock.setblocking(False)
    return ClearLeg(ours), ClearLeg(peer)


class Relayed:
    """A session under way, with the test at both ends."""

    def __init__(self, unread_from_client=b"", unread_from_backend=b""):
        client_leg, self.client = connection()
        backend_leg, self.backend = connection()
        self.traffic = Traffic()
        self.end = None
        self.session = LoggedIn(
            client_leg=client_leg,
            backend_leg=backend_leg,
            proof=Proof(ProofKind.CERTIFICATE, "alice", "CN=alice"),
            backend=None,
            backend_address=BackendAddress("db", 5432, "127.0.0.1"),
            cancel_key=None,
            unread_from_client=unread_from_client,
            unread_from_backend=unread_from_backend,
        )

    async def run(self):
        try:
            self.end = await relay(self.session, self.traffic)
        finally:
            self.session.client_leg.close()
            self.session.backend_leg.close()

    def close(self):
        self.client.close()
        self.backend.close()


@pytest.fixture
async def nursery():
    with trio.fail_after(30):
        async with trio.open_nursery() as opened:
            yield opened
            opened.cancel_scope.cancel()


@pytest.fixture
async def relayed(nursery):
    started = Relayed()
    nursery.start_soon(started.run)
    yield started
    started.close()


async def all_of(leg):
    received = b""
    while data := await leg.receive(65536):
        received += data
    return received


async def ended(relayed):
    while relayed.end is None:
        await trio.testing.wait_all_tasks_blocked(0.01)
    return relayed.end


async def test_what_was_read_before_the_hand_over_comes_first(nursery):
    started = Relayed(b"from the client, ", b"from the backend, ")
    nursery.start_soon(started.run)
    await started.client.send(b"and more")
    await started.backend.send(b"and more")
    assert (
        await started.backend.receive(100) + await started.backend.receive(100)
        == b"from the client, and more"
    )
    assert (await started.client.receive(100)).startswith(b"from the backend, ")
    started.close()


async def test_random_traffic_both_ways_arrives_once_and_in_order(relayed):
    numbers = random.Random(1)
    sent = [numbers.randbytes(2_000_000) for _ in range(2)]
    received = {}

    async def send(leg, data):
        while data:
            size = numbers.choice((1, 5, 100, 8192, 16384, 16385, 200_000))
            await leg.send(data[:size])
            data = data[size:]

    async def read(name, leg):
        received[name] = b""
        while len(received[name]) < len(sent[0]):
            received[name] += await leg.receive(numbers.choice((1000, 16384, 100_000)))

    async with trio.open_nursery() as both:
        both.start_soon(send, relayed.client, sent[0])
        both.start_soon(send, relayed.backend, sent[1])
        both.start_soon(read, "backend", relayed.backend)
        both.start_soon(read, "client", relayed.client)
    assert received == {"backend": sent[0], "client": sent[1]}
    assert (relayed.traffic.from_client, relayed.traffic.from_backend) == (len(sent[0]), len(sent[1]))


async def test_a_client_that_half_closes_still_gets_its_answer(relayed):
    await relayed.client.send(b"question")
    await relayed.client.send_eof()
    assert await all_of(relayed.backend) == b"question"
    await relayed.backend.send(b"answer")
    await relayed.backend.send_eof()
    assert await all_of(relayed.client) == b"answer"
    end = await ended(relayed)
    assert (end.kind, end.reason) == ("ok", "the client closed the session")
    assert (end.bytes_from_client, end.bytes_from_backend) == (8, 6)


async def test_the_backends_last_words_reach_a_client_that_is_still_talking(relayed):
    await relayed.client.send(b"q" * 100_000)
    await relayed.backend.send(b"FATAL: terminating connection")
    relayed.backend.sock.shutdown(socket.SHUT_WR)
    assert await all_of(relayed.client) == b"FATAL: terminating connection"
    await relayed.client.send(b"more")
    relayed.client.close()
    assert (await ended(relayed)).reason == "the backend closed the session"


async def test_last_words_arrive_even_where_the_backend_refuses_to_read(relayed):
    await relayed.backend.send(b"FATAL: terminating connection")
    relayed.backend.close()
    await relayed.client.send(b"question")
    assert await all_of(relayed.client) == b"FATAL: terminating connection"


async def test_a_reset_of_the_client_is_passed_on_as_one(relayed):
    await relayed.client.send(b"half a message")
    assert await relayed.backend.receive(100) == b"half a message"
    relayed.client.abort()
    with pytest.raises(ConnectionResetError):
        while True:
            await trio.lowlevel.wait_readable(relayed.backend.sock)
            assert relayed.backend.sock.recv(100) != b"", "a broken session was given a clean end"
    assert (await ended(relayed)).kind == "client_lost"


async def test_a_reset_of_the_backend_is_passed_on_as_one(relayed):
    await relayed.backend.send(b"half a message")
    assert await relayed.client.receive(100) == b"half a message"
    relayed.backend.abort()
    with pytest.raises(ConnectionResetError):
        while True:
            await trio.lowlevel.wait_readable(relayed.client.sock)
            assert relayed.client.sock.recv(100) != b"", "a broken session was given a clean end"
    assert (await ended(relayed)).kind == "backend_lost"


@pytest.mark.parametrize("side", ["client", "backend"])
async def test_a_peer_that_does_not_read_stops_the_other(relayed, side):
    reader, writer = (
        (relayed.client, relayed.backend) if side == "client" else (relayed.backend, relayed.client)
    )
    sent = 0
    with trio.move_on_after(1) as scope:
        while sent < 64_000_000:
            await writer.send(b"x" * 65536)
            sent += 65536
    assert scope.cancelled_caught, "the relay queued what nobody reads"
    assert reader.sock.recv(5) == b"xxxxx"


async def test_a_cut_session_is_broken_at_both_ends_and_its_traffic_is_known():
    started = Relayed()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(started.run)
        await started.client.send(b"hello")
        assert await started.backend.receive(100) == b"hello"
        nursery.cancel_scope.cancel()
    assert started.end is None
    assert started.traffic.from_client == 5
    for leg in (started.client, started.backend):
        with pytest.raises(ConnectionResetError):
            leg.sock.recv(1)
    started.close()


async def test_two_sessions_never_see_each_others_bytes(nursery):
    many = [Relayed() for _ in range(8)]
    received = {}

    async def drive(number, one):
        nursery.start_soon(one.run)
        async with trio.open_nursery() as both:
            both.start_soon(one.backend.send, bytes([number]) * 500_000)
            both.start_soon(read, number, one)

    async def read(number, one):
        data = b""
        while len(data) < 500_000:
            data += await one.client.receive(random.choice((1, 777, 16384)))
        received[number] = set(data)

    async with trio.open_nursery() as all_of_them:
        for number, one in enumerate(many):
            all_of_them.start_soon(drive, number, one)
    for one in many:
        one.close()
    assert received == {number: {number} for number in range(8)}
