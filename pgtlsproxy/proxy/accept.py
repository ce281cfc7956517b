"""From a socket to an Accepted: where the client comes from, and until when it must have said what.

A load balancer hides where its clients come from, and says so itself in a PROXY header. It is believed where
`proxy_protocol_from` lists it, and there alone; and there it must, or whoever gets it to leave the header out
would come from its address.
"""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import Final

import trio

from pgtlsproxy.errors import ClientGone, DeadlineMissed, ProxyHeaderRefused
from pgtlsproxy.identity import ClientAddress, OSUser
from pgtlsproxy.observability.logs import SessionLog
from pgtlsproxy.protocol.proxy_header import ProxyHeader, ProxyHeaderReader, shown
from pgtlsproxy.proxy.admission import Seat
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
    deadline = now + snapshot.settings.authentication_timeout
    startup_deadline = min(now + snapshot.settings.startup_timeout, deadline)
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
        user = await _named(user, startup_deadline)
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


async def introduced(accepted: Accepted, client: Client, seat: Seat, log: SessionLog) -> Accepted:
    """The same, as the load balancer introduces it: from here on the client's address is the one that counts.

    Args:
        accepted: the connection.
        client: its end of it.
        seat: told until when the header must have come.
        log: told who speaks for whom.

    Raises:
        ProxyHeaderRefused: it comes from where a PROXY header must come, and none did, or a malformed one.
        ClientGone: it closed without a word.
    """
    peer = accepted.address
    if not any(peer.ip in network for network in accepted.listener.settings.proxy_protocol_from if peer.ip):
        return accepted
    log.note(via_addr=str(peer))
    try:
        header = await _read_header(client, seat, accepted.startup_deadline)
    except ProxyHeaderRefused as error:
        raise ProxyHeaderRefused(f"{error.reason}; {peer} is in proxy_protocol_from") from None
    address = replace(peer, is_local=False)  # its own, of which nobody knows who comes from it
    if header.ends is not None:
        address = ClientAddress(header.ends.client.ip, header.ends.client.port, is_local=False)
    log.note_address(address, None)
    client.has_spoken = False  # a load balancer that looks whether we are there says no more than this
    return replace(accepted, address=address, via=peer, header=header)


async def _read_header(client: Client, seat: Seat, deadline: float) -> ProxyHeader:
    reader = ProxyHeaderReader()
    seat.must_be_over_by(deadline, "no PROXY header came in time (startup_timeout)")
    while octets := reader.wanted:
        data = await client.read_some(octets)
        if not data and not reader.received:
            raise ClientGone("the connection was closed without a word")
        if not data:
            raise ProxyHeaderRefused(f"half a PROXY header: found {shown(reader.received)} and the end")
        reader.feed(data)
        half = f"half a PROXY header: found {shown(reader.received)} and no more in time (startup_timeout)"
        seat.must_be_over_by(deadline, half)
    return reader.header()


async def _named(user: OSUser, deadline: float) -> OSUser:
    """The same user with its name, asked for off the event loop."""
    with trio.move_on_at(deadline):
        name = await trio.to_thread.run_sync(name_of, user.uid, abandon_on_cancel=True, limiter=NAME_LOOKUPS)
        return replace(user, name=name)
    raise DeadlineMissed(
        f"the system's user database did not say in time who uid {user.uid} is (startup_timeout); "
        "see passwd in nsswitch.conf"
    )
