"""What the files of a snapshot hold, or the mistake where the setting that names one stands."""

from __future__ import annotations

from pgtlsproxy.errors import ConfigError, Mistake
from pgtlsproxy.proxy.files import Directory, SnapshotFiles
from pgtlsproxy.tls.file_access import Folder, UnusableFile


class Contents:
    """What was read, by the settings that name it.

    Each method takes `where`, a setting's key path, and raises ConfigError where its file is of no use.

    Args:
        files: what was read.
    """

    def __init__(self, files: SnapshotFiles) -> None:
        self._files = files

    def plain(self, where: str, path: str) -> bytes:
        """A file that everybody may read."""
        return self._read(where, self._files.plain[path])

    def key(self, where: str, path: str) -> bytes:
        """A file with secrets."""
        return self._read(where, self._files.keys[path])

    def directory(self, where: str, path: str) -> Directory:
        """The files of a directory, by name."""
        found = self._files.directories[path]
        if isinstance(found, UnusableFile):
            raise self.mistake(where, found)
        return found

    def folder(self, where: str, path: str) -> Folder:
        """A folder whose files are read later."""
        found = self._files.folders[path]
        if isinstance(found, UnusableFile):
            raise self.mistake(where, found)
        return found

    def system_roots(self, where: str) -> bytes:
        """The system's root certificates."""
        roots = self._files.roots
        if roots is None or isinstance(roots, UnusableFile):
            raise self.mistake(where, roots or UnusableFile("the system's root certificates were not read"))
        return roots.content

    def mistake(self, where: str, error: UnusableFile) -> ConfigError:
        """What is wrong with a file, as a mistake of the setting that names it."""
        return ConfigError([Mistake(self.located(where), str(error))])

    def located(self, where: str) -> str:
        """A key path, behind the YAML file that it is of."""
        return f"{self._files.path}: {where}"

    def _read(self, where: str, found: bytes | UnusableFile) -> bytes:
        if isinstance(found, UnusableFile):
            raise self.mistake(where, found)
        return found
