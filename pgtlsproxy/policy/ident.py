r"""pg_ident.conf: which authenticated name may be which user.

The algorithm is that of `check_ident_usermap` (src/backend/libpq/hba.c) as of PostgreSQL 16 to 18.
Names that were authenticated here, certificate names and operating system users, are compared byte by
byte; PostgreSQL folds case for GSSAPI and SSPI only.
"""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pgtlsproxy.policy.inclusion import NoSources, Sources, parse_lines
from pgtlsproxy.policy.line_store import LineStore
from pgtlsproxy.policy.literals import needed, within
from pgtlsproxy.policy.matching import user_matches
from pgtlsproxy.policy.pattern import Pattern, compile_token
from pgtlsproxy.policy.records import Line, LineError, LineRef, Token, may_include, split_fields
from pgtlsproxy.policy.request import Needs, Unknown
from pgtlsproxy.policy.rule import is_literal_user

_BACKREFERENCE = "\\1"
_HASH_BITS = 32
_ANY, _NAME, _WITHIN = "any", "name", "within"
_Key = tuple[str, str | None, str, str]
"""A map; the one user, or None; and of authenticated names any, the one, or those with a text in them."""


@dataclass(frozen=True, slots=True)
class IdentRule:
    r"""One line of pg_ident.conf.

    Args:
        ref: where it stands.
        map: the name of its map.
        system_user: the authenticated name, or an expression that is searched in it.
        database_user: the user that it may be, or what stands for users in pg_hba.conf; a name may have
            `\1` in it.
    """

    ref: LineRef
    map: str
    system_user: Token
    database_user: Token


@dataclass(frozen=True, slots=True)
class IdentMatch:
    """The line that lets an authenticated name be a user.

    Args:
        ref: where it stands.
        is_literal: whether it names the user, not a keyword, a role, an expression or what one captured.
        authenticated: the name that may be the user.
    """

    ref: LineRef
    is_literal: bool
    authenticated: str


class IdentMaps:
    """All lines of a pg_ident.conf, in its order.

    A large file has a line for every name. Such lines are kept as text and found by a hash of their map and
    name, so that a million of them take little more room than in the file.

    Args:
        lines: each with its rule.

    Attributes:
        names: the names of the maps.
        roles: the roles whose members lines are for, and the first line of each.
    """

    def __init__(self, lines: Iterable[tuple[Line, IdentRule]] = ()) -> None:
        self._literals = LineStore()
        self._others: list[tuple[int, IdentRule]] = []
        names: set[str] = set()
        roles: dict[str, LineRef] = {}
        hashes: list[int] = []
        for position, (line, rule) in enumerate(lines):
            names.add(rule.map)
            if rule.database_user.role is not None:
                roles.setdefault(rule.database_user.role, rule.ref)
            if _can_be_kept_as_text(line, rule):
                wanted = _literal_user(rule)
                found = _hash(rule.map, rule.system_user.text, wanted)
                hashes.append(found << _HASH_BITS | len(self._literals))
                self._literals.append(rule.ref, position)
            else:
                self._others.append((position, rule))
        hashes.sort()
        self._hashes = array("Q", hashes)
        self._filed: dict[_Key, list[tuple[int, IdentRule]]] = {}
        for position, rule in self._others:
            for key in _keys(rule):
                self._filed.setdefault(key, []).append((position, rule))
        self._lengths = sorted({len(text) for *_, way, text in self._filed if way == _WITHIN})
        self.names = frozenset(names)
        self.roles: Mapping[str, LineRef] = roles

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IdentMaps) and (self._literals, self._others) == (
            other._literals,
            other._others,
        )

    def __hash__(self) -> int:
        return hash(self.names)

    def __repr__(self) -> str:
        return f"IdentMaps(names={sorted(self.names)})"

    def __iter__(self) -> Iterator[IdentRule]:
        """The lines in their order."""
        kept = (self._kept(number) for number in range(len(self._literals)))
        return (rule for _, rule in heapq.merge(kept, self._others, key=_position))

    @property
    def with_expressions(self) -> Iterator[IdentRule]:
        """The lines that have one, in their order."""
        return (
            rule
            for _, rule in self._others
            if isinstance(rule.system_user, Pattern) or isinstance(rule.database_user, Pattern)
        )

    def find(
        self, map_name: str, user: str, authenticated: str, roles: frozenset[str] | Unknown | None = None
    ) -> IdentMatch | Needs | Unknown | None:
        """The first line of a map that lets somebody be a user, or None.

        Args:
            map_name: the map.
            user: the user of the StartupMessage.
            authenticated: the name that was proved.
            roles: the roles that the user is a member of; None where nobody looked.

        Returns:
            Also what has to be looked up first, or why nobody can know.
        """
        return self.find_any(map_name, user, (authenticated,), roles)

    def find_any(
        self,
        map_name: str,
        user: str,
        authenticated: Sequence[str],
        roles: frozenset[str] | Unknown | None = None,
    ) -> IdentMatch | Needs | Unknown | None:
        """The same for somebody with several names: the first line that lets one of them be the user.

        Of several names that a line lets be the user it is the first.
        """
        for rule in self.candidates(map_name, user, authenticated):
            for name in authenticated:
                match = _match(rule, map_name, user, name, roles)
                if match is not None:
                    return match
        return None

    def candidates(self, map_name: str, user: str, authenticated: Sequence[str]) -> Iterator[IdentRule]:
        """The lines of a map that may let somebody be a user, in their order; none is missing that does."""
        names = tuple(dict.fromkeys(authenticated))
        literals = (self._kept_as_text(map_name, name, wanted) for name in names for wanted in (user, None))
        keys = dict.fromkeys(self._keys_of(map_name, user, names))
        others = (self._filed[key] for key in keys if key in self._filed)
        last = None
        for position, rule in heapq.merge(*literals, *others, key=_position):
            if position != last:
                yield rule
            last = position

    def _keys_of(self, map_name: str, user: str, names: Iterable[str]) -> Iterator[_Key]:
        """Under what lines may be filed."""
        for wanted in (user, None):
            yield map_name, wanted, _ANY, ""
        for name in names:
            for wanted in (user, None):
                yield map_name, wanted, _NAME, name
                for text in within(name, self._lengths):
                    yield map_name, wanted, _WITHIN, text

    def _kept_as_text(
        self, map_name: str, authenticated: str, user: str | None
    ) -> Iterator[tuple[int, IdentRule]]:
        """The lines for a name and a user, for None those for several users, and a few of the same hash."""
        wanted = _hash(map_name, authenticated, user)
        for index in range(bisect_left(self._hashes, wanted << _HASH_BITS), len(self._hashes)):
            found, number = divmod(self._hashes[index], 1 << _HASH_BITS)
            if found != wanted:
                return
            yield self._kept(number)

    def _kept(self, number: int) -> tuple[int, IdentRule]:
        ref, position = self._literals[number]
        return position, parse_rule(Line(ref, split_fields(ref.text)))


def parse_ident(file: str, content: bytes, sources: Sources | None = None) -> IdentMaps:
    """Read pg_ident.conf. A file without lines is one without maps.

    Args:
        file: the name that messages show; relative inclusions start in its folder.
        content: the whole file.
        sources: what the files hold that it includes; None where it may include none.

    Raises:
        ConfigError: with every mistake, one a line.
    """
    return IdentMaps(
        parse_lines(file, content, sources or NoSources(), lambda line: (line, parse_rule(line)))
    )


def _hash(map_name: str, system_user: str, user: str | None) -> int:
    return hash((map_name, system_user, user)) & ((1 << _HASH_BITS) - 1)


def _literal_user(rule: IdentRule) -> str | None:
    """The one user that a line is for; None where it is for several, or for whom its expression captures."""
    wanted = rule.database_user
    captures = isinstance(rule.system_user, Pattern) and _BACKREFERENCE in wanted.text
    return wanted.text if is_literal_user(wanted) and not captures else None


def _keys(rule: IdentRule) -> Iterator[_Key]:
    """Under what a line is filed that is not kept as text."""
    wanted = _literal_user(rule)
    if not isinstance(rule.system_user, Pattern):
        yield rule.map, wanted, _NAME, rule.system_user.text
    elif texts := needed(rule.system_user.program.text):
        for text in texts:
            yield rule.map, wanted, _WITHIN, text
    else:
        yield rule.map, wanted, _ANY, ""


def _position(entry: tuple[int, IdentRule]) -> int:
    return entry[0]


def _can_be_kept_as_text(line: Line, rule: IdentRule) -> bool:
    """Whether nothing was compiled, and the line's own text says it all."""
    if isinstance(rule.system_user, Pattern) or isinstance(rule.database_user, Pattern):
        return False
    return not may_include(line.ref.text)


def parse_rule(line: Line) -> IdentRule:
    """What one line says.

    Raises:
        LineError: it is none.
    """
    if len(line.fields) < 3:
        raise LineError("missing entry at end of line: write a map, a system user and a database user")
    columns = line.fields[:3]  # PostgreSQL ignores what stands behind them
    if any(len(field) > 1 for field in columns):
        raise LineError("multiple values in ident field: write one line for each")
    (name,), (system_user,), (database_user,) = columns
    captures = _BACKREFERENCE in database_user.text and is_literal_user(database_user)
    system_user = compile_token(system_user, captures=captures)
    return IdentRule(line.ref, name.text, system_user, compile_token(database_user))


def _match(
    rule: IdentRule, map_name: str, user: str, authenticated: str, roles: frozenset[str] | Unknown | None
) -> IdentMatch | Needs | Unknown | None:
    if rule.map != map_name:
        return None
    wanted = rule.database_user
    is_literal = is_literal_user(wanted)
    if not isinstance(rule.system_user, Pattern):
        if rule.system_user.text != authenticated:
            return None
    elif is_literal and _BACKREFERENCE in wanted.text:
        captured = rule.system_user.program.first_group(authenticated)
        if captured is None or wanted.text.replace(_BACKREFERENCE, captured, 1) != user:
            return None
        return IdentMatch(rule.ref, is_literal=False, authenticated=authenticated)
    elif not rule.system_user.program.matches(authenticated):
        return None
    match user_matches(wanted, user, roles):
        case True:
            return IdentMatch(rule.ref, is_literal=is_literal, authenticated=authenticated)
        case False:
            return None
        case unsure:
            return unsure
