"""How a relayed session ends, and how somebody outside may want it to."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

TERMINATE: Final = b"X\x00\x00\x00\x04"

IDLE: Final = b"Z\x00\x00\x00\x05I"
"""ReadyForQuery outside a transaction."""

BOUNDARIES: Final = frozenset({IDLE, b"Z\x00\x00\x00\x05T", b"Z\x00\x00\x00\x05E"})
"""ReadyForQuery."""


class When(enum.Enum):
    """When a session that is told to end does so."""

    IDLE = "idle"
    """When it is in no transaction and nothing is under way."""
    BOUNDARY = "boundary"
    """When the backend waits for a command, be it in a transaction."""
    NOW = "now"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a session ends.

    Args:
        kind: `ok` or an ErrorKind.
        reason: who ended it and how.
        is_clean: whether both sides are given a clean end, once the client has had all there was for it.
    """

    kind: str
    reason: str
    is_clean: bool = False


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody outside wants of a session.

    Args:
        ending: how it is to end.
        when: when.
        farewell: what its client is told, an ErrorResponse; not with `When.NOW`.
    """

    ending: Ending
    when: When
    farewell: bytes = b""
