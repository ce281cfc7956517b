"""The lines of a file of rules, with what it includes from other files in their place.

`include`, `include_if_exists` and `include_dir` stand for the lines of other files, an unquoted `@file` in
a list for all values of one. As in PostgreSQL (`tokenize_include_file`, `tokenize_expand_file` and
`GetConfFilesInDir`, src/backend/libpq/hba.c and src/backend/utils/misc/conffiles.c) a relative path starts
in the folder of the file that includes, and files nest ten deep.

Nothing is read here: whoever calls has the bytes, or reads them when he is asked.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from pgtlsproxy.errors import ConfigError, Mistake
from pgtlsproxy.identity import decode_name, encode_name, printable
from pgtlsproxy.policy.records import (
    Field,
    Line,
    LineError,
    LineRef,
    Token,
    logical_lines,
    may_include,
    split_fields,
)

MAX_DEPTH: Final = 10
"""How deep files may nest (CONF_FILE_MAX_DEPTH, src/include/utils/conffiles.h)."""

MAX_INCLUSIONS: Final = 1000
"""How many files may stand in one file's place, each counted as often as it does. Ours: nesting alone lets
a few short files stand for billions of lines."""

MAX_OCTETS: Final = 64 << 20
"""How much a file may hold, with all that it includes. Ours; a million lines of pg_ident.conf fit."""

MAX_MISTAKES: Final = 1000
"""How many mistakes of a file are told."""

_MAY_INCLUDE: Final = re.compile(rb"(?m)include|(?:^|[ \t\r,])@|\\\r*$")
"""What stands in every file that includes another; a line that goes on in the next may hide it."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file or a folder that cannot be read.

    Args:
        reason: names it, and says why; printable.
        is_missing: it does not exist.
    """

    reason: str
    is_missing: bool = False


class Sources(Protocol):
    """What files hold."""

    def file(self, path: str) -> bytes | Unreadable:
        """The content of a file."""

    def folder(self, path: str) -> tuple[str, ...] | Unreadable:
        """The names in a folder, those of folders left out."""


class NoSources:
    """Where there is one file and no other."""

    def file(self, path: str) -> bytes | Unreadable:
        """No file can be read."""
        return Unreadable(f'could not open file "{printable(path)}": no file can be included here')

    def folder(self, path: str) -> tuple[str, ...] | Unreadable:
        """No folder can be read."""
        return Unreadable(f'could not open directory "{printable(path)}": no file can be included here')


def follow(file: str, content: bytes, sources: Sources) -> None:
    """Ask for everything that a file includes, so that whoever answers can remember it.

    Args:
        file: its path.
        content: the whole file.
        sources: what other files hold.
    """
    if _MAY_INCLUDE.search(content) is not None:
        deque(expand(file, content, sources), maxlen=0)


def missing(file: str, content: bytes, sources: Sources) -> tuple[Mistake, ...]:
    """The lines with `include_if_exists` whose file does not exist, which is no mistake of theirs.

    Args:
        file: its path.
        content: the whole file.
        sources: what other files hold.
    """
    if _MAY_INCLUDE.search(content) is None:
        return ()
    expansion = _Expansion(sources)
    with suppress(_Exhausted):
        deque(expansion.lines(file, content, 0), maxlen=0)
    return tuple(expansion.missing)


def parse_lines(file: str, content: bytes, sources: Sources, parse: Callable[[Line], _T]) -> Iterator[_T]:
    """What each line says, inclusions in their place.

    Args:
        file: the name that messages show; relative inclusions start in its folder.
        content: the whole file.
        sources: what other files hold.
        parse: makes something of a line, or raises LineError.

    Raises:
        ConfigError: behind the last line, with every mistake, one a line.
    """
    mistakes: list[Mistake] = []
    for line in expand(file, content, sources):
        if isinstance(line, Mistake):
            mistakes.append(line)
        else:
            try:
                yield parse(line)
            except LineError as error:
                mistakes.append(line.ref.mistake(str(error)))
        if len(mistakes) >= MAX_MISTAKES:
            mistakes.append(Mistake(printable(file), f"has {MAX_MISTAKES} mistakes; the rest was not read"))
            break
    if mistakes:
        raise ConfigError(mistakes)


def expand(file: str, content: bytes, sources: Sources) -> Iterator[Line | Mistake]:
    """The lines of a file, inclusions in their place; a mistake in the place of a line that is none.

    Args:
        file: the name that messages show; relative inclusions start in its folder.
        content: the whole file.
        sources: what other files hold.
    """
    try:
        yield from _Expansion(sources).lines(file, content, 0)
    except _Exhausted as error:
        yield error.mistake


class _Exhausted(Exception):
    """So much is included that the rest is not looked at."""

    def __init__(self, mistake: Mistake) -> None:
        super().__init__(str(mistake))
        self.mistake = mistake


class _Expansion:
    """One file with all that it includes."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._inclusions = 0
        self._octets = 0
        self.missing: list[Mistake] = []

    def lines(self, file: str, content: bytes, depth: int) -> Iterator[Line | Mistake]:
        self._octets += len(content)
        if self._octets > MAX_OCTETS:
            what = f"over {MAX_OCTETS >> 20} MB with all that is included"
            raise _Exhausted(Mistake(printable(file), what))
        for number, text in logical_lines(decode_name(content)):
            ref = LineRef(file, number, text)
            try:
                yield from self._line(ref, depth)
            except LineError as error:
                yield ref.mistake(str(error))

    def _line(self, ref: LineRef, depth: int) -> Iterator[Line | Mistake]:
        if "\0" in ref.text:
            raise LineError("the line contains a NUL byte; is this a text file?")
        fields = split_fields(ref.text)
        if may_include(ref.text):
            fields = tuple(self._with_files(field, ref, depth) for field in fields)
        if len(fields) == 2:
            match fields[0][0].text:  # quoted or not, as in PostgreSQL
                case "include":
                    yield from self._included(fields[1][0].text, ref, depth)
                    return
                case "include_if_exists":
                    yield from self._included(fields[1][0].text, ref, depth, may_be_missing=True)
                    return
                case "include_dir":
                    yield from self._included_folder(fields[1][0].text, ref, depth)
                    return
        if fields:
            yield Line(ref, fields)

    def _with_files(self, field: Field, ref: LineRef, depth: int) -> Field:
        """A field with the values of its files in their place."""
        tokens: list[Token] = []
        for token in field:
            if token.quoted or len(token.text) < 2 or not token.text.startswith("@"):
                tokens.append(token)
                continue
            for line in self._included(token.text[1:], ref, depth):
                if isinstance(line, Mistake):
                    raise LineError(f"{token}: {line}")
                tokens.extend(token for field in line.fields for token in field)
        if not tokens:
            # PostgreSQL drops such a field, and the next one takes its place.
            raise LineError(f"{field[0]} holds no entries: the column would be empty")
        return tuple(tokens)

    def _included(
        self, path: str, ref: LineRef, depth: int, *, may_be_missing: bool = False
    ) -> Iterator[Line | Mistake]:
        path = located(path, ref.file)
        if depth >= MAX_DEPTH:
            raise LineError(
                f'could not open file "{printable(path)}": maximum nesting depth exceeded; files nest '
                f"{MAX_DEPTH} deep, and none may include itself"
            )
        self._inclusions += 1
        if self._inclusions > MAX_INCLUSIONS:
            raise _Exhausted(ref.mistake(f"more than {MAX_INCLUSIONS} files are included"))
        content = self._sources.file(path)
        if isinstance(content, bytes):
            yield from self.lines(path, content, depth + 1)
        elif may_be_missing and content.is_missing:
            # PostgreSQL's words; it writes them into its log at each load.
            self.missing.append(ref.mistake(f'skipping missing authentication file "{printable(path)}"'))
        else:
            raise LineError(content.reason)

    def _included_folder(self, path: str, ref: LineRef, depth: int) -> Iterator[Line | Mistake]:
        if not path.strip(" \t\n\r\f\v"):
            raise LineError(f'empty configuration directory name: "{printable(path)}"')
        path = located(path, ref.file)
        names = self._sources.folder(path)
        if isinstance(names, Unreadable):
            raise LineError(names.reason)
        for name in sorted(filter(_is_included, names), key=encode_name):
            try:
                yield from self._included(f"{path.rstrip('/')}/{name}", ref, depth)
            except LineError as error:
                yield ref.mistake(str(error))


def _is_included(name: str) -> bool:
    """Whether `include_dir` takes a file of this name."""
    return name.endswith(".conf") and not name.startswith(".") and len(encode_name(name)) > len(".conf")


def located(path: str, including: str) -> str:
    """Where a file is that another includes: `.` and `..` are taken out of the text, as PostgreSQL does.

    Args:
        path: as the including file has it.
        including: the path of that file.
    """
    if path.startswith("/"):
        return path
    parts: list[str] = []
    for part in f"{including.rpartition('/')[0]}/{path}".split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in {"", "."}:
            parts.append(part)
    return "/" * including.startswith("/") + "/".join(parts)
