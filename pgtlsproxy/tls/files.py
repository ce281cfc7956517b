"""What key, certificate and CRL files hold: from their bytes to objects, or to an error that helps.

A file may hold more than it is asked for: a key beside its chain in any order (Vault, HAProxy),
Diffie-Hellman parameters, a root behind the chain. What is asked for must be whole: a block that
cannot be read is an error, as is a file that ends in the middle of one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NoReturn

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_private_key,
    load_pem_private_key,
)
from OpenSSL import crypto

from pgtlsproxy.identity import Secret
from pgtlsproxy.tls.anchors import subject
from pgtlsproxy.tls.contexts import UNUSABLE, KeyPair, openssl_reason
from pgtlsproxy.tls.file_access import UnusableFile

CERTIFICATE_LABELS: Final = ("CERTIFICATE", "X509 CERTIFICATE")
CRL_LABEL: Final = "X509 CRL"
DH_PARAMETERS_LABELS: Final = ("DH PARAMETERS", "X9.42 DH PARAMETERS")
TRUSTED_LABEL: Final = "TRUSTED CERTIFICATE"

_MARKER: Final = re.compile(rb"^-----(BEGIN|END) ([A-Z0-9 ]{1,60})-----[ \t\r]*$", re.MULTILINE)
_HASHED_CRL_NAME: Final = re.compile(r"[0-9a-f]{8}\.r\d+")
_DER_SEQUENCE: Final = b"\x30"


@dataclass(frozen=True, slots=True)
class _Block:
    """One PEM block: its label, its bytes from BEGIN to END, its place in the file."""

    label: str
    pem: bytes
    number: int
    line: int

    @property
    def holds_key(self) -> bool:
        return self.label.endswith("PRIVATE KEY")

    @property
    def is_encrypted(self) -> bool:
        return self.label.startswith("ENCRYPTED") or b"Proc-Type: 4,ENCRYPTED" in self.pem

    def __str__(self) -> str:
        return f"block {self.number} ({self.label}, line {self.line})"


def certificate_chain(
    content: bytes, file: str, kind: str = "certificate file"
) -> tuple[x509.Certificate, ...]:
    """The certificates of ssl_cert_file or sslcert, in the order of the file: the leaf comes first.

    Args:
        content: the file.
        file: its name, for messages.
        kind: what it is, for messages.

    Raises:
        UnusableFile: empty, garbage, cut off, without a certificate, or with one that does not parse.
    """
    return _certificates(content, f'{kind} "{file}"')


def trusted_certificates(
    content: bytes, file: str, kind: str = "root certificate file"
) -> tuple[x509.Certificate, ...]:
    """The trust anchors of ssl_ca_file or sslrootcert; in any order, at least one.

    Raises:
        UnusableFile: as `certificate_chain`, naming the block.
    """
    return _certificates(content, f'{kind} "{file}"')


def private_key(
    content: bytes, file: str, passphrase: Secret | None = None, kind: str = "private key file"
) -> PrivateKeyTypes:
    """The first private key in a file: PEM, or DER as libpq takes it for sslkey.

    Args:
        content: the file.
        file: its name, for messages.
        passphrase: for an encrypted key; ignored where the key is in clear, as OpenSSL does.
        kind: what it is, for messages.

    Raises:
        UnusableFile: no key, one that does not parse, or that the passphrase does not open.
    """
    failure = f'could not load {kind} "{file}"'
    password = passphrase.reveal() if passphrase is not None else b""
    blocks = _split(content, failure)
    keys = [block for block in blocks if block.holds_key]
    if keys:
        return _pem_key(keys[0], password, failure)
    if not blocks and content.startswith(_DER_SEQUENCE):
        return _der_key(content, password, failure)
    raise _without("private key", blocks, content, failure)


def key_pair(
    chain: tuple[x509.Certificate, ...], key: PrivateKeyTypes, *, certificate_file: str, key_file: str
) -> KeyPair:
    """Join a key to its certificate.

    Args:
        chain: leaf first, not empty.
        key: the leaf's key.
        certificate_file: where the chain came from, for the message.
        key_file: where the key came from, for the message.

    Raises:
        UnusableFile: the key is another certificate's.
    """
    wanted = _public_bytes(key)
    if _certified_bytes(chain[0]) == wanted:
        return KeyPair(chain, key)
    further = next((at for at, one in enumerate(chain, 1) if _certified_bytes(one) == wanted), None)
    cure = (
        f"it is the key of certificate {further} in the file, and the leaf must come first"
        if further
        else "it is not the key of the first certificate there; were both files replaced?"
    )
    raise UnusableFile(
        f'could not load private key file "{key_file}" for certificate file "{certificate_file}": '
        f"key values mismatch: {cure}"
    )


def chain_warnings(chain: Sequence[x509.Certificate], file: str) -> list[str]:
    """Where a chain is not one: each certificate should have been issued by the one behind it.

    OpenSSL sends the file as it stands. A client that has the missing link gets on with it; others
    report an unknown authority.
    """
    return [
        f'certificate file "{file}": certificate {number} ({subject(issued)}) was not issued by certificate '
        f"{number + 1} ({subject(issuer)}); write the leaf first, and behind each the one that issued it"
        for number, (issued, issuer) in enumerate(pairwise(chain), 1)
        if not _was_issued_by(issued, issuer)
    ]


def revocation_lists(
    content: bytes, file: str, kind: str = "certificate revocation list file"
) -> tuple[x509.CertificateRevocationList, ...]:
    """The CRLs of ssl_crl_file or sslcrl: PEM, several if need be, or one in DER.

    Raises:
        UnusableFile: none there, or one that does not parse: a CRL that is left out would let a revoked
            certificate in. Or one without nextUpdate: nobody would notice that it is old.
    """
    failure = f'could not load {kind} "{file}"'
    blocks = _split(content, failure)
    if not blocks and content.startswith(_DER_SEQUENCE):
        return (_parse_crl(content, x509.load_der_x509_crl, f"{failure}: it is no CRL in DER"),)
    crls = [block for block in blocks if block.label == CRL_LABEL]
    if not crls:
        raise _without("CRL", blocks, content, failure)
    return tuple(
        _parse_crl(block.pem, x509.load_pem_x509_crl, f"{failure}: {block} is no CRL") for block in crls
    )


def revocation_lists_in_directory(
    files: Sequence[tuple[str, bytes]], directory: str
) -> tuple[x509.CertificateRevocationList, ...]:
    """The CRLs of ssl_crl_dir or sslcrldir.

    PostgreSQL reads only names as `openssl rehash` makes them. Here every file counts that has such
    a name or the ending .crl, or that holds a PEM CRL, and it must parse; others are left alone.

    Args:
        files: name and content of each.
        directory: for messages.

    Returns:
        The CRLs; none for an empty directory, under which no certificate is acceptable.
    """
    return tuple(
        crl
        for name, content in files
        if _HASHED_CRL_NAME.fullmatch(name) or name.endswith(".crl") or b"-----BEGIN X509 CRL-----" in content
        for crl in revocation_lists(content, f"{directory}/{name}")
    )


def dh_parameters(content: bytes, file: str, kind: str = "DH parameters file") -> bytes:
    """The first block of Diffie-Hellman parameters in ssl_dh_params_file, still in PEM.

    Raises:
        UnusableFile: there is none, or the file is empty or cut off. OpenSSL judges the block.
    """
    failure = f'could not load {kind} "{file}"'
    blocks = _split(content, failure)
    for block in blocks:
        if block.label in DH_PARAMETERS_LABELS:
            return block.pem
    raise _without("DH PARAMETERS", blocks, content, failure)


def _split(content: bytes, failure: str) -> list[_Block]:
    """The PEM blocks of a file; text between them is a comment."""
    if not content.strip():
        raise UnusableFile(f"{failure}: the file is empty")
    blocks: list[_Block] = []
    opened: re.Match[bytes] | None = None
    for marker in _MARKER.finditer(content):
        begins = marker[1] == b"BEGIN"
        if opened is None and begins:
            opened = marker
        elif opened is not None and not begins and marker[2] == opened[2]:
            line = content.count(b"\n", 0, opened.start()) + 1
            pem = content[opened.start() : marker.end()] + b"\n"
            blocks.append(_Block(opened[2].decode("ascii"), pem, len(blocks) + 1, line))
            opened = None
        else:
            _refuse_marker(content, opened or marker, failure)
    if opened is not None:
        _refuse_marker(content, opened, failure)
    return blocks


def _refuse_marker(content: bytes, marker: re.Match[bytes], failure: str) -> NoReturn:
    line = content.count(b"\n", 0, marker.start()) + 1
    raise UnusableFile(
        f'{failure}: "{marker[0].strip().decode("ascii")}" in line {line} has no counterpart: '
        "the file is cut off or damaged"
    )


def _without(wanted: str, blocks: Sequence[_Block], content: bytes, failure: str) -> UnusableFile:
    if blocks:
        labels = ", ".join(dict.fromkeys(block.label for block in blocks))
        what = f"there is no {wanted} in it, only {labels}: is it the right file?"
    elif content.startswith(_DER_SEQUENCE):
        what = f"it looks like DER, and a {wanted} is wanted in PEM: convert it with openssl x509 -inform DER"
    else:
        what = f"it is not PEM: no line in it begins a {wanted}"
    return UnusableFile(f"{failure}: {what}")


def _certificates(content: bytes, shown: str) -> tuple[x509.Certificate, ...]:
    failure = f"could not load {shown}"
    blocks = _split(content, failure)
    for block in blocks:
        if block.label == TRUSTED_LABEL:
            raise UnusableFile(
                f"{failure}: {block} is OpenSSL's own format with trust settings, which would be ignored: "
                "convert it with openssl x509"
            )
    certificates = [block for block in blocks if block.label in CERTIFICATE_LABELS]
    if not certificates:
        raise _without("certificate", blocks, content, failure)
    return tuple(_parse_certificate(block, failure) for block in certificates)


def _parse_certificate(block: _Block, failure: str) -> x509.Certificate:
    # OpenSSL's parser refuses what cryptography's lets pass, and has the last word in a context.
    try:
        certificate = x509.load_pem_x509_certificate(block.pem)
        crypto.X509Store().add_cert(crypto.X509.from_cryptography(certificate))
    except UNUSABLE as error:
        raise UnusableFile(f"{failure}: {block} is no certificate: {openssl_reason(error)}") from None
    return certificate


def _parse_crl(
    content: bytes, parse: Callable[[bytes], x509.CertificateRevocationList], failure: str
) -> x509.CertificateRevocationList:
    try:
        crl = parse(content)
        crypto.X509Store().add_crl(crl)
        is_endless = crl.next_update_utc is None
    except UNUSABLE as error:
        raise UnusableFile(f"{failure}: {openssl_reason(error)}") from None
    if is_endless:
        raise UnusableFile(
            f"{failure}: it has no nextUpdate, which RFC 5280 (5.1.2.5) demands: "
            "it would be believed for ever"
        )
    return crl


def _pem_key(block: _Block, password: bytes, failure: str) -> PrivateKeyTypes:
    if block.is_encrypted and not password:
        raise UnusableFile(f"{failure}: {block} is encrypted and there is no passphrase for it")
    try:
        return load_pem_private_key(block.pem, password if block.is_encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The library's own words are left out: they may follow from the key.
        raise UnusableFile(f"{failure}: {block} {_why_no_key(encrypted=block.is_encrypted)}") from None


def _der_key(content: bytes, password: bytes, failure: str) -> PrivateKeyTypes:
    try:
        return load_der_private_key(content, None)
    except TypeError:  # that is how the library asks for a password
        if not password:
            raise UnusableFile(f"{failure}: it is encrypted and there is no passphrase for it") from None
    except (ValueError, UnsupportedAlgorithm):
        raise UnusableFile(f"{failure}: it {_why_no_key(encrypted=False)}") from None
    try:
        return load_der_private_key(content, password)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UnusableFile(f"{failure}: it {_why_no_key(encrypted=True)}") from None


def _why_no_key(*, encrypted: bool) -> str:
    return (
        "cannot be decrypted: is the passphrase right?" if encrypted else "is no private key that we can read"
    )


def _public_bytes(key: PrivateKeyTypes) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _certified_bytes(certificate: x509.Certificate) -> bytes | None:
    try:
        return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm):
        return None


def _was_issued_by(issued: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        issued.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
