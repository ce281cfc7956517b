"""A reload is read once, built by every worker, and swapped in by all or by none that still lets anybody in."""

import os
import signal
import sys
from contextlib import ExitStack

import pytest

from fixtures import wire
from fixtures.deployments import config, in_clear, passthrough
from fixtures.fake_backend import lets_everybody_in
from fixtures.proxy import COMMAND
from fixtures.waiting import until
from fixtures.wire import WireClient, another_source

TRUST = "host all all all trust\n"
REJECT = "host all all all reject\n"
BROKEN = "host all all all nonsense\n"

FAULTY = """
import sys
from pgtlsproxy.proxy import channel, orders, origins, reloads
reloads.BUILD_SECONDS = {seconds}
welcome = []
real_receive = channel.Answers.receive
def receive(self):
    order = real_receive(self)
    if isinstance(order, orders.Welcome):
        welcome.append(order.number)
    return order
channel.Answers.receive = receive
real = origins.build
def build(files, in_service):
    if welcome == [1] and in_service is not None:
        {fault}
    return real(files, in_service)
origins.build = build
from pgtlsproxy.cli import main
main(sys.argv[1:])
"""
HANGS_AT_A_SWAP = """
import sys, threading
from pgtlsproxy.proxy import reloads, worker
reloads.SWAP_SECONDS = 0.5
real = worker._Worker._swap
def swap(self):
    if self._welcome.number == 1 and self._server is not None:
        threading.Event().wait()
    real(self)
worker._Worker._swap = swap
from pgtlsproxy.cli import main
main(sys.argv[1:])
"""
BUILD_HANGS = "import threading; threading.Event().wait()"
CANNOT_BUILD = 'raise MemoryError("made to fail")'
DIES_BUILDING = "import os; os._exit(3)"


@pytest.fixture
def start(proxy, certs, fake_backend):
    def go(workers, *, command=COMMAND, hba=TRUST):
        backend = passthrough(fake_backend(lets_everybody_in), certs, require_auth="none")
        listeners = {"clear": in_clear(), "other": in_clear(hba_file="other.conf")}
        settings = config(listeners, primary=backend) | {"workers": workers}
        running = proxy(settings, {"pg_hba.conf": hba, "other.conf": TRUST}, command=command)
        running.wait_for_event("ready")
        return running

    return go


def faulty(fault, seconds=5.0):
    """Worker 1 fails at a reload. A worker has so many seconds to build."""
    return [sys.executable, "-c", FAULTY.format(fault=fault, seconds=seconds)]


def attempt(stack, running, listener="clear"):
    """A session, let in or not, and its decision."""
    address = "127.0.0.1", running.port(listener)
    client = stack.enter_context(WireClient(address, source=another_source(), timeout=wire.PROMPTLY))
    client.send(wire.startup(user="alice"))
    message = client.read_message()
    if message.kind == b"R":
        client.read_until(b"Z")
    return client, running.wait_for_event("session_decided", **client.where)


def decisions_of_each(stack, running, workers, listener="clear"):
    """Decisions until so many workers have made some; sessions stay, so that each gets its share."""
    found = {}

    def all_have_one():
        client, decided = attempt(stack, running, listener)
        found.setdefault(decided["worker"], []).append((client, decided))
        return len(found) == workers

    until(all_have_one)
    return {worker: [decided for _, decided in entries] for worker, entries in found.items()}


def verdicts(decisions):
    return {
        (decided["generation"], decided["verdict"]) for entries in decisions.values() for decided in entries
    }


def write(running, name, content):
    (running.config.parent / name).write_text(content)


def answers(client):
    client.send(wire.query("SELECT 1"))
    return client.read_until(b"Z") != []


def test_a_reload_is_told_once_and_holds_in_every_worker(start):
    running = start(3)
    with ExitStack() as stack:
        assert verdicts(decisions_of_each(stack, running, 3)) == {(1, "allowed")}
        write(running, "other.conf", REJECT)
        assert running.reload()["generation"] == 2
        assert verdicts(decisions_of_each(stack, running, 3)) == {(2, "allowed")}
        assert verdicts({0: [attempt(stack, running, "other")[1] for _ in range(30)]}) == {(2, "refused")}
    assert len(running.log_events("reloaded")) == len(running.log_events("reloading")) == 1


def test_a_mistake_is_told_once_and_every_worker_keeps_what_was(start):
    running = start(3)
    write(running, "pg_hba.conf", BROKEN)
    event = running.reload()
    assert (event["event"], event["kept"]) == ("reload_failed", ["policy of listener clear"])
    assert len(running.log_events("config_mistake")) == 1
    with ExitStack() as stack:
        assert verdicts(decisions_of_each(stack, running, 3)) == {(2, "allowed")}


def test_a_worker_that_is_replaced_serves_what_the_others_do_whatever_the_files_say_now(start):
    """Two units kept from two reloads, and files that nobody has been told of."""
    running = start(2)
    write(running, "other.conf", REJECT)
    assert running.reload()["event"] == "reloaded"
    write(running, "other.conf", BROKEN)
    assert running.reload()["kept"] == ["policy of listener other"]
    write(running, "pg_hba.conf", BROKEN)
    assert running.reload()["kept"] == ["policy of listener clear", "policy of listener other"]
    write(running, "pg_hba.conf", REJECT)
    write(running, "other.conf", TRUST)
    for pid in running.workers:
        os.kill(pid, signal.SIGKILL)
    old = set(running.workers)
    until(lambda: len(running.workers) == 2 and not old & set(running.workers))
    with ExitStack() as stack:
        assert verdicts(decisions_of_each(stack, running, 2)) == {(4, "allowed")}
        assert verdicts({0: [attempt(stack, running, "other")[1] for _ in range(10)]}) == {(4, "refused")}


def test_nobody_swaps_before_all_have_built(start, tmp_path):
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    running = start(2, command=faulty(f"open({str(gate)!r}).read()"))
    write(running, "other.conf", REJECT)
    since = running.mark()
    running.signal(signal.SIGHUP)
    with ExitStack() as stack, gate.open("w"):  # which waits for worker 1
        assert verdicts(decisions_of_each(stack, running, 2, "other")) == {(1, "allowed")}
        assert running.log_events("reloaded") == []
    running.wait_for_event("reloaded", since=since)
    with ExitStack() as stack:
        assert verdicts(decisions_of_each(stack, running, 2)) == {(2, "allowed")}
        assert verdicts({0: [attempt(stack, running, "other")[1] for _ in range(10)]}) == {(2, "refused")}


@pytest.mark.parametrize("fault", [CANNOT_BUILD, BUILD_HANGS], ids=["fails", "hangs"])
def test_a_worker_that_cannot_build_lets_nobody_in_any_more_and_is_replaced(start, fault):
    running = start(2, command=faulty(fault))
    running.allow_bugs = True
    with ExitStack() as stack:
        sessions = {}
        while len(sessions) < 2:
            client, decided = attempt(stack, running)
            sessions[decided["worker"]] = client
        write(running, "other.conf", REJECT)
        assert running.reload()["event"] == "reloaded"
        assert running.wait_for_event("worker_cannot_reload")["worker"] == 1
        until(lambda: len(running.workers) == 3)
        # Until it hears that it has to go it may accept, and lets nobody in.
        found = [attempt(stack, running, "other")[1] for _ in range(20)]
        assert {verdict for _, verdict in verdicts({0: found})} == {"refused"}
        until(lambda: 1 not in {attempt(stack, running, "other")[1]["worker"] for _ in range(5)})
        assert all(answers(client) for client in sessions.values()), "sessions go on"
        sessions[1].send(wire.TERMINATE)
        sessions[1].read_to_end()
    until(lambda: len(running.workers) == 2)
    assert running.log_events("worker_died") == []
    assert running.stop() == 0


def test_a_build_that_ends_too_late_is_not_taken_for_the_next_reloads(start, tmp_path):
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    waits = f"import os; os.path.exists({str(gate)!r}) and open({str(gate)!r}).read()"
    running = start(1, command=faulty(waits, seconds=2.0))
    write(running, "other.conf", REJECT)
    assert running.reload()["kept"] == ["everything"]
    write(running, "other.conf", BROKEN)
    since = running.mark()
    running.signal(signal.SIGHUP)
    running.wait_for_event("reloading", since=since)
    with gate.open("w"):
        gate.unlink()
    event = running.wait_for_event("reload_failed", since=since)
    assert (event["generation"], event["kept"]) == (2, ["policy of listener other"])
    with ExitStack() as stack:
        assert verdicts({1: [attempt(stack, running, "other")[1]]}) == {(2, "allowed")}
    assert running.log_events("reloaded") == []


def test_a_worker_that_does_not_swap_is_ended_so_that_nobody_is_let_in_by_the_old_rules(start):
    running = start(2, command=[sys.executable, "-c", HANGS_AT_A_SWAP])
    write(running, "other.conf", REJECT)
    assert running.reload()["event"] == "reloaded"
    assert running.wait_for_event("worker_does_not_swap")["worker"] == 1
    assert running.wait_for_event("worker_died")["signal"] == "SIGKILL"
    with ExitStack() as stack:
        assert verdicts(decisions_of_each(stack, running, 2)) == {(2, "allowed")}
        assert verdicts({0: [attempt(stack, running, "other")[1] for _ in range(20)]}) == {(2, "refused")}


def test_a_login_under_way_in_a_worker_that_cannot_build_is_not_let_in(start):
    running = start(2, command=faulty(CANNOT_BUILD))
    running.allow_bugs = True
    with ExitStack() as stack:
        late = [
            stack.enter_context(WireClient(("127.0.0.1", running.port("clear")), source=another_source()))
            for _ in range(20)
        ]
        for client in late:
            client.send(wire.startup(user="alice")[:4])
        attempt(stack, running)  # by then the others were accepted
        write(running, "other.conf", REJECT)
        running.reload()
        running.wait_for_event("worker_cannot_reload")
        for client in late:
            client.send(wire.startup(user="alice")[4:])
        decided = [running.wait_for_event("session_decided", **client.where) for client in late]
    assert {(each["verdict"], each["sqlstate"]) for each in decided if each["worker"] == 1} == {
        ("refused", "57P01")
    }
    assert {each["verdict"] for each in decided if each["worker"] != 1} == {"allowed"}


def test_a_worker_that_dies_of_a_reload_does_not_hold_it_up(start):
    running = start(2, command=faulty(DIES_BUILDING))
    write(running, "other.conf", REJECT)
    assert running.reload()["event"] == "reloaded"
    assert running.wait_for_event("worker_died")["status"] == 3
    until(lambda: len(running.workers) == 2)
    with ExitStack() as stack:
        assert verdicts(decisions_of_each(stack, running, 2)) == {(2, "allowed")}
        assert verdicts({0: [attempt(stack, running, "other")[1] for _ in range(10)]}) == {(2, "refused")}


def test_reloads_and_dying_workers_at_once_end_in_one_generation(start):
    running = start(3)
    for _ in range(4):
        victim = running.workers[0]
        running.signal(signal.SIGHUP)
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(workers := running.workers) == 3 and victim not in workers)  # noqa: B023 - asked at once
    until(lambda: len(running.log_events("reloading")) == len(running.log_events("reloaded")))
    newest = running.reload()["generation"]
    with ExitStack() as stack:
        assert verdicts(decisions_of_each(stack, running, 3)) == {(newest, "allowed")}


def test_another_number_of_workers_is_told_to_need_a_start(start):
    running = start(1)
    text = running.config.read_text()
    running.config.write_text(text.replace("workers: 1", "workers: 2"))
    assert running.reload()["event"] == "reloaded"
    warnings = [event["warning"] for event in running.log_events("config_warning")]
    assert [
        each for each in warnings if each.endswith("workers: changed; this takes effect at the next start")
    ]
