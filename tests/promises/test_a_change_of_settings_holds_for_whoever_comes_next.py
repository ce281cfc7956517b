"""What is rotated or tightened while the proxy runs: new sessions obey it, and those that are there go on."""

import os
import signal
import ssl
from contextlib import ExitStack
from pathlib import Path

import pytest

from fixtures import wire
from fixtures.deployments import config, in_clear, passthrough, with_tls
from fixtures.fake_backend import lets_everybody_in
from fixtures.processes import family
from fixtures.waiting import until

TRUST = "host all all all trust\n"


def log_in(stack, running, listener):
    client = stack.enter_context(wire.WireClient(("127.0.0.1", running.port(listener))))
    client.send(wire.startup(user="alice"))
    return client, client.read_message().kind == b"R"


def is_let_in(running, listener="clear"):
    with ExitStack() as stack:
        return log_in(stack, running, listener)[1]


def answers(client):
    client.send(wire.query("SELECT 1"))
    return client.read_until(b"Z") != []


def test_a_ca_of_the_servers_is_rotated_with_an_overlap_and_nobody_notices(proxy, certs, fake_backend):
    """Both CAs are trusted while the server changes its certificate; then the new one alone."""
    backend = fake_backend(lets_everybody_in)
    settings = passthrough(backend, certs, require_auth="none", sslrootcert="roots.crt")
    old, new = (authority.crt.read_bytes() for authority in (certs.ca, certs.other_ca))
    running = proxy(config({"clear": in_clear()}, primary=settings), {"pg_hba.conf": TRUST, "roots.crt": old})
    rotated = fake_backend(lets_everybody_in, certs.other_ca.server("localhost", "127.0.0.1"))
    with ExitStack() as stack:
        first, _ = log_in(stack, running, "clear")
        first.read_until(b"Z")
        (running.config.parent / "roots.crt").write_bytes(old + new)
        assert running.reload()["event"] == "reloaded"
        assert is_let_in(running)
        before, backend._context = backend._context, rotated._context
        second, let_in = log_in(stack, running, "clear")
        assert let_in
        second.read_until(b"Z")
        (running.config.parent / "roots.crt").write_bytes(new)
        assert running.reload()["event"] == "reloaded"
        assert is_let_in(running)
        backend._context = before
        assert not is_let_in(running), "the old CA vouches for nobody any more"
        assert answers(first)
        assert answers(second)


@pytest.fixture
def tightened(proxy, certs, fake_backend):
    """A proxy, and what makes it speak TLS 1.3 alone."""
    backend = passthrough(fake_backend(lets_everybody_in), certs, require_auth="none")
    running = proxy(config({"tls": with_tls(certs)}, primary=backend), {"pg_hba.conf": TRUST})

    def tighten():
        text = running.config.read_text()
        running.config.write_text(
            text.replace("    ssl: true\n", "    ssl: true\n    ssl_min_protocol_version: TLSv1.3\n")
        )
        assert running.reload()["event"] == "reloaded"

    return running, tighten


def test_a_higher_version_of_tls_is_asked_of_whoever_comes_next(tightened):
    running, tighten = tightened
    old = wire.tls_context(versions=(ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2))
    address = "127.0.0.1", running.port("tls")
    with wire.connected(address, old) as there:
        there.send(wire.startup(user="alice"))
        there.read_until(b"Z")
        tighten()
        with pytest.raises(ssl.SSLError), wire.connected(address, old):
            pass
        with wire.connected(address) as client:
            client.send(wire.startup(user="alice"))
            client.read_until(b"Z")
        assert answers(there)


def test_a_backend_whose_name_nobody_knows_stops_no_start_and_no_reload(proxy, certs, fake_backend):
    """It is 57P03 for who comes, and served when the name is known: names are looked up when a session needs them."""
    known = passthrough(fake_backend(lets_everybody_in), certs, require_auth="none")
    unknown = {name: value for name, value in known.items() if name != "hostaddr"} | {
        "host": "nobody.invalid"
    }
    listeners = {"clear": in_clear(), "other": in_clear(backend="unknown")}
    running = proxy(config(listeners, primary=known, unknown=unknown), {"pg_hba.conf": TRUST})
    running.wait_for_event("ready")
    assert is_let_in(running)
    with ExitStack() as stack:
        client = stack.enter_context(wire.WireClient(("127.0.0.1", running.port("other"))))
        client.send(wire.startup(user="alice"))
        assert client.read_error().fields["C"] == "57P03"
    text = running.config.read_text()
    running.config.write_text(text.replace("nobody.invalid", "localhost"))
    assert running.reload()["event"] == "reloaded"
    until(lambda: is_let_in(running, "other"))


def test_neither_a_key_log_nor_a_core_dump_is_written(proxy, certs, fake_backend, tmp_path):
    keys = tmp_path / "keys.log"
    settings = config(
        {"tls": with_tls(certs)},
        primary=passthrough(fake_backend(lets_everybody_in), certs, require_auth="none"),
    )
    environment = {"SSLKEYLOGFILE": str(keys)}
    running = proxy(
        settings | {"status": {"listen": "127.0.0.1:0"}}, {"pg_hba.conf": TRUST}, environment=environment
    )
    running.wait_for_event("ready")
    until(lambda: running.status_pid)
    with wire.connected(("127.0.0.1", running.port("tls"))) as client:
        client.send(wire.startup(user="alice"))
        client.read_until(b"Z")
    processes = family(running.pid)
    assert len(processes) == 3
    for pid in processes:
        limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
        (core,) = [line.split() for line in limits if line.startswith("Max core file size")]
        assert core[4:6] == ["0", "0"], "the kernel writes no core"
    assert running.stop() == 0
    assert not keys.exists()


def test_who_runs_it_as_root_is_told_and_reloads_all_the_same(proxy, certs, fake_backend):
    backend = passthrough(fake_backend(lets_everybody_in), certs, require_auth="none")
    running = proxy(config({"clear": in_clear()}, primary=backend), {"pg_hba.conf": TRUST})
    running.wait_for_event("ready")
    assert bool(running.log_events("running_as_root")) == (os.geteuid() == 0)
    assert running.reload()["event"] == "reloaded"


@pytest.mark.parametrize("content", [TRUST, "host all all all nonsense\n"], ids=["good", "bad"])
def test_sighups_without_number_end_in_what_the_files_say(proxy, certs, fake_backend, content):
    backend = passthrough(fake_backend(lets_everybody_in), certs, require_auth="none")
    running = proxy(config({"clear": in_clear()}, primary=backend) | {"workers": 2}, {"pg_hba.conf": TRUST})
    running.wait_for_event("ready")
    path = running.config.parent / "pg_hba.conf"
    with ExitStack() as stack:
        there, _ = log_in(stack, running, "clear")
        there.read_until(b"Z")
        for number in range(200):
            path.write_text("host all all all reject\n" if number % 2 else "host all all all nonsense\n")
            running.signal(signal.SIGHUP)
        path.write_text("host all all all reject\n")
        running.signal(signal.SIGHUP)
        until(lambda: not is_let_in(running))
        path.write_text(content)
        running.signal(signal.SIGHUP)
        until(lambda: is_let_in(running) == (content == TRUST))
        assert answers(there)
    assert len(running.log_events("reloading")) < 200, "one more for all that came meanwhile"
    assert len(running.workers) == 2
