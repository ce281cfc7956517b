"""Whoever dies is replaced and takes nobody along; when the supervisor goes, nobody stays; what never starts ends."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

import pgtlsproxy
from fixtures import wire
from fixtures.clients import clean_environment
from fixtures.deployments import config, in_clear, passthrough, with_tls
from fixtures.fake_backend import lets_everybody_in
from fixtures.proxy import COMMAND
from fixtures.waiting import until
from fixtures.wire import WireClient

HBA = {"pg_hba.conf": "host all all all trust\nlocal all all trust\n"}

DIES_AT_ITS_START = """
import os, sys
if sys.argv[1] == "worker":
    os._exit(9)
from pgtlsproxy.cli import main
main(sys.argv[1:])
"""

RELAY_DIES = """
import sys
from pgtlsproxy.proxy.relay_loop import RelayLoop
def add(self, *_):
    raise SystemExit("made to die")
RelayLoop.add = add
from pgtlsproxy.cli import main
main(sys.argv[1:])
"""


@pytest.fixture
def settings(certs, fake_backend):
    def make(workers, **words):
        backend = passthrough(fake_backend(lets_everybody_in), certs, require_auth="none")
        return config({"clear": in_clear(**words)}, primary=backend) | {"workers": workers}

    return make


@pytest.fixture
def start(proxy, settings):
    def go(workers, command=COMMAND, **words):
        running = proxy(settings(workers, **words), HBA, command=command)
        running.wait_for_event("ready")
        return running

    return go


def log_in(stack, running):
    """A session, and the number of the worker that has it."""
    client = stack.enter_context(WireClient(("127.0.0.1", running.port("clear")), timeout=wire.PROMPTLY))
    client.send(wire.startup(user="alice"))
    client.read_until(b"Z")
    decided = running.wait_for_event("session_decided", **client.where)
    return client, decided["worker"]


def sessions_of_each(stack, running, workers):
    """Sessions until each of so many workers has one: a list for each worker."""
    found = {}

    def all_have_one():
        client, worker = log_in(stack, running)
        found.setdefault(worker, []).append(client)
        return len(found) == workers

    until(all_have_one)
    return found


def answers(client):
    client.send(wire.query("SELECT 1"))
    return client.read_until(b"Z") != []


def is_gone(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def test_a_killed_worker_is_replaced_and_the_others_sessions_go_on(start):
    running = start(2)
    with ExitStack() as stack:
        sessions = sessions_of_each(stack, running, 2)
        before = running.workers
        os.kill(before[0], signal.SIGKILL)
        died = running.wait_for_event("worker_died")
        assert (died["pid"], died["signal"], died["status"]) == (before[0], "SIGKILL", None)
        assert died["restart_in"] == 0
        lost, kept = died["worker"], 3 - died["worker"]
        assert all(answers(client) for client in sessions[kept])
        assert all(client.read_to_end() == b"" for client in sessions[lost])
        until(lambda: len(running.workers) == 2 and before[0] not in running.workers)
        assert before[1] in running.workers
        again = sessions_of_each(stack, running, 2)
        assert all(answers(client) for clients in again.values() for client in clients)
        assert all(answers(client) for client in sessions[kept])
    assert running.stop() == 0


def test_clients_that_wait_when_a_worker_dies_are_served_by_another(start):
    """All workers accept from one queue, so nothing is reset with a queue of the one that dies."""
    running = start(2)
    os.kill(running.workers[0], signal.SIGSTOP)
    os.kill(running.workers[1], signal.SIGSTOP)
    with ExitStack() as stack:
        waiting = [stack.enter_context(WireClient(("127.0.0.1", running.port("clear")))) for _ in range(20)]
        for client in waiting:
            client.send(wire.startup(user="alice"))
        os.kill(running.workers[0], signal.SIGKILL)
        os.kill(running.workers[-1], signal.SIGCONT)
        for client in waiting:
            assert client.read_until(b"Z")


def test_a_worker_whose_relay_dies_ends_and_is_replaced(start):
    running = start(1, command=[sys.executable, "-c", RELAY_DIES])
    running.allow_bugs = True
    (worker,) = running.workers
    with ExitStack() as stack:
        client, _ = log_in(stack, running)
        died = running.wait_for_event("worker_died")
        assert (died["pid"], died["status"], died["signal"]) == (worker, 70, None)
        client.read_to_end()
    until(lambda: running.workers not in ([], [worker]))
    with ExitStack() as stack:
        log_in(stack, running)


def test_workers_end_at_once_when_their_supervisor_is_killed(start):
    running = start(2)
    with ExitStack() as stack:
        sessions = sessions_of_each(stack, running, 2)
        workers = running.workers
        assert len(workers) == 2
        running.signal(signal.SIGKILL)
        until(lambda: all(map(is_gone, workers)), timeout=wire.PROMPTLY)
        for clients in sessions.values():
            assert all(client.read_to_end() == b"" for client in clients)
    # The last thread of a process may hold its descriptors for a moment longer than the process is to be seen.
    until(lambda: is_refused(running.port("clear")), timeout=wire.PROMPTLY)


def is_refused(port):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_worker_that_hangs_does_not_outlive_its_supervisor(start):
    running = start(1)
    (worker,) = running.workers
    os.kill(worker, signal.SIGSTOP)
    running.signal(signal.SIGKILL)
    until(lambda: is_gone(worker), timeout=wire.PROMPTLY)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_all_end_and_the_supervisor_last(start, number):
    running = start(3)
    with ExitStack() as stack:
        sessions_of_each(stack, running, 3)
        workers = running.workers
        running.signal(number)
        assert running.wait() == 0
        assert all(map(is_gone, workers))
    assert running.log_events()[-1]["event"] == "stopped"
    assert len(running.log_events("stopped")) == 1
    assert running.log_events("worker_died") == []
    assert {event["kind"] for event in running.log_events("session_ended")} == {"shutdown"}


def test_a_signal_of_the_terminal_to_every_process_ends_them_once(proxy, settings, empty_home):
    """Ctrl-C reaches the whole process group."""
    path = proxy.write(settings(2) | {"log": {"format": "json"}}, HBA)
    with subprocess.Popen(
        [*COMMAND, "serve", "-c", str(path)],
        cwd=Path(pgtlsproxy.__file__).parents[1], env=clean_environment(empty_home),
        stderr=subprocess.PIPE, start_new_session=True,
    ) as process:  # fmt: skip
        lines = []
        while b'"ready"' not in (lines[-1] if lines else b""):
            lines.append(process.stderr.readline())
        os.killpg(process.pid, signal.SIGHUP)
        while b'"reloaded"' not in lines[-1]:
            lines.append(process.stderr.readline())
        os.killpg(process.pid, signal.SIGINT)
        lines += process.stderr.readlines()
        assert process.wait() == 0
    assert b'"stopped"' in lines[-1]
    assert not [line for line in lines if b"Traceback" in line or b"worker_died" in line]


def test_listening_and_ready_are_told_once_by_the_supervisor(start):
    running = start(3)
    (ready,) = running.log_events("ready")
    assert (ready["workers"], "worker" in ready) == (3, False)
    assert len(running.log_events("listening")) == 1
    names = [event["event"] for event in running.log_events()]
    assert names.index("listening") < names.index("ready")


def test_a_worker_that_keeps_dying_is_started_ever_later_and_the_others_serve(start):
    running = start(2)
    pauses = []
    for _ in range(4):
        until(lambda: len(running.workers) == 2)
        since = running.mark()
        os.kill(running.workers[-1], signal.SIGKILL)
        pauses.append(running.wait_for_event("worker_died", since=since)["restart_in"])
        with ExitStack() as stack:
            log_in(stack, running)
    assert pauses == [0.0, 0.1, 0.2, 0.4]


def test_when_no_worker_ever_starts_serve_ends_and_says_so(proxy, settings, empty_home):
    path = proxy.write(settings(2) | {"log": {"format": "json"}}, HBA)
    done = subprocess.run(
        [sys.executable, "-c", DIES_AT_ITS_START, "serve", "-c", str(path)],
        cwd=Path(pgtlsproxy.__file__).parents[1], env=clean_environment(empty_home),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 70
    assert '"no_worker_starts"' in done.stderr
    deaths = [line for line in done.stderr.splitlines() if '"worker_died"' in line]
    assert 5 <= len(deaths) <= 10
    assert '"status": 9' in deaths[0]


def test_no_secret_is_in_what_others_can_see_of_a_worker(proxy, certs, fake_backend):
    """Its command, its environment, its open files."""
    backend = passthrough(fake_backend(lets_everybody_in), certs, login="certificate")
    listener = with_tls(certs, ssl_passphrase_command="echo sesame-of-the-key")
    shown = certs.client("pgtlsproxy")
    running = proxy(
        config({"tls": listener}, primary=backend | {"sslcert": shown.crt, "sslkey": shown.key}),
        {"pg_hba.conf": "hostssl all all all cert\n"},
    )
    (worker,) = running.workers
    folder = Path(f"/proc/{worker}")
    seen = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
    assert b"--control" in seen
    assert b"sesame" not in seen
    assert b"PRIVATE KEY" not in seen
    opened = [str(each.readlink()) for each in (folder / "fd").iterdir()]
    kinds = {name.partition(":")[0] for name in opened}
    assert kinds <= {"socket", "pipe", "anon_inode", "/dev/null", "/memfd"}, opened


def test_a_unix_socket_and_its_lock_are_gone_in_the_end_and_outlive_a_worker(start, tmp_path):
    running = start(2, listen=[f"unix:{tmp_path}:1", "127.0.0.1:0"])
    os.kill(running.workers[0], signal.SIGKILL)
    running.wait_for_event("worker_died")
    with WireClient(f"{tmp_path}/.s.PGSQL.1") as client:
        client.send(wire.startup(user="alice"))
        client.read_until(b"Z")
    assert running.stop() == 0
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".s.")]
