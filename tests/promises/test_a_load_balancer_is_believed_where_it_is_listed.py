"""What a PROXY header says of a client is believed of whom `proxy_protocol_from` lists, and of nobody else."""

import itertools
import random
import re
import signal
import struct
from ipaddress import ip_address
from pathlib import Path

import pytest

from fixtures import wire
from fixtures.deployments import config, in_clear, passthrough, with_tls
from fixtures.haproxy import running_haproxy
from fixtures.postgres import password
from fixtures.proxy import Event
from fixtures.scram_secrets import secrets_file
from fixtures.shared_proxy import complete_log
from fixtures.wire import PATIENCE, WireClient

LISTED = "127.200.0.0/16"
"""Where load balancers are. 127.0.0.1, another_source() and all others are somewhere else."""

HBA = """\
host    all alice 127.0.0.0/8    scram-sha-256
host    all alice 203.0.113.0/24 scram-sha-256
host    all alice 2001:db8::/32  scram-sha-256
host    all all   198.51.100.0/24 reject
"""

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"

_balancers = (f"127.200.{number // 250}.{1 + number % 250}" for number in itertools.count())
_ports = itertools.count(20_000)


def v1(client, port=4000, server="192.0.2.1"):
    return f"PROXY TCP{ip_address(client).version} {client} {server} {port} 5432\r\n".encode()


def v2(client, port=4000, tlvs=b""):
    ip = ip_address(client)
    server = ip_address("192.0.2.1" if ip.version == 4 else "2001:db8::1")
    body = ip.packed + server.packed + struct.pack("!HH", port, 5432) + tlvs
    return SIGNATURE + struct.pack("!BBH", 0x21, 0x11 if ip.version == 4 else 0x21, len(body)) + body


LOCAL = SIGNATURE + b"\x20\x00\x00\x00"


@pytest.fixture(scope="module")
def running(shared_proxy, certs, tls_cluster):
    verifiers = {"scram_secrets_file": "secrets.txt"}
    return shared_proxy(
        config(
            {
                "tls": with_tls(certs, proxy_protocol_from=[LISTED], **verifiers),
                "clear": in_clear(
                    proxy_protocol_from=[LISTED], plaintext_from=["203.0.113.0/25"], **verifiers
                ),
            },
            primary=passthrough(tls_cluster(17), certs),
        )
        | {"startup_timeout": "5s", "log": {"level": "debug"}},
        {"pg_hba.conf": HBA, "secrets.txt": secrets_file(tls_cluster(17))},
    )


def balancer(running, listener="tls", *, source=None):
    """A connection from an address that is listed, one that nobody else has."""
    return WireClient(("127.0.0.1", running.port(listener)), source=source or next(_balancers))


def start(client, user="alice", database="alice"):
    client.send(wire.startup(user=user, database=database))


def decided(running, client, **fields) -> Event:
    return running.wait_for_event("session_decided", timeout=PATIENCE, **(client.where | fields))


@pytest.mark.parametrize("version", [v1, v2])
@pytest.mark.parametrize("address", ["203.0.113.200", "2001:db8::7"])
def test_pg_hba_and_the_log_see_the_client_and_not_the_load_balancer(running, version, address):
    port = next(_ports)
    with balancer(running) as client:
        via = client.sock.getsockname()[0]
        header = (
            version(address, port)
            if version is v2 or ":" not in address
            else v1(address, port, "2001:db8::1")
        )
        client.send(header)
        assert client.ask_for_tls() == b"S"
        client.start_tls()
        start(client)
        wire.log_in(client, password("alice"))
        client.send(wire.TERMINATE)
        client.read_to_end()
    for event in ("session_decided", "session_ended"):
        told = running.wait_for_event(event, client_addr=address, client_port=port)
        assert (told["verdict"], told["via_addr"]) == ("allowed", via)
    assert running.wait_for_event("session_decided", client_port=port)["hba_line"] == (
        2 if "." in address else 3
    )


def test_a_refusal_names_the_client(running):
    with balancer(running) as client:
        client.send(v1("198.51.100.9", port := next(_ports)))
        assert client.ask_for_tls() == b"S"
        client.start_tls()
        start(client)
        assert client.read_error().error == (
            "28000",
            'pg_hba.conf rejects connection for host "198.51.100.9", user "alice", database "alice", SSL encryption',
        )
    assert running.wait_for_event("session_decided", client_port=port)["client_addr"] == "198.51.100.9"


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_what_follows_a_header_is_the_clients_whatever_the_segments(running, size):
    """SSLRequest and ClientHello in one piece with the header; direct TLS right behind it."""
    with WireClient(
        ("127.0.0.1", running.port("tls")), source=next(_balancers), transport=wire.in_pieces(size)
    ) as client:
        tls = client.hello()
        client.send_raw(v2("203.0.113.200", tlvs=b"\x02\x00\x03abc") + wire.SSL_REQUEST + client.pending())
        assert client.read_exactly(1) == b"S"
        client.finish_handshake(tls)
        start(client)
        wire.log_in(client, password("alice"))
    with WireClient(
        ("127.0.0.1", running.port("tls")), source=next(_balancers), transport=wire.in_pieces(size)
    ) as client:
        tls = client.hello()
        client.send_raw(v1("203.0.113.200") + client.pending())
        client.finish_handshake(tls)
        start(client)
        wire.log_in(client, password("alice"))


@pytest.mark.parametrize(
    ("address", "verdict"), [("203.0.113.100", None), ("203.0.113.200", "plaintext_from")]
)
def test_clear_text_is_judged_by_the_clients_address(running, address, verdict):
    """The load balancer is on this very host, and that lets nobody in: 203.0.113.0/25 is in plaintext_from."""
    with balancer(running, "clear") as client:
        client.send(v2(address, port := next(_ports)))
        start(client)
        if verdict is None:
            wire.log_in(client, password("alice"))
        else:
            assert client.read_error().error[0] == "28000"
    assert running.wait_for_event("session_decided", client_port=port)["decided_by"] == verdict


def test_guesses_are_counted_by_the_clients_address(running):
    via = next(_balancers)

    def attempt(address, word, port):
        with balancer(running, "clear", source=via) as client:
            client.send(v1(address, port))
            start(client)
            answer, _ = wire.try_to_prove(client, word)
            assert (answer.kind == b"E") == (word == "wrong")
            client.end()
            client.read_to_end()
        return running.wait_for_event("session_decided", client_addr=address, client_port=port)

    for _ in range(5):
        attempt("203.0.113.66", "wrong", next(_ports))
    assert attempt("203.0.113.67", password("alice"), next(_ports))["delayed"] is None
    assert attempt("203.0.113.66", password("alice"), next(_ports))["delayed"] > 0


@pytest.mark.parametrize("header", [v1("203.0.113.200"), v2("203.0.113.200"), LOCAL, b"PROXY UNKNOWN\r\n"])
def test_from_elsewhere_a_header_is_garbage(running, header):
    with balancer(running, source=wire.another_source()) as client:
        client.send(header + wire.SSL_REQUEST)
        assert client.read_to_end() == b""
        told = decided(running, client)
    assert (told["kind"], told["via_addr"]) == ("client_protocol", None)
    assert told["reason"] == (
        f"a PROXY header from {client.where['client_addr']}, which proxy_protocol_from does not list"
    )


def test_from_elsewhere_none_is_needed(running):
    with wire.connected(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        start(client)
        wire.log_in(client, password("alice"))


FORGED = {
    "SSLRequest": (wire.SSL_REQUEST, "an SSLRequest"),
    "StartupMessage": (wire.startup(user="alice", database="alice"), "a packet of PostgreSQL's"),
    "CancelRequest": (wire.cancel_request(1, b"1234"), "a CancelRequest"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00", "a TLS handshake"),
    "HTTP": (b"GET / HTTP/1.1\r\n\r\n", "no PROXY header"),
    "oversized v1": (b"PROXY UNKNOWN " + b"x" * 200 + b"\r\n", "107 octets"),
    "oversized v2": (SIGNATURE + b"\x21\x11\xff\xff" + bytes(100), "65535 octets"),
    "malformed v1": (b"PROXY TCP4 1.2.3 4.5.6.7 1 2\r\n", "no address of TCP4"),
    "loopback": (v1("127.0.0.1"), "names 127.0.0.1"),
    "loopback, mapped": (v2("::ffff:127.0.0.1"), "names 127.0.0.1"),
    "loopback of IPv6": (v2("::1"), "names ::1"),
}


@pytest.mark.parametrize(("sent", "found"), FORGED.values(), ids=FORGED)
def test_from_a_load_balancer_whatever_is_no_header_ends_the_connection(running, sent, found):
    with balancer(running) as client:
        client.send(sent)
        assert client.read_to_end() == b""
        told = decided(running, client)
    assert told["kind"] == "client_protocol"
    assert found in told["reason"]
    assert told["reason"].endswith(f"{client.where['client_addr']} is in proxy_protocol_from")


@pytest.mark.parametrize("second", [v1("203.0.113.1"), v2("203.0.113.1")])
def test_a_header_comes_once_and_before_everything_else(running, second):
    """It cannot be forged by a client behind the load balancer, in clear or inside TLS."""
    with balancer(running) as client:
        client.send(v1("198.51.100.9", port := next(_ports)) + second)
        assert client.read_to_end() == b""
    told = running.wait_for_event("session_decided", client_port=port)
    assert "behind another one" in told["reason"]
    with balancer(running) as client:
        client.send(v1("198.51.100.9", port := next(_ports)))
        assert client.ask_for_tls() == b"S"
        client.start_tls()
        client.send(second)
        client.read_to_end()
    told = running.wait_for_event("session_decided", client_port=port)
    assert (told["client_addr"], told["kind"]) == ("198.51.100.9", "client_protocol")


def test_mutated_headers_let_nobody_in_and_harm_nobody(running):
    """What is left of a header is taken for one, with the address that it says, or ends the connection."""
    chance = random.Random(1)
    for _ in range(100):
        data = bytearray(chance.choice([v1, v2])("198.51.100.9", next(_ports)) + wire.SSL_REQUEST)
        for _ in range(chance.randint(1, 3)):
            data[chance.randrange(len(data))] = chance.choice(
                [0, 9, 10, 13, 32, 48, 255, chance.randrange(256)]
            )
        with balancer(running) as client:
            client.send(bytes(data))
            client.end()
            assert client.read_to_end()[:1] in {b"", b"S", b"N", b"E"}  # and nobody is asked for a proof
    with balancer(running) as client:
        client.send(v2("203.0.113.200"))
        assert client.ask_for_tls() == b"S"
        client.start_tls()
        start(client)
        wire.log_in(client, password("alice"))


def test_half_a_header_is_told(running):
    with balancer(running) as client:
        client.send(v2("203.0.113.200")[:20])
        client.end()
        assert client.read_to_end() == b""
        assert "half a PROXY header" in decided(running, client)["reason"]


def test_a_header_has_the_deadline_of_a_startup_message(running):
    with balancer(running) as silent, balancer(running) as slow:
        slow.send(b"PROXY TCP4 203.0.113.200 ")
        for client, reason in ((silent, "no PROXY header came in time"), (slow, "half a PROXY header")):
            assert client.read_to_end() == b""
            told = decided(running, client)
            assert (told["kind"], told["reason"].startswith(reason)) == ("timeout", True)
    assert 'found "PROXY TCP4 203.0"' in told["reason"]


@pytest.mark.parametrize(
    "header", [b"", LOCAL, b"PROXY UNKNOWN\r\n", v1("203.0.113.200"), v2("203.0.113.200")]
)
def test_a_load_balancer_that_looks_makes_no_noise(running, header):
    with balancer(running) as client:
        client.send(header)
        client.end()
        assert client.read_to_end() == b""
    complete_log(running, "tls")
    assert not [e for e in running.log_events() if e.get("via_addr") == client.where["client_addr"]]


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (LOCAL, "LOCAL"),
        (b"PROXY UNKNOWN 127.0.0.1 127.0.0.1 1 2\r\n", "UNKNOWN"),
        (SIGNATURE + b"\x21\x00\x00\x00", "AF_UNSPEC"),
        (SIGNATURE + b"\x21\x31\x00\xd8" + bytes(216), "AF_UNIX"),
    ],
)
@pytest.mark.parametrize("listener", ["tls", "clear"])
def test_whoever_has_no_address_starts_no_session(running, header, says, listener):
    """Not even by the line for 127.0.0.0/8, where the load balancer itself is."""
    with balancer(running, listener) as client:
        client.send(header)
        if listener == "tls":
            assert client.ask_for_tls() == b"S"
            client.start_tls()
        start(client)
        assert client.read_error().error[0] == "28000"
        told = decided(running, client, kind="denied")
    assert (told["decided_by"], told["via_addr"]) == ("proxy_protocol_from", client.where["client_addr"])
    assert says in told["reason"]


def test_a_cancel_goes_through_a_load_balancer(running, tls_cluster):
    with balancer(running) as client:
        client.send(v1("203.0.113.200"))
        assert client.ask_for_tls() == b"S"
        client.start_tls()
        start(client)
        key = next(each for each in wire.log_in(client, password("alice")) if each.kind == b"K").body
        pid = struct.unpack("!I", key[:4])[0]
        client.send(wire.query("DO $$ BEGIN RAISE NOTICE 'running'; PERFORM pg_sleep(60); END $$"))
        assert client.read_message().kind == b"N"
        with balancer(running) as canceller:
            canceller.send(v2("203.0.113.201") + wire.cancel_request(pid, key[4:]))
            assert canceller.read_to_end() == b""
        assert client.read_message().error[0] == "57014"


@pytest.mark.parametrize("how", ["send-proxy", "send-proxy-v2", "send-proxy-v2-ssl"])
def test_psql_comes_through_haproxy(running, each_psql, tmp_path, how):
    """HAProxy is told that the client is 203.0.113.9, as a network would bring it, and tells us so."""
    port = next(_ports)
    source = next(_balancers)
    claims = (
        f"\ntcp-request connection set-src str(203.0.113.9)\ntcp-request connection set-src-port int({port})"
    )
    server = f"127.0.0.1:{running.port('tls')} source {source} {how}"
    with running_haproxy(tmp_path, {"in": (claims, server)}) as haproxy:
        words = {"host": "127.0.0.1", "port": haproxy.ports["in"], "user": "alice", "dbname": "alice"}
        asked = each_psql.run("SELECT 41 + 1", password=password("alice"), sslmode="require", **words)
        assert (asked.returncode, asked.stdout.strip()) == (0, "42"), asked.stderr
        told = running.wait_for_event("session_decided", client_port=port, verdict="allowed")
        assert (told["client_addr"], told["via_addr"]) == ("203.0.113.9", source)


def test_haproxys_health_checks_make_no_noise(running, tmp_path):
    source = next(_balancers)
    server = f"127.0.0.1:{running.port('tls')} source {source} send-proxy-v2 check check-send-proxy inter 50"
    with running_haproxy(tmp_path, {"in": ("", server)}) as haproxy:
        # Through a server that is up: it has been looked at.
        with WireClient(("127.0.0.1", haproxy.ports["in"])) as client:
            assert client.read_to_end() == b""  # 127.0.0.1 cannot be a client behind HAProxy
        running.wait_for_event("session_decided", timeout=PATIENCE, via_addr=source)
    events = [event for event in running.log_events() if event.get("via_addr") == source]
    assert all("names 127.0.0.1" in event["reason"] for event in events), events


class NoServer:
    port = 1


def test_haproxy_as_the_manual_has_it_hears_of_a_drain_before_anybody_is_turned_away(proxy, certs, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    (block,) = re.findall(r"^# haproxy\.cfg\nbackend pgtlsproxy\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    *options, server = block.splitlines()
    listener = with_tls(certs, proxy_protocol_from=[LISTED])
    settings = config({"tls": listener}, primary=passthrough(NoServer, certs))
    settings |= {"status": {"listen": "127.0.0.1:0"}, "drain_delay": "60s"}
    running = proxy(settings, {"pg_hba.conf": HBA})
    running.wait_for_event("ready", timeout=PATIENCE)
    words = server.split()[2:]
    here = {
        "10.0.0.5:6432": f"127.0.0.1:{running.port('tls')} source {next(_balancers)}",
        "9643": str(running.status_port),
    }
    server = " ".join(here.get(word, word) for word in [*words, "inter", "100ms"])
    claims = "\ntcp-request connection set-src str(203.0.113.9)"
    with running_haproxy(tmp_path, {"in": (claims, "\n".join([server, *options]))}) as haproxy:
        with WireClient(("127.0.0.1", haproxy.ports["in"])) as client:
            assert client.ask_for_tls() == b"S"
        assert "DOWN" not in "".join(haproxy.output.lines)
        running.signal(signal.SIGTERM)
        haproxy.output.wait_for(
            lambda line: "Server in/in is DOWN" in line and "code: 503" in line, timeout=PATIENCE
        )
        with balancer(running) as client:  # who has not heard of it is still served
            client.send(v1("203.0.113.9"))
            assert client.ask_for_tls() == b"S"


def test_a_shutdown_waits_for_no_header(proxy, certs):
    """Nor for the rest of one: both would have a minute."""
    settings = config(
        {"tls": with_tls(certs, proxy_protocol_from=[LISTED])}, primary=passthrough(NoServer, certs)
    )
    running = proxy(settings | {"startup_timeout": "60s"}, {"pg_hba.conf": HBA})
    with balancer(running) as silent, balancer(running) as slow, balancer(running) as started:
        slow.send(v2("203.0.113.200")[:20])
        started.send(v1("203.0.113.200"))
        assert started.ask_for_tls() == b"S"  # so the others, which came before it, are waited for
        assert running.stop(PATIENCE) == 0
        assert [client.read_error().error[0] for client in (silent, slow)] == ["57P01", "57P01"]
