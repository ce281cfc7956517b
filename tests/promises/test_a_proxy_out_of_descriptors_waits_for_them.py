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
from fixtures.waiting import until
from fixtures.wire import WireClient

LIMITED = """
import resource, sys
if sys.argv[1] == "serve":  # and not in its workers, which inherit what it has made of it
    resource.setrlimit(resource.RLIMIT_NOFILE, {limits})
from pgtlsproxy.cli import main
main(sys.argv[1:])
"""

HARD = 64
"""Descriptors, of which a worker without connections has some 25."""

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


def log_in(stack, running):
    """A session; None where there is no descriptor for it, or for its backend."""
    client = stack.enter_context(WireClient(("127.0.0.1", running.port("clear")), timeout=wire.PROMPTLY))
    client.send(wire.startup(user="alice"))
    try:
        first = client.read_message()
    except TimeoutError:
        return None
    if first.kind == b"E":
        assert first.error[0] == "57P03"
        assert "Too many open files" in running.wait_for_event("session_decided", **client.where)["reason"]
        return None
    client.read_until(b"Z")
    return client


def answers(client):
    client.send(wire.query("SELECT 1"))
    return [message.kind for message in client.read_until(b"Z")] == [b"C", b"Z"]


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
    with ExitStack() as stack:
        assert log_in(stack, running) is not None


def test_a_limit_below_what_max_connections_needs_is_warned_of_with_both_numbers(start):
    running = start(64, NEEDED - 1)
    (warning,) = running.log_events("too_few_descriptors")
    assert warning["level"] == "warning"
    assert (warning["limit"], warning["needed"]) == (NEEDED - 1, NEEDED)
    assert warning["max_connections"] == MAX_CONNECTIONS


def test_whoever_can_prove_itself_gets_through_a_crowd_that_has_all_descriptors(start):
    """The oldest of the crowd go, long before startup_timeout."""
    running = start(HARD, HARD)
    address = "127.0.0.1", running.port("clear")
    with ExitStack() as stack:
        crowd = [stack.enter_context(WireClient(address)) for _ in range(2 * HARD)]
        sessions = [log_in(stack, running) for _ in range(3)]
        assert crowd[0].read_to_end() == b""
        gone = running.wait_for_event("session_decided", **crowd[0].where)
        assert (gone["kind"], gone["sqlstate"]) == ("limit", None)
        assert "descriptors" in gone["reason"]
        assert all(answers(client) for client in sessions)
        assert open_descriptors(running.workers[0]) <= HARD
    assert running.log_events("accept_failed") == []


def test_when_sessions_have_them_all_they_go_on_and_the_next_is_served_when_one_ends(start):
    running = start(HARD, HARD)
    with ExitStack() as stack:
        sessions = []
        while (client := log_in(stack, running)) is not None:
            sessions.append(client)
        assert HARD // 4 < len(sessions) < HARD // 2
        assert all(answers(client) for client in sessions)
        for client in sessions[:2]:
            client.send(wire.TERMINATE)
            client.read_to_end()
        until(lambda: log_in(stack, running) is not None)
        assert all(answers(client) for client in sessions[2:])
    assert running.log_events("bug") == []
    times = [datetime.fromisoformat(event["timestamp"]) for event in running.log_events("accept_failed")]
    assert all((later - earlier).total_seconds() > 0.9 for earlier, later in pairwise(times))
