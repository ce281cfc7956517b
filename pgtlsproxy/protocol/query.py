"""The simple query protocol, as far as the proxy asks a backend something for itself.

PostgreSQL manual, 53.2.2 Simple Query. Everything here is bytes in, values out.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from pgtlsproxy.errors import BackendMisbehaved
from pgtlsproxy.identity import decode_name, encode_name, printable
from pgtlsproxy.protocol.messages import MessageReader

TERMINATE: Final = b"X\x00\x00\x00\x04"

MAX_ANSWER_OCTETS: Final = 16 << 20
"""All that a backend may answer to one query."""

_MAX_MESSAGE_OCTETS: Final = 65536
_MAX_OCTETS: Final[Mapping[bytes, int]] = MappingProxyType(
    {
        b"T": _MAX_MESSAGE_OCTETS,
        b"D": _MAX_MESSAGE_OCTETS,
        b"C": _MAX_MESSAGE_OCTETS,
        b"E": _MAX_MESSAGE_OCTETS,
        b"N": _MAX_MESSAGE_OCTETS,
        b"S": _MAX_MESSAGE_OCTETS,
        b"Z": 5,
    }
)

_LENGTH: Final = struct.Struct("!I")
_COUNT: Final = struct.Struct("!h")
_FIELD: Final = struct.Struct("!i")


def encode_query(text: str) -> bytes:
    """A Query message."""
    body = encode_name(text) + b"\x00"
    return b"Q" + _LENGTH.pack(len(body) + 4) + body


def answer_reader() -> MessageReader:
    """A reader for what a backend answers to one query with rows."""
    return MessageReader(
        _MAX_OCTETS,
        MAX_ANSWER_OCTETS,
        unexpected=lambda kind: BackendMisbehaved(
            f'the backend sent message type "{printable(kind)}" in answer to a query'
        ),
        invalid=lambda _: BackendMisbehaved(
            f"the backend's answer to a query is over {MAX_ANSWER_OCTETS >> 20} MB, or has a message of "
            "invalid length"
        ),
    )


def parse_row(body: bytes, columns: int) -> tuple[str, ...]:
    """The values of a DataRow.

    Args:
        body: of the message.
        columns: how many there are to be, none of them NULL.

    Raises:
        BackendMisbehaved: it has others.
    """
    values: list[str] = []
    position = _COUNT.size
    try:
        (count,) = _COUNT.unpack_from(body)
        for _ in range(count):
            (length,) = _FIELD.unpack_from(body, position)
            position += _FIELD.size
            if not 0 <= length <= len(body) - position:
                break
            values.append(decode_name(body[position : position + length]))
            position += length
    except struct.error:
        position = -1
    if len(values) != columns or position != len(body):
        raise BackendMisbehaved("the backend sent a row that is not what was asked for")
    return tuple(values)
