"""Opening key, certificate and CRL files: the only place that touches their paths.

A file is judged by the descriptor that it is read from, so that nobody can exchange it in between.
Symbolic links are followed, because Kubernetes mounts every secret behind two of them.
"""

from __future__ import annotations

import os
import re
import stat
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pgtlsproxy.identity import printable

MAX_KEY_FILE_OCTETS: Final = 1 << 20
MAX_FILE_OCTETS: Final = 16 << 20
"""Longest certificate, CA or CRL file; the CRLs of public issuers reach several MB."""
MAX_DIRECTORY_OCTETS: Final = 64 << 20
MAX_NAMES: Final = 10_000
"""How many entries a directory that is listed may have."""

USUAL_BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch, Alpine
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # Fedora, RHEL
    "/etc/pki/tls/certs/ca-bundle.crt",  # older Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/var/lib/ca-certificates/ca-bundle.pem",  # newer SUSE
    "/etc/ssl/cert.pem",  # Alpine, BSD
)
"""Where distributions keep the public roots in one file."""

_ROOT: Final = 0
_OTHERS_MAY_READ: Final = stat.S_IROTH
_ROOT_OWNED_FORBIDS: Final = stat.S_IWGRP | stat.S_IXGRP | stat.S_IRWXO
_OWN_FORBIDS: Final = stat.S_IRWXG | stat.S_IRWXO
_ROOTS_DIRECTORY_ENTRY: Final = re.compile(r"[0-9a-f]{8}\.\d+|.*\.(?:pem|crt)")


class UnusableFile(Exception):
    """A file that cannot be used. Its text names the file, what was found, and what to do."""


class MissingFile(UnusableFile):
    """A file that does not exist."""


@dataclass(frozen=True, slots=True)
class SystemRoots:
    """What `sslrootcert=system` stands for.

    Args:
        place: the file or directories they came from.
        content: their PEM, not yet parsed.
    """

    place: str
    content: bytes = field(repr=False)


def key_file_problem(
    path: str, found: os.stat_result, uid: int, kind: str = "private key file"
) -> str | None:
    """PostgreSQL's permission rule for files with secrets.

    Owned by root, the group may read it; owned by us, nobody else may do anything; owned by a third
    user, it is refused (`check_ssl_key_file_permissions` in be-secure-common.c). PostgreSQL never
    runs as root. For a proxy that does, libpq's rule holds, which leaves the owner open
    (`initialize_SSL` in fe-secure-openssl.c).

    Args:
        path: how the messages name it.
        found: of the open descriptor.
        uid: who will read it, the effective uid of the process.
        kind: what it is, for the message.

    Returns:
        What is wrong, and the cure; None where the rule holds.
    """
    shown = f'{kind} "{path}"'
    if not stat.S_ISREG(found.st_mode):
        return f"{shown} is not a regular file: name a file, not a directory, pipe or device"
    if uid != _ROOT and found.st_uid not in (uid, _ROOT):
        return (
            f"{shown} must be owned by the database user or root: it belongs to uid {found.st_uid} "
            f"and we run as uid {uid}; give it to one of them with chown"
        )
    owned_by_root = found.st_uid == _ROOT
    if not found.st_mode & (_ROOT_OWNED_FORBIDS if owned_by_root else _OWN_FORBIDS):
        return None
    mode = stat.S_IMODE(found.st_mode)
    allowed = "0640 or less as root owns it" if owned_by_root else "0600 or less"
    return (
        f"{shown} has group or world access: its mode is {mode:04o} and must be {allowed}; "
        f"{_permission_cure(path, found)}"
    )


def read_key_file(
    path: str, uid: int, kind: str = "private key file", limit: int = MAX_KEY_FILE_OCTETS
) -> bytes:
    """Read a file with secrets, if its permissions keep them secret.

    Args:
        path: which one.
        uid: the user that the proxy runs as.
        kind: what it is, for the messages.
        limit: how many octets it may have.

    Raises:
        UnusableFile: it cannot be opened, breaks `key_file_problem`'s rule, or is longer.
    """
    return _read_secret(_open(path, kind), path, uid, kind, limit)


def read_file(path: str, kind: str, limit: int | None = None) -> bytes:
    """Read a file that is not secret.

    Args:
        path: which one.
        kind: what it is, for the messages: `certificate file`, `root certificate file`.
        limit: how many octets it may have; None for 16 MB.

    Raises:
        UnusableFile: it cannot be opened, is not a regular file, or is longer.
    """
    return _read_plain(_open(path, kind), path, kind, limit)[0]


def read_file_and_status(path: str, kind: str) -> tuple[bytes, os.stat_result]:
    """Read a file whose content tells whether it is secret, and what `key_file_problem` then judges.

    Raises:
        UnusableFile: it cannot be opened, is not a regular file, or is over 16 MB.
    """
    return _read_plain(_open(path, kind), path, kind)


class Folder:
    """A directory, opened once and held open. Files are opened relative to it, by names of one component.

    So no name leads out of it, and what is put into the place of its path later is never looked at.
    The files may be links, as everywhere here: whoever writes into the directory decides what is read.

    Args:
        path: which directory.
        kind: what it is, for the messages.
        descriptor: of the directory, where another process has opened it; the folder's from here on.

    Raises:
        UnusableFile: it cannot be opened.
    """

    def __init__(self, path: str, kind: str, *, descriptor: int | None = None) -> None:
        self.path = path
        # O_PATH: that its files can be opened is all that is needed, they need not be listed.
        flags = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            self._descriptor = os.open(path, flags) if descriptor is None else descriptor
        except (OSError, ValueError) as error:
            raise UnusableFile(_cannot_open(path, error, kind)) from None
        weakref.finalize(self, os.close, self._descriptor)

    def fileno(self) -> int:
        """Its descriptor, which stays the folder's."""
        return self._descriptor

    def names(self) -> tuple[str, ...]:
        """The names in it, those of folders left out.

        Raises:
            UnusableFile: it cannot be listed, or has over 10,000 entries.
        """
        found: list[str] = []
        try:
            listing = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._descriptor)
            try:
                with os.scandir(listing) as entries:
                    for number, entry in enumerate(entries):
                        if number >= MAX_NAMES:
                            raise UnusableFile(f'directory "{self.path}" has over {MAX_NAMES} entries')
                        if not entry.is_dir():
                            found.append(entry.name)
            finally:
                os.close(listing)
        except OSError as error:
            raise UnusableFile(f'could not read directory "{self.path}": {error.strerror}') from None
        return tuple(found)

    def read_file(self, name: str, kind: str, limit: int | None = None) -> bytes:
        """Read a file in it that is not secret.

        Raises:
            UnusableFile: as `read_file`, or the name has more than one component.
        """
        path = self._path_of(name, kind)
        return _read_plain(_open(path, kind, name, self._descriptor), path, kind, limit)[0]

    def read_key_file(self, name: str, uid: int, kind: str = "private key file") -> bytes:
        """Read a file in it with secrets, if its permissions keep them secret.

        Raises:
            UnusableFile: as `read_key_file`, or the name has more than one component.
        """
        path = self._path_of(name, kind)
        return _read_secret(_open(path, kind, name, self._descriptor), path, uid, kind)

    def _path_of(self, name: str, kind: str) -> str:
        if "/" in name or name in {"", ".", ".."}:
            raise UnusableFile(f'{kind} "{printable(name)}" in "{self.path}": the name is no single file\'s')
        return f"{self.path}/{name}"


def read_directory(path: str, kind: str) -> tuple[tuple[str, bytes], ...]:
    """Read every regular file that lies directly in a directory, as (name, content), sorted by name.

    Hidden files and dangling links are left out, and files that are another entry's copy or link
    appear once, because `openssl rehash` makes a link to every file.

    Raises:
        UnusableFile: the directory or a file in it cannot be read, or it holds over 64 MB.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(path) if entry.is_file() and entry.name[0] != ".")
    except (OSError, ValueError) as error:
        raise UnusableFile(_cannot_open(path, error, kind)) from None
    contents: dict[bytes, str] = {}
    octets = 0
    for name in names:
        content = read_file(str(Path(path, name)), f"file in {kind}")
        octets += len(content)
        if octets > MAX_DIRECTORY_OCTETS:
            raise UnusableFile(f'{kind} "{path}" holds over {MAX_DIRECTORY_OCTETS >> 20} MB')
        contents.setdefault(content, name)
    return tuple((name, content) for content, name in contents.items())


def system_roots(environment: Mapping[str, str], bundles: Sequence[str] = USUAL_BUNDLES) -> SystemRoots:
    """Read the public roots of this system, for `sslrootcert=system`.

    SSL_CERT_FILE and SSL_CERT_DIR (directories joined by colons) are OpenSSL's; where neither is
    set, the first of the places where distributions keep their bundle. The OpenSSL that
    `cryptography` brings along has a default path of its own that exists nowhere.

    Raises:
        UnusableFile: nothing there, with the places looked at; or what a variable names cannot be read.
    """
    places: list[str] = []
    contents: list[bytes] = []
    if file := environment.get("SSL_CERT_FILE"):
        places.append(f"SSL_CERT_FILE={file}")
        contents.append(read_file(file, "root certificate file"))
    if directories := environment.get("SSL_CERT_DIR"):
        places.append(f"SSL_CERT_DIR={directories}")
        for directory in filter(None, directories.split(":")):
            contents.extend(_roots_in(directory))
    if not places:
        places.extend(bundles)
        for bundle in bundles:
            if os.access(bundle, os.F_OK):
                return SystemRoots(bundle, read_file(bundle, "root certificate file"))
    if not contents:
        raise UnusableFile(
            f"no system root certificates found; looked at {', '.join(places)}: install the "
            "ca-certificates package, or set sslrootcert to a file"
        )
    return SystemRoots(" and ".join(places), b"\n".join(contents))


def is_system_bundle(path: str, bundles: Sequence[str] = USUAL_BUNDLES) -> bool:
    """Whether a file is the system's list of root certificates, links followed."""
    return os.path.realpath(path) in {os.path.realpath(bundle) for bundle in bundles}


def _roots_in(directory: str) -> Iterator[bytes]:
    for name, content in read_directory(directory, "root certificate directory"):
        if _ROOTS_DIRECTORY_ENTRY.fullmatch(name) and b"-----BEGIN CERTIFICATE-----" in content:
            yield content


def _open(path: str, kind: str, name: str | None = None, folder: int | None = None) -> int:
    """Open a file by its path, or by its name in an open folder: the path is for messages then."""
    try:
        # O_NONBLOCK: a FIFO without a writer would hang us before fstat could refuse it.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        return os.open(name or path, flags, dir_fd=folder)
    except FileNotFoundError as error:
        raise MissingFile(_cannot_open(path, error, kind)) from None
    except (OSError, ValueError) as error:
        raise UnusableFile(_cannot_open(path, error, kind)) from None


def _read_plain(
    descriptor: int, path: str, kind: str, limit: int | None = None
) -> tuple[bytes, os.stat_result]:
    """Read a regular file and close it."""
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnusableFile(
                f'{kind} "{path}" is not a regular file: name a file, not a directory, pipe or device'
            )
        return _read(descriptor, path, kind, MAX_FILE_OCTETS if limit is None else limit), status
    finally:
        os.close(descriptor)


def _read_secret(descriptor: int, path: str, uid: int, kind: str, limit: int = MAX_KEY_FILE_OCTETS) -> bytes:
    """Read a file that `key_file_problem` has nothing against, and close it."""
    try:
        problem = key_file_problem(path, os.fstat(descriptor), uid, kind)
        if problem is not None:
            raise UnusableFile(problem)
        return _read(descriptor, path, kind, limit)
    finally:
        os.close(descriptor)


def _read(descriptor: int, path: str, kind: str, limit: int) -> bytes:
    try:
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise UnusableFile(f'could not read {kind} "{path}": {error.strerror}') from None
    if len(content) > limit:
        raise UnusableFile(f'{kind} "{path}" is over {limit >> 20} MB, which none of its kind is')
    return content


def _permission_cure(path: str, found: os.stat_result) -> str:
    world_readable_by_root = found.st_uid == _ROOT and bool(found.st_mode & _OTHERS_MAY_READ)
    if "/..data/" in path or world_readable_by_root:
        return (
            "chmod it, or in Kubernetes set defaultMode: 0440 on the volume and fsGroup in the pod's "
            "securityContext"
        )
    return f"chmod 0600 {path}"


def _cannot_open(path: str, error: OSError | ValueError, kind: str) -> str:
    opening = f'could not open {kind} "{path}"'
    if isinstance(error, PermissionError):
        return f"{opening}: {_who_forbids(path)}"
    if isinstance(error, FileNotFoundError):
        missing = next((parent for parent in _ancestors(path) if not os.path.lexists(parent)), None)
        return f'{opening}: there is no directory "{missing}"' if missing else f"{opening}: it does not exist"
    return f"{opening}: {error.strerror if isinstance(error, OSError) else error}"


def _who_forbids(path: str) -> str:
    cure = (
        "; certbot keeps its files for root: copy them with certbot's --deploy-hook"
        if "/letsencrypt/" in path
        else ""
    )
    # A link may lead into a directory of its own (certbot's live/ points into archive/).
    for parent in (*_ancestors(path), *_ancestors(os.path.realpath(path))):
        try:
            if not os.access(parent, os.X_OK, effective_ids=True):
                mode = stat.S_IMODE(Path(parent).stat().st_mode)
                return (
                    f'the directory "{parent}" (mode {mode:04o}) cannot be entered '
                    f"by uid {os.geteuid()}{cure}"
                )
        except OSError:
            break
    return f"permission denied to uid {os.geteuid()}{cure}"


def _ancestors(path: str) -> list[str]:
    """The directories above a path, outermost first."""
    try:
        return [str(parent) for parent in reversed(Path(path).absolute().parents)]
    except FileNotFoundError:  # the path is relative, and the working directory is gone
        return []
