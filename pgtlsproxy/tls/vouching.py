"""Whether a chain that was verified once would be so today.

A session may outlive the trust that let it in: its certificate is revoked, or its CA is taken out.
OpenSSL judges the chain again, by the same rules as in a handshake (`tls.contexts`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cryptography import x509
from OpenSSL import crypto

from pgtlsproxy.tls import openssl, root_lists
from pgtlsproxy.tls.root_lists import RootLists
from pgtlsproxy.tls.trust import Trust, add_anchors, add_crls

NO_CHECK_TIME: Final = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME (openssl/x509_vfy.h), which pyOpenSSL does not name."""


class Vouching:
    """One trust, to judge many chains by.

    Args:
        trust: who is believed; None where nobody is asked for a certificate any more, so that nobody is.
        checks_time: whether certificates and revocation lists must be valid now. A session that is
            there is not ended because its certificate ran out meanwhile; a login that is not over is.
    """

    def __init__(self, trust: Trust | None, *, checks_time: bool) -> None:
        self._store = crypto.X509Store()
        if trust is not None:
            add_anchors(self._store, trust)
            add_crls(self._store, trust)
        self._root_lists = RootLists(trust) if trust is not None and trust.check_crls else None
        self._checks_time = checks_time
        openssl.ask_for_client_purpose(self._store)
        if not checks_time:
            self._store.set_flags(NO_CHECK_TIME)

    def problem(self, chain: Sequence[x509.Certificate]) -> str | None:
        """Why nobody vouches for a chain, in OpenSSL's words; None where somebody does.

        Args:
            chain: leaf first, with every certificate up to the anchor that vouched for it once.
        """
        try:
            if self._root_lists is None:
                self._context(chain).verify_certificate()
                return None
            verified = self._context(chain).get_verified_chain()
        except crypto.X509StoreContextError as error:
            return f"at depth {error.errors[1]}: {error.errors[2]}"
        root = crypto.dump_certificate(crypto.FILETYPE_ASN1, verified[-1])
        number = self._root_lists.problem(root, root_lists.now() if self._checks_time else None)
        return f"at depth {len(verified) - 1}: {openssl.verify_error_string(number)}" if number else None

    def issuer(self, chain: Sequence[x509.Certificate]) -> x509.Certificate:
        """Who issued the leaf of a chain for which somebody vouches. A self-signed one issued itself."""
        return self._context(chain).get_verified_chain()[:2][-1].to_cryptography()

    def _context(self, chain: Sequence[x509.Certificate]) -> crypto.X509StoreContext:
        leaf, *others = (crypto.X509.from_cryptography(certificate) for certificate in chain)
        return crypto.X509StoreContext(self._store, leaf, others)
