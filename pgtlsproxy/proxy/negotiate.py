"""From a client's first byte to what it wants: encryption settled, StartupMessage or CancelRequest read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography import x509

from pgtlsproxy.errors import (
    ClientCertificateRefused,
    ClientGone,
    ClientTLSFailed,
)
from pgtlsproxy.observability.logs import SessionLog
from pgtlsproxy.protocol.client import TLS_HANDSHAKE, Action, ClientNegotiation
from pgtlsproxy.protocol.proxy_header import begins_header
from pgtlsproxy.protocol.startup import (
    CancelRequest,
    InvalidLength,
    Packet,
    StartupMessage,
    packet_length,
    parse_packet,
)
from pgtlsproxy.proxy.client import Client
from pgtlsproxy.proxy.handshakes import Handshakes
from pgtlsproxy.proxy.stages import Accepted, Negotiated
from pgtlsproxy.tls.certificates import describe, require_named_types
from pgtlsproxy.tls.contexts import ALPN_PROTOCOL
from pgtlsproxy.tls.stream import TLSLeg
from pgtlsproxy.tls.verdicts import ClientCertificateFailed

LENGTH_OCTETS: Final = 4


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """A client that wants a query cancelled, and nothing else."""

    request: CancelRequest


async def negotiate(
    accepted: Accepted, client: Client, handshakes: Handshakes, log: SessionLog
) -> Negotiated | CancelRequested:
    """Settle the encryption and read what the client wants.

    Args:
        accepted: the connection.
        client: its end.
        handshakes: lets a TLS handshake begin.
        log: told what is known.

    Bytes are read exactly as far as a packet reaches, so that nothing sent in clear behind an
    SSLRequest is ever taken for decrypted: the handshake meets it first, and fails.

    Raises:
        ProtocolViolation: the client broke the protocol.
        ClientTLSFailed: the handshake failed.
        ClientGone: the client closed before it said anything that needs an answer.

    Has no deadline of its own.
    """
    startup = await _read_startup(accepted, client, handshakes, log)
    if isinstance(startup, CancelRequest):
        return CancelRequested(startup)
    log.note(
        user=startup.user,
        database=startup.database,
        replication=None if startup.replication_text is None else startup.replication.name.lower(),
        application_name=startup.parameter("application_name"),
    )
    leg = client.leg
    certificate = None
    if isinstance(leg, TLSLeg) and leg.peer_leaf is not None:
        certificate = describe(leg.peer_leaf, leg.peer_issuer)
    return Negotiated(accepted, leg, startup, certificate)


async def _read_startup(
    accepted: Accepted, client: Client, handshakes: Handshakes, log: SessionLog
) -> StartupMessage | CancelRequest:
    context = accepted.listener.tls_context
    negotiation = ClientNegotiation(offers_tls=context is not None and not accepted.address.is_unix)
    first = await client.peek()
    if not first:
        raise ClientGone("the client closed without a word")
    client.has_spoken = True
    if first == TLS_HANDSHAKE:
        negotiation.direct_tls()
        leg = await _start_tls(accepted, client, handshakes, log)
        if leg.alpn != ALPN_PROTOCOL:
            raise ClientTLSFailed(
                "received direct SSL connection request without ALPN protocol negotiation extension"
            )
    while True:
        packet = await _read_packet(accepted, client)
        match negotiation.receive(packet):
            case Action.START_TLS:
                await client.agree_to_tls()
                if not await client.peek():
                    raise ClientGone("the client closed before its TLS handshake")
                await _start_tls(accepted, client, handshakes, log)
            case Action.REFUSE_ENCRYPTION:
                await client.send(b"N")
            case Action.PROCEED:
                assert isinstance(packet, StartupMessage | CancelRequest)  # noqa: S101 - narrows the type
                return packet


async def _read_packet(accepted: Accepted, client: Client) -> Packet:
    word = await client.read_exactly(LENGTH_OCTETS)
    if not word:
        raise ClientGone("the client closed before its StartupMessage")
    if len(word) < LENGTH_OCTETS:
        raise InvalidLength("incomplete startup packet")
    try:
        length = packet_length(word) - LENGTH_OCTETS
    except InvalidLength:
        if not begins_header(word):
            raise
        listed = "which proxy_protocol_from does not list" if accepted.via is None else "behind another one"
        raise InvalidLength(f"a PROXY header from {accepted.via or accepted.address}, {listed}") from None
    payload = await client.read_exactly(length)
    if len(payload) < length:
        raise InvalidLength("incomplete startup packet")
    return parse_packet(payload)


async def _start_tls(accepted: Accepted, client: Client, handshakes: Handshakes, log: SessionLog) -> TLSLeg:
    context = accepted.listener.tls_context
    assert context is not None  # noqa: S101 - the negotiation offers TLS only where there is one
    await handshakes.begin(accepted.snapshot.settings.max_handshakes)
    try:
        leg = await client.start_tls(context)
        log.note(tls_version=leg.version, tls_cipher=leg.cipher, sni=leg.server_name)
        if leg.peer_leaf is not None:
            # Names are read of every certificate, whether a line asks for them or not, as PostgreSQL does.
            certificate = describe(leg.peer_leaf, leg.peer_issuer)
            log.note_certificate(certificate, verified=True)
            require_named_types(certificate)
    except ClientCertificateFailed as error:
        log.note(tls_error=error.tls_error)
        if error.record.certificate is not None:
            _note_unverified(error.record.certificate, log)
        raise
    except ClientTLSFailed as error:
        log.note(tls_error=error.reason)
        raise
    return leg


def _note_unverified(certificate: x509.Certificate, log: SessionLog) -> None:
    try:
        log.note_certificate(describe(certificate), verified=False)
    except ClientCertificateRefused as error:
        log.note(tls_error=error.reason)
