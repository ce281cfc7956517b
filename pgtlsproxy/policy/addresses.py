"""The address columns of pg_hba.conf."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

from pgtlsproxy.identity import IPAddress, encode_name, printable
from pgtlsproxy.policy.records import LineError, Token

Network = IPv4Network | IPv6Network
Interface = IPv4Interface | IPv6Interface

LOOPBACK = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))
_V4_MAPPED = IPv6Network("::ffff:0:0/96")
_HOST_NAME = re.compile(r"[A-Za-z0-9._-]+")
# What C's inet_aton takes besides four decimal numbers: octal, hexadecimal, fewer parts.
_SHORT_IPV4 = re.compile(r"(0[xX][0-9a-fA-F]*|[0-9]+)(\.(0[xX][0-9a-fA-F]*|[0-9]+)){0,3}")


class AddressKeyword(enum.StrEnum):
    """What an unquoted keyword in the address column stands for."""

    ALL = "all"
    SAMEHOST = "samehost"
    SAMENET = "samenet"


class AddressError(LineError):
    """An address column that cannot be used; the text says why and what to write."""


@dataclass(frozen=True, slots=True)
class HostName:
    """A host name, or with a dot at the front the end of one (`check_hostname` of src/backend/libpq/hba.c).

    Args:
        text: as the file has it.
    """

    text: str

    def matches(self, name: str) -> bool:
        """Whether the client's host name is meant; case counts in bytes beyond ASCII only."""
        return folded(self.text) in ends(name)

    def __str__(self) -> str:
        return printable(self.text)


def folded(name: str) -> bytes:
    """A host name as it is compared."""
    return encode_name(name).lower()


def ends(name: str) -> Iterator[bytes]:
    """A host name as it is compared, and its ends that begin with a dot, the name itself among them."""
    whole = folded(name)
    yield whole
    for position, octet in enumerate(whole):
        if octet == ord("."):
            yield whole[position:]


Address = Network | AddressKeyword | HostName
"""What the address column says."""


def keyword(token: Token) -> AddressKeyword | None:
    """The keyword that an address column is, or None."""
    return next((word for word in AddressKeyword if token.is_keyword(word.value)), None)


def parse_cidr(token: Token) -> Network:
    """A network from `address/bits`; bits of the host are ignored, as in PostgreSQL.

    Raises:
        AddressError: with PostgreSQL's text (`parse_hba_line`) where it has one.
    """
    text, _, bits = token.text.partition("/")
    address = _parse_ip(text)
    if address is None:
        raise AddressError(f'specifying both host name and CIDR mask is invalid: "{token}"')
    if not (bits.isascii() and bits.isdecimal() and len(bits) <= len("128")):
        raise AddressError(f'invalid CIDR mask in address "{token}": write a number of bits behind the slash')
    if int(bits) > address.max_prefixlen:
        raise AddressError(f'invalid CIDR mask in address "{token}": at most {address.max_prefixlen} bits')
    return _network(address, int(bits))


def parse_address(token: Token) -> IPAddress | HostName:
    """An address without `/bits`, behind which a column with its mask comes, or a host name.

    Raises:
        AddressError: it is neither.
    """
    address = _parse_ip(token.text)
    if address is not None:
        return address
    if not _HOST_NAME.fullmatch(token.text):
        raise AddressError(f'invalid host name "{token}": a name has letters, digits, hyphens and dots')
    return HostName(token.text)


def parse_masked(address: IPAddress, mask: Token) -> Network:
    """A network from an address and its mask, such as 255.0.0.0.

    Raises:
        AddressError: the mask is none, or of the other family, or (PostgreSQL allows it) has holes.
    """
    try:
        parsed = _parse_ip(mask.text)
    except AddressError:
        parsed = None
    if parsed is None:
        raise AddressError(
            f'invalid IP mask "{mask}": behind an address without /bits comes a mask such as 255.0.0.0'
        )
    if parsed.version != address.version:
        raise AddressError("IP address and mask do not match: one is IPv4, the other IPv6")
    ones = f"{int(parsed):0{parsed.max_prefixlen}b}".rstrip("0")
    if "0" in ones:
        raise AddressError(f'invalid IP mask "{mask}": its one bits must stand together, at the left')
    return _network(address, len(ones))


def is_loopback(network: Network) -> bool:
    """Whether every address of a network is a loopback address."""
    return any(
        network.version == loopback.version and network.subnet_of(loopback)  # type: ignore[arg-type]
        for loopback in LOOPBACK
    )


def matches(wanted: Network | AddressKeyword, address: IPAddress, interfaces: tuple[Interface, ...]) -> bool:
    """Whether a client's address is one that the column means, where that is no host name.

    IPv4 never matches IPv6, nor the other way round.

    Args:
        wanted: the column.
        address: the client's address.
        interfaces: this host's own, for `samehost` and `samenet`.
    """
    match wanted:
        case AddressKeyword.ALL:
            return True
        case AddressKeyword.SAMEHOST:
            return any(interface.ip == address for interface in interfaces)
        case AddressKeyword.SAMENET:
            return any(address in interface.network for interface in interfaces)
        case network:
            return address in network


def _parse_ip(text: str) -> IPAddress | None:
    """A numeric address in its full form; None for what can only be a host name."""
    if ":" in text:
        if "%" in text:
            raise AddressError(
                f'invalid IP address "{Token(text)}": leave the zone out, PostgreSQL ignores it'
            )
        try:
            return IPv6Address(text)
        except ValueError:
            raise AddressError(f'invalid IP address "{Token(text)}"') from None
    try:
        return IPv4Address(text)
    except ValueError:
        if _SHORT_IPV4.fullmatch(text):
            raise AddressError(
                f'invalid IP address "{Token(text)}": write four decimal numbers without leading zeros'
            ) from None
        return None


def _network(address: IPAddress, length: int) -> Network:
    if isinstance(address, IPv4Address):
        return IPv4Network((address, length), strict=False)
    network = IPv6Network((address, length), strict=False)
    if network.subnet_of(_V4_MAPPED):
        raise AddressError(
            f'"{network}" would never match: a client with an IPv4-mapped address counts as IPv4; write it so'
        )
    return network
