"""The packets without a type byte: SSLRequest, GSSENCRequest, CancelRequest and StartupMessage.

What PostgreSQL and we could read differently is refused: of two `user` parameters PostgreSQL takes
the last, names over 63 bytes it cuts. Whoever decides on one reading and forwards the other can be
got past. The StartupMessage that a backend gets is built anew from the parsed one.
(ProcessStartupPacket, src/backend/tcop/backend_startup.c)
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from pgtlsproxy.errors import ProtocolViolation
from pgtlsproxy.identity import Secret, decode_name, encode_name, printable
from pgtlsproxy.protocol.messages import encode_negotiate_protocol_version

MIN_PACKET_OCTETS: Final = 8
MAX_PACKET_OCTETS: Final = 10_004
"""Largest length word: MAX_STARTUP_PACKET_LENGTH of libpq/pqcomm.h, and the word itself."""

MAX_NAME_OCTETS: Final = 63
"""NAMEDATALEN - 1. PostgreSQL cuts longer names off, which makes them somebody else's."""

OWN_PREFIX: Final = "pgtlsproxy."
"""Parameters of the proxy's own. A client's are dropped: they could be mistaken for the proxy's word."""

PROTOCOL_OPTION_PREFIX: Final = "_pq_."

_CANCEL_REQUEST: Final = 80877102
_SSL_REQUEST: Final = 80877103
_GSSENC_REQUEST: Final = 80877104

_SPECIAL: Final = frozenset({"user", "database", "options", "replication"})
"""Names that PostgreSQL treats apart, exactly so spelled; every other is a setting."""

Version = tuple[int, int]
OLDEST: Final[Version] = (3, 0)
NEWEST: Final[Version] = (3, 2)


class Replication(enum.Enum):
    """What the `replication` parameter asks for."""

    NONE = enum.auto()
    PHYSICAL = enum.auto()
    LOGICAL = enum.auto()


@dataclass(frozen=True, slots=True)
class SSLRequest:
    """The client asks for TLS."""


@dataclass(frozen=True, slots=True)
class GSSENCRequest:
    """The client asks for GSSAPI encryption."""


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """The client asks to cancel what a session is doing.

    Args:
        pid: the session's process id, as its BackendKeyData had it.
        key: the session's cancel key, 4 octets in protocol 3.0, up to 256 in 3.2.
    """

    pid: int
    key: Secret

    def encode(self) -> bytes:
        """The packet, as a backend reads it."""
        key = self.key.reveal()
        return struct.pack("!IIi", 12 + len(key), _CANCEL_REQUEST, self.pid) + key


@dataclass(frozen=True, slots=True)
class StartupMessage:
    """What a client wants.

    Args:
        version: the protocol version it asks for, (major, minor).
        user: at most 63 bytes, never empty.
        database: at most 63 bytes; the user's name where the client gave none, and empty for physical
            replication, which has no database.
        replication: which kind of walsender, if any.
        replication_text: the parameter as it was sent; None where it was not.
        parameters: all others in the order sent, `options` among them. PostgreSQL judges them.
        protocol_options: names of `_pq_.` options, none of which any server knows.
        dropped: names of parameters that only the proxy may set.
    """

    version: Version
    user: str
    database: str
    replication: Replication = Replication.NONE
    replication_text: str | None = None
    parameters: tuple[tuple[str, str], ...] = ()
    protocol_options: tuple[str, ...] = ()
    dropped: tuple[str, ...] = field(default=())

    def parameter(self, name: str) -> str | None:
        """The value that PostgreSQL would use for a setting: the last one, GUC names without case."""
        values = [value for key, value in self.parameters if key.lower() == name]
        return values[-1] if values else None


Packet = SSLRequest | GSSENCRequest | CancelRequest | StartupMessage


class InvalidLength(ProtocolViolation):
    """A length word out of bounds. PostgreSQL closes without a word."""

    sqlstate = None


class UnsupportedVersion(ProtocolViolation):
    """A protocol version that is not spoken.

    Attributes:
        is_protocol_2: whether the client reads errors in the form of protocol 2 alone.
    """

    sqlstate = "0A000"

    def __init__(self, major: int, minor: int) -> None:
        text = f"unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.2"
        super().__init__(text, reply=text)
        self.is_protocol_2 = major < 3


def packet_length(word: bytes) -> int:
    """The length that a packet's first four bytes declare, these included.

    Raises:
        InvalidLength: PostgreSQL would close the connection; nothing of that length is to be read.
    """
    length: int = struct.unpack("!I", word)[0]
    if not MIN_PACKET_OCTETS <= length <= MAX_PACKET_OCTETS:
        raise InvalidLength(f"invalid length of startup packet: {length}")
    return length


def parse_packet(payload: bytes) -> Packet:
    """Read a packet.

    Args:
        payload: what follows the length word, at least 4 octets.

    Raises:
        ProtocolViolation: with PostgreSQL's answer.
    """
    code = struct.unpack_from("!I", payload)[0]
    if code == _CANCEL_REQUEST:
        return _parse_cancel(payload)
    if code in {_SSL_REQUEST, _GSSENC_REQUEST}:
        if len(payload) != 4:
            raise InvalidLength("an encryption request with bytes behind it")
        return SSLRequest() if code == _SSL_REQUEST else GSSENCRequest()
    version = (code >> 16, code & 0xFFFF)
    if version[0] != 3:
        raise UnsupportedVersion(*version)
    return _parse_startup(version, payload[4:])


def unsupported(request: SSLRequest | GSSENCRequest) -> UnsupportedVersion:
    """The error for an encryption request that may not come any more: a version nobody speaks."""
    return UnsupportedVersion(1234, 5679 if isinstance(request, SSLRequest) else 5680)


def _parse_cancel(payload: bytes) -> CancelRequest:
    if not 9 <= len(payload) <= 264:
        raise InvalidLength("invalid length of cancel request packet")
    return CancelRequest(struct.unpack_from("!i", payload, 4)[0], Secret(payload[8:]))


def _parse_startup(version: Version, body: bytes) -> StartupMessage:
    pairs = _pairs(body)
    special: dict[str, str] = {}
    parameters: list[tuple[str, str]] = []
    protocol_options: list[str] = []
    dropped: list[str] = []
    for name, value in pairs:
        if name in _SPECIAL:
            if name in special:
                raise ProtocolViolation(
                    f'parameter "{name}" twice in the startup packet: PostgreSQL would take the last',
                    reply=f'duplicate parameter "{name}" in startup packet',
                )
            special[name] = value
        if name.startswith(PROTOCOL_OPTION_PREFIX):
            protocol_options.append(name)
        elif name.lower().startswith(OWN_PREFIX):
            dropped.append(printable(name))
        elif name == "options" or name not in _SPECIAL:
            parameters.append((name, value))
    user = special.get("user", "")
    if not user:
        text = "no PostgreSQL user name specified in startup packet"
        raise ProtocolViolation(text, reply=text, sqlstate="28000")
    replication_text = special.get("replication")
    replication = _parse_replication(replication_text)
    database = special.get("database") or user
    for what, name in (("user", user), ("database", database)):
        octets = len(encode_name(name))
        if octets > MAX_NAME_OCTETS:
            raise ProtocolViolation(
                f"{what} name of {octets} bytes: PostgreSQL would cut it to {MAX_NAME_OCTETS}",
                reply=f"{what} name is longer than {MAX_NAME_OCTETS} bytes",
            )
    return StartupMessage(
        version,
        user,
        "" if replication is Replication.PHYSICAL else database,
        replication,
        replication_text,
        tuple(parameters),
        tuple(dict.fromkeys(protocol_options)),
        tuple(dropped),
    )


def _pairs(body: bytes) -> list[tuple[str, str]]:
    """The name-value pairs; the empty name that ends them must be the packet's last byte."""
    fields = body.split(b"\x00")
    # n pairs and the closing empty name make 2n + 1 terminated strings, and nothing behind the last.
    terminator = next((index for index in range(0, len(fields), 2) if not fields[index]), None)
    if terminator is None or terminator != len(fields) - 2 or fields[-1]:
        text = "invalid startup packet layout: expected terminator as last byte"
        raise ProtocolViolation(text, reply=text)
    return [(decode_name(fields[index]), decode_name(fields[index + 1])) for index in range(0, terminator, 2)]


def _parse_replication(text: str | None) -> Replication:
    if text is None:
        return Replication.NONE
    if text == "database":
        return Replication.LOGICAL
    value = _parse_bool(text)
    if value is None:
        reply = f'invalid value for parameter "replication": "{printable(text)}"'
        raise ProtocolViolation(reply, reply=reply, sqlstate="22023")
    return Replication.PHYSICAL if value else Replication.NONE


def _parse_bool(text: str) -> bool | None:
    """PostgreSQL's loose reading of a boolean (parse_bool_with_len, src/backend/utils/adt/bool.c)."""
    folded = text.lower() if text.isascii() else ""
    if folded in {"on", "1"}:
        return True
    if folded in {"of", "off", "0"}:
        return False
    for word, value in (("true", True), ("yes", True), ("false", False), ("no", False)):
        if folded and word.startswith(folded):
            return value
    return None


def negotiated_version(asked: Version, newest: Version) -> Version:
    """The version that a session speaks: what the client asked for, at most `newest`.

    3.1 was never defined; a client that asks for it speaks 3.0, as servers up to 17 answer.
    """
    chosen = min(asked, newest)
    return OLDEST if chosen == (3, 1) else chosen


def version_answer(startup: StartupMessage, newest: Version = NEWEST) -> bytes:
    """The one NegotiateProtocolVersion that a client gets; empty where it gets exactly what it asked for."""
    version = negotiated_version(startup.version, newest)
    if version == startup.version and not startup.protocol_options:
        return b""
    return encode_negotiate_protocol_version(version, startup.protocol_options)


def encode_startup(
    startup: StartupMessage, *, newest: Version = NEWEST, extra: Sequence[tuple[str, str]] = ()
) -> bytes:
    """The StartupMessage for the backend, built anew.

    Args:
        startup: what the client wants.
        newest: the newest version to speak to the backend.
        extra: parameters of the proxy's own; they come last, and PostgreSQL lets the last one win.

    Raises:
        ProtocolViolation: with `extra` the packet would be longer than PostgreSQL reads.
    """
    version = negotiated_version(startup.version, newest)
    pairs = [("user", startup.user)]
    if startup.replication is not Replication.PHYSICAL:
        pairs.append(("database", startup.database))
    if startup.replication_text is not None:
        pairs.append(("replication", startup.replication_text))
    pairs += [*startup.parameters, *extra]
    body = b"".join(
        encode_name(name) + b"\x00" + encode_name(value).replace(b"\x00", b"") + b"\x00"
        for name, value in pairs
    )
    length = len(body) + 9
    if length > MAX_PACKET_OCTETS:
        raise ProtocolViolation(f"startup packet of {length} bytes with the proxy's own parameters")
    return struct.pack("!IHH", length, *version) + body + b"\x00"
