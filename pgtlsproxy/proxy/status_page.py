"""The process that serves metrics: what the supervisor tells it and the workers count, over HTTP.

It was started by exec, has inherited one end of a socket pair, and is given its sockets over it.
"""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final, TypeVar

import trio
from structlog.typing import FilteringBoundLogger

from pgtlsproxy.errors import ClientTLSFailed, ConfigError
from pgtlsproxy.observability.figures import Figures, Service
from pgtlsproxy.observability.http import Reply, Request, serve_request
from pgtlsproxy.observability.metrics import as_json, exposition
from pgtlsproxy.proxy.channel import Answers, ChannelEnded
from pgtlsproxy.proxy.child import serve_supervisor
from pgtlsproxy.proxy.orders import Pong
from pgtlsproxy.proxy.sockets import client_address
from pgtlsproxy.proxy.status_orders import StatusNews, StatusPing, StatusWelcome
from pgtlsproxy.proxy.status_tls import StatusTLS, make_status_tls
from pgtlsproxy.proxy.tally import Tally
from pgtlsproxy.proxy.units import Units
from pgtlsproxy.tls.stream import ClearLeg, LegLost, TLSLeg, accept_tls

_T = TypeVar("_T")

CONNECTION_SECONDS: Final = 10.0
"""From accept to the end of the answer: handshake, request and all."""

MAX_CONNECTIONS: Final = 64
"""At once; one more, and the oldest goes, so that none who says nothing keeps a probe out."""

ACCEPT_BACKOFF_SECONDS: Final = 0.1

QUIT: Final = "/quitquitquit"
"""What a Job says to its sidecar when it is done, by a name that several proxies have in common."""


def serve_status(control: int, supervisor: int) -> int:
    """Serve until told to end. Returns the exit status.

    Args:
        control: the descriptor of the socket pair's end.
        supervisor: the process that must be our parent.
    """
    return serve_supervisor(control, supervisor, StatusWelcome, partial(_serve, supervisor))


def _serve(supervisor: int, answers: Answers, welcome: StatusWelcome, logger: FilteringBoundLogger) -> int:
    try:
        news = answers.receive()
    except ChannelEnded:
        return 0
    assert isinstance(news, StatusNews)  # noqa: S101 - it is the second order
    trio.run(_StatusPage(answers, welcome, news, supervisor, logger).run)
    return 0


class _StatusPage:
    def __init__(
        self,
        answers: Answers,
        welcome: StatusWelcome,
        news: StatusNews,
        supervisor: int,
        logger: FilteringBoundLogger,
    ) -> None:
        self._answers = answers
        self._welcome = welcome
        self._tally = Tally(welcome.rows, welcome.listeners, welcome.tally.number, reads_only=True)
        self._supervisor = supervisor
        self._has_quit = False
        self._logger = logger
        self._tls: StatusTLS | None = None
        self._open: dict[trio.CancelScope, None] = {}
        self._take(news)

    async def run(self) -> None:
        """Serve until the socket pair ends, through a drain, too."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hear, nursery)
            for listening in self._welcome.listening:
                nursery.start_soon(self._accept, listening, nursery)

    async def _hear(self, nursery: trio.Nursery) -> None:
        while True:
            try:
                order = await trio.to_thread.run_sync(self._answers.receive, abandon_on_cancel=True)
            except ChannelEnded:
                nursery.cancel_scope.cancel()
                return
            match order:
                case StatusNews():
                    self._take(order)
                case StatusPing():  # answered here, by what answers probes, too
                    self._answers.send(Pong())

    def _take(self, news: StatusNews) -> None:
        self._service: Service = news.service
        self._status = news.status
        if news.files is None:
            return
        self._tls = None
        for status, files in news.files:
            self._tls = make_status_tls(Units(files, lambda _: None), status, self._tls, _attempt)

    async def _accept(self, listening: socket.socket, nursery: trio.Nursery) -> None:
        while True:
            try:
                sock, _ = listening.accept()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(listening)
            except OSError as error:
                self._logger.error("accept_failed", listener="status", reason=error.strerror)
                await trio.sleep(ACCEPT_BACKOFF_SECONDS)
            else:
                sock.setblocking(False)
                if len(self._open) >= MAX_CONNECTIONS:
                    oldest = next(iter(self._open))
                    del self._open[oldest]
                    oldest.cancel()
                scope = trio.CancelScope(deadline=trio.current_time() + CONNECTION_SECONDS)
                self._open[scope] = None
                nursery.start_soon(self._serve, sock, scope)
                await trio.lowlevel.checkpoint()

    async def _serve(self, sock: socket.socket, scope: trio.CancelScope) -> None:
        """One connection; whatever becomes of it, the others go on."""
        leg: ClearLeg | TLSLeg = ClearLeg(sock)
        try:
            with scope:
                tls = self._tls
                if tls is None and self._status.ssl_cert_file is not None:
                    return  # what cannot be had inside TLS is not served in clear
                if tls is not None:
                    leg = await accept_tls(sock, tls.context)
                sees_all = self._sees_all(leg)
                answer = partial(self._answer, sees_all=sees_all, may_quit=self._may_quit(leg))
                actions = (QUIT,) if self._status.quitquitquit else ()
                await serve_request(leg, answer, self._status.hosts, actions)
        except (LegLost, ClientTLSFailed, OSError):
            pass  # it has gone, or speaks no TLS: nobody's concern
        except Exception as error:
            self._logger.error("bug", exc_info=error)
        finally:
            self._open.pop(scope, None)
            leg.close()

    def _sees_all(self, leg: ClearLeg | TLSLeg) -> bool:
        """Whether the peer may see more than metrics and probes."""
        if self._status.ssl_ca_file is not None:
            return isinstance(leg, TLSLeg) and bool(leg.peer_chain)
        # Not by the settings: an address that has changed takes effect at the next start.
        return all(
            ipaddress.ip_address(sock.getsockname()[0]).is_loopback for sock in self._welcome.listening
        )

    def _may_quit(self, leg: ClearLeg | TLSLeg) -> bool:
        """Whether the peer may end the proxy: it is on this host and, where there is a CA, known to it."""
        is_known = self._status.ssl_ca_file is None or self._sees_all(leg)
        return is_known and client_address(leg.sock).is_local

    def _quit(self) -> None:
        """End the proxy as SIGTERM does, once: a second one would cut sessions off."""
        if self._service.is_stopping or self._has_quit:
            return
        self._has_quit = True
        self._logger.info("quit_asked_for", path=QUIT)
        os.kill(self._supervisor, signal.SIGTERM)

    def _answer(self, request: Request, *, sees_all: bool, may_quit: bool) -> Reply:
        match request.path:
            case "/quitquitquit" if not self._status.quitquitquit:
                return Reply.text(404, "status.quitquitquit is off")
            case "/quitquitquit" if may_quit:
                return replace(Reply.text(200, "the proxy ends as on SIGTERM"), then=self._quit)
            case "/quitquitquit":
                why = "this is taken from loopback alone, with status.ssl_ca_file from its certificates there"
                return Reply.text(403, why)
            case "/livez":
                return Reply.text(200, "ok")
            case "/readyz" if self._service.is_ready:
                return Reply.text(200, "ok")
            case "/readyz":
                return Reply.text(503, "stopping" if self._service.is_stopping else "no worker serves yet")
            case "/metrics":
                body, content_type = exposition(self._figures(), request.accept)
                return Reply(200, body, content_type)
            case "/status" if sees_all:
                return Reply(200, as_json(self._figures()), "application/json")
            case "/status":
                why = "this is served on loopback alone, or to certificates of status.ssl_ca_file"
                return Reply.text(403, why)
        return Reply.text(404, "there are /metrics, /livez, /readyz and /status")

    def _figures(self) -> Figures:
        sessions = self._tally.figures()
        return Figures(
            self._welcome.version,
            self._welcome.started_at,
            self._service,
            {name: each.active for name, each in sessions.items()},
            {name: each.total for name, each in sessions.items()},
        )


def _attempt(_name: str, make: Callable[[], _T | None], old: _T | None) -> _T | None:
    """Keep what there was: the workers say what is wrong with it, as of every other unit."""
    try:
        return make()
    except ConfigError:
        return old
