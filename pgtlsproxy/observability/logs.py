"""What is written to stderr, where nothing else goes: one event a line, as JSON or for a terminal.

Two events tell a session: `session_decided`, once, when it is refused or let in, and
`session_ended`, once, for what was let in. Both carry every field of SESSION_FIELDS; what is
absent is null. Text from outside is made printable here, where it enters the log.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from types import TracebackType
from typing import Any, Final, TextIO

import structlog
from structlog.typing import FilteringBoundLogger

from pgtlsproxy.errors import ErrorKind
from pgtlsproxy.identity import Certificate, ClientAddress, OSUser, printable
from pgtlsproxy.observability.console import ConsoleLines
from pgtlsproxy.observability.stream import QueuedStream

SESSION_FIELDS: Final = (
    "session", "generation", "listener", "client_addr", "client_port", "via_addr",
    "os_user", "os_uid", "os_pid",
    "user", "database", "replication", "application_name",
    "tls_version", "tls_cipher", "tls_error", "sni",
    "cert_cn", "cert_dn", "cert_issuer", "cert_issuer_key", "cert_serial", "cert_sha256", "cert_not_after",
    "cert_san", "cert_verified",
    "method", "login", "hba_file", "hba_line", "ident_file", "ident_line", "decided_by",
    "verdict", "kind", "sqlstate", "reason", "identity", "proof", "delayed",
    "backend", "backend_database", "backend_addr", "backend_local_port", "backend_pid", "backend_tls_version",
)  # fmt: skip
"""Every field of `session_decided`, in the order in which they are written."""

_KNOWN_FIELDS: Final = frozenset(SESSION_FIELDS)

END_FIELDS: Final = ("bytes_from_client", "bytes_from_backend", "seconds")
"""What `session_ended` has besides."""

FOLD_AFTER: Final = 10
"""Identical refusals of one source that are written in one second; the rest are counted."""

FOLD_SOURCES: Final = 10_000
"""How many (event, source, reason) are remembered within a second; beyond, nothing is folded."""

LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

SESSION_LEVELS: Final[Mapping[str, int]] = {
    ErrorKind.PROBE: logging.DEBUG,
    ErrorKind.UNPROVEN: logging.WARNING,
    ErrorKind.BACKEND_UNREACHABLE: logging.WARNING,
    ErrorKind.BACKEND_TLS: logging.WARNING,
    ErrorKind.BACKEND_PROTOCOL: logging.WARNING,
    ErrorKind.BACKEND_LOST: logging.WARNING,
}
"""What a session's event is where it is not info: the client cannot mend what a backend does."""


@contextlib.contextmanager
def queued_log(
    log_format: str | None, level: str, *, worker: int | None = None, lock: int | None = None
) -> Iterator[FilteringBoundLogger]:
    """Set up logging for a process that serves: whoever stops reading stderr holds up nobody.

    What the context's end finds queued is written, within a second.

    Args:
        log_format: as in `configure`.
        level: as in `configure`.
        worker: as in `configure`.
        lock: as in `QueuedStream`.
    """
    stream = QueuedStream(sys.stderr, lock)
    logger = configure(log_format, level, stream, worker)
    with stream.writing(lambda count: logger.error("log_lines_dropped", count=count)):
        yield logger


def configure(
    log_format: str | None,
    level: str,
    stream: TextIO | QueuedStream | None = None,
    worker: int | None = None,
) -> FilteringBoundLogger:
    """Set up logging for the process.

    Args:
        log_format: `json`, `console`, or None for the console in a terminal and JSON elsewhere.
        level: a key of LEVELS.
        stream: where to write; stderr when None.
        worker: the number of this process among several that write there; a field of every event.
    """
    target = sys.stderr if stream is None else stream
    console = log_format == "console" or (log_format is None and target.isatty())
    lines = [_drop_absent, ConsoleLines(colors=target.isatty())] if console else [_render_json]
    processors: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="timestamp"),
        # The plain traceback shows code, never the values of variables, which may be secrets.
        structlog.processors.format_exc_info,
        *lines,
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_: _Lines(target),
        cache_logger_on_first_use=False,
    )
    logger: FilteringBoundLogger = structlog.get_logger()
    if worker is not None:
        logger = logger.bind(worker=worker)
    _catch_stray_output(logger)
    return logger


class _Lines:
    """Where rendered events go, one write a line; failures of the stream stay its own.

    Without structlog's lock: an object that is collected while we write can make an event, too.
    """

    def __init__(self, stream: TextIO | QueuedStream) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            pass

    debug = info = warning = error = msg


_encode: Final = json.JSONEncoder(default=repr).encode
"""structlog's JSONRenderer makes an encoder for every event, which costs 10 µs more."""


_TOLD: Final = "told"
"""The field that has a session's own. As words of their own each would be copied four times on its way."""


def _render_json(_logger: object, _name: str, event: MutableMapping[str, Any]) -> str:
    head = {key: event.pop(key) for key in ("timestamp", "level", "event") if key in event}
    told = event.pop(_TOLD, {})
    return _encode({**head, **event, **told})


def _drop_absent(_logger: object, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    told = event.pop(_TOLD, {})
    return {key: value for key, value in (*event.items(), *told.items()) if value is not None}


def _catch_stray_output(logger: FilteringBoundLogger) -> None:
    """What Python itself would print to stderr becomes an event."""

    def on_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            logger.error("bug", exc_info=(kind, error, trace))

    def on_unraisable(args: Any) -> None:
        logger.error("bug", where=printable(str(args.err_msg)), exc_info=args.exc_value)

    def on_thread_exception(args: threading.ExceptHookArgs) -> None:
        logger.error("bug", exc_info=args.exc_value)

    sys.excepthook = on_exception
    sys.unraisablehook = on_unraisable
    threading.excepthook = on_thread_exception
    logging.captureWarnings(capture=True)
    logging.getLogger("py.warnings").addHandler(logging.NullHandler())
    logging.getLogger("py.warnings").propagate = False


class RefusalFolder:
    """Keeps a flood of identical refusals from flooding the log.

    Args:
        write: writes one event.
    """

    def __init__(self, write: Callable[..., Any]) -> None:
        self._write = write
        self._counts: dict[tuple[str, str, str], int] = {}

    def admits(self, event: str, source: str, reason: str) -> bool:
        """Whether this refusal is to be written; otherwise it is counted.

        Args:
            event: the event that would tell it.
            source: a `ClientAddress.source`.
            reason: what the event would say.
        """
        key = (event, source, reason)
        if key not in self._counts and len(self._counts) >= FOLD_SOURCES:
            return True
        self._counts[key] = self._counts.get(key, 0) + 1
        return self._counts[key] <= FOLD_AFTER

    def flush(self) -> None:
        """Say how many were not written, and start over. Called once a second."""
        counts, self._counts = self._counts, {}
        for (event, source, reason), count in counts.items():
            if count > FOLD_AFTER:
                self._write(
                    "refusals_folded",
                    folded=event,
                    client_addr=source,
                    reason=reason,
                    count=count - FOLD_AFTER,
                )


class SessionLog:
    """Collects what is known of one session, for its events. Logic never reads it.

    Args:
        logger: where to write.
        folder: what holds floods back.
        fields: of SESSION_FIELDS, what is known at the start.
    """

    def __init__(self, logger: FilteringBoundLogger, folder: RefusalFolder, **fields: object) -> None:
        self._logger = logger
        self._folder = folder
        self._fields: dict[str, object] = dict.fromkeys(SESSION_FIELDS)
        # What was noted and not written yet; what is noted and never written is never made printable.
        self._noted: dict[str, object] = {}
        self.note(**fields)
        self._address: ClientAddress | None = None
        self.is_decided = False

    def note(self, **fields: object) -> None:
        """Remember fields of SESSION_FIELDS; text from outside becomes printable."""
        if not fields.keys() <= _KNOWN_FIELDS:
            raise KeyError(", ".join(sorted(fields.keys() - _KNOWN_FIELDS)))
        self._noted.update(fields)

    def note_address(self, address: ClientAddress, os_user: OSUser | None) -> None:
        """Remember where the client comes from."""
        self._address = address
        self.note(client_addr=str(address), client_port=address.port)
        if os_user is not None:
            self.note(os_user=os_user.name, os_uid=os_user.uid, os_pid=os_user.pid)

    def note_certificate(self, certificate: Certificate, *, verified: bool) -> None:
        """Remember the client's certificate."""
        self.note(
            cert_cn=certificate.common_names[0] if certificate.common_names else None,
            cert_dn=certificate.dn,
            cert_issuer=certificate.issuer_dn,
            cert_issuer_key=certificate.issuer_key,
            cert_serial=f"{certificate.serial:x}",
            cert_sha256=certificate.sha256,
            cert_not_after=certificate.not_after.isoformat(),
            cert_san=list(certificate.subject_alt_names) or None,
            cert_verified=verified,
        )

    def allowed(self) -> None:
        """Write `session_decided` for a session that was let in."""
        self.is_decided = True
        if self._logger.is_enabled_for(logging.INFO):
            self.note(verdict="allowed")
            self._write(logging.INFO, "session_decided")

    def refused(self, kind: str, sqlstate: str | None, reason: str) -> None:
        """Write `session_decided` for one that was not."""
        self.is_decided = True
        self.note(kind=kind, sqlstate=sqlstate, reason=reason, verdict="refused")
        source = "" if self._address is None else self._address.source
        if self._folder.admits("session_decided", source, printable(reason)):
            level = SESSION_LEVELS.get(kind, logging.INFO)
            if self._logger.is_enabled_for(level):
                self._write(level, "session_decided")

    def ended(
        self, kind: str, reason: str, *, bytes_from_client: int, bytes_from_backend: int, seconds: float
    ) -> None:
        """Write `session_ended`.

        Args:
            kind: `ok` or an ErrorKind.
            reason: who ended it and how.
            bytes_from_client: what the client sent to the backend, in octets.
            bytes_from_backend: what the backend sent to the client, in octets.
            seconds: from accept to end.
        """
        level = SESSION_LEVELS.get(kind, logging.INFO)
        if not self._logger.is_enabled_for(level):
            return
        self.note(kind=kind, reason=reason, verdict="allowed")
        self._fields |= {
            "bytes_from_client": bytes_from_client,
            "bytes_from_backend": bytes_from_backend,
            "seconds": round(seconds, 3),
        }
        self._write(level, "session_ended")

    def _write(self, level: int, event: str) -> None:
        self._logger.log(level, event, **{_TOLD: self._printable()})

    def _printable(self) -> dict[str, object]:
        """All fields, as they may be written."""
        for key, value in self._noted.items():
            self._fields[key] = printable(value) if isinstance(value, str | bytes) else value
        self._noted.clear()
        return self._fields

    def bug(self, error: BaseException) -> None:
        """Write a failure that is ours, with its traceback, under the session's id."""
        self._logger.error("bug", session=self._printable()["session"], exc_info=error)
