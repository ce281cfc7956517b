"""The client's end of a session until it is let in: its leg, upgraded once, and one answer.

This is the only object of a session that changes, because a socket does: in clear first, then
perhaps inside TLS. The session owns it and closes it.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Final

import trio
from OpenSSL import SSL

from pgtlsproxy.errors import ClientGone, ProxyError, TLSAbuse
from pgtlsproxy.protocol.messages import encode_refusal
from pgtlsproxy.tls.stream import ClearLeg, Leg, LegAbused, LegLost, TLSLeg, accept_tls

ANSWER_SECONDS: Final = 1.0
"""How long an ErrorResponse may take to be delivered to a client that is being refused."""

DRAIN_OCTETS: Final = 262_144
"""How much of what a refused client still sends is read and dropped before the socket is closed."""

GONE: Final = (LegLost, SSL.Error, OSError)
"""How a client that is being refused may turn out to have left."""


class Client:
    """A client that has not been let in yet.

    Args:
        sock: its socket, non-blocking.
        session: the session's id, told to the client with every refusal.

    Attributes:
        sock: the socket.
        leg: what to read from and write to.
        has_spoken: whether it ever sent a byte.
    """

    def __init__(self, sock: socket.socket, session: str) -> None:
        self.leg: Leg = ClearLeg(sock)
        self.has_spoken = False
        self._session = session
        self.sock = sock
        self._is_answered = False
        self._is_in_handshake = False

    async def agree_to_tls(self) -> None:
        """Answer SSLRequest with yes: what comes in clear from here on the client takes for TLS.

        Raises:
            ClientGone: the connection broke.
        """
        self._is_in_handshake = True
        await self.send(b"S")

    async def start_tls(self, context: SSL.Context) -> TLSLeg:
        """Take the server's part of a TLS handshake, once.

        Raises:
            ClientTLSFailed: it failed; the alert was the answer, and `answer` sees to its delivery.
        """
        self._is_in_handshake = True
        self.leg = leg = await accept_tls(self.sock, context)
        self._is_in_handshake = False
        return leg

    async def peek(self) -> bytes:
        """The first byte of the socket, left where it is; empty when the client closed."""
        while True:
            try:
                return self.sock.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.sock)
            except OSError as error:
                raise ClientGone(f"the client reset the connection: {error.strerror}") from None

    async def read_exactly(self, octets: int) -> bytes:
        """Exactly so many bytes and not one more, or what came before the client closed.

        Raises:
            ClientGone: the connection broke.
        """
        received = b""
        while len(received) < octets:
            data = await self.read_some(octets - len(received))
            if not data:
                break
            received += data
        return received

    async def read_some(self, max_octets: int) -> bytes:
        """The next bytes; empty when the client closed.

        Raises:
            ClientGone: the connection broke.
            TLSAbuse: it keeps OpenSSL busy and sends nothing.
        """
        try:
            data = await self.leg.receive(max_octets)
        except LegAbused as error:
            raise TLSAbuse(f"client: {error}") from None
        except LegLost as error:
            raise ClientGone(f"the client's connection broke: {error}") from None
        self.has_spoken = self.has_spoken or bool(data)
        return data

    async def send(self, data: bytes) -> None:
        """Send bytes.

        Raises:
            ClientGone: the connection broke.
        """
        try:
            await self.leg.send(data)
        except LegLost as error:
            raise ClientGone(f"the client's connection broke: {error}") from None

    async def answer(self, error: ProxyError) -> None:
        """Tell the client that it is refused, so that it can read it, and end the connection.

        What the client still sends is read and dropped for a moment: closing a socket with unread
        input sends RST, which can overtake the answer. Never fails: whatever goes wrong, the client is gone.
        """
        if self._is_answered:
            return
        self._is_answered = True
        with trio.move_on_after(ANSWER_SECONDS, shield=True), contextlib.suppress(*GONE):
            # Inside a handshake there is no one who could read an ErrorResponse in clear.
            if error.sqlstate is not None and not self._is_in_handshake:
                await self.leg.send(encode_refusal(error, self._session))
            await self.leg.send_eof()
            dropped = 0
            while dropped < DRAIN_OCTETS and (data := await self.leg.receive(16384)):
                dropped += len(data)

    async def say_goodbye(self) -> None:
        """End the connection cleanly and without a word, as after a CancelRequest."""
        self._is_answered = True
        with trio.move_on_after(ANSWER_SECONDS, shield=True), contextlib.suppress(*GONE):
            await self.leg.send_eof()

    def close(self) -> None:
        """Close the socket."""
        self.leg.close()
