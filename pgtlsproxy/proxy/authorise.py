"""From what a client wants to what it may: the policy's answer, with the facts that it asks for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import trio

from pgtlsproxy.observability.logs import SessionLog
from pgtlsproxy.policy.access import (
    AccessRefused,
    AccessRequest,
    DecidedBy,
    Fact,
    Facts,
    Grant,
    Needs,
    decide,
)
from pgtlsproxy.policy.hba import Replication
from pgtlsproxy.policy.records import LineRef
from pgtlsproxy.policy.replies import no_entry
from pgtlsproxy.proxy.backend_roles import BackendRoles
from pgtlsproxy.proxy.client_hosts import ClientHosts
from pgtlsproxy.proxy.interfaces import own_interfaces
from pgtlsproxy.proxy.snapshot import ListenerSnapshot
from pgtlsproxy.proxy.stages import Accepted, Negotiated

INTERFACE_LISTINGS: Final = 8
"""Listings of this host's interfaces under way at once."""


@dataclass(frozen=True, slots=True)
class LookUps:
    """What has to be asked about clients, and is remembered for the next ones; one a process.

    Args:
        client_hosts: the host names of clients.
        backend_roles: the members of backends' roles.
        interface_listings: bounds the threads that list this host's interfaces.
    """

    client_hosts: ClientHosts = field(default_factory=ClientHosts)
    backend_roles: BackendRoles = field(default_factory=BackendRoles)
    interface_listings: trio.CapacityLimiter = field(
        default_factory=lambda: trio.CapacityLimiter(INTERFACE_LISTINGS)
    )


async def authorise(negotiated: Negotiated, look_ups: LookUps, log: SessionLog) -> Grant:
    """Ask the policy about a client, and note what it says.

    Raises:
        AccessRefused: it says no.
    """
    accepted = negotiated.accepted
    request = request_of(negotiated)
    try:
        _require_address(accepted, request)
        grant = await judge(accepted.listener, request, look_ups)
    except AccessRefused as refusal:
        log.note(method=refusal.method, decided_by=refusal.decided_by)
        _note_lines(log, refusal.hba, refusal.ident)
        if refusal.hba is None and refusal.decided_by is DecidedBy.HBA:
            log.note(hba_file=accepted.listener.settings.hba_file)  # none of its lines applies
        raise
    log.note(method=grant.method, login=grant.login, identity=grant.identity)
    log.note(backend=grant.backend, backend_database=grant.backend_database)
    _note_lines(log, grant.hba, grant.ident)
    return grant


def _require_address(accepted: Accepted, request: AccessRequest) -> None:
    """Refuse whoever comes from nowhere: the load balancer's own address says nothing of who it is."""
    if accepted.header is not None and accepted.header.ends is None:
        raise AccessRefused(
            f"the PROXY header of {accepted.via} names no client ({accepted.header.says}): a load balancer "
            "may look whether the proxy is there, and starts no session of its own",
            reply=no_entry(request),
            decided_by=DecidedBy.PROXY_PROTOCOL_FROM,
        )


def request_of(negotiated: Negotiated) -> AccessRequest:
    """What the policy is asked about a client."""
    accepted, startup = negotiated.accepted, negotiated.startup
    return AccessRequest(
        user=startup.user,
        database=startup.database,
        replication=Replication[startup.replication.name],
        address=accepted.address,
        tls=negotiated.leg.is_tls,
        certificate=negotiated.certificate,
        os_user=accepted.os_user,
    )


async def judge(listener: ListenerSnapshot, request: AccessRequest, look_ups: LookUps) -> Grant:
    """Ask the policy, and fetch the facts that it misses.

    Raises:
        AccessRefused: it says no.
    """
    facts = Facts()
    try:
        while isinstance(decision := decide(listener.rules, request, facts), Needs):
            facts = await _with_fact(decision.fact, facts, request, listener, look_ups)
    except AccessRefused as refusal:
        refusal.is_certain = facts.are_known
        raise
    return decision


async def _with_fact(
    fact: Fact, facts: Facts, request: AccessRequest, listener: ListenerSnapshot, look_ups: LookUps
) -> Facts:
    """The facts with one more that has been looked up."""
    match fact:
        case Fact.INTERFACES:
            found = await trio.to_thread.run_sync(
                own_interfaces, abandon_on_cancel=True, limiter=look_ups.interface_listings
            )
            return replace(facts, interfaces=found)
        case Fact.CLIENT_HOST:
            assert request.address.ip is not None  # noqa: S101 - a line for Unix sockets has no address
            return replace(facts, client_host=await look_ups.client_hosts.of(request.address.ip))
        case Fact.ROLES:
            query = listener.settings.roles_query
            assert query is not None  # noqa: S101 - the loader takes no lines for roles without
            backend = listener.backends[listener.settings.backend_asked(query)]
            return replace(facts, roles=await look_ups.backend_roles.of(request.user, backend, query))


def _note_lines(log: SessionLog, hba: LineRef | None, ident: LineRef | None) -> None:
    if hba is not None:
        log.note(hba_file=hba.file, hba_line=hba.number)
    if ident is not None:
        log.note(ident_file=ident.file, ident_line=ident.number)
