"""Who a client is to a line of pg_hba.conf: its names, held against the user that it wants to be.

A name is compared byte by byte, as PostgreSQL does (`CheckCertAuth` and `auth_peer`,
src/backend/libpq/auth.c). subjectAltNames and issuers are ours: PostgreSQL knows neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pgtlsproxy.identity import Certificate, printable
from pgtlsproxy.policy.ident import IdentMaps, IdentMatch
from pgtlsproxy.policy.refusals import AccessRefused, DecidedBy
from pgtlsproxy.policy.replies import failed
from pgtlsproxy.policy.request import AccessRequest, Facts, Needs
from pgtlsproxy.policy.rule import ClientCert, ClientName, HbaRule, Method

MAX_ALTERNATIVE_NAMES: Final = 100
"""subjectAltNames of one kind of which each may be the user's. Every one is looked for in the map."""

_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Checked:
    """Names that were compared with the user's.

    Args:
        identity: the certificate's DN, the subjectAltName that fits, or the operating system user;
            None where no name was asked for.
        ident: the line of pg_ident.conf that was used.
    """

    identity: str | None = None
    ident: IdentMatch | None = None


@dataclass(frozen=True, slots=True)
class NameCheck:
    """One line of pg_hba.conf, and what its names are held against.

    Args:
        rule: the line.
        ident: the maps of pg_ident.conf.
        issuers: the key of each CA that is trusted, by its subject; None for a name that several bear.
    """

    rule: HbaRule
    ident: IdentMaps
    issuers: Mapping[str, str | None]

    def certificate(self, request: AccessRequest) -> Certificate:
        """The certificate that the line demands; the handshake has verified it.

        Raises:
            AccessRefused: none was sent, or one of another CA than the line's.
        """
        certificate, rule = request.certificate, self.rule
        if certificate is None:
            problem = "the line needs a client certificate and none was sent"
        elif rule.issuers and not self._is_issued_by_one(certificate):
            wanted = " or ".join(map(printable, rule.issuers))
            problem = (
                f"the line needs a certificate issued by {wanted} of ssl_ca_file, and the client's is by "
                f"{printable(certificate.issuer_dn)}"
            )
            if certificate.issuer_dn in rule.issuers:
                problem += " with a key that is not in ssl_ca_file"
        else:
            return certificate
        raise AccessRefused(
            problem,
            reply="connection requires a valid client certificate",
            decided_by=DecidedBy.HBA,
            rule=rule,
        )

    def names(self, request: AccessRequest, facts: Facts) -> Checked | Needs:
        """Compare the name that was authenticated with the user, by the map where there is one.

        Raises:
            AccessRefused: they do not fit.
        """
        rule = self.rule
        if rule.method is Method.PEER:
            user = self._os_user(request)
            return self._matched(request, facts, (user,), user)
        if rule.clientcert is not ClientCert.VERIFY_FULL:
            return Checked()
        certificate = self.certificate(request)
        if rule.clientname.is_alternative:
            return self._matched(request, facts, self._alternative_names(request, certificate), None)
        return self._matched(request, facts, (self._subject(request, certificate),), certificate.dn)

    def _is_issued_by_one(self, certificate: Certificate) -> bool:
        """Whether the CA that vouches for a certificate is one of the line's.

        A name alone is no CA: any other CA that is trusted could sign an intermediate of that name. The
        key that signed the certificate is compared, which a renewed certificate of the CA has, too.
        """
        key = certificate.issuer_key
        return key is not None and any(self.issuers.get(name) == key for name in self.rule.issuers)

    def _os_user(self, request: AccessRequest) -> str:
        """The name of the operating system user; `uid:1000` for one without, which only a map can match.

        A role named so would otherwise be anybody's who can choose a uid, as in a container.
        """
        user = request.os_user
        if user is None or not user.is_known:
            raise self._refused(request, "the operating system does not know who the client is")
        if user.name is not None:
            return user.name
        if self.rule.map is None:
            raise self._refused(request, f"uid {user.uid} has no name here: map uid:{user.uid} to the user")
        return f"uid:{user.uid}"

    def _subject(self, request: AccessRequest, certificate: Certificate) -> str:
        """The name in the subject that counts.

        PostgreSQL takes the first of several common names. Libraries differ in which they show, so whoever
        issued the certificate may have meant another: it is refused.
        """
        if self.rule.clientname is ClientName.DN:
            names: tuple[str, ...] = (certificate.dn,)
        else:
            names = certificate.common_names
        if len(names) > 1:
            raise self._refused(
                request, f"the client certificate has several common names: {_listed(names, ', ')}"
            )
        if not names or not names[0]:
            raise self._refused(request, "client certificate contains no user name")
        return names[0]

    def _alternative_names(self, request: AccessRequest, certificate: Certificate) -> tuple[str, ...]:
        """The subjectAltNames that count, each once.

        A DNS name with a star stands for many hosts, and so for nobody.
        """
        kind = self.rule.clientname
        found = {
            ClientName.SAN_DNS: certificate.dns_names,
            ClientName.SAN_URI: certificate.uris,
            ClientName.SAN_EMAIL: certificate.emails,
        }[kind]
        if len(found) > MAX_ALTERNATIVE_NAMES:
            raise self._refused(
                request,
                f"the client certificate has {len(found)} names of {kind}, and {MAX_ALTERNATIVE_NAMES} are "
                "the most that are looked at",
            )
        names = tuple(
            dict.fromkeys(name for name in found if name and not (kind is ClientName.SAN_DNS and "*" in name))
        )
        if not names:
            raise self._refused(request, f"client certificate contains no {kind} that can name a user")
        return names

    def _matched(
        self, request: AccessRequest, facts: Facts, names: tuple[str, ...], identity: str | None
    ) -> Checked | Needs:
        """Find the name that is the user's or that the map lets be the user.

        Args:
            request: the client.
            facts: what has been looked up.
            names: what it is called, of which one will do.
            identity: what to say was proved; None for that name.
        """
        rule, user = self.rule, printable(request.user)
        shown = _listed(names, '", "')
        if rule.map is None:
            if request.user in names:
                return Checked(identity or request.user)
            problem = f"provided user name ({user}) and authenticated user name ({shown}) do not match"
            raise self._refused(request, problem)
        match = self.ident.find_any(rule.map, request.user, names, facts.roles)
        if isinstance(match, Needs):
            return match
        if isinstance(match, IdentMatch):
            return Checked(identity or match.authenticated, match)
        problem = f'no match in usermap "{printable(rule.map)}" for user "{user}" authenticated as "{shown}"'
        if match is not None:
            problem = f"it cannot be known whether there is a match: {match.reason}"
        raise self._refused(request, problem, DecidedBy.IDENT)

    def _refused(
        self, request: AccessRequest, reason: str, decided_by: DecidedBy = DecidedBy.HBA
    ) -> AccessRefused:
        """The method's refusal: PostgreSQL answers a wrong name as it answers a wrong password."""
        reply, sqlstate = failed(self.rule.method, request)
        return AccessRefused(reason, reply=reply, sqlstate=sqlstate, decided_by=decided_by, rule=self.rule)


def _listed(names: tuple[str, ...], separator: str) -> str:
    shown = separator.join(printable(name) for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
