"""`reuse_port`: a newcomer listens beside its predecessor, and at no moment does nobody answer."""

import os
import signal
import socket
import threading
from pathlib import Path

import pytest

from fixtures import wire
from fixtures.deployments import config, in_clear, passthrough
from fixtures.fake_backend import lets_everybody_in
from fixtures.waiting import until
from fixtures.wire import WireClient

HBA = {"pg_hba.conf": "host all all all trust\nlocal all all trust\n"}


@pytest.fixture
def settings(certs, fake_backend):
    def make(listen, **top):
        backend = passthrough(fake_backend(lets_everybody_in), certs, require_auth="none")
        return config({"a": in_clear(listen=listen)}, primary=backend) | {"reuse_port": True} | top

    return make


@pytest.fixture
def start(proxy, settings):
    def go(*listen, **top):
        running = proxy(settings(list(listen), **top), HBA)
        running.wait_for_event("ready", timeout=60.0)
        return running

    return go


@pytest.fixture
def refusal(proxy, settings, command_line):
    """What an instance says that cannot listen."""

    def go(*listen, **top):
        done = command_line("serve", "-c", proxy.write(settings(list(listen), **top), HBA))
        assert done.returncode == 1
        return done.stderr

    return go


def serves(running, where):
    """Whether this one has the next session there; which of two does is the kernel's choice for TCP."""
    before = len(running.log_events("session_decided"))
    with WireClient(where, timeout=wire.PROMPTLY) as client:
        client.send(wire.startup(user="alice"))
        client.read_until(b"Z")
    running.reload()  # behind whose event in the log nothing older comes
    return len(running.log_events("session_decided")) > before


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


class Connecting:
    """Connects to a Unix socket all the time, in a thread; nobody may be refused."""

    def __init__(self, path):
        self._path = path
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.connected = 0
        self.errors = []

    def _run(self):
        while not self._is_over.is_set():
            try:
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.settimeout(wire.PROMPTLY)
                    sock.connect(self._path)
                    self.connected += 1
            except OSError as error:
                self.errors.append(repr(error))
            self._is_over.wait(0.001)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._is_over.set()
        self._thread.join()


def files_in(folder):
    return sorted(each.name for each in folder.iterdir() if each.name.startswith(".s."))


def test_two_instances_listen_on_one_port_and_one_status_port(start):
    port, status = free_port(), free_port()
    words = {"status": {"listen": f"127.0.0.1:{status}"}}
    first = start(f"127.0.0.1:{port}", **words)
    second = start(f"127.0.0.1:{port}", **words)
    assert first.status_port == second.status_port == status
    until(lambda: serves(first, ("127.0.0.1", port)))
    until(lambda: serves(second, ("127.0.0.1", port)))
    assert first.stop() == 0
    until(lambda: serves(second, ("127.0.0.1", port)))


def test_a_newcomer_takes_a_unix_socket_over_and_nobody_is_refused(start, tmp_path):
    path = f"{tmp_path}/.s.PGSQL.1"
    first = start(f"unix:{tmp_path}:1")
    with Connecting(path) as connecting:
        until(lambda: connecting.connected > 10)
        second = start(f"unix:{tmp_path}:1")
        until(lambda: serves(second, path))
        inode = Path(path).stat().st_ino
        assert first.stop() == 0
        assert Path(path).stat().st_ino == inode
        until(lambda: serves(second, path))
        before = connecting.connected
        until(lambda: connecting.connected > before + 10)
    assert connecting.errors == []
    assert second.stop() == 0
    assert files_in(tmp_path) == []


def test_whoever_is_in_the_old_ones_queue_is_served_by_it(start, tmp_path):
    path = f"{tmp_path}/.s.PGSQL.1"
    first = start(f"unix:{tmp_path}:1")
    (worker,) = first.workers
    os.kill(worker, signal.SIGSTOP)
    with WireClient(path, timeout=60.0) as client:
        client.send(wire.startup(user="alice"))
        start(f"unix:{tmp_path}:1")
        os.kill(worker, signal.SIGCONT)
        client.read_until(b"Z")
    first.wait_for_event("session_decided")


def test_both_have_to_want_it(start, refusal, tmp_path):
    port = free_port()
    running = start(f"unix:{tmp_path}:1", f"127.0.0.1:{port}", reuse_port=False)
    said = refusal(f"unix:{tmp_path}:1", f"127.0.0.1:{port}")
    assert f"held by another pgtlsproxy (process {running.pid})" in said
    assert "where both have reuse_port: on" in said
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in said
    until(lambda: serves(running, f"{tmp_path}/.s.PGSQL.1"))
    assert running.stop() == 0
    assert files_in(tmp_path) == []
