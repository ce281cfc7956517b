"""What has become dearer since an earlier run.

Machines differ, so what is compared are the bars' quotients: ours by a peer's in the same run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.bars import Verdict

MAY_GROW_BY: Final = 0.2
"""More than the noise of two runs."""


@dataclass(frozen=True, slots=True)
class Regression:
    """A quotient that has grown.

    Args:
        what, against: the bar.
        before, now: the quotients.
    """

    what: str
    against: str
    before: float
    now: float

    def __str__(self) -> str:
        return f"{self.what} against {self.against}: {self.now:.2f}, was {self.before:.2f}"


class UnusableResults(ValueError):
    """A file holds no results of an earlier run."""


Bars = dict[tuple[str, str], float]
"""Quotients by (what, against)."""


def earlier_bars(path: Path) -> Bars:
    """The bars of an earlier run.

    Raises:
        UnusableResults: the file is none that such a run has written.
        OSError: it cannot be read.
    """
    try:
        bars = json.loads(path.read_bytes())["bars"]
        return {
            (each["what"], each["against"]): float(each["found"])
            for each in bars
            if each["found"] is not None
        }
    except (ValueError, TypeError, KeyError) as error:
        raise UnusableResults(
            f"{path}: no results of an earlier run ({type(error).__name__}); they are the JSON files of "
            "benchmarks/results/"
        ) from None


def regressions(before: Bars, verdicts: Sequence[Verdict]) -> list[Regression]:
    """The bars that were measured both times, and are more than a fifth higher now."""
    return [
        Regression(each.what, each.against, before[key], each.found)
        for each in verdicts
        if each.found is not None
        and (key := (each.what, each.against)) in before
        and each.found > before[key] * (1 + MAY_GROW_BY)
    ]
