"""The decision: may this client go on, by which line, and what must still be proved.

`decide` is pure: it looks at the values it is given, and says `Needs` where one is missing. Replies are
PostgreSQL's own (`ClientAuthentication` and `auth_failed`, src/backend/libpq/auth.c), so that a client
learns neither more nor less than it would there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pgtlsproxy.identity import ProofKind, printable
from pgtlsproxy.policy.addresses import Network
from pgtlsproxy.policy.databases import BackendTerms, Databases, Destination
from pgtlsproxy.policy.hba import ClientCert, HbaRule, HbaRules, Method, Replication
from pgtlsproxy.policy.ident import IdentMaps
from pgtlsproxy.policy.matching import Undecidable, first_match, lookup_detail
from pgtlsproxy.policy.names import Checked, NameCheck
from pgtlsproxy.policy.proofs import PROVED_HERE, Evidence, Login, evidence, proof
from pgtlsproxy.policy.records import LineRef
from pgtlsproxy.policy.refusals import AccessRefused, DecidedBy
from pgtlsproxy.policy.replies import failed, no_database, no_entry, rejects
from pgtlsproxy.policy.request import AccessRequest, Fact, Facts, Needs
from pgtlsproxy.policy.roles import Memberships

__all__ = [
    "AccessRefused",
    "AccessRequest",
    "DecidedBy",
    "Fact",
    "Facts",
    "Grant",
    "Login",
    "Needs",
    "Rules",
    "decide",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What one listener decides by.

    Args:
        listener: its name.
        hba: the lines of pg_hba.conf.
        ident: the maps of pg_ident.conf.
        issuers: the key of each CA that is trusted about clients, by its subject; None for a name that
            several keys bear. Empty where no line asks for one.
        roles: who is a member of which role, by the roles_file; None where there is none.
        looks_up_roles: whether that is a fact which a backend can be asked for.
        has_verifiers: whether the users' SCRAM verifiers are known here.
        plaintext_from: networks beyond loopback that may start a session in clear text.
        databases: where each database leads.
    """

    listener: str
    hba: HbaRules
    ident: IdentMaps
    issuers: Mapping[str, str | None] = field(default_factory=dict)
    roles: Memberships | None = None
    looks_up_roles: bool = False
    has_verifiers: bool = False
    plaintext_from: tuple[Network, ...]
    databases: Databases

    @property
    def knows_roles(self) -> bool:
        """Whether the members of a role can be known."""
        return self.roles is not None or self.looks_up_roles

    @property
    def asks_for_issuers(self) -> bool:
        """Whether a line takes the certificates of some CAs only."""
        return any(rule.issuers for rule in self.hba)

    @property
    def names_every_issuer(self) -> bool:
        """Whether each line that is satisfied with a certificate says of which CA it has to be."""
        satisfied = [rule for rule in self.hba if rule.clientcert is not ClientCert.OFF]
        return bool(satisfied) and all(rule.issuers or rule.method is Method.REJECT for rule in satisfied)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The policy lets a client go on. Only `decide` makes one.

    It is no proof, yet: where `accepts` is a certificate, an operating system user or a literal local user,
    that has been checked; everything else is still to be proved. A certificate that the line demands
    beside another proof has been checked, too.

    Args:
        listener, backend: their names; whoever dials reads the backend here.
        user, database, replication: as in the request.
        backend_database: what the database is called at the backend.
        method: the method of the deciding line.
        login: how the backend is satisfied.
        accepts: the proofs of which one must be had before the client is let in.
        identity: what was checked: a certificate's DN or subjectAltName, or an operating system user;
            else None.
        certificate_sha256: fingerprint of the client's certificate, demanded or not.
        is_fenced: whether a reserved user or replication is meant and the line names neither: then a
            backend that lets the session in unasked has believed the proxy, and must not.
        hba: the deciding line.
        ident: the line of pg_ident.conf that was used, or None.
    """

    listener: str
    backend: str
    user: str
    database: str
    backend_database: str
    replication: Replication
    method: Method
    login: Login
    accepts: frozenset[ProofKind]
    identity: str | None
    certificate_sha256: str | None
    is_fenced: bool
    hba: LineRef
    ident: LineRef | None


def decide(rules: Rules, request: AccessRequest, facts: Facts) -> Grant | Needs:
    """Decide on a client.

    Args:
        rules: the listener's.
        request: the client.
        facts: what has been looked up.

    Returns:
        What the client may do, or what has to be looked up first.

    Raises:
        AccessRefused: it may not; with the line that decided.
    """
    decision = _decide(rules, request, facts)
    if decision == Needs(Fact.ROLES) and rules.roles is not None:
        return _decide(rules, request, replace(facts, roles=rules.roles.of(request.user)))
    return decision


def _decide(rules: Rules, request: AccessRequest, facts: Facts) -> Grant | Needs:
    _refuse_clear_text(rules, request)
    rule = _deciding_line(rules, request, facts)
    if isinstance(rule, Needs):
        return rule
    check = NameCheck(rule, rules.ident, rules.issuers)
    if rule.clientcert is not ClientCert.OFF:
        check.certificate(request)
    if rule.method is Method.REJECT:
        raise AccessRefused("the line rejects", reply=rejects(request), decided_by=DecidedBy.HBA, rule=rule)
    checked = check.names(request, facts)
    if isinstance(checked, Needs):
        return checked
    destination = _destination(rules, rule, request)
    backend = destination.backend
    is_fenced = _fence(backend, rule, request, checked)
    return Grant(
        listener=rules.listener,
        backend=backend.name,
        user=request.user,
        database=request.database,
        backend_database=destination.called(request.database),
        replication=request.replication,
        method=rule.method,
        login=backend.login,
        accepts=_accepts(rules, backend, rule, request),
        identity=checked.identity,
        certificate_sha256=None if request.certificate is None else request.certificate.sha256,
        is_fenced=is_fenced,
        hba=rule.ref,
        ident=None if checked.ident is None else checked.ident.ref,
    )


def _deciding_line(rules: Rules, request: AccessRequest, facts: Facts) -> HbaRule | Needs:
    """The line that decides.

    Raises:
        AccessRefused: there is none, or it cannot be known which one it is.
    """
    match first_match(rules.hba, request, facts):
        case Undecidable(rule, reason):
            raise AccessRefused(
                f"it cannot be known whether the line applies: {reason}",
                reply=no_entry(request),
                decided_by=DecidedBy.HBA,
                rule=rule,
            )
        case None:
            reason = "no line of pg_hba.conf applies"
            if facts.client_host is not None:
                reason = f"{reason}; {lookup_detail(facts.client_host)}"
            raise AccessRefused(reason, reply=no_entry(request), decided_by=DecidedBy.HBA)
        case rule:
            return rule


def _refuse_clear_text(rules: Rules, request: AccessRequest) -> None:
    """Refuse a session in clear text from afar, whatever pg_hba.conf says.

    libpq's `sslmode=prefer` falls back to clear text after a failure that anybody on the path can cause.
    """
    address = request.address
    if request.tls or address.is_local or address.ip is None:
        return
    if any(address.ip in network for network in rules.plaintext_from):
        return
    raise AccessRefused(
        f"a session in clear text from {address}, which is neither local nor in plaintext_from",
        reply=no_entry(request),
        decided_by=DecidedBy.PLAINTEXT_FROM,
    )


def _destination(rules: Rules, rule: HbaRule, request: AccessRequest) -> Destination:
    """Where a client goes on to whom a line and its names let in.

    Raises:
        AccessRefused: what it asks for is not there. Which databases there are is for users who have proved
            themselves: who still would have to, and cannot where there is no backend to ask, is answered as
            if that had failed.
    """
    destination = rules.databases.destination(request.database, request.replication)
    if destination is not None:
        return destination
    if request.replication is Replication.PHYSICAL:
        asked_for, reply, sqlstate = 'physical replication, which goes to "*"', rejects(request), "28000"
    else:
        asked_for = f'database "{printable(request.database)}", which is not listed'
        reply, sqlstate = no_database(request), "3D000"
    if evidence(rule) not in PROVED_HERE:
        reply, sqlstate = failed(rule.method, request)
    raise AccessRefused(
        f'the client asks for {asked_for}, and databases of listener {rules.listener} has no "*"',
        reply=reply,
        sqlstate=sqlstate,
        decided_by=DecidedBy.DATABASES,
        rule=rule,
    )


def _fence(backend: BackendTerms, rule: HbaRule, request: AccessRequest, checked: Checked) -> bool:
    """Keep reserved users and replication out unless somebody meant it.

    Where the backend believes the proxy's own credential, a general line (`all`, a pattern) must not reach a
    superuser or a copy of the whole cluster: the line must name the user, or for physical replication
    `replication` (nothing else matches it), and the map must reach the user by name.

    Returns:
        Whether nobody meant it, where the backend is not known to believe the proxy. One that trusts the
        proxy's address does, and shows it only when it lets the session in unasked.
    """
    is_reserved = request.user in backend.reserved_users
    if not (is_reserved or request.replication is not Replication.NONE):
        return False
    what = f'user "{printable(request.user)}" is in reserved_users' if is_reserved else "replication"
    ident = checked.ident
    names_replication = request.replication is Replication.PHYSICAL and not is_reserved
    if not (rule.names_user(request.user) or names_replication):
        problem = f"{what}: with the proxy's own credential this line must list the user by name"
    elif ident is not None and not ident.is_literal:
        problem = f"{what}: with the proxy's own credential the map must name the user; {ident.ref} does not"
    else:
        return False
    if not backend.own_credential:
        return True
    raise AccessRefused(
        problem, reply=rejects(request), decided_by=DecidedBy.RESERVED_USERS, rule=rule, ident=ident
    )


def _accepts(
    rules: Rules, backend: BackendTerms, rule: HbaRule, request: AccessRequest
) -> frozenset[ProofKind]:
    """The proofs of which one must be had; the loader has refused lines without any, and so does this."""
    match proof(rule, backend.login, has_verifiers=rules.has_verifiers):
        case None:
            problem = f"login {backend.login} can have no proof for method {rule.method}"
        case ProofKind.LITERAL_LOCAL_USER if not _is_literal_local(backend, rule, request):
            problem = f"login {backend.login} needs a line for literal local users"
        case ProofKind.BACKEND_CHALLENGE if backend.require_auth_none and evidence(rule) is Evidence.NOTHING:
            return frozenset({ProofKind.BACKEND_CHALLENGE, ProofKind.REQUIRE_AUTH_NONE})
        case kind:
            return frozenset({kind})
    raise AccessRefused(problem, reply=rejects(request), decided_by=DecidedBy.PROOF, rule=rule)


def _is_literal_local(backend: BackendTerms, rule: HbaRule, request: AccessRequest) -> bool:
    return (
        request.address.is_local
        and rule.is_loopback_only
        and rule.has_literal_users_only
        and request.user not in backend.reserved_users
    )
