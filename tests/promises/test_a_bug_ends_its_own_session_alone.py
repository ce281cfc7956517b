"""A failure of ours inside one session: XX000 there, a traceback under its id, and nothing elsewhere."""

import subprocess
import sys

import pytest

from fixtures import wire
from fixtures.deployments import config, in_clear, passthrough
from fixtures.fake_backend import lets_everybody_in
from fixtures.postgres import password
from fixtures.proxy import RunningProxy

BOOM = """
import sys
from pgtlsproxy.proxy import {module}
original = {module}.{function}
async def broken(*arguments, **words):
    result = await original(*arguments, **words)
    if {condition}:
        canary = "hun" + "ter2"
        raise RuntimeError("made to fail")
    return result
{module}.{function} = broken
from pgtlsproxy.cli import main
main(sys.argv[1:])
"""


@pytest.fixture
def faulty(tls_cluster, certs, proxy, monkeypatch):
    """Starts a proxy in which a stage fails for the user bob."""

    def start(module, function, condition):
        real = subprocess.Popen
        program = BOOM.format(module=module, function=function, condition=condition)

        def popen(command, **words):
            if command[:3] == [sys.executable, "-m", "pgtlsproxy"]:
                command = [sys.executable, "-c", program, *command[3:]]
            return real(command, **words)

        monkeypatch.setattr("fixtures.proxy.subprocess.Popen", popen)
        running = proxy(
            config({"clear": in_clear()}, primary=passthrough(tls_cluster(17), certs)),
            {"pg_hba.conf": "host all all all scram-sha-256\n"},
        )
        monkeypatch.setattr("fixtures.proxy.subprocess.Popen", real)
        running.allow_bugs = True
        return running

    return start


def attempt(running: RunningProxy, psql, user):
    return psql.run(
        "SELECT current_user", host="127.0.0.1", port=running.port("clear"), user=user, dbname=user,
        password=password(user), sslmode="disable",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("module", "function", "condition"),
    [
        ("session", "negotiate", "getattr(result, 'startup', None) and result.startup.user == 'bob'"),
        ("session", "authorise", "result.user == 'bob'"),
        ("session", "connect", "arguments[1].user == 'bob'"),
    ],
)
def test_a_stage_that_raises_ends_its_session_with_xx000(faulty, psql, module, function, condition):
    running = faulty(module, function, condition)
    failed = attempt(running, psql(17), "bob")
    assert failed.returncode == 2
    assert "internal error" in failed.stderr
    assert "made to fail" not in failed.stderr
    bug = running.wait_for_event("bug")
    assert "RuntimeError: made to fail" in bug["exception"]
    assert "hunter2" not in str(running.log_events())
    refused = running.wait_for_event("session_decided", session=bug["session"])
    assert (refused["verdict"], refused["kind"], refused["sqlstate"]) == ("refused", "bug", "XX000")
    assert attempt(running, psql(17), "alice").stdout == "alice\n"
    assert running.stop() == 0


def test_a_relay_that_raises_ends_its_session_alone(faulty, psql):
    running = faulty("relay", "Relay.carry", "arguments[1].proof.user == 'bob'")
    attempt(running, psql(17), "bob")
    bug = running.wait_for_event("bug")
    assert running.wait_for_event("session_ended", session=bug["session"])["kind"] == "bug"
    assert attempt(running, psql(17), "alice").stdout == "alice\n"


def test_a_refusal_that_raises_ends_its_session_alone(faulty, psql):
    running = faulty("session", "_refuse", "arguments[0].kind == 'backend_refused'")
    words = {"host": "127.0.0.1", "port": running.port("clear"), "dbname": "alice", "sslmode": "disable"}
    failed = psql(17).run("SELECT 1", user="alice", password="wrong", **words)
    assert failed.returncode == 2
    assert "RuntimeError: made to fail" in running.wait_for_event("bug")["exception"]
    assert attempt(running, psql(17), "alice").stdout == "alice\n"
    assert running.stop() == 0


LEAKING = """
import sys
from pgtlsproxy.proxy import connect, session
def broken(*arguments, **words):
    raise RuntimeError("made to fail")
{target} = broken
from pgtlsproxy.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("target", ["connect._note", "session.SessionLog.allowed"])
def test_a_bug_between_two_stages_leaves_no_leg_open(proxy, certs, fake_backend, target):
    """A socket that nobody closed would be a second bug, for the warning that Python then gives is an error."""
    backend = fake_backend(lets_everybody_in)
    running = proxy(
        config({"clear": in_clear()}, primary=passthrough(backend, certs, require_auth="none")),
        {"pg_hba.conf": "host all all all trust\n"},
        environment={"PYTHONWARNINGS": "error::ResourceWarning"},
        command=(sys.executable, "-c", LEAKING.format(target=target)),
    )
    running.allow_bugs = True
    with wire.WireClient(("127.0.0.1", running.port("clear"))) as client:
        client.send(wire.startup(user="alice"))
        client.read_to_end()
    running.wait_for_event("bug")
    assert backend.conversation().startup == {"user": "alice", "database": "alice"}
    assert running.stop() == 0
    (bug,) = running.log_events("bug")
    assert "RuntimeError: made to fail" in bug["exception"]


def test_buffers_of_75_bytes_give_the_same_result(tls_cluster, certs, proxy, psql, monkeypatch):
    """Every path of a login for a message that comes in pieces, as pgbouncer's pkt_buf=75 test.

    The relay reads whole records always: what lies decrypted inside OpenSSL wakes nobody.
    """
    program = (
        "import sys, pgtlsproxy.proxy.relay_loop, pgtlsproxy.tls.stream as stream\n"
        "stream.MAX_RECORD_OCTETS = 75\n"
        "from pgtlsproxy.cli import main\nmain(sys.argv[1:])\n"
    )
    real = subprocess.Popen
    monkeypatch.setattr(
        "fixtures.proxy.subprocess.Popen",
        lambda command, **words: real([sys.executable, "-c", program, *command[3:]], **words),
    )
    running = proxy(
        config({"clear": in_clear()}, primary=passthrough(tls_cluster(17), certs)),
        {"pg_hba.conf": "host all all all scram-sha-256\n"},
    )
    monkeypatch.setattr("fixtures.proxy.subprocess.Popen", real)
    result = psql(17).run(
        "SELECT sum(length(repeat('x', n))) FROM generate_series(1, 2000) n; SELECT repeat('y', 100000)",
        host="127.0.0.1", port=running.port("clear"), user="alice", dbname="alice", password=password("alice"),
        sslmode="disable",
    )  # fmt: skip
    assert result.stdout == "2001000\n" + "y" * 100_000 + "\n"
