"""sd_notify(3): the service manager knows when the proxy serves, reloads, ends, and whether it is alive."""

import os
import signal
import sys
import time

import pytest

from fixtures import wire
from fixtures.deployments import config, in_clear, passthrough
from fixtures.fake_backend import lets_everybody_in
from fixtures.service_manager import NotifySocket, environment_of
from fixtures.waiting import until
from fixtures.wire import WireClient

HBA = {"pg_hba.conf": "host all all all trust\n"}

IN_A_HURRY = """
import sys
from pgtlsproxy.proxy import service_manager, worker_process
service_manager.STATUS_SECONDS = 0.05
worker_process.PING_SECONDS = {ping}
from pgtlsproxy.cli import main
main(sys.argv[1:])
"""


@pytest.fixture
def settings(certs, fake_backend):
    def make(**top):
        backend = passthrough(fake_backend(lets_everybody_in), certs, require_auth="none")
        return config({"clear": in_clear()}, primary=backend) | top

    return make


@pytest.fixture
def start(proxy, settings):
    def go(manager, environment=None, ping=5.0, **top):
        command = [sys.executable, "-c", IN_A_HURRY.format(ping=ping)]
        path = proxy.write(settings(**top), HBA)
        return proxy.run(path, environment=manager.environment | (environment or {}), command=command)

    return go


@pytest.fixture
def manager():
    with NotifySocket() as listening:
        yield listening


def session(running):
    running.wait_for_event("listening")  # the log may come later than what the manager is told
    client = WireClient(("127.0.0.1", running.port("clear")), timeout=wire.PROMPTLY)
    client.send(wire.startup(user="alice"))
    client.read_until(b"Z")
    return client


def test_ready_is_said_when_every_worker_accepts(start, manager):
    running = start(manager, workers=2)
    told = manager.until(READY="1", timeout=60.0)
    assert len(running.workers) == 2
    session(running).close()
    assert told["STATUS"] == "0 sessions, 2 workers, generation 1"
    assert all("READY" not in each for each in manager.heard[:-1])


def test_a_reload_is_told_with_when_it_began_and_that_it_is_over(start, manager):
    running = start(manager)
    manager.until(READY="1", timeout=60.0)
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    running.signal(signal.SIGHUP)
    reloading = manager.until(RELOADING="1")
    assert before <= int(reloading["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert "READY" not in reloading
    assert manager.until(READY="1")["STATUS"].endswith("generation 2")


def test_whoever_asks_for_a_reload_during_one_hears_of_one_that_began_later(start, manager):
    """systemd waits for a RELOADING=1 that is newer than its signal."""
    running = start(manager)
    manager.until(READY="1", timeout=60.0)
    for _ in range(3):
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        running.signal(signal.SIGHUP)
        while int(manager.until(RELOADING="1")["MONOTONIC_USEC"]) < before:
            pass
    manager.until(READY="1")


def test_a_reload_that_fails_ends_as_well_and_shows_in_the_status(start, manager):
    running = start(manager)
    manager.until(READY="1", timeout=60.0)
    running.config.with_name("pg_hba.conf").write_text("host all all all nonsense\n")
    running.signal(signal.SIGHUP)
    manager.until(RELOADING="1")
    shown = manager.until(READY="1")["STATUS"]
    assert shown.endswith("the last reload failed, these keep what they had: policy of listener clear")


def test_the_status_has_the_sessions(start, manager):
    running = start(manager)
    manager.until(READY="1", timeout=60.0)
    with session(running), session(running):
        manager.until(STATUS="2 sessions, 1 workers, generation 1")
    manager.until(STATUS="0 sessions, 1 workers, generation 1")


def test_the_end_is_told_with_the_time_that_sessions_have(start, manager):
    running = start(manager, drain_delay="200ms", drain_timeout="40s")
    manager.until(READY="1", timeout=60.0)
    running.signal(signal.SIGTERM)
    told = manager.until(STOPPING="1")
    assert 40_200_000 < int(told["EXTEND_TIMEOUT_USEC"]) < 90_000_000
    assert running.wait() == 0
    assert all("READY" not in each for each in manager.heard[2:])


def test_a_supervisor_that_hangs_gives_no_sign_of_life(start, manager):
    running = start(manager, {"WATCHDOG_USEC": "200000"})
    manager.until(WATCHDOG="1", timeout=60.0)
    running.signal(signal.SIGSTOP)
    while not manager.is_silent(1.0, "WATCHDOG"):
        pass
    running.signal(signal.SIGCONT)
    manager.until(WATCHDOG="1")


def test_a_worker_that_hangs_is_replaced(start, manager):
    running = start(manager, ping=0.5)
    running.wait_for_event("ready", timeout=60.0)
    (worker,) = running.workers
    os.kill(worker, signal.SIGSTOP)
    assert running.wait_for_event("worker_hangs", timeout=60.0)["pid"] == worker
    assert running.wait_for_event("worker_died")["signal"] == "SIGKILL"
    until(lambda: running.workers not in ([], [worker]))
    session(running).close()


def test_a_relay_that_hangs_is_a_worker_that_hangs(proxy, settings):
    command = """
import sys, time
from pgtlsproxy.proxy import worker_process
from pgtlsproxy.proxy.relay_loop import RelayLoop
worker_process.PING_SECONDS = 0.3
def add(self, *_):
    time.sleep(3600)
RelayLoop.add = add
from pgtlsproxy.cli import main
main(sys.argv[1:])
"""
    running = proxy(settings(), HBA, command=[sys.executable, "-c", command])
    running.wait_for_event("ready", timeout=60.0)
    with WireClient(("127.0.0.1", running.port("clear")), timeout=60.0) as client:
        client.send(wire.startup(user="alice"))
        running.wait_for_event("worker_hangs", timeout=60.0)
        client.read_to_end()


def test_no_process_that_it_starts_can_speak_in_its_name(start, manager):
    running = start(manager, {"WATCHDOG_USEC": "2000000"}, status={"listen": "127.0.0.1:0"})
    manager.until(READY="1", timeout=60.0)
    until(lambda: running.status_pid)
    for pid in (*running.workers, running.status_pid):
        assert not environment_of(pid).keys() & {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}
