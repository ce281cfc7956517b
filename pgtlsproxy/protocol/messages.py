"""Whole messages with a type byte: their framing within limits, and the few that the proxy reads or writes.

PostgreSQL manual, chapter 54 (protocol-message-formats). Everything here is bytes in, values out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pgtlsproxy.errors import BackendMisbehaved, ProtocolViolation, ProxyError
from pgtlsproxy.identity import Secret, decode_name, encode_name, printable

SSL_REQUEST: Final = struct.pack("!ii", 8, 80877103)

AUTHENTICATION_OK: Final = b"R\x00\x00\x00\x08\x00\x00\x00\x00"

MAX_AUTH_TOKEN_OCTETS: Final = 65535
"""Longest length word of a client's authentication message; PG_MAX_AUTH_TOKEN_LENGTH in libpq/auth.h."""

MAX_LOGIN_MESSAGE_OCTETS: Final = 65536
"""Longest length word of a backend's message before ReadyForQuery. libpq takes 2,000 for `R` and `v` and
30,000 for `E`; a ParameterStatus with a long `search_path` is the longest that is met."""

MAX_LOGIN_OCTETS: Final = 1_048_576
"""All that a backend may send before ReadyForQuery."""

_LENGTH: Final = struct.Struct("!I")


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
        allowed: the type bytes that may come now.
        max_octets: the largest length word.
        max_total_octets: the most that may be taken in all.
        violation: makes the error for what breaks these rules, from a reason for the log.
    """

    def __init__(
        self, allowed: bytes, max_octets: int, max_total_octets: int, violation: type[ProxyError]
    ) -> None:
        self._allowed = allowed
        self._max_octets = max_octets
        self._left = max_total_octets
        self._violation = violation
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Take bytes as they came."""
        self._buffer += data

    def next(self) -> Message | None:
        """The next whole message; None when more bytes are needed.

        Raises:
            ProxyError: of the class given; a type that may not come, or a length beyond the limits. It
                is raised as soon as the header is there, before anything of that length is buffered.
        """
        if not self._buffer:
            return None
        kind = bytes(self._buffer[:1])
        if kind not in self._allowed:
            raise self._violation(f'unexpected message type "{printable(kind)}" during the login')
        if len(self._buffer) < 5:
            return None
        length = _LENGTH.unpack_from(self._buffer, 1)[0]
        if not 4 <= length <= self._max_octets:
            raise self._violation(f'message "{printable(kind)}" of invalid length {length}')
        if length + 1 > self._left:
            raise self._violation("too many bytes before the login was over")
        if len(self._buffer) < length + 1:
            return None
        body = bytes(self._buffer[5 : length + 1])
        del self._buffer[: length + 1]
        self._left -= length + 1
        return Message(kind, body)

    def take_unread(self) -> bytes:
        """All bytes that were fed and belong to no message that was returned; the reader is empty then."""
        unread = bytes(self._buffer)
        self._buffer.clear()
        return unread


def client_reader() -> MessageReader:
    """A reader for a client that is being authenticated: only `p`, as PostgreSQL (recv_password_packet)."""
    return MessageReader(b"p", MAX_AUTH_TOKEN_OCTETS, MAX_LOGIN_OCTETS, ProtocolViolation)


def backend_reader() -> MessageReader:
    """A reader for a backend before ReadyForQuery."""
    return MessageReader(b"RESKNvZ", MAX_LOGIN_MESSAGE_OCTETS, MAX_LOGIN_OCTETS, BackendMisbehaved)


def encode_refusal(error: ProxyError, session: str) -> bytes:
    """The ErrorResponse for a client that is refused, in the form that its protocol version reads.

    Args:
        error: with an SQLSTATE.
        session: the id that the client may quote; every refusal of ours has it, so that nobody takes it
            for one of PostgreSQL's.
    """
    if getattr(error, "is_protocol_2", False):
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


def encode_sasl_mechanisms(mechanisms: Iterable[str]) -> bytes:
    """AuthenticationSASL with this list of mechanisms."""
    names = b"".join(encode_name(name) + b"\x00" for name in mechanisms)
    return Message(b"R", struct.pack("!I", 10) + names + b"\x00").raw


@dataclass(frozen=True, slots=True)
class Authentication:
    """A backend's Authentication message.

    Args:
        code: which one; 0 is AuthenticationOk.
        mechanisms: what AuthenticationSASL lists; empty for others.
    """

    code: int
    mechanisms: tuple[str, ...] = ()


AUTHENTICATION_SASL: Final = 10


def parse_authentication(body: bytes) -> Authentication:
    """Read an Authentication message.

    Raises:
        BackendMisbehaved: it is malformed.
    """
    if len(body) < 4:
        raise BackendMisbehaved("the backend sent an Authentication message without a code")
    code = _LENGTH.unpack_from(body)[0]
    if code != AUTHENTICATION_SASL:
        return Authentication(code)
    names = body[4:].split(b"\x00")
    if len(names) < 2 or names[-2:] != [b"", b""] or b"" in names[:-2]:
        raise BackendMisbehaved("the backend sent a malformed AuthenticationSASL")
    return Authentication(code, tuple(decode_name(name) for name in names[:-2]))


@dataclass(frozen=True, slots=True)
class BackendError:
    """An ErrorResponse or NoticeResponse of a backend.

    Args:
        fields: by their one-letter codes; texts are as they came.
    """

    fields: Mapping[str, str]

    @property
    def sqlstate(self) -> str | None:
        """Its code; None where the backend gave none, or none of five characters."""
        code = self.fields.get("C")
        return printable(code) if code is not None and len(code) == 5 else None

    @property
    def message(self) -> str:
        """Its primary text, printable."""
        return printable(self.fields.get("M", ""))


def parse_error_response(body: bytes) -> BackendError:
    """Read an ErrorResponse as far as it can be read; a malformed one is no reason to fail."""
    fields: dict[str, str] = {}
    for entry in body.split(b"\x00"):
        if not entry:
            break
        fields.setdefault(chr(entry[0]), decode_name(entry[1:]))
    return BackendError(fields)


def parse_parameter_status(body: bytes) -> tuple[str, str]:
    """The name and value of a ParameterStatus.

    Raises:
        BackendMisbehaved: it is malformed.
    """
    parts = body.split(b"\x00")
    if len(parts) != 3 or parts[2]:
        raise BackendMisbehaved("the backend sent a malformed ParameterStatus")
    return decode_name(parts[0]), decode_name(parts[1])


def parse_backend_key_data(body: bytes) -> tuple[int, Secret]:
    """The process id and the cancel key of a BackendKeyData; 4 to 256 octets of key (protocol 3.2).

    Raises:
        BackendMisbehaved: it is malformed.
    """
    if not 8 <= len(body) <= 260:
        raise BackendMisbehaved("the backend sent a malformed BackendKeyData")
    return _LENGTH.unpack_from(body)[0], Secret(body[4:])


def parse_transaction_status(body: bytes) -> str:
    """The status of a ReadyForQuery: `I`, `T` or `E`.

    Raises:
        BackendMisbehaved: it is none of these.
    """
    if body not in {b"I", b"T", b"E"}:
        raise BackendMisbehaved("the backend sent a malformed ReadyForQuery")
    return body.decode("ascii")
