"""Whole messages with a type byte: their framing within limits, and the few that the proxy reads or writes.

PostgreSQL manual, chapter 54 (protocol-message-formats). Everything here is bytes in, values out.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from pgtlsproxy.errors import BackendMisbehaved, ProtocolViolation, ProxyError
from pgtlsproxy.identity import Secret, decode_name, encode_name, printable

SSL_REQUEST: Final = struct.pack("!ii", 8, 80877103)

MAX_AUTH_TOKEN_OCTETS: Final = 65535
"""Longest length word of a client's authentication message; PG_MAX_AUTH_TOKEN_LENGTH in libpq/auth.h."""

MAX_LOGIN_MESSAGE_OCTETS: Final = 65536
"""Longest length word of a backend's message before ReadyForQuery. libpq itself takes no more than 2,000 for
`R` and 30,000 for the others; what lies between is left to the client."""

MAX_NEGOTIATE_OCTETS: Final = 2000
"""Longest length word of a backend's NegotiateProtocolVersion, as in libpq (PQconnectPoll)."""

MIN_KEY_OCTETS: Final = 4
MAX_KEY_OCTETS: Final = 256
"""Bounds of a cancel key: 4 octets in protocol 3.0, as long as the server likes up to 256 in 3.2."""

MAX_LOGIN_OCTETS: Final = 1_048_576
"""All that one side may send before ReadyForQuery."""

_LENGTH: Final = struct.Struct("!I")
_INT32: Final = struct.Struct("!i")


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    Args:
        type: its type byte.
        body: what follows the length word. May hold a password: never shown.
    """

    type: bytes
    body: bytes = field(repr=False)

    @property
    def raw(self) -> bytes:
        """The message as it came."""
        return self.type + _LENGTH.pack(len(self.body) + 4) + self.body


class MessageReader:
    """Cuts a peer's bytes into messages, within limits, and hands back what it did not need.

    Args:
        max_octets: the types that may come, and for each its largest length word.
        max_total_octets: the most that may be taken in all.
        once: those of the types that may come only once.
        unexpected: makes the error for a type that may not come.
        invalid: makes the error for a length beyond the limits, from a reason for the log.
    """

    def __init__(
        self,
        max_octets: Mapping[bytes, int],
        max_total_octets: int,
        *,
        once: frozenset[bytes] = frozenset(),
        unexpected: Callable[[bytes], ProxyError],
        invalid: Callable[[str], ProxyError],
    ) -> None:
        self._max_octets = dict(max_octets)
        self._left = max_total_octets
        self._once = once
        self._unexpected = unexpected
        self._invalid = invalid
        self._buffer = b""
        self._start = 0

    def feed(self, data: bytes) -> None:
        """Take bytes as they came."""
        self._buffer = self.take_unread() + data

    def next(self) -> Message | None:
        """The next whole message; None when more bytes are needed.

        Raises:
            ProxyError: a type that may not come, or a length beyond the limits. It is raised as soon as the
                type or the length word is there, before anything of that length is waited for.
        """
        buffer, start = self._buffer, self._start
        kind = buffer[start : start + 1]
        if not kind:
            return None
        max_octets = self._max_octets.get(kind)
        if max_octets is None:
            raise self._unexpected(kind)
        body = start + 5
        if len(buffer) < body:
            return None
        length = _LENGTH.unpack_from(buffer, start + 1)[0]
        if not 4 <= length <= max_octets:
            raise self._invalid(f'message "{printable(kind)}" of invalid length {length}')
        if length + 1 > self._left:
            raise self._invalid("too many bytes before the login was over")
        end = start + length + 1
        if len(buffer) < end:
            return None
        self._start = end
        self._left -= length + 1
        if kind in self._once:
            del self._max_octets[kind]
        return Message(kind, buffer[body:end])

    def next_alike(self, kind: bytes) -> tuple[list[bytes], bytes]:
        """The whole messages that come next, while they are of one type: their bodies, and all as it came.

        At one that is beyond the limits it stops; `next` says what is wrong with it.

        Args:
            kind: a type that may come more than once.
        """
        buffer, start, max_octets = self._buffer, self._start, self._max_octets[kind]
        bodies: list[bytes] = []
        at = start
        while len(buffer) >= at + 5 and buffer.startswith(kind, at):
            length = _LENGTH.unpack_from(buffer, at + 1)[0]
            end = at + 1 + length
            if not 4 <= length <= max_octets or end > len(buffer) or end - start > self._left:
                break
            bodies.append(buffer[at + 5 : end])
            at = end
        self._start = at
        self._left -= at - start
        return bodies, buffer[start:at]

    def take_unread(self) -> bytes:
        """All bytes that were fed and belong to no message that was returned; the reader is empty then."""
        unread = self._buffer[self._start :]
        self._buffer, self._start = b"", 0
        return unread


def client_reader(awaited: Callable[[], str] = lambda: "password") -> MessageReader:
    """A reader for a client that is being authenticated: only `p`, as in PostgreSQL's auth.c.

    Args:
        awaited: what the client is to send now: `password`, `SASL` or `GSS`.
    """

    def unexpected(kind: bytes) -> ProtocolViolation:
        text = f"expected {awaited()} response, got message type {kind[0]}"
        return ProtocolViolation(text, reply=text)

    def invalid(reason: str) -> ProtocolViolation:
        return ProtocolViolation(reason, reply="invalid message length")

    return MessageReader(
        {b"p": MAX_AUTH_TOKEN_OCTETS}, MAX_LOGIN_OCTETS, unexpected=unexpected, invalid=invalid
    )


_BACKEND_MAX_OCTETS: Final[Mapping[bytes, int]] = MappingProxyType(
    {
        b"R": MAX_LOGIN_MESSAGE_OCTETS,
        b"E": MAX_LOGIN_MESSAGE_OCTETS,
        b"N": MAX_LOGIN_MESSAGE_OCTETS,
        b"S": MAX_LOGIN_MESSAGE_OCTETS,
        b"v": MAX_NEGOTIATE_OCTETS,
        b"K": 8 + MAX_KEY_OCTETS,
        b"Z": 5,
    }
)


def backend_reader() -> MessageReader:
    """A reader for a backend before ReadyForQuery. Of NegotiateProtocolVersion there is one at most."""

    def unexpected(kind: bytes) -> BackendMisbehaved:
        return BackendMisbehaved(f'the backend sent message type "{printable(kind)}" during the login')

    return MessageReader(
        _BACKEND_MAX_OCTETS,
        MAX_LOGIN_OCTETS,
        once=frozenset({b"v"}),
        unexpected=unexpected,
        invalid=lambda reason: BackendMisbehaved(f"the backend sent a {reason}"),
    )


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


def encode_refusal(error: ProxyError, session: str) -> bytes:
    """The ErrorResponse for a client that is refused, in the form that its protocol version reads.

    Args:
        error: with an SQLSTATE.
        session: the id that the client may quote; every refusal of ours has it, so that nobody takes it
            for one of PostgreSQL's.
    """
    if isinstance(error, UnsupportedVersion) and error.is_protocol_2:
        # A client of protocol 2 reads an `E`, a text and a NUL (send_message_to_frontend, elog.c).
        return b"EFATAL:  " + _text(error.reply) + b"\n\x00"
    return encode_error_response(
        error.sqlstate or "XX000", error.reply, detail=f"pgtlsproxy session {session}"
    )


def encode_error_response(sqlstate: str, message: str, *, detail: str | None = None) -> bytes:
    """A fatal ErrorResponse, its fields in the server's order."""
    fields = [b"SFATAL", b"VFATAL", b"C" + _text(sqlstate), b"M" + _text(message)]
    if detail is not None:
        fields.append(b"D" + _text(detail))
    return Message(b"E", b"".join(entry + b"\x00" for entry in fields) + b"\x00").raw


def _text(text: str) -> bytes:
    return encode_name(text).replace(b"\x00", b"")


def encode_negotiate_protocol_version(version: tuple[int, int], options: Sequence[str]) -> bytes:
    """NegotiateProtocolVersion: the newest version that is spoken, and the options that are not known."""
    body = struct.pack("!II", version[0] << 16 | version[1], len(options))
    return Message(b"v", body + b"".join(encode_name(name) + b"\x00" for name in options)).raw


AUTHENTICATION_SASL: Final = 10


def encode_authentication(code: int, data: bytes = b"") -> bytes:
    """An Authentication message with what stands behind its code."""
    return Message(b"R", _LENGTH.pack(code) + data).raw


def encode_sasl_mechanisms(mechanisms: Iterable[str]) -> bytes:
    """AuthenticationSASL with this list of mechanisms."""
    names = b"".join(encode_name(name) + b"\x00" for name in mechanisms)
    return encode_authentication(AUTHENTICATION_SASL, names + b"\x00")


def parse_password(body: bytes) -> Secret:
    """The password of a PasswordMessage, as recv_password_packet reads it (src/backend/libpq/auth.c).

    Raises:
        ProtocolViolation: it is malformed, or empty.
    """
    password, terminator, rest = body.partition(b"\x00")
    if not terminator or rest:
        raise ProtocolViolation("malformed password message", reply="invalid password packet size")
    if not password:
        text = "empty password returned by client"
        raise ProtocolViolation(text, reply=text, sqlstate="28P01")
    return Secret(password)


def md5_answer(user: bytes, password: Secret, salt: bytes) -> bytes:
    """What a client answers to AuthenticationMD5Password (pg_password_sendauth, fe-auth.c).

    Args:
        user: the role.
        password: its password.
        salt: the server's four octets.
    """
    stored = hashlib.md5(password.reveal() + user, usedforsecurity=False).hexdigest().encode()
    return b"md5" + hashlib.md5(stored + salt, usedforsecurity=False).hexdigest().encode() + b"\x00"


@dataclass(frozen=True, slots=True)
class Authentication:
    """A backend's Authentication message.

    Args:
        code: which one; 0 is AuthenticationOk.
        mechanisms: what AuthenticationSASL lists, at least one; empty for others.
        data: what follows the code: a salt, or a mechanism's own message. Never shown.
    """

    code: int
    mechanisms: tuple[str, ...] = ()
    data: bytes = field(default=b"", repr=False)


_DATA_OCTETS: Final[Mapping[int, int]] = MappingProxyType({0: 0, 3: 0, 5: 4, 7: 0, 9: 0})
"""Authentication messages of one length: Ok, CleartextPassword, MD5Password (a salt), GSS, SSPI."""


def parse_authentication(body: bytes) -> Authentication:
    """Read an Authentication message.

    Raises:
        BackendMisbehaved: it is malformed.
    """
    if len(body) < 4:
        raise BackendMisbehaved("the backend sent an Authentication message without a code")
    code, data = _LENGTH.unpack_from(body)[0], body[4:]
    if len(data) != _DATA_OCTETS.get(code, len(data)):
        raise BackendMisbehaved(f"the backend sent Authentication {code} of invalid length {len(body) + 4}")
    if code != AUTHENTICATION_SASL:
        return Authentication(code, data=data)
    names = data.split(b"\x00")
    # One name at least, each with its NUL, then one NUL more.
    if len(names) < 3 or names[-2:] != [b"", b""] or b"" in names[:-2]:
        raise BackendMisbehaved("the backend sent a malformed AuthenticationSASL")
    return Authentication(code, tuple(decode_name(name) for name in names[:-2]), data)


@dataclass(frozen=True, slots=True)
class BackendError:
    """An ErrorResponse or NoticeResponse of a backend.

    Args:
        fields: by their one-letter codes; texts are as they came.
    """

    fields: Mapping[str, str]

    @property
    def sqlstate(self) -> str | None:
        """Its code; None where the backend gave none, or none of five letters and digits."""
        code = self.fields.get("C", "")
        return code if len(code) == 5 and code.isascii() and code.isalnum() else None

    @property
    def message(self) -> str:
        """Its primary text, printable."""
        return printable(self.fields.get("M", ""))


def parse_error_response(body: bytes) -> BackendError:
    """Read an ErrorResponse as far as it can be read; a malformed one is no reason to fail.

    Where a field comes twice the first one counts, and what is not terminated is taken to its end.
    """
    fields: dict[str, str] = {}
    for entry in body.split(b"\x00"):
        if not entry:
            break
        fields.setdefault(chr(entry[0]), decode_name(entry[1:]))
    return BackendError(MappingProxyType(fields))


def parse_parameter_status(body: bytes) -> tuple[bytes, bytes]:
    """The name and value of a ParameterStatus, as they came.

    Raises:
        BackendMisbehaved: it is malformed.
    """
    parts = body.split(b"\x00")
    if len(parts) != 3 or parts[2]:
        raise BackendMisbehaved("the backend sent a malformed ParameterStatus")
    return parts[0], parts[1]


def parse_backend_key_data(body: bytes) -> tuple[int, Secret]:
    """The process id and the cancel key of a BackendKeyData.

    The id is a signed number, as in CancelRequest: poolers draw it at random.

    Raises:
        BackendMisbehaved: it is malformed.
    """
    if not 4 + MIN_KEY_OCTETS <= len(body) <= 4 + MAX_KEY_OCTETS:
        raise BackendMisbehaved("the backend sent a malformed BackendKeyData")
    return _INT32.unpack_from(body)[0], Secret(body[4:])


def parse_transaction_status(body: bytes) -> str:
    """The status of a ReadyForQuery: `I`, `T` or `E`.

    Raises:
        BackendMisbehaved: it is none of these.
    """
    if body not in {b"I", b"T", b"E"}:
        raise BackendMisbehaved("the backend sent a malformed ReadyForQuery")
    return body.decode("ascii")
