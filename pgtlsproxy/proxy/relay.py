"""Two logged-in legs: bytes both ways until one side ends.

One chunk is in flight in each direction. A direction whose writer is blocked does not read, so
a peer that stops reading stops the other one through TCP's own windows, and memory stays flat.

An end travels on as what it was. close_notify or FIN is passed on as a half-close, and the
answer to what was sent before may still come back. A broken or truncated leg is passed on as a
broken one: nobody is given a clean end that was not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import trio

from pgtlsproxy.errors import ErrorKind
from pgtlsproxy.proxy.stages import LoggedIn, SessionEnd
from pgtlsproxy.tls.stream import MAX_RECORD_OCTETS, Leg, LegAbused, LegLost, LegTruncated

HALF_CLOSE_SECONDS: Final = 60.0
"""How long the backend may go on answering after the client has ended its direction."""

LAST_WORDS_SECONDS: Final = 1.0
"""How long a backend's last words may take to arrive, and a client may take to stop talking.

Closing a socket that holds unread input makes the kernel send RST, which can overtake the FATAL
that the client should read.
"""

TERMINATE: Final = b"X\x00\x00\x00\x04"

Side = Literal["client", "backend"]


@dataclass(slots=True)
class Traffic:
    """What has been carried so far, for whoever must know even when the relay is cut.

    Attributes:
        from_client: octets that the client sent and the backend got.
        from_backend: octets that the backend sent and the client got.
    """

    from_client: int = 0
    from_backend: int = 0


@dataclass(frozen=True, slots=True)
class _Ending:
    kind: str
    reason: str

    @property
    def is_clean(self) -> bool:
        return self.kind == "ok"


class _Session:
    """One session's two directions. The first ending is the session's."""

    def __init__(self, logged_in: LoggedIn, traffic: Traffic) -> None:
        self.client = logged_in.client_leg
        self.backend = logged_in.backend_leg
        self.traffic = traffic
        self.ending: _Ending | None = None
        self.scope = trio.CancelScope()
        self.backend_has_ended = trio.Event()

    def ends(self, ending: _Ending, grace_seconds: float) -> None:
        """Note an ending; what is still in flight has `grace_seconds` left."""
        self.ending = self.ending or ending
        self.scope.deadline = min(self.scope.deadline, trio.current_time() + grace_seconds)

    async def carry_from_client(self, data: bytes) -> None:
        tail = b""
        while True:
            if data:
                tail = (tail + data)[-len(TERMINATE) :]
                if not await self._deliver("client", self.backend, data):
                    await _discard(self.client)
                    return
            try:
                data = await self.client.receive(MAX_RECORD_OCTETS)
            except LegLost as error:
                # Many drivers say Terminate and drop the connection without close_notify. Terminate
                # came through TLS, so nobody on the path can have cut anything off before it.
                if not (isinstance(error, LegTruncated) and tail == TERMINATE):
                    self.ends(_Ending(_kind(error, ErrorKind.CLIENT_LOST), f"client: {error}"), 0)
                    return
                data = b""
            if not data:
                self.ends(_Ending("ok", "the client closed the session"), HALF_CLOSE_SECONDS)
                if tail == TERMINATE:
                    # PostgreSQL reads nothing behind it and ends by itself. A close_notify left unread
                    # would make its close() reset the connection and lose what it sent last.
                    await self.backend_has_ended.wait()
                await self.backend.send_eof()
                return

    async def carry_from_backend(self, data: bytes) -> None:
        while True:
            if data and not await self._deliver("backend", self.client, data):
                return
            try:
                data = await self.backend.receive(MAX_RECORD_OCTETS)
            except LegLost as error:
                self.ends(_Ending(_kind(error, ErrorKind.BACKEND_LOST), f"backend: {error}"), 0)
                return
            if not data:
                self.ends(_Ending("ok", "the backend closed the session"), LAST_WORDS_SECONDS)
                self.backend_has_ended.set()
                await self.client.send_eof()
                return

    async def _deliver(self, side: Side, sink: Leg, data: bytes) -> bool:
        try:
            await sink.send(data)
        except LegLost as error:
            if side == "backend":
                self.ends(_Ending(ErrorKind.CLIENT_LOST, f"client: {error}"), 0)
            else:
                # Why it closed may still lie unread: the other direction reads it out.
                self.ends(_Ending(ErrorKind.BACKEND_LOST, f"backend: {error}"), LAST_WORDS_SECONDS)
            return False
        if side == "client":
            self.traffic.from_client += len(data)
        else:
            self.traffic.from_backend += len(data)
        return True


def _kind(error: LegLost, otherwise: ErrorKind) -> ErrorKind:
    return ErrorKind.TLS_ABUSE if isinstance(error, LegAbused) else otherwise


async def _discard(leg: Leg) -> None:
    try:
        while await leg.receive(MAX_RECORD_OCTETS):
            pass
    except LegLost:
        pass


async def relay(logged_in: LoggedIn, traffic: Traffic | None = None) -> SessionEnd:
    """Carry bytes until the session is over, and say how it ended and how much was carried.

    Args:
        logged_in: the two legs.
        traffic: counts along, for a caller that wants the figures of a session that was cut.

    Owns both legs until it returns, and closes neither. A clean end has been passed on when it
    returns; after a broken one both legs are aborted.

    Cancellation: bytes in flight are lost; both legs are aborted.
    """
    session = _Session(logged_in, traffic or Traffic())
    is_clean = False
    try:
        with session.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session.carry_from_client, logged_in.unread_from_client)
                await session.carry_from_backend(logged_in.unread_from_backend)
        is_clean = session.ending is not None and session.ending.is_clean
    finally:
        if not is_clean:
            session.client.abort()
            session.backend.abort()
    ending = session.ending or _Ending(ErrorKind.SHUTDOWN, "the session was cut")
    return SessionEnd(ending.kind, ending.reason, session.traffic.from_client, session.traffic.from_backend)
