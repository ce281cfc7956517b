"""A damaged CA or CRL, or a bug of ours, at SIGHUP: that unit keeps its old content, and sessions go on."""

import shutil
import sys

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fixtures import wire
from fixtures.deployments import config, passthrough, with_tls
from fixtures.fake_backend import lets_everybody_in
from fixtures.wire import WireClient, connected, tls_context

HBA = {"pg_hba.conf": "hostssl all all all cert\n"}

FAILS_ONCE = """
import sys
from pgtlsproxy.proxy import origins
real = origins.build
def broken(files, in_service):
    if in_service is None:
        return real(files, in_service)
    origins.build = real
    raise RuntimeError("made to fail")
origins.build = broken
from pgtlsproxy.cli import main
main(sys.argv[1:])
"""


def damaged(original):
    """A certificate or CRL with a name that is not UTF-8, which cryptography lets pass and OpenSSL does not."""
    whole = original.public_bytes(Encoding.DER)
    spoilt = whole.replace(b"pgtlsproxy test CA", b"pgtlsproxy test C\xff")
    assert spoilt != whole
    load = (
        x509.load_der_x509_certificate if isinstance(original, x509.Certificate) else x509.load_der_x509_crl
    )
    return load(spoilt).public_bytes(Encoding.PEM)


@pytest.fixture
def running(request, proxy, fake_backend, certs):
    """A proxy whose listener and backend have CA and CRL files of their own each."""
    shown = certs.client("pgtlsproxy")
    backend = fake_backend(lets_everybody_in, client_ca=certs.ca)
    listener = with_tls(
        certs,
        ssl_cert_file="server.crt",
        ssl_key_file="server.key",
        ssl_ca_file="client-ca.crt",
        ssl_crl_file="client-ca.crl",
    )
    ca, crl = certs.ca.crt.read_bytes(), certs.ca.crl().read_bytes()
    return proxy(
        config(
            {"tls": listener},
            primary=passthrough(
                backend, certs, login="certificate", sslcert=shown.crt, sslkey=shown.key,
                sslrootcert="server-ca.crt", sslcrl="server-ca.crl",
            ),
        ),
        {
            **HBA,
            "server.crt": certs.server.crt.read_bytes(),
            "server.key": certs.server.key.read_bytes(),
            "client-ca.crt": ca, "client-ca.crl": crl, "server-ca.crt": ca, "server-ca.crl": crl,
        },
        command=getattr(request, "param", [sys.executable, "-m", "pgtlsproxy"]),
    )  # fmt: skip


def log_in(client):
    client.send(wire.startup(user="alice", database="postgres"))
    client.read_until(b"Z")


def answers(client):
    client.send(wire.query("SELECT 1"))
    return client.read_until(b"Z") != []


def alice(running, certs):
    return connected(("127.0.0.1", running.port("tls")), tls_context(certificate=certs.client("alice")))


def served_serial(running, certs):
    with alice(running, certs) as client:
        log_in(client)
        return x509.load_der_x509_certificate(client.tls.getpeercert(binary_form=True)).serial_number


def renew(running, certs):
    renewed = certs.ca.issue(certs.server.certificate.subject, names=("localhost", "127.0.0.1"))
    shutil.copy(renewed.crt, running.config.parent / "server.crt")
    shutil.copy(renewed.key, running.config.parent / "server.key")
    return renewed.certificate.serial_number


@pytest.mark.parametrize(
    ("file", "unit", "key", "what"),
    [
        ("client-ca.crt", "CA of listener tls", "ssl_ca_file", "block 1 (CERTIFICATE, line 1) is no certificate"),
        ("client-ca.crl", "CA of listener tls", "ssl_crl_file", "block 1 (X509 CRL, line 1) is no CRL"),
        ("server-ca.crt", "CA of backend primary", "sslrootcert", "is no certificate: invalid utf8string"),
        ("server-ca.crl", "CA of backend primary", "sslcrl", "is no CRL: invalid utf8string"),
    ],
)  # fmt: skip
def test_a_damaged_ca_or_crl_keeps_the_old_one_and_the_renewed_certificate_is_served(
    running, certs, file, unit, key, what
):
    path = running.config.parent / file
    load = x509.load_pem_x509_crl if file.endswith("crl") else x509.load_pem_x509_certificate
    path.write_bytes(damaged(load(path.read_bytes())))
    with alice(running, certs) as session:
        log_in(session)
        renewed = renew(running, certs)
        event = running.reload()
        assert (event["event"], event["kept"]) == ("reload_failed", [unit])
        assert answers(session)
    mistake = running.wait_for_event("config_mistake")["mistake"]
    assert f".{key}: " in mistake
    assert what in mistake
    assert served_serial(running, certs) == renewed


def test_a_typo_in_the_ciphers_keeps_the_old_ones_and_the_renewed_certificate_is_served(running, certs):
    written = yaml.safe_load(running.config.read_text())
    written["listeners"]["tls"]["ssl_ciphers"] = "NOTHING"
    running.config.write_text(yaml.safe_dump(written))
    renewed = renew(running, certs)
    assert running.reload()["kept"] == ["TLS settings of listener tls"]
    assert served_serial(running, certs) == renewed


@pytest.mark.parametrize("running", [[sys.executable, "-c", FAILS_ONCE]], indirect=True)
def test_a_bug_in_a_reload_is_logged_and_everything_stays_as_it_is(running, certs):
    running.allow_bugs = True
    serial = served_serial(running, certs)
    with alice(running, certs) as session:
        log_in(session)
        renewed = renew(running, certs)
        event = running.reload()
        assert (event["event"], event["generation"], event["kept"]) == ("reload_failed", 1, ["everything"])
        assert "RuntimeError: made to fail" in running.wait_for_event("bug")["exception"]
        assert answers(session)
        assert served_serial(running, certs) == serial
        assert running.reload()["event"] == "reloaded"
        assert served_serial(running, certs) == renewed
        assert answers(session)


def test_a_working_directory_that_is_gone_stops_no_reload(tmp_path, proxy, fake_backend, certs):
    gone = tmp_path / "gone"
    gone.mkdir()
    enters_it = (
        f"import os, sys; os.chdir({str(gone)!r}); from pgtlsproxy.cli import main; main(sys.argv[1:])"
    )
    backend = fake_backend(lets_everybody_in)
    running = proxy(
        config({"tls": with_tls(certs)}, primary=passthrough(backend, certs)),
        {"pg_hba.conf": "hostssl all all all reject\n"},
        command=[sys.executable, "-c", enters_it],
    )
    gone.rmdir()
    assert running.reload()["event"] == "reloaded"
    with WireClient(("127.0.0.1", running.port("tls"))) as client:
        assert client.ask_for_tls() == b"S"
