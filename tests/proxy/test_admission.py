"""Limits over all workers: none lets one too many in, and the oldest goes whichever worker has it."""

import os
from types import SimpleNamespace

import pytest
import trio

from pgtlsproxy.errors import Displaced, ShuttingDown, TooManyConnections
from pgtlsproxy.identity import Secret
from pgtlsproxy.proxy import admission
from pgtlsproxy.proxy.admission import Admission
from pgtlsproxy.proxy.shared_table import Count, SharedTable, WorkerSlot

LIMITS = SimpleNamespace(max_connections=3, pending_limit=4)


@pytest.fixture
def table():
    made = SharedTable(2)
    yield made
    made.words.release()
    made.octets.close()
    os.close(made.descriptor)


@pytest.fixture
def workers(table):
    """Two, of which each tells the other at once."""
    made = []
    for number in (1, 2):
        slot = WorkerSlot(table, number, Secret(b"s" * 32))
        made.append(Admission(slot, lambda number, limit: made[number - 1].displace(limit)))
    return made


@pytest.fixture
def clock(monkeypatch):
    """`time.monotonic()` of the module, a second later with every look."""
    moments = iter(range(1000, 10_000))
    monkeypatch.setattr(admission, "time", SimpleNamespace(monotonic=lambda: next(moments)))


class Crowd:
    """Connections that prove nothing, in the order in which they came."""

    def __init__(self, nursery):
        self._nursery = nursery
        self.came = []
        self.gone = []

    async def come(self, worker, count=1):
        for _ in range(count):
            seat = worker.seat(LIMITS)
            self.came.append(seat)
            self._nursery.start_soon(self._wait, seat)
            await trio.testing.wait_all_tasks_blocked()

    async def _wait(self, seat):
        try:
            with seat.until_let_in():
                await trio.sleep_forever()
        except Displaced:
            self.gone.append(seat)
            seat.leave()

    def who_went(self):
        return sorted(self.came.index(seat) for seat in self.gone)


@pytest.fixture
async def crowd(nursery, clock):
    return Crowd(nursery)


def unproven(workers):
    return workers[0].slot.total(Count.UNPROVEN)


async def test_the_oldest_of_a_lone_worker_go(workers, crowd):
    await crowd.come(workers[0], 6)
    assert crowd.who_went() == [0, 1]
    assert unproven(workers) == 4


async def test_the_oldest_go_whichever_worker_has_them(workers, crowd, monkeypatch):
    one, two = workers
    monkeypatch.setattr("pgtlsproxy.proxy.shared_table.time", admission.time)
    await crowd.come(two, 1)
    await crowd.come(one, 1)
    await crowd.come(two, 2)
    assert crowd.who_went() == []
    await crowd.come(one, 3)
    assert crowd.who_went() == [0, 1, 2]
    assert unproven(workers) == 4


async def test_whoever_is_proved_is_not_displaced_and_counted_as_unproven_no_more(workers, crowd):
    one, _ = workers
    await crowd.come(one, 2)
    crowd.came[0].proved()
    crowd.came[0].proved()
    assert unproven(workers) == 1
    await crowd.come(one, 4)
    assert crowd.who_went() == [1]


def test_sessions_are_limited_over_all_workers_and_one_that_leaves_makes_room(workers):
    one, two = workers
    seats = [one.seat(LIMITS), two.seat(LIMITS), two.seat(LIMITS)]
    for seat in seats:
        seat.take_session()
    late = one.seat(LIMITS)
    with pytest.raises(TooManyConnections, match="max_connections"):
        late.take_session()
    late.leave()
    seats[1].leave()
    one.seat(LIMITS).take_session()
    assert [one.slot.total(count) for count in Count] == [3, 3, 0, 0]


async def test_beyond_all_limits_nobody_is_heard_whichever_workers_have_them(workers, monkeypatch):
    monkeypatch.setattr(admission, "HARD_LIMIT_MARGIN", 1)
    one, two = workers
    for worker in (one, two, one, two, one, two, one, two):
        seat = worker.seat(LIMITS)
    with seat.until_let_in():
        pass
    with pytest.raises(Displaced, match="max_connections"), one.seat(LIMITS).until_let_in():
        pytest.fail("it was heard")


async def test_whoever_comes_while_a_worker_drains_is_turned_away_too(workers):
    """It was accepted already, or waited for what nobody can break off, when the others were."""
    one, _ = workers
    seats = [one.seat(LIMITS) for _ in range(2)]
    with pytest.raises(ShuttingDown, match="it drains"), seats[0].until_let_in():
        one.close("it drains")
        one.turn_away()
        seats[0].must_be_over_by(trio.current_time() + 10, "too late")
        await trio.sleep_forever()
    with pytest.raises(ShuttingDown, match="it drains"), seats[1].until_let_in():
        seats[1].must_be_over_by(trio.current_time() + 10, "too late")
        await trio.sleep_forever()


def test_a_worker_that_drains_lets_nobody_in(workers):
    one, two = workers
    one.close("it drains")
    two.check_open()
    with pytest.raises(ShuttingDown):
        one.check_open()
