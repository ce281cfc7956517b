"""What systemd is told of us, and whoever else speaks its protocol: sd_notify(3).

Datagrams to the socket that NOTIFY_SOCKET names. Nothing here waits: what the socket has no room for is sent
a little later. Who is not asked to tell anybody anything does nothing.
"""

from __future__ import annotations

import enum
import math
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from structlog.typing import FilteringBoundLogger

from pgtlsproxy.identity import printable

STATUS_SECONDS: Final = 5.0
"""How often at most the line is renewed that `systemctl status` shows."""

RETRY_SECONDS: Final = 0.1
"""How soon it is tried again to send what the socket had no room for."""

MARGIN_SECONDS: Final = 20.0
"""How long the end may take behind what sessions are given."""

_LONGEST_PATH: Final = 107
"""Of a Unix socket (sockaddr_un)."""


class Phase(enum.Enum):
    """How far the proxy is."""

    STARTING = enum.auto()
    SERVING = enum.auto()
    RELOADING = enum.auto()
    STOPPING = enum.auto()


@dataclass(frozen=True, slots=True)
class Contact:
    """How the one that has started us is told something.

    Args:
        address: of its socket, as NOTIFY_SOCKET has it; empty where there is none.
        patience: seconds without a word from us after which it takes us for dead; infinite for ever.
    """

    address: str
    patience: float

    def environment(self) -> dict[str, str]:
        """The variables that say so, for a process that takes our place."""
        variables = {"NOTIFY_SOCKET": self.address} if self.address else {}
        if not math.isinf(self.patience):
            variables["WATCHDOG_USEC"] = str(int(self.patience * 1_000_000))
        return variables


def contact() -> Contact:
    """Read it, and take it out of the environment: no process that we start speaks in our name."""
    address, microseconds, pid = (
        os.environ.pop(key, "") for key in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
    )
    # As sd_watchdog_enabled(3): another process may be meant.
    is_meant = microseconds.isascii() and microseconds.isdigit() and pid in {"", str(os.getpid())}
    return Contact(address, (int(microseconds) / 1_000_000 if is_meant else 0) or math.inf)


class ServiceManager:
    """The one that has started us.

    Args:
        contact: how it is told something.
        describe: makes the line that `systemctl status` shows.
        logger: told when it cannot be told anything.
    """

    def __init__(self, contact: Contact, describe: Callable[[], str], logger: FilteringBoundLogger) -> None:
        self._describe = describe
        self._logger = logger
        self._sock: socket.socket | None = None
        self._interval = contact.patience / 2
        self._phase = Phase.STARTING
        self._unsent: deque[bytes] = deque()
        self._shown = ""
        self._show_at = math.inf
        self._alive_at = math.inf
        self._is_unheard = False
        address = contact.address
        if not address:
            return
        if address[0] not in "/@" or len(os.fsencode(address)) > _LONGEST_PATH:
            logger.warning("service_manager_not_told", reason=f"NOTIFY_SOCKET is {printable(address)}")
            return
        self._address = "\0" + address[1:] if address[0] == "@" else address
        self._sock = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        self._show_at = 0.0
        self._alive_at = math.inf if math.isinf(self._interval) else 0.0

    @property
    def due(self) -> float:
        """`time.monotonic()` when `tend` has something to do, whether or not there is news."""
        if self._unsent:  # nothing else is said before
            return time.monotonic() + RETRY_SECONDS
        return min(self._show_at, self._alive_at)

    def asked_to_reload(self) -> None:
        """Say that a reload begins or that, behind the one under way, another does.

        The manager waits for a reload that is told to begin later than when it asked for it.
        """
        if self._phase in {Phase.SERVING, Phase.RELOADING}:
            self._phase = Phase.RELOADING
            self._say(*_reloading())

    def tend(self, phase: Phase, end_seconds: float, *, is_well: bool) -> None:
        """Say what is new. Never waits.

        Args:
            phase: how far we are.
            end_seconds: how long sessions may take to end.
            is_well: whether every worker answers.
        """
        if self._sock is None:
            return
        if phase is not self._phase:
            self._phase = phase
            match phase:
                case Phase.SERVING:
                    self._say("READY=1")
                case Phase.RELOADING:
                    self._say(*_reloading())
                case Phase.STOPPING:
                    # However short TimeoutStopSec= is, transactions have the time that they are given.
                    microseconds = int((end_seconds + MARGIN_SECONDS) * 1_000_000)
                    self._say("STOPPING=1", f"EXTEND_TIMEOUT_USEC={microseconds}")
        now = time.monotonic()
        if now >= self._alive_at and not self._unsent:
            self._alive_at = now + (self._interval if is_well else min(self._interval, 1.0))
            if is_well:
                self._send("WATCHDOG=1")
        if now >= self._show_at and not self._unsent:
            self._show_at = now + STATUS_SECONDS
            status = self._describe()
            if status != self._shown:
                self._shown = status
                self._send(f"STATUS={status}")
        self._flush()

    def hand_over(self, pid: int) -> bool:
        """Say that another process is the main one now, and no more; waits for a second at most.

        Returns:
            Whether it was heard. Where not, we still are.
        """
        if self._sock is None:
            return True
        self._sock.settimeout(1.0)
        try:
            self._sock.sendto(f"MAINPID={pid}".encode(), self._address)
        except OSError:
            self._sock.setblocking(False)
            return False
        self._unsent.clear()
        self.close()
        return True

    def close(self) -> None:
        """Say no more."""
        if self._sock is not None:
            self._flush()
            self._sock.close()
            self._sock = None
        self._show_at = self._alive_at = math.inf
        self._unsent.clear()

    def _say(self, *assignments: str) -> None:
        self._shown = self._describe()
        self._send(*assignments, f"STATUS={self._shown}")

    def _send(self, *assignments: str) -> None:
        self._unsent.append("\n".join(assignments).encode())
        self._flush()

    def _flush(self) -> None:
        while self._unsent and self._sock is not None:
            try:
                self._sock.sendto(self._unsent[0], self._address)
            except BlockingIOError:
                return
            except OSError as error:
                if not self._is_unheard:
                    self._logger.warning("service_manager_not_told", reason=error.strerror)
                self._is_unheard = True
                self._unsent.clear()
                return
            self._is_unheard = False
            self._unsent.popleft()


def _reloading() -> tuple[str, str]:
    return "RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"
