"""Leaving: each session is ended where it disturbs its client least, and by a time at the latest.

An idle session is told so at once, as by PostgreSQL's fast shutdown, and its pool connects elsewhere. One in
a transaction goes on until it is idle again. When the time is over, whoever stands between two requests is
told then. Whoever does not, as in a long COPY or a replication stream, is cut without a word: its client
must take what it has for broken off, and never for whole.
"""

from __future__ import annotations

from typing import Final

import trio

from pgtlsproxy.errors import ErrorKind, ShuttingDown
from pgtlsproxy.protocol.messages import encode_refusal
from pgtlsproxy.proxy.relay import Relay
from pgtlsproxy.proxy.relay_ending import FAREWELL_SECONDS, Ending, When, Wish

_AT_ONCE: Final = 50
"""Sessions that are told in one go. A farewell takes the relay 50 µs, and others wait meanwhile."""

_PAUSE_SECONDS: Final = 0.005


async def drain(relay: Relay, seconds: float) -> None:
    """End the sessions that are relayed. New ones must not come.

    Args:
        relay: what carries them.
        seconds: how long a transaction may go on.

    Cancellation: whoever has not ended goes on.
    """
    until = trio.current_time() + seconds
    await _tell(relay, When.IDLE, "the proxy shuts down")
    await trio.sleep_until(until)
    await _tell(relay, When.BOUNDARY, "the proxy shuts down, and drain_timeout was over")
    await trio.sleep(FAREWELL_SECONDS)
    await _tell(relay, When.NOW, "the proxy shuts down, and its answer did not end by drain_timeout")


async def _tell(relay: Relay, when: When, why: str) -> None:
    ending = Ending(ErrorKind.SHUTDOWN, why, is_clean=when is not When.NOW, is_cut=when is not When.IDLE)
    for index, logged_in in enumerate(relay.carried(), start=1):
        farewell = b""
        if when is not When.NOW:
            farewell = encode_refusal(ShuttingDown(why), logged_in.standing.session)
        relay.end(logged_in, Wish(ending, when, farewell))
        if index % _AT_ONCE == 0:
            await trio.sleep(_PAUSE_SECONDS)
