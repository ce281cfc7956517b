"""Reloads over all workers: the files are read once, every worker builds, and only then all swap."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

from structlog.typing import FilteringBoundLogger

from pgtlsproxy.config import Settings
from pgtlsproxy.observability.figures import Loaded, NotAfter
from pgtlsproxy.proxy.channel import Packed, pack
from pgtlsproxy.proxy.errands import HANG_SECONDS, Errand, Errands, NoThread
from pgtlsproxy.proxy.files import SnapshotFiles
from pgtlsproxy.proxy.history import History
from pgtlsproxy.proxy.lifetimes import Lifetime, Lifetimes
from pgtlsproxy.proxy.orders import Build, Built, FileSet, Swap
from pgtlsproxy.proxy.reading import read_content, with_passphrases
from pgtlsproxy.proxy.rule_files import Note
from pgtlsproxy.proxy.watch import Look, Watch
from pgtlsproxy.proxy.worker_process import WorkerProcess

BUILD_SECONDS: Final = 60.0
"""How long a worker may take to build a snapshot. It serves meanwhile."""

SWAP_SECONDS: Final = 10.0
"""How long it may take to swap one in, which is one step of its event loop."""

MAX_CHANGED_SHOWN: Final = 20
"""How many changed files the log names."""


EVERYTHING: Final = "everything"
"""The unit that keeps its old content where nothing could be built."""

FILES_THAT_HANG: Final = "files that hang"
"""The unit of which nobody knows whether it has changed."""


class Reloads:
    """At most one reload at a time, and one more for whatever is asked for meanwhile.

    Args:
        first: what the files said at the start.
        history: what is in service.
        logger: told what came of each.
        replace: drains a worker that cannot build what the others can, and starts another.
        wake: makes the supervisor call `go_on`; called from another thread.

    """

    def __init__(
        self,
        first: SnapshotFiles,
        history: History,
        logger: FilteringBoundLogger,
        replace: Callable[[WorkerProcess], None],
        wake: Callable[[], None],
    ) -> None:
        self._path = first.path
        self._history = history
        self._logger = logger
        self._replace = replace
        self._errands = Errands(wake)
        self._reading: Errand[Look] | None = None
        self._late: Errand[Look] | None = None
        self._hangs_at: str | None = None
        self._watch = Watch(first, logger, self._errands)
        self._is_under_way = False
        self._is_wanted = False
        self._is_asked_for = False
        self._attempt = 0
        self._said: set[tuple[str, str]] = set()
        self._last = Loaded(is_good=True, good_at=time.time())
        self._lifetimes = Lifetimes(logger)
        self._forget()

    def _forget(self) -> None:
        self._files: SnapshotFiles | None = None
        self._order: Packed | None = None
        self._answers: dict[WorkerProcess, Built | None] = {}
        self._unswapped: set[WorkerProcess] | None = None
        self._answers_by = math.inf

    @property
    def is_under_way(self) -> bool:
        """Whether a reload is."""
        return self._is_under_way

    @property
    def deadline(self) -> float:
        """`time.monotonic()` when `go_on` has something to do, whether or not anybody answers."""
        due = min(self._errands.due, self._lifetimes.due)
        if self._is_under_way:
            return min(due, self._answers_by)
        return min(due, self._watch.due(self._history.settings.reload_interval))

    @property
    def last(self) -> Loaded:
        """What came of the last one, or of the start; not good while files hang."""
        if self._hangs_at is None:
            return self._last
        return replace(self._last, is_good=False, failed=(*self._last.failed, FILES_THAT_HANG))

    def started(self, answer: Built) -> None:
        """Note what a worker has built at the start, when all of it could be taken."""
        self._last = Loaded(is_good=True, good_at=time.time(), not_after=_not_after(answer))
        self._take_lifetimes(answer)

    def stop_watching(self) -> None:
        """Begin no reload any more that nobody asks for."""
        self._watch.stop()

    def ask(self) -> None:
        """Reload, now or when the reload that is under way is over."""
        if self._is_under_way:
            self._is_wanted = True
            return
        self._logger.info("reloading")
        self._begin(None)

    def _begin(self, look: Look | None) -> None:
        """Read the files, or take what a look at them has found."""
        self._is_under_way = True
        self._is_asked_for = look is None
        # A passphrase command or a file system may hang; signals are obeyed meanwhile.
        try:
            self._reading = self._errands.begin(partial(self._read_files, look, self._history.settings))
        except NoThread as error:
            self._fail(str(error))

    def _read_files(self, look: Look | None, in_service: Settings, note: Note) -> Look:
        if look is None:
            known = self._watch.known
            look = Look.of(
                read_content(self._path, in_service=in_service, serves=True, known=known, note=note)
            )
        return replace(look, files=with_passphrases(look.files, in_service, note))

    def go_on(self, serving: list[WorkerProcess]) -> None:
        """Take what has been read, and give up on workers that do not answer.

        Args:
            serving: the workers that were told to serve.
        """
        self._hear_reading(serving)
        self._tell_what_hangs()
        self._lifetimes.tell()
        if not self._is_under_way and self._late is not None and self._late.is_over:
            self._late = None
            self.ask()  # what it has found may be old by now
        if not self._is_under_way:
            self._look()
        if time.monotonic() < self._answers_by:
            return
        self._answers_by = math.inf
        if self._unswapped is None:
            generation = self._history.generation + 1
            for worker, answer in self._answers.items():
                if answer is None:
                    self._answers[worker] = Built(generation, self._attempt, is_usable=False)
            self._swap_when_all_have_built()
        else:
            for worker in self._unswapped:
                # Whatever holds it up: it must let nobody in by the old rules any more.
                self._logger.error("worker_does_not_swap", worker=worker.number)
                worker.kill()

    def _hear_reading(self, serving: list[WorkerProcess]) -> None:
        """Have built what was read, or give up where that hangs."""
        if self._reading is None:
            return
        outcome, hangs_at = self._reading.outcome, self._reading.hangs_at
        if outcome is not None:
            self._reading = None
            self._have_built(outcome, serving)
        elif hangs_at is not None:
            self._reading, self._late = None, self._reading
            self._fail(_hanging(hangs_at))

    def _tell_what_hangs(self) -> None:
        """Say once that a file hangs, and when it does no longer."""
        hangs_at = self._errands.hangs_at
        if hangs_at == self._hangs_at:
            return
        self._hangs_at = hangs_at
        if hangs_at is not None:
            self._logger.error("files_hang", reason=_hanging(hangs_at))
        else:
            self._logger.info("files_answer_again")

    def _look(self) -> None:
        """Reload by itself where the files have changed and hold still."""
        look = self._watch.go_on(self._history.settings)
        if look is not None:
            changed = self._watch.changed(look)
            self._watch.take(look)  # not again, whatever comes of it
            self._logger.info("reloading", changed=changed[:MAX_CHANGED_SHOWN], changes=len(changed))
            self._begin(look)

    def _have_built(self, look: Look | Exception, serving: list[WorkerProcess]) -> None:
        if isinstance(look, Exception):
            self._logger.error("bug", exc_info=look)
            self._fail("a bug")
            return
        self._errands.forget()
        self._late = None
        self._watch.take(look)
        generation = self._history.generation + 1
        self._files = look.files
        self._attempt += 1
        sets = (FileSet(generation, look.files, generation),)
        self._order = pack(Build(generation, self._attempt, sets, beside=True))
        for worker in serving:
            self.join(worker)

    def join(self, worker: WorkerProcess) -> None:
        """Let a worker that serves what is in service take part."""
        if self._order is not None and self._unswapped is None:
            self._answers[worker] = None
            self._answers_by = time.monotonic() + BUILD_SECONDS
            worker.send(self._order)

    def built(self, worker: WorkerProcess, answer: Built) -> None:
        """Note what came of a worker's build, unless it has been given up."""
        if answer.attempt == self._attempt and self._answers.get(worker, answer) is None:
            self._answers[worker] = answer
            self._swap_when_all_have_built()

    def _swap_when_all_have_built(self) -> None:
        answers = {worker: answer for worker, answer in self._answers.items() if answer is not None}
        if (
            self._files is None
            or self._unswapped is not None
            or not answers
            or None in self._answers.values()
        ):
            return
        able = {worker: answer for worker, answer in answers.items() if answer.is_usable}
        if not able:
            self._fail("no worker has built it")
            return
        in_use = {generation for answer in able.values() for generation in answer.in_use}
        result = next(iter(able.values()))
        self._history.advance(self._files, in_use, result.mistakes)
        self._note(result)
        self._unswapped = set(able)
        self._answers_by = time.monotonic() + SWAP_SECONDS
        for worker in able:
            worker.send(Swap(self._history.generation))
        for worker in answers.keys() - able.keys():
            self._logger.error("worker_cannot_reload", worker=worker.number)
            self._replace(worker)
        self._report_when_all_have_swapped()

    def _note(self, result: Built) -> None:
        is_good = not result.mistakes
        good_at = time.time() if is_good else self._last.good_at
        failed = dict.fromkeys("configuration" if unit == self._path else unit for unit in result.kept)
        self._last = Loaded(is_good, good_at, tuple(failed), _not_after(result))
        self._take_lifetimes(result)

    def _take_lifetimes(self, answer: Built) -> None:
        self._lifetimes.take(Lifetime(*each) for each in answer.lifetimes)

    def swapped(self, worker: WorkerProcess) -> None:
        """Note that a worker serves the new generation."""
        if self._unswapped is not None:
            self._unswapped.discard(worker)
            self._report_when_all_have_swapped()

    def gone(self, worker: WorkerProcess) -> None:
        """Do without a worker that is dead; the one in its place is given what is in service."""
        if self._unswapped is None:
            self._answers.pop(worker, None)
            self._swap_when_all_have_built()
        else:
            self.swapped(worker)

    def _report_when_all_have_swapped(self) -> None:
        if self._unswapped:
            return
        result = next(answer for answer in self._answers.values() if answer is not None and answer.is_usable)
        for where, what in result.warnings:
            self._logger.warning("config_warning", warning=f"{where}: {what}")
        self._say_mistakes(result)
        if result.mistakes:
            self._logger.error("reload_failed", generation=self._history.generation, kept=list(result.kept))
        else:
            self._logger.info("reloaded", generation=self._history.generation)
        self._finish()

    def _say_mistakes(self, result: Built) -> None:
        """Say what is wrong: all of it where somebody asked for the reload, else what is new."""
        mistakes = [(where, what) for where, what in result.mistakes]
        for where, what in mistakes:
            if self._is_asked_for or (where, what) not in self._said:
                self._logger.error("config_mistake", mistake=f"{where}: {what}")
        self._said = set(mistakes)

    def _fail(self, reason: str) -> None:
        generation = self._history.generation
        self._logger.error("reload_failed", generation=generation, kept=[EVERYTHING], reason=reason)
        self._last = replace(self._last, is_good=False, failed=(EVERYTHING,))
        self._finish()

    def _finish(self) -> None:
        self._forget()
        self._is_under_way = False
        if self._is_wanted:
            self._is_wanted = False
            self.ask()


def _hanging(path: str) -> str:
    return f'"{path}" has not been read for {HANG_SECONDS:g} s: does its file system answer?'


def _not_after(answer: Built) -> tuple[NotAfter, ...]:
    return tuple(NotAfter(str(owner), str(name), float(at)) for owner, name, at in answer.not_after)
