"""Events for people at a terminal: one line each, what happened first, what helps to look further behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from datetime import datetime
from typing import Any, Final

from pgtlsproxy.identity import printable

VALUE_LIMIT: Final = 2000
"""Longest value that is shown, in characters."""

_DIM, _BOLD = "\x1b[2m", "\x1b[1m"
_GREEN, _RED, _YELLOW = "\x1b[32m", "\x1b[31m", "\x1b[33m"
_PLAIN: Final = "\x1b[0m"

_STYLES: Final = {"allowed": _GREEN, "refused": _RED, "ended": _BOLD, "warning": _YELLOW, "error": _RED}

_HEAD: Final = frozenset({"timestamp", "level", "event", "exception"})

_TOLD: Final = frozenset(
    {"verdict", "user", "database", "client_addr", "client_port", "listener", "reason", "seconds"}
)
"""Fields of a session that stand in the sentence."""

_LEFT_OUT: Final = frozenset(
    {
        "generation", "os_uid", "os_pid", "application_name", "tls_cipher", "sni",
        "cert_cn", "cert_issuer", "cert_issuer_key", "cert_sha256", "cert_not_after", "cert_san",
        "cert_verified", "hba_line", "ident_line", "method", "login", "decided_by", "backend",
        "backend_local_port", "backend_tls_version",
    }
)  # fmt: skip
"""Fields of a session that JSON alone has."""

_AT_THE_END: Final = frozenset({"session", "kind", "sqlstate", "bytes_from_client", "bytes_from_backend"})
"""What is told of a session that ends; the rest was told when it was let in."""

_MESSAGES: Final = ("mistake", "warning", "reason", "advice")
"""Fields of other events that are sentences, the one to show first."""


class ConsoleLines:
    """Renders events; structlog's last processor.

    Args:
        colors: whether the terminal takes them.
    """

    def __init__(self, *, colors: bool) -> None:
        self._colors = colors

    def __call__(self, _logger: object, _name: str, event: MutableMapping[str, Any]) -> str:
        """One event as a line, with its traceback, if it has one, in lines behind it."""
        is_session = event["event"] in {"session_decided", "session_ended"}
        word, sentence = _session(event) if is_session else _other(event)
        details = _session_details(event) if is_session else _other_details(event)
        moment = datetime.fromisoformat(event["timestamp"]).astimezone()
        line = " ".join(
            filter(
                None,
                (
                    self._styled(f"{moment:%Y-%m-%d %H:%M:%S}", _DIM),
                    self._styled(word.ljust(7), _STYLES.get(word, "")),
                    sentence,
                    self._styled(" ".join(details), _DIM),
                ),
            )
        )
        return "\n".join((line, *map(printable, str(event.get("exception", "")).splitlines())))

    def _styled(self, text: str, style: str) -> str:
        return f"{style}{text}{_PLAIN}" if self._colors and style and text else text


def _session(event: Mapping[str, Any]) -> tuple[str, str]:
    """What became of a session: the word for it, and `user@database from address at listener: why`."""
    word = "ended" if event["event"] == "session_ended" else str(event.get("verdict"))
    parts = []
    if "user" in event:
        parts.append(f"{event['user']}@{event.get('database', '')}")
    if "client_addr" in event:
        parts.append(f"from {_address(event)}")
    if "listener" in event:
        parts.append(f"at {event['listener']}")
    why = event.get("reason") or f"{event.get('proof', 'no proof')} for {event.get('identity', 'nobody')}"
    if "seconds" in event:
        why += f", after {event['seconds']:g} s"
    return word, f"{' '.join(parts)}: {why}"


def _address(event: Mapping[str, Any]) -> str:
    address, port = event["client_addr"], event.get("client_port")
    if port is None:
        return str(address)
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _session_details(event: Mapping[str, Any]) -> Iterator[str]:
    is_end = event["event"] == "session_ended"
    unshown = _HEAD | _TOLD | _LEFT_OUT
    if "reason" not in event:
        unshown |= {"proof", "identity"}
    for key, value in event.items():
        if key in unshown or (is_end and key not in _AT_THE_END) or (key, value) == ("kind", "ok"):
            continue
        if key == "tls_error" and value in event.get("reason", ""):
            continue
        line = event.get(key.replace("_file", "_line")) if key in {"hba_file", "ident_file"} else None
        yield _pair(key, value if line is None else f"{value}:{line}")


def _other(event: Mapping[str, Any]) -> tuple[str, str]:
    """Any other event: its level where that is of interest, its name, and its message."""
    level = str(event["level"])
    name = str(event["event"]).replace("_", " ")
    message = next((event[key] for key in _MESSAGES if key in event), None)
    sentence = name if message is None else f"{name}: {printable(str(message), VALUE_LIMIT)}"
    return level, sentence


def _other_details(event: Mapping[str, Any]) -> Iterable[str]:
    shown = next((key for key in _MESSAGES if key in event), None)
    return (_pair(key, value) for key, value in event.items() if key not in _HEAD and key != shown)


def _pair(key: str, value: object) -> str:
    text = printable(str(value), VALUE_LIMIT)
    return f"{key}={text!r}" if " " in text else f"{key}={text}"
