"""With `proxy_protocol` HAProxy in front of PostgreSQL hears from us whose a connection is, before all else."""

import itertools
import struct

import pytest

from fixtures import wire
from fixtures.deployments import config, in_clear, passthrough, with_tls
from fixtures.haproxy import running_haproxy
from fixtures.postgres import password
from fixtures.wire import PATIENCE, PROMPTLY, WireClient

VERSIONS = ("v1", "v2")
BALANCERS = "127.201.0.0/16"
_ports = itertools.count(20_000)


@pytest.fixture(scope="module")
def haproxy(tls_cluster, tmp_path_factory):
    """Takes nothing without a header, and has a log of its own of where clients come from."""
    server = f"127.0.0.1:{tls_cluster(17).port}"
    with running_haproxy(
        tmp_path_factory.mktemp("haproxy"), dict.fromkeys(VERSIONS, ("accept-proxy", server))
    ) as running:
        yield running


@pytest.fixture(scope="module")
def running(shared_proxy, certs, tls_cluster, haproxy, tmp_path_factory):
    cluster, folder = tls_cluster(17), tmp_path_factory.mktemp("sockets")

    def backend(version):
        return passthrough(cluster, certs, proxy_protocol=version) | {"port": haproxy.ports[version]}

    listeners = {
        version: with_tls(
            certs,
            listen=["127.0.0.1:0", f"unix:{folder}:{5433 + number}"],
            backend=version,
            proxy_protocol_from=[BALANCERS],
        )
        for number, version in enumerate(VERSIONS)
    }
    direct = passthrough(cluster, certs, proxy_protocol="v2")
    at_once = passthrough(tls_cluster(17), certs, proxy_protocol="v2", sslnegotiation="direct")
    return shared_proxy(
        config(
            listeners | {each: in_clear(backend=each) for each in ("direct", "at_once")},
            direct=direct, at_once=at_once, **{version: backend(version) for version in VERSIONS},
        ),
        {"pg_hba.conf": "local all alice scram-sha-256\nhost all alice all scram-sha-256\n"},
    )  # fmt: skip


def heard(haproxy, line):
    """Wait for a line of HAProxy's log."""
    haproxy.output.wait_for(lambda each: each.strip() == line, timeout=PATIENCE)


def a_session(client):
    """Log in over TLS, and leave."""
    if client.where:
        assert client.ask_for_tls() == b"S"
        client.start_tls()
    client.send(wire.startup(user="alice", database="alice"))
    wire.log_in(client, password("alice"))
    client.send(wire.TERMINATE)
    client.read_to_end()


@pytest.mark.parametrize("version", VERSIONS)
def test_it_is_told_the_clients_address_and_where_it_connected(running, haproxy, version):
    port = running.port(version)
    with WireClient(("127.0.0.1", port), source=(source := wire.another_source())) as client:
        own = client.sock.getsockname()[1]
        a_session(client)
    heard(haproxy, f"{version} {source}:{own} -> 127.0.0.1:{port}")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("family", "client_address", "server"),
    [(4, "203.0.113.9", "192.0.2.1"), (6, "2001:db8::9", "2001:db8::1")],
)
def test_what_a_load_balancer_said_is_passed_on(running, haproxy, version, family, client_address, server):
    with WireClient(("127.0.0.1", running.port(version)), source="127.201.0.1") as client:
        port = next(_ports)
        client.send(f"PROXY TCP{family} {client_address} {server} {port} 5432\r\n".encode())
        a_session(client)
    heard(haproxy, f"{version} {client_address}:{port} -> {server}:5432")


@pytest.mark.parametrize("version", VERSIONS)
def test_who_comes_through_a_unix_socket_has_no_address(running, haproxy, version):
    """HAProxy shows its own connection's, which is ours, then."""
    path = next(each for each in running.addresses(version) if each.startswith("unix:"))
    with WireClient(path.removeprefix("unix:")) as client:
        a_session(client)
    decided = running.wait_for_event(
        "session_decided", client_addr="[local]", listener=version, verdict="allowed"
    )
    heard(
        haproxy, f"{version} 127.0.0.1:{decided['backend_local_port']} -> 127.0.0.1:{haproxy.ports[version]}"
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_a_cancel_reaches_its_query_behind_it(running, version):
    with wire.connected(("127.0.0.1", running.port(version))) as client:
        client.send(wire.startup(user="alice", database="alice"))
        (key,) = [each.body for each in wire.log_in(client, password("alice")) if each.kind == b"K"]
        client.send(wire.query("DO $$ BEGIN RAISE NOTICE 'running'; PERFORM pg_sleep(60); END $$"))
        assert client.read_message().kind == b"N"
        with WireClient(("127.0.0.1", running.port(version))) as canceller:
            canceller.send(wire.cancel_request(struct.unpack_from("!i", key)[0], key[4:]))
            assert canceller.read_to_end() == b""
        assert client.read_message().error[0] == "57014"


@pytest.mark.parametrize("version", VERSIONS)
def test_the_proxys_own_connections_say_that_they_are(
    proxy, command_line, certs, haproxy, tls_cluster, version
):
    """`check --connect` gets through, and HAProxy takes it for whom it is: us."""
    settings = passthrough(tls_cluster(17), certs, proxy_protocol=version) | {"port": haproxy.ports[version]}
    path = proxy.write(
        config({"clear": in_clear()}, primary=settings), {"pg_hba.conf": "host all all all scram-sha-256\n"}
    )
    since = len(haproxy.output.lines)
    checked = command_line("check", "-c", path, "--connect")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    told = haproxy.output.wait_for(lambda each: each.startswith(f"{version} "), timeout=PATIENCE, since=since)
    assert told.startswith(f"{version} 127.0.0.1:")


@pytest.mark.parametrize("listener", ["direct", "at_once"])
def test_a_server_that_expects_no_header_is_named(running, listener):
    with WireClient(("127.0.0.1", running.port(listener)), timeout=PROMPTLY) as client:
        client.send(wire.startup(user="alice", database="alice"))
        assert client.read_error().error[0] == "57P03"
        decided = running.wait_for_event("session_decided", **client.where)
    assert "does it expect a PROXY header (proxy_protocol: v2)?" in decided["reason"]
