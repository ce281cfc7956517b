"""A worker as its supervisor sees it: a process, and the socket pair to it."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Final

from pgtlsproxy.proxy.channel import Orders, Packed, pack
from pgtlsproxy.proxy.orders import Drain, Order, Ping
from pgtlsproxy.proxy.relay_ending import FAREWELL_SECONDS

END_SECONDS: Final = 10.0
"""How long a worker may take to end that is told to, behind what its sessions may take."""

PING_SECONDS: Final = 5.0
"""How often a worker that serves is asked whether it is alive."""

MAX_UNANSWERED: Final = 6
"""After so many times it is taken for hung. Times count, and not seconds: where we were stopped, too, as by
a container that was paused, it has not had the time."""

_SUPERVISORS_SIGNALS: Final = {signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR2}


class WorkerProcess:
    """A process that was started by exec, with one end of a socket pair.

    Args:
        number: of the worker, from 1.

    Attributes:
        may_serve: whether it was told to accept.
        served_since: `time.monotonic()` when it said that it does; None before.
        end_by: `time.monotonic()` until which it must have ended; infinite while nobody has told it to.
        ping_at: `time.monotonic()` when it is to be asked whether it is alive; infinite before it serves.

    Raises:
        OSError: the system grants no more processes or descriptors.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.may_serve = False
        self.served_since: float | None = None
        self.end_by = math.inf
        self.ping_at = math.inf
        self._unanswered = 0
        self._is_ending = False
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                arguments = ("worker", "--control", str(theirs.fileno()), "--supervisor", str(os.getpid()))
                self._process = start_process(arguments, theirs.fileno())
            except BaseException:
                ours.close()
                raise
        self.orders = Orders(ours)

    @property
    def pid(self) -> int:
        """Its process number."""
        return self._process.pid

    def send(self, order: Order | Packed) -> None:
        """Tell it what to do."""
        self.orders.send(order if isinstance(order, Packed) else pack(order))

    def status(self) -> int | None:
        """Its exit status, or minus the signal that ended it; None while it lives."""
        return self._process.poll()

    def serves(self) -> None:
        """Note that it accepts, and is expected to answer from now on."""
        self.served_since = time.monotonic()
        self.ping_at = self.served_since + PING_SECONDS

    @property
    def hangs(self) -> bool:
        """Whether it has not answered for too long."""
        return self._unanswered >= MAX_UNANSWERED

    def ping(self) -> None:
        """Ask whether it is alive, unless it owes an answer."""
        self.ping_at = time.monotonic() + PING_SECONDS
        if self._unanswered == 0:
            self.send(Ping())
        self._unanswered += 1

    def is_alive(self) -> None:
        """Note that it has answered."""
        self._unanswered = 0

    def drain(self, seconds: float) -> None:
        """Tell it to end its sessions, and then itself.

        Args:
            seconds: how long transactions may go on.
        """
        self.send(Drain(seconds))
        self.end_by = time.monotonic() + seconds + FAREWELL_SECONDS + END_SECONDS

    def end(self) -> None:
        """Tell it to end at once, if nobody has."""
        if not self._is_ending:
            self._is_ending = True
            self.ping_at = math.inf  # it would not hear
            self.end_by = time.monotonic() + END_SECONDS
            self.orders.end()

    def kill(self) -> None:
        """End it."""
        self._process.kill()

    def wait(self) -> None:
        """Wait until it is gone."""
        self._process.wait()


def start_process(arguments: Sequence[str], control: int) -> subprocess.Popen[bytes]:
    """Start this program once more, by exec.

    Args:
        arguments: what it is to do.
        control: a descriptor that it inherits.

    Raises:
        OSError: the system grants no more processes.
    """
    # Ctrl-C and the end of a terminal are told to every process in it, SIGTERM to all of a systemd unit. The
    # supervisor answers them; in a worker they stay blocked, from before exec on.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SUPERVISORS_SIGNALS)
    try:
        return subprocess.Popen(
            [*_own_command(), *arguments],
            stdin=subprocess.DEVNULL,
            pass_fds=[control],
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def start_successor(environment: Mapping[str, str], control: int) -> subprocess.Popen[bytes]:
    """Start this program anew, as it was started, from what is installed now.

    Args:
        environment: its variables.
        control: a descriptor that it inherits.

    Raises:
        OSError: the system grants no more processes.
    """
    # Signals that a supervisor takes for orders would end it before it listens to them.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGUSR2})
    try:
        return subprocess.Popen(
            [*_own_command(), *sys.argv[1:]],
            stdin=subprocess.DEVNULL,
            env=dict(environment),
            pass_fds=[control],
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _own_command() -> list[str]:
    """How this program was started, without its arguments: interpreter, its options, what it runs."""
    arguments = len(sys.argv) - 1
    before = sys.orig_argv[1 : len(sys.orig_argv) - arguments]
    if arguments and sys.orig_argv[-arguments:] == sys.argv[1:]:
        return [sys.executable, *before]
    return [sys.executable, "-m", "pgtlsproxy"]
