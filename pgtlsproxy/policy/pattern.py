r"""Regular expressions of pg_hba.conf and pg_ident.conf: PostgreSQL's dialect, matched by RE2.

PostgreSQL compiles them as advanced regular expressions (src/backend/regex) with C collation, and,
because a login knows no database encoding yet, reads names byte by byte: `.` is one byte. RE2 does
the same in Latin-1 mode, in time linear in the name, whoever wrote the expression.

The two dialects agree on which strings match for the subset translated here; everything else is
refused, so that an expression never means something else than in PostgreSQL. They agree on what a
group captured only under narrower conditions, for PostgreSQL prefers the longest match and RE2 the
first alternative. A line that uses `\1` must therefore be anchored at both ends, with one group that
is neither nested nor quantified, without `|` and lazy quantifiers. Such an expression is a sequence of
single-byte sets, each repeated between m and n times. Take the path that makes the first set as long as
possible, then the second, and so on, and suppose another path were further ahead at some boundary:
where it overtakes, its own stretch of that one set could be entered from the first path, which then was
not the longest after all. So the greedy path is the furthest at every boundary, the longest for the part
before the group and then for the group: both engines capture the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import re2

from pgtlsproxy.identity import decode_name, encode_name
from pgtlsproxy.policy.records import LineError, Token

LONGEST_EXPRESSION = 1024
"""Bytes of one expression."""
_LARGEST_PROGRAM = 1 << 18
"""Bytes RE2 may use for one compiled expression and its caches."""
_LARGEST_BOUND = 255  # DUPMAX in src/include/regex/regguts.h

_CLASSES = {
    b"alnum": b"[:alnum:]",
    b"alpha": b"[:alpha:]",
    b"blank": b"[:blank:]",
    b"cntrl": b"[:cntrl:]\\x80-\\x9f",  # PostgreSQL counts C1 in
    b"digit": b"[:digit:]",
    b"graph": b"[:graph:]",
    b"lower": b"[:lower:]",
    b"print": b"[:print:]",
    b"punct": b"[:punct:]",
    b"space": b"[:space:]",
    b"upper": b"[:upper:]",
    b"xdigit": b"[:xdigit:]",
}
_CLASS_ESCAPES = {b"d": b"[:digit:]", b"s": b"[:space:]", b"w": b"[:word:]"}
_NEGATED_CLASS_ESCAPES = {b"D": b"[:digit:]", b"S": b"[:space:]", b"W": b"[:word:]"}
_LITERAL_PREFIX = re.compile(r"\^([A-Za-z0-9_@-]+)([*+?{]?)")
_ANCHORS = {b"^": b"\\A", b"\\A": b"\\A", b"$": b"\\z", b"\\Z": b"\\z"}


class ExpressionError(ValueError):
    """An expression is invalid, or means something that RE2 cannot be made to mean."""


@dataclass(frozen=True, slots=True)
class Expression:
    """A compiled expression; `compile_expression` makes it."""

    text: str
    _program: Any = field(repr=False, compare=False)

    @property
    def prefix(self) -> str:
        """What every name begins with in which it is found; empty where that is not plain to see."""
        match = None if "|" in self.text else _LITERAL_PREFIX.match(self.text)
        if match is None:
            return ""
        literal, quantifier = match.groups()
        return literal[:-1] if quantifier else literal

    @staticmethod
    def can_judge(name: str) -> bool:
        """Whether a name is UTF-8. What is not is no text, and matches nothing."""
        return name.isascii() or not any("\udc80" <= character <= "\udcff" for character in name)

    def matches(self, name: str) -> bool:
        """Whether it is found somewhere in a name."""
        return self._search(name) is not None

    def first_group(self, name: str) -> str | None:
        """What the first group captured, or None where the expression is not found."""
        match = self._search(name)
        return None if match is None else decode_name(match.group(1))

    def _search(self, name: str) -> Any:
        return self._program.search(encode_name(name)) if self.can_judge(name) else None


@dataclass(frozen=True, slots=True)
class Pattern(Token):
    """A value that is an expression.

    Args:
        program: the compiled expression; `compile_token` makes it.
    """

    program: Expression = field(kw_only=True, compare=False)


def compile_token(token: Token, *, captures: bool = False) -> Token:
    r"""A value as it is matched: compiled where it is an expression.

    Args:
        token: the value.
        captures: whether its line uses `\1`.

    Raises:
        LineError: the expression is invalid or outside the subset; the text says what and why.
    """
    if token.expression is None:
        return token
    try:
        program = compile_expression(token.expression, captures=captures)
    except ExpressionError as error:
        raise LineError(f'invalid regular expression "{Token(token.expression)}": {error}') from error
    return Pattern(token.text, token.quoted, program=program)


def compile_expression(text: str, *, captures: bool) -> Expression:
    r"""Compile an expression of PostgreSQL.

    Args:
        text: the expression, without the slash that introduces it.
        captures: whether the line uses `\1`.

    Raises:
        ExpressionError: it is invalid or outside the subset; the text says what and why.
    """
    raw = encode_name(text)
    if len(raw) > LONGEST_EXPRESSION:
        raise ExpressionError(f"longer than {LONGEST_EXPRESSION} bytes")
    translator = _Translator(raw)
    translated = translator.translate()
    if captures:
        translator.check_captures()
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.dot_nl = True
    options.log_errors = False
    options.max_mem = _LARGEST_PROGRAM
    try:
        return Expression(text, re2.compile(translated, options))
    except re2.error as error:
        raise ExpressionError("too complex") from error


class _Translator:
    """One pass over an expression: checks it, and writes the same for RE2."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._position = 0
        self._open_groups = 0
        self._groups = 0
        self._plain_groups = 0
        self._operand = False  # whether a quantifier may follow
        self._operand_is_group = False
        self._operand_is_ascii = True
        self._anchored_at_start = False
        self._anchored_at_end = False
        self._has_alternatives = False
        self._has_lazy_quantifier = False
        self._has_quantified_group = False

    def translate(self) -> bytes:
        parts: list[bytes] = []
        while self._position < len(self._raw):
            parts.append(self._element())
        if self._open_groups:
            raise ExpressionError("parentheses () not balanced")
        return b"".join(parts)

    def check_captures(self) -> None:
        r"""Refuse what could capture something else in PostgreSQL than in RE2."""
        problem = None
        if not self._groups:
            problem = "has no group in parentheses that \\1 could stand for"
        elif self._groups + self._plain_groups > 1:
            problem = "must have one group in parentheses, it has several"
        elif not (self._anchored_at_start and self._anchored_at_end):
            problem = "must begin with ^ and end with $, or another part of the name could be captured"
        elif self._has_alternatives:
            problem = "must not contain |; write one line for each alternative"
        elif self._has_lazy_quantifier:
            problem = "must not contain a lazy quantifier (*? +? ?? {m,n}?)"
        elif self._has_quantified_group:
            problem = "must not repeat its group"
        if problem is not None:
            raise ExpressionError(f"with \\1 it {problem}")

    def _peek(self, length: int = 1) -> bytes:
        return self._raw[self._position : self._position + length]

    def _take(self, length: int = 1) -> bytes:
        taken = self._peek(length)
        self._position += length
        return taken

    def _element(self) -> bytes:
        at_start = self._position == 0
        if at_start and self._peek(3) == b"***":
            raise ExpressionError("the prefix *** is not in this version")
        if self._is_quantifier():
            return self._quantifier()
        if (anchor := self._anchor()) is not None:
            self._anchored_at_start = self._anchored_at_start or (at_start and anchor == b"\\A")
            self._anchored_at_end = self._position == len(self._raw) and anchor == b"\\z"
            self._operand = False
            return anchor
        match self._take():
            case b"(":
                return self._open_group()
            case b")":
                return self._close_group()
            case b"|":
                self._has_alternatives = True
                self._operand = False
                return b"|"
            case b".":
                return self._atom(b".")
            case b"[":
                return self._atom(self._bracket())
            case b"\\":
                return self._escape()
            case character:
                return self._atom(_literal(character), is_ascii=character.isascii())

    def _atom(self, translated: bytes, *, is_ascii: bool = True, is_group: bool = False) -> bytes:
        self._operand = True
        self._operand_is_ascii = is_ascii
        self._operand_is_group = is_group
        return translated

    def _anchor(self) -> bytes | None:
        for length in (1, 2):
            if (anchor := _ANCHORS.get(self._peek(length))) is not None:
                self._take(length)
                return anchor
        return None

    def _open_group(self) -> bytes:
        self._open_groups += 1
        self._operand = False
        if self._peek(2) == b"?:":
            self._plain_groups += 1
            return b"(" + self._take(2)
        if self._peek() == b"?":
            raise ExpressionError("groups and options that begin with (? are not in this version, but (?:")
        self._groups += 1
        return b"("

    def _close_group(self) -> bytes:
        if not self._open_groups:
            raise ExpressionError("parentheses () not balanced")
        self._open_groups -= 1
        return self._atom(b")", is_group=True)

    def _is_quantifier(self) -> bool:
        following = self._peek(2)
        return following[:1] in {b"*", b"+", b"?"} or (following[:1] == b"{" and following[1:].isdigit())

    def _quantifier(self) -> bytes:
        if not self._operand:
            raise ExpressionError("quantifier operand invalid: nothing before it can be repeated")
        if not self._operand_is_ascii:
            raise ExpressionError(
                "a character outside ASCII cannot be repeated: PostgreSQL repeats its last byte"
            )
        quantifier = self._take()
        if quantifier == b"{":
            quantifier = self._bound()
        if self._peek() == b"?":
            quantifier += self._take()
            self._has_lazy_quantifier = True
        self._operand = False
        self._has_quantified_group = self._has_quantified_group or self._operand_is_group
        return quantifier

    def _bound(self) -> bytes:
        end = self._raw.find(b"}", self._position)
        if end < 0:
            raise ExpressionError("braces {} not balanced")
        bound = self._take(end - self._position)
        self._take()
        least, comma, most = bound.partition(b",")
        if not all(number.isdigit() and len(number) <= len("255") for number in (least, most or least)):
            raise ExpressionError("invalid repetition count(s): write {m}, {m,} or {m,n}")
        low, high = int(least), int(most or least)
        if not low <= high <= _LARGEST_BOUND:
            raise ExpressionError(f"invalid repetition count(s): at most {_LARGEST_BOUND}, the smaller first")
        return b"{%d%b%b}" % (low, comma, b"%d" % high if most else b"")

    def _escape(self) -> bytes:
        character = self._take()
        if character in _CLASS_ESCAPES:
            return self._atom(b"[" + _CLASS_ESCAPES[character] + b"]")
        if character in _NEGATED_CLASS_ESCAPES:
            return self._atom(b"[^" + _NEGATED_CLASS_ESCAPES[character] + b"]")
        return self._atom(_escaped_literal(character))

    def _bracket(self) -> bytes:
        parts = [b"[" + (self._take() if self._peek() == b"^" else b"")]
        is_first = True
        while is_first or self._peek() != b"]":
            parts.append(self._bracket_item(is_first=is_first))
            is_first = False
        self._take()
        return b"".join(parts) + b"]"

    def _bracket_item(self, *, is_first: bool) -> bytes:
        start = self._take()
        if start == b"[" and self._peek() in {b":", b".", b"="}:
            return self._character_class()
        if start == b"-" and not is_first and self._peek() != b"]":
            raise ExpressionError("invalid character range: put a hyphen first or last, or write \\-")
        if start == b"\\" and self._peek() in _CLASS_ESCAPES:
            return _CLASS_ESCAPES[self._take()]
        first = self._bracket_character(start)
        if self._peek() != b"-" or self._peek(2) == b"-]":
            return _literal(first)
        self._take()
        last = self._bracket_character(self._take())
        if last < first:
            raise ExpressionError("invalid character range: it runs backwards")
        return _literal(first) + b"-" + _literal(last)

    def _bracket_character(self, character: bytes) -> bytes:
        if not character:
            raise ExpressionError("brackets [] not balanced")
        if not character.isascii():
            raise ExpressionError(
                "a character outside ASCII cannot stand in brackets: PostgreSQL reads its bytes"
            )
        if character == b"\\":
            character = self._take()
            _escaped_literal(character)
        elif character == b"[":
            raise ExpressionError("write [ in brackets as \\[")
        return character

    def _character_class(self) -> bytes:
        if self._take() != b":":
            raise ExpressionError("[. and [= in brackets are not in this version")
        end = self._raw.find(b":]", self._position)
        translated = _CLASSES.get(self._raw[self._position : end]) if end >= 0 else None
        if translated is None:
            raise ExpressionError("invalid character class")
        self._position = end + 2
        return translated


def _literal(character: bytes) -> bytes:
    return b"\\x%02x" % character[0]


def _escaped_literal(character: bytes) -> bytes:
    if not character:
        raise ExpressionError("invalid escape \\ sequence: nothing behind the backslash")
    if character.isalnum() or not character.isascii():
        shown = character.decode("latin-1").encode("ascii", "backslashreplace").decode()
        raise ExpressionError(f"the escape \\{shown} is not in this version")
    return _literal(character)
