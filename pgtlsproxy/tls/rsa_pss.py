"""Keys that are for RSA-PSS alone (id-RSASSA-PSS, RFC 4055), as of `openssl genpkey -algorithm RSA-PSS`.

`cryptography` takes them for plain RSA keys, and OpenSSL takes no plain key for such a certificate.
"""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from pgtlsproxy.tls.der import INTEGER, SEQUENCE, elements, object_identifier, sole_element

_RSASSA_PSS: Final = "1.2.840.113549.1.1.10"
_VERSION: Final = 0xA0
_OCTET_STRING: Final = 0x04


def as_pss_key(leaf: x509.Certificate, key: PrivateKeyTypes) -> bytes | None:
    """The key of an RSA-PSS certificate as what it is, with what the certificate demands of its signatures.

    Args:
        leaf: the certificate.
        key: its key.

    Returns:
        PKCS #8 in DER; None where the certificate is of another kind.
    """
    if not isinstance(key, RSAPrivateKey):
        return None
    fields = list(elements(sole_element(leaf.tbs_certificate_bytes, SEQUENCE).content))
    public_key = fields[6 if fields[0].tag == _VERSION else 5]  # RFC 5280, section 4.1
    algorithm = next(elements(public_key.content))
    if object_identifier(next(elements(algorithm.content))) != _RSASSA_PSS:
        return None
    plain = key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    version = _element(INTEGER, b"\0")
    return _element(SEQUENCE, version + algorithm.encoding + _element(_OCTET_STRING, plain))


def _element(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 0x80:
        return bytes([tag, length]) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(octets)]) + octets + content
