"""Mock secrets: what the salts of users without a verifier are made of.

PostgreSQL's own is mock_authentication_nonce in pg_control. Ours is a file, so that a user who does not exist
shows the same salt in every worker and after every restart, as one who does exist.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
from pathlib import Path
from typing import Final

from pgtlsproxy.tls.file_access import MissingFile, UnusableFile, read_key_file

MOCK_SECRET_OCTETS: Final = 32

_KIND: Final = "SCRAM mock secret file"


@functools.cache
def mock_secret_to_serve_with(path: str, uid: int) -> bytes:
    """The mock secret of a file, which is made where it is missing.

    It is the same for as long as the process lives, whatever becomes of the file: a salt that changes gives
    away who has no verifier.

    Args:
        path: its file.
        uid: the user that the proxy runs as.

    Raises:
        UnusableFile: it cannot be read or made, or is too short.
    """
    try:
        return _read(path, uid)
    except MissingFile:
        _make(path)
        return _read(path, uid)


def mock_secret_to_check(path: str, uid: int) -> bytes:
    """The mock secret of a file, or any where it is still to be made, for who does not serve.

    Args:
        path: its file.
        uid: the user that the proxy runs as.

    Raises:
        UnusableFile: it cannot be read, or is too short.
    """
    try:
        return _read(path, uid)
    except MissingFile:
        return secrets.token_bytes(MOCK_SECRET_OCTETS)


def _read(path: str, uid: int) -> bytes:
    found = read_key_file(path, uid, _KIND)
    if len(found) < MOCK_SECRET_OCTETS:
        raise UnusableFile(
            f'{_KIND} "{path}" has {len(found)} octets, expected {MOCK_SECRET_OCTETS} random ones at least: '
            "remove it, and a new one is made"
        )
    return found


def _make(path: str) -> None:
    """Make the file, unless another process is quicker."""
    scratch = f"{path}.{secrets.token_hex(8)}"
    try:
        descriptor = os.open(
            scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(MOCK_SECRET_OCTETS))
            with contextlib.suppress(FileExistsError):
                os.link(scratch, path)  # whole or not at all, and never over another one
        finally:
            Path(scratch).unlink()
    except OSError as error:
        raise UnusableFile(
            f'{_KIND} "{path}" could not be made: {error.strerror}. Make it with '
            f'"head -c {MOCK_SECRET_OCTETS} /dev/urandom" and mode 0600, or name another place with '
            "scram_mock_secret_file"
        ) from None
