"""CancelRequests: to the backend that the session is connected to, over verified TLS, without an answer.

A request proves nothing but that its sender knows a key, so it needs no certificate and no
policy, may come in clear (libpq's PQcancel always does), and has a budget of its own.

Any worker may get it. The shared table tells which has the session, and that one sends it on.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio
from structlog.typing import FilteringBoundLogger

from pgtlsproxy.errors import BackendUnavailable
from pgtlsproxy.observability.logs import RefusalFolder
from pgtlsproxy.protocol.startup import CancelRequest
from pgtlsproxy.proxy.candidates import Candidates
from pgtlsproxy.proxy.dial import dial
from pgtlsproxy.proxy.mailboxes import Mailboxes, Routed
from pgtlsproxy.proxy.resolve import Resolver
from pgtlsproxy.proxy.shared_table import WorkerSlot
from pgtlsproxy.proxy.snapshot import BackendSnapshot, ListenerSnapshot
from pgtlsproxy.proxy.stages import Accepted, BackendAddress, LoggedIn
from pgtlsproxy.tls.stream import LegLost

CANCEL_SECONDS: Final = 5.0
"""How long a CancelRequest may take to reach the backend and the backend to close."""

IN_FLIGHT: Final = 32
"""CancelRequests with unknown keys that are under way at once, over all workers; more are dropped."""


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
        slot: what this worker and the others know of each other.
        mailboxes: the way to the others.
    """

    def __init__(
        self,
        logger: FilteringBoundLogger,
        folder: RefusalFolder,
        resolver: Resolver,
        slot: WorkerSlot,
        mailboxes: Mailboxes,
    ) -> None:
        self._logger = logger
        self._folder = folder
        self._resolver = resolver
        self._live: dict[tuple[str, int], list[_Live]] = {}
        self._slot = slot
        self._mailboxes = mailboxes

    @contextmanager
    def registered(self, listener: str, session: LoggedIn) -> Iterator[None]:
        """Let a session be cancelled while the context lasts; leave it before the backend leg closes."""
        if session.cancel_key is None:
            yield
            return
        name = listener, session.cancel_key.pid
        live = _Live(session.cancel_key.key.reveal(), session.backend, session.backend_address)
        self._live.setdefault(name, []).append(live)
        try:
            with self._slot.published(self._slot.tag(*name, live.key)):
                yield
        finally:
            self._live[name].remove(live)
            if not self._live[name]:
                del self._live[name]

    async def forward(self, accepted: Accepted, request: CancelRequest) -> None:
        """Carry a request to its backend and wait until that has taken it. Never fails.

        A key of a session here reaches the address that this session is connected to. An unknown one may
        be another replica's: it goes to the listener's backends in turn, within the budget.
        """
        with trio.move_on_after(CANCEL_SECONDS):
            await self._forward(accepted, request)

    async def _forward(self, accepted: Accepted, request: CancelRequest) -> None:
        listener = accepted.listener.name
        here = self._sessions(listener, request)
        holders = self._slot.holders(self._slot.tag(listener, request.pid, request.key.reveal()))
        if len(here) + len(holders) > 1:
            self._dropped(accepted, "two live sessions have this key: which one is meant cannot be told")
        elif here:
            await self._send(here[0].backend, here[0].address, request)
        elif not holders or not await self._mailboxes.ask(
            holders[0], Routed(listener, request.pid, request.key)
        ):
            await self._forward_unknown(accepted, request)

    def _sessions(self, listener: str, request: CancelRequest) -> list[_Live]:
        """The sessions of this worker with this key."""
        key = request.key.reveal()
        sessions = self._live.get((listener, request.pid), [])
        return [live for live in sessions if hmac.compare_digest(live.key, key)]

    async def take(self, routed: Routed) -> bool:
        """Carry what another worker got. Returns whether its session is here."""
        request = CancelRequest(routed.pid, routed.key)
        sessions = self._sessions(routed.listener, request)
        if len(sessions) != 1:
            return False
        with trio.move_on_after(CANCEL_SECONDS):
            await self._send(sessions[0].backend, sessions[0].address, request)
        return True

    async def _forward_unknown(self, accepted: Accepted, request: CancelRequest) -> None:
        backends = _take_unknown(accepted.listener)
        if not backends:
            self._dropped(accepted, "no live session has this key (cancel_unknown: drop)")
            return
        rate = accepted.snapshot.settings.cancel_rate
        if self._slot.count_unknown(accepted.address.source) > rate > 0:
            self._dropped(accepted, "more CancelRequests with unknown keys than cancel_rate allows")
            return
        with self._slot.forwarding() as under_way:
            if under_way > IN_FLIGHT:
                self._dropped(accepted, "too many CancelRequests with unknown keys are under way")
                return
            for backend in backends:
                # One that does not answer leaves the others their share of the time.
                with trio.move_on_after(CANCEL_SECONDS / len(backends)):
                    candidates = Candidates(backend.settings, self._resolver)
                    while (address := await candidates.next()) is not None:
                        await self._send(backend, address, request)

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

    def _dropped(self, accepted: Accepted, reason: str) -> None:
        if self._folder.admits("cancel_dropped", accepted.address.source, reason):
            self._logger.info(
                "cancel_dropped",
                listener=accepted.listener.name,
                client_addr=str(accepted.address),
                reason=reason,
            )


def _take_unknown(listener: ListenerSnapshot) -> list[BackendSnapshot]:
    """The backends to which a request goes whose key no session here has.

    It may be meant for any of them. Where databases lead to several that has to be wished for: one request
    of anybody's would become many.
    """
    default = "forward" if listener.settings.databases is None else "drop"
    backends = [listener.backends[name] for name in listener.settings.backends]
    return [backend for backend in backends if (backend.settings.cancel_unknown or default) == "forward"]
