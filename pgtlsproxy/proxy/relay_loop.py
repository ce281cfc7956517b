"""The relay's thread: one epoll, one shared buffer, and the sessions' legs.

A wake-up of trio costs about 20 µs and of a bare epoll about 1, so what is relayed never wakes
trio. Other threads talk to this one through `post` alone, and everything that was posted is done
between two batches of events: no leg comes or goes while events for it are in hand.

From the moment that a session is added until it is reported over, its legs are this thread's:
nobody else reads, writes, shuts down or closes them. The thread itself closes nothing, so that no
descriptor can come to mean another connection while OpenSSL uses it.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from pgtlsproxy.proxy.relay_session import (
    TAIL_OCTETS,
    Direction,
    RelaySession,
    State,
    When,
    Wish,
)
from pgtlsproxy.tls.raw import SLICE_OCTETS, Buffers, Want
from pgtlsproxy.tls.stream import MAX_RECORD_OCTETS

MAX_EVENTS: Final = 256

LARGE_OCTETS: Final = 8000
"""A read that speaks for a bulk transfer: PostgreSQL and libpq fill buffers of 8192 octets."""

LARGES_TO_BUFFER: Final = 4
SMALLS_TO_UNBUFFER: Final = 8

SWEEP_SECONDS: Final = 1.0
"""How often sessions are looked for that have gone silent after a bulk transfer and hold memory."""

QUIET_SECONDS: Final = 0.05
"""How long both legs must be silent behind ReadyForQuery: a row may end with its six octets, too."""

PAUSED_SECONDS: Final = 60.0
"""How long a session may linger whose one side is gone while the other does not take what is left."""

_IN: Final = select.EPOLLIN
_OUT: Final = select.EPOLLOUT
_GONE: Final = select.EPOLLERR | select.EPOLLHUP
_NOTHING: Final = select.EPOLLET
"""Waits for nothing, but is told once when the connection is gone. Level-triggered, that would spin."""

Route = tuple[Callable[[Any, Any, int], int], Any, Callable[[Any, Any, int], int], Any, Direction]


class RelayLoop:
    """Relays until it is stopped; everything but `post` runs in the thread that called `run`.

    Args:
        report: called with every session that is over; its legs are nobody's then.
    """

    def __init__(self, report: Callable[[RelaySession], None]) -> None:
        self.buffers = Buffers()
        self._report = report
        self._epoll = select.epoll()
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, _IN)
        self._routes: list[Route | None] = []
        self._directions: dict[int, Direction] = {}
        self._bulk: deque[Direction] = deque()
        self._buffered: dict[RelaySession, int] = {}
        self._timers: list[tuple[float, int, RelaySession]] = []
        self._numbers = itertools.count()
        self._next_sweep = math.inf
        self._is_stopped = False

    # --- For other threads ----------------------------------------------------------------------------

    def post(self, action: Callable[[], None]) -> None:
        """Have the thread do something between two batches."""
        self._inbox.append(action)
        os.eventfd_write(self._wake, 1)

    # --- What is posted -------------------------------------------------------------------------------

    def add(self, session: RelaySession, unread_from_client: bytes, unread_from_backend: bytes) -> None:
        """Relay a session from now on, what was read of it already first."""
        directions = session.from_client, session.from_backend
        try:
            for direction, unread in zip(directions, (unread_from_client, unread_from_backend), strict=True):
                self._directions[direction.source.fd] = direction
                session.begin(direction, unread)
            for direction in directions:
                if direction.may_read:
                    # What OpenSSL has decrypted already is announced by no event.
                    session.step(direction, MAX_RECORD_OCTETS)
            self._settle(session)
        except Exception as error:  # noqa: BLE001 - one session's failure is its own
            self._failed(session, error)

    def wish(self, session: RelaySession, wish: Wish) -> None:
        """End a session as somebody outside wants it."""
        session.wish = wish
        if wish.when is When.NOW:
            session.breaks(wish.ending)
        try:
            self._settle(session)
        except Exception as error:  # noqa: BLE001 - one session's failure is its own
            self._failed(session, error)

    def stop(self) -> None:
        """End the thread. Sessions that are left are not reported."""
        self._is_stopped = True

    # --- The loop -------------------------------------------------------------------------------------

    def run(self) -> None:
        """Relay until `stop`."""
        try:
            while not self._is_stopped:
                self._batch(0 if self._bulk else self._timeout())
                if self._bulk:
                    self._turn(self._bulk.popleft())
                if self._inbox:
                    self._take_inbox()
                if self._timers or self._buffered:
                    self._keep_time()
        finally:
            self._epoll.close()

    def close(self) -> None:
        """Free the last descriptor. Only where nobody posts any more."""
        os.close(self._wake)

    def _batch(self, timeout: float | None) -> None:
        """Wait for events and handle each: the path of every message."""
        routes, buffer = self._routes, self.buffers.plain_pointer
        octets = self.buffers.plain
        for fd, events in self._epoll.poll(timeout, MAX_EVENTS):
            route = routes[fd] if fd < len(routes) else None
            if route is None or events != _IN:
                self._slow(fd, events)
                continue
            read, source, write, sink, direction = route
            try:
                taken = read(source, buffer, MAX_RECORD_OCTETS)
                given = write(sink, buffer, taken) if taken > 0 else 0
                if 0 < taken == given:
                    # Direction.carried, in place: a call would cost 0.1 µs of 20.
                    direction.octets += taken
                    direction.reads += 1
                    direction.session.last = direction
                    if taken >= TAIL_OCTETS:
                        direction.tail = octets[taken - TAIL_OCTETS : taken]
                        if taken >= LARGE_OCTETS:
                            self._large(direction)
                    else:
                        direction.tail = (direction.tail + octets[:taken])[-TAIL_OCTETS:]
                    continue
                if taken > 0:
                    direction.session.not_written(direction, taken, given)
                else:
                    direction.session.nothing_read(direction, taken)
                self._settle(direction.session)
            except Exception as error:  # noqa: BLE001 - one session's failure is its own
                self._failed(direction.session, error)

    def _slow(self, fd: int, events: int) -> None:
        """An event that is not just a message for a leg that is free to take it."""
        direction = self._directions.get(fd)
        if direction is None:
            return  # the inbox's
        session, leg = direction.session, direction.source
        try:
            if direction.mask == _NOTHING:
                if events & _GONE:
                    self._gone(direction)
            else:
                if leg.unsent or leg.is_ending:
                    session.flush(leg)
                is_ready = events & (_IN | _GONE) or (leg.read_wants is Want.WRITE and events & _OUT)
                if is_ready and direction.may_read and not session.is_over:
                    self._read(direction)
            self._settle(session)
        except Exception as error:  # noqa: BLE001 - one session's failure is its own
            self._failed(session, error)

    def _read(self, direction: Direction) -> None:
        if direction.source.is_buffered or direction.sink.is_buffered:
            self._enqueue(direction)
        elif direction.session.step(direction, MAX_RECORD_OCTETS) >= LARGE_OCTETS:
            self._large(direction)

    def _gone(self, direction: Direction) -> None:
        """A leg that nothing is wanted of has broken."""
        session = direction.session
        if direction.state is not State.FLOWING and direction.source.sock.getsockopt(
            socket.SOL_SOCKET, socket.SO_ERROR
        ):
            session.is_over = True
        else:
            # Not told again: what it has sent is read when the other side takes it, or never.
            session.grace = min(session.grace, PAUSED_SECONDS)

    # --- Bulk transfers -------------------------------------------------------------------------------

    def _large(self, direction: Direction) -> None:
        """A large read. A few of them in a row are a bulk transfer."""
        is_next = direction.reads == direction.last_large + 1
        direction.larges = direction.larges + 1 if is_next else 1
        direction.last_large = direction.reads
        session = direction.session
        if direction.larges >= LARGES_TO_BUFFER and session not in self._buffered:
            legs = session.client, session.backend
            if session.ending is None and not any(leg.unsent for leg in legs):
                for leg in legs:
                    leg.buffer()
                direction.smalls = direction.reverse.smalls = 0
                self._buffered[session] = -1
                self._next_sweep = min(self._next_sweep, time.monotonic() + SWEEP_SECONDS)
                self._settle(session)
                for each in (direction, direction.reverse):
                    self._enqueue(each)

    def _enqueue(self, direction: Direction) -> None:
        if not direction.is_queued:
            direction.is_queued = True
            self._bulk.append(direction)

    def _turn(self, direction: Direction) -> None:
        """One slice of a bulk transfer; small messages of other sessions go before the next."""
        direction.is_queued = False
        session = direction.session
        if direction.mask is None or not direction.may_read:
            return
        try:
            taken = session.step(direction, SLICE_OCTETS)
            direction.smalls = 0 if taken >= LARGE_OCTETS else direction.smalls + 1
            if direction.smalls >= SMALLS_TO_UNBUFFER and direction.reverse.smalls != 0:
                self._unbuffer(session)
            self._settle(session)
        except Exception as error:  # noqa: BLE001 - one session's failure is its own
            self._failed(session, error)

    def _unbuffer(self, session: RelaySession) -> None:
        if all([leg.unbuffer() for leg in (session.client, session.backend)]):  # noqa: C419 - both, in any case
            self._buffered.pop(session, None)
            session.from_client.larges = session.from_backend.larges = 0

    def _sweep(self, now: float) -> None:
        for session, octets in list(self._buffered.items()):
            if session.octets == octets:
                try:
                    self._unbuffer(session)
                    self._settle(session)
                except Exception as error:  # noqa: BLE001 - one session's failure is its own
                    self._failed(session, error)
            else:
                self._buffered[session] = session.octets
        self._next_sweep = now + SWEEP_SECONDS if self._buffered else math.inf

    # --- Between events -------------------------------------------------------------------------------

    def _settle(self, session: RelaySession) -> None:
        """Wait for what the session waits for now, or report that it is over."""
        if self._directions.get(session.client.fd) is not session.from_client:
            return  # reported already
        if session.is_over:
            self._remove(session)
            return
        for direction in (session.from_client, session.from_backend):
            self._watch(direction)
            if direction.source.has_more and direction.may_read:
                self._enqueue(direction)
        if session.grace < session.deadline - time.monotonic():
            self._set_deadline(session, session.grace)
        if session.may_be_ended() and session.quiet_octets != session.octets:
            session.quiet_octets = session.octets
            session.quiet_until = time.monotonic() + QUIET_SECONDS
            self._at(session.quiet_until, session)

    def _set_deadline(self, session: RelaySession, seconds: float) -> None:
        session.deadline = time.monotonic() + seconds
        session.grace = math.inf
        self._at(session.deadline, session)

    def _at(self, moment: float, session: RelaySession) -> None:
        heapq.heappush(self._timers, (moment, next(self._numbers), session))

    def _watch(self, direction: Direction) -> None:
        leg, fd = direction.source, direction.source.fd
        mask = 0
        may_read = direction.may_read
        if may_read:
            mask |= _IN if leg.read_wants is Want.READ else _OUT
        if leg.unsent or leg.is_ending:
            mask |= _OUT if leg.unsent_wants is Want.WRITE else _IN
        mask = mask or _NOTHING
        if direction.mask is None:
            self._epoll.register(fd, mask)
            self._routes.extend([None] * (fd + 1 - len(self._routes)))
        elif direction.mask != mask:
            self._epoll.modify(fd, mask)
        direction.mask = mask
        is_plain = (
            mask == _IN
            and may_read
            and direction.state is State.FLOWING
            and direction.session.wish is None
            and not leg.is_buffered
            and not direction.sink.is_buffered
        )
        sink = direction.sink
        self._routes[fd] = (leg.read, leg.handle, sink.write, sink.handle, direction) if is_plain else None

    def _remove(self, session: RelaySession) -> None:
        for direction in (session.from_client, session.from_backend):
            fd = direction.source.fd
            self._directions.pop(fd, None)
            if direction.mask is not None:
                direction.mask = None
                self._routes[fd] = None
                self._epoll.unregister(fd)
        self._buffered.pop(session, None)
        session.is_over = True
        self._report(session)

    def _failed(self, session: RelaySession, error: Exception) -> None:
        session.bug = error
        self._remove(session)

    def _take_inbox(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        while self._inbox:
            self._inbox.popleft()()

    def _timeout(self) -> float | None:
        next_moment = min(self._timers[0][0] if self._timers else math.inf, self._next_sweep)
        return None if next_moment == math.inf else max(next_moment - time.monotonic(), 0.0)

    def _keep_time(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            _, _, session = heapq.heappop(self._timers)
            try:
                self._moment_has_come(session, now)
            except Exception as error:  # noqa: BLE001 - one session's failure is its own
                self._failed(session, error)
        if self._next_sweep <= now:
            self._sweep(now)

    def _moment_has_come(self, session: RelaySession, now: float) -> None:
        if session.deadline <= now:
            session.is_over = True
        elif session.may_be_ended() and session.quiet_until <= now:
            session.end_as_wished()
        self._settle(session)
