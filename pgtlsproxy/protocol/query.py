"""The query protocols, as far as the proxy asks a backend something for itself.

PostgreSQL manual, 53.2.2 Simple Query and 53.2.3 Extended Query. Everything here is bytes in, values out.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
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
_MAX_EXTENDED_OCTETS: Final[Mapping[bytes, int]] = MappingProxyType(
    {**_MAX_OCTETS, b"1": 4, b"2": 4, b"n": 4, b"s": 4}
)
"""ParseComplete, BindComplete, NoData, PortalSuspended."""

_LENGTH: Final = struct.Struct("!I")
_COUNT: Final = struct.Struct("!h")
_FIELD: Final = struct.Struct("!i")
_COLUMN: Final = struct.Struct("!ihihih")

NULL: Final = -1
"""The length of a field that is NULL."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of an answer.

    Args:
        name: its name.
        type_oid: the OID of its type.
    """

    name: str
    type_oid: int


def encode_query(text: str) -> bytes:
    """A Query message."""
    return _message(b"Q", encode_name(text) + b"\x00")


def encode_question(text: str, parameter: str, max_rows: int) -> bytes:
    """Parse, Bind, Describe, Execute and Sync for one query with one parameter.

    The parameter goes as text of the type that the query gives it, beside the query and never in it. What
    comes back is binary.

    Args:
        text: the query, with $1 in it.
        parameter: the value of $1.
        max_rows: how many rows are sent at most.
    """
    value = encode_name(parameter)
    bound = b"\x00\x00" + _COUNT.pack(0) + _COUNT.pack(1) + _FIELD.pack(len(value)) + value
    return b"".join(
        (
            _message(b"P", b"\x00" + encode_name(text) + b"\x00" + _COUNT.pack(0)),
            _message(b"B", bound + _COUNT.pack(1) + _COUNT.pack(1)),
            _message(b"D", b"P\x00"),
            _message(b"E", b"\x00" + _FIELD.pack(max_rows)),
            _message(b"S", b""),
        )
    )


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + _LENGTH.pack(len(body) + 4) + body


def answer_reader(*, is_extended: bool = False) -> MessageReader:
    """A reader for what a backend answers to one query with rows.

    Args:
        is_extended: whether it was asked by `encode_question`.
    """
    return MessageReader(
        _MAX_EXTENDED_OCTETS if is_extended else _MAX_OCTETS,
        MAX_ANSWER_OCTETS,
        unexpected=lambda kind: BackendMisbehaved(
            f'the backend sent message type "{printable(kind)}" in answer to a query'
        ),
        invalid=lambda _: BackendMisbehaved(
            f"the backend's answer to a query is over {MAX_ANSWER_OCTETS >> 20} MB, or has a message of "
            "invalid length"
        ),
    )


def parse_row_description(body: bytes) -> tuple[Column, ...]:
    """The columns of a RowDescription.

    Args:
        body: of the message.

    Raises:
        BackendMisbehaved: it is malformed.
    """
    columns: list[Column] = []
    position = _COUNT.size
    try:
        (count,) = _COUNT.unpack_from(body)
        for _ in range(count):
            end = body.index(b"\x00", position)
            _, _, type_oid, *_ = _COLUMN.unpack_from(body, end + 1)
            columns.append(Column(decode_name(body[position:end]), type_oid))
            position = end + 1 + _COLUMN.size
    except (struct.error, ValueError):
        position = -1
    if position != len(body):
        raise BackendMisbehaved("the backend sent a malformed RowDescription")
    return tuple(columns)


def parse_fields(body: bytes, columns: int) -> tuple[bytes | None, ...]:
    """The fields of a DataRow as they came; None for NULL.

    Args:
        body: of the message.
        columns: how many there are to be.

    Raises:
        BackendMisbehaved: it has others, or is malformed.
    """
    fields: list[bytes | None] = []
    position = _COUNT.size
    try:
        (count,) = _COUNT.unpack_from(body)
        for _ in range(count):
            (length,) = _FIELD.unpack_from(body, position)
            position += _FIELD.size
            if not NULL <= length <= len(body) - position:
                break
            fields.append(None if length == NULL else body[position : position + length])
            position += max(length, 0)
    except struct.error:
        position = -1
    if len(fields) != columns or position != len(body):
        raise BackendMisbehaved("the backend sent a row that is not what was asked for")
    return tuple(fields)


def parse_row(body: bytes, columns: int) -> tuple[str, ...]:
    """The values of a DataRow.

    Args:
        body: of the message.
        columns: how many there are to be, none of them NULL.

    Raises:
        BackendMisbehaved: it has others.
    """
    fields = parse_fields(body, columns)
    values = tuple(decode_name(each) for each in fields if each is not None)
    if len(values) != columns:
        raise BackendMisbehaved("the backend sent a row that is not what was asked for")
    return values
