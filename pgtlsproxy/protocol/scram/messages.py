"""The four messages of SCRAM (RFC 5802, section 7), read as PostgreSQL and libpq read them.

What a client sends is read as by libpq/auth-scram.c, and its mistakes have the answers that PostgreSQL gives,
in the same order. What a backend sends is read as by fe-auth-scram.c, and its mistakes are those of a backend
that misbehaves.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from pgtlsproxy.errors import BackendMisbehaved, ErrorKind, ProtocolViolation, ProxyError
from pgtlsproxy.identity import printable
from pgtlsproxy.protocol.backend import MAX_SASL_OCTETS, SCRAM, SCRAM_PLUS, BindingFlag
from pgtlsproxy.protocol.scram.attributes import Attributes, Malformed, is_printable, shown
from pgtlsproxy.protocol.scram.binding import BINDING_TYPE, Binding, offered
from pgtlsproxy.protocol.scram.keys import KEY_OCTETS, MAX_SALT_OCTETS, decode_base64

MAX_CLIENT_OCTETS: Final = MAX_SASL_OCTETS - 4
"""Longest message of a client: what PostgreSQL's limit leaves behind the length word."""

MAX_SERVER_OCTETS: Final = 2000 - 8
"""Longest message of a server: what libpq's limit for Authentication messages (PQconnectPoll) leaves behind
the length word and the code."""

MAX_SERVER_NONCE_OCTETS: Final = 256
"""Longest part of a nonce that a server may add to the client's. PostgreSQL adds 24 octets; libpq has no
limit but that of the message."""


class MalformedScram(ProtocolViolation):
    """A client's message is not what SCRAM says.

    Attributes:
        detail: PostgreSQL's DETAIL.
    """

    reply = "malformed SCRAM message"

    def __init__(self, detail: str, *, reply: str | None = None) -> None:
        super().__init__(f"{reply or self.reply}: {detail}", reply=reply)
        self.detail = detail


class ChannelBindingFailed(ProxyError):
    """Client and server do not agree on the channel: somebody may stand between them."""

    kind = ErrorKind.CHANNEL_BINDING
    sqlstate = "28000"
    reply = "SCRAM channel binding check failed"


class BindingNegotiationFailed(ChannelBindingFailed):
    """The client was made to think that there is no channel binding here.

    Attributes:
        detail: PostgreSQL's DETAIL.
    """

    reply = "SCRAM channel binding negotiation error"
    detail = (
        "The client supports SCRAM channel binding but thinks the server does not.  "
        "However, this server does support channel binding."
    )


@dataclass(frozen=True, slots=True)
class ClientFirst:
    """A client-first-message. The name in it means nothing in PostgreSQL.

    Args:
        flag: its gs2 flag.
        bare: what follows the gs2 header.
        nonce: the client's part of the nonce; may be empty.
    """

    flag: BindingFlag
    bare: bytes = field(repr=False)
    nonce: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ServerFirst:
    """A server-first-message.

    Args:
        text: the message.
        nonce: both parts.
        salt: decoded.
        iterations: in bounds.
    """

    text: bytes = field(repr=False)
    nonce: bytes = field(repr=False)
    salt: bytes = field(repr=False)
    iterations: int


@dataclass(frozen=True, slots=True)
class ClientFinal:
    """A client-final-message. Together with StoredKey its proof is as good as the password.

    Args:
        without_proof: what stands before `,p=`.
        proof: ClientProof.
    """

    without_proof: bytes = field(repr=False)
    proof: bytes = field(repr=False)


def check_mechanism(mechanism: str, end_point: bytes | None) -> None:
    """Hold a client's choice against what was offered.

    Raises:
        ProtocolViolation: it is something else.
    """
    if mechanism not in offered(end_point):
        raise ProtocolViolation(
            f'the client selected the SASL mechanism "{printable(mechanism)}", which was not offered',
            reply="client selected an invalid SASL authentication mechanism",
        )


def read_client_first(message: bytes, mechanism: str, end_point: bytes | None) -> ClientFirst:
    """Read a client-first-message (read_client_first_message).

    Args:
        message: what the client sent.
        mechanism: the one that it selected; of those offered.
        end_point: of the server's own leaf; None where PLUS was not offered.

    Raises:
        ProtocolViolation: it is malformed, or asks for what PostgreSQL does not do.
        BindingNegotiationFailed: the flag is `y`, and PLUS was offered.
    """
    with _from_client(message):
        attributes = Attributes(message)
        flag = _read_flag(attributes, mechanism, end_point)
        if attributes.next == b"a":
            raise _unsupported("client uses authorization identity, but it is not supported")
        if attributes.next != b",":
            raise Malformed(f'Unexpected attribute "{shown(attributes.next)}" in client-first-message.')
        attributes.take()
        bare = attributes.rest
        if attributes.next == b"m":
            raise _unsupported("client requires an unsupported SCRAM extension")
        attributes.value(b"n")
        nonce = attributes.value(b"r")
        if not is_printable(nonce):
            raise _violation("non-printable characters in SCRAM nonce")
        while attributes.next:
            attributes.any()
        return ClientFirst(flag, bare, nonce)


def _read_flag(attributes: Attributes, mechanism: str, end_point: bytes | None) -> BindingFlag:
    """The gs2 flag with the comma behind it."""
    try:
        flag = BindingFlag(attributes.next.decode("ascii", "replace"))
    except ValueError:
        raise Malformed(f'Unexpected channel-binding flag "{shown(attributes.next)}".') from None
    if flag is BindingFlag.USED:
        if mechanism != SCRAM_PLUS:
            raise Malformed(
                f"The client selected {SCRAM} without channel binding, "
                "but the SCRAM message includes channel binding data."
            )
        name = attributes.value(b"p")
        if name != BINDING_TYPE:
            raise _violation(f'unsupported SCRAM channel-binding type "{_shown_name(name)}"')
        return flag
    if mechanism == SCRAM_PLUS:
        raise Malformed(
            f"The client selected {SCRAM_PLUS}, but the SCRAM message does not include channel binding data."
        )
    if flag is BindingFlag.NOT_OFFERED and end_point is not None:
        raise BindingNegotiationFailed("the client says that channel binding was not offered, and it was")
    attributes.take()
    if attributes.next != b",":
        raise Malformed(f'Comma expected, but found character "{shown(attributes.next)}".')
    attributes.take()
    return flag


def _shown_name(name: bytes) -> str:
    """The first 30 characters of a name as PostgreSQL's sanitize_str shows them."""
    return "".join(chr(code) if 0x21 <= code <= 0x7E else "?" for code in name[:30])


def read_client_final(message: bytes, binding: Binding, nonce: bytes) -> ClientFinal:
    """Read a client-final-message and hold it against the exchange (read_client_final_message).

    Args:
        message: what the client sent.
        binding: the flag of its first message, and the server's own leaf.
        nonce: both parts, as the server sent them.

    Raises:
        ProtocolViolation: it is malformed, or of another exchange.
        ChannelBindingFailed: the client saw another certificate.
    """
    with _from_client(message):
        attributes = Attributes(message)
        if not hmac.compare_digest(attributes.value(b"c"), binding.attribute):
            if binding.flag is BindingFlag.USED:
                raise ChannelBindingFailed("the client has bound SCRAM to another certificate")
            raise _violation("unexpected SCRAM channel-binding attribute in client-final-message")
        found = attributes.value(b"r")
        name = b""
        while name != b"p":
            end = attributes.offset - 1
            name, value = attributes.any()
        proof = _decoded(value, "Malformed proof in client-final-message.")
        if len(proof) != KEY_OCTETS:
            raise Malformed("Malformed proof in client-final-message.")
        if attributes.next:
            raise Malformed("Garbage found at the end of client-final-message.")
        if not hmac.compare_digest(found, nonce):
            raise MalformedScram("Nonce does not match.", reply="invalid SCRAM response")
        return ClientFinal(message[:end], proof)


def read_server_first(message: bytes, client_nonce: bytes, max_iterations: int) -> ServerFirst:
    """Read a server-first-message (read_server_first_message, fe-auth-scram.c).

    Stricter than libpq: the server must have added to the nonce, and in printable characters; the number is
    digits alone; nothing may follow it, of which libpq complains and goes on.

    Args:
        message: what the backend sent.
        client_nonce: what the exchange was begun with.
        max_iterations: most that are taken.

    Raises:
        BackendMisbehaved: it is malformed, of another exchange, or beyond a limit.
    """
    with _from_backend("server-first-message", message):
        attributes = Attributes(message)
        nonce = attributes.value(b"r")
        added = len(nonce) - len(client_nonce)
        if not 0 < added <= MAX_SERVER_NONCE_OCTETS or not is_printable(nonce):
            raise Malformed(
                f"nonce of {len(nonce)} octets, expected {len(client_nonce)} "
                f"and 1 to {MAX_SERVER_NONCE_OCTETS} more, printable"
            )
        if not hmac.compare_digest(nonce[: len(client_nonce)], client_nonce):
            raise Malformed("nonce mismatch")
        salt = _decoded(attributes.value(b"s"), "invalid salt")
        if not 1 <= len(salt) <= MAX_SALT_OCTETS:
            raise Malformed(f"a salt of {len(salt)} octets, expected 1 to {MAX_SALT_OCTETS}")
        iterations = _read_iterations(attributes.value(b"i"), max_iterations)
        if attributes.next:
            raise Malformed("garbage at the end")
        return ServerFirst(message, nonce, salt, iterations)


def _read_iterations(text: bytes, most: int) -> int:
    # int() takes time that grows with the square of the number of digits.
    if not text.isdigit() or len(text) > 10 or int(text) < 1:
        raise Malformed("invalid iteration count")
    if int(text) > most:
        raise Malformed(f"{int(text)} iterations, expected {most} at most")
    return int(text)


def read_server_final(message: bytes) -> bytes:
    """ServerSignature out of a server-final-message (read_server_final_message, fe-auth-scram.c).

    Raises:
        BackendMisbehaved: it is malformed, or an error.
    """
    with _from_backend("server-final-message", message):
        attributes = Attributes(message)
        if attributes.next == b"e":
            error = printable(attributes.value(b"e"))
            raise BackendMisbehaved(f"the backend ended the SCRAM exchange with the error {error}")
        signature = _decoded(attributes.value(b"v"), "invalid server signature")
        if attributes.next:
            raise Malformed("garbage at the end")
        if len(signature) != KEY_OCTETS:
            raise Malformed("invalid server signature")
        return signature


@contextmanager
def _from_client(message: bytes) -> Iterator[None]:
    if len(message) > MAX_CLIENT_OCTETS:
        raise _violation("invalid message length")
    try:
        yield
    except Malformed as error:
        raise MalformedScram(error.detail) from None


@contextmanager
def _from_backend(name: str, message: bytes) -> Iterator[None]:
    if len(message) > MAX_SERVER_OCTETS:
        raise BackendMisbehaved(
            f"the backend's SCRAM {name} has {len(message)} octets; expected {MAX_SERVER_OCTETS} at most"
        )
    try:
        yield
    except Malformed as error:
        raise BackendMisbehaved(f"the backend's SCRAM {name} is malformed: {error.detail}") from None


def _decoded(value: bytes, problem: str) -> bytes:
    try:
        return decode_base64(value)
    except ValueError:
        raise Malformed(problem) from None


def _violation(text: str) -> ProtocolViolation:
    return ProtocolViolation(text, reply=text)


def _unsupported(text: str) -> ProtocolViolation:
    return ProtocolViolation(text, reply=text, sqlstate="0A000")
