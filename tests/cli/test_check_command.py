"""`check` says everything that is wrong, `serve` says the same, and the shipped examples are right."""

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from fixtures import wire
from fixtures.auth_query import AUTH_QUERY, FILES, LOOKUP_PASSWORD, LOOKUP_ROLE, install
from fixtures.certs import common_names
from fixtures.deployments import (
    PROXY_CERTIFICATE_HBA,
    PROXY_CERTIFICATE_IDENT,
    config,
    in_clear,
    passthrough,
    with_certificate,
    with_tls,
)
from fixtures.fake_backend import silent
from fixtures.scram_secrets import secrets_file
from pgtlsproxy import pki
from pgtlsproxy.cli import main
from pgtlsproxy.config import UnixAddress
from pgtlsproxy.proxy.unix_sockets import folder_warning

ROOT = Path(__file__).parents[2]
HBA = {"pg_hba.conf": "host all all all scram-sha-256\n"}
PASSWORD_HBA = {"pg_hba.conf": "host all all all password\n"}
"""In which channel binding has no part."""


@pytest.fixture(scope="session")
def examples(tmp_path_factory):
    """The folder config/ beside a filled certs/dev/."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(ROOT / "config", folder / "config")
    subprocess.run(
        [ROOT / "certs/dev/make-certs", folder / "certs/dev"],
        env=os.environ | {"PYTHON": sys.executable},
        check=True,
        capture_output=True,
    )
    return folder / "config"


@pytest.mark.parametrize("deployment", ["legacy", "sidecar", "central"])
def test_the_shipped_example_is_accepted_without_a_warning(examples, command_line, deployment):
    result = command_line("check", "-c", str(examples / deployment / "pgtlsproxy.yaml"))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("pgtlsproxy.yaml: ok\n")


def test_the_shipped_central_deployment_ends_sessions_that_a_reload_refuses(examples):
    text = (examples / "central/pgtlsproxy.yaml").read_text()
    assert yaml.safe_load(text)["listeners"]["central"]["revoked_sessions"] == "close"


WRONG = {
    "no hba_file": (lambda c: c["listeners"]["a"].pop("hba_file"), r"listeners\.a\.hba_file: is missing"),
    "hba file missing": (
        lambda c: c["listeners"]["a"].update(hba_file="nowhere.conf"), r"nowhere\.conf.*does not exist",
    ),
    "certificate without a key": (
        lambda c: c["listeners"]["a"].pop("ssl_key_file"), r"listeners\.a\.ssl_key_file: is missing",
    ),
    "key as certificate": (
        lambda c: c["listeners"]["a"].update(ssl_cert_file=c["listeners"]["a"]["ssl_key_file"]),
        r"ssl_cert_file: .*no certificate in it",
    ),
    "certificate as key": (
        lambda c: c["listeners"]["a"].update(ssl_key_file=c["listeners"]["a"]["ssl_cert_file"]),
        r"ssl_key_file: .*(no private key in it|group or world access)",
    ),
    "bad listen": (lambda c: c["listeners"]["a"].update(listen=["nowhere:1"]), r"listeners\.a\.listen\[0\]"),
    "minimum above maximum": (
        lambda c: c["listeners"]["a"].update(
            ssl_min_protocol_version="TLSv1.3", ssl_max_protocol_version="TLSv1.2"
        ),
        r"could not set SSL protocol version range",
    ),
    "empty ciphers": (lambda c: c["listeners"]["a"].update(ssl_ciphers=""), r"listeners\.a\.ssl_ciphers"),
    "unknown suite": (
        lambda c: c["listeners"]["a"].update(ssl_tls13_ciphers="TLS_NOPE"), r'"TLS_NOPE" is no TLS 1\.3 cipher suite',
    ),
    "unknown group": (lambda c: c["listeners"]["a"].update(ssl_groups="nope"), r'"nope" is no key exchange group'),
    "unknown key": (lambda c: c["listeners"]["a"].update(ssl_cert_fil="x"), r"ssl_cert_fil: there is no such setting; did you mean ssl_cert_file"),
    "later key": (
        lambda c: c["backends"]["primary"].update(sslcert_issuer="x.crt"), r"sslcert_issuer: is not in this version",
    ),
    "address twice": (
        lambda c: c["listeners"].update(b={**c["listeners"]["a"], "listen": ["127.0.0.1:1"]}) or c["listeners"]["a"].update(listen=["127.0.0.1:1"]),
        r"127\.0\.0\.1:1 is taken by 127\.0\.0\.1:1 in listen of listener a",
    ),
    "unknown backend": (lambda c: c["listeners"]["a"].update(backend="primry"), r'no backend "primry"; did you mean primary\?'),
    "weak sslmode": (
        lambda c: c["backends"]["primary"].update(sslmode="require"), r"sslmode: require .*insecure_backend",
    ),
    "target_session_attrs with passthrough": (
        lambda c: c["backends"]["primary"].update(target_session_attrs="read-write"),
        r"target_session_attrs: read-write cannot work with login: passthrough",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.replace(" ", "-"))
def test_what_is_wrong_is_named_with_its_place_and_serve_says_the_same(certs, proxy, command_line, case):
    spoil, text = WRONG[case]
    wrong = config({"a": with_tls(certs)}, primary=with_password_backend(certs))
    spoil(wrong)
    path = proxy.write(wrong, HBA)
    checked = command_line("check", "-c", str(path))
    assert checked.returncode == 1
    assert re.search(text, checked.stderr), checked.stderr
    served = command_line("serve", "-c", str(path))
    assert served.returncode == 1
    mistakes = [line for line in checked.stderr.splitlines() if line.startswith("error:")]
    assert mistakes == [line for line in served.stderr.splitlines() if line.startswith("error:")]


def with_password_backend(certs):
    return {"host": "localhost", "port": 5432, "sslrootcert": certs.ca.crt, "login": "passthrough"}


def test_all_mistakes_are_reported_at_once(certs, proxy, command_line):
    wrong = config(
        {"a": with_tls(certs, nonsense=1), "b": in_clear(hba_file="bad_hba.conf")},
        primary={**with_password_backend(certs), "port": 99999},
    )
    path = proxy.write(wrong, HBA | {"bad_hba.conf": "hots all all all trust\nhost all all all sspi\n"})
    assert command_line("check", "-c", str(path)).stderr.count("error:") == 2
    wrong["listeners"]["a"].pop("nonsense")
    wrong["backends"]["primary"]["port"] = 5432
    path = proxy.write(wrong, HBA | {"bad_hba.conf": "hots all all all trust\nhost all all all sspi\n"})
    result = command_line("check", "-c", str(path))
    assert "bad_hba.conf:1" in result.stderr
    assert "bad_hba.conf:2" in result.stderr


POLICY = {
    "pg_hba.conf": (
        "hots all all all trust\n"
        "hostssl all all all cert map=nobodys\n"
        "host all all all md5\n"
        "hostssl all all all cert issuer=CN=nobody\n"
        "host all +staff all reject\n"
        "hostssl all all all cert clientname=cn map=people\n"
    ),
    "pg_ident.conf": "people alice alice\n",
    "roles": "staff alice\n",
}

IN_THE_LINES = [
    ("pg_hba.conf", "1", "invalid connection type"),
    ("pg_hba.conf", "6", "invalid value for clientname"),
    ("pg_hba.conf", "2", 'map "nobodys" has no line'),
    ("pg_hba.conf", "3", "it asks nobody"),
    ("pg_hba.conf", "4", "no CA of this name"),
]


def mistakes_of(certs, proxy, command_line, files):
    shown = certs.client("pgtlsproxy")
    own = {"login": "certificate", "sslcert": shown.crt, "sslkey": shown.key}
    listener = with_tls(certs, ident_file="pg_ident.conf", roles_file="roles")
    path = proxy.write(config({"tls": listener}, primary=with_password_backend(certs) | own), files)
    found = json.loads(command_line("check", "-c", path, "--json").stdout)["mistakes"]
    return [(Path(one["where"]).name.partition(":"), one["what"]) for one in found]


def assert_told(found, expected):
    assert [(name, number) for (name, _, number), _ in found] == [
        (name, number) for name, number, _ in expected
    ]
    assert all(wrong in what for (_, what), (_, _, wrong) in zip(found, expected, strict=True))


def test_every_mistake_in_the_lines_of_a_policy_is_told_at_once(certs, proxy, command_line):
    found = mistakes_of(certs, proxy, command_line, POLICY)
    assert_told(found, IN_THE_LINES)


def test_what_may_follow_from_another_mistake_is_not_told(certs, proxy, command_line):
    """Maps and roles may be there when the file is mended that would say so."""
    files = POLICY | {
        "pg_ident.conf": "people alice\npeople alice +crew\n",
        "roles": "staff staff2\nstaff2 staff\n",
    }
    found = mistakes_of(certs, proxy, command_line, files)
    assert_told(
        found,
        [
            *IN_THE_LINES[:2],
            ("pg_ident.conf", "1", "missing entry"),
            ("roles", "", "members of each other"),
            *IN_THE_LINES[3:],
        ],
    )


def test_missing_files_are_reported_at_once_and_nothing_that_follows_from_them(certs, proxy, command_line):
    listener = with_tls(certs, ssl_cert_file="no.crt", ssl_key_file="no.key")
    backend = with_password_backend(certs) | {"sslcert": "nor.crt", "sslkey": "nor.key"}
    result = command_line("check", "-c", str(proxy.write(config({"a": listener}, primary=backend), HBA)))
    told = re.findall(
        r"(\w+\.\w+\.\w+): could not open [\w ]+ file \".*/(.*)\": it does not exist", result.stderr
    )
    assert sorted(told) == [
        ("backends.primary.sslcert", "nor.crt"),
        ("backends.primary.sslkey", "nor.key"),
        ("listeners.a.ssl_cert_file", "no.crt"),
        ("listeners.a.ssl_key_file", "no.key"),
    ]
    assert result.stderr.count("error:") == len(told)


def test_machines_get_one_json_object(certs, proxy, command_line):
    path = proxy.write(
        config({"a": in_clear()}, primary=with_password_backend(certs)), {"pg_hba.conf": "x\n"}
    )
    result = command_line("check", "-c", str(path), "--json")
    answer = json.loads(result.stdout)
    assert (result.returncode, answer["ok"], result.stderr) == (1, False, "")
    assert answer["mistakes"][0]["where"].endswith("pg_hba.conf:1")


@pytest.mark.parametrize(
    ("ca_key", "key", "changed", "warned"),
    [
        ("ed25519", "p256", {}, True),
        ("p256", "ed25519", {}, False),
        ("rsa", "p256", {}, False),
        ("ed25519", "p256", {"host": "/var/run/postgresql"}, False),
        ("ed25519", "p256", {"login": "certificate", "sslcert": "server.crt", "sslkey": "server.key"}, False),
    ],
)
def test_a_certificate_that_channel_binding_cannot_bind_to_is_a_warning(
    certs, proxy, command_line, ca_key, key, changed, warned
):
    """What counts is how the CA signed it, and whether a backend may ask for SCRAM over TLS."""
    ca = pki.make_ca("CA", key_type=pki.KeyType(ca_key))
    server = pki.issue_server(ca, ["localhost"], key_type=pki.KeyType(key))
    listener = with_tls(certs, ssl_cert_file="server.crt", ssl_key_file="server.key")
    backend = with_password_backend(certs) | changed
    method = "cert" if "login" in changed else "scram-sha-256"
    path = proxy.write(
        config({"a": listener}, primary=backend),
        {
            "pg_hba.conf": f"hostssl all all all {method}\n",
            "server.crt": server.certificate_pem(),
            "server.key": server.key_pem().reveal(),
        },
    )
    result = command_line("check", "-c", str(path))
    assert result.returncode == 0
    assert ("listeners.a.ssl_cert_file: the certificate's signature has no hash" in result.stderr) is warned


def test_check_opens_no_socket_and_writes_nothing(certs, proxy, command_line):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        path = proxy.write(
            config({"a": in_clear(listen=[f"127.0.0.1:{port}"])}, primary=with_password_backend(certs)), HBA
        )
        before = sorted(path.parent.iterdir())
        assert command_line("check", "-c", str(path)).returncode == 0
        assert sorted(path.parent.iterdir()) == before


def test_a_busy_port_ends_serve_and_releases_the_others(certs, proxy, command_line):
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as free:
        busy, other = taken.getsockname()[1], free.getsockname()[1]
        free.close()
        listen = [f"127.0.0.1:{other}", f"127.0.0.1:{busy}"]
        path = proxy.write(config({"a": in_clear(listen=listen)}, primary=with_password_backend(certs)), HBA)
        result = command_line("serve", "-c", str(path))
        assert result.returncode == 1
        assert f"cannot listen on 127.0.0.1:{busy}: Address already in use" in result.stderr
        socket.create_server(("127.0.0.1", other)).close()


@pytest.mark.parametrize(("mode", "accepted"), [(0o600, True), (0o400, True), (0o644, False), (0o660, False)])
def test_a_key_that_others_may_read_is_refused(certs, proxy, command_line, mode, accepted):
    listener = with_tls(certs, ssl_key_file="server.key")
    path = proxy.write(
        config({"a": listener}, primary=with_password_backend(certs)),
        HBA | {"server.key": certs.server.key.read_bytes()},
    )
    (path.parent / "server.key").chmod(mode)
    result = command_line("check", "-c", str(path))
    assert (result.returncode == 0) is accepted
    assert ("has group or world access" in result.stderr) is not accepted


def test_an_odd_root_certificate_is_no_reason_to_talk_of_libraries(certs, proxy, command_line):
    """Its serial number is 0, of which cryptography warns with a path of ours; system roots have such."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = common_names("odd")
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    der = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
    version, one, zero = b"\xa0\x03\x02\x01\x02", b"\x02\x01\x01", b"\x02\x01\x00"
    assert version + one in der
    pem = ssl.DER_cert_to_PEM_cert(der.replace(version + one, version + zero))
    roots = {"roots.crt": certs.ca.crt.read_text() + pem}
    listener = with_tls(certs, ssl_ca_file="roots.crt")
    path = proxy.write(config({"a": listener}, primary=with_password_backend(certs)), PASSWORD_HBA | roots)
    result = command_line("check", "-c", str(path))
    (told,) = result.stderr.splitlines()
    assert (result.returncode, told.startswith("warning: ")) == (0, True)
    assert "holds 2 root certificates" in told


def test_a_combined_pem_file_serves_as_certificate_and_key(certs, proxy, command_line):
    pem = certs.server.key.read_bytes() + certs.server.crt.read_bytes()
    listener = with_tls(certs, ssl_cert_file="both.pem", ssl_key_file="both.pem")
    path = proxy.write(config({"a": listener}, primary=with_password_backend(certs)), HBA | {"both.pem": pem})
    assert command_line("check", "-c", str(path)).returncode == 0


def test_an_expired_certificate_fails_check_and_does_not_keep_serve_from_starting(certs, proxy, command_line):
    expired = certs.ca.expired(common_names("localhost"), names=("localhost",))
    running = proxy(config({"a": with_tls(certs, expired)}, primary=with_password_backend(certs)), HBA)
    assert "CN=localhost expired on" in running.wait_for_event("expired")["problems"][0]
    result = command_line("check", "-c", str(running.config))
    assert result.returncode == 1
    assert "CN=localhost expired on" in result.stderr


def test_connect_tells_what_each_backend_asks(certs, tls_cluster, proxy, command_line):
    path = proxy.write(config({"a": in_clear()}, primary=passthrough(tls_cluster(17), certs)), HBA)
    result = command_line("check", "-c", str(path), "--connect")
    assert result.returncode == 0, result.stderr
    assert "TLSv1.3; asks for SCRAM with channel binding" in result.stdout


SCRAM_HBA = {"pg_hba.conf": "hostssl all all all scram-sha-256\n"}


def binding_warnings(command_line, path, *options):
    """The listeners that `check` warns of, and of what."""
    done = command_line("check", "-c", path, "--json", *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["warnings"]
    return {
        row["where"].split("listeners.")[1]: row["what"] for row in found if "channel_binding" in row["what"]
    }


def test_listeners_whose_clients_channel_binding_will_keep_out_are_named(
    certs, tls_cluster, proxy, command_line
):
    cluster = tls_cluster(17)
    own, same = certs.ca.server("localhost"), certs.server
    listeners = {
        "other_leaf": with_tls(certs, own),
        "same_leaf": with_tls(certs, same),
        "knowing": with_tls(certs, own, scram_secrets_file="secrets.txt"),
        "showing": with_tls(certs, own, hba_file="password.conf"),
        "by_token": with_tls(certs, own, hba_file="oauth.conf"),
        "socket": with_tls(certs, own, backend="socket"),
        "clear": in_clear(hba_file="clear.conf"),
    }
    backends = {
        "primary": passthrough(cluster, certs),
        "socket": {"host": cluster.socket_dir, "port": cluster.port, "login": "passthrough"},
    }
    files = SCRAM_HBA | {
        "password.conf": "hostssl all all all password\n",
        "oauth.conf": "hostssl all all all oauth issuer=https://issuer.example scope=openid\n",
        "clear.conf": "host all all all scram-sha-256\n",
        "secrets.txt": secrets_file(cluster),
    }
    path = proxy.write(config(listeners, **backends), files)
    beforehand = binding_warnings(command_line, path)
    assert set(beforehand) == {"other_leaf.scram_secrets_file", "same_leaf.scram_secrets_file"}
    asked = binding_warnings(command_line, path, "--connect")
    assert set(asked) == {"other_leaf.scram_secrets_file"}
    what = asked["other_leaf.scram_secrets_file"]
    for word in (f"another certificate at localhost (127.0.0.1:{cluster.port})", "channel_binding=disable",
                 "set it or auth_query", "login: certificate", "server's own certificate and key"):  # fmt: skip
        assert word in what


def test_a_server_without_channel_binding_keeps_no_client_out(certs, fake_backend, proxy, command_line):
    def script(conversation):
        conversation.accept()
        conversation.send(wire.authentication_sasl("SCRAM-SHA-256"))

    backend = fake_backend(script)
    path = proxy.write(config({"a": with_tls(certs)}, primary=passthrough(backend, certs)), SCRAM_HBA)
    assert set(binding_warnings(command_line, path)) == {"a.scram_secrets_file"}
    assert binding_warnings(command_line, path, "--connect") == {}
    said = command_line("check", "-c", path, "--connect").stdout
    assert "asks for SCRAM without channel binding, which is relayed as it is" in said


def test_connect_finds_a_backend_that_believes_the_proxy(certs, tls_cluster, proxy, command_line):
    cluster = tls_cluster(17, "hostssl all all all trust\n")
    path = proxy.write(config({"a": in_clear()}, primary=passthrough(cluster, certs)), HBA)
    # PostgreSQL answers AuthenticationOk before it looks for the role.
    result = command_line("check", "-c", str(path), "--connect")
    assert result.returncode == 1
    assert "it lets an unknown user in without asking for a proof" in result.stderr


def test_connect_finds_a_backend_that_is_somebody_else(certs, tls_cluster, proxy, command_line):
    backend = passthrough(tls_cluster(17), certs, host="db.example.com")
    path = proxy.write(config({"a": in_clear()}, primary=backend), HBA)
    result = command_line("check", "-c", str(path), "--connect")
    assert result.returncode == 1
    assert 'does not match host name "db.example.com"' in result.stderr


def asking(certs, cluster, user):
    """A listener that asks for roles as this user, at a server that knows the proxy's certificate as one."""
    listener = with_tls(certs, roles_query={"user": user})
    return config({"a": listener}, primary=with_certificate(cluster, certs))


def test_connect_runs_the_roles_query(certs, own_cluster, proxy, command_line):
    cluster = own_cluster(17, PROXY_CERTIFICATE_HBA, ident=PROXY_CERTIFICATE_IDENT)
    cluster.psql("CREATE ROLE staff; GRANT staff TO alice")
    lines = {"pg_hba.conf": "hostssl all +staff all cert\n"}
    works = proxy.write(asking(certs, cluster, "app"), lines)
    done = command_line("check", "-c", works, "--connect")
    assert (done.returncode, done.stderr) == (0, "")
    (told,) = [line for line in done.stdout.splitlines() if line.startswith("roles_query ")]
    # pg_monitor is a member of three roles.
    assert told == 'roles_query of listener a: backend primary tells user "app" of 4 roles with members'
    for user, problem in (
        ("nobody", '.roles_query: backend primary: .*refuses user "nobody": 28000'),
        ("carol", '.roles_query: backend primary: .*refuses user "carol": 28000'),
    ):
        path = proxy.write(asking(certs, cluster, user), lines)
        done = command_line("check", "-c", path, "--connect", "--json")
        found = json.loads(done.stdout)
        assert (done.returncode, found["ok"]) == (1, False)
        assert [(row["listener"], row["backend"], row["finding"]) for row in found["roles"]] == [
            ("a", "primary", "")
        ]
        (mistake,) = found["mistakes"]
        assert mistake["where"] == f"{path}: listeners.a.roles_query"
        assert re.search(problem, mistake["where"] + ": " + mistake["what"])
        assert mistake["what"].endswith("lines for members of a role refuse whoever comes to them")


def test_a_roles_query_that_never_ends_is_told(certs, fake_backend, proxy, command_line, monkeypatch, capsys):
    for limit in ("PROBE_SECONDS", "FETCH_SECONDS"):
        monkeypatch.setattr(f"pgtlsproxy.proxy.probe.{limit}", 0.2)
    path = proxy.write(
        asking(certs, fake_backend(silent), "app"), {"pg_hba.conf": "hostssl all +staff all cert\n"}
    )
    with pytest.raises(SystemExit) as ended:
        main(["check", "-c", str(path), "--connect"])
    assert ended.value.code == 1
    assert (
        "listeners.a.roles_query: no answer within 0.2 s; until the backend answers"
        in capsys.readouterr().err
    )


def probing(certs, cluster, **settings):
    """A backend whose hosts are asked what they are, behind a listener in clear."""
    backend = passthrough(
        cluster, certs, target_session_attrs="read-write",
        host_probe={"user": "app", "passfile": "app.pass", **settings},
    )  # fmt: skip
    return config({"a": in_clear(hba_file="clear.conf")}, primary=backend)


def test_connect_tells_what_each_host_is(certs, own_cluster, proxy, command_line):
    cluster = own_cluster(17)
    files = {"clear.conf": "host all all all scram-sha-256\n", "app.pass": "*:*:*:app:app-secret\n"}
    works = proxy.write(probing(certs, cluster), files)
    done = command_line("check", "-c", works, "--connect")
    assert (done.returncode, done.stderr) == (0, "")
    assert "asks for SCRAM with channel binding; host_probe: primary, read-write\n" in done.stdout
    cluster.set(default_transaction_read_only="on")
    cluster.reload()
    assert "host_probe: primary, read-only\n" in command_line("check", "-c", works, "--connect").stdout
    for changed, problem in (
        ({"app.pass": "*:*:*:app:wrong\n"}, 'host_probe: the backend refuses user "app": 28P01'),
        ({"app.pass": "*:*:*:bob:x\n"}, r"host_probe: no line of .*/app\.pass is for localhost:"),
    ):
        done = command_line("check", "-c", proxy.write(probing(certs, cluster), files | changed), "--connect")
        assert done.returncode == 1
        assert re.search(
            rf"backends\.primary: localhost .*: {problem}.*; no session is led to this host", done.stderr
        )


def test_the_probe_s_password_that_others_may_read_is_refused(certs, proxy, command_line):
    files = {"clear.conf": "host all all all scram-sha-256\n", "app.pass": "*:*:*:app:app-secret\n"}
    backend = with_password_backend(certs) | {
        "target_session_attrs": "primary",
        "host_probe": {"user": "app", "passfile": "app.pass"},
    }
    path = proxy.write(config({"a": in_clear(hba_file="clear.conf")}, primary=backend), files)
    assert command_line("check", "-c", path).returncode == 0
    (path.parent / "app.pass").chmod(0o644)
    done = command_line("check", "-c", path)
    assert done.returncode == 1
    assert "backends.primary.host_probe.passfile: " in done.stderr
    assert "has group or world access" in done.stderr


def asking_for_verifiers(certs, cluster, **query):
    """A listener that asks for verifiers at its own backend."""
    listener = with_tls(certs, auth_query=AUTH_QUERY | query)
    return config({"a": listener}, primary=passthrough(cluster, certs))


WRONG_QUERIES = {
    "no function": ({}, "3F000: schema .pgtlsproxy. does not exist; run config/auth_query.sql"),
    "no right": ({}, "42501: permission denied for schema pgtlsproxy; grant the role"),
    "no such database": ({"dbname": "nowhere"}, "no line of .*lookup.pass is for localhost:.*:nowhere:"),
    "no expiry": ({"query": "SELECT rolname, NULL::text FROM pg_roles WHERE rolname = $1"}, "gives 2 columns .*, expected rolname"),
    "an expiry of no type": ({"query": "SELECT rolname, rolpassword, NULL FROM pg_roles WHERE rolname = $1"}, "gives 3 columns of other types, .* NULL::timestamptz"),
    "no rows": ({"query": "DELETE FROM pg_temp.x WHERE $1 = ''"}, "42P01: relation .pg_temp.x. does not exist"),
    "no question": ({"query": "SELECT 'a'::name, NULL::text, NULL::timestamptz WHERE $1 <> ''"}, "gives another role"),
    "no SQL": ({"query": "$1"}, "42601: syntax error"),
    "no password": ({"user": "bob", "passfile": "bob.pass"}, 'refuses user "bob": 28P01'),
}  # fmt: skip


def test_connect_runs_the_auth_query_and_says_what_is_wrong(certs, own_cluster, proxy, command_line):
    cluster = own_cluster(17)
    cluster.psql(f"CREATE ROLE {LOOKUP_ROLE} LOGIN PASSWORD '{LOOKUP_PASSWORD}'")
    files = {"pg_hba.conf": "host all all all trust\n", "bob.pass": "*:*:*:bob:wrong\n"} | FILES

    def check(query, *options):
        path = proxy.write(asking_for_verifiers(certs, cluster, **query), files)
        return command_line("check", "-c", path, "--connect", *options)

    for case, (query, problem) in WRONG_QUERIES.items():
        if case == "no right":
            install(cluster)
            cluster.psql(f"REVOKE ALL ON SCHEMA pgtlsproxy FROM {LOOKUP_ROLE}")
        done = check(query)
        assert done.returncode == 1, case
        (told,) = [line for line in done.stderr.splitlines() if "auth_query: " in line]
        assert re.search(rf"listeners.a.auth_query: backend primary: .*{problem}", told), (case, told)
        assert told.endswith("nobody who needs a verifier of it can log in")
    install(cluster)
    done = check({})
    assert (done.returncode, done.stderr) == (0, "")
    finding = f'backend primary answers user "{LOOKUP_ROLE}", and has no verifier for nobody'
    assert f"auth_query of listener a: {finding}" in done.stdout.splitlines()
    (row,) = json.loads(check({}, "--json").stdout)["verifiers"]
    assert (row["listener"], row["backend"], row["finding"]) == ("a", "primary", finding)


def test_files_that_are_not_there_and_need_not_be_are_named(certs, proxy, command_line):
    files = {
        "pg_hba.conf": "host all all 127.0.0.1/32 scram-sha-256\ninclude_if_exists more.conf\ninclude other\n",
        "other": "include_if_exists \x1b\n",
    }
    both = {"a": in_clear(), "b": in_clear()}
    path = proxy.write(config(both, primary=with_password_backend(certs)), files)
    folder = path.parent
    done = command_line("check", "-c", path)
    assert (done.returncode, done.stdout) == (0, f"{path}: ok\n")
    assert done.stderr.splitlines() == [
        f'note: {folder}/pg_hba.conf:2: skipping missing authentication file "{folder}/more.conf"',
        rf'note: {folder}/other:1: skipping missing authentication file "{folder}/\x1b"',
    ]
    found = json.loads(command_line("check", "-c", path, "--json").stdout)
    assert [note["where"] for note in found["notes"]] == [f"{folder}/pg_hba.conf:2", f"{folder}/other:1"]
    assert (found["ok"], found["warnings"]) == (True, [])
    (folder / "more.conf").write_text("")
    (folder / "other").write_text("")
    assert command_line("check", "-c", path).stderr == ""


def test_a_socket_that_peer_users_cannot_reach_is_warned_of(
    certs, tls_cluster, proxy, command_line, tmp_path
):
    listener = in_clear(listen=[f"unix:{tmp_path}"])
    backend = with_certificate(tls_cluster(17), certs)
    path = proxy.write(config({"a": listener}, primary=backend), {"pg_hba.conf": "local all alice peer\n"})
    result = command_line("check", "-c", str(path))
    assert result.returncode == 0
    assert 'PostgreSQL\'s default is "0777"' in result.stderr


def test_a_revocation_list_of_another_ca_is_warned_of(certs, proxy, command_line):
    """With it nobody's certificate verifies; names alike do not make it the CA's own."""
    alike = pki.make_ca("pgtlsproxy test CA")
    crls = {
        "other.crl": certs.other_ca.crl().read_bytes(),
        "alike.crl": pki.make_crl(alike, []).public_bytes(Encoding.PEM),
        "own.crl": certs.ca.crl().read_bytes(),
    }
    for name, shown in (("other.crl", "CN=pgtlsproxy other test CA"), ("alike.crl", "CN=pgtlsproxy test CA")):
        listener = with_tls(certs, ssl_crl_file=name)
        path = proxy.write(config({"a": listener}, primary=with_password_backend(certs)), HBA | crls)
        result = command_line("check", "-c", str(path))
        assert result.returncode == 0
        assert (
            "listeners.a.ssl_crl_file: has no revocation list of CN=pgtlsproxy test CA, "
            f"only of {shown}: every certificate issued there is refused" in result.stderr
        )
    listener = with_tls(certs, ssl_crl_file="own.crl")
    path = proxy.write(config({"a": listener}, primary=with_password_backend(certs)), PASSWORD_HBA | crls)
    assert command_line("check", "-c", str(path)).stderr == ""


def test_a_file_of_roots_without_a_root_is_refused(certs, proxy, command_line):
    leaf = certs.client("alice").crt
    backend = with_password_backend(certs) | {"sslrootcert": leaf}
    path = proxy.write(config({"a": with_tls(certs, ssl_ca_file=leaf)}, primary=backend), HBA)
    result = command_line("check", "-c", str(path))
    assert result.returncode == 1
    for key in ("listeners.a.ssl_ca_file", "backends.primary.sslrootcert"):
        assert (
            f'{key}: root certificate file "{leaf}": there is no root certificate in it, only CN=alice, which '
            "was issued by CN=pgtlsproxy test CA" in result.stderr
        )


def test_connect_names_the_file_that_a_server_was_held_against(certs, tls_cluster, proxy, command_line):
    backend = passthrough(tls_cluster(17), certs, sslrootcert=certs.other_ca.crt)
    path = proxy.write(config({"a": in_clear()}, primary=backend), HBA)
    result = command_line("check", "-c", str(path), "--connect")
    assert result.returncode == 1
    assert f"issuer is CN=pgtlsproxy test CA); sslrootcert is {certs.other_ca.crt}\n" in result.stderr


def test_connect_says_when_the_proxy_cannot_answer_what_the_server_asks(
    certs, tls_cluster, proxy, command_line
):
    backend = with_certificate(tls_cluster(17), certs)
    path = proxy.write(
        config({"a": in_clear()}, primary=backend), {"pg_hba.conf": "host all bob 127.0.0.1/32 trust\n"}
    )
    result = command_line("check", "-c", str(path), "--connect")
    assert result.returncode == 0
    assert "which the proxy cannot answer: users need a line of its pg_hba.conf with cert" in result.stdout


def test_a_folder_that_no_socket_can_be_made_in_is_warned_of(certs, proxy, command_line, tmp_path):
    listener = in_clear(listen=[f"unix:{tmp_path}/missing", f"unix:{tmp_path}"])
    path = proxy.write(config({"a": listener}, primary=with_password_backend(certs)), HBA)
    result = command_line("check", "-c", str(path))
    assert result.returncode == 0
    assert f"listeners.a.listen[0]: there is no folder {tmp_path}/missing" in result.stderr
    assert "listen[1]" not in result.stderr


def test_a_folder_that_is_not_ours_to_write_in_is_warned_of():
    own = os.geteuid()
    try:
        os.seteuid(own or 65534)  # root may write anywhere
        warning = folder_warning(UnixAddress("/.s.PGSQL.5432"))
    finally:
        os.seteuid(own)
    assert warning.startswith(f"the folder / is not writable for uid {own or 65534}: ")


def test_wrong_usage_is_64(command_line):
    assert command_line("check").returncode == 64
    assert command_line("serv").returncode == 64


@pytest.mark.parametrize("command", ["serve", "check", "certs", "demo"])
def test_every_command_shows_an_example(command_line, command):
    result = command_line(command, "--help")
    assert result.returncode == 0
    assert re.search(rf"Examples?[^\n]*:\n\s+pgtlsproxy {command}", result.stdout), result.stdout


def test_the_version_names_what_it_stands_on(command_line):
    answer = command_line("--version").stdout
    assert re.search(r"pgtlsproxy \d+\.\d+\.\d+\nPython 3\.\d+\.\d+, pyOpenSSL [\d.]+, OpenSSL ", answer)
