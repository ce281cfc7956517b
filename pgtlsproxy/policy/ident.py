r"""pg_ident.conf: which authenticated name may be which user.

The algorithm is that of `check_ident_usermap` (src/backend/libpq/hba.c) as of PostgreSQL 16 to 18.
Names that were authenticated here, certificate names and operating system users, are compared byte by
byte; PostgreSQL folds case for GSSAPI and SSPI only.
"""

from __future__ import annotations

from dataclasses import dataclass

from pgtlsproxy.errors import ConfigError, Mistake
from pgtlsproxy.policy.pattern import Expression, ExpressionError, compile_expression
from pgtlsproxy.policy.records import Line, LineRef, Token, inclusion, tokenize

_BACKREFERENCE = "\\1"


@dataclass(frozen=True, slots=True)
class IdentRule:
    r"""One line of pg_ident.conf.

    Args:
        ref: where it stands.
        map: the name of its map.
        system_user: the authenticated name, or an expression that is searched in it.
        database_user: the user that it may be: a name, `all`, or a name with `\1` in it.
    """

    ref: LineRef
    map: str
    system_user: str | Expression
    database_user: Token


@dataclass(frozen=True, slots=True)
class IdentMatch:
    """The line that lets an authenticated name be a user.

    Args:
        ref: where it stands.
        is_literal: whether it names the user, not `all` or what an expression captured.
    """

    ref: LineRef
    is_literal: bool


@dataclass(frozen=True, slots=True)
class IdentMaps:
    """All lines of a pg_ident.conf, in its order."""

    rules: tuple[IdentRule, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """The names of the maps."""
        return frozenset(rule.map for rule in self.rules)

    def find(self, map_name: str, user: str, authenticated: str) -> IdentMatch | None:
        """The first line of a map that lets somebody be a user, or None.

        Args:
            map_name: the map.
            user: the user of the StartupMessage.
            authenticated: the name that was proved.
        """
        for rule in self.rules:
            if rule.map == map_name and (match := _match(rule, user, authenticated)) is not None:
                return match
        return None


def parse_ident(file: str, content: bytes) -> IdentMaps:
    """Read pg_ident.conf. A file without lines is one without maps.

    Args:
        file: the name that messages show.
        content: the whole file.

    Raises:
        ConfigError: with every mistake, one a line.
    """
    rules: list[IdentRule] = []
    mistakes: list[Mistake] = []
    for line in tokenize(file, content):
        try:
            rules.append(_parse_rule(line))
        except _RuleError as error:
            mistakes.append(line.ref.mistake(str(error)))
    if mistakes:
        raise ConfigError(mistakes)
    return IdentMaps(tuple(rules))


class _RuleError(ValueError):
    """What is wrong with a line."""


def _parse_rule(line: Line) -> IdentRule:
    if (included := inclusion(line)) is not None:
        raise _RuleError(f'reading another file ("{included}") is not in this version; write its lines here')
    if len(line.fields) < 3:
        raise _RuleError("missing entry at end of line: write a map, a system user and a database user")
    columns = line.fields[:3]  # PostgreSQL ignores what stands behind them
    if any(len(field) > 1 for field in columns):
        raise _RuleError("multiple values in ident field: write one line for each")
    (name,), (system_user,), (database_user,) = columns
    _check_database_user(database_user)
    return IdentRule(line.ref, name.text, _system_user(system_user, database_user), database_user)


def _check_database_user(token: Token) -> None:
    if token.text.startswith("+") and not token.quoted:
        raise _RuleError(f"the members of a role ({token}) are not in this version; write one line for each")
    if token.text.startswith("/"):
        raise _RuleError(f'a regular expression for the database user ("{token}") is not in this version')


def _system_user(token: Token, database_user: Token) -> str | Expression:
    if not token.text.startswith("/"):  # quotes do not take the slash's meaning away
        return token.text
    try:
        return compile_expression(token.text[1:], captures=_BACKREFERENCE in database_user.text)
    except ExpressionError as error:
        shown = Token(token.text[1:])
        raise _RuleError(f'invalid regular expression "{shown}": {error}') from error


def _match(rule: IdentRule, user: str, authenticated: str) -> IdentMatch | None:
    wanted = rule.database_user
    if isinstance(rule.system_user, str):
        if rule.system_user != authenticated:
            return None
    elif _BACKREFERENCE in wanted.text:
        captured = rule.system_user.first_group(authenticated)
        if captured is None or wanted.text.replace(_BACKREFERENCE, captured, 1) != user:
            return None
        return IdentMatch(rule.ref, is_literal=False)
    elif not rule.system_user.matches(authenticated):
        return None
    if wanted.is_keyword("all"):
        return IdentMatch(rule.ref, is_literal=False)
    return IdentMatch(rule.ref, is_literal=True) if wanted.text == user else None
