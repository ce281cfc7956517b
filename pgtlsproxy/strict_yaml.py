"""YAML 1.1 without its surprises: plain data, and the line that every key came from.

YAML 1.1 reads `0770` as 504, `22:22` as 1342 and `!none` as a tag, keeps the last of two equal keys,
and lets a few lines of aliases grow to gigabytes. Whatever a person and a parser could read
differently is a mistake here that says what to write instead. No message shows a value, for it may
be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from pgtlsproxy.errors import ConfigError, Mistake
from pgtlsproxy.identity import printable

MAX_OCTETS: Final = 1 << 20
"""Longest file, 1 MB."""

MAX_NODES: Final = 100_000
"""Largest document once its aliases are expanded, in mappings, lists and scalars."""

MAX_DEPTH: Final = 40
"""Deepest nesting. An alias to what contains it has no end, and meets this limit too."""

KeyPath = tuple[str | int, ...]

_TAG: Final = "tag:yaml.org,2002:"
_PLAIN_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_PLAIN_DECIMAL: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,17})\.[0-9]{1,18}")
_QUOTED: Final = re.compile(r'"[^"]*"' + r"|'[^']*'")
_BRACKETED_IPV6: Final = re.compile(r"\[[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*\]")
_BRACED_TEXT: Final = re.compile(r"\{\w*\}")
_PLAIN_KEY: Final = re.compile(r"[\w-]+")

_QUOTE_IPV6: Final = (
    'an address in [brackets] must be quoted, as in "[::1]:5432", or YAML takes it for a list'
)
_QUOTE_STAR: Final = 'a text that begins with * must be quoted, as in "*:5432", or YAML takes it for an alias'
_QUOTE_TAG: Final = (
    'a text that begins with ! must be quoted, as in "!none", or YAML takes it for a tag; tags are refused'
)
_QUOTE_BRACES: Final = "a text that begins with { must be quoted, or YAML takes it for a mapping"


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document as plain data.

    Args:
        file: its name, as the messages have it.
        data: dict, list, str, int, float, bool or None.
        mistakes: what could be read in two ways, by key path. `data` has the reading that the writer
            is likely to have meant, so that the rest can be checked too.
    """

    file: str
    data: object
    mistakes: Mapping[KeyPath, Mistake]
    _lines: Mapping[KeyPath, int] = field(repr=False)

    def line(self, path: KeyPath) -> int:
        """The line of a key, counted from 1; the nearest key above it where it is not there."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)

    def where(self, path: KeyPath) -> str:
        """`file:line: key.path[index]`."""
        place = f"{self.file}:{self.line(path)}"
        return f"{place}: {show_path(path)}" if path else place


def show_path(path: KeyPath) -> str:
    """A key path as a person would write it: `listeners.central.listen[0]`."""
    shown = ""
    for step in path:
        if isinstance(step, int):
            shown += f"[{step}]"
        else:
            name = step if _PLAIN_KEY.fullmatch(step) else f'"{printable(step)}"'
            shown += f".{name}" if shown else name
    return shown


def parse(file: str, content: bytes) -> Document:
    """Read one YAML document.

    Args:
        file: its name, for messages.
        content: its bytes, UTF-8.

    Raises:
        ConfigError: it is too long, no YAML, or would grow beyond its limits. What is merely
            ambiguous is in the document's `mistakes` instead.
    """
    try:
        loader = _Loader(_decode(content))
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
        return _Builder(file).document(node)
    except _Refused as refused:
        raise ConfigError([Mistake(f"{file}:{refused.line}", refused.what)]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line if mark is not None else 0
        lines = content.decode("utf-8", "replace").splitlines()
        what = _explain(error, lines[line] if line < len(lines) else "")
        raise ConfigError([Mistake(f"{file}:{line + 1}", what)]) from None
    except yaml.reader.ReaderError as error:
        line = content.decode("utf-8-sig").count("\n", 0, error.position) + 1
        what = f"the control character U+{error.character:04X}: remove it, or write an escape in quotes"
        raise ConfigError([Mistake(f"{file}:{line}", what)]) from None


class _Refused(Exception):
    """The document cannot be read any further."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line = line
        self.what = what


def _decode(content: bytes) -> str:
    if len(content) > MAX_OCTETS:
        raise _Refused(
            1, f"the file has {len(content)} bytes, and the limit is {MAX_OCTETS}: is it the right file?"
        )
    if (at := content.find(b"\0")) >= 0:
        raise _Refused(content.count(b"\n", 0, at) + 1, "a NUL byte: the file must be text in UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _Refused(
            line, f"the byte 0x{content[error.start]:02x} is not UTF-8: save the file as UTF-8"
        ) from None


class _Loader(yaml.SafeLoader):
    """Composes nodes within the limits; constructs nothing."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call] # the stubs leave it out
        line = event.start_mark.line + 1
        if getattr(event, "tag", None) is not None:
            raise _Refused(line, _QUOTE_TAG)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _Refused(line, f"nested more than {MAX_DEPTH} levels deep")
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in {f"{_TAG}timestamp", f"{_TAG}value"}]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
"""No setting is a date, and `=` is a text."""


class _Builder:
    """Turns nodes into plain data, noting lines and mistakes on the way."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._lines: dict[KeyPath, int] = {}
        self._mistakes: dict[KeyPath, Mistake] = {}
        self._nodes = 0

    def document(self, node: yaml.Node | None) -> Document:
        data = None if node is None else self._build((), node, 0)
        return Document(self._file, data, self._mistakes, self._lines)

    def _mistake(self, path: KeyPath, line: int, what: str) -> None:
        shown = f": {show_path(path)}" if path else ""
        self._mistakes.setdefault(path, Mistake(f"{self._file}:{line}{shown}", what))

    def _build(self, path: KeyPath, node: yaml.Node, depth: int) -> object:
        line = node.start_mark.line + 1
        self._lines.setdefault(path, line)
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise _Refused(line, f"aliases make the document grow beyond {MAX_NODES} values")
        if depth > MAX_DEPTH:
            raise _Refused(line, f"nested more than {MAX_DEPTH} levels deep, perhaps by an alias to itself")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(path, node, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self._build((*path, index), item, depth + 1) for index, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)  # noqa: S101 - there is no fourth kind
        return self._scalar(path, node)

    def _mapping(self, path: KeyPath, node: yaml.MappingNode, depth: int) -> dict[str, object]:
        data: dict[str, object] = {}
        seen: dict[str, int] = {}
        for key_node, value_node in self._own_pairs(node):
            line = key_node.start_mark.line + 1
            key = self._key(path, key_node)
            if key in seen:
                self._mistake(
                    (*path, key), line, f"the same key is in line {seen[key]} already: keep one of the two"
                )
                continue
            if key is not None:
                seen[key] = line
                self._lines[(*path, key)] = line
                data[key] = self._build((*path, key), value_node, depth + 1)
        for merged in self._merged(path, node):
            # Built, not just read: an alias to what contains it, and a bomb of merges, meet the limits.
            found = self._build(path, merged, depth + 1)
            for key, value in found.items() if isinstance(found, dict) else ():
                data.setdefault(key, value)
        return data

    def _own_pairs(self, node: yaml.MappingNode) -> Iterator[tuple[yaml.Node, yaml.Node]]:
        return (pair for pair in node.value if pair[0].tag != f"{_TAG}merge")

    def _merged(self, path: KeyPath, node: yaml.MappingNode) -> Iterator[yaml.MappingNode]:
        """The mappings that `<<` names, the first of which wins."""
        values = [value for key, value in node.value if key.tag == f"{_TAG}merge"]
        for extra in values[1:]:
            self._mistake(
                (*path, "<<"), extra.start_mark.line + 1, "a second << in one mapping: write one with a list"
            )
        for value in values[:1]:
            for item in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if isinstance(item, yaml.MappingNode):
                    yield item
                else:
                    self._mistake((*path, "<<"), item.start_mark.line + 1, "<< takes an alias to a mapping")

    def _key(self, path: KeyPath, node: yaml.Node) -> str | None:
        line = node.start_mark.line + 1
        if not isinstance(node, yaml.ScalarNode):
            what = _QUOTE_IPV6 if isinstance(node, yaml.SequenceNode) else "a mapping cannot be a key"
            self._mistake(path, line, what)
            return None
        text: str = node.value
        if node.tag != f"{_TAG}str":
            self._mistake((*path, text), line, "YAML 1.1 does not read this key as text: quote it")
        return text

    def _scalar(self, path: KeyPath, node: yaml.ScalarNode) -> object:
        text: str = node.value
        line = self._lines.get(path, node.start_mark.line + 1)
        match node.tag.removeprefix(_TAG):
            case "null":
                return None
            case "bool":
                return yaml.SafeLoader.bool_values[text.lower()]
            case "int" if _PLAIN_INTEGER.fullmatch(text):
                return int(text)
            case "float" if _PLAIN_DECIMAL.fullmatch(text):
                return float(text)
            case "int" | "float":
                self._mistake(
                    path,
                    line,
                    "YAML 1.1 reads this as an octal, binary, hexadecimal or base 60 number, or as infinity: "
                    "quote it if it is a text or a file mode, or write a plain decimal number",
                )
            case _ if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
                self._mistake(path, line, "a text with a NUL or half a surrogate pair in it")
        return text


def _explain(error: yaml.MarkedYAMLError, line: str) -> str:
    """What PyYAML stumbled over, in the words of somebody who writes a configuration."""
    problem, context = error.problem or "", error.context or ""
    outside_quotes = _QUOTED.sub("", line)
    if "'\\t'" in problem:
        return "a tab: YAML is indented with spaces only"
    if isinstance(error, yaml.composer.ComposerError) and "single document" in context:
        return "a second document (---): one file holds one configuration"
    if "alias" in problem or "alias" in context:
        return f"an alias that names no anchor (&name) above it; {_QUOTE_STAR}"
    if "tag" in problem or "tag" in context:
        return _QUOTE_TAG
    if _BRACKETED_IPV6.search(outside_quotes):
        return _QUOTE_IPV6
    if _BRACED_TEXT.search(outside_quotes):
        return _QUOTE_BRACES
    if "that cannot start any token" in problem:
        return "a text that begins with a special character (@ ` %) must be quoted"
    if "mapping values are not allowed" in problem:
        return "a colon where none is expected: check the indentation, or quote the text"
    return f"not YAML: {printable(', '.join(filter(None, (context, problem))))}"
