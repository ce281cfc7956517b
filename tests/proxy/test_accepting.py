"""A listener that cannot accept tries again at its ease, says so once a second, and lets others run."""

import errno
import os
import socket
from types import SimpleNamespace

import pytest
import trio

from pgtlsproxy.proxy import server
from pgtlsproxy.proxy.server import Server

SPINNING = 1000
"""Attempts that no listener at rest makes in a test."""


class Failing:
    """A listening socket whose queue has errors, and a connection behind them."""

    def __init__(self, number, failures=SPINNING, connection=None):
        self._number = number
        self._failures = failures
        self._connection = connection
        self.attempts = 0

    def accept(self):
        self.attempts += 1
        if self.attempts <= self._failures:
            raise OSError(self._number, os.strerror(self._number))
        assert self._connection is not None, "it spins"
        return self._connection, None

    def fileno(self):
        return self._connection.fileno()


class Log:
    """The events of a logger."""

    def __init__(self):
        self.events = []

    def error(self, event, **fields):
        self.events.append((event, fields))


ALONE = SimpleNamespace(
    admission=SimpleNamespace(slot=SimpleNamespace(is_ahead=False), make_room=lambda: None)
)


async def accepting(sock, seconds):
    """Run the loop of listener `x` for some seconds of the clock. Returns what was logged."""
    log = Log()
    with trio.move_on_after(seconds):
        await Server(ALONE, log)._accept("x", sock, None)
    return log.events


@pytest.mark.parametrize("name", ["EPERM", "EINVAL", "EMFILE", "ENFILE", "ENOMEM", "ENOBUFS", "EOPNOTSUPP"])
async def test_a_failure_that_repeats_costs_neither_the_processor_nor_the_log(autojump_clock, name):
    number = getattr(errno, name)
    sock = Failing(number)
    events = await accepting(sock, 10.0)
    assert 50 < sock.attempts <= 101
    assert {fields["reason"] for _, fields in events} == {os.strerror(number)}
    assert {event for event, _ in events} == {"accept_failed"}
    assert 9 <= len(events) <= 10


async def test_a_listener_that_was_shut_down_under_us_lets_others_run(autojump_clock):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setblocking(False)
        sock.shutdown(socket.SHUT_RDWR)
        assert await accepting(sock, 1.0)


@pytest.mark.parametrize("number", sorted(server.LOST_CONNECTION), ids=errno.errorcode.get)
async def test_connections_that_broke_in_the_queue_delay_nobody_behind_them(
    monkeypatch, autojump_clock, number
):
    ours, theirs = socket.socketpair()
    sock = Failing(number, failures=500, connection=ours)
    seen_by_others = set()

    async def other():
        while True:
            seen_by_others.add(sock.attempts)
            await trio.lowlevel.checkpoint()

    async def serve_session(connection, *_):
        assert connection is ours
        nursery.cancel_scope.cancel()

    monkeypatch.setattr(server, "serve_session", serve_session)
    log = Log()
    start = trio.current_time()
    with ours, theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            await Server(ALONE, log)._accept("x", sock, nursery)
    assert trio.current_time() == start
    assert len(seen_by_others) > 100, "others ran in between"
    assert log.events == []
