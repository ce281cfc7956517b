"""The loader's check of every (line of pg_hba.conf, listener, backend).

A line that could let in somebody unproven, or that can never work, is refused when it is loaded, not when
somebody comes. Only lines that a client of this listener can reach are judged, so that one file can serve a
Unix socket and a TCP listener, and each for the backends alone to which its databases lead.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from pgtlsproxy.errors import Mistake
from pgtlsproxy.identity import ProofKind, printable
from pgtlsproxy.policy.access import Rules
from pgtlsproxy.policy.databases import BackendTerms
from pgtlsproxy.policy.hba import ClientCert, ConnectionType, HbaRule, Method
from pgtlsproxy.policy.proofs import ASKED_HERE, Evidence, Login, evidence, proof
from pgtlsproxy.policy.roles import Memberships

MAX_SHOWN: Final = 5
"""CAs that a message lists; the rest are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerTransports:
    """How clients can come to a listener.

    Args:
        unix: through a Unix socket.
        tcp: through TCP.
        tls: whether it speaks TLS (`ssl`).
        has_client_ca: whether it verifies client certificates (`ssl_ca_file`).
    """

    unix: bool
    tcp: bool
    tls: bool
    has_client_ca: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendFacts:
    """What a backend can take for a credential of the proxy itself.

    Args:
        sslcert: the proxy shows it a client certificate.
        unix_socket: it is reached through a Unix socket, where `peer` sees the proxy's user.
    """

    sslcert: bool
    unix_socket: bool


@dataclass(frozen=True, slots=True)
class Soundness:
    """What the check found.

    Args:
        mistakes: the configuration cannot be used with these.
        warnings: it can, but somebody should look.
    """

    mistakes: tuple[Mistake, ...] = ()
    warnings: tuple[Mistake, ...] = ()


def check_soundness(
    rules: Rules,
    transports: ListenerTransports,
    backends: Mapping[str, BackendFacts],
    *,
    knows_maps: bool = True,
) -> Soundness:
    """Judge every line that clients of a listener can reach.

    Args:
        rules: its policy.
        transports: how they come to it.
        backends: what is known of the backends to which its databases lead, by name.
        knows_maps: whether its maps are there to be judged.
    """
    mistakes: list[Mistake] = []
    warnings: list[Mistake] = []
    maps = rules.ident.names if knows_maps else frozenset(rule.map for rule in rules.hba)
    for rule in rules.hba:
        if rule.type is ConnectionType.HOSTGSSENC:
            warnings.append(
                rule.ref.mistake("hostgssenc record cannot match: this proxy has no GSSAPI encryption")
            )
        elif _needs_missing_tls(rule, transports):
            warnings.append(
                rule.ref.mistake(f"hostssl record cannot match: ssl is off at listener {rules.listener}")
            )
        elif _is_reachable(rule, transports):
            mistakes.extend(_mistakes(rules, rule, transports, maps))
            if rule.method is Method.REJECT:
                continue
            reached = rules.databases.reached_by(rule.databases)
            if not reached:
                warnings.append(rule.ref.mistake(_leads_nowhere(rules)))
            for backend in reached:
                mistakes.extend(_backend_mistakes(rules, rule, backend))
                warnings.extend(_backend_warnings(rule, backend, backends[backend.name]))
    mistakes.extend(
        ref.mistake(_without_roles(rules)) for ref in rules.ident.roles.values() if not rules.knows_roles
    )
    if rules.roles is not None:
        warnings.extend(_unlisted_roles(rules, rules.roles))
    return Soundness(tuple(mistakes), tuple(warnings))


def check_issuers(rules: Rules) -> tuple[Mistake, ...]:
    """The lines with `issuer` that name no CA of the listener, or a name that several have.

    Args:
        rules: the policy, with the CAs that are trusted.
    """
    return tuple(
        rule.ref.mistake(
            f'issuer "{printable(name)}": ssl_ca_file of listener {rules.listener} has '
            + _what_there_is_instead(name, rules)
        )
        for rule in rules.hba
        for name in rule.issuers
        if rules.issuers.get(name) is None
    )


def _what_there_is_instead(name: str, rules: Rules) -> str:
    if name in rules.issuers:
        return "CAs with several keys that bear this name, of which one could vouch for the other's users"
    subjects = sorted(map(printable, rules.issuers))
    more = len(subjects) - MAX_SHOWN
    return (
        "no CA of this name, only "
        + ", ".join(subjects[:MAX_SHOWN])
        + (f" and {more} more" if more > 0 else "")
    )


def _without_roles(rules: Rules) -> str:
    return (
        "the members of a role are not known here: set roles_file or roles_query at listener "
        f"{rules.listener}, or list the users"
    )


def _unlisted_roles(rules: Rules, roles: Memberships) -> Iterator[Mistake]:
    """Roles that the file does not know, as where a name is spelt wrongly."""
    used = [(role, rule.ref) for rule in rules.hba for role in sorted(rule.roles)]
    for role, ref in (*used, *rules.ident.roles.items()):
        if role not in roles.names:
            yield ref.mistake(
                f'role "{printable(role)}" has no line in the roles_file of listener {rules.listener}, '
                "and so no member but itself"
            )


def _needs_missing_tls(rule: HbaRule, transports: ListenerTransports) -> bool:
    return rule.type is ConnectionType.HOSTSSL and transports.tcp and not transports.tls


def _is_reachable(rule: HbaRule, transports: ListenerTransports) -> bool:
    return transports.unix if rule.type is ConnectionType.LOCAL else transports.tcp


def _mistakes(
    rules: Rules, rule: HbaRule, transports: ListenerTransports, maps: Collection[str | None]
) -> Iterator[Mistake]:
    if rule.clientcert is not ClientCert.OFF and not transports.has_client_ca:
        yield rule.ref.mistake(
            "client certificates can only be checked if a root certificate store is available: "
            f"set ssl_ca_file at listener {rules.listener}"
        )
    if rule.needs_roles and not rules.knows_roles:
        yield rule.ref.mistake(_without_roles(rules))
    if rule.method is Method.REJECT:
        return
    if _may_show_password(rules, rule):
        yield rule.ref.mistake(
            "whoever is on the path could read the password that a client of plaintext_from at listener "
            f"{rules.listener} would send in clear: use scram-sha-256, or hostssl"
        )
    if rule.map is not None and rule.map not in maps:
        yield rule.ref.mistake(
            f'map "{printable(rule.map)}" has no line in the ident_file of listener {rules.listener}: '
            "nobody could connect by this line"
        )


def _may_show_password(rules: Rules, rule: HbaRule) -> bool:
    """Whether a client in clear from beyond this host could come to be asked for its password in clear."""
    if rule.method is not Method.PASSWORD or rule.type in {ConnectionType.LOCAL, ConnectionType.HOSTSSL}:
        return False
    return bool(rules.plaintext_from) and not rule.is_loopback_only


def _leads_nowhere(rules: Rules) -> str:
    return (
        f"lets nobody in: no database of this line is in databases of listener {rules.listener}, which has "
        'no "*" for others and for replication; list one there, or take the line out'
    )


def _backend_mistakes(rules: Rules, rule: HbaRule, backend: BackendTerms) -> Iterator[Mistake]:
    match proof(rule, backend.login, has_verifiers=rules.has_verifiers):
        case None if evidence(rule) in ASKED_HERE:
            yield rule.ref.mistake(
                f"{rule.method} with login: {backend.login} (backend {backend.name}) is asked here, which "
                "needs the users' verifiers: set scram_secrets_file or auth_query at listener "
                f"{rules.listener}; or use cert, peer, or login: passthrough"
            )
        case None:
            yield rule.ref.mistake(
                f"{rule.method} is for the backend to ask, and with login: {backend.login} (backend "
                f"{backend.name}) it asks nobody; use scram-sha-256, cert, peer, or login: passthrough"
            )
        case ProofKind.LITERAL_LOCAL_USER if (problem := _unproven(backend, rule)) is not None:
            yield rule.ref.mistake(
                f"trust with login: {backend.login} would let anybody be such a user at backend "
                f"{backend.name}: {problem}; use cert or peer, or list literal users at a Unix socket or "
                "loopback address"
            )
        case _:
            return


def _unproven(backend: BackendTerms, rule: HbaRule) -> str | None:
    """Why a line that asks for no proof is not confined to literal local users; None where it is."""
    if not rule.is_loopback_only:
        return "the address is not a numeric one inside 127.0.0.0/8 or ::1/128"
    if not rule.has_literal_users_only:
        return "the users are not listed by name"
    if reserved := sorted(backend.reserved_users.intersection(token.text for token in rule.users)):
        return f"{', '.join(map(printable, reserved))} is in reserved_users"
    return None


def _backend_warnings(rule: HbaRule, backend: BackendTerms, facts: BackendFacts) -> Iterator[Mistake]:
    if proof(rule, backend.login, has_verifiers=False) is not ProofKind.BACKEND_CHALLENGE:
        return
    if backend.require_auth_none and evidence(rule) is Evidence.NOTHING:
        yield rule.ref.mistake(
            f"require_auth of backend {backend.name} says none: whoever this line admits is let in as any "
            "user that the backend does not ask for a proof"
        )
    elif facts.sslcert or facts.unix_socket:
        credential = "certificate (sslcert)" if facts.sslcert else "operating system user (Unix socket)"
        yield rule.ref.mistake(
            f"backend {backend.name} sees the proxy's own {credential}: clients of this line are refused "
            f"wherever it believes that instead of asking them; consider login: {Login.CERTIFICATE}, or cert "
            "or peer here"
        )
