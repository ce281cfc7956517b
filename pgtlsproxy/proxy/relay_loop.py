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
import errno
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, Final

from pgtlsproxy.proxy.relay_bulk import LARGE_OCTETS, BulkTransfers
from pgtlsproxy.proxy.relay_count import HEADER_OCTETS, QUERY
from pgtlsproxy.proxy.relay_ending import When, Wish
from pgtlsproxy.proxy.relay_limits import Watched
from pgtlsproxy.proxy.relay_moments import Moments
from pgtlsproxy.proxy.relay_owed import A_QUERY, ANSWERED, KEPT_OCTETS, Owed, is_one_batch, query_head
from pgtlsproxy.proxy.relay_patience import Patience
from pgtlsproxy.proxy.relay_session import (
    Direction,
    RelaySession,
    Stage,
    State,
)
from pgtlsproxy.tls.raw import Buffers, Operation, Want
from pgtlsproxy.tls.stream import MAX_RECORD_OCTETS, LegLost

MAX_EVENTS: Final = 42
"""Of one wake-up. Room for them is got each time, 12 octets for each: up to 512 together Python has it at
hand, which takes 0.07 µs less than what the C library gives.
"""

SWEEP_SECONDS: Final = 1.0
"""How often sessions are looked for that have gone silent after a bulk transfer and hold memory."""

_IN: Final = select.EPOLLIN
_OUT: Final = select.EPOLLOUT
_GONE: Final = select.EPOLLERR | select.EPOLLHUP
_NOTHING: Final = select.EPOLLET
"""Waits for nothing, but is told once when the connection is gone. Level-triggered, that would spin."""

_EVENTS_OF: Final = itemgetter(1)

_QUERY_HEADS: Final = tuple(query_head(octets) for octets in range(LARGE_OCTETS))
"""How a record of so many octets begins that is one Query: to compare takes 0.1 µs less than to unpack."""

Route = tuple[Operation, Any, Operation, Any, Direction, Owed, bool]
"""How to carry one message: read, its handle, write, its handle, and for what; True where the client asks."""


class _Timing:
    """A session's moments.

    Attributes:
        deadline, deadline_octets: when its ending's grace is over, and what it had carried when that was set.
        deadline_at: when that is, by the monotonic clock; infinite without one.
    """

    __slots__ = ("deadline", "deadline_at", "deadline_octets")

    def __init__(self) -> None:
        self.deadline: int | None = None
        self.deadline_at = float("inf")
        self.deadline_octets = 0


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
        self._routes: list[Route | None] = [None] * (self._wake + 1)
        self._directions: dict[int, Direction] = {}
        self._masks: dict[int, int] = {}
        self._timings: dict[RelaySession, _Timing] = {}
        self._moments = Moments()
        self._patience = Patience()
        self._bulk = BulkTransfers()
        self._is_sweeping = False
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
        self._timings[session] = _Timing()
        with self._only(session):
            for direction, unread in zip(directions, (unread_from_client, unread_from_backend), strict=True):
                self._directions[direction.source.fd] = direction
                session.begin(direction, unread)
            for direction in directions:
                if direction.may_read:
                    # What OpenSSL has decrypted already is announced by no event.
                    session.step(direction, MAX_RECORD_OCTETS)
            self._settle(session)

    def wish(self, session: RelaySession, wish: Wish) -> None:
        """End a session as somebody outside wants it."""
        with self._only(session):
            session.wish = wish
            if wish.when is When.NOW and session.stage is Stage.LIVE:
                session.breaks(wish.ending)
            self._settle(session)

    def look_at(self, watched: Sequence[Watched]) -> None:
        """End those of some sessions whose time is over."""
        for each in watched:
            with self._only(each.session):
                if each.session.stage is Stage.LIVE and (wish := each.due()) is not None:
                    self.wish(each.session, wish)

    def look_for_lost(self) -> None:
        """End the sessions whose peer has gone while its socket was full."""
        for fd in self._patience.lost():
            direction = self._directions[fd]
            with self._only(direction.session):
                direction.session.source_lost(direction, LegLost(os.strerror(errno.ETIMEDOUT)))
                self._settle(direction.session)

    def stop(self) -> None:
        """End the thread. Sessions that are left are not reported."""
        self._is_stopped = True

    # --- The loop -------------------------------------------------------------------------------------

    def run(self) -> None:
        """Relay until `stop`."""
        try:
            while not self._is_stopped:
                self._carry_messages()
                if self._bulk.turns:
                    self._turn(self._bulk.next_turn())
                while self._inbox:
                    self._inbox.popleft()()
                self._moments.run()
        finally:
            self._epoll.close()

    def close(self) -> None:
        """Free the last descriptor. Only where nobody posts any more."""
        os.close(self._wake)

    def _carry_messages(self) -> None:
        """Wait for events until there is something else to do: the path of every message.

        Of 30 µs a transaction some 2 are this loop's. So everything it needs is a local name, and it looks
        for other work only behind a batch of events that was more than messages: nothing but the inbox's
        event, a slow path and a moment that is due brings any.
        """
        poll, routes, record = self._epoll.poll, self._routes, MAX_RECORD_OCTETS
        pointer, plain = self.buffers.plain_pointer, self.buffers.plain
        timeout = 0 if self._bulk.turns else self._moments.seconds_to_next()
        has_other_work = timeout is not None
        while True:
            batch = poll(timeout, MAX_EVENTS)
            for _, events in batch:
                if events != _IN:
                    # Broken connections first: OpenSSL reads nothing more from one that it could not write
                    # to, and why the backend went may still lie unread. To sort every batch: 0.1 µs.
                    batch.sort(key=_EVENTS_OF, reverse=True)
                    break
            for fd, events in batch:
                route = routes[fd]
                if route is None or events != _IN:
                    has_other_work = True
                    self._other_event(fd, events)
                    continue
                read, source, write, sink, direction, owed, is_clients = route
                try:
                    taken = given = read(source, pointer, record)
                    if taken <= 0 or (given := write(sink, pointer, taken)) != taken:
                        has_other_work = True
                        self._not_carried(direction, taken, given)
                        continue
                except Exception as error:  # noqa: BLE001 - one session's failure is its own
                    has_other_work = True
                    self._failed(direction.session, error)
                    continue
                # Direction.carried and what it calls, in place: a call would cost 0.1 µs.
                direction.octets += taken
                answer = owed.answer
                if not is_clients:
                    if not answer and taken < LARGE_OCTETS:
                        kept_from = 0 if taken < KEPT_OCTETS else taken - KEPT_OCTETS
                        owed.answer = plain[kept_from:taken]
                        continue
                elif (
                    HEADER_OCTETS <= taken < LARGE_OCTETS
                    and answer.endswith(ANSWERED)
                    and len(answer) < KEPT_OCTETS
                ):
                    if plain[0] == QUERY:
                        if plain.startswith(_QUERY_HEADS[taken]):
                            owed.request, owed.answer = A_QUERY, b""
                            continue
                    elif taken < KEPT_OCTETS and is_one_batch(one := plain[:taken]):
                        owed.request, owed.answer = one, b""
                        continue
                has_other_work = True
                self._follow(direction, taken)
            if has_other_work:
                return

    def _not_carried(self, direction: Direction, taken: int, given: int) -> None:
        """A read brought nothing, or a write did not take all of it."""
        if taken > 0:
            direction.session.not_written(direction, taken, given)
        else:
            direction.session.nothing_read(direction, taken)
        self._settle(direction.session)

    def _follow(self, direction: Direction, octets: int) -> None:
        """A message that needs a closer look has been carried."""
        session = direction.session
        with self._only(session):
            direction.follow(octets, self.buffers.plain)
            is_bulk = octets >= LARGE_OCTETS and self._bulk.note_large(direction, octets)
            if is_bulk or session.owed.count is not None:
                self._settle(session)

    def _other_event(self, fd: int, events: int) -> None:
        """An event that is not just a message for a leg that is free to take it."""
        direction = self._directions.get(fd)
        if direction is None:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            return
        session, leg = direction.session, direction.source
        if events == _IN == self._masks[fd] and self._bulk.wait_for_turn(direction):
            return
        with self._only(session):
            if self._masks[fd] == _NOTHING:
                if events & _GONE and (direction.state is State.FLOWING or _has_error(leg.sock)):
                    session.connection_broke(direction)
            else:
                if leg.unsent or leg.is_ending:
                    session.flush(leg)
                is_ready = events & (_IN | _GONE) or (leg.read_wants is Want.WRITE and events & _OUT)
                if is_ready and direction.may_read and session.stage is Stage.LIVE:
                    self._read(direction)
            self._settle(session)

    def _read(self, direction: Direction) -> None:
        if direction.session in self._bulk.sessions:
            self._bulk.enqueue(direction)
        elif (octets := direction.session.step(direction, MAX_RECORD_OCTETS)) >= LARGE_OCTETS:
            self._bulk.note_large(direction, octets)

    def _turn(self, direction: Direction) -> None:
        session, masks = direction.session, self._masks
        if session.stage is not Stage.LIVE or not direction.may_read:
            return
        is_plain = masks[direction.source.fd] == _IN == masks[direction.sink.fd]
        try:
            is_middle = self._bulk.take_turn(direction)
            # In the middle of a transfer a session waits for what it waited for before. To settle it all the
            # same, behind the event and behind the turn, made COPY 6 % dearer.
            if not (is_plain and is_middle):
                self._settle(session)
        except Exception as error:  # noqa: BLE001 - one session's failure is its own
            self._failed(session, error)

    def _sweep(self) -> None:
        for session in self._bulk.look_for_silent():
            with self._only(session):
                self._settle(session)
        if self._bulk.sessions:
            self._moments.add(SWEEP_SECONDS, self._sweep)
        else:
            self._is_sweeping = False

    # --- What a session waits for -----------------------------------------------------------------------

    @contextlib.contextmanager
    def _only(self, session: RelaySession) -> Iterator[None]:
        """A failure of ours ends this session alone."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - one session's failure is its own
            self._failed(session, error)

    def _failed(self, session: RelaySession, error: Exception) -> None:
        session.bug = error
        self._remove(session)

    def _settle(self, session: RelaySession) -> None:
        """Wait for what the session waits for now, or report that it is over."""
        wish = session.wish
        if wish is not None and session.stage is Stage.LIVE and session.may_be_ended(wish.when):
            session.end_as_wished()
        if session.stage is Stage.OVER:
            self._remove(session)
        if session.stage is Stage.REPORTED:
            return
        self._bulk.give_back(session)
        for direction in (session.from_client, session.from_backend):
            self._watch(direction)
            if direction.source.has_more and direction.may_read:
                self._bulk.enqueue(direction)
        if session.ending is not None:
            self._set_deadline(session)
        if self._bulk.sessions and not self._is_sweeping:
            self._is_sweeping = True
            self._moments.add(SWEEP_SECONDS, self._sweep)

    def _set_deadline(self, session: RelaySession) -> None:
        timing = self._timings[session]
        deadline_at = time.monotonic() + session.grace
        if deadline_at < timing.deadline_at:
            self._moments.cancel(timing.deadline)
            timing.deadline = self._moments.add(session.grace, partial(self._time_is_up, session))
            timing.deadline_at, timing.deadline_octets = deadline_at, session.octets
        session.grace = float("inf")

    def _time_is_up(self, session: RelaySession) -> None:
        with self._only(session):
            timing = self._timings[session]
            timing.deadline_at = float("inf")
            session.time_is_up(has_moved=session.octets != timing.deadline_octets)
            self._settle(session)

    def _watch(self, direction: Direction) -> None:
        leg, sink, fd = direction.source, direction.sink, direction.source.fd
        may_read, mask = direction.may_read, 0
        if may_read:
            mask |= _IN if leg.read_wants is Want.READ else _OUT
        if leg.unsent or leg.is_ending:
            mask |= _OUT if leg.unsent_wants is Want.WRITE else _IN
        mask = mask or _NOTHING
        known = self._masks.get(fd)
        if known is None:
            self._epoll.register(fd, mask)
            self._routes.extend([None] * (fd + 1 - len(self._routes)))
        elif known != mask:
            self._epoll.modify(fd, mask)
            self._patience.note(leg)
        self._masks[fd] = mask
        is_plain = (
            mask == _IN
            and direction.state is State.FLOWING
            and may_read
            and direction.session.wish is None
            and direction.owed.count is None
            and not leg.is_buffered
            and not sink.is_buffered
        )
        carrying = leg.read, leg.handle, sink.write, sink.handle
        route = (*carrying, direction, direction.owed, direction.is_from_client)
        self._routes[fd] = route if is_plain else None

    def _remove(self, session: RelaySession) -> None:
        if session.stage is Stage.REPORTED:
            return
        session.stage = Stage.REPORTED
        for direction in (session.from_client, session.from_backend):
            fd = direction.source.fd
            self._patience.forget(fd)
            if self._directions.pop(fd, None) is not None and self._masks.pop(fd, None) is not None:
                self._routes[fd] = None
                with contextlib.suppress(OSError):
                    self._epoll.unregister(fd)
        timing = self._timings.pop(session)
        self._moments.cancel(timing.deadline)
        self._bulk.forget(session)
        self._report(session)


def _has_error(sock: socket.socket) -> bool:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
