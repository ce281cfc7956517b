"""Nobody sends a signal: what has changed and holds still is served, what does not load is said once."""

import shutil
import socket
import ssl

import pytest
from cryptography import x509

from fixtures import wire
from fixtures.deployments import config, in_clear, passthrough, with_tls
from fixtures.fake_backend import lets_everybody_in
from fixtures.waiting import until

TRUST = "host all all all trust\n"
REJECT = "host all all all reject\n"
BROKEN = "host all all all nonsense\n"


@pytest.fixture
def start(proxy, certs, fake_backend):
    def go(*, workers=1, interval="100ms", files=None):
        names = {"ssl_cert_file": "server.crt", "ssl_key_file": "server.key"}
        backend = passthrough(fake_backend(lets_everybody_in), certs, require_auth="none")
        settings = config(
            {"tls": with_tls(certs, **names), "clear": in_clear(hba_file="clear.conf")}, primary=backend
        ) | {"workers": workers, "reload_interval": interval}
        contents = {
            "pg_hba.conf": TRUST,
            "clear.conf": TRUST,
            "server.crt": certs.server.crt.read_bytes(),
            "server.key": certs.server.key.read_bytes(),
        }
        running = proxy(settings, contents | (files or {}))
        running.wait_for_event("ready")
        return running

    return go


def replace(running, name, content):
    """As an editor does: a new file in the place of the old."""
    path = running.config.parent / name
    scratch = path.with_name(f".{path.name}.new")
    scratch.touch(mode=0o600)
    scratch.write_bytes(content if isinstance(content, bytes) else content.encode())
    scratch.rename(path)


def issue(certs):
    return certs.ca.issue(certs.server.certificate.subject, names=("localhost", "127.0.0.1"))


def served_serial(running):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", running.port("tls")), wire.PROMPTLY) as sock:
        sock.sendall(b"\x00\x00\x00\x08\x04\xd2\x16\x2f")
        assert sock.recv(1) == b"S"
        with context.wrap_socket(sock) as tls:
            return x509.load_der_x509_certificate(tls.getpeercert(binary_form=True)).serial_number


def log_in(running):
    client = wire.WireClient(("127.0.0.1", running.port("clear")), timeout=wire.PROMPTLY)
    client.send(wire.startup(user="alice"))
    return client, client.read_message().kind == b"R"


def is_let_in(running):
    client, result = log_in(running)
    client.close()
    return result


def test_a_renewed_certificate_is_served_by_all_workers_and_sessions_go_on(start, certs):
    running = start(workers=2)
    client, _ = log_in(running)
    client.read_until(b"Z")
    renewed = issue(certs)
    replace(running, "server.key", renewed.key.read_bytes())
    replace(running, "server.crt", renewed.crt.read_bytes())
    assert running.wait_for_event("reloaded")["generation"] == 2
    for _ in range(10):
        assert served_serial(running) == renewed.certificate.serial_number
    client.send(wire.query("SELECT 1"))
    assert client.read_until(b"Z")
    client.close()
    told = running.log_events("reloading")
    assert [sorted(path.rpartition("/")[2] for path in event["changed"]) for event in told] == [
        ["server.crt", "server.key"]
    ]


def test_a_volume_of_kubernetes_is_served_whole_when_its_link_moves(start, certs):
    running = start()
    volume = running.config.parent

    def mount(name, issued):
        (volume / name).mkdir()
        for kind, source in (("crt", issued.crt), ("key", issued.key)):
            target = volume / name / f"server.{kind}"
            shutil.copy(source, target)
            target.chmod(0o600)
        (volume / "..data_tmp").symlink_to(name)
        (volume / "..data_tmp").rename(volume / "..data")

    mount("..1", certs.server)
    for name in ("server.crt", "server.key"):
        (volume / "link").symlink_to(f"..data/{name}")
        (volume / "link").rename(volume / name)
    renewed = issue(certs)
    mount("..2", renewed)
    assert running.wait_for_event("reloaded")["generation"] == 2
    assert served_serial(running) == renewed.certificate.serial_number
    assert len(running.log_events("reloading")) == 1


def test_what_does_not_load_is_said_once_and_its_repair_is_served(start):
    running = start()
    replace(running, "clear.conf", BROKEN)
    failed = running.wait_for_event("reload_failed")
    assert failed["kept"] == ["policy of listener clear"]
    assert is_let_in(running)
    # Another change, with the same mistake still there: the mistake is not news.
    replace(running, "pg_hba.conf", REJECT)
    running.wait_for_event("reload_failed", generation=failed["generation"] + 1)
    assert len(running.log_events("config_mistake")) == 1
    replace(running, "clear.conf", REJECT + BROKEN)
    running.wait_for_event("reload_failed", generation=failed["generation"] + 2)
    assert len(running.log_events("config_mistake")) == 2
    replace(running, "clear.conf", REJECT)
    assert running.wait_for_event("reloaded")["generation"] == failed["generation"] + 3
    assert not is_let_in(running)


def test_an_unchanged_set_is_no_reload(start):
    running = start()
    for path in running.config.parent.iterdir():
        path.touch()
    replace(running, "server.crt", (running.config.parent / "server.crt").read_bytes())
    replace(running, "clear.conf", REJECT)
    assert running.wait_for_event("reloaded")["generation"] == 2
    (told,) = running.log_events("reloading")
    assert told["changed"] == [str(running.config.parent / "clear.conf")]


def test_files_that_are_included_are_watched_and_those_that_are_missing_too(start):
    running = start(files={"clear.conf": "include_if_exists first.conf\n" + TRUST})
    replace(running, "first.conf", REJECT)
    running.wait_for_event("reloaded")
    assert not is_let_in(running)
    replace(running, "first.conf", "host all @names all reject\n")
    running.wait_for_event("reload_failed")
    replace(running, "names", "bob\n")
    running.wait_for_event("reloaded", generation=4)
    assert is_let_in(running)
    replace(running, "names", "alice\n")
    running.wait_for_event("reloaded", generation=5)
    assert not is_let_in(running)


def test_the_interval_itself_is_reloaded_and_what_needs_a_start_is_named(start):
    running = start()
    text = running.config.read_text().replace("workers: 1", "workers: 3")
    replace(running, "pgtlsproxy.yaml", text.replace("reload_interval: 100ms", "reload_interval: 0"))
    running.wait_for_event("reloaded", generation=2)
    warnings = [event["warning"] for event in running.log_events("config_warning")]
    assert [
        each for each in warnings if each.endswith("workers: changed; this takes effect at the next start")
    ]
    assert len(running.workers) == 1
    replace(running, "clear.conf", REJECT)
    assert running.reload()["generation"] == 3
    assert "changed" not in running.log_events("reloading")[-1]


def test_sighup_does_at_once_what_waits_for_an_interval(start, certs):
    running = start(interval="1h")
    renewed = issue(certs)
    replace(running, "server.crt", renewed.crt.read_bytes())
    assert running.reload()["kept"] == ["certificate of listener tls"]
    replace(running, "server.key", renewed.key.read_bytes())
    assert running.reload()["event"] == "reloaded"
    assert served_serial(running) == renewed.certificate.serial_number


def test_a_proxy_that_ends_looks_no_more(start):
    running = start()
    (running.config.parent / "clear.conf").write_text(REJECT)
    assert running.stop() == 0
    until(lambda: running.log_events("stopped"))
