"""What a host must be like: libpq's `target_session_attrs`, by what a server reports at login."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pgtlsproxy.errors import BackendUnavailable

ANY: Final = "any"
PREFER_STANDBY: Final = "prefer-standby"


_STANDBY: Final = "in_hot_standby"
_READ_ONLY: Final = "default_transaction_read_only"


class WrongSessionAttributes(BackendUnavailable):
    """The host's role is not what target_session_attrs asks for; another one may do."""


def missing_parameter(parameters: Mapping[str, str]) -> str | None:
    """Why nobody knows what a host is; None where it reports what it takes.

    PostgreSQL does since version 14; poolers may not.
    """
    for name in (_STANDBY, _READ_ONLY):
        if name not in parameters:
            return f"the server does not report {name}, so target_session_attrs cannot be judged"
    return None


def wrong_attributes(wanted: str, parameters: Mapping[str, str]) -> str | None:
    """Why a host does not fit target_session_attrs; None where it does. libpq's rules and words."""
    if (missing := missing_parameter(parameters)) is not None:
        return missing
    standby, read_only = parameters[_STANDBY], parameters[_READ_ONLY]
    writable = standby == "off" and read_only == "off"
    problems = {
        "read-write": None if writable else "session is read-only",
        "read-only": "session is not read-only" if writable else None,
        "primary": "server is in hot standby mode" if standby == "on" else None,
        "standby": "server is not in hot standby mode" if standby == "off" else None,
        PREFER_STANDBY: "server is not in hot standby mode" if standby == "off" else None,
    }
    return problems[wanted]


def shown_role(parameters: Mapping[str, str]) -> str:
    """What a host is, for people; it reports both parameters."""
    is_standby = parameters[_STANDBY] == "on"
    is_read_only = is_standby or parameters[_READ_ONLY] == "on"
    return f"{'hot standby' if is_standby else 'primary'}, {'read-only' if is_read_only else 'read-write'}"
