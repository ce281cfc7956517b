"""While a session is relayed nothing in the worker holds its password or ClientKey, and no log shows them, whatever fails."""

import base64
import contextlib
import hashlib
import json
import os
import signal
import sys
import time

import pytest

from fixtures import memory, wire
from fixtures.deployments import (
    PROXY_CERTIFICATE_HBA,
    PROXY_CERTIFICATE_IDENT,
    config,
    passthrough,
    with_certificate,
    with_tls,
)
from fixtures.scram_secrets import secrets_file
from fixtures.scram_servers import end_point, verifier_text
from pgtlsproxy.protocol.scram.keys import Verifier

CANARY = "canary-in-a-coal-mine"
COMMAND = (sys.executable, memory.__file__)
METHODS = ("bridge", "relay", "shown", "own_scram", "own_password")


@pytest.fixture(scope="module")
def cluster(tls_cluster):
    found = tls_cluster(17)
    found.psql(f"CREATE ROLE canary LOGIN PASSWORD '{CANARY}'")
    yield found
    found.psql("DROP ROLE canary")


@pytest.fixture(scope="module")
def believing(tls_cluster):
    ident = PROXY_CERTIFICATE_IDENT + "pgtlsproxy pgtlsproxy canary\n"
    found = tls_cluster(17, PROXY_CERTIFICATE_HBA, ident=ident)
    found.psql("CREATE ROLE canary LOGIN")
    yield found
    found.psql("DROP ROLE canary")


@pytest.fixture(scope="module")
def needles(cluster):
    """What must not be found, and StoredKey, which has to be."""
    verifier = Verifier.parse(verifier_text(cluster, "canary"))
    client_key, _ = wire.scram_keys(CANARY, verifier.salt, verifier.iterations)
    salted = hashlib.pbkdf2_hmac("sha256", CANARY.encode(), verifier.salt, verifier.iterations)
    return {
        "password": CANARY.encode(),
        "SaltedPassword": salted,
        "ClientKey": client_key,
        "StoredKey": verifier.stored_key.reveal(),
    }


@pytest.fixture(scope="module")
def start(cluster, believing, shared_proxy, certs, tmp_path_factory):
    def started(*methods, bugs=""):
        folder = tmp_path_factory.mktemp("memory")
        other = certs.ca.server("localhost")
        by_password = {"hba_file": "password.conf"}
        listeners = {
            "bridge": with_tls(certs, other),
            "relay": with_tls(certs, other),
            "shown": with_tls(certs, other, **by_password),
            "own_scram": with_tls(certs, other, backend="believing"),
            "own_password": with_tls(certs, other, backend="believing", **by_password),
            "passfile": with_tls(certs, other, backend="passfile"),
        }
        backends = {
            "primary": passthrough(cluster, certs),
            "believing": with_certificate(believing, certs),
            "passfile": passthrough(cluster, certs, login="passfile", passfile="passwords"),
        }
        listeners = {name: listeners[name] | {"scram_secrets_file": "secrets.txt"} for name in methods}
        backends = {name: backends[name] for name in {each["backend"] for each in listeners.values()}}
        files = {
            "pg_hba.conf": "hostssl all all all scram-sha-256\n",
            "password.conf": "hostssl all all all password\n",
            "passwords": f"localhost:*:*:canary:{CANARY}\n",
            "secrets.txt": secrets_file(cluster, "canary"),
        }
        log = {"log": {"level": "debug"}}
        running = shared_proxy(
            config(listeners, **backends) | log,
            files,
            environment={memory.FOLDER: str(folder), memory.BUGS: bugs},
            command=COMMAND,
        )
        return running, folder

    return started


def log_in(client, certs, method, secret=CANARY):
    """Answer what is asked; the last answer to it."""
    client.send(wire.startup(user="canary", database="postgres"))
    opening = client.read_message()
    if opening.kind != b"R" or opening.code == 3:
        client.send(wire.password_message(secret))
        return client.read_message()
    is_bound = method != "relay"
    return wire.try_to_prove(
        client,
        secret,
        opening=opening,
        flag=b"p=tls-server-end-point,," if is_bound else b"n,,",
        end_point=end_point(certs.ca.server("localhost")) if is_bound else b"",
    )[0]


def what_is_held(running, folder):
    """What the worker holds, as it says itself."""
    (worker,) = running.workers
    answer = folder / f"{worker}.json"
    answer.unlink(missing_ok=True)
    os.kill(worker, signal.SIGUSR1)
    deadline = time.monotonic() + wire.PATIENCE
    while not answer.exists():
        assert time.monotonic() < deadline, "the worker does not look"
        time.sleep(0.02)
    return json.loads(answer.read_text())


@pytest.mark.parametrize("methods", [METHODS, ("passfile",)], ids=["of clients", "of the administrator"])
def test_while_sessions_are_relayed_nothing_holds_what_proved_them(start, needles, certs, methods):
    """StoredKey is the administrator's, as is the password in a passfile; to find them shows that it looks there.

    They log in at all, so that each password was hashed in a thread (see `fixtures.memory`).
    """
    running, folder = start(*methods)
    text = json.dumps({name: each.hex() for name, each in needles.items()})
    (folder / "needles.json").write_text(text)
    with contextlib.ExitStack() as stack:
        for method in methods:
            client = stack.enter_context(wire.connected(("127.0.0.1", running.port(method))))
            assert log_in(client, certs, method).code in {0, 12}
            client.read_until(b"Z")
            client.send(wire.query("SELECT 1"))
            client.read_until(b"Z")
        found = what_is_held(running, folder)
    assert set(found.pop("StoredKey")) == {"Secret"}
    if methods == ("passfile",):
        assert set(found.pop("password")) <= {"Secret", "FileBytes"}
    assert found == {}


BUGS = "pgtlsproxy.protocol.scram.bridge:prove,pgtlsproxy.protocol.scram.keys:saslprep"
"""What fails with ClientKey, and with the password, in its frame."""


def test_no_log_shows_it_whatever_fails(start, needles, certs):
    running, _ = start(*METHODS, "passfile", bugs=BUGS)
    running.allow_bugs = True
    fails = ("bridge", "shown", "own_password", "passfile")
    for method in (*METHODS, "passfile"):
        for secret in (CANARY, CANARY + "x"):
            with wire.connected(("127.0.0.1", running.port(method))) as client:
                log_in(client, certs, method, secret)
                if secret == CANARY and method not in fails:
                    client.read_until(b"Z")
                else:
                    client.read_to_end()
    running.stop()
    log = json.dumps(running.log_events(), ensure_ascii=False)
    assert log.count("a bug on purpose") >= len(fails)
    for name, needle in needles.items():
        spelled = [needle.hex(), base64.b64encode(needle).decode(), repr(needle)[2:-1]]
        assert not [each for each in spelled if each in log], name
