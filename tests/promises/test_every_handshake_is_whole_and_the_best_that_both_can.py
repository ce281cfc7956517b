"""Nobody is talked down to less than both ends can, nothing is resumed, and data sent early is thrown away."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fixtures import wire
from fixtures.deployments import config, passthrough, with_tls
from fixtures.fake_backend import lets_everybody_in
from fixtures.handmade_tls import HandmadeTLS
from fixtures.tls_messages import (
    APPLICATION_DATA,
    CERTIFICATE,
    CERTIFICATE_REQUEST,
    CERTIFICATE_VERIFY,
    EARLY_DATA,
    ENCRYPTED_EXTENSIONS,
    EXTENDED_MASTER_SECRET,
    HANDSHAKE,
    NEW_SESSION_TICKET,
    POST_HANDSHAKE_AUTH,
    PRE_SHARED_KEY,
    PSK_MODES,
    SESSION_TICKET,
    SIGNATURE_ALGORITHMS,
    TLS12_SUITE,
    TLS13_SUITE,
    Alert,
    client_hello,
    handshake,
    parse_extensions,
    record,
    vector,
    words,
)

V12, V13 = (0x0303,), (0x0304,)
BOTH = (0x0304, 0x0303)
FALLBACK_SCSV = 0x5600
DOWNGRADE_FROM_13 = b"DOWNGRD\x01"
"""The end of the server's random (RFC 8446, section 4.1.3)."""

HANDSHAKE_FAILURE, ILLEGAL_PARAMETER, DECODE_ERROR, DECRYPT_ERROR, PROTOCOL_VERSION = 40, 47, 50, 51, 70
EARLY = wire.startup(user="alice", application_name="early")


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


def logs_in(tls, shown):
    tls.finish(shown)
    tls.send(wire.startup(user="alice", application_name="whole"))
    return tls.read_data().endswith(wire.ready_for_query())


def test_a_client_that_was_talked_down_to_tls_1_2_can_tell(tls):
    tls.say_hello(client_hello(tls.extensions(V12)))
    assert tls.read_server_hello().random.endswith(DOWNGRADE_FROM_13)


def test_a_client_that_comes_with_tls_1_3_is_not_told_so(tls):
    tls.say_hello(client_hello(tls.extensions(BOTH), suites=(TLS13_SUITE, TLS12_SUITE, FALLBACK_SCSV)))
    hello = tls.read_server_hello()
    assert hello.version == 0x0304
    assert b"DOWNGRD" not in hello.random


@pytest.mark.parametrize("extended", [True, False])
def test_the_extended_master_secret_is_used_where_it_is_offered(tls, certs, extended):
    tls.has_extended_master_secret = extended
    tls.say_hello(client_hello(tls.extensions(V12)))
    tls.read_server_flight()
    assert (EXTENDED_MASTER_SECRET in tls.server_hello.extensions) == extended
    assert logs_in(tls, certs.client("alice"))


# Nothing resumes.


def test_a_ticket_of_tls_1_2_is_neither_taken_nor_given(tls, certs):
    found = tls.extensions(V12) | {SESSION_TICKET: bytes(range(200))}
    session_id = bytes(range(32))
    tls.say_hello(client_hello(found, session_id=session_id))
    kinds = tls.read_server_flight()
    assert {CERTIFICATE, CERTIFICATE_REQUEST} <= set(kinds)
    assert tls.server_hello.session_id == b""
    assert SESSION_TICKET not in tls.server_hello.extensions
    assert logs_in(tls, certs.client("alice"))
    assert NEW_SESSION_TICKET not in {kind for kind, _ in tls.messages}


def test_a_ticket_of_tls_1_3_that_the_server_gave_is_not_taken(running, certs):
    """OpenSSL gives some, which cannot be switched off through pyOpenSSL; whoever offers one is asked again."""
    address = "127.0.0.1", running.port("tls")
    with wire.WireClient(address) as client:
        assert client.ask_for_tls() == b"S"
        first = HandmadeTLS(client)
        first.say_hello(client_hello(first.extensions(V13) | {PSK_MODES: b"\x01\x01"}))
        first.read_server_flight()
        first.finish(certs.client("alice"))
        secret = first.resumption_secret()
        kind, ticket = first.read_record()
        assert (kind, ticket[0]) == (HANDSHAKE, NEW_SESSION_TICKET)
    nonce_end = 13 + ticket[12]
    nonce, length = ticket[13:nonce_end], int.from_bytes(ticket[nonce_end : nonce_end + 2])
    identity = ticket[nonce_end + 2 : nonce_end + 2 + length]
    with wire.WireClient(address) as client:
        assert client.ask_for_tls() == b"S"
        second = HandmadeTLS(client)
        second.say_hello(second.hello_with_psk(identity, secret, nonce, client_hello))
        kinds = second.read_server_flight()
        assert PRE_SHARED_KEY not in second.server_hello.extensions
        assert {CERTIFICATE, CERTIFICATE_REQUEST} <= set(kinds)
        second.finish(None)
        second.send(wire.startup(user="alice"))
        assert b"connection requires a valid client certificate" in second.read_data()


# Nothing comes early.


def test_early_data_is_thrown_away(backend, tls, certs):
    backend.forget()
    tls.say_hello(client_hello(tls.extensions(V13) | {PSK_MODES: b"\x01\x01", EARLY_DATA: b""}))
    tls.client.send_raw(record(APPLICATION_DATA, EARLY.ljust(200, b"\x00")) * 10)
    tls.read_server_flight()
    assert EARLY_DATA.to_bytes(2) not in tls.message(ENCRYPTED_EXTENSIONS)[2:4]
    assert logs_in(tls, certs.client("alice"))
    (conversation,) = backend.conversations
    assert conversation.startup["application_name"] == "whole"


def test_early_data_without_end_ends_the_handshake(backend, tls):
    backend.forget()
    tls.say_hello(client_hello(tls.extensions(V13) | {PSK_MODES: b"\x01\x01", EARLY_DATA: b""}))
    with pytest.raises(ConnectionError):
        for _ in range(10_000):
            tls.client.send_raw(record(APPLICATION_DATA, bytes(16_000)))
    assert backend.conversations == []


# A certificate is proved by its own key.

OTHER_KEY = ec.generate_private_key(ec.SECP256R1())
ECDSA_SHA1, RSA_PSS_SHA256, ED25519, UNKNOWN = 0x0203, 0x0804, 0x0807, 0xFEFE


def with_body(change):
    """A CertificateVerify whose signature is changed."""

    def made(tls, shown):
        body = tls.certificate_verify(shown.private_key)[4:]
        return handshake(CERTIFICATE_VERIFY, body[:2] + vector(change(body[4:])))

    return made


def of_other_bytes(tls, shown):
    whole = tls.transcript
    tls.transcript = whole[:-1] + bytes([whole[-1] ^ 1])
    made = tls.certificate_verify(shown.private_key)
    tls.transcript = whole
    return made


def with_scheme(scheme):
    return lambda tls, shown: tls.certificate_verify(shown.private_key, scheme)


PROOFS = {
    "by another key": (lambda tls, _: tls.certificate_verify(OTHER_KEY), DECRYPT_ERROR),
    "of another handshake": (of_other_bytes, DECRYPT_ERROR),
    "with a bit flipped": (with_body(lambda found: found[:-1] + bytes([found[-1] ^ 1])), DECRYPT_ERROR),
    "that is cut": (with_body(lambda found: found[:-1]), DECRYPT_ERROR),
    "with a tail": (with_body(lambda found: found + b"x"), DECRYPT_ERROR),
    "of zeros": (with_body(lambda found: bytes(len(found))), DECRYPT_ERROR),
    "of r = s = 0": (with_body(lambda _: bytes.fromhex("3006020100020100")), DECRYPT_ERROR),  # CVE-2022-21449
    "that is empty": (with_body(lambda _: b""), DECRYPT_ERROR),
    "of 60 kB": (with_body(lambda _: bytes(60_000)), DECRYPT_ERROR),
    "by SHA-1": (with_scheme(ECDSA_SHA1), ILLEGAL_PARAMETER),
    "by RSA, as it says": (with_scheme(RSA_PSS_SHA256), ILLEGAL_PARAMETER),
    "by Ed25519, as it says": (with_scheme(ED25519), ILLEGAL_PARAMETER),
    "by an unknown scheme": (with_scheme(UNKNOWN), ILLEGAL_PARAMETER),
    "with half a scheme": (lambda *_: handshake(CERTIFICATE_VERIFY, b"\x04"), DECODE_ERROR),
}


@pytest.mark.parametrize("versions", [V12, V13], ids=["1.2", "1.3"])
@pytest.mark.parametrize("name", PROOFS)
def test_a_certificate_whose_key_is_not_proved_lets_nobody_in(backend, tls, certs, versions, name):
    proof, alert = PROOFS[name]
    backend.forget()
    shown = certs.client("alice")
    tls.say_hello(client_hello(tls.extensions(versions)))
    tls.read_server_flight()
    tls.send_handshake(tls.certificate(shown))
    if versions == V12:
        tls.exchange_keys()
    message = proof(tls, shown)
    for start in range(0, len(message), 16384):
        tls.send_record(HANDSHAKE, message[start : start + 16384])
    tls.client.end()
    assert tls.ending() == alert
    assert backend.conversations == []


@pytest.mark.parametrize("extended", [True, False])
@pytest.mark.parametrize("versions", [V12, V13], ids=["1.2", "1.3"])
def test_a_certificate_whose_key_is_proved_lets_in(tls, certs, versions, extended):
    tls.has_extended_master_secret = extended
    tls.say_hello(client_hello(tls.extensions(versions)))
    tls.read_server_flight()
    assert logs_in(tls, certs.client("alice"))


@pytest.mark.parametrize("versions", [V12, V13], ids=["1.2", "1.3"])
def test_no_signature_by_sha_1_or_md5_is_asked_for(tls, versions):
    tls.say_hello(client_hello(tls.extensions(versions)))
    tls.read_server_flight()
    body = tls.message(CERTIFICATE_REQUEST)
    if versions == V12:
        start = 1 + body[0]
        listed = body[start + 2 : start + 2 + int.from_bytes(body[start : start + 2])]
    else:
        extensions = parse_extensions(body[3:])
        listed = extensions[SIGNATURE_ALGORITHMS][2:]
    schemes = {listed[place : place + 2] for place in range(0, len(listed), 2)}
    assert words(0x0403) in schemes
    assert not {scheme for scheme in schemes if scheme[0] in {1, 2}}, schemes


def test_nobody_is_asked_for_a_certificate_behind_the_handshake(tls, certs):
    tls.say_hello(client_hello(tls.extensions(V13) | {POST_HANDSHAKE_AUTH: b""}))
    tls.read_server_flight()
    tls.finish(None)
    tls.send(wire.startup(user="alice"))
    assert b"connection requires a valid client certificate" in tls.read_data()
    assert [kind for kind, _ in tls.messages].count(CERTIFICATE_REQUEST) == 1


# What there is to choose from.

MOZILLA_INTERMEDIATE = {
    0x1301, 0x1302, 0x1303,
    0xC02B, 0xC02C, 0xCCA9,  # ECDHE-ECDSA with AES-128-GCM, AES-256-GCM, CHACHA20-POLY1305
}  # fmt: skip
"""What of Mozilla's profile (guidelines 5.7) an ECDSA certificate can do; the rest is RSA's."""

DEVIATIONS = {
    0xC009, 0xC00A, 0xC023, 0xC024,  # AES-CBC, with SHA-1, SHA-256 and SHA-384
    0xC0AC, 0xC0AD,  # AES-CCM
    0xC05C, 0xC05D, 0xC072, 0xC073,  # ARIA with GCM, CAMELLIA with CBC
}  # fmt: skip
"""What `ssl_ciphers = HIGH:MEDIUM:+3DES:!aNULL`, which is PostgreSQL's default, has besides."""


def chosen(running, offered, versions):
    """The suite that the server takes; None where it takes none."""
    with wire.WireClient(("127.0.0.1", running.port("tls"))) as client:
        client.ask_for_tls()
        tls = HandmadeTLS(client)
        tls.say_hello(client_hello(tls.extensions(versions), suites=offered))
        try:
            return tls.read_server_hello().suite
        except Alert as alert:
            if alert.description != HANDSHAKE_FAILURE:
                raise
            return None


def test_suites_are_mozillas_intermediate_profile_and_what_postgresql_adds(running):
    """By offering all 65536 numbers until nothing is taken; the server's choice comes first to last."""
    found = []
    for versions in (V13, V12):
        left = [number for number in range(0x10000) if number not in {0x00FF, FALLBACK_SCSV}]
        for start in range(0, len(left), 8000):
            offered = left[start : start + 8000]
            while (suite := chosen(running, offered, versions)) is not None:
                found.append(suite)
                offered.remove(suite)
    assert set(found) - DEVIATIONS == MOZILLA_INTERMEDIATE, [hex(suite) for suite in found]
    in_tls_1_2 = found[3:]
    assert set(in_tls_1_2[:2]) <= MOZILLA_INTERMEDIATE, "modern ones come first"


@pytest.mark.parametrize("version", [0x0200, 0x0300, 0x0301, 0x0302])
def test_older_versions_are_told_apart(running, version):
    with wire.WireClient(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        assert client.ask_for_tls() == b"S"
        tls = HandmadeTLS(client)
        tls.say_hello(client_hello(tls.extensions(V12), version=version))
        assert tls.ending() == PROTOCOL_VERSION
