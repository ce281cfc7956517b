"""Dialling every backend as a session would, to see what it is: for `check --connect`.

`probe` asks for a user that nobody has. A backend that lets such a user in without a question believes
the proxy, and with `login: passthrough` that would be anybody.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import trio
from cryptography.hazmat.primitives.hashes import SHA256
from structlog.typing import FilteringBoundLogger

from pgtlsproxy.config import AuthQuery, HostProbe, RolesQuery
from pgtlsproxy.errors import BackendUnavailable
from pgtlsproxy.protocol.auth_query import NO_ROLE
from pgtlsproxy.protocol.backend import SCRAM, SCRAM_PLUS
from pgtlsproxy.protocol.messages import (
    Authentication,
    backend_reader,
    parse_authentication,
    parse_error_response,
)
from pgtlsproxy.protocol.startup import NEWEST, StartupMessage, encode_startup
from pgtlsproxy.proxy.auth_query import ASK_SECONDS, connect_to
from pgtlsproxy.proxy.backend_roles import FETCH_SECONDS, fetch_memberships
from pgtlsproxy.proxy.candidates import Candidates
from pgtlsproxy.proxy.dial import OwnCertificateRefused, dial, read_message, send_startup
from pgtlsproxy.proxy.host_probes import ask_address
from pgtlsproxy.proxy.resolve import Resolver
from pgtlsproxy.proxy.session_attributes import missing_parameter, shown_role
from pgtlsproxy.proxy.snapshot import BackendSnapshot, ListenerSnapshot
from pgtlsproxy.proxy.stages import BackendAddress
from pgtlsproxy.tls.stream import Leg, TLSLeg

PROBE_SECONDS = 10.0
"""How long one address may take from the dial to its first answer."""


@dataclass(frozen=True, slots=True)
class Probed:
    """What one address of a backend showed.

    Args:
        backend: the backend's name.
        address: which address.
        problem: why sessions would fail there; None where they would not.
        finding: what it is like: its TLS version, what it asks of an unknown user, and with `host_probe` its
            role.
        offers_channel_binding: whether it offers SCRAM bound to its certificate.
        certificate_sha256: fingerprint of its certificate; None without TLS.
    """

    backend: str
    address: str
    problem: str | None
    finding: str
    offers_channel_binding: bool = False
    certificate_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class QueryAsked:
    """What came of a query that a listener asks for itself.

    Args:
        key: `roles_query` or `auth_query`.
        listener: the listener's name.
        backend: the name of the backend that was asked.
        problem: why it has no answer; None where it has one.
        finding: what the answer is like.
    """

    key: str
    listener: str
    backend: str
    problem: str | None
    finding: str


async def probe(backend: BackendSnapshot, resolver: Resolver) -> list[Probed]:
    """Dial every address of a backend."""
    candidates = Candidates(backend.settings, resolver)
    results = []
    while (address := await candidates.next()) is not None:
        results.append(await _probe_address(backend, address))
    results += [Probed(backend.name, "", error.reason, "") for error in candidates.failures]
    return results


async def ask_for_roles(listener: ListenerSnapshot, query: RolesQuery, resolver: Resolver) -> QueryAsked:
    """Ask for the members of roles as a listener would for its first session."""
    backend = listener.backends[listener.settings.backend_asked(query)]
    problem = f"no answer within {FETCH_SECONDS:g} s"
    with trio.move_on_after(FETCH_SECONDS):
        try:
            found = await fetch_memberships(backend, query, resolver)
        except BackendUnavailable as error:
            problem = error.reason
        else:
            finding = (
                f"backend {backend.name} tells {query.shown_user} of {len(found.names)} roles with members"
            )
            return QueryAsked("roles_query", listener.name, backend.name, None, finding)
    return QueryAsked(
        "roles_query",
        listener.name,
        backend.name,
        f"{problem}; until the backend answers, lines for members of a role refuse whoever comes to them",
        "",
    )


async def ask_for_a_verifier(
    listener: ListenerSnapshot, query: AuthQuery, resolver: Resolver, logger: FilteringBoundLogger
) -> QueryAsked:
    """Ask for the verifier of a user whom nobody has, as a listener would for a login."""
    name = listener.settings.backend_asked(query)
    problem = f"no answer within {ASK_SECONDS:g} s"
    with trio.move_on_after(ASK_SECONDS):
        try:
            asked = await connect_to(listener, resolver, logger).ask(_nobody())
        except BackendUnavailable as error:
            problem = error.reason
        else:
            if asked.secret.lack == NO_ROLE:
                finding = f"backend {name} answers {query.shown_user}, and has no verifier for nobody"
                return QueryAsked("auth_query", listener.name, name, None, finding)
            problem = "it has a secret for a user whom nobody has: the query does not ask for the name in $1"
    return QueryAsked(
        "auth_query",
        listener.name,
        name,
        f"{problem}; until the backend answers, nobody who needs a verifier of it can log in",
        "",
    )


def _nobody() -> str:
    """A name that no user has, and that an administrator knows again in the server's log."""
    return f"pgtlsproxy_check_{secrets.token_hex(4)}"


async def _probe_address(backend: BackendSnapshot, address: BackendAddress) -> Probed:
    with trio.move_on_after(PROBE_SECONDS):
        try:
            leg = await dial(address, backend.settings, backend.tls_context)
            try:
                problem, finding, offers_channel_binding = await _ask(leg, backend)
            finally:
                leg.close()
        except OwnCertificateRefused as error:
            reason = error.at(address, backend.settings).reason
            return Probed(backend.name, str(address), reason, "")
        except BackendUnavailable as error:
            return Probed(backend.name, str(address), error.reason, "")
        host_probe = backend.settings.host_probe
        if problem is None and host_probe is not None:
            problem, role = await _ask_for_role(backend, host_probe, address)
            finding += role
        encryption = leg.version if isinstance(leg, TLSLeg) else "no TLS"
        leaf = leg.peer_leaf if isinstance(leg, TLSLeg) else None
        return Probed(
            backend.name,
            str(address),
            problem,
            f"{encryption}; {finding}",
            offers_channel_binding,
            None if leaf is None else leaf.fingerprint(SHA256()).hex(),
        )
    return Probed(backend.name, str(address), f"no answer within {PROBE_SECONDS:g} s", "")


async def _ask(leg: Leg, backend: BackendSnapshot) -> tuple[str | None, str, bool]:
    """What keeps sessions out, what the backend is like, and whether it offers channel binding."""
    reader = backend_reader()
    await send_startup(leg, encode_startup(StartupMessage(NEWEST, _nobody(), "postgres")))
    message = await read_message(leg, reader)
    while message.type not in {b"R", b"E"}:
        message = await read_message(leg, reader)
    if message.type == b"E":
        error = parse_error_response(message.body)
        return None, f"answers an unknown user with {error.sqlstate}: {error.message}", False
    request = parse_authentication(message.body)
    problem, finding = _judge(request, backend)
    return problem, finding, SCRAM_PLUS in request.mechanisms


async def _ask_for_role(
    backend: BackendSnapshot, probe: HostProbe, address: BackendAddress
) -> tuple[str | None, str]:
    """What keeps the probe from an answer, and what the host is, to be put behind a finding."""
    problem = f"{address}: host_probe: no answer within {probe.timeout:g} s"
    with trio.move_on_after(probe.timeout):
        try:
            parameters = await ask_address(backend, probe, address)
        except BackendUnavailable as error:
            problem = error.reason
        else:
            if (missing := missing_parameter(parameters)) is None:
                return None, f"; host_probe: {shown_role(parameters)}"
            problem = f"{address}: host_probe: {missing}"
    return f"{problem}; no session is led to this host", ""


def _judge(request: Authentication, backend: BackendSnapshot) -> tuple[str | None, str]:
    if request.code == 0:
        if backend.settings.login == "passthrough" and not backend.settings.allows_none:
            return (
                "it lets an unknown user in without asking for a proof: it believes the proxy, or everybody. "
                "With login: passthrough such sessions are refused; let its pg_hba.conf ask (scram-sha-256)",
                "asks nothing",
            )
        return None, "asks nothing of a session with the proxy's credential"
    asked = f"asks for {', '.join(request.mechanisms) or f'authentication {request.code}'}"
    if SCRAM_PLUS in request.mechanisms:
        asked = "asks for SCRAM with channel binding"
    elif SCRAM in request.mechanisms:
        asked = "asks for SCRAM without channel binding, which is relayed as it is"
    if backend.settings.login != "passthrough":
        return None, f"{asked}, which the proxy cannot answer: users need a line of its pg_hba.conf with cert"
    return None, asked
