"""Which line of pg_hba.conf decides: `check_hba` of src/backend/libpq/hba.c.

What can be looked up may be missing, and what was looked up may not have been found out. A line of which
cannot be known whether it applies is never passed over: behind it might be one that lets the client in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pgtlsproxy.identity import printable
from pgtlsproxy.policy import addresses
from pgtlsproxy.policy.addresses import AddressKeyword, HostName
from pgtlsproxy.policy.index import HbaRules
from pgtlsproxy.policy.pattern import Pattern
from pgtlsproxy.policy.records import Field, Token
from pgtlsproxy.policy.request import AccessRequest, ClientHost, Fact, Facts, Needs, Unknown
from pgtlsproxy.policy.rule import ConnectionType, HbaRule, Method, Replication, is_samerole

_NEEDS_INTERFACES = frozenset({AddressKeyword.SAMEHOST, AddressKeyword.SAMENET})

_Answer = bool | Needs | Unknown
"""Whether something matches, or what has to be looked up for that, or why nobody can know."""


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


@dataclass(frozen=True, slots=True)
class Undecidable:
    """A line of which cannot be known whether it applies: nobody may be let in behind it.

    Args:
        rule: the line.
        reason: why, for the log; printable.
    """

    rule: HbaRule
    reason: str


def first_match(
    rules: HbaRules, request: AccessRequest, facts: Facts
) -> HbaRule | Undecidable | Needs | None:
    """The line that decides, or None where no line applies.

    There is no fall-through: where the deciding line's authentication fails, no other is tried.
    """
    for rule in rules.candidates(request, facts):
        match _applies(rule, request, facts):
            case True:
                return rule
            case Needs() as needs:
                return needs
            case Unknown(reason):
                return Undecidable(rule, reason)
    return None


def skipped(
    rules: HbaRules, request: AccessRequest, facts: Facts, decided: HbaRule | None
) -> Iterator[Skipped]:
    """The lines before the one that decided, and why each does not apply. For people: no decision needs it.

    Args:
        rules: the lines.
        request: the client.
        facts: what was known of it.
        decided: the line that decided; None where none applies.

    Yields:
        Each line before that one.
    """
    for rule in rules:
        if rule is decided:
            return
        found = mismatch(rule, request, facts)
        if isinstance(found, Mismatch):
            yield Skipped(rule, found)


def mismatch(rule: HbaRule, request: AccessRequest, facts: Facts) -> Mismatch | Needs | Unknown | None:
    """Why a line does not apply to a request, or None where it applies."""
    applies = _applies(rule, request, facts)
    if not isinstance(applies, bool):
        return applies
    if applies:
        return None
    if _type_matches(rule.type, request) is False:
        return Mismatch("type", _type_of(request), rule.type.value)
    if _database_matches(rule.databases, request, facts) is False:
        physical = request.replication is Replication.PHYSICAL
        found = "replication connection" if physical else printable(request.database)
        return Mismatch("database", found, _list(rule.databases))
    if _user_matches(rule.users, request, facts) is False:
        return Mismatch("user", printable(request.user), _list(rule.users))
    return Mismatch("address", _address_of(rule, request, facts), str(rule.address))


def user_matches(token: Token, user: str, roles: frozenset[str] | Unknown | None) -> _Answer:
    """Whether a token of a user column stands for a user.

    Args:
        token: of pg_hba.conf or pg_ident.conf, compiled.
        user: the user of the StartupMessage.
        roles: the roles that it is a member of.
    """
    if (role := token.role) is not None:
        return _is_member(role, roles)
    if token.is_keyword("all"):
        return True
    if isinstance(token, Pattern):
        return _expression_matches(token, user)
    return token.text == user


def _applies(rule: HbaRule, request: AccessRequest, facts: Facts) -> _Answer:
    """Whether a line applies. What would have to be looked up counts only where the rest matches."""
    if not _type_matches(rule.type, request):
        return False
    database = _database_matches(rule.databases, request, facts)
    if database is False:
        return False
    user = _user_matches(rule.users, request, facts)
    if user is False:
        return False
    address = _address_matches(rule, request, facts)
    if address is False:
        return False
    return _first_open((database, user, address))


def _first_open(answers: Iterable[_Answer]) -> _Answer:
    """Of answers none of which decides: what to look up first, else what nobody can know, else True."""
    result: _Answer = True
    for answer in answers:
        if isinstance(answer, Needs):
            return answer
        if isinstance(answer, Unknown) and result is True:
            result = answer
    return result


def _any(answers: Iterable[_Answer]) -> _Answer:
    """Whether one of several tokens matches."""
    open_ones: tuple[_Answer, ...] = ()
    for answer in answers:
        if answer is True:
            return True
        if answer is not False:
            open_ones = (*open_ones, answer)
    return _first_open(open_ones) if open_ones else False


def _type_matches(wanted: ConnectionType, request: AccessRequest) -> bool:
    if wanted is ConnectionType.LOCAL or request.address.is_unix:
        return wanted is ConnectionType.LOCAL and request.address.is_unix
    match wanted:
        case ConnectionType.HOSTSSL:
            return request.tls
        case ConnectionType.HOSTNOSSL:
            return not request.tls
        case _:
            return wanted is not ConnectionType.HOSTGSSENC


def _type_of(request: AccessRequest) -> str:
    if request.address.is_unix:
        return ConnectionType.LOCAL.value
    return (ConnectionType.HOSTSSL if request.tls else ConnectionType.HOSTNOSSL).value


def _database_matches(databases: Field, request: AccessRequest, facts: Facts) -> _Answer:
    if request.replication is Replication.PHYSICAL:
        return any(token.is_keyword("replication") for token in databases)
    return _any(_one_database_matches(token, request, facts) for token in databases)


def _one_database_matches(token: Token, request: AccessRequest, facts: Facts) -> _Answer:
    if token.is_keyword("all"):
        return True
    if token.is_keyword("sameuser"):
        return request.database == request.user
    if is_samerole(token):
        return _is_member(request.database, facts.roles)
    if isinstance(token, Pattern):
        return _expression_matches(token, request.database)
    return token.text == request.database and not token.is_keyword("replication")


def _user_matches(users: Field, request: AccessRequest, facts: Facts) -> _Answer:
    return _any(user_matches(token, request.user, facts.roles) for token in users)


def _is_member(role: str, roles: frozenset[str] | Unknown | None) -> _Answer:
    if isinstance(roles, frozenset):
        return role in roles
    return Needs(Fact.ROLES) if roles is None else roles


def _expression_matches(token: Pattern, name: str) -> _Answer:
    if not token.program.can_judge(name):
        return Unknown(f'"{printable(name)}" is not UTF-8, and the line has a regular expression')
    return token.program.matches(name)


def _address_matches(rule: HbaRule, request: AccessRequest, facts: Facts) -> _Answer:
    if rule.address is None or request.address.ip is None:
        return True  # the connection type has been compared: both are Unix
    if isinstance(rule.address, HostName):
        return _name_matches(rule.address, rule.method, facts)
    if rule.address in _NEEDS_INTERFACES and facts.interfaces is None:
        return Needs(Fact.INTERFACES)
    return addresses.matches(rule.address, request.address.ip, facts.interfaces or ())


def _name_matches(wanted: HostName, method: Method, facts: Facts) -> _Answer:
    """Whether the client's host name is the one that is wanted.

    PostgreSQL takes a name that could not be looked up for another one. So do we where a line lets
    somebody in; one that keeps somebody out must not be got past by a resolver that does not answer.
    """
    client = facts.client_host
    if client is None:
        return Needs(Fact.CLIENT_HOST)
    answer: bool | Unknown
    if isinstance(client, Unknown):
        answer = client
    elif client.name is None or not wanted.matches(client.name):
        answer = False
    else:
        answer = client.is_confirmed
    if isinstance(answer, Unknown) and method is not Method.REJECT:
        return False
    return answer


def _address_of(rule: HbaRule, request: AccessRequest, facts: Facts) -> str:
    """The client's address, or how its name was looked up where a name is wanted."""
    if not isinstance(rule.address, HostName) or facts.client_host is None:
        return str(request.address)
    return f"{request.address} ({lookup_detail(facts.client_host)})"


def lookup_detail(client: ClientHost | Unknown) -> str:
    """What became of the look-up of a client's name, as PostgreSQL says it (`HOSTNAME_LOOKUP_DETAIL`)."""
    if isinstance(client, Unknown):
        return f"could not resolve client IP address to a host name: {client.reason}"
    if client.name is None:
        return "client IP address has no host name"
    resolved = f'client IP address resolved to "{printable(client.name)}"'
    if isinstance(client.is_confirmed, Unknown):
        return f"could not translate client host name: {resolved}, {client.is_confirmed.reason}"
    return f"{resolved}, forward lookup {'matches' if client.is_confirmed else 'does not match'}"


def _list(field: Field) -> str:
    return ",".join(f'"{token}"' if token.quoted else str(token) for token in field)
