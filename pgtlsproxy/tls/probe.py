"""Looking at the certificates that a server shows, without believing them."""

from __future__ import annotations

import contextlib
import socket
import struct

from cryptography import x509
from OpenSSL import SSL

from pgtlsproxy.errors import BackendTLSFailed
from pgtlsproxy.tls.contexts import DEFAULT_BACKEND_GROUPS, TLSOptions, backend_context, openssl_reason
from pgtlsproxy.tls.verify import is_ip_address


def presented_chain(sock: socket.socket, host: str, seconds: int) -> tuple[x509.Certificate, ...]:
    """Do a handshake in which nothing is verified, and tell what the server presented, leaf first.

    Args:
        sock: a connected socket at which TLS comes next. It stays open, and blocking.
        host: the server's name for SNI; not sent if it is an address.
        seconds: how long the server may stay silent at a time.

    Raises:
        BackendTLSFailed: the handshake failed or took too long.
    """
    sock.settimeout(None)
    # OpenSSL reads the descriptor itself, so Python's time-out would not reach it.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", seconds, 0))
    connection = SSL.Connection(backend_context(None, None, TLSOptions(groups=DEFAULT_BACKEND_GROUPS)), sock)
    if not is_ip_address(host):
        with contextlib.suppress(UnicodeError):
            connection.set_tlsext_host_name(host.encode("ascii"))
    connection.set_connect_state()
    try:
        connection.do_handshake()
    except SSL.WantReadError:
        raise BackendTLSFailed(f"the server was silent for {seconds} s in the handshake") from None
    except SSL.Error as error:
        raise BackendTLSFailed(f"the TLS handshake failed: {openssl_reason(error)}") from None
    return tuple(connection.get_peer_cert_chain(as_cryptography=True) or ())
