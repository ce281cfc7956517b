"""`PGTLSPROXY_FUZZ=100000` in the environment raises the number of examples."""

import os
import struct
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from pgtlsproxy.errors import ProtocolViolation
from pgtlsproxy.identity import encode_name
from pgtlsproxy.protocol.startup import StartupMessage, encode_startup, packet_length, parse_packet

FUZZ_EXAMPLES = int(os.environ.get("PGTLSPROXY_FUZZ", "200"))


@given(st.binary(min_size=4, max_size=300))
@settings(max_examples=FUZZ_EXAMPLES)
def test_any_bytes_are_a_packet_or_a_violation(data: bytes) -> None:
    check(data)


def check(data: bytes) -> None:
    """A payload is refused, or a packet that the backend reads as we did."""
    try:
        packet = parse_packet(data)
    except ProtocolViolation:
        return
    if isinstance(packet, StartupMessage):
        assert packet.user
        assert max(len(encode_name(packet.user)), len(encode_name(packet.database))) <= 63
        spoken = replace(packet, version=(3, 0), protocol_options=(), dropped=())
        built = encode_startup(packet, newest=(3, 0))
        assert packet_length(built[:4]) == len(built)
        assert parse_packet(built[4:]) == spoken


CODES = [0, 0x00020000, 0x00030000, 0x00030001, 0x00030002, 0x0003270F, 80877102, 80877103, 80877104]
PIECES = [
    b"user", b"USER", b"database", b"options", b"replication", b"_pq_.x", b"_pq_.", b"pgtlsproxy.x", b"role",
    b"application_name", b"alice", b"", b"true", b"database", b"off", b"o", b"-c role=x", b"\xff\xfe",
    b"\x1b[0m", b"n" * 63, b"n" * 64, "é".encode() * 32, b"v" * 2000,
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A startup packet of the pieces that matter, then bytes changed, cut out, doubled or put in."""
    pieces = draw(st.lists(st.sampled_from(PIECES), max_size=10))
    if draw(st.booleans()):
        pieces = [b"user", b"alice", *pieces]
    data = bytearray(struct.pack("!I", draw(st.sampled_from(CODES))))
    data += b"".join(piece + b"\x00" for piece in pieces) + draw(st.sampled_from([b"\x00", b"", b"\x00\x00"]))
    for _ in range(draw(st.integers(0, 3))):
        position = draw(st.integers(4, len(data)))
        end = draw(st.integers(position, min(len(data), position + 8)))
        replacement = draw(st.one_of(st.binary(max_size=4), st.just(bytes(data[position:end]) * 2)))
        data[position:end] = replacement
    return bytes(data[:10_000])


@given(mutated())
@settings(max_examples=FUZZ_EXAMPLES, deadline=None)
def test_a_mutated_startup_packet_is_read_as_the_backend_reads_it_or_refused(data: bytes) -> None:
    check(data)
