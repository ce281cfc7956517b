"""What becomes of a case: at a listener, on the way to a backend, at a PostgreSQL, and with libpq."""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL, crypto
from OpenSSL._util import lib

from chains.case import Case, Role
from chains.issuing import Node, pem
from fixtures import wire
from pgtlsproxy import pki
from pgtlsproxy.errors import BackendTLSFailed, ClientCertificateRefused, ClientTLSFailed
from pgtlsproxy.tls.anchors import require_root
from pgtlsproxy.tls.certificates import describe, require_named_types
from pgtlsproxy.tls.contexts import (
    DEFAULT_BACKEND_GROUPS,
    ContextError,
    KeyPair,
    TLSOptions,
    backend_context,
    server_context,
)
from pgtlsproxy.tls.file_access import UnusableFile
from pgtlsproxy.tls.files import revocation_lists, trusted_certificates
from pgtlsproxy.tls.name_constraints import require_permitted
from pgtlsproxy.tls.stream import LegLost, accept_tls, connect_tls
from pgtlsproxy.tls.trust import Trust
from pgtlsproxy.tls.verify import is_ip_address, verify_host_name

ACCEPTED: Final = None
"""A verdict; any other says why not."""

Verdict = str | None

_ISSUED = pki.issue_server(pki.make_ca("of the listener"), ["localhost"])
_LISTENER = KeyPair((_ISSUED.certificate,), _ISSUED.key)


# --- The peer -------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=128)
def _peer_context(method: int, others: tuple[Node, ...]) -> SSL.Context:
    context = SSL.Context(method)
    context.set_cipher_list(b"ALL:@SECLEVEL=0")
    for node in others:
        lib.SSL_CTX_add_extra_chain_cert(context._context, lib.X509_dup(_certificate(node)._x509))
    return context


def _certificate(node: Node) -> crypto.X509:
    return crypto.load_certificate(crypto.FILETYPE_ASN1, node.der)


@functools.lru_cache(maxsize=8)
def _private_key(key: Any) -> crypto.PKey:
    der = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return crypto.load_privatekey(crypto.FILETYPE_ASN1, der)


def peer(case: Case, method: int, sock: socket.socket) -> SSL.Connection:
    """A client or server that shows whatever the case has, and asks for nothing."""
    leaf, *others = case.chain
    connection = SSL.Connection(_peer_context(method, tuple(others)), sock)
    # pyOpenSSL's own methods want what cryptography can read, and no ML-DSA.
    lib.SSL_use_certificate(connection._ssl, _certificate(leaf)._x509)
    lib.SSL_use_PrivateKey(connection._ssl, _private_key(leaf.key)._pkey)
    lib.ERR_clear_error()
    if method == SSL.TLS_CLIENT_METHOD:
        connection.set_connect_state()
    else:
        connection.set_accept_state()
    return connection


async def _shake_hands(connection: SSL.Connection, sock: socket.socket) -> None:
    with contextlib.suppress(SSL.Error):
        while True:
            try:
                connection.do_handshake()
            except SSL.WantReadError:
                await trio.lowlevel.wait_readable(sock)
            else:
                return


@contextlib.contextmanager
def _sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for sock in (ours, theirs):
            sock.setblocking(False)
        yield ours, theirs


# --- Our two legs ---------------------------------------------------------------------------------------


def _trust(roots: tuple[Node, ...], crls: tuple[bytes, ...] | None) -> Trust:
    """What a reload makes of the files."""
    anchors = trusted_certificates(b"".join(root.pem for root in roots), "root.crt")
    require_root(anchors, "root.crt")
    lists = b"".join(pem(crl, "X509 CRL") for crl in crls or ())
    return Trust(anchors, revocation_lists(lists, "root.crl") if crls else (), check_crls=crls is not None)


@functools.lru_cache(maxsize=1)
def _listener(roots: tuple[Node, ...], crls: tuple[bytes, ...] | None) -> SSL.Context:
    return server_context(_LISTENER, _trust(roots, crls), TLSOptions())


@functools.lru_cache(maxsize=1)
def _backend(roots: tuple[Node, ...], crls: tuple[bytes, ...] | None) -> SSL.Context:
    return backend_context(None, _trust(roots, crls), TLSOptions(groups=DEFAULT_BACKEND_GROUPS))


def _judging_at(context: SSL.Context, case: Case) -> SSL.Context:
    if case.judged_at is not None:
        store = context.get_cert_store()
        assert store is not None
        store.set_time(case.judged_at)
    return context


async def listener_verdict(case: Case) -> Verdict:
    """Whether a listener takes the certificate of a client, as far as the names are read."""
    try:
        context = _judging_at(_listener(case.roots, case.crls), case)
    except (UnusableFile, ContextError) as error:
        return str(error)
    with _sockets() as (ours, theirs):
        client = peer(case, SSL.TLS_CLIENT_METHOD, theirs)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_shake_hands, client, theirs)
            try:
                leg = await accept_tls(ours, context)
            except (ClientCertificateRefused, ClientTLSFailed) as error:
                return error.reason
            finally:
                ours.close()
    if leg.peer_leaf is None:
        return "the client had no certificate that it could show"
    try:
        require_named_types(describe(leg.peer_leaf, leg.peer_issuer))
    except ClientCertificateRefused as error:
        return error.reason
    return ACCEPTED


async def backend_chain(case: Case) -> tuple[x509.Certificate, ...] | str:
    """The chain that a backend is believed by, the leaf first; or why it is not."""
    try:
        context = _judging_at(_backend(case.roots, case.crls), case)
    except (UnusableFile, ContextError) as error:
        return str(error)
    server_name = None if is_ip_address(case.host) else case.host.encode()
    with _sockets() as (ours, theirs):
        server = peer(case, SSL.TLS_SERVER_METHOD, theirs)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_shake_hands, server, theirs)
            try:
                leg = await connect_tls(ours, context, server_name)
            except LegLost as error:
                return str(error)
            finally:
                ours.close()
    assert leg.is_verified
    return leg.peer_chain


def host_verdict(chain: tuple[x509.Certificate, ...], host: str) -> Verdict:
    """Whether a chain that is believed is that host's."""
    try:
        if verify_host_name(chain[0], host):
            require_permitted(chain[1:], host)
    except BackendTLSFailed as error:
        return error.reason
    return ACCEPTED


async def backend_verdict(case: Case) -> Verdict:
    """Whether a backend is believed to be the case's host, with sslmode=verify-full."""
    chain = await backend_chain(case)
    return chain if isinstance(chain, str) else host_verdict(chain, case.host)


OURS: Final[dict[Role, Callable[[Case], Awaitable[Verdict]]]] = {
    "client": listener_verdict,
    "server": backend_verdict,
}


# --- PostgreSQL and libpq -------------------------------------------------------------------------------

WANTS_A_CERTIFICATE: Final = "hostssl all all all cert\n"

SSL_REQUEST_OCTETS: Final = 8


def server_verdict(case: Case, address: tuple[str, int]) -> Verdict:
    """Whether a PostgreSQL gets as far as to compare the certificate's name, which is nobody's there."""
    with socket.create_connection(address, wire.PATIENCE) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(wire.SSL_REQUEST)
        assert sock.recv(1) == b"S"
        sock.settimeout(None)
        client = peer(case, SSL.TLS_CLIENT_METHOD, sock)
        try:
            client.do_handshake()
            client.sendall(wire.startup(user="alice"))
            answer = client.recv(65536)
        except SSL.Error as error:
            return str(error)
    return ACCEPTED if b'certificate authentication failed for user "alice"' in answer else str(answer)


class LibpqServer:
    """A server that shows a case's certificate, and notes whether libpq goes on with it.

    Args:
        folder: for libpq's files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listening = socket.create_server(("127.0.0.1", 0))

    def close(self) -> None:
        self._listening.close()

    def verdict(self, case: Case) -> Verdict:
        """Whether libpq, with sslmode=verify-full, sends such a server its StartupMessage."""
        root, crl = self._folder / "root.crt", self._folder / "root.crl"
        root.write_bytes(b"".join(each.pem for each in case.roots))
        crl.write_bytes(b"".join(pem(each, "X509 CRL") for each in case.crls or ()))
        told: list[bytes] = []
        serving = threading.Thread(target=self._serve, args=(case, told))
        serving.start()
        wanted = {
            "host": case.host,
            "hostaddr": "127.0.0.1",
            "port": self._listening.getsockname()[1],
            "user": "alice",
            "sslmode": "verify-full",
            "sslrootcert": root,
            "sslcrl": crl if case.crls is not None else "",
            "sslcertmode": "disable",
            "gssencmode": "disable",
            "connect_timeout": int(wire.PATIENCE),
        }
        with pytest.raises(psycopg.OperationalError) as failure:
            psycopg.connect("", **wanted)
        serving.join(wire.PATIENCE)
        return ACCEPTED if told else str(failure.value)

    def _serve(self, case: Case, told: list[bytes]) -> None:
        sock, _ = self._listening.accept()
        with sock, contextlib.suppress(SSL.Error, OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.recv(SSL_REQUEST_OCTETS)
            sock.sendall(b"S")
            server = peer(case, SSL.TLS_SERVER_METHOD, sock)
            server.do_handshake()
            told.append(server.recv(1024))
