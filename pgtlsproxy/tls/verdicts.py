"""What it means that a certificate did not verify: OpenSSL's words, and PostgreSQL's."""

from __future__ import annotations

import contextlib

from OpenSSL import SSL

from pgtlsproxy.errors import ClientCertificateRefused
from pgtlsproxy.tls import certificates, openssl, root_lists
from pgtlsproxy.tls.anchors import issuer
from pgtlsproxy.tls.contexts import UNREADABLE, HandshakeRecord


def note_root(connection: SSL.Connection, record: HandshakeRecord) -> None:
    """Note what a revocation list says against the root of the peer's chain, where lists are asked for.

    Args:
        connection: one whose handshake has succeeded.
        record: where to.
    """
    lists = connection.get_context().get_app_data()
    found = openssl.peer_root(connection) if isinstance(lists, root_lists.RootLists) else None
    if found is None:
        return
    root, depth = found
    record.verify_error, record.verify_depth = lists.problem(root, root_lists.now()), depth
    with contextlib.suppress(*UNREADABLE):
        record.certificate = certificates.load(root)


def verdict(record: HandshakeRecord) -> str:
    """Why a certificate did not verify, and who would have had to vouch for it."""
    text = verify_error_text(record.verify_error)
    if record.certificate is None:
        return text
    return f"{text} at depth {record.verify_depth} (the certificate's issuer is {issuer(record.certificate)})"


class ClientCertificateFailed(ClientCertificateRefused):
    """A client's certificate failed verification; carries what the log says of it."""

    def __init__(self, reason: str, record: HandshakeRecord) -> None:
        super().__init__(reason)
        self.record = record
        self.tls_error = verify_error_text(record.verify_error)


def client_certificate_refused(record: HandshakeRecord) -> ClientCertificateFailed:
    """The refusal that a failed verification amounts to, in PostgreSQL's words."""
    advice = ""
    if record.verify_error == root_lists.NO_LIST and record.certificate is not None:
        advice = f": ssl_crl_file and ssl_crl_dir have no list of its issuer, {issuer(record.certificate)}"
    return ClientCertificateFailed(
        f"Client certificate verification failed at depth {record.verify_depth}: "
        f"{verify_error_text(record.verify_error)}{advice}",
        record,
    )


def verify_error_text(number: int) -> str:
    """OpenSSL's words for a verification error."""
    return openssl.verify_error_string(number)
