"""The measures: which loads, against whom, in which order, and what each is compared with.

All proxies run at the same time and are loaded one after the other, in rounds: whatever else the machine
does falls on all of them. Without a proxy is one of them, `direct`: the control that says what of a
throughput or a latency is PostgreSQL's and the clients' own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from benchmarks import load
from benchmarks.launching import PeerFailed
from benchmarks.load import Bench, Holder, LoadFailed, open_holder, run_pgbench, warm_up
from benchmarks.peers import BRIDGED, CLEAR, DIRECT, OURS, Ours, Peer, PgBouncer, Running
from benchmarks.processes import Memory, available_memory, family, memory
from benchmarks.readings import Failure, Reading, rotated
from benchmarks.reloading import LINES, Reloads
from benchmarks.site import MAX_SESSIONS, Site

PINGERS: Final = 20
PINGS_PER_SECOND: Final = 400
PINGS_OF_ONE: Final = 100
STREAMS: Final = 4
PING: Final = "SELECT 1;\n"

ALONE: Final = "alone"
RELAYED: Final = "relayed"
BOUND: Final = "bridged"
BESIDE_STREAMS: Final = f"beside {STREAMS} streams"
BESIDE_RELOADS: Final = f"beside reloads of {LINES:,} lines"

_SESSION_OCTETS: Final = 4_000_000
"""What an idle session takes of the machine, PostgreSQL's process included."""

_SETTLE_SECONDS: Final = 1.5


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is done.

    Args:
        rounds: of simple queries in TLS.
        other_rounds: of everything else.
        seconds: of a pgbench run.
        clients: sessions at once, for simple queries in TLS.
        other_clients: the same for prepared statements and for clients in clear.
        copies: of 131 MB in a transfer.
        held: two numbers of idle sessions whose memory is compared.
        idle: sessions beside an active one.
    """

    rounds: int
    other_rounds: int
    seconds: int
    clients: tuple[int, ...]
    other_clients: tuple[int, ...]
    copies: int
    held: tuple[int, int]
    idle: int


FULL: Final = Plan(
    rounds=4,
    other_rounds=3,
    seconds=4,
    clients=(1, 8, 32),
    other_clients=(1, 8, 32),
    copies=6,
    held=(500, 1000),
    idle=3000,
)
QUICK: Final = Plan(
    rounds=2,
    other_rounds=1,
    seconds=2,
    clients=(1, 8, 32),
    other_clients=(8,),
    copies=2,
    held=(100, 200),
    idle=300,
)


@dataclass(frozen=True, slots=True)
class Load:
    """One load against one proxy.

    Args:
        case: which load of the measure.
        peer: the proxy, as the report names it.
        run: runs it.
    """

    case: str
    peer: str
    run: Callable[[], Mapping[str, float]]


@dataclass(slots=True)
class Run:
    """A run of the comparison.

    Args:
        site: PostgreSQL and everything around it.
        plan: how much is done.
        ours: this proxy.
        peers: who can be compared, in their order.
        tell: is told what happens now.

    Attributes:
        running: the proxies that live as long as the run, ours first.
        readings: what was measured.
        failures: what could not be.
    """

    site: Site
    plan: Plan
    ours: Ours
    peers: Sequence[Peer]
    tell: Callable[[str], None]
    running: list[Running] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    @property
    def everybody(self) -> list[Peer]:
        """Ours, and whoever runs beside it."""
        alive = {each.peer for each in self.running}
        return [each for each in (self.ours, *self.peers) if each.name in alive]

    def start(self, stack: ExitStack) -> None:
        """Start all proxies and warm them up. Who does not start, or lets nobody in, is named."""
        for peer in (self.ours, *self.peers):
            self.tell(f"starting {peer.name}")
            try:
                running = stack.enter_context(peer.start(self.site))
                for door in running.doors.values():
                    warm_up(self.site, door, max(self.plan.clients))
            except (PeerFailed, LoadFailed) as error:
                self.failures.append(Failure("", "", peer.name, str(error)))
            else:
                self.running.append(running)

    def interleave(self, measure: str, loads: Sequence[Load], rounds: int) -> None:
        """Run loads in rounds: in each of them all proxies of a case one after the other."""
        failed: set[Load] = set()
        for number in range(rounds):
            for case in dict.fromkeys(each.case for each in loads):
                for each in rotated([one for one in loads if one.case == case], number):
                    if each not in failed and not self.take(measure, each, number):
                        failed.add(each)

    def take(self, measure: str, each: Load, number: int) -> bool:
        """Run one load and note what it says; False where it failed."""
        self.tell(f"{measure}, {each.case}, round {number + 1}: {each.peer}")
        try:
            values = each.run()
        except (LoadFailed, PeerFailed) as error:
            self.failures.append(Failure(measure, each.case, each.peer, str(error)))
            return False
        self.readings.append(Reading(measure, each.case, each.peer, number, values))
        return True

    def pgbench(self, running: Running, door: str, bench: Bench) -> Callable[[], Mapping[str, float]]:
        """A load by pgbench."""
        return lambda: run_pgbench(self.site, door, running.pids, bench)


# --- Transactions ---------------------------------------------------------------------------------


def simple(run: Run) -> None:
    """`pgbench -S` with simple queries, TLS on both legs."""
    _transactions(run, "simple", run.plan.clients, run.plan.rounds)


def prepared(run: Run) -> None:
    """`pgbench -S -M prepared`."""
    _transactions(run, "prepared", run.plan.other_clients, run.plan.other_rounds)


def _transactions(run: Run, protocol: str, clients: Sequence[int], rounds: int) -> None:
    loads = [
        Load(
            _clients(count),
            each.peer,
            run.pgbench(each, each.door, Bench(count, run.plan.seconds, protocol=protocol)),
        )
        for count in clients
        for each in run.running
    ]
    run.interleave(protocol, loads, rounds)


def clear(run: Run) -> None:
    """`pgbench -S` in clear to the proxy, which goes on in TLS.

    A proxy that only forwards cannot be compared: libpq refuses an offer of channel binding without TLS.
    """
    loads = [
        Load(_clients(count), each.peer, run.pgbench(each, each.doors[CLEAR], Bench(count, run.plan.seconds)))
        for count in run.plan.other_clients
        for each in run.running
        if CLEAR in each.doors
    ]
    run.interleave("clear", loads, run.plan.other_rounds)


def _clients(count: int) -> str:
    return "1 client" if count == 1 else f"{count} clients"


# --- Bulk -----------------------------------------------------------------------------------------


def copy_out(run: Run) -> None:
    """COPY to a client."""
    _copies(run, "copy-out", load.copy_out)


def copy_in(run: Run) -> None:
    """COPY from a client."""
    _copies(run, "copy-in", load.copy_in)


def _copies(
    run: Run, measure: str, copy: Callable[[Site, str, Sequence[int], int], Mapping[str, float]]
) -> None:
    def one(each: Running) -> Callable[[], Mapping[str, float]]:
        return lambda: copy(run.site, each.door, each.pids, run.plan.copies)

    loads = [Load("1 client", each.peer, one(each)) for each in run.running]
    run.interleave(measure, loads, run.plan.other_rounds)


# --- Sessions -------------------------------------------------------------------------------------


def sessions(run: Run) -> None:
    """`pgbench -C -S`: a session for each transaction, by password.

    Ours is measured by SSLRequest on both legs and by direct TLS on both, which is all that HAProxy and
    Envoy can do and saves a round trip on each. PgBouncer keeps its sessions with PostgreSQL: no comparison.
    """

    def one(running: Running, door: str) -> Callable[[], Mapping[str, float]]:
        measured = run.pgbench(running, door, Bench(4, run.plan.seconds, threads=4, reconnect=True))
        return lambda: {name: value for name, value in measured().items() if not name.endswith("_ms")}

    loads = []
    for each in run.running:
        loads.append(Load("4 at once", each.peer, one(each, each.door)))
        if each.peer == OURS and DIRECT in each.doors:
            loads.append(Load("4 at once", f"{OURS} ({DIRECT})", one(each, each.doors[DIRECT])))
    run.interleave("sessions", loads, run.plan.other_rounds)


def bridge(run: Run) -> None:
    """`pgbench -C -S`: a SCRAM login that is relayed, and one that is bound to each leg's certificate."""

    def one(running: Running, door: str) -> Callable[[], Mapping[str, float]]:
        measured = run.pgbench(running, door, Bench(4, run.plan.seconds, threads=4, reconnect=True))
        return lambda: {name: value for name, value in measured().items() if not name.endswith("_ms")}

    own = next(each for each in run.running if each.peer == OURS)
    loads = [
        Load(case, OURS, one(own, door)) for case, door in ((RELAYED, own.door), (BOUND, own.doors[BRIDGED]))
    ]
    run.interleave("bridge", loads, run.plan.rounds)


def idle(run: Run) -> None:
    """Idle sessions: memory that more of them add to a proxy that holds some, and their cost to another one.

    That other one is compared with a session of a proxy that has none beside it. Both run against the same
    PostgreSQL, in turns, while it holds all of the idle ones.
    """
    room = int(available_memory() * 0.7 / _SESSION_OCTETS)
    count = min(run.plan.idle, MAX_SESSIONS - 100, room)
    for peer in run.everybody:
        if peer.name == "direct":
            continue
        alone = next(each for each in run.running if each.peer == peer.name)
        try:
            with peer.start(run.site) as crowded, open_holder(run.site, crowded.door) as holder:
                grown = partial(_grown, run.plan.held, holder, crowded)
                run.take("memory", Load("an idle session", peer.name, grown), 0)
                run.tell(f"idle: {peer.name} takes {count} sessions")
                holder.hold(count)
                loads = [
                    Load(case, peer.name, run.pgbench(each, each.door, Bench(1, run.plan.seconds)))
                    for case, each in ((ALONE, alone), (f"beside {count} idle", crowded))
                ]
                run.interleave("idle", loads, run.plan.other_rounds)
        except (PeerFailed, LoadFailed) as error:
            run.failures.append(Failure("idle", "", peer.name, str(error)))
        run.site.wait_until_quiet()


def _grown(held: tuple[int, int], holder: Holder, running: Running) -> dict[str, float]:
    fewer, more = held
    before, after = (_settled_memory(holder, count, running) for count in (fewer, more))
    return {
        "rss_kb": (after.rss - before.rss) / (more - fewer),
        "pss_kb": (after.pss - before.pss) / (more - fewer),
    }


def _settled_memory(holder: Holder, count: int, running: Running) -> Memory:
    holder.hold(count)
    time.sleep(_SETTLE_SECONDS)
    return memory(each for pid in running.pids for each in family(pid))


# --- Several at once ------------------------------------------------------------------------------


def fairness(run: Run) -> None:
    """Latency of pings at a steady rate, with and without clients that take COPY as fast as they can."""
    # A second more: what goes on beside begins behind the sessions' set-up.
    pings = Bench(PINGERS, run.plan.seconds + 1, rate=PINGS_PER_SECOND, script=PING)

    def one(running: Running, count: int) -> Callable[[], Mapping[str, float]]:
        def measured() -> dict[str, float]:
            streaming = load.Streams(run.site, running.door, count)
            values = run_pgbench(run.site, running.door, running.pids, pings, streaming.going)
            speed = {"streams_mb_per_second": streaming.mb_per_second} if count else {}
            return {**_latencies(values), **speed}

        return measured

    loads = [
        Load(case, each.peer, one(each, count))
        for case, count in ((ALONE, 0), (BESIDE_STREAMS, STREAMS))
        for each in run.running
    ]
    run.interleave("fairness", loads, run.plan.other_rounds)


def _latencies(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if name.endswith("_ms")}


def reload(run: Run) -> None:
    """Latency of one session's pings at a steady rate, alone and beside reloads of a large pg_hba.conf."""
    pings = Bench(1, run.plan.seconds + 1, rate=PINGS_OF_ONE, script=PING)
    with run.ours.start(run.site) as reloaded:
        assert reloaded.folder is not None  # noqa: S101 - ours has one
        reloads = Reloads(reloaded.folder / "pg_hba.conf", reloaded.pids[0])

        def one(
            beside: Callable[[], AbstractContextManager[None]] | None,
        ) -> Callable[[], Mapping[str, float]]:
            return lambda: _latencies(run_pgbench(run.site, reloaded.door, reloaded.pids, pings, beside))

        loads = [
            Load(case, OURS, one(beside)) for case, beside in ((ALONE, None), (BESIDE_RELOADS, reloads.going))
        ]
        run.interleave("reload", loads, run.plan.other_rounds)


def workers(run: Run) -> None:
    """Two processes that share a port, against one; PgBouncer's two as the control."""
    wanted: list[Peer] = [run.ours, *(each for each in run.everybody if isinstance(each, PgBouncer))]
    with ExitStack() as stack:
        loads = []
        for peer in wanted:
            one = next(each for each in run.running if each.peer == peer.name)
            try:
                two = stack.enter_context(peer.start(run.site, 2))
            except PeerFailed as error:
                run.failures.append(Failure("workers", "2 processes", peer.name, str(error)))
                continue
            bench = Bench(32, run.plan.seconds, threads=2)
            loads.append(Load("1 process", peer.name, run.pgbench(one, one.door, bench)))
            loads.append(Load("2 processes", peer.name, run.pgbench(two, two.door, bench)))
        run.interleave("workers", loads, run.plan.other_rounds)


MEASURES: Final[Mapping[str, Callable[[Run], None]]] = {
    "simple": simple,
    "prepared": prepared,
    "clear": clear,
    "copy-out": copy_out,
    "copy-in": copy_in,
    "sessions": sessions,
    "bridge": bridge,
    "idle": idle,
    "fairness": fairness,
    "reload": reload,
    "workers": workers,
}
"""By the name that `--only` has."""
