"""The rules of a file as PostgreSQL's views show them: pg_hba_file_rules and pg_ident_file_mappings.

Columns and what stands in them are those of PostgreSQL 17 (`fill_hba_view` and `fill_ident_view`,
src/backend/utils/adt/hbafuncs.c): a line with a mistake has its place and the error, and no number. Bits of
the host in a network are shown as zero. All text is printable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import TypeVar

from pgtlsproxy.errors import Mistake
from pgtlsproxy.identity import printable
from pgtlsproxy.policy import hba, ident
from pgtlsproxy.policy.inclusion import Sources, expand
from pgtlsproxy.policy.records import Field, Line, LineError, LineRef
from pgtlsproxy.policy.rule import ClientCert, ConnectionType, HbaRule

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class HbaRow:
    """A row of pg_hba_file_rules; what the view has as NULL is None."""

    rule_number: int | None = None
    file_name: str
    line_number: int | None
    type: str | None = None
    database: tuple[str, ...] | None = None
    user_name: tuple[str, ...] | None = None
    address: str | None = None
    netmask: str | None = None
    auth_method: str | None = None
    options: tuple[str, ...] | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentRow:
    """A row of pg_ident_file_mappings."""

    map_number: int | None = None
    file_name: str
    line_number: int | None
    map_name: str | None = None
    sys_name: str | None = None
    pg_username: str | None = None
    error: str | None = None


def hba_rows(file: str, content: bytes, sources: Sources, *, tls: bool) -> Iterator[HbaRow]:
    """The rows of a pg_hba.conf, inclusions in their place.

    Args:
        file: its path.
        content: the whole file.
        sources: what the files hold that it includes.
        tls: whether the listener speaks TLS (`ssl`).
    """
    number = 0
    for ref, rule in _parsed(file, content, sources, hba.parse_rule):
        if isinstance(rule, str):
            yield HbaRow(file_name=ref.file, line_number=ref.number or None, error=rule)
            continue
        error = _cannot_match(rule, tls=tls)
        number += error is None
        address, netmask = _address(rule)
        yield HbaRow(
            rule_number=number if error is None else None,
            file_name=ref.file,
            line_number=ref.number,
            type=rule.type.value,
            database=_texts(rule.databases),
            user_name=_texts(rule.users),
            address=address,
            netmask=netmask,
            auth_method=rule.method.value,
            options=_options(rule),
            error=error,
        )


def ident_rows(file: str, content: bytes, sources: Sources) -> Iterator[IdentRow]:
    """The rows of a pg_ident.conf, inclusions in their place.

    Args:
        file: its path.
        content: the whole file.
        sources: what the files hold that it includes.
    """
    number = 0
    for ref, rule in _parsed(file, content, sources, ident.parse_rule):
        if isinstance(rule, str):
            yield IdentRow(file_name=ref.file, line_number=ref.number or None, error=rule)
            continue
        number += 1
        yield IdentRow(
            map_number=number,
            file_name=ref.file,
            line_number=ref.number,
            map_name=printable(rule.map),
            sys_name=str(rule.system_user),
            pg_username=str(rule.database_user),
        )


def _parsed(
    file: str, content: bytes, sources: Sources, parse: Callable[[Line], _T]
) -> Iterator[tuple[LineRef, _T | str]]:
    """What each line says, or what is wrong with it, and where; number 0 for a file as a whole."""
    for line in expand(file, content, sources):
        if isinstance(line, Mistake):
            name, _, number = line.where.rpartition(":")
            is_line = bool(name) and number.isdecimal()
            yield LineRef(name if is_line else line.where, int(number) if is_line else 0, ""), line.what
            continue
        ref = LineRef(printable(line.ref.file), line.ref.number, "")
        try:
            yield ref, parse(line)
        except LineError as error:
            yield ref, str(error)


def _cannot_match(rule: HbaRule, *, tls: bool) -> str | None:
    if rule.type is ConnectionType.HOSTSSL and not tls:
        return "hostssl record cannot match because SSL is disabled"
    if rule.type is ConnectionType.HOSTGSSENC:
        return "hostgssenc record cannot match because GSSAPI is not supported by this build"
    return None


def _texts(field: Field) -> tuple[str, ...]:
    return tuple(map(str, field))


def _address(rule: HbaRule) -> tuple[str | None, str | None]:
    match rule.address:
        case None:
            return None, None
        case IPv4Network() | IPv6Network() as network:
            return str(network.network_address), str(network.netmask)
        case other:
            return str(other), None


def _options(rule: HbaRule) -> tuple[str, ...] | None:
    """The options that the view shows, which PostgreSQL's `clientname` is not among, and ours."""
    options = []
    if rule.map is not None:
        options.append(f"map={printable(rule.map)}")
    if rule.clientcert is not ClientCert.OFF:
        options.append(f"clientcert={rule.clientcert}")
    if rule.clientname.is_alternative:
        options.append(f"clientname={rule.clientname}")
    options.extend(f"issuer={printable(issuer)}" for issuer in rule.issuers)
    options.extend(rule.ignored)
    return tuple(options) or None
