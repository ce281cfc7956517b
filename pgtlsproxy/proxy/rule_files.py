"""The files that pg_hba.conf, pg_ident.conf and roles files include: read once, when one is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from pgtlsproxy.identity import printable
from pgtlsproxy.policy.inclusion import MAX_OCTETS, Unreadable
from pgtlsproxy.tls.file_access import Folder, MissingFile, UnusableFile, read_file

MAX_FILES: Final = 1000
"""How many files and folders may be included, over all listeners."""

MAX_ALL_OCTETS: Final = 256 << 20
"""How much they may hold together."""

Note = Callable[[str], None]
"""Told of every file before it is read."""


def note_nothing(_: str) -> None:
    """For whoever does not ask what is read."""


@dataclass(frozen=True, slots=True)
class Included:
    """What is included, as it was when it was read.

    Args:
        files: by path their bytes, or why there are none.
        folders: by path the names in them, those of folders left out.
    """

    files: Mapping[str, bytes | Unreadable] = field(default_factory=dict, repr=False)
    folders: Mapping[str, tuple[str, ...] | Unreadable] = field(default_factory=dict, repr=False)

    def file(self, path: str) -> bytes | Unreadable:
        """The content of a file."""
        return self.files.get(path, Unreadable(f'file "{printable(path)}" was not read'))

    def folder(self, path: str) -> tuple[str, ...] | Unreadable:
        """The names in a folder."""
        return self.folders.get(path, Unreadable(f'directory "{printable(path)}" was not read'))


class InclusionReader:
    """Reads what is asked for, and remembers it.

    A folder is held open from its listing on, and its files are opened relative to it: what is put into the
    place of its path meanwhile is never looked at.

    Args:
        note: told of every file and folder before it is read, which may hang.
    """

    def __init__(self, note: Note = note_nothing) -> None:
        self._note = note
        self._files: dict[str, bytes | Unreadable] = {}
        self._folders: dict[str, tuple[str, ...] | Unreadable] = {}
        self._open: dict[str, Folder] = {}
        self._octets = 0

    @property
    def included(self) -> Included:
        """All that was asked for."""
        return Included(self._files, self._folders)

    def file(self, path: str) -> bytes | Unreadable:
        """The content of a file."""
        if path not in self._files:
            self._files[path] = self._read(path)
        return self._files[path]

    def folder(self, path: str) -> tuple[str, ...] | Unreadable:
        """The names in a folder."""
        if path not in self._folders:
            self._folders[path] = self._list(path)
        return self._folders[path]

    def _read(self, path: str) -> bytes | Unreadable:
        if (problem := self._too_many()) is not None:
            return problem
        self._note(path)
        parent, _, name = path.rpartition("/")
        folder = self._open.get(parent)
        try:
            if folder is None:
                content = read_file(path, "file", MAX_OCTETS)
            else:
                content = folder.read_file(name, "file", MAX_OCTETS)
        except UnusableFile as error:
            return _unreadable(error)
        self._octets += len(content)
        if self._octets > MAX_ALL_OCTETS:
            return Unreadable(f"the included files hold over {MAX_ALL_OCTETS >> 20} MB")
        return content

    def _list(self, path: str) -> tuple[str, ...] | Unreadable:
        if (problem := self._too_many()) is not None:
            return problem
        self._note(path)
        try:
            folder = Folder(path, "directory")
            names = folder.names()
        except UnusableFile as error:
            return _unreadable(error)
        self._open[path.rstrip("/")] = folder
        return names

    def _too_many(self) -> Unreadable | None:
        if len(self._files) + len(self._folders) < MAX_FILES:
            return None
        return Unreadable(f"more than {MAX_FILES} files are included")


def read_again(included: Included, note: Note) -> Included:
    """What the same files and folders hold now.

    Args:
        included: what an `InclusionReader` was asked for.
        note: told of each before it is read.
    """
    reader = InclusionReader(note)
    for path in included.folders:
        reader.folder(path)
    for path in included.files:
        reader.file(path)
    return reader.included


def _unreadable(error: UnusableFile) -> Unreadable:
    """Why there is nothing to read; the path in it is what a file says."""
    return Unreadable(printable(str(error)), is_missing=isinstance(error, MissingFile))
