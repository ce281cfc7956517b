"""Whether a session may go on as it is under newer rules than those that let it in."""

from __future__ import annotations

from pgtlsproxy.identity import Challenge, Proof, ProofKind, printable
from pgtlsproxy.policy.access import AccessRefused, AccessRequest, DecidedBy, Grant
from pgtlsproxy.policy.challenge import allows
from pgtlsproxy.policy.replies import rejects


def require_same(grant: Grant, newer: Grant, request: AccessRequest, proof: Proof) -> None:
    """Hold what a session was given under older rules against what newer ones give.

    Args:
        grant: what it was given; it is connected to that database of that backend.
        newer: what it would be given now.
        request: what it asks for.
        proof: what proved it.

    Raises:
        AccessRefused: it would be sent elsewhere now, or would have to prove itself otherwise.
    """
    problem, decided_by = _misplaced(grant, newer), DecidedBy.PROOF
    if problem is None:
        problem = _unproved(newer, proof)
    if problem is None and newer.is_fenced and proof.challenge is Challenge.NONE:
        decided_by = DecidedBy.RESERVED_USERS
        problem = (
            f"{newer.hba}: backend {newer.backend} let a reserved user or a replication session in unasked, "
            "and the line and its map do not name the user now"
        )
    if problem is not None:
        raise AccessRefused(problem, reply=rejects(request), decided_by=decided_by)


def _misplaced(grant: Grant, newer: Grant) -> str | None:
    """Why a session is at the wrong place."""
    if (newer.backend, newer.backend_database) == (grant.backend, grant.backend_database):
        return None
    return f"listener {grant.listener} leads to {_place(newer)} now, and no more to {_place(grant)}"


def _unproved(newer: Grant, proof: Proof) -> str | None:
    """Why what has proved a client does not do any more."""
    if proof.kind not in newer.accepts:
        wanted = " or ".join(sorted(newer.accepts))
        return f"{newer.hba}: the client was proved by {proof.kind}, and has to be by {wanted} now"
    asked = proof.kind is ProofKind.BACKEND_CHALLENGE
    if asked and not allows(newer.login, newer.method, proof.challenge):
        return f"{newer.hba}: the backend asked the client otherwise than {newer.method} demands now"
    return None


def _place(grant: Grant) -> str:
    """A backend, and its database where that is not called as the client calls it."""
    if grant.backend_database == grant.database:
        return f"backend {grant.backend}"
    return f'database "{printable(grant.backend_database)}" of backend {grant.backend}'
