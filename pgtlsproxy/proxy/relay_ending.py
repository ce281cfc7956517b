"""How a relayed session ends, and how somebody outside may want it to."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

TERMINATE: Final = b"X\x00\x00\x00\x04"

FAREWELL_SECONDS: Final = 2.0
"""How long a client may take to read why its transaction was ended, and the backend to hear Terminate. The
relay gives them half of that."""


class When(enum.Enum):
    """When a session that is told to end does so."""

    IDLE = "idle"
    """When it is in no transaction, and the backend owes no answer."""
    BOUNDARY = "boundary"
    """When the backend owes no answer, be it in a transaction."""
    NOW = "now"

    @property
    def urgency(self) -> int:
        """The greater, the less it waits for."""
        return tuple(When).index(self)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a session ends.

    Args:
        kind: `ok` or an ErrorKind.
        reason: who ended it and how.
        is_clean: whether both sides are given a clean end, once the client has had all there was for it.
        is_cut: whether it comes though the session may not be idle.
    """

    kind: str
    reason: str
    is_clean: bool = False
    is_cut: bool = False


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


@dataclass(frozen=True, slots=True)
class Due:
    """A wish that will be due by itself.

    Args:
        seconds: behind the login, or for how long the client may ask nothing.
        wish: the wish.
    """

    seconds: float
    wish: Wish


@dataclass(frozen=True, slots=True)
class Limits:
    """When a session is to end though both sides would go on.

    Args:
        idle: when its client asks nothing; None for never.
        ends: by its age, in order.
    """

    idle: Due | None = None
    ends: tuple[Due, ...] = ()


NO_LIMITS: Final = Limits()
