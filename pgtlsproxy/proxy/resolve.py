"""Names of backends to addresses: off the event loop, one look-up at a time for a name.

getaddrinfo says nothing of a record's lifetime, so an answer is kept for a second only: a
fail-over that moves a name is followed at once. A look-up that fails uses the last good answer
for a minute. An address that could not be dialled is tried last for ten seconds, so that one
login in a while pays for a dead host, and not every login.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import Final

import trio
from structlog.typing import FilteringBoundLogger

KEEP_SECONDS: Final = 1.0
STALE_SECONDS: Final = 60.0
AVOID_SECONDS: Final = 10.0
LOOKUP_THREADS: Final = 8
"""Look-ups under way at once. A resolver that hangs must not use up the process's threads."""


@dataclass(slots=True)
class _Answer:
    addresses: tuple[str, ...] = ()
    at: float = -STALE_SECONDS
    lock: trio.Lock = field(default_factory=trio.Lock)


class Resolver:
    """Resolves and remembers; one a process, since names are few.

    Args:
        logger: told of look-ups that failed and were answered from memory.
    """

    def __init__(self, logger: FilteringBoundLogger) -> None:
        self._logger = logger
        self._answers: dict[str, _Answer] = {}
        self._avoid: dict[tuple[str, int], float] = {}
        self._threads = trio.CapacityLimiter(LOOKUP_THREADS)

    async def addresses(self, host: str) -> tuple[str, ...]:
        """The numeric addresses of a host name, in the resolver's order.

        Raises:
            OSError: there is no answer, and none that is recent enough.

        Cancellation: a thread may go on with the look-up; its answer is dropped.
        """
        answer = self._answers.setdefault(host, _Answer())
        async with answer.lock:
            now = trio.current_time()
            if answer.addresses and now - answer.at < KEEP_SECONDS:
                return answer.addresses
            try:
                answer.addresses = await trio.to_thread.run_sync(
                    _look_up, host, abandon_on_cancel=True, limiter=self._threads
                )
                answer.at = trio.current_time()
            except OSError as error:
                if not answer.addresses or now - answer.at > STALE_SECONDS:
                    raise
                self._logger.warning(
                    "name_not_resolved", host=host, reason=str(error), using=answer.addresses
                )
            return answer.addresses

    def failed(self, ip: str, port: int) -> None:
        """Remember that an address could not be dialled."""
        self._avoid[ip, port] = trio.current_time() + AVOID_SECONDS

    def works(self, ip: str, port: int) -> None:
        """Forget that an address could not be dialled."""
        self._avoid.pop((ip, port), None)

    def is_avoided(self, ip: str, port: int) -> bool:
        """Whether an address is to be tried last."""
        return self._avoid.get((ip, port), 0.0) > trio.current_time()


def _look_up(host: str) -> tuple[str, ...]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))
