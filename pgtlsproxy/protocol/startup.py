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
from dataclasses import dataclass
from typing import Final

from pgtlsproxy.errors import ProtocolViolation
from pgtlsproxy.identity import Secret, decode_name, encode_name, printable
from pgtlsproxy.protocol.messages import MAX_KEY_OCTETS, UnsupportedVersion, encode_negotiate_protocol_version

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
        database: at most 63 bytes; the user's name where the client gave none. PostgreSQL ignores it in
            physical replication, poolers route by it: there it is as sent, empty where it was not.
        replication: which kind of walsender, if any.
        replication_text: the parameter as it was sent; None where it was not.
        parameters: all others in the order sent, `options` among them. PostgreSQL judges them.
        protocol_options: names of `_pq_.` options, none of which any server knows.
        dropped: names of parameters that only the proxy may set, printable, for the log.
    """

    version: Version
    user: str
    database: str
    replication: Replication = Replication.NONE
    replication_text: str | None = None
    parameters: tuple[tuple[str, str], ...] = ()
    protocol_options: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    def parameter(self, name: str) -> str | None:
        """The value that PostgreSQL would use for a setting: the last one, GUC names without case."""
        values = [value for key, value in self.parameters if key.lower() == name]
        return values[-1] if values else None


Packet = SSLRequest | GSSENCRequest | CancelRequest | StartupMessage


class InvalidLength(ProtocolViolation):
    """A length word out of bounds. PostgreSQL closes without a word."""

    sqlstate = None


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
    if len(payload) < 8:
        raise InvalidLength("invalid length of cancel request packet")
    key = payload[8:]
    if not 1 <= len(key) <= MAX_KEY_OCTETS:
        raise InvalidLength("invalid length of cancel key in cancel request packet")
    return CancelRequest(struct.unpack_from("!i", payload, 4)[0], Secret(key))


def _parse_startup(version: Version, body: bytes) -> StartupMessage:
    special: dict[str, str] = {}
    parameters: list[tuple[str, str]] = []
    protocol_options: dict[str, None] = {}
    dropped: list[str] = []
    for name, value in _pairs(body):
        if name in special:
            raise ProtocolViolation(
                f'parameter "{name}" twice in the startup packet: PostgreSQL would take the last',
                reply=f'duplicate parameter "{name}" in startup packet',
            )
        if name in _SPECIAL:
            special[name] = value
        if name.startswith(PROTOCOL_OPTION_PREFIX):
            protocol_options[name] = None
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
    database = special.get("database", "")
    if replication is not Replication.PHYSICAL:
        database = database or user
    _check_length("user", user)
    _check_length("database", database)
    return StartupMessage(
        version,
        user,
        database,
        replication,
        replication_text,
        tuple(parameters),
        tuple(protocol_options),
        tuple(dropped),
    )


def _check_length(what: str, name: str) -> None:
    octets = len(encode_name(name))
    if octets > MAX_NAME_OCTETS:
        raise ProtocolViolation(
            f"{what} name of {octets} bytes: PostgreSQL would cut it to {MAX_NAME_OCTETS}",
            reply=f"{what} name is longer than {MAX_NAME_OCTETS} bytes",
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
    folded = text.lower()
    if folded in {"on", "1"}:
        return True
    if folded in {"of", "off", "0"}:
        return False
    for word, value in (("true", True), ("yes", True), ("false", False), ("no", False)):
        if folded and word.startswith(folded):
            return value
    return None


def version_answer(startup: StartupMessage, newest: Version = NEWEST) -> bytes:
    """The one NegotiateProtocolVersion that a client gets; empty where it gets exactly what it asked for.

    3.1 was never defined. It is taken as it is where 3.2 is spoken, as by PostgreSQL 18; libpq takes neither
    a version higher than it asked for nor a message that changes nothing.

    Args:
        startup: what the client wants.
        newest: the newest version that the backend is spoken to in.
    """
    if startup.version <= newest and not startup.protocol_options:
        return b""
    return encode_negotiate_protocol_version(min(startup.version, newest), startup.protocol_options)


def encode_startup(
    startup: StartupMessage, *, newest: Version = NEWEST, extra: Sequence[tuple[str, str]] = ()
) -> bytes:
    """The StartupMessage for the backend, built anew.

    It speaks the client's version, at most `newest`, so that the cancel key has a length that the client
    can take, and has no `_pq_.` options, so that a backend has nothing to negotiate. The database is named
    even where the client left it out: the backend is to read what was judged.

    Args:
        startup: what the client wants.
        newest: the newest version to speak to the backend.
        extra: parameters of the proxy's own; they come last, and PostgreSQL lets the last one win.

    Raises:
        ProtocolViolation: with `extra` the packet would be longer than PostgreSQL reads.
    """
    version = min(startup.version, newest)
    if version == (3, 1):
        version = OLDEST
    pairs = [("user", startup.user)]
    if startup.database:
        pairs.append(("database", startup.database))
    if startup.replication_text is not None:
        pairs.append(("replication", startup.replication_text))
    pairs += [*startup.parameters, *extra]
    packet = _packet(version, pairs)
    if len(packet) > MAX_PACKET_OCTETS and startup.database == startup.user:
        # The client may have left no room for the name. PostgreSQL fills the same one in.
        packet = _packet(version, [pair for pair in pairs if pair[0] != "database"])
    if len(packet) > MAX_PACKET_OCTETS:
        raise ProtocolViolation(
            f"startup packet of {len(packet)} bytes with the proxy's own parameters",
            reply="startup packet is too long",
        )
    return packet


def _packet(version: Version, pairs: Sequence[tuple[str, str]]) -> bytes:
    body = b"".join(_string(name) + _string(value) for name, value in pairs) + b"\x00"
    return struct.pack("!IHH", len(body) + 8, *version) + body


def _string(text: str) -> bytes:
    return encode_name(text).replace(b"\x00", b"") + b"\x00"
