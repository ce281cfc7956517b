"""/metrics, /livez, /readyz and /status: what they say, and to whom."""

import http.client
import json
import os
import signal
import socket
import ssl
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from cryptography import x509
from prometheus_client.parser import text_string_to_metric_families

from fixtures import wire
from fixtures.certs import common_names
from fixtures.deployments import config, in_clear, passthrough, with_tls
from fixtures.fake_backend import lets_everybody_in
from fixtures.waiting import until

TRUST = "host all alice all trust\n"
BROKEN = "host all all all nonsense\n"
STATUS = {"listen": "127.0.0.1:0"}

WAITS_BEFORE_IT_SERVES = """
import sys
from pgtlsproxy.proxy import worker
real = worker._Worker._build
def build(self, order):
    open({gate!r}).read()
    real(self, order)
worker._Worker._build = build
from pgtlsproxy.cli import main
main(sys.argv[1:])
"""


@pytest.fixture
def start(proxy, certs, fake_backend):
    def go(listeners=None, *, status=None, workers=1, files=None, **words):
        backend = passthrough(fake_backend(lets_everybody_in), certs, require_auth="none")
        settings = config(listeners or {"clear": in_clear()}, primary=backend)
        settings |= {"workers": workers, "status": status or STATUS}
        return proxy(settings, {"pg_hba.conf": TRUST} | (files or {}), **words)

    return go


def get(running, path, *, method="GET", host=None, tls=None, headers=None):
    """Status, header and body of an answer."""
    address = "127.0.0.1", running.status_port
    if tls is None:
        connection = http.client.HTTPConnection(*address, timeout=wire.PATIENCE)
    else:
        connection = http.client.HTTPSConnection(*address, timeout=wire.PATIENCE, context=tls)
    with closing(connection):
        connection.request(method, path, headers=({"Host": host} if host else {}) | (headers or {}))
        reply = connection.getresponse()
        return reply.status, reply.headers, reply.read().decode()


def metrics(running, **words):
    """Each sample: its name and labels, and its value."""
    status, headers, body = get(running, "/metrics", **words)
    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return {
        (sample.name.removeprefix("pgtlsproxy_"), *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


def active(running, listener="clear"):
    return metrics(running)["sessions_active", ("listener", listener)]


def total(running, outcome, listener="clear"):
    return metrics(running)["sessions_total", ("listener", listener), ("outcome", outcome)]


@pytest.fixture
def connect():
    """`connect(running)` sends a StartupMessage."""
    with ExitStack() as stack:

        def go(running, user="alice", listener="clear"):
            address = "127.0.0.1", running.port(listener)
            client = stack.enter_context(wire.WireClient(address, timeout=wire.PATIENCE))
            client.send(wire.startup(user=user))
            return client

        yield go


@pytest.fixture
def log_in(connect):
    """`log_in(running)` is let in."""

    def go(running):
        client = connect(running)
        client.read_until(b"Z")
        return client

    return go


# --- What they say --------------------------------------------------------------------------------------


def test_sessions_are_counted_by_listener_and_outcome_over_all_workers(start, connect, log_in):
    running = start({"clear": in_clear(), "other": in_clear()}, workers=2)
    running.wait_for_event("ready", timeout=wire.PATIENCE)
    clients = [log_in(running) for _ in range(6)]
    until(lambda: active(running) == 6)
    for client in clients:
        client.send(wire.TERMINATE)
        client.read_to_end()
    connect(running, user="mallory").read_to_end()
    socket.create_connection(("127.0.0.1", running.port("clear"))).close()
    until(lambda: (active(running), total(running, "ok")) == (0, 6))
    until(lambda: (total(running, "denied"), total(running, "probe")) == (1, 1))
    assert active(running, "other") == total(running, "ok", "other") == 0
    until(lambda: metrics(running)["workers",] == 2)


def test_what_was_counted_survives_the_death_of_a_worker(start, log_in):
    running = start()
    running.wait_for_event("ready", timeout=wire.PATIENCE)
    client = log_in(running)
    client.send(wire.TERMINATE)
    client.read_to_end()
    until(lambda: total(running, "ok") == 1)
    log_in(running)
    until(lambda: active(running) == 1)
    (victim,) = running.workers
    os.kill(victim, signal.SIGKILL)
    until(lambda: running.workers not in ([], [victim]))
    until(lambda: metrics(running)["workers",] == 1)
    assert (active(running), total(running, "ok"), total(running, "bug")) == (0, 1, 1)
    log_in(running).close()
    until(lambda: sum(total(running, outcome) for outcome in ("ok", "client_lost")) == 2)


def test_a_failed_reload_shows_until_its_repair(start):
    running = start()
    running.wait_for_event("ready", timeout=wire.PATIENCE)
    until(lambda: metrics(running)["workers",] == 1)
    found = metrics(running)
    assert (found["config_generation",], found["config_last_reload_successful",]) == (1, 1)
    loaded_at = found["config_last_reload_success_timestamp_seconds",]
    hba = running.config.parent / "pg_hba.conf"
    hba.write_text(BROKEN)
    running.reload()
    until(lambda: metrics(running)["config_generation",] == 2)
    found = metrics(running)
    assert found["config_last_reload_successful",] == 0
    assert found["reload_failed", ("unit", "policy of listener clear")] == 1
    assert found["config_last_reload_success_timestamp_seconds",] == loaded_at
    running.config.write_text(running.config.read_text() + "nonsense: 1\n")
    running.reload()
    until(lambda: ("reload_failed", ("unit", "configuration")) in metrics(running))
    running.config.write_text(running.config.read_text().replace("nonsense: 1\n", ""))
    hba.write_text(TRUST)
    running.reload()
    until(lambda: metrics(running)["config_last_reload_successful",] == 1)
    found = metrics(running)
    assert found["config_last_reload_success_timestamp_seconds",] > loaded_at
    assert not [key for key in found if key[0] == "reload_failed"]


def test_what_runs_out_when_follows_reloads(start, certs):
    running = start(
        {
            "tls": with_tls(
                certs, ssl_cert_file="server.crt", ssl_key_file="server.key", ssl_crl_file="ca.crl"
            )
        },
        files={
            "server.crt": certs.server.crt.read_bytes(),
            "server.key": certs.server.key.read_bytes(),
            "ca.crl": certs.ca.crl().read_bytes(),
        },
    )
    running.wait_for_event("ready", timeout=wire.PATIENCE)

    def not_after(owner, name):
        return metrics(running)["certificate_not_after_seconds", ("name", name), ("owner", owner)]

    until(lambda: metrics(running)["workers",] == 1)
    assert not_after("listener", "tls") == certs.server.certificate.not_valid_after_utc.timestamp()
    ca = x509.load_pem_x509_certificate(certs.ca.crt.read_bytes()).not_valid_after_utc.timestamp()
    assert (not_after("ca", "listeners.tls"), not_after("ca", "backends.primary")) == (ca, ca)
    assert not_after("crl", "listeners.tls") > 0
    renewed = certs.ca.issue(
        certs.server.certificate.subject,
        names=("localhost",),
        not_after=certs.server.certificate.not_valid_after_utc.replace(year=2090),
    )
    (running.config.parent / "server.crt").write_bytes(renewed.crt.read_bytes())
    (running.config.parent / "server.key").write_bytes(renewed.key.read_bytes())
    running.reload()
    until(lambda: not_after("listener", "tls") == renewed.certificate.not_valid_after_utc.timestamp())


def test_hostile_names_are_in_no_label(start, connect):
    running = start()
    running.wait_for_event("ready", timeout=wire.PATIENCE)
    names = ['"} 1\nevil 1\n#', "\x1b[31m", "x" * 63, "{{", "\\"]
    until(lambda: metrics(running)["workers",] == 1)
    before = metrics(running).keys()
    for name in names:
        connect(running, user=name).read_to_end()
    until(lambda: total(running, "denied") + total(running, "client_protocol") == len(names))
    assert metrics(running).keys() == before
    assert not [part for part in ("evil", "\x1b", "xxx") if part in get(running, "/metrics")[2]]


# --- Probes ---------------------------------------------------------------------------------------------


def test_it_is_not_ready_before_a_worker_serves_and_lives(proxy, certs, fake_backend, tmp_path):
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    backend = passthrough(fake_backend(lets_everybody_in), certs, require_auth="none")
    path = proxy.write(
        config({"clear": in_clear()}, primary=backend) | {"status": STATUS}, {"pg_hba.conf": TRUST}
    )
    running = proxy.run(path, command=[sys.executable, "-c", WAITS_BEFORE_IT_SERVES.format(gate=str(gate))])
    running.wait_for_event("status_listening", timeout=wire.PATIENCE)
    assert (get(running, "/readyz")[0], get(running, "/livez")[0]) == (503, 200)
    gate.write_text("")
    running.wait_for_event("ready", timeout=wire.PATIENCE)
    until(lambda: get(running, "/readyz")[0] == 200)


def test_it_is_not_ready_from_the_start_of_a_shutdown_on(start):
    running = start()
    running.wait_for_event("ready", timeout=wire.PATIENCE)
    until(lambda: get(running, "/readyz")[0] == 200)
    (worker,) = running.workers
    os.kill(worker, signal.SIGSTOP)
    running.signal(signal.SIGTERM)
    until(lambda: get(running, "/readyz")[0] == 503)
    assert (get(running, "/readyz")[2], get(running, "/livez")[0]) == ("stopping\n", 200)
    os.kill(worker, signal.SIGCONT)
    assert running.wait() == 0


def test_another_process_takes_over_when_it_dies_and_sessions_go_on(start, log_in):
    running = start()
    running.wait_for_event("ready", timeout=wire.PATIENCE)
    client = log_in(running)
    until(lambda: active(running) == 1)
    os.kill(running.status_pid, signal.SIGKILL)
    running.wait_for_event("status_process_died")
    assert active(running) == 1
    client.send(wire.query("SELECT 1"))
    assert client.read_until(b"Z")


def test_a_process_that_hears_nothing_holds_up_no_reload_and_no_shutdown(start):
    running = start()
    running.wait_for_event("ready", timeout=wire.PATIENCE)
    until(lambda: get(running, "/readyz")[0] == 200)
    os.kill(running.status_pid, signal.SIGSTOP)
    for number in range(20):
        (running.config.parent / "pg_hba.conf").write_text(TRUST + f"# {number}\n")
        assert running.reload()["generation"] == number + 2
    assert running.stop() == 0


PINGS_OFTEN = """
import sys
from pgtlsproxy.proxy import status_process
status_process.PING_SECONDS = 1.0
real = status_process.Orders.receive
def receive(self):
    found = real(self)
    if "Pong" in {{type(each).__name__ for each in found}}:
        open({answers!r}, "a").write("x")
    return found
status_process.Orders.receive = receive
from pgtlsproxy.cli import main
main(sys.argv[1:])
"""


def test_a_process_that_hangs_is_replaced_though_nobody_has_anything_to_tell_it(start, tmp_path):
    running = start(command=[sys.executable, "-c", PINGS_OFTEN.format(answers=str(tmp_path / "answers"))])
    running.wait_for_event("ready", timeout=wire.PATIENCE)
    until((tmp_path / "answers").exists)  # it has started
    hung = running.status_pid
    os.kill(hung, signal.SIGSTOP)
    running.wait_for_event("status_process_hangs")
    assert running.wait_for_event("status_process_died")["status"] == -signal.SIGKILL
    assert get(running, "/livez")[0] == 200
    assert running.status_pid != hung


def test_a_process_that_answers_stays(start, tmp_path):
    running = start(command=[sys.executable, "-c", PINGS_OFTEN.format(answers=str(tmp_path / "answers"))])
    running.wait_for_event("ready", timeout=wire.PATIENCE)
    before = until(lambda: running.status_pid)
    until(lambda: (tmp_path / "answers").exists() and (tmp_path / "answers").stat().st_size >= 3)
    assert running.status_pid == before
    assert running.log_events("status_process_hangs") == []


def test_what_workers_share_can_be_read_only_or_not_at_all(start):
    running = start()
    assert get(running, "/livez")[0] == 200
    maps = Path(f"/proc/{running.status_pid}/maps").read_text().splitlines()
    shared = [line.split() for line in maps if "/memfd:pgtlsproxy" in line]
    assert [(access, name) for _, access, _, _, _, name, *_ in shared] == [
        ("r--s", "/memfd:pgtlsproxy-tally")
    ]
    held = {
        link.readlink().name.partition(" ")[0]: (link.parents[1] / "fdinfo" / link.name).read_text()
        for link in Path(f"/proc/{running.status_pid}/fd").iterdir()
    }
    assert {name for name in held if name.startswith("memfd:")} == {
        "memfd:pgtlsproxy-tally", "memfd:pgtlsproxy-log",
    }  # fmt: skip
    flags = int(held["memfd:pgtlsproxy-tally"].partition("flags:")[2].split()[0], 8)
    assert flags & os.O_ACCMODE == os.O_RDONLY


# --- Who is answered ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked(shared_proxy, certs):
    """A proxy that many are asked of; its backend is nobody."""
    backend = {"host": "localhost", "port": 1, "sslrootcert": certs.ca.crt, "login": "passthrough"}
    status = {"listen": "127.0.0.1:0", "hosts": ["Proxy.example.com"]}
    settings = config({"clear": in_clear()}, primary=backend) | {"status": status}
    return shared_proxy(settings, {"pg_hba.conf": TRUST})


def test_nothing_but_get_and_head_is_answered(asked):
    methods = ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"]
    found = [get(asked, "/metrics", method=method) for method in methods]
    assert {(status, headers["Allow"]) for status, headers, _ in found} == {(405, "GET, HEAD")}


def test_head_is_get_without_a_body(asked):
    status, headers, body = get(asked, "/livez", method="HEAD")
    assert (status, headers["Content-Length"], body) == (200, "3", "")


def test_names_decide_whether_a_request_is_for_us(asked):
    ours = ["127.0.0.1", "127.0.0.1:9643", "[::1]", "[::1]:9643", "10.1.2.3:80", "localhost", "LOCALHOST:1",
            "localhost.", "proxy.example.com", "PROXY.example.com:9643"]  # fmt: skip
    others = ["evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.evil.example", "127.0.0.1:x",
              "[evil]", "example.com", "[::1", "::1]", "localhost:80:80", "user@localhost"]  # fmt: skip
    assert {host: get(asked, "/metrics", host=host)[0] for host in ours} == dict.fromkeys(ours, 200)
    assert {host: get(asked, "/metrics", host=host)[0] for host in others} == dict.fromkeys(others, 421)


def test_no_page_of_another_site_may_read_it(asked):
    _, headers, _ = get(asked, "/status", headers={"Origin": "http://evil.example"})
    assert not [name for name in headers if name.lower().startswith("access-control")]
    assert (headers["Cache-Control"], headers["X-Content-Type-Options"]) == ("no-store", "nosniff")


ODD = [
    (b"GET /metrics HTTP/1.1\r\n\r\n", 400),
    (b"GET /metrics HTTP/1.0\r\n\r\n", 421),
    (b"GET http://127.0.0.1/metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 400),
    (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", 400),
    (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 9000 + b"\r\n\r\n", 431),
    (b"GET /" + b"x" * 20_000, 431),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 405),
    (b"\r\n" * 5000, 400),
    (b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    (b"GET /metrics?x=1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
    (b"GET /../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
]


def test_odd_requests_get_their_status_and_the_end(asked):
    found = []
    for request, _ in ODD:
        with socket.create_connection(("127.0.0.1", asked.status_port), wire.PATIENCE) as sock:
            sock.sendall(request)
            found.append((request, int(read_to_end(sock).split(b" ", 2)[1])))
    assert found == ODD
    assert get(asked, "/livez")[0] == 200


def read_to_end(sock):
    data = b""
    while more := sock.recv(65536):
        data += more
    return data


def test_a_crowd_that_says_nothing_keeps_no_probe_out_and_goes(asked):
    with ExitStack() as stack:
        crowd = [
            stack.enter_context(socket.create_connection(("127.0.0.1", asked.status_port), wire.PATIENCE))
            for _ in range(300)
        ]
        for sock in crowd[::2]:
            sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: local")
        assert get(asked, "/livez")[0] == 200
        # The oldest of them have made room, long before their time was over.
        descriptors = Path(f"/proc/{asked.status_pid}/fd")
        until(lambda: len(list(descriptors.iterdir())) < 120, timeout=5)
        assert not crowd[1].recv(1)
        # The youngest go when their time is over, 10 s from their accept.
        crowd[-1].settimeout(60)
        assert not crowd[-1].recv(1)


def test_beyond_loopback_there_are_metrics_and_probes_and_nothing_else(start):
    running = start(status={"listen": "0.0.0.0:0"})
    running.wait_for_event("ready", timeout=wire.PATIENCE)
    assert {path: get(running, path)[0] for path in ("/metrics", "/livez", "/status")} == {
        "/metrics": 200,
        "/livez": 200,
        "/status": 403,
    }


def test_with_a_ca_its_certificates_see_everything_and_others_see_what_everybody_may(start, certs, tmp_path):
    files = {name: getattr(certs.server, name[-3:]).read_bytes() for name in ("server.crt", "server.key")}
    status = {
        "listen": "0.0.0.0:0",
        "ssl_cert_file": "server.crt",
        "ssl_key_file": "server.key",
        "ssl_ca_file": "ca.crt",
    }
    running = start(status=status, files=files | {"ca.crt": certs.ca.crt.read_bytes()})
    running.wait_for_event("ready", timeout=wire.PATIENCE)

    def context(shown=None):
        made = ssl.create_default_context(cafile=certs.ca.crt)
        made.set_alpn_protocols(["http/1.1"])
        if shown is not None:
            made.load_cert_chain(shown.crt, shown.key)
        return made

    # What has been logged by the supervisor has still to be heard by the process that serves metrics.
    until(lambda: get(running, "/readyz", tls=context())[0] == 200)
    assert [get(running, path, tls=context())[0] for path in ("/metrics", "/readyz", "/status")] == [
        200,
        200,
        403,
    ]
    status, headers, body = get(running, "/status", tls=context(certs.client("operator")))
    assert (status, headers["Content-Type"], json.loads(body)["generation"]) == (200, "application/json", 1)
    assert metrics(running, tls=context())[
        "certificate_not_after_seconds", ("name", "status"), ("owner", "status")
    ]
    with pytest.raises((ssl.SSLError, ConnectionError)):
        get(running, "/metrics", tls=context(certs.other_ca.issue(common_names("operator"), usage="client")))
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
        get(running, "/metrics")
    # A certificate that does not load keeps the old one, a good one is served at once, whatever the CA is like.
    (running.config.parent / "server.crt").write_text("nonsense")
    assert running.reload()["kept"] == ["certificate of status"]
    assert get(running, "/livez", tls=context())[0] == 200
    renewed = certs.ca.issue(certs.server.certificate.subject, names=("localhost", "127.0.0.1"))
    (running.config.parent / "server.crt").write_bytes(renewed.crt.read_bytes())
    (running.config.parent / "server.key").write_bytes(renewed.key.read_bytes())
    assert running.reload()["event"] == "reloaded"

    def served():
        with (
            socket.create_connection(("127.0.0.1", running.status_port), wire.PATIENCE) as sock,
            context().wrap_socket(sock, server_hostname="localhost") as tls,
        ):
            return int(tls.getpeercert()["serialNumber"], 16)

    until(lambda: served() == renewed.certificate.serial_number)
    (running.config.parent / "ca.crt").write_text("nonsense")
    again = certs.ca.issue(certs.server.certificate.subject, names=("localhost", "127.0.0.1"))
    (running.config.parent / "server.crt").write_bytes(again.crt.read_bytes())
    (running.config.parent / "server.key").write_bytes(again.key.read_bytes())
    assert running.reload()["kept"] == ["CA of status"]
    until(lambda: served() == again.certificate.serial_number)
    os.kill(running.status_pid, signal.SIGKILL)
    running.wait_for_event("status_process_died")
    assert served() == again.certificate.serial_number, "who takes its place serves the same"
    assert get(running, "/status", tls=context(certs.client("operator")))[0] == 200


def test_an_address_that_is_taken_is_named(proxy, certs, command_line):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status = {"listen": f"127.0.0.1:{taken.getsockname()[1]}"}
        backend = {"host": "localhost", "sslrootcert": certs.ca.crt, "login": "passthrough"}
        path = proxy.write(
            config({"clear": in_clear()}, primary=backend) | {"status": status}, {"pg_hba.conf": TRUST}
        )
        ended = command_line("serve", "-c", path)
    assert ended.returncode == 1
    assert "status.listen: cannot listen on 127.0.0.1" in ended.stderr


def test_settings_that_are_taken_out_stay_until_the_next_start(start, certs):
    """With TLS its files are not read any more then."""
    shown = certs.server
    status = STATUS | {"ssl_cert_file": str(shown.crt), "ssl_key_file": str(shown.key)}
    running = start(status=status)
    context = ssl.create_default_context(cafile=certs.ca.crt)
    context.check_hostname = False
    assert get(running, "/livez", tls=context)[0] == 200
    text = running.config.read_text()
    running.config.write_text(text[: text.index("status:")] + text[text.index("workers:") :])
    assert running.reload()["event"] == "reloaded"
    assert get(running, "/livez", tls=context)[0] == 200
    os.kill(running.status_pid, signal.SIGKILL)
    running.wait_for_event("status_process_died")
    until(lambda: is_served(running, context))
    assert len(running.log_events("status_process_died")) == 1


def is_served(running, context):
    try:
        return get(running, "/livez", tls=context)[0] == 200
    except OSError:
        return False


def test_another_address_needs_a_start_and_other_names_do_not(start):
    running = start()
    running.wait_for_event("ready", timeout=wire.PATIENCE)
    assert get(running, "/livez", host="proxy.example.com")[0] == 421
    settings = running.config.read_text().replace(
        "  listen: 127.0.0.1:0", "  listen: 127.0.0.1:1\n  hosts: [proxy.example.com]"
    )
    running.config.write_text(settings)
    assert running.reload()["event"] == "reloaded"
    warnings = [event["warning"] for event in running.log_events("config_warning")]
    assert [
        each
        for each in warnings
        if each.endswith("status.listen: changed; this takes effect at the next start")
    ]
    until(lambda: get(running, "/livez", host="proxy.example.com")[0] == 200)
