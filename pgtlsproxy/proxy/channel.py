"""What the supervisor and a worker say to each other, over a socket pair.

The supervisor hands down files' bytes, keys among them, and open descriptors: pickled, as a worker
believes its supervisor whatever it says. What a worker answers is JSON, for the worker is where the
network's bytes are, and the supervisor takes no object from it.
"""

from __future__ import annotations

import array
import contextlib
import io
import json
import pickle
import socket
import struct
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from pgtlsproxy.proxy.orders import Answer, Built, Descriptor, Pong, Serving, Swapped
from pgtlsproxy.tls.file_access import Folder

MAX_ANSWER_OCTETS: Final = 64 << 20
"""Longest answer of a worker; every line of the largest pg_hba.conf may be a mistake."""

_DESCRIPTORS_AT_ONCE: Final = 200
"""Below the kernel's SCM_MAX_FD, 253."""

_DESCRIPTORS, _MESSAGE = b"D", b"M"
_LENGTH: Final = struct.Struct("!Q")


class ChannelEnded(Exception):
    """The other end is gone, or says what it never would."""


_ANSWERS: Final[dict[str, type[Answer]]] = {kind.__name__: kind for kind in (Built, Swapped, Serving, Pong)}


# --- The supervisor's end -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Packed:
    """An order as it is sent. Made once for all workers: it may be long.

    Args:
        order: what it was made of; keeps open what goes along.
        content: its octets.
        descriptors: what goes along.
    """

    order: object
    content: bytes = field(repr=False)
    descriptors: tuple[int, ...]


class _Pickler(pickle.Pickler):
    """What is open goes as a number, and as a descriptor beside the message."""

    def __init__(self, target: io.BytesIO) -> None:
        super().__init__(target, pickle.HIGHEST_PROTOCOL)
        self.descriptors: list[int] = []

    def persistent_id(self, value: object) -> tuple[str, int, str] | None:
        if isinstance(value, Folder):
            self.descriptors.append(value.fileno())
            return "folder", len(self.descriptors) - 1, value.path
        if isinstance(value, socket.socket):
            self.descriptors.append(value.fileno())
            return "socket", len(self.descriptors) - 1, ""
        if isinstance(value, Descriptor):
            self.descriptors.append(value.number)
            return "descriptor", len(self.descriptors) - 1, ""
        return None


def pack(order: object) -> Packed:
    """Make an order ready to be sent, whoever it is for."""
    target = io.BytesIO()
    pickler = _Pickler(target)
    pickler.dump(order)
    return Packed(order, target.getvalue(), tuple(pickler.descriptors))


class Orders:
    """The supervisor's end of a worker's socket pair. Never waits.

    Args:
        sock: the socket; non-blocking from here on.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._unsent: deque[tuple[Packed, memoryview, tuple[int, ...]]] = deque()
        self._received = bytearray()

    @property
    def wants_to_send(self) -> bool:
        """Whether something waits until the socket is writable."""
        return bool(self._unsent)

    def send(self, packed: Packed) -> None:
        """Queue an order."""
        descriptors = packed.descriptors
        for start in range(0, len(descriptors), _DESCRIPTORS_AT_ONCE):
            some = descriptors[start : start + _DESCRIPTORS_AT_ONCE]
            self._unsent.append((packed, memoryview(_DESCRIPTORS), some))
        head = _MESSAGE + _LENGTH.pack(len(packed.content))
        self._unsent += [(packed, memoryview(head), ()), (packed, memoryview(packed.content), ())]
        self.flush()

    def flush(self) -> None:
        """Send what the socket takes. A worker that is gone is noticed by its end."""
        try:
            while self._unsent:
                packed, data, descriptors = self._unsent[0]
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
                sent = self.sock.sendmsg([data], ancillary if descriptors else [])
                if sent < len(data):
                    self._unsent[0] = packed, data[sent:], ()
                else:
                    self._unsent.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._unsent.clear()

    def receive(self) -> list[Answer]:
        """The answers that have come.

        Raises:
            ChannelEnded: no more will.
        """
        try:
            data = self.sock.recv(1 << 16)
        except BlockingIOError:
            return []
        except OSError as error:
            raise ChannelEnded(error.strerror) from None
        if not data:
            raise ChannelEnded("closed")
        self._received += data
        answers = []
        while len(self._received) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._received)
            if length > MAX_ANSWER_OCTETS:
                raise ChannelEnded(f"an answer of {length} octets")
            if len(self._received) < _LENGTH.size + length:
                break
            answers.append(_answer(bytes(self._received[_LENGTH.size : _LENGTH.size + length])))
            del self._received[: _LENGTH.size + length]
        return answers

    def end(self) -> None:
        """Say nothing more: the worker ends, and its answers are heard until it has."""
        self._unsent.clear()
        with contextlib.suppress(OSError):  # it has
            self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close it: the worker ends."""
        self.sock.close()


def _answer(content: bytes) -> Answer:
    try:
        name, fields = json.loads(content)
        return _ANSWERS[name](**fields)
    except (ValueError, KeyError, TypeError):
        raise ChannelEnded("what came is no answer") from None


# --- A worker's end -------------------------------------------------------------------------------------


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: bytes, descriptors: Sequence[int]) -> None:
        super().__init__(io.BytesIO(content))
        self._descriptors = descriptors

    def persistent_load(self, pid: Any) -> Folder | socket.socket | Descriptor:
        kind, index, path = pid
        number = self._descriptors[index]
        if kind == "folder":
            return Folder(path, "folder", descriptor=number)
        if kind == "socket":
            sock = socket.socket(fileno=number)
            sock.setblocking(False)
            return sock
        return Descriptor(number)


class Answers:
    """A worker's end of its socket pair.

    Args:
        sock: the socket; blocking.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sending = threading.Lock()

    def receive(self) -> object:
        """The next order, waited for.

        Raises:
            ChannelEnded: the supervisor is gone.
        """
        descriptors = array.array("i")
        room = socket.CMSG_SPACE(_DESCRIPTORS_AT_ONCE * descriptors.itemsize)
        kind = _DESCRIPTORS
        while kind != _MESSAGE:
            try:
                kind, ancillary, _, _ = self._sock.recvmsg(1, room, socket.MSG_CMSG_CLOEXEC)
            except OSError as error:
                raise ChannelEnded(error.strerror) from None
            if not kind:
                raise ChannelEnded("closed")
            for _, _, data in ancillary:
                descriptors.frombytes(data)
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        return _Unpickler(self._read(length), descriptors).load()

    def _read(self, octets: int) -> bytes:
        data = bytearray(octets)
        view = memoryview(data)
        while view:
            count = self._sock.recv_into(view)
            if not count:
                raise ChannelEnded("closed")
            view = view[count:]
        return bytes(data)

    def send(self, answer: Answer) -> None:
        """Send an answer; waits where the supervisor does not read, which it always does.

        Any thread may: what one has begun is not broken by another.
        """
        content = json.dumps([type(answer).__name__, asdict(answer)]).encode()
        with self._sending:
            self._sock.sendall(_LENGTH.pack(len(content)) + content)
