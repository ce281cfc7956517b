"""Bulk transfers take their turns: small messages of many other sessions pass while they go on."""

import contextlib

import pytest
import trio

from fixtures.relayed import LEGS, open_bench, read_exactly
from pgtlsproxy.tls.stream import LegLost

TRANSFERS, SESSIONS, MESSAGES = 4, 50, 10
CHUNK = b"x" * 131_072


@pytest.fixture(params=["clear-clear", "tls-tls"])
async def bench(request, monkeypatch):
    async with open_bench(LEGS[request.param], "fast", monkeypatch) as opened:
        yield opened


@pytest.mark.parametrize("writer", ["client", "backend"])
async def test_small_messages_pass_while_four_transfers_go_on(bench, writer):
    transfers = [await bench.session() for _ in range(TRANSFERS)]
    sessions = [await bench.session() for _ in range(SESSIONS)]
    carried = [0] * TRANSFERS

    async def write(leg):
        with contextlib.suppress(LegLost):
            while True:
                await leg.send(CHUNK)

    async def read(number, leg):
        with contextlib.suppress(LegLost):
            while data := await leg.receive(len(CHUNK)):
                carried[number] += len(data)

    async def ask(session):
        for number in range(MESSAGES):
            question = b"%d" % number * 20
            await session.client.send(question)
            assert await read_exactly(session.backend, len(question)) == question
            await session.backend.send(question)
            assert await read_exactly(session.client, len(question)) == question

    async with trio.open_nursery() as transferring:
        for number, transfer in enumerate(transfers):
            ends = {"client": transfer.client, "backend": transfer.backend}
            transferring.start_soon(write, ends.pop(writer))
            transferring.start_soon(read, number, *ends.values())
        before = list(carried)
        async with trio.open_nursery() as asking:
            for session in sessions:
                asking.start_soon(ask, session)
        assert all(now > then for now, then in zip(carried, before, strict=True)), "none of them starves"
        transferring.cancel_scope.cancel()
