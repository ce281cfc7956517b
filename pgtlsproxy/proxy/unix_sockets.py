"""The file of a Unix socket and the lock file beside it, in PostgreSQL's places.

Whoever listens holds the lock: alone, or with `reuse_port` together with others that have it. Then the file
is the newest one's, put in the place of the other's in one step: at no moment does nobody answer. Whoever
ends removes what is its own, and only where nobody else is left.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import socket
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pgtlsproxy.config import UnixAddress

BACKLOG: Final = 1024

BIND_SECONDS: Final = 2.0
"""How long somebody who shares a file may take to bind."""

_Inode = tuple[int, int]


class BindError(Exception):
    """An address cannot be listened on; says which, why, and what to do."""


@dataclass(frozen=True, slots=True)
class UnixFiles:
    """What listening on a Unix socket leaves in the file system.

    Args:
        path: the socket's file.
        inode: that it had when it was ours.
        lock: the open lock file, which is held.
    """

    path: Path
    inode: _Inode
    lock: int

    def remove(self) -> None:
        """Remove them, unless somebody else listens there by now, and give up the lock."""
        with contextlib.suppress(OSError):
            # Where others hold it as well, this fails and gives up our share, which ends here anyway.
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _inode_at(self.path) == self.inode:
                self.path.unlink()
            if _is_at(self.lock, _lock_path(self.path)):
                _lock_path(self.path).unlink()
        self.leave()

    def leave(self) -> None:
        """Leave them to whoever has the lock, too."""
        os.close(self.lock)

    def sign(self) -> None:
        """Write into the lock file whose it is, for people to read; the lock is held either way."""
        with contextlib.suppress(OSError):
            _sign(self.lock)


def listen_unix(
    address: UnixAddress, permissions: int, group: str | None, *, is_shared: bool = False
) -> tuple[socket.socket, UnixFiles]:
    """Listen on `.s.PGSQL.<port>` in a folder, guarded by a lock file as PostgreSQL's is.

    A socket file that nobody holds the lock of is a leftover and is replaced; a live one is not, unless it is
    shared and we share it.

    Args:
        address: where.
        permissions: the file's mode.
        group: the file's group, a name or a number; None for the process's.
        is_shared: whether others that say so may listen there, too.

    Raises:
        BindError: the folder is missing or not writable, or the socket is somebody else's.
    """
    path = Path(address.path)
    lock, has_company = _lock(_lock_path(path), is_shared=is_shared)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if not has_company:
            _refuse_live_socket(path)
        inode = _bind(sock, path, permissions, group, in_place=not has_company)
        if is_shared:
            fcntl.flock(lock, fcntl.LOCK_SH)
    except BindError:
        sock.close()
        os.close(lock)
        raise
    except (OSError, KeyError) as error:
        sock.close()
        os.close(lock)
        reason = error.strerror or str(error) if isinstance(error, OSError) else f"there is no group {group}"
        raise BindError(f"cannot listen on {path}: {reason}") from None
    return sock, UnixFiles(path, inode, lock)


def adopt_unix(files: UnixFiles, permissions: int, group: str | None) -> None:
    """Give the file of a socket that another process has opened the permissions that it is to have now.

    Args:
        files: that were handed over.
        permissions: the file's mode.
        group: the file's group, a name or a number; None for the one that it has.

    Raises:
        BindError: they cannot be had.
    """
    try:
        if _inode_at(files.path) == files.inode:
            _dress(files.path, permissions, group)
    except (OSError, KeyError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"there is no group {group}"
        raise BindError(f"cannot listen on {files.path}: {reason}") from None


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


# --- The lock -------------------------------------------------------------------------------------------


def _lock_path(path: Path) -> Path:
    return Path(f"{path}.lock")


def _lock(path: Path, *, is_shared: bool) -> tuple[int, bool]:
    """The open lock file, held, and whether others hold it, too."""
    while True:
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise BindError(
                f"cannot make {path}: {error.strerror}; the folder must exist and be ours"
            ) from None
        try:
            has_company = _hold(lock, path, is_shared=is_shared)
        except BindError:
            os.close(lock)
            raise
        if _is_at(lock, path):
            _sign(lock)
            return lock, has_company
        os.close(lock)  # its last holder removed it while we waited for nobody


def _sign(lock: int) -> None:
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)


def _hold(lock: int, path: Path, *, is_shared: bool) -> bool:
    """Take the lock, alone where that can be. Returns whether others hold it, too."""
    holder, *more = os.pread(lock, 4096, 0).decode("ascii", "replace").split("\n")
    if _try(lock, fcntl.LOCK_EX):
        # A PostgreSQL server does not lock the file that it writes; its process id is the first line of five.
        if any(more) and holder.isdigit() and int(holder) != os.getpid() and _is_alive(int(holder)):
            raise BindError(
                f"{path} belongs to process {holder}, which is alive: choose another port or folder"
            )
        return False
    until = time.monotonic() + BIND_SECONDS
    while is_shared and time.monotonic() < until:
        if _try(lock, fcntl.LOCK_SH):
            return True
        time.sleep(0.02)  # who shares it has it alone while it binds
    raise BindError(
        f"{path} is held by another pgtlsproxy (process {holder}): choose another port (two may listen there "
        "where both have reuse_port: on)"
    )


def _try(lock: int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(lock: int, path: Path) -> bool:
    """Whether the open file is the one that stands there."""
    found = os.fstat(lock)
    return _inode_at(path) == (found.st_dev, found.st_ino)


def _inode_at(path: Path) -> _Inode | None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


# --- The socket -----------------------------------------------------------------------------------------


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


def _bind(sock: socket.socket, path: Path, permissions: int, group: str | None, *, in_place: bool) -> _Inode:
    """Listen there, or beside it and then take its place."""
    at = path if in_place else path.with_name(f"{path.name}.{os.getpid()}")
    if not in_place:
        at.unlink(missing_ok=True)
    # Nobody can connect before listen(), so the file may have its final mode in two steps.
    sock.bind(str(at))
    try:
        _dress(at, permissions, group)
        inode = _inode_at(at)
        sock.listen(BACKLOG)
        if not in_place:
            at.rename(path)
    except BaseException:
        at.unlink(missing_ok=True)
        raise
    assert inode is not None  # noqa: S101 - it was made just now
    return inode


def _dress(path: Path, permissions: int, group: str | None) -> None:
    if group is not None:
        gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
        os.chown(path, -1, gid)
    path.chmod(permissions)
