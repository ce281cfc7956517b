"""What is wrong between settings that are right one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pgtlsproxy.config.model import PROTOCOL_VERSIONS


@dataclass(frozen=True, slots=True)
class Conflict:
    """Settings that do not go together.

    Args:
        keys: those involved, the one to look at first.
        what: what is wrong, and what to do.
    """

    keys: tuple[str, ...]
    what: str


def range_conflicts(lowest: str, highest: str | None, range_error: str) -> Iterator[Conflict]:
    """What is wrong with a range of TLS versions; `range_error` is how PostgreSQL or libpq begins."""
    order = PROTOCOL_VERSIONS.index
    if highest is not None and order(highest) < order(lowest):
        low, high = "ssl_min_protocol_version", "ssl_max_protocol_version"
        yield Conflict((high, low), f"{range_error}: {highest} is older than {low}, which is {lowest}")
