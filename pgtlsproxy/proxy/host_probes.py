"""What the hosts of a backend are like, found out with a login of the proxy's own: `host_probe`.

A host shows what it is behind AuthenticationOk, when a client of `login: passthrough` has spent its proof on
it. So the hosts are asked beforehand: when a session needs to know, and what is known is older than the
probe's interval; each by one task for all sessions that wait, and all at the same time. Each configuration
begins with nothing.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import trio
from structlog.typing import FilteringBoundLogger

from pgtlsproxy.config import Host, HostProbe
from pgtlsproxy.errors import BackendUnavailable
from pgtlsproxy.protocol.query import TERMINATE
from pgtlsproxy.proxy.candidates import addresses_of
from pgtlsproxy.proxy.dial import OwnCertificateRefused, dial, send_to_backend
from pgtlsproxy.proxy.own_login import log_in_as, password_at
from pgtlsproxy.proxy.resolve import LookUpFailed, Resolver
from pgtlsproxy.proxy.session_attributes import ANY, WrongSessionAttributes, wrong_attributes
from pgtlsproxy.proxy.snapshot import BackendSnapshot
from pgtlsproxy.proxy.stages import BackendAddress

SNAPSHOTS: Final = 2
"""Of how many configurations a backend's answers are kept: the one in service, and the one before."""

REMEMBERED: Final = 256
"""How many addresses of a backend are remembered; the least recently used goes first."""

DOUBTED_SECONDS: Final = 1.0
"""How long it is believed at least that no host will do."""

_SESSION: Final = (("application_name", "pgtlsproxy host_probe"),)

Ask = Callable[[BackendSnapshot, HostProbe, BackendAddress], Awaitable[Mapping[str, str]]]


@dataclass(slots=True)
class _Known:
    """What is known of one address.

    Attributes:
        parameters: what it reported when it was asked last.
        failure: why it did not; None where it did.
        asked_at: when it was asked, by the monotonic clock.
        under_way: set when the asking that is under way is over; None where there is none.
    """

    parameters: Mapping[str, str] = field(default_factory=dict)
    failure: BackendUnavailable | None = None
    asked_at: float = float("-inf")
    under_way: trio.Event | None = None

    def is_older_than(self, seconds: float) -> bool:
        return time.monotonic() - self.asked_at >= seconds


class BackendProbes:
    """What the hosts of one backend are like, as one configuration has it.

    Args:
        backend: whose hosts.
        probe: how they are asked.
        resolver: their names to addresses.
        logger: told of bugs of ours.
        ask: gives what an address reports at login; raises BackendUnavailable.
    """

    def __init__(
        self,
        backend: BackendSnapshot,
        probe: HostProbe,
        resolver: Resolver,
        logger: FilteringBoundLogger,
        ask: Ask,
    ) -> None:
        self.backend = backend
        self._probe = probe
        self._resolver = resolver
        self._logger = logger
        self._ask = ask
        self._known: OrderedDict[BackendAddress, _Known] = OrderedDict()
        self._looked_up: set[Host] = set()

    async def problem(self, address: BackendAddress, wanted: str) -> BackendUnavailable | None:
        """Why an address is not to be dialled; None where it is.

        Args:
            address: of a host of the backend.
            wanted: a value of target_session_attrs; with `any` whatever lets the probe in will do.

        Cancellation: the asking goes on for those who wait for it too.
        """
        known = self._of(address)
        if known.is_older_than(self._probe.interval):
            asking = self._start(address, known) if known.under_way is None else known.under_way
            self._ask_the_others()
            await asking.wait()
        if known.failure is not None or wanted == ANY:
            return known.failure
        what = wrong_attributes(wanted, known.parameters)
        return None if what is None else WrongSessionAttributes(f"{address}: host_probe: {what}")

    def forget(self) -> None:
        """Ask anew of all hosts: one was found to have changed, and hosts exchange their roles."""
        self._known.clear()

    def doubt(self) -> None:
        """Ask anew of all hosts that were not asked just now: none of them will do, and one may by then."""
        for address, known in list(self._known.items()):
            if known.under_way is None and known.is_older_than(DOUBTED_SECONDS):
                del self._known[address]

    def _of(self, address: BackendAddress) -> _Known:
        known = self._known.setdefault(address, _Known())
        self._known.move_to_end(address)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return known

    def _start(self, address: BackendAddress, known: _Known) -> trio.Event:
        known.under_way = trio.Event()
        trio.lowlevel.spawn_system_task(self._find_out, address, known, known.under_way)
        return known.under_way

    def _ask_the_others(self) -> None:
        """Have every host asked at the same time, so that two that hang cost no more than one."""
        for host in self.backend.settings.hosts:
            if host not in self._looked_up:
                self._looked_up.add(host)
                trio.lowlevel.spawn_system_task(self._ask_host, host)

    async def _ask_host(self, host: Host) -> None:
        try:
            for address in await addresses_of(host, self._resolver):
                known = self._of(address)
                # A little early rather than one by one: all are as old as each other from then on.
                if known.under_way is None and known.is_older_than(self._probe.interval / 2):
                    self._start(address, known)
        except LookUpFailed:
            pass  # the session looks it up itself, and says what is wrong
        except Exception as error:
            self._logger.error("bug", exc_info=error)
        finally:
            self._looked_up.discard(host)

    async def _find_out(self, address: BackendAddress, known: _Known, over: trio.Event) -> None:
        """Ask in a task of nobody's, so that no waiter's end ends it."""
        begin = time.monotonic()
        parameters: Mapping[str, str] = {}
        silent = f"{address}: host_probe: no answer within {self._probe.timeout:g} s"
        failure: BackendUnavailable | None = BackendUnavailable(silent)
        try:
            with trio.move_on_after(self._probe.timeout):
                parameters = await self._ask(self.backend, self._probe, address)
                failure = None
        except BackendUnavailable as error:
            failure = error
        except Exception as error:
            self._logger.error("bug", exc_info=error)
            failure = BackendUnavailable(f"{address}: host_probe: a bug of ours: see the event `bug`")
            begin = float("-inf")  # nothing is known, and the next session asks anew
        known.parameters, known.failure, known.asked_at = parameters, failure, begin
        known.under_way = None
        over.set()


async def ask_address(
    backend: BackendSnapshot, probe: HostProbe, address: BackendAddress
) -> Mapping[str, str]:
    """Log in at an address, and give what the server reports there.

    Args:
        backend: whose address it is.
        probe: as whom.
        address: where.

    Raises:
        BackendUnavailable: it does not let us in; the reason names the address.
    """
    settings = backend.settings
    leg = await dial(address, settings, await backend.context_for(probe.user))
    try:
        password = password_at(address, backend.passwords.probe, probe.dbname, probe.user)
        logged_in = await log_in_as(leg, settings, probe.user, probe.dbname, password, _SESSION)
        await send_to_backend(leg, TERMINATE)
    except OwnCertificateRefused as error:
        raise error.at(address, settings) from None
    except BackendUnavailable as error:
        raise type(error)(f"{address}: host_probe: {error.reason}") from None
    finally:
        leg.close()
    return logged_in.parameters


class HostProbes:
    """What is known of the hosts of each backend; one a process.

    Args:
        resolver: names of hosts to addresses.
        logger: told of bugs of ours.
        ask: gives what an address reports at login; raises BackendUnavailable.
    """

    def __init__(self, resolver: Resolver, logger: FilteringBoundLogger, ask: Ask = ask_address) -> None:
        self._resolver = resolver
        self._logger = logger
        self._ask = ask
        self._kept: dict[str, OrderedDict[int, BackendProbes]] = {}

    def of(self, backend: BackendSnapshot) -> BackendProbes | None:
        """What is known of a backend's hosts; None where nobody asks.

        Args:
            backend: as it is in the configuration of the session.
        """
        probe = backend.settings.host_probe
        if probe is None:
            return None
        kept = self._kept.setdefault(backend.name, OrderedDict())
        key = id(backend)  # which nobody else has for as long as it is kept
        if key not in kept:
            kept[key] = BackendProbes(backend, probe, self._resolver, self._logger, self._ask)
        kept.move_to_end(key)
        if len(kept) > SNAPSHOTS:
            kept.popitem(last=False)
        return kept[key]
