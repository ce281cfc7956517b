"""Issuing certificate revocation lists, in memory."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from pgtlsproxy.pki.certificates import (
    CannotIssue,
    Issued,
    Lifetime,
    issuer_fields,
    signature_hash,
    validity_of,
)

CRL_LIFETIME: Final = timedelta(days=30)


def make_crl(
    issuer: Issued,
    revoked: Iterable[int] = (),
    *,
    previous: x509.CertificateRevocationList | None = None,
    lifetime: Lifetime = CRL_LIFETIME,
) -> x509.CertificateRevocationList:
    """A certificate revocation list. Behind its end no certificate of the issuer is accepted.

    Args:
        issuer: whose certificates are revoked.
        revoked: serial numbers.
        previous: the list before this one: its entries stay, and its number is counted on.
        lifetime: how long from now on until the next one is due, or from when until when.

    Raises:
        CannotIssue: `issuer` may not sign CRLs, or `previous` is not its list.
    """
    issuer_name, authority = issuer_fields(issuer)
    if previous is not None and not _is_signed_by(previous, issuer):
        raise CannotIssue("the CRL that is to be continued was signed by another CA: move it out of the way")
    validity = validity_of(lifetime)
    number = 1 if previous is None else _crl_number(previous) + 1
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer_name)
        .last_update(validity.not_before)
        .next_update(validity.not_after)
        .add_extension(authority, critical=False)
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    kept = {entry.serial_number: entry for entry in previous or ()}
    for entry in kept.values():
        builder = builder.add_revoked_certificate(entry)
    for serial in dict.fromkeys(revoked):
        if serial not in kept:
            entry = x509.RevokedCertificateBuilder(serial, datetime.now(UTC)).build()
            builder = builder.add_revoked_certificate(entry)
    return builder.sign(issuer.key, signature_hash(issuer.key))


def _is_signed_by(crl: x509.CertificateRevocationList, issuer: Issued) -> bool:
    try:
        return crl.is_signature_valid(issuer.key.public_key())
    except (InvalidSignature, TypeError, ValueError):
        return False


def _crl_number(crl: x509.CertificateRevocationList) -> int:
    try:
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return 0
