"""A proxy that runs names the files whose certificates and lists have run out or soon will, once."""

from datetime import UTC, datetime, timedelta

from fixtures.certs import Authority, common_names
from fixtures.crls import crl
from fixtures.deployments import config, in_clear, passthrough, with_tls
from fixtures.fake_backend import lets_everybody_in

TRUST = "host all all all trust\n"


def issued(certs, days):
    now = datetime.now(UTC)
    return certs.ca.issue(
        common_names("localhost"), names=("localhost",), not_before=now - timedelta(days=60),
        not_after=now + timedelta(days=days, hours=1),
    )  # fmt: skip


def write(running, name, content):
    (running.config.parent / name).write_bytes(content)


def test_each_file_is_named_once_until_it_is_renewed(proxy, certs, fake_backend, tmp_path):
    now = datetime.now(UTC)
    old_ca = Authority.root(tmp_path / "old", "old", (now - timedelta(days=60), now - timedelta(days=1)))
    short = issued(certs, 5)
    tls = {
        "ssl_cert_file": "server.crt", "ssl_key_file": "server.key", "ssl_ca_file": "ca.crt",
        "ssl_crl_file": "ca.crl",
    }  # fmt: skip
    listeners = {"tls": with_tls(certs, **tls), "again": with_tls(certs, **tls), "clear": in_clear()}
    running = proxy(
        config(listeners, primary=passthrough(fake_backend(lets_everybody_in), certs, require_auth="none")),
        {
            "pg_hba.conf": TRUST,
            "server.crt": short.crt.read_bytes(),
            "server.key": short.key.read_bytes(),
            "ca.crt": certs.ca.crt.read_bytes() + old_ca.crt.read_bytes(),
            "ca.crl": crl(certs.ca, since=-timedelta(days=20), until=timedelta(days=3, hours=1)),
        },
    )
    running.wait_for_event("ready")
    folder = running.config.parent
    soon = running.wait_for_event("expires_soon", file=f"{folder}/server.crt")
    assert soon["level"] == "warning"
    assert set(soon["settings"]) == {"listeners.tls.ssl_cert_file", "listeners.again.ssl_cert_file"}
    (problem,) = soon["problems"]
    assert problem.startswith("CN=localhost expires in 5 days, on ")
    expired = running.wait_for_event("expired")
    assert (expired["level"], expired["file"]) == ("error", f"{folder}/ca.crt")
    assert expired["problems"][0].startswith("CN=old expired on ")
    assert (
        "runs out in 3 days" in running.wait_for_event("expires_soon", file=f"{folder}/ca.crl")["problems"][0]
    )

    write(running, "pg_hba.conf", b"host all all all reject\n")
    assert running.reload()["event"] == "reloaded"
    renewed = issued(certs, 300)
    write(running, "server.crt", renewed.crt.read_bytes())
    write(running, "server.key", renewed.key.read_bytes())
    assert running.reload()["event"] == "reloaded"
    again = issued(certs, 4)
    write(running, "server.crt", again.crt.read_bytes())
    write(running, "server.key", again.key.read_bytes())
    assert running.reload()["event"] == "reloaded"
    told = [(event["event"], event["file"].rpartition("/")[2]) for event in running.log_events()
            if event["event"] in {"expired", "expires_soon"}]  # fmt: skip
    assert sorted(told) == [
        ("expired", "ca.crt"),
        ("expires_soon", "ca.crl"),
        ("expires_soon", "server.crt"),
        ("expires_soon", "server.crt"),
    ]
