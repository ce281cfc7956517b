"""Legs inside TLS as the relay's thread holds them: on OpenSSL's own calls, or on pyOpenSSL's public ones.

`SSL_read` and `SSL_write` are called directly: pyOpenSSL's `recv_into` and `send` cost 6 to 10 µs
more a message. A fast leg reads and writes its socket itself. While it is buffered, memory BIOs
stand between the two: one system call then moves up to 128 kB instead of one record, which halves
the CPU time of a bulk transfer and would cost 3 to 10 % more for small messages.

A fast leg is also buffered while its socket is full. OpenSSL has to answer a KeyUpdate that asks
for one (RFC 8446 4.6.3), and cannot put its answer behind half a record: it fails with "bad length",
and so does whatever else its connection is asked for. With memory in between no record is ever half
written. Public calls cannot put it there: a client that updates its keys while it does not read what
it is sent loses its session.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Final

from OpenSSL import SSL
from typing_extensions import override

from pgtlsproxy.tls import openssl
from pgtlsproxy.tls.raw import (
    BROKEN,
    BUFFER_OCTETS,
    SLICE_OCTETS,
    WANT_READ,
    WANT_WRITE,
    Buffers,
    RawClear,
    RawLeg,
    Want,
    send_rest,
)
from pgtlsproxy.tls.stream import (
    ABUSE,
    MAX_RECORD_OCTETS,
    ClearLeg,
    LegAbused,
    LegLost,
    LegTruncated,
    TLSLeg,
    leg_lost,
)

CHOKED_OCTETS: Final = 65_536
"""Ciphertext that may lie unsent, beside the last write, while a leg is still read: OpenSSL's answers."""

EMPTY_RECORDS: Final = 100
"""Records without data that one turn takes; what lies behind them is the next turn's."""


class RawTLS(RawLeg):
    """A leg inside TLS, on pyOpenSSL's public calls: what every pyOpenSSL can do, record by record."""

    __slots__ = ("_connection", "_failure", "_tls_leg")

    def __init__(self, leg: TLSLeg, buffers: Buffers) -> None:
        super().__init__(leg, buffers)
        self._tls_leg = leg
        leg.peer_leaf = None  # 1.3 kB a session that nobody asks for after the login
        self._failure: LegLost | None = None
        self._connection = leg.connection
        self._set_calls()

    def _set_calls(self) -> None:
        view = self._buffers.plain_view
        self.handle = self._connection

        def read(connection: SSL.Connection, _buffer: Any, octets: int) -> int:
            return self._code(lambda: connection.recv_into(view, octets))

        def write(connection: SSL.Connection, _buffer: Any, octets: int) -> int:
            return self._code(lambda: connection.send(view[:octets]))

        self.read, self.write = read, write

    def _code(self, operation: Callable[[], int]) -> int:
        """A call of pyOpenSSL with its exceptions as codes."""
        try:
            return operation()
        except SSL.WantReadError:
            return WANT_READ
        except SSL.WantWriteError:
            return WANT_WRITE
        except SSL.ZeroReturnError:
            return 0
        except SSL.Error as error:
            openssl.clear_errors()
            self._failure = leg_lost(error)
            return BROKEN

    @override
    def _want(self, result: int) -> Want:
        if result == 0:
            if self._tls_leg.is_abused:
                raise LegAbused(ABUSE)
            return Want.END
        if result == BROKEN and self._failure is not None:
            raise self._failure
        return Want.READ if result == WANT_READ else Want.WRITE

    @override
    def sent(self, octets: int, given: int) -> bool:
        if given == octets:
            return True
        if given <= 0:
            self.unsent_wants = self._want_of_write(given)
        self.unsent = bytes(self._buffers.plain_view[max(given, 0) : octets])
        return False

    def _want_of_write(self, result: int) -> Want:
        want = self._want(result)
        if want is Want.END:
            raise LegLost("the peer has ended the connection")
        return want

    @override
    def flush(self) -> bool:
        while self.unsent:
            given = self._write_again()
            if given <= 0:
                self.unsent_wants = self._want_of_write(given)
                return False
            self.unsent = self.unsent[given:]
        if self.is_ending:
            return self._say_goodbye()
        return True

    def _write_again(self) -> int:
        data = self.unsent[:MAX_RECORD_OCTETS]
        return self._code(lambda: self._connection.send(data))

    def _say_goodbye(self) -> bool:
        """Send close_notify, TLS's half-close, and end the TCP direction."""
        try:
            self._connection.shutdown()
        except (SSL.WantReadError, SSL.WantWriteError) as error:
            self.unsent_wants = Want.READ if isinstance(error, SSL.WantReadError) else Want.WRITE
            return False
        except SSL.Error:
            openssl.clear_errors()
        self._end_direction()
        return True


class RawFastTLS(RawTLS):
    """A leg inside TLS, on OpenSSL's own calls through pyOpenSSL's binding.

    It is buffered from the moment that its socket is full. What it holds then is the write that found it so,
    and OpenSSL's answers, which are bounded: the leg is read no more while it is choked.
    """

    __slots__ = ("_bios", "_deferred", "_has_said_goodbye", "_written")

    def __init__(self, leg: TLSLeg, buffers: Buffers) -> None:
        super().__init__(leg, buffers)
        self._bios: openssl.MemoryBIOs | None = None
        self._deferred: Want | LegLost | None = None
        self._has_said_goodbye = False
        self._written = 0
        openssl.write_whole(leg.connection)

    @override
    def _set_calls(self) -> None:
        self.handle = openssl.handle_of(self._connection)
        self.read, self.write = openssl.SSL_read, openssl.SSL_write

    @override
    def _want(self, result: int) -> Want:
        code = openssl.SSL_get_error(self.handle, result)
        if code == openssl.SSL_ERROR_WANT_READ:
            return Want.READ
        if code == openssl.SSL_ERROR_WANT_WRITE:
            return Want.WRITE
        if code == openssl.SSL_ERROR_ZERO_RETURN:
            return Want.END
        try:
            openssl.raise_failure(result, code)
        except SSL.Error as error:
            raise leg_lost(error) from None

    @override
    def _write_again(self) -> int:
        result: int = openssl.SSL_write(self.handle, openssl.pointer_to(self.unsent), len(self.unsent))
        return result

    @property
    @override
    def is_choked(self) -> bool:
        # Its last write does not count: a session may write both ways before either side reads.
        return (
            self._bios is not None and len(self.unsent) + self._bios.untaken() > self._written + CHOKED_OCTETS
        )

    @property
    @override
    def has_more(self) -> bool:
        if self._bios is None:
            return False
        return self._deferred is not None or self._bios.unread() > 0 or self.read_wants is Want.WRITE

    @override
    def buffer(self) -> None:
        # A socket BIO holds nothing back, and half a record that OpenSSL has read stays in OpenSSL.
        if self._bios is None:
            self._bios = openssl.MemoryBIOs(self._connection)
            self.is_buffered = True
            self.unsent_wants = Want.WRITE

    @override
    def unbuffer(self) -> bool:
        if self._bios is None:
            return True
        if self.unsent or self.has_more:
            return False
        self._bios.replace(self.fd)
        self._bios = None
        self.is_buffered = False
        return True

    @override
    def received(self, taken: int) -> int | Want:
        want = super().received(taken)
        if want is Want.WRITE and self._bios is None and not self.unsent:
            self.buffer()  # the rest of an answer goes there, and more can be read
        return want

    @override
    def receive(self, max_octets: int) -> int | Want:
        if self._bios is None:
            return super().receive(max_octets)
        taken, is_closed, stop = 0, False, self._deferred
        self.read_wants = Want.READ
        if stop is None:
            is_closed = not self._bios.unread() and self._fill(self._bios) == 0
            taken, stop = self._decrypt(self._bios)
            self._send_answers(self._bios)
        if taken:
            # An end is told behind what came before it; a want comes up again by itself.
            self._deferred = stop if stop is Want.END or isinstance(stop, LegLost) else None
            return taken
        if isinstance(stop, LegLost):
            raise stop
        if stop is Want.READ and is_closed:
            raise LegTruncated("the peer closed the connection without close_notify")
        return stop

    def _send_answers(self, bios: openssl.MemoryBIOs) -> None:
        """Send what OpenSSL answers by itself, to a KeyUpdate."""
        if self.unsent or self.is_ending or bios.untaken():
            with contextlib.suppress(LegLost):  # whoever writes next is told; what came may be last words
                self.flush()

    def _fill(self, bios: openssl.MemoryBIOs) -> int:
        """Take what the socket has, a slice at most; 0 at the end of the stream."""
        try:
            arrived = self.sock.recv_into(self._buffers.cipher_view, SLICE_OCTETS)
        except BlockingIOError:
            return WANT_READ
        except OSError as error:
            raise LegLost(error.strerror or type(error).__name__) from None
        if arrived:
            bios.put(self._buffers.cipher_pointer, arrived)
        return arrived

    def _decrypt(self, bios: openssl.MemoryBIOs) -> tuple[int, Want | LegLost]:
        """Decrypt what has arrived into the shared buffer: how many octets, and what stopped it."""
        handle, pointer, taken, empty = self.handle, self._buffers.plain_pointer, 0, 0
        while taken <= SLICE_OCTETS and empty < EMPTY_RECORDS:
            result = openssl.SSL_read(handle, pointer + taken, MAX_RECORD_OCTETS)
            if result > 0:
                taken += result
                continue
            try:
                want = self.received(result)
            except LegLost as error:
                return taken, error
            assert isinstance(want, Want)  # noqa: S101 - narrows the type
            if want is not Want.READ or not bios.unread():
                return taken, want
            empty += 1
        return taken, Want.READ

    @override
    def put(self, data: bytes) -> bool:
        if self._bios is None:
            return super().put(data)
        self._buffers.plain_view[: len(data)] = data
        return self.send(len(data))

    @override
    def send(self, octets: int) -> bool:
        if self._bios is None:
            return super().send(octets)
        self._encrypt(self._buffers.plain_pointer, octets)
        return self.flush()

    def _encrypt(self, pointer: Any, octets: int) -> None:
        self._written = octets
        given = openssl.SSL_write(self.handle, pointer, octets)
        if given != octets:
            self._want_of_write(given)
            raise LegLost("OpenSSL did not take what it should")

    @override
    def sent(self, octets: int, given: int) -> bool:
        return super().sent(octets, given) or self.flush()

    @override
    def flush(self) -> bool:
        if self._bios is not None:
            return self._flush_memory(self._bios)
        if super().flush():
            return True
        if self.unsent_wants is Want.READ:
            return False  # the rest of a handshake message: OpenSSL has not begun to write
        clear, self.unsent = self.unsent, b""
        self.buffer()
        if clear:
            self._encrypt(openssl.pointer_to(clear), len(clear))
        return self.flush()

    def _flush_memory(self, bios: openssl.MemoryBIOs) -> bool:
        while True:
            if self.unsent:
                self.unsent = send_rest(self.sock, self.unsent)
            elif octets := bios.take(self._buffers.cipher_pointer, BUFFER_OCTETS):
                self.unsent = send_rest(self.sock, self._buffers.cipher_view[:octets])
            elif not self._must_say_goodbye():
                return True
            if self.unsent:
                return False

    def _must_say_goodbye(self) -> bool:
        """Whether close_notify has just been put behind everything else; afterwards, end the direction."""
        if not self.is_ending:
            return False
        if not self._has_said_goodbye:
            self._has_said_goodbye = True
            if openssl.SSL_shutdown(self.handle) < 0:
                openssl.clear_errors()
            return True
        self._end_direction()
        return False


def raw_leg(leg: ClearLeg | TLSLeg, buffers: Buffers) -> RawLeg:
    """The relay's view of a leg, the fastest that this pyOpenSSL allows."""
    if isinstance(leg, ClearLeg):
        return RawClear(leg, buffers)
    return RawFastTLS(leg, buffers) if openssl.HAS_BINDING else RawTLS(leg, buffers)
