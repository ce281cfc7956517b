"""The units of a snapshot: from the bytes of a few files to one key pair, trust or context.

Each function makes one unit, raises ConfigError with every mistake in it, and touches no file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from OpenSSL import SSL

from pgtlsproxy.config import Backend, Listener, Status
from pgtlsproxy.errors import ConfigError, Mistake
from pgtlsproxy.identity import Secret
from pgtlsproxy.protocol.passfile import Passfile, parse_passfile
from pgtlsproxy.protocol.scram.secrets import Secrets, parse_secrets
from pgtlsproxy.proxy.backend_passwords import BackendPasswords, probe_passfile_path
from pgtlsproxy.proxy.contents import Contents
from pgtlsproxy.proxy.files import SnapshotFiles
from pgtlsproxy.proxy.listener_secrets import auth_passfile_path
from pgtlsproxy.proxy.trusts import Trusts
from pgtlsproxy.proxy.user_certificates import UserCertificates, UserFiles
from pgtlsproxy.tls import contexts
from pgtlsproxy.tls.certificates import end_point_hash_name
from pgtlsproxy.tls.contexts import ContextError, KeyPair, TLSOptions
from pgtlsproxy.tls.file_access import UnusableFile
from pgtlsproxy.tls.files import (
    certificate_chain,
    chain_warnings,
    dh_parameters,
    key_pair,
    private_key,
)
from pgtlsproxy.tls.trust import Trust

_T = TypeVar("_T")
_U = TypeVar("_U")


class Units:
    """Makes units out of what was read.

    Args:
        files: what was read.
        warn: told of what can be used, but deserves a look.

    Attributes:
        trusts: makes those of the units that are trusts.
    """

    def __init__(self, files: SnapshotFiles, warn: Callable[[Mistake], None]) -> None:
        self._files = files
        self._contents = Contents(files)
        self._warn = warn
        self.trusts = Trusts(files, warn)

    def server_pair(self, name: str, listener: Listener, in_service: KeyPair | None) -> KeyPair:
        """The certificate and key of a listener.

        Args:
            name: the listener's name.
            listener: its settings.
            in_service: the pair that is served now. Where only the passphrase is missing, because its
                command does not run at a reload, and the certificate is the same, it serves on.
        """
        where = f"listeners.{name}"
        cert_file, key_file = listener.ssl_cert_file or "", listener.ssl_key_file or ""
        chain, content = _both(
            lambda: self._chain(f"{where}.ssl_cert_file", cert_file),
            lambda: self._contents.key(f"{where}.ssl_key_file", key_file),
        )
        for warning in chain_warnings(chain, cert_file):
            self._warn(Mistake(self._contents.located(f"{where}.ssl_cert_file"), warning))
        self._warn_of_no_end_point_hash(where, listener, chain[0])
        passphrase = self._files.passphrases.get(name)
        if isinstance(passphrase, UnusableFile):
            raise self._contents.mistake(f"{where}.ssl_passphrase_command", passphrase)
        needs_command = listener.ssl_passphrase_command is not None and passphrase is None
        if needs_command and in_service is not None and in_service.chain == chain:
            return in_service
        try:
            key = private_key(content, key_file, passphrase)
            return key_pair(chain, key, certificate_file=cert_file, key_file=key_file)
        except UnusableFile as error:
            if not needs_command:
                raise self._contents.mistake(f"{where}.ssl_key_file", error) from None
            problem = UnusableFile(
                f'private key file "{key_file}" cannot be reloaded because it requires a passphrase; '
                "set ssl_passphrase_command_supports_reload"
            )
            raise self._contents.mistake(f"{where}.ssl_key_file", problem) from None

    def _warn_of_no_end_point_hash(self, where: str, listener: Listener, leaf: x509.Certificate) -> None:
        """Say that libpq gives up where it is offered channel binding to such a certificate."""
        settings = self._files.settings
        backends = [settings.backends[each] for each in listener.backends] if settings is not None else []
        may_offer_binding = not listener.has_verifiers and any(
            backend.login == "passthrough" and backend.has_tcp_host and backend.sslmode != "disable"
            for backend in backends
        )
        if may_offer_binding and end_point_hash_name(leaf) is None:
            self._warn(
                Mistake(
                    self._contents.located(f"{where}.ssl_cert_file"),
                    "the certificate's signature has no hash of its own, as with Ed25519 and Ed448: SCRAM "
                    "cannot bind to it (tls-server-end-point, RFC 5929), and libpq cannot log in where it is "
                    "offered that, unless told channel_binding=disable; use a CA with an RSA or ECDSA key",
                )
            )

    def secrets(self, name: str, listener: Listener) -> Secrets | None:
        """The SCRAM verifiers that a listener has of its users; None where it has no way to know any."""
        if not listener.has_verifiers:
            return None
        path, secrets = listener.scram_secrets_file, Secrets("", {})
        if path is not None:
            secrets = parse_secrets(path, self._contents.key(f"listeners.{name}.scram_secrets_file", path))
        mock = listener.mock_secret_file
        if mock is None or mock not in self._files.keys:
            return secrets
        return replace(
            secrets, mock_secret=Secret(self._contents.key(f"listeners.{name}.scram_mock_secret_file", mock))
        )

    def auth_passfile(self, name: str, listener: Listener) -> Passfile | None:
        """The password of the role that asks for verifiers; None where it has none."""
        return self._passfile(f"listeners.{name}.auth_query.passfile", auth_passfile_path(listener))

    def server_options(self, name: str, listener: Listener) -> TLSOptions:
        """The TLS settings of a listener."""
        where = f"listeners.{name}"
        return TLSOptions(
            min_protocol_version=listener.ssl_min_protocol_version,
            max_protocol_version=listener.ssl_max_protocol_version,
            ciphers=listener.ssl_ciphers,
            tls13_ciphers=listener.ssl_tls13_ciphers or "",
            groups=listener.ssl_groups or contexts.DEFAULT_CLIENT_GROUPS,
            prefer_server_ciphers=listener.ssl_prefer_server_ciphers,
            dh_params=self._dh_params(f"{where}.ssl_dh_params_file", listener.ssl_dh_params_file),
        )

    def _dh_params(self, where: str, path: str | None) -> bytes | None:
        if path is None:
            return None
        try:
            return dh_parameters(self._contents.plain(where, path), path)
        except UnusableFile as error:
            raise self._contents.mistake(where, error) from None

    def server_context(
        self, name: str, pair: KeyPair, trust: Trust | None, options: TLSOptions
    ) -> SSL.Context:
        """The TLS context of a listener."""
        try:
            return contexts.server_context(pair, trust, options)
        except ContextError as error:
            raise ConfigError(error.located(self._contents.located(f"listeners.{name}"))) from None

    def status_pair(self, status: Status) -> KeyPair:
        """The certificate and key that metrics are served with."""
        cert_file, key_file = status.ssl_cert_file or "", status.ssl_key_file or ""
        chain, content = _both(
            lambda: self._chain("status.ssl_cert_file", cert_file),
            lambda: self._contents.key("status.ssl_key_file", key_file),
        )
        try:
            key = private_key(content, key_file, None)
            return key_pair(chain, key, certificate_file=cert_file, key_file=key_file)
        except UnusableFile as error:
            raise self._contents.mistake("status.ssl_key_file", error) from None

    def status_context(self, pair: KeyPair, trust: Trust | None) -> SSL.Context:
        """The TLS context that metrics are served with."""
        try:
            return contexts.server_context(pair, trust, TLSOptions(), contexts.HTTP_PROTOCOL)
        except ContextError as error:
            raise ConfigError(error.located(self._contents.located("status"))) from None

    def backend_pair(self, name: str, backend: Backend) -> KeyPair | None:
        """The proxy's certificate for a backend; None without, or with one a user."""
        if backend.sslcert is None or backend.sslkey is None or backend.has_user_certificates:
            return None
        where, cert_file, key_file = f"backends.{name}", backend.sslcert, backend.sslkey
        passphrase = self._passphrase(name, backend)
        chain, content = _both(
            lambda: self._chain(f"{where}.sslcert", cert_file),
            lambda: self._contents.key(f"{where}.sslkey", key_file),
        )
        try:
            key = private_key(content, key_file, passphrase)
            return key_pair(chain, key, certificate_file=cert_file, key_file=key_file)
        except UnusableFile as error:
            raise self._contents.mistake(f"{where}.sslkey", error) from None

    def user_certificates(self, name: str, backend: Backend, trust: Trust | None) -> UserCertificates | None:
        """One certificate a user for a backend, read when it is needed; None where all share one."""
        if not backend.has_user_certificates:
            return None
        certificates = self._user_files(f"backends.{name}.sslcert", backend.sslcert or "")
        keys = self._user_files(f"backends.{name}.sslkey", backend.sslkey or "")
        passphrase = self._passphrase(name, backend)
        return UserCertificates(certificates, keys, passphrase, backend_options(backend), trust)

    def _user_files(self, where: str, template: str) -> UserFiles:
        path = Path(template)
        return UserFiles(self._contents.folder(where, str(path.parent)), path.name)

    def _passphrase(self, name: str, backend: Backend) -> Secret | None:
        """The passphrase of a backend's sslkey, or of all of them with one a user; None without."""
        if backend.sslpassword_file is None:
            return backend.sslpassword
        content = self._contents.key(f"backends.{name}.sslpassword_file", backend.sslpassword_file)
        return Secret(content.partition(b"\n")[0].rstrip(b"\r"))

    def backend_context(
        self, name: str, backend: Backend, pair: KeyPair | None, trust: Trust | None
    ) -> SSL.Context | None:
        """The TLS context of a backend; None where no TLS is spoken."""
        if backend.sslmode == "disable":
            return None
        try:
            return contexts.backend_context(pair, trust, backend_options(backend))
        except ContextError as error:
            names = {"ssl_ciphers": "ssl_min_protocol_version"}
            raise ConfigError(error.located(self._contents.located(f"backends.{name}"), names)) from None

    def passwords(self, name: str, backend: Backend) -> BackendPasswords:
        """The passwords that the proxy has itself for a backend."""
        return BackendPasswords(
            *_both(
                lambda: self._passfile(f"backends.{name}.passfile", backend.passfile),
                lambda: self._passfile(f"backends.{name}.host_probe.passfile", probe_passfile_path(backend)),
            )
        )

    def _passfile(self, where: str, path: str | None) -> Passfile | None:
        return None if path is None else parse_passfile(path, self._contents.key(where, path))

    def _chain(self, where: str, path: str) -> tuple[x509.Certificate, ...]:
        try:
            return certificate_chain(self._contents.plain(where, path), path)
        except UnusableFile as error:
            raise self._contents.mistake(where, error) from None


def _both(first: Callable[[], _T], second: Callable[[], _U]) -> tuple[_T, _U]:
    """Make two things, or say what is wrong with each of them."""
    try:
        made = first()
    except ConfigError as error:
        try:
            second()
        except ConfigError as other:
            raise ConfigError([*error.mistakes, *other.mistakes]) from None
        raise
    return made, second()


def backend_options(backend: Backend) -> TLSOptions:
    """What a backend's TLS settings ask of OpenSSL."""
    return TLSOptions(
        min_protocol_version=backend.ssl_min_protocol_version,
        max_protocol_version=backend.ssl_max_protocol_version,
        groups=contexts.DEFAULT_BACKEND_GROUPS,
    )
