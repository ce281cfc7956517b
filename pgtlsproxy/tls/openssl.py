"""The private names of pyOpenSSL that we need, in one place, checked when imported.

pyOpenSSL's public interface sets one curve, not a list of groups, and does not say whether a
session was resumed. Both need its binding. Where a name is missing the functions say so by
returning None, and the caller refuses the setting instead of ignoring it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from OpenSSL import SSL

try:
    from OpenSSL._util import ffi as _ffi
    from OpenSSL._util import lib as _lib
except ImportError:  # a pyOpenSSL that hides its binding elsewhere
    _lib = None

_REQUIRED = (
    "SSL_CTX_set1_curves_list",
    "SSL_session_reused",
    "SSL_get_verify_result",
    "ERR_clear_error",
    "SSL_clear_mode",
    "SSL_MODE_AUTO_RETRY",
)

HAS_BINDING = _lib is not None and all(hasattr(_lib, name) for name in _REQUIRED)
"""Whether the binding offers what the functions below need."""


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


def is_resumed(connection: SSL.Connection) -> bool | None:
    """Whether a session skipped certificate verification by resuming; None where unknown."""
    raw: Any = getattr(connection, "_ssl", None)
    if not HAS_BINDING or raw is None:
        return None
    return bool(_lib.SSL_session_reused(raw))


def is_verified(connection: SSL.Connection) -> bool:
    """Whether OpenSSL found nothing wrong with the peer's chain.

    Without the binding this rests on the context's VERIFY_PEER alone, which ends such a handshake.
    """
    raw: Any = getattr(connection, "_ssl", None)
    if not HAS_BINDING or raw is None:
        return True
    return bool(_lib.SSL_get_verify_result(raw) == 0)


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


EVENTS_PER_KEY_UPDATE: Final = 4
"""How often OpenSSL calls the info callback for one."""


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
