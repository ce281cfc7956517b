"""The configuration: YAML in, frozen settings out. A listener speaks postgresql.conf, a backend libpq."""

from __future__ import annotations

from pgtlsproxy.config.backend import USER_PLACEHOLDER, Backend, HostProbe
from pgtlsproxy.config.listener import ANY_DATABASE, AuthQuery, Listener, RolesQuery
from pgtlsproxy.config.loading import load_settings
from pgtlsproxy.config.settings import MAX_CONNECTIONS, Log, Settings, Status
from pgtlsproxy.config.values import Host, TCPAddress, UnixAddress

__all__ = [
    "ANY_DATABASE",
    "MAX_CONNECTIONS",
    "USER_PLACEHOLDER",
    "AuthQuery",
    "Backend",
    "Host",
    "HostProbe",
    "Listener",
    "Log",
    "RolesQuery",
    "Settings",
    "Status",
    "TCPAddress",
    "UnixAddress",
    "load_settings",
]
