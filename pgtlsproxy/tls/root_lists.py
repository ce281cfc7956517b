"""What revocation lists say of the roots themselves, which OpenSSL does not ask any more.

Before 4.0 OpenSSL asks for a list of every certificate of a chain, the root among them (CRL_CHECK_ALL), as
PostgreSQL and libpq want it. Since 4.0 it stops below the root, so that a self-signed certificate which
stands in ssl_ca_file is believed whatever its list says: that it is revoked, or nothing any more, or there
is none. Here the root is asked about behind the handshake, so that the verdict is one over any OpenSSL.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from pgtlsproxy.tls.trust import Trust

IN_ORDER: Final = 0
NO_LIST: Final = 3
NOT_YET_VALID: Final = 11
EXPIRED: Final = 12
REVOKED: Final = 23
OTHER_SCOPE: Final = 44
"""X509_V_OK and X509_V_ERR_UNABLE_TO_GET_CRL, CRL_NOT_YET_VALID, CRL_HAS_EXPIRED, CERT_REVOKED and
DIFFERENT_CRL_SCOPE (openssl/x509_vfy.h)."""


@dataclass(frozen=True, slots=True)
class _List:
    """A root's own list, as far as it is about the root."""

    is_revoked: bool
    covers: bool
    since: datetime
    until: datetime | None


class RootLists:
    """The lists of a trust, to be asked about its roots.

    Args:
        trust: who is believed, and what is revoked.
    """

    def __init__(self, trust: Trust) -> None:
        by_issuer: defaultdict[str | None, list[x509.CertificateRevocationList]] = defaultdict(list)
        for crl in trust.crls:
            by_issuer[_folded(crl, "issuer")].append(crl)
        self._lists = {
            anchor.public_bytes(Encoding.DER): [
                _about(anchor, crl)
                for crl in by_issuer[_folded(anchor, "subject")]
                if _is_signed_by(crl, anchor)
            ]
            for anchor in trust.anchors
        }

    def problem(self, root: bytes, now: datetime | None = None) -> int:
        """What is wrong with a root, as OpenSSL's error number; 0 for nothing.

        Args:
            root: where a chain ends, in DER.
            now: when its list has to be valid; None where that does not matter.
        """
        lists = self._lists.get(root)
        if not lists:
            return NO_LIST
        if any(found.is_revoked for found in lists):
            return REVOKED
        about = [found for found in lists if found.covers]
        if not about:
            return OTHER_SCOPE
        if now is None:
            return IN_ORDER
        begun = [found for found in about if found.since <= now]
        if not begun:
            return NOT_YET_VALID
        return IN_ORDER if any(found.until is None or now <= found.until for found in begun) else EXPIRED


def now() -> datetime:
    """The second that OpenSSL compares with."""
    return datetime.now(UTC).replace(microsecond=0)


def _folded(named: x509.Certificate | x509.CertificateRevocationList, attribute: str) -> str | None:
    # OpenSSL, too, compares names without regard to case and to how many blanks there are.
    try:
        name: x509.Name = getattr(named, attribute)
    except ValueError:  # OpenSSL reads names that cryptography does not
        return None
    return " ".join(name.rfc4514_string().casefold().split())


def _is_signed_by(crl: x509.CertificateRevocationList, anchor: x509.Certificate) -> bool:
    try:
        return crl.is_signature_valid(anchor.public_key())  # type: ignore[arg-type]
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False


def _about(root: x509.Certificate, crl: x509.CertificateRevocationList) -> _List:
    return _List(
        is_revoked=crl.get_revoked_certificate_by_serial_number(root.serial_number) is not None,
        covers=_covers_authorities(crl),
        since=crl.last_update_utc,
        until=crl.next_update_utc,
    )


def _covers_authorities(crl: x509.CertificateRevocationList) -> bool:
    """Whether a list is not for a part of the certificates alone, to which no root says that it belongs."""
    try:
        scope = crl.extensions.get_extension_for_class(x509.IssuingDistributionPoint).value
    except x509.ExtensionNotFound:
        return True
    except (ValueError, x509.DuplicateExtension):
        return False
    has_name = scope.full_name is not None or scope.relative_name is not None
    return not (has_name or scope.only_contains_user_certs or scope.only_contains_attribute_certs)
