"""Socket activation: systemd opens the sockets, and whoever connects while the proxy is restarted waits and is served."""

import os
import signal
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

import pgtlsproxy
from fixtures import wire
from fixtures.clients import clean_environment
from fixtures.deployments import config, in_clear, passthrough
from fixtures.fake_backend import lets_everybody_in
from fixtures.service_manager import activated, environment_of
from fixtures.waiting import until
from fixtures.wire import WireClient

HBA = {"pg_hba.conf": "host all all all trust\nlocal all all trust\n"}


@pytest.fixture
def settings(certs, fake_backend):
    def make(listeners, **top):
        backend = passthrough(fake_backend(lets_everybody_in), certs, require_auth="none")
        return config(listeners, primary=backend) | {"log": {"format": "json"}} | top

    return make


@pytest.fixture
def sockets():
    """Makes listening sockets that stay open until the test is over."""
    with ExitStack() as stack:

        def make(address=("127.0.0.1", 0), family=socket.AF_INET, **words):
            if family == socket.AF_UNIX:
                sock = stack.enter_context(socket.socket(family))
                sock.bind(address)
                sock.listen()
            else:
                sock = stack.enter_context(socket.create_server(address, family=family, **words))
            return sock

        yield make


@pytest.fixture
def start(proxy, settings):
    def go(listeners, named, *, names=None, environment=None, **top):
        path = proxy.write(settings(listeners, **top), HBA)
        return proxy.run(path, environment=environment, **activated(named, names=names))

    return go


def serve(running):
    running.wait_for_event("ready", timeout=60.0)
    return running


def log_in(where):
    with WireClient(where, timeout=wire.PROMPTLY) as client:
        client.send(wire.startup(user="alice"))
        client.read_until(b"Z")


@pytest.fixture
def refusal(proxy, settings, empty_home):
    """What a proxy says that ends at once."""

    def go(listeners, named, *, names=None, **top):
        path = proxy.write(settings(listeners, **top), HBA)
        words = activated(named, names=names)
        done = subprocess.run(
            [*words["command"], "serve", "-c", str(path)], pass_fds=words["descriptors"],
            cwd=Path(pgtlsproxy.__file__).parents[1], env=clean_environment(empty_home),
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        return done.stderr

    return go


def warnings(running):
    """Those of sockets."""
    told = [event["warning"] for event in running.log_events("config_warning")]
    return [each for each in told if "service manager" in each or "SocketMode" in each]


def test_a_listener_is_served_on_the_socket_of_its_name_and_the_others_are_bound(start, sockets):
    sock = sockets()
    running = serve(start({"a": in_clear(), "b": in_clear()}, [("b", sock)]))
    assert running.port("b") == sock.getsockname()[1]
    told = {event["listener"]: event["is_passed"] for event in running.log_events("listening")}
    assert told == {"a": False, "b": True}
    for name in ("a", "b"):
        log_in(("127.0.0.1", running.port(name)))
        assert running.wait_for_event("session_decided", listener=name)
    assert warnings(running) == []


def test_several_sockets_of_one_name_are_one_listeners(start, sockets, tmp_path):
    path = f"{tmp_path}/.s.PGSQL.5432"
    named = [("a", sockets()), ("a", sockets(path, socket.AF_UNIX)), ("a", sockets())]
    Path(path).chmod(0o770)
    running = serve(start({"a": in_clear(listen=["127.0.0.1:0", f"unix:{tmp_path}:5432"])}, named))
    for where in (named[0][1].getsockname(), path, named[2][1].getsockname()):
        log_in(where)
    assert warnings(running) == []


def test_whoever_comes_while_the_proxy_is_restarted_waits_and_is_served(start, sockets):
    sock = sockets()
    first = serve(start({"a": in_clear()}, [("a", sock)]))
    assert first.stop() == 0
    with WireClient(sock.getsockname(), timeout=60.0) as client:
        client.send(wire.startup(user="alice"))
        second = serve(start({"a": in_clear()}, [("a", sock)]))
        client.read_until(b"Z")
    assert second.stop() == 0


def test_sockets_outlive_reloads_and_workers(start, sockets):
    sock = sockets()
    running = serve(start({"a": in_clear()}, [("a", sock)]))
    assert running.reload()["event"] == "reloaded"
    (worker,) = running.workers
    os.kill(worker, signal.SIGKILL)
    log_in(sock.getsockname())
    until(lambda: running.workers not in ([], [worker]))
    log_in(sock.getsockname())


def test_the_file_of_a_unix_socket_that_was_passed_stays(start, sockets, tmp_path):
    path = tmp_path / ".s.PGSQL.5432"
    sock = sockets(str(path), socket.AF_UNIX)
    inode = path.stat().st_ino
    running = serve(start({"a": in_clear(listen=[f"unix:{tmp_path}:5432"])}, [("a", sock)]))
    log_in(str(path))
    assert running.stop() == 0
    assert path.stat().st_ino == inode
    assert not path.with_name(path.name + ".lock").exists()


def test_metrics_are_served_on_the_socket_called_status(start, sockets):
    sock = sockets()
    running = serve(start({"a": in_clear()}, [("status", sock)], status={"listen": "127.0.0.1:0"}))
    assert running.status_port == sock.getsockname()[1]
    with socket.create_connection(sock.getsockname(), timeout=wire.PROMPTLY) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert client.makefile("rb").readline().startswith(b"HTTP/1.1 200")


def test_a_socket_that_is_nobodys_ends_it_and_is_named(refusal, sockets):
    said = refusal({"a": in_clear(), "b": in_clear()}, [("a", sockets()), ("pgtlsproxy.socket", sockets())])
    assert "called pgtlsproxy.socket: there is no listener of this name" in said
    assert "FileDescriptorName= in the socket's unit to one of a, b" in said


def test_sockets_without_names_are_nobodys(refusal, sockets):
    assert "called unknown: there is no listener" in refusal({"a": in_clear()}, [("a", sockets())], names="-")


def test_status_is_no_name_for_two(refusal, sockets):
    listening = [("status", sockets())]
    said = refusal({"status": in_clear()}, listening, status={"listen": "127.0.0.1:0"})
    assert (
        "listeners.status: a socket called status is passed, which could be meant for status.listen" in said
    )


def test_a_socket_of_a_kind_that_rules_were_not_judged_for_ends_it(refusal, sockets, tmp_path):
    unix = sockets(f"{tmp_path}/x", socket.AF_UNIX)
    assert "is a Unix socket, and listen there says TCP alone" in refusal({"a": in_clear()}, [("a", unix)])
    assert "is a TCP socket, and listen there says Unix alone" in refusal(
        {"a": in_clear(listen=[f"unix:{tmp_path}:1"])}, [("a", sockets())]
    )


def test_what_does_not_listen_ends_it(refusal, sockets, tmp_path):
    with socket.socket() as bound, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        ours, theirs = socket.socketpair()
        with ours, theirs, (tmp_path / "file").open("w") as file:
            said = refusal({"a": in_clear()}, [("a", bound), ("b", datagrams), ("c", ours), ("d", file)])
    assert "descriptor 3, called a: does not listen: expected Accept=no" in said
    assert "descriptor 4, called b: is no stream socket: expected ListenStream=" in said
    assert "descriptor 5, called c: does not listen" in said
    assert "descriptor 6, called d: is no socket" in said


def test_as_many_names_as_sockets_are_expected(refusal, sockets):
    said = refusal({"a": in_clear()}, [("a", sockets())], names="a:b")
    assert "LISTEN_FDNAMES has 2 names, expected 1" in said


def test_addresses_that_differ_from_the_configurations_are_named(start, sockets, tmp_path):
    path = f"{tmp_path}/.s.PGSQL.1"
    tcp, unix = sockets(), sockets(path, socket.AF_UNIX)
    Path(path).chmod(0o666)
    listen = ["127.0.0.1:1", f"unix:{tmp_path}:1"]
    running = serve(start({"a": in_clear(listen=listen)}, [("a", tcp), ("a", unix)]))
    got = warnings(running)
    port = tcp.getsockname()[1]
    assert any(
        f"the service manager's socket is 127.0.0.1:{port}, which is not among these" in each for each in got
    )
    assert any(
        "127.0.0.1:1 is not among the sockets that the service manager has passed" in each for each in got
    )
    assert any(f"unix_socket_permissions: is 0770, and {path} has 0666" in each for each in got)
    assert len(got) == 3


def test_a_socket_of_both_families_is_two_addresses(start, sockets):
    """ListenStream=5432 is one socket that takes IPv4, too."""
    sock = sockets(("::", 0), socket.AF_INET6, dualstack_ipv6=True)
    port = sock.getsockname()[1]
    running = serve(start({"a": in_clear(listen=[f"*:{port}"])}, [("a", sock)]))
    assert warnings(running) == []
    log_in(("127.0.0.1", port))
    assert running.wait_for_event("session_decided")["client_addr"] == "127.0.0.1"


def test_sockets_of_another_process_are_none_of_ours(proxy, settings):
    path = proxy.write(settings({"a": in_clear()}), HBA)
    running = proxy.run(path, environment={"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "zzz"})
    serve(running)
    log_in(("127.0.0.1", running.port("a")))


def test_no_process_that_it_starts_hears_of_them(start, sockets):
    running = serve(start({"a": in_clear()}, [("a", sockets())], status={"listen": "127.0.0.1:0"}))
    until(lambda: running.status_pid)
    for pid in (*running.workers, running.status_pid):
        assert not [name for name in environment_of(pid) if name.startswith("LISTEN_")]
    opened = [str(each.readlink()) for each in Path(f"/proc/{running.status_pid}/fd").iterdir()]
    listening = str(Path(f"/proc/{running.pid}/fd/3").readlink())
    assert listening.startswith("socket:")
    assert listening not in opened
