"""Reading DER: strict, without recursion, never beyond the bytes it was given.

`cryptography` decodes the names of a certificate and refuses some; PostgreSQL compares their raw
bytes. So the few structures that carry names are read here, as encoded (ITU-T X.690).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

INTEGER: Final = 0x02
OBJECT_IDENTIFIER: Final = 0x06
SEQUENCE: Final = 0x30
SET: Final = 0x31

CONSTRUCTED: Final = 0x20
"""The bit of a tag that says that elements are inside."""

MAX_OID_OCTETS: Final = 586
"""OpenSSL's own limit for an object identifier that is shown (CVE-2023-2650)."""


class MalformedDER(ValueError):
    """Bytes that are not the DER that the caller expects."""


@dataclass(frozen=True, slots=True)
class Element:
    """One tag, length and content.

    Args:
        tag: the identifier octet, class and constructed bit included.
        content: the octets of the value.
        encoding: tag, length and content together.
    """

    tag: int
    content: bytes
    encoding: bytes


def elements(data: bytes) -> Iterator[Element]:
    """The elements that lie one behind the other in `data`, until its end.

    Raises:
        MalformedDER: a tag number over 30, a length that is indefinite, not minimal, or longer than
            what is there.
    """
    position = 0
    while position < len(data):
        element = _element_at(data, position)
        yield element
        position += len(element.encoding)


def sole_element(data: bytes, tag: int) -> Element:
    """The one element that `data` is.

    Raises:
        MalformedDER: as `elements`; another tag; bytes behind it; nothing.
    """
    found = list(elements(data))
    if len(found) != 1 or found[0].tag != tag:
        raise MalformedDER(f"expected one element with tag 0x{tag:02x}")
    return found[0]


def object_identifier(element: Element) -> str:
    """An OBJECT IDENTIFIER in dotted decimal.

    Raises:
        MalformedDER: another tag, or longer than MAX_OID_OCTETS, or padded, or cut off.
    """
    octets = element.content
    if element.tag != OBJECT_IDENTIFIER or not 0 < len(octets) <= MAX_OID_OCTETS or octets[-1] & 0x80:
        raise MalformedDER("expected an object identifier")
    arcs: list[int] = []
    arc, starts = 0, True
    for octet in octets:
        if starts and octet == 0x80:
            raise MalformedDER("padded object identifier")
        arc = arc << 7 | octet & 0x7F
        starts = not octet & 0x80
        if starts:
            arcs.append(arc)
            arc = 0
    # X.690 8.19.4: the first two arcs share one number, and the first is 0, 1 or 2.
    root = min(arcs[0] // 40, 2)
    return ".".join(str(number) for number in (root, arcs[0] - 40 * root, *arcs[1:]))


def _element_at(data: bytes, start: int) -> Element:
    if len(data) - start < 2:
        raise MalformedDER("cut off behind a tag")
    tag, length, position = data[start], data[start + 1], start + 2
    if tag & 0x1F == 0x1F:
        raise MalformedDER("tag number over 30")
    if length & 0x80:
        octets = data[position : position + (length & 0x7F)]
        if not octets or len(octets) != length & 0x7F or octets[0] == 0:
            raise MalformedDER("length indefinite, cut off or padded")
        length = int.from_bytes(octets)
        if length < 0x80:
            raise MalformedDER("length in the long form where the short one would do")
        position += len(octets)
    end = position + length
    if end > len(data):
        raise MalformedDER("length beyond the end")
    return Element(tag, data[position:end], data[start:end])
