"""Who is let in: every combination of what decides it, and the verdict that must come.

This file is for a reviewer of security. It knows nothing of pgtlsproxy: `expected` is written from the
rules alone, which are:

* The one rule. A session is let in only with a proof that names its user. The proxy makes it (the name in
  a client certificate, the operating system user at a Unix socket), or the backend does, by a challenge that
  the client's own bytes answered. A backend that believes the proxy's certificate, uid or address has proved
  nobody.
* K1. With passthrough, an AuthenticationOk that nobody had to answer for lets nobody in (28000), unless the
  proxy proved the user, or the administrator wrote `require_auth: ...none`.
* K2. Where the proxy logs in with its own credential, a line that asks for no proof loads only for users
  listed by name, at a Unix socket or a loopback address. A line that asks for a password loads only where the
  listener has the users' verifiers: then the proxy asks, before it dials, and nobody gets further unproved.
* K3. A backend may ask only what the line and the login foresee, else 57P03 and no byte of the client's goes
  there: with login certificate nothing at all; with login passfile a whole SCRAM exchange with the proxy; for a scram-sha-256 line a whole SCRAM exchange; a password in
  clear never crosses a client's clear leg from afar; for a password line a whole SCRAM exchange, in which the
  proxy proves what the client has shown it, or the backend's own question for it. A Unix socket's server must run as `requirepeer`.
* K4. In clear text only loopback, Unix sockets and `plaintext_from` start a session; else 28000.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

USER, ANOTHER = "alice", "bob"


class Login(enum.StrEnum):
    """How the backend is satisfied."""

    PASSTHROUGH = "passthrough"
    PASSTHROUGH_OR_NONE = "passthrough with require_auth scram-sha-256,none"
    CERTIFICATE = "certificate"
    CERTIFICATE_VERIFIERS = "certificate, and the listener has the users' verifiers"
    PASSFILE = "passfile, and the listener has the users' verifiers"

    @property
    def is_passthrough(self) -> bool:
        return self in {Login.PASSTHROUGH, Login.PASSTHROUGH_OR_NONE}


class Method(enum.StrEnum):
    """What a line of pg_hba.conf says behind the address; the map `people` has USER's and ANOTHER's names."""

    REJECT = "reject"
    TRUST = "trust"
    TRUST_LITERAL = "trust, for literal users at loopback"
    TRUST_VERIFY_CA = "trust clientcert=verify-ca"
    TRUST_VERIFY_FULL = "trust clientcert=verify-full"
    CERT = "cert"
    CERT_MAP = "cert map=people"
    PEER_MAP = "peer map=people"
    SCRAM = "scram-sha-256"
    SCRAM_VERIFY_FULL = "scram-sha-256 clientcert=verify-full"
    PASSWORD = "password"


class Listener(enum.StrEnum):
    """How clients come."""

    TLS = "TLS from loopback"
    CLEAR = "in clear from loopback, ssl off"
    UNIX = "Unix socket"
    AFAR = "in clear from afar, ssl on"
    LISTED = "in clear from afar, ssl off, plaintext_from"

    @property
    def speaks_tls(self) -> bool:
        return self in {Listener.TLS, Listener.AFAR}


class Shown(enum.StrEnum):
    """Whose name a client can show: by a certificate in TLS, by its uid at a Unix socket."""

    NOTHING = "no certificate"
    OWN = "the user's"
    ANOTHERS = "another user's"
    OTHER_CA = "another CA's"


class Secret(enum.StrEnum):
    """Which password a client has."""

    RIGHT = "right secret"
    WRONG = "wrong secret"
    NONE = "no secret"


class Backend(enum.StrEnum):
    """What the server does with a session; the fakes are servers whose TLS is good and whose heart is not."""

    SCRAM = "scram"
    TRUST = "trusts the proxy's address"
    CERT_MAP = "takes the proxy's certificate for anybody"
    PEER = "takes the proxy's uid for anybody"
    IMPOSTOR = "runs as somebody else than requirepeer says"
    FAKE_OK = "0: lets everybody in"
    FAKE_CLEARTEXT = "3: asks for a password in clear"
    FAKE_MD5 = "5: asks for an MD5 password"
    FAKE_GSS = "7: asks for a Kerberos token"
    FAKE_GSS_CONTINUE = "8: goes on with what never began"
    FAKE_SSPI = "9: asks for a Windows token"
    FAKE_OAUTH = "10: asks for an OAuth token"
    FAKE_HALF_SCRAM = "10: lets in amid the SCRAM exchange"
    FAKE_SASL_FINAL = "12: ends what never began"

    @property
    def is_unix(self) -> bool:
        return self in {Backend.PEER, Backend.IMPOSTOR}

    @property
    def is_fake(self) -> bool:
        return self.name.startswith("FAKE")


class Verdict(enum.StrEnum):
    """What becomes of a client."""

    NOT_LOADABLE = "not loadable"
    LET_IN = "let in"
    ASKED = "asked for a secret that it does not have"
    HANDSHAKE_FAILS = "refused in the TLS handshake"
    PROXY_28000 = "refused by the proxy with 28000"
    PROXY_28P01 = "refused by the proxy with 28P01"
    PROXY_57P03 = "refused by the proxy with 57P03"
    BACKEND_28P01 = "refused by the backend with 28P01"


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination."""

    login: Login
    method: Method
    listener: Listener
    shown: Shown
    secret: Secret
    backend: Backend

    def __str__(self) -> str:
        parts = (self.login, self.method, self.listener, self.shown, self.secret, self.backend)
        return "-".join(part.name.lower() for part in parts)


BY_CERTIFICATE = {
    Method.TRUST_VERIFY_CA, Method.TRUST_VERIFY_FULL, Method.CERT, Method.CERT_MAP, Method.SCRAM_VERIFY_FULL
}  # fmt: skip
BY_NAME_IN_CERTIFICATE = BY_CERTIFICATE - {Method.TRUST_VERIFY_CA}
BY_SCRAM = {Method.SCRAM, Method.SCRAM_VERIFY_FULL}
BY_PASSWORD = BY_SCRAM | {Method.PASSWORD}
WITHOUT_PROOF = {Method.TRUST, Method.TRUST_VERIFY_CA}


def hba_line(method: Method, listener: Listener) -> str:
    """The one line of the listener's pg_hba.conf, as an administrator would write it."""
    if method in BY_CERTIFICATE:
        return f"hostssl all all all {method}"
    if method is Method.PEER_MAP:
        return f"local all all {method}"
    users, address, options = "all", "all", str(method)
    if method is Method.TRUST_LITERAL:
        users, address, options = f"{USER},{ANOTHER}", "127.0.0.1/32", "trust"
    if listener is Listener.UNIX:
        return f"local all {users} {options}"
    return f"host all {users} {address} {options}"


def expected(cell: Cell) -> Verdict:
    """The verdict, taken from the rules: what comes first refuses first."""
    if not is_loadable(cell):
        return Verdict.NOT_LOADABLE
    if cell.shown is Shown.OTHER_CA:
        return Verdict.HANDSHAKE_FAILS
    if cell.listener is Listener.AFAR:
        return Verdict.PROXY_28000  # K4, whatever pg_hba.conf says
    if not line_matches(cell) or cell.method is Method.REJECT:
        return Verdict.PROXY_28000
    if cell.method in BY_CERTIFICATE and cell.shown is Shown.NOTHING:
        return Verdict.PROXY_28000
    if demands_a_name(cell.method) and cell.shown is not Shown.OWN:
        # PostgreSQL answers a wrong name as it answers a failure of the line's method.
        return Verdict.PROXY_28P01 if cell.method is Method.SCRAM_VERIFY_FULL else Verdict.PROXY_28000
    if cell.method in BY_PASSWORD and not cell.login.is_passthrough and cell.secret is not Secret.RIGHT:
        return Verdict.ASKED if cell.secret is Secret.NONE else Verdict.PROXY_28P01
    return verdict_at_backend(cell)


def is_loadable(cell: Cell) -> bool:
    """K2, and K3 for passwords; a line that no client of the listener can match is not judged."""
    if cell.method is Method.PASSWORD and cell.listener is Listener.LISTED:
        return False
    if cell.login.is_passthrough or not is_reachable(cell.method, cell.listener):
        return True
    return cell.method not in (
        WITHOUT_PROOF if cell.login is not Login.CERTIFICATE else WITHOUT_PROOF | BY_PASSWORD
    )


def is_reachable(method: Method, listener: Listener) -> bool:
    """Whether some client of the listener could match the line's first column."""
    match hba_line(method, listener).split()[0]:
        case "local":
            return listener is Listener.UNIX
        case "hostssl":
            return listener.speaks_tls
        case _:
            return listener is not Listener.UNIX


def line_matches(cell: Cell) -> bool:
    """Whether this very client matches the line's type and address."""
    if cell.method in BY_CERTIFICATE:
        return cell.listener is Listener.TLS
    if cell.method is Method.PEER_MAP:
        return cell.listener is Listener.UNIX
    is_from_afar = cell.listener in {Listener.AFAR, Listener.LISTED}
    return not (cell.method is Method.TRUST_LITERAL and is_from_afar)


def demands_a_name(method: Method) -> bool:
    """Whether the client must have shown the user's own name."""
    return method in BY_NAME_IN_CERTIFICATE or method is Method.PEER_MAP


def verdict_at_backend(cell: Cell) -> Verdict:
    """The line is content, and the proxy has dialled."""
    if cell.backend is Backend.IMPOSTOR:
        return Verdict.PROXY_57P03  # K3: requirepeer
    if not may_ask(cell):
        return Verdict.PROXY_57P03  # K3: the wrong challenge
    if asks_nothing(cell.backend):
        return Verdict.LET_IN if is_proved_without_challenge(cell) else Verdict.PROXY_28000  # K1
    if cell.backend in {Backend.FAKE_HALF_SCRAM, Backend.FAKE_GSS_CONTINUE, Backend.FAKE_SASL_FINAL}:
        return Verdict.PROXY_57P03  # no exchange goes like this
    if cell.login is Login.PASSFILE:
        return Verdict.LET_IN  # its password is right, whatever the client's is
    return {
        Secret.RIGHT: Verdict.LET_IN,
        Secret.WRONG: Verdict.BACKEND_28P01,
        Secret.NONE: Verdict.ASKED,
    }[cell.secret]


def asks_nothing(backend: Backend) -> bool:
    """Whether the backend lets the proxy's sessions in unasked."""
    return backend in {Backend.TRUST, Backend.CERT_MAP, Backend.PEER, Backend.FAKE_OK}


def may_ask(cell: Cell) -> bool:
    """K3: whether the backend's first message is one that the line and the login foresee."""
    backend = cell.backend
    if cell.login is Login.PASSFILE:
        return backend in {Backend.SCRAM, Backend.FAKE_HALF_SCRAM}
    if not cell.login.is_passthrough:
        return asks_nothing(backend)
    if cell.method in BY_SCRAM:
        return backend in {Backend.SCRAM, Backend.FAKE_HALF_SCRAM}
    if cell.method is Method.PASSWORD:
        return backend in {Backend.SCRAM, Backend.FAKE_HALF_SCRAM, Backend.FAKE_CLEARTEXT}
    if backend is Backend.FAKE_SSPI:
        return False  # of PostgreSQL on Windows, which no line here stands for
    if cell.listener is Listener.LISTED and backend in {Backend.FAKE_CLEARTEXT, Backend.FAKE_OAUTH}:
        return False  # both are a secret in clear, and the client's leg is clear
    if cell.login is Login.PASSTHROUGH_OR_NONE:
        return asks_nothing(backend) or backend is Backend.SCRAM  # what require_auth lists
    return True


def is_proved_without_challenge(cell: Cell) -> bool:
    """The one rule, where the backend has asked nobody."""
    if demands_a_name(cell.method):
        return True  # the proxy has proved the user
    if not cell.login.is_passthrough:
        # K2, judged when it was loaded; a password has been asked for, and was right.
        return cell.method is Method.TRUST_LITERAL or cell.method in BY_PASSWORD
    return cell.login is Login.PASSTHROUGH_OR_NONE


BACKENDS = (Backend.SCRAM, Backend.TRUST, Backend.CERT_MAP, Backend.PEER, Backend.FAKE_OK)

SHOWN_AT = {
    Listener.TLS: tuple(Shown),
    Listener.CLEAR: (Shown.NOTHING,),
    Listener.UNIX: (Shown.OWN, Shown.ANOTHERS),  # a uid cannot be withheld
}


def cells() -> Iterator[Cell]:
    """Every cell, once."""
    yield from dict.fromkeys((*_main_cells(), *_cells_from_afar(), *_require_auth_cells(), *_opening_cells()))


def _main_cells() -> Iterator[Cell]:
    """Everything with everything, as far as it exists: only TLS and Unix sockets show whose client it is."""
    logins = (Login.PASSTHROUGH, Login.CERTIFICATE)
    everything = product(logins, Method, SHOWN_AT, BACKENDS)
    asked_here = product(
        [Login.CERTIFICATE_VERIFIERS, Login.PASSFILE],
        (Method.TRUST, Method.SCRAM, Method.SCRAM_VERIFY_FULL, Method.PASSWORD),
        SHOWN_AT,
        BACKENDS,
    )
    for login, method, listener, backend in (*everything, *asked_here):
        for shown, secret in product(SHOWN_AT[listener], Secret):
            # A failed handshake is over before anybody could ask for a secret.
            if shown is not Shown.OTHER_CA or secret is Secret.RIGHT:
                yield Cell(login, method, listener, shown, secret, backend)


def _cells_from_afar() -> Iterator[Cell]:
    """K4: clear text from beyond this host."""
    logins = (Login.PASSTHROUGH, Login.CERTIFICATE, Login.CERTIFICATE_VERIFIERS, Login.PASSFILE)
    methods = (Method.TRUST, Method.TRUST_LITERAL, Method.CERT, Method.SCRAM, Method.PASSWORD)
    listeners = (Listener.AFAR, Listener.LISTED)
    for login, method, listener, backend in product(logins, methods, listeners, BACKENDS):
        yield Cell(login, method, listener, Shown.NOTHING, Secret.RIGHT, backend)


def _require_auth_cells() -> Iterator[Cell]:
    """What an administrator who writes `none` opens, and what stays closed even then."""
    methods = (Method.TRUST, Method.TRUST_VERIFY_CA, Method.CERT, Method.SCRAM)
    backends = (*BACKENDS, Backend.FAKE_CLEARTEXT)
    for method, backend, secret in product(methods, backends, Secret):
        yield Cell(Login.PASSTHROUGH_OR_NONE, method, Listener.TLS, Shown.OWN, secret, backend)


def _opening_cells() -> Iterator[Cell]:
    """K3: a server that is not the right one, and fakes that open with every message there is."""
    logins = (Login.PASSTHROUGH, Login.CERTIFICATE, Login.CERTIFICATE_VERIFIERS, Login.PASSFILE)
    backends = [backend for backend in Backend if backend.is_fake or backend is Backend.IMPOSTOR]
    lines = (
        (Method.TRUST, Listener.TLS, Shown.NOTHING),
        (Method.CERT, Listener.TLS, Shown.OWN),
        (Method.SCRAM, Listener.TLS, Shown.NOTHING),
        (Method.PASSWORD, Listener.TLS, Shown.NOTHING),
        (Method.TRUST, Listener.CLEAR, Shown.NOTHING),
        (Method.TRUST_LITERAL, Listener.CLEAR, Shown.NOTHING),
        (Method.PEER_MAP, Listener.UNIX, Shown.OWN),
        (Method.TRUST, Listener.LISTED, Shown.NOTHING),
        (Method.SCRAM, Listener.LISTED, Shown.NOTHING),
        (Method.PASSWORD, Listener.CLEAR, Shown.NOTHING),
    )
    for login, (method, listener, shown), backend in product(logins, lines, backends):
        yield Cell(login, method, listener, shown, Secret.RIGHT, backend)


def by_hand() -> dict[Cell, Verdict]:
    """Verdicts that were written down by hand, so that `expected` itself is held against something."""
    c, m, o, s, b, v = Login, Method, Listener, Shown, Backend, Verdict
    right, wrong, none = Secret
    rows = (
        # Legacy: the backend asks the client in clear text on loopback, the proxy carries it over TLS.
        (c.PASSTHROUGH, m.SCRAM, o.CLEAR, s.NOTHING, right, b.SCRAM, v.LET_IN),
        (c.PASSTHROUGH, m.SCRAM, o.CLEAR, s.NOTHING, wrong, b.SCRAM, v.BACKEND_28P01),
        (c.PASSTHROUGH, m.TRUST, o.CLEAR, s.NOTHING, none, b.SCRAM, v.ASKED),
        # The confused deputy: superuser without a password, had the proxy believed the backend.
        (c.PASSTHROUGH, m.TRUST, o.CLEAR, s.NOTHING, none, b.CERT_MAP, v.PROXY_28000),
        (c.PASSTHROUGH, m.TRUST, o.TLS, s.NOTHING, none, b.PEER, v.PROXY_28000),
        (c.PASSTHROUGH, m.TRUST, o.TLS, s.OWN, right, b.TRUST, v.PROXY_28000),
        (c.PASSTHROUGH, m.TRUST_VERIFY_CA, o.TLS, s.ANOTHERS, none, b.CERT_MAP, v.PROXY_28000),
        (c.PASSTHROUGH, m.TRUST, o.UNIX, s.OWN, none, b.FAKE_OK, v.PROXY_28000),
        (c.PASSTHROUGH, m.SCRAM, o.TLS, s.OWN, right, b.TRUST, v.PROXY_57P03),
        (c.PASSTHROUGH_OR_NONE, m.TRUST, o.TLS, s.OWN, none, b.TRUST, v.LET_IN),
        (c.PASSTHROUGH_OR_NONE, m.SCRAM, o.TLS, s.OWN, none, b.TRUST, v.PROXY_57P03),
        # Central: the certificate is the proof, the proxy's own certificate opens the backend.
        (c.CERTIFICATE, m.CERT, o.TLS, s.OWN, none, b.CERT_MAP, v.LET_IN),
        (c.CERTIFICATE, m.CERT_MAP, o.TLS, s.OWN, none, b.CERT_MAP, v.LET_IN),
        (c.CERTIFICATE, m.CERT, o.TLS, s.ANOTHERS, none, b.CERT_MAP, v.PROXY_28000),
        (c.CERTIFICATE, m.CERT_MAP, o.TLS, s.ANOTHERS, right, b.CERT_MAP, v.PROXY_28000),
        (c.CERTIFICATE, m.CERT, o.TLS, s.NOTHING, right, b.CERT_MAP, v.PROXY_28000),
        (c.CERTIFICATE, m.CERT, o.TLS, s.OTHER_CA, right, b.CERT_MAP, v.HANDSHAKE_FAILS),
        (c.CERTIFICATE, m.CERT, o.TLS, s.OWN, right, b.SCRAM, v.PROXY_57P03),
        (c.CERTIFICATE, m.CERT, o.CLEAR, s.NOTHING, right, b.CERT_MAP, v.PROXY_28000),
        # Sidecar: the uid is the proof.
        (c.CERTIFICATE, m.PEER_MAP, o.UNIX, s.OWN, none, b.PEER, v.LET_IN),
        (c.CERTIFICATE, m.PEER_MAP, o.UNIX, s.ANOTHERS, none, b.PEER, v.PROXY_28000),
        (c.CERTIFICATE, m.PEER_MAP, o.UNIX, s.OWN, right, b.IMPOSTOR, v.PROXY_57P03),
        # Trust with the proxy's own credential.
        (c.CERTIFICATE, m.TRUST, o.CLEAR, s.NOTHING, none, b.CERT_MAP, v.NOT_LOADABLE),
        (c.CERTIFICATE, m.TRUST, o.UNIX, s.OWN, none, b.PEER, v.NOT_LOADABLE),
        (c.CERTIFICATE, m.TRUST_VERIFY_CA, o.TLS, s.OWN, none, b.CERT_MAP, v.NOT_LOADABLE),
        (c.CERTIFICATE, m.SCRAM, o.TLS, s.OWN, right, b.CERT_MAP, v.NOT_LOADABLE),
        (c.CERTIFICATE, m.TRUST_LITERAL, o.CLEAR, s.NOTHING, none, b.CERT_MAP, v.LET_IN),
        (c.CERTIFICATE, m.TRUST_LITERAL, o.LISTED, s.NOTHING, right, b.CERT_MAP, v.PROXY_28000),
        # The wrong challenge.
        (c.CERTIFICATE, m.CERT, o.TLS, s.OWN, right, b.FAKE_CLEARTEXT, v.PROXY_57P03),
        (c.PASSTHROUGH, m.SCRAM, o.TLS, s.NOTHING, right, b.FAKE_CLEARTEXT, v.PROXY_57P03),
        (c.PASSTHROUGH, m.TRUST, o.TLS, s.NOTHING, right, b.FAKE_HALF_SCRAM, v.PROXY_57P03),
        (c.PASSTHROUGH, m.TRUST, o.TLS, s.NOTHING, right, b.FAKE_CLEARTEXT, v.LET_IN),
        (c.PASSTHROUGH, m.TRUST, o.LISTED, s.NOTHING, right, b.FAKE_CLEARTEXT, v.PROXY_57P03),
        # Clear text at a TLS listener.
        (c.PASSTHROUGH, m.TRUST, o.AFAR, s.NOTHING, right, b.SCRAM, v.PROXY_28000),
        (c.PASSTHROUGH, m.TRUST, o.LISTED, s.NOTHING, right, b.SCRAM, v.LET_IN),
    )  # fmt: skip
    return {Cell(*row[:6]): row[6] for row in rows}
