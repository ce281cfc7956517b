"""Neither a variable of the environment nor a crash writes keys of sessions, or passwords, into a file."""

from pathlib import Path

from fixtures import wire
from fixtures.deployments import config, passthrough, with_tls
from fixtures.fake_backend import lets_everybody_in
from fixtures.waiting import until
from fixtures.wire import WireClient


def core_limits(pid):
    """Soft and hard."""
    (line,) = [each for each in Path(f"/proc/{pid}/limits").read_text().splitlines() if "core file" in each]
    return line.split()[4:6]


def test_sslkeylogfile_is_ignored_and_no_process_dumps_core(proxy, certs, fake_backend, tmp_path):
    log = tmp_path / "keys.log"
    backend = passthrough(fake_backend(lets_everybody_in), certs, require_auth="none")
    path = proxy.write(
        config({"tls": with_tls(certs)}, primary=backend) | {"status": {"listen": "127.0.0.1:0"}},
        {"pg_hba.conf": "hostssl all all all trust\n"},
    )
    running = proxy.run(path, environment={"SSLKEYLOGFILE": str(log)})
    running.wait_for_event("ready", timeout=60.0)
    with WireClient(("127.0.0.1", running.port("tls")), timeout=wire.PROMPTLY) as client:
        client.start_tls()
        client.send(wire.startup(user="alice"))
        client.read_until(b"Z")
    assert running.wait_for_event("session_decided")["tls_version"].startswith("TLS")
    assert not log.exists()
    until(lambda: running.status_pid)
    for pid in (running.pid, *running.workers, running.status_pid):
        assert core_limits(pid) == ["0", "0"]
