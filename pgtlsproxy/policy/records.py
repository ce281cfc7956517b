"""The lexer that pg_hba.conf, pg_ident.conf and roles files share.

It splits text as PostgreSQL's `tokenize_auth_file`, `next_field_expand` and `next_token`
(src/backend/libpq/hba.c) do: a logical line is a sequence of fields, a field a comma list of
tokens. A lexer that split a line differently would let in other people than PostgreSQL does.
What a line includes from other files is `inclusion`'s business.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pgtlsproxy.errors import Mistake
from pgtlsproxy.identity import printable

_TOKEN = re.compile(r'[ \t\r,]*((?:[^ \t\r,"#]+|"(?:[^"]+|"")*(?:"|\Z))+)(,?)')
"""A token and the comma behind it: unquoted and quoted pieces without anything between them. A quote that is
never closed goes to the end of the line."""
_QUOTED_PIECE = re.compile(r'"((?:[^"]+|"")*)(?:"|\Z)')
_INCLUSION = re.compile(r"(?:^|[ \t\r,])@")
_PLAIN_FIELD = re.compile(r"[^ \t\r]+")


@dataclass(frozen=True, slots=True)
class Token:
    """One value of a field, its quotes removed.

    Args:
        text: the value.
        quoted: whether it began with a quote, which takes the meaning of keywords away.
    """

    text: str
    quoted: bool = False

    def is_keyword(self, word: str) -> bool:
        """Whether this is the keyword `word`: a quoted one is a name that looks like it."""
        return not self.quoted and self.text == word

    @property
    def role(self) -> str | None:
        """The role of an unquoted `+role`, which stands for its members; None for anything else."""
        return self.text[1:] if self.text.startswith("+") and not self.quoted else None

    @property
    def expression(self) -> str | None:
        """The expression behind a leading slash, whose meaning quotes do not take away; else None."""
        return self.text[1:] if self.text.startswith("/") else None

    def __str__(self) -> str:
        return printable(self.text)


Field = tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class LineRef:
    """Where a rule stands, for logs and for people.

    Args:
        file: the file's name, as the configuration or the including file has it.
        number: its first physical line, counted from 1.
        text: the raw line, continuations joined.
    """

    file: str
    number: int
    text: str

    def __str__(self) -> str:
        return f"{printable(self.file)}:{self.number}"

    def mistake(self, what: str) -> Mistake:
        """A mistake in this line."""
        return Mistake(str(self), what)


class LineError(ValueError):
    """What is wrong with a line, without saying where it is."""


@dataclass(frozen=True, slots=True)
class Line:
    """One logical line that has at least one field."""

    ref: LineRef
    fields: tuple[Field, ...]


def logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Physical lines joined at a closing backslash, with the number of the first."""
    pieces: list[str] = []
    first = number = 1
    start, length = 0, len(text)
    while start < length:
        end = text.find("\n", start)
        end = length if end < 0 else end
        piece = text[start:end].rstrip("\r")
        start, number = end + 1, number + 1
        if piece.endswith("\\"):
            pieces.append(piece[:-1])
            continue
        yield first, "".join([*pieces, piece]).rstrip("\r") if pieces else piece
        pieces.clear()
        first = number
    if pieces:
        yield first, "".join(pieces)


def may_include(text: str) -> bool:
    """Whether a logical line can have an `@file` in it; cheap, and true for some that have none."""
    return "@" in text and _INCLUSION.search(text) is not None


def split_fields(text: str) -> tuple[Field, ...]:
    """The fields of a logical line, comments left out."""
    if '"' not in text and "#" not in text and "," not in text:  # nearly all lines of a large file
        return tuple((Token(word),) for word in _PLAIN_FIELD.findall(text))
    fields: list[Field] = []
    field: list[Token] = []
    position = 0
    while (match := _TOKEN.match(text, position)) is not None:
        raw, comma = match.groups()
        field.append(_token(raw))
        position = match.end()
        if not comma:
            fields.append(tuple(field))
            field.clear()
    if field:
        fields.append(tuple(field))
    return tuple(fields)


def _token(raw: str) -> Token:
    if '"' not in raw:
        return Token(raw)
    if raw.startswith('"') and raw.find('"', 1) == len(raw) - 1:
        return Token(raw[1:-1], quoted=True)
    value = _QUOTED_PIECE.sub(lambda match: match.group(1).replace('""', '"'), raw)
    return Token(value, quoted=raw.startswith('"'))
