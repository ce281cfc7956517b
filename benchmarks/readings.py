"""What was measured: every reading of every round, their medians, and what counts as a difference."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

_T = TypeVar("_T")

EQUAL_WITHIN: Final = 0.05
"""Rounds of the same proxy differ by as much: a smaller difference is none."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One run of a load against one proxy.

    Args:
        measure: as `--only` has it.
        case: which load of the measure.
        peer: the proxy; with its door where it has several in the measure.
        round: from 0.
        values: by metric, whose name ends with the unit.
    """

    measure: str
    case: str
    peer: str
    round: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Failure:
    """A load that could not be run.

    Args:
        measure, case, peer: as of a reading; the case may be empty.
        reason: why.
    """

    measure: str
    case: str
    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Summary:
    """All rounds of one metric.

    Args:
        median, lowest, highest: of the rounds.
    """

    median: float
    lowest: float
    highest: float


class Readings:
    """All readings of a run.

    Args:
        readings: in the order in which they were taken.
    """

    def __init__(self, readings: Iterable[Reading]) -> None:
        self.all = tuple(readings)

    def measures(self) -> list[str]:
        """Measures that have readings, in their order."""
        return list(dict.fromkeys(each.measure for each in self.all))

    def cases(self, measure: str) -> list[str]:
        """Its cases, in their order."""
        return list(dict.fromkeys(each.case for each in self.all if each.measure == measure))

    def peers(self, measure: str, case: str) -> list[str]:
        """Who has readings of a case, in alphabetical order but for ourselves, who come first."""
        found = {each.peer for each in self.all if (each.measure, each.case) == (measure, case)}
        return sorted(found, key=lambda peer: (not peer.startswith("pgtlsproxy"), peer == "direct", peer))

    def metrics(self, measure: str) -> list[str]:
        """Metrics of a measure, in their order."""
        return list(
            dict.fromkeys(name for each in self.all if each.measure == measure for name in each.values)
        )

    def summary(self, measure: str, case: str, peer: str, metric: str) -> Summary | None:
        """The rounds of a metric; None where there are none."""
        key = (measure, case, peer)
        values = [
            each.values[metric]
            for each in self.all
            if (each.measure, each.case, each.peer) == key and metric in each.values
        ]
        return Summary(statistics.median(values), min(values), max(values)) if values else None

    def median(self, measure: str, case: str, peer: str, metric: str) -> float | None:
        """The median of the rounds; None where there are none."""
        summary = self.summary(measure, case, peer, metric)
        return None if summary is None else summary.median


def quotient(ours: float | None, theirs: float | None) -> float | None:
    """How many times theirs ours is; None where one is unknown or theirs is nothing."""
    return None if ours is None or not theirs else ours / theirs


def is_equal(ratio: float) -> bool:
    """Whether a quotient is no difference."""
    return abs(ratio - 1.0) < EQUAL_WITHIN


def rotated(entries: Sequence[_T], number: int) -> Sequence[_T]:
    """The entries, another one first each round: nobody always runs behind the same neighbour."""
    start = number % len(entries) if entries else 0
    return [*entries[start:], *entries[:start]]
