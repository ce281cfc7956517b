"""What a worker must be given to serve what the others serve.

After a reload with mistakes in it some units are of the newest files and some of older ones. A worker
that starts then is given all file sets that something in service was made of, and goes through them in
order, as the others did; each set moves the units that load in it.
"""

from __future__ import annotations

from collections.abc import Collection

from pgtlsproxy.config import Settings
from pgtlsproxy.proxy.files import SnapshotFiles
from pgtlsproxy.proxy.orders import FileSet


class History:
    """The file sets behind the generation in service.

    Args:
        first: what the files said at the start.
        settings: its settings, which can be used.

    Attributes:
        generation: the number of what is in service.
        settings: the settings in service.
        sets: the first of them loads whole, without another before it.
    """

    def __init__(self, first: SnapshotFiles, settings: Settings) -> None:
        self.generation = 1
        self.settings = settings
        self.sets: tuple[FileSet, ...] = (FileSet(1, first, 1),)
        self._settings_of = 1

    @property
    def newest(self) -> SnapshotFiles:
        """What the files said last."""
        return self.sets[-1].files

    def advance(self, files: SnapshotFiles, in_use: Collection[int], mistakes: Collection[object]) -> None:
        """Note that the next generation is in service.

        Args:
            files: what the files said.
            in_use: the generations that something in it was made in.
            mistakes: what was wrong with the files.
        """
        self.generation += 1
        if files.settings is not None:
            self.settings, self._settings_of = files.settings, self.generation
        newest = FileSet(self.generation, files, self._settings_of)
        if not mistakes and set(in_use) == {self.generation}:
            self.sets = (newest,)
            return
        whole, *others = self.sets
        others.append(newest)
        needed = {*in_use, *(each.read_under for each in others if each.generation in in_use)}
        self.sets = (whole, *(each for each in others if each.generation in needed))
