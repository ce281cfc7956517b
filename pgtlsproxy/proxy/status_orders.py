"""What the supervisor says to the process that serves metrics, which answers nothing."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field

from pgtlsproxy.config import Log, Status
from pgtlsproxy.observability.figures import Service
from pgtlsproxy.proxy.channel import Descriptor
from pgtlsproxy.proxy.files import SnapshotFiles


@dataclass(frozen=True, slots=True)
class StatusWelcome:
    """The first message.

    Args:
        version: of the proxy.
        started_at: Unix time.
        log: what the log looks like.
        lock: an open file whose lock keeps the lines of several processes apart.
        rows: how many rows the tally has.
        tally: where the workers count sessions.
        listeners: whose sessions, in the order in which they stand there.
        listening: the sockets to accept from.
    """

    version: str
    started_at: float
    log: Log
    lock: Descriptor
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
        files: those that they name, and no other; None where they are as before.
    """

    service: Service
    status: Status
    files: SnapshotFiles | None = field(repr=False)
