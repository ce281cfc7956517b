"""From the bytes of a YAML file to settings, or to every mistake in them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from pydantic import ValidationError

from pgtlsproxy.config.backend import Backend
from pgtlsproxy.config.backend_consistency import backend_conflicts, backend_warnings
from pgtlsproxy.config.conflict import Conflict
from pgtlsproxy.config.explaining import OLDER_NAMES, explain, suggestion
from pgtlsproxy.config.listener import Listener
from pgtlsproxy.config.listener_consistency import (
    auth_query_problems,
    database_problems,
    listen_conflicts,
    listener_conflicts,
    listener_warnings,
)
from pgtlsproxy.config.merging import SECTIONS, Included, Merged, ReadIncluded
from pgtlsproxy.config.model import Model, Reading
from pgtlsproxy.config.settings import General, Settings
from pgtlsproxy.config.values import found
from pgtlsproxy.errors import ConfigError, Mistake
from pgtlsproxy.identity import printable
from pgtlsproxy.strict_yaml import Document, KeyPath, parse

_M = TypeVar("_M", bound=Model)

_STAND_INS: Final[Mapping[str, object]] = {
    "listen": ["127.0.0.1:0"],
    "ssl": False,
    "hba_file": "-",
    "login": "passthrough",
}
"""In the place of required settings with mistakes, so that the others can be held against each other."""

_NAME: Final = re.compile(r"\w[\w.-]{0,62}")


def _nothing_included(_: str) -> tuple[Included, ...]:
    return ()


def load_settings(path: str, content: bytes, read_included: ReadIncluded = _nothing_included) -> Settings:
    """Read a configuration.

    Args:
        path: the YAML file's path: named in messages; relative paths in the file start in its folder.
        content: the file's bytes.
        read_included: reads what its `include` names.

    Raises:
        ConfigError: with every mistake in it, in the order of the lines.
    """
    folder = os.path.dirname(path)  # noqa: PTH120 - see model.absolute
    if not folder.startswith("/"):
        folder = os.path.join(os.getcwd(), folder)  # noqa: PTH109, PTH118 - see model.absolute
    return _Loader(parse(path, content), Reading(folder.rstrip("/") or "/"), read_included).settings()


@dataclass(frozen=True, slots=True)
class _Entry(Generic[_M]):
    """One listener or backend, as far as it could be read.

    Args:
        settings: its settings, with defaults and stand-ins for those that are wrong.
        wrong: the keys of those.
    """

    settings: _M
    wrong: frozenset[str]


class _Loader:
    """Reads one document and what it includes, collecting mistakes on the way."""

    def __init__(self, document: Document, reading: Reading, read_included: ReadIncluded) -> None:
        self._document: Document | Merged = document
        self._reading = reading
        self._read_included = read_included
        self._told = set(document.mistakes)
        self._mistakes = list(document.mistakes.items())

    def settings(self) -> Settings:
        data = self._document.data
        if not isinstance(data, dict):
            self._mistake((), f"found {found(data)}, expected listeners: and backends: with their settings")
            raise ConfigError(mistake for _, mistake in self._mistakes)
        own = {key: value for key, value in data.items() if key not in {*SECTIONS, "defaults"}}
        self._note_empty_values((), own)
        general = self._entry((), General, own)
        data = self._merge(general.settings.include)
        self._note_empty_values((), data)
        listeners = self._section(data, "listeners", Listener, listener_conflicts)
        backends = self._section(data, "backends", Backend, backend_conflicts)
        self._check_listeners(listeners, data.get("backends"))
        self._check_auth_queries(listeners, backends)
        if self._mistakes:
            raise ConfigError(self._by_line())
        warnings = (
            *self._warnings("listeners", listeners, listener_warnings),
            *self._warnings("backends", backends, backend_warnings),
        )
        return Settings.model_construct(
            **dict(general.settings),
            listeners={name: entry.settings for name, entry in listeners.items()},
            backends={name: entry.settings for name, entry in backends.items()},
            warnings=warnings,
        )

    def _merge(self, patterns: Iterable[str]) -> dict[str, Any]:
        """The listeners and backends of all files, with the defaults in them."""
        assert isinstance(self._document, Document)  # noqa: S101 - it is called once
        self._document = merged = Merged(self._document)
        files = dict.fromkeys(each for pattern in patterns for each in self._read_included(pattern))
        for file, content in files:
            try:
                if isinstance(content, str):
                    merged.mistakes[(file,)] = Mistake(merged.where(("include",)), content)
                else:
                    merged.include(parse(file, content))
            except ConfigError as error:
                merged.mistakes |= {(file, number): each for number, each in enumerate(error.mistakes)}
        merged.fill_in()
        self._told |= merged.mistakes.keys()
        self._mistakes += merged.mistakes.items()
        return merged.data

    def _by_line(self) -> list[Mistake]:
        """Every mistake once, a wrong default too, in the order of the files and their lines."""
        document = self._document
        assert isinstance(document, Merged)  # noqa: S101 - there are listeners
        by_line = sorted(self._mistakes, key=lambda item: document.order(item[0]))
        return list(dict.fromkeys(mistake for _, mistake in by_line))

    def _mistake(self, path: KeyPath, what: str) -> None:
        self._mistakes.append((path, Mistake(self._document.where(path), what)))

    def _note_empty_values(self, path: KeyPath, value: object) -> None:
        """A key with nothing behind it was forgotten, or meant to switch something off: who knows."""
        if value is None:
            if path not in self._told:
                self._mistake(path, "has no value: give it one, or leave it out")
            self._told.add(path)
        elif isinstance(value, dict):
            for key, inner in value.items():
                self._note_empty_values((*path, key), inner)
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                self._note_empty_values((*path, index), inner)

    def _section(
        self,
        data: Mapping[str, Any],
        section: str,
        model: type[_M],
        conflicts: Callable[[_M], Iterable[Conflict]],
    ) -> dict[str, _Entry[_M]]:
        """The listeners or the backends."""
        entries = data.get(section, {})
        if entries is None:
            return {}
        if entries == {} or not isinstance(entries, dict):
            what = f"found {found(entries)}" if section in data else "is missing"
            self._mistake((section,), f"{what}: expected names, with their settings under them")
            return {}
        read: dict[str, _Entry[_M]] = {}
        for name, settings in entries.items():
            path = (section, name)
            if not _NAME.fullmatch(name):
                self._mistake(
                    path, "a name has 1 to 63 letters, digits, _, - and ., and begins with no - or ."
                )
            elif isinstance(settings, dict):
                read[name] = entry = self._entry(path, model, settings)
                for conflict in conflicts(entry.settings):
                    self._note_conflict(path, settings, conflict, entry.wrong)
            elif settings is not None:
                self._mistake(path, f"found {found(settings)}, expected settings (key: value)")
        return read

    def _entry(self, path: KeyPath, model: type[_M], written: Mapping[str, Any]) -> _Entry[_M]:
        """Read the settings of one place, noting what is wrong with each."""
        settings = dict(written)
        wrong = {key for key in settings if self._is_told((*path, key))}
        for old, name in OLDER_NAMES.items():
            if old in settings and name in settings and name in model.model_fields:
                self._mistake((*path, old), f"is the older name of {name}, which is given too: keep one")
                del settings[old]
        try:
            return _Entry(model.model_validate(settings, context=self._reading), frozenset(wrong))
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                wrong.add(str(detail["loc"][0]))
                at = (*path, *detail["loc"])
                if at not in self._told:
                    self._mistake(at, explain(detail, model))
        right = {key: value for key, value in settings.items() if key not in wrong}
        for key in _STAND_INS.keys() & model.model_fields.keys() - right.keys():
            right[key] = _STAND_INS[key]
        return _Entry(model.model_validate(right, context=self._reading), frozenset(wrong))

    def _is_told(self, path: KeyPath) -> bool:
        """Whether a mistake in a value, or in something inside it, has been noted already."""
        return any(told[: len(path)] == path for told in self._told)

    def _note_conflict(
        self, path: KeyPath, written: Mapping[str, Any], conflict: Conflict, wrong: frozenset[str]
    ) -> None:
        """Note a conflict, unless one of its settings is wrong by itself: then there may be none."""
        aliases = {name: old for old, name in OLDER_NAMES.items() if old in written}
        keys = [aliases.get(key, key) for key in conflict.keys]
        if wrong.isdisjoint(keys):
            self._mistake((*path, keys[0]), conflict.what)

    def _check_listeners(self, listeners: Mapping[str, _Entry[Listener]], backends: object) -> None:
        """What is wrong between listeners, and between them and the backends."""
        for name, entry in listeners.items():
            place = "listeners", name
            if "databases" not in entry.wrong:
                for inside, what in database_problems(entry.settings):
                    self._mistake((*place, "databases", *inside), what)
            for path, backend in entry.settings.named_backends():
                if not isinstance(backends, dict) or path[0] in entry.wrong or backend in backends:
                    continue
                known = "; there are: " + ", ".join(map(printable, backends))
                what = f"there is no backend {found(backend)}{suggestion(backend, backends)}{known}"
                self._mistake((*place, *path), what)
        usable = {name: entry.settings for name, entry in listeners.items() if "listen" not in entry.wrong}
        for name, index, what in listen_conflicts(usable):
            self._mistake(("listeners", name, "listen", index), what)

    def _check_auth_queries(
        self, listeners: Mapping[str, _Entry[Listener]], backends: Mapping[str, _Entry[Backend]]
    ) -> None:
        """What is wrong between the listeners' auth_query and the backends, where both can be read."""
        usable = {name: entry.settings for name, entry in backends.items() if not entry.wrong}
        for name, entry in listeners.items():
            named = {*entry.settings.backends, *(each for _, each in entry.settings.named_backends())}
            if not entry.wrong and named and named <= usable.keys():
                for inside, what in auth_query_problems(entry.settings, usable):
                    self._mistake(("listeners", name, *inside), what)

    def _warnings(
        self,
        section: str,
        entries: Mapping[str, _Entry[_M]],
        warnings: Callable[[_M], Iterable[tuple[str, str]]],
    ) -> Iterator[Mistake]:
        for name, entry in entries.items():
            for key, what in warnings(entry.settings):
                yield Mistake(self._document.where((section, name, key)), what)
