"""The verifiers of users, asked of a backend: `auth_query`.

What was said of a user is believed for the query's lifetime, and that there is no verifier for a second. One
question is asked at a time, so that a crowd of names that nobody has is no crowd at the backend, and once for
all logins that wait for the same user. A newer configuration begins with nothing: a reload forgets it all.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog
import trio

from pgtlsproxy.errors import BackendUnavailable
from pgtlsproxy.proxy.auth_connection import Asked, AuthConnection
from pgtlsproxy.proxy.resolve import Resolver
from pgtlsproxy.proxy.snapshot import ListenerSnapshot

ASK_SECONDS: Final = 10.0
"""How long an answer may take, from the wait for those who came before to the last byte."""

NONE_SECONDS: Final = 1.0
"""How long it is believed that a user has no verifier."""

REMEMBERED: Final = 10_000
"""For how many users the verifier is kept; the least recently used goes first."""

REMEMBERED_NONE: Final = 1_000
"""For how many it is kept that they have none, so that they never take the place of those who do."""

MAX_WAITING: Final = 1_000
"""Users that are asked for at once; one more, and it fails."""

MAX_SHOWN_SECONDS: Final = 0.05
"""How long a login is kept waiting at most, so that it does not show who had to be asked for."""

GENERATIONS: Final = 2
"""Of how many configurations a listener's answers are kept: the one in service, and the one before."""


class LookUpFailed(Exception):
    """There is no answer, and so nobody's password is right.

    Args:
        reason: for the log.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True)
class _Asking:
    """A question that is under way, for all who wait for it."""

    over: trio.Event = field(default_factory=trio.Event)
    asked: Asked | None = None
    failure: str = ""
    bug: Exception | None = None


class AskedVerifiers:
    """What a backend says of users, as one listener's `auth_query` asks it.

    Args:
        name: of the backend, for the log.
        lifetime: how long a verifier is believed, in seconds.
        connection: asks.
    """

    def __init__(self, name: str, lifetime: float, connection: AuthConnection) -> None:
        self.name = name
        self._lifetime = lifetime
        self._connection = connection
        self._known: OrderedDict[str, Asked] = OrderedDict()
        self._none: OrderedDict[str, Asked] = OrderedDict()
        self._under_way: dict[str, _Asking] = {}
        self._seconds = 0.0

    @property
    def iterations(self) -> int | None:
        """The backend's `scram_iterations`, as far as it has told."""
        return self._connection.iterations

    async def look(self, user: str, not_before: float = float("-inf")) -> Asked:
        """What the backend says of a user.

        Args:
            user: of the StartupMessage.
            not_before: it must have been asked then or later, by the monotonic clock.

        Raises:
            LookUpFailed: it says nothing.

        Cancellation: the asking goes on for those who wait for it too.
        """
        begin = time.monotonic()
        asked = self._remembered(user)
        while asked is None or not (
            asked.asked_at >= not_before and (asked.asked_at >= begin or self._is_believed(asked))
        ):
            asking = self._under_way.get(user) or self._start(user)
            await asking.over.wait()
            if asking.bug is not None:
                raise asking.bug
            if asking.failure:
                raise LookUpFailed(asking.failure)
            asked = asking.asked
        return asked

    def last(self, user: str) -> Asked | None:
        """What it said of a user with a verifier when it was asked last, however long ago."""
        return self._known.get(user)

    def doubt(self, user: str) -> None:
        """Have it asked anew by the next login of a user; for one who has failed."""
        self._none.pop(user, None)
        if (asked := self._known.get(user)) is not None:
            self._known[user] = Asked(asked.secret, float("-inf"))

    async def show_nothing(self, since: float) -> None:
        """Wait until an answer would have come, had it been asked for then, and so does who had to ask.

        Args:
            since: when the look-up began, by the monotonic clock.
        """
        # The event loop sleeps by the millisecond.
        shown_at = since + min(2 * self._seconds + 0.001, MAX_SHOWN_SECONDS)
        if (left := shown_at - time.monotonic()) > 0:
            await trio.sleep(left)

    def _remembered(self, user: str) -> Asked | None:
        for kept in (self._known, self._none):
            if user in kept:
                kept.move_to_end(user)
                return kept[user]
        return None

    def _is_believed(self, asked: Asked) -> bool:
        lifetime = min(self._lifetime, NONE_SECONDS) if asked.secret.verifier is None else self._lifetime
        return time.monotonic() - asked.asked_at < lifetime

    def _start(self, user: str) -> _Asking:
        try:
            self._connection.check_failure()
        except BackendUnavailable as error:
            raise LookUpFailed(error.reason) from None
        if len(self._under_way) >= MAX_WAITING:
            raise LookUpFailed(f"backend {self.name} is being asked for {MAX_WAITING} users already")
        asking = self._under_way[user] = _Asking()
        trio.lowlevel.spawn_system_task(self._ask, user, asking)
        return asking

    async def _ask(self, user: str, asking: _Asking) -> None:
        """Ask in a task of nobody's, so that no waiter's end ends it."""
        asking.failure = f"backend {self.name}: no answer within {ASK_SECONDS:g} s"
        try:
            with trio.move_on_after(ASK_SECONDS):
                asking.asked = await self._connection.ask(user)
                asking.failure = ""
                self._seconds += (time.monotonic() - asking.asked.asked_at - self._seconds) / 4
                self._remember(user, asking.asked)
        except BackendUnavailable as error:
            asking.failure = error.reason
        except Exception as error:  # noqa: BLE001 - what a system task raises would end the process
            asking.bug = error
        del self._under_way[user]
        asking.over.set()

    def _remember(self, user: str, asked: Asked) -> None:
        self._known.pop(user, None)
        self._none.pop(user, None)
        kept, limit = (self._known, REMEMBERED)
        if asked.secret.verifier is None:
            kept, limit = (self._none, REMEMBERED_NONE)
        kept[user] = asked
        if len(kept) > limit:
            kept.popitem(last=False)


def connect_to(listener: ListenerSnapshot, resolver: Resolver) -> AuthConnection:
    """The connection of a listener's `auth_query`, which it has. Nothing is dialled yet."""
    query = listener.settings.auth_query
    assert query is not None  # noqa: S101 - whoever calls has looked
    backend = listener.backends[listener.settings.backend_asked(query)]
    return AuthConnection(backend, query, listener.auth_passfile, resolver)


Connect = Callable[[ListenerSnapshot, Resolver], AuthConnection]


class AuthQueries:
    """What has been asked for each listener; one a process.

    Args:
        connect: makes the connection of a listener.
    """

    def __init__(self, connect: Connect = connect_to) -> None:
        self._connect = connect
        # Silent: what it cannot find stands in the refusals.
        self._resolver = Resolver(structlog.wrap_logger(structlog.ReturnLogger()))
        self._asked: dict[str, OrderedDict[int, AskedVerifiers]] = {}

    def of(self, listener: ListenerSnapshot, generation: int) -> AskedVerifiers | None:
        """Where a listener's verifiers are asked for; None where nowhere.

        Args:
            listener: as it is in that configuration.
            generation: which one it is of.
        """
        query = listener.settings.auth_query
        if query is None:
            return None
        kept = self._asked.setdefault(listener.name, OrderedDict())
        if generation not in kept:
            name = listener.settings.backend_asked(query)
            kept[generation] = AskedVerifiers(name, query.lifetime, self._connect(listener, self._resolver))
        kept.move_to_end(generation)
        if len(kept) > GENERATIONS:
            kept.popitem(last=False)
        return kept[generation]
