"""Processes that end with us, and what the kernel says of them (proc_pid_stat(5), proc_pid_smaps(5))."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from pgtlsproxy.demo.installations import ServerUser

_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
_STOP_TIMEOUT: Final = 20.0

# We may have died before the kernel was asked to end it with us.
_UNLESS_ORPHANED: Final = '[ "$PPID" = "$0" ] && exec "$@"'


@contextmanager
def running(
    command: Sequence[str],
    *,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] = subprocess.PIPE,
    environment: dict[str, str] | None = None,
    cwd: str | Path = "/",
    user: ServerUser | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that is ended when the context is left, and by the kernel when we die before that.

    Args:
        command: the program and its arguments; it must not fork into the background.
        stdin: as `subprocess.Popen` takes it.
        stdout: the same.
        stderr: the same.
        environment: all that it sees; ours by default.
        cwd: its folder.
        user: who it runs as; whoever we are by default.
    """
    user = user or ServerUser()
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "/bin/sh", "-c", _UNLESS_ORPHANED, str(os.getpid()), *command],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=environment,
        cwd=cwd,
        user=user.uid,
        group=user.gid,
        extra_groups=user.groups,
        start_new_session=True,  # Ctrl-C in our terminal is ours to answer
    )
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process, if it has not ended, and close our ends of its pipes."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()


def raise_descriptor_limit() -> int:
    """Let us and what we start have as many descriptors as the hard limit allows; returns how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def family(pid: int) -> tuple[int, ...]:
    """A process and all its descendants that live."""
    found = [pid]
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children = (task / "children").read_text().split()
            found += [each for child in children for each in family(int(child))]
    return tuple(found)


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time that processes have used, all their threads included; none of one that is gone."""
    ticks = 0
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            ticks += ticks_of(Path(f"/proc/{pid}/stat").read_text())
    return ticks / _TICKS_PER_SECOND


def ticks_of(stat: str) -> int:
    """User and system time in a line of /proc/PID/stat, behind a name with whatever it likes in it."""
    fields = stat.rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of some processes, in kB of 1024 octets.

    Args:
        rss: pages in RAM, those shared with others counted in full.
        pss: the same, a page shared by n processes counted as 1/n.
    """

    rss: float
    pss: float


def memory(pids: Iterable[int]) -> Memory:
    """What processes hold now."""
    read = [memory_of(Path(f"/proc/{pid}/smaps_rollup").read_text()) for pid in pids]
    return Memory(sum(each.rss for each in read), sum(each.pss for each in read))


def memory_of(smaps_rollup: str) -> Memory:
    """Rss and Pss of a text of /proc/PID/smaps_rollup."""
    fields = dict(line.split(":", 1) for line in smaps_rollup.splitlines()[1:])
    return Memory(float(fields["Rss"].split()[0]), float(fields["Pss"].split()[0]))


def written_octets(pid: int) -> int:
    """How many octets a process has written with write(2), sockets not counted that it sends to."""
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["wchar"])


def available_memory() -> int:
    """Octets that can be had without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise LookupError("MemAvailable in /proc/meminfo")
