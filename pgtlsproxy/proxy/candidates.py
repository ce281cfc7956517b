"""Which addresses of a backend to try, in libpq's order: every address of every host in turn."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import Final, TypeVar

from pgtlsproxy.config import Backend, Host
from pgtlsproxy.errors import BackendUnavailable
from pgtlsproxy.proxy.resolve import LookUpFailed, Resolver
from pgtlsproxy.proxy.stages import BackendAddress

_T = TypeVar("_T")


PREFER_STANDBY: Final = "prefer-standby"


class Candidates:
    """The addresses of a backend that have not been tried yet, in the order to try them.

    Args:
        backend: whose host list.
        resolver: who turns names into addresses.

    Attributes:
        target_session_attrs: what a host must be like; `any` in the second round of `prefer-standby`.
        failures: why each address that was tried will not do.
    """

    def __init__(self, backend: Backend, resolver: Resolver) -> None:
        self._backend = backend
        self._resolver = resolver
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
        address = await self._next()
        if address is None and self._has_unfit and self.target_session_attrs == PREFER_STANDBY:
            self.target_session_attrs = "any"
            self._start()
            address = await self._next()
        return address

    async def _next(self) -> BackendAddress | None:
        while not self._addresses and self._hosts:
            host = self._hosts.popleft()
            if host.is_unix:
                self._addresses.append(BackendAddress(host.host, host.port, None))
                continue
            try:
                found = [host.hostaddr] if host.hostaddr else await self._resolver.addresses(host.host)
            except LookUpFailed as error:
                self.failures.append(BackendUnavailable(f"{host.host}: {error}"))
                continue
            for ip in _shuffled(found, self._backend.load_balance_hosts):
                address = BackendAddress(host.host or ip, host.port, ip)
                avoided = self._resolver.is_avoided(ip, host.port)
                (self._avoided if avoided else self._addresses).append(address)
        if self._addresses:
            return self._addresses.popleft()
        return self._avoided.popleft() if self._avoided else None

    def unfit(self, error: BackendUnavailable) -> None:
        """Note that a host answered, and is not what target_session_attrs asks for."""
        self._has_unfit = True
        self.failures.append(error)

    def failed(self, error: BackendUnavailable, address: BackendAddress | None = None) -> None:
        """Note why an address will not do; with `address`, that it could not be dialled."""
        self.failures.append(error)
        if address is not None and address.ip is not None:
            self._resolver.failed(address.ip, address.port)

    def exhausted(self, backend: str) -> BackendUnavailable:
        """What to raise when no address is left: of the last failure's kind, naming all of them."""
        if not self.failures:
            return BackendUnavailable(f"backend {backend}: no host to try")
        reasons = "; ".join(error.reason for error in self.failures)
        return type(self.failures[-1])(f"backend {backend}: {reasons}")

    def works(self, address: BackendAddress) -> None:
        """Note that an address answers."""
        if address.ip is not None:
            self._resolver.works(address.ip, address.port)


def _shuffled(items: Sequence[_T], load_balance_hosts: str) -> Sequence[_T]:
    if load_balance_hosts != "random":
        return items
    return random.sample(items, len(items))
