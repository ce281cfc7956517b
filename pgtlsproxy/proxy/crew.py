"""The workers: started by exec, replaced when they die, and told to end.

A worker that dies is replaced at once, and ever later where that goes on. One that is to be replaced gives up
its seat and stays until its last session is over.
"""

from __future__ import annotations

import itertools
import math
import secrets
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from structlog.typing import FilteringBoundLogger

from pgtlsproxy.config import Settings
from pgtlsproxy.identity import Secret
from pgtlsproxy.proxy.orders import Cease, Descriptor, Drain, Logging, Welcome
from pgtlsproxy.proxy.shared_table import SharedTable
from pgtlsproxy.proxy.tally import Tally
from pgtlsproxy.proxy.worker_process import WorkerProcess

START_ATTEMPTS: Final = 5
"""How often a worker may fail to start before the first has served. Then it is no use."""

STEADY_SECONDS: Final = 10.0
"""A worker that has served for so long and dies is replaced at once; one that has not, ever later."""

FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 10.0

STATUS_CUT: Final = 3
"""A worker ended as told, and sessions were cut that may not have been idle."""

STATUS_BUG: Final = 70


@dataclass(slots=True)
class Seat:
    """The place of one worker, whoever fills it.

    Attributes:
        worker: who does; None between two.
        failures: how many have died in a row without having served for long.
        due: `time.monotonic()` when the next may start.
    """

    worker: WorkerProcess | None = None
    failures: int = 0
    due: float = 0.0

    def vacate(self) -> None:
        """Note that its worker is dead, and how far that one had come."""
        since = self.worker.served_since if self.worker is not None else None
        if since is not None and time.monotonic() - since >= STEADY_SECONDS:
            self.failures = 0
        self.worker = None

    def wait(self) -> float:
        """Have the next one start at once, and after each failure ever later; returns in how many seconds."""
        self.failures += 1
        pause = 0.0
        if self.failures > 1:
            pause = min(FIRST_PAUSE_SECONDS * 2 ** (self.failures - 2), LONGEST_PAUSE_SECONDS)
        self.due = time.monotonic() + pause
        return pause


class Crew:
    """All of them.

    Args:
        settings: how many, and what their log looks like.
        table: what they share.
        tally: where they count sessions.
        lock: what keeps the lines of the log apart.
        selector: where their answers are waited for, each worker being its key's data.
        logger: told who comes and goes.

    Attributes:
        status: what became of those that were told to end, as an exit status; the worst counts.
        is_ending: whether they were told to end, and nobody is started any more.
        has_served: whether one ever has.
    """

    def __init__(
        self,
        settings: Settings,
        table: SharedTable,
        tally: Tally,
        lock: Descriptor,
        selector: selectors.BaseSelector,
        logger: FilteringBoundLogger,
    ) -> None:
        self.status = 0
        self.is_ending = False
        self.has_served = False
        self._log = settings.log
        self._lock = lock
        self._table = table
        self._tally = tally
        self._selector = selector
        self._logger = logger
        self._secret = Secret(secrets.token_bytes(32))
        self._mailboxes = [_mailbox() for _ in range(table.slots)]
        self._seats = [Seat() for _ in range(settings.workers)]
        self._leaving: list[WorkerProcess] = []

    @property
    def seated(self) -> list[WorkerProcess]:
        """Those that are to serve."""
        return [seat.worker for seat in self._seats if seat.worker is not None]

    @property
    def everybody(self) -> list[WorkerProcess]:
        """Those, and those that leave."""
        return self.seated + self._leaving

    @property
    def is_complete(self) -> bool:
        """Whether every seat is filled by one that serves."""
        return all(seat.worker is not None and seat.worker.served_since is not None for seat in self._seats)

    @property
    def next_due(self) -> float:
        """`time.monotonic()` when something is to be done by itself: one starts, or must have ended."""
        starts = [seat.due for seat in self._seats if seat.worker is None and not self.is_ending]
        each = [min(worker.end_by, worker.ping_at) for worker in self.everybody]
        return min([*starts, *each], default=math.inf)

    @property
    def is_well(self) -> bool:
        """Whether all that serve answer."""
        return not any(worker.hangs for worker in self.everybody)

    # --- They come ------------------------------------------------------------------------------------

    def start(self) -> Iterator[WorkerProcess]:
        """Fill the seats that are due; yields each worker that was started and welcomed."""
        for seat in self._seats:
            if not self.is_ending and seat.worker is None and seat.due <= time.monotonic():
                yield from self._start(seat)

    def _start(self, seat: Seat) -> Iterator[WorkerProcess]:
        taken = {worker.number for worker in self.everybody}
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
                Logging(self._log, self._lock, number),
                Descriptor(self._table.descriptor),
                self._table.slots,
                self._secret,
                inbox,
                tuple(outbox for _, outbox in self._mailboxes),
                Descriptor(self._tally.descriptor),
                self._tally.listeners,
            )
        )
        yield worker

    def watch(self) -> None:
        """Have the selector wait for what each worker's socket is waited for now."""
        for worker in self.everybody:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.orders.wants_to_send else 0)
            if worker.orders.sock in self._selector.get_map():
                self._selector.modify(worker.orders.sock, events, worker)

    def serves(self, worker: WorkerProcess) -> None:
        """Note that a worker accepts."""
        worker.serves()
        self.has_served = True

    # --- They go --------------------------------------------------------------------------------------

    def replace(self, worker: WorkerProcess) -> None:
        """Let a worker drain, and another take its seat."""
        for seat in self._seats:
            if seat.worker is worker:
                seat.worker = None
                self._leaving.append(worker)
                worker.send(Drain(None))

    def unhear(self, worker: WorkerProcess) -> None:
        """Let a worker go that says nothing more: nothing can be told to it any more, either."""
        self._selector.unregister(worker.orders.sock)
        worker.end()

    def bury(self, gone: Callable[[WorkerProcess], None]) -> None:
        """See who has died.

        Args:
            gone: told of those that others will follow.
        """
        for worker in self.everybody:
            status = worker.status()
            if status is not None:
                self._buried(worker, status, gone)

    def _buried(self, worker: WorkerProcess, status: int, gone: Callable[[WorkerProcess], None]) -> None:
        if worker.orders.sock in self._selector.get_map():
            self._selector.unregister(worker.orders.sock)
        worker.orders.close()
        self._table.clear(worker.number)
        self._tally.bury(worker.number)
        told = {
            "worker": worker.number,
            "pid": worker.pid,
            "status": status if status >= 0 else None,
            "signal": signal.Signals(-status).name if status < 0 else None,
        }
        seat = next((seat for seat in self._seats if seat.worker is worker), None)
        if seat is None:
            self._leaving.remove(worker)
        else:
            seat.vacate()
        is_failure = status not in {0, STATUS_CUT} and (worker.may_serve or not self.is_ending)
        if self.is_ending and worker.may_serve:
            self.status = max(self.status, STATUS_BUG if is_failure else status)
        if seat is not None and not self.is_ending:
            gone(worker)
            self._failed(seat, "worker_died", **told)
        elif is_failure:
            self._logger.error("worker_died", **told)

    def _failed(self, seat: Seat, event: str, **fields: object) -> None:
        """Say that a worker is missing, and when the next one starts."""
        self._logger.error(event, **fields, restart_in=seat.wait())
        if not self.has_served and seat.failures >= START_ATTEMPTS:
            self._logger.error("no_worker_starts", attempts=seat.failures)
            self.status = STATUS_BUG
            self.end()

    def cease(self) -> None:
        """Have them accept no more: others do."""
        self.is_ending = True
        for worker in self.everybody:
            if worker.may_serve:
                worker.send(Cease())

    def drain(self, seconds: float) -> None:
        """Have them end their sessions, and then themselves.

        Args:
            seconds: how long transactions may go on.
        """
        self.is_ending = True
        for worker in self.everybody:
            if worker.may_serve:
                worker.drain(seconds)
            else:
                worker.kill()  # it has nobody's session, and may take long to start

    def end(self) -> None:
        """Have them end at once."""
        self.is_ending = True
        for worker in self.everybody:
            if worker.may_serve:
                worker.end()
            else:
                worker.kill()

    def ping(self) -> None:
        """Ask those that serve whether they are alive, and end those by force that do not answer."""
        for worker in self.everybody:
            if time.monotonic() < worker.ping_at:
                continue
            worker.ping()
            if worker.hangs:
                self._logger.error("worker_hangs", worker=worker.number, pid=worker.pid)
                worker.kill()

    def kill_what_does_not_end(self) -> None:
        """End those by force whose time is over."""
        for worker in self.everybody:
            if time.monotonic() >= worker.end_by:
                worker.kill()

    def close(self) -> None:
        """End whoever is left by force, and free everything."""
        for worker in self.everybody:
            worker.kill()
            worker.wait()
            worker.orders.close()
        for sock in itertools.chain.from_iterable(self._mailboxes):
            sock.close()


def _mailbox() -> tuple[socket.socket, socket.socket]:
    """An inbox, and the way into it."""
    inbox, outbox = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return inbox, outbox
