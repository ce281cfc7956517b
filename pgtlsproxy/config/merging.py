"""One configuration of several files: what `include` names, and the `defaults` of listeners and backends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pgtlsproxy.config.values import found
from pgtlsproxy.errors import Mistake
from pgtlsproxy.strict_yaml import Document, KeyPath

SECTIONS: Final[Mapping[str, str]] = {"listeners": "listener", "backends": "backend"}
"""What an included file may hold, and what its defaults are called."""

Included = tuple[str, bytes | str]
"""A file that is included: its name, and its content or what is wrong with it."""

ReadIncluded = Callable[[str], Iterable[Included]]
"""Reads what a pattern of `include` names, sorted by name."""


@dataclass(slots=True)
class Merged:
    """All of it.

    Args:
        main: the file that includes the others.

    Attributes:
        data: the sections, defaults filled in, by name; and what is no mapping of names as it stands.
        mistakes: what is wrong with the files as such.
    """

    main: Document
    data: dict[str, Any] = field(default_factory=dict)
    mistakes: dict[KeyPath, Mistake] = field(default_factory=dict)
    _documents: list[Document] = field(default_factory=list)
    _owners: dict[KeyPath, Document] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._documents.append(self.main)
        data = self.main.data
        assert isinstance(data, dict)  # noqa: S101 - looked at before
        for section in SECTIONS:
            entries = data.get(section)
            if isinstance(entries, dict):
                self.data[section] = dict(entries)
                self._owners |= {(section, name): self.main for name in entries}
            elif section in data:
                self.data[section] = entries

    def include(self, document: Document) -> None:
        """Take in a file's listeners and backends."""
        self._documents.append(document)
        for path, mistake in document.mistakes.items():
            self.mistakes.setdefault(path or (document.file,), mistake)
        if document.data is None:
            return  # nothing but comments
        if not isinstance(document.data, dict):
            what = f"found {found(document.data)}, expected listeners: or backends: with their settings"
            self.mistakes[(document.file,)] = Mistake(document.where(()), what)
            return
        for section, entries in document.data.items():
            if section not in SECTIONS or not isinstance(entries, dict):
                what = "an included file holds listeners: and backends: alone, with names under them"
                self.mistakes[document.file, section] = Mistake(document.where((section,)), what)
                continue
            for name, settings in entries.items():
                self._add(document, (section, name), settings)

    def _add(self, document: Document, path: tuple[str, str], settings: object) -> None:
        if path in self._owners:
            first = self._owners[path]
            what = f"{first.file}:{first.line(path)} has one of this name already: rename one of the two"
            self.mistakes[document.file, *path] = Mistake(document.where(path), what)
            return
        self._owners[path] = document
        known = self.data.setdefault(path[0], {})
        if isinstance(known, dict):
            known[path[1]] = settings

    def fill_in(self) -> None:
        """Give every listener and backend the defaults that it does not have itself."""
        data = self.main.data
        defaults = data.get("defaults", {}) if isinstance(data, dict) else {}
        if not isinstance(defaults, dict) or not defaults.keys() <= set(SECTIONS.values()):
            self.mistakes["defaults",] = Mistake(
                self.main.where(("defaults",)), "expected listener: and backend:, with settings under them"
            )
            return
        for section, kind in SECTIONS.items():
            own = defaults.get(kind, {})
            entries = self.data.get(section)
            if not isinstance(own, dict):
                what = f"found {found(own)}, expected settings (key: value)"
                self.mistakes["defaults", kind] = Mistake(self.main.where(("defaults", kind)), what)
            elif isinstance(entries, dict):
                for name, settings in entries.items():
                    if isinstance(settings, dict):
                        entries[name] = _inherited(own, settings) | settings

    def where(self, path: KeyPath) -> str:
        """The file, line and key of a setting, wherever it stands."""
        document, own = self._place(path)
        return document.where(own)

    def order(self, path: KeyPath) -> tuple[int, int]:
        """Where mistakes are sorted by: the file's number and the line."""
        document, own = self._place(path)
        return self._documents.index(document), document.line(own)

    def _place(self, path: KeyPath) -> tuple[Document, KeyPath]:
        owner = self._owners.get(path[:2])
        if owner is None:
            return self.main, path
        section, name, *inside = path
        settings = owner.data[section][name] if isinstance(owner.data, dict) else None
        if inside and isinstance(settings, dict) and inside[0] not in settings:
            defaults = self.main.data.get("defaults") if isinstance(self.main.data, dict) else None
            kind = SECTIONS[str(section)]
            if isinstance(defaults, dict) and inside[0] in (defaults.get(kind) or {}):
                return self.main, ("defaults", kind, *inside)
        return owner, path


def _inherited(defaults: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The defaults that an entry takes. One that lists databases refuses those that it does not list."""
    return {
        key: value for key, value in defaults.items() if key != "backend" or not settings.get("databases")
    }
