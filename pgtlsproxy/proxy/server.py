"""What serves inside a worker: accepts connections, and starts a session for each."""

from __future__ import annotations

import errno
import math
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import trio
from structlog.typing import FilteringBoundLogger

from pgtlsproxy.proxy.services import Services
from pgtlsproxy.proxy.session import serve_session

ACCEPT_BACKOFF_SECONDS: Final = 0.1
"""How long accepting rests behind a failure that the next attempt may meet again."""

COMPLAINT_SECONDS: Final = 1.0
"""How often at most a listener that cannot accept says so."""

YIELD_SECONDS: Final = 0.001
"""How long a worker that has more than its share of the sessions lets the others accept first.

All workers accept from the same sockets, so that none of a worker that dies is lost with a queue of its
own, and none waits for one that is busy. Whose turn it is is chance, though: of 400 sessions that stay,
4 workers took 39 to 170 each. With this pause each took 100; with SO_REUSEPORT 86 to 117.
"""

OUT_OF_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE})

LOST_CONNECTION: Final = frozenset(
    {
        errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN,
        errno.EHOSTUNREACH, errno.ENONET, errno.ENOPROTOOPT,
    }
)  # fmt: skip
"""What accept(2) says of one connection that broke while it waited, and that is out of the queue then."""


@dataclass(slots=True)
class Server:
    """Takes connections from the listening sockets.

    Attributes:
        services: what sessions share.
        logger: where the worker's own events go.
    """

    services: Services
    logger: FilteringBoundLogger
    _accepting: trio.CancelScope = field(default_factory=trio.CancelScope)
    _complained: dict[str, float] = field(default_factory=dict)

    async def run(self, listening: Sequence[tuple[str, socket.socket]]) -> None:
        """Accept until stopped, and wait for the last session.

        Args:
            listening: (listener name, socket) pairs; closed when no more is accepted.

        Cancellation: sessions are cut.
        """
        slot = self.services.admission.slot
        async with trio.open_nursery() as sessions:
            slot.set_serving(serving=True)
            try:
                with self._accepting:
                    async with trio.open_nursery() as nursery:
                        for name, sock in listening:
                            nursery.start_soon(self._accept, name, sock, sessions)
            finally:
                slot.set_serving(serving=False)
                for _, sock in listening:
                    sock.close()

    def cease(self) -> None:
        """Accept no more: somebody else does."""
        self._accepting.cancel()

    def stop(self, why: str) -> None:
        """Accept no more, and let nobody in any more; sessions go on.

        Args:
            why: for the log.
        """
        self.services.admission.close(why)
        self.services.guesses.close()
        self._accepting.cancel()

    async def _accept(self, name: str, listening: socket.socket, sessions: trio.Nursery) -> None:
        while True:
            try:
                if self.services.admission.slot.is_ahead:
                    await trio.lowlevel.wait_readable(listening)
                    await trio.sleep(YIELD_SECONDS)
                sock, _ = listening.accept()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(listening)
            except OSError as error:
                if error.errno in LOST_CONNECTION:
                    await trio.lowlevel.checkpoint()
                    continue
                # Out of descriptors or memory, forbidden by a firewall: the connection still waits.
                self._complain(name, error)
                if error.errno in OUT_OF_DESCRIPTORS:
                    self.services.admission.make_room()
                await trio.sleep(ACCEPT_BACKOFF_SECONDS)
            else:
                sock.setblocking(False)
                sessions.start_soon(serve_session, sock, name, self.services)
                # Lets others run, too. A checkpoint and an empty queue's error would cost 30 µs more.
                await trio.lowlevel.wait_readable(listening)

    def _complain(self, listener: str, error: OSError) -> None:
        now = trio.current_time()
        if now - self._complained.get(listener, -math.inf) >= COMPLAINT_SECONDS:
            self._complained[listener] = now
            self.logger.error("accept_failed", listener=listener, reason=error.strerror)
