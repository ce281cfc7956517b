"""Lines of pg_hba.conf that never decide about anybody at a listener.

What is said here is certain: a line of which it depends on names, members or expressions whether it ever
decides is taken for one that does.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address
from itertools import islice
from typing import Final

from pgtlsproxy.identity import ClientAddress
from pgtlsproxy.policy.addresses import Address, AddressKeyword, HostName, Network, folded
from pgtlsproxy.policy.index import HbaRules, name_filed_like
from pgtlsproxy.policy.pattern import Pattern
from pgtlsproxy.policy.records import Field, Token
from pgtlsproxy.policy.request import AccessRequest, ClientHost, Facts
from pgtlsproxy.policy.rule import ConnectionType, HbaRule, Method, Replication, is_samerole

MAX_COMPARED: Final = 100
"""With how many earlier lines a line is compared, so that a large file is judged in time."""


_ALL: Final = ("keyword", "all")
_REPLICATION: Final = ("keyword", "replication")


class Way(enum.Enum):
    """How a client comes."""

    UNIX = enum.auto()
    TLS = enum.auto()
    CLEAR = enum.auto()


_WAYS: Final = {
    ConnectionType.LOCAL: frozenset({Way.UNIX}),
    ConnectionType.HOST: frozenset({Way.TLS, Way.CLEAR}),
    ConnectionType.HOSTSSL: frozenset({Way.TLS}),
    ConnectionType.HOSTNOSSL: frozenset({Way.CLEAR}),
    ConnectionType.HOSTGSSENC: frozenset[Way](),
    ConnectionType.HOSTNOGSSENC: frozenset({Way.TLS, Way.CLEAR}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """How clients can come to a listener.

    Args:
        unix: through a Unix socket.
        tls: with TLS.
        versions: the IP versions that it listens on.
        clear_from: the networks from which a session in clear text may start.
    """

    unix: bool
    tls: bool
    versions: frozenset[int]
    clear_from: tuple[Network, ...]


@dataclass(frozen=True, slots=True)
class Idle:
    """A line that never decides.

    Args:
        rule: the line.
        why: for the administrator; None where the loader warns of it.
    """

    rule: HbaRule
    why: str | None


def idle_lines(rules: HbaRules, listener: str, door: Door) -> Iterator[Idle]:
    """The lines that never decide about anybody.

    Args:
        rules: the lines.
        listener: the listener's name.
        door: how clients come to it.
    """
    for rule in rules:
        if not ways(rule, door):
            yield Idle(rule, _why_nobody_comes(rule, listener, door))
        elif (earlier := _shadow(rule, rules, door)) is not None:
            why = (
                f"never decides: {earlier.ref} comes first and applies to every client to which this line "
                "does; put this line before it, or take it out"
            )
            yield Idle(rule, why)


def ways(rule: HbaRule, door: Door) -> frozenset[Way]:
    """How clients can come to whom a line may apply."""
    found = set(_WAYS[rule.type])
    if not door.unix:
        found.discard(Way.UNIX)
    if not (door.tls and _is_listened_on(rule.address, door)):
        found.discard(Way.TLS)
    if not _may_be_in_clear(rule.address, door):
        found.discard(Way.CLEAR)
    return frozenset(found)


def _is_listened_on(address: Address | None, door: Door) -> bool:
    if isinstance(address, IPv4Network | IPv6Network):
        return address.version in door.versions
    return bool(door.versions)


def _may_be_in_clear(address: Address | None, door: Door) -> bool:
    if not isinstance(address, IPv4Network | IPv6Network):
        return bool(door.clear_from)
    return any(
        network.version == address.version and network.overlaps(address) for network in door.clear_from
    )


def _why_nobody_comes(rule: HbaRule, listener: str, door: Door) -> str | None:
    is_without_tls = rule.type is ConnectionType.HOSTSSL and not door.tls and bool(door.versions)
    if rule.type is ConnectionType.HOSTGSSENC or is_without_tls:
        return None
    cannot = f"{rule.type} record cannot match: listener {listener}"
    if rule.type is ConnectionType.LOCAL:
        return f"{cannot} has no Unix socket; list one in listen (unix:/folder), or take the line out"
    if not door.versions:
        return f"{cannot} has Unix sockets only; write local, or take the line out"
    if not _is_listened_on(rule.address, door):
        (version,) = {4, 6} - door.versions
        return f"{cannot} listens on no IPv{version} address; list one in listen, or take the line out"
    return (
        f"{cannot} takes sessions in clear text from this host and from plaintext_from only, and "
        f"{rule.address} has none of these; list the network in plaintext_from, or take the line out"
    )


def _shadow(rule: HbaRule, rules: HbaRules, door: Door) -> HbaRule | None:
    """An earlier line that applies wherever a line does; None where it is not certain that there is one."""
    request, facts = _somebody(rule, door)
    for earlier in islice(rules.candidates(request, facts), MAX_COMPARED):
        if earlier is rule:
            return None
        if _covers(earlier, rule, door):
            return earlier
    return None


def _somebody(rule: HbaRule, door: Door) -> tuple[AccessRequest, Facts]:
    """A client by which the index finds every line that could apply wherever a line does."""
    database, user = rule.databases[0], rule.users[0]
    host = ClientHost(None, is_confirmed=False)
    ip = None
    match rule.address:
        case IPv4Network() | IPv6Network() as network:
            ip = network.network_address
        case HostName(text):
            host = ClientHost(text, is_confirmed=True)
    if ip is None and rule.type is not ConnectionType.LOCAL:
        ip = ip_address("192.0.2.1")
    request = AccessRequest(
        user=name_filed_like(user),
        database=name_filed_like(database),
        replication=Replication.PHYSICAL if database.is_keyword("replication") else Replication.NONE,
        address=ClientAddress(ip, None, is_local=True),
        tls=Way.TLS in ways(rule, door),
    )
    return request, Facts(roles=frozenset({user.role} if user.role is not None else ()), client_host=host)


def _covers(earlier: HbaRule, later: HbaRule, door: Door) -> bool:
    """Whether it is certain that a line applies wherever a later one does."""
    return (
        ways(later, door) <= _WAYS[earlier.type]
        and _field_covers(earlier.databases, later.databases, _database)
        and _field_covers(earlier.users, later.users, _user)
        and _address_covers(earlier, later)
    )


def _field_covers(earlier: Field, later: Field, meaning: Callable[[Token], Hashable]) -> bool:
    meanings = {meaning(token) for token in earlier}
    return all(_token_covers(earlier, meanings, token, meaning(token)) for token in later)


def _token_covers(earlier: Field, meanings: set[Hashable], later: Token, meant: Hashable) -> bool:
    """Whether one value of a later line's column is among those of an earlier one."""
    if meant in meanings or (_ALL in meanings and meant != _REPLICATION):
        return True
    return meant == later.text and any(
        isinstance(token, Pattern) and token.program.matches(later.text) for token in earlier
    )


def _database(token: Token) -> Hashable:
    """What a value of the database column means: a name as it is, anything else as something that is none."""
    for word in ("all", "sameuser", "replication"):
        if token.is_keyword(word):
            return "keyword", word
    if is_samerole(token):
        return "keyword", "samerole"
    return ("expression", token.text) if isinstance(token, Pattern) else token.text


def _user(token: Token) -> Hashable:
    """What a value of the user column means."""
    if token.is_keyword("all"):
        return _ALL
    if token.role is not None:
        return "role", token.role
    return ("expression", token.text) if isinstance(token, Pattern) else token.text


def _address_covers(earlier: HbaRule, later: HbaRule) -> bool:
    match earlier.address, later.address:
        case (None, None) | (AddressKeyword.ALL, _):
            return True
        case (IPv4Network() as network, IPv4Network() as part):
            return part.subnet_of(network)
        case (IPv6Network() as network, IPv6Network() as part):
            return part.subnet_of(network)
        case (AddressKeyword.SAMENET, AddressKeyword.SAMEHOST):
            return True
        case (HostName(name), HostName(other)):
            # A name that cannot be looked up is another one, but for a line that keeps somebody out.
            fails_alike = earlier.method is Method.REJECT or later.method is not Method.REJECT
            return fails_alike and folded(name) == folded(other)
        case (one, other):
            return one is not None and one == other
