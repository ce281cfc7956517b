"""A reload takes as long as its files and commands do; SIGTERM is obeyed meanwhile, and SIGHUP not forgotten.

Files that do not answer at all are named in the log and show in the metrics, until they answer.
"""

import os
import signal
import sys
import urllib.request

import pytest

from fixtures import wire
from fixtures.deployments import config, passthrough, with_tls
from fixtures.fake_backend import lets_everybody_in
from fixtures.waiting import until

HANGS = """
import os, sys
from pgtlsproxy.proxy import errands, files
errands.HANG_SECONDS = 0.3
real = files.read_file
def read_file(path, *arguments):
    if os.path.exists({gate!r}) and path.endswith("pg_hba.conf"):
        open({gate!r}).read()
    return real(path, *arguments)
files.read_file = read_file
from pgtlsproxy.cli import main
main(sys.argv[1:])
"""


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


# --- A file system that hangs --------------------------------------------------------------------------


@pytest.fixture
def mount(tmp_path, proxy, certs, fake_backend):
    """A proxy, and the gate before its pg_hba.conf, which stands open."""

    def start(interval):
        gate = tmp_path / "gate"
        settings = config(
            {"tls": with_tls(certs)},
            primary=passthrough(fake_backend(lets_everybody_in), certs, require_auth="none"),
        )
        settings |= {"reload_interval": interval, "status": {"listen": "127.0.0.1:0"}}
        command = [sys.executable, "-c", HANGS.format(gate=str(gate))]
        running = proxy(settings, {"pg_hba.conf": "host all all all trust\n"}, command=command)
        running.wait_for_event("ready")
        return running, gate

    return start


def successful(running):
    """What the metrics say of the last reload, and of the units that keep their old content."""
    with urllib.request.urlopen(f"http://127.0.0.1:{running.status_port}/metrics", timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    value = next(line for line in lines if line.startswith("pgtlsproxy_config_last_reload_successful "))
    return value.endswith(" 1.0"), [
        line for line in lines if line.startswith("pgtlsproxy_reload_failed") and "hang" in line
    ]


def open_gate(gate):
    """Let everybody pass who stands before it, and who comes."""
    gate.rename(gate.with_name("opened"))

    def is_nobody_there():
        try:
            os.close(os.open(gate.with_name("opened"), os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            return True
        return False

    until(is_nobody_there)


def test_a_look_that_hangs_is_told_once_with_its_file_and_shows_until_it_answers(mount):
    running, gate = mount("100ms")
    assert successful(running) == (True, [])
    os.mkfifo(gate)
    told = running.wait_for_event("files_hang")
    assert f'"{running.config.parent}/pg_hba.conf" has not been read' in told["reason"]
    until(lambda: successful(running) == (False, ['pgtlsproxy_reload_failed{unit="files that hang"} 1.0']))
    log_in(running)
    open_gate(gate)
    running.wait_for_event("files_answer_again")
    until(lambda: successful(running) == (True, []))
    (running.config.parent / "pg_hba.conf").write_text("host all all all trust\n# more\n")
    running.wait_for_event("reloaded")
    assert len(running.log_events("files_hang")) == 1


def test_a_reload_that_hangs_is_given_up_and_done_when_the_files_answer(mount):
    running, gate = mount("0")
    os.mkfifo(gate)
    for _ in range(2):  # it does not stand in the way of the next, either
        failed = running.reload()
        assert (failed["event"], failed["kept"]) == ("reload_failed", ["everything"])
        assert "pg_hba.conf" in failed["reason"]
    until(lambda: not successful(running)[0])
    since = running.mark()
    open_gate(gate)
    running.wait_for_event("reloaded", since=since, generation=2)
    until(lambda: successful(running) == (True, []))
    assert running.stop(timeout=wire.PROMPTLY) == 0


def test_sigterm_ends_a_proxy_whose_files_hang(mount):
    running, gate = mount("100ms")
    os.mkfifo(gate)
    running.wait_for_event("files_hang")
    assert running.stop(timeout=wire.PROMPTLY) == 0
