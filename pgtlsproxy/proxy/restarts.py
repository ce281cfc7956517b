"""What of a configuration cannot be taken into service before the next start."""

from __future__ import annotations

from pgtlsproxy.config import Settings, TCPAddress
from pgtlsproxy.errors import Mistake


def restart_warnings(path: str, old: Settings, new: Settings) -> list[Mistake]:
    """What has changed and takes effect at the next start only."""
    what = "changed; this takes effect at the next start"
    warnings = [
        Mistake(f"{path}: listeners.{name}", "is new; it is listened on from the next start on")
        for name in new.listeners.keys() - old.listeners.keys()
    ]
    warnings += [
        Mistake(
            f"{path}: listeners.{name}",
            "was removed; its clients are refused, and its address is free at the next start",
        )
        for name in old.listeners.keys() - new.listeners.keys()
    ]
    for name in old.listeners.keys() & new.listeners.keys():
        warnings += [
            Mistake(f"{path}: listeners.{name}.{key}", what)
            for key in ("listen", "unix_socket_permissions", "unix_socket_group")
            if getattr(old.listeners[name], key) != getattr(new.listeners[name], key)
        ]
    warnings += [
        Mistake(f"{path}: {key}", what)
        for key in ("log", "reuse_port", "workers")
        if getattr(old, key) != getattr(new, key)
    ]
    if _status_address(old) != _status_address(new):
        warnings.append(Mistake(f"{path}: status.listen", what))
    return warnings


def _status_address(settings: Settings) -> TCPAddress | None:
    return None if settings.status is None else settings.status.listen
