"""Whether the CAs of a backend's chain may certify the host that a wildcard was taken for.

OpenSSL holds name constraints (RFC 5280 4.2.1.10) against the names in a certificate as they stand there:
under a CA that must not certify `db.example.com` it lets `*.example.com` pass, which then stands for that
very host (CVE-2025-61727 was the same in Go). libpq has no rule for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509

from pgtlsproxy.errors import BackendTLSFailed
from pgtlsproxy.identity import printable
from pgtlsproxy.tls.anchors import subject


def require_permitted(authorities: Sequence[x509.Certificate], host: str) -> None:
    """Refuse a host that one of the CAs above a certificate may not certify.

    Args:
        authorities: the chain without its leaf.
        host: a DNS name.

    Raises:
        BackendTLSFailed: it is excluded, or not permitted, or that cannot be read.
    """
    for authority in authorities:
        try:
            limits = authority.extensions.get_extension_for_class(x509.NameConstraints).value
        except x509.ExtensionNotFound:
            continue
        except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
            raise BackendTLSFailed(
                f"the name constraints of {subject(authority)} cannot be read: {error}"
            ) from None
        permitted, excluded = (
            None if listed is None else [base.value for base in listed if isinstance(base, x509.DNSName)]
            for listed in (limits.permitted_subtrees, limits.excluded_subtrees)
        )
        if _is_below(host, excluded or ()) or (permitted and not _is_below(host, permitted)):
            raise BackendTLSFailed(
                f"the name constraints of {subject(authority)} forbid host name "
                f'"{printable(host)}", for which a wildcard of the server certificate stands'
            )


def _is_below(host: str, bases: Sequence[str]) -> bool:
    """Whether a host is one of these or below one, as OpenSSL compares: `.example.com` is what is below."""
    folded = host.lower()
    for base in map(str.lower, bases):
        if base in ("", folded) or folded.endswith(base if base.startswith(".") else f".{base}"):
            return True
    return False
