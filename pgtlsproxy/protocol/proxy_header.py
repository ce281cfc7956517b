"""The PROXY protocol: what a load balancer says of a client before the client's own first byte.

(HAProxy, "The PROXY protocol, versions 1 & 2", doc/proxy-protocol.txt.) A header is read exactly as far as
it reaches: what follows may be a TLS handshake, which must find its first byte in the socket.
"""

from __future__ import annotations

import enum
import re
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from pgtlsproxy.errors import ProxyHeaderRefused
from pgtlsproxy.identity import IPAddress, printable

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
"""How a header of version 2 begins. No PostgreSQL client and no TLS handshake does."""

V1_BEGINNING: Final = b"PROXY "

MAX_V1_OCTETS: Final = 107
"""The longest line with its CRLF (section 2.1)."""

MAX_V2_OCTETS: Final = 4096
"""What may follow the first 16 octets of version 2: addresses, and TLVs, of which some senders' hold a whole
client certificate."""

_V2_HEAD: Final = struct.Struct("!12sBBH")
_SHORTEST_V1: Final = len(b"PROXY UNKNOWN\r\n")
_CERTAIN: Final = 12
"""Octets that every header has, of either version."""

_PORT: Final = re.compile(rb"0|[1-9][0-9]{0,4}")
_MAX_PORT: Final = 65535

_INET4: Final = struct.Struct("!4s4sHH")
_INET6: Final = struct.Struct("!16s16sHH")
_UNSPECIFIED, _TCP4, _TCP6, _UNIX_STREAM = 0x00, 0x11, 0x21, 0x31
_NAMELESS_FAMILIES: Final = {_UNSPECIFIED: "PROXY, AF_UNSPEC", _UNIX_STREAM: "PROXY, AF_UNIX"}
_LOCAL, _PROXY = 0x20, 0x21

_GUESSES: Final = (
    (b"\x16\x03", "a TLS handshake"),
    (b"\0\0\0\x08\x04\xd2\x16\x2f", "an SSLRequest"),
    (b"\0\0\0\x08\x04\xd2\x16\x30", "a GSSENCRequest"),
    (b"\0\0\0\x10\x04\xd2\x16\x2e", "a CancelRequest"),
    (b"\0\0", "a packet of PostgreSQL's"),
)


class ProxyProtocol(enum.StrEnum):
    """Which of the two versions is written."""

    V1 = "v1"
    V2 = "v2"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One end of a TCP connection."""

    ip: IPAddress
    port: int


@dataclass(frozen=True, slots=True)
class Ends:
    """Both ends of a client's connection to the first that took it.

    Args:
        client: where it comes from.
        server: where it went to.
    """

    client: Endpoint
    server: Endpoint


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """What a header says.

    Args:
        says: how it names the client, for people: `TCP4`, `LOCAL`, ...
        ends: the client's connection, IPv4-mapped IPv6 already turned into IPv4. None where the header names
            nobody: a connection of the load balancer's own, or from where it knows no address.
    """

    says: str
    ends: Ends | None


class ProxyHeaderReader:
    """Takes a header in pieces, and never an octet behind it.

    Attributes:
        received: what has come so far.
    """

    def __init__(self) -> None:
        self.received = b""

    @property
    def wanted(self) -> int:
        """How many octets more belong to it for certain; 0 when it is whole."""
        received = self.received
        if len(received) < _CERTAIN:
            return _CERTAIN - len(received)
        if received.startswith(SIGNATURE):
            if len(received) < _V2_HEAD.size:
                return _V2_HEAD.size - len(received)
            length: int = _V2_HEAD.unpack_from(received)[3]
            return _V2_HEAD.size + length - len(received)
        if received.endswith(b"\r\n"):
            return 0
        if len(received) < _SHORTEST_V1:
            return _SHORTEST_V1 - len(received)
        return 1 if received.endswith(b"\r") else 2

    def feed(self, data: bytes) -> None:
        """Take octets, at most as many as are wanted.

        Raises:
            ProxyHeaderRefused: this is no header, or a longer one than may be.
        """
        self.received += data
        received = self.received
        if not any(
            received.startswith(beginning[: len(received)]) for beginning in (SIGNATURE, V1_BEGINNING)
        ):
            raise ProxyHeaderRefused(
                f"no PROXY header: found {shown(received)}, expected version 1 or 2 of one"
            )
        if SIGNATURE.startswith(received[: len(SIGNATURE)]):
            if len(received) == _V2_HEAD.size:
                self._judge_v2_head()
            return
        line = received[:-2] if received.endswith(b"\r\n") else received.removesuffix(b"\r")
        if b"\r" in line or b"\n" in line:
            raise _malformed(received, "its line must end with CRLF, and nowhere before")
        if self.wanted and len(received) + self.wanted > MAX_V1_OCTETS:
            raise _malformed(received, f"its line has no end within {MAX_V1_OCTETS} octets")

    def _judge_v2_head(self) -> None:
        _, command, _, length = _V2_HEAD.unpack(self.received)
        if command not in {_LOCAL, _PROXY}:
            raise ProxyHeaderRefused(
                f"a malformed PROXY header: found version and command 0x{command:02x}, expected 0x20 or 0x21"
            )
        if length > MAX_V2_OCTETS:
            raise ProxyHeaderRefused(
                f"a PROXY header of {length} octets behind its first 16: at most {MAX_V2_OCTETS} are taken; "
                "let the sender leave TLVs out"
            )

    def header(self) -> ProxyHeader:
        """What a whole header says.

        Raises:
            ProxyHeaderRefused: it is malformed, or names a client that no network can have brought.
        """
        header = _parse_v2(self.received) if self.received.startswith(SIGNATURE) else _parse_v1(self.received)
        if header.ends is not None:
            _require_possible(header.ends.client.ip)
        return header


def begins_header(octets: bytes) -> bool:
    """Whether these, four at least, can begin a header, and so nothing else that a client may say."""
    return any(beginning.startswith(octets[: len(beginning)]) for beginning in (SIGNATURE, V1_BEGINNING))


def shown(data: bytes) -> str:
    """The first octets of something, and what they look like."""
    guess = next((what for beginning, what in _GUESSES if data.startswith(beginning)), None)
    text = '"' + "".join(chr(each) if 0x20 <= each <= 0x7E else f"\\x{each:02x}" for each in data[:16]) + '"'
    return text if guess is None else f"{text} ({guess})"


def _malformed(received: bytes, problem: str) -> ProxyHeaderRefused:
    return ProxyHeaderRefused(f'a malformed PROXY header: found "{printable(received)}": {problem}')


# --- Reading ------------------------------------------------------------------------------------------------


def _parse_v1(line: bytes) -> ProxyHeader:
    fields = line.removesuffix(b"\r\n").split(b" ")
    protocol = fields[1]
    if protocol == b"UNKNOWN":
        return ProxyHeader("UNKNOWN", None)  # what may follow must be ignored
    if protocol not in {b"TCP4", b"TCP6"}:
        raise _malformed(line, "expected TCP4, TCP6 or UNKNOWN behind PROXY")
    if len(fields) != 6:
        raise _malformed(line, "expected two addresses and two ports, with one blank before each")
    client, server = (_v1_address(text, protocol, line) for text in fields[2:4])
    client_port, server_port = (_v1_port(text, line) for text in fields[4:])
    return ProxyHeader(
        protocol.decode("ascii"), Ends(Endpoint(client, client_port), Endpoint(server, server_port))
    )


def _v1_address(text: bytes, protocol: bytes, line: bytes) -> IPAddress:
    try:
        plain = text.decode("ascii")
        address = IPv4Address(plain) if protocol == b"TCP4" else IPv6Address(plain)
    except ValueError:
        address = None
    if address is None or b"%" in text:
        raise _malformed(line, f'"{printable(text)}" is no address of {printable(protocol)}')
    return _plain(address)


def _v1_port(text: bytes, line: bytes) -> int:
    if _PORT.fullmatch(text) is None or int(text) > _MAX_PORT:
        raise _malformed(line, f'"{printable(text)}" is no port')
    return int(text)


def _parse_v2(data: bytes) -> ProxyHeader:
    _, command, family, length = _V2_HEAD.unpack_from(data)
    if command == _LOCAL:
        return ProxyHeader("LOCAL", None)
    if family in _NAMELESS_FAMILIES:
        return ProxyHeader(_NAMELESS_FAMILIES[family], None)
    layout = {_TCP4: _INET4, _TCP6: _INET6}.get(family)
    if layout is None:
        raise ProxyHeaderRefused(
            f"a malformed PROXY header: found family and protocol 0x{family:02x}, expected TCP over IPv4 "
            "(0x11) or IPv6 (0x21), a Unix socket (0x31), or none (0x00)"
        )
    if length < layout.size:
        raise ProxyHeaderRefused(
            f"a malformed PROXY header: found {length} octets behind its first 16, and its addresses alone "
            f"have {layout.size}"
        )
    # TLVs follow. Nothing is decided by them, so nothing in them needs to be right.
    client, server, client_port, server_port = layout.unpack_from(data, _V2_HEAD.size)
    make = IPv4Address if layout is _INET4 else IPv6Address
    ends = Ends(Endpoint(_plain(make(client)), client_port), Endpoint(_plain(make(server)), server_port))
    return ProxyHeader("TCP4" if layout is _INET4 else "TCP6", ends)


def _plain(ip: IPAddress) -> IPAddress:
    mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    return ip if mapped is None else mapped


def _require_possible(ip: IPAddress) -> None:
    """Refuse what would be taken for this host's own: loopback opens doors that are shut to all others."""
    if ip.is_loopback or ip.is_unspecified or ip.is_multicast:
        raise ProxyHeaderRefused(
            f"a PROXY header that names {ip} as the client, which no network brings; who is on the load "
            "balancer's own host has to connect to another of its addresses, or to the proxy itself"
        )


# --- Writing ------------------------------------------------------------------------------------------------


def encode(version: ProxyProtocol, ends: Ends | None) -> bytes:
    """The header for a connection.

    Args:
        version: which one.
        ends: the connection of the client whom it carries; None where that has no addresses, as at a Unix
            socket, and for a connection of our own. HAProxy refuses a PROXY command without a family.
    """
    if ends is None:
        return b"PROXY UNKNOWN\r\n" if version is ProxyProtocol.V1 else _v2(_LOCAL, _UNSPECIFIED, b"")
    client, server = ends.client.ip, ends.server.ip
    is_v4 = client.version == server.version == 4
    if not is_v4:  # one header has one family
        client, server = _as_v6(client), _as_v6(server)
    ports = ends.client.port, ends.server.port
    if version is ProxyProtocol.V1:
        protocol = "TCP4" if is_v4 else "TCP6"
        return f"PROXY {protocol} {client} {server} {ports[0]} {ports[1]}\r\n".encode("ascii")
    layout = _INET4 if is_v4 else _INET6
    return _v2(_PROXY, _TCP4 if is_v4 else _TCP6, layout.pack(client.packed, server.packed, *ports))


def _as_v6(ip: IPAddress) -> IPv6Address:
    return ip if isinstance(ip, IPv6Address) else IPv6Address(f"::ffff:{ip}")


def _v2(command: int, family: int, addresses: bytes) -> bytes:
    return _V2_HEAD.pack(SIGNATURE, command, family, len(addresses)) + addresses
