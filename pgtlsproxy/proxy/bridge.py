"""A SCRAM exchange between a client and a backend that cannot be passed on as it is.

TLS ends here, and SCRAM binds to the certificate that it sees. With the user's verifier each leg gets an
exchange of its own: the client binds to our certificate, and we to the backend's. Every client is offered the
same, whoever it says it is; one that does not bind (`n`) needs no bridge, and speaks to the backend itself.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from pgtlsproxy.protocol.backend import BindingFlag, encode_initial_response, parse_initial_response
from pgtlsproxy.protocol.messages import (
    Authentication,
    Message,
    encode_authentication,
    encode_sasl_mechanisms,
)
from pgtlsproxy.protocol.scram import bridge
from pgtlsproxy.protocol.scram.binding import offered
from pgtlsproxy.protocol.scram.bridge import Answered, Failure, Opened
from pgtlsproxy.proxy.verifiers import Known, Verifiers

_SASL_CONTINUE, _SASL_FINAL = 11, 12

_STALE: Final = "is stale: the backend's has another salt or iteration count, as after a new password; "
_LIST_ANEW: Final = "list what pg_authid has now, and reload"
_ASKED_ANEW: Final = (
    "when asked anew it had nothing that fits, as where the two are not one cluster, or a standby is behind"
)


class Bridge:
    """One exchange, message by message.

    Args:
        user: of the StartupMessage.
        verifiers: where its verifier is found.
        client_end_point: the hash of our leaf as this client saw it; None in clear, and where it has none.
        mechanisms: what the backend offers.
        backend_end_point: the hash of the backend's leaf; None likewise.
    """

    def __init__(
        self,
        user: str,
        verifiers: Verifiers,
        client_end_point: bytes | None,
        mechanisms: Collection[str],
        backend_end_point: bytes | None,
    ) -> None:
        self._user = user
        self._verifiers = verifiers
        self._client_end_point = client_end_point
        self._mechanisms = mechanisms
        self._backend_end_point = backend_end_point
        self._mechanism: str | None = None
        self._stage: Opened | bridge.Challenge | Answered | None = None
        self._tried: tuple[Known, ...] = ()
        self._is_needed = True

    @property
    def offer(self) -> bytes:
        """The AuthenticationSASL for the client."""
        return encode_sasl_mechanisms(offered(self._client_end_point))

    @property
    def failure(self) -> str | None:
        """Why the backend is made to refuse the client, for the log; None where it is not."""
        if not isinstance(self._stage, Answered) or self._stage.failure is None:
            return None
        last = self._tried[-1]
        match self._stage.failure:
            case Failure.UNKNOWN_USER:
                return last.explained
            case Failure.STALE_VERIFIER:
                return f"{last.where} {_STALE}{_ASKED_ANEW if last.is_asked else _LIST_ANEW}"
            case Failure.WRONG_PROOF:
                return f"{last.where} does not fit the client's proof"

    @property
    def is_unanswered(self) -> bool:
        """Whether the backend is made to refuse the client because nobody says what its verifier is."""
        return bool(self._tried) and not any(known.is_answered for known in self._tried)

    async def for_backend(self, answer: Message) -> Message | None:
        """What an answer of the client becomes for the backend.

        Returns:
            The backend's message; None where the client has to be asked for its first .

        Raises:
            ProtocolViolation: it is malformed, or asks for what PostgreSQL does not do.
            ChannelBindingFailed: client and proxy do not agree on the channel.
        """
        if not self._is_needed:
            return answer
        if isinstance(self._stage, bridge.Challenge):
            self._stage = proved = await self._prove(self._stage, answer.body)
            return Message(b"p", proved.client_final)
        response: bytes | None = answer.body
        if self._mechanism is None:
            self._mechanism, response = parse_initial_response(answer.body)
        return None if response is None else self._begin(self._mechanism, response)

    def _begin(self, mechanism: str, client_first: bytes) -> Message:
        opened = bridge.begin(
            self._client_end_point, mechanism, client_first, self._mechanisms, self._backend_end_point
        )
        if opened.flag is BindingFlag.NOT_SUPPORTED:
            self._is_needed = False
            return encode_initial_response(mechanism, client_first)
        self._stage = opened
        return encode_initial_response(opened.mechanism, opened.client_first)

    async def _prove(self, asked: bridge.Challenge, client_final: bytes) -> Answered:
        known = await self._verifiers.known(self._user)
        self._tried = (known,)
        answered = asked.answer(client_final, known.verifier)
        if answered.failure is None:
            return answered
        fresh = await self._verifiers.fresh(self._user, known)
        self._tried = (known, fresh)
        return answered if fresh.verifier == known.verifier else asked.answer(client_final, fresh.verifier)

    def for_client(self, request: Authentication) -> bytes | None:
        """What the backend's next Authentication message becomes for the client; None for itself.

        Raises:
            BackendUnproved: the backend does not know the verifier.
            BackendMisbehaved: it is malformed, beyond a limit, or takes a random proof for right.
        """
        if self._is_needed and request.code == _SASL_CONTINUE and isinstance(self._stage, Opened):
            self._stage = asked = self._stage.challenge(request.data)
            return encode_authentication(_SASL_CONTINUE, asked.server_first)
        if self._is_needed and request.code == _SASL_FINAL and isinstance(self._stage, Answered):
            return encode_authentication(_SASL_FINAL, self._stage.verdict(request.data))
        return None
