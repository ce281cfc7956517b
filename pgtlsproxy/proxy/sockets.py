"""Listening sockets, and what the kernel says of those who connect to them."""

from __future__ import annotations

import contextlib
import fcntl
import grp
import ipaddress
import os
import pwd
import socket
import stat
import struct
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final

from pgtlsproxy.config import Settings, TCPAddress, UnixAddress
from pgtlsproxy.errors import ConfigError, Mistake
from pgtlsproxy.identity import ClientAddress, IPAddress, OSUser

BACKLOG: Final = 1024

REMEMBERED: Final = 4096
"""Addresses whose parsed form is kept, the least recently seen going first."""

OVERFLOW_UID_FILE: Final = Path("/proc/sys/kernel/overflowuid")


class BindError(Exception):
    """An address cannot be listened on; says which, why, and what to do."""


@dataclass(slots=True)
class ListeningSocket:
    """A socket that accepts, with the lock file that a Unix one holds.

    Args:
        sock: the socket, non-blocking.
        shown: the address as people write it, with the port that was really taken.
    """

    sock: socket.socket
    shown: str
    _paths: list[Path] = field(default_factory=list)
    _lock: int | None = None

    def close(self) -> None:
        """Stop listening, and remove the files of a Unix socket."""
        self.sock.close()
        for path in self._paths:
            with contextlib.suppress(OSError):
                path.unlink()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def listen(path: str, settings: Settings) -> list[tuple[str, ListeningSocket]]:
    """Listen on every address of the configuration, or on none.

    Args:
        path: the configuration file, for messages.
        settings: what it says.

    Returns:
        (listener name, socket) pairs.

    Raises:
        ConfigError: with every address that cannot be had; the others are released.
    """
    opened: list[tuple[str, ListeningSocket]] = []
    mistakes: list[Mistake] = []
    for name, listener in settings.listeners.items():
        for index, address in enumerate(listener.listen):
            try:
                sockets = (
                    listen_tcp(address)
                    if isinstance(address, TCPAddress)
                    else [listen_unix(address, listener.unix_socket_permissions, listener.unix_socket_group)]
                )
            except BindError as error:
                mistakes.append(Mistake(f"{path}: listeners.{name}.listen[{index}]", str(error)))
            else:
                opened.extend((name, sock) for sock in sockets)
    if mistakes:
        for _, sock in opened:
            sock.close()
        raise ConfigError(mistakes)
    return opened


def listen_tcp(address: TCPAddress) -> list[ListeningSocket]:
    """Listen on a TCP address; `localhost` and `*` are two, one a family.

    IPv6 sockets take IPv6 alone, so that an IPv4 rule can never be slipped past by `::ffff:10.1.2.3`.

    Raises:
        BindError: the address is taken, or not this machine's.
    """
    sockets: list[ListeningSocket] = []
    port = address.port
    for host in address.hosts:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
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
                f"cannot listen on {_shown(host, port)}: {error.strerror}{_hint(error)}"
            ) from None
        port = sock.getsockname()[1]
        sockets.append(ListeningSocket(sock, _shown(host, port)))
    return sockets


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _hint(error: OSError) -> str:
    hints = {
        "Address already in use": "; another process has it: stop that one or choose another port",
        "Permission denied": "; ports below 1024 need CAP_NET_BIND_SERVICE",
        "Cannot assign requested address": "; it is not an address of this machine",
    }
    return hints.get(error.strerror or "", "")


def listen_unix(address: UnixAddress, permissions: int, group: str | None) -> ListeningSocket:
    """Listen on `.s.PGSQL.<port>` in a folder, guarded by a lock file as PostgreSQL's is.

    A socket file that nobody holds the lock of is a leftover and is replaced; a live one is not.

    Raises:
        BindError: the folder is missing or not writable, or the socket is somebody else's.
    """
    path = Path(address.path)
    lock_path = Path(f"{path}.lock")
    try:
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise BindError(
            f"cannot make {lock_path}: {error.strerror}; the folder must exist and be ours"
        ) from None
    opened = ListeningSocket(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), f"unix:{path}", [], lock)
    try:
        _take_lock(lock, lock_path)
        _refuse_live_socket(path)
        opened.sock.setblocking(False)
        _bind_with_permissions(opened.sock, path, permissions, group)
        opened._paths[:] = [path, lock_path]  # noqa: SLF001 - from here on they are ours to remove
        opened.sock.listen(BACKLOG)
    except BindError:
        opened.close()
        raise
    except (OSError, KeyError) as error:
        opened.close()
        reason = error.strerror if isinstance(error, OSError) else f"there is no group {group}"
        raise BindError(f"cannot listen on {path}: {reason}") from None
    return opened


def folder_warning(address: UnixAddress) -> str | None:
    """Why this process could not listen there as things are; None where the folder will do."""
    folder = Path(address.path).parent
    if not folder.is_dir():
        return (
            f"there is no folder {folder}: serve cannot listen there unless something makes it first, as "
            "systemd's RuntimeDirectory= does"
        )
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        return (
            f"the folder {folder} is not writable for uid {os.geteuid()}: serve can listen there as another "
            "user only"
        )
    return None


def _take_lock(lock: int, path: Path) -> None:
    holder = os.pread(lock, 32, 0).split(b"\n")[0].decode("ascii", "replace")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BindError(
            f"{path} is held by another pgtlsproxy (process {holder}): choose another port"
        ) from None
    # A PostgreSQL server writes its process id into this file and does not lock it.
    if holder.isdigit() and int(holder) != os.getpid() and _is_alive(int(holder)):
        raise BindError(f"{path} belongs to process {holder}, which is alive: choose another port or folder")
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _refuse_live_socket(path: Path) -> None:
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise BindError(f"{path} exists and is no socket: remove it or choose another folder")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise BindError(f"{path} is in use ({error.strerror})") from None
    raise BindError(f"{path} is in use: a server answers there. Choose another port or folder")


def _bind_with_permissions(sock: socket.socket, path: Path, permissions: int, group: str | None) -> None:
    # Nobody can connect before listen(), so the file may have its final mode in two steps.
    sock.bind(str(path))
    if group is not None:
        gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
        os.chown(path, -1, gid)
    path.chmod(permissions)


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
