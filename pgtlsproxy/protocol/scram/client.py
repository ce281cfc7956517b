"""The client's side of an exchange: we know the password, and the backend must know its verifier.

opened = begin(mechanisms, end_point)               # send opened.mechanism, opened.client_first
answered = opened.answer(server_first, password)    # send answered.client_final
answered.check(server_final)                        # before AuthenticationOk counts
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from pgtlsproxy.errors import BackendMisbehaved
from pgtlsproxy.identity import Secret
from pgtlsproxy.protocol.scram.binding import Binding, choose, new_nonce
from pgtlsproxy.protocol.scram.keys import Keys, encode_base64, prove, sign
from pgtlsproxy.protocol.scram.messages import read_server_final, read_server_first

MAX_BACKEND_ITERATIONS: Final = 100_000
"""Most iterations that are done for a backend: 30 to 70 ms. PostgreSQL asks for 4,096 where nobody set
`scram_iterations`. libpq has no limit; without one a server keeps its client busy for minutes, as it could
pgjdbc (CVE-2026-42198)."""


class BackendUnproved(BackendMisbehaved):
    """The backend does not know the user's verifier: it is not the one that it passes for."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The proof is given, and the backend's own is due.

    Args:
        client_final: the client-final-message to be sent.
    """

    client_final: bytes = field(repr=False)
    _signature: Secret

    def check(self, server_final: bytes) -> None:
        """Take the server-final-message.

        Raises:
            BackendUnproved: its signature is wrong.
            BackendMisbehaved: it is malformed, or an error.
        """
        check_signature(server_final, self._signature)


@dataclass(frozen=True, slots=True)
class Opened:
    """The exchange is begun.

    Args:
        mechanism: the one selected, for SASLInitialResponse.
        client_first: the client-first-message that goes with it.
    """

    mechanism: str
    client_first: bytes = field(repr=False)
    _bare: bytes = field(repr=False)
    _nonce: bytes = field(repr=False)
    _binding: Binding
    _max_iterations: int

    def challenge(self, server_first: bytes) -> tuple[bytes, int]:
        """The salt and the number of iterations of a server-first-message, for who derives the keys apart.

        Raises:
            BackendMisbehaved: the message is malformed, of another exchange, or beyond a limit.
        """
        first = read_server_first(server_first, self._nonce, self._max_iterations)
        return first.salt, first.iterations

    def answer(self, server_first: bytes, credential: Secret | Keys) -> Answered:
        """Take the server-first-message.

        With a password this takes as long as `Keys.derive`, so call it in a thread.

        Args:
            server_first: what the backend sent.
            credential: the password, or the keys of its verifier. Keys of another salt or number of
                iterations make a wrong proof.

        Raises:
            BackendMisbehaved: the message is malformed, of another exchange, or beyond a limit.
        """
        first = read_server_first(server_first, self._nonce, self._max_iterations)
        keys = credential
        if isinstance(keys, Secret):
            keys = Keys.derive(keys, first.salt, first.iterations)
        client_key = keys.client_key.reveal()
        without_proof = b"c=%b,r=%b" % (self._binding.attribute, first.nonce)
        auth_message = b",".join((self._bare, server_first, without_proof))
        proof = prove(client_key, Secret(hashlib.sha256(client_key).digest()), auth_message)
        return Answered(
            client_final=without_proof + b",p=" + encode_base64(proof),
            _signature=Secret(sign(keys.server_key, auth_message)),
        )


def begin(
    mechanisms: Collection[str],
    end_point: bytes | None,
    *,
    nonce: bytes | None = None,
    max_iterations: int = MAX_BACKEND_ITERATIONS,
) -> Opened:
    """Choose a mechanism and begin. The user is the one of the StartupMessage, as with libpq.

    Args:
        mechanisms: the list of the backend's AuthenticationSASL.
        end_point: the hash of the backend's leaf; None in clear, where it has none, and where binding is
            not wanted.
        nonce: the client's part; random where it is not given.
        max_iterations: most that the backend may ask for.

    Raises:
        BackendMisbehaved: none of the mechanisms can be used.
    """
    binding = choose(mechanisms, end_point)
    own_nonce = nonce or new_nonce()
    bare = b"n=,r=" + own_nonce
    return Opened(
        mechanism=binding.mechanism,
        client_first=binding.header + bare,
        _bare=bare,
        _nonce=own_nonce,
        _binding=binding,
        _max_iterations=max_iterations,
    )


def check_signature(server_final: bytes, expected: Secret) -> None:
    """Hold a server-final-message against the signature that it must have.

    Raises:
        BackendUnproved: it has another one.
        BackendMisbehaved: it is malformed, or an error.
    """
    if not hmac.compare_digest(read_server_final(server_final), expected.reveal()):
        raise BackendUnproved("the backend's SCRAM signature is wrong: it does not know the user's verifier")
