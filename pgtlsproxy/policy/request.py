"""What the policy is asked, and the facts about this host that it cannot know itself."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from pgtlsproxy.identity import Certificate, ClientAddress, OSUser
from pgtlsproxy.policy.addresses import Interface
from pgtlsproxy.policy.hba import Replication


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


@dataclass(frozen=True, slots=True)
class Facts:
    """What has been looked up.

    Args:
        interfaces: the addresses of this host with their networks; None where nobody looked.
    """

    interfaces: tuple[Interface, ...] | None = None


@dataclass(frozen=True, slots=True)
class Needs:
    """No decision yet: look this up and ask again."""

    fact: Fact
