"""The frozen values that one stage of a session hands to the next.

    Accepted -> Negotiated -> Grant -> BackendLeg -> LoggedIn -> SessionEnd

`Grant` is `policy.access`'s. Only `proxy.login` makes a `LoggedIn`, and `relay` takes nothing else.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field

from cryptography import x509

from pgtlsproxy.identity import Certificate, ClientAddress, OSUser, Proof, Secret
from pgtlsproxy.policy.access import AccessRequest, Grant
from pgtlsproxy.protocol.messages import Message, MessageReader
from pgtlsproxy.protocol.proxy_header import ProxyHeader
from pgtlsproxy.protocol.scram.keys import Verifier
from pgtlsproxy.protocol.startup import StartupMessage
from pgtlsproxy.proxy.relay_ending import Limits
from pgtlsproxy.proxy.snapshot import BackendSnapshot, ListenerSnapshot, Snapshot
from pgtlsproxy.tls.stream import Leg


@dataclass(frozen=True, slots=True)
class Accepted:
    """A connection that the kernel has handed us.

    Args:
        session: the session's id, hex.
        sock: the client's socket, non-blocking. Whoever runs the session closes it.
        address: where the client comes from.
        os_user: who is at the other end of a Unix socket; None on TCP.
        snapshot: the configuration that the session lives under.
        listener: the listener it came to.
        accepted_at: `trio.current_time()` of the accept.
        startup_deadline: when the StartupMessage must have come, not later than ReadyForQuery.
        deadline: when ReadyForQuery must have come.
        via: the load balancer that said where the client comes from, by a PROXY header; None for whoever
            connected itself.
        header: what it said.
    """

    session: str
    sock: socket.socket
    address: ClientAddress
    os_user: OSUser | None
    snapshot: Snapshot
    listener: ListenerSnapshot
    accepted_at: float
    startup_deadline: float
    deadline: float
    via: ClientAddress | None = None
    header: ProxyHeader | None = None

    @property
    def source(self) -> str:
        """Who is counted as one: where it comes from, at a Unix socket its uid."""
        return self.address.source if self.os_user is None else f"uid {self.os_user.uid}"


@dataclass(frozen=True, slots=True)
class Negotiated:
    """A client whose encryption is settled and who has said what it wants.

    Args:
        accepted: the connection.
        leg: the client's leg, in clear or inside TLS.
        startup: what it wants.
        certificate: its certificate, verified; None without one.
    """

    accepted: Accepted
    leg: Leg
    startup: StartupMessage
    certificate: Certificate | None


@dataclass(frozen=True, slots=True)
class Proved:
    """A client whom the proxy itself has proved.

    Args:
        proof: by what.
        was_asked: whether it was asked for something, and so has heard how the login begins.
        unread: what it has sent behind its answers.
        verifier: what its password was held against; None where it was not asked for one.
    """

    proof: Proof
    was_asked: bool = False
    unread: bytes = field(default=b"", repr=False)
    verifier: Verifier | None = None


@dataclass(frozen=True, slots=True)
class BackendAddress:
    """One address of a backend's host list.

    Args:
        host: the configured name, or the folder of a Unix socket.
        port: its port.
        ip: the numeric address to dial; None for a Unix socket.
    """

    host: str
    port: int
    ip: str | None

    @property
    def unix_path(self) -> str:
        """The socket's file, for a Unix socket."""
        return f"{self.host}/.s.PGSQL.{self.port}"

    def __str__(self) -> str:
        if self.ip is None:
            return self.unix_path
        where = f"[{self.ip}]" if ":" in self.ip else self.ip
        return f"{where}:{self.port}" if self.ip == self.host else f"{self.host} ({where}:{self.port})"


@dataclass(frozen=True, slots=True)
class BackendLeg:
    """A backend that has verified itself, read the StartupMessage, and answered.

    Args:
        leg: its leg.
        address: where it is.
        reader: what it has sent and nobody has taken yet.
        first: its first message, an authentication request, Ok, or an ErrorResponse.
        is_same_leaf: whether both legs' TLS show the same leaf certificate, so that SCRAM's channel
            binding passes through (RFC 5929, tls-server-end-point).
    """

    leg: Leg
    address: BackendAddress
    reader: MessageReader
    first: Message
    is_same_leaf: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """What a newer configuration holds a session against.

    Args:
        session: its id.
        request: what it asked the policy for.
        grant: what it was given.
        chain: the client's certificate up to the anchor that vouched for it, where sessions are to be
            closed when it is revoked; else empty.
        generation: the newest configuration under which the session was judged.
    """

    session: str
    request: AccessRequest
    grant: Grant
    chain: tuple[x509.Certificate, ...]
    generation: int


@dataclass(frozen=True, slots=True)
class CancelKey:
    """What a CancelRequest must name to reach a session (BackendKeyData)."""

    pid: int
    key: Secret = field(repr=False)


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """A session that may be relayed. Both ReadyForQuery and the proof of the user have come.

    Args:
        client_leg: the client's leg.
        backend_leg: the backend's.
        proof: why the client is the user.
        standing: what a newer configuration holds it against.
        backend: the backend's settings.
        backend_address: where the backend leg is connected to.
        limits: when it is to end by itself.
        cancel_key: what the backend said a CancelRequest must name; None where it said nothing.
        unread_from_client: bytes that came behind the login and belong to the backend.
        unread_from_backend: bytes that came behind ReadyForQuery and belong to the client.
    """

    client_leg: Leg
    backend_leg: Leg
    proof: Proof
    standing: Standing
    backend: BackendSnapshot
    backend_address: BackendAddress
    cancel_key: CancelKey | None
    limits: Limits
    unread_from_client: bytes = field(repr=False)
    unread_from_backend: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SessionEnd:
    """How a relayed session ended.

    Args:
        kind: `ok` or an ErrorKind.
        reason: who ended it and how.
        bytes_from_client: what the client sent and the backend got, in octets.
        bytes_from_backend: what the backend sent and the client got, in octets.
    """

    kind: str
    reason: str
    bytes_from_client: int
    bytes_from_backend: int
