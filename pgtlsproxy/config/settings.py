"""The whole configuration, as the rest of the proxy knows it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, BeforeValidator, SkipValidation

from pgtlsproxy.config.backend import Backend
from pgtlsproxy.config.listener import Listener
from pgtlsproxy.config.model import Model, Seconds, in_range, one_of, whole_number
from pgtlsproxy.config.values import BadValue, found, parse_time
from pgtlsproxy.errors import Mistake

MAX_CONNECTIONS: Final = 0x3FFFF
"""PostgreSQL's own limit (MAX_BACKENDS, src/include/postmaster/postmaster.h)."""

MIN_PENDING: Final = 16
"""Where max_connections is small, so many may still be on their way in at once."""

MAX_CANCEL_RATE: Final = 1_000_000


MAX_WORKERS: Final = 64

MIN_RELOAD_INTERVAL: Final = 0.1
MAX_RELOAD_INTERVAL: Final = 86_400.0


def _workers(value: object) -> int:
    if value == "auto":
        return min(_cores(), MAX_WORKERS)
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_WORKERS:
        return value
    raise BadValue(f"found {found(value)}, expected auto or a whole number from 1 to {MAX_WORKERS}")


def _cores() -> int:
    """The cores that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # `check` runs elsewhere too
        return os.cpu_count() or 1


def _interval(value: object) -> float:
    seconds = parse_time(value)
    if seconds and not MIN_RELOAD_INTERVAL <= seconds <= MAX_RELOAD_INTERVAL:
        raise BadValue(
            f"{seconds:g} s is out of range: 0 to reload on SIGHUP alone, or from {MIN_RELOAD_INTERVAL:g} s "
            f"to {MAX_RELOAD_INTERVAL:g} s"
        )
    return seconds


class Log(Model):
    """What the log looks like; it always goes to stderr. Ours."""

    format: Annotated[Literal["json", "console"] | None, BeforeValidator(one_of("json", "console"))] = None
    """One JSON object a line, or text for people; None for the console in a terminal, JSON elsewhere."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        BeforeValidator(one_of("debug", "info", "warning", "error")),
    ] = "info"
    """What is less grave is left out."""


class General(Model):
    """What is neither a listener's nor a backend's."""

    not_in_this_version: ClassVar[frozenset[str]] = frozenset(
        {
            "max_connections_per_source",
            "max_connections_per_user",
            "max_handshakes",
            "status",
            "console",
            "reuse_port",
            "dns_cache",
        }
    )

    workers: Annotated[int, BeforeValidator(_workers)] = 1
    """Processes that serve sessions, each on one core; `auto` is one for each core. Ours."""

    reload_interval: Annotated[float, BeforeValidator(_interval)] = 10.0
    """Seconds between looks at the files; 0 to reload on SIGHUP alone. Ours."""

    drain_delay: Annotated[Seconds, AfterValidator(in_range(0, 3600))] = 0.0
    """Seconds for which connections are still accepted behind SIGTERM. Ours."""

    drain_timeout: Annotated[Seconds, AfterValidator(in_range(0, 86_400))] = 30.0
    """Seconds that transactions may go on for behind that. Ours."""

    authentication_timeout: Annotated[Seconds, AfterValidator(in_range(1, 600))] = 60.0
    """Seconds from accept to the backend's ReadyForQuery. postgresql.conf's, with its range."""

    startup_timeout: Annotated[Seconds, AfterValidator(in_range(0.1, 600))] = 10.0
    """Seconds from accept to the StartupMessage, TLS handshake included. Ours."""

    max_connections: Annotated[int, BeforeValidator(whole_number(1, MAX_CONNECTIONS))] = 1000
    """Sessions at once, over all listeners. postgresql.conf's name."""

    max_pending: Annotated[int | None, BeforeValidator(whole_number(1, MAX_CONNECTIONS))] = None
    """Connections at once whose client nobody has proved yet; one more, and the oldest goes. None for a
    quarter of max_connections, and MIN_PENDING at least. Ours."""

    cancel_rate: Annotated[int, BeforeValidator(whole_number(0, MAX_CANCEL_RATE))] = 10
    """CancelRequests with a key that no session here has, a second and source; 0 for no limit. Ours."""

    log: Log = Log()
    """What the log looks like."""

    @property
    def pending_limit(self) -> int:
        """How many connections may be open at once whose client nobody has proved yet."""
        if self.max_pending is not None:
            return self.max_pending
        return max(MIN_PENDING, self.max_connections // 4)


class Settings(General):
    """The whole configuration. Only `load_settings` makes one.

    Args:
        listeners: by name.
        backends: by name; every listener's is among them.
        warnings: what works and deserves a look.
    """

    listeners: SkipValidation[Mapping[str, Listener]]
    backends: SkipValidation[Mapping[str, Backend]]
    warnings: SkipValidation[tuple[Mistake, ...]] = ()
