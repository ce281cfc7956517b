"""Reloads over all workers: the files are read once, every worker builds, and only then all swap."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable
from typing import Final

from structlog.typing import FilteringBoundLogger

from pgtlsproxy.config import Settings
from pgtlsproxy.proxy.channel import Build, Built, FileSet, Packed, Swap, pack
from pgtlsproxy.proxy.files import SnapshotFiles, read
from pgtlsproxy.proxy.history import History
from pgtlsproxy.proxy.worker_process import WorkerProcess

BUILD_SECONDS: Final = 60.0
"""How long a worker may take to build a snapshot. It serves meanwhile."""

SWAP_SECONDS: Final = 10.0
"""How long it may take to swap one in, which is one step of its event loop."""


class Reloads:
    """At most one reload at a time, and one more for whatever is asked for meanwhile.

    Args:
        path: the configuration file.
        history: what is in service.
        logger: told what came of each.
        replace: drains a worker that cannot build what the others can, and starts another.
        wake: makes the supervisor call `go_on`; called from another thread.
    """

    def __init__(
        self,
        path: str,
        history: History,
        logger: FilteringBoundLogger,
        replace: Callable[[WorkerProcess], None],
        wake: Callable[[], None],
    ) -> None:
        self._path = path
        self._history = history
        self._logger = logger
        self._replace = replace
        self._wake = wake
        self._read: queue.SimpleQueue[SnapshotFiles | Exception] = queue.SimpleQueue()
        self._is_under_way = False
        self._is_wanted = False
        self._forget()

    def _forget(self) -> None:
        self._files: SnapshotFiles | None = None
        self._order: Packed | None = None
        self._answers: dict[WorkerProcess, Built | None] = {}
        self._unswapped: set[WorkerProcess] | None = None
        self.deadline = math.inf

    def ask(self) -> None:
        """Reload, now or when the reload that is under way is over."""
        if self._is_under_way:
            self._is_wanted = True
            return
        self._is_under_way = True
        self._logger.info("reloading")
        # A passphrase command or a file system may hang; signals are obeyed meanwhile.
        threading.Thread(target=self._read_files, args=(self._history.settings,), daemon=True).start()

    def _read_files(self, in_service: Settings) -> None:
        try:
            self._read.put(read(self._path, in_service=in_service, serves=True))
        except Exception as error:  # noqa: BLE001 - a file that trips us must not end the proxy
            self._read.put(error)
        self._wake()

    def go_on(self, serving: list[WorkerProcess]) -> None:
        """Take what has been read, and give up on workers that do not answer.

        Args:
            serving: the workers that were told to serve.
        """
        if not self._read.empty():
            self._have_built(self._read.get(), serving)
        if time.monotonic() < self.deadline:
            return
        self.deadline = math.inf
        if self._unswapped is None:
            for worker, answer in self._answers.items():
                if answer is None:
                    self._answers[worker] = Built(self._history.generation + 1, is_usable=False)
            self._swap_when_all_have_built()
        else:
            for worker in self._unswapped:
                # Whatever holds it up: it must let nobody in by the old rules any more.
                self._logger.error("worker_does_not_swap", worker=worker.number)
                worker.kill()

    def _have_built(self, files: SnapshotFiles | Exception, serving: list[WorkerProcess]) -> None:
        if isinstance(files, Exception):
            self._logger.error("bug", exc_info=files)
            self._fail()
            return
        generation = self._history.generation + 1
        self._files = files
        self._order = pack(Build(generation, (FileSet(generation, files, generation),), beside=True))
        for worker in serving:
            self.join(worker)

    def join(self, worker: WorkerProcess) -> None:
        """Let a worker that serves what is in service take part."""
        if self._order is not None and self._unswapped is None:
            self._answers[worker] = None
            self.deadline = time.monotonic() + BUILD_SECONDS
            worker.send(self._order)

    def built(self, worker: WorkerProcess, answer: Built) -> None:
        """Note what came of a worker's build."""
        if self._answers.get(worker, answer) is None:
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
            self._fail()
            return
        in_use = {generation for answer in able.values() for generation in answer.in_use}
        result = next(iter(able.values()))
        self._history.advance(self._files, in_use, result.mistakes)
        self._unswapped = set(able)
        self.deadline = time.monotonic() + SWAP_SECONDS
        for worker in able:
            worker.send(Swap(self._history.generation))
        for worker in answers.keys() - able.keys():
            self._logger.error("worker_cannot_reload", worker=worker.number)
            self._replace(worker)
        self._report_when_all_have_swapped()

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
        for where, what in result.mistakes:
            self._logger.error("config_mistake", mistake=f"{where}: {what}")
        if result.mistakes:
            self._logger.error("reload_failed", generation=self._history.generation, kept=list(result.kept))
        else:
            self._logger.info("reloaded", generation=self._history.generation)
        self._finish()

    def _fail(self) -> None:
        self._logger.error("reload_failed", generation=self._history.generation, kept=["everything"])
        self._finish()

    def _finish(self) -> None:
        self._forget()
        self._is_under_way = False
        if self._is_wanted:
            self._is_wanted = False
            self.ask()
