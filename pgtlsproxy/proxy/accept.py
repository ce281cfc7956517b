"""From a socket to an Accepted: where the client comes from, and until when it must have said what."""

from __future__ import annotations

import socket

import trio

from pgtlsproxy.errors import ClientGone
from pgtlsproxy.observability.logs import SessionLog
from pgtlsproxy.proxy.client import Client
from pgtlsproxy.proxy.snapshot import Snapshot
from pgtlsproxy.proxy.sockets import client_address, os_user
from pgtlsproxy.proxy.stages import Accepted


async def accept(
    session: str, client: Client, listener: str, snapshot: Snapshot, log: SessionLog
) -> Accepted:
    """Find out where the client comes from, and set until when it must have said what.

    Raises:
        ClientGone: it has left already.
    """
    now = trio.current_time()
    sock = client.sock
    try:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        user = await trio.to_thread.run_sync(os_user, sock)
        address = client_address(sock)
    except OSError as error:
        raise ClientGone(f"the client was gone before it was looked at: {error.strerror}") from None
    log.note(listener=listener)
    log.note_address(address, user)
    return Accepted(
        session=session,
        sock=sock,
        address=address,
        os_user=user,
        snapshot=snapshot,
        listener=snapshot.listeners[listener],
        accepted_at=now,
        startup_deadline=now + snapshot.settings.startup_timeout,
        deadline=now + snapshot.settings.authentication_timeout,
    )
