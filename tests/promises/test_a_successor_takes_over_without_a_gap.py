"""SIGUSR2: the proxy is upgraded, or its addresses and workers changed, while clients come and go."""

import os
import signal
import socket
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import yaml

from fixtures import wire
from fixtures.deployments import config, in_clear, passthrough
from fixtures.fake_backend import lets_everybody_in
from fixtures.processes import command_of, family, held_by
from fixtures.service_manager import NotifySocket, activated
from fixtures.waiting import until
from fixtures.wire import WireClient

HBA = {"pg_hba.conf": "host all all all trust\nlocal all all trust\n"}

IN_A_SUCCESSOR = """
import os, sys, time
if "PGTLSPROXY_PREDECESSOR" in os.environ:
    {what}
from pgtlsproxy.cli import main
main(sys.argv[1:])
"""


@pytest.fixture
def settings(certs, fake_backend):
    def make(listen=("127.0.0.1:0",), **top):
        backend = passthrough(fake_backend(lets_everybody_in), certs, require_auth="none")
        return config({"a": in_clear(listen=list(listen))}, primary=backend) | {"drain_timeout": "5s"} | top

    return make


@pytest.fixture
def start(proxy, settings):
    """A proxy whose successors are gone, too, when the test is over."""
    started = []

    def go(*listen, **top):
        words = {name: top.pop(name) for name in ("command", "environment") if name in top}
        running = proxy(settings(listen or ("127.0.0.1:0",), **top), HBA, **words)
        running.wait_for_event("ready", timeout=60.0)
        started.append(running)
        return running

    yield go
    for running in started:
        end_successors(running)


def end_successors(running):
    for event in running.log_events("upgrading"):
        kill(event["pid"])


def kill(pid):
    """Kill a process that may be nobody's child any more, and so nobody else's by its number either."""
    if b"serve" in command_of(pid):
        os.kill(pid, signal.SIGKILL)
        until(lambda: not command_of(pid))


def upgrade(running, timeout=60.0):
    """SIGUSR2, and the successor's process when it has taken over."""
    since = running.mark()
    running.signal(signal.SIGUSR2)
    running.wait_for_event("took_over", timeout=timeout, since=since)
    return running.wait_for_event("handed_over", timeout=timeout, since=since)["pid"]


def change(running, **top):
    content = yaml.safe_load(running.config.read_text())
    listen = top.pop("listen", None)
    if listen is not None:
        content["listeners"]["a"]["listen"] = listen
    running.config.write_text(yaml.safe_dump(content | top))


def log_in(where, timeout=wire.PROMPTLY):
    client = WireClient(where, timeout=timeout)
    client.send(wire.startup(user="alice"))
    client.read_until(b"Z")
    return client


def files_in(folder):
    return sorted(each.name for each in folder.iterdir() if each.name.startswith(".s."))


def workers_of(pid):
    return [each for each in family(pid)[1:] if b"--supervisor" in command_of(each)]


class Clients:
    """Log in, ask and leave, one after the other, until told to stop."""

    def __init__(self, where):
        self._where = where
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(4)]
        self.seconds = []
        self.errors = []

    def _run(self):
        while not self._is_over.is_set():
            began = time.monotonic()
            try:
                with log_in(self._where, timeout=60.0) as client:
                    self.seconds.append(time.monotonic() - began)
                    client.send(wire.query("SELECT 1"))
                    answer = client.read_until(b"Z")
                    assert answer
            except Exception as error:  # noqa: BLE001 - all of them count
                self.errors.append(repr(error))
            self._is_over.wait(0.005)

    @contextmanager
    def coming(self):
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._is_over.set()
            for thread in self._threads:
                thread.join()


def test_nobody_is_refused_while_one_takes_the_others_place(start, tmp_path):
    running = start("127.0.0.1:0", f"unix:{tmp_path}:1", workers=2)
    tcp, unix = Clients(("127.0.0.1", running.port("a"))), Clients(f"{tmp_path}/.s.PGSQL.1")
    with tcp.coming(), unix.coming():
        until(lambda: len(tcp.seconds) > 20 and len(unix.seconds) > 20)
        pid = upgrade(running)
        count = len(tcp.seconds), len(unix.seconds)
        until(lambda: len(tcp.seconds) > count[0] + 20 and len(unix.seconds) > count[1] + 20)
        assert running._process.wait(60.0) == 0
        count = len(tcp.seconds), len(unix.seconds)
        until(lambda: len(tcp.seconds) > count[0] + 20 and len(unix.seconds) > count[1] + 20)
    assert (tcp.errors, unix.errors) == ([], [])
    assert len(workers_of(pid)) == 2


def test_the_files_of_a_unix_socket_are_the_successors(start, tmp_path):
    running = start(f"unix:{tmp_path}:1", f"unix:{tmp_path}:2")
    path = tmp_path / ".s.PGSQL.1"
    inode = path.stat().st_ino
    change(running, listen=[f"unix:{tmp_path}:1"])
    pid = upgrade(running)
    assert running._process.wait(60.0) == 0
    assert path.stat().st_ino == inode
    assert path.with_name(path.name + ".lock").read_text() == f"{pid}\n"
    log_in(str(path)).close()
    assert files_in(tmp_path) == [path.name, path.name + ".lock"], (
        "what nobody listens on any more is removed"
    )
    since = running.mark()
    os.kill(pid, signal.SIGTERM)
    running.wait_for_event("stopped", since=since)
    until(lambda: files_in(tmp_path) == [])


def test_a_session_that_is_idle_is_told_and_a_transaction_goes_on(proxy, certs, tls_cluster):
    """Against PostgreSQL, by psycopg."""
    import psycopg

    listen = in_clear()
    backend = passthrough(tls_cluster(15), certs)
    running = proxy(
        config({"a": listen}, primary=backend) | {"drain_timeout": "30s"},
        {"pg_hba.conf": "host all all all scram-sha-256\n"},
    )
    running.wait_for_event("ready", timeout=60.0)
    words = {
        "host": "127.0.0.1",
        "port": running.port("a"),
        "user": "alice",
        "password": "alice-secret",
        "dbname": "postgres",
        "sslmode": "disable",
    }
    with ExitStack() as stack:
        stack.callback(end_successors, running)
        busy, idle = (stack.enter_context(psycopg.connect(**words)) for _ in range(2))
        busy.execute("CREATE TEMPORARY TABLE kept AS SELECT 1 AS one")
        upgrade(running)
        running.wait_for_event("session_ended", kind="shutdown", timeout=60.0)
        with pytest.raises(psycopg.errors.AdminShutdown):
            idle.execute("SELECT 1")
        running.signal(signal.SIGHUP)  # which whoever drains ignores
        running.signal(signal.SIGUSR2)
        assert busy.execute("SELECT one FROM kept").fetchone() == (1,)
        busy.commit()
        with psycopg.connect(**words) as again:
            assert again.execute("SELECT 1").fetchone() == (1,)
        assert running._process.wait(60.0) == 0
        assert running.log_events("reloading") == []
        assert len(running.log_events("upgrading")) == 1


def test_addresses_and_workers_change_so(start):
    running = start("127.0.0.1:0")
    port = running.port("a")
    change(running, listen=["127.0.0.1:0", "127.0.0.2:0"], workers=2)
    since = running.mark()
    pid = upgrade(running)
    assert len(workers_of(pid)) == 2
    events = [each["address"] for each in running.log_events("listening")[1:]]
    assert events[0] == f"127.0.0.1:{port}"
    assert events[1].startswith("127.0.0.2:")
    log_in(("127.0.0.2", int(events[1].rpartition(":")[2]))).close()
    # What is listened on no more is let go.
    assert running._process.wait(60.0) == 0
    since = running.mark()
    change(running, listen=["127.0.0.2:0"], workers=1)
    os.kill(pid, signal.SIGUSR2)
    running.wait_for_event("took_over", since=since, timeout=60.0)

    def is_refused():
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            return True
        return False

    until(is_refused)


def test_a_successor_that_cannot_serve_changes_nothing(start, tmp_path):
    running = start("127.0.0.1:0", f"unix:{tmp_path}:1", status={"listen": "127.0.0.1:0"})
    before = running.workers
    yaml_file, hba_file = running.config, running.config.with_name("pg_hba.conf")
    good = yaml_file.read_text()

    def fails_for(wrong):
        since = running.mark()
        running.signal(signal.SIGUSR2)
        failed = running.wait_for_event("upgrade_failed", timeout=60.0, since=since)
        assert failed["reason"] == "it ended before it served"
        assert wrong in running.wait_for_event("config_mistake", since=since)["mistake"]
        assert running.workers == before
        for where in (("127.0.0.1", running.port("a")), f"{tmp_path}/.s.PGSQL.1"):
            log_in(where).close()

    yaml_file.write_text("listeners: [")
    fails_for("pgtlsproxy.yaml:1")
    yaml_file.write_text(good)
    hba_file.write_text("host all all all nonsense\n")
    fails_for("pg_hba.conf:1")
    hba_file.write_text(HBA["pg_hba.conf"])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        change(running, listen=[f"unix:{tmp_path}:1", f"127.0.0.1:{taken.getsockname()[1]}"])
        fails_for("Address already in use")
    assert running.stop() == 0
    assert files_in(tmp_path) == []


@pytest.mark.parametrize(
    ("what", "seconds", "reason"),
    [
        ("__import__('os')._exit(9)", 60, "it ended before it served"),
        ("time.sleep(3600)", 1, "it did not serve within 1 s"),
    ],
)
def test_new_code_that_is_broken_or_hangs_changes_nothing(start, what, seconds, reason):
    code = f"from pgtlsproxy.proxy import upgrade\nupgrade.UPGRADE_SECONDS = {seconds}\n"
    code += IN_A_SUCCESSOR.format(what=what)
    running = start(command=[sys.executable, "-c", code])
    running.signal(signal.SIGUSR2)
    pid = running.wait_for_event("upgrading", timeout=60.0)["pid"]
    assert running.wait_for_event("upgrade_failed", timeout=90.0)["reason"] == reason
    until(lambda: not command_of(pid))
    log_in(("127.0.0.1", running.port("a"))).close()


def test_told_to_end_meanwhile_both_end(start):
    running = start(command=[sys.executable, "-c", IN_A_SUCCESSOR.format(what="time.sleep(3600)")])
    running.signal(signal.SIGUSR2)
    pid = running.wait_for_event("upgrading")["pid"]
    assert running.stop() == 0
    assert running.wait_for_event("upgrade_failed")["reason"] == "we were told to end"
    assert not command_of(pid)


def test_the_service_manager_is_told_who_is_the_main_process(start):
    with NotifySocket() as manager:
        running = start(environment=manager.environment | {"WATCHDOG_USEC": "1000000"})
        manager.until(READY="1", timeout=60.0)
        descriptors = held_by(running.pid).descriptors
        running.signal(signal.SIGUSR2)
        told = manager.next()
        while "MAINPID" not in told:
            told = manager.next()
        assert told == {"MAINPID": str(running.wait_for_event("handed_over", timeout=60.0)["pid"])}
        manager.until(WATCHDOG="1")
        assert running._process.wait(60.0) == 0
        assert not any("STOPPING" in each for each in manager.heard)
        manager.until(WATCHDOG="1")
        until(lambda: held_by(int(told["MAINPID"])).descriptors == descriptors)


def test_sockets_of_the_service_manager_are_handed_on_and_metrics_go_on(proxy, settings):
    def readiness():
        with socket.create_connection(("127.0.0.1", running.status_port), timeout=60.0) as client:
            client.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return client.makefile("rb").readline().split()[1]

    with socket.create_server(("127.0.0.1", 0)) as sock:
        path = proxy.write(settings(status={"listen": "127.0.0.1:0"}), HBA)
        running = proxy.run(path, **activated([("a", sock)]))
        running.wait_for_event("ready", timeout=60.0)
        try:
            until(lambda: readiness() == b"200")
            upgrade(running)
            assert readiness() == b"200", "neither one that ends answers, nor one that does not serve yet"
            assert running._process.wait(60.0) == 0
            log_in(sock.getsockname()).close()
            assert [each["is_passed"] for each in running.log_events("listening")] == [True, True]
            listening = [each["address"] for each in running.log_events("status_listening")]
            assert listening == [f"127.0.0.1:{running.status_port}"] * 2
        finally:
            end_successors(running)


def test_workers_take_the_signal_for_nothing(start):
    """`systemctl kill -s USR2` tells it to every process of the unit, unless --kill-whom=main says otherwise."""
    running = start()
    (worker,) = running.workers
    os.kill(worker, signal.SIGUSR2)
    log_in(("127.0.0.1", running.port("a"))).close()
    assert running.workers == [worker]
    assert Path(f"/proc/{worker}").exists()
