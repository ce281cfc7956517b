"""Limits over all workers: none lets one too many in, and the oldest goes whichever worker has it."""

import itertools
import os
from types import SimpleNamespace

import pytest
import trio

from pgtlsproxy.errors import Displaced, ShuttingDown, TooManyConnections
from pgtlsproxy.identity import Secret
from pgtlsproxy.proxy import admission, shared_table
from pgtlsproxy.proxy.admission import Admission
from pgtlsproxy.proxy.shared_table import Count, SharedTable, Tag, WorkerSlot

LIMITS = SimpleNamespace(
    max_connections=3, pending_limit=4, max_connections_per_source=0, max_connections_per_user=0
)


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
    """`time.monotonic()` of both modules, 10 ms later with every look."""
    moments = (1000 + number / 100 for number in itertools.count())
    clock = SimpleNamespace(monotonic=lambda: next(moments))
    monkeypatch.setattr(admission, "time", clock)
    monkeypatch.setattr(shared_table, "time", clock)
    return clock


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


async def test_the_oldest_go_whichever_worker_has_them(workers, crowd):
    one, two = workers
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
        seat.take_session("10.0.0.1")
    late = one.seat(LIMITS)
    with pytest.raises(TooManyConnections, match="max_connections"):
        late.take_session("10.0.0.2")
    late.leave()
    seats[1].leave()
    one.seat(LIMITS).take_session("10.0.0.1")
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


def limited(**limits):
    return SimpleNamespace(**vars(LIMITS) | {"max_connections": 100} | limits)


def take_of(source):
    return lambda seat: seat.take_session(source)


def take_as(listener, identity, role="app"):
    return lambda seat: seat.take_user(listener, identity, role)


@pytest.mark.parametrize(
    ("key", "kind", "one_too_many", "others"),
    [
        (
            "max_connections_per_source",
            Tag.SOURCE,
            take_of("10.0.0.1"),
            [take_of("10.0.0.2"), take_of("uid 5")],
        ),
        (
            "max_connections_per_user",
            Tag.USER,
            take_as("main", "CN=alice"),
            [take_as("main", "CN=bob"), take_as("other", "CN=alice")],
        ),
    ],
)
def test_one_source_or_user_has_as_many_as_it_may_over_all_workers(workers, key, kind, one_too_many, others):
    one, two = workers
    limits = limited(**{key: 3})
    held = [worker.seat(limits) for worker in (one, two, two)]
    for seat in held:
        one_too_many(seat)
    for worker in workers:
        late = worker.seat(limits)
        with pytest.raises(TooManyConnections, match=key) as refused:
            one_too_many(late)
        late.leave()
        for take in others:
            take(other := worker.seat(limits))
            other.leave()
    if kind is Tag.USER:
        assert refused.value.reply == 'too many connections for role "app"'
    held[1].leave()
    again = one.seat(limits)
    one_too_many(again)
    for seat in (held[0], held[2], again):
        seat.leave()
    assert [one.slot.total(count) for count in Count] == [0, 0, 0, 0]


def test_who_is_proved_twice_is_counted_once(workers):
    limits = limited(max_connections_per_user=1)
    seat = workers[0].seat(limits)
    take_as("main", "CN=alice")(seat)
    slot = workers[1].slot
    index = slot.publish(Tag.USER, slot.user_tag("main", "CN=alice"))  # another one, before it is judged
    take_as("main", "CN=alice")(seat)
    slot.withdraw(Tag.USER, index)
    with pytest.raises(TooManyConnections):
        take_as("main", "CN=alice")(workers[1].seat(limits))


async def test_a_worker_that_hangs_has_nobody_elses_place(workers, crowd, clock, monkeypatch):
    """What it was told it will do when it goes on."""
    one, two = workers
    await crowd.come(two, 4)
    told = []
    monkeypatch.setattr(one, "_displace_at", lambda number, _: told.append(number))
    await crowd.come(one, 2)
    assert (told, crowd.who_went()) == ([2, 2], [])
    now = clock.monotonic() + shared_table.HUNG_SECONDS
    clock.monotonic = lambda: now
    await crowd.come(one, 5)
    assert (told, crowd.who_went()) == ([2, 2], [4, 5, 6])
    two.slot.beat()
    await crowd.come(one, 1)
    assert told == [2, 2, 2]
