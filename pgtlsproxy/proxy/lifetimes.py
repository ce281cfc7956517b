"""How long certificates and revocation lists are good for, and who is told when one is about to run out."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from structlog.typing import FilteringBoundLogger

DAY: Final = 86_400.0

AGAIN_SECONDS: Final = DAY
"""How long nothing more is said of a file whose certificates are as they were."""

LOOK_SECONDS: Final = 3600.0
"""How often they are looked at; the clock may be set meanwhile."""


@dataclass(frozen=True, slots=True)
class Lifetime:
    """That of one certificate or list.

    Args:
        setting: what names its file, as a path of keys.
        file: where it is.
        what: its subject; empty for a revocation list.
        since: Unix time from which on it is good.
        soon: Unix time from which on it is said to run out.
        until: Unix time until which it is good.
    """

    setting: str
    file: str
    what: str
    since: float
    soon: float
    until: float

    def is_bad(self, now: float) -> bool:
        """Whether it is of no use now."""
        return now > self.until or now < self.since

    def is_short(self, now: float) -> bool:
        """Whether it is good, and not for long."""
        return self.soon < now and not self.is_bad(now)

    def problem(self, now: float) -> str:
        """What there is to say of it where it is bad or short."""
        moment = f"{datetime.fromtimestamp(self.until, UTC):%Y-%m-%d %H:%M} UTC"
        days = int((self.until - now) // DAY)
        if now < self.since:
            since = f"{datetime.fromtimestamp(self.since, UTC):%Y-%m-%d %H:%M} UTC"
            return f"{self.what or 'the CRL'} is not valid before {since}"
        if not self.what and now > self.until:
            return f"the CRL is past its nextUpdate, {moment}: it admits nobody"
        if not self.what:
            return f"the CRL runs out in {days} days, on {moment}: it admits nobody then"
        if now > self.until:
            return f"{self.what} expired on {moment}: renew it"
        return f"{self.what} expires in {days} days, on {moment[:10]}"


class Lifetimes:
    """Those of what is in service: says of each file once a day what runs out.

    Args:
        logger: told of it.
    """

    def __init__(self, logger: FilteringBoundLogger) -> None:
        self._logger = logger
        self._lifetimes: tuple[Lifetime, ...] = ()
        self._said: dict[str, tuple[frozenset[tuple[Lifetime, bool]], float]] = {}
        self.due = math.inf
        """`time.monotonic()` when `tell` has something to do."""

    def take(self, lifetimes: Iterable[Lifetime]) -> None:
        """Note what is in service now."""
        self._lifetimes = tuple(lifetimes)
        self.due = 0.0

    def tell(self) -> None:
        """Say what runs out, where it has not been said."""
        if time.monotonic() < self.due:
            return
        self.due = time.monotonic() + LOOK_SECONDS
        now = time.time()
        by_file: dict[str, list[Lifetime]] = {}
        for each in self._lifetimes:
            if each.is_bad(now) or each.is_short(now):
                by_file.setdefault(each.file, []).append(each)
        self._said = {file: said for file, said in self._said.items() if file in by_file}
        for file, found in by_file.items():
            self._tell(file, found, now)

    def _tell(self, file: str, found: list[Lifetime], now: float) -> None:
        state = frozenset((each, each.is_bad(now)) for each in found)
        before, at = self._said.get(file, (frozenset(), -math.inf))
        if state == before and now - at < AGAIN_SECONDS:
            return
        self._said[file] = state, now
        problems = list(dict.fromkeys(each.problem(now) for each in found))
        settings = list(dict.fromkeys(each.setting for each in found))
        if any(each.is_bad(now) for each in found):
            self._logger.error("expired", file=file, problems=problems, settings=settings)
        else:
            self._logger.warning("expires_soon", file=file, problems=problems, settings=settings)
