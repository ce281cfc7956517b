"""`./dev bench`: the command line of the comparison."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from benchmarks.bars import judge
from benchmarks.campaigns import CAMPAIGNS
from benchmarks.measures import FULL, MEASURES, QUICK, Run
from benchmarks.peers import OURS, PEERS, Ours, missing_packages
from benchmarks.processes import raise_descriptor_limit
from benchmarks.readings import Failure, Readings
from benchmarks.regressions import MAY_GROW_BY, Bars, UnusableResults, earlier_bars, regressions
from benchmarks.report import Outcome, as_json, as_markdown, plain_console, put_into_document, show
from benchmarks.site import open_site
from pgtlsproxy.demo.installations import PostgresFailed
from pgtlsproxy.demo.interrupts import Interrupts
from pgtlsproxy.demo.output import OutputEnded
from pgtlsproxy.identity import printable

RESULTS: Final = Path(__file__).parent / "results"
DOCUMENT: Final = Path(__file__).parents[1] / "docs" / "performance.md"
EXIT_DEARER: Final = 2
EXIT_INTERRUPTED: Final = 130

ALL: Final = tuple(peer.name for peer in PEERS)
QUICK_PEERS: Final = tuple(name for name in ALL if name != "stunnel")

_DESCRIPTORS: Final = 15_000
"""What stunnel takes for all idle sessions of a full run: four a session."""


def _names(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[str, ...]:
    names = tuple(each.strip() for each in value.split(",") if each.strip())
    if unknown := [name for name in names if name not in ALL]:
        raise click.BadParameter(f"{', '.join(unknown)}: not one of {', '.join(ALL)}")
    return names


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--quick", is_flag=True, help="Shorter and fewer runs: under 4 minutes, and rougher figures.")
@click.option("--peers", callback=_names, default="", metavar="NAME,...",
              help=f"Who to compare with: {','.join(ALL)}. All; with --quick all but stunnel.")  # fmt: skip
@click.option("--only", multiple=True, type=click.Choice(list(MEASURES)), metavar="NAME",
              help=f"Only this measure; may be repeated. One of {', '.join(MEASURES)}.")  # fmt: skip
@click.option("--docs", is_flag=True, help="Also put the figures into docs/performance.md.")
@click.option("--against", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
              help="Also compare with the JSON of an earlier run: is anything a fifth dearer?")  # fmt: skip
@click.option("--campaign", type=click.Choice(list(CAMPAIGNS)),
              help="Compare nothing: run tests of the suite with far larger numbers.")  # fmt: skip
@click.option(
    "--number", type=click.IntRange(min=1), help="Of sessions, messages or what a flood is made of."
)
@click.option("--missing-packages", "print_missing", is_flag=True, hidden=True)
def bench(
    *,
    quick: bool,
    peers: tuple[str, ...],
    only: tuple[str, ...],
    docs: bool,
    against: Path | None,
    campaign: str | None,
    number: int | None,
    print_missing: bool,
) -> int:
    """Measure pgtlsproxy and its peers side by side, in turns, against the same PostgreSQL.

    Writes a table, a JSON with all rounds and a chart into benchmarks/results/. What cannot be
    installed is left out and named. Exit status: 0 done, 1 it could not be, 2 something has
    become dearer since the run of --against, 130 ended by a signal.

    \b
    Example:
      ./dev bench --quick
      ./dev bench --peers pgbouncer,direct --only simple --only sessions
      ./dev bench --quick --against quick-of-the-last-release.json
      ./dev bench --campaign sessions --number 20000
    """  # noqa: D301 - \b is click's mark for text that it must not fill
    if campaign is not None:
        return CAMPAIGNS[campaign].run(number)
    names = peers or (QUICK_PEERS if quick else ALL)
    if print_missing:
        click.echo(" ".join(missing_packages(names)))
        return 0
    try:
        before = None if against is None else earlier_bars(against)
        with Interrupts():
            outcome = _measure(names, only, is_quick=quick)
            _keep(outcome, docs=docs)
    except (PostgresFailed, OutputEnded, UnusableResults, OSError) as error:
        click.echo(f"./dev bench: {printable(str(error), 2000)}", err=True)
        return 1
    except KeyboardInterrupt:
        click.echo("\nEnded by a signal: everything is stopped and removed.", err=True)
        return EXIT_INTERRUPTED
    return 0 if before is None else _compare(outcome, before)


def _compare(outcome: Outcome, before: Bars) -> int:
    """Say what has become dearer; the exit status."""
    dearer = regressions(before, judge(Readings(outcome.readings)))
    for each in dearer:
        click.echo(f"dearer than before: {each}", err=True)
    if not dearer:
        click.echo(f"nothing is more than {MAY_GROW_BY:.0%} dearer than before", err=True)
    return EXIT_DEARER if dearer else 0


def _measure(names: Sequence[str], only: Sequence[str], *, is_quick: bool) -> Outcome:
    began = time.monotonic()
    plan = QUICK if is_quick else FULL
    measures = [name for name in MEASURES if name in only] if only else list(MEASURES)
    failures = [
        Failure("", "", peer.name, "not installed")
        for peer in PEERS
        if peer.name in names and not peer.version()
    ]
    if raise_descriptor_limit() < _DESCRIPTORS and "idle" in measures:
        failures.append(Failure("idle", "", "some", f"the limit of descriptors is below {_DESCRIPTORS}"))
    peers = [peer for peer in PEERS if peer.name in names and peer.version()]
    versions = {peer.name: peer.version() or "" for peer in (Ours(), *peers)}
    with ExitStack() as stack:
        tell, advance = stack.enter_context(_progress(len(measures)))
        tell("starting PostgreSQL")
        site = stack.enter_context(open_site())
        versions["PostgreSQL"] = site.cluster.installation.version
        run = Run(site, plan, Ours(), peers, tell, failures=failures)
        run.start(stack)
        if not run.running or run.running[0].peer != OURS:
            raise OutputEnded(f"pgtlsproxy did not start: {run.failures[-1].reason}")
        for name in measures:
            MEASURES[name](run)
            advance(name)
    is_whole = not only and set(names) >= set(QUICK_PEERS)
    kind = "partial" if not is_whole else "quick" if is_quick else "full"
    return Outcome(plan, kind, versions, run.readings, run.failures, time.monotonic() - began)


def _keep(outcome: Outcome, *, docs: bool) -> None:
    """Show it, write it, and say where."""
    console = Console(highlight=False, markup=False, emoji=False)
    show(outcome, console if console.is_terminal else plain_console(sys.stdout))
    RESULTS.mkdir(exist_ok=True)
    text = as_markdown(outcome)
    targets = [RESULTS / f"{outcome.kind}.{suffix}" for suffix in ("md", "json", "png")]
    targets[0].write_text(text)
    targets[1].write_text(as_json(outcome) + "\n")
    from benchmarks.chart import draw  # noqa: PLC0415 - matplotlib takes its time, and tests have none

    draw(Readings(outcome.readings), targets[2])
    if docs:
        chart = f"![chart](../benchmarks/results/{targets[2].name})"
        command = {"full": "`./dev bench`", "quick": "Preliminary, by `./dev bench --quick`"}
        when = f"{command.get(outcome.kind, 'A part, by `./dev bench`')}, {outcome.began:%Y-%m-%d}."
        DOCUMENT.write_text(put_into_document(DOCUMENT.read_text(), f"{when}\n\n{text}\n{chart}"))
        targets.append(DOCUMENT)
    written = ", ".join(str(each.relative_to(DOCUMENT.parents[1])) for each in targets)
    click.echo(f"\n{outcome.seconds:.0f} s; written: {written}", err=True)


@contextmanager
def _progress(total: int) -> Iterator[tuple[Callable[[str], None], Callable[[str], None]]]:
    """Who is told what happens now, and that a measure is done: a bar in a terminal, lines in a pipe."""
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    began = time.monotonic()
    columns = (
        SpinnerColumn(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)

        def tell(what: str) -> None:
            progress.update(task, description=printable(what))

        def advance(measure: str) -> None:
            progress.advance(task)
            if not console.is_terminal:
                console.print(Text(f"{time.monotonic() - began:5.0f} s: {measure} done"))

        yield tell, advance


def main() -> None:
    """Run the command line."""
    sys.exit(bench.main(prog_name="./dev bench", standalone_mode=False))


if __name__ == "__main__":
    try:
        main()
    except click.ClickException as error:
        error.show()
        sys.exit(64)
