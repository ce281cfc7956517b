"""What is remembered of verifiers that a backend was asked for: for how long, of how many, and who asks."""

from __future__ import annotations

import socket
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import structlog
import trio
import trio.testing
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from hypothesis.strategies import data, integers, sampled_from

from fixtures.wire import PATIENCE
from pgtlsproxy.config import AuthQuery
from pgtlsproxy.errors import BackendUnavailable, ClientGone, TooManyConnections
from pgtlsproxy.identity import Secret
from pgtlsproxy.protocol.auth_query import RoleSecret
from pgtlsproxy.protocol.scram.keys import Verifier
from pgtlsproxy.protocol.scram.secrets import Listed, Secrets
from pgtlsproxy.proxy import auth_query, hang_up, questions, verifiers
from pgtlsproxy.proxy.auth_connection import Asked, AuthConnection
from pgtlsproxy.proxy.auth_query import AskedVerifiers, Asker, AuthQueries, LookUpFailed
from pgtlsproxy.proxy.questions import Questions
from pgtlsproxy.proxy.verifiers import Sources, Verifiers

OLD, NEW = (
    RoleSecret(Verifier(bytes([n]) * 16, 4096, Secret(bytes([n]) * 32), Secret(bytes(32)))) for n in (1, 2)
)
NONE = RoleSecret(None, lack="knows no role")
HERE, THERE = (Asker(source, trio.sleep_forever) for source in ("192.0.2.1", "192.0.2.2"))


class Connection:
    """Gives answers in turn; the last one for ever."""

    def __init__(self, clock, *answers):
        self.clock = clock
        self.answers = list(answers)
        self.asked: list[str] = []
        self.gate = trio.Event()
        self.gate.set()
        self.iterations = None

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
    assert (await source.look("alice", HERE)).secret == OLD
    clock.seconds += 59
    assert (await source.look("alice", HERE)).secret == OLD
    clock.seconds += 1
    assert (await source.look("alice", HERE)).secret == NEW
    assert connection.asked == ["alice"] * 2


async def test_that_there_is_no_verifier_is_believed_for_a_second(clock):
    source, _ = asked(clock, NONE, OLD)
    await source.look("alice", HERE)
    clock.seconds += 0.9
    assert (await source.look("alice", HERE)).secret == NONE
    clock.seconds += 0.1
    assert (await source.look("alice", HERE)).secret == OLD


@pytest.mark.parametrize("lifetime", [0.0, 0.5])
async def test_with_a_shorter_lifetime_it_is_believed_no_longer(clock, lifetime):
    source, _ = asked(clock, NONE, OLD, lifetime=lifetime)
    await source.look("alice", HERE)
    clock.seconds += lifetime + 0.01
    assert (await source.look("alice", HERE)).secret == OLD


async def test_what_was_asked_before_is_not_good_enough_for_who_wants_it_fresh(clock):
    source, connection = asked(clock, OLD, NEW)
    await source.look("alice", HERE)
    clock.seconds += 1
    assert (await source.look("alice", HERE, not_before=clock.seconds)).secret == NEW
    assert (await source.look("alice", HERE, not_before=clock.seconds)).secret == NEW
    assert len(connection.asked) == 2


async def test_many_who_wait_for_one_user_are_one_question(clock):
    source, connection = asked(clock, OLD)
    connection.gate = trio.Event()
    found = []

    async def wait():
        found.append((await source.look("alice", HERE)).secret)

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
        found.append((await source.look("alice", HERE, not_before)).secret)

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


@pytest.mark.parametrize(
    ("answer", "limit", "kept"), [(OLD, "REMEMBERED", "_known"), (NONE, "REMEMBERED_NONE", "_none")]
)
async def test_what_is_remembered_is_bounded_and_the_least_used_goes_first(
    clock, monkeypatch, answer, limit, kept
):
    monkeypatch.setattr(auth_query, limit, 3)
    source, _ = asked(clock, answer)
    for user in ("a", "b", "c", "a", "d"):
        await source.look(user, HERE)
    assert list(getattr(source, kept)) == ["c", "a", "d"]


async def test_a_crowd_that_nobody_knows_takes_no_known_users_place(clock, monkeypatch):
    monkeypatch.setattr(auth_query, "REMEMBERED", 2)
    source, connection = asked(clock, OLD, NONE)
    await source.look("alice", HERE)
    for number in range(1000):
        await source.look(f"nobody{number}", HERE)
    assert (await source.look("alice", HERE)).secret == OLD
    assert connection.asked.count("alice") == 1


async def test_a_failure_is_told_to_all_who_wait_and_the_next_one_asks_again(clock):
    source, connection = asked(clock, BackendUnavailable("nobody there"), OLD)
    with pytest.raises(LookUpFailed, match="nobody there"):
        await source.look("alice", HERE)
    assert (await source.look("alice", HERE)).secret == OLD
    assert connection.asked == ["alice"] * 2


async def test_no_answer_in_time_is_a_failure(clock, monkeypatch):
    monkeypatch.setattr(auth_query, "ASK_SECONDS", 0.05)
    source, connection = asked(clock, OLD)
    connection.gate = trio.Event()
    with pytest.raises(LookUpFailed, match=r"backend b: no answer within 0.05 s"):
        await source.look("alice", HERE)


async def test_a_bug_of_ours_is_raised_where_it_is_logged_and_ends_nothing_else(clock):
    source, _ = asked(clock, ZeroDivisionError("ours"), OLD)
    with pytest.raises(ZeroDivisionError):
        await source.look("alice", HERE)
    assert (await source.look("alice", HERE)).secret == OLD


# --- The file and the server ------------------------------------------------------------------------------


LISTED = Secrets(
    "file",
    {"listed": Listed(OLD.verifier, None, 1), "over": Listed(OLD.verifier, 1.0, 2)},
    mock_secret=Secret(bytes(32)),
)


def both(clock, *answers):
    source, connection = asked(clock, *answers)
    sources = Sources(LISTED, source)
    return Verifiers(sources, lambda: sources, HERE), connection


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


# --- Nobody learns who is known ----------------------------------------------------------------------------

ROADS = {"remembered": OLD, "just asked for": OLD, "listed": NEW, "probed": NONE, "nobody": NONE}
"""Users, and what the server says of them."""


class Server:
    """Answers by the user, and keeps the order in which it was asked."""

    iterations = 4096

    def __init__(self, clock):
        self.clock = clock
        self.asked = []
        self.failure = ""

    async def ask(self, user):
        self.asked.append(user)
        await trio.lowlevel.checkpoint()
        if self.failure:
            raise BackendUnavailable(self.failure)
        return Asked(ROADS.get(user, NONE), self.clock.seconds)


async def roads(clock):
    """A server of which some users have been asked, long ago or just now, and who is found there."""
    server = Server(clock)
    source = AskedVerifiers("b", 3600.0, server)
    sources = Sources(LISTED, source)
    found = Verifiers(sources, lambda: sources, HERE)
    await found.known("remembered")
    clock.seconds += 10
    await found.for_challenge("just asked for")
    await found.for_challenge("probed")
    server.asked.clear()
    return server, source, found


@pytest.mark.parametrize("seconds", [0.0, 0.5, 10.0, 59.0])
async def test_who_is_asked_for_a_proof_costs_one_question_remembered_or_not(clock, seconds):
    """A second look of a stranger, after any time, takes the road of the first, whoever the user is."""
    server, _, found = await roads(clock)
    for user in ROADS:
        for _ in range(2):
            clock.seconds += seconds
            await found.for_challenge(user)
            assert server.asked == [user]
            server.asked.clear()


@pytest.mark.parametrize("user", ROADS)
async def test_no_challenge_is_made_before_the_answer_is_there(clock, autojump_clock, user):
    server, _, found = await roads(clock)
    asked = server.ask

    async def slow(user):
        await trio.sleep(auth_query.SHOWN_SECONDS - 0.01)
        return await asked(user)

    server.ask = slow
    begin = trio.current_time()
    await found.for_challenge(user)
    assert trio.current_time() - begin == pytest.approx(auth_query.SHOWN_SECONDS - 0.01)


@pytest.mark.parametrize("seconds", [0.0, 10.0])
async def test_a_challenge_of_a_stranger_leaves_the_same_behind_whoever_the_user_is(clock, seconds):
    """What somebody else is asked next, and how soon, is the same after a look at any user."""
    traces = set()
    for user in ROADS:
        server, source, found = await roads(clock)
        await found.for_challenge(user)
        clock.seconds += seconds
        begin = len(server.asked)
        await found.for_challenge("another")
        traces.add((begin, len(server.asked), source._is_asking, len(source._questions._open)))
    assert len(traces) == 1


@pytest.mark.parametrize("user", ROADS)
@pytest.mark.parametrize("is_down", [False, True])
async def test_whoever_fails_waits_for_one_answer_where_the_server_judges(clock, user, is_down):
    """Whose proof does not fit, or who has no verifier: the road of the bridge and of `password`."""
    server, _, found = await roads(clock)
    clock.seconds += 10
    server.failure = "gone" if is_down else ""
    known = await found.known(user)
    await found.fresh(user, known)
    assert server.asked == [user]


async def test_a_user_who_is_believed_is_let_in_while_the_server_says_nothing(clock, autojump_clock):
    server, _, found = await roads(clock)

    async def hang(_):
        await trio.sleep_forever()

    server.ask = hang
    for user, verifier in (("remembered", OLD), ("listed", LISTED.by_user["listed"])):
        begin = trio.current_time()
        _, shown = await found.for_challenge(user)
        assert shown == verifier.verifier
        assert trio.current_time() - begin == pytest.approx(auth_query.SHOWN_SECONDS)
    server.ask = Server(clock).ask
    server.failure = "gone"
    assert (await found.for_challenge("remembered"))[1] == OLD.verifier


async def test_a_new_password_is_asked_for_by_its_own_salt_at_once(clock):
    found, _ = both(clock, OLD, NEW, NONE)
    await found.known("alice")
    assert (await found.for_challenge("alice"))[1] == NEW.verifier
    known, _ = await found.for_challenge("alice")
    assert known.verifier is None


# --- A crowd of names ---------------------------------------------------------------------------------------


@pytest.fixture
async def crowd(clock, nursery):
    """A server at which questions hang; `let_go` lets it answer one. Sources look for users meanwhile."""
    source, connection = asked(clock, OLD)
    connection.gate = trio.Event()

    async def look(name, user, scope):
        with scope:
            await source.look(user, name)

    async def looks(name, users):
        """One after the other. Gives what ends them all."""
        scopes = [trio.CancelScope() for _ in users]
        for user, scope in zip(users, scopes, strict=True):
            nursery.start_soon(look, name, user, scope)
            await settled()

        def end():
            for scope in scopes:
                scope.cancel()

        return end

    async def let_go():
        gate, connection.gate = connection.gate, trio.Event()
        gate.set()
        await settled()

    return SimpleNamespace(source=source, connection=connection, looks=looks, let_go=let_go)


async def drained(crowd):
    crowd.connection.gate.set()
    await settled()
    assert not crowd.source._questions._open
    assert not crowd.source._questions._turns
    assert crowd.source._questions._places == 0
    return crowd.connection.asked


async def test_sources_take_turns(crowd):
    await crowd.looks(HERE, [f"invented{number}" for number in range(30)])
    await crowd.looks(THERE, ["alice", "bob"])
    await crowd.let_go()
    await crowd.let_go()
    await crowd.let_go()
    assert crowd.connection.asked == ["invented0", "invented1", "alice", "invented2"]
    assert (await drained(crowd))[4] == "bob"


async def test_whoever_waits_for_a_name_in_a_crowd_has_the_turn_of_its_own_source(crowd):
    names = [f"invented{number}" for number in range(30)]
    await crowd.looks(HERE, [*names, "alice"])
    await crowd.looks(THERE, ["alice"])
    await crowd.let_go()
    await crowd.let_go()
    assert crowd.connection.asked == ["invented0", "invented1", "alice"]
    assert sorted(await drained(crowd)) == sorted([*names, "alice"])


async def test_a_source_may_have_so_many_questions_and_no_more(crowd, monkeypatch):
    monkeypatch.setattr(questions, "MOST_OF_A_SOURCE", 3)
    await crowd.looks(HERE, ["begun", "a", "b", "c"])
    with pytest.raises(
        TooManyConnections, match="backend b: logins of this source wait for 3 users to be asked"
    ):
        await crowd.source.look("d", HERE)
    await crowd.looks(HERE, ["a", "begun"])  # no question more
    await crowd.looks(THERE, ["a", "d"])
    await crowd.let_go()
    await crowd.looks(HERE, ["e"])
    assert sorted(await drained(crowd)) == ["a", "b", "begun", "c", "d", "e"]


async def test_all_sources_may_have_so_many_questions_together(crowd, monkeypatch):
    monkeypatch.setattr(questions, "MOST_WAITING", 2)
    await crowd.looks(HERE, ["begun", "a"])
    await crowd.looks(THERE, ["b"])
    with pytest.raises(TooManyConnections, match="2 questions wait already"):
        await crowd.source.look("c", HERE)
    await drained(crowd)


async def test_a_question_that_nobody_waits_for_is_not_asked(crowd):
    await crowd.looks(HERE, ["begun"])
    end = await crowd.looks(HERE, ["left", "shared", "left"])
    await crowd.looks(THERE, ["shared"])
    end()
    await settled()
    assert await drained(crowd) == ["begun", "shared"]


class Turns(RuleBasedStateMachine):
    """Whatever comes, goes and is asked: nobody who waits is forgotten, and nothing is left of the others."""

    def __init__(self):
        super().__init__()
        self.questions = Questions()
        self.waiting = []
        self.begun = None

    @rule(user=sampled_from("abcd"), source=sampled_from("xyz"))
    def join(self, user, source):
        self.waiting.append((self.questions.join(user, source), source))

    @rule(data=data())
    def leave(self, data):
        if self.waiting:
            index = data.draw(integers(0, len(self.waiting) - 1))
            self.questions.leave(*self.waiting.pop(index))

    @rule()
    def begin(self):
        if self.begun is None:
            self.begun = self.questions.begin()
            assert (self.begun is None) == (not self.waiting)
            assert self.begun is None or self.begun in [question for question, _ in self.waiting]

    @rule()
    def end(self):
        if self.begun is not None:
            self.questions.end(self.begun)
            answered = [each for each in self.waiting if each[0] is self.begun]
            self.begun = None
            for each in answered:
                self.waiting.remove(each)
                self.questions.leave(*each)

    @invariant()
    def holds_those_who_wait(self):
        lined_up = {
            (question.user, source) for question, source in self.waiting if question is not self.begun
        }
        turns = self.questions._turns
        assert lined_up == {(user, source) for source, users in turns.items() for user in users}
        assert self.questions._places == len(lined_up)
        asked = [self.begun.user] if self.begun else []
        assert set(self.questions._open) == {*asked, *(question.user for question, _ in self.waiting)}


test_nobody_who_waits_is_forgotten = Turns.TestCase


async def test_a_question_of_a_client_that_hangs_up_is_not_asked(crowd):
    gone = trio.Event()
    await crowd.looks(HERE, ["begun"])
    async with trio.open_nursery() as nursery:

        async def look():
            with pytest.raises(ClientGone):
                await crowd.source.look("left", Asker("192.0.2.1", gone.wait))

        nursery.start_soon(look)
        await settled()
        gone.set()
    assert await drained(crowd) == ["begun"]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
@pytest.mark.parametrize("said", [b"", b"alert"])
async def test_a_client_that_closes_is_noticed_whatever_it_has_said(family, said):
    if family is socket.AF_UNIX:
        ours, theirs = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            theirs = socket.create_connection(server.getsockname())
            ours, _ = server.accept()
    ours.setblocking(False)
    with ours, theirs:
        theirs.send(said)
        with trio.move_on_after(2 * hang_up.LOOK_SECONDS) as waiting:
            await hang_up.hung_up(ours)
        assert waiting.cancelled_caught
        theirs.close()
        with trio.fail_after(PATIENCE):
            await hang_up.hung_up(ours)


async def test_an_answer_that_nobody_waits_for_any_more_is_kept(crowd):
    end = await crowd.looks(HERE, ["alice"])
    end()
    await settled()
    assert await drained(crowd) == ["alice"]
    assert crowd.source.last("alice").secret == OLD


# --- The connection -----------------------------------------------------------------------------------------


async def test_a_bug_in_closing_the_connection_is_logged_and_the_next_question_has_a_new_one():
    logged = []
    logger = SimpleNamespace(error=lambda event, exc_info: logged.append((event, exc_info)))
    connection = AuthConnection(SimpleNamespace(name="b"), AuthQuery(user="x"), None, None, logger)
    closed, bug = [], ZeroDivisionError("ours")
    opened = SimpleNamespace(ends_at=0.0, leg=SimpleNamespace(close=lambda: closed.append(True)))

    async def fail(_):
        raise bug

    async def ask_anew(_):
        return Asked(OLD, 0.0)

    connection._open, connection._end, connection._ask_anew = opened, fail, ask_anew
    await connection._close_when_idle(opened)
    assert (logged, closed) == ([("bug", bug)], [True])
    assert (await connection.ask("alice")).secret == OLD


# --- Configurations -----------------------------------------------------------------------------------------


def silent():
    return structlog.wrap_logger(structlog.ReturnLogger())


def listener(query):
    settings = SimpleNamespace(auth_query=query, backend_asked=lambda _: "b")
    return SimpleNamespace(name="l", settings=settings)


async def test_a_newer_configuration_begins_with_nothing_and_old_ones_are_let_go(clock):
    queries = AuthQueries(silent(), lambda *_: Connection(clock, OLD))
    made = [queries.of(listener(AuthQuery(user="x")), generation) for generation in (1, 2)]
    assert made[0] is queries.of(listener(AuthQuery(user="x")), 1)
    assert made[0] is not made[1]
    queries.of(listener(AuthQuery(user="x")), 3)
    assert len(queries._asked["l"]) == auth_query.GENERATIONS
    assert queries.of(listener(AuthQuery(user="x")), 2) is not made[1]
    assert queries.of(listener(None), 3) is None
