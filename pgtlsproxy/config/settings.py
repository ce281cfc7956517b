"""The whole configuration, as the rest of the proxy knows it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, SkipValidation, model_validator

from pgtlsproxy.config.backend import Backend
from pgtlsproxy.config.listener import Listener
from pgtlsproxy.config.model import CommaList, FilePath, Model, Seconds, in_range, one_of, whole_number
from pgtlsproxy.config.values import BadValue, TCPAddress, found, parse_listen_address, parse_time
from pgtlsproxy.errors import Mistake

MAX_CONNECTIONS: Final = 0x3FFFF
"""PostgreSQL's own limit (MAX_BACKENDS, src/include/postmaster/postmaster.h)."""

MIN_PENDING: Final = 16
"""Where max_connections is small, so many may still be on their way in at once."""

MAX_HANDSHAKES: Final = 1000

MAX_CANCEL_RATE: Final = 1_000_000


MAX_WORKERS: Final = 64

MIN_RELOAD_INTERVAL: Final = 0.1
MAX_RELOAD_INTERVAL: Final = 86_400.0

_HOST_NAME: Final = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")


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


def _status_address(value: object) -> TCPAddress:
    address = parse_listen_address(value)
    if not isinstance(address, TCPAddress):
        raise BadValue(f'found {found(value)}, expected a TCP address, as in "127.0.0.1:9643"')
    return address


def _host_name(value: object) -> str:
    if not isinstance(value, str) or _HOST_NAME.fullmatch(value) is None:
        raise BadValue(f"found {found(value)}, expected a host name without a port, as in proxy.example.com")
    return value.lower()


class Status(Model):
    """Metrics and probes over HTTP. Ours, but for the names that begin with ssl_."""

    listen: Annotated[TCPAddress, BeforeValidator(_status_address)]
    """The address. Beyond loopback only `/metrics`, `/livez` and `/readyz` are served, unless ssl_ca_file is
    given."""

    hosts: Annotated[tuple[Annotated[str, BeforeValidator(_host_name)], ...], CommaList] = ()
    """Names that a request may call the proxy, besides localhost and numeric addresses."""

    ssl_cert_file: FilePath | None = None
    """PEM: the certificate, and behind it the intermediates that issued it; None for HTTP in clear."""

    ssl_key_file: FilePath | None = None
    """PEM: its private key."""

    ssl_ca_file: FilePath | None = None
    """PEM: whose certificates may see everything; others see what everybody may."""

    quitquitquit: bool = False
    """Whether `POST /quitquitquit` from loopback ends the proxy as SIGTERM does."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.ssl_cert_file is None) != (self.ssl_key_file is None):
            missing = "ssl_cert_file" if self.ssl_cert_file is None else "ssl_key_file"
            raise BadValue(f"{missing} is missing: TLS needs a certificate and its key")
        if self.ssl_ca_file is not None and self.ssl_cert_file is None:
            raise BadValue("ssl_ca_file would have no effect without ssl_cert_file and ssl_key_file")
        return self


class General(Model):
    """What is neither a listener's nor a backend's."""

    not_in_this_version: ClassVar[frozenset[str]] = frozenset(
        {
            "console",
            "dns_cache",
        }
    )

    include: Annotated[tuple[FilePath, ...], CommaList] = ()
    """Files with more listeners and backends; `*`, `?` and [] in the last part. Ours, as PostgreSQL's."""

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

    max_connections_per_source: Annotated[int, BeforeValidator(whole_number(0, MAX_CONNECTIONS))] = 0
    """Sessions at once from an IPv4 address, an IPv6 /64, or a uid at Unix sockets; 0 for no limit. Ours."""

    max_connections_per_user: Annotated[int, BeforeValidator(whole_number(0, MAX_CONNECTIONS))] = 0
    """Sessions at once of one user at one listener: who was proved, by a certificate's name, an operating
    system user or a role; 0 for no limit. Ours."""

    max_pending: Annotated[int | None, BeforeValidator(whole_number(1, MAX_CONNECTIONS))] = None
    """Connections at once whose client nobody has proved yet; one more, and the oldest goes. None for a
    quarter of max_connections, and MIN_PENDING at least. Ours."""

    max_handshakes: Annotated[int, BeforeValidator(whole_number(1, MAX_HANDSHAKES))] = 4
    """TLS handshakes with clients that a worker begins before everything else has a turn. Ours."""

    cancel_rate: Annotated[int, BeforeValidator(whole_number(0, MAX_CANCEL_RATE))] = 10
    """CancelRequests with a key that no session here has, a second and source; 0 for no limit. Ours."""

    reuse_port: bool = False
    """Whether other instances of the same user that say so, too, may listen on the same addresses. Ours."""

    status: Status | None = None
    """Metrics and probes over HTTP; None for none. Ours."""

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
