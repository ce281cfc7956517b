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
from pgtlsproxy.policy.hba import HbaRules, Method, read_hba
from pgtlsproxy.policy.ident import IdentMaps, parse_ident
from pgtlsproxy.policy.inclusion import Sources
from pgtlsproxy.policy.roles import Memberships, parse_roles
from pgtlsproxy.policy.soundness import BackendFacts, ListenerTransports, check_soundness
from pgtlsproxy.proxy.files import SnapshotFiles
from pgtlsproxy.tls.file_access import UnusableFile

_T = TypeVar("_T")


def make_rules(
    files: SnapshotFiles,
    name: str,
    listener: Listener,
    warn: Callable[[Mistake], None],
    complete: Callable[[Rules], Rules] = lambda rules: rules,
) -> Rules:
    """The policy of a listener, held against the one rule for every line in it.

    Args:
        files: what was read; its settings can be used.
        name: the listener's name.
        listener: its settings.
        warn: told of what can be used, but deserves a look.
        complete: adds what the files do not say, or raises ConfigError.

    Raises:
        ConfigError: with every mistake in it. Lines that are none do not keep the others from being judged.
    """
    mistakes: list[Mistake] = []
    read = _parsed(files, name, "hba_file", listener.hba_file, read_hba, mistakes)
    if read is not None:
        mistakes.extend(read[1])
    ident = _parsed(files, name, "ident_file", listener.ident_file, parse_ident, mistakes)
    roles = _parsed(files, name, "roles_file", listener.roles_file, parse_roles, mistakes)
    if read is None:
        raise ConfigError(mistakes)
    rules = _assembled(files, name, listener, read[0], ident, roles)
    knows_maps = listener.ident_file is None or ident is not None
    found = check_soundness(rules, *_surroundings(files, listener), knows_maps=knows_maps)
    mistakes.extend(found.mistakes)
    try:
        rules = complete(rules)
    except ConfigError as error:
        mistakes.extend(error.mistakes)
    if mistakes:
        raise ConfigError(mistakes)
    for warning in found.warnings:
        warn(warning)
    if (closed := _closed_socket(files.path, name, listener, rules)) is not None:
        warn(closed)
    return rules


def _assembled(
    files: SnapshotFiles,
    name: str,
    listener: Listener,
    hba: HbaRules,
    ident: IdentMaps | None,
    roles: Memberships | None,
) -> Rules:
    assert files.settings is not None  # noqa: S101 - policies are made of a YAML file that can be used
    has_roles = listener.roles_query is not None or listener.roles_file is not None
    return Rules(
        listener=name,
        hba=hba,
        ident=ident or IdentMaps(),
        roles=roles,
        looks_up_roles=has_roles and roles is None,
        has_verifiers=listener.has_verifiers,
        plaintext_from=listener.plaintext_from,
        databases=_databases(listener, files.settings.backends),
    )


def _surroundings(
    files: SnapshotFiles, listener: Listener
) -> tuple[ListenerTransports, Mapping[str, BackendFacts]]:
    """How clients come to a listener, and what is known of the backends to which they go on."""
    assert files.settings is not None  # noqa: S101 - as above
    transports = ListenerTransports(
        unix=listener.has_unix,
        tcp=listener.has_tcp,
        tls=listener.ssl,
        has_client_ca=listener.ssl_ca_file is not None,
    )
    return transports, {
        each: BackendFacts(sslcert=backend.sslcert is not None, unix_socket=backend.has_unix_host)
        for each in listener.backends
        for backend in (files.settings.backends[each],)
    }


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


def _parsed(
    files: SnapshotFiles,
    name: str,
    key: str,
    path: str | None,
    parse: Callable[[str, bytes, Sources], _T],
    mistakes: list[Mistake],
) -> _T | None:
    """What a file says with those that it includes; None where there is none, or a mistake in it."""
    if path is None:
        return None
    content = files.rules[path]
    if isinstance(content, UnusableFile):
        mistakes.append(Mistake(f"{files.path}: listeners.{name}.{key}", str(content)))
        return None
    try:
        return parse(path, content, files.included)
    except ConfigError as error:
        mistakes.extend(error.mistakes)
        return None
