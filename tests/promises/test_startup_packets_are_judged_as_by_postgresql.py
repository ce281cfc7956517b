"""A startup packet gets the answer that PostgreSQL 15, 17 and 18 give to the same bytes, at once and without a dial.

Where PostgreSQL would read on and cut, or take the last of two, the packet is refused.
"""

import struct
import time

import pytest

from fixtures import wire
from fixtures.deployments import config, passthrough, with_tls
from fixtures.fake_backend import lets_everybody_in
from fixtures.shared_proxy import refusal_of

LAYOUT = "invalid startup packet layout: expected terminator as last byte"
NO_USER = "no PostgreSQL user name specified in startup packet"
HBA = "hostssl all all all trust\nhostssl replication all all trust\n"
SIXTY_THREE = "é" * 31 + "x"


@pytest.fixture(scope="module")
def backend(shared_fake_backend):
    return shared_fake_backend(lets_everybody_in)


@pytest.fixture(scope="module")
def running(shared_proxy, certs, backend):
    primary = passthrough(backend, certs, require_auth="none")
    return shared_proxy(config({"tls": with_tls(certs)}, primary=primary), {"pg_hba.conf": HBA})


@pytest.fixture(scope="module")
def servers(tls_cluster):
    return {version: tls_cluster(version) for version in (15, 17, 18)}


@pytest.fixture
def nobody_is_dialled(backend):
    backend.forget()
    yield
    assert backend.conversations == []


def answer(client, data):
    """What a server says to these bytes and the end behind them; texts without the versions it supports."""
    client.send(data)
    client.end()
    said = client.read_to_end()
    if said[:6] == b"EFATAL":
        return said.replace(b"3.0 to 3.0", b"3.0 to 3.2")
    if said:
        (error,) = wire.messages(said)
        severities = error.fields["S"], error.fields["V"]
        return (*severities, error.error[0], error.error[1].replace("3.0 to 3.0", "3.0 to 3.2"))
    return said


def length_word(length, body=b""):
    return struct.pack("!I", length & 0xFFFFFFFF) + body


def of_length(length, **more):
    """A StartupMessage with this length word."""
    short = len(wire.startup(user="alice", application_name="", **more))
    found = wire.startup(user="alice", application_name="x" * (length - short), **more)
    assert len(found) == length
    return found


V3 = b"\x00\x03\x00\x00"

SILENTLY_CLOSED = {
    "length 0": length_word(0),
    "length 3": length_word(3, b"xxx"),
    "length 7": length_word(7, b"xxx"),
    "one over the limit": length_word(10_005, V3),
    "2^31-1": length_word(2**31 - 1, V3),
    "2^31": length_word(2**31, V3),
    "2^32-1": length_word(2**32 - 1, V3),
    "half a length word": b"\x00\x00",
    "8 but truncated": length_word(8, b"\x00\x03"),
    "half a StartupMessage": wire.startup(user="alice")[:-3],
    "a cancel key of no bytes": wire.cancel_request(1, b""),
    "a CancelRequest without a process id": wire.packet(struct.pack("!I", 80877102)),
}

ANSWERED = {
    "no terminator": (wire.startup(user="alice", end=b""), "08P01", LAYOUT),
    "bytes behind the terminator": (wire.startup(user="alice", end=b"\x00x"), "08P01", LAYOUT),
    "a second terminator": (wire.startup(user="alice", end=b"\x00\x00"), "08P01", LAYOUT),
    "a name without value": (wire.packet(V3 + b"user\x00alice\x00database\x00"), "08P01", LAYOUT),
    "a name that is not ended": (wire.packet(V3 + b"user\x00alice\x00datab"), "08P01", LAYOUT),
    "an empty name in between": (wire.startup(("user", "alice"), ("", "x")), "08P01", LAYOUT),
    "nothing but a version": (wire.packet(V3), "08P01", LAYOUT),
    "no parameter": (wire.packet(V3 + b"\x00"), "28000", NO_USER),
    "no user": (wire.startup(database="alice"), "28000", NO_USER),
    "an empty user": (wire.startup(user="", database="alice"), "28000", NO_USER),
    "USER is no user": (wire.startup(USER="alice"), "28000", NO_USER),
    "protocol 1.0": (wire.startup(user="alice", version=(1, 0)), None, None),
    "protocol 2.0": (wire.startup(user="alice", version=(2, 0)), None, None),
    "protocol 4.0": (
        wire.startup(user="alice", version=(4, 0)),
        "0A000",
        "unsupported frontend protocol 4.0: server supports 3.0 to 3.2",
    ),
    "an unknown request code": (
        wire.packet(struct.pack("!I", 80877105)),
        "0A000",
        "unsupported frontend protocol 1234.5681: server supports 3.0 to 3.2",
    ),
    **{
        f"replication={value!r}": (
            wire.startup(user="alice", replication=value),
            "22023",
            f'invalid value for parameter "replication": "{value}"',
        )
        for value in ("", "o", "maybe", "DATABASE", "true ", " true", "2", "tru3", "onn", "offf", "yess")
    },
}

HOST = 'host "127.0.0.1", user "alice"'
PHYSICAL = f"no pg_hba.conf entry for replication connection from {HOST}, no encryption"
LOGICAL = f'no pg_hba.conf entry for {HOST}, database "alice", no encryption'

PARSED = {
    "the whole length that is allowed": (of_length(10_004), LOGICAL),
    "a database": (
        wire.startup(user="alice", database="app"),
        LOGICAL.replace('database "alice"', 'database "app"'),
    ),
    "an empty database": (wire.startup(user="alice", database=""), LOGICAL),
    "user behind other parameters": (wire.startup(application_name="x", user="alice"), LOGICAL),
    "names of 63 bytes": (
        wire.startup(user=SIXTY_THREE, database=SIXTY_THREE),
        LOGICAL.replace("alice", SIXTY_THREE),
    ),
    **{
        f"replication={value}": (wire.startup(user="alice", replication=value), PHYSICAL)
        for value in ("true", "TRUE", "tr", "t", "on", "oN", "yes", "y", "1")
    },
    **{
        f"replication={value}": (wire.startup(user="alice", replication=value), LOGICAL)
        for value in ("database", "false", "f", "FAL", "of", "off", "no", "n", "0")
    },
}

STRICTER = {
    "user twice": (
        wire.startup(("user", "alice"), ("user", "boss")), "08P01", 'duplicate parameter "user" in startup packet'
    ),
    "user twice, the same": (
        wire.startup(("user", "alice"), ("user", "alice")), "08P01", 'duplicate parameter "user" in startup packet'
    ),
    "database twice": (
        wire.startup(("user", "alice"), ("database", "a"), ("database", "b")),
        "08P01",
        'duplicate parameter "database" in startup packet',
    ),
    "options twice": (
        wire.startup(("user", "alice"), ("options", "-c a=1"), ("options", "")),
        "08P01",
        'duplicate parameter "options" in startup packet',
    ),
    "replication twice": (
        wire.startup(("user", "alice"), ("replication", "0"), ("replication", "1")),
        "08P01",
        'duplicate parameter "replication" in startup packet',
    ),
    "a user of 64 bytes": (wire.startup(user="u" * 64), "08P01", "user name is longer than 63 bytes"),
    "a user cut within a character": (
        wire.startup(user="é" * 32), "08P01", "user name is longer than 63 bytes"
    ),
    "a database of 64 bytes": (
        wire.startup(user="alice", database="d" * 64), "08P01", "database name is longer than 63 bytes"
    ),
}  # fmt: skip


@pytest.mark.parametrize("data", SILENTLY_CLOSED.values(), ids=SILENTLY_CLOSED.keys())
def test_a_packet_of_an_impossible_length_is_closed_without_a_word(running, servers, nobody_is_dialled, data):
    with wire.WireClient(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        start = time.monotonic()
        assert answer(client, data) == b""
        assert time.monotonic() - start < wire.PROMPTLY
        decided = refusal_of(running, client)
        assert (decided["level"], decided["kind"], decided["sqlstate"]) == ("info", "client_protocol", None)
    for cluster in servers.values():
        with wire.WireClient((cluster.host, cluster.port)) as direct:
            assert answer(direct, data) == b""


@pytest.mark.parametrize("length", [0, 3, 7, 10_005, 2**31 - 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("inside_tls", [False, True], ids=["in clear", "in TLS"])
def test_what_an_impossible_length_announces_is_not_waited_for(
    running, nobody_is_dialled, inside_tls, length
):
    """The client says no more and does not end: the length word alone is enough."""
    with wire.WireClient(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        if inside_tls:
            assert client.ask_for_tls() == b"S"
            client.start_tls()
        start = time.monotonic()
        client.send(length_word(length, V3))
        assert client.read_to_end() == b""
        assert time.monotonic() - start < wire.PROMPTLY
        assert refusal_of(running, client)["kind"] == "client_protocol"


@pytest.mark.parametrize("data", SILENTLY_CLOSED.values(), ids=SILENTLY_CLOSED.keys())
def test_so_it_is_inside_tls(running, nobody_is_dialled, data):
    with wire.connected(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        assert answer(client, data) == b""
        assert refusal_of(running, client)["kind"] == "client_protocol"


@pytest.mark.parametrize(("data", "sqlstate", "text"), ANSWERED.values(), ids=ANSWERED.keys())
def test_a_malformed_packet_gets_postgresqls_answer(
    running, servers, nobody_is_dialled, data, sqlstate, text
):
    with wire.WireClient(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        start = time.monotonic()
        said = answer(client, data)
        assert time.monotonic() - start < wire.PROMPTLY
        decided = refusal_of(running, client)
    if sqlstate is None:
        assert said[:9] == b"EFATAL:  "
        assert said[-2:] == b"\n\x00"
    else:
        assert said == ("FATAL", "FATAL", sqlstate, text)
    assert (decided["kind"], decided["sqlstate"]) == ("client_protocol", sqlstate or "0A000")
    for version, cluster in servers.items():
        with wire.WireClient((cluster.host, cluster.port)) as direct:
            assert answer(direct, data) == said, version


@pytest.mark.parametrize(("data", "text"), PARSED.values(), ids=PARSED.keys())
def test_a_good_packet_is_understood_as_by_postgresql(running, servers, nobody_is_dialled, data, text):
    with wire.WireClient(("127.0.0.1", running.port("tls"))) as client:
        said = answer(client, data)
        assert said == ("FATAL", "FATAL", "28000", text)
    for version, cluster in servers.items():
        with wire.WireClient((cluster.host, cluster.port)) as direct:
            assert answer(direct, data) == said, version


@pytest.mark.parametrize(("data", "sqlstate", "text"), STRICTER.values(), ids=STRICTER.keys())
def test_what_could_be_read_in_two_ways_is_refused(running, nobody_is_dialled, data, sqlstate, text):
    with wire.connected(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        assert answer(client, data) == ("FATAL", "FATAL", sqlstate, text)
        decided = refusal_of(running, client)
        assert (decided["user"], decided["sqlstate"]) == (None, "08P01")


def test_every_refusal_quotes_the_session_of_the_log(running, nobody_is_dialled):
    with wire.WireClient(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        client.send(wire.startup(user="alice", version=(5, 0)))
        detail = client.read_error().fields["D"]
        assert detail == f"pgtlsproxy session {refusal_of(running, client)['session']}"


def logs_in(client):
    client.send(wire.startup(user="alice", application_name="x"))
    return client.read_until(b"Z")[0].code == 0


def test_everything_may_come_one_byte_at_a_time(running, backend):
    backend.forget()
    address = "127.0.0.1", running.port("tls")
    with wire.WireClient(address, transport=wire.in_pieces(1, pause=0.001)) as client:
        assert client.ask_for_tls() == b"S"
        client.start_tls()
        assert logs_in(client)
    assert backend.conversation().startup == {"user": "alice", "database": "alice", "application_name": "x"}


@pytest.mark.parametrize("segments", [2, 3, 4, 5])
@pytest.mark.parametrize("padding", [0, 250], ids=["a short hello", "a hello of kilobytes"])
def test_a_client_hello_may_come_in_segments(running, segments, padding):
    context = wire.tls_context(alpn=["postgresql", *(f"{number:0250}" for number in range(padding // 10))])
    with wire.WireClient(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        assert client.ask_for_tls() == b"S"
        tls = client.hello(context)
        hello = client.pending()
        client._send_raw = wire.in_pieces(-(-len(hello) // segments), pause=0.01)(client.sock)
        client.send_raw(hello)
        client.finish_handshake(tls)
        assert logs_in(client)


def test_three_hundred_parameters_reach_the_backend_in_their_order(running, backend):
    backend.forget()
    pairs = [(f"app.setting_{number}", str(number)) for number in range(300)]
    with wire.connected(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        client.send(wire.startup(("user", "alice"), *pairs))
        client.read_until(b"Z")
    found = backend.conversation().startup
    assert list(found.items()) == [("user", "alice"), ("database", "alice"), *pairs]


def test_the_longest_packet_reaches_the_backend(running, backend):
    backend.forget()
    with wire.connected(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        client.send(of_length(10_004))
        client.read_until(b"Z")
    conversation = backend.conversation()
    assert conversation.startup["user"] == "alice"
    assert len(conversation.startup["application_name"]) > 9_900
