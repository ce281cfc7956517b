"""What a line of pg_hba.conf says, in the words of the file."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from pgtlsproxy.policy import addresses
from pgtlsproxy.policy.addresses import Address, AddressKeyword, HostName
from pgtlsproxy.policy.records import Field, LineRef, Token


class ConnectionType(enum.StrEnum):
    """The first column."""

    LOCAL = "local"
    HOST = "host"
    HOSTSSL = "hostssl"
    HOSTNOSSL = "hostnossl"
    HOSTGSSENC = "hostgssenc"
    """Applies to nobody: this proxy has no GSSAPI encryption."""
    HOSTNOGSSENC = "hostnogssenc"


class Method(enum.StrEnum):
    """The method column: what this version can do.

    From `scram-sha-256` on, a method says what the backend has to ask the client, and the client to answer.
    """

    TRUST = "trust"
    REJECT = "reject"
    CERT = "cert"
    PEER = "peer"
    SCRAM_SHA_256 = "scram-sha-256"
    PASSWORD = "password"  # noqa: S105 - the name of a method
    """A password in clear, which the proxy proves to the backend, or checks itself."""
    MD5 = "md5"
    """A SCRAM exchange or an MD5 password, as the role's secret is, like in PostgreSQL."""
    LDAP = "ldap"
    PAM = "pam"
    RADIUS = "radius"
    BSD = "bsd"
    GSS = "gss"
    OAUTH = "oauth"
    """OAUTHBEARER; a method of PostgreSQL 18."""

    @property
    def asks_for_password(self) -> bool:
        """Whether PostgreSQL asks for a password in clear, which it has somebody else judge."""
        return self in {Method.LDAP, Method.PAM, Method.RADIUS, Method.BSD}


class ClientCert(enum.StrEnum):
    """The option `clientcert`: what is asked of a certificate beyond the handshake."""

    OFF = "off"
    VERIFY_CA = "verify-ca"
    VERIFY_FULL = "verify-full"


class ClientName(enum.StrEnum):
    """The option `clientname`: which name of the certificate has to be the user's."""

    CN = "CN"
    DN = "DN"
    SAN_DNS = "SAN_DNS"
    SAN_URI = "SAN_URI"
    SAN_EMAIL = "SAN_EMAIL"

    @property
    def is_alternative(self) -> bool:
        """Whether it is a subjectAltName, which PostgreSQL does not know here."""
        return self.name.startswith("SAN_")


class Replication(enum.Enum):
    """What kind of walsender a StartupMessage asks for."""

    NONE = enum.auto()
    PHYSICAL = enum.auto()
    LOGICAL = enum.auto()


SAMEROLE = ("samerole", "samegroup")
"""The keywords for databases that have the name of a role of the user's; the second is the older one."""


@dataclass(frozen=True, slots=True)
class HbaRule:
    """One line of pg_hba.conf.

    Args:
        ref: where it stands.
        type: its connection type.
        databases, users: the tokens of the lists, keywords among them, expressions compiled.
        address: which clients; None for `local`.
        method: how they are authenticated.
        clientcert: what is asked of their certificate; `cert` asks for verify-full.
        clientname: which name of the certificate counts.
        map: the map of pg_ident.conf, or None.
        issuers: the CAs, by their subjects, of which one must have issued the certificate; empty for
            whichever the listener trusts. Ours.
        ignored: options that mean something to the backend alone, as the file has them, secrets masked.
    """

    ref: LineRef
    type: ConnectionType
    databases: Field
    users: Field
    address: Address | None
    method: Method
    clientcert: ClientCert = ClientCert.OFF
    clientname: ClientName = ClientName.CN
    map: str | None = None
    issuers: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def names_user(self, user: str) -> bool:
        """Whether the line lists this user by name, not only by a keyword, a role or an expression."""
        return any(token.text == user and is_literal_user(token) for token in self.users)

    @property
    def has_literal_users_only(self) -> bool:
        """Whether the line is for the users that it lists by name and for nobody else."""
        return all(map(is_literal_user, self.users))

    @property
    def is_loopback_only(self) -> bool:
        """Whether it is for Unix sockets, or numeric addresses inside 127.0.0.0/8 or ::1/128."""
        if self.address is None:
            return True
        return not isinstance(self.address, AddressKeyword | HostName) and addresses.is_loopback(self.address)

    @property
    def roles(self) -> frozenset[str]:
        """The roles whose members it lists."""
        return frozenset(token.role for token in self.users if token.role is not None)

    @property
    def needs_roles(self) -> bool:
        """Whether it matters which roles a user is a member of."""
        return bool(self.roles) or any(map(is_samerole, self.databases))


def is_literal_user(token: Token) -> bool:
    """Whether a token of the user column is the name of one user."""
    return not token.is_keyword("all") and token.role is None and token.expression is None


def is_samerole(token: Token) -> bool:
    """Whether a token of the database column is `samerole`, or `samegroup` as it was called once."""
    return not token.quoted and token.text in SAMEROLE
