"""Certificates byte by byte: every field as a case wants it, also as no authority may issue it and no library will."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, mldsa, padding, rsa

from fixtures.subjects import CN, ORG, UTF8, name, oid, tlv

Extension = tuple[str, bool, bytes]
"""Its type in dotted decimal, whether it is critical, and the DER of its value."""

Lifetime = tuple[timedelta, timedelta]
"""notBefore and notAfter, counted from `NOW`."""

NOW: Final = datetime.now(UTC).replace(microsecond=0)
DAY: Final = timedelta(days=1)
VALID: Final = (-400 * DAY, 400 * DAY)
EXPIRED: Final = (-400 * DAY, -DAY)

SEQUENCE, BOOLEAN, INTEGER, BIT_STRING, OCTET_STRING, NULL = 0x30, 0x01, 0x02, 0x03, 0x04, b"\x05\x00"
UNKNOWN: Final = "1.3.6.1.4.1.99999.1"

SUBJECT_KEY, KEY_USAGE, ALTERNATIVE_NAME, BASIC_CONSTRAINTS, CRL_NUMBER, ISSUING_POINT, NAME_CONSTRAINTS = (
    f"2.5.29.{arc}" for arc in (14, 15, 17, 19, 20, 28, 30)
)
DISTRIBUTION_POINTS, AUTHORITY_KEY, POLICY_CONSTRAINTS, EXTENDED_USAGE = (
    f"2.5.29.{arc}" for arc in (31, 35, 36, 37)
)
AUTHORITY_INFORMATION: Final = "1.3.6.1.5.5.7.1.1"

SERVER_AUTH, CLIENT_AUTH, CODE_SIGNING, EMAIL_PROTECTION, TIME_STAMPING, OCSP_SIGNING = (
    f"1.3.6.1.5.5.7.3.{arc}" for arc in (1, 2, 3, 4, 8, 9)
)
ANY_USAGE: Final = "2.5.29.37.0"
PRECERTIFICATE: Final = "1.3.6.1.4.1.11129.2.4.4"

DIGITAL_SIGNATURE, KEY_ENCIPHERMENT, KEY_AGREEMENT, CERT_SIGN, CRL_SIGN = 0, 2, 4, 5, 6
"""Bits of keyUsage (RFC 5280 4.2.1.3)."""


# --- Values of extensions -------------------------------------------------------------------------------


def sequence(*parts: bytes) -> bytes:
    return tlv(SEQUENCE, b"".join(parts))


def integer(number: int) -> bytes:
    return tlv(INTEGER, number.to_bytes(number.bit_length() // 8 + 1, signed=True))


def basic_constraints(*, ca: bool = True, length: int | None = None, critical: bool = True) -> Extension:
    value = (tlv(BOOLEAN, b"\xff") if ca else b"") + (b"" if length is None else integer(length))
    return BASIC_CONSTRAINTS, critical, tlv(SEQUENCE, value)


def key_usage(*bits: int, critical: bool = False) -> Extension:
    number, unused = sum(0x80 >> bit for bit in bits), 7 - max(bits, default=7)
    return KEY_USAGE, critical, tlv(BIT_STRING, bytes([unused, number]) if bits else b"\0")


def extended_usage(*usages: str, critical: bool = False) -> Extension:
    return EXTENDED_USAGE, critical, sequence(*map(oid, usages))


def alternative_names(*names: bytes, critical: bool = False) -> Extension:
    return ALTERNATIVE_NAME, critical, sequence(*names)


def name_constraints(
    permitted: Sequence[bytes] | None = None,
    excluded: Sequence[bytes] | None = None,
    *,
    critical: bool = True,
) -> Extension:
    """None for no such list, which an empty one is not."""
    lists = ((0xA0, permitted), (0xA1, excluded))
    parts = [tlv(tag, b"".join(map(sequence, listed))) for tag, listed in lists if listed is not None]
    return NAME_CONSTRAINTS, critical, sequence(*parts)


def subject_key(key_id: bytes, *, critical: bool = False) -> Extension:
    return SUBJECT_KEY, critical, tlv(OCTET_STRING, key_id)


def authority_key(
    key_id: bytes | None, *, issuer: bytes | None = None, serial: int | None = None, critical: bool = False
) -> Extension:
    """The issuer is a GeneralName."""
    value = b"" if key_id is None else tlv(0x80, key_id)
    value += b"" if issuer is None else tlv(0xA1, issuer)
    value += b"" if serial is None else tlv(0x82, serial.to_bytes(8).lstrip(b"\0"))
    return AUTHORITY_KEY, critical, tlv(SEQUENCE, value)


def unknown(*, critical: bool) -> Extension:
    return UNKNOWN, critical, NULL


def dns(text: str) -> bytes:
    return tlv(0x82, text.encode())


def email(text: str) -> bytes:
    return tlv(0x81, text.encode())


def uri(text: str) -> bytes:
    return tlv(0x86, text.encode())


def address(text: str) -> bytes:
    return tlv(0x87, ipaddress.ip_address(text).packed)


def network(text: str) -> bytes:
    """An address and its mask, as name constraints have it."""
    found = ipaddress.ip_network(text)
    return tlv(0x87, found.network_address.packed + found.netmask.packed)


def directory(subject: bytes) -> bytes:
    return tlv(0xA4, subject)


def other_name() -> bytes:
    """A name of a kind that nobody knows."""
    return tlv(0xA0, oid(UNKNOWN) + tlv(0xA0, NULL))


def common_name(text: str) -> bytes:
    return name([(CN, UTF8, text.encode())])


def named(text: str, organization: str) -> bytes:
    """Two certificates have a name in common only where the same case wants it."""
    return name([(ORG, UTF8, organization.encode())], [(CN, UTF8, text.encode())])


# --- Keys and signatures --------------------------------------------------------------------------------

RSA_WITH_SHA256: Final = sequence(oid("1.2.840.113549.1.1.11"), NULL)
ECDSA_WITH_SHA384: Final = sequence(oid("1.2.840.10045.4.3.3"))

_ML_DSA = {
    mldsa.MLDSA44PrivateKey: "2.16.840.1.101.3.4.3.17",
    mldsa.MLDSA65PrivateKey: "2.16.840.1.101.3.4.3.18",
    mldsa.MLDSA87PrivateKey: "2.16.840.1.101.3.4.3.19",
}


@dataclass(frozen=True, slots=True)
class Spoilt:
    """A key that is none: the DER of its public half is malformed, and what it signs is no signature."""

    public: bytes = sequence(sequence(oid("1.2.840.113549.1.1.1"), NULL), tlv(BIT_STRING, b"\0"))


def p256() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def public_bytes(key: Any) -> bytes:
    """Its SubjectPublicKeyInfo."""
    if isinstance(key, Spoilt):
        return key.public
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _algorithm(key: Any, *, sha1: bool = False) -> bytes:
    if isinstance(key, rsa.RSAPrivateKey | Spoilt):
        return RSA_WITH_SHA256
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return sequence(oid("1.2.840.10045.4.1" if sha1 else "1.2.840.10045.4.3.2"))
    if isinstance(key, dsa.DSAPrivateKey):
        return sequence(oid("2.16.840.1.101.3.4.3.2"))
    return sequence(oid(next(dotted for kind, dotted in _ML_DSA.items() if isinstance(key, kind))))


def _signature(key: Any, body: bytes, *, sha1: bool = False) -> bytes:
    if isinstance(key, Spoilt):
        return sequence()
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(body, padding.PKCS1v15(), hashes.SHA256())
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(body, ec.ECDSA(hashes.SHA1() if sha1 else hashes.SHA256()))
    return key.sign(body, hashes.SHA256()) if isinstance(key, dsa.DSAPrivateKey) else key.sign(body)


# --- Certificates and revocation lists ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Node:
    """A certificate with its key.

    Args:
        der: the certificate.
        subject: its subject, in DER.
        key: its private key.
        serial: its serial number.
    """

    der: bytes = field(repr=False)
    subject: bytes
    key: Any = field(repr=False)
    serial: int

    @property
    def key_id(self) -> bytes:
        return key_id(self.key)

    @property
    def pem(self) -> bytes:
        return pem(self.der, "CERTIFICATE")


def key_id(key: Any) -> bytes:
    return hashlib.sha1(public_bytes(key)).digest()


def certify(
    subject: bytes,
    issuer: bytes,
    key: Any,
    signer: Any,
    extensions: Sequence[Extension],
    *,
    serial: int,
    life: Lifetime = VALID,
    version: int = 3,
    public: bytes | None = None,
    outer_algorithm: bytes | None = None,
    sha1: bool = False,
) -> Node:
    """A certificate.

    Args:
        subject, issuer: names in DER.
        key: its key.
        signer: the issuer's key.
        extensions: in this order.
        serial: any number.
        life: when it counts.
        version: 1 has no extensions.
        public: the SubjectPublicKeyInfo, where it is not that of `key`.
        outer_algorithm: what stands beside the signature, where it is not what was signed.
        sha1: whether it is signed with SHA-1, by an ECDSA key.
    """
    algorithm = _algorithm(signer, sha1=sha1)
    fields = [
        *([tlv(0xA0, integer(version - 1))] if version > 1 else []),
        *(integer(serial), algorithm, issuer, sequence(*(moment(NOW + end) for end in life))),
        *(subject, public or public_bytes(key)),
        *([tlv(0xA3, _extensions(extensions))] if version > 2 else []),
    ]
    body = sequence(*fields)
    signature = tlv(BIT_STRING, b"\0" + _signature(signer, body, sha1=sha1))
    return Node(sequence(body, outer_algorithm or algorithm, signature), subject, key, serial)


def revocation_list(
    issuer: Node,
    serials: Sequence[int] = (),
    extensions: Sequence[Extension] = (),
    *,
    signer: Any = None,
    number: bytes | None = b"",
    since: bytes | None = None,
    until: bytes | None = b"",
    revoked_at: timedelta = -2 * DAY,
    version: int = 2,
) -> bytes:
    """A revocation list in DER.

    Args:
        issuer: whose.
        serials: what is revoked.
        extensions: beside the authority's key and the number.
        signer: the key that signs it; None for the issuer's.
        number: cRLNumber as an Extension's value; None for none, empty for one that is in order.
        since, until: thisUpdate and nextUpdate in DER; None or empty for a good one, None for no nextUpdate.
        revoked_at: the revocationDate of every entry, from now on.
        version: as it is counted, so that 1 is written as 0.
    """
    if number is not None:
        extensions = [(CRL_NUMBER, False, number or integer(1)), *extensions]
    extensions = [authority_key(issuer.key_id), *extensions]
    key = signer or issuer.key
    entries = b"".join(sequence(integer(serial), moment(NOW + revoked_at)) for serial in serials)
    fields = [
        *(integer(version - 1), _algorithm(key), issuer.subject, since or moment(NOW - DAY)),
        b"" if until is None else until or moment(NOW + 30 * DAY),
        tlv(SEQUENCE, entries) if entries else b"",
        tlv(0xA0, _extensions(extensions)),
    ]
    body = sequence(*fields)
    return sequence(body, _algorithm(key), tlv(BIT_STRING, b"\0" + _signature(key, body)))


def moment(when: datetime, *, general: bool = False) -> bytes:
    """A time before 2050, as UTCTime or as GeneralizedTime."""
    return tlv(0x18 if general else 0x17, when.strftime(f"%{'Y' if general else 'y'}%m%d%H%M%SZ").encode())


def pem(der: bytes, label: str) -> bytes:
    return b"-----BEGIN %b-----\n%b-----END %b-----\n" % (
        label.encode(),
        base64.encodebytes(der),
        label.encode(),
    )


def _extensions(extensions: Sequence[Extension]) -> bytes:
    return sequence(
        *(
            sequence(oid(kind), tlv(BOOLEAN, b"\xff") if critical else b"", tlv(OCTET_STRING, value))
            for kind, critical, value in extensions
        )
    )
