"""Which lines decide about a client, and why: what `pgtlsproxy explain` shows.

A question may leave open what a line asks for, as the client's certificate: then there is no answer, and
what is missing is named.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from pgtlsproxy.identity import ProofKind
from pgtlsproxy.policy.access import AccessRefused, DecidedBy, Grant, Rules, decide
from pgtlsproxy.policy.matching import Skipped, Undecidable, first_match, skipped
from pgtlsproxy.policy.records import LineRef
from pgtlsproxy.policy.request import AccessRequest, Facts, Needs
from pgtlsproxy.policy.rule import ClientCert, ClientName, HbaRule, Method


class Open(enum.Enum):
    """What a question does not say of the client."""

    CERTIFICATE = "whether it has a certificate"
    COMMON_NAME = "the common name of its certificate"
    DN = "the distinguished name of its certificate"
    ALTERNATIVE_NAMES = "the subjectAltNames of its certificate"
    ISSUER = "which CA issued its certificate"
    OS_USER = "which operating system user it is"


PROVED_BY: Mapping[str, str] = MappingProxyType(
    {
        "cert": "the client's certificate proves the user",
        "peer": "the operating system proves the user",
        "scram-sha-256": "the client still has to prove the user by SCRAM",
        "password": "the client still has to show its password",
        "backend": "the backend still has to ask the client for a proof",
        "none": "the line names the users, who need no proof from this host",
    }
)
"""What proves the user or is still to prove it, by the word for it."""

_NEEDS: Mapping[ProofKind, str] = MappingProxyType(
    {
        ProofKind.CERTIFICATE: "cert",
        ProofKind.PEER: "peer",
        ProofKind.BACKEND_CHALLENGE: "backend",
        ProofKind.SCRAM: "scram-sha-256",
        ProofKind.PASSWORD: "password",
        ProofKind.LITERAL_LOCAL_USER: "none",
    }
)
"""Of proofs of which one must be had the first one here counts."""

_NAME_ASKED_FOR: Mapping[ClientName, Open] = MappingProxyType(
    {
        ClientName.CN: Open.COMMON_NAME,
        ClientName.DN: Open.DN,
        ClientName.SAN_DNS: Open.ALTERNATIVE_NAMES,
        ClientName.SAN_URI: Open.ALTERNATIVE_NAMES,
        ClientName.SAN_EMAIL: Open.ALTERNATIVE_NAMES,
    }
)
"""What is to be known of a certificate, by the name of it that counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The answer.

    Args:
        allowed: whether the policy lets the client go on; None where the question leaves open what counts.
        reason: why, for the administrator; printable.
        sqlstate, reply: what the client is told where it is refused; else None.
        needs: what proves the client, or is still to prove it: a key of PROVED_BY; None where it may not
            go on.
        decided_by: which rule refused; None where none did.
        hba: the deciding line; None where no line applies.
        ident: the line of pg_ident.conf that was used.
        skipped: the lines before the deciding one, and what each failed on.
    """

    allowed: bool | None
    reason: str
    sqlstate: str | None = None
    reply: str | None = None
    needs: str | None = None
    decided_by: DecidedBy | None = None
    hba: LineRef | None = None
    ident: LineRef | None = None
    skipped: tuple[Skipped, ...] = ()


def explain(
    rules: Rules, request: AccessRequest, facts: Facts, left_open: frozenset[Open] = frozenset()
) -> Explanation | Needs:
    """Say what would become of a client, and why.

    Args:
        rules: the listener's.
        request: the client.
        facts: what has been looked up.
        left_open: what is not known of the client.

    Returns:
        The answer, or what has to be looked up first.
    """
    if rules.roles is not None and facts.roles is None:
        facts = replace(facts, roles=rules.roles.of(request.user))
    decision = _decision(rules, request, facts)
    if isinstance(decision, AccessRefused) and decision.decided_by is DecidedBy.PLAINTEXT_FROM:
        return _refused(decision, ())
    line = first_match(rules.hba, request, facts)
    if isinstance(line, Needs):
        return line
    rule = line.rule if isinstance(line, Undecidable) else line
    before = tuple(skipped(rules.hba, request, facts, rule))
    if isinstance(line, HbaRule) and (missing := _asked_for(line) & left_open):
        names = " and ".join(each.value for each in Open if each in missing)
        reason = f"{line.ref}: this line decides, and the question does not say {names}"
        return Explanation(allowed=None, reason=reason, hba=line.ref, skipped=before)
    if isinstance(decision, Needs):
        return decision
    if isinstance(decision, AccessRefused):
        return _refused(decision, before)
    needs = next(word for kind, word in _NEEDS.items() if kind in decision.accepts)
    return Explanation(
        allowed=True,
        reason=f"{decision.hba}: {PROVED_BY[needs]}",
        needs=needs,
        hba=decision.hba,
        ident=decision.ident,
        skipped=before,
    )


def _decision(rules: Rules, request: AccessRequest, facts: Facts) -> Grant | AccessRefused | Needs:
    try:
        return decide(rules, request, facts)
    except AccessRefused as refusal:
        return refusal


def _refused(refusal: AccessRefused, before: tuple[Skipped, ...]) -> Explanation:
    return Explanation(
        allowed=False,
        reason=refusal.reason,
        sqlstate=refusal.sqlstate,
        reply=refusal.reply,
        decided_by=refusal.decided_by,
        hba=refusal.hba,
        ident=refusal.ident,
        skipped=before,
    )


def _asked_for(rule: HbaRule) -> frozenset[Open]:
    """What a line asks of a client beyond its address and its names."""
    if rule.method is Method.PEER:
        return frozenset({Open.OS_USER})
    if rule.clientcert is ClientCert.OFF:
        return frozenset()
    asked = {Open.CERTIFICATE}
    if rule.issuers:
        asked.add(Open.ISSUER)
    if rule.clientcert is ClientCert.VERIFY_FULL and rule.method is not Method.REJECT:
        asked.add(_NAME_ASKED_FOR[rule.clientname])
    return frozenset(asked)
