"""Legs as the relay's thread holds them: non-blocking, without trio, on one shared buffer.

`read` and `write` of a raw leg are plain functions that take its `handle`, the shared buffer and a
number of octets, and return how many there were, or a code below one.
"""

from __future__ import annotations

import abc
import contextlib
import enum
import os
import socket
from collections.abc import Callable
from typing import Any, Final

from typing_extensions import override

from pgtlsproxy.tls import openssl
from pgtlsproxy.tls.stream import (
    ABUSE,
    FRUITLESS_READS,
    MAX_RECORD_OCTETS,
    ClearLeg,
    LegAbused,
    LegLost,
    TLSLeg,
)

SLICE_OCTETS: Final = 131_072
"""What one turn of a bulk transfer moves at most. More would gain little and delay other sessions."""

BUFFER_OCTETS: Final = SLICE_OCTETS + 2 * MAX_RECORD_OCTETS
"""A slice of ciphertext, and the record that lay half read inside OpenSSL."""

WANT_READ: Final = -1
WANT_WRITE: Final = -2
BROKEN: Final = -3


class Want(enum.Enum):
    """Why an operation moved nothing, where that is no failure."""

    READ = "read"
    WRITE = "write"
    END = "end"
    """The peer has ended its direction, cleanly."""


class Buffers:
    """The relay thread's own memory, which every session uses in turn and none may rely on.

    What was read last lies there until the next read, wherever that comes from.

    Attributes:
        plain, plain_view: clear text.
        plain_pointer: where it lies, for OpenSSL; None without the binding.
        cipher_view, cipher_pointer: the same for ciphertext.
        read_clear, write_clear: what legs in clear read and write with.
    """

    def __init__(self) -> None:
        self.plain = bytearray(BUFFER_OCTETS)
        self.plain_view = memoryview(self.plain)
        self.plain_pointer = openssl.pointer_to(self.plain)
        self.read_clear, self.write_clear = _clear_operations(self.plain_view)
        cipher = bytearray(BUFFER_OCTETS)
        self.cipher_view = memoryview(cipher)
        self.cipher_pointer = openssl.pointer_to(cipher)


Operation = Callable[[Any, Any, int], int]
"""Takes a leg's handle, the shared buffer and a number of octets; returns how many, or a code below one."""


class RawLeg(abc.ABC):
    """What every raw leg has.

    Args:
        leg: the leg that it stands for, which stays the owner of its socket.
        buffers: the thread's.

    Attributes:
        sock, fd: the socket, and its descriptor.
        handle: what `read` and `write` take first.
        read: reads into the shared buffer.
        write: writes the first octets of the shared buffer.
        fruitless: reads in a row that brought nothing; whoever calls `read` itself sets it back.
        unsent: what a full socket has not taken yet; to be written before anything else.
        unsent_wants: what the writing of it waits for.
        read_wants: what the next read waits for.
        is_ending: whether the end is to be said behind what is unsent.
        is_buffered: whether memory may stand between the leg and its socket: it is ready for a bulk
            transfer, or its socket was full.
    """

    __slots__ = (
        "_buffers", "fd", "fruitless", "handle", "is_buffered", "is_ending", "leg", "read", "read_wants",
        "sock", "unsent", "unsent_wants", "write",
    )  # fmt: skip

    handle: Any
    read: Operation
    write: Operation

    def __init__(self, leg: ClearLeg | TLSLeg, buffers: Buffers) -> None:
        self.leg = leg
        self.sock = leg.sock
        self.fd = leg.sock.fileno()
        self.unsent = b""
        self.unsent_wants = Want.WRITE
        self.read_wants = Want.READ
        self.is_buffered = False
        self.is_ending = False
        self.fruitless = 0
        self._buffers = buffers

    def receive(self, max_octets: int) -> int | Want:
        """Read into the shared buffer: how many octets, or why none.

        Raises:
            LegTruncated, LegAbused, LegLost: as `TLSLeg.receive`.
        """
        taken = self.read(self.handle, self._buffers.plain_pointer, max_octets)
        return self.received(taken)

    def received(self, taken: int) -> int | Want:
        """What a result of `read` means.

        Raises:
            LegTruncated, LegAbused, LegLost: as `TLSLeg.receive`.
        """
        if taken > 0:
            self.fruitless = 0
            return taken
        want = self._want(taken)
        if want is not Want.END:
            self.fruitless += 1
            if self.fruitless > FRUITLESS_READS:
                raise LegAbused(ABUSE)
            self.read_wants = want
        return want

    @abc.abstractmethod
    def _want(self, result: int) -> Want:
        """Why a read moved nothing; raises what `received` does."""

    def send(self, octets: int) -> bool:
        """Write the first octets of the shared buffer; False where some are `unsent` now.

        Raises:
            LegLost: the connection broke.
        """
        return self.sent(octets, self.write(self.handle, self._buffers.plain_pointer, octets))

    @abc.abstractmethod
    def sent(self, octets: int, given: int) -> bool:
        """What a result of `write` means for the first octets of the shared buffer.

        What the socket has not taken is copied before another session uses the buffer: OpenSSL asks
        for the same bytes again, and would take another session's of the same length without a word.

        Raises:
            LegLost: the connection broke.
        """

    @abc.abstractmethod
    def flush(self) -> bool:
        """Go on writing what is unsent, and then the end; False where some of it still is.

        Raises:
            LegLost: the connection broke.
        """

    def _end_direction(self) -> None:
        self.is_ending = False
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def end(self) -> bool:
        """Say that no more will be sent, behind what is unsent; False where that has to wait."""
        self.is_ending = True
        try:
            return self.flush()
        except LegLost:
            self.is_ending = False
            return True

    def put(self, data: bytes) -> bool:
        """Write bytes of its own; False where some are unsent now. Only where nothing is unsent.

        Raises:
            LegLost: the connection broke.
        """
        self.unsent = data
        return self.flush()

    @property
    def is_choked(self) -> bool:
        """Whether too much is unsent to read on: OpenSSL answers some of what it reads."""
        return False

    @property
    def has_more(self) -> bool:
        """Whether a read would find something that no event of the socket announces."""
        return False

    def buffer(self) -> None:
        """Get ready for a bulk transfer. Only where nothing is unsent."""
        self.is_buffered = True

    def unbuffer(self) -> bool:
        """Get ready for small messages again; False where something is still in between."""
        self.is_buffered = False
        return True


def _clear_operations(plain: memoryview) -> tuple[Operation, Operation]:
    """`read` and `write` of legs in clear, whose handle is the socket's descriptor.

    `os.readv` and `os.write` take 650 and 950 instructions less a call than `recv_into` and `send` of a
    socket, of 26 000 a transaction: those parse keywords and look after timeouts.
    """
    readv, os_write, record = os.readv, os.write, [plain[:MAX_RECORD_OCTETS]]

    def read(fd: int, _buffer: Any, octets: int) -> int:
        try:
            return readv(fd, record if octets == MAX_RECORD_OCTETS else [plain[:octets]])
        except BlockingIOError:
            return WANT_READ
        except OSError as error:
            return BROKEN - (error.errno or 0)

    def write(fd: int, _buffer: Any, octets: int) -> int:
        try:
            return os_write(fd, plain[:octets])
        except BlockingIOError:
            return WANT_WRITE
        except OSError as error:
            return BROKEN - (error.errno or 0)

    return read, write


class RawClear(RawLeg):
    """A leg in clear."""

    __slots__ = ()

    def __init__(self, leg: ClearLeg, buffers: Buffers) -> None:
        super().__init__(leg, buffers)
        self.handle = self.fd
        self.read, self.write = buffers.read_clear, buffers.write_clear

    @override
    def _want(self, result: int) -> Want:
        _check_broken(result)
        return Want.READ if result else Want.END

    @override
    def sent(self, octets: int, given: int) -> bool:
        if given == octets:
            return True
        _check_broken(given)
        self.unsent = bytes(self._buffers.plain_view[max(given, 0) : octets])
        return False

    @override
    def flush(self) -> bool:
        if self.unsent:
            self.unsent = send_rest(self.sock, self.unsent)
            if self.unsent:
                return False
        if self.is_ending:
            self._end_direction()
        return True


def _send(sock: socket.socket, data: bytes | memoryview) -> int:
    try:
        return sock.send(data)
    except BlockingIOError:
        return WANT_WRITE
    except OSError as error:
        return BROKEN - (error.errno or 0)


def send_rest(sock: socket.socket, data: bytes | memoryview) -> bytes:
    """Send what the socket takes, and return a copy of the rest.

    Raises:
        LegLost: the connection broke.
    """
    given = _send(sock, data)
    _check_broken(given)
    return b"" if given == len(data) else bytes(data[max(given, 0) :])


def _check_broken(result: int) -> None:
    if result <= BROKEN:
        raise LegLost(os.strerror(BROKEN - result))
