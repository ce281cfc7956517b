import json
from pathlib import Path

import pytest

from benchmarks import configurations
from benchmarks.site import SERVER_NAME
from pgtlsproxy.identity import Secret
from pgtlsproxy.pki import issue_server, make_ca
from pgtlsproxy.protocol.scram.keys import Verifier
from pgtlsproxy.proxy.snapshot import load

FOLDER = Path("/run/bench")
VERIFIER = Verifier.make(Secret(b"throwaway"), bytes(16), 1).text()


def test_ours_can_be_served_and_verifies_the_server(tmp_path):
    ca = make_ca("bench test CA")
    proxy = issue_server(ca, ["proxy.test"])
    files = configurations.ours(5432, 1, VERIFIER) | {
        "ca.crt": ca.certificate_pem(),
        "proxy.crt": proxy.certificate_pem(),
        "proxy.key": proxy.key_pem().reveal(),
    }
    for name, content in files.items():
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_bytes(content)
    settings = load(str(tmp_path / "pgtlsproxy.yaml")).snapshot.settings
    assert {backend.sslmode for backend in settings.backends.values()} == {"verify-full"}
    assert {backend.host for backend in settings.backends.values()} == {(SERVER_NAME,)}
    assert settings.backends["direct"].sslnegotiation == "direct"
    assert "workers" not in files["pgtlsproxy.yaml"].decode()
    assert "workers: 2" in configurations.ours(5432, 2, VERIFIER)["pgtlsproxy.yaml"].decode()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (configurations.pgbouncer(FOLDER, 1, 2, "SCRAM-SHA-256$x", 1), ["server_tls_sslmode = verify-full"]),
        (
            configurations.haproxy(FOLDER, 1, 2),
            ["ssl verify required", f"verifyhost {SERVER_NAME}", "nbthread 1"],
        ),
        (configurations.stunnel(FOLDER, 1, 2, 3), ["verifyChain = yes", f"checkHost = {SERVER_NAME}"]),
        (configurations.envoy(FOLDER, 1, 2), ["trusted_ca", "match_typed_subject_alt_names", SERVER_NAME]),
    ],
    ids=["pgbouncer", "haproxy", "stunnel", "envoy"],
)
def test_every_peer_verifies_the_servers_chain_and_name(files, words):
    text = b"".join(files.values()).decode()
    assert [word for word in words if word not in text] == []
    assert f"{FOLDER}/ca.crt" in text


def test_processes_that_share_a_port_say_so_and_one_alone_does_not():
    one, two = (
        configurations.pgbouncer(FOLDER, 1, 2, "x", count)["pgbouncer.ini"].decode() for count in (1, 2)
    )
    assert "so_reuseport = 0" in one
    assert "so_reuseport = 1" in two


def test_envoys_configuration_is_json_with_one_listener_on_loopback():
    config = json.loads(configurations.envoy(FOLDER, 6432, 5432)["envoy.json"])
    [listener] = config["static_resources"]["listeners"]
    assert listener["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": 6432}
