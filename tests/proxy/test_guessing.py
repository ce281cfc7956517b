"""Guesses get slower for whoever makes them, and for nobody else."""

import math

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from pgtlsproxy.errors import ShuttingDown
from pgtlsproxy.protocol.scram.server import WrongProof
from pgtlsproxy.proxy import guessing
from pgtlsproxy.proxy.guessing import Guesses, TooManyGuesses, delay

HERE, THERE = "192.0.2.1", "192.0.2.2"
SLOW = 20
"""Failures after which the delay is the longest."""


@pytest.fixture
def autojump_clock():
    return MockClock(autojump_threshold=0)


async def guess(guesses, *, right=False, source=HERE, user="alice"):
    """One login; the seconds that it waited."""
    with guesses.of(source, user) as login:
        await login.turn()
        if right:
            login.right()
        else:
            login.wrong()
    return login.waited


async def fail(guesses, times=SLOW, **whose):
    return [await guess(guesses, **whose) for _ in range(times)]


def test_delays_double_from_the_fifth_failure_to_the_longest():
    delays = [delay(failures) for failures in range(12)]
    assert delays == [0, 0, 0, 0, 0, 0.25, 0.5, 1, 2, 4, 8, 8]
    assert delay(10**9) == guessing.LONGEST_DELAY


async def test_each_guess_waits_for_the_failures_before_it(autojump_clock):
    guesses = Guesses()
    waited = await fail(guesses, 12)
    assert waited == pytest.approx([0, 0, 0, 0, 0, 0.25, 0.5, 1, 2, 4, 8, 8])


async def test_who_waits_himself_is_not_delayed_again(autojump_clock):
    guesses = Guesses()
    await fail(guesses)
    await trio.sleep(guessing.LONGEST_DELAY - 1)
    assert await guess(guesses) == pytest.approx(1)


async def test_a_success_ends_it(autojump_clock):
    guesses = Guesses()
    await fail(guesses)
    await guess(guesses, right=True)
    assert await fail(guesses, 5) == [0] * 5


@pytest.mark.parametrize("other", [{"source": THERE}, {"user": "bob"}])
async def test_nobody_else_waits(autojump_clock, other):
    guesses = Guesses()
    await fail(guesses)
    async with trio.open_nursery() as nursery:
        for _ in range(guessing.MOST_WAITING):
            nursery.start_soon(guess, guesses)
        await wait_all_tasks_blocked()
        assert await fail(guesses, 5, **other) == [0] * 5
        assert await guess(guesses, right=True, **other) > 0
        nursery.cancel_scope.cancel()


async def test_guesses_in_parallel_are_no_quicker(autojump_clock):
    """Each is judged alone, and behind the delay of the one before; 16 take as long as one after the other."""
    guesses = Guesses()
    await fail(guesses)
    since = trio.current_time()
    judged = []

    async def one():
        with guesses.of(HERE, "alice") as login:
            await login.turn()
            judged.append(trio.current_time() - since)
            await trio.sleep(1)
            login.wrong()

    async with trio.open_nursery() as nursery:
        for _ in range(16):
            nursery.start_soon(one)
    step = guessing.LONGEST_DELAY
    assert judged == pytest.approx([step + turn * (step + 1) for turn in range(16)])


async def test_whoever_has_not_failed_is_judged_with_many_at_once(autojump_clock):
    """A pool opens as fast as it can; a crowd that guesses in parallel has so many guesses and then one at a time."""
    guesses = Guesses()
    under_way = 0
    most = 0

    async def one(outcome):
        nonlocal under_way, most
        with guesses.of(HERE, "alice") as login:
            await login.turn()
            under_way += 1
            most = max(most, under_way)
            await trio.sleep(1)
            under_way -= 1
            getattr(login, outcome)()

    for outcome, seconds in (("right", 2), ("unknown", 2)):
        since = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(2 * guessing.AT_ONCE):
                nursery.start_soon(one, outcome)
        assert most == guessing.AT_ONCE
        assert trio.current_time() - since == pytest.approx(seconds)
    with trio.move_on_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(2 * guessing.AT_ONCE):
                nursery.start_soon(one, "wrong")
            await trio.sleep(1.5)
            most = 0
    assert most == 1


async def test_the_first_right_one_lets_all_that_wait_go_on(autojump_clock):
    guesses = Guesses()
    await fail(guesses)
    since = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(lambda: guess(guesses, right=True))
    assert trio.current_time() - since == pytest.approx(guessing.LONGEST_DELAY)


async def test_one_that_nobody_judged_counts_neither_way(autojump_clock):
    """The client or the backend has gone, or the login's deadline has passed."""
    guesses = Guesses()
    await fail(guesses, 6)
    with guesses.of(HERE, "alice") as login:
        await login.turn()
    assert await guess(guesses) == 0  # it has waited already
    assert await guess(guesses) == pytest.approx(delay(7))


async def test_a_wrong_proof_is_a_wrong_guess(autojump_clock):
    guesses = Guesses()
    for _ in range(5):
        with pytest.raises(WrongProof), guesses.of(HERE, "alice") as login:
            await login.turn()
            raise WrongProof("alice")
    assert await guess(guesses) == pytest.approx(0.25)


async def test_what_ends_before_its_turn_is_no_guess(autojump_clock):
    """psql asks, hangs up, and comes back with a password."""
    guesses = Guesses()
    for _ in range(20):
        with guesses.of(HERE, "alice"):
            pass
    assert await fail(guesses, 5) == [0] * 5


async def test_a_login_that_waits_is_cancelled_at_once(autojump_clock):
    guesses = Guesses()
    await fail(guesses)
    since = trio.current_time()
    for _ in range(3):
        with trio.move_on_after(1) as scope:
            await guess(guesses, right=True)
        assert scope.cancelled_caught
    assert trio.current_time() - since == pytest.approx(3)
    assert await guess(guesses) == pytest.approx(guessing.LONGEST_DELAY - 3)


async def test_a_worker_that_ends_lets_nobody_wait(autojump_clock):
    guesses = Guesses()
    await fail(guesses)
    ended = []

    async def one():
        with pytest.raises(ShuttingDown):
            await guess(guesses, right=True)
        ended.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(one)
        await wait_all_tasks_blocked()
        now = trio.current_time()
        guesses.close()
    assert ended == [now] * 3
    await one()
    assert await guess(guesses, right=True, user="bob") == 0


async def test_those_beyond_the_most_that_wait_are_refused_unjudged(autojump_clock):
    guesses = Guesses()
    await fail(guesses)
    async with trio.open_nursery() as nursery:
        for _ in range(guessing.MOST_WAITING):
            nursery.start_soon(guess, guesses)
        await wait_all_tasks_blocked()
        with pytest.raises(TooManyGuesses) as refused, guesses.of(HERE, "alice") as login:
            await login.turn()
        nursery.cancel_scope.cancel()
    assert refused.value.sqlstate == "28P01"
    assert refused.value.reply == WrongProof("alice").reply
    assert await guess(guesses) == pytest.approx(guessing.LONGEST_DELAY)  # and not counted


async def test_failures_are_forgotten_in_time(autojump_clock):
    guesses = Guesses()
    await fail(guesses)
    await trio.sleep(guessing.REMEMBERED_SECONDS + 1)
    assert await fail(guesses, 5) == [0] * 5


async def test_waiting_to_be_forgotten_makes_no_more_guesses():
    """As many at once as a pair without failures has, and a few more, against one after the other."""
    growing = math.log2(guessing.LONGEST_DELAY / guessing.FIRST_DELAY)
    quick = guessing.AT_ONCE + guessing.FREE_FAILURES + growing
    assert quick < guessing.REMEMBERED_SECONDS / guessing.LONGEST_DELAY


async def test_what_is_over_is_not_remembered(autojump_clock):
    guesses = Guesses()
    for number in range(1000):
        await guess(guesses, right=True, source=str(number))
    assert len(guesses) == 0
    await fail(guesses)
    assert len(guesses) > 0
    await guess(guesses, right=True)
    assert len(guesses) == 0


async def test_a_source_that_tries_many_users_slows_itself_down_and_forgets_nobody(autojump_clock):
    """Its own counter is not to be pushed out by others: they share one, which a success does not reset."""
    guesses = Guesses()
    await fail(guesses)
    for number in range(guessing.USERS_A_SOURCE):
        await guess(guesses, user=f"user {number}")
    sprayed = [await guess(guesses, user=f"another {number}") for number in range(20)]
    assert sprayed[-1] == guessing.LONGEST_DELAY
    assert len(guesses) == guessing.USERS_A_SOURCE + 1
    await guess(guesses, user="mallory", right=True)
    await guess(guesses, user="another 1")
    assert await guess(guesses, user="another 2") == guessing.LONGEST_DELAY
    assert await guess(guesses, source=THERE, user="another 1") == 0


async def test_users_of_sources_that_are_known_are_bounded_too(autojump_clock, monkeypatch):
    monkeypatch.setattr(guessing, "MOST_PAIRS", 50)
    guesses = Guesses()
    for user in range(20):
        for source in range(10):
            await guess(guesses, source=str(source), user=str(user))
            assert len(guesses) <= 50 + 20


@pytest.mark.parametrize(("sqlstate", "was_given", "is_wrong"), [
    ("28P01", True, True), ("28000", True, True), ("08P01", True, True), ("08P01", False, False), ("53300", True, False),
])  # fmt: skip
def test_what_a_backend_says_of_a_wrong_password_is_known_poolers_included(sqlstate, was_given, is_wrong):
    assert guessing.says_wrong_password(sqlstate, was_given=was_given) is is_wrong


async def test_counters_are_bounded_and_the_oldest_go_first(autojump_clock, monkeypatch):
    monkeypatch.setattr(guessing, "MOST_PAIRS", 100)
    guesses = Guesses()
    await fail(guesses)
    for number in range(500):
        await guess(guesses, source=f"10.0.0.{number}")
        if number % 20 == 0:
            assert await guess(guesses) > 0  # it goes on guessing, and so it is not the oldest
        assert len(guesses) <= 102
    for number in range(100):
        await guess(guesses, source=f"10.0.1.{number}")
    assert await guess(guesses) == 0


OUTCOMES = st.sampled_from(["right", "wrong", "unknown", "cancelled"])


@given(st.lists(st.tuples(OUTCOMES, st.integers(0, 3), st.integers(0, 90)), max_size=60))
@settings(deadline=None, max_examples=50)
def test_nothing_is_left_behind_whatever_becomes_of_a_login(steps):
    """Beyond what has failed, for as long as it is remembered."""

    async def run():
        guesses = Guesses()

        async def one(outcome, user):
            patience = 5 if outcome == "cancelled" else 1e6
            with guesses.of(HERE, f"user {user}") as login, trio.move_on_after(patience):
                await login.turn()
                await trio.sleep(10)
                if outcome != "cancelled":
                    getattr(login, outcome)()

        async with trio.open_nursery() as nursery:
            for outcome, user, pause in steps:
                nursery.start_soon(one, outcome, user)
                await trio.sleep(pause)
        await trio.sleep(guessing.REMEMBERED_SECONDS + 1)
        for user in range(4):
            await guess(guesses, user=f"user {user}", right=True)
        assert len(guesses) == 0

    trio.run(run, clock=MockClock(autojump_threshold=0))
