"""One exchange over two legs: the client proves itself to the backend through us, who hold a verifier only.

Each leg binds SCRAM to another certificate, so the client's proof cannot be passed on: it signs the hash of
our leaf. But a right proof reveals ClientKey to whoever has StoredKey, and with it we make the backend's
proof, as PostgreSQL itself could. Salt, iterations and the server's nonce are the backend's throughout.

    opened = begin(client_end_point, mechanism, client_first, mechanisms, backend_end_point)
                                                # to the backend: opened.mechanism, opened.client_first
    asked = opened.challenge(server_first)      # to the client: asked.server_first
    answered = asked.answer(client_final, verifier)     # to the backend: answered.client_final
    answered.verdict(server_final)              # to the client, then the backend's AuthenticationOk

A client that cannot be let in is found out in `answer` and learns nothing there: the backend gets a random
proof and says no in its own words, in its own time and in its own log, and `answered.failure` says why. It is
the same with a user of whom we have no verifier. Before that the same proof can be held against a verifier
that has just been fetched. Whether a password has expired is the backend's to say.
"""

from __future__ import annotations

import enum
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field

from pgtlsproxy.errors import BackendMisbehaved
from pgtlsproxy.identity import Secret
from pgtlsproxy.protocol.backend import BindingFlag
from pgtlsproxy.protocol.scram.binding import Binding, choose
from pgtlsproxy.protocol.scram.client import check_signature
from pgtlsproxy.protocol.scram.keys import (
    KEY_OCTETS,
    MAX_ITERATIONS,
    Verifier,
    encode_base64,
    prove,
    recover_client_key,
    sign,
)
from pgtlsproxy.protocol.scram.messages import (
    ClientFinal,
    ClientFirst,
    ServerFirst,
    check_mechanism,
    read_client_final,
    read_client_first,
    read_server_first,
)
from pgtlsproxy.protocol.scram.server import client_binding


class Failure(enum.StrEnum):
    """Why a client is not let in. For the log: the client must not be able to tell them apart."""

    UNKNOWN_USER = "there is no verifier for the user"
    STALE_VERIFIER = "the verifier has another salt or iteration count than the backend's"
    WRONG_PROOF = "the proof is wrong"


@dataclass(frozen=True, slots=True)
class Answered:
    """The client has given its proof.

    Args:
        client_final: the client-final-message to be sent to the backend.
        failure: why its proof is a random one; None where the client is proved.
    """

    client_final: bytes = field(repr=False)
    failure: Failure | None
    _from_backend: Secret
    _for_client: Secret

    def verdict(self, server_final: bytes) -> bytes:
        """Take the backend's server-final-message; gives the client's.

        Raises:
            BackendUnproved: the backend does not know the verifier.
            BackendMisbehaved: its message is malformed, an error, or takes a random proof for right.
        """
        if self.failure is not None:
            raise BackendMisbehaved("the backend took a random SCRAM proof for right")
        check_signature(server_final, self._from_backend)
        return b"v=" + encode_base64(self._for_client.reveal())


@dataclass(frozen=True, slots=True)
class Challenge:
    """The backend asks for a proof.

    Args:
        server_first: the server-first-message to be sent to the client: the backend's own.
    """

    server_first: bytes = field(repr=False)
    _first: ClientFirst
    _challenge: ServerFirst
    _client: Binding
    _backend: Binding

    def answer(self, client_final: bytes, verifier: Verifier | None) -> Answered:
        """Take the client-final-message; gives the backend's.

        Args:
            client_final: the client's message.
            verifier: the user's; None where there is none, which ends in the backend's refusal.

        Raises:
            ChannelBindingFailed: the client saw another certificate than ours.
            ProtocolViolation: its message is malformed, or of another exchange.
        """
        final = read_client_final(client_final, self._client, self._challenge.nonce)
        behind_binding = final.without_proof.partition(b",")[2]
        without_proof = b"c=%b,%b" % (self._backend.attribute, behind_binding)
        failure, proof = self._prove(final, without_proof, verifier)
        server_key = _no_key() if verifier is None else verifier.server_key
        return Answered(
            client_final=without_proof + b",p=" + encode_base64(proof),
            failure=failure,
            _from_backend=Secret(sign(server_key, self._auth_message(without_proof))),
            _for_client=Secret(sign(server_key, self._auth_message(final.without_proof))),
        )

    def _prove(
        self, final: ClientFinal, without_proof: bytes, verifier: Verifier | None
    ) -> tuple[Failure | None, bytes]:
        """What is wrong with the client, and the proof for the backend. ClientKey is known here alone."""
        stored_key = _no_key() if verifier is None else verifier.stored_key
        client_key = recover_client_key(final.proof, stored_key, self._auth_message(final.without_proof))
        failure = self._failure(verifier, is_proved=client_key is not None)
        if client_key is None or failure is not None:
            return failure, secrets.token_bytes(KEY_OCTETS)
        return None, prove(client_key, stored_key, self._auth_message(without_proof))

    def _failure(self, verifier: Verifier | None, *, is_proved: bool) -> Failure | None:
        if verifier is None:
            return Failure.UNKNOWN_USER
        known = (verifier.salt, verifier.iterations)
        if known != (self._challenge.salt, self._challenge.iterations):
            return Failure.STALE_VERIFIER
        return None if is_proved else Failure.WRONG_PROOF

    def _auth_message(self, without_proof: bytes) -> bytes:
        return b",".join((self._first.bare, self.server_first, without_proof))


@dataclass(frozen=True, slots=True)
class Opened:
    """The client has begun.

    Args:
        flag: what it says of channel binding; with NOT_SUPPORTED the exchange can do without us.
        mechanism: the one selected at the backend, for SASLInitialResponse.
        client_first: the client-first-message to be sent to it.
    """

    flag: BindingFlag
    mechanism: str
    client_first: bytes = field(repr=False)
    _first: ClientFirst
    _client: Binding
    _backend: Binding

    def challenge(self, server_first: bytes) -> Challenge:
        """Take the backend's server-first-message; it is the client's as well.

        Raises:
            BackendMisbehaved: it is malformed, of another exchange, or beyond a limit.
        """
        challenge = read_server_first(server_first, self._first.nonce, MAX_ITERATIONS)
        return Challenge(server_first, self._first, challenge, self._client, self._backend)


def begin(
    client_end_point: bytes | None,
    mechanism: str,
    client_first: bytes,
    mechanisms: Collection[str],
    backend_end_point: bytes | None,
) -> Opened:
    """Begin with what the client's SASLInitialResponse holds.

    Args:
        client_end_point: the hash of our leaf as this client saw it; None where PLUS was not offered to it
            (see `binding.offered`).
        mechanism: the one that the client selected.
        client_first: its message.
        mechanisms: the list of the backend's AuthenticationSASL.
        backend_end_point: the hash of the backend's leaf; None in clear and where it has none.

    Raises:
        BindingNegotiationFailed: the client says `y` although PLUS was offered.
        ProtocolViolation: its message is malformed, or asks for what PostgreSQL does not do.
        BackendMisbehaved: none of the backend's mechanisms can be used.
    """
    check_mechanism(mechanism, client_end_point)
    first = read_client_first(client_first, mechanism, client_end_point)
    backend = choose(mechanisms, backend_end_point)
    return Opened(
        flag=first.flag,
        mechanism=backend.mechanism,
        client_first=backend.header + first.bare,
        _first=first,
        _client=client_binding(first.flag, client_end_point),
        _backend=backend,
    )


def _no_key() -> Secret:
    """A key that belongs to nobody: the same sums are done with it."""
    return Secret(secrets.token_bytes(KEY_OCTETS))
