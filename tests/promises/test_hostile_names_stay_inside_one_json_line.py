"""Names and texts from outside cannot forge, break or flood the log, and reach no terminal as control characters."""

import json
import struct
import unicodedata

import pytest

from fixtures import wire
from fixtures.certs import common_names
from fixtures.deployments import config, in_clear, passthrough, with_tls
from fixtures.shared_proxy import complete_log

LIMIT = 600
"""Characters that a field may have."""

HOSTILE = {
    "a line feed": b'x\n{"event": "forged"}',
    "a carriage return": b"x\r\nlevel=info",
    "ANSI": b"\x1b[2J\x1b]0;owned\x07",
    "C1": "\x9b2J\x85".encode(),
    "DEL": b"x\x7f\x08\x08",
    "not UTF-8": b"\xff\xfe\x80",
    "half a character": b"x\xc3",
    "a surrogate": b"\xed\xa0\x80",
    "an override": "x\u202ecod.exe\u2066".encode(),
    "line separators": "x\u2028y\u2029".encode(),
    "format strings": b"{0} {user} %s %n ${x}",
    "markup": b"[/x][bold red]x",
    "quotes": b"\"x\" 'x' \\",
    "JSON": b'","verdict":"allowed',
}


@pytest.fixture(scope="module")
def backend(shared_fake_backend):
    return shared_fake_backend()


@pytest.fixture(scope="module")
def running(shared_proxy, certs, backend):
    return shared_proxy(
        config(
            {"tls": with_tls(certs), "clear": in_clear(hba_file="trust.conf")},
            primary=passthrough(backend, certs),
        ),
        {"pg_hba.conf": "hostssl all all all cert\n", "trust.conf": "host all all all trust\n"},
    )


def is_shown(character):
    return character == " " or unicodedata.category(character)[0] not in "CZ"


def assert_harmless(running, listener, client):
    """Every line is one JSON object of ASCII letters, with harmless and short texts. The client's own events."""
    events = complete_log(running, listener)
    for line in running._stderr.lines:
        assert line.isascii(), line
        assert isinstance(json.loads(line), dict)
    for event in events:
        assert event["event"] != "forged"
        for key, value in event.items():
            if isinstance(value, str):
                assert all(map(is_shown, value)), (key, value)
                assert len(value) < LIMIT, key
    return [event for event in events if client.where.items() <= event.items()]


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("parameter", ["user", "database", "application_name", "options", "replication"])
def test_in_a_startup_message(running, name, parameter):
    pairs = [("user", b"alice")] if parameter != "user" else []
    with wire.connected(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        client.send(wire.startup(*pairs, (parameter, name)))
        _, text = client.read_error().error
        assert all(map(is_shown, text)), text
        (decided,) = assert_harmless(running, "tls", client)
    assert decided["verdict"] == "refused"
    if parameter in {"user", "database", "application_name"}:
        shown = decided[parameter]
        assert shown.encode().isascii() or shown.isprintable()


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
def test_as_a_protocol_option_and_as_a_parameters_name(running, name):
    name = name.replace(b"\x00", b"")
    with wire.connected(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        client.send(
            wire.startup(
                ("user", "alice"), (b"_pq_." + name, "1"), (b"pgtlsproxy." + name, "1"), (name, name)
            )
        )
        client.read_to_end()
        assert_harmless(running, "tls", client)


def test_the_longest_startup_packet_makes_no_long_line(running):
    with wire.connected(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        client.send(wire.startup(user="alice", application_name="\x1b" * 9_900))
        client.read_error()
        (decided,) = assert_harmless(running, "tls", client)
    assert len(json.dumps(decided)) < 4_000


TEXTS = {
    name: text
    for name, text in HOSTILE.items()
    if name not in {"not UTF-8", "half a character", "a surrogate"}
}


@pytest.mark.parametrize("name", TEXTS.values(), ids=TEXTS.keys())
def test_in_a_clients_certificate(running, certs, name):
    shown = certs.ca.issue(common_names(name.decode()[:64]), usage="client")
    address = "127.0.0.1", running.port("tls")
    with wire.connected(address, wire.tls_context(certificate=shown), source=wire.another_source()) as client:
        client.send(wire.startup(user="alice"))
        assert client.read_error().error == ("28000", 'certificate authentication failed for user "alice"')
        (decided,) = assert_harmless(running, "tls", client)
    assert decided["cert_verified"] is True


@pytest.mark.parametrize("name", TEXTS.values(), ids=TEXTS.keys())
def test_in_a_certificate_that_does_not_verify(running, certs, name):
    shown = certs.other_ca.issue(common_names(name.decode()[:64]), usage="client")
    with wire.WireClient(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        client.send(wire.SSL_REQUEST)
        client.read_exactly(1)
        client.start_tls(wire.tls_context(certificate=shown))
        client.read_to_end()
        (decided,) = assert_harmless(running, "tls", client)
    assert decided["cert_verified"] is False


def client_hello(server_name):
    """A ClientHello with this SNI, whatever it is."""

    def sized(form, body):
        return struct.pack(form, len(body))[-{"!B": 1, "!H": 2, "!I": 3}[form] :] + body

    sni = sized("!H", b"\x00" + sized("!H", server_name))
    extensions = b"".join(
        struct.pack("!H", number) + sized("!H", body)
        for number, body in {
            0: sni,
            10: sized("!H", bytes.fromhex("0017")),
            11: sized("!B", b"\x00"),
            13: sized("!H", bytes.fromhex("04030804")),
            16: sized("!H", sized("!B", b"postgresql")),
        }.items()
    )
    body = (
        b"\x03\x03"
        + b"r" * 32
        + b"\x00"
        + sized("!H", bytes.fromhex("c02bc02c"))
        + b"\x01\x00"
        + sized("!H", extensions)
    )
    return b"\x16\x03\x01" + sized("!H", b"\x01" + sized("!I", body))


@pytest.mark.parametrize(
    "name", [*HOSTILE.values(), b"x" * 300, b"x" * 12_000, b"a\x00b", b""], ids=range(len(HOSTILE) + 4)
)
def test_in_the_name_that_a_hello_asks_for(running, name):
    with wire.WireClient(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        client.send(wire.SSL_REQUEST)
        client.read_exactly(1)
        client.send_raw(client_hello(name))
        client.end()
        client.read_to_end()
        assert_harmless(running, "tls", client)


@pytest.mark.parametrize("text", [*HOSTILE.values(), b"x" * 60_000], ids=[*HOSTILE, "60 kB"])
def test_in_the_backends_error(running, backend, text):
    error = wire.error_response("28P01", text)

    def script(conversation):
        conversation.accept()
        conversation.send(error)

    backend.script = script
    with wire.WireClient(("127.0.0.1", running.port("clear")), source=wire.another_source()) as client:
        client.send(wire.startup(user="alice"))
        assert client.read_to_end() == error  # the client of a verified backend gets it as it came
        (decided,) = assert_harmless(running, "clear", client)
    assert decided["kind"] == "backend_refused"


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_in_the_backends_57p03_and_its_mechanisms(running, backend, text):
    said = [wire.error_response("57P03", text), wire.authentication(10, text + b"\x00\x00")]

    def script(conversation):
        conversation.accept()
        conversation.send(said.pop())
        conversation.read_message()

    backend.script = script
    for _ in range(2):
        with wire.WireClient(("127.0.0.1", running.port("clear")), source=wire.another_source()) as client:
            client.send(wire.startup(user="alice"))
            client.read_message()
            client.end()
            assert_harmless(running, "clear", client)
