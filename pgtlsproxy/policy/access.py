"""The decision: may this client go on, by which line, and what must still be proved.

`decide` is pure: it looks at the values it is given, and says `Needs` where one is missing. Replies are
PostgreSQL's own (`ClientAuthentication` and `auth_failed`, src/backend/libpq/auth.c), so that a client
learns neither more nor less than it would there.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from pgtlsproxy.errors import AccessDenied
from pgtlsproxy.identity import Certificate, ProofKind, printable
from pgtlsproxy.policy.addresses import Network
from pgtlsproxy.policy.hba import ClientCert, ClientName, HbaRule, HbaRules, Method, Replication
from pgtlsproxy.policy.ident import IdentMaps, IdentMatch
from pgtlsproxy.policy.matching import Undecidable, first_match, lookup_detail
from pgtlsproxy.policy.proofs import Login, proof
from pgtlsproxy.policy.records import LineRef
from pgtlsproxy.policy.replies import failed, no_entry, rejects
from pgtlsproxy.policy.request import AccessRequest, Fact, Facts, Needs, Unknown
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
        listener, backend: their names.
        hba: the lines of pg_hba.conf.
        ident: the maps of pg_ident.conf.
        roles: who is a member of which role, by the roles_file; None where there is none.
        looks_up_roles: whether that is a fact which the backend can be asked for.
        plaintext_from: networks beyond loopback that may start a session in clear text.
        login: how the backend is satisfied.
        own_credential: whether the backend sees a credential of the proxy: login `certificate` or
            `passfile`, a certificate of the proxy, or a Unix socket where `peer` sees the proxy.
        reserved_users: users who need a line that names them where `own_credential`.
        require_auth_none: whether the backend may let sessions in without asking the client.
    """

    listener: str
    backend: str
    hba: HbaRules
    ident: IdentMaps
    roles: Memberships | None = None
    looks_up_roles: bool = False
    plaintext_from: tuple[Network, ...]
    login: Login
    own_credential: bool
    reserved_users: frozenset[str]
    require_auth_none: bool

    @property
    def knows_roles(self) -> bool:
        """Whether the members of a role can be known."""
        return self.roles is not None or self.looks_up_roles


class DecidedBy(enum.StrEnum):
    """Which rule refused."""

    HBA = "hba"
    IDENT = "ident"
    PLAINTEXT_FROM = "plaintext_from"
    RESERVED_USERS = "reserved_users"
    PROOF = "proof"


class AccessRefused(AccessDenied):
    """The policy said no.

    Args:
        reason: for the log.
        reply: PostgreSQL's text.
        sqlstate: PostgreSQL's code.
        decided_by: which rule refused.
        rule: the line of pg_hba.conf, or None where none applied.
        ident: the line of pg_ident.conf, where one applied.
    """

    def __init__(
        self,
        reason: str,
        *,
        reply: str,
        decided_by: DecidedBy,
        sqlstate: str = "28000",
        rule: HbaRule | None = None,
        ident: IdentMatch | None = None,
    ) -> None:
        super().__init__(reason if rule is None else f"{rule.ref}: {reason}", reply=reply, sqlstate=sqlstate)
        self.decided_by = decided_by
        self.hba: LineRef | None = None if rule is None else rule.ref
        self.method: Method | None = None if rule is None else rule.method
        self.ident: LineRef | None = None if ident is None else ident.ref


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The policy lets a client go on. Only `decide` makes one.

    It is no proof, yet: where `accepts` is a certificate, an operating system user or a literal local user,
    that has been checked; everything else is still to be proved. A certificate that the line demands
    beside another proof has been checked, too.

    Args:
        listener, backend: their names; whoever dials reads the backend here.
        user, database, replication: as in the request.
        method: the method of the deciding line.
        login: how the backend is satisfied.
        accepts: the proofs of which one must be had before the client is let in.
        identity: what was checked: a certificate's DN, or an operating system user; else None.
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
    replication: Replication
    method: Method
    login: Login
    accepts: frozenset[ProofKind]
    identity: str | None
    certificate_sha256: str | None
    is_fenced: bool
    hba: LineRef
    ident: LineRef | None


@dataclass(frozen=True, slots=True)
class _Checked:
    """Names that were compared with the user's.

    Args:
        identity: the certificate's DN or the operating system user; None where no name was asked for.
        ident: the line of pg_ident.conf that was used.
    """

    identity: str | None = None
    ident: IdentMatch | None = None


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
    if rule.clientcert is not ClientCert.OFF:
        _sent_certificate(rule, request)
    if rule.method is Method.REJECT:
        raise AccessRefused("the line rejects", reply=rejects(request), decided_by=DecidedBy.HBA, rule=rule)
    checked = _check_names(rules, rule, request, facts)
    if isinstance(checked, Needs):
        return checked
    is_fenced = _fence(rules, rule, request, checked)
    return Grant(
        listener=rules.listener,
        backend=rules.backend,
        user=request.user,
        database=request.database,
        replication=request.replication,
        method=rule.method,
        login=rules.login,
        accepts=_accepts(rules, rule, request),
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


def _check_names(rules: Rules, rule: HbaRule, request: AccessRequest, facts: Facts) -> _Checked | Needs:
    """Compare the name that was authenticated with the user, by the map where there is one.

    Raises:
        AccessRefused: they do not fit.
    """
    if rule.method is Method.PEER:
        identity = name = _os_user_name(rule, request)
    elif rule.clientcert is ClientCert.VERIFY_FULL:
        certificate = _sent_certificate(rule, request)
        identity, name = certificate.dn, _certificate_name(rule, request, certificate)
    else:
        return _Checked()
    match = _map(rules, rule, request, facts, name)
    return match if isinstance(match, Needs) else _Checked(identity, match)


def _sent_certificate(rule: HbaRule, request: AccessRequest) -> Certificate:
    """The certificate that a line demands; the handshake has verified it.

    Raises:
        AccessRefused: none was sent.
    """
    if request.certificate is None:
        raise AccessRefused(
            "the line needs a client certificate and none was sent",
            reply="connection requires a valid client certificate",
            decided_by=DecidedBy.HBA,
            rule=rule,
        )
    return request.certificate


def _os_user_name(rule: HbaRule, request: AccessRequest) -> str:
    """The name of the operating system user; `uid:1000` for one without a name, which only a map can match.

    A role named so would otherwise be anybody's who can choose a uid, as in a container.
    """
    user = request.os_user
    if user is None or not user.is_known:
        raise _name_refused(rule, request, "the operating system does not know who the client is")
    if user.name is not None:
        return user.name
    if rule.map is None:
        raise _name_refused(rule, request, f"uid {user.uid} has no name here: map uid:{user.uid} to the user")
    return f"uid:{user.uid}"


def _certificate_name(rule: HbaRule, request: AccessRequest, certificate: Certificate) -> str:
    """The name of a certificate that counts.

    PostgreSQL takes the first of several common names. Libraries differ in which they show, so whoever
    issued the certificate may have meant another: it is refused.
    """
    names = (certificate.dn,) if rule.clientname is ClientName.DN else certificate.common_names
    if len(names) > 1:
        shown = ", ".join(printable(name) for name in names)
        raise _name_refused(rule, request, f"the client certificate has several common names: {shown}")
    if not names or not names[0]:
        raise _name_refused(rule, request, "client certificate contains no user name")
    return names[0]


def _map(
    rules: Rules, rule: HbaRule, request: AccessRequest, facts: Facts, name: str
) -> IdentMatch | Needs | None:
    """The line that maps a name to the user; None where they are equal and no map is asked."""
    user, shown = printable(request.user), printable(name)
    if rule.map is None:
        if name != request.user:
            raise _name_refused(
                rule,
                request,
                f"provided user name ({user}) and authenticated user name ({shown}) do not match",
            )
        return None
    match = rules.ident.find(rule.map, request.user, name, facts.roles)
    if match is None or isinstance(match, Unknown):
        reason = f'no match in usermap "{printable(rule.map)}" for user "{user}" authenticated as "{shown}"'
        if match is not None:
            reason = f"it cannot be known whether there is a match: {match.reason}"
        raise _name_refused(rule, request, reason, decided_by=DecidedBy.IDENT)
    return match


def _fence(rules: Rules, rule: HbaRule, request: AccessRequest, checked: _Checked) -> bool:
    """Keep reserved users and replication out unless somebody meant it.

    Where the backend believes the proxy's own credential, a general line (`all`, a pattern) must not reach a
    superuser or a copy of the whole cluster: the line must name the user, or for physical replication
    `replication` (nothing else matches it), and the map must reach the user by name.

    Returns:
        Whether nobody meant it, where the backend is not known to believe the proxy. One that trusts the
        proxy's address does, and shows it only when it lets the session in unasked.
    """
    is_reserved = request.user in rules.reserved_users
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
    if not rules.own_credential:
        return True
    raise AccessRefused(
        problem, reply=rejects(request), decided_by=DecidedBy.RESERVED_USERS, rule=rule, ident=ident
    )


def _accepts(rules: Rules, rule: HbaRule, request: AccessRequest) -> frozenset[ProofKind]:
    """The proofs of which one must be had; the loader has refused lines without any, and so does this."""
    match proof(rule, rules.login):
        case None:
            problem = f"login {rules.login} can have no proof for method {rule.method}"
        case ProofKind.LITERAL_LOCAL_USER if not _is_literal_local(rules, rule, request):
            problem = f"login {rules.login} needs a line for literal local users"
        case ProofKind.BACKEND_CHALLENGE if rules.require_auth_none:
            return frozenset({ProofKind.BACKEND_CHALLENGE, ProofKind.REQUIRE_AUTH_NONE})
        case kind:
            return frozenset({kind})
    raise AccessRefused(problem, reply=rejects(request), decided_by=DecidedBy.PROOF, rule=rule)


def _is_literal_local(rules: Rules, rule: HbaRule, request: AccessRequest) -> bool:
    return (
        request.address.is_local
        and rule.is_loopback_only
        and rule.has_literal_users_only
        and request.user not in rules.reserved_users
    )


def _name_refused(
    rule: HbaRule, request: AccessRequest, reason: str, *, decided_by: DecidedBy = DecidedBy.HBA
) -> AccessRefused:
    """The method's refusal: PostgreSQL answers a wrong name as it answers a wrong password."""
    reply, sqlstate = failed(rule.method, request)
    return AccessRefused(reason, reply=reply, sqlstate=sqlstate, decided_by=decided_by, rule=rule)
