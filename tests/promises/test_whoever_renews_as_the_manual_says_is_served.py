"""docs/operations.md, "Who renews": its scripts are run, and a running proxy serves what they have written."""

import re
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509

from fixtures import wire
from fixtures.clients import clean_environment
from fixtures.deployments import config, passthrough, with_tls
from fixtures.waiting import until

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
SECTION = PAGE.split("\n### Who renews\n")[1].split("\n## ")[0].split("\n### ")[0]
CERTBOT, CRON = re.findall(r"^```sh\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)


class NoServer:
    port = 1


@pytest.fixture
def shell(empty_home):
    """Run a script of the manual, for this machine's user and these folders."""

    def run(script, folder, installed=None, **environment):
        script = script.replace("-o pgtlsproxy ", "").replace("/etc/pgtlsproxy", str(installed))
        path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        done = subprocess.run(
            ["sh", "-ec", script], cwd=folder, env=clean_environment(empty_home) | {"PATH": path} | environment,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    return run


@pytest.fixture
def ca(tmp_path, shell):
    """The folder of a CA of one's own."""
    folder = tmp_path / "ca"
    folder.mkdir()
    shell(
        "pgtlsproxy certs ca && pgtlsproxy certs server localhost --out server && pgtlsproxy certs crl",
        folder,
    )
    return folder


@pytest.fixture
def running(proxy, certs, ca):
    names = ("server.crt", "server.key", "ca.crt", "ca.crl")
    words = {
        "ssl_cert_file": names[0],
        "ssl_key_file": names[1],
        "ssl_ca_file": names[2],
        "ssl_crl_file": names[3],
    }
    settings = config({"tls": with_tls(certs, **words)}, primary=passthrough(NoServer, certs))
    files = {name: (ca / name).read_bytes() for name in names} | {
        "pg_hba.conf": "host all all all scram-sha-256\n"
    }
    return proxy(settings | {"reload_interval": "100ms"}, files)


def served(running, ca):
    """The serial number of what it shows."""
    with (
        socket.create_connection(("127.0.0.1", running.port("tls")), wire.PATIENCE) as sock,
        ssl.create_default_context(cafile=ca / "ca.crt").wrap_socket(sock, server_hostname="localhost", do_handshake_on_connect=False) as tls,
    ):  # fmt: skip
        socket.socket.sendall(tls, wire.SSL_REQUEST)
        assert socket.socket.recv(tls, 1) == b"S"
        tls.do_handshake()
        return int(tls.getpeercert()["serialNumber"], 16)


def serial(path):
    return x509.load_pem_x509_certificates(path.read_bytes())[0].serial_number


def test_what_cron_renews_is_served(running, ca, shell):
    before = serial(ca / "server.crt")
    assert served(running, ca) == before
    shell(CRON, ca, running.config.parent)
    renewed = serial(ca / "server.crt")
    assert renewed != before
    until(lambda: served(running, ca) == renewed)
    lists = [running.config.parent / "ca.crl", ca / "ca.crl"]
    assert len({path.read_bytes() for path in lists}) == 1


def test_what_certbot_renews_is_served(running, ca, shell, tmp_path):
    lineage = tmp_path / "live" / "proxy.example.com"
    lineage.mkdir(parents=True)
    shell("pgtlsproxy certs server localhost --out new && cat new.crt ca.crt > fullchain.pem", ca)
    (ca / "fullchain.pem").rename(lineage / "fullchain.pem")
    (ca / "new.key").rename(lineage / "privkey.pem")
    shell(CERTBOT, "/", running.config.parent, RENEWED_LINEAGE=str(lineage))
    until(lambda: served(running, ca) == serial(lineage / "fullchain.pem"))
    assert (running.config.parent / "server.key").stat().st_mode & 0o777 == 0o600
    assert running.log_events("reload_failed") == []
