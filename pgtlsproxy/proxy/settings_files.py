"""The YAML file and those that its `include` names: their bytes, and a digest of them all."""

from __future__ import annotations

import fnmatch
import hashlib
import os
from typing import Final

from pgtlsproxy.proxy.rule_files import Note
from pgtlsproxy.tls.file_access import Folder, UnusableFile, read_file_and_status

MAX_INCLUDED: Final = 1000
"""How many files may be included, over all patterns."""

_WILDCARDS: Final = frozenset("*?[")


class SettingsFiles:
    """Reads them.

    Args:
        note: told of every file and folder before it is read, which may hang.

    Attributes:
        statuses: of every file that was read, in order.
    """

    def __init__(self, note: Note) -> None:
        self._note = note
        self._seen = hashlib.blake2b()
        self._has_read = False
        self._included = 0
        self.statuses: dict[str, os.stat_result] = {}

    @property
    def digest(self) -> bytes:
        """Of all that was read or could not be; empty where nothing was read."""
        return self._seen.digest() if self._has_read else b""

    def main(self, path: str) -> bytes:
        """The content of the YAML file.

        Raises:
            UnusableFile: it cannot be read.
        """
        return self._read(path, "configuration file")

    def included(self, pattern: str) -> list[tuple[str, bytes | str]]:
        """The files that a pattern names, sorted, with their content or what is wrong with them.

        Args:
            pattern: a path, with wildcards in its last part or without.
        """
        found: list[tuple[str, bytes | str]] = []
        try:
            paths = self._matching(pattern)
        except UnusableFile as error:
            paths, found = [], [(pattern, str(error))]
        for path in paths:
            try:
                found.append((path, self._read(path, "included file")))
            except UnusableFile as error:
                found.append((path, str(error)))
        for path, content in found:
            self._add(path.encode(errors="surrogateescape"))
            self._add(content if isinstance(content, bytes) else content.encode(errors="surrogateescape"))
        return found

    def _matching(self, pattern: str) -> list[str]:
        folder, _, name = pattern.rpartition("/")
        if not _WILDCARDS & set(name):
            return [pattern]
        self._note(folder or "/")
        names = Folder(folder or "/", "directory of included files").names()
        matching = sorted(each for each in names if each[0] != "." and fnmatch.fnmatchcase(each, name))
        self._included += len(matching)
        if self._included > MAX_INCLUDED:
            raise UnusableFile(f'with "{pattern}" over {MAX_INCLUDED} files are included')
        return [f"{folder}/{each}" for each in matching]

    def _read(self, path: str, kind: str) -> bytes:
        self._note(path)
        content, self.statuses[path] = read_file_and_status(path, kind)
        if not self._has_read:
            self._has_read = True
            self._add(content)
        return content

    def _add(self, part: bytes) -> None:
        self._seen.update(len(part).to_bytes(8))
        self._seen.update(part)
