"""What text an expression cannot do without, so that of many expressions few have to be tried on a name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from pgtlsproxy.policy.anchoring import OPENS, alternatives, pieces

MAX_TEXTS: Final = 64
"""Texts of one expression, which has one for each of its alternatives."""

_MAX_DEPTH: Final = 8
"""How deep groups are looked into."""

_NO_LITERALS: Final = frozenset("^$.|()*+?[")
_DIGITS: Final = frozenset("0123456789")

_NONE: Final = frozenset[str]()


def needed(expression: str) -> frozenset[str]:
    """Texts of which one stands in every name in which an expression is found.

    Args:
        expression: one that `compile_expression` takes.

    Returns:
        The texts, in ASCII; none where it is not plain to see that there are some.
    """
    return _of_alternatives(pieces(expression), 0)


def within(name: str, lengths: Iterable[int]) -> Iterator[str]:
    """Every part of a name that has one of some lengths."""
    for length in lengths:
        for start in range(len(name) - length + 1):
            yield name[start : start + length]


def _of_alternatives(found: list[str], depth: int) -> frozenset[str]:
    """The texts of all alternatives; none where one has none."""
    every = [_of_sequence(sequence, depth) for sequence in alternatives(found)]
    texts = _NONE.union(*every) if all(every) else _NONE
    return texts if len(texts) <= MAX_TEXTS else _NONE


def _of_sequence(sequence: list[str], depth: int) -> frozenset[str]:
    """Of the texts that a sequence cannot do without the longest."""
    best, run = _NONE, ""
    for what, is_needed, is_once in _atoms(sequence):
        if isinstance(what, str):
            run += what * is_needed
            if is_once:
                continue
        best, run = _longer(best, frozenset({run} - {""})), ""
        if not isinstance(what, str) and is_needed and depth < _MAX_DEPTH:
            best = _longer(best, _of_alternatives(what, depth + 1))
    return _longer(best, frozenset({run} - {""}))


def _longer(one: frozenset[str], other: frozenset[str]) -> frozenset[str]:
    """The texts of which the shortest is longer."""
    return max(one, other, key=lambda texts: min(map(len, texts), default=0))


def _atoms(sequence: list[str]) -> Iterator[tuple[str | list[str], bool, bool]]:
    """What stands in a sequence: a literal, or what is in a group, or nothing for anything else.

    Yields:
        It, whether it has to be there, and whether exactly once.
    """
    position = 0
    while position < len(sequence):
        piece, start = sequence[position], position + 1
        position = _behind_group(sequence, position) if piece in OPENS else start
        what = sequence[start : position - 1] if piece in OPENS else _literal(piece) or []
        quantifier, position = _quantifier(sequence, position)
        yield what, quantifier not in {"*", "?", "0"}, not quantifier


def _behind_group(sequence: list[str], start: int) -> int:
    depth = 0
    for position in range(start, len(sequence)):
        depth += (sequence[position] in OPENS) - (sequence[position] == ")")
        if depth == 0:
            return position + 1
    return len(sequence)


def _literal(piece: str) -> str:
    """The character that a piece stands for, or nothing. One beyond ASCII may be found in a part of one."""
    character = piece[-1]
    is_escaped = len(piece) == 2 and piece[0] == "\\" and not character.isalnum()
    is_plain = len(piece) == 1 and piece not in _NO_LITERALS
    return character if character.isascii() and (is_escaped or is_plain) else ""


def _quantifier(sequence: list[str], position: int) -> tuple[str, int]:
    """The quantifier that begins here, of `{m,n}` its m, or nothing; and the position behind it."""
    match sequence[position : position + 2]:
        case [("*" | "+" | "?") as sign, *_]:
            quantifier, position = str(sign), position + 1
        case ["{", digit] if digit in _DIGITS:
            end = sequence.index("}", position)
            quantifier = str(int("".join(sequence[position + 1 : end]).partition(",")[0]))
            position = end + 1
        case _:
            return "", position
    is_lazy = sequence[position : position + 1] == ["?"]
    return quantifier, position + is_lazy
