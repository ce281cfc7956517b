"""A worker: a process of its own that serves sessions, as its supervisor tells it.

It was started by exec and has inherited one end of a socket pair, and nothing else. Over this it is
given the shared table, the files' bytes and the listening sockets.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import astuple, replace
from functools import partial
from typing import Final, TypeVar

import trio
from structlog.typing import FilteringBoundLogger

from pgtlsproxy.errors import ConfigError, Mistake
from pgtlsproxy.observability.logs import RefusalFolder
from pgtlsproxy.proxy.admission import Admission
from pgtlsproxy.proxy.auth_query import AuthQueries
from pgtlsproxy.proxy.authorise import LookUps
from pgtlsproxy.proxy.cancel import Cancels
from pgtlsproxy.proxy.channel import Answers, ChannelEnded
from pgtlsproxy.proxy.child import serve_supervisor
from pgtlsproxy.proxy.drain import drain
from pgtlsproxy.proxy.expiry import lifetimes, not_after
from pgtlsproxy.proxy.guessing import Guesses
from pgtlsproxy.proxy.handshakes import Handshakes
from pgtlsproxy.proxy.host_probes import HostProbes
from pgtlsproxy.proxy.limits import connections_that_fit
from pgtlsproxy.proxy.mailboxes import Mailboxes
from pgtlsproxy.proxy.orders import (
    Build,
    Built,
    Cease,
    Drain,
    Ping,
    Pong,
    Serve,
    Serving,
    Swap,
    Swapped,
    Welcome,
)
from pgtlsproxy.proxy.origins import Made, make
from pgtlsproxy.proxy.relay import open_relay
from pgtlsproxy.proxy.resolve import Resolver
from pgtlsproxy.proxy.selftest import prove_tls
from pgtlsproxy.proxy.server import Server
from pgtlsproxy.proxy.services import Services
from pgtlsproxy.proxy.shared_table import SharedTable, WorkerSlot
from pgtlsproxy.proxy.snapshot import Snapshot
from pgtlsproxy.proxy.standing import end_the_unjudged, judge_the_living
from pgtlsproxy.proxy.tally import Tally

_T = TypeVar("_T")

SWITCH_SECONDS: Final = 0.0005
"""How long a thread may keep the interpreter while another wants it.

Where Python code of the event loop ran 100 of each 150 ms, a message through the relay's thread took
10.4 ms (p99) at Python's own 5 ms, 1.4 ms at 0.5 ms, and 0.7 ms at 0.1 ms, at which p99.9 rose again.
"""

BUILDING_SWITCH_SECONDS: Final = 0.0002
"""The same while a thread builds a configuration. A message gives the interpreter away with each call of
OpenSSL or the kernel, and waits as often to have it back: beside reloads of 10,000 lines a ping took 2.8 ms
(median) and 8 to 12 ms (p99) at 0.5 ms, 1.5 and 2.6 to 4.1 ms at 0.2 ms, 1.2 and 6 to 8 ms at 0.1 ms.
"""

STATUS_CUT: Final = 3
"""Sessions were cut that may not have been idle."""


def work(control: int, supervisor: int) -> int:
    """Serve until told to end. Returns the exit status.

    Args:
        control: the descriptor of the socket pair's end.
        supervisor: the process that must be our parent.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    return serve_supervisor(control, supervisor, Welcome, _work)


def _work(answers: Answers, welcome: Welcome, logger: FilteringBoundLogger) -> int:
    prove_tls()
    return STATUS_CUT if trio.run(_Worker(answers, welcome, logger).run) else 0


class _Worker:
    """The supervisor's orders, and what is done of them."""

    def __init__(self, answers: Answers, welcome: Welcome, logger: FilteringBoundLogger) -> None:
        self._answers = answers
        self._logger = logger
        self._folder = RefusalFolder(logger.info)
        self._resolver = Resolver(logger)
        table = SharedTable(welcome.slots, welcome.table.number)
        self._slot = WorkerSlot(table, welcome.number, welcome.secret)
        self._welcome = welcome
        self._newest = 0
        self._built: Made | None = None
        self._in_service: Made | None = None
        self._server: Server | None = None
        # Of builds one at a time; whatever they do, orders are heard.
        self._builds = trio.CapacityLimiter(1)
        self._orders = trio.CapacityLimiter(1)

    async def run(self) -> bool:
        """Obey until the end of the socket pair, or of the last session of a worker that drains.

        Returns:
            Whether sessions were cut that may not have been idle.
        """
        mailboxes = Mailboxes(self._welcome.number, self._welcome.inbox, self._welcome.mailboxes)
        tally = Tally(self._welcome.slots, self._welcome.listeners, self._welcome.tally.number)
        admission = Admission(self._slot, mailboxes.displace_at, connections_that_fit())
        cancels = Cancels(self._logger, self._folder, self._resolver, self._slot, mailboxes)
        with ExitStack() as stack:
            stack.callback(self._folder.flush)
            stack.enter_context(closing(mailboxes))
            async with open_relay() as relay:
                services = Services(
                    logger=self._logger,
                    folder=self._folder,
                    resolver=self._resolver,
                    host_probes=HostProbes(self._resolver, self._logger),
                    look_ups=LookUps(),
                    auth_queries=AuthQueries(self._logger),
                    cancels=cancels,
                    relay=relay,
                    admission=admission,
                    handshakes=Handshakes(),
                    guesses=Guesses(),
                    tally=tally.row(self._welcome.number),
                    in_service=self._snapshot,
                )
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._tick)
                    nursery.start_soon(mailboxes.run, cancels.take, admission.displace)
                    nursery.start_soon(self._obey, services, nursery)
                return relay.has_cut

    async def _tick(self) -> None:
        while True:
            self._slot.beat()
            await trio.sleep(1.0)
            self._folder.flush()

    async def _obey(self, services: Services, nursery: trio.Nursery) -> None:
        while True:
            try:
                order = await _in_thread(self._answers.receive, self._orders)
            except ChannelEnded:
                nursery.cancel_scope.cancel()
                return
            match order:
                case Build():
                    self._newest = order.attempt
                    # Not waited for: whatever a build does, the next order may be to drain.
                    nursery.start_soon(_in_thread, partial(self._build, order), self._builds)
                case Swap():
                    self._swap()
                    self._answers.send(Swapped(order.generation))
                    nursery.start_soon(judge_the_living, services, self._snapshot())
                case Serve():
                    self._server = Server(services, self._logger)
                    nursery.start_soon(self._serve, self._server, order, nursery)
                    self._answers.send(Serving())
                case Cease() if self._server is not None:
                    self._server.cease()
                case Ping():
                    nursery.start_soon(self._pong, services)
                case Drain(seconds=None) if self._server is not None:
                    self._server.stop(
                        "the worker is replaced, for it could not take the newest configuration"
                    )
                    nursery.start_soon(end_the_unjudged, services.relay, self._snapshot())
                case Drain(seconds=float(seconds)) if self._server is not None:
                    self._server.stop("the proxy shuts down")
                    services.admission.turn_away()
                    nursery.start_soon(drain, services.relay, seconds)

    async def _pong(self, services: Services) -> None:
        await services.relay.take_a_turn()
        self._answers.send(Pong())

    async def _serve(self, server: Server, order: Serve, nursery: trio.Nursery) -> None:
        """Serve until the last session of a worker that drains is over, which ends the worker."""
        await server.run(order.listening)
        nursery.cancel_scope.cancel()

    def _swap(self) -> None:
        self._in_service = self._built

    def _snapshot(self) -> Snapshot:
        """What is in service."""
        assert self._in_service is not None  # noqa: S101 - nobody is served before the first Swap
        return self._in_service.snapshot

    def _build(self, order: Build) -> None:
        """Build what the files say aside, and say what came of it. In a thread."""
        if order.attempt != self._newest:
            return  # the supervisor waits for it no more
        unusable = Built(order.generation, order.attempt, is_usable=False)
        try:
            with _interruptible(), _out_of_the_collectors_sight():
                made = make(order.generation, order.sets, self._in_service if order.beside else None)
            answer = _answer_of(order, made)
        except ConfigError as error:
            self._answers.send(replace(unusable, mistakes=_pairs(*error.mistakes)))
        except Exception as error:
            # A file that trips us must not end the sessions that are served.
            self._logger.error("bug", exc_info=error)
            self._answers.send(unusable)
        else:
            self._built = made
            self._answers.send(answer)


async def _in_thread(action: Callable[[], _T], limiter: trio.CapacityLimiter) -> _T:
    """Do what may take long off the event loop, on which sessions are served meanwhile."""
    return await trio.to_thread.run_sync(action, abandon_on_cancel=True, limiter=limiter)


def _answer_of(order: Build, made: Made) -> Built:
    result = made.result
    return Built(
        order.generation,
        order.attempt,
        is_usable=True,
        mistakes=_pairs(*result.mistakes),
        warnings=_pairs(*result.warnings),
        kept=result.kept,
        in_use=made.in_use,
        not_after=[(each.owner, each.name, each.at) for each in not_after(result.snapshot)],
        lifetimes=[astuple(each) for each in lifetimes(result.snapshot)],
    )


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let the threads that serve sessions have the interpreter sooner than they have it from each other."""
    sys.setswitchinterval(BUILDING_SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(SWITCH_SECONDS)


@contextmanager
def _out_of_the_collectors_sight() -> Iterator[None]:
    """Never let Python's cyclic collector look at what is made meanwhile, which lives for long.

    It stops all threads for as long as it takes to look at every object: with a pg_hba.conf of 10,000
    lines 100 to 500 ms, several times in a reload and every now and then behind it. What it does not see
    is freed all the same when nobody uses it any more, unless it is in a cycle: neither a policy nor a
    session is.
    """
    gc.collect()  # what has been garbage until now would be out of its sight, too
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _pairs(*mistakes: Mistake) -> list[tuple[str, str]]:
    return [(mistake.where, mistake.what) for mistake in mistakes]
