"""Issuing certificates, in memory.

What comes out follows RFC 5280: subject and authority key identifiers, basicConstraints and keyUsage
critical, an extendedKeyUsage for leaves, a random serial number of 159 bits. P-256 is the default
key: PostgreSQL takes it without a HelloRetryRequest, and its handshakes cost a third of RSA's.
"""

from __future__ import annotations

import enum
import ipaddress
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pgtlsproxy.identity import Secret, printable

SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
"""The kinds of keys that can sign a certificate here."""

CLOCK_SKEW: Final = timedelta(minutes=5)
"""How long before its making a certificate becomes valid, for machines whose clocks are behind."""

CA_LIFETIME: Final = timedelta(days=3650)
LEAF_LIFETIME: Final = timedelta(days=365)

MAX_USER_OCTETS: Final = 63
"""PostgreSQL's NAMEDATALEN - 1: the longest role name."""
MAX_COMMON_NAME_CHARACTERS: Final = 64
"""ub-common-name (RFC 5280 A.1)."""

RSA_BITS: Final = 2048

_DNS_NAME: Final = re.compile(
    r"(?:\*\.)?(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?",
    re.IGNORECASE,
)
_MAX_DNS_NAME: Final = 253

_UNREADABLE: Final = (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)
"""What cryptography raises when it is asked for the fields of a certificate that it cannot decode."""


class CannotIssue(Exception):
    """A certificate or CRL that must not be made as asked. The text says what would be right."""


class KeyType(enum.StrEnum):
    """The keys that can be asked for."""

    P256 = "p256"
    RSA = "rsa"
    ED25519 = "ed25519"


@dataclass(frozen=True, slots=True)
class Validity:
    """From when until when, aware datetimes."""

    not_before: datetime
    not_after: datetime


Lifetime = timedelta | Validity
"""How long from now on (and from CLOCK_SKEW before), or from when until when."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate with its key.

    Args:
        certificate: the certificate.
        key: its private key.
        chain: the intermediates above it, nearest first, without the root.
    """

    certificate: x509.Certificate
    key: SigningKey = field(repr=False)
    chain: tuple[x509.Certificate, ...] = ()

    def certificate_pem(self) -> bytes:
        """The certificate and its intermediates, leaf first, as ssl_cert_file and sslcert want them."""
        return b"".join(one.public_bytes(Encoding.PEM) for one in (self.certificate, *self.chain))

    def key_pem(self) -> Secret:
        """The key in PKCS #8, in clear."""
        return Secret(self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def make_ca(
    name: str,
    *,
    key_type: KeyType = KeyType.P256,
    lifetime: Lifetime = CA_LIFETIME,
    subject: x509.Name | None = None,
    path_length: int | None = None,
) -> Issued:
    """A self-signed certificate authority.

    Args:
        name: its commonName, 1 to 64 characters.
        key_type: its key.
        lifetime: how long from now on, or from when until when.
        subject: the whole subject instead of `name`.
        path_length: how many intermediates may follow; None for no limit.

    Raises:
        CannotIssue: no such name can be.
    """
    extensions = _ca_extensions(path_length)
    return _issue(None, subject or _common_name(name), _new_key(key_type), lifetime, extensions)


def make_intermediate(
    issuer: Issued,
    name: str,
    *,
    key_type: KeyType = KeyType.P256,
    lifetime: Lifetime = CA_LIFETIME,
    subject: x509.Name | None = None,
    path_length: int | None = 0,
) -> Issued:
    """A certificate authority below another. Arguments and errors as `make_ca` and `issue_server`."""
    extensions = _ca_extensions(path_length)
    return _issue(issuer, subject or _common_name(name), _new_key(key_type), lifetime, extensions)


def issue_server(
    issuer: Issued,
    names: Sequence[str],
    *,
    key_type: KeyType = KeyType.P256,
    lifetime: Lifetime = LEAF_LIFETIME,
    subject: x509.Name | None = None,
) -> Issued:
    """A server's certificate.

    Args:
        issuer: who signs.
        names: what clients call the server: DNS names, wildcards in the left-most label, IP
            addresses. The first one is also the commonName, if it is short enough.
        key_type: its key.
        lifetime: how long from now on, but never beyond the issuer's end; or from when until when.
        subject: the whole subject instead of the first name.

    Raises:
        CannotIssue: no name, or one that is neither a DNS name nor an IP address; or `issuer` is no
            certificate authority, or has expired.
    """
    if not names:
        raise CannotIssue("a server certificate needs at least one name, as clients write it: db.example.com")
    alternative = x509.SubjectAlternativeName([_general_name(name) for name in names])
    if subject is None:
        # Too long for a commonName: an empty subject, whose place the critical extension takes.
        subject = _common_name(names[0]) if len(names[0]) <= MAX_COMMON_NAME_CHARACTERS else x509.Name([])
    key = _new_key(key_type)
    extensions = _leaf_extensions(key, ExtendedKeyUsageOID.SERVER_AUTH)
    return _issue(issuer, subject, key, lifetime, [*extensions, (alternative, not list(subject))])


def issue_client(
    issuer: Issued,
    user: str,
    *,
    key_type: KeyType = KeyType.P256,
    lifetime: Lifetime = LEAF_LIFETIME,
    subject: x509.Name | None = None,
) -> Issued:
    """A client's certificate, whose commonName is the database user.

    Args:
        issuer: who signs.
        user: 1 to 63 bytes of UTF-8 without control characters.
        key_type: its key.
        lifetime: how long from now on, but never beyond the issuer's end; or from when until when.
        subject: the whole subject instead of the commonName alone; it is not checked.

    Raises:
        CannotIssue: no such user can exist; or `issuer` is no certificate authority, or has expired.
    """
    if subject is None:
        _refuse_odd_user(user)
        subject = _common_name(user)
    key = _new_key(key_type)
    return _issue(issuer, subject, key, lifetime, _leaf_extensions(key, ExtendedKeyUsageOID.CLIENT_AUTH))


def renew(
    issuer: Issued,
    certificate: x509.Certificate,
    *,
    key: SigningKey | None = None,
    lifetime: Lifetime | None = None,
) -> Issued:
    """The same names and purposes again, with a new serial number and new dates.

    Args:
        issuer: who signs; need not be the same key as before.
        certificate: what to renew.
        key: the key to keep; None makes a new one of the same kind.
        lifetime: as `issue_server`; None for as long as before.

    Raises:
        CannotIssue: the certificate is a root or cannot be read; or `issuer` is no certificate
            authority, or has expired.
    """
    try:
        subject, extensions = certificate.subject, list(certificate.extensions)
        is_root = certificate.issuer == subject
    except _UNREADABLE as error:
        raise CannotIssue(f"the certificate cannot be renewed, because it cannot be read: {error}") from None
    if is_root:
        raise CannotIssue(
            "a root certificate is not renewed: make a new CA beside it, and let both stand in the CA file "
            "until every certificate has been issued anew"
        )
    if lifetime is None:
        lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc - CLOCK_SKEW
    identifiers = (x509.SubjectKeyIdentifier, x509.AuthorityKeyIdentifier)
    kept = [(one.value, one.critical) for one in extensions if not isinstance(one.value, identifiers)]
    return _issue(issuer, subject, key or _key_like(certificate), lifetime, kept)


def _new_key(key_type: KeyType) -> SigningKey:
    if key_type is KeyType.RSA:
        return rsa.generate_private_key(65537, RSA_BITS)
    if key_type is KeyType.ED25519:
        return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key(ec.SECP256R1())


def _key_like(certificate: x509.Certificate) -> SigningKey:
    public = certificate.public_key()
    if isinstance(public, ec.EllipticCurvePublicKey):
        return ec.generate_private_key(public.curve)
    if isinstance(public, rsa.RSAPublicKey):
        return rsa.generate_private_key(65537, max(public.key_size, RSA_BITS))
    if isinstance(public, ed25519.Ed25519PublicKey):
        return ed25519.Ed25519PrivateKey.generate()
    raise CannotIssue("only EC, RSA and Ed25519 keys can be made anew: keep the key")


def signature_hash(key: SigningKey) -> SHA256 | None:
    """The hash that a key signs with; Ed25519 has its own."""
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256()


def validity_of(lifetime: Lifetime) -> Validity:
    """From when until when."""
    if isinstance(lifetime, Validity):
        return lifetime
    now = datetime.now(UTC).replace(microsecond=0)
    return Validity(now - CLOCK_SKEW, now + lifetime)


def _validity_below(issuer: x509.Certificate, lifetime: Lifetime) -> Validity:
    if isinstance(lifetime, Validity):
        return lifetime
    asked, end = validity_of(lifetime), issuer.not_valid_after_utc
    if end <= datetime.now(UTC):
        raise CannotIssue(f"the CA's own certificate expired on {end:%Y-%m-%d}: make a new one")
    return Validity(asked.not_before, min(asked.not_after, end))


def _common_name(name: str) -> x509.Name:
    try:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    except ValueError:
        raise CannotIssue(
            f'"{printable(name)}" is no commonName: it takes 1 to {MAX_COMMON_NAME_CHARACTERS} characters'
        ) from None


def _refuse_odd_user(user: str) -> None:
    try:
        octets = len(user.encode())
    except UnicodeEncodeError:
        octets = 0
    if not 1 <= octets <= MAX_USER_OCTETS or any(unicodedata.category(one) == "Cc" for one in user):
        raise CannotIssue(
            f'"{printable(user)}" is no name for a database user in a certificate: it takes 1 to '
            f"{MAX_USER_OCTETS} bytes of UTF-8 without control characters"
        )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if _DNS_NAME.fullmatch(name) is None or len(name) > _MAX_DNS_NAME or name.replace(".", "").isdigit():
        raise CannotIssue(
            f'"{printable(name)}" is neither an IP address nor a DNS name: write it as clients do, '
            "without a port, a name beyond ASCII as its A-label (xn--...)"
        )
    return x509.DNSName(name)


def _issue(
    issuer: Issued | None,
    subject: x509.Name,
    key: SigningKey,
    lifetime: Lifetime,
    extensions: Iterable[tuple[x509.ExtensionType, bool]],
) -> Issued:
    """Sign a certificate with its (extension, critical) pairs. Without an issuer it signs itself."""
    if issuer is None:
        validity, issuer_name, signing_key = validity_of(lifetime), subject, key
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
        chain: tuple[x509.Certificate, ...] = ()
    else:
        issuer_name, authority = issuer_fields(issuer)
        validity, signing_key = _validity_below(issuer.certificate, lifetime), issuer.key
        is_root = issuer.certificate.issuer == issuer_name
        chain = () if is_root else (issuer.certificate, *issuer.chain)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(validity.not_before)
        .not_valid_after(validity.not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(authority, critical=False)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return Issued(builder.sign(signing_key, signature_hash(signing_key)), key, chain)


def issuer_fields(issuer: Issued) -> tuple[x509.Name, x509.AuthorityKeyIdentifier]:
    """What a certificate or CRL says of its issuer, once it is known to be one.

    Raises:
        CannotIssue: it is no certificate authority.
    """
    try:
        name, extensions = issuer.certificate.subject, issuer.certificate.extensions
    except _UNREADABLE as error:
        raise CannotIssue(f"the CA's certificate cannot be read: {error}") from None
    constraints = [one.value.ca for one in extensions if isinstance(one.value, x509.BasicConstraints)]
    if constraints != [True]:
        raise CannotIssue(
            "the certificate that should sign is no CA (basicConstraints CA:TRUE): "
            "name the CA's certificate and its key"
        )
    for one in extensions:
        if isinstance(one.value, x509.SubjectKeyIdentifier):
            return name, x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(one.value)
    return name, x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())


def _ca_extensions(path_length: int | None) -> list[tuple[x509.ExtensionType, bool]]:
    return [
        (x509.BasicConstraints(ca=True, path_length=path_length), True),
        (_key_usage(key_cert_sign=True, crl_sign=True), True),
    ]


def _leaf_extensions(
    key: SigningKey, purpose: x509.ObjectIdentifier
) -> list[tuple[x509.ExtensionType, bool]]:
    # keyEncipherment is what TLS 1.2 without forward secrecy needs, and RSA alone can do it.
    usage = _key_usage(digital_signature=True, key_encipherment=isinstance(key, rsa.RSAPrivateKey))
    return [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (usage, True),
        (x509.ExtendedKeyUsage([purpose]), False),
    ]


def _key_usage(
    *,
    digital_signature: bool = False,
    key_encipherment: bool = False,
    key_cert_sign: bool = False,
    crl_sign: bool = False,
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_encipherment=key_encipherment,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
