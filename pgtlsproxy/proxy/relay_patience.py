"""A peer that reads nothing for a while is there all the same: tcp_user_timeout does not count its time.

Linux counts it: with TCP_USER_TIMEOUT a connection is lost whose window has been closed for so long, whatever
the peer acknowledges (tcp_probe_timer, net/ipv4/tcp_timer.c). So would be the COPY of a server that waits for
a lock, or the result of which somebody looks at a page. While a socket is full the option is off, and once a
second it is asked what the kernel knows of the connection: a peer that is there answers its probes.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from typing import Final

from pgtlsproxy.tls.raw import RawLeg

UNANSWERED: Final = 3
"""So many retransmissions or probes in a row without an answer: one or two may be lost on the way."""

_INFO: Final = struct.Struct("=2xBB52xI")
"""Of struct tcp_info (linux/tcp.h): tcpi_retransmits, tcpi_probes, and tcpi_last_ack_recv in ms."""


class Patience:
    """The sockets that are full, and the options that they had."""

    def __init__(self) -> None:
        self._full: dict[int, tuple[socket.socket, int]] = {}

    def note(self, leg: RawLeg) -> None:
        """See whether a leg's socket is full now, or has become free."""
        if not leg.unsent:
            _, milliseconds = self._full.pop(leg.fd, (leg.sock, 0))
            if milliseconds:
                _set(leg.sock, milliseconds)
        elif leg.fd not in self._full:
            milliseconds = _user_timeout(leg.sock)
            self._full[leg.fd] = leg.sock, milliseconds
            if milliseconds:
                _set(leg.sock, 0)

    def forget(self, fd: int) -> None:
        """Its session is over."""
        self._full.pop(fd, None)

    def lost(self) -> Iterator[int]:
        """The descriptors of full sockets whose peer has acknowledged nothing for longer than it may."""
        for fd, (sock, milliseconds) in tuple(self._full.items()):
            # Whoever is told of one leg may end its session, and forget the other.
            if fd in self._full and milliseconds and _silence(sock) >= milliseconds:
                yield fd


def _silence(sock: socket.socket) -> int:
    """For how many ms a peer has answered nothing that it had to; 0 where it may have nothing to answer."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
    except OSError:  # closed meanwhile
        return 0
    retransmits, probes, since_answer = _INFO.unpack(info)
    return int(since_answer) if max(retransmits, probes) >= UNANSWERED else 0


def _user_timeout(sock: socket.socket) -> int:
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    except OSError:  # a Unix socket
        return 0


def _set(sock: socket.socket, milliseconds: int) -> None:
    with contextlib.suppress(OSError):  # what broke it will be seen when it is read
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
