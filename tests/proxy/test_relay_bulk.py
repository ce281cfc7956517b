"""Bulk transfers: begun by large reads, ended by small ones, whatever both directions do meanwhile."""

import trio

from fixtures.relayed import LEGS, open_bench, read_exactly
from pgtlsproxy.proxy import relay_loop
from pgtlsproxy.proxy.relay_bulk import LARGE_OCTETS, LARGES_TO_BEGIN, SMALLS_TO_END, BulkTransfers
from pgtlsproxy.proxy.relay_session import Pace
from pgtlsproxy.tls import raw


class Leg:
    unsent = b""
    has_more = False

    def buffer(self):
        pass

    def unbuffer(self):
        return True


class Session:
    """One whose every turn brings an octet."""

    ending = None

    def __init__(self):
        self.client, self.backend = Leg(), Leg()
        self.from_client, self.from_backend = Direction(self), Direction(self)
        self.from_client.reverse, self.from_backend.reverse = self.from_backend, self.from_client

    def step(self, _direction, _max_octets):
        return 1


class Direction:
    def __init__(self, session):
        self.session = session
        self.source = Leg()
        self.octets = 0
        self.octets_at_last_empty = 0
        self.pace = Pace()


def test_both_directions_may_find_that_a_transfer_is_over():
    bulk, session = BulkTransfers(), Session()
    for _ in range(LARGES_TO_BEGIN):
        session.from_backend.octets += LARGE_OCTETS
        bulk.note_large(session.from_backend, LARGE_OCTETS)
    assert session in bulk.sessions
    for _ in range(SMALLS_TO_END + 1):
        for direction in (session.from_backend, session.from_client):
            bulk.take_turn(direction)
    assert session not in bulk.sessions


async def test_a_client_that_is_silent_through_many_transfers_is_no_abuse(monkeypatch):
    monkeypatch.setattr(relay_loop, "SWEEP_SECONDS", 0.01)
    monkeypatch.setattr(raw, "FRUITLESS_READS", 5)
    async with open_bench(LEGS["tls-tls"], "fast", monkeypatch) as bench:
        relayed = await bench.session()
        bulk = bench.relay._loop._bulk
        for _ in range(20):
            for _ in range(LARGES_TO_BEGIN + 2):
                await relayed.backend.send(b"x" * 16_384)
                assert await read_exactly(relayed.client, 16_384) == b"x" * 16_384
            while bulk.sessions:  # noqa: ASYNC110 - the thread sets no event
                await trio.sleep(0.005)
