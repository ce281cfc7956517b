"""What a process does that the supervisor has started: it is told how, and ends when the supervisor does."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final, TypeVar

from structlog.typing import FilteringBoundLogger

from pgtlsproxy.observability.logs import queued_log
from pgtlsproxy.proxy.channel import Answers, ChannelEnded
from pgtlsproxy.proxy.lifeline import end_with
from pgtlsproxy.proxy.orders import Welcome
from pgtlsproxy.proxy.status_orders import StatusWelcome

STATUS_BUG: Final = 70

_W = TypeVar("_W", Welcome, StatusWelcome)


def serve_supervisor(
    control: int,
    supervisor: int,
    kind: type[_W],
    work: Callable[[Answers, _W, FilteringBoundLogger], int],
) -> int:
    """Take the first order, and do the work. Returns the exit status.

    Args:
        control: the descriptor of the socket pair's end.
        supervisor: the process that must be our parent.
        kind: of the first order.
        work: does everything else, and returns the exit status.
    """
    end_with(supervisor)
    with socket.socket(fileno=control) as sock:
        answers = Answers(sock)
        try:
            welcome = answers.receive()
        except ChannelEnded:
            return 0
        assert isinstance(welcome, kind)  # noqa: S101 - it is the first order
        told = welcome.logging
        with queued_log(told.log.format, told.log.level, worker=told.worker, lock=told.lock.number) as logger:
            try:
                return work(answers, welcome, logger)
            except Exception as error:
                logger.error("bug", exc_info=error)
                return STATUS_BUG
