"""The login exchange, watched: what the backend asked, and whether the client's own bytes answered.

The proxy relays an authentication that it cannot see into. What it can see is the order of the
messages, and that is what a session's proof rests on: a challenge came, the client answered it
after it came, and only then did the backend say AuthenticationOk. A backend that says so in the
middle of an exchange, or without a question, has proved nobody.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from pgtlsproxy.errors import BackendMisbehaved, ProtocolViolation
from pgtlsproxy.identity import Challenge, Secret, decode_name, encode_name, printable
from pgtlsproxy.protocol.messages import (
    Authentication,
    Message,
    parse_authentication,
    parse_backend_key_data,
    parse_parameter_status,
    parse_transaction_status,
)

SCRAM: Final = "SCRAM-SHA-256"
SCRAM_PLUS: Final = "SCRAM-SHA-256-PLUS"

MAX_SASL_OCTETS: Final = 1024
"""Longest length word of a message in a SCRAM exchange; PG_MAX_SASL_MESSAGE_LENGTH in libpq/auth.h."""

WATCHED_PARAMETERS: Final = frozenset(
    {b"in_hot_standby", b"default_transaction_read_only", b"server_version", b"scram_iterations"}
)
"""ParameterStatus that are kept: what `target_session_attrs` is judged by, who said so, and how many
iterations a role without a verifier shows there."""

_OK, _CLEARTEXT, _MD5, _GSS, _GSS_CONTINUE, _SSPI, _SASL, _SASL_CONTINUE, _SASL_FINAL = (
    0, 3, 5, 7, 8, 9, 10, 11, 12,
)  # fmt: skip

_CONTINUES: Final[Mapping[int, frozenset[int]]] = MappingProxyType(
    {
        _GSS_CONTINUE: frozenset({_GSS, _SSPI, _GSS_CONTINUE}),
        _SASL_CONTINUE: frozenset({_SASL, _SASL_CONTINUE}),
        _SASL_FINAL: frozenset({_SASL, _SASL_CONTINUE}),
    }
)
"""Messages that go on with an exchange, and what must have come before."""

# Not an enum.Enum: a login asks some fifty times, and a member of one costs a µs of Python 3.11 each time.
_Turn = Literal["backend", "client", "either", "ok due", "authenticated", "ready"]

_TURN_AFTER: Final[Mapping[int, _Turn]] = MappingProxyType(
    {_GSS_CONTINUE: "either", _SASL_CONTINUE: "client", _SASL_FINAL: "ok due"}
)
"""Whose turn it is behind each of them."""

_SCRAM_MESSAGES: Final = 2
"""What a client says in SCRAM: client-first-message and client-final-message (RFC 5802, section 5)."""


class BindingFlag(enum.Enum):
    """What a SCRAM client says of channel binding: the gs2 flag (RFC 5802, section 7)."""

    NOT_SUPPORTED = "n"
    NOT_OFFERED = "y"
    USED = "p"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a login has shown.

    Args:
        challenge: what the backend asked for.
        is_answered: whether the client answered after it was asked.
        is_finished: whether AuthenticationOk came where the exchange ends: for SASL, after SASLFinal.
    """

    challenge: Challenge
    is_answered: bool
    is_finished: bool


class LoginExchange:
    """One login, fed with the messages of both sides in the order in which they are relayed.

    Attributes:
        binding_flag: what a SCRAM client said of channel binding; None before it spoke.
        last_code: the code of the backend's last Authentication message; None before the first.
        cancel_key: process id and key, once BackendKeyData has come; None where it never does.
        parameters: the ParameterStatus of WATCHED_PARAMETERS.
    """

    def __init__(self) -> None:
        self._turn: _Turn = "backend"
        self._challenge = Challenge.NONE
        self._is_answered = False
        self._is_finished = False
        self._offered: tuple[str, ...] = ()
        self._mechanism: str | None = None
        self._scram_messages = 0
        self.binding_flag: BindingFlag | None = None
        self.last_code: int | None = None
        self.cancel_key: tuple[int, Secret] | None = None
        self.parameters: dict[str, str] = {}

    @property
    def is_client_turn(self) -> bool:
        """Whether nothing goes on without the client's answer."""
        return self._turn == "client"

    @property
    def may_client_answer(self) -> bool:
        """Whether an answer of the client may come: also after GSSContinue, where it need not.

        The last token of a mutual authentication is the backend's, and AuthenticationOk follows at once.
        """
        return self._turn in {"client", "either"}

    @property
    def is_authenticated(self) -> bool:
        """Whether AuthenticationOk has come."""
        return self._turn in {"authenticated", "ready"}

    @property
    def is_ready(self) -> bool:
        """Whether ReadyForQuery has come."""
        return self._turn == "ready"

    @property
    def awaited(self) -> str:
        """What the client is asked for, in PostgreSQL's words: `password`, `SASL` or `GSS`."""
        match self._challenge:
            case Challenge.SCRAM | Challenge.OTHER_SASL:
                return "SASL"
            case Challenge.GSS:
                return "GSS"
            case _:
                return "password"

    @property
    def is_password_given(self) -> bool:
        """Whether the client's last message lets the backend judge a password; tokens are none."""
        if self._turn != "backend" or not self._is_answered:
            return False
        if self._challenge is Challenge.SCRAM:
            return self._scram_messages == _SCRAM_MESSAGES
        return self._challenge in {Challenge.CLEARTEXT, Challenge.MD5}

    @property
    def outcome(self) -> Outcome:
        """What the login has shown so far."""
        return Outcome(self._challenge, self._is_answered, self._is_finished)

    def authentication(self, message: Message) -> Authentication:
        """Take an Authentication message of the backend.

        Raises:
            BackendMisbehaved: it is malformed, or may not come now.
        """
        request = parse_authentication(message.body)
        code = request.code
        if self._turn not in {"backend", "either", "ok due"}:
            raise BackendMisbehaved(f"the backend sent Authentication {code} out of turn")
        if code == _OK:
            self._finish()
        elif self._turn != "backend":
            raise BackendMisbehaved(f"the backend sent Authentication {code} where AuthenticationOk was due")
        elif code in _CONTINUES:
            self._continue(code)
        else:
            self._begin(request)
        self.last_code = code
        return request

    def _begin(self, request: Authentication) -> None:
        if self.last_code is not None:
            raise BackendMisbehaved(
                f"the backend began a second authentication ({request.code} after {self.last_code})"
            )
        self._challenge = _challenge_of(request)
        self._offered = request.mechanisms
        self._turn = "client"

    def _continue(self, code: int) -> None:
        is_due = self.last_code in _CONTINUES[code]
        if self._challenge is Challenge.SCRAM:
            has_proved = self._scram_messages == _SCRAM_MESSAGES
            is_due = is_due and has_proved == (code == _SASL_FINAL)
        if not is_due:
            raise BackendMisbehaved(f"the backend sent Authentication {code} after {self.last_code}")
        self._turn = _TURN_AFTER[code]

    def _finish(self) -> None:
        if self._challenge is Challenge.SCRAM and self.last_code != _SASL_FINAL:
            raise BackendMisbehaved("the backend sent AuthenticationOk in the middle of a SCRAM exchange")
        # Other SASL mechanisms may end without a SASLFinal, as OAUTHBEARER does.
        self._is_finished = self._challenge is not Challenge.NONE
        self._turn = "authenticated"

    def client_message(self, message: Message) -> None:
        """Take a `p` message of the client: a password, a token or a SASL response.

        Raises:
            ProtocolViolation: it is malformed, or out of turn.
        """
        if not self.may_client_answer:
            raise ProtocolViolation("the client sent an authentication message out of turn")
        if self.last_code == _SASL:
            self._mechanism, response = parse_initial_response(message.body)
            self._check_mechanism(self._mechanism)
        else:
            response = message.body
        if self._challenge is Challenge.SCRAM:
            if len(message.body) + 4 > MAX_SASL_OCTETS:
                raise ProtocolViolation("SCRAM message too long", reply="invalid message length")
            # Without an initial response PostgreSQL asks for the client-first-message by an empty challenge.
            if response is not None:
                self._take_scram(response)
        self._is_answered = True
        self._turn = "backend"

    def _check_mechanism(self, mechanism: str) -> None:
        if mechanism not in self._offered:
            raise ProtocolViolation(
                f'the client selected the SASL mechanism "{printable(mechanism)}", which was not offered',
                reply="client selected an invalid SASL authentication mechanism",
            )
        self._challenge = Challenge.SCRAM if mechanism in {SCRAM, SCRAM_PLUS} else Challenge.OTHER_SASL

    def _take_scram(self, response: bytes) -> None:
        if self._scram_messages == 0:
            self.binding_flag = _binding_flag(response)
            if (self.binding_flag is BindingFlag.USED) != (self._mechanism == SCRAM_PLUS):
                raise ProtocolViolation(
                    f"the client selected {self._mechanism} and sent the channel binding flag "
                    f'"{self.binding_flag.value}"',
                    reply="malformed SCRAM message",
                )
        self._scram_messages += 1

    def reported(self, bodies: Sequence[bytes]) -> None:
        """Take the bodies of the backend's ParameterStatus messages.

        Raises:
            BackendMisbehaved: one is malformed, or may not come now.
        """
        if bodies:
            self._check_turn(b"S")
        for body in bodies:
            name, value = parse_parameter_status(body)
            if name in WATCHED_PARAMETERS:
                self.parameters[decode_name(name)] = decode_name(value)

    def other(self, message: Message) -> None:
        """Take a message of the backend other than Authentication, ErrorResponse and NoticeResponse.

        Raises:
            BackendMisbehaved: it is malformed, or may not come now.
        """
        self._check_turn(message.type)
        match message.type:
            case b"K":
                if self.cancel_key is not None:
                    raise BackendMisbehaved("the backend sent a second BackendKeyData")
                self.cancel_key = parse_backend_key_data(message.body)
            case b"S":
                self.reported([message.body])
            case b"Z":
                parse_transaction_status(message.body)
                self._turn = "ready"
            case _:
                raise BackendMisbehaved(
                    f'the backend sent message type "{printable(message.type)}" in a login'
                )

    def _check_turn(self, kind: bytes) -> None:
        if self._turn != "authenticated":
            raise BackendMisbehaved(f'the backend sent message type "{printable(kind)}" out of turn')


_CHALLENGES: Final[Mapping[int, Challenge]] = MappingProxyType(
    {
        _CLEARTEXT: Challenge.CLEARTEXT,
        _MD5: Challenge.MD5,
        _GSS: Challenge.GSS,
        _SSPI: Challenge.GSS,
    }
)


def _challenge_of(request: Authentication) -> Challenge:
    if request.code == _SASL:
        is_scram = {SCRAM, SCRAM_PLUS}.issuperset(request.mechanisms)
        return Challenge.SCRAM if is_scram else Challenge.OTHER_SASL
    try:
        return _CHALLENGES[request.code]
    except KeyError:
        raise BackendMisbehaved(
            f"the backend sent Authentication {request.code}, which is not supported"
        ) from None


def encode_initial_response(mechanism: str, response: bytes) -> Message:
    """A SASLInitialResponse."""
    return Message(b"p", encode_name(mechanism) + b"\x00" + struct.pack("!i", len(response)) + response)


def parse_initial_response(body: bytes) -> tuple[str, bytes | None]:
    """The mechanism and the response of a SASLInitialResponse; None where it has no response.

    Raises:
        ProtocolViolation: it is malformed; in PostgreSQL's words (libpq/pqformat.c).
    """
    name, terminator, rest = body.partition(b"\x00")
    if not terminator:
        raise _malformed("invalid string in message")
    if len(rest) < 4:
        raise _malformed("insufficient data left in message")
    length, response = struct.unpack_from("!i", rest)[0], rest[4:]
    if length == -1:
        if response:
            raise _malformed("invalid message format")
        return decode_name(name), None
    if not 0 <= length <= len(response):
        raise _malformed("insufficient data left in message")
    if length < len(response):
        raise _malformed("invalid message format")
    return decode_name(name), response


def _malformed(reply: str) -> ProtocolViolation:
    return ProtocolViolation(f"SASLInitialResponse: {reply}", reply=reply)


def _binding_flag(client_first: bytes) -> BindingFlag:
    """The gs2 flag of a client-first-message.

    Raises:
        ProtocolViolation: it has none.
    """
    for flag in BindingFlag:
        prefix = flag.value.encode()
        if client_first.startswith(prefix + (b"=" if flag is BindingFlag.USED else b",")):
            return flag
    raise ProtocolViolation("the SCRAM message has no channel binding flag", reply="malformed SCRAM message")


def without_channel_binding(mechanisms: tuple[str, ...]) -> tuple[str, ...]:
    """A list of SASL mechanisms without the one that binds to a TLS channel.

    Raises:
        BackendMisbehaved: nothing would be left.
    """
    left = tuple(name for name in mechanisms if name != SCRAM_PLUS)
    if not left:
        raise BackendMisbehaved("the backend offers SCRAM with channel binding alone")
    return left
