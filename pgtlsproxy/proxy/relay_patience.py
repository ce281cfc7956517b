"""A peer that reads nothing for a while is there all the same: tcp_user_timeout does not count its time.

Linux counts it: with TCP_USER_TIMEOUT a connection is lost whose window has been closed for so long, whatever
the peer acknowledges (tcp_probe_timer, net/ipv4/tcp_timer.c). So would be the COPY of a server that waits for
a lock, or the result of which somebody looks at a page. While a socket is full the option is off; a peer that
is gone is noticed then when the kernel gives up by itself, after some 15 minutes.
"""

from __future__ import annotations

import contextlib
import socket

from pgtlsproxy.tls.raw import RawLeg


class Patience:
    """The sockets that are full, and the options that they had."""

    def __init__(self) -> None:
        self._milliseconds: dict[int, int] = {}

    def note(self, leg: RawLeg) -> None:
        """See whether a leg's socket is full now, or has become free."""
        if not leg.unsent:
            if milliseconds := self._milliseconds.pop(leg.fd, 0):
                _set(leg.sock, milliseconds)
        elif leg.fd not in self._milliseconds:
            self._milliseconds[leg.fd] = _user_timeout(leg.sock)
            if self._milliseconds[leg.fd]:
                _set(leg.sock, 0)

    def forget(self, fd: int) -> None:
        """Its session is over."""
        self._milliseconds.pop(fd, None)


def _user_timeout(sock: socket.socket) -> int:
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    except OSError:  # a Unix socket
        return 0


def _set(sock: socket.socket, milliseconds: int) -> None:
    with contextlib.suppress(OSError):  # what broke it will be seen when it is read
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
