"""A listener: where clients come, and what is asked of them. It speaks postgresql.conf."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field

from pgtlsproxy.config.model import (
    CommaList,
    FilePath,
    FilledCommaList,
    KeepAliveCount,
    KeepAliveSeconds,
    Model,
    ProtocolVersion,
    Seconds,
    Text,
    UserTimeout,
    in_range,
    one_of,
)
from pgtlsproxy.config.values import (
    BadValue,
    Network,
    TCPAddress,
    UnixAddress,
    found,
    parse_database_name,
    parse_file_mode,
    parse_listen_address,
    parse_network,
)
from pgtlsproxy.identity import printable

_ListenAddress = Annotated[TCPAddress | UnixAddress, BeforeValidator(parse_listen_address)]


ANY_DATABASE: Final = "*"
"""The name in `databases` that stands for all that are not listed, and for physical replication."""


SHORTEST_SESSION_SECONDS: Final = 1.0
LONGEST_SESSION_SECONDS: Final = 366 * 86_400.0
"""What may end sessions by itself is looked at once a second."""


class Database(Model):
    """Where the sessions of a database go on to. Ours, after PgBouncer's."""

    backend: Text
    """The name of the backend."""

    dbname: Annotated[str | None, BeforeValidator(parse_database_name)] = None
    """What the database is called there; None for the name that clients call it by."""


def _database(value: object) -> object:
    """The name of a backend is short for settings with nothing else."""
    if isinstance(value, str):
        return {"backend": value}
    if isinstance(value, dict | Database):
        return value
    raise BadValue(f"found {found(value)}, expected the name of a backend, or backend: and dbname:")


class RolesQuery(Model):
    """Whom to ask for the members of roles. Ours."""

    backend: Text | None = None
    """The name of the backend to ask; None for the listener's own, where it leads to one alone."""

    user: Text
    """The role that asks; the backend must let it in by the proxy's certificate or operating system user."""

    dbname: Text = "postgres"
    """The database to connect to; all have the same roles."""

    lifetime: Annotated[Seconds, AfterValidator(in_range(1, 86400))] = 60.0
    """How long an answer is believed, in seconds."""

    @property
    def shown_user(self) -> str:
        """The role, for messages."""
        return f'user "{printable(self.user)}"'


def _query(value: object) -> object:
    if isinstance(value, str) and "$1" not in value:
        raise BadValue(f"found {found(value)}, expected a query with $1 in the place of the user's name")
    return value


class AuthQuery(Model):
    """Whom to ask for the SCRAM verifiers of users. Ours, after PgBouncer's."""

    backend: Text | None = None
    """The name of the backend to ask; None for the listener's own, where it leads to one alone."""

    user: Text
    """The role that asks."""

    passfile: FilePath | None = None
    """The role's password, in libpq's format; None where the backend lets it in by the proxy's certificate
    or operating system user."""

    dbname: Text = "postgres"
    """The database to connect to."""

    query: Annotated[Text, BeforeValidator(_query)] = (
        "SELECT rolname, rolpassword, rolvaliduntil FROM pgtlsproxy.auth_query($1::name)"
    )
    """What is asked, with the user's name as $1: a row of name, verifier and expiry, or none."""

    lifetime: Annotated[Seconds, AfterValidator(in_range(0, 86400))] = 60.0
    """How long a verifier is believed, in seconds; 0 asks at every login."""

    @property
    def shown_user(self) -> str:
        """The role, for messages."""
        return f'user "{printable(self.user)}"'


def _end_of_sessions(seconds: float) -> float:
    if seconds and not SHORTEST_SESSION_SECONDS <= seconds <= LONGEST_SESSION_SECONDS:
        raise BadValue(
            f"{seconds:g} s is out of range: 0 for no end, or from {SHORTEST_SESSION_SECONDS:g} s "
            f"to {LONGEST_SESSION_SECONDS:g} s"
        )
    return seconds


class Listener(Model):
    """One listener.

    Every `ssl_*` setting means what postgresql.conf means by it (PostgreSQL manual, 20.3.3 SSL).
    """

    listen: Annotated[tuple[_ListenAddress, ...], FilledCommaList]
    """Where clients come: `host:port`, `[v6]:port`, `unix:/folder[:port]`; port 0 lets the system choose."""

    backend: Text | None = None
    """The name of the backend that its sessions go on to, whatever database they ask for but those of
    `databases`."""

    databases: dict[str, Annotated[Database, BeforeValidator(_database)]] | None = None
    """Where the sessions of a database go on to, by its name; ANY_DATABASE is short for `backend`. Ours."""

    ssl: bool
    """Whether TLS is offered. In clear, on or off, only loopback, Unix sockets and `plaintext_from`
    may start a session."""

    ssl_cert_file: FilePath | None = None
    """PEM: the certificate, and behind it the intermediates that issued it."""

    ssl_key_file: FilePath | None = None
    """PEM: the certificate's private key; may be the same file."""

    ssl_ca_file: FilePath | None = None
    """PEM: who is believed about client certificates. Without it none is asked for."""

    ssl_crl_file: FilePath | None = None
    """PEM: revocation lists. Where one is given, every certificate of a chain needs one."""

    ssl_crl_dir: FilePath | None = None
    """A folder of such lists, read whole at every load."""

    ssl_min_protocol_version: ProtocolVersion = "TLSv1.2"
    """The oldest TLS that is spoken; older than TLSv1.2 is refused."""

    ssl_max_protocol_version: ProtocolVersion | None = None
    """The newest TLS that is spoken; None for no end."""

    ssl_ciphers: Text = "HIGH:MEDIUM:+3DES:!aNULL"
    """OpenSSL's cipher list for TLS 1.2 and older."""

    ssl_tls13_ciphers: Text | None = None
    """The suites of TLS 1.3, joined by colons; None for OpenSSL's own."""

    ssl_groups: Annotated[
        Text | None, Field(validation_alias=AliasChoices("ssl_groups", "ssl_ecdh_curve"))
    ] = None
    """Key exchange groups, joined by colons; None for X25519:prime256v1. `ssl_ecdh_curve` is its name
    before PostgreSQL 18."""

    ssl_prefer_server_ciphers: bool = True
    """Whether the server's order of ciphers decides."""

    ssl_dh_params_file: FilePath | None = None
    """PEM: Diffie-Hellman parameters for DHE suites of TLS 1.2; None for PostgreSQL's own, of 2048 bits."""

    ssl_passphrase_command: Text | None = None
    """A shell command that prints the key's passphrase; %p in it becomes a prompt."""

    ssl_passphrase_command_supports_reload: bool = False
    """Whether that command may run at a reload, when nobody sits at a terminal."""

    hba_file: FilePath
    """pg_hba.conf: who may come in, and by what proof."""

    ident_file: FilePath | None = None
    """pg_ident.conf: the maps that pg_hba.conf names."""

    roles_file: FilePath | None = None
    """Who is a member of which role, where pg_hba.conf or pg_ident.conf asks for members: one line a role,
    `"role" "member" ...`. Ours."""

    roles_query: RolesQuery | None = None
    """The same from a server's own catalog. Ours."""

    scram_secrets_file: FilePath | None = None
    """The users' SCRAM verifiers, one line a user: `"user" "SCRAM-SHA-256$..."`, as pg_authid has them. With
    them SCRAM goes through TLS on both legs, bound to each leg's certificate. Ours."""

    auth_query: AuthQuery | None = None
    """The same from a server, for users whom `scram_secrets_file` does not list. Ours, after PgBouncer's."""

    scram_mock_secret_file: FilePath | None = None
    """32 random octets, of which the salts of users without a verifier are made; None for the name of
    `scram_secrets_file` with `.mock` behind it. Made at the first start. Ours."""

    plaintext_from: Annotated[tuple[Annotated[Network, BeforeValidator(parse_network)], ...], CommaList] = ()
    """Networks, in CIDR notation, that may start a session in clear text."""

    tcp_keepalives_idle: KeepAliveSeconds = 60.0
    """Seconds for which a client may be silent before the kernel asks whether it is there. PostgreSQL's own
    default is the system's, two hours: longer than the networks between remember a connection."""

    tcp_keepalives_interval: KeepAliveSeconds = 10.0
    """Seconds between two such questions."""

    tcp_keepalives_count: KeepAliveCount = 6
    """How many of them may go unanswered."""

    tcp_user_timeout: UserTimeout = 0.0
    """Seconds for which what was sent to a client may be unacknowledged."""
    proxy_protocol_from: Annotated[
        tuple[Annotated[Network, BeforeValidator(parse_network)], ...], CommaList
    ] = ()
    """Networks of load balancers, whose connections must begin with a PROXY header that says where the client
    comes from. From elsewhere none is taken. Ours."""

    revoked_sessions: Annotated[Literal["keep", "close"], BeforeValidator(one_of("keep", "close"))] = "keep"
    """What a reload means for sessions that the new files would not let in: `keep` leaves them, `close` ends
    those whose certificate was revoked, whose CA was taken out, or whom the policy refuses now."""

    expired_sessions: Annotated[Literal["keep", "close"], BeforeValidator(one_of("keep", "close"))] = "keep"
    """What becomes of sessions whose client's certificate runs out: `keep` leaves them, `close` ends them by
    then. Ours."""

    idle_session_timeout: Annotated[Seconds, AfterValidator(_end_of_sessions)] = 0.0
    """Seconds for which a client outside of a transaction may ask nothing; 0 for no end of that."""

    session_lifetime: Annotated[Seconds, AfterValidator(_end_of_sessions)] = 0.0
    """Seconds after which a session ends when it is idle next; 0 for no end. Not of replication. Ours."""

    unix_socket_permissions: Annotated[int, BeforeValidator(parse_file_mode)] = 0o770
    """Mode of Unix sockets, a quoted octal text. PostgreSQL's own default is "0777"."""

    unix_socket_group: Text | None = None
    """Group of Unix sockets, a name or a quoted number; None for the process's own."""

    def named_backends(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Each name of a backend that stands in the settings, behind its key path in them."""
        if self.backend is not None:
            yield ("backend",), self.backend
        for name, database in (self.databases or {}).items():
            yield ("databases", name), database.backend
        if self.roles_query is not None and self.roles_query.backend is not None:
            yield ("roles_query", "backend"), self.roles_query.backend
        if self.auth_query is not None and self.auth_query.backend is not None:
            yield ("auth_query", "backend"), self.auth_query.backend

    @property
    def has_verifiers(self) -> bool:
        """Whether it can know the users' SCRAM verifiers."""
        return self.scram_secrets_file is not None or self.auth_query is not None

    @property
    def mock_secret_file(self) -> str | None:
        """The file of `scram_mock_secret_file`, given or not; None where there is no name for one."""
        if self.scram_mock_secret_file is None and self.scram_secrets_file is not None:
            return f"{self.scram_secrets_file}.mock"
        return self.scram_mock_secret_file

    @property
    def destinations(self) -> Mapping[str, Database]:
        """Where sessions go on to, by the database that they ask for, ANY_DATABASE among them."""
        others = {} if self.backend is None else {ANY_DATABASE: Database(backend=self.backend)}
        return {**(self.databases or {}), **others}

    @property
    def backends(self) -> tuple[str, ...]:
        """The names of the backends that its sessions go on to, each once."""
        return tuple(dict.fromkeys(each.backend for each in self.destinations.values()))

    def backend_asked(self, query: RolesQuery | AuthQuery) -> str:
        """The name of the backend that is asked for the members of roles, or for verifiers.

        Args:
            query: its `roles_query` or `auth_query`.
        """
        return query.backend or self.backends[0]

    @property
    def has_unix(self) -> bool:
        """Whether clients can come through a Unix socket."""
        return any(isinstance(address, UnixAddress) for address in self.listen)

    @property
    def has_tcp(self) -> bool:
        """Whether clients can come through TCP."""
        return any(isinstance(address, TCPAddress) for address in self.listen)

    @property
    def all_loopback(self) -> bool:
        """Whether nobody beyond this host can connect."""
        return all(isinstance(address, UnixAddress) or address.is_loopback for address in self.listen)
