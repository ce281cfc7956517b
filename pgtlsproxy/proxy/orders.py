"""What the supervisor says to a worker, and what a worker answers: values, which `channel` carries."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass

from pgtlsproxy.config import Log
from pgtlsproxy.identity import Secret
from pgtlsproxy.proxy.files import SnapshotFiles

# --- What the supervisor says ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A descriptor that goes along; the receiver has one of its own for the same open file."""

    number: int


@dataclass(frozen=True, slots=True)
class Logging:
    """How a process logs.

    Args:
        log: what the log looks like.
        lock: an open file whose lock keeps the lines of several processes apart.
        worker: the number of the worker; None for another process.
    """

    log: Log
    lock: Descriptor
    worker: int | None = None


@dataclass(frozen=True, slots=True)
class Welcome:
    """The first message.

    Args:
        number: of the worker, from 1.
        logging: how it logs.
        table: the shared table.
        slots: how many workers it has room for.
        secret: the key of the table's digests.
        inbox: where other workers' messages come in.
        mailboxes: where messages to each worker go, by number from 1.
        tally: where sessions are counted.
        listeners: whose sessions, in the order in which they stand there.
    """

    number: int
    logging: Logging
    table: Descriptor
    slots: int
    secret: Secret
    inbox: socket.socket
    mailboxes: tuple[socket.socket, ...]
    tally: Descriptor
    listeners: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FileSet:
    """What the files said when a generation was made of them.

    Args:
        generation: its number.
        files: what they said.
        read_under: the generation whose settings named them: its own, unless its YAML file is broken.
    """

    generation: int
    files: SnapshotFiles
    read_under: int


@dataclass(frozen=True, slots=True)
class Build:
    """Make a snapshot, and answer `Built`.

    Args:
        generation: its number.
        attempt: tells it from another try at the same generation, whose answer may come late.
        sets: what to make it of, one after the other.
        beside: beside the one in service, rather than from nothing.
    """

    generation: int
    attempt: int
    sets: tuple[FileSet, ...]
    beside: bool


@dataclass(frozen=True, slots=True)
class Swap:
    """Take the snapshot that was built last into service, and answer `Swapped`."""

    generation: int


@dataclass(frozen=True, slots=True)
class Serve:
    """Accept, and answer `Serving`.

    Args:
        listening: (listener name, socket) pairs.
    """

    listening: tuple[tuple[str, socket.socket], ...]


@dataclass(frozen=True, slots=True)
class Drain:
    """Accept no more, let nobody in any more, and end with the last session.

    Args:
        seconds: how long transactions may go on; sessions that are idle, logins and dials end at once. None
            to let everybody be who is there, for the proxy goes on.
    """

    seconds: float | None


@dataclass(frozen=True, slots=True)
class Ping:
    """Answer `Pong` when the event loop and the relay's thread have both had a turn."""


@dataclass(frozen=True, slots=True)
class Cease:
    """Accept no more; whoever has been accepted is let in."""


Order = Welcome | Build | Swap | Serve | Cease | Drain | Ping


# --- What a worker answers ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Built:
    """What came of `Build`.

    Args:
        generation: of the order.
        attempt: of the order.
        is_usable: whether there is a snapshot to swap in.
        mistakes: (where, what) pairs: what could not be taken.
        warnings: the same: what deserves a look.
        kept: the units that keep their old content.
        in_use: the generations of the file sets that something in the snapshot was made of.
        not_after: (owner, name, Unix time) of what runs out.
        lifetimes: the fields of a `Lifetime` for each certificate and list.
    """

    generation: int
    attempt: int
    is_usable: bool
    mistakes: Sequence[tuple[str, str]] = ()
    warnings: Sequence[tuple[str, str]] = ()
    kept: Sequence[str] = ()
    in_use: Sequence[int] = ()
    not_after: Sequence[tuple[str, str, float]] = ()
    lifetimes: Sequence[tuple[str, str, str, float, float, float]] = ()


@dataclass(frozen=True, slots=True)
class Swapped:
    """The generation is in service."""

    generation: int


@dataclass(frozen=True, slots=True)
class Serving:
    """The worker accepts."""


@dataclass(frozen=True, slots=True)
class Pong:
    """The process is alive: a worker, or the one that serves metrics, which answers nothing else."""


Answer = Built | Swapped | Serving | Pong
