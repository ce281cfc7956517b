"""One client certificate a user for the backend leg: read when a session needs it, and remembered.

A user's name comes from the network, so only names that cannot leave a folder are looked for, and
the certificate found must be that user's.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from pathlib import Path
from typing import Final

import trio
from OpenSSL import SSL

from pgtlsproxy.config import Backend
from pgtlsproxy.errors import BackendUnavailable, ClientCertificateRefused
from pgtlsproxy.identity import Secret, printable
from pgtlsproxy.tls.certificates import describe
from pgtlsproxy.tls.contexts import ContextError, TLSOptions, Trust, backend_context
from pgtlsproxy.tls.file_access import UnusableFile, read_file, read_key_file
from pgtlsproxy.tls.files import certificate_chain, key_pair, private_key

SAFE_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,62}")
"""Names that are one path component and no dot-file, whatever the folder holds."""

REMEMBERED: Final = 1000
"""Users whose context is kept, the least recently used going first."""


class UserCertificates:
    """The certificates of a backend whose sslcert says `{user}`; one object a generation.

    Args:
        settings: the backend's.
        passphrase: of the users' keys; None where they are in clear.
        options: its TLS options.
        trust: who vouches for it.
    """

    def __init__(
        self, settings: Backend, passphrase: Secret | None, options: TLSOptions, trust: Trust | None
    ) -> None:
        self._settings = settings
        self._passphrase = passphrase
        self._options = options
        self._trust = trust
        self._contexts: OrderedDict[str, SSL.Context] = OrderedDict()

    def trusting(self, trust: Trust | None) -> UserCertificates:
        """The same, with another trust."""
        return UserCertificates(self._settings, self._passphrase, self._options, trust)

    async def context_for(self, user: str) -> SSL.Context:
        """The context with the user's certificate.

        Raises:
            BackendUnavailable: there is none that will do; the reason says why.
        """
        context = self._contexts.get(user)
        if context is None:
            context = await trio.to_thread.run_sync(self._load, user)
            self._contexts[user] = context
            if len(self._contexts) > REMEMBERED:
                self._contexts.popitem(last=False)
        self._contexts.move_to_end(user)
        return context

    def _load(self, user: str) -> SSL.Context:
        if not SAFE_NAME.fullmatch(user):
            raise BackendUnavailable(
                f'user "{printable(user)}": no certificate is looked for under such a name'
            )
        certificate, key_file = (
            str(Path(path).parent / Path(path).name.replace("{user}", user))
            for path in (self._settings.sslcert or "", self._settings.sslkey or "")
        )
        try:
            chain = certificate_chain(read_file(certificate, "certificate file"), certificate)
            key = private_key(read_key_file(key_file, os.geteuid()), key_file, self._passphrase)
            pair = key_pair(chain, key, certificate_file=certificate, key_file=key_file)
            names = describe(pair.leaf).common_names
            if names != (user,):
                shown = ", ".join(printable(name) for name in names) or "none"
                raise UnusableFile(
                    f'certificate file "{certificate}": its common name must be the user, not {shown}'
                )
            return backend_context(pair, self._trust, self._options)
        except (UnusableFile, ContextError, ClientCertificateRefused) as error:
            raise BackendUnavailable(f'user "{printable(user)}": {error}') from None
