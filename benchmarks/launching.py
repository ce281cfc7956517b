"""Starting a foreign proxy: its folder, its ports, its processes."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from benchmarks.processes import running
from benchmarks.site import Site
from pgtlsproxy.demo.installations import ServerUser

_START_SECONDS: Final = 20.0
_PORT_ATTEMPTS: Final = 5


class PeerFailed(Exception):
    """A proxy did not start."""


@contextmanager
def started(
    name: str,
    site: Site,
    commands: Sequence[Sequence[str]],
    configure: Callable[[Path, Sequence[int]], Mapping[str, bytes]],
    user: ServerUser | None = None,
) -> Iterator[tuple[tuple[int, ...], Sequence[int]]]:
    """Start programs in a folder with their configuration; again where somebody took their ports.

    Args:
        name: whose.
        site: where.
        commands: one for each process.
        configure: files by name, for their folder and two ports that are free.
        user: who they run as; whoever we are by default.

    Yields:
        The processes' numbers, and the ports; the first one listens.

    Raises:
        PeerFailed: they do not start.
    """
    user = user or ServerUser()
    folder = folder_of(site, name)
    for attempt in range(1, _PORT_ATTEMPTS + 1):
        ports = _free_ports(2)
        write_files(folder, {**site.files(), **configure(folder, ports)}, user)
        with (folder / "log.txt").open("wb") as log, ExitStack() as stack:
            processes = [
                stack.enter_context(running(command, cwd=folder, user=user, stdout=log, stderr=log))
                for command in commands
            ]
            if _listens(ports[0], processes):
                yield tuple(process.pid for process in processes), ports
                return
        if attempt == _PORT_ATTEMPTS:
            last_words = (folder / "log.txt").read_text(errors="replace").splitlines()[-5:]
            raise PeerFailed(f"{name} did not start: {' / '.join(last_words)}")


def folder_of(site: Site, name: str) -> Path:
    """A new folder of the run."""
    count = sum(1 for _ in site.folder.glob(f"{name}.*"))
    folder = site.folder / f"{name}.{count}"
    folder.mkdir(mode=0o755)
    return folder


def write_files(folder: Path, files: Mapping[str, bytes], user: ServerUser) -> None:
    """Write files that this user alone may read."""
    for name, content in files.items():
        path = folder / name
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            if user.uid is not None and user.gid is not None:
                os.fchown(descriptor, user.uid, user.gid)
            file.write(content)


def _listens(port: int, processes: Sequence[subprocess.Popen[bytes]]) -> bool:
    """Whether somebody takes connections in time, while all these processes live."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if any(process.poll() is not None for process in processes):
            return False
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.02)
    return False


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago; whoever uses them must expect that they are not any more."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
