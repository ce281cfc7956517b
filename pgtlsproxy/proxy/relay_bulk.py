"""Bulk transfers: found by their large reads, carried in slices, and found to be over.

While a session is bulk, memory stands between OpenSSL and its sockets, and a turn moves up to a
slice of 128 kB: half the CPU time of reading record by record. Between two turns the loop looks for
small messages of other sessions, so that nobody waits for more than one slice.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from pgtlsproxy.proxy.relay_session import Direction, RelaySession
from pgtlsproxy.tls.raw import SLICE_OCTETS

LARGE_OCTETS: Final = 8000
"""A read that speaks for a bulk transfer: PostgreSQL and libpq fill buffers of 8192 octets."""

LARGES_TO_BEGIN: Final = 4
SMALLS_TO_END: Final = 8


class BulkTransfers:
    """The sessions that are bulk now, and the turns that are due.

    Attributes:
        turns: the directions whose turn is due, in order.
        sessions: those that are bulk, with how many octets they had carried when last looked at.
    """

    def __init__(self) -> None:
        self.turns: deque[Direction] = deque()
        self.sessions: dict[RelaySession, int] = {}

    def note_large(self, direction: Direction, octets: int) -> bool:
        """Count a large read of so many octets; a few in a row make the session bulk: then this is True."""
        pace, session = direction.pace, direction.session
        pace.larges = pace.larges + 1 if direction.octets - octets == pace.large_until else 1
        pace.large_until = direction.octets
        legs = session.client, session.backend
        if (
            pace.larges < LARGES_TO_BEGIN
            or session in self.sessions
            or session.ending is not None
            or any(leg.unsent for leg in legs)
        ):
            return False
        for leg in legs:
            leg.buffer()
        self.sessions[session] = -1
        for each in (direction, direction.reverse):
            each.pace.smalls = 0
            # A side that says nothing is read in vain once each transfer, and that is no abuse.
            each.octets_at_last_empty = -1
            self.enqueue(each)
        return True

    def enqueue(self, direction: Direction) -> None:
        """Let a direction have a turn."""
        if not direction.pace.is_queued:
            direction.pace.is_queued = True
            self.turns.append(direction)

    def next_turn(self) -> Direction:
        """The direction whose turn it is. There must be one."""
        direction = self.turns.popleft()
        direction.pace.is_queued = False
        return direction

    def wait_for_turn(self, direction: Direction) -> bool:
        """Let a direction whose source has something wait for its turn; False where more is to be done."""
        leg = direction.source
        if direction.session in self.sessions and direction.may_read and not (leg.unsent or leg.is_ending):
            self.enqueue(direction)
        return direction.pace.is_queued

    def take_turn(self, direction: Direction) -> bool:
        """One slice; after a few small ones the session is bulk no more.

        Returns:
            Whether it was large, of a session that is bulk, and nothing else has happened.
        """
        session, pace = direction.session, direction.pace
        taken = session.step(direction, SLICE_OCTETS)
        if taken >= LARGE_OCTETS:
            pace.smalls = 0
            # Where there will be more, no event is waited for.
            if taken > SLICE_OCTETS // 2 or direction.source.has_more:
                self.enqueue(direction)
            return session.is_undisturbed and session in self.sessions
        pace.smalls += 1
        # The turn may have been due when the other direction found that the transfer is over.
        is_over = pace.smalls >= SMALLS_TO_END and direction.reverse.pace.smalls > 0
        if is_over and session in self.sessions:
            self._end(session)
        return False

    def look_for_silent(self) -> list[RelaySession]:
        """End bulk transfers that have carried nothing since the last look, and return their sessions."""
        silent = [session for session, octets in self.sessions.items() if session.octets == octets]
        for session in silent:
            self._end(session)
        self.sessions.update((session, session.octets) for session in self.sessions)
        return silent

    def _end(self, session: RelaySession) -> None:
        # Both, whether the first can or not: what cannot yet is tried again.
        is_free = [leg.unbuffer() for leg in (session.client, session.backend)]
        if all(is_free):
            del self.sessions[session]
            session.from_client.pace.larges = session.from_backend.pace.larges = 0

    def give_back(self, session: RelaySession) -> None:
        """Take their memory from legs that have it only because their sockets were full."""
        if session not in self.sessions:
            for leg in (session.client, session.backend):
                leg.unbuffer()

    def forget(self, session: RelaySession) -> None:
        """A session is over."""
        self.sessions.pop(session, None)
