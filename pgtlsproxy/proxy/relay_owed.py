"""What a session's backend still owes its client: how the relay knows that a session may be ended.

Query, FunctionCall and Sync are answered by one ReadyForQuery each (PostgreSQL manual, "Message Flow").
Behind it, and before the next request, nothing is owed and both sides stand between two messages.
To follow every message would cost up to a tenth of a small transaction, so there are two ways to know it:

* As long as a client sends one request at a time, in one record, and waits for its answer, next to nothing
  is looked at: the request's two ends. What it is answered with is kept, up to `KEPT_OCTETS`, and read
  when somebody wants to know. A longer answer is over when it ends with ReadyForQuery behind something
  that may stand there: no row in text format looks so, and of binary data only a copy of this protocol.
  That costs 0.2 µs of CPU time for a Query and 0.4 for Bind to Sync: of `pgbench -S`, in simple and in
  prepared mode, 1 and 2 %.
* All else is counted by the headers of both sides' messages (`proxy.relay_count`), from the record at which
  it began until the backend owes one request at most and has sent nothing of its answer.

A session counts as busy while it cannot be known:

* where a request comes in the middle of an answer of over `KEPT_OCTETS`, or one read brings many messages of
  a counted answer, this answer's end is found by its looks. Where it looks like none (not behind
  CommandComplete, ErrorResponse, RowDescription or a message without content), one request too many stays
  owed, until the session's end;
* where a client sends the data of COPY FROM STDIN in many small messages, of which its end is found by its
  looks: if it sends more behind CopyDone or CopyFail in the same record, other than Sync, or says neither
  behind a Query that has failed, until its last octets are one of these again;
* where a Query or FunctionCall followed messages of the extended protocol without Sync, and one of them
  failed, or followed COPY's data without their end: nobody knows what is answered. Until the session's end.

One case is taken for idle and may not be: a read ends in the middle of a short answer, at a value in binary
format that looks like `ANSWERED`, and exactly then the client sends a request ahead. The session may
then be ended between the two answers.
"""

from __future__ import annotations

from typing import Final

from pgtlsproxy.proxy.relay_count import (
    ASYNCHRONOUS,
    EXTENDED,
    FUNCTION_CALL,
    HEADER_OCTETS,
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

ANSWERED: Final = tuple(COMPLETE[-1:] + READY + status for status in (b"I", b"T", b"E"))
"""How most answers end: a text's NUL, and ReadyForQuery."""

_NO_CONTENT: Final = SYNC[1:]
"""Behind a request's type: stands for one that is known to be whole."""

A_QUERY: Final = b"Q" + _NO_CONTENT

_SYNC: Final = SYNC[0]
_BEGINS: Final = bytes((*EXTENDED, _SYNC))
_MAYBE_QUERY: Final = b"Q\x00"
_MAYBE_FUNCTION_CALL: Final = b"F\x00"


def query_head(octets: int) -> bytes:
    """What a Query of so many octets begins with, at least `HEADER_OCTETS`: its type and its length word."""
    return b"Q" + max(octets - 1, 0).to_bytes(4)


def is_one_batch(record: bytes | bytearray) -> bool:
    """Whether a record that begins with a message is messages of the extended protocol up to one Sync.

    It sees that they end where a Sync would. What ends so by chance is no Sync, and the backend answers it
    without ReadyForQuery: it counts as under way until the Sync comes.

    Args:
        record: at least five octets.
    """
    sync_at = len(record) - HEADER_OCTETS
    return (
        record[0] in _BEGINS
        and (record.find(_SYNC) == sync_at or record.find(SYNC) == sync_at)
        and (QUERY not in record or record.find(_MAYBE_QUERY) < 0)
        and (FUNCTION_CALL not in record or record.find(_MAYBE_FUNCTION_CALL) < 0)
    )


def request_in(buffer: bytearray, octets: int) -> bytes | bytearray:
    """What owes the same as the first octets of a buffer, where they are one request; else nothing.

    Args:
        buffer: it begins with a message.
        octets: how many.
    """
    if octets >= HEADER_OCTETS:
        if buffer.startswith(query_head(octets)):
            return A_QUERY
        if octets < KEPT_OCTETS and is_one_batch(record := buffer[:octets]):
            return record
    return b""


class Owed:
    """What the backend owes. Between logins and requests that is nothing.

    Attributes:
        request: what owes the same as the request under way. Behind its answer it means nothing, but that
            Terminate may be its end.
        answer: what the backend has sent since that request, the last `KEPT_OCTETS` of it; empty before.
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
            elif request := request_in(buffer, octets):
                self.request, self.answer = request, b""
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
        if len(self.answer) >= KEPT_OCTETS:
            count.lose_backend()
        count.answered(self.answer, len(self.answer))
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
