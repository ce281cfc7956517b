"""The bars: how much the proxy may cost beside its peers, and whether it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.measures import ALONE, BESIDE_STREAMS, BOUND, RELAYED
from benchmarks.peers import DIRECT, OURS
from benchmarks.readings import EQUAL_WITHIN, Readings, quotient

MEMORY_KB: Final = 40.0
"""Of an idle session with TLS on both legs."""

BRIDGE_US: Final = 1000.0
"""Of CPU that a login may cost more where SCRAM is bridged."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A bar and what was measured.

    Args:
        what: the load.
        against: whom or what ours is divided by.
        limit: what the quotient may be.
        found: what it is; None where one of the two is missing.
    """

    what: str
    against: str
    limit: float
    found: float | None

    @property
    def word(self) -> str:
        """Met, equal (a difference too small to be one), missed, or not measured."""
        if self.found is None:
            return "not measured"
        if self.found <= self.limit:
            return "met"
        return "equal" if self.found <= self.limit * (1 + EQUAL_WITHIN) else "missed"


def judge(readings: Readings) -> list[Verdict]:
    """All bars."""
    verdicts: list[Verdict] = []
    for measure, label, peers in (
        ("simple", "a transaction", ("pgbouncer", "haproxy", "envoy")),
        ("prepared", "a prepared transaction", ("pgbouncer", "haproxy", "envoy")),
        ("clear", "a transaction in clear", ("pgbouncer",)),
    ):
        for case in readings.cases(measure):
            against = _against(readings, measure, case, "cpu_us")
            verdicts += [Verdict(f"CPU of {label}, {case}", peer, 1.0, against(peer)) for peer in peers]
    verdicts += _bulk(readings)
    verdicts += _sessions(readings)
    verdicts += _beside(readings)
    return verdicts


def _against(readings: Readings, measure: str, case: str, metric: str) -> Callable[[str], float | None]:
    ours = readings.median(measure, case, OURS, metric)
    return lambda peer: quotient(ours, readings.median(measure, case, peer, metric))


def _bulk(readings: Readings) -> list[Verdict]:
    out = _against(readings, "copy-out", "1 client", "cpu_s_per_gb")
    into = _against(readings, "copy-in", "1 client", "cpu_s_per_gb")
    return [
        Verdict("CPU of COPY out", "envoy", 1.1, out("envoy")),
        Verdict("CPU of COPY out", "pgbouncer", 0.5, out("pgbouncer")),
        Verdict("CPU of COPY in", "haproxy", 1.0, into("haproxy")),
        Verdict("CPU of COPY in", "envoy", 1.0, into("envoy")),
    ]


def _sessions(readings: Readings) -> list[Verdict]:
    verdicts = []
    for ours in (OURS, f"{OURS} ({DIRECT})"):
        used = readings.median("sessions", "4 at once", ours, "cpu_us")
        for peer in ("haproxy", "envoy"):
            theirs = readings.median("sessions", "4 at once", peer, "cpu_us")
            how = "" if ours == OURS else f", {DIRECT}"
            verdicts.append(Verdict(f"CPU of a session{how}", peer, 1.0, quotient(used, theirs)))
    relayed, bound = (readings.median("bridge", case, OURS, "cpu_us") for case in (RELAYED, BOUND))
    added = None if relayed is None or bound is None else bound - relayed
    verdicts.append(Verdict("CPU that the bridge adds to a login", "1 ms", 1.0, quotient(added, BRIDGE_US)))
    memory = readings.median("memory", "an idle session", OURS, "rss_kb")
    verdicts.append(
        Verdict("memory of an idle session", f"{MEMORY_KB:g} kB", 1.0, quotient(memory, MEMORY_KB))
    )
    return verdicts


def _beside(readings: Readings) -> list[Verdict]:
    def of_ours(measure: str, case: str, other: str, metric: str) -> float | None:
        return quotient(
            readings.median(measure, case, OURS, metric), readings.median(measure, other, OURS, metric)
        )

    idle = next((case for case in readings.cases("idle") if case != ALONE), "beside idle sessions")
    one, two = (readings.median("workers", case, OURS, "per_second") for case in ("1 process", "2 processes"))
    return [
        Verdict(
            f"p99 of pings {BESIDE_STREAMS}",
            "without them",
            3.0,
            of_ours("fairness", BESIDE_STREAMS, ALONE, "p99_ms"),
        ),
        Verdict(f"CPU of a transaction {idle}", ALONE, 1.1, of_ours("idle", idle, ALONE, "cpu_us")),
        # Turned round, so that less is better here as everywhere: one and a half times as many at least.
        Verdict("time of a transaction with 2 workers", "with 1", 1 / 1.5, quotient(one, two)),
    ]


def counted(verdicts: Sequence[Verdict]) -> str:
    """How many bars had which outcome."""
    words = [verdict.word for verdict in verdicts]
    return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
