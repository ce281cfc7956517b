"""Who is believed about certificates, and how OpenSSL is told."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from OpenSSL import crypto


@dataclass(frozen=True, slots=True)
class Trust:
    """Who is believed: the anchors, and what they have revoked.

    Args:
        anchors: the certificates of ssl_ca_file or sslrootcert.
        crls: revocation lists.
        check_crls: whether every certificate of a chain needs a CRL that vouches for it. Set
            whenever a CRL setting is given, so that an empty CRL directory refuses.
    """

    anchors: tuple[x509.Certificate, ...]
    crls: tuple[x509.CertificateRevocationList, ...] = ()
    check_crls: bool = False


def add_anchors(store: crypto.X509Store, trust: Trust) -> None:
    """Let a store believe the anchors.

    Raises:
        crypto.Error: OpenSSL does not take one (or another of UNUSABLE).
    """
    for anchor in trust.anchors:
        store.add_cert(crypto.X509.from_cryptography(anchor))


def add_crls(store: crypto.X509Store, trust: Trust) -> None:
    """Let a store know what is revoked, and ask for a list of every CA of a chain where there is one at all.

    Raises:
        crypto.Error: OpenSSL does not take one (or another of UNUSABLE).
    """
    for crl in trust.crls:
        store.add_crl(crl)
    if trust.check_crls:
        store.set_flags(crypto.X509StoreFlags.CRL_CHECK | crypto.X509StoreFlags.CRL_CHECK_ALL)
