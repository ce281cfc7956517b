"""The files behind the configuration, looked at again and again: is there something new that holds still?

Content is what counts, never a time stamp: a file that was exchanged for one of the same length and time is
noticed, and one that was only touched is not. A change counts when two looks in a row find the same, so that
a file half written, or a volume half swapped, is left alone until it is whole.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from structlog.typing import FilteringBoundLogger

from pgtlsproxy.config import Settings
from pgtlsproxy.policy.inclusion import Unreadable
from pgtlsproxy.proxy.errands import Errand, Errands, NoThread
from pgtlsproxy.proxy.files import SnapshotFiles
from pgtlsproxy.proxy.reading import read_content
from pgtlsproxy.proxy.rule_files import Note
from pgtlsproxy.tls.file_access import Folder, UnusableFile

AGREEING_LOOKS: Final = 2

AGREEING_LOOKS_AT_HALF_A_PAIR: Final = 3
"""Where one file of a certificate and its key is new and the other is not: it may be about to be written."""

RESTLESS_LOOKS: Final = 10
"""How many looks may differ from what is in service without two that agree. Then what was seen last is taken,
unit by unit: a file that never holds still keeps no revocation list out."""

Fingerprint = Mapping[tuple[str, str], bytes]
"""By (what it is, path), a digest of what is there."""

CONFIGURATION: Final = ("configuration", "")
_PLAIN, _KEY = "plain", "key"


@dataclass(frozen=True, slots=True)
class Look:
    """What a look has found.

    Args:
        files: all of them.
        fingerprint: theirs.
    """

    files: SnapshotFiles = field(repr=False)
    fingerprint: Fingerprint = field(repr=False)

    @classmethod
    def of(cls, files: SnapshotFiles) -> Look:
        """The look that found these files."""
        return cls(files, fingerprint(files))

    def changed_since(self, before: Fingerprint) -> list[str]:
        """The paths at which something else was found before, sorted."""
        now = self.fingerprint
        places = {place for place in now.keys() | before.keys() if now.get(place) != before.get(place)}
        return sorted({path or self.files.path for _, path in places})


def fingerprint(files: SnapshotFiles) -> Fingerprint:
    """What tells one state of the files from another, passphrases apart.

    Args:
        files: what they say.
    """
    found = {CONFIGURATION: _digest(files.digest, *(_octets(str(mistake)) for mistake in files.mistakes))}
    groups: tuple[tuple[str, Mapping[str, bytes | UnusableFile | Unreadable]], ...] = (
        (_PLAIN, files.plain),
        (_KEY, files.keys),
        ("rules", files.rules),
        ("included", files.included.files),
    )
    for kind, group in groups:
        found |= {(kind, path): _digest(*_content(content)) for path, content in group.items()}
    for path, listing in files.directories.items():
        entries = _content(listing) if isinstance(listing, UnusableFile) else _entries(listing)
        found["directory", path] = _digest(*entries)
    for path, names in files.included.folders.items():
        shown = _content(names) if isinstance(names, Unreadable) else map(_octets, names)
        found["folder", path] = _digest(*shown)
    for path, folder in files.folders.items():
        # Its files are read when a session needs them; that another folder took its place is ours to see.
        found["users", path] = _digest(*(_place(folder) if isinstance(folder, Folder) else _content(folder)))
    if files.roots is not None:
        roots = files.roots
        content = _content(roots if isinstance(roots, UnusableFile) else roots.content)
        found["roots", "system"] = _digest(*content)
    return found


def _content(found: bytes | UnusableFile | Unreadable) -> tuple[bytes, ...]:
    if isinstance(found, bytes):
        return (b"content", found)
    return (b"problem", _octets(found.reason if isinstance(found, Unreadable) else str(found)))


def _entries(listing: tuple[tuple[str, bytes], ...]) -> Iterator[bytes]:
    for name, content in listing:
        yield _octets(name)
        yield content


def _place(folder: Folder) -> tuple[bytes, ...]:
    found = os.fstat(folder.fileno())
    return (b"folder", f"{found.st_dev} {found.st_ino}".encode())


def _octets(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=32)
    for part in parts:
        digest.update(len(part).to_bytes(8))
        digest.update(part)
    return digest.digest()


def pairs(settings: Settings) -> Iterator[tuple[str, str]]:
    """The certificates and their keys that are in two files.

    Args:
        settings: which name them.
    """
    for listener in settings.listeners.values():
        if listener.ssl_cert_file is not None and listener.ssl_key_file is not None:
            yield listener.ssl_cert_file, listener.ssl_key_file
    status = settings.status
    if status is not None and status.ssl_cert_file is not None and status.ssl_key_file is not None:
        yield status.ssl_cert_file, status.ssl_key_file
    for backend in settings.backends.values():
        if backend.sslcert is not None and backend.sslkey is not None and not backend.has_user_certificates:
            yield backend.sslcert, backend.sslkey


class Watch:
    """Looks at the files every `reload_interval`, in a thread: a file system may hang.

    Args:
        first: what is in service.
        logger: told of what trips a look.
        errands: where looks are done; it makes the supervisor call `go_on` when one is over.
    """

    def __init__(self, first: SnapshotFiles, logger: FilteringBoundLogger, errands: Errands) -> None:
        self._logger = logger
        self._errands = errands
        self._looking: Errand[Look] | None = None
        self._is_over = False
        self._tripped_by = ""
        self.take(Look.of(first))

    @property
    def known(self) -> SnapshotFiles:
        """What was tried to be taken into service last."""
        return self._taken.files

    def take(self, look: Look) -> None:
        """Note that this is tried to be taken into service, whatever comes of it."""
        self._taken = look
        self._seen: Fingerprint | None = None
        self._times = self._restless = 0
        self._looking = None  # one under way, or that hangs, compares with what was taken before
        self._last = time.monotonic()

    def stop(self) -> None:
        """Look no more."""
        self._is_over = True

    def due(self, interval: float) -> float:
        """`time.monotonic()` of the next look.

        Args:
            interval: seconds; 0 for never.
        """
        is_resting = self._is_over or self._looking is not None or not interval
        return math.inf if is_resting else self._last + interval

    def go_on(self, in_service: Settings) -> Look | None:
        """Look where it is time to, and tell what is new and holds still.

        Args:
            in_service: the settings that are served.
        """
        found = None
        result = None if self._looking is None else self._looking.outcome
        if result is not None:
            self._looking, self._last = None, time.monotonic()
            if isinstance(result, Exception):
                self._tripped(result)
            elif self._is_steady(result, in_service):
                found = result
        if found is None and time.monotonic() >= self.due(in_service.reload_interval):
            try:
                self._looking = self._errands.begin(partial(_look, self.known, in_service))
            except NoThread:  # the next look may have one
                self._last = time.monotonic()
        return found

    def changed(self, look: Look) -> list[str]:
        """The paths at which a look has found something else than what was taken last."""
        return look.changed_since(self._taken.fingerprint)

    def _is_steady(self, look: Look, in_service: Settings) -> bool:
        if look.fingerprint == self._taken.fingerprint:
            self._seen, self._times, self._restless = None, 0, 0
            return False
        self._restless += 1
        self._times = self._times + 1 if look.fingerprint == self._seen else 1
        self._seen = look.fingerprint
        is_half = self._has_half_a_pair(look, look.files.settings or in_service)
        wanted = AGREEING_LOOKS_AT_HALF_A_PAIR if is_half else AGREEING_LOOKS
        return self._times >= wanted or self._restless >= RESTLESS_LOOKS

    def _has_half_a_pair(self, look: Look, settings: Settings) -> bool:
        """Whether one file of a pair is new and the other is not."""

        def is_new(place: tuple[str, str]) -> bool:
            return look.fingerprint.get(place) != self._taken.fingerprint.get(place)

        return any(is_new((_PLAIN, crt)) != is_new((_KEY, key)) for crt, key in pairs(settings) if crt != key)

    def _tripped(self, error: Exception) -> None:
        """Say so once, and not at every look."""
        if self._tripped_by != repr(error):
            self._tripped_by = repr(error)
            self._logger.error("bug", exc_info=error)


def _look(known: SnapshotFiles, in_service: Settings, note: Note) -> Look:
    return Look.of(read_content(known.path, in_service=in_service, serves=True, known=known, note=note))
