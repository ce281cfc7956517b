"""What clients do to a proxy, and what it cost: pgbench, COPY, idle sessions."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, cast

from benchmarks.processes import cpu_seconds, family, running, written_octets
from benchmarks.site import BULK_OCTETS, Site

LEAD_SECONDS: Final = 0.6
"""From pgbench's start to the window: sessions are set up, pools are warm, clocks have risen."""

TAIL_SECONDS: Final = 0.2
"""From the window to pgbench's end: nobody is gone yet."""

_GRACE_SECONDS: Final = 60.0
_GIGABYTE: Final = 1e9
_HOLD_SECONDS: Final = 300.0

_numbers = itertools.count()


class LoadFailed(Exception):
    """Clients were refused, or lost, or idle."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """A line of pgbench's log.

    Args:
        ended: seconds since the epoch.
        latency: seconds; under a rate, from the moment it was due.
    """

    ended: float
    latency: float


@dataclass(frozen=True, slots=True)
class Window:
    """A while in which the load was steady.

    Args:
        start, end: seconds since the epoch.
        cpu_seconds: what the proxy used; None where there is none.
    """

    start: float
    end: float
    cpu_seconds: float | None


@dataclass(frozen=True, slots=True)
class Bench:
    """How pgbench is run.

    Args:
        clients: sessions.
        seconds: for how long, whole ones.
        threads: of pgbench.
        protocol: simple or prepared.
        reconnect: a session for each transaction.
        rate: transactions a second over all clients; None for as many as it gets.
        script: what a transaction is; None for that of `pgbench -S`.
    """

    clients: int
    seconds: int
    threads: int = 1
    protocol: str = "simple"
    reconnect: bool = False
    rate: int | None = None
    script: str | None = None

    def arguments(self) -> list[str]:
        """Its options, but for those that say where."""
        options = ["-n", "-c", str(self.clients), "-j", str(self.threads), "-T", str(self.seconds)]
        options += ["-M", self.protocol, "-f", "script.sql"] if self.script else ["-M", self.protocol, "-S"]
        options += ["-C"] if self.reconnect else []
        return options + (["-R", str(self.rate)] if self.rate else [])


def run_pgbench(
    site: Site,
    conninfo: str,
    pids: Sequence[int],
    bench: Bench,
    beside: Callable[[], AbstractContextManager[object]] | None = None,
) -> dict[str, float]:
    """Run pgbench against a door, and watch the proxy behind it.

    Args:
        site: where.
        conninfo: the door.
        pids: of the proxy.
        bench: the load.
        beside: what else goes on in the window, begun when pgbench has its sessions. It gets as long again
            to become steady.

    Returns:
        `per_second`, `p50_ms`, `p99_ms`, and with a proxy `cpu_us`, each of a transaction.

    Raises:
        LoadFailed: pgbench failed.
    """
    folder = site.folder / f"pgbench.{next(_numbers)}"
    folder.mkdir()
    if bench.script:
        (folder / "script.sql").write_text(bench.script)
    command = [site.programs.program("pgbench"), *bench.arguments(), "--log", conninfo]
    with running(command, environment=site.client_environment(), cwd=folder) as process:
        began = time.monotonic()
        time.sleep(LEAD_SECONDS)
        with beside() if beside else nullcontext():
            time.sleep(LEAD_SECONDS if beside else 0.0)
            before, start = _cpu_of(pids), time.time()
            time.sleep(max(0.0, began + bench.seconds - TAIL_SECONDS - time.monotonic()))
            after, end = _cpu_of(pids), time.time()
        said = _last_words(process, _GRACE_SECONDS)
    if process.returncode != 0:
        raise LoadFailed(said)
    transactions: list[Transaction] = []
    for log in folder.glob("pgbench_log.*"):
        transactions += parse_log(log.read_text().splitlines())
        log.unlink()
    return summarise(transactions, Window(start, end, after - before if pids else None))


def warm_up(site: Site, conninfo: str, clients: int) -> None:
    """So many sessions with a few transactions each: a pool fills, and who lets nobody in is found out.

    Raises:
        LoadFailed: pgbench failed.
    """
    command = [site.programs.program("pgbench"), "-n", "-S", "-c", str(clients), "-t", "5", conninfo]
    with running(command, environment=site.client_environment()) as process:
        said = _last_words(process, _GRACE_SECONDS)
    if process.returncode != 0:
        raise LoadFailed(said)


def parse_log(lines: Iterable[str]) -> Iterator[Transaction]:
    """Read the lines of `pgbench --log`: client, number, µs, script, epoch seconds, µs of them, lag."""
    for line in lines:
        _, _, latency, _, second, microsecond, *_ = line.split()
        if latency.isdigit():  # not one that failed or was skipped
            yield Transaction(int(second) + int(microsecond) / 1e6, int(latency) / 1e6)


def summarise(transactions: Iterable[Transaction], window: Window) -> dict[str, float]:
    """What the transactions that ended in a window say.

    Raises:
        LoadFailed: there were none.
    """
    latencies = sorted(each.latency for each in transactions if window.start <= each.ended < window.end)
    if not latencies:
        raise LoadFailed("no transaction ended while it was watched")
    values = {
        "per_second": len(latencies) / (window.end - window.start),
        "p50_ms": 1e3 * quantile(latencies, 0.5),
        "p99_ms": 1e3 * quantile(latencies, 0.99),
    }
    if window.cpu_seconds is not None:
        values["cpu_us"] = 1e6 * window.cpu_seconds / len(latencies)
    return values


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _last_words(process: subprocess.Popen[bytes], timeout: float) -> str:
    """What a client says until it ends.

    Raises:
        LoadFailed: it does not.
    """
    try:
        _, said = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise LoadFailed(f"not done after {timeout:g} s more") from None
    return said.decode(errors="replace").strip()


def _cpu_of(pids: Sequence[int]) -> float:
    return cpu_seconds(each for pid in pids for each in family(pid))


# --- COPY -----------------------------------------------------------------------------------------


def copy_out(site: Site, conninfo: str, pids: Sequence[int], times: int) -> dict[str, float]:
    """COPY the table `bulk` to a client, so many times in one session.

    Returns:
        `mb_per_second`, and with a proxy `cpu_s_per_gb`; of 10^6 and 10^9 octets of text. The session's
        set-up counts too: a few ms.

    Raises:
        LoadFailed: psql failed.
    """
    return _copy(site, conninfo, pids, "COPY bulk TO STDOUT;\n", times)


def copy_in(site: Site, conninfo: str, pids: Sequence[int], times: int) -> dict[str, float]:
    """COPY as much to PostgreSQL, which reads every row and keeps none. Otherwise as `copy_out`."""
    return _copy(site, conninfo, pids, f"\\copy bulk FROM '{site.bulk_file}' WHERE false\n", times)


def _copy(site: Site, conninfo: str, pids: Sequence[int], statement: str, times: int) -> dict[str, float]:
    before, began = _cpu_of(pids), time.monotonic()
    with _psql(site, conninfo, statement * times) as process:
        said = _last_words(process, _HOLD_SECONDS)
    seconds, used = time.monotonic() - began, _cpu_of(pids) - before
    if process.returncode != 0:
        raise LoadFailed(said)
    octets = BULK_OCTETS * times
    values = {"mb_per_second": octets / 1e6 / seconds}
    return values | ({"cpu_s_per_gb": used * _GIGABYTE / octets} if pids else {})


@dataclass(slots=True)
class Streams:
    """Clients that take COPY without end.

    Args:
        site: where.
        conninfo: the door.
        count: how many.

    Attributes:
        mb_per_second: what they got together, in 10^6 octets of text; known when they have gone.
    """

    site: Site
    conninfo: str
    count: int
    mb_per_second: float = 0.0

    @contextmanager
    def going(self) -> Iterator[None]:
        """They stream while the context lasts.

        Raises:
            LoadFailed: one of them was cut.
        """
        began = time.monotonic()
        with ExitStack() as stack:
            statements = "COPY bulk TO STDOUT;\n" * 10_000
            clients = [
                stack.enter_context(_psql(self.site, self.conninfo, statements)) for _ in range(self.count)
            ]
            yield
            if any(client.poll() is not None for client in clients):
                raise LoadFailed("a stream was cut")
            octets = sum(written_octets(client.pid) for client in clients)
            self.mb_per_second = octets / 1e6 / (time.monotonic() - began)


@contextmanager
def _psql(site: Site, conninfo: str, statements: str) -> Iterator[subprocess.Popen[bytes]]:
    script = site.folder / f"psql.{next(_numbers)}.sql"
    script.write_text(statements)
    command = [site.programs.program("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", conninfo]
    with running([*command, "-f", str(script)], environment=site.client_environment()) as process:
        yield process


# --- Idle sessions --------------------------------------------------------------------------------


class Holder:
    """A process that holds idle sessions. Made by `open_holder`."""

    def __init__(self, to: IO[bytes], back: IO[bytes], errors: Path) -> None:
        self._to = to
        self._back = back
        self._errors = errors

    def hold(self, count: int) -> None:
        """Have this many sessions open, no fewer than before.

        Raises:
            LoadFailed: some were refused.
        """
        try:
            self._to.write(f"{count}\n".encode())
            self._to.flush()
        except BrokenPipeError:
            answer = b""
        else:
            answer = self._back.readline()
        if answer.strip() != str(count).encode():
            words = self._errors.read_text(errors="replace").strip().splitlines()
            raise LoadFailed(f"{count} sessions could not be held: {words[-1] if words else 'it ended'}")


@contextmanager
def open_holder(site: Site, conninfo: str) -> Iterator[Holder]:
    """A holder of sessions at a door; leaving closes them."""
    errors = site.folder / f"hold.{next(_numbers)}.txt"
    command = [sys.executable, "-m", "benchmarks.hold", conninfo]
    with (
        errors.open("wb") as stderr,
        running(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=Path(__file__).parents[1],
        ) as process,
    ):
        yield Holder(cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout), errors)
