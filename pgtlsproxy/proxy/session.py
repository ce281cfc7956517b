"""One session, from accept to end: the order of the stages. Read this first.

    accept -> negotiate -> authorise -> prove -> connect -> log in -> relay

Each stage takes what the one before made, and only this module knows their order. Whatever a
session raises is caught here, counted, logged once and answered once; a bug in one session never
touches another.
"""

from __future__ import annotations

import math
import secrets
import socket
from dataclasses import replace

import trio

from pgtlsproxy.errors import (
    ClientGone,
    Displaced,
    ErrorKind,
    InternalError,
    ProxyError,
    ShuttingDown,
    first_of,
)
from pgtlsproxy.observability.logs import SessionLog
from pgtlsproxy.policy.access import Grant
from pgtlsproxy.proxy.accept import accept, introduced
from pgtlsproxy.proxy.admission import Seat
from pgtlsproxy.proxy.authorise import authorise
from pgtlsproxy.proxy.candidates import Candidates
from pgtlsproxy.proxy.challenges import BackendRefused
from pgtlsproxy.proxy.client import Client
from pgtlsproxy.proxy.connect import connect
from pgtlsproxy.proxy.guessing import Guess
from pgtlsproxy.proxy.last_word import LastWord
from pgtlsproxy.proxy.login import log_in
from pgtlsproxy.proxy.negotiate import CancelRequested, negotiate
from pgtlsproxy.proxy.prove import prove
from pgtlsproxy.proxy.relay import Traffic
from pgtlsproxy.proxy.services import Services
from pgtlsproxy.proxy.session_attributes import WrongSessionAttributes
from pgtlsproxy.proxy.snapshot import Snapshot
from pgtlsproxy.proxy.stages import Accepted, LoggedIn, Negotiated, Proved, SessionEnd
from pgtlsproxy.proxy.tally import SessionCount
from pgtlsproxy.proxy.verifiers import Verifiers, verifiers_of


async def serve_session(sock: socket.socket, listener: str, services: Services) -> None:
    """Run one session; nothing that a session does may stop the proxy. Closes the socket.

    Args:
        sock: what the listener accepted.
        listener: its name.
        services: what it shares with others. It lives under the configuration that is in service now.
    """
    snapshot = services.in_service()
    session = secrets.token_hex(8)
    log = SessionLog(services.logger, services.folder, session=session, generation=snapshot.generation)
    client = Client(sock, session)
    seat = services.admission.seat(snapshot.settings)
    count = services.tally.session(listener)
    try:
        try:
            await _run(session, client, listener, snapshot, services, seat, log, count)
        except* ProxyError as refusals:
            await _refuse(first_of(refusals), client, log, count)
        except* Exception as failures:  # noqa: BLE001 - the session's boundary, and the only one
            log.bug(failures)
            await _refuse(InternalError("a bug of ours: see the event `bug`"), client, log, count)
    except* Exception as failures:  # noqa: BLE001 - refusing failed itself
        log.bug(failures)
    finally:
        count.over()
        seat.leave()
        client.close()


async def _run(
    session: str,
    client: Client,
    listener: str,
    snapshot: Snapshot,
    services: Services,
    seat: Seat,
    log: SessionLog,
    count: SessionCount,
) -> None:
    """All stages, in order."""
    with seat.until_let_in():
        if listener not in snapshot.listeners:
            raise ShuttingDown(f"listener {listener} is no longer in the configuration")
        accepted = await accept(session, client, listener, snapshot, log)
        accepted = await introduced(accepted, client, seat, log)
        seat.must_be_over_by(accepted.startup_deadline, "no StartupMessage came in time (startup_timeout)")
        negotiated = await negotiate(accepted, client, services.handshakes, log)
        if isinstance(negotiated, CancelRequested):
            seat.must_be_over_by(math.inf, "")  # what follows has its own
            await services.cancels.forward(accepted, negotiated.request)
            await client.say_goodbye()
            return
        seat.must_be_over_by(accepted.deadline, "the login was not over in time (authentication_timeout)")
        seat.take_session(accepted.source)
        grant = await authorise(negotiated, services.look_ups, log)
        verifiers = verifiers_of(accepted, services.in_service, services.auth_queries)
        with services.guesses.of(accepted.source, grant.user, log) as guess:
            proved = await prove(negotiated, grant, client, verifiers, guess)
            if proved is not None:
                seat.take_user(grant.listener, proved.proof.identity, grant.user)
            last_word = LastWord(negotiated, grant, proved, verifiers, seat, services)
            logged_in = await _log_in(
                negotiated, grant, client, proved, verifiers, guess, last_word, services, log
            )
    await _relay(logged_in, accepted, services, log, count)


async def _log_in(
    negotiated: Negotiated,
    grant: Grant,
    client: Client,
    proved: Proved | None,
    verifiers: Verifiers | None,
    guess: Guess,
    last_word: LastWord,
    services: Services,
    log: SessionLog,
) -> LoggedIn:
    """Dial the backend's addresses until one takes the session; its leg is the caller's to close."""
    accepted = negotiated.accepted
    wanted = accepted.listener.backends[grant.backend]
    candidates = Candidates(wanted.settings, services.resolver, services.host_probes.of(wanted))
    while True:
        backend = await connect(negotiated, grant, candidates, log)
        try:
            attrs = candidates.target_session_attrs
            logged_in = await log_in(
                negotiated, grant, backend, attrs, client, proved, verifiers, guess, last_word.admit, log
            )
            # Once more: the client may have taken its time to hear of it.
            standing = await last_word.admit(logged_in.proof)
            return logged_in if standing is logged_in.standing else replace(logged_in, standing=standing)
        except WrongSessionAttributes as error:
            backend.leg.close()
            candidates.unfit(error)
        except BaseException:
            backend.leg.close()
            raise


async def _relay(
    logged_in: LoggedIn, accepted: Accepted, services: Services, log: SessionLog, count: SessionCount
) -> None:
    """Carry the session to its end, and say how it ended even when it was cut."""
    traffic, end = Traffic(), None
    try:
        count.let_in()
        log.allowed()
        with services.cancels.registered(accepted.listener.name, logged_in):
            end = await services.relay.carry(logged_in, traffic)
    finally:
        logged_in.backend_leg.close()
        if end is None:
            is_cut = trio.current_effective_deadline() == -math.inf
            kind = ErrorKind.SHUTDOWN if is_cut else ErrorKind.BUG
            end = SessionEnd(kind, "the session was cut", traffic.from_client, traffic.from_backend)
        count.outcome = end.kind
        log.ended(
            end.kind,
            end.reason,
            bytes_from_client=end.bytes_from_client,
            bytes_from_backend=end.bytes_from_backend,
            seconds=trio.current_time() - accepted.accepted_at,
        )


async def _refuse(error: ProxyError, client: Client, log: SessionLog, count: SessionCount) -> None:
    """Log a refusal once, and tell the client once, unless the backend has."""
    sqlstate = error.backend_sqlstate if isinstance(error, BackendRefused) else error.sqlstate
    if log.is_decided:
        return
    count.outcome = error.kind
    if isinstance(error, ClientGone) and not client.has_spoken:
        return  # a look at the port: nothing was asked, nothing is decided
    log.refused(error.kind, sqlstate, error.reason)
    if not isinstance(error, Displaced):
        await client.answer(error)
