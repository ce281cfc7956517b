"""Which addresses of a backend to try, in libpq's order: every address of every host in turn."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import TypeVar

from pgtlsproxy.config import Backend
from pgtlsproxy.errors import BackendUnavailable
from pgtlsproxy.proxy.resolve import LookUpFailed, Resolver
from pgtlsproxy.proxy.stages import BackendAddress

_T = TypeVar("_T")


class Candidates:
    """The addresses of a backend that have not been tried yet, in the order to try them.

    Args:
        backend: whose host list.
        resolver: who turns names into addresses.

    Attributes:
        failures: why each address that was tried will not do.
    """

    def __init__(self, backend: Backend, resolver: Resolver) -> None:
        self._resolver = resolver
        self._hosts = deque(_shuffled(backend.hosts, backend.load_balance_hosts))
        self._addresses: deque[BackendAddress] = deque()
        self._shuffle = backend.load_balance_hosts
        self._avoided: deque[BackendAddress] = deque()
        self.failures: list[BackendUnavailable] = []

    async def next(self) -> BackendAddress | None:
        """The next address; None when there is none left."""
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
            for ip in _shuffled(found, self._shuffle):
                address = BackendAddress(host.host or ip, host.port, ip)
                avoided = self._resolver.is_avoided(ip, host.port)
                (self._avoided if avoided else self._addresses).append(address)
        if self._addresses:
            return self._addresses.popleft()
        return self._avoided.popleft() if self._avoided else None

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
