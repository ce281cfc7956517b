"""The verifiers of users, as a file lists them: PgBouncer's userlist form, with an expiry of our own.

    "user" "SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>" "2027-01-31 00:00:00+00"

A quote inside a field is doubled; lines that are empty or begin with `;` or `#` are comments. The third field
may be missing, and is what `VALID UNTIL` of the role says. No message quotes a second field: whatever stands
there may be somebody's password.
"""

from __future__ import annotations

import re
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from pgtlsproxy.errors import ConfigError, Mistake
from pgtlsproxy.identity import Secret, decode_name, encode_name, printable
from pgtlsproxy.protocol.scram.keys import (
    DEFAULT_ITERATIONS,
    KEY_OCTETS,
    InvalidVerifier,
    Verifier,
    fake_salt,
)

MAX_SECRETS_OCTETS: Final = 16 << 20
"""Largest file that is read: some 100,000 users."""

_FIELD: Final = r'"((?:[^"]|"")*)"'
_LINE: Final = re.compile(rf"[ \t]*{_FIELD}[ \t]+{_FIELD}(?:[ \t]+{_FIELD})?[ \t\r]*")
_TWO_FIELDS: Final = re.compile(rf"[ \t]*{_FIELD}[ \t]+{_FIELD}")
_COMMENT: Final = re.compile(r"[ \t\r]*(?:[;#].*)?")
_MD5: Final = re.compile(r"md5[0-9a-fA-F]{32}")

_FORM: Final = (
    'not of the form "user" "SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>", with an expiry in '
    "quotes behind it or nothing"
)


@dataclass(frozen=True, slots=True)
class Listed:
    """What a line lists.

    Args:
        verifier: the user's.
        valid_until: Unix time from which on it lets nobody in; None for no end.
        line: its number in the file, counted from 1.
    """

    verifier: Verifier
    valid_until: float | None
    line: int


@dataclass(frozen=True, slots=True)
class Secrets:
    """The verifiers of a file.

    Args:
        file: its name, for the log.
        by_user: what is listed for each user.
        usual_iterations: the most common number of them, the higher of two: what a user without a verifier
            shows.
        mock_secret: what the salts of users without a verifier are made of; None where the proxy is
            nobody's SCRAM server.
    """

    file: str
    by_user: Mapping[str, Listed] = field(repr=False)
    usual_iterations: int = DEFAULT_ITERATIONS
    mock_secret: Secret | None = None

    def verifier(self, user: str, now: float) -> Verifier | None:
        """The verifier of a user; None for one who is not listed, or whose password has expired.

        As PostgreSQL does (get_role_password, src/backend/libpq/crypt.c), a password is good until the very
        moment of its expiry and not after it.

        Args:
            user: the user of the StartupMessage.
            now: Unix time.
        """
        listed = self.by_user.get(user)
        if listed is None or (listed.valid_until is not None and listed.valid_until < now):
            return None
        return listed.verifier

    def doomed(self, user: str, iterations: int | None = None) -> Verifier:
        """A verifier for who has none: it looks like one from outside and fits no password.

        Args:
            user: the user of the StartupMessage.
            iterations: how many it shows; None for the usual number.
        """
        assert self.mock_secret is not None  # noqa: S101 - read wherever the proxy asks for passwords
        keys = (Secret(secrets.token_bytes(KEY_OCTETS)) for _ in range(2))
        return Verifier(fake_salt(self.mock_secret, user), iterations or self.usual_iterations, *keys)

    def where(self, user: str) -> str:
        """Where a user is listed, or is not, for the log."""
        listed = self.by_user.get(user)
        return printable(self.file) if listed is None else f"{printable(self.file)}:{listed.line}"


def parse_secrets(file: str, content: bytes) -> Secrets:
    """Read a file of verifiers.

    Args:
        file: its name, for messages.
        content: the whole file.

    Raises:
        ConfigError: with every mistake, one a line.
    """
    found: dict[str, Listed] = {}
    mistakes: list[Mistake] = []
    for number, line in enumerate(decode_name(content).split("\n"), start=1):
        if _COMMENT.fullmatch(line):
            continue
        try:
            user, listed = _parse_line(line, number)
            if user in found:
                raise _LineError(f'user "{printable(user)}" is listed in line {found[user].line} already')
            found[user] = listed
        except _LineError as error:
            mistakes.append(Mistake(f"{printable(file)}:{number}", str(error)))
    if mistakes:
        raise ConfigError(mistakes)
    return Secrets(file, found, _most_common([listed.verifier.iterations for listed in found.values()]))


def _most_common(iterations: Sequence[int]) -> int:
    counts = Counter(iterations)
    return max(counts, key=lambda number: (counts[number], number), default=DEFAULT_ITERATIONS)


@dataclass(frozen=True, slots=True)
class UserlistEntry:
    """A line of PgBouncer's userlist.txt.

    Args:
        line: its number, counted from 1.
        user: its name.
        secret: a verifier, an MD5 secret, or a password.
    """

    line: int
    user: str
    secret: Secret

    @property
    def is_md5(self) -> bool:
        """Whether there is only an MD5 secret, of which no verifier can be made."""
        return _MD5.fullmatch(decode_name(self.secret.reveal())) is not None

    @property
    def verifier(self) -> Verifier | None:
        """The verifier, where the secret is one."""
        try:
            return Verifier.parse(decode_name(self.secret.reveal()))
        except InvalidVerifier:
            return None


def parse_userlist(file: str, content: bytes) -> tuple[UserlistEntry, ...]:
    """Read PgBouncer's userlist.txt, of whose lines it takes the first two fields.

    Args:
        file: its name, for messages.
        content: the whole file.

    Raises:
        ConfigError: with every line that has no such fields.
    """
    found: list[UserlistEntry] = []
    mistakes: list[Mistake] = []
    for number, line in enumerate(decode_name(content).split("\n"), start=1):
        if _COMMENT.fullmatch(line):
            continue
        fields = _TWO_FIELDS.match(line)
        if fields is None:
            mistakes.append(Mistake(f"{printable(file)}:{number}", 'not of the form "user" "secret"'))
            continue
        user, secret = (each.replace('""', '"') for each in fields.groups())
        found.append(UserlistEntry(number, user, Secret(encode_name(secret))))
    if mistakes:
        raise ConfigError(mistakes)
    return tuple(found)


def format_secret(user: str, verifier: Verifier) -> str:
    """The line of a user, without its end. As good as a password: for files of mode 0600 alone."""
    return '"{}" "{}"'.format(user.replace('"', '""'), verifier.text())


class _LineError(Exception):
    """What is wrong with a line."""


def _parse_line(line: str, number: int) -> tuple[str, Listed]:
    fields = _LINE.fullmatch(line)
    if fields is None:
        raise _LineError(_FORM)
    user, secret, expiry = (None if each is None else each.replace('""', '"') for each in fields.groups())
    if not user or secret is None:
        raise _LineError("the user's name is empty")
    if user.startswith("SCRAM-SHA-256$") or _MD5.fullmatch(user):
        raise _LineError("a secret stands where the user's name has to; the name comes first")
    if _MD5.fullmatch(secret):
        raise _LineError(
            f'user "{printable(user)}" has an MD5 secret, with which SCRAM cannot be checked: set the '
            "password anew with password_encryption = 'scram-sha-256', and list what pg_authid has then"
        )
    try:
        verifier = Verifier.parse(secret)
    except InvalidVerifier as error:
        raise _LineError(
            f'the secret of user "{printable(user)}" cannot be used: {error}. It is not shown, for it may be '
            "a password, which must not stand here"
        ) from None
    return user, Listed(verifier, _valid_until(expiry), number)


def _valid_until(text: str | None) -> float | None:
    """The Unix time that an expiry names; None where there is none."""
    if text is None or text in {"", "infinity"}:
        return None
    try:
        until = datetime.fromisoformat(text)
    except ValueError:
        until = None
    if until is None or until.tzinfo is None:
        raise _LineError(
            f'"{printable(text)}" is no expiry: write a time with its zone, as in "2027-01-31 00:00:00+00", '
            "or infinity"
        )
    return until.timestamp()
