"""Verifiers, keys and the sums of SCRAM-SHA-256 (RFC 5802, section 3)."""

from __future__ import annotations

import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass, field
from typing import Final, Self

from pgtlsproxy.identity import Secret, encode_name
from pgtlsproxy.protocol.saslprep import saslprep

KEY_OCTETS: Final = 32
"""Length of every key, proof and signature: SHA-256's."""

SALT_OCTETS: Final = 16
"""Length of the salts that PostgreSQL makes; SCRAM_DEFAULT_SALT_LEN in common/scram-common.h."""

DEFAULT_ITERATIONS: Final = 4096
"""PostgreSQL's `scram_iterations` where nobody set it, and the least that RFC 7677 recommends."""

MAX_SALT_OCTETS: Final = 128
"""Longest salt that is taken, decoded. PostgreSQL has no limit."""

MAX_ITERATIONS: Final = 1_000_000
"""Most iterations that a verifier may have. PostgreSQL's `scram_iterations` goes to 2,147,483,647, at which
every login of a client would take it a quarter of an hour."""

_TEXT: Final = re.compile(
    r"SCRAM-SHA-256\$(?P<iterations>[0-9]{1,10}):(?P<salt>[^$:]{1,512})"
    r"\$(?P<stored_key>[^$:]{1,64}):(?P<server_key>[^$:]{1,64})",
    re.ASCII,
)


class InvalidVerifier(ValueError):
    """A text is no verifier that can be used. Never quotes it: it may be somebody's password."""


@dataclass(frozen=True, slots=True)
class Verifier:
    """What a server keeps in a password's place, as in pg_authid.rolpassword.

    Args:
        salt: 1 to MAX_SALT_OCTETS octets.
        iterations: 1 to MAX_ITERATIONS.
        stored_key: StoredKey. With it and one exchange overheard in clear anybody can log in.
        server_key: ServerKey. With it anybody can pass for the server.

    Raises:
        InvalidVerifier: a field is beyond its bounds.
    """

    salt: bytes = field(repr=False)
    iterations: int
    stored_key: Secret
    server_key: Secret

    def __post_init__(self) -> None:
        _check_parameters(self.salt, self.iterations)
        for name, key in (("StoredKey", self.stored_key), ("ServerKey", self.server_key)):
            if len(key.reveal()) != KEY_OCTETS:
                raise InvalidVerifier(f"a {name} of {len(key.reveal())} octets; expected {KEY_OCTETS}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`.

        Stricter than parse_scram_secret (libpq/auth-scram.c): the number is digits alone and in bounds, the
        salt is not empty, and base64 has one spelling.

        Raises:
            InvalidVerifier: it is none; says which part.
        """
        found = _TEXT.fullmatch(text)
        if found is None:
            raise InvalidVerifier("not of the form SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>")
        decoded: dict[str, bytes] = {}
        for name in ("salt", "stored_key", "server_key"):
            try:
                decoded[name] = decode_base64(found[name].encode())
            except ValueError:
                raise InvalidVerifier(f"its {name} is not base64") from None
        return cls(
            decoded["salt"],
            int(found["iterations"]),
            Secret(decoded["stored_key"]),
            Secret(decoded["server_key"]),
        )

    @classmethod
    def make(cls, password: Secret, salt: bytes, iterations: int = DEFAULT_ITERATIONS) -> Self:
        """The verifier of a password; takes as long as `Keys.derive`.

        Raises:
            InvalidVerifier: salt or iterations are beyond their bounds.
        """
        _check_parameters(salt, iterations)
        keys = Keys.derive(password, salt, iterations)
        stored_key = Secret(hashlib.sha256(keys.client_key.reveal()).digest())
        return cls(salt, iterations, stored_key, keys.server_key)

    def text(self) -> str:
        """The verifier as PostgreSQL stores it. As good as a password: for files of mode 0600 alone."""
        salt, stored_key, server_key = (
            encode_base64(value).decode("ascii")
            for value in (self.salt, self.stored_key.reveal(), self.server_key.reveal())
        )
        return f"SCRAM-SHA-256${self.iterations}:{salt}${stored_key}:{server_key}"


def _check_parameters(salt: bytes, iterations: int) -> None:
    if not 1 <= len(salt) <= MAX_SALT_OCTETS:
        raise InvalidVerifier(f"a salt of {len(salt)} octets; expected 1 to {MAX_SALT_OCTETS}")
    if not 1 <= iterations <= MAX_ITERATIONS:
        raise InvalidVerifier(f"{iterations} iterations; expected 1 to {MAX_ITERATIONS}")


@dataclass(frozen=True, slots=True)
class Keys:
    """What a client needs in a password's place, for one salt and one number of iterations.

    Args:
        client_key: ClientKey.
        server_key: ServerKey.
    """

    client_key: Secret
    server_key: Secret

    @classmethod
    def derive(cls, password: Secret, salt: bytes, iterations: int) -> Self:
        """The keys of a password.

        Takes 0.3 to 0.7 ms for every 1,000 iterations, without the interpreter's lock: where other sessions
        wait, call it in a thread.

        Args:
            password: as it was typed; it is prepared here (see `saslprep`).
            salt: the server's.
            iterations: the server's; whoever calls has held it against a bound.
        """
        salted = hashlib.pbkdf2_hmac("sha256", saslprep(password.reveal()), salt, iterations, KEY_OCTETS)
        return cls(Secret(_hmac(salted, b"Client Key")), Secret(_hmac(salted, b"Server Key")))


def fake_salt(mock_secret: Secret, user: str) -> bytes:
    """The salt of a user who has no verifier, so that it cannot be told from one who has.

    The same at every call for the same user, as a real salt is.

    Args:
        mock_secret: at least 32 random octets, the same in all processes and never changed; whoever knows
            it can tell which users are real.
        user: the user of the StartupMessage.
    """
    return _hmac(mock_secret.reveal(), encode_name(user))[:SALT_OCTETS]


def sign(key: Secret, auth_message: bytes) -> bytes:
    """ClientSignature by StoredKey, ServerSignature by ServerKey."""
    return _hmac(key.reveal(), auth_message)


def prove(client_key: bytes, stored_key: Secret, auth_message: bytes) -> bytes:
    """ClientProof: ClientKey XOR ClientSignature."""
    return _xor(client_key, sign(stored_key, auth_message))


def recover_client_key(proof: bytes, stored_key: Secret, auth_message: bytes) -> bytes | None:
    """The ClientKey out of a ClientProof; None where the proof is wrong. Takes as long either way.

    It is as good as the password: keep it in one function's frame.
    """
    client_key = _xor(proof, sign(stored_key, auth_message))
    is_right = hmac.compare_digest(hashlib.sha256(client_key).digest(), stored_key.reveal())
    return client_key if is_right else None


def encode_base64(data: bytes) -> bytes:
    """Base64 with padding, in one line."""
    return binascii.b2a_base64(data, newline=False)


def decode_base64(text: bytes) -> bytes:
    """The octets of a base64 text in its one canonical spelling (RFC 4648, section 3.5).

    Raises:
        ValueError: it is no such text. Never quotes it.
    """
    try:
        data = binascii.a2b_base64(text)
    except binascii.Error:
        raise ValueError("not base64") from None
    if encode_base64(data) != text:
        raise ValueError("not base64 in its canonical spelling")
    return data


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))
