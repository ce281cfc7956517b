"""`ssl: on` with `host all all 0.0.0.0/0 trust`: who loses TLS on the way is refused, not served in clear."""

import socket
import struct
import threading
from contextlib import contextmanager

import pytest

from fixtures import wire
from fixtures.addresses import address_beyond_loopback
from fixtures.deployments import config, in_clear, passthrough, with_tls
from fixtures.fake_backend import lets_everybody_in
from fixtures.postgres import password
from fixtures.wire import WireClient, connected, log_in

HBA = "host all all 0.0.0.0/0 trust\nhost replication all 0.0.0.0/0 trust\n"


@pytest.fixture(scope="module")
def afar():
    return address_beyond_loopback()


@pytest.fixture(scope="module")
def running(shared_proxy, certs, tls_cluster, afar):
    return shared_proxy(
        config(
            {
                "tls": with_tls(certs, listen=[f"{afar}:0"]),
                "clear": in_clear(listen=[f"{afar}:0"]),
                "listed": with_tls(certs, listen=[f"{afar}:0"], plaintext_from=["10.0.0.0/8", f"{afar}/32"]),
                "listed_elsewhere": in_clear(listen=[f"{afar}:0"], plaintext_from=["203.0.113.0/24"]),
            },
            primary=passthrough(tls_cluster(17), certs),
        ),
        {"pg_hba.conf": HBA},
    )


def no_entry(afar, what='user "alice", database "alice", no encryption'):
    return f'no pg_hba.conf entry for host "{afar}", {what}'


def answer(address, **startup):
    with WireClient(address) as client:
        client.send(wire.startup(user="alice", database="alice", **startup))
        return client.read_error().error


@pytest.mark.parametrize("listener", ["tls", "clear", "listed_elsewhere"])
def test_a_start_in_clear_gets_postgresqls_refusal(running, afar, listener):
    since = running.mark()
    assert answer((afar, running.port(listener))) == ("28000", no_entry(afar))
    decided = running.wait_for_event("session_decided", since=since)
    assert (decided["verdict"], decided["decided_by"]) == ("refused", "plaintext_from")
    assert decided["hba_line"] is None


def test_so_does_a_walsender(running, afar):
    text = f'no pg_hba.conf entry for replication connection from host "{afar}", user "alice", no encryption'
    assert answer((afar, running.port("tls")), replication="true") == ("28000", text)


@pytest.mark.parametrize("sslmode", ["disable", "allow"])
def test_psql_without_tls_stays_outside(running, afar, each_psql, sslmode):
    words = {
        "host": afar,
        "port": running.port("clear"),
        "user": "alice",
        "dbname": "alice",
        "sslmode": sslmode,
    }
    result = each_psql.run("SELECT 1", password=password("alice"), **words)
    assert result.returncode == 2
    assert no_entry(afar) in result.stderr


def test_a_listed_network_may_start_in_clear(running, afar, each_psql):
    words = {"host": afar, "port": running.port("listed"), "user": "alice", "dbname": "alice"}
    result = each_psql.run("SELECT 1", password=password("alice"), sslmode="disable", **words)
    assert (result.stdout, result.stderr) == ("1\n", "")


def test_inside_tls_the_same_line_lets_the_same_client_in(running, afar, psql):
    words = {"host": afar, "port": running.port("tls"), "user": "alice", "dbname": "alice"}
    result = psql(17).run(
        "SELECT 1", password=password("alice"), sslmode="require", channel_binding="disable", **words
    )
    assert (result.stdout, result.stderr) == ("1\n", "")


@contextmanager
def attacker_on_the_path(afar, target):
    """Breaks every TLS handshake and carries everything else on. Gives its port and what it has seen in clear."""
    seen = []
    listening = socket.create_server((afar, 0))

    def serve():
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            with client, socket.create_connection(target) as server:
                client.settimeout(wire.PATIENCE)
                server.settimeout(wire.PATIENCE)
                first = client.recv(65536)
                server.sendall(first)
                if first == wire.SSL_REQUEST:
                    client.sendall(server.recv(1))
                    client.recv(65536)  # the ClientHello goes no further
                    continue
                seen.append(first)
                while data := server.recv(65536):
                    client.sendall(data)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listening.getsockname()[1], seen
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(wire.PATIENCE)
        listening.close()


def test_a_prefer_client_whose_handshake_is_broken_on_the_way_is_not_served_in_clear(
    running, afar, each_psql
):
    with attacker_on_the_path(afar, (afar, running.port("tls"))) as (port, seen):
        result = each_psql.run(
            "SELECT 1", host=afar, port=port, user="alice", dbname="alice", sslmode="prefer",
            password=password("alice"),
        )  # fmt: skip
    assert result.returncode == 2
    assert no_entry(afar) in result.stderr
    assert len(seen) == 1, "psql has fallen back to clear text, as it is known to"


def test_a_cancel_request_may_come_in_clear(running, afar):
    with connected((afar, running.port("tls"))) as client:
        client.send(wire.startup(user="alice", database="alice"))
        (key,) = [message.body for message in log_in(client, password("alice")) if message.kind == b"K"]
        client.send(wire.query("DO $$ BEGIN RAISE NOTICE 'running'; PERFORM pg_sleep(60); END $$"))
        assert client.read_message().kind == b"N"
        with WireClient((afar, running.port("tls"))) as canceller:
            canceller.send(wire.cancel_request(struct.unpack_from("!i", key)[0], key[4:]))
            assert canceller.read_to_end() == b""
        assert client.read_message().error == ("57014", "canceling statement due to user request")


def test_what_is_refused_dials_nobody(shared_proxy, shared_fake_backend, certs, afar):
    backend = shared_fake_backend(lets_everybody_in)
    running = shared_proxy(
        config(
            {"tls": with_tls(certs, listen=[f"{afar}:0"])},
            primary=passthrough(backend, certs, require_auth="none"),
        ),
        {"pg_hba.conf": HBA},
    )
    assert answer((afar, running.port("tls")))[0] == "28000"
    assert backend.conversations == []
