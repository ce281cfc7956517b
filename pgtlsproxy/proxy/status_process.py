"""The process that serves metrics, as its supervisor sees it.

It is a process of its own, so that what strangers send to it is read by nobody who has keys or sessions: it
is given figures, a view of the tally, and its own certificate. Whatever becomes of it, sessions go on.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Final

from structlog.typing import FilteringBoundLogger

from pgtlsproxy import __version__
from pgtlsproxy.config import Settings, Status
from pgtlsproxy.errors import ConfigError, Mistake
from pgtlsproxy.observability.figures import Service
from pgtlsproxy.proxy.channel import ChannelEnded, Orders, pack
from pgtlsproxy.proxy.files import SnapshotFiles
from pgtlsproxy.proxy.orders import Descriptor, FileSet, Logging
from pgtlsproxy.proxy.sockets import STATUS_NAME, Heirlooms, ListeningSocket, listen_tcp
from pgtlsproxy.proxy.status_orders import StatusNews, StatusPing, StatusWelcome
from pgtlsproxy.proxy.tally import Tally
from pgtlsproxy.proxy.unix_sockets import BindError
from pgtlsproxy.proxy.worker_process import start_process

RETRY_SECONDS: Final = 1.0
"""How long its place stays empty when it dies."""

FLUSH_SECONDS: Final = 0.1
"""How soon it is tried again to tell it what its socket had no room for."""

PING_SECONDS: Final = 10.0
"""How often it is asked whether it lives; where it has not answered by the next time, it is replaced."""

START_SECONDS: Final = 60.0
"""How long it may take to answer for the first time."""


class StatusProcess:
    """Listens at the start, and keeps a process serving; where there is no `status:`, does nothing.

    Args:
        files: what the configuration's files say.
        settings: what the configuration file says.
        lock: what keeps the lines of the log apart.
        tally: where sessions are counted.
        logger: where events go.

    Attributes:
        due: `time.monotonic()` when `tend` has something to do, whether or not there is news.
    """

    def __init__(
        self,
        files: SnapshotFiles,
        settings: Settings,
        lock: Descriptor,
        tally: Tally,
        logger: FilteringBoundLogger,
    ) -> None:
        self._path = files.path
        self._settings = settings
        self._status = settings.status
        self._lock = lock
        self._tally = tally
        self._logger = logger
        self._started_at = time.time()
        self._listening: list[ListeningSocket] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._orders: Orders | None = None
        self._told: Service | None = None
        self._sets_told: tuple[FileSet, ...] = ()
        self._own: tuple[tuple[Status, SnapshotFiles], ...] = ()
        self._ping_at, self._may_owe_until, self._is_owed = 0.0, 0.0, False
        self._readable: int | None = None
        self.due = math.inf

    @property
    def listening(self) -> list[ListeningSocket]:
        """What it listens on."""
        return self._listening

    def open(self, passed: list[ListeningSocket], heirlooms: Heirlooms) -> None:
        """Listen.

        Args:
            passed: sockets that take the place of the configuration's address.
            heirlooms: sockets that are taken where the address is the same.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        if self._status is None:
            return
        try:
            self._listening = passed or listen_tcp(
                self._status.listen, STATUS_NAME, heirlooms, is_shared=self._settings.reuse_port
            )
        except BindError as error:
            raise ConfigError([Mistake(f"{self._path}: status.listen", str(error))]) from None
        for opened in self._listening:
            self._logger.info("status_listening", address=opened.shown)
        self.due = 0.0

    def tend(self, service: Service, sets: tuple[FileSet, ...]) -> None:
        """Tell it what is new, and replace it where it is gone or does not answer. Never waits.

        Args:
            service: what is in service.
            sets: what that was made of.
        """
        now = time.monotonic()
        if self._process is not None and self._process.poll() is not None:
            self._logger.error("status_process_died", status=self._process.returncode)
            self._forget()
            self.due = now + RETRY_SECONDS
        if self._process is None and now >= self.due:
            self._start()
        if self._orders is None or self._status is None:
            return
        if service != self._told or sets is not self._sets_told:
            self._tell(self._orders, self._status, service, sets)
        self._ping(self._orders, self._process, now)
        self._orders.flush()
        self.due = min(self._ping_at, now + FLUSH_SECONDS if self._orders.wants_to_send else math.inf)

    def _ping(self, orders: Orders, process: subprocess.Popen[bytes] | None, now: float) -> None:
        """Have it answer every now and then, and end it where it does not."""
        with contextlib.suppress(ChannelEnded):  # then it has died, or answers no more
            if orders.receive():
                self._is_owed, self._may_owe_until = False, 0.0
        if now < self._ping_at or process is None:
            return
        self._ping_at = now + PING_SECONDS
        if not self._is_owed:
            self._is_owed = True
            orders.send(pack(StatusPing()))
        elif now >= self._may_owe_until:
            self._ping_at = math.inf
            self._logger.error("status_process_hangs")
            process.kill()

    def close(self) -> None:
        """End it, and listen no more."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._forget()
        if self._readable is not None:
            os.close(self._readable)
            self._readable = None
        for opened in self._listening:
            opened.close()
        self._listening = []
        self.due = math.inf

    def _start(self) -> None:
        with ExitStack() as stack:
            try:
                self._readable = self._tally.open_to_read() if self._readable is None else self._readable
                ours, theirs = socket.socketpair()
                stack.enter_context(theirs)
                stack.callback(ours.close)
                arguments = ("status_page", "--control", str(theirs.fileno()), "--parent", str(os.getpid()))
                self._process = start_process(arguments, theirs.fileno())
            except OSError as error:
                self._logger.error("status_process_not_started", reason=error.strerror)
                self.due = time.monotonic() + RETRY_SECONDS
                return
            stack.pop_all()
            theirs.close()
        self._orders = Orders(ours)
        welcome = StatusWelcome(
            __version__,
            self._started_at,
            Logging(self._settings.log, self._lock),
            self._tally.rows,
            Descriptor(self._readable),
            self._tally.listeners,
            tuple(opened.sock for opened in self._listening),
        )
        self._orders.send(pack(welcome))
        self._ping_at, self._may_owe_until, self._is_owed = 0.0, time.monotonic() + START_SECONDS, False

    def _tell(self, orders: Orders, status: Status, service: Service, sets: tuple[FileSet, ...]) -> None:
        own = None
        if sets is not self._sets_told:
            # Where the newest YAML has no `status:`, what there was stays until the next start.
            self._own = own = tuple(_own(sets)) or self._own
            self._status = status = own[-1][0] if own else status
        orders.send(pack(StatusNews(service, status, own)))
        self._told, self._sets_told = service, sets

    def _forget(self) -> None:
        if self._orders is not None:
            self._orders.close()
        self._process = self._orders = self._told = None
        self._sets_told = ()


def _own(sets: Iterable[FileSet]) -> Iterator[tuple[Status, SnapshotFiles]]:
    """The settings of metrics and the files that they name, of each file set that has some."""
    status: Status | None = None
    for each in sets:
        if each.files.settings is not None:
            status = each.files.settings.status
        if status is None:
            continue
        own = own_files(each.files, status)
        if own.plain.keys() | own.keys.keys() == _named(status):  # else it was read under other settings
            yield status, own


def own_files(files: SnapshotFiles, status: Status) -> SnapshotFiles:
    """Those of the files that the settings of metrics name: no other process's keys.

    Args:
        files: all of them.
        status: the settings.
    """
    named = _named(status)
    plain = {path: content for path, content in files.plain.items() if path in named}
    keys = {path: content for path, content in files.keys.items() if path in named}
    return SnapshotFiles(files.path, None, (), plain, keys, {}, {}, None, {})


def _named(status: Status) -> set[str]:
    paths = status.ssl_cert_file, status.ssl_ca_file, status.ssl_key_file
    return {path for path in paths if path is not None}
