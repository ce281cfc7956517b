"""One relayed session: two legs, two directions, and what an end of one of them means.

Nothing here waits. `proxy.relay_loop` says when a leg is ready, and asks afterwards what each waits for.

An end travels on as what it was. close_notify or FIN is passed on as a half-close, and the answer
to what was sent before may still come back. A broken or truncated leg is passed on as a broken
one: nobody is given a clean end that was not.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Any, Final

from pgtlsproxy.errors import ErrorKind
from pgtlsproxy.proxy.relay_ending import TERMINATE, Ending, When, Wish
from pgtlsproxy.proxy.relay_owed import Owed
from pgtlsproxy.tls.raw import RawLeg, Want
from pgtlsproxy.tls.stream import LegAbused, LegLost

HALF_CLOSE_SECONDS: Final = 60.0
"""How long the backend may say nothing after the client has ended its direction."""

TERMINATED_SECONDS: Final = 5.0
"""How long a backend is left to end by itself after Terminate.

Only five octets speak for Terminate, and they may as well be the end of something else: what is held
back then is the client's end, and not for ever.
"""

LAST_WORDS_SECONDS: Final = 1.0
"""How long a backend's last words may take to arrive, and a client may take to stop talking.

Closing a socket that holds unread input makes the kernel send RST, which can overtake the FATAL
that the client should read.
"""

PAUSED_SECONDS: Final = 60.0
"""How long a session may linger whose one side is gone while the other does not take what is left."""


class Stage(enum.Enum):
    """Where a session stands."""

    LIVE = "live"
    OVER = "over"
    """Nothing is left to do, and whoever gave the session to the relay does not know it yet."""
    REPORTED = "reported"
    """Its legs are nobody's. No call of OpenSSL or of the socket may follow."""


class State(enum.Enum):
    """Where a direction stands."""

    FLOWING = "flowing"
    HELD = "held"
    """The source has ended, and the sink is not told: it knows, and ends by itself."""
    ENDING = "ending"
    """The source has ended, and the sink is being told."""
    DISCARDING = "discarding"
    """The sink is gone. What the source still sends is dropped until it ends."""
    DONE = "done"


@dataclass(slots=True)
class Pace:
    """What the bulk policy remembers of a direction's reads.

    Attributes:
        large_until, larges: where the last large read ended, in octets, and how many of those came in a row.
        smalls: turns of a bulk transfer that brought little, in a row.
        is_queued: whether a turn is due.
    """

    large_until: int = -1
    larges: int = 0
    smalls: int = 0
    is_queued: bool = False


class Direction:
    """What is read from one leg and written to the other.

    Args:
        source, sink: the legs.
        session: whose.
        name: of the source, for reasons.

    Attributes:
        reverse: the other direction.
        state: where it stands.
        octets: how many were carried.
        octets_at_last_empty: what `octets` was when a read last brought nothing.
        owed: the session's.
        pace: the bulk policy's.
    """

    __slots__ = (
        "name", "octets", "octets_at_last_empty", "owed", "pace", "reverse", "session", "sink", "source",
        "state",
    )  # fmt: skip

    def __init__(self, source: RawLeg, sink: RawLeg, session: RelaySession, name: str) -> None:
        self.source = source
        self.sink = sink
        self.session = session
        self.name = name
        self.reverse: Direction = self
        self.state = State.FLOWING
        self.octets = 0
        self.octets_at_last_empty = 0
        self.owed = session.owed
        self.pace = Pace()

    @property
    def may_read(self) -> bool:
        """Whether the source is to be read: not while its sink's socket is full."""
        if self.state is State.FLOWING:
            return not self.sink.unsent and not (self.source.unsent and self.source.is_choked)
        return self.state is State.DISCARDING

    @property
    def is_from_client(self) -> bool:
        """Whether the source is the client."""
        return self is self.session.from_client

    def carried(self, octets: int, buffer: bytearray) -> None:
        """Count what has been read into the shared buffer and goes to the sink."""
        self.octets += octets
        self.follow(octets, buffer)

    def follow(self, octets: int, buffer: bytearray) -> None:
        """See what it means for what is owed."""
        if self.is_from_client:
            self.owed.asked(buffer, octets)
        else:
            self.owed.answered(buffer, octets)

    def count_fruitless(self) -> None:
        """Start counting reads that bring nothing anew, where there was one that did."""
        if self.octets_at_last_empty != self.octets:
            self.octets_at_last_empty = self.octets
            self.source.fruitless = 0


class RelaySession:
    """A session that is relayed.

    Args:
        client, backend: its legs.
        buffer: the shared buffer that they read into.
        token: whatever the caller knows it by.

    Attributes:
        from_client, from_backend: its directions.
        owed: what the backend owes the client; nothing at first, for ReadyForQuery has ended the login.
        stage: where it stands.
        ending: how it ends; None while it goes on. The first ending is the session's.
        grace: seconds that are left from now on, where the loop does not know it yet; else infinite.
        is_broken: whether both legs are to be aborted, whatever the ending says.
        wish: how somebody outside wants it to end.
        bug: an exception that is our own fault.
    """

    __slots__ = (
        "_buffer", "_is_truncated", "backend", "bug", "client", "ending", "from_backend", "from_client",
        "grace", "is_broken", "owed", "stage", "token", "wish",
    )  # fmt: skip

    def __init__(self, client: RawLeg, backend: RawLeg, buffer: bytearray, token: Any) -> None:
        self.client = client
        self.backend = backend
        self.owed = Owed()
        self.from_client = Direction(client, backend, self, "client")
        self.from_backend = Direction(backend, client, self, "backend")
        self.from_client.reverse, self.from_backend.reverse = self.from_backend, self.from_client
        self.stage = Stage.LIVE
        self.ending: Ending | None = None
        self.grace = math.inf
        self.is_broken = False
        self.wish: Wish | None = None
        self.bug: BaseException | None = None
        self.token = token
        self._buffer = buffer
        self._is_truncated = False

    @property
    def octets(self) -> int:
        """How many octets were carried in both directions."""
        return self.from_client.octets + self.from_backend.octets

    @property
    def is_undisturbed(self) -> bool:
        """Whether it goes on, nobody wishes its end, and neither socket is full."""
        return self.ending is None and self.wish is None and not (self.client.unsent or self.backend.unsent)

    @property
    def is_clean(self) -> bool:
        """Whether both sides have been given the end that they were owed."""
        return self.ending is not None and self.ending.is_clean and not self.is_broken

    def release(self) -> None:
        """Let go of the legs, once the session is over and its octets are noted.

        Session and directions know each other: without this, 50 kB of OpenSSL's memory would wait for
        Python's collector, which rarely looks at what has lived for long. A direction keeps its session: the
        thread may still find it queued, and then looks how that stands.
        """
        for direction in (self.from_client, self.from_backend):
            del direction.reverse
        del self.from_client, self.from_backend

    # --- What happens ---------------------------------------------------------------------------------

    def begin(self, direction: Direction, unread: bytes) -> None:
        """Carry what was read from a direction's source before the relay got it."""
        if unread:
            direction.carried(len(unread), bytearray(unread))
            try:
                direction.sink.put(unread)
            except LegLost as error:
                self.sink_lost(direction, error)

    def step(self, direction: Direction, max_octets: int) -> int:
        """Read once from a direction's source and write it to its sink; returns how many octets."""
        direction.count_fruitless()
        try:
            taken = direction.source.receive(max_octets)
        except LegLost as error:
            self.source_lost(direction, error)
            return 0
        if isinstance(taken, Want):
            if taken is Want.END:
                self.source_ended(direction)
            return 0
        if direction.state is State.FLOWING:
            direction.carried(taken, self._buffer)
            try:
                direction.sink.send(taken)
            except LegLost as error:
                self.sink_lost(direction, error)
        return taken

    def nothing_read(self, direction: Direction, result: int) -> None:
        """A read of the source returned a code and no octets."""
        direction.count_fruitless()
        try:
            want = direction.source.received(result)
        except LegLost as error:
            self.source_lost(direction, error)
        else:
            if want is Want.END:
                self.source_ended(direction)

    def not_written(self, direction: Direction, octets: int, result: int) -> None:
        """A write of so many octets of the shared buffer did not take them all."""
        direction.carried(octets, self._buffer)
        try:
            direction.sink.sent(octets, result)
        except LegLost as error:
            self.sink_lost(direction, error)

    def flush(self, leg: RawLeg) -> None:
        """Go on writing what a leg holds back."""
        writing = self.from_backend if leg is self.client else self.from_client
        try:
            is_flushed = leg.flush()
        except LegLost as error:
            if writing.state is State.FLOWING:
                self.sink_lost(writing, error)
                return
            leg.unsent, leg.is_ending, is_flushed = b"", False, True
        if is_flushed and writing.state is State.ENDING:
            self._done(writing)

    def connection_broke(self, direction: Direction) -> None:
        """The kernel says that a source is gone which is not being read."""
        kind = ErrorKind.CLIENT_LOST if direction is self.from_client else ErrorKind.BACKEND_LOST
        if direction.state is State.FLOWING:
            # What it sent before is still to be had, when the sink takes it.
            self.ends(
                Ending(kind, f"{direction.name}: reset while the other side did not read"), PAUSED_SECONDS
            )
        else:
            self.breaks(Ending(kind, f"{direction.name}: the connection was reset"))

    # --- What it means --------------------------------------------------------------------------------

    def ends(self, ending: Ending, seconds: float) -> None:
        """Note an ending; what is still in flight has so many seconds left."""
        self.ending = self.ending or ending
        self.grace = min(self.grace, seconds)

    def source_ended(self, direction: Direction) -> None:
        """The source has said that it will send no more."""
        if direction is self.from_backend:
            # A backend that ends behind Terminate may be seen to before the client's own end is.
            who = "client" if self.owed.is_terminated else "backend"
            self.ends(Ending("ok", f"the {who} closed the session", is_clean=True), LAST_WORDS_SECONDS)
            if self.from_client.state is State.HELD:
                self._tell_sink(self.from_client)
            self._tell_sink(direction)
        elif direction.state is State.DISCARDING:
            self._done(direction)
        else:
            ending = Ending("ok", "the client closed the session", is_clean=True)
            if self.owed.is_terminated and self.from_backend.state is not State.DONE:
                # PostgreSQL reads nothing behind it and ends by itself. A close_notify left unread would
                # make its close() reset the connection and lose what it sent last.
                direction.state = State.HELD
                self.ends(ending, TERMINATED_SECONDS)
            else:
                self.ends(ending, HALF_CLOSE_SECONDS)
                self._tell_sink(direction)

    def source_lost(self, direction: Direction, error: LegLost) -> None:
        """The source broke, or ended without saying so."""
        if direction.state is State.DISCARDING:
            self._done(direction)
        elif direction is self.from_client and self.owed.is_terminated and not isinstance(error, LegAbused):
            # Many drivers say Terminate and drop the connection, without close_notify and with answers
            # unread, which makes it a reset. What came before was whole.
            self._is_truncated = True
            self.source_ended(direction)
        else:
            kind = ErrorKind.CLIENT_LOST if direction is self.from_client else ErrorKind.BACKEND_LOST
            if isinstance(error, LegAbused):
                kind = ErrorKind.TLS_ABUSE
            self.breaks(Ending(kind, f"{direction.name}: {error}"))

    def sink_lost(self, direction: Direction, error: LegLost) -> None:
        """The sink broke."""
        direction.sink.unsent = b""
        if direction is self.from_backend:
            self.breaks(Ending(ErrorKind.CLIENT_LOST, f"client: {error}"))
        else:
            # Why it closed may still lie unread: the other direction reads it out.
            self.ends(Ending(ErrorKind.BACKEND_LOST, f"backend: {error}"), LAST_WORDS_SECONDS)
            direction.state = State.DISCARDING

    def breaks(self, ending: Ending) -> None:
        """The session is over at once, and in the middle."""
        self.ending = self.ending or ending
        self.is_broken = True
        self.stage = Stage.OVER

    def time_is_up(self, *, has_moved: bool) -> None:
        """The grace of an ending is over.

        Args:
            has_moved: whether anything was carried in the meantime.
        """
        answering = self.from_backend.state is State.FLOWING
        if answering and self.from_client.state is State.HELD and not self._is_truncated:
            self.grace = HALF_CLOSE_SECONDS  # it was no Terminate
            self._tell_sink(self.from_client)
        elif answering and has_moved and self.from_client.state is State.DONE:
            self.grace = HALF_CLOSE_SECONDS  # the answer is long
        else:
            # An answer that is cut off must not look whole. After the backend's end there is none.
            self.is_broken = self.is_broken or self.from_backend.state is not State.DONE
            self.stage = Stage.OVER

    def _tell_sink(self, direction: Direction) -> None:
        direction.state = State.ENDING
        if direction.sink.end():
            self._done(direction)

    def _done(self, direction: Direction) -> None:
        direction.state = State.DONE
        if direction.reverse.state is State.DONE:
            self.stage = Stage.OVER

    # --- When it is told to end -----------------------------------------------------------------------

    def may_be_ended(self, when: When) -> bool:
        """Whether it goes on, and stands where such a wish lets it end."""
        if self.ending is not None or self.client.unsent or self.backend.unsent:
            return False
        status = b"" if self.owed.is_terminated else self.owed.status
        return status == b"I" if when is When.IDLE else status != b""

    def end_as_wished(self) -> None:
        """Tell the client, say Terminate to the backend, and end both legs."""
        wish = self.wish
        assert wish is not None  # noqa: S101 - the caller has looked
        self.ends(wish.ending, LAST_WORDS_SECONDS)
        try:
            self.client.put(wish.farewell)
            self.backend.put(TERMINATE)
        except LegLost as error:
            self.breaks(Ending(wish.ending.kind, f"{wish.ending.reason}; {error}"))
            return
        self.from_client.state = State.DISCARDING
        self._tell_sink(self.from_backend)
