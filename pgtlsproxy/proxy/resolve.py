"""Names of backends to addresses: off the event loop, one look-up at a time for a name.

getaddrinfo says nothing of a record's lifetime, so an answer is kept for a second only: a
fail-over that moves a name is followed at once. A look-up that fails or hangs uses the last good
answer for a minute. An address that could not be dialled is tried last for ten seconds, so that
one login in a while pays for a dead host, and not every login.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import trio
from structlog.typing import FilteringBoundLogger

KEEP_SECONDS: Final = 1.0
"""How long an answer is kept, a failure too."""

STALE_SECONDS: Final = 60.0
"""How long the last good answer stands in for a look-up that fails."""

LOOKUP_SECONDS: Final = 3.0
"""How long a look-up is waited for."""

AVOID_SECONDS: Final = 10.0
AVOIDED_ADDRESSES: Final = 1024
"""How many addresses are remembered as dead; the oldest is forgotten first."""

LookUp = Callable[[str], tuple[str, ...]]


class LookUpFailed(Exception):
    """A name has no address now. Says why."""


@dataclass(slots=True)
class _Name:
    """What is known of one name.

    Attributes:
        addresses: the last good answer.
        answered_at: when it came.
        failure: why the latest look-up gave none; None where it gave one.
        judged_at: when the latest look-up was over.
        under_way: set when the look-up that is waited for now is over; None where there is none.
        thread: held by the name's one thread, also when nobody waits for it any more.
    """

    addresses: tuple[str, ...] = ()
    answered_at: float = -math.inf
    failure: str | None = None
    judged_at: float = -math.inf
    under_way: trio.Event | None = None
    thread: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(1))

    def is_forgettable(self, now: float) -> bool:
        return (
            self.under_way is None
            and self.thread.borrowed_tokens == 0
            and now - max(self.answered_at, self.judged_at) > STALE_SECONDS
        )


class Resolver:
    """Resolves and remembers; one a process, since names are few.

    Args:
        logger: told of look-ups that failed and were answered from memory.
        look_up: gives a name's addresses, in a thread; raises OSError or UnicodeError.
    """

    def __init__(self, logger: FilteringBoundLogger, look_up: LookUp | None = None) -> None:
        self._logger = logger
        self._look_up = look_up or _getaddrinfo
        self._names: dict[str, _Name] = {}
        self._avoided_until: dict[tuple[str, int], float] = {}

    async def addresses(self, host: str) -> tuple[str, ...]:
        """The numeric addresses of a host name, in the resolver's order.

        Raises:
            LookUpFailed: there is no answer, and none that is recent enough.

        Cancellation: the look-up goes on for those who wait for it too.
        """
        name = self._names.get(host) or self._remember(host)
        if trio.current_time() - name.judged_at >= KEEP_SECONDS:
            if name.under_way is None:
                self._begin(host, name)
            if name.under_way is not None:
                await name.under_way.wait()
        if name.failure is not None:
            raise LookUpFailed(name.failure)
        return name.addresses

    def _remember(self, host: str) -> _Name:
        now = trio.current_time()
        self._names = {host: name for host, name in self._names.items() if not name.is_forgettable(now)}
        name = self._names[host] = _Name()
        return name

    def _begin(self, host: str, name: _Name) -> None:
        """Look a name up in a task of nobody's, so that no waiter's end ends it; a name has one thread."""
        if name.thread.borrowed_tokens:
            self._judge(host, name, "an earlier look-up still hangs")
            return
        name.under_way = trio.Event()
        trio.lowlevel.spawn_system_task(self._find, host, name)

    async def _find(self, host: str, name: _Name) -> None:
        failure: str | None = f"the look-up took longer than {LOOKUP_SECONDS:g} s"
        try:
            with trio.move_on_after(LOOKUP_SECONDS):
                name.addresses = await trio.to_thread.run_sync(
                    self._look_up, host, abandon_on_cancel=True, limiter=name.thread
                )
                name.answered_at = trio.current_time()
                failure = None
        except OSError as error:
            failure = error.strerror or str(error)
        except (UnicodeError, RuntimeError) as error:
            # What cannot be written as a name of the DNS (Python's codec idna), or no thread to be had.
            failure = str(error)
        except Exception as error:
            # What a system task raises would end the process.
            self._logger.error("bug", exc_info=error)
            failure = "internal error"
        self._judge(host, name, failure)
        if name.under_way is not None:
            name.under_way.set()
            name.under_way = None

    def _judge(self, host: str, name: _Name, failure: str | None) -> None:
        """Note how a look-up went; the last good answer stands in for a failure."""
        name.judged_at = trio.current_time()
        name.failure = failure
        if failure is not None and name.judged_at - name.answered_at <= STALE_SECONDS:
            name.failure = None
            self._logger.warning("name_not_resolved", host=host, reason=failure, using=name.addresses)

    def failed(self, ip: str, port: int) -> None:
        """Remember that an address could not be dialled."""
        now = trio.current_time()
        self._avoided_until.pop((ip, port), None)
        self._avoided_until[ip, port] = now + AVOID_SECONDS
        # The oldest come first.
        for address, until in tuple(self._avoided_until.items()):
            if until > now and len(self._avoided_until) <= AVOIDED_ADDRESSES:
                break
            del self._avoided_until[address]

    def works(self, ip: str, port: int) -> None:
        """Forget that an address could not be dialled."""
        self._avoided_until.pop((ip, port), None)

    def is_avoided(self, ip: str, port: int) -> bool:
        """Whether an address is to be tried last."""
        return self._avoided_until.get((ip, port), 0.0) > trio.current_time()


def _getaddrinfo(host: str) -> tuple[str, ...]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))
