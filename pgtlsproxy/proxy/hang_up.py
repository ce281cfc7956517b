"""Whether a client that waits has closed its end meanwhile."""

from __future__ import annotations

import select
import socket
from typing import Final

import trio

LOOK_SECONDS: Final = 0.25
"""How often one is looked at that has sent something and may close behind it, as TLS does."""


async def hung_up(sock: socket.socket) -> None:
    """Return when the other side of a socket has closed, whatever it has sent before and nobody has read.

    Args:
        sock: non-blocking; nobody else waits to read from it.
    """
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    await trio.lowlevel.wait_readable(sock)
    while not poll.poll(0):  # noqa: ASYNC110 - what is unread keeps it readable, and hides the end
        await trio.sleep(LOOK_SECONDS)
