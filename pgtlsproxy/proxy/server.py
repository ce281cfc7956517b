"""The process: listens, accepts, reloads on SIGHUP, ends on SIGTERM or SIGINT."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import resource
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import trio
from structlog.typing import FilteringBoundLogger

from pgtlsproxy import __version__
from pgtlsproxy.config import Settings, TCPAddress
from pgtlsproxy.errors import ConfigError, Mistake
from pgtlsproxy.observability.logs import RefusalFolder
from pgtlsproxy.proxy.admission import HARD_LIMIT_MARGIN
from pgtlsproxy.proxy.cancel import Cancels
from pgtlsproxy.proxy.relay import open_relay
from pgtlsproxy.proxy.resolve import Resolver
from pgtlsproxy.proxy.selftest import prove_tls
from pgtlsproxy.proxy.session import Services, serve_session
from pgtlsproxy.proxy.snapshot import Reloaded, Snapshot, reload
from pgtlsproxy.proxy.sockets import (
    BindError,
    ListeningSocket,
    listen_tcp,
    listen_unix,
)

ACCEPT_BACKOFF_SECONDS: Final = 0.1
"""How long accepting rests behind a failure that the next attempt may meet again."""

COMPLAINT_SECONDS: Final = 1.0
"""How often at most a listener that cannot accept says so."""

LOST_CONNECTION: Final = frozenset(
    {
        errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN,
        errno.EHOSTUNREACH, errno.ENONET, errno.ENOPROTOOPT,
    }
)  # fmt: skip
"""What accept(2) says of one connection that broke while it waited, and that is out of the queue then."""

OWN_DESCRIPTORS: Final = 128
"""Descriptors besides the sessions': listening sockets, files at a reload, CancelRequests under way."""


@dataclass(slots=True)
class Server:
    """What lives as long as the process.

    Attributes:
        snapshot: what new sessions live under; replaced whole, never changed.
        services: what sessions share.
        logger: where the process's own events go.
    """

    snapshot: Snapshot
    services: Services
    logger: FilteringBoundLogger
    _complained: dict[str, float] = field(default_factory=dict)

    async def run(self, listening: Sequence[tuple[str, ListeningSocket]]) -> None:
        """Serve until SIGTERM or SIGINT; sessions are then ended at once.

        Args:
            listening: (listener name, socket) pairs; closed when this returns.
        """
        try:
            with trio.open_signal_receiver(signal.SIGHUP, signal.SIGTERM, signal.SIGINT) as signals:
                async with trio.open_nursery() as nursery:
                    for name, opened in listening:
                        nursery.start_soon(self._accept, name, opened, nursery)
                        self.logger.info("listening", listener=name, address=opened.shown)
                    nursery.start_soon(self._flush_folded)
                    # One place: however often we are told during a reload, one more sees it all.
                    told, reloads = trio.open_memory_channel[None](1)
                    nursery.start_soon(self._reload_when_told, reloads)
                    self.logger.info("ready", version=__version__, generation=self.snapshot.generation)
                    async for number in signals:
                        if number == signal.SIGHUP:
                            with contextlib.suppress(trio.WouldBlock):
                                told.send_nowait(None)
                            continue
                        self.logger.info("shutting_down", signal=signal.Signals(number).name)
                        nursery.cancel_scope.cancel()
        finally:
            for _, opened in listening:
                opened.close()
            self.services.folder.flush()
            self.logger.info("stopped")

    async def _reload_when_told(self, reloads: trio.MemoryReceiveChannel[None]) -> None:
        async for _ in reloads:
            await self._reload()

    async def _reload(self) -> None:
        """Build what the files now say aside, off the event loop, and swap it in.

        Cancellation: the thread may go on, with a passphrase command or a file system that hangs; what it
        builds is dropped.
        """
        self.logger.info("reloading")
        try:
            result: Reloaded = await trio.to_thread.run_sync(reload, self.snapshot, abandon_on_cancel=True)
        except Exception as error:
            # A file that trips us must not end the sessions that are served.
            self.logger.error("bug", exc_info=error)
            self.logger.error("reload_failed", generation=self.snapshot.generation, kept=["everything"])
            return
        for warning in result.warnings:
            self.logger.warning("config_warning", warning=str(warning))
        for mistake in result.mistakes:
            self.logger.error("config_mistake", mistake=str(mistake))
        self.snapshot = result.snapshot
        if result.mistakes:
            self.logger.error("reload_failed", generation=result.snapshot.generation, kept=list(result.kept))
        else:
            self.logger.info("reloaded", generation=result.snapshot.generation)

    async def _flush_folded(self) -> None:
        while True:
            await trio.sleep(1.0)
            self.services.folder.flush()

    async def _accept(self, name: str, opened: ListeningSocket, nursery: trio.Nursery) -> None:
        while True:
            try:
                sock, _ = opened.sock.accept()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(opened.sock)
            except OSError as error:
                if error.errno in LOST_CONNECTION:
                    await trio.lowlevel.checkpoint()
                    continue
                # Out of descriptors or memory, forbidden by a firewall: the connection still waits.
                self._complain(name, error)
                await trio.sleep(ACCEPT_BACKOFF_SECONDS)
            else:
                sock.setblocking(False)
                nursery.start_soon(serve_session, sock, name, self.snapshot, self.services)
                await trio.lowlevel.checkpoint()

    def _complain(self, listener: str, error: OSError) -> None:
        now = trio.current_time()
        if now - self._complained.get(listener, -math.inf) >= COMPLAINT_SECONDS:
            self._complained[listener] = now
            self.logger.error("accept_failed", listener=listener, reason=error.strerror)


def bind(snapshot: Snapshot) -> list[tuple[str, ListeningSocket]]:
    """Listen on every address of the configuration, or on none.

    Raises:
        ConfigError: with every address that cannot be had; the others are released.
    """
    opened: list[tuple[str, ListeningSocket]] = []
    mistakes: list[Mistake] = []
    for name, listener in snapshot.settings.listeners.items():
        for index, address in enumerate(listener.listen):
            try:
                sockets = (
                    listen_tcp(address)
                    if isinstance(address, TCPAddress)
                    else [listen_unix(address, listener.unix_socket_permissions, listener.unix_socket_group)]
                )
            except BindError as error:
                mistakes.append(Mistake(f"{snapshot.path}: listeners.{name}.listen[{index}]", str(error)))
            else:
                opened.extend((name, sock) for sock in sockets)
    if mistakes:
        for _, sock in opened:
            sock.close()
        raise ConfigError(mistakes)
    return opened


def raise_descriptor_limit(settings: Settings, logger: FilteringBoundLogger) -> None:
    """Take as many descriptors as the system grants, and warn where sessions need more.

    Args:
        settings: whose limits count; a session has a socket on either leg, and so may a pending one.
        logger: told of what is missing.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # what was granted cannot always be had
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # A client that is one too many is heard, and costs one socket.
    needed = 2 * (settings.max_connections + settings.pending_limit) + HARD_LIMIT_MARGIN + OWN_DESCRIPTORS
    if limit != resource.RLIM_INFINITY and limit < needed:
        logger.warning(
            "too_few_descriptors",
            limit=limit,
            needed=needed,
            max_connections=settings.max_connections,
            advice="raise LimitNOFILE= (systemd) or the hard limit of nofile, or lower max_connections",
        )


def serve(snapshot: Snapshot, logger: FilteringBoundLogger) -> None:
    """Run the proxy until it is told to end.

    Raises:
        ConfigError: an address cannot be listened on.
        SelfTestFailed: this OpenSSL does not refuse what must be refused.
    """
    prove_tls()
    # A core dump would hold keys and passwords.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    raise_descriptor_limit(snapshot.settings, logger)
    listening = bind(snapshot)
    if os.geteuid() == 0:
        logger.warning("running_as_root", advice="let systemd, the container or setpriv drop privileges")

    async def main() -> None:
        folder = RefusalFolder(logger.info)
        resolver = Resolver(logger)
        async with open_relay() as relay:
            services = Services(logger, folder, resolver, Cancels(logger, folder, resolver), relay)
            await Server(snapshot, services, logger).run(listening)

    trio.run(main)
