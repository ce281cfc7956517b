"""When the kernel gives a TCP connection up whose peer answers nothing any more.

Keepalives find out about a peer that has gone while nothing was under way, tcp_user_timeout about one that
has gone with something unacknowledged. Zero stands for the system's own.
"""

from __future__ import annotations

import socket

from pgtlsproxy.config import Backend, Listener


def keep_client_alive(sock: socket.socket, settings: Listener) -> None:
    """Set what a listener says on a client's connection. It is always asked, as by PostgreSQL (pq_init).

    Raises:
        OSError: the client is gone already.
    """
    _keep_alive(
        sock,
        settings.tcp_keepalives_idle,
        settings.tcp_keepalives_interval,
        settings.tcp_keepalives_count,
    )
    _set_user_timeout(sock, settings.tcp_user_timeout)


def keep_server_alive(sock: socket.socket, settings: Backend) -> None:
    """Set what a backend says on a connection to a server.

    Raises:
        OSError: the server is gone already.
    """
    if settings.keepalives:
        _keep_alive(sock, settings.keepalives_idle, settings.keepalives_interval, settings.keepalives_count)
    _set_user_timeout(sock, settings.tcp_user_timeout)


def _keep_alive(sock: socket.socket, idle: float, interval: float, count: int) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    _set(sock, socket.TCP_KEEPIDLE, int(idle))
    _set(sock, socket.TCP_KEEPINTVL, int(interval))
    _set(sock, socket.TCP_KEEPCNT, count)


def _set_user_timeout(sock: socket.socket, seconds: float) -> None:
    _set(sock, socket.TCP_USER_TIMEOUT, round(seconds * 1000))


def _set(sock: socket.socket, option: int, value: int) -> None:
    if value:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
