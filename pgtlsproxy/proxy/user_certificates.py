"""One client certificate a user for the backend leg: read when a session needs it, and remembered.

A user's name comes from the network, so only names that cannot leave a folder are looked for, in
folders that were opened when the configuration was loaded, and the certificate found must be that
user's.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

import trio
from OpenSSL import SSL

from pgtlsproxy.config import USER_PLACEHOLDER
from pgtlsproxy.errors import BackendUnavailable, ClientCertificateRefused
from pgtlsproxy.identity import Secret, printable
from pgtlsproxy.tls.certificates import describe
from pgtlsproxy.tls.contexts import ContextError, TLSOptions, backend_context
from pgtlsproxy.tls.file_access import Folder, UnusableFile
from pgtlsproxy.tls.files import certificate_chain, key_pair, private_key
from pgtlsproxy.tls.trust import Trust

SAFE_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,62}")
"""Names that are one path component and no dot-file, whatever the folder holds."""

REMEMBERED: Final = 1000
"""Users whose context is kept, the least recently used going first."""

READERS: Final = 8
"""Threads that may read at a time. Where a file system hangs, they hang, and nothing else does."""


@dataclass(frozen=True, slots=True)
class UserFiles:
    """Where each user has a file.

    Args:
        folder: where they lie.
        template: their name, with `{user}` in it.
    """

    folder: Folder
    template: str

    def name(self, user: str) -> str:
        """The name of a user's file."""
        return self.template.replace(USER_PLACEHOLDER, user)

    def path(self, user: str) -> str:
        """Where that is, for messages."""
        return f"{self.folder.path}/{self.name(user)}"


class UserCertificates:
    """The certificates of a backend whose sslcert says `{user}`; one object a generation.

    Args:
        certificates: the certificates.
        keys: their keys.
        passphrase: of the users' keys; None where they are in clear.
        options: the backend's TLS options.
        trust: who vouches for it.
    """

    def __init__(
        self,
        certificates: UserFiles,
        keys: UserFiles,
        passphrase: Secret | None,
        options: TLSOptions,
        trust: Trust | None,
    ) -> None:
        self._certificates = certificates
        self._keys = keys
        self._passphrase = passphrase
        self._options = options
        self._trust = trust
        self._contexts: OrderedDict[str, SSL.Context] = OrderedDict()
        self._readers = trio.CapacityLimiter(READERS)
        self._locks: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()

    @property
    def files(self) -> UserFiles:
        """Where the certificates are; the same object as long as they are of the same configuration."""
        return self._certificates

    def trusting(self, trust: Trust | None) -> UserCertificates:
        """The same, with another trust."""
        return UserCertificates(self._certificates, self._keys, self._passphrase, self._options, trust)

    async def context_for(self, user: str) -> SSL.Context:
        """The context with the user's certificate.

        Cancellation: the files are left to be read in vain.

        Raises:
            BackendUnavailable: there is none that will do; the reason says why.
        """
        if not SAFE_NAME.fullmatch(user):
            raise BackendUnavailable(
                f'user "{printable(user)}": no certificate is looked for under such a name'
            )
        async with self._locks.setdefault(user, trio.Lock()):  # sessions of one user wait for the first
            context = self._contexts.get(user)
            if context is None:
                context = await trio.to_thread.run_sync(
                    self._load, user, abandon_on_cancel=True, limiter=self._readers
                )
                self._contexts[user] = context
                if len(self._contexts) > REMEMBERED:
                    self._contexts.popitem(last=False)
            self._contexts.move_to_end(user)
            return context

    def _load(self, user: str) -> SSL.Context:
        certificate, key_file = self._certificates.path(user), self._keys.path(user)
        try:
            content = self._certificates.folder.read_file(self._certificates.name(user), "certificate file")
            chain = certificate_chain(content, certificate)
            content = self._keys.folder.read_key_file(self._keys.name(user), os.geteuid())
            key = private_key(content, key_file, self._passphrase)
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
