"""The login exchange, watched: what the backend asked, and whether the client's own bytes answered.

The proxy relays an authentication that it cannot see into. What it can see is the order of the
messages, and that is what a session's proof rests on: a challenge came, the client answered it
after it came, and only then did the backend say AuthenticationOk. A backend that says so in the
middle of an exchange, or without a question, has proved nobody.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final

from pgtlsproxy.errors import BackendMisbehaved, ProtocolViolation
from pgtlsproxy.identity import Secret, printable
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
"""Longest body of a SCRAM message; PG_MAX_SASL_MESSAGE_LENGTH in libpq/auth.h."""

WATCHED_PARAMETERS: Final = frozenset({"in_hot_standby", "default_transaction_read_only"})
"""ParameterStatus that `target_session_attrs` is judged by."""

_OK, _CLEARTEXT, _MD5, _GSS, _GSS_CONTINUE, _SSPI, _SASL, _SASL_CONTINUE, _SASL_FINAL = (
    0, 3, 5, 7, 8, 9, 10, 11, 12,
)  # fmt: skip

_CONTINUES: Final = {
    _SASL_CONTINUE: {_SASL, _SASL_CONTINUE},
    _SASL_FINAL: {_SASL, _SASL_CONTINUE},
    _GSS_CONTINUE: {_GSS, _GSS_CONTINUE},
}
"""Messages that go on with an exchange, and what must have come before."""


class Challenge(enum.Enum):
    """What a backend asked the client for."""

    NONE = enum.auto()
    CLEARTEXT = enum.auto()
    MD5 = enum.auto()
    GSS = enum.auto()
    SCRAM = enum.auto()
    OTHER_SASL = enum.auto()


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


class _Turn(enum.Enum):
    BACKEND = enum.auto()
    CLIENT = enum.auto()
    OK_DUE = enum.auto()
    AUTHENTICATED = enum.auto()
    READY = enum.auto()


class LoginExchange:
    """One login, fed with the messages of both sides in the order in which they are relayed.

    Attributes:
        binding_flag: what a SCRAM client said of channel binding; None before it spoke.
        last_code: the code of the backend's last Authentication message; None before the first.
        cancel_key: process id and key, once BackendKeyData has come; None where it never does.
        parameters: the ParameterStatus of WATCHED_PARAMETERS.
    """

    def __init__(self) -> None:
        self._turn = _Turn.BACKEND
        self._challenge = Challenge.NONE
        self._is_answered = False
        self._is_finished = False
        self._expects_initial_response = False
        self.binding_flag: BindingFlag | None = None
        self.last_code: int | None = None
        self.cancel_key: tuple[int, Secret] | None = None
        self.parameters: dict[str, str] = {}

    @property
    def is_client_turn(self) -> bool:
        """Whether the client's answer is waited for."""
        return self._turn is _Turn.CLIENT

    @property
    def is_authenticated(self) -> bool:
        """Whether AuthenticationOk has come."""
        return self._turn in {_Turn.AUTHENTICATED, _Turn.READY}

    @property
    def is_ready(self) -> bool:
        """Whether ReadyForQuery has come."""
        return self._turn is _Turn.READY

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
        if self._turn not in {_Turn.BACKEND, _Turn.OK_DUE}:
            raise BackendMisbehaved(f"the backend sent Authentication {request.code} out of turn")
        self._turn = self._after(request)
        self.last_code = request.code
        return request

    def _after(self, request: Authentication) -> _Turn:
        code, last = request.code, self.last_code
        if code == _OK:
            # SASL is over with SASLFinal alone, except for OAUTHBEARER, which has none.
            self._is_finished = last not in {None, _SASL, _SASL_CONTINUE} or (
                self._challenge is Challenge.OTHER_SASL and self._is_answered
            )
            if self._challenge is Challenge.SCRAM and not self._is_finished:
                raise BackendMisbehaved("the backend sent AuthenticationOk in the middle of a SCRAM exchange")
            return _Turn.AUTHENTICATED
        if self._turn is _Turn.OK_DUE:
            raise BackendMisbehaved(f"the backend sent Authentication {code} where AuthenticationOk was due")
        if code in _CONTINUES:
            if last not in _CONTINUES[code]:
                raise BackendMisbehaved(f"the backend sent Authentication {code} after {last}")
            return _Turn.OK_DUE if code == _SASL_FINAL else _Turn.CLIENT
        if last is not None:
            raise BackendMisbehaved(f"the backend began a second authentication ({code} after {last})")
        self._challenge = self._challenge_of(request)
        self._expects_initial_response = code == _SASL
        return _Turn.CLIENT

    def _challenge_of(self, request: Authentication) -> Challenge:
        match request.code:
            case 3:
                return Challenge.CLEARTEXT
            case 5:
                return Challenge.MD5
            case 7 | 9:
                return Challenge.GSS
            case 10 if set(request.mechanisms) <= {SCRAM, SCRAM_PLUS}:
                return Challenge.SCRAM
            case 10:
                return Challenge.OTHER_SASL
            case code:
                raise BackendMisbehaved(f"the backend sent Authentication {code}, which nobody knows")

    def client_message(self, message: Message) -> None:
        """Take a `p` message of the client: a password, a token or a SASL response.

        Raises:
            ProtocolViolation: it is malformed, or out of turn.
        """
        if self._turn is not _Turn.CLIENT:
            raise ProtocolViolation("the client sent an authentication message out of turn")
        if self._expects_initial_response:
            self._expects_initial_response = False
            self._read_initial_response(message.body)
        elif self._challenge is Challenge.SCRAM and len(message.body) > MAX_SASL_OCTETS:
            raise ProtocolViolation("SCRAM message too long", reply="malformed SCRAM message")
        self._is_answered = True
        self._turn = _Turn.BACKEND

    def _read_initial_response(self, body: bytes) -> None:
        name, terminator, rest = body.partition(b"\x00")
        if not terminator or len(rest) < 4:
            raise ProtocolViolation("malformed SASLInitialResponse", reply="malformed SASL message")
        length = struct.unpack_from("!i", rest)[0]
        response = rest[4:]
        if length not in {-1, len(response)} or (length == -1 and response):
            raise ProtocolViolation("malformed SASLInitialResponse", reply="malformed SASL message")
        mechanism = name.decode("utf-8", "replace")
        if mechanism not in {SCRAM, SCRAM_PLUS}:
            if self._challenge is Challenge.SCRAM:
                raise ProtocolViolation(
                    f'client selected the SASL mechanism "{printable(mechanism)}"',
                    reply="client selected an invalid SASL authentication mechanism",
                )
            return
        self._challenge = Challenge.SCRAM
        if length == -1:
            return  # PostgreSQL then asks with an empty challenge
        if length > MAX_SASL_OCTETS:
            raise ProtocolViolation("SCRAM message too long", reply="malformed SCRAM message")
        self.binding_flag = _binding_flag(response)

    def other(self, message: Message) -> None:
        """Take a message of the backend other than Authentication, ErrorResponse and NoticeResponse.

        Raises:
            BackendMisbehaved: it may not come now.
        """
        if self._turn is not _Turn.AUTHENTICATED:
            shown = printable(message.type)
            raise BackendMisbehaved(f'the backend sent message type "{shown}" before AuthenticationOk')
        match message.type:
            case b"K":
                if self.cancel_key is not None:
                    raise BackendMisbehaved("the backend sent a second BackendKeyData")
                self.cancel_key = parse_backend_key_data(message.body)
            case b"S":
                name, value = parse_parameter_status(message.body)
                if name in WATCHED_PARAMETERS:
                    self.parameters[name] = value
            case b"Z":
                parse_transaction_status(message.body)
                self._turn = _Turn.READY
            case _:
                raise BackendMisbehaved(
                    f'the backend sent message type "{printable(message.type)}" in a login'
                )


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
