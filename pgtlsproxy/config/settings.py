"""The whole configuration: listeners, backends, and what concerns the process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from pgtlsproxy.config.backend import Backend
from pgtlsproxy.config.listener import Listener
from pgtlsproxy.config.model import Model, Seconds, in_range, one_of
from pgtlsproxy.config.values import found, parse_time
from pgtlsproxy.errors import Mistake

LONGEST_TIMEOUT: Final = 600.0
"""Seconds; PostgreSQL's own end for authentication_timeout."""


def _one_worker(value: object) -> int:
    if value == 1 and not isinstance(value, bool):
        return 1
    raise ValueError(f"{found(value)} is not in this version: there is one worker, leave the key out")


def _no_interval(value: object) -> float:
    if parse_time(value) == 0:
        return 0.0
    raise ValueError(f"{found(value)} is not in this version: SIGHUP reloads; leave the key out, or write 0")


class Log(Model):
    """How events are written to stderr."""

    format: Annotated[Literal["json", "console"] | None, BeforeValidator(one_of("json", "console"))] = None
    """`json`, or `console` for people; None for console in a terminal and json elsewhere."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        BeforeValidator(one_of("debug", "info", "warning", "error")),
    ] = "info"
    """The least important events that are written."""


class Process(Model):
    """What concerns the process as a whole."""

    not_in_this_version: ClassVar[frozenset[str]] = frozenset(
        {
            "drain_delay",
            "drain_timeout",
            "max_connections_per_source",
            "max_connections_per_user",
            "max_pending",
            "max_handshakes",
            "reuse_port",
            "dns_cache",
            "status",
            "console",
        }
    )

    workers: Annotated[int, BeforeValidator(_one_worker)] = 1
    """Processes that serve clients."""

    reload_interval: Annotated[float, BeforeValidator(_no_interval)] = 0.0
    """How often files are looked at; 0 for only on SIGHUP."""

    authentication_timeout: Annotated[Seconds, AfterValidator(in_range(1, LONGEST_TIMEOUT))] = 60.0
    """Seconds from accept to ReadyForQuery; one deadline for both legs (postgresql.conf)."""

    startup_timeout: Annotated[Seconds, AfterValidator(in_range(0.1, LONGEST_TIMEOUT))] = 10.0
    """Seconds from accept to the StartupMessage, the TLS handshake within (ours)."""

    max_connections: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    """Clients that may be connected at once (postgresql.conf)."""

    cancel_rate: Annotated[int, Field(ge=0, le=1_000_000)] = 10
    """CancelRequests with unknown keys that are forwarded, a second and source; 0 for none (ours)."""

    log: Log = Log()
    """How events are written."""


class Settings(Process):
    """A configuration that can be used.

    Attributes:
        warnings: what can be used and should be looked at.
    """

    listeners: Mapping[str, Listener]
    backends: Mapping[str, Backend]
    warnings: tuple[Mistake, ...] = ()
