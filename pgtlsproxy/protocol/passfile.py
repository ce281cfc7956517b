"""libpq's password file (PostgreSQL manual, 34.16 The Password File): which password is for whom, and where.

    hostname:port:database:username:password

The first line whose first four fields fit is taken; a `*` alone fits everything, and a backslash takes the
meaning of a colon or a backslash. As libpq's passwordFromFile (fe-connect.c); a line of too few fields, which
libpq never takes, and of too many, of whose password it takes the beginning, are mistakes here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from pgtlsproxy.errors import ConfigError, Mistake
from pgtlsproxy.identity import Secret, decode_name, encode_name, printable

_ANY: Final = "*"
_FIELDS: Final = ("hostname", "port", "database", "username", "password")

DEFAULT_SOCKET_FOLDERS: Final = frozenset({"/tmp", "/var/run/postgresql", "/run/postgresql"})  # noqa: S108 - names
"""Folders of Unix sockets that libpq looks for under the name `localhost`; which one it is depends on how
libpq was built."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A line: the four fields that it is found by, a `*` alone already told from an escaped one."""

    key: tuple[str | None, ...]
    password: Secret


@dataclass(frozen=True, slots=True)
class Passfile:
    """A password file.

    Args:
        file: its name, for messages.
        entries: its lines.
    """

    file: str
    entries: tuple[_Entry, ...] = field(repr=False)

    def password(self, host: str, port: int, database: str, user: str) -> Secret | None:
        """The password for a login.

        Args:
            host: the name or address that is dialled, or the folder of the Unix socket.
            port: its port.
            database: where; `replication` for physical replication.
            user: as whom.

        Returns:
            The password of the first line that fits; None where none does.
        """
        wanted = ("localhost" if host in DEFAULT_SOCKET_FOLDERS else host, str(port), database, user)
        for entry in self.entries:
            if all(has is None or has == wants for has, wants in zip(entry.key, wanted, strict=True)):
                return entry.password
        return None


def parse_passfile(file: str, content: bytes) -> Passfile:
    """Read a password file.

    Args:
        file: its name, for messages.
        content: the whole file.

    Raises:
        ConfigError: with every mistake, one a line; none shows a field.
    """
    entries: list[_Entry] = []
    mistakes: list[Mistake] = []
    for number, line in enumerate(decode_name(content).split("\n"), start=1):
        text = line.rstrip("\r")
        if not text or text.startswith("#"):
            continue
        fields = _split(text)
        if len(fields) != len(_FIELDS) or not fields[-1]:
            what = (
                f"expected {':'.join(_FIELDS)}, with a backslash before a colon or backslash inside a field"
            )
            mistakes.append(Mistake(f"{printable(file)}:{number}", what))
            continue
        *key, password = fields
        entries.append(_Entry(tuple(None if each == _ANY else _plain(each) for each in key),
                              Secret(encode_name(_plain(password)))))  # fmt: skip
    if mistakes:
        raise ConfigError(mistakes)
    return Passfile(file, tuple(entries))


def _split(text: str) -> list[str]:
    """The fields of a line, escapes still in them."""
    fields, begin, position = [], 0, 0
    while position < len(text):
        if text[position] == "\\":
            position += 1
        elif text[position] == ":":
            fields.append(text[begin:position])
            begin = position + 1
        position += 1
    return [*fields, text[begin:]]


def _plain(field: str) -> str:
    """A field without its escapes: a backslash goes, and what follows it stays. One at the end stays."""
    plain, is_escaped = [], False
    for character in field:
        if character == "\\" and not is_escaped:
            is_escaped = True
        else:
            plain.append(character)
            is_escaped = False
    return "".join(plain) + ("\\" if is_escaped else "")
