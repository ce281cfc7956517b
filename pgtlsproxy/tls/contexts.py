"""OpenSSL contexts, built from memory: one a listener, one a backend, new ones at every reload.

A context is never changed once a connection has used it. What every context here has in common:
no session tickets, no session cache, no renegotiation, no compression, no early data. A resumed
session would skip the verification of its certificate, so none may be resumed; PostgreSQL's own
server does the same (`be_tls_init` in be-secure-openssl.c).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from OpenSSL import SSL, crypto

from pgtlsproxy.errors import Mistake
from pgtlsproxy.tls import diffie_hellman, openssl
from pgtlsproxy.tls.root_lists import RootLists
from pgtlsproxy.tls.rsa_pss import as_pss_key
from pgtlsproxy.tls.trust import Trust, add_anchors, add_crls

ALPN_PROTOCOL: Final = b"postgresql"
HTTP_PROTOCOL: Final = b"http/1.1"

DEFAULT_CIPHERS: Final = "HIGH:MEDIUM:+3DES:!aNULL"
"""postgresql.conf's default for `ssl_ciphers`. It rules TLS 1.2 alone."""

DEFAULT_CLIENT_GROUPS: Final = "X25519:prime256v1"
"""postgresql.conf's default for `ssl_groups`."""

DEFAULT_BACKEND_GROUPS: Final = "prime256v1:X25519"
"""P-256 first: PostgreSQL before 18 takes nothing else, and would answer with HelloRetryRequest."""

PROTOCOL_VERSIONS: Final = {
    "TLSv1": SSL.TLS1_VERSION,
    "TLSv1.1": SSL.TLS1_1_VERSION,
    "TLSv1.2": SSL.TLS1_2_VERSION,
    "TLSv1.3": SSL.TLS1_3_VERSION,
}
"""The names that postgresql.conf and libpq use, in ascending order."""


MAX_FLIGHTS: Final = 4
"""Round trips of the longest handshake, a TLS 1.2 one or one with HelloRetryRequest, and one more."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A private key and its certificate chain, leaf first."""

    chain: tuple[x509.Certificate, ...]
    key: PrivateKeyTypes = field(repr=False)

    @property
    def leaf(self) -> x509.Certificate:
        """The certificate of the key."""
        return self.chain[0]


@dataclass(frozen=True, slots=True)
class TLSOptions:
    """What a leg's TLS settings ask of OpenSSL, in the spelling of postgresql.conf.

    Args:
        min_protocol_version, max_protocol_version: a key of PROTOCOL_VERSIONS; None leaves the end open.
        ciphers: an OpenSSL cipher list for TLS 1.2.
        tls13_ciphers: suites of TLS 1.3, joined by colons; empty for OpenSSL's default.
        groups: key exchange groups, joined by colons.
        prefer_server_ciphers: whether the order of the server decides.
        dh_params: PEM of a listener's Diffie-Hellman parameters for DHE suites; None for PostgreSQL's own,
            where the security level of `ciphers` has a use for 2048 bits.
    """

    min_protocol_version: str = "TLSv1.2"
    max_protocol_version: str | None = None
    ciphers: str = DEFAULT_CIPHERS
    tls13_ciphers: str = ""
    groups: str = DEFAULT_CLIENT_GROUPS
    prefer_server_ciphers: bool = True
    dh_params: bytes | None = field(default=None, repr=False)


@dataclass(slots=True)
class HandshakeRecord:
    """What the verification of one connection noticed, for the log. It decides nothing.

    Set as the connection's app data before the handshake.

    Args:
        verify_error: OpenSSL's error number, 0 when none.
        verify_depth: where in the chain, 0 is the leaf.
        certificate: the certificate that did not verify.
    """

    verify_error: int = 0
    verify_depth: int = 0
    certificate: x509.Certificate | None = None


UNREADABLE: Final = (ValueError, x509.InvalidVersion)
"""What cryptography raises at certificates that OpenSSL reads and it does not."""

UNUSABLE: Final = (*UNREADABLE, crypto.Error, SSL.Error)
"""What comes of a certificate or CRL that one of the two does not take: their parsers differ."""


class NoCommonALPN(Exception):
    """The client offered ALPN protocols and `postgresql` was not among them."""


class ContextError(Exception):
    """A context cannot be built. `mistakes` are (setting, what is wrong) pairs."""

    def __init__(self, mistakes: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{key}: {what}" for key, what in mistakes))
        self.mistakes = tuple(mistakes)

    def located(self, where: str, names: dict[str, str] | None = None) -> list[Mistake]:
        """The mistakes as the configuration reports them, under the key path `where`."""
        return [Mistake(f"{where}.{(names or {}).get(key, key)}", what) for key, what in self.mistakes]


def server_context(
    pair: KeyPair, trust: Trust | None, options: TLSOptions, protocol: bytes = ALPN_PROTOCOL
) -> SSL.Context:
    """The context of a listener.

    Client certificates are requested where there is a trust, verified when given, and never
    required here: pg_hba decides that later, as in PostgreSQL.

    Args:
        pair: the certificate and its key.
        trust: who vouches for clients.
        options: further settings.
        protocol: ALPN's name of what is spoken; a client that offers others alone is refused.

    Raises:
        ContextError: with every setting that OpenSSL refuses, or would have ignored in silence.
    """
    context = _base_context(SSL.TLS_SERVER_METHOD)
    mistakes = [*_apply_options(context, options), *_apply_pair(context, pair, "ssl_key_file")]
    if trust is None:
        context.set_verify(SSL.VERIFY_NONE, None)
    else:
        mistakes.extend(_apply_trust(context, trust, "ssl_ca_file", "ssl_crl_file"))
    context.set_session_id(b"pgtlsproxy")
    context.set_alpn_select_callback(partial(_select_alpn, protocol))
    mistakes.extend(_apply_dh_params(context, options.dh_params))
    if mistakes:
        raise ContextError(mistakes)
    for anchor in trust.anchors if trust is not None else ():
        # Java and .NET choose their certificate by the list of acceptable issuers.
        context.add_client_ca(anchor)
    handshake_with_itself(context, options)
    return context


def backend_context(pair: KeyPair | None, trust: Trust | None, options: TLSOptions) -> SSL.Context:
    """The context towards a backend. Without a trust nothing is verified (sslmode below verify-ca).

    The host name is not checked here: `tls.verify` does it after the handshake.

    Raises:
        ContextError: as `server_context`.
    """
    context = _base_context(SSL.TLS_CLIENT_METHOD)
    mistakes = _apply_options(context, options)
    if pair is not None:
        mistakes.extend(_apply_pair(context, pair, "sslkey"))
    if trust is None:
        context.set_verify(SSL.VERIFY_NONE, None)
    else:
        mistakes.extend(_apply_trust(context, trust, "sslrootcert", "sslcrl"))
    context.set_alpn_protos([ALPN_PROTOCOL])
    if mistakes:
        raise ContextError(mistakes)
    return context


def _base_context(method: int) -> SSL.Context:
    context = SSL.Context(method)
    context.set_options(
        SSL.OP_NO_TICKET
        | SSL.OP_NO_COMPRESSION
        | SSL.OP_NO_RENEGOTIATION
        | SSL.OP_SINGLE_DH_USE
        | SSL.OP_SINGLE_ECDH_USE
    )
    # OP_NO_TICKET alone leaves TLS 1.3's stateful tickets, which do resume.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    return context


def _apply_options(context: SSL.Context, options: TLSOptions) -> list[tuple[str, str]]:
    mistakes: list[tuple[str, str]] = []
    context.set_min_proto_version(PROTOCOL_VERSIONS[options.min_protocol_version])
    if options.max_protocol_version is not None:
        context.set_max_proto_version(PROTOCOL_VERSIONS[options.max_protocol_version])
    if options.prefer_server_ciphers:
        context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE)
    try:
        context.set_cipher_list(options.ciphers.encode("ascii", "replace"))
    except SSL.Error:
        mistakes.append(("ssl_ciphers", f'no cipher of "{options.ciphers}" is known to OpenSSL'))
    if (
        PROTOCOL_VERSIONS[options.min_protocol_version] < SSL.TLS1_2_VERSION
        and "@SECLEVEL=0" not in options.ciphers
    ):
        mistakes.append(
            (
                "ssl_min_protocol_version",
                f"{options.min_protocol_version} cannot be negotiated at OpenSSL's security level: use "
                "TLSv1.2, or, for a client that can do nothing better, add @SECLEVEL=0 to ssl_ciphers",
            )
        )
    if options.tls13_ciphers:
        mistakes.extend(_apply_tls13_ciphers(context, options.tls13_ciphers))
    mistakes.extend(_apply_groups(context, options.groups))
    return mistakes


def _apply_tls13_ciphers(context: SSL.Context, suites: str) -> list[tuple[str, str]]:
    # OpenSSL drops unknown suites in silence as long as one is known, so each is tried alone.
    mistakes = []
    for suite in dict.fromkeys(suites.split(":")):
        try:
            if not suite:
                raise SSL.Error
            SSL.Context(SSL.TLS_SERVER_METHOD).set_tls13_ciphersuites(suite.encode("ascii", "replace"))
        except SSL.Error:
            mistakes.append(("ssl_tls13_ciphers", f'"{suite}" is no TLS 1.3 cipher suite that OpenSSL knows'))
    if not mistakes:
        context.set_tls13_ciphersuites(suites.encode("ascii"))
    return mistakes


def _apply_groups(context: SSL.Context, groups: str) -> list[tuple[str, str]]:
    # OpenSSL takes an empty list, and with `?` in front names that it does not know: both would
    # leave something else in force than what was written.
    names = groups.split(":")
    bad = [name for name in names if not name or not name.replace("-", "").replace("_", "").isalnum()]
    if not bad:
        probe = SSL.Context(SSL.TLS_SERVER_METHOD)
        results = {name: openssl.set_groups(probe, name) for name in names}
        if None in results.values():
            if groups in {DEFAULT_CLIENT_GROUPS, DEFAULT_BACKEND_GROUPS}:
                return []  # OpenSSL's own list has both groups, too
            return [
                ("ssl_groups", "this pyOpenSSL does not let a list of groups be set: leave the setting out")
            ]
        bad = [name for name, known in results.items() if not known]
    if bad:
        return [("ssl_groups", f'"{name}" is no key exchange group that OpenSSL knows') for name in bad]
    openssl.set_groups(context, groups)
    return []


def _apply_pair(context: SSL.Context, pair: KeyPair, key_setting: str) -> list[tuple[str, str]]:
    try:
        context.use_certificate(pair.leaf)
        for intermediate in pair.chain[1:]:
            context.add_extra_chain_cert(intermediate)
        pss_key = as_pss_key(pair.leaf, pair.key)
        if pss_key is None:
            context.use_privatekey(pair.key)  # type: ignore[arg-type] # DH and X25519 keys fail here, as they should
        elif openssl.use_key(context, pss_key) is None:
            return [
                (key_setting, "this pyOpenSSL takes no RSA-PSS keys: make a certificate with a plain RSA key")
            ]
        context.check_privatekey()
    except (*UNUSABLE, TypeError) as error:
        return [(key_setting, f"OpenSSL does not take the certificate and its key: {openssl_reason(error)}")]
    return []


def _apply_trust(
    context: SSL.Context, trust: Trust, ca_setting: str, crl_setting: str
) -> list[tuple[str, str]]:
    openssl.verify_with(context, _note_verify_error)
    store = context.get_cert_store()
    if store is None:  # pragma: no cover - OpenSSL makes one with every context
        return [(ca_setting, "OpenSSL has no certificate store")]
    try:
        add_anchors(store, trust)
    except UNUSABLE as error:
        return [(ca_setting, f"OpenSSL does not take a certificate in it: {openssl_reason(error)}")]
    try:
        add_crls(store, trust)
    except UNUSABLE as error:
        return [(crl_setting, f"OpenSSL does not take a CRL in it: {openssl_reason(error)}")]
    if trust.check_crls:
        context.set_app_data(RootLists(trust))
    return []


def _apply_dh_params(context: SSL.Context, pem: bytes | None) -> list[tuple[str, str]]:
    try:
        diffie_hellman.set_parameters(context, pem or diffie_hellman.BUILT_IN)
    except (diffie_hellman.UnusableParameters, SSL.Error) as error:
        if pem is None and isinstance(error, SSL.Error):
            return []  # @SECLEVEL=3 and above leave no DHE suite
        return [("ssl_dh_params_file", f"OpenSSL does not take these DH parameters: {openssl_reason(error)}")]
    return []


def _select_alpn(protocol: bytes, _connection: SSL.Connection, offered: list[bytes]) -> bytes:
    # pyOpenSSL's NO_OVERLAPPING_PROTOCOLS would go on without ALPN; raising ends the handshake with
    # no_application_protocol, which stops a cross-protocol attack (ALPACA).
    if protocol in offered:
        return protocol
    raise NoCommonALPN


def _note_verify_error(
    connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, verified: int
) -> bool:
    # Notes, never decides: what OpenSSL found stands.
    record = connection.get_app_data()
    if not verified and isinstance(record, HandshakeRecord):
        record.verify_error, record.verify_depth = error, depth
        with contextlib.suppress(*UNREADABLE):
            record.certificate = certificate.to_cryptography()
    return bool(verified)


def handshake_with_itself(context: SSL.Context, options: TLSOptions) -> None:
    """Prove in memory that a client can complete a handshake with a server context.

    Raises:
        ContextError: no version, cipher, group or signature is left that both ends could use.
    """
    peer = SSL.Context(SSL.TLS_CLIENT_METHOD)
    peer.set_min_proto_version(PROTOCOL_VERSIONS[options.min_protocol_version])
    peer.set_cipher_list(b"ALL:@SECLEVEL=0")
    openssl.set_groups(peer, options.groups)
    server, client = SSL.Connection(context, None), SSL.Connection(peer, None)
    server.set_app_data(HandshakeRecord())
    server.set_accept_state()
    client.set_connect_state()
    try:
        handshake(server, client)
    except SSL.Error as error:
        what = f"no client can complete a handshake with these settings: {openssl_reason(error)}"
        raise ContextError([("ssl_ciphers", what)]) from None


def handshake(server: SSL.Connection, client: SSL.Connection) -> None:
    """Take two connections that lie in memory through a handshake, and the client through its first read.

    In TLS 1.3 a client learns what became of its certificate only then.

    Raises:
        SSL.Error: it failed on one side.
    """
    for _ in range(MAX_FLIGHTS):
        for connection in (server, client):
            with contextlib.suppress(SSL.WantReadError):
                connection.do_handshake()
            _carry(server, client)
            _carry(client, server)
    client.do_handshake()
    server.do_handshake()
    with contextlib.suppress(SSL.WantReadError):
        client.recv(1)


def _carry(source: SSL.Connection, sink: SSL.Connection) -> None:
    with contextlib.suppress(SSL.WantReadError):
        while True:
            sink.bio_write(source.bio_read(65536))


def openssl_reason(error: BaseException) -> str:
    """OpenSSL's own words from an exception of pyOpenSSL, in one line."""
    details = error.args[0] if error.args else ""
    if isinstance(details, list):
        return "; ".join(str(entry[-1]) for entry in details if entry) or type(error).__name__
    return str(details) or type(error).__name__
