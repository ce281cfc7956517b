"""Whether a session may be there under a newer configuration than the one that let it in.

A login that ends when a reload has swapped the configuration is judged again under the newer one, and a
refusal wins: a certificate that was revoked meanwhile lets nobody in. With `revoked_sessions: close`
sessions that are relayed are judged in the same way after every swap. Where a role or a host name cannot be
looked up then, a login is refused, and a session is judged again until it is known, but not for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import trio
from cryptography import x509

from pgtlsproxy.errors import AccessDenied, ErrorKind, ProxyError, ShuttingDown
from pgtlsproxy.identity import Proof, printable
from pgtlsproxy.policy.access import AccessRefused, Grant
from pgtlsproxy.policy.continuity import require_same
from pgtlsproxy.protocol.messages import encode_refusal
from pgtlsproxy.proxy.authorise import LookUps, judge, request_of
from pgtlsproxy.proxy.relay import Relay
from pgtlsproxy.proxy.relay_ending import Ending, When, Wish
from pgtlsproxy.proxy.services import Services
from pgtlsproxy.proxy.snapshot import ListenerSnapshot, Snapshot
from pgtlsproxy.proxy.stages import LoggedIn, Negotiated, Standing
from pgtlsproxy.tls.stream import Leg, TLSLeg
from pgtlsproxy.tls.vouching import Vouching

GRACE_SECONDS: Final = 5.0
"""How long a session that may not be there any more may take to get to the end of its answer."""

AGAIN_SECONDS: Final = 10.0
"""When a session is judged again that could not be, for want of a look-up."""

UNKNOWN_TIMES: Final = 30
"""How often, until it is ended all the same: whoever owns an address can keep its name from being found."""


VOUCHINGS: Final = trio.CapacityLimiter(2)
"""Trusts that are read for it at once; the others wait, and a login within its deadline."""


class CertificateWithdrawn(AccessDenied):
    """Nobody vouches for the client's certificate any more: it was revoked, or its CA taken out."""

    kind = ErrorKind.CLIENT_CERTIFICATE
    reply = "connection requires a valid client certificate"


def standing_of(negotiated: Negotiated, grant: Grant) -> Standing:
    """What a newer configuration will hold a client against."""
    accepted, leg = negotiated.accepted, negotiated.leg
    is_watched = accepted.listener.settings.revoked_sessions == "close"
    return Standing(
        session=accepted.session,
        request=request_of(negotiated),
        grant=grant,
        chain=leg.peer_chain if is_watched and isinstance(leg, TLSLeg) else (),
        generation=accepted.snapshot.generation,
    )


async def keep_up(standing: Standing, client_leg: Leg, proof: Proof, services: Services) -> Standing:
    """Judge a login again, until nothing newer is in service.

    Raises:
        ProxyError: it may not go on.
    """
    while (snapshot := services.in_service()).generation != standing.generation:
        chain = client_leg.peer_chain if isinstance(client_leg, TLSLeg) else ()
        vouching = await _vouching(_listener(snapshot, standing), checks_time=True)
        await _judge_again(standing, snapshot, proof, chain, vouching, services.look_ups)
        standing = replace(standing, generation=snapshot.generation)
    return standing


async def judge_the_living(services: Services, snapshot: Snapshot) -> None:
    """Judge the sessions that are relayed, and end those that may not be there any more.

    It takes until all are judged, or something newer is in service. A bug is logged, and leaves its session
    alone.

    Args:
        services: what they share.
        snapshot: what has just been taken into service.
    """
    unjudged = await _judge_all(_watched(services.relay, snapshot), services, snapshot)
    for _ in range(UNKNOWN_TIMES):
        if not unjudged:
            return
        await trio.sleep(AGAIN_SECONDS)
        if services.in_service().generation != snapshot.generation:
            return
        alive = {id(logged_in) for logged_in in services.relay.carried()}
        again = [logged_in for logged_in, _ in unjudged if id(logged_in) in alive]
        unjudged = await _judge_all(again, services, snapshot)
    await _end(services.relay, unjudged, "it cannot be known whether it is allowed")


async def _judge_all(
    sessions: Sequence[LoggedIn], services: Services, snapshot: Snapshot
) -> list[tuple[LoggedIn, ProxyError]]:
    """Judge sessions once, and return those of which it cannot be known, and why."""
    vouching: dict[str, Vouching] = {}
    refused: list[tuple[LoggedIn, ProxyError]] = []
    unknown: list[tuple[LoggedIn, ProxyError]] = []
    for logged_in in sessions:
        standing = logged_in.standing
        listener = snapshot.listeners[standing.grant.listener]
        try:
            if listener.name not in vouching:
                vouching[listener.name] = await _vouching(listener, checks_time=False)
            await _judge_again(
                standing,
                snapshot,
                logged_in.proof,
                standing.chain,
                vouching[listener.name],
                services.look_ups,
            )
        except ProxyError as refusal:
            if isinstance(refusal, AccessRefused) and not refusal.is_certain:
                unknown.append((logged_in, refusal))
            else:
                refused.append((logged_in, refusal))
        except Exception as error:
            services.logger.error("bug", session=standing.session, exc_info=error)
        await trio.lowlevel.checkpoint()
    if unknown:
        reason = printable(unknown[-1][1].reason)
        services.logger.warning("sessions_not_judged", sessions=len(unknown), reason=reason)
    await _end(services.relay, refused, f"not allowed any more since generation {snapshot.generation}")
    return unknown


async def end_the_unjudged(relay: Relay, snapshot: Snapshot) -> None:
    """End the sessions that would have to be judged, for who cannot take the configuration to judge them by.

    Args:
        relay: what carries them.
        snapshot: what is still in service here.
    """
    problem = ShuttingDown("this worker could not take the newest configuration")
    unjudged = [(logged_in, problem) for logged_in in _watched(relay, snapshot)]
    await _end(relay, unjudged, "it cannot be known whether it is allowed")


def _watched(relay: Relay, snapshot: Snapshot) -> list[LoggedIn]:
    """The sessions that are to be closed when they may not be there any more."""
    closing = {
        name for name, listener in snapshot.listeners.items() if listener.settings.revoked_sessions == "close"
    }
    return [logged_in for logged_in in relay.carried() if logged_in.standing.grant.listener in closing]


async def _end(relay: Relay, refused: Sequence[tuple[LoggedIn, ProxyError]], why: str) -> None:
    """End sessions: with a word when their answer is over, and without one where it takes too long."""
    for logged_in, refusal in refused:
        ending = Ending(refusal.kind, f"{why}: {refusal.reason}", is_clean=True)
        farewell = encode_refusal(ShuttingDown(ending.reason), logged_in.standing.session)
        relay.end(logged_in, Wish(ending, When.BOUNDARY, farewell))
    if refused:
        await trio.sleep(GRACE_SECONDS)
    for logged_in, refusal in refused:
        ending = Ending(refusal.kind, f"{why}: {refusal.reason}; its answer did not end")
        relay.end(logged_in, Wish(ending, When.NOW))


async def _judge_again(
    standing: Standing,
    snapshot: Snapshot,
    proof: Proof,
    chain: Sequence[x509.Certificate],
    vouching: Vouching,
    look_ups: LookUps,
) -> None:
    """Hold a session against a newer configuration.

    Raises:
        ProxyError: it may not be there.
    """
    problem = vouching.problem(chain) if chain else None
    if problem is not None:
        raise CertificateWithdrawn(f"nobody vouches for the client's certificate any more: {problem}")
    newer = await judge(_listener(snapshot, standing), standing.request, look_ups)
    require_same(standing.grant, newer, standing.request, proof)


async def _vouching(listener: ListenerSnapshot, *, checks_time: bool) -> Vouching:
    """What the chains of a listener's clients are held against; long revocation lists take a while."""
    return await trio.to_thread.run_sync(
        lambda: Vouching(listener.trust, checks_time=checks_time), limiter=VOUCHINGS
    )


def _listener(snapshot: Snapshot, standing: Standing) -> ListenerSnapshot:
    name = standing.grant.listener
    if name not in snapshot.listeners:
        raise ShuttingDown(f"listener {name} is no longer in the configuration")
    return snapshot.listeners[name]
