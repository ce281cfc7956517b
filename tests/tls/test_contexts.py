"""Contexts: what they ask of a handshake, and what they refuse to be built from."""

import contextlib
import hashlib
import subprocess

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

from pgtlsproxy import pki
from pgtlsproxy.tls import contexts, diffie_hellman, openssl
from pgtlsproxy.tls.contexts import (
    DEFAULT_BACKEND_GROUPS,
    ContextError,
    HandshakeRecord,
    KeyPair,
    NoCommonALPN,
    TLSOptions,
    Trust,
    backend_context,
    handshake,
    server_context,
)

CA = pki.make_ca("test CA")
SERVER = pki.issue_server(CA, ["localhost"])
CLIENT = pki.issue_client(CA, "alice")
TRUST = Trust((CA.certificate,))


TOO_SMALL = b"""-----BEGIN DH PARAMETERS-----
MEYCQQD7zvfyvR0ycHl0O3NEiEyaNwMjKYhUygZGi17NAHBsNfXc9WqJCEfR2mDv
BrS3oQmp2JLyCyexKGXx7X9xJ+3PAgEC
-----END DH PARAMETERS-----
"""


def pair(issued):
    return KeyPair((issued.certificate,), issued.key)


def shake(server_options=None, client=None, trust=TRUST):
    """A handshake in memory with the server that these options make; both connections."""
    server = SSL.Connection(server_context(pair(SERVER), trust, server_options or TLSOptions()), None)
    client = SSL.Connection(client or backend_context(None, TRUST, TLSOptions()), None)
    for end, start in ((server, server.set_accept_state), (client, client.set_connect_state)):
        end.set_app_data(HandshakeRecord())
        start()
    handshake(server, client)
    return server, client


def bare_client(**settings):
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_cipher_list(settings.get("ciphers", b"ALL:@SECLEVEL=0"))
    if "version" in settings:
        context.set_min_proto_version(settings["version"])
        context.set_max_proto_version(settings["version"])
    if "alpn" in settings:
        context.set_alpn_protos(settings["alpn"])
    return context


def test_tls_1_3_and_x25519_are_what_default_peers_agree_on():
    server, _ = shake()
    assert (server.get_protocol_version_name(), server.get_group_name()) == ("TLSv1.3", "x25519")


@pytest.mark.parametrize("version", [SSL.TLS1_VERSION, SSL.TLS1_1_VERSION])
def test_tls_older_than_1_2_is_refused_by_default(version):
    with pytest.raises(SSL.Error, match="unsupported protocol|version"):
        shake(client=bare_client(version=version))


@pytest.mark.parametrize(
    "cipher", [b"AES128-SHA", b"ECDHE-ECDSA-NULL-SHA", b"AECDH-AES128-SHA", b"PSK-AES128-CBC-SHA"]
)
def test_weak_and_anonymous_suites_are_refused(cipher):
    with pytest.raises(SSL.Error):
        shake(client=bare_client(version=SSL.TLS1_2_VERSION, ciphers=cipher + b":@SECLEVEL=0"))


@pytest.mark.parametrize("suite", ["TLS_AES_128_GCM_SHA256", "TLS_CHACHA20_POLY1305_SHA256"])
def test_a_configured_suite_of_tls_1_3_is_the_one_that_is_used(suite):
    server, _ = shake(TLSOptions(tls13_ciphers=suite))
    assert server.get_cipher_name() == suite


@pytest.mark.parametrize(
    ("groups", "used"), [("prime256v1", "secp256r1"), ("X25519MLKEM768", "X25519MLKEM768")]
)
def test_a_configured_group_is_the_one_that_is_used(groups, used):
    client = bare_client()
    assert openssl.set_groups(client, "X25519:prime256v1:X25519MLKEM768")
    server, _ = shake(TLSOptions(groups=groups), client)
    assert server.get_group_name().lower() == used.lower()


def test_a_client_without_a_configured_group_is_refused():
    client = bare_client()
    assert openssl.set_groups(client, "secp384r1")
    with pytest.raises(SSL.Error):
        shake(TLSOptions(groups="X25519"), client)


@pytest.mark.parametrize(
    ("options", "setting", "text"),
    [
        (TLSOptions(ciphers="NOTHING"), "ssl_ciphers", "no cipher"),
        (TLSOptions(ciphers=""), "ssl_ciphers", "no cipher"),
        (TLSOptions(tls13_ciphers="TLS_AES_128_GCM_SHA256:TLS_NOPE"), "ssl_tls13_ciphers", '"TLS_NOPE"'),
        (TLSOptions(tls13_ciphers=":"), "ssl_tls13_ciphers", '""'),
        (TLSOptions(groups="X25519:nope"), "ssl_groups", '"nope"'),
        (TLSOptions(groups="X25519:?nope"), "ssl_groups", '"?nope"'),
        (TLSOptions(groups=""), "ssl_groups", '""'),
        (TLSOptions(min_protocol_version="TLSv1.1"), "ssl_min_protocol_version", "SECLEVEL"),
        (TLSOptions(dh_params=b"no parameters"), "ssl_dh_params_file", "no start line"),
        (TLSOptions(dh_params=b"x" * 4097), "ssl_dh_params_file", "over 4 kB long"),
        (TLSOptions(dh_params=TOO_SMALL), "ssl_dh_params_file", "dh key too small"),
        # An EC key has no use for suites that need an RSA one.
        (
            TLSOptions(ciphers="ECDHE-RSA-AES128-GCM-SHA256", max_protocol_version="TLSv1.2"),
            "ssl_ciphers",
            "no client",
        ),
    ],
)
def test_what_openssl_would_ignore_or_fail_at_later_is_an_error(options, setting, text):
    with pytest.raises(ContextError) as caught:
        server_context(pair(SERVER), TRUST, options)
    assert [(key, text in what) for key, what in caught.value.mistakes] == [(setting, True)]


def test_every_wrong_setting_is_reported_at_once():
    with pytest.raises(ContextError) as caught:
        server_context(
            pair(SERVER), TRUST, TLSOptions(ciphers="NOTHING", groups="nope", tls13_ciphers="nope")
        )
    assert {key for key, _ in caught.value.mistakes} == {"ssl_ciphers", "ssl_groups", "ssl_tls13_ciphers"}


def test_a_list_of_groups_is_an_error_where_the_binding_is_missing(monkeypatch):
    monkeypatch.setattr(openssl, "HAS_BINDING", False)
    with pytest.raises(ContextError, match="does not let a list of groups be set"):
        server_context(pair(SERVER), TRUST, TLSOptions(groups="prime256v1:secp384r1"))


def test_defaults_load_where_the_binding_is_missing(monkeypatch):
    monkeypatch.setattr(openssl, "HAS_BINDING", False)
    server, _ = shake(TLSOptions(), bare_client())
    assert server.get_protocol_version_name() == "TLSv1.3"


def test_the_built_in_dh_parameters_are_the_2048_bit_group_of_rfc_3526():
    made = subprocess.run(
        ["openssl", "genpkey", "-genparam", "-algorithm", "DH", "-pkeyopt", "group:modp_2048"],
        capture_output=True,
        check=True,
    )
    assert made.stdout == diffie_hellman.BUILT_IN


def test_a_client_of_tls_1_2_without_elliptic_curves_gets_a_dhe_suite(monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")  # as where no file system can be written to
    rsa = pki.issue_server(CA, ["localhost"], key_type=pki.KeyType.RSA)
    server = SSL.Connection(server_context(pair(rsa), None, TLSOptions()), None)
    old = bare_client(version=SSL.TLS1_2_VERSION, ciphers=b"DHE-RSA-AES256-GCM-SHA384")
    assert openssl.set_groups(old, "X25519")  # a client that names groups of RFC 7919 wants one of those
    client = SSL.Connection(old, None)
    server.set_app_data(HandshakeRecord())
    server.set_accept_state()
    client.set_connect_state()
    handshake(server, client)
    assert server.get_cipher_name() == "DHE-RSA-AES256-GCM-SHA384"


def test_a_security_level_above_2048_bits_switches_dhe_suites_off_and_nothing_else():
    server, _ = shake(TLSOptions(ciphers="HIGH:@SECLEVEL=3"))
    assert server.get_protocol_version_name() == "TLSv1.3"
    with pytest.raises(ContextError, match="ssl_dh_params_file: .*dh key too small"):
        shake(TLSOptions(ciphers="HIGH:@SECLEVEL=3", dh_params=diffie_hellman.BUILT_IN))


def test_old_versions_are_spoken_where_the_security_level_is_lowered_on_purpose():
    options = TLSOptions(min_protocol_version="TLSv1.1", ciphers="ALL:@SECLEVEL=0")
    server, _ = shake(options, bare_client(version=SSL.TLS1_1_VERSION))
    assert server.get_protocol_version_name() == "TLSv1.1"


def test_a_key_of_another_certificate_is_an_error():
    other = pki.issue_server(CA, ["localhost"])
    with pytest.raises(ContextError) as caught:
        server_context(KeyPair((SERVER.certificate,), other.key), TRUST, TLSOptions())
    assert caught.value.mistakes[0][0] == "ssl_key_file"


def test_clients_are_told_who_may_have_issued_their_certificate():
    _, client = shake()
    assert [name.CN for name in client.get_client_ca_list()] == ["test CA"]


def test_without_a_ca_no_certificate_is_asked_for():
    client = backend_context(pair(CLIENT), TRUST, TLSOptions())
    server, _ = shake(client=client, trust=None)
    assert server.get_peer_certificate(as_cryptography=True) is None


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_a_client_without_a_certificate_completes_the_handshake(version):
    options = TLSOptions(min_protocol_version=version, max_protocol_version=version)
    server, _ = shake(options)
    assert server.get_peer_certificate(as_cryptography=True) is None


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
def test_alpn_without_postgresql_ends_the_handshake(version):
    with pytest.raises((NoCommonALPN, SSL.Error)):
        shake(client=bare_client(version=version, alpn=[b"h2", b"http/1.1"]))


def test_alpn_with_postgresql_anywhere_in_the_list_selects_it():
    server, _ = shake(client=bare_client(alpn=[b"h2", b"postgresql"]))
    assert server.get_alpn_proto_negotiated() == b"postgresql"


def test_no_alpn_at_all_is_no_reason_to_refuse():
    server, _ = shake(client=bare_client())
    assert server.get_alpn_proto_negotiated() == b""


def test_a_failed_verification_is_noted_and_stands():
    stranger = pki.issue_client(pki.make_ca("stranger"), "alice")
    server = SSL.Connection(server_context(pair(SERVER), TRUST, TLSOptions()), None)
    client = SSL.Connection(backend_context(pair(stranger), TRUST, TLSOptions()), None)
    record = HandshakeRecord()
    server.set_app_data(record)
    client.set_app_data(HandshakeRecord())
    server.set_accept_state()
    client.set_connect_state()
    with pytest.raises(SSL.Error):
        handshake(server, client)
    assert record.certificate == stranger.certificate
    assert "issuer" in openssl.verify_error_string(record.verify_error)


def test_the_repr_of_a_key_pair_does_not_show_the_key():
    assert "key" not in repr(pair(SERVER)).lower().replace("keypair", "")


def test_renegotiation_is_refused():
    server, client = shake(client=bare_client(version=SSL.TLS1_2_VERSION))
    with pytest.raises(SSL.Error):
        client.renegotiate()
        contexts.handshake(server, client)
        client.do_handshake()


def damaged(original, load):
    """With a name that is not UTF-8: cryptography lets it pass, and OpenSSL does not."""
    return load(original.public_bytes(Encoding.DER).replace(b"test CA", b"test C\xff"))


DAMAGED_CA = Trust((CA.certificate, damaged(CA.certificate, x509.load_der_x509_certificate)))
DAMAGED_CRL = Trust((CA.certificate,), (damaged(pki.make_crl(CA, []), x509.load_der_x509_crl),))


@pytest.mark.parametrize(
    ("trust", "server_setting", "backend_setting"),
    [(DAMAGED_CA, "ssl_ca_file", "sslrootcert"), (DAMAGED_CRL, "ssl_crl_file", "sslcrl")],
)
def test_a_ca_or_crl_that_openssl_refuses_is_a_mistake_in_its_setting(trust, server_setting, backend_setting):
    with pytest.raises(ContextError, match="invalid utf8string") as caught:
        server_context(pair(SERVER), trust, TLSOptions(ciphers="NOTHING"))
    assert [key for key, _ in caught.value.mistakes] == ["ssl_ciphers", server_setting]
    with pytest.raises(ContextError, match="invalid utf8string") as caught:
        backend_context(None, trust, TLSOptions(groups="nope"))
    assert [key for key, _ in caught.value.mistakes] == ["ssl_groups", backend_setting]


def test_a_certificate_that_openssl_refuses_is_a_mistake_in_its_setting():
    unreadable = damaged(SERVER.certificate, x509.load_der_x509_certificate)
    with pytest.raises(ContextError, match="invalid utf8string") as caught:
        server_context(KeyPair((unreadable,), SERVER.key), None, TLSOptions())
    assert [key for key, _ in caught.value.mistakes] == ["ssl_key_file"]


HELLO_RETRY_REQUEST = hashlib.sha256(b"HelloRetryRequest").digest()
"""The random of a ServerHello that asks for another key share (RFC 8446 4.1.3)."""


@pytest.mark.parametrize(("groups", "asks_again"), [("prime256v1", False), ("secp384r1", True)])
def test_a_postgresql_that_takes_p_256_alone_need_not_ask_again(groups, asks_again):
    """PostgreSQL before 18 does by default; asking again is a round trip and some 100 µs a session."""
    options = TLSOptions(groups=DEFAULT_BACKEND_GROUPS + (":secp384r1" if asks_again else ""))
    client = SSL.Connection(backend_context(None, TRUST, options), None)
    server = SSL.Connection(server_context(pair(SERVER), None, TLSOptions(groups=groups)), None)
    client.set_connect_state()
    server.set_accept_state()
    for connection, other in ((client, server), (server, client)):
        with contextlib.suppress(SSL.WantReadError):
            connection.do_handshake()
        flight = connection.bio_read(65536)
        other.bio_write(flight)
    assert (HELLO_RETRY_REQUEST in flight) is asks_again
