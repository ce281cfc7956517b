"""What a certificate says: its names as PostgreSQL reads them, its validity, its channel binding hash."""

from __future__ import annotations

import enum
import hashlib
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from pgtlsproxy import identity
from pgtlsproxy.errors import ClientCertificateRefused
from pgtlsproxy.tls import distinguished_name
from pgtlsproxy.tls.der import (
    INTEGER,
    SEQUENCE,
    Element,
    MalformedDER,
    elements,
    object_identifier,
    sole_element,
)
from pgtlsproxy.tls.distinguished_name import Attribute

EXPIRY_WARNING: Final = timedelta(days=30)
"""A certificate with less than this left, and less than a third of its lifetime, deserves a warning."""

MAX_OCTETS: Final = 16384
"""Longest certificate, in DER, whose names are read. OpenSSL takes 100 kB in a handshake, and reading as many
names as that can hold would keep every other session waiting."""

MAX_ALTERNATIVE_NAMES_SHOWN: Final = 50
MAX_ALTERNATIVE_NAME_CHARACTERS: Final = 256

_VERSION: Final = 0xA0
_EXTENSIONS: Final = 0xA3
_OCTET_STRING: Final = 0x04
_SUBJECT_ALT_NAME: Final = "2.5.29.17"


class NameKind(enum.Enum):
    """The kinds of subjectAltName that we read; the value is the tag in GeneralName (RFC 5280 4.2.1.6)."""

    EMAIL = 0x81
    DNS = 0x82
    URI = 0x86
    IP = 0x87


@dataclass(frozen=True, slots=True)
class AlternativeName:
    """One subjectAltName, raw.

    Args:
        kind: what it names.
        value: its octets; for an IP address 4 or 16 of them where the issuer made no mistake.
    """

    kind: NameKind
    value: bytes

    def shown(self) -> str:
        """Its text without its kind, printable and capped."""
        if self.kind is NameKind.IP and len(self.value) in (4, 16):
            return str(ipaddress.ip_address(self.value))
        text = self.value.hex() if self.kind is NameKind.IP else self.value
        return identity.printable(text, MAX_ALTERNATIVE_NAME_CHARACTERS)


@dataclass(frozen=True, slots=True)
class Names:
    """The fields of a certificate that name somebody, as encoded.

    Args:
        serial: the serial number.
        issuer, subject: the distinguished names.
        key: the SubjectPublicKeyInfo.
        alternative: the subjectAltNames of the kinds we read; None where the certificate has no
            such extension at all.
    """

    serial: int
    issuer: tuple[Attribute, ...]
    subject: tuple[Attribute, ...]
    key: bytes
    alternative: tuple[AlternativeName, ...] | None


REMEMBERED: Final = 256
"""Certificates whose description is kept, the least recently asked for going first: at most 4 MB."""


def load(der: bytes) -> x509.Certificate:
    """A certificate from its octets, remembered by these: most peers come again with the same one.

    Raises:
        ValueError, x509.InvalidVersion: cryptography does not read it.
    """
    return _load(der) if len(der) <= MAX_OCTETS else x509.load_der_x509_certificate(der)


_load = lru_cache(maxsize=REMEMBERED)(x509.load_der_x509_certificate)


def read_names(certificate: x509.Certificate) -> Names:
    """Read the names out of the signed bytes, without a decoder that could refuse or change them.

    Raises:
        MalformedDER: the certificate is not the structure of RFC 5280 4.1.
    """
    fields = list(elements(sole_element(certificate.tbs_certificate_bytes, SEQUENCE).content))
    if fields and fields[0].tag == _VERSION:
        del fields[0]
    if len(fields) < 6 or fields[0].tag != INTEGER:
        raise MalformedDER("expected a TBSCertificate")
    serial, _signature, issuer, _validity, subject, key, *rest = fields
    return Names(
        int.from_bytes(serial.content, signed=True),
        distinguished_name.parse(issuer.encoding),
        distinguished_name.parse(subject.encoding),
        key.encoding,
        _alternative_names(rest),
    )


@lru_cache(maxsize=REMEMBERED)
def describe(certificate: x509.Certificate, issuer: x509.Certificate | None = None) -> identity.Certificate:
    """Reduce a verified certificate to what policy and logs ask of it.

    Remembered by the certificates' octets: most clients come again with the same one.

    Args:
        certificate: whose names are read.
        issuer: who issued it in the chain that was verified; None where that does not matter.

    Raises:
        ClientCertificateRefused: it is over 16 kB long, which PostgreSQL would not mind; or its names
            cannot be read; or a name has a NUL in it, which other readers take for its end
            (CVE-2009-4034). A BMPString or UniversalString commonName always has one. For these
            PostgreSQL refuses at the same place, whatever pg_hba says (`be_tls_open_server`); it does
            not look at subjectAltNames.
    """
    octets = len(certificate.public_bytes(Encoding.DER))
    if octets > MAX_OCTETS:
        raise ClientCertificateRefused(
            f"the certificate is {octets} octets long, and {MAX_OCTETS} are the most that are read"
        )
    try:
        names = read_names(certificate)
        dn, issuer_dn = (distinguished_name.rfc2253(name) for name in (names.subject, names.issuer))
    except MalformedDER as error:
        raise ClientCertificateRefused(f"the names in the certificate cannot be read: {error}") from None
    common_names = distinguished_name.common_names(names.subject)
    if any(b"\0" in name for name in common_names):
        raise ClientCertificateRefused("SSL certificate's common name contains embedded null")
    alternative = names.alternative or ()
    if any(b"\0" in name.value for name in alternative if name.kind is not NameKind.IP):
        raise ClientCertificateRefused("a subjectAltName of the certificate contains embedded null")
    return identity.Certificate(
        common_names=tuple(identity.decode_name(name) for name in common_names),
        dn=dn,
        issuer_dn=issuer_dn,
        serial=names.serial,
        sha256=certificate.fingerprint(SHA256()).hex(),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        subject_alt_names=tuple(_labelled(alternative)),
        dns_names=_of_kind(NameKind.DNS, alternative),
        uris=_of_kind(NameKind.URI, alternative),
        emails=_of_kind(NameKind.EMAIL, alternative),
        unnamed_types=distinguished_name.unnamed_types(names.subject + names.issuer),
        issuer_key=None if issuer is None else key_fingerprint(issuer),
    )


def require_named_types(certificate: identity.Certificate) -> None:
    """Refuse a certificate that nobody can log in to PostgreSQL with (`X509_NAME_to_cstring`).

    Raises:
        ClientCertificateRefused: a type in one of its names has no name itself.
    """
    if certificate.unnamed_types:
        raise ClientCertificateRefused(
            "could not get NID for ASN1_OBJECT object: nobody has a name for the attribute type "
            f"{certificate.unnamed_types[0]} in the certificate's subject or issuer"
        )


@lru_cache(maxsize=REMEMBERED)
def key_fingerprint(certificate: x509.Certificate) -> str | None:
    """The SHA-256 of a certificate's public key (SubjectPublicKeyInfo, as encoded), hex.

    Returns:
        None where the certificate cannot be read as far as that.
    """
    try:
        return hashlib.sha256(read_names(certificate).key).hexdigest()
    except MalformedDER:
        return None


def days_left(certificate: identity.Certificate, now: datetime) -> int:
    """Whole days until the certificate expires; negative when it has.

    Args:
        certificate: whose validity.
        now: an aware datetime.
    """
    return (certificate.not_after - now) // timedelta(days=1)


def expires_soon(certificate: identity.Certificate, now: datetime) -> bool:
    """Whether the certificate has expired or needs renewal."""
    return now > worth_a_warning(certificate.not_before, certificate.not_after)


def worth_a_warning(since: datetime, until: datetime) -> datetime:
    """From when on it is worth a warning that something is good until a moment, and was from another on.

    Under 30 days and under a third of the lifetime, so that certificates that live for a day do not
    warn from their first minute on.
    """
    return until - min(EXPIRY_WARNING, (until - since) / 3)


def end_point_hash_name(certificate: x509.Certificate) -> str | None:
    """The hash of `tls-server-end-point` for a server's leaf, as hashlib names it.

    It is the hash of the certificate's signature; SHA-256 instead of MD5 and SHA-1 (RFC 5929 4.1).

    Returns:
        None where the signature has no hash of its own (Ed25519, Ed448): then neither PostgreSQL
        nor libpq can bind to this certificate.
    """
    try:
        algorithm = certificate.signature_hash_algorithm
    except (UnsupportedAlgorithm, ValueError):
        return None
    if algorithm is None:
        return None
    return "sha256" if algorithm.name in ("md5", "sha1") else algorithm.name.replace("-", "_")


def end_point_hash(certificate: x509.Certificate) -> bytes | None:
    """What SCRAM binds to where a server shows this leaf: `tls-server-end-point` (RFC 5929, section 4).

    Returns:
        The hash; None where there is none, see `end_point_hash_name`.
    """
    name = end_point_hash_name(certificate)
    return None if name is None else hashlib.new(name, certificate.public_bytes(Encoding.DER)).digest()


def _alternative_names(fields: list[Element]) -> tuple[AlternativeName, ...] | None:
    extensions = [field for field in fields if field.tag == _EXTENSIONS]
    if not extensions:
        return None
    found: list[bytes] = []
    for extension in elements(sole_element(extensions[0].content, SEQUENCE).content):
        parts = list(elements(extension.content))
        if len(parts) < 2:
            raise MalformedDER("expected an extension and its value")
        if object_identifier(parts[0]) == _SUBJECT_ALT_NAME:
            found.append(sole_element(parts[-1].encoding, _OCTET_STRING).content)
    if len(found) > 1:
        raise MalformedDER("two subjectAltName extensions")
    if not found:
        return None
    known = {kind.value: kind for kind in NameKind}
    return tuple(
        AlternativeName(known[name.tag], name.content)
        for name in elements(sole_element(found[0], SEQUENCE).content)
        if name.tag in known
    )


def _of_kind(kind: NameKind, names: tuple[AlternativeName, ...]) -> tuple[str, ...]:
    return tuple(identity.decode_name(name.value) for name in names if name.kind is kind)


def _labelled(names: tuple[AlternativeName, ...]) -> Iterator[str]:
    labels = {NameKind.EMAIL: "email"}
    for name in names[:MAX_ALTERNATIVE_NAMES_SHOWN]:
        yield f"{labels.get(name.kind, name.kind.name)}:{name.shown()}"
    if len(names) > MAX_ALTERNATIVE_NAMES_SHOWN:
        yield f"... {len(names) - MAX_ALTERNATIVE_NAMES_SHOWN} more"
