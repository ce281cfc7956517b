"""Methods and options of pg_hba.conf: what they are called, where they may stand, and what is wrong else.

The rules and texts are those of `parse_hba_line` and `parse_hba_auth_opt` (src/backend/libpq/hba.c) in
PostgreSQL 17; `issuer`, and `clientname` with a subjectAltName, are ours. What PostgreSQL knows and this
version does not is a mistake, never skipped: a line that silently does nothing lets in, or keeps out, the
wrong people.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pgtlsproxy.identity import printable
from pgtlsproxy.policy.records import Field, LineError, Token
from pgtlsproxy.policy.rule import ClientCert, ClientName, ConnectionType, Method

_INSTEAD = {
    "ident": "use peer for Unix sockets, or cert",
    "sspi": "use trust, where the backend asks the client itself (login: passthrough), or cert",
}
"""Methods that PostgreSQL has and this version has not, and what to use."""

_BACKENDS_OPTIONS = {
    option: (methods, names)
    for methods, names, options in (
        (frozenset({Method.GSS}), "gssapi and sspi", "include_realm krb_realm"),
        (frozenset[Method](), "sspi", "compat_realm upn_username"),
        (
            frozenset({Method.LDAP}),
            "ldap",
            "ldapurl ldaptls ldapscheme ldapserver ldapport ldapbinddn ldapbindpasswd "
            "ldapsearchattribute ldapsearchfilter ldapbasedn ldapprefix ldapsuffix",
        ),
        (frozenset({Method.PAM}), "pam", "pamservice pam_use_hostname"),
        (
            frozenset({Method.RADIUS}),
            "radius",
            "radiusservers radiusports radiusidentifiers radiussecrets",
        ),
    )
    for option in options.split()
}
"""Options that mean something to the backend alone: of which methods, and how PostgreSQL calls those."""

_MEANT_FOR_THE_BACKEND = {
    "map": frozenset({Method.GSS, Method.OAUTH}),  # it knows by whom a ticket or a token is
    **dict.fromkeys(("issuer", "scope", "validator", "delegate_ident_mapping"), frozenset({Method.OAUTH})),
}
"""Options that only with these methods are the backend's, and are others or none without."""

_SECRETS = frozenset({"ldapbindpasswd", "radiussecrets"})


@dataclass(frozen=True, slots=True)
class Options:
    """What stands behind the method; see `HbaRule`."""

    clientcert: ClientCert = ClientCert.OFF
    clientname: ClientName = ClientName.CN
    map: str | None = None
    issuers: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


def parse_method(token: Token, connection_type: ConnectionType) -> Method:
    """The method of a line.

    Raises:
        LineError: there is none of this name, or not for this type.
    """
    is_local = connection_type is ConnectionType.LOCAL
    if token.text == "ident" and is_local:
        return Method.PEER  # its name at Unix sockets before PostgreSQL 9.1
    if token.text in _INSTEAD:
        raise LineError(f'authentication method "{token}" is not in this version: {_INSTEAD[token.text]}')
    try:
        method = Method(token.text)
    except ValueError:
        methods = ", ".join(Method)
        raise LineError(f'invalid authentication method "{token}": write one of {methods}') from None
    if method is Method.PEER and not is_local:
        raise LineError("peer authentication is only supported on local sockets")
    if method is Method.GSS and is_local:
        raise LineError("gssapi authentication is not supported on local sockets")
    if method is Method.CERT and connection_type is not ConnectionType.HOSTSSL:
        raise LineError("cert authentication is only supported on hostssl connections")
    return method


def parse_options(tokens: Field, connection_type: ConnectionType, method: Method) -> Options:
    """The options of a line; of one that is repeated the last counts, as in PostgreSQL, and of `issuer` all.

    Raises:
        LineError: one is unknown, or may not stand there.
    """
    options = Options()
    for token in tokens:
        name, equals, value = token.text.partition("=")
        if not equals:
            raise LineError(f"authentication option not in name=value format: {token}")
        match name:
            case _ if method in _MEANT_FOR_THE_BACKEND.get(name, ()):
                options = replace(options, ignored=(*options.ignored, f"{name}={printable(value)}"))
            case "map":
                options = replace(options, map=_map(method, value))
            case "clientcert":
                options = replace(options, clientcert=_clientcert(connection_type, method, value))
            case "clientname":
                options = replace(options, clientname=_clientname(connection_type, value))
            case "issuer":
                options = replace(options, issuers=(*options.issuers, _issuer(connection_type, value)))
            case _ if name in _BACKENDS_OPTIONS:
                options = replace(options, ignored=(*options.ignored, _backends_option(method, name, value)))
            case _:
                raise LineError(
                    f'unrecognized authentication option name: "{printable(name)}"; there are map, '
                    "clientcert, clientname and issuer"
                    + ("; a DN with commas in it needs quotes" if options.issuers else "")
                )
    if method is Method.CERT:
        options = replace(options, clientcert=ClientCert.VERIFY_FULL)
    _require_backends_options(options, method)
    _refuse_what_has_no_effect(options, method)
    return options


def _backends_option(method: Method, name: str, value: str) -> str:
    """An option that the backend's own file gives a meaning, as it is shown.

    Raises:
        LineError: it belongs to another method.
    """
    methods, names = _BACKENDS_OPTIONS[name]
    if method not in methods:
        raise LineError(f'authentication option "{name}" is only valid for authentication methods {names}')
    return f"{name}=***" if name in _SECRETS else f"{name}={printable(value)}"


def _require_backends_options(options: Options, method: Method) -> None:
    """Refuse a line that PostgreSQL would not load, either.

    Raises:
        LineError: an option is missing.
    """
    given = {option.partition("=")[0] for option in options.ignored}
    if method is Method.LDAP and not given & {"ldapbasedn", "ldapprefix", "ldapsuffix", "ldapurl"}:
        raise LineError(
            'authentication method "ldap" requires argument "ldapbasedn", "ldapprefix", or "ldapsuffix" '
            "to be set"
        )
    for name in ("radiusservers", "radiussecrets") if method is Method.RADIUS else ():
        if name not in given:
            raise LineError(f'authentication method "radius" requires argument "{name}" to be set')


def _refuse_what_has_no_effect(options: Options, method: Method) -> None:
    """Refuse our own options where they would do nothing. PostgreSQL's may stand where they do nothing there.

    Raises:
        LineError: one would.
    """
    if options.issuers and method is Method.REJECT:
        raise LineError("issuer does not choose whom a line is for: this one would reject everybody")
    if options.issuers and options.clientcert is ClientCert.OFF:
        raise LineError("issuer needs a line that asks for a certificate: cert, or clientcert=verify-ca")
    if options.clientname.is_alternative and options.clientcert is not ClientCert.VERIFY_FULL:
        raise LineError(
            f"clientname={options.clientname} needs a line that compares names: cert, or "
            "clientcert=verify-full"
        )


def _map(method: Method, value: str) -> str:
    if method not in {Method.CERT, Method.PEER}:
        raise LineError(
            'authentication option "map" is only valid for authentication methods '
            "ident, peer, gssapi, sspi, and cert"
        )
    if not value:
        raise LineError('authentication option "map" is empty; leave it out where no map is wanted')
    return value


def _clientcert(connection_type: ConnectionType, method: Method, value: str) -> ClientCert:
    if connection_type is not ConnectionType.HOSTSSL:
        raise LineError('clientcert can only be configured for "hostssl" rows')
    if method is Method.CERT and value == ClientCert.VERIFY_CA:
        raise LineError('clientcert only accepts "verify-full" when using "cert" authentication')
    if value not in {ClientCert.VERIFY_CA, ClientCert.VERIFY_FULL}:
        raise LineError(f'invalid value for clientcert: "{printable(value)}"; write verify-ca or verify-full')
    return ClientCert(value)


def _clientname(connection_type: ConnectionType, value: str) -> ClientName:
    if connection_type is not ConnectionType.HOSTSSL:
        raise LineError('clientname can only be configured for "hostssl" rows')
    try:
        return ClientName(value)
    except ValueError:
        names = ", ".join(ClientName)
        raise LineError(f'invalid value for clientname: "{printable(value)}"; write one of {names}') from None


def _issuer(connection_type: ConnectionType, value: str) -> str:
    if connection_type is not ConnectionType.HOSTSSL:
        raise LineError('issuer can only be configured for "hostssl" rows')
    if not value:
        raise LineError('authentication option "issuer" is empty; write the subject of a CA in ssl_ca_file')
    return value
