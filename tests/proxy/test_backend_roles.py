"""The members of a backend's roles: asked for once, believed for a time, and unknown where nobody says."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from pgtlsproxy.config import RolesQuery
from pgtlsproxy.errors import BackendUnavailable
from pgtlsproxy.policy.request import Unknown
from pgtlsproxy.policy.roles import memberships
from pgtlsproxy.proxy import backend_roles
from pgtlsproxy.proxy.backend_roles import BackendRoles

STAFF = memberships([("staff", ("alice",))])
NOBODY = memberships([])
MEMBER, OUTSIDER = frozenset({"alice", "staff"}), frozenset({"alice"})
QUERY = RolesQuery(user="reader", lifetime=60)


def backend(name="b", settings="settings"):
    return SimpleNamespace(name=name, settings=settings)


class Server:
    """Gives answers in turn; the last one for ever."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = 0
        self.gate = trio.Event()
        self.gate.set()

    async def fetch(self, *_):
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        await self.gate.wait()
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(backend_roles, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    assert time.monotonic
    return now


async def settled():
    await trio.testing.wait_all_tasks_blocked()


async def test_one_answer_serves_all_users_for_half_its_lifetime(clock):
    server = Server(STAFF)
    roles = BackendRoles(server.fetch)
    assert await roles.of("alice", backend(), QUERY) == MEMBER
    clock.seconds += 29
    assert await roles.of("bob", backend(), QUERY) == {"bob"}
    await settled()
    assert server.asked == 1


async def test_a_newer_answer_is_asked_for_before_the_old_one_is_too_old_and_nobody_waits(clock):
    server = Server(STAFF, NOBODY)
    roles = BackendRoles(server.fetch)
    await roles.of("alice", backend(), QUERY)
    clock.seconds += 31
    server.gate = trio.Event()
    assert await roles.of("alice", backend(), QUERY) == MEMBER
    server.gate.set()
    await settled()
    assert await roles.of("alice", backend(), QUERY) == OUTSIDER
    assert server.asked == 2


async def test_behind_its_lifetime_an_answer_is_believed_no_more(clock):
    server = Server(STAFF, BackendUnavailable("nobody there"))
    roles = BackendRoles(server.fetch)
    await roles.of("alice", backend(), QUERY)
    clock.seconds += 59
    assert await roles.of("alice", backend(), QUERY) == MEMBER
    await settled()
    clock.seconds += 1
    assert await roles.of("alice", backend(), QUERY) == Unknown("roles_query: nobody there")


async def test_a_backend_that_fails_is_left_alone_for_a_second(clock):
    server = Server(BackendUnavailable("nobody there"), STAFF)
    roles = BackendRoles(server.fetch)
    for _ in range(5):
        assert await roles.of("alice", backend(), QUERY) == Unknown("roles_query: nobody there")
    assert server.asked == 1
    clock.seconds += 1
    assert await roles.of("alice", backend(), QUERY) == MEMBER


async def test_sessions_wait_for_one_answer():
    server, found = Server(STAFF), []
    server.gate = trio.Event()
    roles = BackendRoles(server.fetch)

    async def ask():
        found.append(await roles.of("alice", backend(), QUERY))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)
        await settled()
        server.gate.set()
    assert (found, server.asked) == ([MEMBER] * 10, 1)


async def test_a_session_that_ends_ends_no_asking_for_others():
    server = Server(STAFF)
    server.gate = trio.Event()
    roles = BackendRoles(server.fetch)
    with trio.move_on_after(0.01):
        await roles.of("alice", backend(), QUERY)
    server.gate.set()
    assert await roles.of("alice", backend(), QUERY) == MEMBER
    assert server.asked == 1


async def test_a_backend_that_hangs_leaves_the_roles_unknown_in_time(monkeypatch):
    monkeypatch.setattr(backend_roles, "FETCH_SECONDS", 0.05)
    server = Server(STAFF)
    server.gate = trio.Event()
    with trio.fail_after(5):
        found = await BackendRoles(server.fetch).of("alice", backend(), QUERY)
    assert found == Unknown("roles_query: backend b: no answer within 0.05 s")


async def test_what_was_said_by_a_backend_with_other_settings_is_forgotten():
    server = Server(STAFF, NOBODY)
    roles = BackendRoles(server.fetch)
    assert await roles.of("alice", backend(), QUERY) == MEMBER
    assert await roles.of("alice", backend(settings="others"), QUERY) == OUTSIDER


async def test_what_is_remembered_is_bounded():
    roles = BackendRoles(Server(STAFF).fetch)
    for number in range(200):
        await roles.of("alice", backend(f"b{number}"), QUERY)
    assert len(roles._known) == backend_roles.REMEMBERED


async def test_a_bug_reaches_the_session_and_ends_nothing_else(clock):
    roles = BackendRoles(Server(ZeroDivisionError("ours"), STAFF).fetch)
    with pytest.raises(ZeroDivisionError):
        await roles.of("alice", backend(), QUERY)
    clock.seconds += 1
    assert await roles.of("alice", backend(), QUERY) == MEMBER


def test_the_query_asks_for_one_row_more_than_may_come():
    assert f"LIMIT {backend_roles.MAX_ROWS + 1}" in backend_roles.QUERY
