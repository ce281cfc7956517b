"""A PROXY header is read as far as it reaches, and says what it says; whatever else comes is refused."""

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pgtlsproxy.errors import ProxyHeaderRefused
from pgtlsproxy.protocol.proxy_header import (
    MAX_V1_OCTETS,
    MAX_V2_OCTETS,
    SIGNATURE,
    Endpoint,
    Ends,
    ProxyHeader,
    ProxyHeaderReader,
    ProxyProtocol,
    begins_header,
    encode,
)

ALICE = Ends(Endpoint(IPv4Address("203.0.113.7"), 40000), Endpoint(IPv4Address("198.51.100.1"), 5432))
SIX = Ends(Endpoint(IPv6Address("2001:db8::7"), 40000), Endpoint(IPv6Address("2001:db8::1"), 5432))


def v2(command, family, payload=b"", length=None):
    size = len(payload) if length is None else length
    return SIGNATURE + struct.pack("!BBH", command, family, size) + payload


def inet(client, server, ports=(40000, 5432)):
    return ip_address(client).packed + ip_address(server).packed + struct.pack("!HH", *ports)


def read(data, sizes=(1 << 16,)):
    """What a header says, and what of the data is behind it. Its pieces are no longer than these sizes."""
    reader, at, turn = ProxyHeaderReader(), 0, 0
    while wanted := reader.wanted:
        piece = data[at : at + min(wanted, sizes[turn % len(sizes)])]
        if not piece:
            raise EOFError
        reader.feed(piece)
        at, turn = at + len(piece), turn + 1
    return reader.header(), data[at:]


V4 = inet("203.0.113.7", "198.51.100.1")
LONGEST_V1 = b"PROXY UNKNOWN " + b"f" * (MAX_V1_OCTETS - 16) + b"\r\n"

WHOLE = {
    "v1": (b"PROXY TCP4 203.0.113.7 198.51.100.1 40000 5432\r\n", ProxyHeader("TCP4", ALICE)),
    "v1 of IPv6": (b"PROXY TCP6 2001:db8::7 2001:DB8::1 40000 5432\r\n", ProxyHeader("TCP6", SIX)),
    "v1, mapped": (
        b"PROXY TCP6 ::ffff:203.0.113.7 ::ffff:198.51.100.1 40000 5432\r\n",
        ProxyHeader("TCP6", ALICE),
    ),
    "v1, the shortest": (b"PROXY UNKNOWN\r\n", ProxyHeader("UNKNOWN", None)),
    "v1, the longest": (LONGEST_V1, ProxyHeader("UNKNOWN", None)),
    "v1, unknown with addresses": (
        b"PROXY UNKNOWN 127.0.0.1 127.0.0.1 1 2\r\n",
        ProxyHeader("UNKNOWN", None),
    ),
    "v2": (v2(0x21, 0x11, V4), ProxyHeader("TCP4", ALICE)),
    "v2 of IPv6": (v2(0x21, 0x21, inet("2001:db8::7", "2001:db8::1")), ProxyHeader("TCP6", SIX)),
    "v2, mapped": (
        v2(0x21, 0x21, inet("::ffff:203.0.113.7", "::ffff:198.51.100.1")),
        ProxyHeader("TCP6", ALICE),
    ),
    "v2 with TLVs": (v2(0x21, 0x11, V4 + b"\x02\x00\x0bexample.org"), ProxyHeader("TCP4", ALICE)),
    "v2 with forged TLVs": (
        v2(0x21, 0x11, V4 + b"\x20\xff\xff" + b"admin" * 40),
        ProxyHeader("TCP4", ALICE),
    ),
    "v2, the longest": (v2(0x21, 0x11, V4 + bytes(MAX_V2_OCTETS - len(V4))), ProxyHeader("TCP4", ALICE)),
    "LOCAL": (v2(0x20, 0x00), ProxyHeader("LOCAL", None)),
    "LOCAL with addresses": (v2(0x20, 0x11, V4), ProxyHeader("LOCAL", None)),
    "LOCAL with nonsense": (v2(0x20, 0xFF, b"nonsense"), ProxyHeader("LOCAL", None)),
    "no family": (v2(0x21, 0x00), ProxyHeader("PROXY, AF_UNSPEC", None)),
    "a Unix socket": (v2(0x21, 0x31, bytes(216)), ProxyHeader("PROXY, AF_UNIX", None)),
}


@pytest.mark.parametrize(("data", "says"), WHOLE.values(), ids=WHOLE)
@pytest.mark.parametrize("sizes", [(1 << 16,), (1,), (3, 7)])
@pytest.mark.parametrize("behind", [b"", b"\x16\x03\x01\x02\x00", b"\0\0\0\x08\x04\xd2\x16\x2f", b"\r\n"])
def test_a_header_is_read_to_its_end_and_no_further(data, says, sizes, behind):
    assert read(data + behind, sizes) == (says, behind)


REFUSED = {
    "an SSLRequest": (b"\0\0\0\x08\x04\xd2\x16\x2f", "an SSLRequest"),
    "a TLS handshake": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "a TLS handshake"),
    "a StartupMessage": (b"\0\0\0\x20\0\x03\0\0user\0alice\0", "a packet of PostgreSQL's"),
    "HTTP": (b"GET / HTTP/1.1\r\n", '"GET / HTTP/1'),
    "one octet": (b"\x00", r"\x00"),
    "v1 in small letters": (b"proxy TCP4 203.0.113.7 198.51.100.1 40000 5432\r\n", "no PROXY header"),
    "v1 without CR": (b"PROXY TCP4 203.0.113.7 198.51.100.1 40000 5432\n12", "CRLF"),
    "v1 with CR inside": (b"PROXY TCP4 203.0.113.7\r 198.51.100.1 40000 5432\r\n", "CRLF"),
    "v1 with LF inside": (b"PROXY TCP4 203.0.113.7\n 198.51.100.1 40000 5432\r\n", "CRLF"),
    "v1 that ends too early": (b"PROXY TCP4\r\n", "two addresses"),
    "v1 that ends behind its name": (b"PROXY \r\nxxxx", "CRLF"),
    "v1 too long": (b"PROXY UNKNOWN " + b"f" * 94 + b"\r\n", "107 octets"),
    "v1 without end": (b"PROXY TCP4 " + b"1" * 1000, "107 octets"),
    "v1 of UDP": (b"PROXY UDP4 203.0.113.7 198.51.100.1 40000 5432\r\n", "TCP4, TCP6 or UNKNOWN"),
    "v1 with two blanks": (b"PROXY TCP4  203.0.113.7 198.51.100.1 40000 5432\r\n", "one blank"),
    "v1 with a field more": (b"PROXY TCP4 203.0.113.7 198.51.100.1 40000 5432 1\r\n", "one blank"),
    "v1 of the other family": (b"PROXY TCP4 2001:db8::7 2001:db8::1 40000 5432\r\n", "no address of TCP4"),
    "v1, IPv6 of IPv4": (b"PROXY TCP6 203.0.113.7 198.51.100.1 40000 5432\r\n", "no address of TCP6"),
    "v1 with leading zeros": (b"PROXY TCP4 203.0.113.007 198.51.100.1 40000 5432\r\n", "no address"),
    "v1 with a short address": (b"PROXY TCP4 203.7 198.51.100.1 40000 5432\r\n", "no address"),
    "v1 with a zone": (b"PROXY TCP6 fe80::1%eth0 2001:db8::1 40000 5432\r\n", "no address"),
    "v1 with a name": (b"PROXY TCP4 example.org 198.51.100.1 40000 5432\r\n", "no address"),
    "v1 with bytes": (b"PROXY TCP4 \xff\xfe 198.51.100.1 40000 5432\r\n", r"\xff\xfe"),
    "v1, port too large": (b"PROXY TCP4 203.0.113.7 198.51.100.1 65536 5432\r\n", "no port"),
    "v1, port with a zero": (b"PROXY TCP4 203.0.113.7 198.51.100.1 040000 5432\r\n", "no port"),
    "v1, port with a sign": (b"PROXY TCP4 203.0.113.7 198.51.100.1 +40000 5432\r\n", "no port"),
    "v1, loopback": (b"PROXY TCP4 127.0.0.1 198.51.100.1 40000 5432\r\n", "names 127.0.0.1"),
    "v1, loopback of IPv6": (b"PROXY TCP6 ::1 2001:db8::1 40000 5432\r\n", "names ::1"),
    "v1, loopback, mapped": (b"PROXY TCP6 ::ffff:127.0.0.9 2001:db8::1 40000 5432\r\n", "names 127.0.0.9"),
    "v1, nobody": (b"PROXY TCP4 0.0.0.0 198.51.100.1 40000 5432\r\n", "names 0.0.0.0"),
    "v2, loopback": (v2(0x21, 0x11, inet("127.1.2.3", "198.51.100.1")), "names 127.1.2.3"),
    "v2, loopback, mapped": (v2(0x21, 0x21, inet("::ffff:127.0.0.1", "2001:db8::1")), "names 127.0.0.1"),
    "v2, multicast": (v2(0x21, 0x11, inet("224.0.0.1", "198.51.100.1")), "names 224.0.0.1"),
    "v2, version 1": (v2(0x11, 0x11, V4), "0x11"),
    "v2, version 3": (v2(0x31, 0x11, V4), "0x31"),
    "v2, no command": (v2(0x22, 0x11, V4), "0x22"),
    "v2 of UDP": (v2(0x21, 0x12, V4), "0x12"),
    "v2 of no family": (v2(0x21, 0x41, V4), "0x41"),
    "v2 too short": (v2(0x21, 0x11, V4[:-1]), "11 octets"),
    "v2 of IPv6 too short": (v2(0x21, 0x21, V4), "12 octets"),
    "v2 too long": (v2(0x21, 0x11, b"", MAX_V2_OCTETS + 1), "4097 octets"),
    "v2 without end": (v2(0x20, 0x00, b"", 0xFFFF), "65535 octets"),
    "v2 with a broken signature": (b"\r\n\r\n\0\r\nQUIX\n" + b"\x21\x11\x00\x0c" + V4, "no PROXY header"),
}


@pytest.mark.parametrize(("data", "says"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("sizes", [(1 << 16,), (1,)])
def test_whatever_is_no_header_is_refused_and_told(data, says, sizes):
    with pytest.raises(ProxyHeaderRefused) as refused:
        read(data, sizes)
    # Of what is no header, the first octet alone was found.
    assert says in refused.value.reason or (sizes == (1,) and "no PROXY header" in refused.value.reason)
    assert refused.value.sqlstate is None  # nothing is said to whoever it is


@given(
    st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=200).map(lambda tail: b"PROXY " + tail),
        st.binary(max_size=200).map(lambda tail: SIGNATURE + tail),
        st.tuples(
            st.sampled_from([0x20, 0x21, 0x11]),
            st.sampled_from([0, 0x11, 0x21, 0x31]),
            st.binary(max_size=300),
        ).map(lambda parts: v2(*parts)),
    ),
    st.lists(st.integers(1, 64), min_size=1, max_size=5),
)
@example(b"PROXY UNKNOWN\r\r\n", [1])
@example(b"PROXY TCP4 203.0.113.7 198.51.100.1 40000 5432\r\n", [1])
def test_any_bytes_in_any_pieces_are_the_same_header_or_a_refusal(data, sizes):
    def outcome(pieces):
        try:
            return read(data, pieces)
        except (ProxyHeaderRefused, EOFError) as error:
            return type(error)

    found = outcome(sizes)
    assert found == outcome((1 << 16,))
    if isinstance(found, tuple):
        header, behind = found
        taken = len(data) - len(behind)
        assert taken <= MAX_V1_OCTETS or (data.startswith(SIGNATURE) and taken <= 16 + MAX_V2_OCTETS)
        assert header.ends is None or not header.ends.client.ip.is_loopback


@given(st.binary(min_size=1, max_size=200))
def test_every_piece_of_a_header_is_taken_for_a_beginning(data):
    whole = WHOLE["v2 with TLVs"][0]
    assert begins_header(data) == any(
        known.startswith(data[: len(known)]) for known in (SIGNATURE, b"PROXY ")
    )
    reader = ProxyHeaderReader()
    for position in range(len(whole)):
        assert reader.wanted
        reader.feed(whole[position : position + 1])
    assert not reader.wanted


addresses = (
    st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))
    .map(lambda ip: getattr(ip, "ipv4_mapped", None) or ip)
    .filter(lambda ip: not (ip.is_loopback or ip.is_unspecified or ip.is_multicast))
)
ends = st.builds(
    Ends,
    st.builds(Endpoint, addresses, st.integers(0, 65535)),
    st.builds(Endpoint, addresses, st.integers(0, 65535)),
)


@given(ends, st.sampled_from(ProxyProtocol), st.binary(max_size=8))
def test_what_is_written_is_read_again(ends, version, behind):
    header, rest = read(encode(version, ends) + behind)
    assert (header.ends, rest) == (ends, behind)


@pytest.mark.parametrize(("version", "says"), [("v1", "UNKNOWN"), ("v2", "LOCAL")])
def test_a_connection_without_addresses_names_nobody(version, says):
    assert read(encode(ProxyProtocol(version), None) + b"x") == (ProxyHeader(says, None), b"x")


def test_what_is_written_is_what_the_specification_shows():
    assert encode(ProxyProtocol.V1, ALICE) == WHOLE["v1"][0]
    assert encode(ProxyProtocol.V2, ALICE) == WHOLE["v2"][0]
    assert encode(ProxyProtocol.V2, SIX) == WHOLE["v2 of IPv6"][0]
    assert encode(ProxyProtocol.V2, None) == bytes.fromhex("0d0a0d0a000d0a515549540a 20 00 0000")
