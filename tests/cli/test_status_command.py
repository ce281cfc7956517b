"""`pgtlsproxy status`: what a running proxy does, for people and for machines."""

import json
import os
import pty
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from fixtures import wire
from fixtures.deployments import config, in_clear, passthrough, with_tls
from fixtures.fake_backend import lets_everybody_in
from fixtures.waiting import until


@pytest.fixture
def start(proxy, certs, fake_backend):
    def go(status, files=None):
        backend = passthrough(fake_backend(lets_everybody_in), certs, require_auth="none")
        listeners = {"tls": with_tls(certs), "clear": in_clear()}
        running = proxy(
            config(listeners, primary=backend) | {"status": status},
            {"pg_hba.conf": "host all alice all trust\n"} | (files or {}),
        )
        running.wait_for_event("ready", timeout=wire.PATIENCE)
        return running

    return go


def test_it_shows_sessions_certificates_the_last_reload_and_workers(start, command_line):
    running = start({"listen": "127.0.0.1:0"})
    url = f"http://127.0.0.1:{running.status_port}"
    with wire.WireClient(("127.0.0.1", running.port("clear")), timeout=wire.PATIENCE) as client:
        client.send(wire.startup(user="alice"))
        client.read_until(b"Z")
        until(
            lambda: json.loads(command_line("status", "--url", url, "--json").stdout)["sessions"]["clear"][
                "active"
            ]
        )
        shown = command_line("status", "--url", url)
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = shown.stdout.splitlines()
    assert "ready, 1 worker, up" in lines[0]
    assert lines[1].startswith("generation 1, last loaded whole")
    assert [line.split() for line in lines if line.startswith("  clear")] == [["clear", "1", "0"]]
    (listener,) = [line.split() for line in lines if line.startswith("  listener  tls")]
    assert int(listener[2]) > 0
    assert "\x1b" not in shown.stdout
    (running.config.parent / "pg_hba.conf").write_text("nonsense\n")
    running.reload()
    until(lambda: "the last reload failed" in command_line("status", "--url", url).stdout)
    shown = command_line("status", "--url", url)
    assert "keeps its old content: policy of listener clear, policy of listener tls" in shown.stdout
    assert (
        json.loads(command_line("status", "--url", url, "--json").stdout)["last_reload"]["successful"]
        is False
    )
    assert "\x1b[" in in_terminal(url)


def in_terminal(url):
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", 0) as terminal:
        process = subprocess.Popen(
            [sys.executable, "-m", "pgtlsproxy", "status", "--url", url],
            stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | {"TERM": "xterm-256color"},
        )  # fmt: skip
        os.close(theirs)
        data = b""
        try:
            while more := terminal.read(65536):
                data += more
        except OSError:
            pass  # the terminal's other end is gone
        assert process.wait(wire.PATIENCE) == 0
    return data.decode()


def test_over_tls_it_shows_a_certificate(start, certs, command_line):
    files = {f"server.{kind}": getattr(certs.server, kind).read_bytes() for kind in ("crt", "key")}
    words = {"ssl_cert_file": "server.crt", "ssl_key_file": "server.key", "ssl_ca_file": certs.ca.crt}
    running = start({"listen": "127.0.0.1:0", **words}, files)
    arguments = (
        "status",
        "--json",
        "--url",
        f"https://localhost:{running.status_port}",
        "--ca",
        certs.ca.crt,
    )
    refused = command_line(*arguments)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "answers 403" in refused.stderr
    shown = certs.client("operator")
    assert (
        json.loads(command_line(*arguments, "--cert", shown.crt, "--key", shown.key).stdout)["generation"]
        == 1
    )
    stranger = command_line("status", "--url", arguments[3], "--ca", certs.other_ca.crt)
    assert stranger.returncode == 1
    assert "certificate" in stranger.stderr


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("ftp://localhost", "write http://HOST:PORT"),
        ("127.0.0.1:9643", "write http://HOST:PORT"),
        ("http://localhost:99999", "no address"),
        ("https://localhost:1", "Does it run"),
    ],
)
def test_who_cannot_be_reached_is_named_with_the_reason(command_line, url, told):
    ended = command_line("status", "--url", url)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert told in ended.stderr
    assert "Traceback" not in ended.stderr


def test_nobody_there_is_exit_status_1(command_line):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        ended = command_line("status", "--url", f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert ended.returncode == 1
    assert "Connection refused. Does it run" in ended.stderr


@pytest.mark.parametrize(("answer", "status"), [(200, 0), (503, 1), (404, 1)])
@pytest.mark.parametrize("probe", ["livez", "readyz"])
def test_a_probe_is_an_exit_status(command_line, probe, answer, status):
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(answer)
            self.end_headers()
            self.wfile.write(b"stopping\n")

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        ended = command_line("status", "--probe", probe, "--url", f"http://127.0.0.1:{server.server_port}")
        thread.join()
    assert (ended.returncode, ended.stdout, asked) == (status, "", [f"/{probe}"])
    assert (f"answers {answer}: stopping" in ended.stderr) is bool(status)


@pytest.mark.parametrize(
    "body", [b"<html>", b"[]", b"{}", b'{"generation": "x"}', b'{"generation": 1, "sessions": 3}']
)
def test_another_server_is_told_from_a_proxy(command_line, body):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        ended = command_line("status", "--url", f"http://127.0.0.1:{server.server_port}")
        thread.join()
    assert ended.returncode == 1
    assert "no pgtlsproxy" in ended.stderr
