"""SIGHUP: what loads is served, what does not keeps its old content, and sessions go on."""

import shutil

import pytest

from fixtures.deployments import config, in_clear, passthrough, with_tls
from fixtures.postgres import password

HBA = "host all all all scram-sha-256\n"
ANSWER = "SELECT 'answered'"


@pytest.fixture
def running(tls_cluster, certs, proxy):
    cluster = tls_cluster(17)
    listener = with_tls(certs, ssl_cert_file="server.crt", ssl_key_file="server.key", ssl_ca_file="ca.crt")
    files = {
        "pg_hba.conf": HBA,
        "server.crt": certs.server.crt.read_bytes(),
        "server.key": certs.server.key.read_bytes(),
        "ca.crt": certs.ca.crt.read_bytes(),
    }
    return proxy(config({"tls": listener, "clear": in_clear()}, primary=passthrough(cluster, certs)), files)


def attempt(running, psql, certs, listener="tls", **words):
    encryption = (
        {"sslmode": "verify-full", "sslrootcert": certs.ca.crt, "channel_binding": "disable"}
        if listener == "tls"
        else {"sslmode": "disable"}
    )
    return psql.run(
        ANSWER, host="localhost", hostaddr="127.0.0.1", port=running.port(listener), user="alice", dbname="alice",
        password=password("alice"), **(encryption | words),
    )  # fmt: skip


def renew(running, issued):
    shutil.copy(issued.crt, running.config.parent / "server.crt")
    shutil.copy(issued.key, running.config.parent / "server.key")


def served_serial(running):
    import ssl

    from cryptography import x509

    pem = None
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    import socket

    with socket.create_connection(("127.0.0.1", running.port("tls"))) as sock:
        sock.sendall(b"\x00\x00\x00\x08\x04\xd2\x16\x2f")
        assert sock.recv(1) == b"S"
        with context.wrap_socket(sock) as tls:
            pem = tls.getpeercert(binary_form=True)
    return x509.load_der_x509_certificate(pem).serial_number


def test_a_renewed_certificate_is_served_and_open_sessions_go_on(running, psql, certs):
    session = psql(17).start(
        host="localhost", hostaddr="127.0.0.1", port=running.port("tls"), user="alice", dbname="alice",
        password=password("alice"), sslmode="verify-full", sslrootcert=certs.ca.crt, channel_binding="disable",
    )  # fmt: skip
    with session:
        session.stdin.write(b"SELECT 'before';\n")
        session.stdin.flush()
        assert session.stdout.readline() == b"before\n"
        renewed = certs.ca.issue(certs.server.certificate.subject, names=("localhost", "127.0.0.1"))
        renew(running, renewed)
        event = running.reload()
        assert (event["event"], event["generation"]) == ("reloaded", 2)
        assert served_serial(running) == renewed.certificate.serial_number
        session.stdin.write(b"SELECT 'after';\n")
        session.stdin.flush()
        assert session.stdout.readline() == b"after\n"
        session.stdin.close()
    assert running.wait_for_event("session_ended")["generation"] == 1


def test_a_typo_in_pg_hba_keeps_the_old_policy_and_the_new_certificate_is_served(running, psql, certs):
    renewed = certs.ca.issue(certs.server.certificate.subject, names=("localhost", "127.0.0.1"))
    renew(running, renewed)
    (running.config.parent / "pg_hba.conf").write_text("hots all all all trust\n")
    event = running.reload()
    assert event["event"] == "reload_failed"
    assert set(event["kept"]) == {"policy of listener tls", "policy of listener clear"}
    mistake = running.wait_for_event("config_mistake")["mistake"]
    assert "pg_hba.conf:1" in mistake
    assert served_serial(running) == renewed.certificate.serial_number
    assert attempt(running, psql(17), certs).stdout == "answered\n"


def test_a_certificate_without_its_key_keeps_the_old_pair_and_the_new_policy_is_served(running, psql, certs):
    serial = served_serial(running)
    renewed = certs.ca.issue(certs.server.certificate.subject, names=("localhost", "127.0.0.1"))
    shutil.copy(renewed.crt, running.config.parent / "server.crt")
    (running.config.parent / "pg_hba.conf").write_text("host all all all reject\n")
    event = running.reload()
    assert (event["event"], event["kept"]) == ("reload_failed", ["certificate of listener tls"])
    assert "key values mismatch" in running.wait_for_event("config_mistake")["mistake"]
    assert served_serial(running) == serial
    assert "pg_hba.conf rejects connection" in attempt(running, psql(17), certs).stderr


def test_a_key_that_others_may_read_keeps_the_old_one(running, certs):
    serial = served_serial(running)
    renew(running, certs.ca.issue(certs.server.certificate.subject, names=("localhost",)))
    (running.config.parent / "server.key").chmod(0o644)
    assert running.reload()["kept"] == ["certificate of listener tls"]
    assert "has group or world access" in running.wait_for_event("config_mistake")["mistake"]
    assert served_serial(running) == serial


@pytest.mark.parametrize("content", [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_a_broken_ca_file_keeps_the_old_one(running, psql, certs, content):
    (running.config.parent / "ca.crt").write_bytes(content)
    assert running.reload()["kept"] == ["CA of listener tls"]
    assert attempt(running, psql(17), certs).stdout == "answered\n"


def test_a_yaml_file_that_cannot_be_read_moves_certificates_alone(running, psql, certs):
    renewed = certs.ca.issue(certs.server.certificate.subject, names=("localhost", "127.0.0.1"))
    renew(running, renewed)
    (running.config.parent / "pg_hba.conf").write_text("host all all all reject\n")
    running.config.write_text("listeners: [\n")
    event = running.reload()
    assert event["event"] == "reload_failed"
    assert served_serial(running) == renewed.certificate.serial_number
    assert attempt(running, psql(17), certs).stdout == "answered\n"


def test_what_takes_a_restart_is_named(running):
    text = running.config.read_text()
    running.config.write_text(text.replace("clear:\n", "clear:\n    unix_socket_permissions: '0700'\n"))
    assert running.reload()["event"] == "reloaded"
    warning = running.wait_for_event("config_warning")["warning"]
    assert "clear.unix_socket_permissions" in warning
    assert "next start" in warning


def test_sigterm_ends_sessions_at_once_and_exits_0(running, psql, certs):
    session = psql(17).start(
        host="127.0.0.1", port=running.port("clear"), user="alice", dbname="alice",
        password=password("alice"), sslmode="disable",
    )  # fmt: skip
    with session:
        session.stdin.write(b"SELECT 'here';\n")
        session.stdin.flush()
        assert session.stdout.readline() == b"here\n"
        assert running.stop(timeout=5) == 0
        session.stdin.close()
    ended = running.log_events("session_ended")
    assert [event["kind"] for event in ended] == ["shutdown"]
