"""What the supervisor says to the process that serves metrics, which answers only that it lives."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field

from pgtlsproxy.config import Status
from pgtlsproxy.observability.figures import Service
from pgtlsproxy.proxy.files import SnapshotFiles
from pgtlsproxy.proxy.orders import Descriptor, Logging


@dataclass(frozen=True, slots=True)
class StatusWelcome:
    """The first message.

    Args:
        version: of the proxy.
        started_at: Unix time.
        logging: how it logs.
        rows: how many rows the tally has.
        tally: where the workers count sessions; can be read only.
        listeners: whose sessions, in the order in which they stand there.
        listening: the sockets to accept from.
    """

    version: str
    started_at: float
    logging: Logging
    rows: int
    tally: Descriptor
    listeners: tuple[str, ...]
    listening: tuple[socket.socket, ...]


@dataclass(frozen=True, slots=True)
class StatusNews:
    """What there is to say from now on.

    Args:
        service: what is in service.
        status: the settings.
        files: the settings and the files that they name, and no other; what they make, one after the other,
            is served. None where it is as before.
    """

    service: Service
    status: Status
    files: tuple[tuple[Status, SnapshotFiles], ...] | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class StatusPing:
    """Answer `Pong`."""
