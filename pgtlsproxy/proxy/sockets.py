"""Listening sockets, and what the kernel says of those who connect to them."""

from __future__ import annotations

import ipaddress
import pwd
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from pgtlsproxy.config import Listener, Settings, TCPAddress, UnixAddress
from pgtlsproxy.errors import ConfigError, Mistake
from pgtlsproxy.identity import ClientAddress, IPAddress, OSUser
from pgtlsproxy.protocol.proxy_header import Endpoint, Ends
from pgtlsproxy.proxy.unix_sockets import BACKLOG, BindError, UnixFiles, adopt_unix, listen_unix

STATUS_NAME: Final = "status"
"""What the socket of `status.listen` is called among those of the listeners."""

REMEMBERED: Final = 4096
"""Addresses whose parsed form is kept, the least recently seen going first."""

OVERFLOW_UID_FILE: Final = Path("/proc/sys/kernel/overflowuid")


@dataclass(slots=True)
class ListeningSocket:
    """A socket that accepts.

    Args:
        sock: the socket, non-blocking.
        shown: the address as people write it, with the port that was really taken.
        configured: the same with the port of the configuration, which may be 0.
        files: what a Unix one leaves in the file system; None for one that was passed to us.
        is_passed: whether it was open before us and stays so behind us, as systemd's are.
        is_lent: whether another process listens on it, too, whose place we have not taken yet.
    """

    sock: socket.socket
    shown: str
    configured: str
    files: UnixFiles | None = None
    is_passed: bool = False
    is_lent: bool = False

    def close(self) -> None:
        """Stop listening, and remove the files of a Unix socket of ours."""
        self.sock.close()
        if self.files is not None:
            self.files.leave() if self.is_lent else self.files.remove()
            self.files = None


class Heirlooms:
    """Sockets of the process whose place we take, for the listeners that have the same addresses.

    Args:
        sockets: (listener name, socket) pairs.
    """

    def __init__(self, sockets: Sequence[tuple[str, ListeningSocket]] = ()) -> None:
        self.left = list(sockets)

    def take(self, name: str, configured: str) -> ListeningSocket | None:
        """The socket of an address; with a port that the system has chosen, only of the listener's name."""
        for each in self.left:
            if each[1].configured == configured and (each[0] == name or not configured.endswith(":0")):
                self.left.remove(each)
                return each[1]
        return None


def listen(
    path: str, settings: Settings, passed: Mapping[str, Sequence[ListeningSocket]], heirlooms: Heirlooms
) -> list[tuple[str, ListeningSocket]]:
    """Listen on every address of the configuration, or on none.

    Args:
        path: the configuration file, for messages.
        settings: what it says.
        passed: by listener, the sockets that take the place of its addresses.
        heirlooms: sockets that are taken where the address is the same.

    Returns:
        (listener name, socket) pairs.

    Raises:
        ConfigError: with every address that cannot be had; the others are released.
    """
    opened: list[tuple[str, ListeningSocket]] = []
    mistakes: list[Mistake] = []
    for name, listener in settings.listeners.items():
        if name in passed:
            opened.extend((name, each) for each in passed[name])
            continue
        for index, address in enumerate(listener.listen):
            try:
                sockets = _listen(address, name, listener, heirlooms, is_shared=settings.reuse_port)
            except BindError as error:
                mistakes.append(Mistake(f"{path}: listeners.{name}.listen[{index}]", str(error)))
            else:
                opened.extend((name, sock) for sock in sockets)
    if mistakes:
        for _, sock in opened:
            sock.close()
        raise ConfigError(mistakes)
    return opened


def _listen(
    address: TCPAddress | UnixAddress, name: str, listener: Listener, heirlooms: Heirlooms, *, is_shared: bool
) -> list[ListeningSocket]:
    if isinstance(address, TCPAddress):
        return listen_tcp(address, name, heirlooms, is_shared=is_shared)
    permissions, group = listener.unix_socket_permissions, listener.unix_socket_group
    where = f"unix:{address.path}"
    heirloom = heirlooms.take(name, where)
    if heirloom is not None and heirloom.files is not None:
        adopt_unix(heirloom.files, permissions, group)
        return [heirloom]
    sock, files = listen_unix(address, permissions, group, is_shared=is_shared)
    return [ListeningSocket(sock, where, where, files)]


def listen_tcp(
    address: TCPAddress, name: str, heirlooms: Heirlooms, *, is_shared: bool
) -> list[ListeningSocket]:
    """Listen on a TCP address; `localhost` and `*` are two, one a family.

    IPv6 sockets take IPv6 alone, so that an IPv4 rule can never be slipped past by `::ffff:10.1.2.3`.

    Args:
        address: where.
        name: of the listener.
        heirlooms: sockets that are taken where the address is the same.
        is_shared: whether other processes of the same user that say so may listen there, too.

    Raises:
        BindError: the address is taken, or not this machine's.
    """
    sockets: list[ListeningSocket] = []
    port = address.port
    for host in address.hosts:
        heirloom = heirlooms.take(name, shown(host, address.port))
        if heirloom is not None:
            sockets.append(heirloom)
            continue
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if is_shared:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((host, port))
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            if len(address.hosts) > 1 and sockets:
                continue  # a machine without IPv6 has no ::1
            for opened in sockets:
                opened.close()
            raise BindError(
                f"cannot listen on {shown(host, port)}: {error.strerror}{_hint(error, is_shared=is_shared)}"
            ) from None
        port = sock.getsockname()[1]
        sockets.append(ListeningSocket(sock, shown(host, port), shown(host, address.port)))
    return sockets


def shown(host: str, port: int) -> str:
    """An address as people write it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _hint(error: OSError, *, is_shared: bool) -> str:
    taken = "; another process has it: stop that one or choose another port"
    if is_shared:
        taken = (
            "; another process has it, and shares it with processes of the same user alone, all of them with "
            "reuse_port: on"
        )
    hints = {
        "Address already in use": taken,
        "Permission denied": "; ports below 1024 need CAP_NET_BIND_SERVICE",
        "Cannot assign requested address": "; it is not an address of this machine",
    }
    return hints.get(error.strerror or "", "")


def client_address(sock: socket.socket) -> ClientAddress:
    """Where a connected client comes from.

    IPv4-mapped addresses become IPv4 before any rule, limit or log sees them. Loopback is judged
    by both ends, the local one as `getsockname` has it.

    Raises:
        OSError: the client is gone already.
    """
    if sock.family == socket.AF_UNIX:
        return ClientAddress(None, None, is_local=True)
    peer, local = sock.getpeername(), sock.getsockname()
    (ip, is_loopback), (_, is_own_loopback) = _plain_ip(peer[0]), _plain_ip(local[0])
    return ClientAddress(ip, peer[1], is_local=is_loopback and is_own_loopback)


def client_ends(sock: socket.socket) -> Ends | None:
    """Both ends of a client's connection; None at a Unix socket.

    Raises:
        OSError: the client is gone already.
    """
    if sock.family == socket.AF_UNIX:
        return None
    peer, local = sock.getpeername(), sock.getsockname()
    return Ends(Endpoint(_plain_ip(peer[0])[0], peer[1]), Endpoint(_plain_ip(local[0])[0], local[1]))


@lru_cache(maxsize=REMEMBERED)  # 15 µs a session, and most clients come again
def _plain_ip(text: str) -> tuple[IPAddress, bool]:
    """An address, and whether it is loopback."""
    ip = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped, ip.ipv4_mapped.is_loopback
    return ip, ip.is_loopback


def unix_peer(sock: socket.socket) -> OSUser:
    """Who is at the other end of a Unix socket, as the kernel says; a number without a name so far.

    The overflow uid stands for everybody whom this user namespace does not know, and so for nobody.
    """
    pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return OSUser(uid, gid, pid, None, is_known=uid != _overflow_uid())


def name_of(uid: int) -> str | None:
    """The name of a uid; None where the system's user database lists none.

    The database may be a directory server that does not answer: this can block for ever.
    """
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def _overflow_uid() -> int:
    try:
        return int(OVERFLOW_UID_FILE.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 65534
