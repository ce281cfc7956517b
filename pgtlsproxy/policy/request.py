"""What the policy is asked, and the facts about this host and the client that it cannot know itself."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from pgtlsproxy.identity import Certificate, ClientAddress, OSUser
from pgtlsproxy.policy.addresses import Interface
from pgtlsproxy.policy.rule import Replication


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRequest:
    """One client at the door.

    Args:
        user, database: the names of the StartupMessage, PostgreSQL's defaults filled in; they are not
            cut, so the caller has refused what is longer than 63 bytes.
        replication: which kind of walsender it asks for.
        address: where it comes from.
        tls: whether it speaks TLS.
        certificate: its certificate; the handshake has verified it.
        os_user: who it is at a Unix socket.
    """

    user: str
    database: str
    replication: Replication
    address: ClientAddress
    tls: bool
    certificate: Certificate | None = None
    os_user: OSUser | None = None


class Fact(enum.Enum):
    """What may have to be looked up before there is a decision."""

    INTERFACES = enum.auto()
    ROLES = enum.auto()
    CLIENT_HOST = enum.auto()


@dataclass(frozen=True, slots=True)
class Unknown:
    """Somebody looked, and could not find out.

    Args:
        reason: for the log; printable.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class ClientHost:
    """The host name of a client, as PostgreSQL looks it up.

    Args:
        name: what its address resolves to; None where that has no name.
        is_confirmed: whether this name resolves to the address again: whoever owns an address may give it
            any name, but not give the name this address.
    """

    name: str | None
    is_confirmed: bool | Unknown


@dataclass(frozen=True, slots=True)
class Facts:
    """What has been looked up; None where nobody looked.

    Args:
        interfaces: the addresses of this host with their networks.
        roles: the roles that the user is a member of, directly or not, itself among them.
        client_host: the client's host name.
    """

    interfaces: tuple[Interface, ...] | None = None
    roles: frozenset[str] | Unknown | None = None
    client_host: ClientHost | Unknown | None = None

    @property
    def are_known(self) -> bool:
        """Whether every look-up has had an answer."""
        host = self.client_host
        is_confirmed = host.is_confirmed if isinstance(host, ClientHost) else None
        return not any(isinstance(fact, Unknown) for fact in (self.roles, host, is_confirmed))


@dataclass(frozen=True, slots=True)
class Needs:
    """No decision yet: look this up and ask again."""

    fact: Fact
