"""A logged-in session on its way to the relay's thread and back.

Until `carry` returns, both legs are the thread's (`proxy.relay_loop`) and trio does not touch them.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from pgtlsproxy.errors import ErrorKind
from pgtlsproxy.proxy.relay_ending import NO_LIMITS, Ending, When, Wish
from pgtlsproxy.proxy.relay_limits import Watched
from pgtlsproxy.proxy.relay_loop import RelayLoop
from pgtlsproxy.proxy.relay_session import RelaySession
from pgtlsproxy.proxy.stages import LoggedIn, SessionEnd
from pgtlsproxy.tls.raw_tls import raw_leg

STOP_SECONDS: Final = 5.0
"""How long the thread may take to end. It never waits for a peer, so it takes a millisecond."""

LOOK_SECONDS: Final = 1.0
"""How often sessions are looked at that end by themselves."""

LOOKS_AT_ONCE: Final = 256
"""How many at once: a look takes a microsecond, and some more where the session is in a transaction."""

LOOK_PAUSE_SECONDS: Final = 0.002

CUT: Final = Ending(ErrorKind.SHUTDOWN, "the session was cut", is_cut=True)


class RelayDied(Exception):
    """The relay's thread has ended by itself. Nothing that is relayed can go on: the process must end."""


@dataclass(slots=True)
class Traffic:
    """What has been carried so far, for whoever must know even when the relay is cut.

    Attributes:
        from_client: octets that the client sent and the backend got.
        from_backend: octets that the backend sent and the client got.
    """

    from_client: int = 0
    from_backend: int = 0


class Relay:
    """The sessions' way into the thread. Made by `open_relay`.

    Attributes:
        has_cut: whether a session was ended though it may not have been idle.
    """

    def __init__(self) -> None:
        self.has_cut = False
        self._trio = trio.lowlevel.current_trio_token()
        self._loop = RelayLoop(self._report)
        self._sessions: dict[int, tuple[LoggedIn, RelaySession]] = {}
        """By the identity of the LoggedIn, which lives for as long as it stands here."""
        self._watched: dict[int, Watched] = {}
        self._failure: BaseException | None = None
        self._has_ended = trio.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    async def carry(self, logged_in: LoggedIn, traffic: Traffic | None = None) -> SessionEnd:
        """Carry bytes until the session is over, and say how it ended and how much was carried.

        Args:
            logged_in: the two legs.
            traffic: filled in even where the session was cut.

        Owns both legs until it returns, and closes neither. A clean end has been passed on when it
        returns; after a broken one both legs are aborted.

        Cancellation: bytes in flight are lost; both legs are aborted.

        Raises:
            Exception: a bug in the relay, which ended this session alone.
            RelayDied: it ended all of them.
        """
        if self._has_ended.is_set():
            raise RelayDied("the relay's thread has ended") from self._failure
        over = trio.Event()
        buffers = self._loop.buffers
        client, backend = raw_leg(logged_in.client_leg, buffers), raw_leg(logged_in.backend_leg, buffers)
        session = RelaySession(client, backend, buffers.plain, over)
        self._sessions[id(logged_in)] = logged_in, session
        if logged_in.limits is not NO_LIMITS:
            self._watched[id(logged_in)] = Watched(session, logged_in.limits)
        traffic = Traffic() if traffic is None else traffic
        is_clean = False
        try:
            unread = logged_in.unread_from_client, logged_in.unread_from_backend
            self._loop.post(partial(self._loop.add, session, *unread))
            await self._until_over(session, over)
            ending = session.ending or CUT
            is_clean = session.is_clean
        finally:
            del self._sessions[id(logged_in)]
            self._watched.pop(id(logged_in), None)
            if session.ending is not None and session.ending.is_cut:
                self.has_cut = True
            traffic.from_client = session.from_client.octets
            traffic.from_backend = session.from_backend.octets
            session.release()
            if not is_clean:
                logged_in.client_leg.abort()
                logged_in.backend_leg.abort()
        return SessionEnd(ending.kind, ending.reason, traffic.from_client, traffic.from_backend)

    async def _until_over(self, session: RelaySession, over: trio.Event) -> None:
        try:
            await over.wait()
        except trio.Cancelled:
            self._loop.post(partial(self._loop.wish, session, Wish(CUT, When.NOW)))
            with trio.CancelScope(shield=True):
                await over.wait()
            raise
        if session.bug is not None:
            raise session.bug
        if self._failure is not None and session.ending is None:
            raise RelayDied("the relay's thread has ended") from self._failure

    def carried(self) -> tuple[LoggedIn, ...]:
        """The sessions that are relayed now."""
        return tuple(logged_in for logged_in, _ in self._sessions.values())

    async def look_at_sessions(self) -> None:
        """Have the thread look, once a second, at the sessions that have to end, or are lost, by then.

        A moment of the thread's own that is always due would cost every message a little.
        """
        while True:
            await trio.sleep(LOOK_SECONDS)
            self._loop.post(self._loop.look_for_lost)
            watched = tuple(self._watched.values())
            for start in range(0, len(watched), LOOKS_AT_ONCE):
                self._loop.post(partial(self._loop.look_at, watched[start : start + LOOKS_AT_ONCE]))
                await trio.sleep(LOOK_PAUSE_SECONDS)

    def end(self, logged_in: LoggedIn, wish: Wish) -> bool:
        """End a session from outside, when the wish says; `carry` returns the wish's ending for it.

        Args:
            logged_in: the session.
            wish: how and when it is to end; takes the place of an earlier one.

        Returns:
            Whether it was still relayed.
        """
        found = self._sessions.get(id(logged_in))
        if found is None:
            return False
        self._loop.post(partial(self._loop.wish, found[1], wish))
        return True

    async def take_a_turn(self) -> None:
        """Wait until the thread has been between two batches of events."""
        turn = trio.Event()
        self._loop.post(lambda: self._tell_trio(turn.set))
        await turn.wait()

    # --- The thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._loop.run()
        except BaseException as error:  # noqa: BLE001 - nothing may end the thread without a word
            self._failure = error
        self._tell_trio(self._ended)

    def _report(self, session: RelaySession) -> None:
        self._tell_trio(session.token.set)

    def _tell_trio(self, action: Callable[[], object]) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            self._trio.run_sync_soon(action)

    def _ended(self) -> None:
        for _, session in self._sessions.values():
            session.token.set()
        self._has_ended.set()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    async def watch(self) -> None:
        """Wait for the thread's end.

        Raises:
            RelayDied: it has come.
        """
        await self._has_ended.wait()
        raise RelayDied("the relay's thread has ended") from self._failure

    def stop(self) -> None:
        """End the thread. No session may be left."""
        self._loop.post(self._loop.stop)
        self._thread.join(STOP_SECONDS)
        self._loop.close()


@asynccontextmanager
async def open_relay() -> AsyncIterator[Relay]:
    """A relay whose thread runs while the context lasts.

    Raises:
        RelayDied: the thread has ended by itself; the body is cancelled.
    """
    relay = Relay()
    relay.start()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay.watch)
        nursery.start_soon(relay.look_at_sessions)
        try:
            yield relay
        finally:
            relay.stop()
            nursery.cancel_scope.cancel()
