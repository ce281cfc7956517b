"""`POST /quitquitquit` ends the proxy as SIGTERM does, where `status.quitquitquit` says so, from loopback alone."""

import http.client
import ssl
from contextlib import closing

import pytest

from fixtures import wire
from fixtures.addresses import address_beyond_loopback
from fixtures.deployments import config, in_clear, passthrough
from fixtures.fake_backend import lets_everybody_in
from fixtures.waiting import until
from fixtures.wire import PATIENCE, WireClient

QUIT = "/quitquitquit"


@pytest.fixture
def start(proxy, certs, fake_backend):
    def go(files=None, **status):
        backend = passthrough(fake_backend(lets_everybody_in), certs, require_auth="none")
        settings = config({"clear": in_clear()}, primary=backend) | {"drain_timeout": "20s"}
        running = proxy(
            settings | {"status": {"listen": "127.0.0.1:0"} | status},
            {"pg_hba.conf": "host all alice all trust\n"} | (files or {}),
        )
        tls = None if "ssl_ca_file" not in status else ssl.create_default_context(cafile=certs.ca.crt)
        until(lambda: ask(running, "GET", "/readyz", tls=tls) == 200)
        return running

    return go


def ask(running, method="POST", path=QUIT, *, host="127.0.0.1", tls=None, headers=None, body=None):
    """Status of an answer."""
    kind, words = (
        (http.client.HTTPConnection, {}) if tls is None else (http.client.HTTPSConnection, {"context": tls})
    )
    with closing(kind(host, running.status_port, timeout=PATIENCE, **words)) as connection:
        connection.request(method, path, body, headers=headers or {})
        return connection.getresponse().status


def test_it_drains_as_sigterm_does_and_once(start):
    """A session in a transaction goes on until it is idle, however often the Job asks."""
    running = start(quitquitquit=True)
    with WireClient(("127.0.0.1", running.port("clear"))) as client:
        client.send(wire.startup(user="alice", database="alice"))
        client.read_until(b"Z")
        client.send(wire.query("BEGIN"))  # the fake backend says nothing, so its answer is still owed
        assert [ask(running, body=b"bye"), ask(running), ask(running)] == [200, 200, 200]
        running.wait_for_event("shutting_down", timeout=PATIENCE, signal="SIGTERM")
        until(lambda: ask(running, "GET", "/readyz") == 503)
        assert len(running.log_events("quit_asked_for")) == 1
        assert running.log_events("shutting_down_at_once") == []
        client.end()
    assert running.wait(PATIENCE) == 0


def test_it_is_off_by_default(start):
    running = start()
    assert (ask(running), ask(running, "GET")) == (405, 404)
    assert running.log_events("shutting_down") == []
    assert ask(running, "GET", "/readyz") == 200


def test_neither_a_look_nor_a_page_in_a_browser_ends_it(start):
    running = start(quitquitquit=True)
    assert [ask(running, method) for method in ("GET", "HEAD", "DELETE")] == [405, 405, 405]
    assert ask(running, headers={"Host": "evil.example"}) == 421
    for header in (
        {"Origin": "http://127.0.0.1:9643"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "same-origin"},
    ):
        assert ask(running, headers=header) == 403
    assert ask(running, path="/metrics") == 405
    assert ask(running, "GET", "/readyz") == 200
    assert running.log_events("quit_asked_for") == []


def test_nobody_beyond_loopback_can(start):
    """Not even from this host, where it comes by another address."""
    running = start(listen="0.0.0.0:0", quitquitquit=True)
    assert ask(running, host=address_beyond_loopback()) == 403
    assert ask(running, "GET", "/readyz") == 200
    assert ask(running) == 200
    assert running.wait(PATIENCE) == 0


def test_with_a_ca_it_takes_a_certificate(start, certs):
    files = {name: getattr(certs.server, name[-3:]).read_bytes() for name in ("server.crt", "server.key")}
    words = {"ssl_cert_file": "server.crt", "ssl_key_file": "server.key", "ssl_ca_file": certs.ca.crt}
    running = start(files, quitquitquit=True, **words)
    context = ssl.create_default_context(cafile=certs.ca.crt)
    assert ask(running, tls=context) == 403
    shown = certs.client("operator")
    context.load_cert_chain(shown.crt, shown.key)
    assert ask(running, tls=context) == 200
    assert running.wait(PATIENCE) == 0
