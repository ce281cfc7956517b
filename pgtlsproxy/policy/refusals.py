"""How the policy says no."""

from __future__ import annotations

import enum

from pgtlsproxy.errors import AccessDenied
from pgtlsproxy.policy.ident import IdentMatch
from pgtlsproxy.policy.records import LineRef
from pgtlsproxy.policy.rule import HbaRule, Method


class DecidedBy(enum.StrEnum):
    """Which rule refused."""

    HBA = "hba"
    IDENT = "ident"
    PROXY_PROTOCOL_FROM = "proxy_protocol_from"
    PLAINTEXT_FROM = "plaintext_from"
    RESERVED_USERS = "reserved_users"
    PROOF = "proof"
    DATABASES = "databases"


class AccessRefused(AccessDenied):
    """The policy said no.

    Args:
        reason: for the log.
        reply: PostgreSQL's text.
        sqlstate: PostgreSQL's code.
        decided_by: which rule refused.
        rule: the line of pg_hba.conf, or None where none applied.
        ident: the line of pg_ident.conf, where one applied.

    Attributes:
        is_certain: whether all was known that the decision hangs on. The client may be refused because a role
            or a host name could not be looked up.
    """

    def __init__(
        self,
        reason: str,
        *,
        reply: str,
        decided_by: DecidedBy,
        sqlstate: str = "28000",
        rule: HbaRule | None = None,
        ident: IdentMatch | None = None,
    ) -> None:
        super().__init__(reason if rule is None else f"{rule.ref}: {reason}", reply=reply, sqlstate=sqlstate)
        self.decided_by = decided_by
        self.is_certain = True
        self.hba: LineRef | None = None if rule is None else rule.ref
        self.method: Method | None = None if rule is None else rule.method
        self.ident: LineRef | None = None if ident is None else ident.ref
