"""When a session is to end by itself: what its listener says, and how long its client's certificate lasts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from pgtlsproxy.errors import ErrorKind, IdleSession, ProxyError, ShuttingDown
from pgtlsproxy.protocol.messages import encode_refusal
from pgtlsproxy.protocol.startup import Replication
from pgtlsproxy.proxy.relay_ending import FAREWELL_SECONDS, NO_LIMITS, Due, Ending, Limits, When, Wish
from pgtlsproxy.proxy.stages import Negotiated
from pgtlsproxy.tls.stream import TLSLeg

SPREAD: Final = 0.1
"""The part of a certificate's rest in which its sessions are ended, so that not all of them come back at
once: many clients were given theirs at the same time."""


def limits_of(negotiated: Negotiated) -> Limits:
    """The limits of a session whose login is over now."""
    settings, session = negotiated.accepted.listener.settings, negotiated.accepted.session
    idle = None
    if seconds := settings.idle_session_timeout:
        reason = f"the client asked nothing for {seconds:g} s (idle_session_timeout)"
        idle = Due(seconds, _wish(When.IDLE, ErrorKind.TIMEOUT, reason, IdleSession(reason), session))
    ends = [*_end_of_life(negotiated), *_end_of_certificate(negotiated)]
    if idle is None and not ends:
        return NO_LIMITS
    return Limits(idle, tuple(sorted(ends, key=lambda due: due.seconds)))


def _end_of_life(negotiated: Negotiated) -> Iterator[Due]:
    # A replication stream is as old as its standby.
    seconds = negotiated.accepted.listener.settings.session_lifetime
    if seconds and negotiated.startup.replication is Replication.NONE:
        reason = f"the session was {seconds:g} s old (session_lifetime)"
        session = negotiated.accepted.session
        yield Due(seconds, _wish(When.IDLE, ErrorKind.TIMEOUT, reason, ShuttingDown(reason), session))


def _end_of_certificate(negotiated: Negotiated) -> Iterator[Due]:
    """When idle shortly before it runs out, between two requests when it does, and then in any case."""
    leg, accepted = negotiated.leg, negotiated.accepted
    if accepted.listener.settings.expired_sessions != "close":
        return
    chain = leg.peer_chain if isinstance(leg, TLSLeg) else ()
    if not chain:
        return
    until = min(certificate.not_valid_after_utc for certificate in chain)
    rest = max((until - datetime.now(UTC)).total_seconds(), 0.0)
    reason = f"the client's certificate runs out at {until:%Y-%m-%d %H:%M:%S} UTC (expired_sessions)"
    for seconds, when in (
        (rest * (1 - random.uniform(0, SPREAD)), When.IDLE),  # noqa: S311 - nobody gains by guessing it
        (rest, When.BOUNDARY),
        (rest + FAREWELL_SECONDS, When.NOW),
    ):
        kind = ErrorKind.CLIENT_CERTIFICATE
        yield Due(seconds, _wish(when, kind, reason, ShuttingDown(reason), accepted.session))


def _wish(when: When, kind: ErrorKind, reason: str, told: ProxyError, session: str) -> Wish:
    if when is When.NOW:
        return Wish(Ending(kind, f"{reason}; its answer did not end"), when)
    return Wish(Ending(kind, reason, is_clean=True), when, encode_refusal(told, session))
