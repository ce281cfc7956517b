"""The process that serves metrics, as its supervisor sees it.

It is a process of its own, so that what strangers send to it is read by nobody who has keys or sessions: it
is given figures, a view of the tally, and its own certificate. Whatever becomes of it, sessions go on.
"""

from __future__ import annotations

import math
import os
import socket
import subprocess
import time
from contextlib import ExitStack
from typing import Final

from structlog.typing import FilteringBoundLogger

from pgtlsproxy import __version__
from pgtlsproxy.config import Settings, Status
from pgtlsproxy.errors import ConfigError, Mistake
from pgtlsproxy.observability.figures import Service
from pgtlsproxy.proxy.channel import Descriptor, Orders, pack
from pgtlsproxy.proxy.files import SnapshotFiles
from pgtlsproxy.proxy.shared_table import SharedTable
from pgtlsproxy.proxy.sockets import ListeningSocket, listen_tcp
from pgtlsproxy.proxy.status_orders import StatusNews, StatusWelcome
from pgtlsproxy.proxy.tally import Tally
from pgtlsproxy.proxy.unix_sockets import BindError
from pgtlsproxy.proxy.worker_process import start_process

RETRY_SECONDS: Final = 1.0
"""How long its place stays empty when it dies."""

FLUSH_SECONDS: Final = 0.1
"""How soon it is tried again to tell it what its socket had no room for."""

HEARS_WITHIN_SECONDS: Final = 10.0
"""How long it may take to hear what it is told. Then it is replaced."""


class StatusProcess:
    """Listens at the start, and keeps a process serving; where there is no `status:`, does nothing.

    Args:
        files: what the configuration's files say.
        settings: what the configuration file says.
        table: whose descriptor keeps the lines of the log apart.
        tally: where sessions are counted.
        logger: where events go.

    Attributes:
        due: `time.monotonic()` when `tend` has something to do, whether or not there is news.
    """

    def __init__(
        self,
        files: SnapshotFiles,
        settings: Settings,
        table: SharedTable,
        tally: Tally,
        logger: FilteringBoundLogger,
    ) -> None:
        self._path = files.path
        self._settings = settings
        self._status = settings.status
        self._table = table
        self._tally = tally
        self._logger = logger
        self._started_at = time.time()
        self._listening: list[ListeningSocket] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._orders: Orders | None = None
        self._told: Service | None = None
        self._files_told: SnapshotFiles | None = None
        self._own: SnapshotFiles | None = None
        self._deaf_since = math.inf
        self.due = math.inf

    def open(self, passed: list[ListeningSocket]) -> None:
        """Listen.

        Args:
            passed: sockets that take the place of the configuration's address.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        if self._status is None:
            return
        try:
            self._listening = passed or listen_tcp(self._status.listen, is_shared=self._settings.reuse_port)
        except BindError as error:
            raise ConfigError([Mistake(f"{self._path}: status.listen", str(error))]) from None
        for opened in self._listening:
            self._logger.info("status_listening", address=opened.shown)
        self.due = 0.0

    def tend(self, service: Service, files: SnapshotFiles) -> None:
        """Tell it what is new, and replace it where it is gone. Never waits.

        Args:
            service: what is in service.
            files: what they said last.
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
        if service != self._told or files is not self._files_told:
            self._tell(self._orders, self._status, service, files)
        self._orders.flush()
        self.due = math.inf
        if not self._orders.wants_to_send:
            self._deaf_since = math.inf
            return
        self._deaf_since = min(self._deaf_since, now)
        self.due = now + FLUSH_SECONDS
        if now - self._deaf_since > HEARS_WITHIN_SECONDS and self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """End it, and listen no more."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._forget()
        for opened in self._listening:
            opened.close()

    def _start(self) -> None:
        with ExitStack() as stack:
            try:
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
            self._settings.log,
            Descriptor(self._table.descriptor),
            self._table.slots,
            Descriptor(self._tally.descriptor),
            self._tally.listeners,
            tuple(opened.sock for opened in self._listening),
        )
        self._orders.send(pack(welcome))

    def _tell(self, orders: Orders, status: Status, service: Service, files: SnapshotFiles) -> None:
        # What a broken YAML, or one without `status:`, does not name was not read either.
        if files.settings is not None and files.settings.status is not None:
            self._status = status = files.settings.status
            self._own = own_files(files, status)
        own = None if files is self._files_told else self._own
        orders.send(pack(StatusNews(service, status, own)))
        self._told, self._files_told = service, files

    def _forget(self) -> None:
        if self._orders is not None:
            self._orders.close()
        self._process = self._orders = self._told = self._files_told = None
        self._deaf_since = math.inf


def own_files(files: SnapshotFiles, status: Status) -> SnapshotFiles:
    """Those of the files that the settings of metrics name: no other process's keys.

    Args:
        files: all of them.
        status: the settings.
    """
    named = (status.ssl_cert_file, status.ssl_ca_file, status.ssl_key_file)
    plain = {path: content for path, content in files.plain.items() if path in named}
    keys = {path: content for path, content in files.keys.items() if path in named}
    return SnapshotFiles(files.path, None, (), plain, keys, {}, {}, None, {})
