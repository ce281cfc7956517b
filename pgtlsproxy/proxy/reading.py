"""Reading all that a configuration names, to serve it: files as bytes, and what passphrase commands print."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

from pgtlsproxy.config import Settings
from pgtlsproxy.identity import Secret
from pgtlsproxy.protocol.scram.secrets import MAX_SECRETS_OCTETS
from pgtlsproxy.proxy.backend_passwords import probe_passfile_path
from pgtlsproxy.proxy.files import (
    SYSTEM_ROOTS,
    SnapshotFiles,
    attempt,
    read_each,
    read_included,
    read_rule_files,
    read_settings,
)
from pgtlsproxy.proxy.mock_secrets import mock_secret_to_check, mock_secret_to_serve_with
from pgtlsproxy.proxy.passphrases import passphrase
from pgtlsproxy.proxy.rule_files import Note, note_nothing
from pgtlsproxy.tls.file_access import (
    Folder,
    SystemRoots,
    UnusableFile,
    read_directory,
    read_file,
    read_key_file,
    system_roots,
)


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
    settings, mistakes, digest = read_settings(path, known, note)
    named = settings or in_service
    if named is None:
        return SnapshotFiles(path, None, mistakes, {}, {}, {}, {}, None, {}, digest=digest)
    plain, keys, directories = _named_files(named)
    rules = read_rule_files(named.listeners.values(), note)
    uid = os.geteuid()
    wants_roots = any(backend.sslrootcert == SYSTEM_ROOTS for backend in named.backends.values())
    return SnapshotFiles(
        path,
        settings,
        mistakes,
        read_each(plain, read_file, note),
        {
            **read_each(keys, lambda file, kind: read_key_file(file, uid, kind), note),
            **read_each(
                _secrets_files(named),
                lambda file, kind: read_key_file(file, uid, kind, MAX_SECRETS_OCTETS),
                note,
            ),
            **read_each(
                _mock_secret_files(named),
                lambda file, _: (mock_secret_to_serve_with if serves else mock_secret_to_check)(file, uid),
                note,
            ),
        },
        read_each(directories, read_directory, note),
        read_each(_user_folders(named), Folder, note),
        _roots(note) if wants_roots else None,
        {},
        rules,
        read_included(rules, known, note),
        digest,
    )


def _roots(note: Note) -> SystemRoots | UnusableFile:
    note("the system's root certificates")
    return attempt(lambda: system_roots(os.environ))


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
            passphrases[name] = attempt(partial(passphrase, listener))
    return replace(files, passphrases=passphrases)


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
