"""Handshakes in memory before the first client comes: what must be refused is refused, by this OpenSSL.

Verification rests on a few calls of a library that changes. A context without CRL flags, a
callback that answers yes, a session that resumes: each would let the wrong people in without a sign.
"""

from __future__ import annotations

from datetime import timedelta

from OpenSSL import SSL

from pgtlsproxy import pki
from pgtlsproxy.tls import openssl
from pgtlsproxy.tls.contexts import (
    HandshakeRecord,
    KeyPair,
    TLSOptions,
    backend_context,
    handshake,
    server_context,
)
from pgtlsproxy.tls.trust import Trust


class SelfTestFailed(Exception):
    """OpenSSL, or what we make of it, lets something through that it must not."""


def prove_tls() -> None:
    """Hold a server's and a client's context against certificates that must and must not do.

    Raises:
        SelfTestFailed: with what was let through, or refused.
    """
    day = timedelta(days=1)
    ca, stranger = pki.make_ca("self-test", lifetime=day), pki.make_ca("self-test", lifetime=day)
    server = _pair(pki.issue_server(ca, ["localhost"], lifetime=day))
    good = pki.issue_client(ca, "good", lifetime=day)
    revoked = pki.issue_client(ca, "revoked", lifetime=day)
    foreign = pki.issue_client(stranger, "good", lifetime=day)
    crl = pki.make_crl(ca, [revoked.certificate.serial_number], lifetime=day)
    for version in ("TLSv1.2", "TLSv1.3"):
        options = TLSOptions(min_protocol_version=version, max_protocol_version=version)
        listener = server_context(server, Trust((ca.certificate,), (crl,), check_crls=True), options)
        without_crl = server_context(server, Trust((ca.certificate,), (), check_crls=True), options)
        _expect(version, "a good certificate", listener, _client(good, ca, options), let_in=True)
        _expect(version, "no certificate", listener, _client(None, ca, options), let_in=True)
        _expect(version, "a revoked certificate", listener, _client(revoked, ca, options), let_in=False)
        _expect(version, "a foreign certificate", listener, _client(foreign, ca, options), let_in=False)
        _expect(version, "a missing CRL", without_crl, _client(good, ca, options), let_in=False)
        _expect(version, "a foreign server", listener, _client(None, stranger, options), let_in=False)
        _expect_no_resumption(version, listener, _client(good, ca, options))


def _pair(issued: pki.Issued) -> KeyPair:
    return KeyPair((issued.certificate,), issued.key)


def _client(issued: pki.Issued | None, ca: pki.Issued, options: TLSOptions) -> SSL.Context:
    return backend_context(_pair(issued) if issued else None, Trust((ca.certificate,)), options)


def _connections(listener: SSL.Context, client: SSL.Context) -> tuple[SSL.Connection, SSL.Connection]:
    ends = SSL.Connection(listener, None), SSL.Connection(client, None)
    ends[0].set_accept_state()
    ends[1].set_connect_state()
    for end in ends:
        end.set_app_data(HandshakeRecord())
    return ends


def _expect(version: str, what: str, listener: SSL.Context, client: SSL.Context, *, let_in: bool) -> None:
    try:
        handshake(*_connections(listener, client))
        was_let_in = True
    except SSL.Error:
        was_let_in = False
    if was_let_in is not let_in:
        raise SelfTestFailed(f"{version}: {what} was {'let in' if was_let_in else 'refused'}")


def _expect_no_resumption(version: str, listener: SSL.Context, client: SSL.Context) -> None:
    first = _connections(listener, client)
    handshake(*first)
    session = first[1].get_session()
    second = _connections(listener, client)
    if session is not None:
        second[1].set_session(session)
    handshake(*second)
    if openssl.is_resumed(second[0]):
        raise SelfTestFailed(f"{version}: a session was resumed, and its certificate not verified")
