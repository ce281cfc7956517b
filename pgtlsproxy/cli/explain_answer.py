"""How `pgtlsproxy explain` gets its answer: the files as they are now, and what has to be looked up.

Only what the question needs is read and loaded: certificates, OpenSSL and the event loop are left alone
unless a certificate or a look-up is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from pgtlsproxy.cli.explain_question import REPLICATION, Client, Unanswerable, question
from pgtlsproxy.errors import ClientCertificateRefused, ConfigError, Mistake
from pgtlsproxy.identity import printable
from pgtlsproxy.policy.access import DecidedBy, Rules
from pgtlsproxy.policy.databases import Destination
from pgtlsproxy.policy.explanation import Explanation, explain
from pgtlsproxy.policy.request import AccessRequest, Fact, Facts, Needs
from pgtlsproxy.proxy.files import SnapshotFiles, read_rules, with_client_trust
from pgtlsproxy.proxy.policies import make_rules

if TYPE_CHECKING:
    from pgtlsproxy.config import Listener
    from pgtlsproxy.identity import Certificate
    from pgtlsproxy.tls.trust import Trust


@dataclass(frozen=True, slots=True)
class Answer:
    """What is shown.

    Args:
        explanation: the policy's answer.
        client: whom it is about; None where that is not known.
        rules: what it was asked by; None where there are none.
        mistakes: why there are none.
    """

    explanation: Explanation
    client: Client | None = None
    rules: Rules | None = None
    mistakes: tuple[Mistake, ...] = ()

    @property
    def destination(self) -> Destination | None:
        """Where the client goes on to, if it may; None where that is not known, or nowhere."""
        if self.rules is None or self.client is None or self.client.refusal is not None:
            return None
        return self.rules.databases.destination(self.client.database, REPLICATION[self.client.replication])


def answer(
    path: str, listener: str | None, client: Client, certificate: str | None, *, connect: bool
) -> Answer:
    """Ask the policy of a configuration about a client.

    Args:
        path: the YAML file.
        listener: where the client comes; None for the only one.
        client: whom it is about.
        certificate: the file with its certificate, where there is one.
        connect: whether a backend may be asked for the members of roles.

    Raises:
        click.UsageError: there is no such listener, or one has to be named.
    """
    files = read_rules(path, listener)
    try:
        if files.settings is None:
            raise ConfigError(files.mistakes)
        name = _listener_name(files.settings.listeners, listener)
        settings = files.settings.listeners[name]
        rules = _rules(files, name, settings)
        explanation = _explanation(files, rules, client, certificate, connect=connect)
    except ConfigError as error:
        reason = "the configuration cannot be used: " + "; ".join(map(str, error.mistakes))
        unusable = Explanation(allowed=None, reason=reason)
        return Answer(unusable, client, mistakes=tuple(error.mistakes))
    return Answer(explanation, client, rules)


def _rules(files: SnapshotFiles, name: str, listener: Listener) -> Rules:
    """The policy of a listener. Who vouches for clients is read only where a line names a CA."""

    def complete(rules: Rules) -> Rules:
        if not rules.asks_for_issuers:
            return rules
        from pgtlsproxy.proxy.issuers import with_trusted_issuers

        return with_trusted_issuers(rules, _client_trust(files, name, listener))

    return make_rules(files, name, listener, lambda _: None, complete)


def _client_trust(files: SnapshotFiles, name: str, listener: Listener) -> Trust | None:
    """Who vouches for a listener's clients; None where none is asked for a certificate."""
    from pgtlsproxy.proxy.trusts import Trusts

    if not listener.ssl:
        return None
    return Trusts(with_client_trust(files, listener), lambda _: None).of_clients(name, listener)


def _listener_name(listeners: Mapping[str, Listener], listener: str | None) -> str:
    there_are = "there " + ("is " if len(listeners) == 1 else "are ") + ", ".join(listeners)
    if listener is None:
        if len(listeners) > 1:
            raise click.UsageError(f"--listener is missing: {there_are}")
        return next(iter(listeners))
    if listener not in listeners:
        raise click.UsageError(f'there is no listener "{printable(listener)}": {there_are}')
    return listener


def _explanation(
    files: SnapshotFiles, rules: Rules, client: Client, certificate: str | None, *, connect: bool
) -> Explanation:
    assert files.settings is not None  # noqa: S101 - rules were made by them
    settings = files.settings.listeners[rules.listener]
    try:
        if client.refusal is not None:
            raise ClientCertificateRefused(client.refusal)
        shown = None
        if certificate is not None and settings.ssl and settings.ssl_ca_file is not None:
            shown = _vouched_for(files, rules.listener, settings, certificate)
        asked = question(client, rules, settings, shown)
        if (unheard := _unheard(asked.request, settings)) is not None:
            return unheard
        facts = Facts()
        while isinstance(found := explain(rules, asked.request, facts, asked.left_open), Needs):
            facts = _with_fact(found.fact, facts, asked.request, files, rules, connect=connect)
    except Unanswerable as error:
        return Explanation(allowed=None, reason=str(error))
    except ClientCertificateRefused as error:
        return Explanation(allowed=False, reason=error.reason, decided_by=DecidedBy.PROOF)
    return found


def _unheard(request: AccessRequest, listener: Listener) -> Explanation | None:
    """The refusal of whoever comes from where a PROXY header must come, and that no header may name."""
    ip = request.address.ip
    if ip is None or not ip.is_loopback or not any(ip in network for network in listener.proxy_protocol_from):
        return None
    reason = (
        f"{ip} is in proxy_protocol_from: a load balancer there has to say in a PROXY header where its "
        "client comes from, and no header may name a loopback address"
    )
    return Explanation(allowed=False, reason=reason, decided_by=DecidedBy.PROXY_PROTOCOL_FROM)


def _vouched_for(files: SnapshotFiles, name: str, listener: Listener, path: str) -> Certificate:
    """The certificate in a file, verified as the handshake does.

    Raises:
        ClientCertificateRefused: the handshake would fail, whatever pg_hba.conf says.
        Unanswerable: there is no certificate in the file.
    """
    from pgtlsproxy.tls.certificates import describe, require_named_types
    from pgtlsproxy.tls.file_access import UnusableFile, read_file
    from pgtlsproxy.tls.files import certificate_chain
    from pgtlsproxy.tls.vouching import Vouching

    try:
        chain = certificate_chain(read_file(path, "certificate file"), path)
    except UnusableFile as error:
        raise Unanswerable(printable(str(error), limit=2000)) from None
    vouching = Vouching(_client_trust(files, name, listener), checks_time=True)
    problem = vouching.problem(chain)
    if problem is not None:
        raise ClientCertificateRefused(
            f"the TLS handshake fails, and pg_hba.conf is not asked: {problem} (the certificate in "
            f'"{printable(path)}", by ssl_ca_file of listener {name})'
        )
    certificate = describe(chain[0], vouching.issuer(chain))
    require_named_types(certificate)
    return certificate


def _with_fact(
    fact: Fact, facts: Facts, request: AccessRequest, files: SnapshotFiles, rules: Rules, *, connect: bool
) -> Facts:
    """The facts with one more that has been looked up.

    Raises:
        Unanswerable: that would mean to dial a backend, and nobody said so.
    """
    match fact:
        case Fact.INTERFACES:
            from pgtlsproxy.proxy.interfaces import own_interfaces

            return replace(facts, interfaces=own_interfaces())
        case Fact.CLIENT_HOST:
            import trio

            from pgtlsproxy.proxy.client_hosts import ClientHosts

            assert request.address.ip is not None  # noqa: S101 - a line for Unix sockets has no address
            return replace(facts, client_host=trio.run(ClientHosts().of, request.address.ip))
        case Fact.ROLES if not connect:
            raise Unanswerable(
                f'which roles user "{printable(request.user)}" is a member of decides, and only a server '
                "knows (roles_query): say --connect to ask it"
            )
        case Fact.ROLES:
            import trio

            from pgtlsproxy.proxy.backend_roles import BackendRoles
            from pgtlsproxy.proxy.snapshot import load

            listener = load(files.path).snapshot.listeners[rules.listener]
            query = listener.settings.roles_query
            assert query is not None  # noqa: S101 - the loader takes no lines for roles without
            backend = listener.backends[listener.settings.backend_asked(query)]
            return replace(facts, roles=trio.run(BackendRoles().of, request.user, backend, query))
