"""The only file access behind a snapshot: the YAML file, and every file that it names, as bytes.

What cannot be read is kept as the reason why, so that all mistakes are reported at once and a
reload can go on with the units that are whole.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from pgtlsproxy.config import Listener, Settings, load_settings
from pgtlsproxy.errors import ConfigError, Mistake
from pgtlsproxy.identity import Secret
from pgtlsproxy.policy.inclusion import MAX_OCTETS as MAX_RULES_OCTETS
from pgtlsproxy.policy.inclusion import follow
from pgtlsproxy.protocol.scram.secrets import MAX_SECRETS_OCTETS
from pgtlsproxy.proxy.backend_passwords import probe_passfile_path
from pgtlsproxy.proxy.mock_secrets import mock_secret_to_check, mock_secret_to_serve_with
from pgtlsproxy.proxy.passphrases import passphrase
from pgtlsproxy.proxy.rule_files import Included, InclusionReader, Note, note_nothing, read_again
from pgtlsproxy.tls.file_access import (
    Folder,
    SystemRoots,
    UnusableFile,
    key_file_problem,
    read_directory,
    read_file,
    read_file_and_status,
    read_key_file,
    system_roots,
)

SYSTEM_ROOTS: Final = "system"

_T = TypeVar("_T")
Directory = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class SnapshotFiles:
    """What the files say, at one moment.

    Args:
        path: the YAML file.
        settings: what it says; None where it cannot be used.
        mistakes: why it cannot.
        plain: certificates, CAs, CRLs by path: their bytes, or why there are none.
        keys: files with secrets, read under PostgreSQL's permission rule.
        directories: CRL directories.
        folders: where the users' certificates and keys are, which are read when a session needs them.
        roots: the system's root certificates, where something asks for them.
        passphrases: by listener name, what ssl_passphrase_command printed.
        rules: hba, ident and roles files by path: their bytes, or why there are none.
        included: what those include.
        digest: of the YAML file's bytes; empty where they could not be read.
    """

    path: str
    settings: Settings | None
    mistakes: tuple[Mistake, ...]
    plain: Mapping[str, bytes | UnusableFile] = field(repr=False)
    keys: Mapping[str, bytes | UnusableFile] = field(repr=False)
    directories: Mapping[str, Directory | UnusableFile] = field(repr=False)
    folders: Mapping[str, Folder | UnusableFile] = field(repr=False)
    roots: SystemRoots | UnusableFile | None = field(repr=False)
    passphrases: Mapping[str, Secret | UnusableFile] = field(repr=False)
    rules: Mapping[str, bytes | UnusableFile] = field(default_factory=dict, repr=False)
    included: Included = field(default_factory=Included, repr=False)
    digest: bytes = field(default=b"", repr=False)


def read(path: str, *, in_service: Settings | None = None, serves: bool = False) -> SnapshotFiles:
    """Read the configuration and every file that it names, and ask for passphrases.

    Args:
        path: the YAML file.
        serves: whether it is to be served: files of mock secrets that are missing are made then.
        in_service: at a reload, the settings that are served. Their files are read where the YAML file
            cannot be used, and passphrase commands run only where the listener lets them on a reload.
    """
    return with_passphrases(read_content(path, in_service=in_service, serves=serves), in_service)


def read_content(
    path: str,
    *,
    in_service: Settings | None = None,
    serves: bool = False,
    known: SnapshotFiles | None = None,
    note: Note = note_nothing,
) -> SnapshotFiles:
    """Read the configuration and every file that it names, and start no command.

    Args:
        path: the YAML file.
        in_service: as in `read`.
        serves: as in `read`.
        known: what an earlier reading found. What still says the same is not parsed again.
        note: told of every file before it is read, which may hang.
    """
    note(path)
    settings, mistakes, digest = _read_settings(path, known)
    named = settings or in_service
    if named is None:
        return SnapshotFiles(path, None, mistakes, {}, {}, {}, {}, None, {}, digest=digest)
    plain, keys, directories = _named_files(named)
    rules = _read_rule_files(named.listeners.values(), note)
    uid = os.geteuid()
    wants_roots = any(backend.sslrootcert == SYSTEM_ROOTS for backend in named.backends.values())
    return SnapshotFiles(
        path,
        settings,
        mistakes,
        _read_each(plain, read_file, note),
        {
            **_read_each(keys, lambda file, kind: read_key_file(file, uid, kind), note),
            **_read_each(
                _secrets_files(named),
                lambda file, kind: read_key_file(file, uid, kind, MAX_SECRETS_OCTETS),
                note,
            ),
            **_read_each(
                _mock_secret_files(named),
                lambda file, _: (mock_secret_to_serve_with if serves else mock_secret_to_check)(file, uid),
                note,
            ),
        },
        _read_each(directories, read_directory, note),
        _read_each(_user_folders(named), Folder, note),
        _roots(note) if wants_roots else None,
        {},
        rules,
        _included(rules, known, note),
        digest,
    )


def _roots(note: Note) -> SystemRoots | UnusableFile:
    note("the system's root certificates")
    return _attempt(lambda: system_roots(os.environ))


def with_passphrases(
    files: SnapshotFiles, in_service: Settings | None = None, note: Note = note_nothing
) -> SnapshotFiles:
    """The same, and what the passphrase commands print, which run now.

    Args:
        files: what `read_content` found.
        in_service: as in `read`.
        note: as in `read_content`.
    """
    named = files.settings or in_service
    passphrases: dict[str, Secret | UnusableFile] = {}
    for name, listener in named.listeners.items() if named is not None else ():
        may_run = in_service is None or listener.ssl_passphrase_command_supports_reload
        if listener.ssl_passphrase_command and may_run:
            note(f"ssl_passphrase_command of listener {name}")
            passphrases[name] = _attempt(partial(passphrase, listener))
    return replace(files, passphrases=passphrases)


def read_rules(path: str, listener: str | None = None) -> SnapshotFiles:
    """Read the configuration and only what policies are made of: hba, ident and roles files.

    Args:
        path: the YAML file.
        listener: whose; None for all.
    """
    settings, mistakes, _ = _read_settings(path)
    rules: Mapping[str, bytes | UnusableFile] = {}
    if settings is not None:
        named = [one for name, one in settings.listeners.items() if listener in {None, name}]
        rules = _read_rule_files(named)
    return SnapshotFiles(path, settings, mistakes, {}, {}, {}, {}, None, {}, rules, _included(rules))


def with_client_trust(files: SnapshotFiles, listener: Listener) -> SnapshotFiles:
    """The same, and who vouches for a listener's clients: its CA and revocation lists."""
    plain = {
        "root certificate file": listener.ssl_ca_file,
        "certificate revocation list file": listener.ssl_crl_file,
    }
    directories = {"certificate revocation list directory": listener.ssl_crl_dir}
    return replace(
        files,
        plain=_read_each({path: kind for kind, path in plain.items() if path is not None}, read_file),
        directories=_read_each(
            {path: kind for kind, path in directories.items() if path is not None}, read_directory
        ),
    )


def _read_each(
    files: Mapping[str, str], reader: Callable[[str, str], _T], note: Note = note_nothing
) -> dict[str, _T | UnusableFile]:
    found: dict[str, _T | UnusableFile] = {}
    for path, kind in files.items():
        note(path)
        found[path] = _attempt(partial(reader, path, kind))
    return found


def _read_settings(
    path: str, known: SnapshotFiles | None = None
) -> tuple[Settings | None, tuple[Mistake, ...], bytes]:
    """What the YAML file says, or what is wrong with it, and its digest."""
    digest = b""
    try:
        content, status = read_file_and_status(path, "configuration file")
        digest = hashlib.blake2b(content).digest()
        if known is not None and known.settings is not None and known.digest == digest:
            settings = known.settings
        else:
            settings = load_settings(path, content)
        if any(backend.has_inline_secret for backend in settings.backends.values()):
            problem = key_file_problem(path, status, os.geteuid(), "configuration file with sslpassword")
            if problem is not None:
                raise UnusableFile(problem)
    except UnusableFile as error:
        return None, (Mistake(path, str(error)),), digest
    except ConfigError as error:
        return None, tuple(error.mistakes), digest
    return settings, (), digest


def _attempt(action: Callable[[], _T]) -> _T | UnusableFile:
    try:
        return action()
    except UnusableFile as error:
        return error


def _named_files(settings: Settings) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Paths and what they are: plain files, files with secrets, directories."""
    plain: dict[str, str | None] = {}
    keys: dict[str, str | None] = {}
    directories: dict[str, str | None] = {}

    def note(group: dict[str, str | None], path: str | None, kind: str) -> None:
        if path is not None:
            group[path] = kind

    for listener in settings.listeners.values():
        note(plain, listener.ssl_cert_file, "certificate file")
        note(plain, listener.ssl_ca_file, "root certificate file")
        note(plain, listener.ssl_crl_file, "certificate revocation list file")
        note(plain, listener.ssl_dh_params_file, "DH parameters file")
        note(keys, listener.ssl_key_file, "private key file")
        if listener.auth_query is not None:
            note(keys, listener.auth_query.passfile, "password file")
        note(directories, listener.ssl_crl_dir, "certificate revocation list directory")
    if settings.status is not None:
        note(plain, settings.status.ssl_cert_file, "certificate file")
        note(plain, settings.status.ssl_ca_file, "root certificate file")
        note(keys, settings.status.ssl_key_file, "private key file")
    for backend in settings.backends.values():
        if backend.sslrootcert != SYSTEM_ROOTS:
            note(plain, backend.sslrootcert, "root certificate file")
        note(plain, backend.sslcrl, "certificate revocation list file")
        note(directories, backend.sslcrldir, "certificate revocation list directory")
        note(keys, backend.sslpassword_file, "password file")
        note(keys, backend.passfile, "password file")
        note(keys, probe_passfile_path(backend), "password file")
        if not backend.has_user_certificates:
            note(plain, backend.sslcert, "certificate file")
            note(keys, backend.sslkey, "private key file")
    return (
        {path: kind for path, kind in plain.items() if kind},
        {path: kind for path, kind in keys.items() if kind},
        {path: kind for path, kind in directories.items() if kind},
    )


def _read_rule_files(
    listeners: Iterable[Listener], note: Note = note_nothing
) -> dict[str, bytes | UnusableFile]:
    """The files of lines that policies are made of."""
    kinds = {
        path: kind
        for listener in listeners
        for path, kind in (
            (listener.hba_file, "hba_file"),
            (listener.ident_file, "ident_file"),
            (listener.roles_file, "roles_file"),
        )
        if path is not None
    }
    return _read_each(kinds, lambda file, kind: read_file(file, kind, MAX_RULES_OCTETS), note)


def _included(
    rules: Mapping[str, bytes | UnusableFile], known: SnapshotFiles | None = None, note: Note = note_nothing
) -> Included:
    """Everything that the files include, by going through them as the workers will."""
    if known is not None and _say_the_same(rules, known.rules):
        included = read_again(known.included, note)
        if included == known.included:
            return known.included  # the same lines include the same files
    reader = InclusionReader(note)
    for path, content in rules.items():
        if isinstance(content, bytes):
            follow(path, content, reader)
    return reader.included


def _say_the_same(one: Mapping[str, bytes | UnusableFile], other: Mapping[str, bytes | UnusableFile]) -> bool:
    """Whether two readings found the same files with the same content; those without any do not count."""
    return one.keys() == other.keys() and all(
        content == other[path] for path, content in one.items() if isinstance(content, bytes)
    )


def _secrets_files(settings: Settings) -> dict[str, str]:
    """The files of SCRAM verifiers, and what they are."""
    return {
        listener.scram_secrets_file: "SCRAM secrets file"
        for listener in settings.listeners.values()
        if listener.scram_secrets_file is not None
    }


def _mock_secret_files(settings: Settings) -> dict[str, str]:
    """The files of mock secrets, and what they are; needed where the proxy itself asks for passwords."""
    return {
        listener.mock_secret_file: "SCRAM mock secret file"
        for listener in settings.listeners.values()
        if listener.mock_secret_file is not None
        and any(settings.backends[name].login != "passthrough" for name in listener.backends)
    }


def _user_folders(settings: Settings) -> dict[str, str]:
    """The folders of users' certificates and keys, and what they are."""
    return {
        str(Path(template).parent): "folder"
        for backend in settings.backends.values()
        if backend.has_user_certificates
        for template in (backend.sslcert, backend.sslkey)
        if template is not None
    }
