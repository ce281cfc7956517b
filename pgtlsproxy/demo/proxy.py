"""The proxy as its users run it: a process with a configuration file, followed by its log."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

import pgtlsproxy
from pgtlsproxy.demo.output import FollowedOutput, OutputEnded

Event = dict[str, Any]

_START_TIMEOUT = 30.0
_STOP_TIMEOUT = 15.0
_EVENT_TIMEOUT = 10.0
_TOLD = frozenset({"session_decided", "config_mistake", "config_warning", "reloaded", "reload_failed"})
_A_WEEK = 7 * 24 * 3600.0

# Becomes the proxy, and leaves a watcher behind that ends it when our end of the pipe closes: when we
# ask for it or die, even by SIGKILL.
_LAUNCHER = """
exec 3<&0 </dev/null
(read -r _ <&3; kill -TERM $$) >/dev/null 2>&1 &
exec 3<&-
exec "$@"
"""


class ProxyProcess:
    """`pgtlsproxy serve` in a process of its own. A context manager: entered, it is ready.

    Args:
        config: its configuration file, with `log: {format: json}`.
    """

    def __init__(self, config: Path) -> None:
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        serve = [sys.executable, "-m", "pgtlsproxy", "serve", "-c", str(self._config)]
        process = subprocess.Popen(
            ["/bin/sh", "-c", _LAUNCHER, "sh", *serve],
            cwd=Path(pgtlsproxy.__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in our terminal is ours to answer
        )
        self._process = process
        self._log = FollowedOutput(cast("IO[bytes]", process.stderr))
        try:
            self._wait_for(since=0, timeout=_START_TIMEOUT, event="ready")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Its process number, for signals."""
        return self._running.pid

    def port(self, listener: str) -> int:
        """The TCP port that the system chose for a listener."""
        address = self._wait_for(since=0, event="listening", listener=listener)["address"]
        return int(address.rpartition(":")[2])

    def decision(self, session: str) -> Event:
        """What the proxy decided of a session, by the id that it told the client.

        Raises:
            OutputEnded, TimeoutError: nothing.
        """
        return self._wait_for(since=0, event="session_decided", session=session)

    def reload(self) -> None:
        """SIGHUP; when this returns, new sessions live under the new files.

        Raises:
            OutputEnded, TimeoutError: they do not.
        """
        since = len(self._log.lines)
        self._running.send_signal(signal.SIGHUP)
        self._wait_for(since=since, event="reloaded")

    def told(self) -> Iterator[Event]:
        """What it decides and reloads from now on, as it happens. Ends when the proxy does."""
        seen = len(self._log.lines)
        while True:
            try:
                self._log.wait_for(lambda _line: True, since=seen, timeout=_A_WEEK)
            except TimeoutError:
                continue
            except OutputEnded:
                return
            lines = self._log.lines[seen:]
            seen += len(lines)
            yield from (event for line in lines if (event := _event(line)).get("event") in _TOLD)

    def stop(self) -> None:
        """End it, if it has not ended."""
        if self._process is None:
            return
        process, self._process = self._process, None
        cast("IO[bytes]", process.stdin).close()
        try:
            process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._log.wait_until_ended(_STOP_TIMEOUT)

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise OutputEnded("the proxy is not running")
        return self._process

    def _wait_for(self, *, since: int, timeout: float = _EVENT_TIMEOUT, **fields: object) -> Event:
        """The first event with these fields."""
        line = self._log.wait_for(
            lambda line: fields.items() <= _event(line).items(), since=since, timeout=timeout
        )
        return _event(line)


def _event(line: str) -> Event:
    try:
        event = json.loads(line)
    except ValueError:
        return {}  # a mistake of the configuration is told in plain words
    return event if isinstance(event, dict) else {}
