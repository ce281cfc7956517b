"""What is remembered of verifiers that a backend was asked for: for how long, of how many, and who asks."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from pgtlsproxy.config import AuthQuery
from pgtlsproxy.errors import BackendUnavailable
from pgtlsproxy.identity import Secret
from pgtlsproxy.protocol.auth_query import RoleSecret
from pgtlsproxy.protocol.scram.keys import Verifier
from pgtlsproxy.protocol.scram.secrets import Listed, Secrets
from pgtlsproxy.proxy import auth_query, verifiers
from pgtlsproxy.proxy.auth_connection import Asked
from pgtlsproxy.proxy.auth_query import AskedVerifiers, AuthQueries, LookUpFailed
from pgtlsproxy.proxy.verifiers import Sources, Verifiers

OLD, NEW = (
    RoleSecret(Verifier(bytes([n]) * 16, 4096, Secret(bytes([n]) * 32), Secret(bytes(32)))) for n in (1, 2)
)
NONE = RoleSecret(None, lack="knows no role")


class Connection:
    """Gives answers in turn; the last one for ever."""

    def __init__(self, clock, *answers):
        self.clock = clock
        self.answers = list(answers)
        self.asked: list[str] = []
        self.gate = trio.Event()
        self.gate.set()
        self.failure = ""
        self.iterations = None

    def check_failure(self):
        if self.failure:
            raise BackendUnavailable(self.failure)

    async def ask(self, user):
        self.asked.append(user)
        asked_at = self.clock.seconds
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        await self.gate.wait()
        if isinstance(answer, Exception):
            raise answer
        return Asked(answer, asked_at)


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves; it stands still while one waits."""
    now = SimpleNamespace(seconds=1000.0)
    for module in (auth_query, verifiers):
        stopped = SimpleNamespace(monotonic=lambda: now.seconds, time=time.time)
        monkeypatch.setattr(module, "time", stopped)
    return now


def asked(clock, *answers, lifetime=60.0):
    connection = Connection(clock, *answers)
    return AskedVerifiers("b", lifetime, connection), connection


async def settled():
    await trio.testing.wait_all_tasks_blocked()


async def test_an_answer_is_believed_for_its_lifetime_and_not_longer(clock):
    source, connection = asked(clock, OLD, NEW)
    assert (await source.look("alice")).secret == OLD
    clock.seconds += 59
    assert (await source.look("alice")).secret == OLD
    clock.seconds += 1
    assert (await source.look("alice")).secret == NEW
    assert connection.asked == ["alice"] * 2


async def test_that_there_is_no_verifier_is_believed_for_a_second(clock):
    source, _ = asked(clock, NONE, OLD)
    await source.look("alice")
    clock.seconds += 0.9
    assert (await source.look("alice")).secret == NONE
    clock.seconds += 0.1
    assert (await source.look("alice")).secret == OLD


@pytest.mark.parametrize("lifetime", [0.0, 0.5])
async def test_with_a_shorter_lifetime_it_is_believed_no_longer(clock, lifetime):
    source, _ = asked(clock, NONE, OLD, lifetime=lifetime)
    await source.look("alice")
    clock.seconds += lifetime + 0.01
    assert (await source.look("alice")).secret == OLD


async def test_what_was_asked_before_is_not_good_enough_for_who_wants_it_fresh(clock):
    source, connection = asked(clock, OLD, NEW)
    await source.look("alice")
    clock.seconds += 1
    assert (await source.look("alice", not_before=clock.seconds)).secret == NEW
    assert (await source.look("alice", not_before=clock.seconds)).secret == NEW
    assert len(connection.asked) == 2


async def test_many_who_wait_for_one_user_are_one_question(clock):
    source, connection = asked(clock, OLD)
    connection.gate = trio.Event()
    found = []

    async def wait():
        found.append((await source.look("alice")).secret)

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(wait)
        await settled()
        connection.gate.set()
    assert (found, connection.asked) == ([OLD] * 100, ["alice"])


async def test_a_question_that_was_sent_too_early_is_waited_for_and_asked_again_once(clock):
    source, connection = asked(clock, OLD, NEW)
    connection.gate = trio.Event()
    found = []

    async def wait(not_before):
        found.append((await source.look("alice", not_before)).secret)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, float("-inf"))
        await settled()
        clock.seconds += 1
        for _ in range(10):
            nursery.start_soon(wait, clock.seconds)
        await settled()
        connection.gate.set()
    assert sorted(map(repr, found)) == sorted(map(repr, [OLD] + [NEW] * 10))
    assert len(connection.asked) == 2


async def test_who_waits_no_longer_leaves_the_question_to_the_others(clock):
    source, connection = asked(clock, OLD)
    connection.gate = trio.Event()
    with trio.move_on_after(0):
        await source.look("alice")
    connection.gate.set()
    await settled()
    assert source.last("alice").secret == OLD


@pytest.mark.parametrize(
    ("answer", "limit", "kept"), [(OLD, "REMEMBERED", "_known"), (NONE, "REMEMBERED_NONE", "_none")]
)
async def test_what_is_remembered_is_bounded_and_the_least_used_goes_first(
    clock, monkeypatch, answer, limit, kept
):
    monkeypatch.setattr(auth_query, limit, 3)
    source, _ = asked(clock, answer)
    for user in ("a", "b", "c", "a", "d"):
        await source.look(user)
    assert list(getattr(source, kept)) == ["c", "a", "d"]


async def test_a_crowd_that_nobody_knows_takes_no_known_users_place(clock, monkeypatch):
    monkeypatch.setattr(auth_query, "REMEMBERED", 2)
    source, connection = asked(clock, OLD, NONE)
    await source.look("alice")
    for number in range(1000):
        await source.look(f"nobody{number}")
    assert (await source.look("alice")).secret == OLD
    assert connection.asked.count("alice") == 1


async def test_a_crowd_over_the_limit_is_told_at_once(clock, monkeypatch):
    monkeypatch.setattr(auth_query, "MAX_WAITING", 2)
    source, connection = asked(clock, OLD)
    connection.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        for user in ("a", "b"):
            nursery.start_soon(source.look, user)
        await settled()
        with pytest.raises(LookUpFailed, match="for 2 users already"):
            await source.look("c")
        connection.gate.set()
    await source.look("c")


async def test_a_failure_is_told_to_all_who_wait_and_the_next_one_asks_again(clock):
    source, connection = asked(clock, BackendUnavailable("nobody there"), OLD)
    with pytest.raises(LookUpFailed, match="nobody there"):
        await source.look("alice")
    assert (await source.look("alice")).secret == OLD
    connection.failure = "left alone"
    assert (await source.look("alice")).secret == OLD
    with pytest.raises(LookUpFailed, match="left alone"):
        await source.look("bob")
    assert connection.asked == ["alice"] * 2


async def test_no_answer_in_time_is_a_failure(clock, monkeypatch):
    monkeypatch.setattr(auth_query, "ASK_SECONDS", 0.05)
    source, connection = asked(clock, OLD)
    connection.gate = trio.Event()
    with pytest.raises(LookUpFailed, match=r"backend b: no answer within 0.05 s"):
        await source.look("alice")


async def test_a_bug_of_ours_is_raised_where_it_is_logged_and_ends_nothing_else(clock):
    source, _ = asked(clock, ZeroDivisionError("ours"), OLD)
    with pytest.raises(ZeroDivisionError):
        await source.look("alice")
    assert (await source.look("alice")).secret == OLD


async def test_a_verifier_that_is_doubted_is_asked_for_by_the_next_login(clock):
    source, connection = asked(clock, OLD, NEW, NONE)
    await source.look("alice")
    source.doubt("alice")
    assert source.last("alice").secret == OLD
    assert (await source.look("alice")).secret == NEW
    for _ in range(2):
        await source.look("nobody")
        source.doubt("nobody")
    assert connection.asked == ["alice"] * 2 + ["nobody"] * 2


# --- The file and the server ------------------------------------------------------------------------------


LISTED = Secrets(
    "file",
    {"listed": Listed(OLD.verifier, None, 1), "over": Listed(OLD.verifier, 1.0, 2)},
    mock_secret=Secret(bytes(32)),
)


def both(clock, *answers):
    source, connection = asked(clock, *answers)
    sources = Sources(LISTED, source)
    return Verifiers(sources, lambda: sources), connection


async def test_who_is_listed_is_the_files_alone_and_costs_as_much_when_it_fails(clock):
    found, connection = both(clock, NEW)
    for user, verifier in (("listed", OLD.verifier), ("over", None)):
        known = await found.known(user)
        assert (known.verifier, known.where) == (verifier, f"file:{LISTED.by_user[user].line}")
        assert user not in connection.asked
        fresh = await found.fresh(user, known)
        assert (fresh.verifier, connection.asked.count(user)) == (verifier, 1)
        assert (await found.current(user)).verifier == verifier
        assert connection.asked.count(user) == 1


async def test_whoever_fails_costs_one_question(clock):
    found, connection = both(clock, OLD)
    for asked_before in (False, True):
        clock.seconds += 0.001
        known = await found.known("alice")
        await found.fresh("alice", known)
        assert len(connection.asked) == 1 + asked_before


async def test_an_expired_password_lets_nobody_in_although_it_is_remembered(clock):
    found, _ = both(clock, replace(OLD, valid_until=time.time() + 0.2))
    assert (await found.known("alice")).verifier == OLD.verifier
    await trio.sleep(0.25)
    known = await found.known("alice")
    assert (known.verifier, known.lack) == (None, "says that the password has expired")


async def test_a_user_keeps_its_salt_while_the_server_does_not_answer(clock):
    found, _ = both(clock, OLD, BackendUnavailable("gone"))
    await found.known("alice")
    clock.seconds += 61
    known, doomed = await found.for_challenge("alice")
    assert known.verifier is None
    assert known.explained == "auth_query at backend b has no answer: gone"
    assert (doomed.salt, doomed.iterations) == (OLD.verifier.salt, 4096)
    assert doomed.stored_key != OLD.verifier.stored_key


async def test_a_user_without_a_verifier_shows_the_servers_iterations(clock):
    found, connection = both(clock, NONE)
    assert (await found.for_challenge("x"))[1].iterations == 4096
    connection.iterations = 10000
    one, other = [(await found.for_challenge("x"))[1] for _ in range(2)]
    assert (one.salt, one.iterations) == (other.salt, 10000)
    assert one.stored_key != other.stored_key


async def test_a_known_user_is_asked_no_sooner_than_an_unknown_one(autojump_clock):
    """The clocks are real here and trio's is not: only that it waits is seen, and for how long at most."""
    connection = Connection(SimpleNamespace(seconds=time.monotonic()), OLD)
    source = AskedVerifiers("b", 60.0, connection)
    found = Verifiers(Sources(LISTED, source), lambda: None)
    await source.look("alice")
    for user in ("alice", "listed"):
        source._seconds = 1000.0
        begin = trio.current_time()
        await found.for_challenge(user)
        assert auth_query.MAX_SHOWN_SECONDS / 2 < trio.current_time() - begin <= auth_query.MAX_SHOWN_SECONDS


# --- Configurations -----------------------------------------------------------------------------------------


def listener(query):
    settings = SimpleNamespace(auth_query=query, backend_asked=lambda _: "b")
    return SimpleNamespace(name="l", settings=settings)


async def test_a_newer_configuration_begins_with_nothing_and_old_ones_are_let_go(clock):
    queries = AuthQueries(lambda *_: Connection(clock, OLD))
    made = [queries.of(listener(AuthQuery(user="x")), generation) for generation in (1, 2)]
    assert made[0] is queries.of(listener(AuthQuery(user="x")), 1)
    assert made[0] is not made[1]
    queries.of(listener(AuthQuery(user="x")), 3)
    assert len(queries._asked["l"]) == auth_query.GENERATIONS
    assert queries.of(listener(AuthQuery(user="x")), 2) is not made[1]
    assert queries.of(listener(None), 3) is None
