"""Another process takes our place: the same command, with what is installed and configured by now.

It is given our listening sockets and starts workers of its own. Only when all of them accept do ours cease
to, so that at no moment nobody does; where it fails before that, nothing has happened. It is a process of its
own and not this one executed anew: whatever is wrong with the new code or its configuration, the old is still
there, and our workers are told to end by the code that has started them. A service manager is told that the
other is the main process now.
"""

from __future__ import annotations

import math
import os
import selectors
import time
from collections.abc import Sequence
from typing import Final

from structlog.typing import FilteringBoundLogger

from pgtlsproxy.proxy.channel import ChannelEnded
from pgtlsproxy.proxy.handover import Named, Successor
from pgtlsproxy.proxy.service_manager import Contact

UPGRADE_SECONDS: Final = 120.0
"""How long a successor may take to serve."""


class Upgrade:
    """At most one successor at a time.

    Args:
        contact: how the service manager is told something; the successor is told, too.
        selector: where what a successor says is waited for, with this as its key's data.
        logger: told what comes of it.

    Attributes:
        due: `time.monotonic()` when `go_on` has something to do, whether or not anybody says anything.
    """

    def __init__(
        self, contact: Contact, selector: selectors.BaseSelector, logger: FilteringBoundLogger
    ) -> None:
        self._contact = contact
        self._selector = selector
        self._logger = logger
        self._successor: Successor | None = None
        self.due = math.inf

    def begin(self, offered: Sequence[Named]) -> None:
        """Start a successor, unless there is one already.

        Args:
            offered: (listener name, socket) pairs.
        """
        if self._successor is not None:
            return
        if os.getpid() == 1:
            self._logger.error(
                "upgrade_failed", reason="a container ends with its first process; exchange its image instead"
            )
            return
        try:
            self._successor = Successor(offered, self._contact)
        except OSError as error:
            self._logger.error("upgrade_failed", reason=error.strerror)
            return
        self._selector.register(self._successor.orders.sock, selectors.EVENT_READ, self)
        self.due = time.monotonic() + UPGRADE_SECONDS
        self._logger.info("upgrading", pid=self._successor.pid)

    def hear(self) -> None:
        """Take what the successor says."""
        if self._successor is None:
            return
        try:
            self._successor.hear()
        except ChannelEnded:
            self._fail("it ended before it served")

    def go_on(self) -> Successor | None:
        """The successor, once it serves. Gives up on one that takes too long."""
        if self._successor is None:
            return None
        if self._successor.serves and self._successor.status() is None:
            return self._take()
        self._successor.orders.flush()
        if self._successor.status() is not None:
            self.hear()  # its last words
            self._fail("it ended before it served")
        elif time.monotonic() >= self.due:
            self._fail(f"it did not serve within {UPGRADE_SECONDS:g} s")
        return None

    def give_up(self) -> None:
        """End a successor that does not serve yet."""
        if self._successor is not None:
            self._fail("we were told to end")

    def _take(self) -> Successor | None:
        successor, self._successor = self._successor, None
        self.due = math.inf
        if successor is not None:
            self._selector.unregister(successor.orders.sock)
        return successor

    def _fail(self, reason: str) -> None:
        successor = self._take()
        if successor is None:
            return
        status = successor.end()
        for mistake in successor.mistakes:
            self._logger.error("config_mistake", mistake=str(mistake))
        self._logger.error("upgrade_failed", pid=successor.pid, reason=reason, status=status)
        successor.close()
