"""Which addresses of a backend to try, in libpq's order: every address of every host in turn."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import Protocol, TypeVar

from pgtlsproxy.config import Backend, Host
from pgtlsproxy.errors import BackendUnavailable
from pgtlsproxy.proxy.resolve import LookUpFailed, Resolver
from pgtlsproxy.proxy.session_attributes import ANY, PREFER_STANDBY, WrongSessionAttributes
from pgtlsproxy.proxy.stages import BackendAddress

_T = TypeVar("_T")


class Probes(Protocol):
    """What is known of the hosts before a session is led to one."""

    async def problem(self, address: BackendAddress, wanted: str) -> BackendUnavailable | None:
        """Why an address is not to be dialled; None where it is."""

    def forget(self) -> None:
        """Believe nothing of it any more."""

    def doubt(self) -> None:
        """Believe it no longer than a moment: no host will do."""


class Candidates:
    """The addresses of a backend that have not been tried yet, in the order to try them.

    Args:
        backend: whose host list.
        resolver: who turns names into addresses.
        probes: what is known of the hosts; None where each is judged by the session's own login.

    Attributes:
        target_session_attrs: what a host must be like; `any` in the second round of `prefer-standby`.
        failures: why each address that was tried will not do.
    """

    def __init__(self, backend: Backend, resolver: Resolver, probes: Probes | None = None) -> None:
        self._backend = backend
        self._resolver = resolver
        self._probes = probes
        self._hosts: deque[Host] = deque()
        self._addresses: deque[BackendAddress] = deque()
        self._avoided: deque[BackendAddress] = deque()
        self._has_unfit = False
        self.target_session_attrs: str = backend.target_session_attrs
        self.failures: list[BackendUnavailable] = []
        self._start()

    def _start(self) -> None:
        self._hosts.extend(_shuffled(self._backend.hosts, self._backend.load_balance_hosts))

    async def next(self) -> BackendAddress | None:
        """The next address; None when there is none left.

        With `prefer-standby`, where no host is a standby, all are tried again and any will do, as libpq
        does (PQconnectPoll, src/interfaces/libpq/fe-connect.c). Where none has answered, libpq too would
        begin again, and we do not.
        """
        address = await self._next_fit()
        if address is None and self._has_unfit and self.target_session_attrs == PREFER_STANDBY:
            self.target_session_attrs = ANY
            self._start()
            address = await self._next_fit()
        return address

    async def _next_fit(self) -> BackendAddress | None:
        """The next address that is not known to be of no use."""
        while (address := await self._next()) is not None:
            if self._probes is None:
                return address
            problem = await self._probes.problem(address, self.target_session_attrs)
            if problem is None:
                return address
            self._has_unfit = self._has_unfit or isinstance(problem, WrongSessionAttributes)
            self.failures.append(problem)
        return None

    async def _next(self) -> BackendAddress | None:
        while not self._addresses and self._hosts:
            host = self._hosts.popleft()
            try:
                found = await addresses_of(host, self._resolver)
            except LookUpFailed as error:
                self.failures.append(BackendUnavailable(f"{host.host}: {error}"))
                continue
            for address in _shuffled(found, self._backend.load_balance_hosts):
                avoided = address.ip is not None and self._resolver.is_avoided(address.ip, address.port)
                (self._avoided if avoided else self._addresses).append(address)
        if self._addresses:
            return self._addresses.popleft()
        return self._avoided.popleft() if self._avoided else None

    def unfit(self, error: WrongSessionAttributes) -> None:
        """Note that a host answered, and is not what target_session_attrs asks for.

        Raises:
            WrongSessionAttributes: it was when it was probed, and there is no other for this session: the
                client has spent its proof on that host.
        """
        if self._probes is not None:
            self._probes.forget()
            raise WrongSessionAttributes(
                f"{error.reason}; it has changed since host_probe asked it, and the client, which has proved "
                "itself to it, cannot be led to another host"
            )
        self._has_unfit = True
        self.failures.append(error)

    def failed(self, error: BackendUnavailable, address: BackendAddress | None = None) -> None:
        """Note why an address will not do; with `address`, that it could not be dialled.

        What was known of the hosts is forgotten then: where one is lost another takes its part.
        """
        self.failures.append(error)
        if address is None:
            return
        if self._probes is not None:
            self._probes.forget()
        if address.ip is not None:
            self._resolver.failed(address.ip, address.port)

    def exhausted(self, backend: str) -> BackendUnavailable:
        """What to raise when no address is left: of the last failure's kind, naming all of them."""
        if self._probes is not None:
            self._probes.doubt()
        if not self.failures:
            return BackendUnavailable(f"backend {backend}: no host to try")
        reasons = "; ".join(error.reason for error in self.failures)
        return type(self.failures[-1])(f"backend {backend}: {reasons}")

    def works(self, address: BackendAddress) -> None:
        """Note that an address answers."""
        if address.ip is not None:
            self._resolver.works(address.ip, address.port)


async def addresses_of(host: Host, resolver: Resolver) -> Sequence[BackendAddress]:
    """Every address of a host, in the resolver's order.

    Args:
        host: of a backend's list.
        resolver: who turns names into addresses.

    Raises:
        LookUpFailed: its name has none.
    """
    if host.is_unix:
        return [BackendAddress(host.host, host.port, None)]
    found = [host.hostaddr] if host.hostaddr else await resolver.addresses(host.host)
    return [BackendAddress(host.host or ip, host.port, ip) for ip in found]


def _shuffled(items: Sequence[_T], load_balance_hosts: str) -> Sequence[_T]:
    if load_balance_hosts != "random":
        return items
    return random.sample(items, len(items))
