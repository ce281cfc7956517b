"""The host names of clients, for lines of pg_hba.conf with a name in the address column.

Who owns an address writes the answers to the question for its name, or lets it hang. So a look-up has few
seconds and a thread of its own, no network has many of them, and what is not known in time is unknown.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from pgtlsproxy.identity import IPAddress
from pgtlsproxy.policy.request import ClientHost, Unknown

KEEP_SECONDS: Final = 10.0
"""How long an answer is kept."""

KEEP_UNKNOWN_SECONDS: Final = 1.0
"""How long it is kept that there is none."""

REMEMBERED: Final = 1024
"""Of how many addresses at most; the oldest are forgotten first."""

LOOKUP_SECONDS: Final = 3.0
"""How long is waited, for the name and for the addresses that it has."""

LOOKUPS: Final = 64
"""Look-ups under way at once. One that hangs keeps its thread."""

LOOKUPS_OF_A_SOURCE: Final = 4
"""How many of them may be for one IPv4 /24 or IPv6 /48, whose names are usually one owner's to answer for."""

_NO_SUCH_NAME: Final = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})

LookUp = Callable[[IPAddress], ClientHost | Unknown]


@dataclass(slots=True)
class _Known:
    """What is known of an address.

    Attributes:
        over: set when the look-up is over, and one of the others is there.
        answer: what came of it.
        bug: what went wrong with us.
        until: until when that is believed, by the monotonic clock.
    """

    over: trio.Event = field(default_factory=trio.Event)
    answer: ClientHost | Unknown | None = None
    bug: Exception | None = None
    until: float = 0.0


class ClientHosts:
    """Looks names up and remembers them; one a process.

    Args:
        look_up: finds a name, in a thread.
    """

    def __init__(self, look_up: LookUp | None = None) -> None:
        self._look_up = look_up or find_host
        self._known: OrderedDict[IPAddress, _Known] = OrderedDict()
        self._threads = trio.CapacityLimiter(LOOKUPS)
        self._by_source: Counter[tuple[int, int]] = Counter()
        self._lock = threading.Lock()

    async def of(self, ip: IPAddress) -> ClientHost | Unknown:
        """The host name of a client. Waits for a look-up that is under way for another session.

        Cancellation: the look-up goes on for those who wait for it too.
        """
        known = self._known.get(ip)
        if known is None or (known.over.is_set() and time.monotonic() >= known.until):
            source = _source(ip)
            if not self._has_room(source):
                return Unknown("too many look-ups of clients' names are under way")
            known = self._known[ip] = _Known()
            self._known.move_to_end(ip)
            trio.lowlevel.spawn_system_task(self._find, ip, source, known)
            self._forget()
        await known.over.wait()
        if known.bug is not None:
            raise known.bug
        assert known.answer is not None  # noqa: S101 - it is over
        return known.answer

    def _has_room(self, source: tuple[int, int]) -> bool:
        """Whether another thread may be had, and count it if so."""
        with self._lock:
            if self._by_source[source] >= LOOKUPS_OF_A_SOURCE or self._by_source.total() >= LOOKUPS:
                return False
            self._by_source[source] += 1
            return True

    def _forget(self) -> None:
        for ip, known in tuple(self._known.items()):
            if len(self._known) <= REMEMBERED:
                break
            if known.over.is_set():
                del self._known[ip]

    async def _find(self, ip: IPAddress, source: tuple[int, int], known: _Known) -> None:
        """Look a name up in a task of nobody's, so that no waiter's end ends it."""
        answer: ClientHost | Unknown = Unknown(f"the look-up took longer than {LOOKUP_SECONDS:g} s")
        try:
            with trio.move_on_after(LOOKUP_SECONDS):
                answer = await trio.to_thread.run_sync(
                    self._in_thread, ip, source, abandon_on_cancel=True, limiter=self._threads
                )
        except Exception as error:  # noqa: BLE001 - what a system task raises would end the process
            known.bug = error
        known.answer = answer
        keep = KEEP_SECONDS if isinstance(answer, ClientHost) else KEEP_UNKNOWN_SECONDS
        known.until = time.monotonic() + keep
        known.over.set()

    def _in_thread(self, ip: IPAddress, source: tuple[int, int]) -> ClientHost | Unknown:
        try:
            return self._look_up(ip)
        finally:
            with self._lock:
                self._by_source[source] -= 1
                if not self._by_source[source]:
                    del self._by_source[source]


def _source(ip: IPAddress) -> tuple[int, int]:
    """Whose answers a look-up waits for."""
    return ip.version, int(ip) >> (ip.max_prefixlen - (24 if ip.version == 4 else 48))


def find_host(ip: IPAddress) -> ClientHost | Unknown:
    """Ask for an address's name, and whether the name has the address: PostgreSQL's `check_hostname`."""
    try:
        name, _ = socket.getnameinfo((str(ip), 0), socket.NI_NAMEREQD)
    except socket.gaierror as error:
        if error.errno in _NO_SUCH_NAME:
            return ClientHost(None, is_confirmed=False)
        return Unknown(error.strerror or str(error))
    try:
        found = socket.getaddrinfo(os.fsencode(name), None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in _NO_SUCH_NAME:
            return ClientHost(name, is_confirmed=False)
        return ClientHost(name, Unknown(error.strerror or str(error)))
    addresses = {ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found}
    return ClientHost(name, is_confirmed=ipaddress.ip_address(str(ip).partition("%")[0]) in addresses)
