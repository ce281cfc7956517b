"""The configuration in service: built aside from bytes, tested, and swapped as one reference.

A reload is judged in units, as PostgreSQL judges hba, ident and TLS apart: the policy of one
listener, each certificate with its key, each set of CA and CRLs. A unit that does not load keeps
its old content and the others move, so that one team's typo never keeps a renewed certificate or
a CRL out. At start there is nothing to keep, and every mistake is fatal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, TypeVar

from OpenSSL import SSL

from pgtlsproxy.config import Backend, Listener, Settings
from pgtlsproxy.errors import ConfigError, Mistake
from pgtlsproxy.policy.access import Rules
from pgtlsproxy.protocol.passfile import Passfile
from pgtlsproxy.protocol.scram.secrets import Secrets
from pgtlsproxy.proxy.backend_passwords import BackendPasswords
from pgtlsproxy.proxy.files import SnapshotFiles
from pgtlsproxy.proxy.issuers import knowing_issuers, with_trusted_issuers
from pgtlsproxy.proxy.listener_secrets import (
    auth_passfile_path,
    lacks_mock_secret,
    passfile_of_kept_policy,
    secrets_of_kept_policy,
)
from pgtlsproxy.proxy.policies import make_rules
from pgtlsproxy.proxy.reading import read
from pgtlsproxy.proxy.restarts import restart_warnings
from pgtlsproxy.proxy.status_tls import StatusTLS, make_status_tls
from pgtlsproxy.proxy.units import Units
from pgtlsproxy.proxy.user_certificates import UserCertificates
from pgtlsproxy.strict_yaml import show_path
from pgtlsproxy.tls.contexts import KeyPair, TLSOptions
from pgtlsproxy.tls.trust import Trust

_S = TypeVar("_S")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ListenerSnapshot:
    """A listener as it is served.

    Args:
        name: its name.
        settings: its settings.
        rules: its policy.
        backends: the backends that the policy was judged against; no other is ever dialled under it.
        pair: its certificate and key; None with `ssl: off`.
        trust: who vouches for its clients; None without ssl_ca_file.
        tls_context: None with `ssl: off`.
        options: what the TLS context was built with.
        secrets: the SCRAM verifiers of its users, empty with auth_query alone; None without either.
        auth_passfile: the password of the role of auth_query; None where it has none.
    """

    name: str
    settings: Listener
    rules: Rules
    backends: Mapping[str, BackendSnapshot]
    pair: KeyPair | None
    trust: Trust | None
    tls_context: SSL.Context | None = field(repr=False)
    options: TLSOptions | None = field(repr=False)
    secrets: Secrets | None = field(repr=False)
    auth_passfile: Passfile | None = None


@dataclass(frozen=True, slots=True)
class BackendSnapshot:
    """A backend as it is dialled.

    Args:
        name: its name.
        settings: its settings.
        pair: the proxy's certificate for it; None without, or with one a user.
        trust: who vouches for it; None where nothing is verified.
        tls_context: None where no TLS is spoken.
        users: one certificate a user, where sslcert says `{user}`.
        passwords: those that the proxy has itself.
    """

    name: str
    settings: Backend
    pair: KeyPair | None
    trust: Trust | None
    tls_context: SSL.Context | None = field(repr=False)
    users: UserCertificates | None = field(repr=False, default=None)
    passwords: BackendPasswords = field(default_factory=BackendPasswords)

    async def context_for(self, user: str) -> SSL.Context | None:
        """The context to dial with for a user.

        Raises:
            BackendUnavailable: the user has no certificate that will do.
        """
        return self.tls_context if self.users is None else await self.users.context_for(user)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole configuration in service.

    Args:
        path: the YAML file.
        generation: counts the snapshots of this process from 1; every session logs it.
        settings: the settings that are not a listener's or a backend's.
        listeners: by name.
        backends: by name.
        loaded_at: Unix time of its making.
        status: what metrics are served with; None for HTTP in clear.
    """

    path: str
    generation: int
    settings: Settings
    listeners: Mapping[str, ListenerSnapshot]
    backends: Mapping[str, BackendSnapshot]
    loaded_at: float
    status: StatusTLS | None = None


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What came of a reload.

    Args:
        snapshot: what is to be served now; the old one where nothing could be taken.
        mistakes: what could not be.
        warnings: what could, but deserves a look.
        kept: the units that keep their old content.
    """

    snapshot: Snapshot
    mistakes: tuple[Mistake, ...]
    warnings: tuple[Mistake, ...]
    kept: tuple[str, ...]


def load(path: str) -> Reloaded:
    """Read and build the configuration for the first time.

    Raises:
        ConfigError: with every mistake in it.
    """
    return build(read(path), None)


def reload(in_service: Snapshot) -> Reloaded:
    """Read and build it anew, beside the one in service. Never raises what a file can cause."""
    return build(read(in_service.path, in_service=in_service.settings), in_service)


def build(files: SnapshotFiles, in_service: Snapshot | None) -> Reloaded:
    """Make a snapshot of what the files say; no file is touched.

    Args:
        files: what they say.
        in_service: what a unit that does not load keeps; None at start.

    Raises:
        ConfigError: at start, with every mistake.
    """
    return _Builder(files, in_service).build()


_Policy = tuple[Listener, Rules, Mapping[str, BackendSnapshot]]
_TLS = tuple[KeyPair | None, Trust | None, SSL.Context | None, TLSOptions | None]
_NO_TLS: Final[_TLS] = (None, None, None, None)


class _Builder:
    """Builds every unit, and keeps the old one of those that do not load."""

    def __init__(self, files: SnapshotFiles, in_service: Snapshot | None) -> None:
        self._files = files
        self._old = in_service
        self._mistakes = list(files.mistakes)
        self._warnings: list[Mistake] = []
        self._units = Units(files, self._warnings.append)
        self._kept: list[str] = []
        self._backends: Mapping[str, BackendSnapshot] = {}

    def build(self) -> Reloaded:
        settings = self._settings()
        old = self._old
        self._backends = backends = self._each(settings.backends, self._backend, old.backends if old else {})
        listeners = self._each(settings.listeners, self._listener, old.listeners if old else {})
        status = make_status_tls(self._units, settings.status, old.status if old else None, self._unit)
        if old is None and self._mistakes:
            raise ConfigError(self._mistakes)
        if old is not None:
            self._warnings.extend(restart_warnings(self._files.path, old.settings, settings))
        number = 1 if old is None else old.generation + 1
        snapshot = Snapshot(self._files.path, number, settings, listeners, backends, time.time(), status)
        return Reloaded(snapshot, tuple(self._mistakes), tuple(self._warnings), tuple(self._kept))

    def _settings(self) -> Settings:
        if self._files.settings is not None:
            self._warnings.extend(self._files.settings.warnings)
            return self._files.settings
        if self._old is None:
            raise ConfigError(self._mistakes)
        self._kept.append(self._files.path)
        return self._old.settings

    def _each(
        self,
        settings: Mapping[str, _S],
        make: Callable[[str, _S, _T | None], _T | None],
        in_service: Mapping[str, _T],
    ) -> dict[str, _T]:
        """Make each, or keep what is in service of those that cannot be made."""
        made = {name: make(name, entry, in_service.get(name)) for name, entry in settings.items()}
        kept = {name: entry if entry is not None else in_service.get(name) for name, entry in made.items()}
        return {name: entry for name, entry in kept.items() if entry is not None}

    def _unit(self, name: str, make: Callable[[], _T | None], old: _T | None) -> _T | None:
        try:
            return make()
        except ConfigError as error:
            self._mistakes.extend(error.mistakes)
            if old is not None:
                self._kept.append(name)
            return old

    def _listener(
        self, name: str, settings: Listener, old: ListenerSnapshot | None
    ) -> ListenerSnapshot | None:
        tls = self._listener_tls(name, settings, old) if settings.ssl else _NO_TLS
        trust = None if tls is None else tls[1]
        kept_policy = self._kept_policy(old, trust) if old else None
        secrets = self._unit(
            f"SCRAM secrets of listener {name}",
            lambda: self._units.secrets(name, settings),
            old.secrets if old else None,
        )
        auth_passfile = self._unit(
            f"password for auth_query of listener {name}",
            lambda: self._units.auth_passfile(name, settings),
            old.auth_passfile if old else None,
        )
        if self._files.settings is None:
            policy = kept_policy  # a YAML file that cannot be used moves no policy
        else:
            policy = self._unit(
                f"policy of listener {name}",
                lambda: self._policy(name, settings, trust, secrets),
                kept_policy,
            )
        lacks_password = auth_passfile_path(settings) is not None and auth_passfile is None
        if policy is None or tls is None or (settings.has_verifiers and secrets is None) or lacks_password:
            return None
        if old is not None and policy is kept_policy:
            secrets = secrets_of_kept_policy(old.settings, old.secrets, settings, secrets)
            auth_passfile = passfile_of_kept_policy(old.settings, old.auth_passfile, settings, auth_passfile)
        kept_settings, rules, backends = policy
        pair, trust, context, options = tls
        return ListenerSnapshot(
            name, kept_settings, rules, backends, pair, trust, context, options, secrets, auth_passfile
        )

    def _listener_tls(self, name: str, settings: Listener, old: ListenerSnapshot | None) -> _TLS | None:
        """Certificate, CA, context and options of a listener; None where there is no whole set of them."""
        units = self._units
        pair = self._unit(
            f"certificate of listener {name}",
            lambda: units.server_pair(name, settings, old.pair if old else None),
            old.pair if old else None,
        )
        trust = self._unit(
            f"CA of listener {name}",
            lambda: units.trusts.of_clients(name, settings),
            old.trust if old else None,
        )
        if pair is None or (settings.ssl_ca_file is not None and trust is None):
            return None
        unit = f"TLS settings of listener {name}"
        options = self._unit(unit, lambda: units.server_options(name, settings), old.options if old else None)
        if options is None:
            return None
        context = self._unit(unit, partial(units.server_context, name, pair, trust, options), None)
        if context is None:
            return self._old_listener_tls(name, old, pair, trust)
        return pair, trust, context, options

    def _old_listener_tls(
        self, name: str, old: ListenerSnapshot | None, pair: KeyPair, trust: Trust | None
    ) -> _TLS | None:
        """The TLS settings in service, with the newer certificate and CRLs where OpenSSL takes them so."""
        if old is None or old.pair is None or old.options is None:
            return None
        self._kept.append(f"TLS settings of listener {name}")
        for newest in (pair, old.pair):
            try:
                context = self._units.server_context(name, newest, trust, old.options)
            except ConfigError:
                continue  # with the new settings it was told already what is wrong
            if newest is not pair:
                self._kept.append(f"certificate of listener {name}")
            return newest, trust, context, old.options
        self._kept.extend((f"certificate of listener {name}", f"CA of listener {name}"))
        return old.pair, old.trust, old.tls_context, old.options

    def _old_backend(
        self, name: str, settings: Backend, old: BackendSnapshot | None, trust: Trust | None
    ) -> BackendSnapshot | None:
        """The backend in service, whole, with newer CRLs where its CA settings are the same."""
        if old is None:
            return None
        self._kept.append(f"TLS settings of backend {name}")
        keys = ("sslmode", "sslrootcert", "sslcrl", "sslcrldir")
        if old.tls_context is None or any(getattr(settings, k) != getattr(old.settings, k) for k in keys):
            return old
        try:
            context = self._units.backend_context(name, old.settings, old.pair, trust)
        except ConfigError:  # with the new settings it was told already what is wrong
            self._kept.append(f"CA of backend {name}")
            return old
        users = old.users.trusting(trust) if old.users is not None else None
        return replace(old, trust=trust, tls_context=context, users=users)

    def _policy(
        self, name: str, settings: Listener, trust: Trust | None, secrets: Secrets | None
    ) -> _Policy | None:
        """A policy, with the very backends that it was judged against; None at start where one is missing."""
        warn = self._warnings.append
        rules = make_rules(self._files, name, settings, warn, lambda each: with_trusted_issuers(each, trust))
        wanted = self._files.settings
        backends: dict[str, BackendSnapshot] = {}
        for key, wanted_name in settings.named_backends():
            backend = self._backends.get(wanted_name)
            if backend is None or wanted is None or backend.settings is not wanted.backends[wanted_name]:
                if self._old is None:
                    return None  # what is wrong with the backend ends the start, and has been told
                problem = f"backend {wanted_name} does not load, and the policy was written for it"
                place = f"{self._files.path}: {show_path(('listeners', name, *key))}"
                raise ConfigError([Mistake(place, problem)])
            backends[wanted_name] = backend
        destinations = [backends[each].settings for each in settings.backends]
        if self._old is not None and lacks_mock_secret(secrets, destinations):
            place = f"{self._files.path}: listeners.{name}.scram_mock_secret_file"
            raise ConfigError([Mistake(place, "does not load, and the policy needs it")])
        return settings, rules, backends

    def _kept_policy(self, old: ListenerSnapshot, trust: Trust | None) -> _Policy:
        """The policy in service, with its backend; renewed only where the backend's settings are the same.

        A CA that it names and that is trusted no more vouches for nobody.
        """
        backends = dict(old.backends)
        for name, backend in old.backends.items():
            new = self._backends.get(name)
            if new is not None and new.settings == backend.settings:
                backends[name] = new
        return old.settings, knowing_issuers(old.rules, trust), backends

    def _backend(self, name: str, settings: Backend, old: BackendSnapshot | None) -> BackendSnapshot | None:
        units = self._units
        trust = self._unit(
            f"CA of backend {name}",
            lambda: units.trusts.of_backend(name, settings),
            old.trust if old else None,
        )
        pair = self._unit(
            f"certificate of backend {name}",
            lambda: units.backend_pair(name, settings),
            old.pair if old else None,
        )
        if (settings.sslrootcert is not None and trust is None) or (
            settings.sslcert is not None and not settings.has_user_certificates and pair is None
        ):
            return old
        unit = f"TLS settings of backend {name}"
        context = self._unit(unit, lambda: units.backend_context(name, settings, pair, trust), None)
        if settings.sslmode != "disable" and context is None:
            return self._old_backend(name, settings, old, trust)
        users = self._unit(
            f"certificates of users at backend {name}",
            lambda: units.user_certificates(name, settings, trust),
            old.users.trusting(trust) if old and old.users else None,
        )
        passwords = self._unit(
            f"passwords for backend {name}",
            lambda: units.passwords(name, settings),
            old.passwords if old else None,
        )
        if passwords is None or not passwords.suffice_for(settings):
            return old
        if settings.has_user_certificates and users is None:
            return old
        return BackendSnapshot(name, settings, pair, trust, context, users, passwords)
