"""The private names of pyOpenSSL that we need, in one place, checked when imported.

pyOpenSSL's public interface sets one curve, not a list of groups, does not say whether a session
was resumed, and takes 6 to 10 µs more a call than OpenSSL's own functions, which the relay uses.
All that needs its binding. Where it is missing, functions say so by returning None, the caller
refuses the setting instead of ignoring it, and the relay goes by the public interface.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final, NoReturn

from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL, crypto

try:
    from OpenSSL._util import ffi as _ffi
    from OpenSSL._util import lib as _lib
except ImportError:  # a pyOpenSSL that hides its binding elsewhere
    _lib = None

_REQUIRED = (
    "SSL_CTX_set1_curves_list",
    "SSL_CTX_use_PrivateKey",
    "SSL_session_reused",
    "SSL_get_verify_result",
    "ERR_clear_error",
    "SSL_clear_mode",
    "SSL_MODE_AUTO_RETRY",
    "SSL_MODE_ENABLE_PARTIAL_WRITE",
    "SSL_read",
    "SSL_write",
    "SSL_get_error",
    "SSL_shutdown",
    "SSL_ERROR_WANT_READ",
    "SSL_ERROR_WANT_WRITE",
    "SSL_ERROR_ZERO_RETURN",
    "SSL_ERROR_SYSCALL",
    "SSL_R_UNEXPECTED_EOF_WHILE_READING",
    "ERR_get_error",
    "ERR_GET_REASON",
    "ERR_reason_error_string",
    "SSL_set_fd",
    "SSL_set_bio",
    "BIO_new",
    "BIO_s_mem",
    "BIO_read",
    "BIO_write",
    "BIO_get_mem_data",
    "SSL_get_peer_certificate",
    "SSL_get0_verified_chain",
    "sk_X509_num",
    "sk_X509_value",
    "BIO_free",
    "X509_free",
    "i2d_X509_bio",
    "SSL_CTX_set_verify",
    "X509_STORE_set_purpose",
    "X509_PURPOSE_SSL_CLIENT",
)

HAS_BINDING = _lib is not None and all(hasattr(_lib, name) for name in _REQUIRED)
"""Whether the binding offers what the functions below need."""


VerifyCallback = Callable[[SSL.Connection, crypto.X509, int, int, int], bool]

EVENTS_PER_KEY_UPDATE: Final = 4
"""How often OpenSSL calls the info callback for one."""


def set_groups(context: SSL.Context, groups: str) -> bool | None:
    """Set the key exchange groups of a context, most preferred first.

    Args:
        context: a context that no connection uses yet.
        groups: OpenSSL group names, joined by colons. OpenSSL takes an empty text for "none", so
            the caller must not pass one.

    Returns:
        Whether OpenSSL knows every name; None where the binding is missing.
    """
    raw: Any = getattr(context, "_context", None)
    if not HAS_BINDING or raw is None:
        return None
    accepted: bool = _lib.SSL_CTX_set1_curves_list(raw, groups.encode("ascii", "replace")) == 1
    if not accepted:
        _lib.ERR_clear_error()
    return accepted


def use_key(context: SSL.Context, key: bytes) -> bool | None:
    """Give a context the key of its certificate, where it is none that `cryptography` tells from others.

    Args:
        context: a context that no connection uses yet.
        key: PKCS #8 in DER.

    Returns:
        Whether OpenSSL takes it; None where the binding is missing.
    """
    raw: Any = getattr(context, "_context", None)
    if not HAS_BINDING or raw is None:
        return None
    # The context's own method warns of such a key in any thread, which no filter can stop in one.
    loaded: Any = getattr(crypto.load_privatekey(crypto.FILETYPE_ASN1, key), "_pkey", None)
    if loaded is None:
        return None
    accepted: bool = _lib.SSL_CTX_use_PrivateKey(raw, loaded) == 1
    if not accepted:
        _lib.ERR_clear_error()
    return accepted


def is_resumed(connection: SSL.Connection) -> bool | None:
    """Whether a session skipped certificate verification by resuming; None where unknown."""
    raw: Any = getattr(connection, "_ssl", None)
    if not HAS_BINDING or raw is None:
        return None
    return bool(_lib.SSL_session_reused(raw))


def is_verified(connection: SSL.Connection) -> bool:
    """Whether OpenSSL has built a chain to who vouches for the peer, and found nothing wrong with it.

    The chain alone proves nothing: OpenSSL keeps one of a failed verification, too. Without the binding
    the rest is left to the context's VERIFY_PEER, which ends such a handshake.
    """
    raw: Any = getattr(connection, "_ssl", None)
    if not HAS_BINDING or raw is None:
        return bool(connection.get_verified_chain())
    chain = _lib.SSL_get0_verified_chain(raw)
    return bool(chain != _ffi.NULL and _lib.SSL_get_verify_result(raw) == 0)


def peer_certificate(connection: SSL.Connection) -> bytes | None:
    """The DER of the peer's certificate, verified or not; None where it gave none."""
    raw: Any = getattr(connection, "_ssl", None)
    if not HAS_BINDING or raw is None:
        certificate = connection.get_peer_certificate(as_cryptography=True)
        return None if certificate is None else certificate.public_bytes(Encoding.DER)
    certificate = _lib.SSL_get_peer_certificate(raw)
    if certificate == _ffi.NULL:
        return None
    der = _der(certificate)
    _lib.X509_free(certificate)
    return der


def peer_issuer(connection: SSL.Connection) -> bytes | None:
    """The DER of the certificate that issued the peer's in the chain that was verified.

    Returns:
        None where there is no such chain. A self-signed certificate issued itself.
    """
    raw: Any = getattr(connection, "_ssl", None)
    if not HAS_BINDING or raw is None:
        chain = connection.get_verified_chain(as_cryptography=True) or []
        return chain[:2][-1].public_bytes(Encoding.DER) if chain else None
    verified = _lib.SSL_get0_verified_chain(raw)
    length = 0 if verified == _ffi.NULL else _lib.sk_X509_num(verified)
    return _der(_lib.sk_X509_value(verified, min(length, 2) - 1)) if length > 0 else None


def peer_root(connection: SSL.Connection) -> tuple[bytes, int] | None:
    """The DER of the certificate in which the verified chain ends, and its depth; None without a chain."""
    raw: Any = getattr(connection, "_ssl", None)
    if not HAS_BINDING or raw is None:
        chain = connection.get_verified_chain(as_cryptography=True) or []
        return (chain[-1].public_bytes(Encoding.DER), len(chain) - 1) if chain else None
    verified = _lib.SSL_get0_verified_chain(raw)
    length = 0 if verified == _ffi.NULL else _lib.sk_X509_num(verified)
    return (_der(_lib.sk_X509_value(verified, length - 1)), length - 1) if length > 0 else None


def _der(certificate: Any) -> bytes:
    """The DER of an `X509 *`."""
    bio, where = _lib.BIO_new(_lib.BIO_s_mem()), _ffi.new("char **")
    _lib.i2d_X509_bio(bio, certificate)
    octets = _lib.BIO_get_mem_data(bio, where)
    der = bytes(_ffi.buffer(where[0], octets))
    _lib.BIO_free(bio)
    return der


def verify_with(context: SSL.Context, callback: VerifyCallback) -> None:
    """Verify peers, and have a callback judge what OpenSSL finds wrong with a certificate.

    pyOpenSSL makes objects of each certificate of each chain and calls back for it, right or wrong. With
    the binding it does so for what is wrong alone, which saves 15 µs a certificate and 60 a session.

    Args:
        context: one that no connection uses yet.
        callback: as `SSL.Context.set_verify` wants it.
    """
    context.set_verify(SSL.VERIFY_PEER, callback)
    raw: Any = getattr(context, "_context", None)
    judge: Any = getattr(context, "_verify_callback", None)
    if not HAS_BINDING or raw is None or judge is None:
        return

    failures_only = _ffi.callback(
        "int (*)(int, X509_STORE_CTX *)", lambda ok, store: 1 if ok else judge(ok, store)
    )
    # Whoever uses the context keeps alive what it has here.
    context._verify_callback = failures_only  # noqa: SLF001 - what this module is for
    _lib.SSL_CTX_set_verify(raw, SSL.VERIFY_PEER, failures_only)


def receive(connection: SSL.Connection, max_octets: int) -> bytes:
    """What `connection.recv` does at half its cost: pyOpenSSL looks for failures behind each success."""
    if not HAS_BINDING:
        return connection.recv(max_octets)
    ssl, buffer = handle_of(connection), _new_buffer("char[]", max_octets)
    result = _lib.SSL_read(ssl, buffer, max_octets)
    if result <= 0:
        raise_failure(result, _lib.SSL_get_error(ssl, result))
    return bytes(_ffi.buffer(buffer, result))


def send(connection: SSL.Connection, data: bytes) -> int:
    """What `connection.send` does, at half its cost."""
    if not HAS_BINDING:
        return connection.send(data)
    ssl = handle_of(connection)
    result: int = _lib.SSL_write(ssl, data, len(data))
    if result <= 0:
        raise_failure(result, _lib.SSL_get_error(ssl, result))
    return result


def return_after_each_record(
    connection: SSL.Connection, max_events: int, on_abuse: Callable[[], None]
) -> None:
    """Let a read return after every record, whether it brought data or not.

    pyOpenSSL sets SSL_MODE_AUTO_RETRY on every connection: one SSL_read then works off all the
    KeyUpdates that a peer sends, and the whole process waits for it. Without the binding the mode
    cannot be cleared; a callback then counts OpenSSL's events, and ends the connection when there are
    too many. Call it when the handshake is over.

    Args:
        connection: an established one.
        max_events: without the binding, after how many KeyUpdates, ever, the connection is ended.
        on_abuse: called when it is; what is read next looks like the peer's close_notify.
    """
    raw: Any = getattr(connection, "_ssl", None)
    if HAS_BINDING and raw is not None:
        _lib.SSL_clear_mode(raw, _lib.SSL_MODE_AUTO_RETRY)
        return
    events = 0

    def count(ended: SSL.Connection, _where: int, _result: int) -> None:
        nonlocal events
        events += 1
        if events > max_events * EVENTS_PER_KEY_UPDATE:
            on_abuse()
            ended.set_shutdown(SSL.RECEIVED_SHUTDOWN)

    connection.set_info_callback(count)


def clear_errors() -> None:
    """Empty OpenSSL's error queue.

    It belongs to the thread: what one connection leaves there is taken for the next one's failure.
    """
    if _lib is not None and hasattr(_lib, "ERR_clear_error"):
        _lib.ERR_clear_error()


def library_version() -> str:
    """The OpenSSL that is linked, as it names itself."""
    return SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode("ascii", "replace")


def verify_error_string(number: int) -> str:
    """OpenSSL's words for an X509_V_ERR_* number, for a log."""
    if _lib is None or not hasattr(_lib, "X509_verify_cert_error_string"):
        return f"verification error {number}"
    text: Any = _ffi.string(_lib.X509_verify_cert_error_string(number))
    return bytes(text).decode("ascii", "replace")


# --- What the relay's thread uses -----------------------------------------------------------------------

if HAS_BINDING:
    SSL_read = _lib.SSL_read
    SSL_write = _lib.SSL_write
    SSL_get_error = _lib.SSL_get_error
    SSL_shutdown = _lib.SSL_shutdown
    SSL_ERROR_WANT_READ = _lib.SSL_ERROR_WANT_READ
    SSL_ERROR_WANT_WRITE = _lib.SSL_ERROR_WANT_WRITE
    SSL_ERROR_ZERO_RETURN = _lib.SSL_ERROR_ZERO_RETURN

    _new_buffer: Final = _ffi.new_allocator(should_clear_after_alloc=False)
    _EXPECTED: Final = {
        SSL_ERROR_WANT_READ: SSL.WantReadError,
        SSL_ERROR_WANT_WRITE: SSL.WantWriteError,
        SSL_ERROR_ZERO_RETURN: SSL.ZeroReturnError,
    }


def handle_of(connection: SSL.Connection) -> Any:
    """The `SSL *` of a connection, which must outlive every use of it."""
    # Bare, for cffi takes it 0.03 µs a call sooner than pyOpenSSL's own object, which frees it at its end.
    return _ffi.cast("SSL *", connection._ssl)  # noqa: SLF001 - what this module is for


def pointer_to(buffer: bytearray | bytes) -> Any:
    """A `char *` to a buffer, which keeps it alive; None without the binding."""
    return _ffi.from_buffer(buffer) if HAS_BINDING else None


def write_whole(connection: SSL.Connection) -> None:
    """Let one SSL_write take many records; pyOpenSSL stops it behind the first."""
    _lib.SSL_clear_mode(handle_of(connection), _lib.SSL_MODE_ENABLE_PARTIAL_WRITE)


def raise_failure(result: int, code: int) -> NoReturn:
    """Raise what pyOpenSSL's calls would for a result of SSL_read and its kin that is no success.

    Args:
        result: what the call returned.
        code: what SSL_get_error said of it.

    Raises:
        SSL.WantReadError, SSL.WantWriteError: the socket has nothing, or is full.
        SSL.ZeroReturnError: the peer's close_notify has come.
        SSL.SysCallError: the system's error and its text, or -1 where the peer just closed.
        SSL.Error: OpenSSL's.
    """
    if code in _EXPECTED:
        raise _EXPECTED[code]
    number = _ffi.errno
    error = _lib.ERR_get_error()
    _lib.ERR_clear_error()
    if code == _lib.SSL_ERROR_SYSCALL and result < 0 and number:
        raise SSL.SysCallError(number, os.strerror(number))
    if code == _lib.SSL_ERROR_SYSCALL or (
        _lib.ERR_GET_REASON(error) == _lib.SSL_R_UNEXPECTED_EOF_WHILE_READING
    ):
        raise SSL.SysCallError(-1, "Unexpected EOF")
    text = _lib.ERR_reason_error_string(error)
    reason = "unknown error" if text == _ffi.NULL else _ffi.string(text).decode("ascii", "replace")
    raise SSL.Error([("SSL routines", "", reason)])


class MemoryBIOs:
    """Memory between OpenSSL and a socket, in place of the socket itself.

    Put in place at once. OpenSSL frees them when others take their place.

    Args:
        connection: whose.
    """

    __slots__ = ("_incoming", "_outgoing", "_ssl", "_where")

    def __init__(self, connection: SSL.Connection) -> None:
        self._ssl = handle_of(connection)
        self._where = _ffi.new("char **")
        self._incoming = _lib.BIO_new(_lib.BIO_s_mem())
        self._outgoing = _lib.BIO_new(_lib.BIO_s_mem())
        if _ffi.NULL in (self._incoming, self._outgoing):  # pragma: no cover - OpenSSL is out of memory
            raise MemoryError("OpenSSL could not make a BIO")
        _lib.SSL_set_bio(self._ssl, self._incoming, self._outgoing)

    def put(self, pointer: Any, octets: int) -> None:
        """Hand ciphertext from the peer to OpenSSL."""
        if _lib.BIO_write(self._incoming, pointer, octets) != octets:
            raise MemoryError("OpenSSL could not take what the peer sent")

    def unread(self) -> int:
        """How many octets from the peer OpenSSL has not looked at yet."""
        return int(_lib.BIO_get_mem_data(self._incoming, self._where))

    def untaken(self) -> int:
        """How many octets for the peer lie there."""
        return int(_lib.BIO_get_mem_data(self._outgoing, self._where))

    def take(self, pointer: Any, max_octets: int) -> int:
        """Ciphertext for the peer: how many octets, 0 for none."""
        return max(int(_lib.BIO_read(self._outgoing, pointer, max_octets)), 0)

    def replace(self, fd: int) -> None:
        """Put the socket back in place. What the BIOs hold is lost: they must be empty."""
        _lib.SSL_set_fd(self._ssl, fd)


def ask_for_client_purpose(store: crypto.X509Store) -> None:
    """Let a store take certificates for TLS clients only, as a server's handshake does.

    Without the binding it takes them for any purpose.
    """
    if HAS_BINDING:
        _lib.X509_STORE_set_purpose(store._store, _lib.X509_PURPOSE_SSL_CLIENT)  # noqa: SLF001 - see above
