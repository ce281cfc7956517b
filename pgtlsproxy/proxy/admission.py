"""How many may be there at once, so that whoever proves nothing shuts nobody out.

Connections whose client nobody has proved yet have a limit of their own, `max_pending`: one more,
and the oldest of them goes. So a crowd that says nothing, or stalls in its handshake or login, makes
room for those who come after it. `max_connections` limits sessions: who has said what it wants holds
one until its end, and who finds none left is told so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

from pgtlsproxy.config import Settings
from pgtlsproxy.errors import Displaced, TooManyConnections

HARD_LIMIT_MARGIN: Final = 256
"""Connections beyond both limits: those that are being told that they are refused, for a second at most."""


class Admission:
    """What the connections of a process take up.

    Attributes:
        connections: that are open.
        sessions: that hold one of max_connections.
        unproven: whose client nobody has proved yet, the oldest first.
    """

    def __init__(self) -> None:
        self.connections = 0
        self.sessions = 0
        self.unproven: dict[Seat, None] = {}

    def seat(self, limits: Settings) -> Seat:
        """Count a connection that has just been accepted. Its seat is the caller's to leave."""
        return Seat(self, limits)


class Seat:
    """What one connection takes up until it leaves."""

    def __init__(self, admission: Admission, limits: Settings) -> None:
        admission.connections += 1
        self._admission = admission
        self._limits = limits
        self._scope = trio.CancelScope()
        self._has_session = False

    @contextmanager
    def until_proved(self) -> Iterator[None]:
        """The part of a connection's life in which younger ones may displace it.

        Raises:
            Displaced: they have, or so many connections are open that this one is not even listened to.
        """
        most = self._limits.max_connections + self._limits.pending_limit + HARD_LIMIT_MARGIN
        if self._admission.connections > most:
            raise Displaced(f"{most} connections are open: no more are listened to (max_connections)")
        limit, unproven = self._limits.pending_limit, self._admission.unproven
        unproven[self] = None
        while len(unproven) > limit:
            oldest = next(iter(unproven))
            del unproven[oldest]
            oldest._scope.cancel()  # noqa: SLF001 - of the same class
        try:
            with self._scope:
                yield
        finally:
            self.proved()
        if self._scope.cancelled_caught:
            raise Displaced(
                f"younger connections took its place: {limit} unproven ones may be open (max_pending)"
            )

    def proved(self) -> None:
        """Somebody has proved the client, or it has gone: nobody displaces it any more."""
        self._admission.unproven.pop(self, None)

    def take_session(self) -> None:
        """Hold one of max_connections until the end.

        Raises:
            TooManyConnections: there is none left.
        """
        if self._admission.sessions >= self._limits.max_connections:
            raise TooManyConnections(f"{self._limits.max_connections} sessions are open (max_connections)")
        self._admission.sessions += 1
        self._has_session = True

    def leave(self) -> None:
        """Count the connection no more."""
        self._admission.connections -= 1
        if self._has_session:
            self._admission.sessions -= 1
