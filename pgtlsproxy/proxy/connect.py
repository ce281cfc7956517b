"""From a Grant to a backend that has read the StartupMessage and answered it.

The next address is tried after a failed dial, a failed verification, silence, or 57P03 before authentication.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

import trio

from pgtlsproxy.config import Backend
from pgtlsproxy.errors import BackendUnavailable, ClientGone
from pgtlsproxy.observability.logs import SessionLog
from pgtlsproxy.policy.access import Grant
from pgtlsproxy.protocol.messages import backend_reader, parse_error_response
from pgtlsproxy.protocol.proxy_header import ProxyProtocol, encode
from pgtlsproxy.protocol.startup import MAX_NAME_OCTETS, StartupMessage, encode_startup
from pgtlsproxy.proxy.candidates import Candidates
from pgtlsproxy.proxy.dial import OwnCertificateRefused, dial, read_message, send_startup
from pgtlsproxy.proxy.sockets import client_ends
from pgtlsproxy.proxy.stages import Accepted, BackendAddress, BackendLeg, Negotiated
from pgtlsproxy.tls.stream import Leg, TLSLeg

CANNOT_CONNECT_NOW: Final = "57P03"


async def connect(
    negotiated: Negotiated, grant: Grant, candidates: Candidates, log: SessionLog
) -> BackendLeg:
    """Dial the candidates in turn until one has answered the StartupMessage.

    Args:
        negotiated: the client.
        grant: the permission to dial; nobody without one makes the proxy do so.
        candidates: the addresses left to try; those tried here are taken out.
        log: told where the session is connected to.

    Returns:
        A leg that the caller owns and closes.

    Raises:
        BackendUnavailable: no candidate is left. The reason names each failure.
    """
    backend = negotiated.accepted.listener.backends[grant.backend]
    context = await backend.context_for(grant.user)
    startup = _startup_for(negotiated, grant, backend.settings)
    header = _header_for(negotiated.accepted, backend.settings)
    while (address := await candidates.next()) is not None:
        timeout = backend.settings.connect_timeout or math.inf
        deadline = trio.current_time() + timeout
        try:
            leg = await dial(address, backend.settings, context, header)
        except BackendUnavailable as error:
            candidates.failed(error, address)
            continue
        try:
            with trio.move_on_at(deadline):
                answered = await _start(leg, address, startup, negotiated)
                candidates.works(address)
                _note(log, answered)
                return answered
            silent = f"{address}: no answer to the StartupMessage within {timeout:g} s (connect_timeout)"
            leg.close()
            candidates.failed(BackendUnavailable(silent), address)
        except OwnCertificateRefused as error:
            leg.close()
            candidates.failed(error.at(address, backend.settings))
        except BackendUnavailable as error:
            leg.close()
            candidates.failed(error)
        except BaseException:
            leg.close()
            raise
    raise candidates.exhausted(grant.backend)


def _note(log: SessionLog, backend: BackendLeg) -> None:
    local = backend.leg.sock.getsockname()
    log.note(
        backend_addr=str(backend.address),
        # What pg_stat_activity shows as client_port: it joins the server's log to this one.
        backend_local_port=local[1] if isinstance(local, tuple) else None,
        backend_tls_version=backend.leg.version if isinstance(backend.leg, TLSLeg) else None,
    )


def _header_for(accepted: Accepted, backend: Backend) -> bytes | None:
    """The PROXY header that says where a client comes from and where it connected to; None for none.

    Raises:
        ClientGone: it has left already.
    """
    if backend.proxy_protocol is None:
        return None
    try:
        ends = client_ends(accepted.sock) if accepted.header is None else accepted.header.ends
    except OSError as error:
        raise ClientGone(f"the client was gone before its backend was dialled: {error.strerror}") from None
    return encode(ProxyProtocol(backend.proxy_protocol), ends)


def _startup_for(negotiated: Negotiated, grant: Grant, backend: Backend) -> bytes:
    """The StartupMessage for the backend, built anew from the parsed one and never copied.

    The proxy's own parameters come last: PostgreSQL lets the last one win, and a client's own
    `pgtlsproxy.*` were dropped when its StartupMessage was parsed.
    """
    accepted, certificate = negotiated.accepted, negotiated.certificate
    startup = replace(negotiated.startup, database=grant.backend_database)
    name = certificate.dn if certificate is not None else grant.identity or ""
    extra: list[tuple[str, str]] = []
    if backend.application_name_add is not None:
        added = backend.application_name_add.format(
            addr=accepted.address, port=accepted.address.port or "", name=name, session=accepted.session
        )
        extra.append(("application_name", joined_application_name(startup, added)))
    if backend.client_address:
        extra += [
            ("pgtlsproxy.client_addr", str(accepted.address)),
            ("pgtlsproxy.client_name", name),
            ("pgtlsproxy.session", accepted.session),
        ]
    return encode_startup(startup, newest=backend.max_protocol_version, extra=extra)


def joined_application_name(startup: StartupMessage, added: str) -> str:
    """The client's application_name with ours behind it, in the 63 bytes that PostgreSQL keeps.

    What is too long is the client's part, cut first. PostgreSQL shows ASCII alone and turns the rest into
    question marks or escapes (check_application_name, src/backend/commands/variable.c); so do we.
    """
    own = "".join(character if " " <= character <= "~" else "?" for character in added)[:MAX_NAME_OCTETS]
    sent = startup.parameter("application_name") or ""
    client = "".join(character if " " <= character <= "~" else "?" for character in sent)
    return client[: MAX_NAME_OCTETS - len(own)] + own


async def _start(leg: Leg, address: BackendAddress, startup: bytes, negotiated: Negotiated) -> BackendLeg:
    """Send the StartupMessage and wait for the first message that answers it."""
    reader = backend_reader()
    await send_startup(leg, startup)
    first = await read_message(leg, reader)
    while first.type in _AHEAD_OF_AUTHENTICATION:
        first = await read_message(leg, reader)
    if first.type == b"E":
        error = parse_error_response(first.body)
        if error.sqlstate == CANNOT_CONNECT_NOW:
            raise BackendUnavailable(f"{address}: {error.message} (57P03)")
    return BackendLeg(leg, address, reader, first, is_same_leaf=_is_same_leaf(leg, negotiated))


_AHEAD_OF_AUTHENTICATION: Final = frozenset({b"v", b"N"})
"""The backend's NegotiateProtocolVersion is ours to answer; notices there are nobody's."""


def _is_same_leaf(leg: Leg, negotiated: Negotiated) -> bool:
    own = negotiated.accepted.listener.pair
    return isinstance(leg, TLSLeg) and negotiated.leg.is_tls and own is not None and leg.peer_leaf == own.leaf
