"""The one rule as a table: which proof of the user can exist for a line and a login.

Nobody reaches a backend unless the proxy proved the user, or a challenge of the backend that the
client's own bytes answered did. The proxy's own credential proves nobody: with it the backend has
believed the proxy.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from pgtlsproxy.identity import ProofKind
from pgtlsproxy.policy.hba import ClientCert, HbaRule, Method


class Login(enum.StrEnum):
    """How the backend is satisfied."""

    PASSTHROUGH = "passthrough"
    CERTIFICATE = "certificate"
    PASSFILE = "passfile"


class Evidence(enum.Enum):
    """What a line of pg_hba.conf demands of a client."""

    NAMED_CERTIFICATE = enum.auto()
    OS_USER = enum.auto()
    SCRAM = enum.auto()
    PASSWORD = enum.auto()
    """A password in clear, that is shown to the proxy."""
    CHALLENGE = enum.auto()
    """A challenge of the backend, of the kind that the method names."""
    NOTHING = enum.auto()
    """`trust`, also with `clientcert=verify-ca`, which says that somebody is known, not who."""


PROOFS: Mapping[tuple[Evidence, Login], ProofKind] = MappingProxyType(
    {
        (Evidence.NAMED_CERTIFICATE, Login.PASSTHROUGH): ProofKind.CERTIFICATE,
        (Evidence.NAMED_CERTIFICATE, Login.CERTIFICATE): ProofKind.CERTIFICATE,
        (Evidence.NAMED_CERTIFICATE, Login.PASSFILE): ProofKind.CERTIFICATE,
        (Evidence.OS_USER, Login.PASSTHROUGH): ProofKind.PEER,
        (Evidence.OS_USER, Login.CERTIFICATE): ProofKind.PEER,
        (Evidence.OS_USER, Login.PASSFILE): ProofKind.PEER,
        (Evidence.SCRAM, Login.PASSTHROUGH): ProofKind.SCRAM,
        (Evidence.SCRAM, Login.CERTIFICATE): ProofKind.SCRAM,
        (Evidence.SCRAM, Login.PASSFILE): ProofKind.SCRAM,
        (Evidence.PASSWORD, Login.PASSTHROUGH): ProofKind.BACKEND_CHALLENGE,
        (Evidence.PASSWORD, Login.CERTIFICATE): ProofKind.PASSWORD,
        (Evidence.PASSWORD, Login.PASSFILE): ProofKind.PASSWORD,
        (Evidence.CHALLENGE, Login.PASSTHROUGH): ProofKind.BACKEND_CHALLENGE,
        (Evidence.NOTHING, Login.PASSTHROUGH): ProofKind.BACKEND_CHALLENGE,
        (Evidence.NOTHING, Login.CERTIFICATE): ProofKind.LITERAL_LOCAL_USER,
        (Evidence.NOTHING, Login.PASSFILE): ProofKind.LITERAL_LOCAL_USER,
    }
)
"""What is missing has no proof and is refused: where the proxy logs in with its own credential, the backend
does not ask the client."""

ASKED_HERE: Final = frozenset({Evidence.SCRAM, Evidence.PASSWORD})
"""Evidence that the proxy itself asks for where the backend asks nobody, and holds against a verifier."""


PROVED_HERE: Final = frozenset({Evidence.NAMED_CERTIFICATE, Evidence.OS_USER})
"""Evidence that names the user, and has been judged when a line's names were: no backend has to ask."""


def evidence(rule: HbaRule) -> Evidence:
    """What a line demands. `reject` demands nothing; who asks has refused it before."""
    match rule.method:
        case Method.SCRAM_SHA_256:
            return Evidence.SCRAM
        case Method.PEER:
            return Evidence.OS_USER
        case Method.MD5 | Method.GSS | Method.OAUTH:
            return Evidence.CHALLENGE
        case Method.PASSWORD:
            return Evidence.PASSWORD
        case method if method.asks_for_password:
            return Evidence.CHALLENGE
        case _ if rule.clientcert is ClientCert.VERIFY_FULL:
            return Evidence.NAMED_CERTIFICATE
        case _:
            return Evidence.NOTHING


def proof(rule: HbaRule, login: Login, *, has_verifiers: bool) -> ProofKind | None:
    """The proof that a line and a login lead to, or None where there can be none.

    Args:
        rule: the line.
        login: how the backend is satisfied.
        has_verifiers: whether the listener has the users' SCRAM verifiers.
    """
    demanded = evidence(rule)
    if demanded in ASKED_HERE and login is not Login.PASSTHROUGH and not has_verifiers:
        return None
    return PROOFS.get((demanded, login))
