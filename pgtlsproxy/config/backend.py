"""A backend: the PostgreSQL servers that sessions go on to, and how they are satisfied. It speaks libpq."""

from __future__ import annotations

from functools import cached_property
from string import Formatter
from typing import Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, BeforeValidator, ValidationInfo

from pgtlsproxy.config.model import (
    CommaList,
    FilePath,
    FilledCommaList,
    KeepAliveCount,
    KeepAliveSeconds,
    LibpqSwitch,
    Model,
    ProtocolVersion,
    Seconds,
    Text,
    UserTimeout,
    absolute,
    in_range,
    one_of,
)
from pgtlsproxy.config.values import (
    DEFAULT_PORT,
    BadValue,
    Host,
    found,
    parse_host,
    parse_host_address,
    parse_ports,
    parse_role_name,
)
from pgtlsproxy.identity import Secret, printable

MAX_CONNECT_TIMEOUT_SECONDS: Final = 3600.0

SHORTEST_PROBE_SECONDS: Final = 0.1
"""The shortest interval and the shortest timeout of host_probe."""

SYSTEM_ROOTS: Final = "system"
"""The value of sslrootcert that stands for the operating system's list."""

USER_PLACEHOLDER: Final = "{user}"

AUTH_METHODS: Final = ("password", "md5", "gss", "sspi", "scram-sha-256", "oauth", "none")
"""libpq's vocabulary for require_auth (PostgreSQL manual, 34.1.2)."""

NAME_PLACEHOLDERS: Final = ("addr", "port", "name", "session")
"""What a template of application_name_add may say of the client."""

_PROTOCOLS: Final = {"3.0": (3, 0), "3.2": (3, 2), 3.0: (3, 0), 3.2: (3, 2)}


def _secret(value: object) -> Secret:
    if isinstance(value, Secret):
        return value
    if isinstance(value, str) and value:
        return Secret(value.encode())
    raise BadValue("expected a text, in quotes if it looks like a number")


def _sslmode(value: object) -> object:
    if value == "allow":
        raise BadValue('found "allow", which tries clear text first: use prefer, or better verify-full')
    return one_of("verify-full", "verify-ca", "require", "prefer", "disable")(value)


def _root_certificates(value: str, info: ValidationInfo) -> str:
    return value if value == SYSTEM_ROOTS else absolute(value, info)


def _template_path(value: str, info: ValidationInfo) -> str:
    """A path whose last component may hold `{user}`, so that no user name leaves the folder."""
    folder, _, name = value.rpartition("/")
    if "{" in folder or name.count(USER_PLACEHOLDER) > 1 or "{" in name.replace(USER_PLACEHOLDER, ""):
        raise BadValue(f"{found(value)}: braces may only be {USER_PLACEHOLDER}, once, in the file's own name")
    return absolute(value, info)


def _require_auth(methods: tuple[str, ...]) -> tuple[str, ...]:
    names = [method.removeprefix("!") for method in methods]
    for method, name in zip(methods, names, strict=True):
        if name not in AUTH_METHODS:
            raise BadValue(f"{found(method)} is no method: expected some of {', '.join(AUTH_METHODS)}")
    if len({method.startswith("!") for method in methods}) > 1:
        raise BadValue("methods with ! and without cannot be mixed: list what is allowed, or what is not")
    if len(set(names)) < len(names):
        raise BadValue("a method is listed twice")
    return methods


def _protocol(value: object) -> tuple[int, int]:
    if isinstance(value, str | float) and value in _PROTOCOLS:
        return _PROTOCOLS[value]
    raise BadValue(f'found {found(value)}, expected "3.0" or "3.2"')


def _name_template(value: object) -> str | None:
    """`off`, or a template; a literal brace is doubled, as in Python's format strings."""
    if value is False:
        return None
    if not isinstance(value, str) or not value:
        raise BadValue(f'found {found(value)}, expected off or a template, as in "{{name}}@{{addr}}"')
    try:
        fields = [(name, spec, conversion) for _, name, spec, conversion in Formatter().parse(value)]
    except ValueError:
        raise BadValue(f"{found(value)}: a brace has no counterpart; a literal one is doubled") from None
    for name, spec, conversion in fields:
        if name is not None and (name not in NAME_PLACEHOLDERS or spec or conversion):
            known = ", ".join(f"{{{placeholder}}}" for placeholder in NAME_PLACEHOLDERS)
            raise BadValue(f"{found(value)}: {found('{' + name + '}')} is unknown; there are {known}")
    return value


def _proxy_protocol(value: object) -> object:
    """`off`, or a version."""
    if value is None or value is False:
        return None
    if isinstance(value, str) and value in {"v1", "v2"}:
        return value
    raise BadValue(f"found {found(value)}, expected off, v1 or v2: the one that the backend expects")


class HostProbe(Model):
    """As whom hosts are asked what they are, before sessions are led to them. Ours."""

    user: Text
    """The role that asks."""

    dbname: Text = "postgres"
    """The database to connect to."""

    passfile: FilePath | None = None
    """The role's password, in libpq's format; None where the backend lets it in by the proxy's certificate
    or operating system user."""

    interval: Annotated[Seconds, AfterValidator(in_range(SHORTEST_PROBE_SECONDS, 3600))] = 2.0
    """How long an answer is believed, in seconds, that there was none too."""

    timeout: Annotated[Seconds, AfterValidator(in_range(SHORTEST_PROBE_SECONDS, 60))] = 1.0
    """How long a host may take to answer, in seconds."""

    @property
    def shown_user(self) -> str:
        """The role, for messages."""
        return f'user "{printable(self.user)}"'


class Backend(Model):
    """One backend: one database cluster, under one or several hosts.

    Settings mean what libpq means by them (PostgreSQL manual, 34.1.2 Parameter Key Words).
    """

    not_in_this_version: ClassVar[frozenset[str]] = frozenset(
        {
            "sslcert_issuer",
            "sslkey_issuer",
            "sslcert_lifetime",
            "shared_client_ca",
        }
    )

    host: Annotated[tuple[Annotated[str, BeforeValidator(parse_host)], ...], CommaList] = ()
    """Names, numeric addresses or folders of Unix sockets, tried in turn."""

    hostaddr: Annotated[
        tuple[Annotated[str | None, BeforeValidator(parse_host_address)], ...], CommaList
    ] = ()
    """Numeric addresses to dial instead of looking `host` up; as many as hosts."""

    port: Annotated[tuple[int, ...], BeforeValidator(parse_ports)] = (DEFAULT_PORT,)
    """One port for all hosts, or as many as hosts."""

    connect_timeout: Annotated[Seconds, AfterValidator(in_range(0, MAX_CONNECT_TIMEOUT_SECONDS))] = 5.0
    """Seconds an address may take for TCP, TLS and its first answer to the StartupMessage; 0 for no limit.
    libpq's own default is none, which lets one dead host use up the whole login."""

    keepalives: LibpqSwitch = True
    """Whether the kernel asks a silent server whether it is there."""

    keepalives_idle: KeepAliveSeconds = 60.0
    """Seconds for which it may be silent before that. libpq's own default is the system's, two hours."""

    keepalives_interval: KeepAliveSeconds = 10.0
    """Seconds between two such questions."""

    keepalives_count: KeepAliveCount = 6
    """How many of them may go unanswered."""

    tcp_user_timeout: UserTimeout = 30.0
    """Seconds for which what was sent to a server may be unacknowledged. libpq's own default is the system's,
    some 15 minutes, for which a client would wait for an answer from a machine that is gone."""

    target_session_attrs: Annotated[
        Literal["any", "read-write", "read-only", "primary", "standby", "prefer-standby"],
        BeforeValidator(one_of("any", "read-write", "read-only", "primary", "standby", "prefer-standby")),
    ] = "any"
    """Which of the hosts will do. Others than `any` need `host_probe` with `login: passthrough`."""

    host_probe: HostProbe | None = None
    """How hosts are asked what they are. Ours."""

    load_balance_hosts: Annotated[
        Literal["disable", "random"], BeforeValidator(one_of("disable", "random"))
    ] = "disable"
    """Whether hosts and their addresses are tried in random order."""

    sslmode: Annotated[
        Literal["verify-full", "verify-ca", "require", "prefer", "disable"], BeforeValidator(_sslmode)
    ] = "verify-full"
    """How TLS is demanded and verified. Weaker than the default needs `insecure_backend`; Unix sockets
    have no TLS, whatever it says."""

    sslnegotiation: Annotated[
        Literal["postgres", "direct"], BeforeValidator(one_of("postgres", "direct"))
    ] = "postgres"
    """Whether TLS begins with SSLRequest or at once."""

    sslrootcert: Annotated[Text, AfterValidator(_root_certificates)] | None = None
    """PEM: who is believed about the server; `system` for the operating system's list."""

    sslcrl: FilePath | None = None
    """PEM: revocation lists. Where one is given, every certificate of a chain needs one."""

    sslcrldir: FilePath | None = None
    """A folder of such lists, read whole at every load."""

    sslsni: LibpqSwitch = True
    """Whether the host's name is sent in the handshake."""

    sslcert: Annotated[Text, AfterValidator(_template_path)] | None = None
    """PEM: the client certificate that the proxy shows; with `{user}` in its name, one a user."""

    sslkey: Annotated[Text, AfterValidator(_template_path)] | None = None
    """PEM or DER: its private key; with `{user}` where `sslcert` has it."""

    sslpassword: Annotated[Secret, BeforeValidator(_secret)] | None = None
    """The key's passphrase. It makes the configuration a file that only its owner may read."""

    sslpassword_file: FilePath | None = None
    """A file with the key's passphrase in its first line."""

    ssl_min_protocol_version: ProtocolVersion = "TLSv1.2"
    """The oldest TLS that is spoken; older than TLSv1.2 is refused."""

    ssl_max_protocol_version: ProtocolVersion | None = None
    """The newest TLS that is spoken; None for no end."""

    requirepeer: Text | None = None
    """The operating system user that must run the server at a Unix socket."""

    require_auth: Annotated[tuple[str, ...], AfterValidator(_require_auth), FilledCommaList] | None = None
    """How the backend may ask for a proof; each with ! for how it may not. None for any way, but not
    for letting a session in unasked, which only an explicit `none` allows; with `login: passfile` None for
    `scram-sha-256`."""

    login: Annotated[
        Literal["passthrough", "certificate", "passfile"],
        BeforeValidator(one_of("passthrough", "certificate", "passfile")),
    ]
    """Who satisfies the backend: the client (passthrough), or the proxy, by its certificate or by the user's
    password in `passfile`."""

    passfile: FilePath | None = None
    """The users' passwords, in libpq's form: `hostname:port:database:username:password`."""

    reserved_users: Annotated[tuple[Annotated[str, BeforeValidator(parse_role_name)], ...], CommaList] = (
        "postgres",
    )
    """Users who need a line of pg_hba.conf that names them where the backend sees the proxy's own
    credential."""

    insecure_backend: bool = False
    """Whether `sslmode` may be weaker than verify-full."""

    cancel_unknown: Annotated[
        Literal["forward", "drop"] | None, BeforeValidator(one_of("forward", "drop"))
    ] = None
    """What becomes of a CancelRequest whose key no session here has. None for `forward`, and for `drop` at
    listeners with `databases`, where each would go to all of their backends."""

    client_address: bool = False
    """Whether `pgtlsproxy.client_addr`, `.client_name` and `.session` are appended to the StartupMessage:
    for logs, never for authorisation."""

    max_protocol_version: Annotated[tuple[int, int], BeforeValidator(_protocol)] = (3, 2)
    """The newest protocol that the backend is told of; "3.0" for poolers that hang up at 3.2."""

    application_name_add: Annotated[str | None, BeforeValidator(_name_template)] = None
    """A text appended to application_name; knows `{addr} {port} {name} {session}`. None for off."""

    proxy_protocol: Annotated[Literal["v1", "v2"] | None, BeforeValidator(_proxy_protocol)] = None
    """Which version of the PROXY protocol tells the backend, ahead of all else, where the client comes from.
    None for off. Ours."""

    @cached_property
    def hosts(self) -> tuple[Host, ...]:
        """The hosts to try, in order."""
        count = max(len(self.host), len(self.hostaddr))
        names = self.host or ("",) * count
        addresses = self.hostaddr or (None,) * count
        ports = self.port if len(self.port) == count else self.port[:1] * count
        return tuple(map(Host, names, addresses, ports))

    @property
    def has_unix_host(self) -> bool:
        """Whether a host is reached through a Unix socket, where `peer` sees the proxy's own user."""
        return any(host.is_unix for host in self.hosts)

    @property
    def has_tcp_host(self) -> bool:
        """Whether a host is reached through TCP, where TLS is spoken."""
        return any(not host.is_unix for host in self.hosts)

    @property
    def uses_own_credential(self) -> bool:
        """Whether the backend can take something of the proxy's own for a proof of the user."""
        return self.login != "passthrough" or self.sslcert is not None or self.has_unix_host

    @property
    def has_user_certificates(self) -> bool:
        """Whether `sslcert` and `sslkey` name one file a user."""
        return self.sslcert is not None and USER_PLACEHOLDER in self.sslcert.rpartition("/")[2]

    @property
    def has_inline_secret(self) -> bool:
        """Whether the configuration itself holds a passphrase, and so must be unreadable to others."""
        return self.sslpassword is not None

    @property
    def allows_none(self) -> bool:
        """Whether require_auth says that the backend may let a session in unasked.

        libpq takes a list of negations for such a permission too; here it must be written down.
        """
        return self.require_auth is not None and "none" in self.require_auth

    @property
    def verifies_chain(self) -> bool:
        """Whether the server's chain is verified: libpq does so with `require` too where it has roots."""
        return self.sslmode.startswith("verify-") or (
            self.sslmode != "disable" and self.sslrootcert is not None
        )

    def allows_auth(self, method: str) -> bool:
        """Whether require_auth lets the backend ask in this way.

        Args:
            method: one of AUTH_METHODS.
        """
        allowed = self.require_auth or ()
        if allowed and not allowed[0].startswith("!"):
            return method in allowed
        # With our own passwords, what is weaker than SCRAM must be written down, as for `allows_none`.
        may_be_meant = self.login != "passfile" or method == "scram-sha-256"
        return may_be_meant and f"!{method}" not in allowed
