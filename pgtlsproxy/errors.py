"""Every failure the proxy understands: its kind, its SQLSTATE and what may be said of it.

A `ProxyError` has two texts. `reason` is for the log and may name files, rules and
certificates. `reply` goes to a stranger and is therefore a constant, or PostgreSQL's own
wording. Whatever is not a `ProxyError` is a bug of ours: XX000, a constant reply, and a
traceback in the log.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar


class ErrorKind(enum.StrEnum):
    """Why a session ended or never began. A closed set: it becomes a metric label."""

    PROBE = "probe"
    CLIENT_PROTOCOL = "client_protocol"
    CLIENT_TLS = "client_tls"
    CLIENT_CERTIFICATE = "client_certificate"
    TLS_ABUSE = "tls_abuse"
    DENIED = "denied"
    UNPROVEN = "unproven"
    CHANNEL_BINDING = "channel_binding"
    BACKEND_UNREACHABLE = "backend_unreachable"
    BACKEND_TLS = "backend_tls"
    BACKEND_PROTOCOL = "backend_protocol"
    BACKEND_REFUSED = "backend_refused"
    LIMIT = "limit"
    TIMEOUT = "timeout"
    CLIENT_LOST = "client_lost"
    BACKEND_LOST = "backend_lost"
    SHUTDOWN = "shutdown"
    BUG = "bug"


class ProxyError(Exception):
    """A failure we understand.

    Args:
        reason: what happened, for the log; text from outside is already printable.
        reply: what the client is told instead of the class's constant text.

    Attributes:
        kind: the metric label.
        sqlstate: five characters, or None where the peer must not or cannot be answered.
    """

    kind: ClassVar[ErrorKind] = ErrorKind.BUG
    sqlstate: str | None = None
    reply: str = "connection failed"

    def __init__(self, reason: str, *, reply: str | None = None, sqlstate: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        if reply is not None:
            self.reply = reply
        if sqlstate is not None:
            self.sqlstate = sqlstate


class ProtocolViolation(ProxyError):
    """The client broke the protocol. `reply` is what PostgreSQL would send."""

    kind = ErrorKind.CLIENT_PROTOCOL
    sqlstate: str | None = "08P01"
    reply = "protocol violation"


class ProxyHeaderRefused(ProxyError):
    """Where a PROXY header must come, something else did; no client speaks there, and nothing is said."""

    kind = ErrorKind.CLIENT_PROTOCOL


class ClientGone(ProxyError):
    """The client closed before it was let in, as pg_isready and port scanners do. Not a fault."""

    kind = ErrorKind.PROBE


class ClientTLSFailed(ProxyError):
    """The handshake with the client failed; there is nobody to whom an answer could go."""

    kind = ErrorKind.CLIENT_TLS


class ClientCertificateRefused(ClientTLSFailed):
    """The client offered a certificate that does not verify, or whose names cannot be read."""

    kind = ErrorKind.CLIENT_CERTIFICATE


class TLSAbuse(ProxyError):
    """A peer made OpenSSL work without sending data."""

    kind = ErrorKind.TLS_ABUSE


class AccessDenied(ProxyError):
    """pg_hba.conf, pg_ident.conf or a rule above them said no."""

    kind = ErrorKind.DENIED
    sqlstate = "28000"
    reply = "access denied"


class Unproven(ProxyError):
    """The backend let somebody in whom neither it nor the proxy had proved."""

    kind = ErrorKind.UNPROVEN
    sqlstate = "28000"
    reply = "authentication failed"


class ChannelBindingImpossible(ProxyError):
    """SCRAM would bind to the proxy's certificate and the backend would refuse it."""

    kind = ErrorKind.CHANNEL_BINDING
    sqlstate = "28000"
    reply = (
        "SCRAM channel binding cannot pass through this proxy: it ends TLS. Connect with "
        "channel_binding=disable, or with a client certificate, or ask the administrator "
        "for a listener that knows SCRAM secrets"
    )


class BackendUnavailable(ProxyError):
    """The backend cannot be had. 57P03, so that libpq does not fall back to clear text."""

    kind = ErrorKind.BACKEND_UNREACHABLE
    sqlstate = "57P03"
    reply = "the database system is not available"


class BackendTLSFailed(BackendUnavailable):
    """The backend refused TLS, or its certificate or name does not verify."""

    kind = ErrorKind.BACKEND_TLS


class BackendMisbehaved(BackendUnavailable):
    """The backend broke the protocol or asked for what the policy does not allow it to ask."""

    kind = ErrorKind.BACKEND_PROTOCOL


class TooManyConnections(ProxyError):
    """No session is left."""

    kind = ErrorKind.LIMIT
    sqlstate = "53300"
    reply = "sorry, too many clients already"


class Displaced(ProxyError):
    """Nobody had proved the client, and others came; nothing is said, so that its place is free at once."""

    kind = ErrorKind.LIMIT


class DeadlineMissed(ProxyError):
    """Silent, as PostgreSQL's authentication_timeout is."""

    kind = ErrorKind.TIMEOUT


class IdleSession(ProxyError):
    """The client has asked nothing for longer than it may."""

    kind = ErrorKind.TIMEOUT
    sqlstate = "57P05"
    reply = "terminating connection due to idle-session timeout"


class ShuttingDown(ProxyError):
    """The proxy ends, or what the client came to is gone."""

    kind = ErrorKind.SHUTDOWN
    sqlstate = "57P01"
    reply = "terminating connection due to administrator command"


class InternalError(ProxyError):
    """A bug of ours, as the client hears of it. The traceback is in the log."""

    sqlstate = "XX000"
    reply = "internal error"


def first_of(group: BaseExceptionGroup[ProxyError]) -> ProxyError:
    """The first failure of a group. What follows it is a consequence."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, ProxyError)  # noqa: S101 - narrows the type
    return error


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong with the configuration.

    Args:
        where: `file`, `file:line` or `file: key.path`, as a person would write it.
        what: what was found there, what was expected, and what to do.
    """

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class ConfigError(Exception):
    """The configuration cannot be used. Carries every mistake, not just the first."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes: Sequence[Mistake] = tuple(mistakes)
        super().__init__("\n".join(str(mistake) for mistake in self.mistakes))
