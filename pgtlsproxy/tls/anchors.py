"""Whether a set of trust anchors and revocation lists can vouch for anybody at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from pgtlsproxy.errors import ClientCertificateRefused
from pgtlsproxy.identity import printable
from pgtlsproxy.tls.certificates import describe, key_fingerprint, read_names
from pgtlsproxy.tls.der import MalformedDER
from pgtlsproxy.tls.distinguished_name import parse, rfc2253
from pgtlsproxy.tls.file_access import UnusableFile
from pgtlsproxy.tls.root_lists import NO_LIST, OTHER_SCOPE, REVOKED, RootLists
from pgtlsproxy.tls.trust import Trust

MAX_SHOWN: Final = 3
"""Names that a message lists; the rest are counted."""


def require_root(anchors: Sequence[x509.Certificate], file: str) -> None:
    """Refuse a file that no chain can end in.

    OpenSSL ends a chain in a self-signed certificate; neither PostgreSQL nor libpq sets
    X509_V_FLAG_PARTIAL_CHAIN, which would let it end elsewhere.

    Args:
        anchors: what is in the file, at least one.
        file: its name, for the message.

    Raises:
        UnusableFile: not one of them is self-signed.
    """
    if any(_is_root(anchor) for anchor in anchors):
        return
    first = anchors[0]
    raise UnusableFile(
        f'root certificate file "{file}": there is no root certificate in it, only {subject(first)}, which '
        f"was issued by {issuer(first)}: nobody's certificate would verify; name the file of that root"
    )


def crl_warning(trust: Trust) -> str | None:
    """Whose certificates are all refused by the revocation lists; None where nobody's are."""
    if not trust.check_crls:
        return None
    lists = RootLists(trust)
    problems = {anchor: lists.problem(anchor.public_bytes(Encoding.DER)) for anchor in trust.anchors}
    missing = [subject(anchor) for anchor, problem in problems.items() if problem == NO_LIST]
    roots = {anchor: problem for anchor, problem in problems.items() if _is_root(anchor)}
    revoked = [subject(anchor) for anchor, problem in roots.items() if problem == REVOKED]
    partial = [subject(anchor) for anchor, problem in roots.items() if problem == OTHER_SCOPE]
    found = []
    if missing:
        there = [_crl_issuer(crl) for crl in trust.crls]
        found.append(
            f"has no revocation list of {_listed(missing)}, only of {_listed(there) if there else 'nobody'}: "
            "every certificate issued there is refused (unable to get certificate CRL)"
        )
    if revoked:
        found.append(f"has a list by which {_listed(revoked)} is revoked itself, with all that it issued")
    if partial:
        found.append(
            f"has lists of {_listed(partial)} for a part of the certificates alone "
            "(issuingDistributionPoint): every certificate issued there is refused until there is one that "
            "covers the root, too (different CRL scope)"
        )
    return "; ".join(found) or None


def keys_by_name(trust: Trust) -> dict[str, str | None]:
    """The key of each CA among the anchors, by its subject as PostgreSQL prints it.

    A CA is a name and a key: its certificate may have been renewed, and be there twice.

    Returns:
        The keys' fingerprints (`certificates.key_fingerprint`); None for a name that several keys bear.
    """
    found: dict[str, str | None] = {}
    for anchor in trust.anchors:
        key = key_fingerprint(anchor)
        try:
            name = rfc2253(read_names(anchor).subject)
        except MalformedDER:
            continue  # nobody can write such a name
        found[name] = key if found.get(name, key) == key else None
    return found


def breadth_warning(anchors: Sequence[x509.Certificate]) -> str | None:
    """That several CAs vouch for clients; None where one does, also with several certificates of one name."""
    roots = list(dict.fromkeys(subject(anchor) for anchor in anchors if _is_root(anchor)))
    if len(roots) < 2:
        return None
    return (
        f"holds {len(roots)} root certificates ({_listed(roots)}): whoever has a certificate by any of them "
        "is believed to be whom it names; keep only the CA that issues your clients' certificates, or say in "
        "every line of pg_hba.conf that asks for a certificate which one counts (issuer=)"
    )


def subject(certificate: x509.Certificate) -> str:
    """The subject of a certificate, for a message."""
    try:
        return printable(describe(certificate).dn)
    except ClientCertificateRefused:
        return "a certificate with unreadable names"


def issuer(certificate: x509.Certificate) -> str:
    """The issuer of a certificate, for a message."""
    try:
        return printable(describe(certificate).issuer_dn)
    except ClientCertificateRefused:
        return "somebody with an unreadable name"


def _is_root(anchor: x509.Certificate) -> bool:
    try:
        return anchor.subject == anchor.issuer
    except ValueError:  # OpenSSL reads names that cryptography does not, and has the last word
        return True


def _crl_issuer(crl: x509.CertificateRevocationList) -> str:
    try:
        return printable(rfc2253(parse(crl.issuer.public_bytes())))
    except (ValueError, MalformedDER):
        return "somebody with an unreadable name"


def _listed(names: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(names))
    more = len(distinct) - MAX_SHOWN
    return " and ".join(distinct[:MAX_SHOWN]) + (f" and {more} more" if more > 0 else "")
