"""Whether an expression means whole names, or may be found anywhere inside one."""

from __future__ import annotations

import re
from typing import Final

_PIECE: Final = re.compile(r"\(\?:|\\.|\[\^?\]?(?:\[:[a-z]+:\]|\\.|[^\]\\])*\]|.", re.DOTALL)
"""The beginning of a group that captures nothing, an escape, a bracket expression, or one character."""

OPENS: Final = frozenset({"(", "(?:"})
"""The pieces with which a group begins."""

_START: Final = frozenset({"^", r"\A"})
_END: Final = frozenset({"$", r"\Z"})


def is_anchored(expression: str) -> bool:
    """Whether every alternative of an expression is anchored at both ends.

    Args:
        expression: one that `compile_expression` takes, without the slash that introduces it.
    """
    return all(map(_is_whole, alternatives(pieces(expression))))


def pieces(expression: str) -> list[str]:
    """What an expression is made of: escapes, bracket expressions, beginnings of groups, and characters.

    Args:
        expression: one that `compile_expression` takes.
    """
    return _PIECE.findall(expression)


def alternatives(pieces: list[str]) -> list[list[str]]:
    """The pieces between the `|` that stand in no group."""
    found: list[list[str]] = [[]]
    depth = 0
    for piece in pieces:
        depth += (piece in OPENS) - (piece == ")")
        if piece == "|" and depth == 0:
            found.append([])
        else:
            found[-1].append(piece)
    return found


def _is_whole(pieces: list[str]) -> bool:
    if len(pieces) < 2:
        return False
    if pieces[0] in _START and pieces[-1] in _END:
        return True
    if pieces[0] not in OPENS or pieces[-1] != ")":
        return False
    inside = pieces[1:-1]
    depth = 0
    for piece in inside:  # `(a)(b)` begins and ends with a parenthesis, too
        depth += (piece in OPENS) - (piece == ")")
        if depth < 0:
            return False
    return all(map(_is_whole, alternatives(inside)))
