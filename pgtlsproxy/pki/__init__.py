"""Issuing certificates and certificate revocation lists, in memory."""

from pgtlsproxy.pki.certificates import (
    CannotIssue,
    Issued,
    KeyType,
    Lifetime,
    SigningKey,
    Validity,
    issue_client,
    issue_server,
    make_ca,
    make_intermediate,
    renew,
)
from pgtlsproxy.pki.revocation import make_crl

__all__ = [
    "CannotIssue",
    "Issued",
    "KeyType",
    "Lifetime",
    "SigningKey",
    "Validity",
    "issue_client",
    "issue_server",
    "make_ca",
    "make_crl",
    "make_intermediate",
    "renew",
]
