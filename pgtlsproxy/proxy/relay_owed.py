"""What a session's backend still owes its client: how the relay knows a session that may be ended.

Query, FunctionCall and Sync are answered by one ReadyForQuery each (PostgreSQL manual, "Message Flow").
Between an answered request and the next one nothing is owed, and both sides stand between two messages.
Following every message would cost a twentieth of a small transaction, so there are two ways to know it:

* As long as a client sends one request at a time, each in one record, and waits for its answer, next to
  nothing is looked at: the request's two ends, and what it is answered with is kept (up to `KEPT_OCTETS`).
  Whether that is the whole answer is read from its messages when somebody wants to know. A longer answer is
  whole when it ends with ReadyForQuery behind something that may stand there: no row in text format
  looks so, and of binary data only a copy of this protocol.
* Everything else is counted by the headers of both sides' messages (`proxy.relay_count`), from the record
  at which it began until the backend owes one request at most and has sent nothing of its answer.

A session counts as busy while it cannot be known:

* where a request is sent in the middle of an answer of over `KEPT_OCTETS` that was not followed, or where an
  answer to counted requests brings many messages at once: ReadyForQuery is found by its looks from there
  on. Of answers that end unusually (behind no CommandComplete, ErrorResponse or the like) one too many stays
  owed then, until the session's end;
* where a COPY FROM STDIN was not ended by CopyDone or CopyFail, with or without Sync, as the client's last
  octets: until the client's last octets are such ones;
* where a Query or FunctionCall followed messages of the extended protocol without Sync, and one of them
  failed (nobody can tell which): until the session's end.
"""

from __future__ import annotations

import struct
from typing import Final

from pgtlsproxy.proxy.relay_count import (
    ASYNCHRONOUS,
    EXTENDED,
    QUERY,
    READY,
    SYNC,
    Count,
    Framing,
    status_by_looks,
)
from pgtlsproxy.proxy.relay_ending import TERMINATE

KEPT_OCTETS: Final = 2048
"""How much of a request and of an answer is kept. An answer that is shorter is kept from its beginning."""

COMPLETE: Final = b"C\x00\x00\x00\x05\x00"
"""CommandComplete without a tag: stands for an answer that was followed to its end."""

ANSWERED: Final = COMPLETE[-1:] + READY
"""How most answers end, up to the status: a text's NUL, and ReadyForQuery."""

_NO_CONTENT: Final = SYNC[1:]
"""Behind a request's type: stands for one that is known to be whole."""

_BEGINS: Final = bytes((*EXTENDED, SYNC[0]))
_MAYBE_QUERY: Final = b"Q\x00"
_MAYBE_FUNCTION_CALL: Final = b"F\x00"
_FUNCTION_CALL: Final = _MAYBE_FUNCTION_CALL[0]
_LENGTH: Final = struct.Struct("!xI").unpack_from


def is_one_request(record: bytes | bytearray) -> bool:
    """Whether a record that begins with a message is one Query, or messages up to one Sync.

    Of the latter it sees beginning and end: what ends so by chance is a message that is not complete, and
    the backend answers no Sync before it is.

    Args:
        record: at least five octets.
    """
    if record[0] == QUERY:
        return _LENGTH(record)[0] == len(record) - 1  # type: ignore[no-any-return] # struct is untyped
    return (
        record[0] in _BEGINS
        and record.find(SYNC) == len(record) - len(SYNC)
        and (QUERY not in record or _MAYBE_QUERY not in record)
        and (_FUNCTION_CALL not in record or _MAYBE_FUNCTION_CALL not in record)
    )


class Owed:
    """What the backend owes. Between logins and requests that is nothing.

    Attributes:
        request: the record that holds the request under way, or what owes the same; behind an answer it
            means nothing, but that Terminate may be its end.
        answer: what the backend has sent since that request, the last `KEPT_OCTETS` of it; empty before.
            A request begins with it only where it ends like an answer.
        count: the requests under way, where they are counted.
    """

    __slots__ = ("answer", "count", "request")

    def __init__(self) -> None:
        self.request: bytes | bytearray = b""
        self.answer: bytes | bytearray = COMPLETE + READY + b"I"
        self.count: Count | None = None

    @property
    def is_terminated(self) -> bool:
        """Whether the client's last octets are Terminate. They may be the end of something else."""
        return (self.request if self.count is None else self.count.tail)[-len(TERMINATE) :] == TERMINATE

    @property
    def status(self) -> bytes:
        """The transaction's status, `I`, `T` or `E`, where nothing is owed; else, and unknown, nothing."""
        if self.count is not None:
            return b""
        if len(self.answer) < KEPT_OCTETS:
            return _status_of_whole(self.answer)
        return status_by_looks(self.answer)

    def asked(self, buffer: bytearray, octets: int) -> None:
        """The client has sent the first octets of a buffer."""
        if self.count is None:
            status = self.status
            if not status:
                self.count = self._recount()
            elif len(SYNC) <= octets <= KEPT_OCTETS and is_one_request(record := buffer[:octets]):
                self.request, self.answer = record, b""
                return
            else:
                self.count = Count(status, Framing())
        self.count.asked(buffer, octets)
        self._settle(self.count)

    def answered(self, buffer: bytearray, octets: int) -> None:
        """The backend has sent the first octets of a buffer."""
        if self.count is not None:
            self.count.answered(buffer, octets)
            self._settle(self.count)
        elif not self._is_asynchronous(buffer, octets):
            kept = buffer[max(0, octets - KEPT_OCTETS) : octets]
            self.answer = (self.answer + kept)[-KEPT_OCTETS:] if self.answer else kept

    def _is_asynchronous(self, buffer: bytearray, octets: int) -> bool:
        """Whether they come behind an answer, as NotificationResponse does: still nothing is owed."""
        if READY not in self.answer or not (status := self.status):
            return False
        framing = Framing()
        kinds = {kind for kind, _ in framing.follow(buffer, octets)}
        if not ASYNCHRONOUS.issuperset({*kinds, framing.kind} - {None}):
            return False  # the answer goes on: it was a row that looked like its end
        if not framing.is_at_boundary:
            self.count = Count(status, framing)
        return True

    def _recount(self) -> Count:
        """Begin counting at the request that is under way."""
        count = Count(b"", Framing())
        count.asked(self.request, len(self.request))
        if len(self.answer) < KEPT_OCTETS:
            count.answered(self.answer, len(self.answer))
        else:
            count.lose_backend(self.answer)
        return count

    def _settle(self, count: Count) -> None:
        """Stop counting where one request at most is under way, and nothing of its answer has come."""
        if count.is_simple:
            terminate = TERMINATE if self.is_terminated else b""
            self.request = (bytes(count.requests) + _NO_CONTENT if count.requests else b"") + terminate
            self.answer = b"" if count.requests else COMPLETE + READY + count.status
            self.count = None


def _status_of_whole(answer: bytes | bytearray) -> bytes:
    """The status in an answer that is kept from its beginning: nothing where it is not over."""
    status = b""
    framing = Framing()
    for kind, end in framing.follow(answer, len(answer)):
        if kind == READY[0]:
            status = bytes(answer[end - 1 : end])
        elif kind not in ASYNCHRONOUS:
            status = b""
    return status if framing.is_at_boundary else b""
