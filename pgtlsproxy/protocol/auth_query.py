"""`auth_query`: what a backend answers when it is asked for the SCRAM verifier of a user.

One row of name, verifier and expiry, as pg_authid has them, or none. Everything here is bytes in, values out.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from pgtlsproxy.errors import BackendMisbehaved
from pgtlsproxy.identity import decode_name, encode_name
from pgtlsproxy.protocol.messages import BackendError, Message, parse_error_response
from pgtlsproxy.protocol.query import encode_question, parse_fields, parse_row_description
from pgtlsproxy.protocol.scram.client import MAX_BACKEND_ITERATIONS
from pgtlsproxy.protocol.scram.keys import InvalidVerifier, Verifier

_TEXTS: Final = frozenset({19, 25, 1043})
"""The types name, text and varchar; pg_type.dat."""

_TIMESTAMPTZ: Final = 1184

_COLUMNS: Final = (("the role's name", _TEXTS), ("its verifier", _TEXTS), ("a timestamptz", {_TIMESTAMPTZ}))

_FORM: Final = (
    "rolname, rolpassword and rolvaliduntil of pg_authid, in this order; a query that knows no expiry says "
    "NULL::timestamptz"
)

_NOT_A_NAME: Final = frozenset({"22021", "22P05"})
"""character_not_in_repertoire, untranslatable_character: no role of that database can be called so."""

_EPOCH: Final = 946_684_800
"""2000-01-01 00:00:00 UTC, from where PostgreSQL counts microseconds."""

_MICROSECONDS: Final = struct.Struct("!q")
_INFINITY: Final = 2**63 - 1

NO_ROLE: Final = (
    "knows no role of that name that may log in (superusers and replication roles are left out, unless the "
    "query says otherwise)"
)


@dataclass(frozen=True, slots=True)
class RoleSecret:
    """What is known of a user's password.

    Args:
        verifier: None where there is none to be had.
        valid_until: Unix time from which on it lets nobody in; None for no end.
        lack: why there is no verifier, for the log; empty where there is one.
    """

    verifier: Verifier | None
    valid_until: float | None = None
    lack: str = ""

    def at(self, now: float) -> Verifier | None:
        """The verifier; None where there is none, or where the password has expired.

        Args:
            now: Unix time.
        """
        return None if self.is_expired(now) else self.verifier

    def is_expired(self, now: float) -> bool:
        """Whether VALID UNTIL is over: good until that very moment, as in PostgreSQL (get_role_password)."""
        return self.valid_until is not None and self.valid_until < now


class Question:
    """One question, and the answer to it, message by message.

    Args:
        query: with $1 in the place of the name.
        user: who is asked for.
    """

    def __init__(self, query: str, user: str) -> None:
        self._query = query
        self._user = user
        self._has_columns = False
        self._rows: list[bytes] = []
        self._error: BackendError | None = None

    def encode(self) -> bytes:
        """What the backend is sent."""
        return encode_question(self._query, self._user, max_rows=2)  # of which one is too many

    def take(self, message: Message) -> bool:
        """Take the next message; gives whether it was the last.

        Raises:
            BackendMisbehaved: it cannot be part of an answer, or the server ends the connection.
        """
        match message.type:
            case b"E":
                self._error = error = parse_error_response(message.body)
                if error.fields.get("V") != "ERROR":
                    raise BackendMisbehaved(_told(error))
            case b"T":
                self._check_columns(message.body)
            case b"n":
                raise BackendMisbehaved(f"the query gives no rows, expected {_FORM}")
            case b"D":
                self._rows.append(message.body)
            case _:
                pass
        return message.type == b"Z"

    def answer(self) -> RoleSecret:
        """What the answer says, when it is there whole.

        Raises:
            BackendMisbehaved: the query failed, or it is no answer to it.
        """
        if self._error is not None:
            if self._error.sqlstate in _NOT_A_NAME:
                return RoleSecret(None, lack="can have no role of that name in the encoding of its database")
            raise BackendMisbehaved(_told(self._error))
        if not self._has_columns:
            raise BackendMisbehaved("the backend did not answer the query")
        if not self._rows:
            return RoleSecret(None, lack=NO_ROLE)
        if len(self._rows) > 1:
            raise BackendMisbehaved("the query gives more than one row for a role")
        return self._secret(self._rows[0])

    def _check_columns(self, body: bytes) -> None:
        columns = parse_row_description(body)
        fits = len(columns) == len(_COLUMNS) and all(
            column.type_oid in types for column, (_, types) in zip(columns, _COLUMNS, strict=True)
        )
        if not fits:
            raise BackendMisbehaved(
                f"the query gives {len(columns)} columns of other types, expected {_FORM}"
            )
        self._has_columns = True

    def _secret(self, row: bytes) -> RoleSecret:
        name, password, expiry = parse_fields(row, columns=len(_COLUMNS))
        if name != encode_name(self._user):
            raise BackendMisbehaved("the query gives another role than it was asked for")
        if password is None:
            return RoleSecret(None, lack="has no SCRAM verifier for the role")
        try:
            verifier = Verifier.parse(decode_name(password))
        except InvalidVerifier as error:
            is_md5 = password.startswith(b"md5")
            return RoleSecret(
                None,
                lack=f"has a secret for the role that is no SCRAM verifier: {'MD5' if is_md5 else error}",
            )
        if verifier.iterations > MAX_BACKEND_ITERATIONS:  # any role may set its own, and hashing takes time
            lack = f"has a verifier for the role with over {MAX_BACKEND_ITERATIONS} iterations"
            return RoleSecret(None, lack=lack)
        return RoleSecret(verifier, _valid_until(expiry))


def _valid_until(field: bytes | None) -> float | None:
    if field is None:
        return None
    if len(field) != _MICROSECONDS.size:
        raise BackendMisbehaved("the backend sent a malformed timestamp")
    (microseconds,) = _MICROSECONDS.unpack(field)
    return None if microseconds == _INFINITY else _EPOCH + microseconds / 1_000_000


_WHAT_TO_DO: Final = {
    "3F000": "run config/auth_query.sql in that database, or name the right dbname",
    "42883": "run config/auth_query.sql in that database, or name the right dbname",
    "42P01": "run config/auth_query.sql in that database, or name the right dbname",
    "42501": "grant the role what config/auth_query.sql grants",
}


def _told(error: BackendError) -> str:
    advice = _WHAT_TO_DO.get(error.sqlstate or "")
    has_secret = "SCRAM-SHA-256$" in error.fields.get("M", "")
    message = "a message with a secret in it, which is not shown" if has_secret else error.message
    return f"the backend answers {error.sqlstate}: {message}" + (f"; {advice}" if advice else "")
