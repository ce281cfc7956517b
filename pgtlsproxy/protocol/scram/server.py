"""The server's side of an exchange: who knows the password of which we hold the verifier.

    asked = challenge(verifier, end_point, mechanism, client_first)      # send asked.server_first
    server_final = asked.verify(client_final, user)                      # send it, then AuthenticationOk

A client may leave its first message out of SASLInitialResponse; an empty SASLContinue then asks for it. For a
user who is unknown the caller gives a verifier with `fake_salt` and random keys: nobody can prove those, and
the exchange goes on to the same end by the same road.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pgtlsproxy.errors import AccessDenied
from pgtlsproxy.identity import printable
from pgtlsproxy.protocol.backend import BindingFlag
from pgtlsproxy.protocol.scram.binding import Binding, new_nonce
from pgtlsproxy.protocol.scram.keys import Verifier, encode_base64, recover_client_key, sign
from pgtlsproxy.protocol.scram.messages import check_mechanism, read_client_final, read_client_first


class WrongProof(AccessDenied):
    """The client does not know the password, or the user is unknown: nobody outside can tell which.

    Args:
        user: the user of the StartupMessage.
        reason: for the log.
    """

    sqlstate = "28P01"

    def __init__(self, user: str, reason: str = "the SCRAM proof is wrong") -> None:
        reply = f'password authentication failed for user "{printable(user)}"'
        super().__init__(reason, reply=reply)


@dataclass(frozen=True, slots=True)
class Challenge:
    """A client has begun, and is asked for its proof. One proof: make another challenge for another.

    Args:
        server_first: the server-first-message to be sent.
    """

    server_first: bytes = field(repr=False)
    _bare: bytes = field(repr=False)
    _nonce: bytes = field(repr=False)
    _binding: Binding
    _verifier: Verifier

    def verify(self, client_final: bytes, user: str) -> bytes:
        """Take the client-final-message; gives the server-final-message. The client is proved.

        Raises:
            WrongProof: the client does not know the password.
            ChannelBindingFailed: it saw another certificate.
            ProtocolViolation: its message is malformed, or of another exchange.
        """
        final = read_client_final(client_final, self._binding, self._nonce)
        auth_message = b",".join((self._bare, self.server_first, final.without_proof))
        if recover_client_key(final.proof, self._verifier.stored_key, auth_message) is None:
            raise WrongProof(user)
        return b"v=" + encode_base64(sign(self._verifier.server_key, auth_message))


def challenge(
    verifier: Verifier,
    end_point: bytes | None,
    mechanism: str,
    client_first: bytes,
    *,
    nonce: bytes | None = None,
) -> Challenge:
    """Begin with the mechanism and the client-first-message of a SASLInitialResponse.

    Args:
        verifier: the user's, or one that nobody has the password of.
        end_point: the hash of the own leaf as this client saw it; None where PLUS was not offered
            (see `binding.offered`).
        mechanism: the one that the client selected.
        client_first: its message.
        nonce: the server's part; random where it is not given.

    Raises:
        BindingNegotiationFailed: the client says `y` although PLUS was offered.
        ProtocolViolation: it is malformed, or asks for what PostgreSQL does not do.
    """
    check_mechanism(mechanism, end_point)
    first = read_client_first(client_first, mechanism, end_point)
    whole_nonce = first.nonce + (nonce or new_nonce())
    salt = encode_base64(verifier.salt)
    return Challenge(
        server_first=b"r=%b,s=%b,i=%d" % (whole_nonce, salt, verifier.iterations),
        _bare=first.bare,
        _nonce=whole_nonce,
        _binding=client_binding(first.flag, end_point),
        _verifier=verifier,
    )


def client_binding(flag: BindingFlag, end_point: bytes | None) -> Binding:
    """What a client must repeat in its client-final-message that began with this flag."""
    return Binding(flag, end_point or b"") if flag is BindingFlag.USED else Binding(flag)
