"""One address of a backend: dialled, encrypted, and verified before it is told anything.

A backend that answers `N`, an error, nothing or two bytes to SSLRequest, or whose certificate
does not verify, never sees a StartupMessage. What it said goes to the log alone, for whoever is
on the path could have said it (CVE-2024-10977, CVE-2021-23222).
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from pathlib import Path
from typing import Final

import trio
from OpenSSL import SSL

from pgtlsproxy.config import Backend
from pgtlsproxy.errors import BackendTLSFailed, BackendUnavailable
from pgtlsproxy.identity import printable
from pgtlsproxy.protocol.messages import SSL_REQUEST, Message, MessageReader
from pgtlsproxy.protocol.proxy_header import ProxyProtocol, encode
from pgtlsproxy.proxy.keepalive import keep_server_alive
from pgtlsproxy.proxy.stages import BackendAddress
from pgtlsproxy.tls.contexts import ALPN_PROTOCOL
from pgtlsproxy.tls.name_constraints import require_permitted
from pgtlsproxy.tls.stream import (
    MAX_RECORD_OCTETS,
    ClearLeg,
    Leg,
    LegLost,
    PeerNotVerified,
    TLSLeg,
    connect_tls,
)
from pgtlsproxy.tls.verify import is_ip_address, verify_host_name

WITHOUT_TLS: Final = "disable"
TLS_IF_OFFERED: Final = "prefer"

UNIX_PEER_CHECKS: Final = trio.CapacityLimiter(8)
"""Unix sockets whose owner or folder is looked up at once. A look-up that hangs keeps its thread."""


_ABOUT_CERTIFICATES: Final = ("certificate", "unknown ca")
"""What the alerts of RFC 8446, 6.2, that judge a peer's certificate have in their names."""


class OwnCertificateRefused(BackendTLSFailed):
    """The server does not take the certificate that the proxy shows."""

    def at(self, address: BackendAddress, backend: Backend) -> BackendTLSFailed:
        """The same, naming the address and the file."""
        shown = "no sslcert is given" if backend.sslcert is None else f"sslcert is {backend.sslcert}"
        return BackendTLSFailed(f"{address}: {self.reason}; {shown}")


def is_about_own_certificate(error: LegLost) -> bool:
    """Whether a connection was ended by an alert that judges our certificate."""
    text = str(error)
    return " alert " in text and any(word in text for word in _ABOUT_CERTIFICATES)


def _own_certificate_refused(alert: LegLost) -> OwnCertificateRefused:
    return OwnCertificateRefused(f"the backend refuses the proxy's own certificate: {alert}")


async def dial(
    address: BackendAddress, backend: Backend, context: SSL.Context | None, header: bytes | None = None
) -> Leg:
    """Connect to an address and make it prove itself, within connect_timeout.

    Args:
        address: where.
        backend: what the configuration asks of it.
        context: the TLS context; None for a Unix socket or `sslmode: disable`.
        header: the PROXY header that says for which client, where the backend wants one; None for a
            connection of the proxy's own.

    Raises:
        BackendUnavailable: it cannot be reached in time.
        BackendTLSFailed: it refused TLS, or it is not who it should be.
    """
    missing = "no connection"
    with trio.move_on_after(backend.connect_timeout or float("inf")):
        sock = await _connect(address, backend)
        try:
            if backend.proxy_protocol is not None:
                await _introduce(sock, address, header or encode(ProxyProtocol(backend.proxy_protocol), None))
            if context is None or address.ip is None:
                return ClearLeg(sock)
            if backend.sslnegotiation != "direct":
                missing = "it accepted the connection, but did not answer SSLRequest; is it PostgreSQL?"
                if not await _ask_for_tls(sock, address, backend):
                    return ClearLeg(sock)
            missing = "its TLS handshake was not over"
            return await _encrypt(sock, address, backend, context)
        except BaseException:
            sock.close()
            raise
    raise BackendUnavailable(f"{address}: {missing} within {backend.connect_timeout:g} s (connect_timeout)")


async def _connect(address: BackendAddress, backend: Backend) -> socket.socket:
    try:
        return await _connect_socket(address, backend)
    except OSError as error:
        # The network's no, or the kernel's: out of descriptors, no such family, no route.
        question = _NOBODY_LISTENS[address.ip is None] if error.errno in _NOT_LISTENING else ""
        raise BackendUnavailable(f"{address}: {error.strerror or error}{question}") from None


_NOT_LISTENING: Final = frozenset({errno.ECONNREFUSED, errno.ENOENT})

_NOBODY_LISTENS: Final = {
    False: "; is the server running on that host and accepting TCP/IP connections?",
    True: "; is the server running locally and accepting connections on that socket?",
}
"""What libpq asks at a host, and at a Unix socket."""


async def _connect_socket(address: BackendAddress, backend: Backend) -> socket.socket:
    where: str | tuple[str, int] = address.unix_path
    family = socket.AF_UNIX
    if address.ip is not None:
        where = address.ip, address.port
        family = socket.AF_INET6 if ":" in address.ip else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        error = sock.connect_ex(where)
        if error == errno.EINPROGRESS:
            error = sock.connect_ex(where)  # on this host it is there already: a wait less, 30 µs
        if error == errno.EALREADY:
            await trio.lowlevel.wait_writable(sock)
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
        if address.ip is None:
            await _check_unix_peer(sock, address, backend.requirepeer)
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keep_server_alive(sock, backend)
    except BaseException:
        sock.close()
        raise
    return sock


async def _introduce(sock: socket.socket, address: BackendAddress, header: bytes) -> None:
    """Send the PROXY header, before TLS and before anything of PostgreSQL's."""
    try:
        await ClearLeg(sock).send(header)
    except LegLost as error:
        raise BackendUnavailable(f"{address}: lost behind the PROXY header: {error}") from None


async def _check_unix_peer(sock: socket.socket, address: BackendAddress, requirepeer: str | None) -> None:
    """A Unix socket has no certificate: its owner or its folder vouches for it, before a byte is sent."""
    uid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
    # A user database or a file system behind a network may not answer.
    await trio.to_thread.run_sync(
        _judge_unix_peer, uid, address, requirepeer, abandon_on_cancel=True, limiter=UNIX_PEER_CHECKS
    )


def _judge_unix_peer(uid: int, address: BackendAddress, requirepeer: str | None) -> None:
    if requirepeer is None:
        mode = Path(address.host).stat().st_mode
        if mode & stat.S_IWOTH:
            raise BackendTLSFailed(
                f"{address.unix_path}: anybody may write to {address.host}, so anybody may be the server "
                "there; set requirepeer to the operating system user that runs PostgreSQL"
            )
        return
    import pwd  # noqa: PLC0415 - not on every platform that this package is imported on

    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = f"uid {uid}"
    if name != requirepeer:
        raise BackendTLSFailed(
            f'{address.unix_path}: requirepeer specifies "{requirepeer}", but the server runs as "{name}"'
        )


async def _encrypt(
    sock: socket.socket, address: BackendAddress, backend: Backend, context: SSL.Context
) -> TLSLeg:
    server_name = address.host.encode("ascii", "replace") if _sends_sni(address, backend) else None
    try:
        leg = await connect_tls(sock, context, server_name)
    except PeerNotVerified as error:
        raise BackendTLSFailed(f"{address}: {error}; {_who_vouches(backend)}") from None
    except LegLost as error:
        if is_about_own_certificate(error):
            raise _own_certificate_refused(error).at(address, backend) from None
        raise BackendTLSFailed(f"{address}: {error}{_header_question(backend)}") from None
    _check_tls(leg, address, backend, is_direct=backend.sslnegotiation == "direct")
    return leg


def _who_vouches(backend: Backend) -> str:
    """The settings that a server's certificate was held against."""
    keys = ("sslrootcert", "sslcrl", "sslcrldir")
    given = {key: value for key in keys if (value := getattr(backend, key)) is not None}
    return ", ".join(f"{key} is {value}" for key, value in given.items())


def _sends_sni(address: BackendAddress, backend: Backend) -> bool:
    return backend.sslsni and bool(address.host) and not is_ip_address(address.host)


async def _ask_for_tls(sock: socket.socket, address: BackendAddress, backend: Backend) -> bool:
    """Send SSLRequest, read the one byte of its answer, and leave the rest in the kernel."""
    leg = ClearLeg(sock)
    try:
        await leg.send(SSL_REQUEST)
        answer = await leg.receive(1)
    except LegLost as error:
        raise BackendTLSFailed(
            f"{address}: lost after SSLRequest: {error}{_header_question(backend)}"
        ) from None
    if answer == b"S":
        return True
    if answer == b"N" and backend.sslmode == TLS_IF_OFFERED:
        return False
    said = {
        b"N": "the server does not support TLS",
        b"E": "the server sent an error",
        b"": "the server closed",
    }
    raise BackendTLSFailed(
        f"{address}: {said.get(answer, f'unexpected answer {printable(answer)}')} after SSLRequest"
        f"{'' if answer in said else '; is it PostgreSQL?'}{_header_question(backend)}"
    )


def _header_question(backend: Backend) -> str:
    if backend.proxy_protocol is None:
        return ""
    return f"; does it expect a PROXY header (proxy_protocol: {backend.proxy_protocol})?"


def _check_tls(leg: TLSLeg, address: BackendAddress, backend: Backend, *, is_direct: bool) -> None:
    if is_direct and leg.alpn != ALPN_PROTOCOL:
        raise BackendTLSFailed(
            f"{address}: direct SSL connection was established without ALPN protocol negotiation extension"
        )
    if backend.verifies_chain and (leg.peer_leaf is None or not leg.is_verified):
        raise BackendTLSFailed(f"{address}: the server's certificate was not verified in this handshake")
    if backend.sslmode == "verify-full" and leg.peer_leaf is not None:
        try:
            if verify_host_name(leg.peer_leaf, address.host):
                require_permitted(leg.peer_chain[1:], address.host)
        except BackendTLSFailed as error:
            raise BackendTLSFailed(f"{address}: {error.reason}") from None


async def read_message(leg: Leg, reader: MessageReader) -> Message:
    """The next whole message of a backend that is being logged in to.

    Raises:
        BackendMisbehaved: it is malformed or too long.
        OwnCertificateRefused: the backend does not take the certificate that the proxy shows.
        BackendUnavailable: the backend closed, or the connection broke.
    """
    try:
        while (message := reader.next()) is None:
            data = await leg.receive(MAX_RECORD_OCTETS)
            if not data:
                raise BackendUnavailable("the backend closed the connection before the login was over")
            reader.feed(data)
    except LegLost as error:
        raise _broken(error) from None
    return message


async def send_to_backend(leg: Leg, data: bytes) -> None:
    """Send to a backend that is being logged in to.

    Raises:
        BackendUnavailable: the connection broke.
    """
    try:
        await leg.send(data)
    except LegLost as error:
        raise _broken(error) from None


async def send_startup(leg: Leg, data: bytes) -> None:
    """Send what comes first behind the handshake.

    Raises:
        OwnCertificateRefused: inside TLS, the backend has hung up already.
        BackendUnavailable: outside, the connection broke.
    """
    try:
        await leg.send(data)
    except LegLost as error:
        if not leg.is_tls:
            raise _broken(error) from None
        # OpenSSL reads nothing more behind a send that failed, so an alert that had come in is lost.
        raise OwnCertificateRefused(
            "the backend hung up behind the TLS handshake, as when it refuses the proxy's own certificate: "
            f"{error}"
        ) from None


def _broken(error: LegLost) -> BackendUnavailable:
    # In TLS 1.3 a server's word on the client's certificate comes behind the handshake.
    if is_about_own_certificate(error):
        return _own_certificate_refused(error)
    return BackendUnavailable(f"the backend's connection broke during the login: {error}")
