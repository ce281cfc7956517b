"""The lexer that pg_hba.conf and pg_ident.conf share.

It splits a file as PostgreSQL's `tokenize_auth_file`, `next_field_expand` and `next_token`
(src/backend/libpq/hba.c) do: a logical line is a sequence of fields, a field a comma list of
tokens. A lexer that split a line differently would let in other people than PostgreSQL does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pgtlsproxy.errors import ConfigError, Mistake
from pgtlsproxy.identity import decode_name, printable

_BLANK = " \t\r"
_INCLUDE_DIRECTIVES = frozenset({"include", "include_if_exists", "include_dir"})


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

    def __str__(self) -> str:
        return printable(self.text)


Field = tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class LineRef:
    """Where a rule stands, for logs and for people.

    Args:
        file: the file's name, as the configuration has it.
        number: its first physical line, counted from 1.
        text: the raw line, continuations joined.
    """

    file: str
    number: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.number}"

    def mistake(self, what: str) -> Mistake:
        """A mistake in this line."""
        return Mistake(str(self), what)


@dataclass(frozen=True, slots=True)
class Line:
    """One logical line that has at least one field."""

    ref: LineRef
    fields: tuple[Field, ...]


def tokenize(file: str, content: bytes) -> tuple[Line, ...]:
    """Split a file into its lines, without comments and empty lines.

    Files that a line asks for are not read: see `inclusion`.

    Args:
        file: the name that messages show.
        content: the whole file.

    Raises:
        ConfigError: the file contains a NUL byte, at which PostgreSQL would stop reading the line.
    """
    lines: list[Line] = []
    mistakes: list[Mistake] = []
    for number, text in _logical_lines(decode_name(content)):
        ref = LineRef(file, number, text)
        if "\0" in text:
            mistakes.append(ref.mistake("the line contains a NUL byte; is this a text file?"))
        elif fields := tuple(_fields(text)):
            lines.append(Line(ref, fields))
    if mistakes:
        raise ConfigError(mistakes)
    return tuple(lines)


def inclusion(line: Line) -> str | None:
    """The part of a line that asks for another file, or None.

    That is a whole-line `include`, `include_if_exists` or `include_dir` directive, or an
    unquoted `@file` in a list.
    """
    if len(line.fields) == 2 and line.fields[0][0].text in _INCLUDE_DIRECTIVES:
        return str(line.fields[0][0])
    for field in line.fields:
        for token in field:
            if not token.quoted and len(token.text) > 1 and token.text.startswith("@"):
                return str(token)
    return None


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Physical lines joined at a closing backslash, with the number of the first."""
    pieces: list[str] = []
    first = 1
    for number, physical in enumerate(text.split("\n"), start=1):
        piece = physical.rstrip("\r")
        if piece.endswith("\\"):
            pieces.append(piece[:-1])
            continue
        yield first, "".join([*pieces, piece])
        pieces.clear()
        first = number + 1
    if pieces:
        yield first, "".join(pieces)


def _fields(text: str) -> Iterator[Field]:
    position = 0
    while position < len(text):
        field: list[Token] = []
        goes_on = True
        while goes_on:
            token, position, goes_on = _next_token(text, position)
            if token is None:
                break
            field.append(token)
        if field:
            yield tuple(field)


def _next_token(text: str, position: int) -> tuple[Token | None, int, bool]:
    """The token at a position, the position behind it, and whether a comma ended it.

    None where only blanks, commas or a comment are left.
    """
    while position < len(text) and (text[position] in _BLANK or text[position] == ","):
        position += 1
    value: list[str] = []
    in_quote = was_quote = saw_quote = initial_quote = comma = False
    while position < len(text):
        character = text[position]
        if not in_quote:
            if character in _BLANK:
                break
            if character == "#":
                position = len(text)
                break
            if character == ",":
                comma = True
                break
        if character != '"' or was_quote:
            value.append(character)
        was_quote = in_quote and character == '"' and not was_quote
        if character == '"':
            in_quote = not in_quote
            saw_quote = True
            initial_quote = initial_quote or not value
        position += 1
    if not saw_quote and not value:
        return None, position, False
    return Token("".join(value), initial_quote), position, comma
