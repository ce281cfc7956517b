"""CancelRequests: to the backend that the session is connected to, over verified TLS, without an answer.

A request proves nothing but that its sender knows a key, so it needs no certificate and no
policy, may come in clear (libpq's PQcancel always does), and has a budget of its own.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio
from structlog.typing import FilteringBoundLogger

from pgtlsproxy.errors import BackendUnavailable
from pgtlsproxy.identity import ClientAddress
from pgtlsproxy.observability.logs import RefusalFolder
from pgtlsproxy.protocol.startup import CancelRequest
from pgtlsproxy.proxy.candidates import Candidates
from pgtlsproxy.proxy.dial import dial
from pgtlsproxy.proxy.resolve import Resolver
from pgtlsproxy.proxy.snapshot import BackendSnapshot
from pgtlsproxy.proxy.stages import Accepted, BackendAddress, LoggedIn
from pgtlsproxy.tls.stream import LegLost

CANCEL_SECONDS: Final = 5.0
"""How long a CancelRequest may take to reach the backend and the backend to close."""

IN_FLIGHT: Final = 32
"""CancelRequests with unknown keys that are under way at once; more are dropped."""

SOURCES: Final = 10_000
"""Sources whose requests are counted within a second; beyond, requests with unknown keys are dropped."""


class _Live:
    """A session that can be cancelled."""

    __slots__ = ("address", "backend", "key")

    def __init__(self, key: bytes, backend: BackendSnapshot, address: BackendAddress) -> None:
        self.key = key
        self.backend = backend
        self.address = address


class Cancels:
    """The live sessions' cancel keys, and the budget of requests that name none of them.

    Args:
        logger: told of what is dropped.
        folder: what holds floods of that back.
        resolver: who turns names of backends into addresses.
    """

    def __init__(self, logger: FilteringBoundLogger, folder: RefusalFolder, resolver: Resolver) -> None:
        self._logger = logger
        self._folder = folder
        self._resolver = resolver
        self._live: dict[tuple[str, int], list[_Live]] = {}
        self._slots = trio.CapacityLimiter(IN_FLIGHT)
        self._window = 0.0
        self._counts: dict[str, int] = {}

    @contextmanager
    def registered(self, listener: str, session: LoggedIn) -> Iterator[None]:
        """Let a session be cancelled while the context lasts; leave it before the backend leg closes."""
        if session.cancel_key is None:
            yield
            return
        slot = listener, session.cancel_key.pid
        live = _Live(session.cancel_key.key.reveal(), session.backend, session.backend_address)
        self._live.setdefault(slot, []).append(live)
        try:
            yield
        finally:
            self._live[slot].remove(live)
            if not self._live[slot]:
                del self._live[slot]

    async def forward(self, accepted: Accepted, request: CancelRequest) -> None:
        """Carry a request to its backend and wait until that has taken it. Never fails.

        A key of a session here reaches the address that this session is connected to. An unknown one may
        be another replica's: it goes to the listener's backend, within the budget.
        """
        with trio.move_on_after(CANCEL_SECONDS):
            await self._forward(accepted, request)

    async def _forward(self, accepted: Accepted, request: CancelRequest) -> None:
        key = request.key.reveal()
        sessions = self._live.get((accepted.listener.name, request.pid), [])
        matches = [live for live in sessions if hmac.compare_digest(live.key, key)]
        if len(matches) > 1:
            self._dropped(accepted, "two live sessions have this key: which one is meant cannot be told")
        elif matches:
            await self._send(matches[0].backend, matches[0].address, request)
        else:
            await self._forward_unknown(accepted, request)

    async def _forward_unknown(self, accepted: Accepted, request: CancelRequest) -> None:
        backends = [
            backend
            for backend in accepted.listener.backends.values()
            if backend.settings.cancel_unknown == "forward"
        ]
        if not backends:
            self._dropped(accepted, "no live session has this key (cancel_unknown: drop)")
            return
        if not self._is_within_budget(accepted.address, accepted.snapshot.settings.cancel_rate):
            self._dropped(accepted, "more CancelRequests with unknown keys than cancel_rate allows")
            return
        try:
            self._slots.acquire_on_behalf_of_nowait(request)
        except trio.WouldBlock:
            self._dropped(accepted, "too many CancelRequests with unknown keys are under way")
            return
        try:
            for backend in backends:
                candidates = Candidates(backend.settings, self._resolver)
                while (address := await candidates.next()) is not None:
                    await self._send(backend, address, request)
        finally:
            self._slots.release_on_behalf_of(request)

    async def _send(self, backend: BackendSnapshot, address: BackendAddress, request: CancelRequest) -> None:
        try:
            leg = await dial(address, backend.settings, backend.tls_context)
        except BackendUnavailable as error:
            self._logger.warning("cancel_not_delivered", reason=error.reason)
            return
        try:
            await leg.send(request.encode())
            while await leg.receive(64):
                pass  # a backend answers nothing; its end says that the request was taken
        except LegLost:
            pass
        finally:
            leg.close()

    def _is_within_budget(self, address: ClientAddress, rate: int) -> bool:
        now = trio.current_time()
        if now - self._window >= 1.0:
            self._window, self._counts = now, {}
        source = address.source
        count = self._counts.get(source, 0) + 1
        if source not in self._counts and len(self._counts) >= SOURCES:
            return False
        self._counts[source] = count
        return count <= rate or rate == 0

    def _dropped(self, accepted: Accepted, reason: str) -> None:
        if self._folder.admits("cancel_dropped", accepted.address.source, reason):
            self._logger.info(
                "cancel_dropped",
                listener=accepted.listener.name,
                client_addr=str(accepted.address),
                reason=reason,
            )
