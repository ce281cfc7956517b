"""The policy of a listener: from the bytes of its hba, ident and roles files to its rules.

Nothing here knows TLS, so that whoever only asks about a policy need not load it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from pgtlsproxy.config import ANY_DATABASE, Backend, Listener
from pgtlsproxy.errors import ConfigError, Mistake
from pgtlsproxy.policy.access import Login, Rules
from pgtlsproxy.policy.databases import BackendTerms, Databases, Destination
from pgtlsproxy.policy.hba import Method, parse_hba
from pgtlsproxy.policy.ident import IdentMaps, parse_ident
from pgtlsproxy.policy.inclusion import Sources
from pgtlsproxy.policy.roles import parse_roles
from pgtlsproxy.policy.soundness import BackendFacts, ListenerTransports, check_soundness
from pgtlsproxy.proxy.files import SnapshotFiles
from pgtlsproxy.tls.file_access import UnusableFile

_T = TypeVar("_T")


def make_rules(files: SnapshotFiles, name: str, listener: Listener, warn: Callable[[Mistake], None]) -> Rules:
    """The policy of a listener, held against the one rule for every line in it.

    Args:
        files: what was read; its settings can be used.
        name: the listener's name.
        listener: its settings.
        warn: told of what can be used, but deserves a look.

    Raises:
        ConfigError: with every mistake in it.
    """
    assert files.settings is not None  # noqa: S101 - policies are made of a YAML file that can be used
    mistakes: list[Mistake] = []
    hba = ident = roles = None
    try:
        hba = _parse(files, f"listeners.{name}.hba_file", listener.hba_file, parse_hba)
    except ConfigError as error:
        mistakes.extend(error.mistakes)
    try:
        if listener.ident_file is not None:
            ident = _parse(files, f"listeners.{name}.ident_file", listener.ident_file, parse_ident)
    except ConfigError as error:
        mistakes.extend(error.mistakes)
    try:
        if listener.roles_file is not None:
            roles = _parse(files, f"listeners.{name}.roles_file", listener.roles_file, parse_roles)
    except ConfigError as error:
        mistakes.extend(error.mistakes)
    if hba is None or mistakes:
        raise ConfigError(mistakes)
    rules = Rules(
        listener=name,
        hba=hba,
        ident=ident or IdentMaps(),
        roles=roles,
        looks_up_roles=listener.roles_query is not None,
        has_verifiers=listener.has_verifiers,
        plaintext_from=listener.plaintext_from,
        databases=_databases(listener, files.settings.backends),
    )
    transports = ListenerTransports(
        unix=listener.has_unix,
        tcp=listener.has_tcp,
        tls=listener.ssl,
        has_client_ca=listener.ssl_ca_file is not None,
    )
    facts = {
        each: BackendFacts(sslcert=backend.sslcert is not None, unix_socket=backend.has_unix_host)
        for each in listener.backends
        for backend in (files.settings.backends[each],)
    }
    found = check_soundness(rules, transports, facts)
    for warning in found.warnings:
        warn(warning)
    if found.mistakes:
        raise ConfigError(found.mistakes)
    if (closed := _closed_socket(files.path, name, listener, rules)) is not None:
        warn(closed)
    return rules


def _databases(listener: Listener, backends: Mapping[str, Backend]) -> Databases:
    """Where the databases of a listener lead."""
    terms = {
        name: BackendTerms(
            name=name,
            login=Login(backends[name].login),
            own_credential=backends[name].uses_own_credential,
            reserved_users=frozenset(backends[name].reserved_users),
            require_auth_none=backends[name].allows_none,
        )
        for name in listener.backends
    }
    listed = {
        name: Destination(terms[each.backend], each.dbname) for name, each in listener.destinations.items()
    }
    others = listed.pop(ANY_DATABASE, None)
    return Databases(listed=listed, others=others)


def _closed_socket(path: str, name: str, listener: Listener, rules: Rules) -> Mistake | None:
    """Say that PostgreSQL's sockets are open to all, where `peer` lines expect users to knock."""
    peer = next((rule for rule in rules.hba if rule.method is Method.PEER), None)
    if peer is None or not listener.has_unix or listener.unix_socket_permissions & 0o002:
        return None
    mode = f"{listener.unix_socket_permissions:04o}"
    return Mistake(
        f"{path}: listeners.{name}.unix_socket_permissions",
        f"is {mode}: users outside the socket's group cannot connect, and {peer.ref} never sees them; "
        'PostgreSQL\'s default is "0777"',
    )


def _parse(files: SnapshotFiles, where: str, path: str, parse: Callable[[str, bytes, Sources], _T]) -> _T:
    """Make something of the lines of a file, and of those that it includes."""
    content = files.rules[path]
    if isinstance(content, UnusableFile):
        raise ConfigError([Mistake(f"{files.path}: {where}", str(content))])
    return parse(path, content, files.included)
