"""Between two supervisors when one takes the other's place: what is handed over, and who serves from when on.

The two may be of different versions. What they have in common is this page: the framing of `channel`, plain
dictionaries in it, and the answers Serving and Built. A newer version reads what an older one says.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pgtlsproxy.errors import ConfigError, Mistake
from pgtlsproxy.proxy.activation import PassedSocket, passed_sockets
from pgtlsproxy.proxy.channel import Answers, ChannelEnded, Orders, pack
from pgtlsproxy.proxy.orders import Built, Descriptor, Serving
from pgtlsproxy.proxy.service_manager import Contact, contact
from pgtlsproxy.proxy.sockets import ListeningSocket
from pgtlsproxy.proxy.unix_sockets import UnixFiles
from pgtlsproxy.proxy.worker_process import start_successor

VARIABLE: Final = "PGTLSPROXY_PREDECESSOR"
"""Names the descriptor of the socket to the one before."""

OFFER_SECONDS: Final = 10.0
"""How long its offer may take."""

Named = tuple[str, ListeningSocket]


# --- The one that goes ----------------------------------------------------------------------------------


class Successor:
    """A process that is to take our place.

    Args:
        offered: (listener name, socket) pairs.
        contact: how the service manager is told something.

    Attributes:
        orders: the socket pair to it.
        serves: whether it does.
        mistakes: what it has found wrong with the configuration.

    Raises:
        OSError: the system grants no more processes or descriptors.
    """

    def __init__(self, offered: Iterable[Named], contact: Contact) -> None:
        self.serves = False
        self.mistakes: list[Mistake] = []
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                environment = {**os.environ, **contact.environment(), VARIABLE: str(theirs.fileno())}
                self._process = start_successor(environment, theirs.fileno())
            except BaseException:
                ours.close()
                raise
        self.orders = Orders(ours)
        self.orders.send(pack({"sockets": [_described(name, each) for name, each in offered]}))

    @property
    def pid(self) -> int:
        """Its process number."""
        return self._process.pid

    def hear(self) -> None:
        """Note what it says.

        Raises:
            ChannelEnded: it will say no more.
        """
        for answer in self.orders.receive():
            match answer:
                case Serving():
                    self.serves = True
                case Built():
                    self.mistakes = [Mistake(where, what) for where, what in answer.mistakes]

    def go(self) -> None:
        """Tell it that we listen no more."""
        self.orders.send(pack({"go": True}))

    def status(self) -> int | None:
        """Its exit status, or minus the signal that ended it; None while it lives."""
        return self._process.poll()

    def end(self) -> int:
        """Have it end by force. Returns what `status` says then."""
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(1.0)
        return 0

    def close(self) -> None:
        """Say no more to it."""
        self.orders.close()


def _described(name: str, opened: ListeningSocket) -> dict[str, Any]:
    files = opened.files
    return {
        "name": name,
        "socket": opened.sock,
        "shown": opened.shown,
        "configured": opened.configured,
        "is_passed": opened.is_passed,
        "files": None if files is None else (str(files.path), files.inode, Descriptor(files.lock)),
    }


# --- The one that comes ---------------------------------------------------------------------------------


@dataclass(slots=True)
class Predecessor:
    """The process whose place we are to take.

    Args:
        sock: to it.
        sockets: what it listens on, and for whom.
    """

    sock: socket.socket
    sockets: list[Named] = field(default_factory=list)

    @property
    def passed(self) -> list[PassedSocket]:
        """Those of the service manager."""
        return [PassedSocket(name, opened) for name, opened in self.sockets if opened.is_passed]

    @property
    def own(self) -> list[Named]:
        """Those that it has opened itself."""
        return [(name, opened) for name, opened in self.sockets if not opened.is_passed]

    def say_serving(self) -> None:
        """Tell it that we serve; it listens no more then, and says so."""
        self._say(Serving())

    def say_failed(self, mistakes: Sequence[Mistake]) -> None:
        """Tell it what is wrong with the configuration; it goes on."""
        pairs = [(mistake.where, mistake.what) for mistake in mistakes]
        self._say(Built(0, 0, is_usable=False, mistakes=pairs))

    def _say(self, answer: Serving | Built) -> None:
        with suppress(OSError):  # it is gone, which `hear` notices
            Answers(self.sock).send(answer)

    def hear(self) -> bool:
        """Wait for what it says. Returns whether it listens no more, and False where it is gone."""
        try:
            Answers(self.sock).receive()
        except ChannelEnded:
            return False
        return True


def predecessor() -> Predecessor | None:
    """The one that has started us to take its place; None where we were started by somebody else.

    Raises:
        ConfigError: it offers nothing.
    """
    descriptor = os.environ.pop(VARIABLE, None)
    if descriptor is None:
        return None
    with ExitStack() as stack:
        try:
            sock = stack.enter_context(socket.socket(fileno=int(descriptor)))
            sock.set_inheritable(False)
            sock.settimeout(OFFER_SECONDS)
            offer: Any = Answers(sock).receive()
            sock.settimeout(None)
        except (OSError, ValueError, ChannelEnded) as error:
            what = f"{VARIABLE} names no socket on which listening ones are handed over ({error})"
            raise ConfigError([Mistake("the environment", what)]) from None
        stack.pop_all()
    return Predecessor(sock, [_taken(each) for each in offer["sockets"]])


def _taken(described: dict[str, Any]) -> Named:
    files = None
    if described["files"] is not None:
        path, inode, lock = described["files"]
        files = UnixFiles(Path(path), tuple(inode), lock.number)
    opened = ListeningSocket(
        described["socket"],
        described["shown"],
        described["configured"],
        files,
        is_passed=described["is_passed"],
        is_lent=True,
    )
    return described["name"], opened


# --- What a process begins with ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Given:
    """What whoever has started us has given us.

    Args:
        sockets: that listen already.
        contact: how it is told how we are.
        predecessor: the process whose place we are to take; None where there is none.
    """

    sockets: list[PassedSocket]
    contact: Contact
    predecessor: Predecessor | None


def take_what_is_given() -> Given:
    """Take it out of the environment, before anything is opened and any process is started.

    Raises:
        ConfigError: what was passed are no sockets that listen.
    """
    before = predecessor()
    return Given(passed_sockets() + (before.passed if before else []), contact(), before)
