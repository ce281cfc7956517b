"""Legs: a client's or a backend's connection, in clear or inside TLS, on a real socket.

TLS runs on the socket itself and not on memory buffers. What a peer sent and nobody has read
yet stays in the kernel, so that clear text behind an SSLRequest can never be taken for decrypted
bytes (CVE-2021-23214 and its kin): the first thing OpenSSL reads is the next byte of the socket.

A leg has one reader and one writer at a time, which may be two tasks. OpenSSL may want the
opposite direction of the one it was called for (a KeyUpdate makes `SSL_read` write); `_wait`
lets both tasks wait for the same direction.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Callable
from typing import Final, Literal, TypeVar

import trio
from cryptography import x509
from OpenSSL import SSL

from pgtlsproxy.errors import ClientCertificateRefused, ClientTLSFailed
from pgtlsproxy.tls import certificates, openssl
from pgtlsproxy.tls.contexts import UNREADABLE, HandshakeRecord, NoCommonALPN, openssl_reason
from pgtlsproxy.tls.verdicts import client_certificate_refused, note_root, verdict

Operation = Literal["read", "write"]
_T = TypeVar("_T")

MAX_RECORD_OCTETS: Final = 16384
"""One TLS record. Reading this much at once leaves nothing decrypted behind in OpenSSL."""

FRUITLESS_READS: Final = 2**14 + 256 + 5
"""Reads in a row that may bring no data: as many as the longest record has octets (RFC 8446 5.2), since
one may come octet by octet. A peer that sends KeyUpdates without end (4.6.3) takes them all.
"""

OPERATIONS_A_TURN: Final = 16
"""Operations of a leg that may follow each other without waiting before other tasks get their turn."""

KEY_UPDATES: Final = 1000
"""How many KeyUpdates a connection may ever see where reads cannot be counted. OpenSSL needs one after
some 10^7 records.
"""

ABUSE: Final = "the peer keeps sending TLS records without data"

_LOST: Final = frozenset(
    {errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT, errno.ECONNABORTED, errno.EHOSTUNREACH}
)


class LegLost(Exception):
    """The connection broke: a reset, a time-out of the kernel, a TLS alert."""


class PeerNotVerified(LegLost):
    """The server's certificate did not verify."""


class LegTruncated(LegLost):
    """The peer ended the connection without close_notify: what arrived may not be all that was sent."""


class LegAbused(LegLost):
    """The peer made OpenSSL work, and sent nothing: a flood of KeyUpdates and the like."""


class _SocketLeg:
    """What every leg has: a connected, non-blocking stream socket, which it owns from here on."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._operations = 0

    def _is_turn_over(self) -> bool:
        """Whether other tasks, and a cancellation, are due before the next operation.

        What has to wait lets both through. What need not is over in microseconds.
        """
        self._operations += 1
        return self._operations % OPERATIONS_A_TURN == 0

    async def send(self, data: bytes) -> None:
        """Send all of `data`.

        Cancellation: how much was sent is unknown; the leg can only be closed.

        Raises:
            LegLost: the connection broke.
        """
        view = memoryview(data)
        while view:
            view = view[await self._send_some(view) :]

    async def _send_some(self, view: memoryview) -> int:
        raise NotImplementedError

    def abort(self) -> None:
        """Close at once and without a word, so that the peer sees a broken connection and no clean end."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """Close the socket. Closing twice does nothing. Say goodbye with `send_eof` before."""
        if self.sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self.sock)
            self.sock.close()


class ClearLeg(_SocketLeg):
    """A connection in clear.

    Args:
        sock: a connected, non-blocking stream socket, which the leg owns from here on.

    Attributes:
        is_tls: False.
    """

    is_tls: Final = False

    async def receive(self, max_octets: int) -> bytes:
        """The next bytes, at most `max_octets`; empty at the end of the stream.

        Raises:
            LegLost: the connection broke.
        """
        if self._is_turn_over():
            await trio.lowlevel.checkpoint()
        while True:
            try:
                return self.sock.recv(max_octets)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.sock)
            except OSError as error:
                raise _broken(error) from None

    async def _send_some(self, view: memoryview) -> int:
        if self._is_turn_over():
            await trio.lowlevel.checkpoint()
        while True:
            try:
                return self.sock.send(view)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self.sock)
            except OSError as error:
                raise _broken(error) from None

    async def send_eof(self) -> None:
        """Say that no more will be sent; receiving goes on."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)


def _broken(error: OSError) -> LegLost:
    return LegLost(error.strerror or type(error).__name__)


class TLSLeg(_SocketLeg):
    """A connection inside TLS. Made by `accept_tls` and `connect_tls` alone, after the handshake.

    Attributes:
        is_tls: True.
        connection: OpenSSL's end of it.
        is_verified: whether the peer's chain was verified in this handshake.
        peer_leaf: the peer's certificate, verified or, under a weak sslmode, not.
        is_abused: whether the connection was ended because the peer flooded it.
    """

    is_tls: Final = True

    def __init__(self, sock: socket.socket, connection: SSL.Connection) -> None:
        super().__init__(sock)
        self.connection = connection
        self._waiting: dict[Operation, trio.Event | None] = {}
        self._fruitless_reads = 0
        self.is_abused = False
        openssl.return_after_each_record(connection, KEY_UPDATES, self._note_abuse)
        der = openssl.peer_certificate(connection)
        self.peer_leaf: x509.Certificate | None = None if der is None else certificates.load(der)
        self.is_verified = openssl.is_verified(connection)

    @property
    def version(self) -> str:
        """The protocol version that was negotiated, as OpenSSL names it."""
        return self.connection.get_protocol_version_name()

    @property
    def cipher(self) -> str | None:
        """The cipher suite that was negotiated, as OpenSSL names it."""
        return self.connection.get_cipher_name()

    @property
    def alpn(self) -> bytes:
        """The application protocol that was negotiated; empty for none."""
        return self.connection.get_alpn_proto_negotiated()

    @property
    def server_name(self) -> bytes | None:
        """The SNI that the client sent, None without; it selects nothing."""
        return self.connection.get_servername()

    @property
    def peer_issuer(self) -> x509.Certificate | None:
        """Who issued the peer's certificate in the chain that was verified; None where there is none."""
        der = openssl.peer_issuer(self.connection)
        try:
            return None if der is None else certificates.load(der)
        except UNREADABLE:
            return None

    @property
    def peer_chain(self) -> tuple[x509.Certificate, ...]:
        """The chain to the CA that vouches for the peer, leaf first; empty where it gave no certificate."""
        return tuple(self.connection.get_verified_chain(as_cryptography=True) or ())

    async def receive(self, max_octets: int) -> bytes:
        """The next decrypted bytes; empty after the peer's close_notify.

        Raises:
            LegTruncated: the connection ended without close_notify.
            LegAbused: many records came, and none with data.
            LegLost: it broke, or a record was forged.
        """
        self._fruitless_reads = 0
        try:
            return await self._retry(lambda: self._read(max_octets))
        except SSL.ZeroReturnError:
            if self.is_abused:
                raise LegAbused(ABUSE) from None
            return b""

    def _note_abuse(self) -> None:
        self.is_abused = True

    def _read(self, max_octets: int) -> bytes:
        self._fruitless_reads += 1
        if self._fruitless_reads > FRUITLESS_READS:
            raise LegAbused(ABUSE)
        return openssl.receive(self.connection, max_octets)

    async def _send_some(self, view: memoryview) -> int:
        try:
            return await self._retry(lambda: openssl.send(self.connection, bytes(view[:MAX_RECORD_OCTETS])))
        except SSL.ZeroReturnError:
            raise LegLost("the peer has ended the connection") from None

    async def send_eof(self) -> None:
        """Send close_notify, TLS's half-close, and end the TCP direction; receiving goes on."""
        with contextlib.suppress(LegLost, SSL.Error):
            await self._retry(self.connection.shutdown)
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    async def _retry(self, operation: Callable[[], _T]) -> _T:
        if self._is_turn_over():
            await trio.lowlevel.checkpoint()
        while True:
            try:
                return operation()
            except SSL.WantReadError:
                await self._wait("read")
            except SSL.WantWriteError:
                await self._wait("write")
            except SSL.ZeroReturnError:
                raise
            except SSL.Error as error:
                openssl.clear_errors()
                raise leg_lost(error) from None

    async def _wait(self, operation: Operation) -> None:
        # trio lets one task wait for a descriptor's direction; the second, a rare one, waits for the first.
        if operation in self._waiting:
            over = self._waiting[operation] = self._waiting[operation] or trio.Event()
            await over.wait()
            return
        self._waiting[operation] = None
        try:
            if operation == "read":
                await trio.lowlevel.wait_readable(self.sock)
            else:
                await trio.lowlevel.wait_writable(self.sock)
        finally:
            awaited = self._waiting.pop(operation)
            if awaited is not None:
                awaited.set()


Leg = ClearLeg | TLSLeg


async def accept_tls(sock: socket.socket, context: SSL.Context) -> TLSLeg:
    """The server's side of a handshake.

    Args:
        sock: the client's socket; nothing of the handshake has been read from it yet.
        context: the listener's.

    Raises:
        ClientCertificateRefused: the client's certificate does not verify. `record` says why.
        ClientTLSFailed: the handshake failed for another reason, or ended early.
    """
    connection = SSL.Connection(context, sock)
    connection.set_accept_state()
    record = HandshakeRecord()
    connection.set_app_data(record)
    try:
        await _handshake(sock, connection)
    except NoCommonALPN:
        openssl.clear_errors()
        raise ClientTLSFailed('the client offers ALPN protocols, but not "postgresql"') from None
    except SSL.SysCallError as error:
        openssl.clear_errors()
        raise ClientTLSFailed(f"the client ended the handshake: {_lost(error)}") from None
    except SSL.Error as error:
        openssl.clear_errors()
        if record.verify_error:
            raise client_certificate_refused(record) from None
        raise ClientTLSFailed(f"TLS handshake failed: {openssl_reason(error)}") from None
    if openssl.is_resumed(connection):
        raise ClientTLSFailed("the client resumed a session, which skips the verification of its certificate")
    note_root(connection, record)
    if record.verify_error:
        raise client_certificate_refused(record)
    try:
        leg = TLSLeg(sock, connection)
    except UNREADABLE as error:
        raise ClientCertificateRefused(f"the client's certificate cannot be read: {error}") from None
    if leg.peer_leaf is not None and not leg.is_verified:
        raise ClientTLSFailed("the client's certificate was not verified in this handshake")
    return leg


async def connect_tls(sock: socket.socket, context: SSL.Context, server_name: bytes | None) -> TLSLeg:
    """The client's side of a handshake. The host name is still to be checked (`tls.verify`).

    Args:
        sock: a connected socket; nothing of the handshake has been read from it yet.
        context: the backend's.
        server_name: the SNI to send; None for none.

    Raises:
        PeerNotVerified: nobody who is trusted vouches for the server.
        LegLost: the handshake failed otherwise; either text is for the log alone.
    """
    connection = SSL.Connection(context, sock)
    if server_name is not None:
        connection.set_tlsext_host_name(server_name)
    connection.set_connect_state()
    record = HandshakeRecord()
    connection.set_app_data(record)
    try:
        await _handshake(sock, connection)
    except SSL.SysCallError as error:
        openssl.clear_errors()
        raise _lost(error) from None
    except SSL.Error as error:
        openssl.clear_errors()
        if record.verify_error:
            raise PeerNotVerified(f"{openssl_reason(error)}: {verdict(record)}") from None
        raise LegLost(openssl_reason(error)) from None
    note_root(connection, record)
    if record.verify_error:
        raise PeerNotVerified(f"certificate verify failed: {verdict(record)}")
    try:
        return TLSLeg(sock, connection)
    except UNREADABLE as error:
        raise LegLost(f"the server's certificate cannot be read: {error}") from None


async def _handshake(sock: socket.socket, connection: SSL.Connection) -> None:
    while True:
        try:
            connection.do_handshake()
        except SSL.WantReadError:
            await trio.lowlevel.wait_readable(sock)
        except SSL.WantWriteError:
            await trio.lowlevel.wait_writable(sock)
        else:
            return


def leg_lost(error: SSL.Error) -> LegLost:
    """What a failure of a call on an established connection means."""
    return _lost(error) if isinstance(error, SSL.SysCallError) else LegLost(openssl_reason(error))


def _lost(error: SSL.SysCallError) -> LegLost:
    number, text = (*error.args, None, None)[:2]
    if number in _LOST:
        return LegLost(str(text))
    return LegTruncated("the peer closed the connection without close_notify")
