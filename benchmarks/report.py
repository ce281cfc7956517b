"""A run's outcome for people and machines: tables, JSON, and the section of docs/performance.md."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.bars import Verdict, counted, judge
from benchmarks.measures import Plan
from benchmarks.peers import OURS
from benchmarks.readings import Failure, Reading, Readings, Summary, is_equal, quotient
from pgtlsproxy.identity import printable

DOCUMENT_START: Final = "<!-- figures: ./dev bench --docs writes from here -->"
DOCUMENT_END: Final = "<!-- figures: to here -->"

TITLES: Final[Mapping[str, str]] = {
    "simple": "pgbench -S, simple queries, TLS on both legs",
    "prepared": "pgbench -S, prepared statements, TLS on both legs",
    "clear": "pgbench -S, client leg in clear",
    "copy-out": "COPY to a client",
    "copy-in": "COPY from a client",
    "sessions": "A session with one transaction (pgbench -C)",
    "bridge": "A session with one transaction: SCRAM relayed, and bridged with channel binding on both legs",
    "memory": "Memory of an idle session",
    "idle": "An active session beside idle ones",
    "fairness": "20 pingers at 400 a second, alone and beside 4 streams",
    "reload": "An active session beside reloads of a large pg_hba.conf",
    "workers": "Two processes against one, 32 clients",
}
UNITS: Final[Mapping[str, str]] = {
    "cpu_us": "CPU µs",
    "per_second": "a second",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "cpu_s_per_gb": "CPU s/GB",
    "mb_per_second": "MB/s",
    "rss_kb": "RSS kB",
    "pss_kb": "PSS kB",
    "streams_mb_per_second": "streams MB/s",
}
COSTS: Final = ("cpu_us", "cpu_s_per_gb", "rss_kb", "p99_ms")
"""What is divided by the peers', the first one that a measure has."""

NOTHING: Final = "-"
_PLAIN_WIDTH: Final = 160

_VERDICT_STYLES: Final = {"met": "green", "equal": "green", "missed": "bold red", "not measured": "dim"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that a run has to tell.

    Args:
        plan: how much was done.
        kind: full, quick, or partial.
        versions: of every proxy that was there, and of PostgreSQL and TLS libraries.
        readings: all of them.
        failures: what is missing.
        seconds: how long it took.
        began: when.
    """

    plan: Plan
    kind: str
    versions: Mapping[str, str]
    readings: Sequence[Reading]
    failures: Sequence[Failure]
    seconds: float
    began: datetime = dataclasses.field(default_factory=lambda: datetime.now(UTC))


def machine() -> dict[str, str]:
    """What it ran on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": f"{os.cpu_count()} x {model}",
        "memory": f"{total / 1e9:.0f} GB",
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": f"{platform.python_implementation()} {sys.version.split()[0]}",
    }


def as_json(outcome: Outcome) -> str:
    """All rounds, and what was made of them."""
    verdicts = judge(Readings(outcome.readings))
    return json.dumps(
        {
            "began": outcome.began.isoformat(timespec="seconds"),
            "seconds": round(outcome.seconds),
            "kind": outcome.kind,
            "plan": dataclasses.asdict(outcome.plan),
            "machine": machine(),
            "versions": dict(outcome.versions),
            "readings": [dataclasses.asdict(each) for each in outcome.readings],
            "missing": [dataclasses.asdict(each) for each in outcome.failures],
            "bars": [dataclasses.asdict(each) | {"verdict": each.word} for each in verdicts],
        },
        indent=1,
    )


def show(outcome: Outcome, console: Console) -> None:
    """All tables: coloured boxes in a terminal, Markdown in a pipe."""
    readings = Readings(outcome.readings)
    for label, text in (*machine().items(), *outcome.versions.items()):
        _line(console, Text.assemble("* ", (f"{label}: ", "bold"), printable(text)))
    for measure in readings.measures():
        _heading(console, TITLES[measure])
        console.print(_table(console, readings, measure))
    verdicts = judge(readings)
    _heading(console, f"Bars: {counted(verdicts)}")
    console.print(_bars(console, verdicts))
    if outcome.failures:
        _heading(console, "Missing")
        for each in outcome.failures:
            where = " ".join(part for part in (each.peer, each.measure, each.case) if part)
            _line(console, Text.assemble("* ", (f"{where}: ", "bold"), printable(each.reason, 300)))


def plain_console(target: IO[str]) -> Console:
    """A console that writes Markdown, as wide as the tables are."""
    return Console(file=target, width=_PLAIN_WIDTH, highlight=False, markup=False, emoji=False)


def as_markdown(outcome: Outcome) -> str:
    """The same as a text."""
    target = io.StringIO()
    show(outcome, plain_console(target))
    return "\n".join(line.strip() for line in target.getvalue().splitlines()).strip() + "\n"


def put_into_document(document: str, figures: str) -> str:
    """A document with new figures between its two marks.

    Raises:
        ValueError: it has no such marks.
    """
    before, start, rest = document.partition(DOCUMENT_START)
    _, end, after = rest.partition(DOCUMENT_END)
    if not start or not end:
        raise ValueError(f"no marks {DOCUMENT_START} and {DOCUMENT_END}")
    return f"{before}{start}\n\n{figures.strip()}\n\n{end}{after}"


def _heading(console: Console, text: str) -> None:
    _line(console, Text())
    _line(console, Text(text if console.is_terminal else f"### {text}", style="bold"))
    _line(console, Text())


def _line(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=True)


def _new_table(console: Console, *columns: str) -> Table:
    table = Table(box=box.ROUNDED if console.is_terminal else box.MARKDOWN, pad_edge=console.is_terminal)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < 2 else "right", no_wrap=True)
    return table


def _table(console: Console, readings: Readings, measure: str) -> Table:
    metrics = readings.metrics(measure)
    cost = next(each for each in COSTS if each in metrics)
    columns = [UNITS[cost], "rounds", "ours / it", *(UNITS[each] for each in metrics if each != cost)]
    table = _new_table(console, "load", "proxy", *columns)
    for case in readings.cases(measure):
        ours = readings.median(measure, case, OURS, cost)
        for peer in readings.peers(measure, case):
            summary = readings.summary(measure, case, peer, cost)
            ratio = None if peer == OURS or summary is None else quotient(ours, summary.median)
            others = [readings.median(measure, case, peer, each) for each in metrics if each != cost]
            table.add_row(
                Text(case),
                Text(peer, style="bold" if peer.startswith(OURS) else ""),
                Text(NOTHING if summary is None else number(summary.median)),
                Text(NOTHING if summary is None else _spread(summary), style="dim"),
                _ratio(ratio),
                *(Text(NOTHING if each is None else number(each)) for each in others),
            )
        if console.is_terminal:
            table.add_section()
    return table


def _bars(console: Console, verdicts: Sequence[Verdict]) -> Table:
    table = _new_table(console, "bar", "against", "at most", "is", "")
    for each in verdicts:
        found = NOTHING if each.found is None else f"{each.found:.2f}"
        word = Text(each.word, style=_VERDICT_STYLES[each.word])
        table.add_row(Text(each.what), Text(each.against), Text(f"{each.limit:.2f}"), Text(found), word)
    return table


def _ratio(ratio: float | None) -> Text:
    if ratio is None:
        return Text("")
    if is_equal(ratio):
        return Text("equal", style="green")
    return Text(f"{ratio:.2f}", style="green" if ratio < 1 else "red")


def _spread(summary: Summary) -> str:
    return f"{number(summary.lowest)}-{number(summary.highest)}"


def number(value: float) -> str:
    """Three digits that mean something, and no more."""
    if value >= 1000:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
