"""The process that an administrator starts: binds, reads the files, and keeps the workers going.

It touches no client's byte, knows no TLS and runs no event loop but its own, so that little can go
wrong in it; everything is done on one thread but the reading of files at a reload, and the writing
of the log. Workers are started by exec and told over a socket pair. It ends when they have.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import resource
import secrets
import selectors
import signal
import socket
import time
from collections.abc import Mapping
from typing import Final

from structlog.typing import FilteringBoundLogger

from pgtlsproxy import __version__
from pgtlsproxy.config import Settings
from pgtlsproxy.errors import ConfigError, Mistake
from pgtlsproxy.identity import Secret
from pgtlsproxy.proxy.channel import (
    Answer,
    Build,
    Built,
    ChannelEnded,
    Descriptor,
    Drain,
    Serve,
    Serving,
    Swap,
    Swapped,
    Welcome,
)
from pgtlsproxy.proxy.files import SnapshotFiles
from pgtlsproxy.proxy.history import History
from pgtlsproxy.proxy.limits import raise_descriptor_limit
from pgtlsproxy.proxy.reloads import Reloads
from pgtlsproxy.proxy.seat import FIRST_PAUSE_SECONDS, Seat
from pgtlsproxy.proxy.shared_table import SharedTable
from pgtlsproxy.proxy.sockets import ListeningSocket, listen
from pgtlsproxy.proxy.worker_process import WorkerProcess

START_ATTEMPTS: Final = 5
"""How often a worker may fail to start before the first has served. Then it is no use."""

STATUS_CUT: Final = 3
"""It ended as told, and sessions were cut that may not have been idle: a worker's status, and then ours."""

STATUS_BUG: Final = 70

_SIGNALS: Final = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


def supervise(
    files: SnapshotFiles, settings: Settings, table: SharedTable, logger: FilteringBoundLogger
) -> int:
    """Run the proxy until it is told to end. Returns the exit status.

    Args:
        files: what the configuration's files say.
        settings: what the configuration file says.
        table: made by `make_table`.
        logger: where events go.

    Raises:
        ConfigError: the configuration cannot be served, or an address cannot be listened on.
    """
    # Workers inherit both limits. A core dump would hold keys and passwords.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    raise_descriptor_limit(settings, logger)
    return _Supervisor(files, settings, table, logger).run()


def make_table(settings: Settings) -> SharedTable:
    """Memory for the workers to share. One that drains keeps its slot beside the one that replaces it."""
    return SharedTable(2 * settings.workers)


class _Supervisor:
    def __init__(
        self, files: SnapshotFiles, settings: Settings, table: SharedTable, logger: FilteringBoundLogger
    ) -> None:
        self._path = files.path
        self._settings = settings
        self._logger = logger
        self._table = table
        self._secret = Secret(secrets.token_bytes(32))
        self._mailboxes = [_mailbox() for _ in range(table.slots)]
        self._history = History(files, settings)
        self._seats = [Seat() for _ in range(settings.workers)]
        self._leaving: list[WorkerProcess] = []
        self._listening: list[tuple[str, ListeningSocket]] = []
        self._is_ready = False
        self._has_served = False
        self._is_stopping = False
        self._drain_at = math.inf
        self._status = 0
        self._signals: list[int] = []
        self._woken, self._waking = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._reloads = Reloads(files.path, self._history, logger, self._replace, self._wake)

    # --- The loop -------------------------------------------------------------------------------------

    def run(self) -> int:
        """Until told to end, and all workers have."""
        self._take_signals()
        try:
            while self._workers or not self._is_stopping:
                self._start_workers()
                self._wait()
                self._obey_signals()
                self._reap()
                self._reloads.go_on([worker for worker in self._seated if worker.may_serve])
                self._drain_when_due()
                self._kill_what_does_not_end()
        finally:
            self._close()
        self._logger.info("stopped")
        return self._status

    def _close(self) -> None:
        for worker in self._workers:
            worker.kill()
            worker.wait()
            worker.orders.close()
        signal.set_wakeup_fd(-1)
        self._selector.close()
        for _, opened in self._listening:
            opened.close()
        for sock in (*itertools.chain.from_iterable(self._mailboxes), self._woken, self._waking):
            sock.close()

    def _take_signals(self) -> None:
        self._waking.setblocking(False)
        self._woken.setblocking(False)
        signal.set_wakeup_fd(self._waking.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, lambda number, _frame: self._signals.append(number))
        self._selector.register(self._woken, selectors.EVENT_READ)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # it is awake, or has ended
            self._waking.send(b"\0")

    @property
    def _seated(self) -> list[WorkerProcess]:
        return [seat.worker for seat in self._seats if seat.worker is not None]

    @property
    def _workers(self) -> list[WorkerProcess]:
        return self._seated + self._leaving

    def _wait(self) -> None:
        """Sleep until something happens or is due, and hear the workers."""
        for worker in self._workers:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.orders.wants_to_send else 0)
            if worker.orders.sock in self._selector.get_map():
                self._selector.modify(worker.orders.sock, events, worker)
        due = [seat.due for seat in self._seats if seat.worker is None and not self._is_stopping]
        ends = (worker.end_by for worker in self._workers)
        until = min([*due, *ends, self._reloads.deadline, self._drain_at])
        timeout = None if until == math.inf else max(until - time.monotonic(), 0)
        for key, events in self._selector.select(timeout):
            if key.data is None:
                self._woken.recv(4096)
                continue
            if events & selectors.EVENT_WRITE:
                key.data.orders.flush()
            if events & selectors.EVENT_READ:
                self._hear(key.data)

    def _obey_signals(self) -> None:
        told, self._signals = self._signals, []
        for number in told:
            if number in {signal.SIGTERM, signal.SIGINT}:
                self._stop(number)
            elif number == signal.SIGHUP and not self._is_stopping:
                self._reloads.ask()

    # --- Workers come -----------------------------------------------------------------------------------

    def _start_workers(self) -> None:
        if self._is_stopping:
            return
        for seat in self._seats:
            if seat.worker is None and seat.due <= time.monotonic():
                self._start(seat)

    def _start(self, seat: Seat) -> None:
        taken = {worker.number for worker in self._workers}
        number = next((each for each in range(1, self._table.slots + 1) if each not in taken), None)
        if number is None:  # all that drain are in the way of the one that replaces the last
            self._leaving[0].kill()
            seat.due = time.monotonic() + FIRST_PAUSE_SECONDS
            return
        try:
            worker = WorkerProcess(number)
        except OSError as error:
            self._failed(seat, "worker_not_started", worker=number, reason=error.strerror)
            return
        seat.worker = worker
        self._selector.register(worker.orders.sock, selectors.EVENT_READ, worker)
        inbox, _ = self._mailboxes[number - 1]
        worker.send(
            Welcome(
                number,
                self._settings.log,
                Descriptor(self._table.descriptor),
                self._table.slots,
                self._secret,
                inbox,
                tuple(outbox for _, outbox in self._mailboxes),
            )
        )
        self._let_build(worker)

    def _let_build(self, worker: WorkerProcess) -> None:
        """Let a worker that has nothing yet build what is in service."""
        worker.send(Build(self._history.generation, self._history.sets, beside=False))

    def _hear(self, worker: WorkerProcess) -> None:
        try:
            for answer in worker.orders.receive():
                self._heard(worker, answer)
        except ChannelEnded:
            # It ends, and if it does not by itself, it has to: nothing can be told to it any more.
            self._selector.unregister(worker.orders.sock)
            worker.end()

    def _heard(self, worker: WorkerProcess, answer: Answer) -> None:
        match answer:
            case Built() if worker.may_serve:
                self._reloads.built(worker, answer)
            case Built():
                self._let_serve(worker, answer)
            case Swapped():
                self._reloads.swapped(worker)
            case Serving():
                worker.served_since = time.monotonic()
                self._has_served = True
                self._say_ready()

    def _let_serve(self, worker: WorkerProcess, answer: Built) -> None:
        """Let a worker that has built what was in service begin, or build anew what is now."""
        if self._is_stopping:  # it came too late
            worker.end()
            return
        if not answer.is_usable:
            if answer.mistakes and not self._listening:
                raise ConfigError(Mistake(where, what) for where, what in answer.mistakes)
            worker.end()
            return
        if answer.generation != self._history.generation:
            self._let_build(worker)
            return
        if not self._listening:
            self._open(answer)
        worker.may_serve = True
        worker.send(Swap(answer.generation))
        worker.send(Serve(tuple((name, opened.sock) for name, opened in self._listening)))
        self._reloads.join(worker)

    def _open(self, answer: Built) -> None:
        """Listen, now that a worker has built what is to be served."""
        for where, what in answer.warnings:
            self._logger.warning("config_warning", warning=f"{where}: {what}")
        self._listening = listen(self._path, self._settings)
        if os.geteuid() == 0:
            self._logger.warning(
                "running_as_root", advice="let systemd, the container or setpriv drop privileges"
            )
        for name, opened in self._listening:
            self._logger.info("listening", listener=name, address=opened.shown)

    def _say_ready(self) -> None:
        serving = [seat.worker is not None and seat.worker.served_since is not None for seat in self._seats]
        if not self._is_ready and not self._is_stopping and all(serving):
            self._is_ready = True
            self._logger.info(
                "ready", version=__version__, generation=self._history.generation, workers=len(self._seats)
            )

    # --- Workers go -------------------------------------------------------------------------------------

    def _replace(self, worker: WorkerProcess) -> None:
        """Let a worker drain, and another take its seat."""
        for seat in self._seats:
            if seat.worker is worker:
                seat.worker = None
                self._leaving.append(worker)
                worker.send(Drain(None))

    def _reap(self) -> None:
        for worker in self._workers:
            status = worker.status()
            if status is not None:
                self._buried(worker, status)

    def _buried(self, worker: WorkerProcess, status: int) -> None:
        if worker.orders.sock in self._selector.get_map():
            self._selector.unregister(worker.orders.sock)
        worker.orders.close()
        self._table.clear(worker.number)
        seat = next((seat for seat in self._seats if seat.worker is worker), None)
        told = {
            "worker": worker.number,
            "pid": worker.pid,
            "status": status if status >= 0 else None,
            "signal": signal.Signals(-status).name if status < 0 else None,
        }
        if seat is None:
            self._leaving.remove(worker)
            if self._is_stopping:
                self._died_at_the_end(status, told)
            elif status != 0:
                self._logger.error("worker_died", **told)
            return
        seat.vacate()
        if self._is_stopping:
            self._died_at_the_end(status, told)
            return
        self._reloads.gone(worker)
        self._failed(seat, "worker_died", **told)

    def _died_at_the_end(self, status: int, told: Mapping[str, object]) -> None:
        """Take what became of a worker that was told to end into our own status; the worst counts."""
        if status not in {0, STATUS_CUT}:
            self._logger.error("worker_died", **told)
            status = STATUS_BUG
        self._status = max(self._status, status)

    def _failed(self, seat: Seat, event: str, **fields: object) -> None:
        """Say that a worker is missing, and when the next one starts: at once, and then ever later."""
        self._logger.error(event, **fields, restart_in=seat.wait())
        if not self._has_served and seat.failures >= START_ATTEMPTS:
            self._logger.error("no_worker_starts", attempts=seat.failures)
            self._status = STATUS_BUG
            self._end_workers()

    # --- The end ----------------------------------------------------------------------------------------

    def _stop(self, number: int) -> None:
        """Drain; told so again, end at once."""
        name = signal.Signals(number).name
        if self._is_stopping:
            self._logger.warning("shutting_down_at_once", signal=name)
            self._end_workers()
            return
        settings = self._history.settings
        self._is_stopping = True
        self._drain_at = time.monotonic() + settings.drain_delay
        self._logger.info(
            "shutting_down",
            signal=name,
            drain_delay=settings.drain_delay,
            drain_timeout=settings.drain_timeout,
        )

    def _drain_when_due(self) -> None:
        """Accept no more, and have the workers end their sessions."""
        if time.monotonic() < self._drain_at:
            return
        self._drain_at = math.inf
        for _, opened in self._listening:
            opened.close()
        self._listening.clear()
        for worker in self._workers:
            if worker.may_serve:
                worker.drain(self._history.settings.drain_timeout)
            else:
                worker.end()

    def _end_workers(self) -> None:
        self._is_stopping = True
        self._drain_at = math.inf
        for worker in self._workers:
            worker.end()

    def _kill_what_does_not_end(self) -> None:
        for worker in self._workers:
            if time.monotonic() >= worker.end_by:
                worker.kill()


def _mailbox() -> tuple[socket.socket, socket.socket]:
    """An inbox, and the way into it."""
    inbox, outbox = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return inbox, outbox
