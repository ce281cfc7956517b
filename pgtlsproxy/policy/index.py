"""Which lines of pg_hba.conf may apply to a request, without looking at every line.

Only the first line that applies counts, so an index must keep their order. Here a set of lines is an
integer with one bit a line, the first line the lowest: each column gives the set of lines that a value may
match, and the lines to look at are the bits that the columns have in common, from the lowest on. What a
value alone does not tell, as with an expression or before a name is looked up, may match: `matching` judges.
"""

from __future__ import annotations

import enum
from array import array
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import overload

from pgtlsproxy.identity import IPAddress
from pgtlsproxy.policy.addresses import HostName, ends, folded
from pgtlsproxy.policy.literals import needed, within
from pgtlsproxy.policy.pattern import Expression, Pattern
from pgtlsproxy.policy.records import Token
from pgtlsproxy.policy.request import AccessRequest, ClientHost, Facts, Unknown
from pgtlsproxy.policy.rule import ConnectionType, HbaRule, Method, Replication, is_samerole

_DENSE = 64
"""From one line in so many on, a set of lines is kept as an integer; a rarer one as a list of its lines, so
that no file makes an index many times its own size."""


class _Kind(enum.Enum):
    """Under what a value is filed that is no name."""

    ALL = enum.auto()
    SAMEUSER = enum.auto()
    SAMEROLE = enum.auto()
    REPLICATION = enum.auto()
    ANY_EXPRESSION = enum.auto()
    UNANCHORED = enum.auto()
    ANY_ROLE = enum.auto()
    KEYWORD = enum.auto()
    ANY_NAME = enum.auto()
    REJECTED_NAME = enum.auto()


@dataclass(frozen=True, slots=True)
class _Within:
    """Under what an expression is filed that is found only in names with this text in them."""

    text: str


class _Column:
    """The lines by what one of their columns says.

    Args:
        filed: for each line in order the keys that it is filed under.
    """

    def __init__(self, filed: Iterable[Iterable[Hashable]]) -> None:
        lines: dict[Hashable, array[int]] = {}
        count = 0
        for count, keys in enumerate(filed, start=1):
            for key in dict.fromkeys(keys):
                lines.setdefault(key, array("I")).append(count - 1)
        self._lines: dict[Hashable, array[int] | int] = {
            key: _as_bits(found) if len(found) * _DENSE >= count else found for key, found in lines.items()
        }
        self._lengths = sorted({len(key.text) for key in lines if isinstance(key, _Within)})

    def lines(self, keys: Iterable[Hashable]) -> int:
        """The lines that are filed under one of the keys, a bit each."""
        bits = 0
        for key in keys:
            found = self._lines.get(key, 0)
            bits |= found if isinstance(found, int) else _as_bits(found)
        return bits

    def names_like(self, name: str) -> Iterator[Hashable]:
        """What a name is filed under, and the expressions that may be found in it."""
        yield name
        if not Expression.can_judge(name):
            yield _Kind.ANY_EXPRESSION
            return
        yield _Kind.UNANCHORED
        for length in range(1, len(name) + 1):
            yield "^", name[:length]
        yield from map(_Within, within(name, self._lengths))


def _as_bits(lines: array[int]) -> int:
    octets = bytearray((lines[-1] >> 3) + 1)
    for line in lines:
        octets[line >> 3] |= 1 << (line & 7)
    return int.from_bytes(octets, "little")


class HbaRules(Sequence[HbaRule]):
    """The lines of a pg_hba.conf, in its order, and their index.

    Args:
        rules: the lines.
    """

    __slots__ = ("_addresses", "_databases", "_prefixes", "_rules", "_types", "_users")

    def __init__(self, rules: tuple[HbaRule, ...]) -> None:
        self._rules = rules
        self._types = _Column((rule.type,) for rule in rules)
        self._databases = _Column(map(_database_keys, rules))
        self._users = _Column(map(_user_keys, rules))
        self._addresses = _Column(map(_address_keys, rules))
        networks = (rule.address for rule in rules if isinstance(rule.address, IPv4Network | IPv6Network))
        self._prefixes = sorted({(network.version, network.prefixlen) for network in networks})

    def __len__(self) -> int:
        return len(self._rules)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HbaRules) and self._rules == other._rules

    def __hash__(self) -> int:
        return hash(self._rules)

    def __repr__(self) -> str:
        return f"HbaRules({self._rules!r})"

    @overload
    def __getitem__(self, index: int) -> HbaRule: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[HbaRule, ...]: ...

    def __getitem__(self, index: int | slice) -> HbaRule | tuple[HbaRule, ...]:
        return self._rules[index]

    def candidates(self, request: AccessRequest, facts: Facts) -> Iterator[HbaRule]:
        """The lines that may apply, in their order; none is missing that does."""
        bits = self._types.lines(_types_of(request))
        bits &= self._databases.lines(_databases_of(request, self._databases))
        bits &= self._users.lines(_users_of(request, facts, self._users))
        if request.address.ip is not None:
            bits &= self._addresses.lines((*self._networks_of(request.address.ip), *_names_of(facts)))
        while bits:
            lowest = bits & -bits
            yield self._rules[lowest.bit_length() - 1]
            bits ^= lowest

    def _networks_of(self, ip: IPAddress) -> Iterator[Hashable]:
        yield _Kind.KEYWORD
        for version, length in self._prefixes:
            if version == ip.version:
                host_bits = ip.max_prefixlen - length
                yield version, length, int(ip) >> host_bits


def _types_of(request: AccessRequest) -> tuple[ConnectionType, ...]:
    if request.address.is_unix:
        return (ConnectionType.LOCAL,)
    encryption = ConnectionType.HOSTSSL if request.tls else ConnectionType.HOSTNOSSL
    return ConnectionType.HOST, ConnectionType.HOSTNOGSSENC, encryption


def _database_keys(rule: HbaRule) -> Iterator[Hashable]:
    for token in rule.databases:
        if token.is_keyword("all"):
            yield _Kind.ALL
        elif token.is_keyword("sameuser"):
            yield _Kind.SAMEUSER
        elif is_samerole(token):
            yield _Kind.SAMEROLE
        elif token.is_keyword("replication"):
            yield _Kind.REPLICATION
        else:
            yield from _name_keys(token)


def _name_keys(token: Token) -> Iterator[Hashable]:
    if not isinstance(token, Pattern):
        yield token.text
        return
    yield _Kind.ANY_EXPRESSION
    prefix, texts = _known_of(token)
    if texts:
        yield from map(_Within, texts)
    else:
        yield ("^", prefix) if prefix else _Kind.UNANCHORED


def _known_of(pattern: Pattern) -> tuple[str, frozenset[str]]:
    """What is known of every name in which an expression is found: its beginning, or texts in it."""
    prefix, texts = pattern.program.prefix, needed(pattern.program.text)
    return (prefix, frozenset()) if len(prefix) >= min(map(len, texts), default=0) else ("", texts)


def name_filed_like(token: Token) -> str:
    """A name by which the index finds every line of the same value.

    Args:
        token: of a database or user column, compiled.
    """
    if not isinstance(token, Pattern):
        return token.text
    prefix, texts = _known_of(token)
    return min(texts, default=prefix)


def _databases_of(request: AccessRequest, column: _Column) -> Iterator[Hashable]:
    if request.replication is Replication.PHYSICAL:
        yield _Kind.REPLICATION
        return
    yield from (_Kind.ALL, _Kind.SAMEUSER, _Kind.SAMEROLE)
    yield from column.names_like(request.database)


def _user_keys(rule: HbaRule) -> Iterator[Hashable]:
    for token in rule.users:
        if token.is_keyword("all"):
            yield _Kind.ALL
        elif token.role is not None:
            yield _Kind.ANY_ROLE
            yield "+", token.role
        else:
            yield from _name_keys(token)


def _users_of(request: AccessRequest, facts: Facts, column: _Column) -> Iterator[Hashable]:
    yield _Kind.ALL
    yield from column.names_like(request.user)
    if isinstance(facts.roles, frozenset):
        yield from (("+", role) for role in facts.roles)
    else:
        yield _Kind.ANY_ROLE


def _address_keys(rule: HbaRule) -> Iterator[Hashable]:
    match rule.address:
        case IPv4Network() | IPv6Network() as network:
            host_bits = network.max_prefixlen - network.prefixlen
            yield network.version, network.prefixlen, int(network.network_address) >> host_bits
        case HostName(text):
            yield _Kind.REJECTED_NAME if rule.method is Method.REJECT else _Kind.ANY_NAME
            yield folded(text)
        case _:
            yield _Kind.KEYWORD


def _names_of(facts: Facts) -> Iterator[Hashable]:
    match facts.client_host:
        case None:
            yield from (_Kind.ANY_NAME, _Kind.REJECTED_NAME)
        case Unknown():
            yield _Kind.REJECTED_NAME
        case ClientHost(name) if name is not None:
            yield from ends(name)
