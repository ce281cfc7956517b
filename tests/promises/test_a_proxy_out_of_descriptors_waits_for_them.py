"""Descriptors: as many as the system grants, a warning where that is too few, and patience where none is left."""

import sys
from contextlib import ExitStack
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest

from fixtures import wire
from fixtures.deployments import config, in_clear, passthrough
from fixtures.fake_backend import lets_everybody_in
from fixtures.processes import open_descriptors
from fixtures.wire import WireClient

LIMITED = """
import resource, sys
if sys.argv[1] == "serve":  # and not in its workers, which inherit what it has made of it
    resource.setrlimit(resource.RLIMIT_NOFILE, {limits})
from pgtlsproxy.cli import main
main(sys.argv[1:])
"""

MAX_CONNECTIONS = 100
MAX_PENDING = 80
NEEDED = 2 * (MAX_CONNECTIONS + MAX_PENDING) + 256 + 128
"""Two a session, proven or not, one a client that is one too many, and the proxy's own."""


@pytest.fixture
def start(proxy, certs, fake_backend):
    backend = passthrough(fake_backend(lets_everybody_in), certs, require_auth="none")

    def go(soft, hard):
        return proxy(
            config({"clear": in_clear()}, primary=backend)
            | {"max_connections": MAX_CONNECTIONS, "max_pending": MAX_PENDING},
            {"pg_hba.conf": "host all all all trust\n"},
            command=[sys.executable, "-c", LIMITED.format(limits=(soft, hard))],
        )

    return go


def log_in(running):
    with WireClient(("127.0.0.1", running.port("clear"))) as client:
        client.send(wire.startup(user="alice"))
        client.read_until(b"Z")


def granted(running):
    (line,) = [
        line
        for line in Path(f"/proc/{running.workers[0]}/limits").read_text().splitlines()
        if "open files" in line
    ]
    return line.split()[3]


def test_the_soft_limit_is_raised_to_the_hard_one(start):
    running = start(64, NEEDED)
    assert granted(running) == str(NEEDED)
    assert running.log_events("too_few_descriptors") == []
    log_in(running)


def test_a_limit_below_what_max_connections_needs_is_warned_of_with_both_numbers(start):
    running = start(64, NEEDED - 1)
    (warning,) = running.log_events("too_few_descriptors")
    assert warning["level"] == "warning"
    assert (warning["limit"], warning["needed"]) == (NEEDED - 1, NEEDED)
    assert warning["max_connections"] == MAX_CONNECTIONS


def test_clients_wait_while_there_is_none_and_are_served_when_there_is(start):
    hard = 64
    running = start(hard, hard)
    address = "127.0.0.1", running.port("clear")
    with ExitStack() as stack:
        for _ in range(hard):
            stack.enter_context(WireClient(address))
        failed = running.wait_for_event("accept_failed")
        assert (failed["listener"], failed["reason"]) == ("clear", "Too many open files")
        assert open_descriptors(running.workers[0]) <= hard
        running.wait_for_event("accept_failed", since=running.mark())
        running.wait_for_event("accept_failed", since=running.mark())
    log_in(running)
    times = [datetime.fromisoformat(event["timestamp"]) for event in running.log_events("accept_failed")]
    assert all((later - earlier).total_seconds() > 0.9 for earlier, later in pairwise(times))
