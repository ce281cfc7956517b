"""From a socket to an Accepted: where the client comes from, and until when it must have said what."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import Final

import trio

from pgtlsproxy.errors import ClientGone, DeadlineMissed
from pgtlsproxy.identity import OSUser
from pgtlsproxy.observability.logs import SessionLog
from pgtlsproxy.proxy.client import Client
from pgtlsproxy.proxy.keepalive import keep_client_alive
from pgtlsproxy.proxy.snapshot import Snapshot
from pgtlsproxy.proxy.sockets import client_address, name_of, unix_peer
from pgtlsproxy.proxy.stages import Accepted

NAME_LOOKUPS: Final = trio.CapacityLimiter(8)
"""Look-ups in the system's user database under way at once. One that hangs keeps its thread."""


async def accept(
    session: str, client: Client, listener: str, snapshot: Snapshot, log: SessionLog
) -> Accepted:
    """Find out where the client comes from, and set until when it must have said what.

    Raises:
        ClientGone: it has left already.
        DeadlineMissed: the system did not say in time who it is.
    """
    now = trio.current_time()
    startup_deadline = now + snapshot.settings.startup_timeout
    deadline = now + snapshot.settings.authentication_timeout
    sock = client.sock
    user = None
    try:
        if sock.family == socket.AF_UNIX:
            user = unix_peer(sock)
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keep_client_alive(sock, snapshot.listeners[listener].settings)
        address = client_address(sock)
    except OSError as error:
        raise ClientGone(f"the client was gone before it was looked at: {error.strerror}") from None
    log.note(listener=listener)
    log.note_address(address, user)
    if user is not None and user.is_known:
        user = await _named(user, min(startup_deadline, deadline))
        log.note_address(address, user)
    return Accepted(
        session=session,
        sock=sock,
        address=address,
        os_user=user,
        snapshot=snapshot,
        listener=snapshot.listeners[listener],
        accepted_at=now,
        startup_deadline=startup_deadline,
        deadline=deadline,
    )


async def _named(user: OSUser, deadline: float) -> OSUser:
    """The same user with its name, asked for off the event loop."""
    with trio.move_on_at(deadline):
        name = await trio.to_thread.run_sync(name_of, user.uid, abandon_on_cancel=True, limiter=NAME_LOOKUPS)
        return replace(user, name=name)
    raise DeadlineMissed(
        f"the system's user database did not say in time who uid {user.uid} is (startup_timeout); "
        "see passwd in nsswitch.conf"
    )
