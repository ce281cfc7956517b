"""The configuration: one YAML file, read into frozen settings or into every mistake in it.

A listener speaks postgresql.conf, a backend speaks libpq, so that a DBA knows every key already.
"""

from pgtlsproxy.config.backend import Backend
from pgtlsproxy.config.listener import Listener
from pgtlsproxy.config.loading import load_settings
from pgtlsproxy.config.settings import Log, Settings
from pgtlsproxy.config.values import Host, TCPAddress, UnixAddress

__all__ = ["Backend", "Host", "Listener", "Log", "Settings", "TCPAddress", "UnixAddress", "load_settings"]
