"""The files of `pgtlsproxy certs`: read with PostgreSQL's rules, written so that none is lost."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from pgtlsproxy.pki import CannotIssue, Issued
from pgtlsproxy.tls.file_access import read_file, read_key_file
from pgtlsproxy.tls.files import certificate_chain, key_pair, private_key

KEY_MODE: Final = 0o600
PUBLIC_MODE: Final = 0o644


class AlreadyThere(Exception):
    """A file that would have been overwritten."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} exists already: nothing was written. Name another one, or use --force")


def load_issued(certificate_file: Path, key_file: Path) -> Issued:
    """A certificate and its key from two files.

    Raises:
        UnusableFile: a file cannot be read, or they do not belong together.
        CannotIssue: the key is of a kind that signs no certificates.
    """
    chain = certificate_chain(read_file(str(certificate_file), "certificate file"), str(certificate_file))
    key = private_key(read_key_file(str(key_file), os.geteuid()), str(key_file))
    pair = key_pair(chain, key, certificate_file=str(certificate_file), key_file=str(key_file))
    if not isinstance(key, (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey, ed25519.Ed25519PrivateKey)):
        raise CannotIssue(f'the key in "{key_file}" is neither EC nor RSA nor Ed25519')
    intermediates = tuple(one for one in chain[1:] if one.subject != one.issuer)
    return Issued(pair.leaf, key, intermediates)


def write_pair(issued: Issued, certificate_file: Path, key_file: Path, *, force: bool) -> None:
    """Write a key and its certificate chain, the key first and for its owner alone.

    Args:
        issued: what to write.
        certificate_file: where the chain goes.
        key_file: where the key goes.
        force: replace what is there.

    Raises:
        AlreadyThere: one of the two exists, and `force` is off; neither was written.
        OSError: the folder does not take them.
    """
    if not force:
        for path in (key_file, certificate_file):
            if os.path.lexists(path):
                raise AlreadyThere(path)
    write(key_file, issued.key_pem().reveal(), KEY_MODE, force=force)
    write(certificate_file, issued.certificate_pem(), PUBLIC_MODE, force=force)


def write(path: Path, content: bytes, mode: int, *, force: bool) -> None:
    """Write a whole file or nothing.

    Args:
        path: where to.
        content: what.
        mode: permissions of a new file. A file that is replaced keeps its owner and its permissions,
            but a key none that the world could use.
        force: replace a file that is there, in one step; what a link leads to is replaced, not the link.

    Raises:
        AlreadyThere: the file exists, and `force` is off.
        OSError: the folder does not take it.
    """
    if force and path.exists():
        _replace(path.resolve(), content, mode)
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise AlreadyThere(path) from None
    try:
        _fill(descriptor, content)
    except OSError:
        path.unlink()
        raise


def _replace(path: Path, content: bytes, mode: int) -> None:
    found = path.stat()
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        if (found.st_uid, found.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(descriptor, found.st_uid, found.st_gid)
        kept = stat.S_IMODE(found.st_mode)
        # 0640 of a key that root owns stays; what the world could do with a key does not.
        os.fchmod(descriptor, kept if mode & stat.S_IROTH else kept & 0o640)
        _fill(descriptor, content)
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink()
        raise


def _fill(descriptor: int, content: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
