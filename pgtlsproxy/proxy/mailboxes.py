"""What one worker says to another.

A CancelRequest goes to the worker that has the session, which sends it on; and the one that has the
oldest unproven connection is told when a younger one takes its place. Each worker has a socket of its
own on which the others' messages come in, whole (SOCK_SEQPACKET). They outlive the workers: what was
meant for one that died is read by the one that replaces it, which says that it has no such session.
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from pgtlsproxy.identity import Secret

_HEAD: Final = struct.Struct("!BHQ")
"""What it is, from which worker, and the request's number there, or the limit that is exceeded."""

_ASKED, _DONE, _UNKNOWN, _DISPLACE = range(4)
_PID: Final = struct.Struct("!iB")
"""The session's number, and how many octets the listener's name has."""

MAX_MESSAGE_OCTETS: Final = 1 << 16

ANSWER_SECONDS: Final = 5.0
"""How long an answer may wait for room in the inbox of whoever asked."""


@dataclass(frozen=True, slots=True)
class Routed:
    """A CancelRequest on its way to the worker that has the session."""

    listener: str
    pid: int
    key: Secret = field(repr=False)


class Mailboxes:
    """A worker's inbox, and the ways into those of the others.

    Args:
        number: of this worker, from 1.
        inbox: where messages come in.
        outboxes: where messages to each worker go, by number from 1.
    """

    def __init__(self, number: int, inbox: socket.socket, outboxes: Sequence[socket.socket]) -> None:
        self._number = number
        self._raw = outboxes
        self._inbox = trio.socket.from_stdlib_socket(inbox)
        self._outboxes = [trio.socket.from_stdlib_socket(outbox) for outbox in outboxes]
        self._sending = [trio.Lock() for _ in outboxes]
        # From anywhere: what was meant for a predecessor of ours is not to be taken for an answer to us.
        self._numbers = itertools.count(secrets.randbits(63))
        self._asked: dict[int, tuple[trio.Event, list[bool]]] = {}

    async def ask(self, worker: int, routed: Routed) -> bool:
        """Let another worker send it on. Returns whether it has such a session, when it has been sent.

        Cancellation: it may have been sent.
        """
        number = next(self._numbers)
        listener = routed.listener.encode()
        answered, answer = self._asked[number] = trio.Event(), []
        try:
            named = _PID.pack(routed.pid, len(listener)) + listener + routed.key.reveal()
            await self._send(worker, _HEAD.pack(_ASKED, self._number, number) + named)
            await answered.wait()
        finally:
            del self._asked[number]
        return answer[0]

    def displace_at(self, worker: int, limit: int) -> None:
        """Tell another worker that it has the oldest unproven connection, and all have more than the limit.

        Never waits. A worker that does not read is told no more.
        """
        with contextlib.suppress(OSError):
            self._raw[worker - 1].send(_HEAD.pack(_DISPLACE, self._number, limit))

    async def run(self, take: Callable[[Routed], Awaitable[bool]], displace: Callable[[int], None]) -> None:
        """Read the inbox until cancelled.

        Args:
            take: sends a request on; returns whether there is such a session here.
            displace: lets the oldest unproven connections go while there are more than so many.
        """
        async with trio.open_nursery() as nursery:
            while True:
                message = await self._inbox.recv(MAX_MESSAGE_OCTETS)
                kind, worker, number = _HEAD.unpack_from(message)
                if kind == _ASKED:
                    nursery.start_soon(self._take, take, worker, number, _routed(message[_HEAD.size :]))
                elif kind == _DISPLACE:
                    displace(number)
                elif number in self._asked:  # whoever asked may have given up, or be our predecessor
                    answered, answer = self._asked[number]
                    answer.append(kind == _DONE)
                    answered.set()

    def close(self) -> None:
        """Close all ends that this worker has."""
        for sock in (self._inbox, *self._outboxes):
            sock.close()

    async def _take(
        self, take: Callable[[Routed], Awaitable[bool]], worker: int, number: int, routed: Routed
    ) -> None:
        kind = _DONE if await take(routed) else _UNKNOWN
        with trio.move_on_after(ANSWER_SECONDS):
            await self._send(worker, _HEAD.pack(kind, self._number, number))

    async def _send(self, worker: int, message: bytes) -> None:
        async with self._sending[worker - 1]:
            await self._outboxes[worker - 1].send(message)


def _routed(content: bytes) -> Routed:
    pid, length = _PID.unpack_from(content)
    end = _PID.size + length
    return Routed(content[_PID.size : end].decode(), pid, Secret(content[end:]))
