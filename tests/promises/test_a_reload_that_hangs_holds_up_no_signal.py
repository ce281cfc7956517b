"""A reload takes as long as its files and commands do; SIGTERM is obeyed meanwhile, and SIGHUP not forgotten."""

import os
import signal

import pytest

from fixtures import wire
from fixtures.deployments import config, passthrough, with_tls
from fixtures.fake_backend import lets_everybody_in
from fixtures.waiting import until


class Gate:
    """Holds up a passphrase command, once it is there: the command reads a FIFO to its end."""

    def __init__(self, path):
        self._path = path
        self.command = f"test ! -p {path} || cat {path}; echo needless"

    def shut(self):
        os.mkfifo(self._path)

    def wait(self):
        """Until a command stands before it. Returns what lets it pass."""
        descriptor = until(self._somebody_there)
        return lambda: os.close(descriptor)

    def _somebody_there(self):
        try:
            return os.open(self._path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return None


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path / "gate")


@pytest.fixture
def running(proxy, certs, fake_backend, gate):
    """A proxy whose reloads wait at the gate."""
    words = {"ssl_passphrase_command": gate.command, "ssl_passphrase_command_supports_reload": True}
    running = proxy(
        config(
            {"tls": with_tls(certs, **words)},
            primary=passthrough(fake_backend(lets_everybody_in), certs, require_auth="none"),
        ),
        {"pg_hba.conf": "host all all all trust\n"},
    )
    gate.shut()
    return running


def sighup(running):
    """SIGHUP, and a session behind it: the proxy has noticed."""
    running.signal(signal.SIGHUP)
    log_in(running)


def log_in(running):
    with wire.connected(("127.0.0.1", running.port("tls"))) as client:
        client.send(wire.startup(user="alice"))
        client.read_until(b"Z")


def test_sigterm_ends_a_proxy_whose_reload_hangs(running, gate):
    sighup(running)
    let_pass = gate.wait()
    assert running.stop(timeout=wire.PROMPTLY) == 0
    let_pass()
    assert running.log_events("reloaded") == []
    assert running.log_events()[-1]["event"] == "stopped"


def test_sighups_during_a_reload_cause_one_more_and_only_one(running, gate):
    sighup(running)
    let_pass = gate.wait()
    for _ in range(3):
        sighup(running)
    let_pass()
    running.wait_for_event("reloaded", generation=2)
    let_pass = gate.wait()
    let_pass()
    running.wait_for_event("reloaded", generation=3)
    log_in(running)
    assert running.stop(timeout=wire.PROMPTLY) == 0
    assert len(running.log_events("reloading")) == 2
