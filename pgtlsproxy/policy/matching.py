"""Which line of pg_hba.conf decides: `check_hba` of src/backend/libpq/hba.c."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pgtlsproxy.identity import printable
from pgtlsproxy.policy import addresses
from pgtlsproxy.policy.addresses import AddressKeyword
from pgtlsproxy.policy.hba import ConnectionType, HbaRule, Replication
from pgtlsproxy.policy.records import Field, Token
from pgtlsproxy.policy.request import AccessRequest, Fact, Facts, Needs

_NEEDS_INTERFACES = frozenset({AddressKeyword.SAMEHOST, AddressKeyword.SAMENET})


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Why a line does not apply to a request; printable.

    Args:
        field: the first column that does not match: type, database, user or address.
        found: what the request has.
        wanted: what the line has.
    """

    field: str
    found: str
    wanted: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """A line that does not apply to a request."""

    rule: HbaRule
    mismatch: Mismatch


def mismatch(rule: HbaRule, request: AccessRequest, facts: Facts) -> Mismatch | Needs | None:
    """Why a line does not apply to a request, or None where it applies.

    The address comes last, so that nothing is looked up for a line that does not apply anyway.
    """
    if not _type_matches(rule.type, request):
        return Mismatch("type", _type_of(request), rule.type.value)
    if not any(_database_matches(token, request) for token in rule.databases):
        physical = request.replication is Replication.PHYSICAL
        found = "replication connection" if physical else printable(request.database)
        return Mismatch("database", found, _list(rule.databases))
    if not any(_user_matches(token, request.user) for token in rule.users):
        return Mismatch("user", printable(request.user), _list(rule.users))
    return _address_mismatch(rule, request, facts)


def first_match(
    rules: Sequence[HbaRule], request: AccessRequest, facts: Facts
) -> tuple[HbaRule | Needs | None, tuple[Skipped, ...]]:
    """The line that decides, None where no line applies, and the lines before it.

    There is no fall-through: where the deciding line's authentication fails, no other is tried.
    """
    skipped: list[Skipped] = []
    for rule in rules:
        match mismatch(rule, request, facts):
            case None:
                return rule, tuple(skipped)
            case Needs() as needs:
                return needs, tuple(skipped)
            case reason:
                skipped.append(Skipped(rule, reason))
    return None, tuple(skipped)


def _type_matches(wanted: ConnectionType, request: AccessRequest) -> bool:
    match wanted:
        case ConnectionType.LOCAL:
            return request.address.is_unix
        case ConnectionType.HOST:
            return not request.address.is_unix
        case ConnectionType.HOSTSSL:
            return not request.address.is_unix and request.tls
        case ConnectionType.HOSTNOSSL:
            return not request.address.is_unix and not request.tls


def _type_of(request: AccessRequest) -> str:
    if request.address.is_unix:
        return ConnectionType.LOCAL.value
    return (ConnectionType.HOSTSSL if request.tls else ConnectionType.HOSTNOSSL).value


def _database_matches(token: Token, request: AccessRequest) -> bool:
    if request.replication is Replication.PHYSICAL:
        return token.is_keyword("replication")
    if token.is_keyword("all"):
        return True
    if token.is_keyword("sameuser"):
        return request.database == request.user
    return token.text == request.database and not token.is_keyword("replication")


def _user_matches(token: Token, user: str) -> bool:
    return token.is_keyword("all") or token.text == user


def _address_mismatch(rule: HbaRule, request: AccessRequest, facts: Facts) -> Mismatch | Needs | None:
    if rule.address is None or request.address.ip is None:
        return None  # the connection type has been compared: both are Unix
    if rule.address in _NEEDS_INTERFACES and facts.interfaces is None:
        return Needs(Fact.INTERFACES)
    if addresses.matches(rule.address, request.address.ip, facts.interfaces or ()):
        return None
    return Mismatch("address", str(request.address), str(rule.address))


def _list(field: Field) -> str:
    return ",".join(f'"{token}"' if token.quoted else str(token) for token in field)
