"""From the YAML file's bytes to Settings, or to every mistake in them at once.

Each listener and each backend is judged on its own, so that one mistake hides no other; then what
is between them is judged among those that are whole.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from pgtlsproxy.config.backend import Backend
from pgtlsproxy.config.consistency import (
    backend_concerns,
    backend_mistakes,
    listener_concerns,
    listener_mistakes,
)
from pgtlsproxy.config.listener import Listener
from pgtlsproxy.config.model import Model, Reading
from pgtlsproxy.config.settings import Process, Settings
from pgtlsproxy.config.values import TCPAddress, UnixAddress, found
from pgtlsproxy.errors import ConfigError, Mistake
from pgtlsproxy.identity import printable
from pgtlsproxy.strict_yaml import Document, KeyPath, parse

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_M = TypeVar("_M", bound=Model)

_SECRET_KEYS = frozenset({"sslpassword"})
"""Keys whose values no message shows."""

_PARTS = ("listeners", "backends")


def load_settings(path: str, content: bytes) -> Settings:
    """Read a configuration.

    Args:
        path: the YAML file's path; relative paths in it start at its folder.
        content: its bytes.

    Raises:
        ConfigError: with every mistake, each with file, line and key path.
    """
    return _Loading(path, parse(path, content)).settings()


class _Loading:
    def __init__(self, path: str, document: Document) -> None:
        self._document = document
        self._reading = Reading(os.path.dirname(os.path.abspath(path)), document)  # noqa: PTH100, PTH120 - as above
        self._mistakes: dict[KeyPath, list[Mistake]] = {
            key: [what] for key, what in document.mistakes.items()
        }

    def settings(self) -> Settings:
        data = self._document.data
        if not isinstance(data, dict):
            self._note((), f"found {found(data)}, expected the keys listeners and backends")
            raise self._error()
        own = {key: value for key, value in data.items() if key not in _PARTS}
        process = self._model(Process, (), own, known_besides=_PARTS)
        listeners = self._part(data, "listeners", Listener)
        backends = self._part(data, "backends", Backend)
        for name, listener in listeners.items():
            self._note_all(("listeners", name), listener_mistakes(listener))
        for name, backend in backends.items():
            self._note_all(("backends", name), backend_mistakes(backend))
        self._judge_names(data, listeners)
        self._judge_addresses(listeners)
        if self._mistakes or process is None:
            raise self._error()
        values = {name: getattr(process, name) for name in Process.model_fields}
        warnings = tuple(self._warnings(listeners, backends))
        return Settings.model_construct(**values, listeners=listeners, backends=backends, warnings=warnings)

    def _part(self, data: Mapping[str, object], key: str, model: type[_M]) -> dict[str, _M]:
        """The listeners, or the backends, that are whole."""
        entries = data.get(key)
        if not isinstance(entries, dict) or not entries:
            what = "is missing" if key not in data else f"found {found(entries)}"
            self._note((key,), f"{what}: expected at least one name with its settings below it")
            return {}
        made = {name: self._model(model, (key, name), entry) for name, entry in entries.items()}
        return {name: entry for name, entry in made.items() if entry is not None}

    def _model(
        self, model: type[_M], path: KeyPath, data: object, known_besides: tuple[str, ...] = ()
    ) -> _M | None:
        if not isinstance(data, dict):
            self._note(path, f"found {found(data)}, expected settings")
            return None
        known = _keys(model)
        for key in data.keys() - known:
            self._note((*path, key), _unknown(key, model, [*known, *known_besides]))
        taken = {key: data[key] for key in data.keys() & known}
        for key in [key for key, value in taken.items() if value is None]:
            self._note((*path, key), "has no value: leave the key out, or give it one")
        for name, alias in _aliases(model):
            if name in taken and taken.pop(alias, None) is not None:
                self._note((*path, alias), f"is another name of {name}, which is given too: keep one of them")
        try:
            made = model.model_validate(taken, context=self._reading)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                self._note_detail(path, detail)
            return None
        return made

    def _note_detail(self, path: KeyPath, detail: ErrorDetails) -> None:
        key = str(detail["loc"][0]) if detail["loc"] else ""
        location = (*path, *detail["loc"][:2]) if key else path
        self._note(location, _plain_words(key, detail))

    def _judge_names(self, data: Mapping[str, object], listeners: Mapping[str, Listener]) -> None:
        backends = data.get("backends")
        names = list(backends) if isinstance(backends, dict) else []
        for name, listener in listeners.items():
            if listener.backend not in names:
                near = difflib.get_close_matches(listener.backend, names, 1)
                hint = f"; is it {near[0]}?" if near else f"; there are {', '.join(names) or 'none'}"
                self._note(
                    ("listeners", name, "backend"),
                    f'there is no backend "{printable(listener.backend)}"{hint}',
                )

    def _judge_addresses(self, listeners: Mapping[str, Listener]) -> None:
        seen: list[tuple[str, TCPAddress | UnixAddress]] = []
        for name, listener in listeners.items():
            for index, address in enumerate(listener.listen):
                for owner, other in seen:
                    if _overlap(address, other):
                        what = f"{address} is taken: listener {owner} listens on {other}"
                        self._note(("listeners", name, "listen", index), what)
                seen.append((name, address))

    def _warnings(
        self, listeners: Mapping[str, Listener], backends: Mapping[str, Backend]
    ) -> Iterator[Mistake]:
        for name, listener in listeners.items():
            for key, what in listener_concerns(listener):
                yield Mistake(self._document.where(("listeners", name, key)), what)
        for name, backend in backends.items():
            for key, what in backend_concerns(backend):
                yield Mistake(self._document.where(("backends", name, key)), what)

    def _note_all(self, path: KeyPath, found: Iterator[tuple[str, str]]) -> None:
        for key, what in found:
            self._note((*path, key), what)

    def _note(self, path: KeyPath, what: str) -> None:
        if path not in self._document.mistakes:  # what could not be read is not judged as well
            self._mistakes.setdefault(path, []).append(Mistake(self._document.where(path), what))

    def _error(self) -> ConfigError:
        places = sorted(self._mistakes, key=lambda path: (self._document.line(path), len(path)))
        return ConfigError(mistake for path in places for mistake in self._mistakes[path])


_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, not bound


def _overlap(one: TCPAddress | UnixAddress, other: TCPAddress | UnixAddress) -> bool:
    """Whether the kernel refuses the second of two addresses, at least for one family."""
    if isinstance(one, UnixAddress) or isinstance(other, UnixAddress):
        return one == other
    return one.port == other.port != 0 and any(
        mine == theirs or ((":" in mine) == (":" in theirs) and not _WILDCARDS.isdisjoint({mine, theirs}))
        for mine in one.hosts
        for theirs in other.hosts
    )


def _keys(model: type[Model]) -> set[str]:
    """The keys that a model takes, other names of a setting included."""
    keys: set[str] = set()
    for name, field in model.model_fields.items():
        alias = field.validation_alias
        keys.update(str(choice) for choice in getattr(alias, "choices", [name]))
    return keys


def _aliases(model: type[Model]) -> Iterator[tuple[str, str]]:
    """Settings and their other names."""
    for name, field in model.model_fields.items():
        for choice in getattr(field.validation_alias, "choices", []):
            if choice != name:
                yield name, str(choice)


def _unknown(key: str, model: type[Model], known: list[str]) -> str:
    if key in model.not_in_this_version:
        return "is not in this version"
    near = difflib.get_close_matches(key, [*known, *model.not_in_this_version], 1)
    return f"is unknown; is it {near[0]}?" if near else "is unknown"


_EXPECTED = {
    "bool_type": "expected on or off",
    "int_type": "expected a whole number",
    "string_type": "expected a text, in quotes if it looks like something else",
    "tuple_type": "expected a list",
    "too_short": "expected at least one",
    "model_type": "expected settings",
}


def _plain_words(key: str, detail: ErrorDetails) -> str:
    """One of pydantic's findings as a sentence about the configuration."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return "is unknown"
    if kind == "value_error":
        return str(context.get("error", detail["msg"]))
    shown = "a secret" if key in _SECRET_KEYS else found(detail["input"])
    if kind in {"greater_than_equal", "less_than_equal"}:
        bound = f"at least {context['ge']}" if kind == "greater_than_equal" else f"at most {context['le']}"
        return f"found {shown}, expected {bound}"
    return f"found {shown}, {_EXPECTED.get(kind, detail['msg'])}"
