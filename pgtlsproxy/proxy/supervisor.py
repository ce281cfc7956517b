"""The process that an administrator starts: binds, reads the files, and keeps the workers going.

It touches no client's byte, knows no TLS and runs no event loop but its own, so that little can go
wrong in it; everything is done on one thread but the reading of files at a reload, and the writing
of the log. Workers are started by exec and told over a socket pair. It ends when they have.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import selectors
import signal
import socket
import time
from typing import Final

from structlog.typing import FilteringBoundLogger

from pgtlsproxy import __version__
from pgtlsproxy.config import Settings
from pgtlsproxy.errors import ConfigError, Mistake
from pgtlsproxy.observability.figures import Service
from pgtlsproxy.proxy.activation import assign
from pgtlsproxy.proxy.channel import ChannelEnded
from pgtlsproxy.proxy.crew import Crew
from pgtlsproxy.proxy.files import SnapshotFiles
from pgtlsproxy.proxy.handover import Given, Predecessor, Successor
from pgtlsproxy.proxy.history import History
from pgtlsproxy.proxy.limits import raise_descriptor_limit
from pgtlsproxy.proxy.orders import Answer, Build, Built, Descriptor, Pong, Serve, Serving, Swap, Swapped
from pgtlsproxy.proxy.reloads import Reloads
from pgtlsproxy.proxy.service_manager import Phase, ServiceManager
from pgtlsproxy.proxy.shared_table import SharedTable
from pgtlsproxy.proxy.sockets import STATUS_NAME, Heirlooms, ListeningSocket, listen
from pgtlsproxy.proxy.status_process import StatusProcess
from pgtlsproxy.proxy.tally import Tally
from pgtlsproxy.proxy.upgrade import Upgrade
from pgtlsproxy.proxy.worker_process import WorkerProcess

_SIGNALS: Final = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR2)

STATUS_CONFIG: Final = 1

LOGIN_SECONDS: Final = 2.0
"""How long logins under way may go on when another process has taken our place; new ones are its."""


def supervise(
    files: SnapshotFiles,
    settings: Settings,
    table: SharedTable,
    lock: Descriptor,
    logger: FilteringBoundLogger,
    given: Given,
) -> int:
    """Run the proxy until it is told to end. Returns the exit status.

    Args:
        files: what the configuration's files say.
        settings: what the configuration file says.
        table: made by `make_table`.
        lock: what keeps apart the lines that several processes log.
        logger: where events go.
        given: what whoever has started us has given us.

    Raises:
        ConfigError: the configuration cannot be served, an address cannot be listened on, or a socket was
            passed that is nobody's.
    """
    # Workers inherit both limits. A core dump would hold keys and passwords.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    raise_descriptor_limit(settings, logger)
    return _Supervisor(files, settings, table, lock, logger, given).run()


def make_table(settings: Settings) -> SharedTable:
    """Memory for the workers to share. One that drains keeps its slot beside the one that replaces it."""
    return SharedTable(2 * settings.workers)


class _Supervisor:
    def __init__(
        self,
        files: SnapshotFiles,
        settings: Settings,
        table: SharedTable,
        lock: Descriptor,
        logger: FilteringBoundLogger,
        given: Given,
    ) -> None:
        self._path = files.path
        self._settings = settings
        self._logger = logger
        self._history = History(files, settings)
        self._passed = assign(files.path, settings, given.sockets)
        self._predecessor = given.predecessor
        self._heirlooms = Heirlooms(given.predecessor.own if given.predecessor else ())
        self._listening: list[tuple[str, ListeningSocket]] = []
        self._is_ready = False
        self._is_stopping = False
        self._has_handed_over = False
        self._waiting: list[WorkerProcess] = []
        self._drain_at = math.inf
        self._signals: list[int] = []
        self._woken, self._waking = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._tally = tally = Tally(table.slots, tuple(settings.listeners))
        self._crew = Crew(settings, table, tally, lock, self._selector, logger)
        self._page = StatusProcess(files, settings, lock, tally, logger)
        self._reloads = Reloads(files, self._history, logger, self._crew.replace, self._wake)
        self._manager = ServiceManager(given.contact, self._describe, logger)
        self._upgrade = Upgrade(given.contact, self._selector, logger)

    # --- The loop -------------------------------------------------------------------------------------

    def run(self) -> int:
        """Until told to end, and all workers have."""
        self._take_signals()
        try:
            self._page.open(self._passed.status, self._heirlooms)
            if self._predecessor is not None:
                self._selector.register(self._predecessor.sock, selectors.EVENT_READ, self._predecessor)
            while self._crew.everybody or not self._crew.is_ending:
                for worker in self._crew.start():
                    self._let_build(worker)
                self._wait()
                self._obey_signals()
                self._crew.bury(self._reloads.gone)
                self._reloads.go_on([worker for worker in self._crew.seated if worker.may_serve])
                self._hand_over_when_it_serves()
                self._drain_when_due()
                self._crew.kill_what_does_not_end()
                self._crew.ping()
                if self._predecessor is None:
                    self._page.tend(self._service(), self._history.sets)
                    self._tell_manager()
        finally:
            self._close()
        self._logger.info("stopped")
        return self._crew.status

    def _close(self) -> None:
        self._upgrade.give_up()
        self._crew.close()
        self._page.close()
        self._manager.close()
        signal.set_wakeup_fd(-1)
        self._selector.close()
        for _, opened in self._listening:
            opened.close()
        self._woken.close()
        self._waking.close()

    def _take_signals(self) -> None:
        self._waking.setblocking(False)
        self._woken.setblocking(False)
        signal.set_wakeup_fd(self._waking.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, lambda number, _frame: self._signals.append(number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # who has started us may have blocked them
        self._selector.register(self._woken, selectors.EVENT_READ)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # it is awake, or has ended
            self._waking.send(b"\0")

    def _wait(self) -> None:
        """Sleep until something happens or is due, and hear the workers."""
        self._crew.watch()
        until = min(self._crew.next_due, self._reloads.deadline, self._drain_at, self._upgrade.due)
        if self._predecessor is None:
            until = min(until, self._page.due, self._manager.due)
        timeout = None if until == math.inf else max(until - time.monotonic(), 0)
        for key, events in self._selector.select(timeout):
            if isinstance(key.data, WorkerProcess):
                if events & selectors.EVENT_WRITE:
                    key.data.orders.flush()
                if events & selectors.EVENT_READ:
                    self._hear(key.data)
            elif isinstance(key.data, Upgrade):
                key.data.hear()
            elif isinstance(key.data, Predecessor):
                self._take_over(key.data)
            else:
                self._woken.recv(4096)

    def _obey_signals(self) -> None:
        told, self._signals = self._signals, []
        for number in told:
            if number in {signal.SIGTERM, signal.SIGINT}:
                self._stop(number)
            elif number == signal.SIGHUP and not self._crew.is_ending:
                self._reloads.ask()
                self._manager.asked_to_reload()
            elif number == signal.SIGUSR2 and self._is_in_charge:
                page = [(STATUS_NAME, opened) for opened in self._page.listening]
                self._upgrade.begin(self._listening + page)

    def _service(self) -> Service:
        serving = sum(worker.served_since is not None for worker in self._crew.seated)
        return Service(self._history.generation, serving, self._is_stopping, self._reloads.last)

    # --- The service manager ----------------------------------------------------------------------------

    def _tell_manager(self) -> None:
        settings = self._history.settings
        phase = Phase.SERVING if self._is_ready else Phase.STARTING
        if self._is_stopping:
            phase = Phase.STOPPING
        elif self._is_ready and self._reloads.is_under_way:
            phase = Phase.RELOADING
        seconds = settings.drain_delay + settings.drain_timeout
        self._manager.tend(phase, seconds, is_well=self._crew.is_well)

    def _describe(self) -> str:
        """What `systemctl status` shows."""
        service = self._service()
        sessions = sum(each.active for each in self._tally.figures().values())
        shown = f"{sessions} sessions, {service.workers} workers, generation {service.generation}"
        if service.last.is_good:
            return shown
        return f"{shown}; the last reload failed, these keep what they had: {', '.join(service.last.failed)}"

    # --- What workers say -------------------------------------------------------------------------------

    def _hear(self, worker: WorkerProcess) -> None:
        try:
            for answer in worker.orders.receive():
                self._heard(worker, answer)
        except ChannelEnded:
            self._crew.unhear(worker)

    def _heard(self, worker: WorkerProcess, answer: Answer) -> None:
        match answer:
            case Built() if worker.may_serve:
                self._reloads.built(worker, answer)
            case Built():
                self._let_serve(worker, answer)
            case Swapped():
                self._reloads.swapped(worker)
            case Serving():
                self._crew.serves(worker)
                self._say_ready()
            case Pong():
                worker.is_alive()

    def _let_build(self, worker: WorkerProcess) -> None:
        """Let a worker that has nothing yet build what is in service."""
        worker.send(Build(self._history.generation, 0, self._history.sets, beside=False))

    def _let_serve(self, worker: WorkerProcess, answer: Built) -> None:
        """Let a worker that has built what was in service begin, or build anew what is now."""
        if self._crew.is_ending:  # it came too late
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
            self._reloads.started(answer)
        self._waiting.append(worker)
        if self._predecessor is None or set(self._crew.seated) <= set(self._waiting):
            # In another's place all serve or none does: what had been accepted would be lost with us.
            for each in self._waiting:
                self._begin(each)
            self._waiting.clear()

    def _begin(self, worker: WorkerProcess) -> None:
        worker.may_serve = True
        worker.send(Swap(self._history.generation))
        worker.send(Serve(tuple((name, opened.sock) for name, opened in self._listening)))
        self._reloads.join(worker)

    def _open(self, answer: Built) -> None:
        """Listen, now that a worker has built what is to be served."""
        for where, what in answer.warnings:
            self._logger.warning("config_warning", warning=f"{where}: {what}")
        for warning in self._passed.warnings:
            self._logger.warning("config_warning", warning=str(warning))
        self._listening = listen(self._path, self._settings, self._passed.listeners, self._heirlooms)
        if os.geteuid() == 0:
            self._logger.warning(
                "running_as_root", advice="let systemd, the container or setpriv drop privileges"
            )
        for name, opened in self._listening:
            self._logger.info("listening", listener=name, address=opened.shown, is_passed=opened.is_passed)

    def _say_ready(self) -> None:
        if not self._is_ready and not self._is_stopping and self._crew.is_complete:
            self._is_ready = True
            self._logger.info(
                "ready",
                version=__version__,
                generation=self._history.generation,
                workers=self._settings.workers,
            )
            if self._predecessor is not None:
                self._predecessor.say_serving()

    # --- One takes the other's place ----------------------------------------------------------------------

    @property
    def _is_in_charge(self) -> bool:
        """Whether it is ours to serve, and nobody else's yet or any more."""
        return self._is_ready and not self._is_stopping and self._predecessor is None

    def _hand_over_when_it_serves(self) -> None:
        """Cease to accept when a successor does, and drain as soon as logins under way are over."""
        successor = self._upgrade.go_on()
        if successor is None:
            return
        if not self._manager.hand_over(successor.pid):
            successor.end()
            successor.close()
            self._logger.error(
                "upgrade_failed", pid=successor.pid, reason="the service manager hears nothing"
            )
            return
        self._is_stopping = True
        self._drain_at = time.monotonic() + LOGIN_SECONDS
        self._has_handed_over = True
        self._reloads.stop_watching()
        self._release(successor)
        self._crew.cease()
        self._page.close()
        self._logger.info("handed_over", pid=successor.pid)

    def _release(self, successor: Successor) -> None:
        for _, opened in self._listening:
            opened.is_lent = True  # its files are the successor's
            opened.close()
        self._listening.clear()
        successor.go()
        successor.close()

    def _take_over(self, predecessor: Predecessor) -> None:
        """Be the one that listens, now that the predecessor does not any more."""
        self._selector.unregister(predecessor.sock)
        is_gone = not predecessor.hear()
        predecessor.sock.close()
        if not self._is_ready:
            self._logger.error("not_needed", reason="the process whose place was to be taken is gone")
            self._crew.status = STATUS_CONFIG
            self._crew.end()
            return
        self._predecessor = None
        for _, opened in self._listening + self._heirlooms.left:
            if opened.is_lent and opened.files is not None:
                opened.files.sign()
            opened.is_lent = False
        for _, opened in self._heirlooms.left:
            opened.close()
        self._logger.info("took_over", is_gone=is_gone)

    # --- The end ----------------------------------------------------------------------------------------

    def _stop(self, number: int) -> None:
        """Drain; told so again, end at once."""
        name = signal.Signals(number).name
        if self._has_handed_over:
            # It drains already; nobody has told it to end before.
            self._has_handed_over = False
            self._logger.info("shutting_down", signal=name)
            return
        if self._is_stopping:
            self._logger.warning("shutting_down_at_once", signal=name)
            self._drain_at = math.inf
            self._crew.end()
            return
        settings = self._history.settings
        self._upgrade.give_up()
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
        self._reloads.stop_watching()
        for _, opened in self._listening:
            opened.close()
        self._listening.clear()
        self._crew.drain(self._history.settings.drain_timeout)
