"""pg_hba.conf: from its lines to its rules.

The grammar and the texts of its mistakes are those of `parse_hba_line` (src/backend/libpq/hba.c) in
PostgreSQL 17.
"""

from __future__ import annotations

from collections.abc import Sequence

from pgtlsproxy.errors import ConfigError, Mistake
from pgtlsproxy.identity import printable
from pgtlsproxy.policy import addresses
from pgtlsproxy.policy.addresses import Address, HostName
from pgtlsproxy.policy.inclusion import NoSources, Sources, parse_lines
from pgtlsproxy.policy.index import HbaRules
from pgtlsproxy.policy.options import parse_method, parse_options
from pgtlsproxy.policy.pattern import compile_token
from pgtlsproxy.policy.records import Field, Line, LineError, Token
from pgtlsproxy.policy.rule import ClientCert, ClientName, ConnectionType, HbaRule, Method, Replication

__all__ = [
    "ClientCert",
    "ClientName",
    "ConnectionType",
    "HbaRule",
    "HbaRules",
    "Method",
    "Replication",
    "parse_hba",
    "parse_rule",
    "read_hba",
]


def parse_hba(file: str, content: bytes, sources: Sources | None = None) -> HbaRules:
    """Read pg_hba.conf.

    Args:
        file: the name that messages show; relative inclusions start in its folder.
        content: the whole file.
        sources: what the files hold that it includes; None where it may include none.

    Raises:
        ConfigError: with every mistake, one a line.
    """
    rules, mistakes = read_hba(file, content, sources or NoSources())
    if mistakes:
        raise ConfigError(mistakes)
    return rules


def read_hba(file: str, content: bytes, sources: Sources) -> tuple[HbaRules, Sequence[Mistake]]:
    """Read as much of pg_hba.conf as can be used; with a mistake in it the rest is there to be judged, too.

    Args:
        file: the name that messages show; relative inclusions start in its folder.
        content: the whole file.
        sources: what the files hold that it includes.

    Returns:
        The lines that are some, and every mistake in the others, one a line.
    """
    rules: list[HbaRule] = []
    mistakes: Sequence[Mistake] = ()
    try:
        for rule in parse_lines(file, content, sources, parse_rule):
            rules.append(rule)  # noqa: PERF402 - what came before the error counts
    except ConfigError as error:
        mistakes = error.mistakes
    if not rules and not mistakes:
        what = "the file contains no entries: nobody could connect; add at least one line"
        mistakes = (Mistake(printable(file), what),)
    return HbaRules(tuple(rules)), mistakes


class _Columns:
    """Takes the fields of a line from left to right."""

    def __init__(self, line: Line) -> None:
        self._fields = list(line.fields)

    def field(self, missing: str) -> Field:
        if not self._fields:
            raise LineError(f"end-of-line before {missing}")
        return self._fields.pop(0)

    def token(self, missing: str, multiple: str) -> Token:
        field = self.field(missing)
        if len(field) > 1:
            raise LineError(f"multiple values specified for {multiple}: write exactly one")
        return field[0]

    def rest(self) -> Field:
        return tuple(token for field in self._fields for token in field)


def parse_rule(line: Line) -> HbaRule:
    """What one line says.

    Raises:
        LineError: it is none.
    """
    columns = _Columns(line)
    connection_type = _connection_type(columns.token("connection type", "connection type"))
    databases = tuple(map(compile_token, columns.field("database specification")))
    users = tuple(map(compile_token, columns.field("role specification")))
    address = None if connection_type is ConnectionType.LOCAL else _address(columns)
    method = parse_method(columns.token("authentication method", "authentication type"), connection_type)
    options = parse_options(columns.rest(), connection_type, method)
    return HbaRule(
        line.ref,
        connection_type,
        databases,
        users,
        address,
        method,
        options.clientcert,
        options.clientname,
        options.map,
        options.issuers,
        options.ignored,
    )


def _connection_type(token: Token) -> ConnectionType:
    try:
        return ConnectionType(token.text)
    except ValueError:
        types = ", ".join(ConnectionType)
        raise LineError(f'invalid connection type "{token}": write one of {types}') from None


def _address(columns: _Columns) -> Address:
    token = columns.token("IP address specification", "host address")
    if (word := addresses.keyword(token)) is not None:
        return word
    if "/" in token.text:
        return addresses.parse_cidr(token)
    address = addresses.parse_address(token)
    if isinstance(address, HostName):
        return address
    return addresses.parse_masked(address, columns.token("netmask specification", "netmask"))
