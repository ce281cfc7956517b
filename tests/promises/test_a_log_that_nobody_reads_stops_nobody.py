"""Whoever reads stderr may stop: sessions go on, lines are dropped and counted, and the end comes as asked."""

import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import pgtlsproxy
from fixtures import wire
from fixtures.clients import clean_environment
from fixtures.deployments import config, in_clear, passthrough
from fixtures.fake_backend import lets_everybody_in
from fixtures.wire import WireClient

PIPE_OCTETS = 4096
QUEUED_LINES = 20
SESSIONS = 60
END_SECONDS = 10.0
"""Ten times what the end may wait for its last lines."""

SHORT_QUEUE = f"""
import sys
from pgtlsproxy.observability import stream
stream.MAX_LINES = {QUEUED_LINES}
from pgtlsproxy.cli import main
main(sys.argv[1:])
"""


class Unread:
    """A proxy whose stderr is read by nobody but the test, and a small pipe."""

    def __init__(self, path, environment):
        reading, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_OCTETS)
        self._reader = os.fdopen(reading, "rb")
        self.process = subprocess.Popen(
            [sys.executable, "-c", SHORT_QUEUE, "serve", "-c", str(path)],
            stderr=writing,
            env=environment,
            cwd=Path(pgtlsproxy.__file__).parents[1],
        )
        os.close(writing)
        self.events = []
        self.port = int(self.read_until("listening")["address"].rpartition(":")[2])
        self.read_until("ready")

    def read_until(self, name):
        while not self.events or self.events[-1]["event"] != name:
            self.events.append(json.loads(self._reader.readline()))
        return self.events[-1]

    def read_to_end(self):
        self.events += [json.loads(line) for line in self._reader]

    def close(self):
        self.process.kill()
        self.process.wait()
        self._reader.close()


@pytest.fixture
def unread(proxy, certs, fake_backend, empty_home):
    backend = passthrough(fake_backend(lets_everybody_in), certs, require_auth="none")
    path = proxy.write(
        config({"clear": in_clear()}, primary=backend) | {"log": {"format": "json"}},
        {"pg_hba.conf": "host all all all trust\n"},
    )
    running = Unread(path, clean_environment(empty_home))
    try:
        yield running
    finally:
        running.close()


def sessions(running):
    """Whole sessions, two events each; far more than pipe and queue hold."""
    for _ in range(SESSIONS):
        with WireClient(("127.0.0.1", running.port), timeout=wire.PROMPTLY) as client:
            client.send(wire.startup(user="alice"))
            client.read_until(b"Z")
            client.send(wire.TERMINATE)
            client.read_to_end()


def test_sessions_log_in_and_the_reader_that_comes_back_finds_the_gap_counted(unread):
    sessions(unread)
    dropped = unread.read_until("log_lines_dropped")
    assert dropped["level"] == "error"
    assert dropped["count"] > SESSIONS
    unread.process.terminate()
    unread.read_to_end()
    assert unread.process.wait(END_SECONDS) == 0
    names = [event["event"] for event in unread.events]
    assert "shutting_down" in names[names.index("log_lines_dropped") :]
    assert names[-1] == "stopped"
    told = names.count("session_decided") + names.count("session_ended")
    assert told + dropped["count"] == 2 * SESSIONS
    assert names.count("log_lines_dropped") == 1


def test_the_end_does_not_wait_for_the_reader(unread):
    sessions(unread)
    unread.process.terminate()
    assert unread.process.wait(END_SECONDS) == 0


def test_the_last_lines_are_there_for_a_slow_reader(unread):
    for _ in range(5):  # more than the pipe holds, less than the queue
        with WireClient(("127.0.0.1", unread.port)) as client:
            client.send(wire.startup(user="alice"))
            client.read_until(b"Z")
    reader = threading.Thread(target=unread.read_to_end)
    unread.process.terminate()
    reader.start()
    assert unread.process.wait(END_SECONDS) == 0
    reader.join()
    names = [event["event"] for event in unread.events]
    assert names.count("session_decided") == 5
    assert names[-1] == "stopped"
