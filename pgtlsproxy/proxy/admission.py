"""How many may be there at once, so that whoever proves nothing shuts nobody out.

Connections whose client nobody has proved yet have a limit of their own, `max_pending`: one more,
and the oldest of them goes. So a crowd that says nothing, or stalls in its handshake or login, makes
room for those who come after it. `max_connections` limits sessions: who has said what it wants holds
one until its end, and who finds none left is told so; so do a source and a user where they have a limit of
their own. All are limits over all workers, but for unproven connections of a worker that hangs.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from pgtlsproxy.config import Settings
from pgtlsproxy.errors import DeadlineMissed, Displaced, ShuttingDown, TooManyConnections
from pgtlsproxy.identity import printable
from pgtlsproxy.proxy.limits import HARD_LIMIT_MARGIN
from pgtlsproxy.proxy.shared_table import Count, Tag, WorkerSlot


class Admission:
    """What the connections of this worker take up, beside those of the others.

    Args:
        slot: where that is counted over all workers.
        displace_at: lets another worker `displace`, by its number and the limit.
        fitting: how many connections this one has descriptors for. Of more, the oldest unproven one goes.
    """

    def __init__(
        self, slot: WorkerSlot, displace_at: Callable[[int, int], None], fitting: int = sys.maxsize
    ) -> None:
        self.slot = slot
        self._fitting = fitting
        self._connections = 0
        self._displace_at = displace_at
        self._unproven: dict[Seat, None] = {}
        self._entering: set[Seat] = set()
        self._closed = ""
        self.turned_away = ""

    def seat(self, limits: Settings) -> Seat:
        """Count a connection that has just been accepted. Its seat is the caller's to leave."""
        self.add_connections(+1)
        if self._connections > self._fitting:
            self.make_room()
        return Seat(self, limits)

    def add_connections(self, difference: int) -> None:
        """Count open connections up or down."""
        self._connections += difference
        self.slot.add(Count.CONNECTIONS, difference)

    def close(self, why: str) -> None:
        """Let nobody in any more.

        Args:
            why: for the log.
        """
        self._closed = why

    def turn_away(self) -> None:
        """End the logins that are under way, once nobody is let in any more."""
        self.turned_away = self._closed
        for seat in self._entering:
            seat.turn_away(self.turned_away)

    def check_open(self) -> None:
        """Judge whether a login that has just ended may become a session.

        Raises:
            ShuttingDown: nobody may.
        """
        if self._closed:
            raise ShuttingDown(self._closed)

    def enter(self, seat: Seat) -> None:
        """Note a connection that has not been let in yet."""
        self._entering.add(seat)

    def leave_entrance(self, seat: Seat) -> None:
        """Note that it has been, or never will."""
        self._entering.discard(seat)

    def add_unproven(self, seat: Seat, limit: int) -> None:
        """Count a connection that nobody has proved; where it is one too many, the oldest goes."""
        self._unproven[seat] = None
        self._publish(+1)
        self.displace(limit)

    def remove_unproven(self, seat: Seat) -> None:
        """Count it as such no more, if it was."""
        if seat in self._unproven:
            del self._unproven[seat]
            self._publish(-1)

    def displace(self, limit: int) -> None:
        """Let the oldest unproven connection go, and the next, while all workers have more than the limit.

        Where another worker has it, that one is told to do the same.
        """
        while self.slot.total_unproven() > limit:
            worker = self.slot.holder_of_oldest()
            if worker != self.slot.number:
                self._displace_at(worker, limit)
                return
            oldest = next(iter(self._unproven), None)
            if oldest is None:
                return
            self.remove_unproven(oldest)
            oldest.displace(f"{limit} unproven ones may be open (max_pending)")

    def make_room(self) -> None:
        """Let the oldest unproven connection of this worker go, for its descriptor is needed."""
        oldest = next(iter(self._unproven), None)
        if oldest is not None:
            self.remove_unproven(oldest)
            oldest.displace("there are no descriptors for more")

    def _publish(self, difference: int) -> None:
        self.slot.add(Count.UNPROVEN, difference)
        self.slot.beat()
        self.slot.set_oldest(next((seat.since for seat in self._unproven), 0.0))


class Seat:
    """What one connection takes up until it leaves.

    Attributes:
        since: `time.monotonic()` of its accept, which is the same clock in all workers.
    """

    def __init__(self, admission: Admission, limits: Settings) -> None:
        self.since = time.monotonic()
        # One scope for all that may end a login from outside: a scope costs 15 µs, to move its deadline 5.
        self._scope = trio.CancelScope()
        self._admission = admission
        self._limits = limits
        self._has_session = False
        self._tags: dict[Tag, int] = {}
        self._displaced = ""
        self._turned_away = ""
        self._missed = ""

    @contextmanager
    def until_let_in(self) -> Iterator[None]:
        """The part of a connection's life that has deadlines, and in which younger ones may displace it.

        Raises:
            Displaced: they have, or so many connections are open that this one is not even listened to.
            ShuttingDown: it was turned away.
            DeadlineMissed: what is due by `must_be_over_by` was not over.
        """
        limit = self._limits.pending_limit
        most = self._limits.max_connections + limit + HARD_LIMIT_MARGIN
        if self._admission.slot.total(Count.CONNECTIONS) > most:
            raise Displaced(f"{most} connections are open: no more are listened to (max_connections)")
        self._admission.add_unproven(self, limit)
        self._admission.enter(self)
        try:
            with self._scope:
                yield
        finally:
            self._admission.leave_entrance(self)
            self.proved()
        if self._turned_away and self._scope.cancelled_caught:
            raise ShuttingDown(self._turned_away)
        if self._displaced and self._scope.cancelled_caught:
            raise Displaced(f"younger connections took its place: {self._displaced}")
        if self._scope.cancelled_caught:
            raise DeadlineMissed(self._missed)

    def must_be_over_by(self, deadline: float, missed: str) -> None:
        """Give what follows, as far as the end of `until_let_in`, a deadline in place of the one before.

        Args:
            deadline: by `trio.current_time()`; infinite for none.
            missed: what to say when it is missed.
        """
        self._scope.deadline = deadline
        self._missed = missed
        if self._admission.turned_away:  # it was accepted, or on its way here, when the others were
            self.turn_away(self._admission.turned_away)

    def displace(self, why: str) -> None:
        """End it in favour of younger ones.

        Args:
            why: for the log.
        """
        self._displaced = why
        self._scope.cancel()

    def turn_away(self, why: str) -> None:
        """End it, for nobody is let in any more; a CancelRequest is passed on all the same."""
        if self._scope.deadline != math.inf:
            self._turned_away = why
            self._scope.cancel()

    def proved(self) -> None:
        """Somebody has proved the client, or it has gone: nobody displaces it any more."""
        self._admission.remove_unproven(self)

    def take_session(self, source: str) -> None:
        """Hold one of max_connections until the end.

        Args:
            source: where the client comes from.

        Raises:
            TooManyConnections: there is none left, or none for this source.
        """
        # First counted and then judged: of two that take the last one in two workers, none gets a second.
        self._admission.slot.add(Count.SESSIONS, +1)
        self._has_session = True
        limits, slot = self._limits, self._admission.slot
        has_room = self._hold(Tag.SOURCE, slot.source_tag(source), limits.max_connections_per_source)
        if slot.total(Count.SESSIONS) > limits.max_connections:
            self._give_back()
            raise TooManyConnections(f"{limits.max_connections} sessions are open (max_connections)")
        if not has_room:
            self._give_back()
            raise TooManyConnections(
                f"{limits.max_connections_per_source} sessions of {source} are open "
                "(max_connections_per_source)"
            )

    def take_user(self, listener: str, identity: str, role: str) -> None:
        """Note who the client is, now that it is proved: it holds one of that user's sessions until the end.

        Args:
            listener: where it came; the same name may mean somebody else at another one.
            identity: who it is.
            role: the user that it asks for.

        Raises:
            TooManyConnections: it has as many as it may.
        """
        self.proved()
        limit = self._limits.max_connections_per_user
        if not self._hold(Tag.USER, self._admission.slot.user_tag(listener, identity), limit):
            self._give_back()
            raise TooManyConnections(
                f'{limit} sessions of "{printable(identity)}" are open (max_connections_per_user)',
                reply=f'too many connections for role "{printable(role)}"',
            )

    def _hold(self, kind: Tag, tag: bytes, limit: int) -> bool:
        """Count the session by a tag. Returns whether it may be there: zero is no limit.

        One that has been judged is not judged again: who is one too many is counted for a moment, too.
        """
        if kind in self._tags:
            return True
        slot = self._admission.slot
        self._tags[kind] = slot.publish(kind, tag)
        return not limit or slot.count(kind, tag) <= limit

    def _give_back(self) -> None:
        while self._tags:
            self._admission.slot.withdraw(*self._tags.popitem())
        if self._has_session:
            self._has_session = False
            self._admission.slot.add(Count.SESSIONS, -1)

    def leave(self) -> None:
        """Count the connection no more."""
        self._admission.add_connections(-1)
        self._give_back()
