"""SASLprep of a password, with PostgreSQL's exceptions (pg_saslprep, src/common/saslprep.c).

RFC 4013 prepares a password so that two ways of typing it are one. PostgreSQL departs from it:

* ASCII passes as it is, control characters included.
* What cannot be prepared is no error: the password's own bytes are used. That holds for bytes that are
  not UTF-8, for prohibited and unassigned code points, for a broken rule of direction, and for a
  password of which nothing would be left.
* What is prohibited is looked for before normalisation, not behind it.

The tables are those of RFC 3454, made from Unicode 3.2. Normalisation is done with whatever version of
Unicode is at hand, here as in PostgreSQL, and the two agree: only characters that Unicode 3.2 knew get that
far, and since Unicode 4.1 the normal form of a character that was once assigned never changes.
"""

from __future__ import annotations

import stringprep
import unicodedata
from itertools import groupby


def saslprep(password: bytes) -> bytes:
    """The bytes from which SCRAM derives its keys.

    Returns:
        The prepared password in UTF-8; the same bytes where it cannot be prepared.
    """
    if password.isascii():
        return password
    try:
        text = password.decode("utf-8")
    except UnicodeDecodeError:
        return password
    mapped = "".join(map(_mapped, text))
    if not mapped or any(map(_is_prohibited, mapped)) or not _keeps_direction(mapped):
        return password
    return _normalized(mapped).encode("utf-8")


def _normalized(text: str) -> str:
    """NFKC, in a time that grows with the length alone, whatever the text is.

    Python puts a row of combining marks into canonical order by insertion, while no other thread runs: a
    password of 64 kB, which anybody can send, took it a second. Here they are in order before it begins.
    """
    decomposed = "".join(unicodedata.normalize("NFKD", character) for character in text)
    ordered = (
        "".join(sorted(row, key=unicodedata.combining) if is_marks else row)
        for is_marks, row in groupby(decomposed, lambda each: unicodedata.combining(each) != 0)
    )
    return unicodedata.normalize("NFC", "".join(ordered))


def _mapped(character: str) -> str:
    # ZERO WIDTH SPACE stands in both tables; PostgreSQL makes it a space.
    if stringprep.in_table_c12(character):
        return " "
    return "" if stringprep.in_table_b1(character) else character


def _is_prohibited(character: str) -> bool:
    """Whether RFC 4013, sections 2.3 and 2.5, prohibits it.

    Two of its tables cannot be met here: C.1.2 has become spaces, and the surrogates of C.5 are no UTF-8.
    """
    return (
        stringprep.in_table_c21_c22(character)
        or stringprep.in_table_c3(character)
        or stringprep.in_table_c4(character)
        or stringprep.in_table_c6(character)
        or stringprep.in_table_c7(character)
        or stringprep.in_table_c8(character)
        or stringprep.in_table_c9(character)
        or stringprep.in_table_a1(character)
    )


def _keeps_direction(text: str) -> bool:
    """Whether text with a right-to-left letter begins and ends with one and has none of the others.

    RFC 3454, section 6.
    """
    if not any(map(stringprep.in_table_d1, text)):
        return True
    return (
        stringprep.in_table_d1(text[0])
        and stringprep.in_table_d1(text[-1])
        and not any(map(stringprep.in_table_d2, text))
    )
