"""What there is to say of the proxy. Whoever only says it needs not load what it is written with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class NotAfter:
    """When something runs out.

    Args:
        owner: listener, backend, ca, crl, or status.
        name: of the listener or backend; of a CA or CRL the section, too, as in `listeners.central`.
        at: Unix time; the earliest, where there are several.
    """

    owner: str
    name: str
    at: float


@dataclass(frozen=True, slots=True)
class Loaded:
    """What came of the last load.

    Args:
        is_good: whether everything could be taken.
        good_at: Unix time of the last time it could.
        failed: the units that keep their old content.
        not_after: when what of what is in service runs out.
    """

    is_good: bool
    good_at: float
    failed: tuple[str, ...] = ()
    not_after: tuple[NotAfter, ...] = ()


@dataclass(frozen=True, slots=True)
class Service:
    """What is in service.

    Args:
        generation: of the configuration.
        workers: how many serve.
        is_stopping: whether somebody has said that it shall end.
        last: what came of the last load.
    """

    generation: int
    workers: int
    is_stopping: bool
    last: Loaded

    @property
    def is_ready(self) -> bool:
        """Whether somebody accepts, and shall go on to."""
        return self.workers > 0 and not self.is_stopping


@dataclass(frozen=True, slots=True)
class Figures:
    """All of it, at one moment.

    Args:
        version: of the proxy.
        started_at: Unix time.
        service: what is in service.
        active: sessions that are let in and not over, by listener.
        total: those that are over, by listener and outcome.
    """

    version: str
    started_at: float
    service: Service
    active: Mapping[str, int] = field(default_factory=dict)
    total: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
