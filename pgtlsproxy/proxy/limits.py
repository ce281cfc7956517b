"""How many connections there may be, and the descriptors that they need."""

from __future__ import annotations

import contextlib
import resource
import sys
from typing import Final

from structlog.typing import FilteringBoundLogger

from pgtlsproxy.config import Settings

HARD_LIMIT_MARGIN: Final = 256
"""Connections beyond both limits: those that are being told that they are refused, for a second at most."""

OWN_DESCRIPTORS: Final = 128
"""Descriptors besides the sessions': listening sockets, files at a reload, CancelRequests under way."""


def connections_that_fit() -> int:
    """How many connections this process has descriptors for, with a backend each and some left for itself."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    return (limit - min(OWN_DESCRIPTORS, limit // 2)) // 2


def raise_descriptor_limit(settings: Settings, logger: FilteringBoundLogger) -> None:
    """Take as many descriptors as the system grants, and warn where sessions need more.

    Args:
        settings: whose limits count; a session has a socket on either leg, and so may a pending one. One
            worker may have them all.
        logger: told of what is missing.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # what was granted cannot always be had
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # A client that is one too many is heard, and costs one socket.
    needed = 2 * (settings.max_connections + settings.pending_limit) + HARD_LIMIT_MARGIN + OWN_DESCRIPTORS
    if limit != resource.RLIM_INFINITY and limit < needed:
        logger.warning(
            "too_few_descriptors",
            limit=limit,
            needed=needed,
            max_connections=settings.max_connections,
            advice="raise LimitNOFILE= (systemd) or the hard limit of nofile, or lower max_connections",
        )
