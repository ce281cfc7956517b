"""pg_hba.conf: what a line says.

The grammar and the texts of its mistakes are those of `parse_hba_line` and `parse_hba_auth_opt`
(src/backend/libpq/hba.c). What PostgreSQL knows and this version does not is a mistake, never
skipped: a line that silently does nothing lets in, or keeps out, the wrong people.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from pgtlsproxy.errors import ConfigError, Mistake
from pgtlsproxy.identity import printable
from pgtlsproxy.policy import addresses
from pgtlsproxy.policy.addresses import AddressError, AddressKeyword, Network
from pgtlsproxy.policy.records import Field, Line, LineRef, Token, inclusion, tokenize


class ConnectionType(enum.StrEnum):
    """The first column."""

    LOCAL = "local"
    HOST = "host"
    HOSTSSL = "hostssl"
    HOSTNOSSL = "hostnossl"


class Method(enum.StrEnum):
    """The method column: what this version can do."""

    TRUST = "trust"
    REJECT = "reject"
    CERT = "cert"
    PEER = "peer"
    SCRAM_SHA_256 = "scram-sha-256"


class ClientCert(enum.StrEnum):
    """The option `clientcert`: what is asked of a certificate beyond the handshake."""

    OFF = "off"
    VERIFY_CA = "verify-ca"
    VERIFY_FULL = "verify-full"


class ClientName(enum.StrEnum):
    """The option `clientname`: which name of the certificate has to be the user's."""

    CN = "CN"
    DN = "DN"


class Replication(enum.Enum):
    """What kind of walsender a StartupMessage asks for."""

    NONE = enum.auto()
    PHYSICAL = enum.auto()
    LOGICAL = enum.auto()


@dataclass(frozen=True, slots=True)
class HbaRule:
    """One line of pg_hba.conf.

    Args:
        ref: where it stands.
        type: its connection type.
        databases, users: the tokens of the lists, keywords among them.
        address: which clients; None for `local`.
        method: how they are authenticated.
        clientcert: what is asked of their certificate; `cert` asks for verify-full.
        clientname: which name of the certificate counts.
        map: the map of pg_ident.conf, or None.
    """

    ref: LineRef
    type: ConnectionType
    databases: Field
    users: Field
    address: Network | AddressKeyword | None
    method: Method
    clientcert: ClientCert = ClientCert.OFF
    clientname: ClientName = ClientName.CN
    map: str | None = None

    def names_user(self, user: str) -> bool:
        """Whether the line lists this user by name, not only by `all`."""
        return any(token.text == user and not token.is_keyword("all") for token in self.users)

    @property
    def has_literal_users_only(self) -> bool:
        """Whether the line is for the users that it lists by name and for nobody else."""
        return not any(token.is_keyword("all") for token in self.users)

    @property
    def is_loopback_only(self) -> bool:
        """Whether it is for Unix sockets, or numeric addresses inside 127.0.0.0/8 or ::1/128."""
        if self.address is None:
            return True
        return not isinstance(self.address, AddressKeyword) and addresses.is_loopback(self.address)


_AT_THE_BACKEND = "use trust, where the backend asks the client itself (login: passthrough), or cert"
_INSTEAD = {
    "md5": "use scram-sha-256, which needs a SCRAM secret for the role",
    "password": "use scram-sha-256, or trust where the backend asks the client itself (login: passthrough)",
    "ident": "use peer for Unix sockets, or cert",
    **dict.fromkeys(("gss", "sspi", "ldap", "pam", "bsd", "radius", "oauth"), _AT_THE_BACKEND),
}
"""Methods that PostgreSQL has and this version has not, and what to use."""

_FOREIGN_OPTIONS = {
    option: methods
    for methods, options in {
        "gssapi and sspi": "include_realm krb_realm",
        "sspi": "compat_realm upn_username",
        "ldap": "ldapurl ldaptls ldapscheme ldapserver ldapport ldapbinddn ldapbindpasswd "
        "ldapsearchattribute ldapsearchfilter ldapbasedn ldapprefix ldapsuffix",
        "pam": "pamservice pam_use_hostname",
        "radius": "radiusservers radiusports radiusidentifiers radiussecrets",
        "oauth": "issuer scope validator delegate_ident_mapping",
    }.items()
    for option in options.split()
}
"""Options of methods that this version has not, and those methods."""

_NOT_IN_THIS_VERSION = "is not in this version"


class _RuleError(ValueError):
    """What is wrong with a line."""


def parse_hba(file: str, content: bytes) -> tuple[HbaRule, ...]:
    """Read pg_hba.conf.

    Args:
        file: the name that messages show.
        content: the whole file.

    Raises:
        ConfigError: with every mistake, one a line.
    """
    rules: list[HbaRule] = []
    mistakes: list[Mistake] = []
    for line in tokenize(file, content):
        try:
            rules.append(_parse_rule(line))
        except (_RuleError, AddressError) as error:
            mistakes.append(line.ref.mistake(str(error)))
    if not rules and not mistakes:
        mistakes.append(
            Mistake(file, "the file contains no entries: nobody could connect; add at least one line")
        )
    if mistakes:
        raise ConfigError(mistakes)
    return tuple(rules)


class _Columns:
    """Takes the fields of a line from left to right."""

    def __init__(self, line: Line) -> None:
        self._fields = list(line.fields)

    def field(self, missing: str) -> Field:
        if not self._fields:
            raise _RuleError(f"end-of-line before {missing}")
        return self._fields.pop(0)

    def token(self, missing: str, multiple: str) -> Token:
        field = self.field(missing)
        if len(field) > 1:
            raise _RuleError(f"multiple values specified for {multiple}: write exactly one")
        return field[0]

    def rest(self) -> Field:
        return tuple(token for field in self._fields for token in field)


def _parse_rule(line: Line) -> HbaRule:
    if (included := inclusion(line)) is not None:
        raise _RuleError(f'reading another file ("{included}") {_NOT_IN_THIS_VERSION}; write its lines here')
    columns = _Columns(line)
    connection_type = _connection_type(columns.token("connection type", "connection type"))
    databases = columns.field("database specification")
    _check_databases(databases)
    users = columns.field("role specification")
    _check_users(users)
    address = None if connection_type is ConnectionType.LOCAL else _address(columns)
    method = _method(columns.token("authentication method", "authentication type"), connection_type)
    rule = HbaRule(line.ref, connection_type, databases, users, address, method)
    for option in columns.rest():
        rule = _with_option(rule, option)
    if method is Method.CERT:
        rule = replace(rule, clientcert=ClientCert.VERIFY_FULL)
    return rule


def _connection_type(token: Token) -> ConnectionType:
    if token.text in {"hostgssenc", "hostnogssenc"}:
        raise _RuleError(
            f'connection type "{token}" {_NOT_IN_THIS_VERSION}: this proxy never encrypts with GSSAPI'
        )
    try:
        return ConnectionType(token.text)
    except ValueError:
        raise _RuleError(
            f'invalid connection type "{token}": write local, host, hostssl or hostnossl'
        ) from None


def _check_databases(field: Field) -> None:
    for token in field:
        if any(token.is_keyword(word) for word in ("samerole", "samegroup")):
            raise _RuleError(f"database {token} {_NOT_IN_THIS_VERSION}; list the databases")
        if token.text.startswith("/"):
            raise _RuleError(
                f'a regular expression for databases ("{token}") {_NOT_IN_THIS_VERSION}; list the databases'
            )


def _check_users(field: Field) -> None:
    for token in field:
        if token.text.startswith("+") and not token.quoted:
            raise _RuleError(f"the members of a role ({token}) {_NOT_IN_THIS_VERSION}; list the users")
        if token.text.startswith("/"):
            raise _RuleError(
                f'a regular expression for users ("{token}") {_NOT_IN_THIS_VERSION}; list the users'
            )


def _address(columns: _Columns) -> Network | AddressKeyword:
    token = columns.token("IP address specification", "host address")
    if (word := addresses.keyword(token)) is not None:
        return word
    if "/" in token.text:
        return addresses.parse_cidr(token)
    address = addresses.parse_address(token)
    return addresses.parse_masked(address, columns.token("netmask specification", "netmask"))


def _method(token: Token, connection_type: ConnectionType) -> Method:
    if token.text in _INSTEAD:
        raise _RuleError(f'authentication method "{token}" {_NOT_IN_THIS_VERSION}: {_INSTEAD[token.text]}')
    try:
        method = Method(token.text)
    except ValueError:
        raise _RuleError(
            f'invalid authentication method "{token}": write trust, reject, cert, peer or scram-sha-256'
        ) from None
    if method is Method.PEER and connection_type is not ConnectionType.LOCAL:
        raise _RuleError("peer authentication is only supported on local sockets")
    if method is Method.CERT and connection_type is not ConnectionType.HOSTSSL:
        raise _RuleError("cert authentication is only supported on hostssl connections")
    return method


def _with_option(rule: HbaRule, token: Token) -> HbaRule:
    name, equals, value = token.text.partition("=")
    if not equals:
        raise _RuleError(f"authentication option not in name=value format: {token}")
    match name:
        case "map":
            return replace(rule, map=_map(rule, value))
        case "clientcert":
            return replace(rule, clientcert=_clientcert(rule, value))
        case "clientname":
            return replace(rule, clientname=_clientname(rule, value))
        case _ if name in _FOREIGN_OPTIONS:
            raise _RuleError(
                f'authentication option "{name}" is only valid for authentication methods '
                f"{_FOREIGN_OPTIONS[name]}"
            )
        case _:
            raise _RuleError(
                f'unrecognized authentication option name: "{printable(name)}"; there are map, '
                "clientcert and clientname"
            )


def _map(rule: HbaRule, value: str) -> str:
    if rule.method not in {Method.CERT, Method.PEER}:
        raise _RuleError(
            'authentication option "map" is only valid for authentication methods '
            "ident, peer, gssapi, sspi, cert, and oauth"
        )
    if not value:
        raise _RuleError('authentication option "map" is empty; leave it out where no map is wanted')
    return value


def _clientcert(rule: HbaRule, value: str) -> ClientCert:
    if rule.type is not ConnectionType.HOSTSSL:
        raise _RuleError('clientcert can only be configured for "hostssl" rows')
    if rule.method is Method.CERT and value == ClientCert.VERIFY_CA:
        raise _RuleError('clientcert only accepts "verify-full" when using "cert" authentication')
    if value not in {ClientCert.VERIFY_CA, ClientCert.VERIFY_FULL}:
        raise _RuleError(
            f'invalid value for clientcert: "{printable(value)}"; write verify-ca or verify-full'
        )
    return ClientCert(value)


def _clientname(rule: HbaRule, value: str) -> ClientName:
    if rule.type is not ConnectionType.HOSTSSL:
        raise _RuleError('clientname can only be configured for "hostssl" rows')
    try:
        return ClientName(value)
    except ValueError:
        raise _RuleError(f'invalid value for clientname: "{printable(value)}"; write CN or DN') from None
