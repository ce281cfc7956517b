"""What breaks TLS's rules ends with the alert that TLS has for it and reaches no backend; nobody else notices.

The cases follow RFC 8446 and RFC 5246; where these leave a choice the alert is OpenSSL's.
"""

import contextlib

import pytest

from fixtures import wire
from fixtures.deployments import config, passthrough, with_tls
from fixtures.fake_backend import lets_everybody_in
from fixtures.handmade_tls import HandmadeTLS
from fixtures.shared_proxy import refusal_of
from fixtures.tls_messages import (
    ALERT,
    ALPN_EXTENSION,
    APPLICATION_DATA,
    CERTIFICATE,
    CERTIFICATE_REQUEST,
    CHANGE_CIPHER_SPEC,
    CLIENT_HELLO,
    CLIENT_KEY_EXCHANGE,
    COOKIE,
    END_OF_EARLY_DATA,
    FINISHED,
    HANDSHAKE,
    HEARTBEAT,
    KEY_SHARE,
    KEY_UPDATE,
    MAX_FRAGMENT_LENGTH,
    NEW_SESSION_TICKET,
    PADDING,
    PRE_SHARED_KEY,
    PSK_MODES,
    SECP256R1,
    SERVER_HELLO,
    SERVER_NAME,
    SIGNATURE_ALGORITHMS,
    SUPPORTED_GROUPS,
    SUPPORTED_VERSIONS,
    TLS12_SUITE,
    X25519,
    client_hello,
    handshake,
    record,
    server_names,
    vector,
    words,
)

UNEXPECTED_MESSAGE, BAD_RECORD_MAC, RECORD_OVERFLOW, HANDSHAKE_FAILURE = 10, 20, 22, 40
ILLEGAL_PARAMETER, DECODE_ERROR, DECRYPT_ERROR, PROTOCOL_VERSION, INAPPROPRIATE_FALLBACK = 47, 50, 51, 70, 86
NO_RENEGOTIATION, MISSING_EXTENSION, UNRECOGNIZED_NAME, NO_APPLICATION_PROTOCOL = 100, 109, 112, 120
CLOSE_NOTIFY, NO_ALERT = 0, None
V12, V13 = (0x0303,), (0x0304,)
FALLBACK_SCSV = 0x5600
STARTUP = wire.startup(user="alice")


@pytest.fixture(scope="module")
def backend(shared_fake_backend):
    return shared_fake_backend(lets_everybody_in)


@pytest.fixture(scope="module")
def running(shared_proxy, certs, backend):
    shown = certs.client("pgtlsproxy")
    primary = passthrough(backend, certs, login="certificate", sslcert=shown.crt, sslkey=shown.key)
    hba = {"pg_hba.conf": "hostssl all all all cert\n"}
    return shared_proxy(config({"tls": with_tls(certs)}, primary=primary), hba)


@pytest.fixture
def client(running):
    with wire.WireClient(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        assert client.ask_for_tls() == b"S"
        yield client


@pytest.fixture
def tls(client):
    return HandmadeTLS(client)


@pytest.fixture(scope="module")
def bystander(running, certs):
    """A session that is open all the time."""
    context = wire.tls_context(certificate=certs.client("alice"))
    with wire.connected(("127.0.0.1", running.port("tls")), context) as client:
        client.send(STARTUP)
        client.read_until(b"Z")
        yield client


@pytest.fixture(autouse=True)
def nobody_else_notices(bystander, backend):
    backend.forget()
    yield
    bystander.send(wire.query("SELECT 1"))
    bystander.read_until(b"Z")


def hello(tls, *, versions=(0x0304, 0x0303), change=None, **more):
    """A ClientHello with extensions changed, or taken out where the change is None."""
    extensions = tls.extensions(versions) | (change or {})
    return client_hello({kind: data for kind, data in extensions.items() if data is not None}, **more)


# In place of a ClientHello.


def bare(kind, data, version=0x0303):
    return lambda _: record(kind, data, version)


def changed(**words):
    return lambda tls: record(HANDSHAKE, hello(tls, **words))


def with_length(octets, message_of=hello):
    """A hello that says it is this long."""

    def made(tls):
        message = message_of(tls)
        return record(HANDSHAKE, message[:1] + octets.to_bytes(3) + message[4:])

    return made


def torn(between):
    """A hello in two records with another one between them."""

    def made(tls):
        message = hello(tls)
        return record(HANDSHAKE, message[:50]) + between + record(HANDSHAKE, message[50:])

    return made


def with_alpn_twice(tls):
    found = tls.extensions()
    listed = [*found.items(), (ALPN_EXTENSION, found[ALPN_EXTENSION])]
    block = vector(b"".join(words(kind) + vector(data) for kind, data in listed))
    return record(HANDSHAKE, client_hello({}, raw_extensions=block))


def share(data, group=X25519):
    return {KEY_SHARE: vector(words(group) + vector(data))}


PSK = vector(vector(b"identity") + bytes(4)) + vector(vector(bytes(32), 1))
WARNING = record(ALERT, b"\x01\x5a")

INSTEAD_OF_HELLO = {
    "SSL 2": (lambda _: b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + bytes(37), NO_ALERT),
    "a record of version 0": (lambda tls: record(HANDSHAKE, hello(tls), 0), NO_ALERT),
    "a record of version 4.0": (lambda tls: record(HANDSHAKE, hello(tls), 0x0400), NO_ALERT),
    "a record one octet too long": (bare(HANDSHAKE, bytes(16385)), RECORD_OVERFLOW),
    "a record of 65535 octets": (bare(HANDSHAKE, bytes(65535)), RECORD_OVERFLOW),
    "data": (bare(APPLICATION_DATA, STARTUP), UNEXPECTED_MESSAGE),
    "a heartbeat": (bare(HEARTBEAT, b"\x01\x40\x00" + bytes(16)), UNEXPECTED_MESSAGE),
    "an unknown type of record": (bare(99, b"x"), UNEXPECTED_MESSAGE),
    "ChangeCipherSpec": (bare(CHANGE_CIPHER_SPEC, b"\x01"), UNEXPECTED_MESSAGE),
    "ServerHello": (bare(HANDSHAKE, handshake(SERVER_HELLO, bytes(40))), UNEXPECTED_MESSAGE),
    "Finished": (bare(HANDSHAKE, handshake(FINISHED, bytes(32))), UNEXPECTED_MESSAGE),
    "KeyUpdate": (bare(HANDSHAKE, handshake(KEY_UPDATE, b"\x00")), UNEXPECTED_MESSAGE),
    "an unknown message": (bare(HANDSHAKE, handshake(99, b"x")), UNEXPECTED_MESSAGE),
    "an alert": (bare(ALERT, b"\x02\x28"), UNEXPECTED_MESSAGE),
    "half an alert": (bare(ALERT, b"\x02"), UNEXPECTED_MESSAGE),
    "1000 warnings": (lambda _: WARNING * 1000, UNEXPECTED_MESSAGE),
    "100 empty records": (lambda _: record(HANDSHAKE, b"") * 100, UNEXPECTED_MESSAGE),
    "a hello that says it has 16 MB": (with_length(2**24 - 1), ILLEGAL_PARAMETER),
    "a hello that says it is shorter": (with_length(60), DECODE_ERROR),
    "an empty hello": (bare(HANDSHAKE, handshake(CLIENT_HELLO)), DECODE_ERROR),
    "two in one record": (lambda tls: record(HANDSHAKE, hello(tls) * 2), UNEXPECTED_MESSAGE),
    "ChangeCipherSpec in a hello": (torn(record(CHANGE_CIPHER_SPEC, b"\x01")), UNEXPECTED_MESSAGE),
    "an alert in a hello": (torn(WARNING), UNEXPECTED_MESSAGE),
    "data in a hello": (torn(record(APPLICATION_DATA, STARTUP)), UNEXPECTED_MESSAGE),
    "no suites": (changed(suites=()), DECODE_ERROR),
    "unknown suites": (changed(suites=(0xABCD, 0x0A0A)), HANDSHAKE_FAILURE),
    "NULL suites": (changed(suites=(0x0000, 0x0001, 0x0002, 0xC006), versions=V12), HANDSHAKE_FAILURE),
    "a fallback": (changed(suites=(TLS12_SUITE, FALLBACK_SCSV), versions=V12), INAPPROPRIATE_FALLBACK),
    "no compression": (changed(compression=b""), DECODE_ERROR),
    "deflate alone": (changed(compression=b"\x01", versions=V12), ILLEGAL_PARAMETER),
    "deflate in TLS 1.3": (changed(compression=b"\x01\x00", versions=V13), ILLEGAL_PARAMETER),
    "a session id of 33 octets": (changed(session_id=bytes(33)), DECODE_ERROR),
    "an extension twice": (with_alpn_twice, ILLEGAL_PARAMETER),
    "an extension beyond its block": (changed(raw_extensions=words(10, 5, 20) + bytes(6)), DECODE_ERROR),
    "a tail": (with_length(500, lambda tls: hello(tls).ljust(504, b"x")), DECODE_ERROR),
    "no versions": (changed(change={SUPPORTED_VERSIONS: b"\x00"}), PROTOCOL_VERSION),
    "half a version": (changed(change={SUPPORTED_VERSIONS: b"\x03\x03\x04\x03"}), PROTOCOL_VERSION),
    "no groups": (changed(versions=V13, change={SUPPORTED_GROUPS: None}), MISSING_EXTENSION),
    "no key": (changed(versions=V13, change={KEY_SHARE: None}), MISSING_EXTENSION),
    "no signatures": (changed(versions=V13, change={SIGNATURE_ALGORITHMS: None}), MISSING_EXTENSION),
    "an empty list of signatures": (changed(change={SIGNATURE_ALGORITHMS: b"\x00\x00"}), DECODE_ERROR),
    "a key of no octets": (changed(change=share(b"")), DECODE_ERROR),
    "a key of 31 octets": (changed(change=share(bytes(31))), ILLEGAL_PARAMETER),
    "a key of low order": (changed(change=share(bytes(32))), ILLEGAL_PARAMETER),
    "a key of another group": (changed(change=share(bytes(56), 30)), ILLEGAL_PARAMETER),
    "a point off its curve": (
        changed(change=share(b"\x04" + bytes(64), SECP256R1) | {SUPPORTED_GROUPS: vector(words(SECP256R1))}),
        ILLEGAL_PARAMETER,
    ),
    "a PSK that is not last": (
        changed(change={PSK_MODES: b"\x01\x01", PRE_SHARED_KEY: PSK, 99: b""}), ILLEGAL_PARAMETER
    ),
    "a PSK without modes": (changed(change={PRE_SHARED_KEY: PSK}), MISSING_EXTENSION),
    "an unknown fragment length": (changed(change={MAX_FRAGMENT_LENGTH: b"\x05"}), ILLEGAL_PARAMETER),
    "two fragment lengths": (changed(change={MAX_FRAGMENT_LENGTH: b"\x01\x02"}), DECODE_ERROR),
    "two names": (changed(change={SERVER_NAME: server_names(b"localhost", b"other.example")}), DECODE_ERROR),
    "a list of no names": (changed(change={SERVER_NAME: b"\x00\x00"}), DECODE_ERROR),
    "a name with a NUL": (changed(change={SERVER_NAME: server_names(b"local\x00host")}), UNRECOGNIZED_NAME),
    "a name of 256 octets": (changed(change={SERVER_NAME: server_names(b"x" * 256)}), UNRECOGNIZED_NAME),
    "a name of another kind": (
        changed(change={SERVER_NAME: vector(b"\x01" + vector(b"localhost"))}), DECODE_ERROR
    ),
    "ALPN of nothing": (changed(change={ALPN_EXTENSION: b"\x00\x00"}), DECODE_ERROR),
    "ALPN of an empty name": (changed(change={ALPN_EXTENSION: b"\x00\x01\x00"}), DECODE_ERROR),
    "ALPN of HTTP": (changed(change={ALPN_EXTENSION: vector(vector(b"h2", 1))}), NO_APPLICATION_PROTOCOL),
}  # fmt: skip


@pytest.mark.parametrize("name", INSTEAD_OF_HELLO)
def test_what_is_no_hello_begins_no_handshake(running, backend, client, tls, name):
    made, alert = INSTEAD_OF_HELLO[name]
    with contextlib.suppress(ConnectionError):
        client.send_raw(made(tls))
        client.end()
    assert tls.ending() == alert
    assert refusal_of(running, client)["kind"] == "client_tls"
    assert backend.conversations == []


# Behind the server's flight, and behind Finished.


def raw(kind, data, times=1):
    """Records in clear."""
    return lambda tls, _: tls.client.send_raw(record(kind, data) * times)


def sealed(kind, data, padding=0, times=1):
    """Protected records."""

    def say(tls, _):
        for _ in range(times):
            tls.send_record(kind, data, padding=padding)

    return say


def message(kind, body=b""):
    return lambda tls, _: tls.send_handshake(handshake(kind, body))


def steps(*parts):
    def say(tls, certs):
        for part in parts:
            part(tls, certs)

    return say


def hello_again(tls, _):
    tls.send_handshake(hello(tls, versions=(tls.server_hello.version,)))


def no_certificate(tls, _):
    tls.send_handshake(tls.certificate(None))


def certificate(tls, certs):
    tls.send_handshake(tls.certificate(certs.client("alice")))


def certificate_verify(tls, certs):
    tls.send_handshake(tls.certificate_verify(certs.client("alice").private_key))


def finished(tls, _):
    tls.send_handshake(tls.finished())


def finished_with(change):
    return lambda tls, _: tls.send_handshake(handshake(FINISHED, change(tls.finished()[4:])))


def finished_in_clear(tls, _):
    tls.client.send_raw(record(HANDSHAKE, tls.finished()))


def finished_and_more(tls, _):
    tls.send_record(HANDSHAKE, tls.finished() + handshake(KEY_UPDATE, b"\x00"))


def corrupted(tls, _):
    found = bytearray(tls.sealed(APPLICATION_DATA, STARTUP))
    found[-1] ^= 1
    tls.client.send_raw(bytes(found))


def long_certificate(tls, _):
    """200 kB."""
    entry = vector(bytes(20000), 3) + b"\x00\x00"
    data = handshake(CERTIFICATE, b"\x00" + vector(entry * 10, 3))
    for start in range(0, len(data), 16384):
        tls.send_record(HANDSHAKE, data[start : start + 16384])


def exchange(tls, _):
    tls.exchange_keys()


def change_cipher_spec(tls, _):
    tls.change_cipher_spec()


CLEAR_CCS = raw(CHANGE_CIPHER_SPEC, b"\x01")
DATA = sealed(APPLICATION_DATA, STARTUP)
FATAL = sealed(ALERT, b"\x02\x50")
GARBAGE = vector(bytes(50), 3)
PROTECTED_12 = steps(no_certificate, exchange, change_cipher_spec)

INSTEAD_OF_FINISHED_13 = {
    "nothing": (steps(), DECODE_ERROR),
    "Finished without Certificate": (finished, UNEXPECTED_MESSAGE),
    "data": (DATA, UNEXPECTED_MESSAGE),
    "data behind Certificate": (steps(no_certificate, DATA), UNEXPECTED_MESSAGE),
    "Certificate twice": (steps(no_certificate, no_certificate, finished), UNEXPECTED_MESSAGE),
    "no CertificateVerify": (steps(certificate, finished), UNEXPECTED_MESSAGE),
    "CertificateVerify of nothing": (steps(no_certificate, certificate_verify), UNEXPECTED_MESSAGE),
    "CertificateVerify first": (steps(certificate_verify, certificate), UNEXPECTED_MESSAGE),
    "CertificateVerify twice": (
        steps(certificate, certificate_verify, certificate_verify, finished), UNEXPECTED_MESSAGE
    ),
    "Finished of zeros": (steps(no_certificate, finished_with(lambda _: bytes(32))), DECRYPT_ERROR),
    "a bit of Finished": (
        steps(no_certificate, finished_with(lambda body: body[:-1] + bytes([body[-1] ^ 1]))), DECRYPT_ERROR
    ),
    "a short Finished": (steps(no_certificate, finished_with(lambda body: body[:-1])), DECODE_ERROR),
    "a long Finished": (steps(no_certificate, finished_with(lambda body: body + b"x")), DECODE_ERROR),
    "an empty Finished": (steps(no_certificate, finished_with(lambda _: b"")), DECODE_ERROR),
    "Finished and more": (steps(no_certificate, finished_and_more), UNEXPECTED_MESSAGE),
    "Finished in clear": (steps(no_certificate, finished_in_clear), UNEXPECTED_MESSAGE),
    "ClientHello": (hello_again, UNEXPECTED_MESSAGE),
    "EndOfEarlyData": (message(END_OF_EARLY_DATA), UNEXPECTED_MESSAGE),
    "KeyUpdate": (message(KEY_UPDATE, b"\x00"), UNEXPECTED_MESSAGE),
    "ClientKeyExchange": (message(CLIENT_KEY_EXCHANGE, vector(bytes(32), 1)), UNEXPECTED_MESSAGE),
    "a bit of a record": (corrupted, BAD_RECORD_MAC),
    "less than a tag": (raw(APPLICATION_DATA, bytes(15)), BAD_RECORD_MAC),
    "padding alone": (sealed(0, b"", padding=100), UNEXPECTED_MESSAGE),
    "one octet too long": (sealed(HANDSHAKE, bytes(16385)), RECORD_OVERFLOW),
    "far too long": (sealed(HANDSHAKE, bytes(17000)), RECORD_OVERFLOW),
    "an empty record": (sealed(HANDSHAKE, b""), UNEXPECTED_MESSAGE),
    "1000 ChangeCipherSpec": (raw(CHANGE_CIPHER_SPEC, b"\x01", 1000), UNEXPECTED_MESSAGE),
    "ChangeCipherSpec of 2": (raw(CHANGE_CIPHER_SPEC, b"\x02"), UNEXPECTED_MESSAGE),
    "a long ChangeCipherSpec": (raw(CHANGE_CIPHER_SPEC, b"\x01\x01"), UNEXPECTED_MESSAGE),
    "ChangeCipherSpec inside": (sealed(CHANGE_CIPHER_SPEC, b"\x01"), UNEXPECTED_MESSAGE),
    "a fatal alert": (FATAL, NO_ALERT),
    "1000 warnings": (sealed(ALERT, b"\x01\x5a", times=1000), UNEXPECTED_MESSAGE),
    "a Certificate that is cut": (message(CERTIFICATE, b"\x00\x00\x01\x00"), DECODE_ERROR),
    "a Certificate of garbage": (
        message(CERTIFICATE, b"\x00" + vector(GARBAGE + b"\x00\x00", 3)), DECODE_ERROR
    ),
    "a Certificate with a context": (message(CERTIFICATE, b"\x01x" + bytes(3)), DECODE_ERROR),
    "a Certificate of 200 kB": (long_certificate, ILLEGAL_PARAMETER),
}  # fmt: skip

INSTEAD_OF_FINISHED_12 = {
    "nothing": (steps(), DECODE_ERROR),
    "no Certificate": (steps(exchange), UNEXPECTED_MESSAGE),
    "Certificate twice": (steps(no_certificate, no_certificate), UNEXPECTED_MESSAGE),
    "no ClientKeyExchange": (steps(no_certificate, CLEAR_CCS), UNEXPECTED_MESSAGE),
    "ChangeCipherSpec first": (CLEAR_CCS, UNEXPECTED_MESSAGE),  # CVE-2014-0224
    "ChangeCipherSpec twice": (steps(no_certificate, exchange, CLEAR_CCS, CLEAR_CCS), BAD_RECORD_MAC),
    "ChangeCipherSpec of 2": (
        steps(no_certificate, exchange, raw(CHANGE_CIPHER_SPEC, b"\x02")), UNEXPECTED_MESSAGE
    ),
    "no ChangeCipherSpec": (
        steps(no_certificate, exchange, message(FINISHED, bytes(12))), UNEXPECTED_MESSAGE
    ),
    "data in clear": (
        steps(no_certificate, exchange, raw(APPLICATION_DATA, STARTUP)), UNEXPECTED_MESSAGE
    ),
    "data without Finished": (steps(PROTECTED_12, DATA), UNEXPECTED_MESSAGE),
    "ClientKeyExchange twice": (steps(no_certificate, exchange, exchange), UNEXPECTED_MESSAGE),
    "an empty key": (steps(no_certificate, message(CLIENT_KEY_EXCHANGE, b"\x00")), DECODE_ERROR),
    "a key of low order": (
        steps(no_certificate, message(CLIENT_KEY_EXCHANGE, vector(bytes(32), 1))), ILLEGAL_PARAMETER
    ),
    "a key of 31 octets": (
        steps(no_certificate, message(CLIENT_KEY_EXCHANGE, vector(bytes(31), 1))), ILLEGAL_PARAMETER
    ),
    "no CertificateVerify": (
        steps(certificate, exchange, change_cipher_spec, finished), UNEXPECTED_MESSAGE
    ),
    "CertificateVerify of nothing": (
        steps(no_certificate, exchange, certificate_verify), UNEXPECTED_MESSAGE
    ),
    "CertificateVerify too early": (steps(certificate, certificate_verify), UNEXPECTED_MESSAGE),
    "Finished of zeros": (steps(PROTECTED_12, message(FINISHED, bytes(12))), DECRYPT_ERROR),
    "a short Finished": (steps(PROTECTED_12, finished_with(lambda body: body[:-1])), DECODE_ERROR),
    "a long Finished": (steps(PROTECTED_12, finished_with(lambda body: body + b"x")), DECODE_ERROR),
    "a bit of a record": (steps(PROTECTED_12, corrupted), BAD_RECORD_MAC),
    "less than a tag": (steps(PROTECTED_12, raw(HANDSHAKE, bytes(23))), BAD_RECORD_MAC),
    "ClientHello": (hello_again, UNEXPECTED_MESSAGE),
    "KeyUpdate": (message(KEY_UPDATE, b"\x00"), UNEXPECTED_MESSAGE),
    "1000 warnings": (raw(ALERT, b"\x01\x5a", 1000), UNEXPECTED_MESSAGE),
    "a heartbeat": (raw(HEARTBEAT, b"\x01\x40\x00" + bytes(16)), UNEXPECTED_MESSAGE),
    "a Certificate that is cut": (message(CERTIFICATE, b"\x00\x01\x00"), DECODE_ERROR),
    "a Certificate of garbage": (message(CERTIFICATE, vector(GARBAGE, 3)), DECODE_ERROR),
}  # fmt: skip

BEHIND_FINISHED_13 = {
    "ClientHello": (hello_again, UNEXPECTED_MESSAGE),
    "Finished again": (finished, UNEXPECTED_MESSAGE),
    "a Certificate unasked": (certificate, UNEXPECTED_MESSAGE),
    "CertificateRequest": (message(CERTIFICATE_REQUEST, bytes(3)), UNEXPECTED_MESSAGE),
    "NewSessionTicket": (message(NEW_SESSION_TICKET, bytes(20)), UNEXPECTED_MESSAGE),
    "EndOfEarlyData": (message(END_OF_EARLY_DATA), UNEXPECTED_MESSAGE),
    "an unknown message": (message(99), UNEXPECTED_MESSAGE),
    "KeyUpdate of 2": (message(KEY_UPDATE, b"\x02"), ILLEGAL_PARAMETER),
    "an empty KeyUpdate": (message(KEY_UPDATE), DECODE_ERROR),
    "two in one record": (sealed(HANDSHAKE, handshake(KEY_UPDATE, b"\x00") * 2), UNEXPECTED_MESSAGE),
    "data in a message": (
        steps(sealed(HANDSHAKE, handshake(KEY_UPDATE, b"\x00")[:3]), DATA), UNEXPECTED_MESSAGE
    ),
    "an empty message": (sealed(HANDSHAKE, b""), UNEXPECTED_MESSAGE),
    "a heartbeat": (sealed(HEARTBEAT, b"\x01\x40\x00" + bytes(16)), UNEXPECTED_MESSAGE),
    "ChangeCipherSpec": (CLEAR_CCS, UNEXPECTED_MESSAGE),
    "ChangeCipherSpec inside": (sealed(CHANGE_CIPHER_SPEC, b"\x01"), UNEXPECTED_MESSAGE),
    "an unknown type": (sealed(99, b"x"), UNEXPECTED_MESSAGE),
    "data in clear": (raw(APPLICATION_DATA, STARTUP), BAD_RECORD_MAC),
    "a bit of a record": (corrupted, BAD_RECORD_MAC),
    "padding alone": (sealed(0, b"", padding=100), UNEXPECTED_MESSAGE),
    "one octet too long": (sealed(APPLICATION_DATA, bytes(16385)), RECORD_OVERFLOW),
    "a fatal alert": (FATAL, NO_ALERT),
    "close_notify": (sealed(ALERT, b"\x01\x00"), CLOSE_NOTIFY),
    "half an alert": (sealed(ALERT, b"\x02"), UNEXPECTED_MESSAGE),
    "an empty alert": (sealed(ALERT, b""), UNEXPECTED_MESSAGE),
}  # fmt: skip

BEHIND_FINISHED_12 = {
    "ClientHello": (hello_again, NO_RENEGOTIATION),
    "HelloRequest": (message(0), UNEXPECTED_MESSAGE),
    "Finished again": (finished, UNEXPECTED_MESSAGE),
    "ChangeCipherSpec": (sealed(CHANGE_CIPHER_SPEC, b"\x01"), UNEXPECTED_MESSAGE),
    "a heartbeat": (sealed(HEARTBEAT, b"\x01\x40\x00" + bytes(16)), UNEXPECTED_MESSAGE),
    "KeyUpdate": (message(KEY_UPDATE, b"\x00"), UNEXPECTED_MESSAGE),
    "data in clear": (raw(APPLICATION_DATA, STARTUP), BAD_RECORD_MAC),
    "a bit of a record": (corrupted, BAD_RECORD_MAC),
    "one octet too long": (sealed(APPLICATION_DATA, bytes(16385)), RECORD_OVERFLOW),
    "a fatal alert": (FATAL, NO_ALERT),
    "close_notify": (sealed(ALERT, b"\x01\x00"), CLOSE_NOTIFY),
}  # fmt: skip

BEFORE = {("1.3", name): case for name, case in INSTEAD_OF_FINISHED_13.items()} | {
    ("1.2", name): case for name, case in INSTEAD_OF_FINISHED_12.items()
}
BEHIND = {("1.3", name): case for name, case in BEHIND_FINISHED_13.items()} | {
    ("1.2", name): case for name, case in BEHIND_FINISHED_12.items()
}
VERSIONS = {"1.2": V12, "1.3": V13}


@pytest.mark.parametrize(("version", "name"), BEFORE)
def test_a_handshake_that_goes_astray_proves_nobody(running, backend, client, tls, certs, version, name):
    say, alert = BEFORE[version, name]
    tls.say_hello(hello(tls, versions=VERSIONS[version]))
    tls.read_server_flight()
    with contextlib.suppress(ConnectionError):
        say(tls, certs)
        client.end()
    assert tls.ending() == alert
    assert refusal_of(running, client)["kind"] == "client_tls"
    assert backend.conversations == []


@pytest.mark.parametrize(("version", "name"), BEHIND)
def test_what_is_out_of_place_behind_the_handshake_ends_the_connection(
    backend, client, tls, certs, version, name
):
    say, alert = BEHIND[version, name]
    tls.say_hello(hello(tls, versions=VERSIONS[version]))
    tls.read_server_flight()
    tls.finish()
    say(tls, certs)
    client.end()
    assert tls.ending() == alert
    assert backend.conversations == []


FLOODS = {"empty records": sealed(APPLICATION_DATA, b""), "warnings": sealed(ALERT, b"\x01\x5a")}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("flood", FLOODS)
def test_records_that_say_nothing_are_not_listened_to_for_ever(backend, client, tls, certs, version, flood):
    tls.say_hello(hello(tls, versions=VERSIONS[version]))
    tls.read_server_flight()
    tls.finish()
    with pytest.raises(ConnectionError):
        for _ in range(100_000):
            FLOODS[flood](tls, certs)
    assert backend.conversations == []


# What is odd and yet TLS.


def in_records_of(octets):
    def made(data):
        pieces = (data[start : start + octets] for start in range(0, len(data), octets))
        return b"".join(record(HANDSHAKE, piece, 0x0301) for piece in pieces)

    return made


WHOLE = in_records_of(16384)
ODD_HELLOS = {
    "in records of one octet": (in_records_of(1), {}),
    "in records of seven octets": (in_records_of(7), {}),
    "of 60 kB": (WHOLE, {"change": {PADDING: bytes(60_000)}}),
    "with what nobody knows": (WHOLE, {"change": {0x0A0A: b"", 0xFFCE: bytes(100)}, "suites": (0x0A0A, 0x1301, TLS12_SUITE)}),
    "with deflate, too": (WHOLE, {"versions": V12, "compression": b"\x01\x00"}),
    "with a session id": (WHOLE, {"session_id": bytes(32)}),
    "with fragments of 512 octets": (WHOLE, {"change": {MAX_FRAGMENT_LENGTH: b"\x01"}}),
    "with a cookie that nobody gave": (WHOLE, {"change": {COOKIE: vector(b"cookie")}}),
    "with an address as name": (WHOLE, {"change": {SERVER_NAME: server_names(b"127.0.0.1")}}),
    "with a heartbeat extension": (WHOLE, {"versions": V12, "change": {15: b"\x01"}}),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD_HELLOS)
def test_an_odd_hello_begins_a_good_session(client, tls, certs, name):
    framed, words = ODD_HELLOS[name]
    tls.say_hello(hello(tls, **words), framed)
    tls.read_server_flight()
    assert tls.server_hello.compression == 0
    assert 15 not in tls.server_hello.extensions, "heartbeats"
    tls.finish(certs.client("alice"))
    tls.send(STARTUP)
    assert tls.read_data().endswith(wire.ready_for_query())


def test_padding_and_pieces_inside_tls_1_3_change_nothing(client, tls, certs):
    tls.say_hello(hello(tls, versions=V13))
    tls.read_server_flight()
    client.send_raw(record(CHANGE_CIPHER_SPEC, b"\x01"))
    tls.finish(certs.client("alice"))
    for octet in STARTUP:
        tls.send_record(APPLICATION_DATA, bytes([octet]), padding=1000)
    assert tls.read_data().endswith(wire.ready_for_query())
