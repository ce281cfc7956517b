import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgtlsproxy.errors import BackendMisbehaved
from pgtlsproxy.identity import encode_name
from pgtlsproxy.protocol.query import MAX_ANSWER_OCTETS, answer_reader, encode_query, parse_row


def row(*values: bytes | None) -> bytes:
    fields = (
        struct.pack("!i", -1) if value is None else struct.pack("!i", len(value)) + value for value in values
    )
    return struct.pack("!h", len(values)) + b"".join(fields)


def test_a_query_is_one_message() -> None:
    assert encode_query("SELECT 1") == b"Q\x00\x00\x00\x0dSELECT 1\x00"


@given(st.lists(st.binary(max_size=20), max_size=4))
def test_a_row_comes_back_as_it_was(values: list[bytes]) -> None:
    found = parse_row(row(*values), len(values))
    assert [encode_name(value) for value in found] == values


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00",
        row(b"a"),
        row(b"a", b"b", b"c"),
        row(b"a", None),
        row(b"a", b"b") + b"x",
        row(b"a", b"b")[:-1],
        struct.pack("!hi", 2, 1 << 30),
        struct.pack("!hi", 2, -2),
        struct.pack("!h", -1),
    ],
)
def test_a_row_that_was_not_asked_for_is_refused(body: bytes) -> None:
    with pytest.raises(BackendMisbehaved):
        parse_row(body, 2)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_row_or_refused(body: bytes) -> None:
    with contextlib.suppress(BackendMisbehaved):
        assert len(parse_row(body, 2)) == 2


def test_an_answer_is_bounded() -> None:
    reader = answer_reader()
    with pytest.raises(BackendMisbehaved, match="is over 16 MB, or has a message of invalid length"):
        for _ in range(MAX_ANSWER_OCTETS // 60_000 + 1):
            reader.feed(b"D" + struct.pack("!I", 60_004) + b"x" * 60_000)
            assert reader.next() is not None
    reader = answer_reader()
    reader.feed(b"D\x7f\xff\xff\xff")
    with pytest.raises(BackendMisbehaved):
        reader.next()


@pytest.mark.parametrize("kind", [b"G", b"W", b"R", b"K", b"t"])
def test_nothing_else_may_come(kind: bytes) -> None:
    reader = answer_reader()
    reader.feed(kind + b"\x00\x00\x00\x04")
    with pytest.raises(BackendMisbehaved, match="in answer to a query"):
        reader.next()
