"""Handshakes begin a few in a row, in their order, and everything else has its turn in between."""

import trio
import trio.testing

from pgtlsproxy.proxy import handshakes
from pgtlsproxy.proxy.handshakes import Handshakes

AT_ONCE = 4
CROWD = 100
TICK = "tick"


async def begin_all(gate, happened, *, until_cancelled=()):
    """A crowd that comes at once, beside something else that wants its turn."""

    async def begin(number, scope):
        with scope:
            await gate.begin(AT_ONCE)
            happened.append(number)

    async def tick():
        while len([each for each in happened if each != TICK]) < CROWD - len(until_cancelled):
            happened.append(TICK)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for number in range(CROWD):
            scope = trio.CancelScope()
            nursery.start_soon(begin, number, scope)
            if number in until_cancelled:
                scope.cancel()
        nursery.start_soon(tick)


async def test_a_few_begin_in_each_turn(monkeypatch):
    monkeypatch.setattr(handshakes, "WINDOW_SECONDS", 1e9)
    happened = []
    await begin_all(Handshakes(), happened)
    in_a_row = [0]
    for each in happened:
        in_a_row = [*in_a_row, 0] if each == TICK else [*in_a_row[:-1], in_a_row[-1] + 1]
    # Tasks of a turn run in any order: those of two may follow each other.
    assert max(in_a_row) <= 2 * AT_ONCE
    assert sorted(each for each in happened if each != TICK) == list(range(CROWD))


async def test_whoever_waits_for_longest_is_next(monkeypatch):
    monkeypatch.setattr(handshakes, "WINDOW_SECONDS", 1e9)
    gate, begun = Handshakes(), []

    async def begin(number):
        await gate.begin(1)
        begun.append(number)

    async with trio.open_nursery() as nursery:
        for first in range(0, CROWD, 5):  # more come in a turn than begin
            for number in range(first, first + 5):
                nursery.start_soon(begin, number)
            await trio.lowlevel.checkpoint()
    assert [number // 5 for number in begun] == [number // 5 for number in range(CROWD)]


async def test_whoever_gives_up_holds_nobody_up(monkeypatch):
    monkeypatch.setattr(handshakes, "WINDOW_SECONDS", 1e9)
    happened = []
    left = set(range(10, 60))
    await begin_all(Handshakes(), happened, until_cancelled=left)
    begun = {each for each in happened if each != TICK}
    assert begun >= set(range(CROWD)) - left


async def test_whoever_comes_at_leisure_does_not_wait(monkeypatch):
    monkeypatch.setattr(handshakes, "WINDOW_SECONDS", 0.0)
    gate = Handshakes()
    for _ in range(CROWD):
        with trio.testing.assert_no_checkpoints():
            await gate.begin(1)
