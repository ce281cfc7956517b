"""What docs/operations.md says of servers, names, workers and disks that fail is what happens; other tests have the rest."""

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

import pgtlsproxy
from fixtures import wire
from fixtures.clients import clean_environment
from fixtures.deployments import config, in_clear, passthrough
from fixtures.drivers import by_password
from fixtures.fake_backend import lets_everybody_in
from fixtures.proxy import COMMAND
from fixtures.waiting import until
from fixtures.wire import WireClient

HBA = {"pg_hba.conf": "host all all all trust\nlocal all all trust\n"}
UNAVAILABLE = ("57P03", "the database system is not available")


def answers(client):
    client.send(wire.query("SELECT 1"))
    return [message.kind for message in client.read_until(b"Z")] == [b"C", b"Z"]


def log_in(stack, running, listener="clear"):
    """A session, or the error that its client was told."""
    client = stack.enter_context(
        WireClient(("127.0.0.1", running.port(listener)), source=wire.another_source())
    )
    client.send(wire.startup(user="alice"))
    first = client.read_message()
    if first.kind == b"E":
        return first.error
    client.read_until(b"Z")
    return client


# --- Servers ------------------------------------------------------------------------------------------------


def test_a_server_that_is_shut_down_at_once_and_started_again(own_cluster, certs, proxy):
    """Its sessions hear of it in the middle of a query, and the first login behind its start is served."""
    cluster = own_cluster(17)
    running = proxy(
        config({"clear": in_clear()}, primary=passthrough(cluster, certs)),
        {"pg_hba.conf": "host all all all scram-sha-256\n"},
    )
    target = by_password(running, "clear", application_name="busy").words
    with psycopg.connect(**target, autocommit=True) as busy:
        is_asked = threading.Event()
        ended = []

        def ask():
            is_asked.set()
            try:
                busy.execute("SELECT pg_sleep(60)")
            except psycopg.OperationalError as error:
                ended.append(error.sqlstate)

        asking = threading.Thread(target=ask)
        asking.start()
        assert is_asked.wait(wire.PATIENCE)
        cluster.stop()
        asking.join(wire.PROMPTLY)
        assert ended in (["57P02"], ["57P01"], [None])
    running.wait_for_event("session_ended", application_name="busy")
    with pytest.raises(psycopg.OperationalError, match=UNAVAILABLE[1]):
        psycopg.connect(**target)
    cluster.start()
    with psycopg.connect(**target) as again:
        assert again.execute("SELECT 1").fetchone() == (1,)


@pytest.fixture
def flapping(proxy, certs, fake_backend):
    backend = fake_backend(lets_everybody_in)
    running = proxy(
        config({"clear": in_clear()}, primary=passthrough(backend, certs, require_auth="none")), HBA
    )
    return running, backend


def resets(conversation):
    """Accepts, and breaks the connection off."""
    conversation._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    conversation._sock.close()


def closes(conversation):
    """Accepts, and closes."""
    conversation._sock.shutdown(socket.SHUT_RDWR)


def test_a_server_that_comes_and_goes_serves_whoever_comes_while_it_is_there(flapping):
    running, backend = flapping
    with ExitStack() as stack:
        for script in (resets, closes, lets_everybody_in, resets, lets_everybody_in):
            backend.script = script
            for _ in range(10):
                begin = time.monotonic()
                client = log_in(stack, running)
                assert time.monotonic() - begin < wire.PROMPTLY
                assert answers(client) if script is lets_everybody_in else client == UNAVAILABLE
    until(lambda: len(running.log_events("session_ended")) == 20)
    assert {each["kind"] for each in running.log_events("session_decided")} <= {
        None, "backend_unreachable", "backend_tls",
    }  # fmt: skip


def test_a_host_that_is_down_is_passed_over_at_once(proxy, certs, fake_backend):
    good = fake_backend(lets_everybody_in)
    with socket.create_server(("127.0.0.1", 0)) as free:
        down = free.getsockname()[1]
    hosts = {"host": ["localhost"] * 2, "hostaddr": ["127.0.0.1"] * 2, "port": [down, good.port]}
    running = proxy(
        config({"clear": in_clear()}, primary=passthrough(good, certs, require_auth="none", **hosts)), HBA
    )
    with ExitStack() as stack:
        for _ in range(3):
            begin = time.monotonic()
            assert answers(log_in(stack, running))
            assert time.monotonic() - begin < wire.PROMPTLY


# --- Names --------------------------------------------------------------------------------------------------

WITH_NAMES = """
import os, sys, time
from pathlib import Path
from pgtlsproxy.proxy import resolve
def look_up(host):
    while (said := (Path(os.environ["NAMES"]) / host).read_text()) == "hang":
        time.sleep(0.05)
    return tuple(said.split())
resolve._getaddrinfo = look_up
from pgtlsproxy.cli import main
main(sys.argv[1:])
"""


@pytest.fixture
def names(tmp_path):
    """What each name leads to, in a file."""
    folder = tmp_path / "names"
    folder.mkdir()
    for name, address in {"localhost": "127.0.0.1", "fake": "hang"}.items():
        (folder / name).write_text(address)
    yield folder
    for path in folder.iterdir():
        path.write_text("127.0.0.1")


@pytest.fixture
def named(proxy, certs, fake_backend, names):
    backend = fake_backend(lets_everybody_in)
    words = {"hostaddr": (), "require_auth": "none"}
    primary = passthrough(backend, certs, **words)
    return proxy(
        config(
            {"clear": in_clear(), "hanging": in_clear(backend="hanging")},
            primary=primary,
            hanging=passthrough(backend, certs, host="fake", **words),
        ),
        HBA,
        environment={"NAMES": str(names)},
        command=[sys.executable, "-c", WITH_NAMES],
    )


def moved(path, content):
    """Exchange a file's content, never seen half."""
    new = path.with_suffix(".new")
    new.write_text(content)
    new.rename(path)


def test_a_name_that_moves_is_followed_by_the_next_logins(named, names):
    with ExitStack() as stack:
        session = log_in(stack, named)
        moved(names / "localhost", "127.0.0.2")  # nobody listens there
        until(lambda: log_in(stack, named) == UNAVAILABLE)
        moved(names / "localhost", "127.0.0.1")
        until(lambda: log_in(stack, named) != UNAVAILABLE)
        assert answers(session)


def test_a_name_that_hangs_keeps_its_address_and_another_s_logins_do_not_wait(named, names):
    with ExitStack() as stack:
        log_in(stack, named)
        hanging = stack.enter_context(WireClient(("127.0.0.1", named.port("hanging"))))
        hanging.send(wire.startup(user="alice"))
        begin = time.monotonic()
        assert answers(log_in(stack, named))
        assert time.monotonic() - begin < wire.PROMPTLY
        assert hanging.read_error().error == UNAVAILABLE
        moved(names / "localhost", "hang")
        since = named.mark()
        until(lambda: answers(log_in(stack, named)) and named.log_events("name_not_resolved"))
        kept = named.wait_for_event("name_not_resolved", since=since)
        assert (kept["host"], kept["using"]) == ("localhost", ["127.0.0.1"])


# --- Workers and disks ---------------------------------------------------------------------------------------


def test_a_client_that_comes_when_the_only_worker_is_killed_is_served_by_the_next(flapping):
    running, _ = flapping
    with ExitStack() as stack:
        session = log_in(stack, running)
        os.kill(running.workers[0], signal.SIGKILL)
        begin = time.monotonic()
        assert answers(log_in(stack, running))
        assert time.monotonic() - begin < 2 * wire.PROMPTLY
        assert session.read_to_end() == b""
    assert running.wait_for_event("worker_died")["restart_in"] == 0


def test_a_disk_that_is_full_takes_the_log_and_no_session(proxy, certs, fake_backend, tmp_path, empty_home):
    backend = passthrough(fake_backend(lets_everybody_in), certs, require_auth="none")
    listener = in_clear(listen=[f"unix:{tmp_path}:1"])
    path = proxy.write(config({"clear": listener}, primary=backend) | {"log": {"format": "json"}}, HBA)
    with (
        Path("/dev/full").open("wb") as full,
        subprocess.Popen(
            [*COMMAND, "serve", "-c", str(path)],
            stderr=full,
            env=clean_environment(empty_home),
            cwd=Path(pgtlsproxy.__file__).parents[1],
        ) as process,
    ):
        try:
            address = f"{tmp_path}/.s.PGSQL.1"
            until(lambda: Path(address).exists(), timeout=wire.PATIENCE)
            for _ in range(20):
                with WireClient(address) as client:
                    client.send(wire.startup(user="alice"))
                    client.read_until(b"Z")
                    assert answers(client)
            process.terminate()
            assert process.wait(wire.PATIENCE) == 0
        finally:
            process.kill()
