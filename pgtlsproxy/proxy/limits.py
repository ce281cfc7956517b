"""How many connections there may be, and the descriptors that they need."""

from __future__ import annotations

import contextlib
import resource
from typing import Final

from structlog.typing import FilteringBoundLogger

HARD_LIMIT_MARGIN: Final = 256
"""Connections over max_connections that are still heard, so that they get 53300 and cancels get through."""

OWN_DESCRIPTORS: Final = 128
"""Descriptors besides the sessions': listening sockets, files at a reload, CancelRequests under way."""


def raise_descriptor_limit(max_connections: int, logger: FilteringBoundLogger) -> None:
    """Take as many descriptors as the system grants, and warn where sessions need more.

    Args:
        max_connections: sessions, each with a socket on either leg. One worker may have them all.
        logger: told of what is missing.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # what was granted cannot always be had
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # A client that is one too many is heard, and costs one socket.
    needed = 2 * max_connections + HARD_LIMIT_MARGIN + OWN_DESCRIPTORS
    if limit != resource.RLIM_INFINITY and limit < needed:
        logger.warning(
            "too_few_descriptors",
            limit=limit,
            needed=needed,
            max_connections=max_connections,
            advice="raise LimitNOFILE= (systemd) or the hard limit of nofile, or lower max_connections",
        )
