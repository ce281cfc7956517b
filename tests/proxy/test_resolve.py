"""Names of backends: a name is asked for once at a time, no longer than it may take, and alone suffers from hanging."""

import contextlib
import socket
import threading

import pytest
import trio
import trio.testing

from pgtlsproxy.proxy import resolve
from pgtlsproxy.proxy.resolve import KEEP_SECONDS, LOOKUP_SECONDS, STALE_SECONDS, LookUpFailed, Resolver

NO_NAME = socket.gaierror(socket.EAI_NONAME, "Name or service not known")


class Warnings:
    """A logger that remembers."""

    def __init__(self):
        self.events = []

    def warning(self, event, **fields):
        self.events.append((event, fields))

    def error(self, event, **fields):
        self.events.append((event, fields))


class Names:
    """A name service that says what the test wants, and waits where it wants.

    Attributes:
        answers: by name; an exception is raised. May be replaced.
        asked: the names, in the order in which they were asked for.
        gates: names whose answer waits for an event.
        hanging: set when one of these has been asked for.
        answered: released once for every answer.
    """

    def __init__(self, **answers):
        self.answers = answers
        self.asked = []
        self.gates = {}
        self.hanging = threading.Event()
        self.answered = threading.Semaphore(0)

    def __call__(self, host):
        self.asked.append(host)
        try:
            if host in self.gates:
                self.hanging.set()
                assert self.gates[host].wait(20)
            answer = self.answers[host]
        finally:
            self.answered.release()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def hang(self, host):
        self.gates[host] = threading.Event()
        return self.gates[host]


@pytest.fixture
def names():
    service = Names(db=("192.0.2.1", "192.0.2.2"), other=("192.0.2.9",), nowhere=NO_NAME)
    yield service
    for gate in service.gates.values():
        gate.set()


@pytest.fixture
def log():
    return Warnings()


@pytest.fixture
def resolver(log, names):
    return Resolver(log, names)


@contextlib.asynccontextmanager
async def patient_nursery():
    """A nursery that does not wait for ever."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            yield nursery


async def failure_of(resolver, host):
    with pytest.raises(LookUpFailed) as caught:
        await resolver.addresses(host)
    return str(caught.value)


async def let_it_take(seconds, clock, names):
    """Let time pass when a look-up hangs. trio's autojump clock would not wait for threads."""
    assert await trio.to_thread.run_sync(names.hanging.wait, 20)
    await trio.testing.wait_all_tasks_blocked()
    clock.jump(seconds)


async def until_no_thread(names, resolver, host):
    """A look-up that nobody waits for any more is over, and its name may be looked up again."""
    await trio.to_thread.run_sync(names.answered.acquire)
    while resolver._names[host].thread.borrowed_tokens:
        await trio.lowlevel.checkpoint()


async def test_an_answer_is_kept_for_a_second(resolver, names, mock_clock):
    assert await resolver.addresses("db") == ("192.0.2.1", "192.0.2.2")
    mock_clock.jump(KEEP_SECONDS / 2)
    names.answers["db"] = ("192.0.2.3",)
    assert await resolver.addresses("db") == ("192.0.2.1", "192.0.2.2")
    mock_clock.jump(KEEP_SECONDS)
    assert await resolver.addresses("db") == ("192.0.2.3",)
    assert names.asked == ["db", "db"]


async def test_a_failure_is_kept_for_a_second_too(resolver, names, mock_clock):
    assert await failure_of(resolver, "nowhere") == "Name or service not known"
    assert await failure_of(resolver, "nowhere") == "Name or service not known"
    assert names.asked == ["nowhere"]
    names.answers["nowhere"] = ("192.0.2.7",)
    mock_clock.jump(KEEP_SECONDS)
    assert await resolver.addresses("nowhere") == ("192.0.2.7",)


async def test_a_failure_is_answered_from_memory_for_a_minute_and_said_once_a_second(
    resolver, names, log, mock_clock
):
    good = await resolver.addresses("db")
    names.answers["db"] = NO_NAME
    for _ in range(2):
        mock_clock.jump(KEEP_SECONDS)
        for _ in range(3):
            assert await resolver.addresses("db") == good
    said = {"host": "db", "reason": "Name or service not known", "using": good}
    assert log.events == [("name_not_resolved", said)] * 2
    mock_clock.jump(STALE_SECONDS)
    assert await failure_of(resolver, "db") == "Name or service not known"


async def test_whoever_asks_meanwhile_waits_for_the_same_look_up(resolver, names):
    gate, answers = names.hang("db"), []

    async def ask():
        answers.append(await resolver.addresses("db"))

    async with patient_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        gate.set()
    assert answers == [("192.0.2.1", "192.0.2.2")] * 50
    assert names.asked == ["db"]


async def test_whoever_gives_up_waiting_ends_it_for_nobody_else(resolver, names):
    gate, answers = names.hang("db"), []

    async def ask(scope):
        with scope:
            answers.append(await resolver.addresses("db"))

    scopes = [trio.CancelScope() for _ in range(3)]
    async with patient_nursery() as nursery:
        for scope in scopes:
            nursery.start_soon(ask, scope)
            await trio.testing.wait_all_tasks_blocked()
        scopes[0].cancel()
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ask, trio.CancelScope())
        await trio.testing.wait_all_tasks_blocked()
        gate.set()
    assert answers == [("192.0.2.1", "192.0.2.2")] * 3
    assert names.asked == ["db"]


async def test_a_look_up_that_hangs_fails_in_time_and_then_at_once(resolver, names, mock_clock):
    gate = names.hang("db")
    async with patient_nursery() as nursery:
        nursery.start_soon(let_it_take, LOOKUP_SECONDS, mock_clock, names)
        assert await failure_of(resolver, "db") == "the look-up took longer than 3 s"
    mock_clock.jump(KEEP_SECONDS)
    assert await failure_of(resolver, "db") == "an earlier look-up still hangs"
    assert names.asked == ["db"]
    gate.set()
    await until_no_thread(names, resolver, "db")
    mock_clock.jump(KEEP_SECONDS)
    assert await resolver.addresses("db") == ("192.0.2.1", "192.0.2.2")


async def test_a_look_up_that_hangs_is_answered_from_memory(resolver, names, log, mock_clock):
    good = await resolver.addresses("db")
    mock_clock.jump(KEEP_SECONDS)
    names.hang("db")
    async with patient_nursery() as nursery:
        nursery.start_soon(let_it_take, LOOKUP_SECONDS, mock_clock, names)
        assert await resolver.addresses("db") == good
    mock_clock.jump(KEEP_SECONDS)
    assert await resolver.addresses("db") == good
    assert [fields["reason"] for _, fields in log.events] == [
        "the look-up took longer than 3 s",
        "an earlier look-up still hangs",
    ]
    mock_clock.jump(STALE_SECONDS)
    assert await failure_of(resolver, "db") == "an earlier look-up still hangs"


async def test_names_that_hang_hold_nobody_else_up(resolver, names):
    async def ask(host):
        with pytest.raises(LookUpFailed):
            await resolver.addresses(host)

    hanging = [f"hangs{number}" for number in range(100)]
    for host in hanging:
        names.hang(host)
        names.answers[host] = NO_NAME
    async with patient_nursery() as nursery:
        for host in hanging:
            nursery.start_soon(ask, host)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(LOOKUP_SECONDS / 2):
            assert await resolver.addresses("other") == ("192.0.2.9",)
        for gate in names.gates.values():
            gate.set()
    assert sorted(names.asked) == sorted([*hanging, "other"])


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..b"])
async def test_a_name_that_cannot_be_written_in_dns_is_one_that_is_not_found(log, host):
    assert "label" in await failure_of(Resolver(log), host)
    assert log.events == []


async def test_a_bug_in_a_look_up_is_logged_and_ends_nothing(resolver, names, log):
    names.answers["db"] = error = KeyError("made to fail")
    assert await failure_of(resolver, "db") == "internal error"
    assert log.events == [("bug", {"exc_info": error})]
    assert await resolver.addresses("other") == ("192.0.2.9",)


async def test_names_of_old_configurations_are_forgotten(resolver, names, mock_clock):
    for number in range(10):
        names.answers[f"old{number}"] = NO_NAME
        await failure_of(resolver, f"old{number}")
    assert len(resolver._names) == 10
    mock_clock.jump(STALE_SECONDS + 1)
    await resolver.addresses("db")
    assert list(resolver._names) == ["db"]


async def test_an_address_that_could_not_be_dialled_is_avoided_for_ten_seconds(resolver, mock_clock):
    resolver.failed("192.0.2.1", 5432)
    resolver.failed("192.0.2.2", 5432)
    resolver.works("192.0.2.2", 5432)
    assert resolver.is_avoided("192.0.2.1", 5432)
    assert not resolver.is_avoided("192.0.2.1", 5433)
    assert not resolver.is_avoided("192.0.2.2", 5432)
    mock_clock.jump(resolve.AVOID_SECONDS)
    assert not resolver.is_avoided("192.0.2.1", 5432)
    resolver.failed("192.0.2.3", 5432)
    assert list(resolver._avoided_until) == [("192.0.2.3", 5432)]


async def test_no_more_dead_addresses_are_remembered_than_fit(resolver, monkeypatch):
    monkeypatch.setattr(resolve, "AVOIDED_ADDRESSES", 3)
    for port in [1, 2, 3, 1, 4]:
        resolver.failed("192.0.2.1", port)
    assert [port for _, port in resolver._avoided_until] == [3, 1, 4]
