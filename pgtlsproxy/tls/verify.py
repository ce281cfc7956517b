"""Whether a backend's certificate is for the host that was configured: sslmode=verify-full.

The rule is libpq's (`pq_verify_peer_name_matches_certificate` in fe-secure-common.c), made stricter:

* The commonName counts only where the certificate has no subjectAltName extension at all, only for
  a DNS name, and only without a wildcard (RFC 9525 would not look at it at all). libpq looks at it
  wherever there is no subjectAltName of the host's own kind.
* An IP address matches iPAddress names alone. libpq also compares its text with dNSName and commonName.
* `*` stands for exactly one left-most label with at least two labels behind it: `*.test` matches
  nothing, which is service-identity's rule. In libpq it matches `db.test`.
* `*` does not stand for an A-label (`xn--...`).
* A dNSName with a NUL, or an iPAddress of an odd length, refuses the certificate, wherever it stands.
  libpq stops looking at the first name that matches.
* A host name that is not plain ASCII matches nothing: write its A-label. libpq compares the bytes.

As in libpq nothing is normalised: `db.example.com.` is not `db.example.com`, and the name is the
configured `host`, never `hostaddr` or what DNS said.
"""

from __future__ import annotations

import ipaddress
import socket
from functools import lru_cache
from typing import Final

from cryptography import x509
from service_identity.exceptions import CertificateError
from service_identity.hazmat import DNS_ID, DNSPattern, IPAddress_ID, IPAddressPattern

from pgtlsproxy.errors import BackendTLSFailed
from pgtlsproxy.identity import IPAddress, printable
from pgtlsproxy.tls.certificates import AlternativeName, NameKind, read_names
from pgtlsproxy.tls.der import MalformedDER
from pgtlsproxy.tls.distinguished_name import common_names

REMEMBERED: Final = 64
"""Certificates of backends that are known to be right, the least recently seen going first."""

_KINDS_EXAMINED = (NameKind.DNS, NameKind.IP)


def is_ip_address(host: str) -> bool:
    """Whether libpq takes a host for an address and not for a name: inet_aton or inet_pton accept it."""
    return _ip_address(host) is not None


@lru_cache(maxsize=REMEMBERED)
def verify_host_name(certificate: x509.Certificate, host: str) -> bool:
    """Refuse a certificate that is not for this host.

    Nothing else is checked: OpenSSL has verified the chain in the handshake. What was found right is
    remembered by the certificate's octets and the host; what was refused is not.

    Args:
        certificate: the backend's leaf.
        host: the configured `host`.

    Returns:
        Whether only a wildcard stands for it: its CAs may be forbidden to certify the host itself, which
        nobody has asked yet (`tls.name_constraints`).

    Raises:
        BackendTLSFailed: it is for another host, for none, or its names cannot be trusted. The
            reason is in libpq's words.
    """
    if not host:
        raise BackendTLSFailed("host name must be specified for a verified SSL connection")
    try:
        names = read_names(certificate)
    except MalformedDER as error:
        raise BackendTLSFailed(f"the names in the server certificate cannot be read: {error}") from None
    if names.alternative is None:
        examined = [AlternativeName(NameKind.DNS, name) for name in common_names(names.subject)[:1]]
        matches = _matches_common_name
    else:
        examined = [name for name in names.alternative if name.kind in _KINDS_EXAMINED]
        matches = _matches_alternative_name
    for name in examined:
        _refuse_tricks(name)
    matching = [name for name in examined if matches(name, host)]
    if not matching:
        raise BackendTLSFailed(_mismatch(examined, host))
    return all(name.kind is NameKind.DNS and b"*" in name.value for name in matching)


def _matches_common_name(name: AlternativeName, host: str) -> bool:
    return b"*" not in name.value and not is_ip_address(host) and _matches_dns(name.value, host)


def _matches_alternative_name(name: AlternativeName, host: str) -> bool:
    address = _ip_address(host)
    if name.kind is NameKind.IP:
        pattern = IPAddressPattern(ipaddress.ip_address(name.value))
        return address is not None and IPAddress_ID(address).verify(pattern)
    return address is None and _matches_dns(name.value, host)


def _matches_dns(presented: bytes, host: str) -> bool:
    # service-identity strips blanks, encodes names that are not ASCII, and lets `*` stand for an
    # empty label: none of it is libpq's rule.
    if not host.isascii() or host.startswith(".") or host != host.strip() or presented != presented.strip():
        return False
    try:
        return DNS_ID(host).verify(DNSPattern.from_bytes(presented))
    except (CertificateError, ValueError):  # a pattern that may match nothing; a host that is no DNS name
        return False


def _refuse_tricks(name: AlternativeName) -> None:
    if name.kind is NameKind.DNS and b"\0" in name.value:
        raise BackendTLSFailed("SSL certificate's name contains embedded null")
    if name.kind is NameKind.IP and len(name.value) not in (4, 16):
        raise BackendTLSFailed(f"certificate contains IP address with invalid length {len(name.value)}")


def _ip_address(host: str) -> IPAddress | None:
    # inet_aton is wider than a dotted quad (192.000.002.001, 1): getaddrinfo would dial these too.
    # It also takes whatever follows a blank, which we do not.
    if not host.isascii() or len(host.split()) != 1 or "\0" in host:
        return None
    try:
        if ":" in host:
            return ipaddress.IPv6Address(socket.inet_pton(socket.AF_INET6, host))
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except OSError:
        return None


def _mismatch(examined: list[AlternativeName], host: str) -> str:
    if not examined:
        return "could not get server's host name from server certificate"
    others = len(examined) - 1
    and_others = f" (and {others} other name{'s' if others > 1 else ''})" if others else ""
    first = examined[0].shown()
    return f'server certificate for "{first}"{and_others} does not match host name "{printable(host)}"'
