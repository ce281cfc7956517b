"""The connection on which a backend is asked for verifiers, one question after the other.

It is made when there is something to ask, with a login and settings of its own, and is closed when nobody has
asked for a while. One that has broken meanwhile is made anew, and the question is asked again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

import trio
from structlog.typing import FilteringBoundLogger

from pgtlsproxy.config import AuthQuery
from pgtlsproxy.errors import BackendUnavailable
from pgtlsproxy.protocol.auth_query import Question, RoleSecret
from pgtlsproxy.protocol.passfile import Passfile
from pgtlsproxy.protocol.query import TERMINATE, answer_reader
from pgtlsproxy.proxy.dial import read_message, send_to_backend
from pgtlsproxy.proxy.own_login import log_in_as, open_at_a_server, password_at
from pgtlsproxy.proxy.resolve import Resolver
from pgtlsproxy.proxy.snapshot import BackendSnapshot
from pgtlsproxy.proxy.stages import BackendAddress
from pgtlsproxy.tls.stream import Leg

IDLE_SECONDS: Final = 10.0
"""How long nobody may ask before the connection is closed."""

MAX_AGE_SECONDS: Final = 60.0
"""How old it may become: what has changed of roles, certificates and hosts counts for the next one."""

KEPT_SECONDS: Final = 2.0
"""How long an answer may take on a connection that was there already, before a new one is tried."""

RETRY_SECONDS: Final = 1.0
"""How long the backend is left alone after a failure."""

_SESSION: Final = (
    ("application_name", "pgtlsproxy auth_query"),
    ("client_encoding", "SQL_ASCII"),  # names are bytes, as in a StartupMessage
    ("search_path", "pg_catalog"),
)


@dataclass(frozen=True, slots=True)
class Asked:
    """An answer.

    Args:
        secret: what it says.
        asked_at: when the question was sent, by the monotonic clock.
    """

    secret: RoleSecret
    asked_at: float


@dataclass(slots=True)
class _Open:
    leg: Leg
    unread: bytes = field(repr=False)
    made_at: float
    used_at: float

    @property
    def ends_at(self) -> float:
        return min(self.used_at + IDLE_SECONDS, self.made_at + MAX_AGE_SECONDS)


class AuthConnection:
    """Asks one backend, in the words of one `auth_query`.

    Args:
        backend: whom.
        query: as whom, and what.
        passfile: the role's password; None where it needs none.
        resolver: names of backends to addresses.
        logger: told of bugs of ours.

    Attributes:
        iterations: the backend's `scram_iterations`, which a user without a verifier shows there; None where
            it has not been asked yet, or does not tell, as before PostgreSQL 16.
    """

    def __init__(
        self,
        backend: BackendSnapshot,
        query: AuthQuery,
        passfile: Passfile | None,
        resolver: Resolver,
        logger: FilteringBoundLogger,
    ) -> None:
        self._backend = backend
        self._query = query
        self._passfile = passfile
        self._resolver = resolver
        self._logger = logger
        self._turn = trio.Lock()
        self._open: _Open | None = None
        self._failure = ""
        self._failed_at = float("-inf")
        self.iterations: int | None = None

    def _check_failure(self) -> None:
        """Leave a backend alone that has just failed.

        Raises:
            BackendUnavailable: it has.
        """
        if time.monotonic() - self._failed_at < RETRY_SECONDS:
            raise BackendUnavailable(self._failure)

    async def ask(self, user: str) -> Asked:
        """Ask for the verifier of a user.

        Raises:
            BackendUnavailable: there is no answer, or none that can be used.
        """
        async with self._turn:
            self._check_failure()
            self._failure = f"backend {self._backend.name} did not answer in time"
            try:
                asked = await self._ask_anew(user) if self._open is None else await self._ask_again(user)
            except BackendUnavailable as error:
                self._failure, self._failed_at = error.reason, time.monotonic()
                raise
            except trio.Cancelled:
                self._failed_at = time.monotonic()
                raise
        return asked

    async def _ask_again(self, user: str) -> Asked:
        """Ask on the connection that is there, and on a new one where that does not work any more."""
        assert self._open is not None  # noqa: S101 - narrows the type
        with trio.move_on_after(KEPT_SECONDS):
            try:
                return await self._ask(self._open, user)
            except BackendUnavailable:
                pass  # the server may have ended it; if it was the question, it fails again
        return await self._ask_anew(user)

    async def _ask_anew(self, user: str) -> Asked:
        opened = await open_at_a_server(self._backend, self._resolver, self._query.user, self._log_in)
        self._open = opened
        trio.lowlevel.spawn_system_task(self._close_when_idle, opened)
        return await self._ask(opened, user)

    async def _log_in(self, leg: Leg, address: BackendAddress) -> _Open:
        query, settings = self._query, self._backend.settings
        password = password_at(address, self._passfile, query.dbname, query.user)
        logged_in = await log_in_as(leg, settings, query.user, query.dbname, password, _SESSION)
        iterations = logged_in.parameters.get("scram_iterations", "")
        if iterations.isascii() and iterations.isdigit() and len(iterations) < 10:
            self.iterations = int(iterations)
        now = time.monotonic()
        return _Open(leg, logged_in.unread, made_at=now, used_at=now)

    async def _ask(self, opened: _Open, user: str) -> Asked:
        """Ask on a connection, which is closed where that does not end as it should."""
        question = Question(self._query.query, user)
        reader = answer_reader(is_extended=True)
        reader.feed(opened.unread)
        is_whole = False
        try:
            asked_at = time.monotonic()
            await send_to_backend(opened.leg, question.encode())
            while not question.take(await read_message(opened.leg, reader)):
                pass
            secret = question.answer()
            is_whole = True
        except BackendUnavailable as error:
            raise type(error)(f"backend {self._backend.name}: {error.reason}") from None
        finally:
            if not is_whole:
                self._open = None
                opened.leg.close()
        opened.unread = reader.take_unread()
        opened.used_at = time.monotonic()
        return Asked(secret, asked_at)

    async def _close_when_idle(self, opened: _Open) -> None:
        """A task of nobody's: whoever asked first may be gone."""
        try:
            while self._open is opened:
                if (left := opened.ends_at - time.monotonic()) > 0:
                    await trio.sleep(left)
                else:
                    await self._end(opened)
        except Exception as error:
            self._logger.error("bug", exc_info=error)
            if self._open is opened:
                self._open = None
        finally:
            opened.leg.close()

    async def _end(self, opened: _Open) -> None:
        async with self._turn:
            if self._open is not opened or opened.ends_at > time.monotonic():
                return
            self._open = None
            with trio.move_on_after(1):
                try:
                    await send_to_backend(opened.leg, TERMINATE)
                except BackendUnavailable:
                    return  # it has ended already
