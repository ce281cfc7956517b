"""Requests under way, counted by the headers of both sides' messages.

A rule of the protocol behind each: every Query, FunctionCall and Sync is answered by one ReadyForQuery; an
error in the extended protocol lets the backend skip to the next Sync; within COPY FROM STDIN it ignores
Sync, and outside of it CopyData, CopyDone and CopyFail (PostgreSQL manual, "Message Flow";
CopyGetData in copyfromparse.c, PostgresMain in postgres.c).
"""

from __future__ import annotations

import re
import struct
from typing import Final

HEADER_OCTETS: Final = 5

QUERY, FUNCTION_CALL = b"QF"
SYNC: Final = b"S\x00\x00\x00\x04"
EXTENDED: Final = frozenset(b"PBDEC")
"""Parse, Bind, Describe, Execute, Close: answered, but with ReadyForQuery only behind their Sync."""

READY: Final = b"Z\x00\x00\x00\x05"
"""ReadyForQuery without its status."""

ASYNCHRONOUS: Final = frozenset(b"ANS")
"""What the backend may send unasked: NotificationResponse, NoticeResponse, ParameterStatus."""

MANY_MESSAGES: Final = 64
"""More than so many in one read from the backend are not followed: they cost more than carrying them."""

MANY_DATA: Final = 12
"""A client that sends more messages of COPY's data in one read is not followed until its end. Of a slice of
a bulk transfer that is less than 11 kB each; libpq and psql send 8 kB or a row.
"""

TAIL_OCTETS: Final = 256
"""How much of an answer's end is looked at first: what most of them end with is shorter."""

SEEN_OCTETS: Final = 2048
"""How much of a backend's last octets is kept where they are not followed: a notification may be long."""

CLIENT_TAIL_OCTETS: Final = 4096
"""How much of the client's last octets is kept: a CopyFail has an error's text in it."""

_MIXED: Final = ord("x")
"""Marks a Query or FunctionCall that came behind messages of the extended protocol, without a Sync."""

_REQUESTS: Final = frozenset((QUERY, FUNCTION_CALL, SYNC[0]))
_COPY_ENDS: Final = frozenset(b"cf")
_NO_COPY: Final = EXTENDED | {QUERY, FUNCTION_CALL}
"""Refused within COPY FROM STDIN, and answered where it has failed: nobody can tell which."""

_COMMAND_COMPLETE, _ERROR, _COPY_IN = b"CEG"

_HEADER: Final = struct.Struct("!BI")

_COPY_END: Final = re.compile(rb"(?:c\0\0\0\x04|f\0\0..[^\0]*\0)(S\0\0\0\x04)?\Z", re.DOTALL)
"""How a client ends COPY FROM STDIN."""

_COPY_BEGIN: Final = re.compile(rb"G(\0\0..)[\0\1](..)(?:\0[\0\1])*\Z", re.DOTALL)
"""How a backend asks for its data, CopyInResponse: its length, and of how many columns."""

_ANSWER_END: Final = re.compile(
    rb"""(?: C\0\0\0.[ -~]+\0                                 # CommandComplete
           | \0R[ -~]+\0\0                                    # ErrorResponse, NoticeResponse: the routine
           | [EN]\0\0..(?:[A-Za-z][^\0]*\0)+\0                # those that name none, as PgBouncer's own
           | [123Ins]\0\0\0\x04                               # ParseComplete and others without content
           | \0.{6}\0...(?:\xff.|\0.)(?:\xff{4}|\0...)\0[\0\x01]      # RowDescription: a column
           | (?:A\0\0.{6}|S\0\0..)[^\0]+\0[^\0]*\0            # NotificationResponse, ParameterStatus
         )Z\0\0\0\x05([ITE])
         (?: (?:A\0\0.{6}|S\0\0..)[^\0]+\0[^\0]*\0 | N\0\0..(?:[A-Za-z][^\0]*\0)+\0 )*\Z""",
    re.DOTALL | re.VERBOSE,
)


def status_by_looks(data: bytes | bytearray) -> bytes:
    """The status of ReadyForQuery where data ends with it, behind something that may stand before it."""
    if READY not in data:
        return b""
    end = _ANSWER_END.search(data[-TAIL_OCTETS:])
    if end is None and len(data) > TAIL_OCTETS:
        end = _ANSWER_END.search(data)
    return bytes(end.group(1)) if end is not None else b""


def begins_copy(data: bytes | bytearray) -> bool:
    """Whether data ends with CopyInResponse, by its looks: no row in text format looks so."""
    begin = _COPY_BEGIN.search(data)
    if begin is None:
        return False
    length, columns = (int.from_bytes(each) for each in begin.groups())
    return length == begin.end() - begin.start() - 1 == 7 + 2 * columns


class Framing:
    """Where a stream stands between its messages; it begins with one.

    Attributes:
        kind: the type of the message that has begun and not ended; None between two.
    """

    __slots__ = ("_head", "_missing", "kind")

    def __init__(self) -> None:
        self.kind: int | None = None
        self._head: bytes | bytearray = b""
        self._missing = 0

    @property
    def is_at_boundary(self) -> bool:
        """Whether the last message has ended, and no other has begun."""
        return self.kind is None

    def follow(self, data: bytes | bytearray, octets: int) -> list[tuple[int, int]]:
        """Go on for the first octets of data.

        Returns:
            The messages that end there: the type, and where it ends. None follows one whose length word
            is no message's.
        """
        found: list[tuple[int, int]] = []
        at = self._go_on(data, octets, found)
        while at + HEADER_OCTETS <= octets:
            kind, length = _HEADER.unpack_from(data, at)
            end = at + 1 + length
            if end > octets or length < 4:
                self.kind, self._missing = kind, end - octets if length >= 4 else -1
                return found
            found.append((kind, end))
            at = end
        if at < octets:
            self.kind, self._head = data[at], data[at:octets]
        return found

    def _go_on(self, data: bytes | bytearray, octets: int, found: list[tuple[int, int]]) -> int:
        """Go on in the message that earlier data has begun; returns where the next one begins."""
        if self.kind is None:
            return 0
        at = 0
        if self._head:
            at = min(HEADER_OCTETS - len(self._head), octets)
            self._head += data[:at]
            if len(self._head) < HEADER_OCTETS:
                return octets
            length = _HEADER.unpack(self._head)[1]
            self._head, self._missing = b"", max(length - 4, -1)
        end = at + self._missing
        if self._missing < 0 or end > octets:
            self._missing = min(self._missing, end - octets)
            return octets
        found.append((self.kind, end))
        self.kind = None
        return end


class Count:
    """The requests that are under way, and what they mean for what comes.

    Args:
        status: the transaction's, where nothing is owed.
        backend: where the backend stands.

    Attributes:
        requests: the types of those that are owed an answer, in order, and what lies between (`asked`).
        status: the transaction's, by the last ReadyForQuery.
        tail: the client's last octets.
    """

    __slots__ = (
        "_backend", "_client", "_is_copying", "_is_fresh", "_is_open", "_is_uncertain", "_seen", "requests",
        "status", "tail",
    )  # fmt: skip

    def __init__(self, status: bytes, backend: Framing) -> None:
        self.requests = bytearray()
        self.status = status
        self.tail: bytes | bytearray = b""
        self._client: Framing | None = Framing()
        self._backend: Framing | None = backend
        self._seen: bytes | bytearray = b""  # what the backend sent last, where it is not followed
        self._is_fresh = True  # nothing has come of the answer that is owed next
        self._is_open = False  # messages of the extended protocol wait for their Sync
        self._is_uncertain = False
        self._is_copying = False  # the backend takes data

    @property
    def is_simple(self) -> bool:
        """Whether one Query or Sync at most is owed, nothing of its answer has come, and nothing is cut."""
        return (
            len(self.requests) <= 1
            and self.requests != b"F"  # its answer may look like anything: it is followed
            and self._is_fresh
            and self._client is not None
            and self._client.is_at_boundary
            and self._backend is not None
            and self._backend.is_at_boundary
            and not (self._is_open or self._is_uncertain or self._is_copying)
        )

    # --- The client -----------------------------------------------------------------------------------

    def asked(self, data: bytes | bytearray, octets: int) -> None:
        """The client has sent the first octets of data."""
        kept = data[max(0, octets - CLIENT_TAIL_OCTETS) : octets]
        self.tail = (self.tail + kept)[-CLIENT_TAIL_OCTETS:]
        if self._client is None:
            self._look_for_end_of_copy()
            return
        messages = self._client.follow(data, octets)
        for kind, _ in messages:
            if self._is_copying:
                self._is_copying = kind not in _COPY_ENDS
                self._is_uncertain |= kind in _NO_COPY
            elif kind in _REQUESTS:
                if self._is_open and kind != SYNC[0]:
                    self.requests.append(_MIXED)
                self._is_open = False
                self.requests.append(kind)
            elif kind in EXTENDED:
                self._is_open = True
            elif kind in _COPY_ENDS and (self.requests or self._is_open):
                self.requests.append(kind)
        if self._is_copying and len(messages) > MANY_DATA:
            self._client = None

    # --- The backend ----------------------------------------------------------------------------------

    def answered(self, data: bytes | bytearray, octets: int) -> None:
        """The backend has sent the first octets of data."""
        if self._backend is None:
            self._look_for_answer(data[:octets])
            return
        messages = self._backend.follow(data, octets)
        for kind, end in messages:
            if kind == READY[0]:
                self._answer(bytes(data[end - 1 : end]))
            elif kind not in ASYNCHRONOUS:
                self._is_fresh = False
                self._go_on(kind)
        if not (self._backend.kind is None or self._backend.kind in ASYNCHRONOUS):
            self._is_fresh = False
        if len(messages) > MANY_MESSAGES and not self._is_fresh:
            self.lose_backend(data[max(0, octets - SEEN_OCTETS) : octets])

    def lose_backend(self, seen: bytes | bytearray = b"") -> None:
        """Follow the backend no more until the ReadyForQuery of its answer is found, by its looks.

        Args:
            seen: what it has sent last, and what has been counted already.
        """
        self._backend, self._is_fresh = None, False
        self._seen = seen[-SEEN_OCTETS:]

    def _look_for_answer(self, data: bytes | bytearray) -> None:
        seen = self._seen + data
        at = seen.find(READY, max(0, len(self._seen) - len(READY)))
        while 0 <= at < len(seen) - len(READY):
            end = at + len(READY) + 1
            status = status_by_looks(seen[max(0, end - SEEN_OCTETS) : end])
            if status and end > len(self._seen):
                self._backend = Framing()
                self._answer(status)
                self.answered(seen[end:], len(seen) - end)
                return
            at = seen.find(READY, end)
        self._seen = seen[-SEEN_OCTETS:]
        if begins_copy(self._seen):
            self._backend = Framing()
            self._go_on(_COPY_IN)

    def _answer(self, status: bytes) -> None:
        """ReadyForQuery: the first of the requests is answered."""
        self.status, self._is_fresh = status, True
        while self.requests:
            if self.requests.pop(0) in _REQUESTS:
                break
        while self.requests and self.requests[0] in _COPY_ENDS:
            del self.requests[0]  # came too late for a COPY that had failed

    def _go_on(self, kind: int) -> None:
        """A message that belongs to an answer."""
        if not self.requests and not self._is_open and not self._is_copying:
            self.requests.append(QUERY)  # what looked like the end of its answer was a row
        if kind == _COPY_IN:
            self._begin_copy()
        elif kind in {_COMMAND_COMPLETE, _ERROR}:
            # Whether the backend skips the request depends on which message has failed.
            self._is_uncertain |= kind == _ERROR and self.requests[:1] == bytes((_MIXED,))
            self._is_copying = False
            if self._client is None:
                self._look_for_end_of_copy()

    # --- COPY FROM STDIN ------------------------------------------------------------------------------

    def _begin_copy(self) -> None:
        """The backend wants data. It ignores Sync until their end, also such as came already."""
        at = int(self.requests[:1] == b"Q")
        while self.requests[at : at + 1] == SYNC[:1]:
            del self.requests[at]
        if bytes(self.requests[at : at + 1]) in {b"c", b"f"}:
            del self.requests[at]  # the client has not waited
        else:
            self._is_open |= at == 0
            self._is_copying, self.tail = True, b""

    def _look_for_end_of_copy(self) -> None:
        """A client that is not followed is through where the backend is, and its last octets say so, too."""
        end = None if self._is_copying else _COPY_END.search(self.tail)
        if end is not None:
            self._client = Framing()
            if end.group(1):
                self._is_open = False
                self.requests.append(SYNC[0])
