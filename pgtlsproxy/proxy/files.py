"""The files behind a snapshot, as bytes: the YAML file, and of those that it names the ones of policies.

What cannot be read is kept as the reason why, so that all mistakes are reported at once and a
reload can go on with the units that are whole. `reading` reads the others, too; whoever only asks a
policy needs neither them nor what it takes to read them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, TypeVar

from pgtlsproxy.config import Listener, Settings, load_settings
from pgtlsproxy.errors import ConfigError, Mistake
from pgtlsproxy.identity import Secret
from pgtlsproxy.policy.inclusion import MAX_OCTETS as MAX_RULES_OCTETS
from pgtlsproxy.policy.inclusion import follow
from pgtlsproxy.proxy.rule_files import Included, InclusionReader, Note, note_nothing, read_again
from pgtlsproxy.proxy.settings_files import SettingsFiles
from pgtlsproxy.tls.file_access import (
    Folder,
    SystemRoots,
    UnusableFile,
    key_file_problem,
    read_directory,
    read_file,
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
        digest: of what the YAML file and those that it includes hold; empty where it could not be read.
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


def read_rules(path: str, listener: str | None = None) -> SnapshotFiles:
    """Read the configuration and only what policies are made of: hba, ident and roles files.

    Args:
        path: the YAML file.
        listener: whose; None for all.
    """
    settings, mistakes, _ = read_settings(path)
    rules: Mapping[str, bytes | UnusableFile] = {}
    if settings is not None:
        named = [one for name, one in settings.listeners.items() if listener in {None, name}]
        rules = read_rule_files(named)
    return SnapshotFiles(path, settings, mistakes, {}, {}, {}, {}, None, {}, rules, read_included(rules))


def with_client_trust(files: SnapshotFiles, listener: Listener) -> SnapshotFiles:
    """The same, and who vouches for a listener's clients: its CA and revocation lists."""
    plain = {
        "root certificate file": listener.ssl_ca_file,
        "certificate revocation list file": listener.ssl_crl_file,
    }
    directories = {"certificate revocation list directory": listener.ssl_crl_dir}
    return replace(
        files,
        plain=read_each({path: kind for kind, path in plain.items() if path is not None}, read_file),
        directories=read_each(
            {path: kind for kind, path in directories.items() if path is not None}, read_directory
        ),
    )


def read_each(
    files: Mapping[str, str], reader: Callable[[str, str], _T], note: Note = note_nothing
) -> dict[str, _T | UnusableFile]:
    """What is in files, or why it cannot be had.

    Args:
        files: what each is, by its path.
        reader: reads one, told its path and what it is.
        note: told of each before it is read, which may hang.
    """
    found: dict[str, _T | UnusableFile] = {}
    for path, kind in files.items():
        note(path)
        found[path] = attempt(partial(reader, path, kind))
    return found


def read_settings(
    path: str, known: SnapshotFiles | None = None, note: Note = note_nothing
) -> tuple[Settings | None, tuple[Mistake, ...], bytes]:
    """What the YAML file and those that it includes say, or what is wrong with them, and their digest.

    Args:
        path: the YAML file.
        known: what an earlier reading found; where the files are the same, they are not parsed again.
        note: told of each before it is read.
    """
    sources = SettingsFiles(note)
    try:
        content = sources.main(path)
        settings = None
        if known is not None and known.settings is not None:
            again = SettingsFiles(note)
            again.main(path)
            for pattern in known.settings.include:
                again.included(pattern)
            if again.digest == known.digest:
                sources, settings = again, known.settings
        if settings is None:
            settings = load_settings(path, content, sources.included)
        if any(backend.has_inline_secret for backend in settings.backends.values()):
            for file, status in sources.statuses.items():
                problem = key_file_problem(file, status, os.geteuid(), "configuration file with sslpassword")
                if problem is not None:
                    raise UnusableFile(problem)
    except UnusableFile as error:
        return None, (Mistake(path, str(error)),), sources.digest
    except ConfigError as error:
        return None, tuple(error.mistakes), sources.digest
    return settings, (), sources.digest


def attempt(action: Callable[[], _T]) -> _T | UnusableFile:
    """What an action results in, or why it does not."""
    try:
        return action()
    except UnusableFile as error:
        return error


def read_rule_files(
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
    return read_each(kinds, lambda file, kind: read_file(file, kind, MAX_RULES_OCTETS), note)


def read_included(
    rules: Mapping[str, bytes | UnusableFile], known: SnapshotFiles | None = None, note: Note = note_nothing
) -> Included:
    """Everything that the files include, by going through them as the workers will.

    Args:
        rules: the files.
        known: what an earlier reading found; where the files are the same, they are not gone through again.
        note: told of each before it is read.
    """
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
