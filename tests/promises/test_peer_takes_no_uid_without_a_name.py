"""`peer` believes the kernel only where it names somebody: never the overflow uid, nor a uid that has no name."""

import os
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from subprocess import DEVNULL, call

import pytest

from fixtures import wire
from fixtures.deployments import config, in_clear, passthrough
from fixtures.fake_backend import lets_everybody_in
from fixtures.proxy import COMMAND
from fixtures.wire import WireClient

NAMELESS = 54321
"""A uid that no system has."""

OVERFLOW = int(Path("/proc/sys/kernel/overflowuid").read_text())

KNOWS_NOBODY = """
import sys, types
from pgtlsproxy.proxy import sockets
def getpwuid(uid):
    raise KeyError(uid)
sockets.pwd = types.SimpleNamespace(getpwuid=getpwuid)
from pgtlsproxy.cli import main
main(sys.argv[1:])
"""

TAKES_US_FOR_THE_OVERFLOW_UID = """
import sys
from pathlib import Path
from pgtlsproxy.proxy import sockets
sockets.OVERFLOW_UID_FILE = Path(sys.argv.pop(1))
from pgtlsproxy.cli import main
main(sys.argv[1:])
"""

IS_ROOT = os.geteuid() == 0
UNSHARE = ["unshare", "-U"]
CAN_UNSHARE = which("unshare") and not call([*UNSHARE, sys.executable, "-c", ""], stderr=DEVNULL)


@pytest.fixture
def start(proxy, certs, fake_backend):
    """Starts a proxy whose Unix socket everybody can reach; gives it and the socket's path."""
    backend = fake_backend(lets_everybody_in)
    with tempfile.TemporaryDirectory(prefix="peer-") as folder:
        Path(folder).chmod(0o755)

        def go(hba, ident="", command=COMMAND):
            words = {"ident_file": "pg_ident.conf", "unix_socket_permissions": "0777"}
            running = proxy(
                config(
                    {"local": in_clear(listen=[f"unix:{folder}:1"], **words)},
                    primary=passthrough(backend, certs),
                ),
                {"pg_hba.conf": hba, "pg_ident.conf": ident},
                command=command,
            )
            return running, f"{folder}/.s.PGSQL.1"

        yield go


@contextmanager
def connected_as(path, uid):
    """A client at a Unix socket; the kernel notes who it is when it connects."""
    if uid is not None:
        os.seteuid(uid)
    try:
        client = WireClient(path)
    finally:
        if uid is not None:
            os.seteuid(0)
    with client:
        yield client


def refusal(running, path, uid=None, user="alice"):
    with connected_as(path, uid) as client:
        client.send(wire.startup(user=user, database="postgres"))
        error = client.read_error().error
    return error, running.wait_for_event("session_decided", verdict="refused", user=user)["reason"]


def let_in(path, uid=None, user="alice"):
    with connected_as(path, uid) as client:
        client.send(wire.startup(user=user, database="postgres"))
        return client.read_until(b"Z")[-1].body == b"I"


PEER_FAILED = ("28000", 'Peer authentication failed for user "alice"')

# Who may connect as a uid of its choice does; everybody can run a proxy that knows no name.
NAMELESS_CLIENTS = {"nobody is known": ([sys.executable, "-c", KNOWS_NOBODY], None, os.geteuid())}
if IS_ROOT:
    NAMELESS_CLIENTS["a uid of no user"] = (COMMAND, NAMELESS, NAMELESS)


@pytest.mark.parametrize(("command", "uid", "shown"), NAMELESS_CLIENTS.values(), ids=NAMELESS_CLIENTS)
def test_a_uid_without_a_name_is_nobody(start, command, uid, shown):
    running, path = start("local all all peer\n", command=command)
    error, reason = refusal(running, path, uid)
    assert error == PEER_FAILED
    assert f"uid {shown} has no name here" in reason


@pytest.mark.parametrize(("command", "uid", "shown"), NAMELESS_CLIENTS.values(), ids=NAMELESS_CLIENTS)
def test_a_role_that_is_called_like_a_uid_is_not_for_the_taking(start, command, uid, shown):
    running, path = start("local all all peer\n", command=command)
    for user in (str(shown), f"uid:{shown}"):
        assert refusal(running, path, uid, user)[0][0] == "28000"


@pytest.mark.parametrize(("command", "uid", "shown"), NAMELESS_CLIENTS.values(), ids=NAMELESS_CLIENTS)
def test_a_map_can_name_a_uid(start, command, uid, shown):
    running, path = start("local all all peer map=containers\n", f"containers uid:{shown} alice\n", command)
    assert let_in(path, uid)
    assert refusal(running, path, uid, "bob")[0][0] == "28000"


OVERFLOW_CLIENTS = {"a kernel whose overflow uid is ours": ("own", None)}
if CAN_UNSHARE:
    OVERFLOW_CLIENTS["a user namespace without our uid"] = ("unshare", None)
if IS_ROOT:
    OVERFLOW_CLIENTS["a client with this uid"] = ("plain", OVERFLOW)


@pytest.mark.parametrize(("how", "uid"), OVERFLOW_CLIENTS.values(), ids=OVERFLOW_CLIENTS)
def test_the_overflow_uid_is_nobody_even_where_a_map_takes_anybody(start, tmp_path, how, uid):
    overflow = tmp_path / "overflowuid"
    overflow.write_text(f"{os.geteuid()}\n")
    commands = {
        "own": [sys.executable, "-c", TAKES_US_FOR_THE_OVERFLOW_UID, str(overflow)],
        "unshare": [*UNSHARE, *COMMAND],
        "plain": COMMAND,
    }
    running, path = start(
        "local all all peer map=anybody\n", f"anybody /^ all\nanybody uid:{OVERFLOW} alice\n", commands[how]
    )
    error, reason = refusal(running, path, uid)
    assert error == PEER_FAILED
    assert "the operating system does not know who the client is" in reason


def test_without_these_tricks_the_same_map_takes_us(start):
    _, path = start("local all all peer map=anybody\n", "anybody /^ all\n")
    assert let_in(path)
