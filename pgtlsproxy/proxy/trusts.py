"""Who vouches for clients and for backends: from the bytes of CA and CRL files to trusts.

Of all units of a snapshot these alone are needed to judge a certificate, so whoever only asks about one
loads neither contexts nor an event loop.
"""

from __future__ import annotations

from collections.abc import Callable

from cryptography import x509

from pgtlsproxy.config import Backend, Listener, Status
from pgtlsproxy.errors import Mistake
from pgtlsproxy.proxy.contents import Contents
from pgtlsproxy.proxy.files import SYSTEM_ROOTS, SnapshotFiles
from pgtlsproxy.tls.anchors import crl_warning, require_root
from pgtlsproxy.tls.file_access import UnusableFile
from pgtlsproxy.tls.files import revocation_lists, revocation_lists_in_directory, trusted_certificates
from pgtlsproxy.tls.trust import Trust


class Trusts:
    """Makes trusts out of what was read. Each method raises ConfigError with what is wrong.

    Args:
        files: what was read.
        warn: told of what can be used, but deserves a look.
    """

    def __init__(self, files: SnapshotFiles, warn: Callable[[Mistake], None]) -> None:
        self._contents = Contents(files)
        self._warn = warn

    def of_clients(self, name: str, listener: Listener) -> Trust | None:
        """Who vouches for the clients of a listener; None where nobody is asked for a certificate."""
        return self._trust(
            f"listeners.{name}",
            ("ssl_ca_file", listener.ssl_ca_file),
            ("ssl_crl_file", listener.ssl_crl_file),
            ("ssl_crl_dir", listener.ssl_crl_dir),
        )

    def of_backend(self, name: str, backend: Backend) -> Trust | None:
        """Who vouches for a backend; None where nothing is verified."""
        return self._trust(
            f"backends.{name}",
            ("sslrootcert", backend.sslrootcert),
            ("sslcrl", backend.sslcrl),
            ("sslcrldir", backend.sslcrldir),
        )

    def of_status(self, status: Status) -> Trust | None:
        """Whose certificates may see everything on the status page; None where nobody is asked for one."""
        return self._trust(
            "status", ("ssl_ca_file", status.ssl_ca_file), ("ssl_crl_file", None), ("ssl_crl_dir", None)
        )

    def _trust(
        self,
        where: str,
        anchors: tuple[str, str | None],
        crl: tuple[str, str | None],
        crl_dir: tuple[str, str | None],
    ) -> Trust | None:
        contents = self._contents
        key, path = anchors
        if path is None:
            return None
        try:
            trusted = trusted_certificates(self._anchors(f"{where}.{key}", path), path)
            require_root(trusted, path)
        except UnusableFile as error:
            raise contents.mistake(f"{where}.{key}", error) from None
        lists: list[x509.CertificateRevocationList] = []
        key, path = crl
        try:
            if path is not None:
                lists.extend(revocation_lists(contents.plain(f"{where}.{key}", path), path))
            key, path = crl_dir
            if path is not None:
                lists.extend(revocation_lists_in_directory(contents.directory(f"{where}.{key}", path), path))
        except UnusableFile as error:
            raise contents.mistake(f"{where}.{key}", error) from None
        trust = Trust(trusted, tuple(lists), check_crls=crl[1] is not None or crl_dir[1] is not None)
        if (warning := crl_warning(trust)) is not None:
            key = crl[0] if crl[1] is not None else crl_dir[0]
            self._warn(Mistake(contents.located(f"{where}.{key}"), warning))
        return trust

    def _anchors(self, where: str, path: str) -> bytes:
        return (
            self._contents.system_roots(where) if path == SYSTEM_ROOTS else self._contents.plain(where, path)
        )
