"""A user database, a file system or a list of interfaces that does not answer stops those who need it, and in time."""

import os
import socket
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from fixtures import wire
from fixtures.deployments import config, in_clear, passthrough
from fixtures.fake_backend import lets_everybody_in
from fixtures.waiting import until
from fixtures.wire import WireClient

SECONDS = 1.0
LATE = 10.0
"""How many times longer than its deadline an end may take on a busy machine."""

CROWD = 60
"""More clients than the process has threads for."""

HANGS = """
import sys, threading
def hangs(*_):
    threading.Event().wait()
{patch}
from pgtlsproxy.cli import main
main(sys.argv[1:])
"""

USER_DATABASE = "import pwd; pwd.getpwuid = hangs"
FILE_SYSTEM = (
    "from pgtlsproxy.proxy import dial\nclass Slow(type(dial.Path())):\n    stat = hangs\ndial.Path = Slow"
)
INTERFACES = "from pgtlsproxy.proxy import authorise; authorise.own_interfaces = hangs"


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(prefix="hangs-") as path:
        yield path


@pytest.fixture
def start(proxy, certs, fake_backend, folder):
    """A proxy in which something hangs: listeners `tcp` and `same_host`, a Unix socket, and the backend `socket`."""
    good = passthrough(fake_backend(lets_everybody_in), certs, require_auth="none")

    def go(patch, **words):
        words = {
            "host": folder,
            "port": 5432,
            "login": "passthrough",
            "connect_timeout": f"{SECONDS:g}s",
        } | words
        listeners = {
            "tcp": in_clear(),
            "local": in_clear(listen=[f"unix:{folder}:1"]),
            "to_socket": in_clear(backend="socket"),
            "same_host": in_clear(hba_file="samehost.conf"),
        }
        return proxy(
            config(listeners, primary=good, socket=words)
            | {"startup_timeout": f"{SECONDS:g}s", "authentication_timeout": f"{2 * SECONDS:g}s"},
            {
                "pg_hba.conf": "local all all trust\nhost all all all trust\n",
                "samehost.conf": "host all all samehost trust\n",
            },
            command=[sys.executable, "-c", HANGS.format(patch=patch)],
        )

    return go


@pytest.fixture
def server_socket(folder):
    """Where a server listens that never says a word."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{folder}/.s.PGSQL.5432")
        sock.listen(CROWD)
        yield


def crowd(stack, address):
    """So many clients at once, each having asked."""
    clients = [stack.enter_context(WireClient(address)) for _ in range(CROWD)]
    for client in clients:
        client.send(wire.startup(user="alice"))
    return clients


def tcp(running, listener="tcp"):
    return "127.0.0.1", running.port(listener)


def assert_others_log_in(running):
    start = time.monotonic()
    for _ in range(3):
        with WireClient(tcp(running)) as client:
            client.send(wire.startup(user="bob"))
            client.read_until(b"Z")
    assert time.monotonic() - start < wire.PROMPTLY


def test_a_user_database_that_hangs_delays_no_tcp_client_and_refuses_the_others_in_time(start, folder):
    running = start(USER_DATABASE)
    begin = time.monotonic()
    with ExitStack() as stack:
        clients = crowd(stack, f"{folder}/.s.PGSQL.1")
        assert_others_log_in(running)
        assert [client.read_to_end() for client in clients] == [b""] * CROWD
    assert SECONDS * 0.9 < time.monotonic() - begin < SECONDS * LATE
    decided = running.wait_for_event("session_decided", listener="local")
    assert (decided["verdict"], decided["kind"], decided["os_uid"]) == ("refused", "timeout", os.geteuid())
    assert "user database did not say in time who uid" in decided["reason"]
    assert "startup_timeout" in decided["reason"]


def test_a_user_database_that_hangs_does_not_hold_up_the_end(start, folder):
    running = start(USER_DATABASE)
    with WireClient(f"{folder}/.s.PGSQL.1"):
        threads = Path(f"/proc/{running.workers[0]}/task")
        before = len(list(threads.iterdir()))
        with WireClient(f"{folder}/.s.PGSQL.1"):
            until(lambda: len(list(threads.iterdir())) > before)
            assert running.stop(timeout=SECONDS * LATE) == 0


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        (USER_DATABASE, {"requirepeer": "postgres"}),
        (FILE_SYSTEM, {}),
    ],
    ids=["user database", "file system"],
)
def test_a_backends_socket_that_cannot_be_judged_is_given_up_at_connect_timeout(
    start, server_socket, patch, words
):
    running = start(patch, **words)
    begin = time.monotonic()
    with ExitStack() as stack:
        clients = crowd(stack, tcp(running, "to_socket"))
        assert_others_log_in(running)
        assert {client.read_error().error[0] for client in clients} == {"57P03"}
    assert SECONDS * 0.9 < time.monotonic() - begin < SECONDS * LATE
    assert "connect_timeout" in running.wait_for_event("session_decided", listener="to_socket")["reason"]


def test_a_list_of_interfaces_that_hangs_stops_those_alone_whose_lines_ask_for_it(start):
    running = start(INTERFACES)
    begin = time.monotonic()
    with ExitStack() as stack:
        clients = crowd(stack, tcp(running, "same_host"))
        assert_others_log_in(running)
        assert [client.read_to_end() for client in clients] == [b""] * CROWD
    assert 2 * SECONDS * 0.9 < time.monotonic() - begin < 2 * SECONDS * LATE
    decided = running.wait_for_event("session_decided", listener="same_host")
    assert (decided["verdict"], decided["kind"]) == ("refused", "timeout")
