"""What a client may say from its first byte to its StartupMessage or CancelRequest.

PostgreSQL allows one SSLRequest and one GSSENCRequest a connection, in either order; after `S`
neither may follow (ProcessStartupPacket, src/backend/tcop/backend_startup.c). A request that may
not come any more is read as a protocol version that nobody speaks. So the number of turns is
bounded: a client that alternates refused requests cannot keep the server busy (CVE-2026-6479).

Whether clear text is admitted is policy, not protocol: a StartupMessage is passed on in every
state, and the session decides.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from pgtlsproxy.errors import ProtocolViolation
from pgtlsproxy.protocol.startup import (
    CancelRequest,
    GSSENCRequest,
    Packet,
    SSLRequest,
    StartupMessage,
    unsupported,
)

TLS_HANDSHAKE: Final = b"\x16"
"""First byte of a TLS record with a ClientHello. As a packet's length it would be over 350 MB."""


class State(enum.Enum):
    """How far a client has come."""

    CLEAR = enum.auto()
    CLEAR_SSL_REFUSED = enum.auto()
    CLEAR_GSSENC_REFUSED = enum.auto()
    CLEAR_BOTH_REFUSED = enum.auto()
    TLS_AFTER_REQUEST = enum.auto()
    TLS_DIRECT = enum.auto()
    TLS_DIRECT_SSL_REFUSED = enum.auto()
    TLS_DIRECT_GSSENC_REFUSED = enum.auto()
    TLS_DIRECT_BOTH_REFUSED = enum.auto()
    DONE = enum.auto()


class Action(enum.Enum):
    """What is to be done about a packet."""

    START_TLS = enum.auto()
    """Answer `S` and take the server's part of a handshake; not one byte may be read before."""
    REFUSE_ENCRYPTION = enum.auto()
    """Answer `N`; the client may go on in the same connection."""
    PROCEED = enum.auto()
    """The packet says what the client wants; nothing more comes before it is answered."""


class _Event(enum.Enum):
    SSL_REQUEST = enum.auto()
    SSL_REQUEST_WITHOUT_TLS = enum.auto()
    GSSENC_REQUEST = enum.auto()
    DIRECT_TLS = enum.auto()


_REFUSE = Action.REFUSE_ENCRYPTION

# GSSENCRequest is always refused: GSSAPI encryption cannot be ended here, and inside TLS it would
# lead back into the clear (CVE-2026-14681). What is not in the table is a violation.
_TRANSITIONS: Final[Mapping[tuple[State, _Event], tuple[Action, State]]] = MappingProxyType(
    {
        (State.CLEAR, _Event.DIRECT_TLS): (Action.START_TLS, State.TLS_DIRECT),
        (State.CLEAR, _Event.SSL_REQUEST): (Action.START_TLS, State.TLS_AFTER_REQUEST),
        (State.CLEAR, _Event.SSL_REQUEST_WITHOUT_TLS): (_REFUSE, State.CLEAR_SSL_REFUSED),
        (State.CLEAR, _Event.GSSENC_REQUEST): (_REFUSE, State.CLEAR_GSSENC_REFUSED),
        (State.CLEAR_SSL_REFUSED, _Event.GSSENC_REQUEST): (_REFUSE, State.CLEAR_BOTH_REFUSED),
        (State.CLEAR_GSSENC_REFUSED, _Event.SSL_REQUEST): (Action.START_TLS, State.TLS_AFTER_REQUEST),
        (State.CLEAR_GSSENC_REFUSED, _Event.SSL_REQUEST_WITHOUT_TLS): (_REFUSE, State.CLEAR_BOTH_REFUSED),
        (State.TLS_DIRECT, _Event.SSL_REQUEST): (_REFUSE, State.TLS_DIRECT_SSL_REFUSED),
        (State.TLS_DIRECT, _Event.GSSENC_REQUEST): (_REFUSE, State.TLS_DIRECT_GSSENC_REFUSED),
        (State.TLS_DIRECT_SSL_REFUSED, _Event.GSSENC_REQUEST): (_REFUSE, State.TLS_DIRECT_BOTH_REFUSED),
        (State.TLS_DIRECT_GSSENC_REFUSED, _Event.SSL_REQUEST): (_REFUSE, State.TLS_DIRECT_BOTH_REFUSED),
    }
)


class DirectTLSRefused(ProtocolViolation):
    """A TLS handshake where none is offered: PostgreSQL closes without a word."""

    sqlstate = None


class ClientNegotiation:
    """One client's way to its StartupMessage.

    Args:
        offers_tls: whether the listener does TLS on this transport; on a Unix socket nobody does.

    Attributes:
        state: how far it has come; DONE takes no further packet.
    """

    def __init__(self, *, offers_tls: bool) -> None:
        self.state = State.CLEAR
        self._offers_tls = offers_tls

    def direct_tls(self) -> None:
        """The client's very first byte begins a TLS handshake; it is to be answered as such.

        Raises:
            ProtocolViolation: TLS is not offered here. There is no way to say so in band.
        """
        transition = _TRANSITIONS.get((self.state, _Event.DIRECT_TLS))
        if transition is None or not self._offers_tls:
            self.state = State.DONE
            raise DirectTLSRefused("direct TLS where none is offered")
        self.state = transition[1]

    def receive(self, packet: Packet) -> Action:
        """Take the client's next packet.

        Raises:
            ProtocolViolation: with PostgreSQL's answer.
        """
        if self.state is State.DONE:
            raise ProtocolViolation("a packet after the one that ends the negotiation")
        if isinstance(packet, StartupMessage | CancelRequest):
            self.state = State.DONE
            return Action.PROCEED
        transition = _TRANSITIONS.get((self.state, self._event(packet)))
        if transition is None:
            self.state = State.DONE
            raise unsupported(packet)
        action, self.state = transition
        return action

    def _event(self, request: SSLRequest | GSSENCRequest) -> _Event:
        if isinstance(request, GSSENCRequest):
            return _Event.GSSENC_REQUEST
        return _Event.SSL_REQUEST if self._offers_tls else _Event.SSL_REQUEST_WITHOUT_TLS
