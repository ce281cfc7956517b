"""What the tour sets up: certificates, PostgreSQL's files, and the proxy's three deployments."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from pgtlsproxy.demo.installations import Installation
from pgtlsproxy.demo.postgres import Cluster
from pgtlsproxy.pki import Issued, issue_client, issue_server, make_ca

DATABASE = "shop"
PASSWORD = "throwaway"  # noqa: S105 - it lives as long as the demo, and is shown on purpose
PROXY_NAME = "proxy.test"
"""What clients call the proxy. Nothing resolves it: they are told the address as well (hostaddr)."""
SERVER_NAME = "db.test"

_SETUP = (
    f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'",
    "CREATE ROLE orders LOGIN",
    "CREATE ROLE alice LOGIN",
    "CREATE ROLE bob LOGIN",
    f"CREATE DATABASE {DATABASE}",
)

_SERVER_HBA = """\
# TYPE   DATABASE  USER              ADDRESS       METHOD
hostssl  shop      app               127.0.0.1/32  scram-sha-256
hostssl  shop      orders,alice,bob  127.0.0.1/32  cert map=proxy
"""
_SERVER_IDENT = "".join(f"proxy  pgtlsproxy  {role}\n" for role in ("orders", "alice", "bob"))

_LEGACY_HBA = """\
# TYPE  DATABASE  USER  ADDRESS       METHOD
host    shop      app   127.0.0.1/32  scram-sha-256
"""
_SIDECAR_HBA = """\
# TYPE  DATABASE  USER    METHOD
local   shop      orders  peer map=os
"""
_CENTRAL_HBA = """\
# TYPE   DATABASE  USER  ADDRESS       METHOD
hostssl  shop      all   127.0.0.1/32  cert map=people
"""
_CENTRAL_IDENT = """\
# MAP   NAME IN THE CERTIFICATE  DATABASE USER
people  alice.smith              alice
people  bob.jones                bob
"""


@dataclass(frozen=True, slots=True)
class Certificates:
    """Everybody's certificate, by one throw-away CA whose key is in no file.

    Args:
        ca: the authority.
        server: PostgreSQL's.
        proxy: the proxy's, as clients see it.
        proxy_client: the proxy's, as PostgreSQL sees it.
        alice, bob: of two people, whose names in it are not their database users.
    """

    ca: Issued
    server: Issued
    proxy: Issued
    proxy_client: Issued
    alice: Issued
    bob: Issued


def issue_certificates() -> Certificates:
    """Make all of them."""
    ca = make_ca("pgtlsproxy demo CA")
    return Certificates(
        ca=ca,
        server=issue_server(ca, [SERVER_NAME]),
        proxy=issue_server(ca, [PROXY_NAME]),
        proxy_client=issue_client(ca, "pgtlsproxy"),
        alice=issue_client(ca, "alice.smith"),
        bob=issue_client(ca, "bob.jones"),
    )


def make_cluster(installation: Installation, certificates: Certificates) -> Cluster:
    """A PostgreSQL, not started, to which there is no way in without TLS.

    Raises:
        PostgresFailed: its programs refuse.
    """
    return Cluster(
        installation,
        hba=_SERVER_HBA,
        ident=_SERVER_IDENT,
        settings={"ssl": "on", "ssl_ca_file": "root.crt"},
        files={
            "server.crt": certificates.server.certificate_pem(),
            "server.key": certificates.server.key_pem().reveal(),
            "root.crt": certificates.ca.certificate_pem(),
        },
        setup=_SETUP,
    )


def write_configuration(folder: Path, certificates: Certificates, server_port: int, os_name: str) -> Path:
    """Write everything that the proxy and its clients read.

    Args:
        folder: where to; the sidecar's Unix socket will be there too.
        certificates: whose files.
        server_port: PostgreSQL's, on 127.0.0.1.
        os_name: the operating system user who may be `orders`, as pg_ident.conf has it.

    Returns:
        The proxy's configuration file.
    """
    _write(folder / "ca.crt", certificates.ca.certificate_pem())
    for stem, issued in (
        ("proxy", certificates.proxy),
        ("proxy-client", certificates.proxy_client),
        ("alice", certificates.alice),
        ("bob", certificates.bob),
    ):
        write_pair(folder, stem, issued)
    texts = {
        "legacy_hba.conf": _LEGACY_HBA,
        "sidecar_hba.conf": _SIDECAR_HBA,
        "sidecar_ident.conf": f'# MAP  OPERATING SYSTEM USER  DATABASE USER\nos     "{os_name}"  orders\n',
        "central_hba.conf": _CENTRAL_HBA,
        "central_ident.conf": _CENTRAL_IDENT,
        "pgtlsproxy.yaml": _proxy_yaml(folder, server_port),
    }
    for name, text in texts.items():
        _write(folder / name, text.encode())
    return folder / "pgtlsproxy.yaml"


def write_pair(folder: Path, stem: str, issued: Issued) -> None:
    """Put `stem.crt` and `stem.key` in place, each as a whole."""
    _write(folder / f"{stem}.key", issued.key_pem().reveal())
    _write(folder / f"{stem}.crt", issued.certificate_pem())


def _write(path: Path, content: bytes) -> None:
    scratch = path.with_name(f".{path.name}.new")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    scratch.replace(path)


def _proxy_yaml(folder: Path, server_port: int) -> str:
    return f"""\
listeners:
  legacy:                               # clients that cannot do TLS, on this host
    listen: ["127.0.0.1:0"]
    ssl: off
    hba_file: legacy_hba.conf
    backend: by_password
  sidecar:                              # beside an application: the operating system says who it is
    listen: [{json.dumps(f"unix:{folder}:5432")}]
    ssl: off
    hba_file: sidecar_hba.conf
    ident_file: sidecar_ident.conf
    backend: by_certificate
  central:                              # everybody else, with a certificate
    listen: ["127.0.0.1:0"]
    ssl: on
    ssl_cert_file: proxy.crt
    ssl_key_file: proxy.key
    ssl_ca_file: ca.crt
    hba_file: central_hba.conf
    ident_file: central_ident.conf
    backend: by_certificate
backends:                               # sslmode: verify-full is the default
  by_password:
    host: {SERVER_NAME}
    hostaddr: 127.0.0.1
    port: {server_port}
    sslrootcert: ca.crt
    login: passthrough
  by_certificate:
    host: {SERVER_NAME}
    hostaddr: 127.0.0.1
    port: {server_port}
    sslrootcert: ca.crt
    sslcert: proxy-client.crt
    sslkey: proxy-client.key
    login: certificate
log: {{format: json, level: info}}
"""
