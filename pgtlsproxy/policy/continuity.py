"""Whether a session may go on as it is under newer rules than those that let it in."""

from __future__ import annotations

from pgtlsproxy.identity import Proof, printable
from pgtlsproxy.policy.access import AccessRefused, AccessRequest, DecidedBy, Grant
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
    if (newer.backend, newer.backend_database) != (grant.backend, grant.backend_database):
        problem = f"listener {grant.listener} leads to {_place(newer)} now, and no more to {_place(grant)}"
    elif proof.kind not in newer.accepts:
        wanted = " or ".join(sorted(newer.accepts))
        problem = f"{newer.hba}: the client was proved by {proof.kind}, and has to be by {wanted} now"
    else:
        return
    raise AccessRefused(problem, reply=rejects(request), decided_by=DecidedBy.PROOF)


def _place(grant: Grant) -> str:
    """A backend, and its database where that is not called as the client calls it."""
    if grant.backend_database == grant.database:
        return f"backend {grant.backend}"
    return f'database "{printable(grant.backend_database)}" of backend {grant.backend}'
