"""The verifiers of users, asked of a backend: `auth_query`.

What was said of a user is believed for the query's lifetime, and that there is no verifier for a second. One
question is asked at a time, so that a crowd of names that nobody has is no crowd at the backend. A newer
configuration begins with nothing: a reload forgets it all.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import structlog
import trio
from structlog.typing import FilteringBoundLogger

from pgtlsproxy.errors import BackendUnavailable, ClientGone, TooManyConnections
from pgtlsproxy.proxy.auth_connection import Asked, AuthConnection
from pgtlsproxy.proxy.questions import Asking, Questions, TooManyQuestions
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

SHOWN_SECONDS: Final = 0.25
"""How long who is known, and need not be asked for, waits for an answer at most, as who is not known does."""

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


@dataclass(frozen=True, slots=True)
class Asker:
    """A login that needs answers.

    Args:
        source: where it comes from.
        hung_up: returns when its client has closed.
    """

    source: str
    hung_up: Callable[[], Awaitable[None]] = field(repr=False)


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
        self._questions = Questions()
        self._is_asking = False

    @property
    def iterations(self) -> int | None:
        """The backend's `scram_iterations`, as far as it has told."""
        return self._connection.iterations

    async def look(self, user: str, asker: Asker, not_before: float = float("-inf")) -> Asked:
        """What the backend says of a user.

        Args:
            user: of the StartupMessage.
            asker: the login.
            not_before: it must have been asked then or later, by the monotonic clock.

        Raises:
            LookUpFailed: it says nothing.
            ClientGone: the client waits no longer.
            TooManyConnections: too many logins wait for its answers.

        Cancellation: the asking goes on for those who wait for it too.
        """
        begin = time.monotonic()
        asked = self._remembered(user)
        while asked is None or not (
            asked.asked_at >= not_before and (asked.asked_at >= begin or self._is_believed(asked))
        ):
            asked = await self._answer(user, asker)
        return asked

    async def look_alike(self, user: str, asker: Asker) -> Asked:
        """What the backend says of a user who has proved nothing yet: all are asked for, remembered or not.

        Neither the time that it takes, nor what it leaves behind, tells of whom something is believed.

        Args:
            user: of the StartupMessage.
            asker: the login.

        Raises:
            LookUpFailed: it says nothing, and nothing is believed.
            ClientGone: the client waits no longer.
            TooManyConnections: too many logins wait for its answers.
        """
        asked = self._remembered(user)
        if asked is None or not self._is_believed(asked):
            return await self._answer(user, asker)
        return await self._answer_soon(user, asker) or asked

    async def show_nothing(self, user: str, asker: Asker) -> None:
        """Ask for a user as `look_alike` does, where the answer is known already."""
        await self._answer_soon(user, asker)

    async def _answer_soon(self, user: str, asker: Asker) -> Asked | None:
        with trio.move_on_after(SHOWN_SECONDS):
            try:
                return await self._answer(user, asker)
            except LookUpFailed:
                pass
        return None

    def last(self, user: str) -> Asked | None:
        """What it said of a user with a verifier when it was asked last, however long ago."""
        return self._known.get(user)

    def _remembered(self, user: str) -> Asked | None:
        for kept in (self._known, self._none):
            if user in kept:
                kept.move_to_end(user)
                return kept[user]
        return None

    def _is_believed(self, asked: Asked) -> bool:
        lifetime = min(self._lifetime, NONE_SECONDS) if asked.secret.verifier is None else self._lifetime
        return time.monotonic() - asked.asked_at < lifetime

    async def _answer(self, user: str, asker: Asker) -> Asked:
        """The answer to the question that is under way, or to a new one."""
        try:
            question = self._questions.join(user, asker.source)
        except TooManyQuestions as error:
            # Whoever is remembered too: to be challenged as if nothing were known, and otherwise later, would
            # tell that there is such a user.
            raise TooManyConnections(f"auth_query at backend {self.name}: {error}") from None
        if not self._is_asking:
            self._is_asking = True
            trio.lowlevel.spawn_system_task(self._ask_all)
        try:
            with trio.move_on_after(ASK_SECONDS):
                await _wait_for(question.over, asker)
        finally:
            self._questions.leave(question, asker.source)
        if question.bug is not None:
            raise question.bug
        if question.asked is None:
            raise LookUpFailed(question.failure or self._silence)
        return question.asked

    @property
    def _silence(self) -> str:
        return f"backend {self.name}: no answer within {ASK_SECONDS:g} s"

    async def _ask_all(self) -> None:
        """Ask in a task of nobody's, so that no waiter's end ends it."""
        while (question := self._questions.begin()) is not None:
            await self._ask(question)
            self._questions.end(question)
        self._is_asking = False

    async def _ask(self, question: Asking) -> None:
        question.failure = self._silence
        try:
            with trio.move_on_after(ASK_SECONDS):
                question.asked = await self._connection.ask(question.user)
                self._remember(question.user, question.asked)
        except BackendUnavailable as error:
            question.failure = error.reason
        except Exception as error:  # noqa: BLE001 - what a system task raises would end the process
            question.bug = error

    def _remember(self, user: str, asked: Asked) -> None:
        self._known.pop(user, None)
        self._none.pop(user, None)
        kept, limit = (self._known, REMEMBERED)
        if asked.secret.verifier is None:
            kept, limit = (self._none, REMEMBERED_NONE)
        kept[user] = asked
        if len(kept) > limit:
            kept.popitem(last=False)


async def _wait_for(answer: trio.Event, asker: Asker) -> None:
    """Wait for an answer, as long as somebody is there to hear of it."""
    is_gone = False

    async def watch() -> None:
        nonlocal is_gone
        await asker.hung_up()
        is_gone = True
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await answer.wait()
        nursery.cancel_scope.cancel()
    if is_gone and not answer.is_set():
        raise ClientGone("the client closed while a backend was asked for its verifier")


def connect_to(
    listener: ListenerSnapshot, resolver: Resolver, logger: FilteringBoundLogger
) -> AuthConnection:
    """The connection of a listener's `auth_query`, which it has. Nothing is dialled yet."""
    query = listener.settings.auth_query
    assert query is not None  # noqa: S101 - whoever calls has looked
    backend = listener.backends[listener.settings.backend_asked(query)]
    return AuthConnection(backend, query, listener.auth_passfile, resolver, logger)


Connect = Callable[[ListenerSnapshot, Resolver, FilteringBoundLogger], AuthConnection]


class AuthQueries:
    """What has been asked for each listener; one a process.

    Args:
        logger: told of bugs of ours.
        connect: makes the connection of a listener.
    """

    def __init__(self, logger: FilteringBoundLogger, connect: Connect = connect_to) -> None:
        self._logger = logger
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
            connection = self._connect(listener, self._resolver, self._logger)
            kept[generation] = AskedVerifiers(name, query.lifetime, connection)
        kept.move_to_end(generation)
        if len(kept) > GENERATIONS:
            kept.popitem(last=False)
        return kept[generation]
