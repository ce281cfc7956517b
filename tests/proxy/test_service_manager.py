"""What the service manager is told, datagram by datagram, and what becomes of one that does not listen."""

import math
import os
import time
from contextlib import ExitStack

import pytest

from fixtures.service_manager import NotifySocket
from pgtlsproxy.proxy.service_manager import Contact, Phase, ServiceManager, contact


class Log:
    """The events of a logger."""

    def __init__(self):
        self.events = []

    def warning(self, event, **fields):
        self.events.append((event, fields))


@pytest.fixture
def manager_at():
    with ExitStack() as stack:

        def make(address, patience=math.inf, describe=lambda: "fine"):
            log = Log()
            manager = ServiceManager(Contact(address, patience), describe, log)
            stack.callback(manager.close)
            return manager, log

        yield make


def drained(listening):
    """All that it has been sent."""
    found = []
    while True:
        try:
            found.append(listening.next(0.01))
        except TimeoutError:
            return found


@pytest.mark.parametrize("kind", ["a path", "an abstract name"])
def test_each_step_is_told_once(manager_at, tmp_path, kind):
    with NotifySocket(str(tmp_path / "notify") if kind == "a path" else None) as listening:
        manager, log = manager_at(listening.name)
        for phase in (Phase.STARTING, Phase.SERVING, Phase.SERVING, Phase.RELOADING, Phase.RELOADING,
                      Phase.SERVING, Phase.STOPPING, Phase.STOPPING):  # fmt: skip
            manager.tend(phase, 30.0, is_well=True)
        told = [set(each) for each in drained(listening)]
    assert told == [
        {"STATUS"}, {"READY", "STATUS"}, {"RELOADING", "MONOTONIC_USEC", "STATUS"}, {"READY", "STATUS"},
        {"STOPPING", "EXTEND_TIMEOUT_USEC", "STATUS"},
    ]  # fmt: skip
    assert log.events == []


def test_a_reload_that_is_over_at_once_has_begun_and_ended(manager_at):
    with NotifySocket() as listening:
        manager, _ = manager_at(listening.name)
        manager.asked_to_reload()  # not before it serves: READY would say that it does
        manager.tend(Phase.SERVING, 30.0, is_well=True)
        manager.asked_to_reload()
        manager.tend(Phase.SERVING, 30.0, is_well=True)
        told = [sorted(each.keys() & {"READY", "RELOADING"}) for each in drained(listening)]
    assert told == [["READY"], ["RELOADING"], ["READY"]]


def test_a_sign_of_life_is_given_at_half_of_the_time_and_only_where_all_is_well(manager_at, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    sent = []
    manager, _ = manager_at("/nowhere", patience=10.0)
    monkeypatch.setattr(manager, "_flush", lambda: sent.extend(manager._unsent) or manager._unsent.clear())
    given = []
    for second in range(30):
        now = 1000.0 + second
        manager.tend(Phase.STARTING, 30.0, is_well=not 9 <= second <= 12)
        assert manager.due <= now + 5.0
        given += [second] * sent.count(b"WATCHDOG=1")
        sent.clear()
    assert given == [0, 5, 13, 18, 23, 28]


@pytest.mark.parametrize(
    ("environment", "patience"),
    [
        ({"WATCHDOG_USEC": "2000000"}, 2.0),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid())}, 2.0),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}, math.inf),
        ({"WATCHDOG_USEC": "0"}, math.inf),
        ({"WATCHDOG_USEC": "-5"}, math.inf),
        ({"WATCHDOG_USEC": "soon"}, math.inf),
        ({}, math.inf),
    ],
)
def test_the_contact_is_taken_out_of_the_environment(monkeypatch, environment, patience):
    monkeypatch.setenv("NOTIFY_SOCKET", "@here")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert contact() == Contact("@here", patience)
    assert not os.environ.keys() & {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}


@pytest.mark.parametrize("address", ["relative", "vsock:2:1234", "@" + "x" * 108, "/" + "x" * 108])
def test_an_address_that_is_none_is_said_once_and_nothing_is_sent(manager_at, address):
    manager, log = manager_at(address)
    manager.tend(Phase.SERVING, 30.0, is_well=True)
    assert [event for event, _ in log.events] == ["service_manager_not_told"]
    assert manager.due == math.inf


def test_a_manager_that_is_gone_is_said_once(manager_at, tmp_path):
    manager, log = manager_at(f"{tmp_path}/gone", patience=0.001)
    for phase in (Phase.SERVING, Phase.RELOADING, Phase.SERVING):
        manager.tend(phase, 30.0, is_well=True)
    assert [event for event, _ in log.events] == ["service_manager_not_told"]


def test_a_manager_that_reads_nothing_holds_nobody_up_and_hears_every_step_later(manager_at):
    with NotifySocket() as listening:
        manager, log = manager_at(listening.name, patience=1e-9)
        steps = [Phase.SERVING, Phase.RELOADING] * 20
        for phase in steps:
            for _ in range(20):
                manager.tend(phase, 30.0, is_well=True)
        assert time.monotonic() < manager.due < math.inf  # and the supervisor sleeps meanwhile
        told = []
        while len(told) < len(steps):
            told += [each for each in drained(listening) if each.keys() & {"READY", "RELOADING"}]
            manager.tend(phase, 30.0, is_well=True)
    assert ["READY" in each for each in told] == [True, False] * 20
    assert log.events == []


def test_without_a_manager_nothing_is_done(manager_at):
    manager, log = manager_at("", describe=lambda: pytest.fail("nobody asks"))
    manager.tend(Phase.SERVING, 30.0, is_well=True)
    manager.asked_to_reload()
    manager.close()
    assert (manager.due, log.events) == (math.inf, [])
