"""Versions, suites and groups are those of the listener; nothing resumes, renegotiates or is compressed."""

import contextlib
import shutil
import socket
import ssl
import subprocess

import pytest
from OpenSSL import SSL

from fixtures import wire
from fixtures.deployments import config, passthrough, with_tls
from fixtures.fake_backend import lets_everybody_in
from fixtures.shared_proxy import refusal_of
from pgtlsproxy import pki

V10, V11, V12, V13 = (
    ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
)  # fmt: skip
AES256, AES128 = "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256"

LISTENERS = {
    "default": {},
    "v13": {"ssl_min_protocol_version": "TLSv1.3"},
    "v12": {"ssl_max_protocol_version": "TLSv1.2"},
    "old": {"ssl_min_protocol_version": "TLSv1", "ssl_ciphers": "ALL:@SECLEVEL=0"},
    "aes128": {"ssl_tls13_ciphers": "TLS_AES_128_GCM_SHA256"},
    "chacha": {"ssl_tls13_ciphers": "TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256"},
    "one_suite": {"ssl_ciphers": AES128},
    "ours_first": {"ssl_ciphers": f"{AES256}:{AES128}"},
    "theirs_first": {"ssl_ciphers": f"{AES256}:{AES128}", "ssl_prefer_server_ciphers": False},
    "p256": {"ssl_groups": "prime256v1"},
    "p384": {"ssl_groups": "secp384r1:X25519"},
    "curve": {"ssl_ecdh_curve": "prime256v1"},
    "rsa": {"ssl_cert_file": "rsa.crt", "ssl_key_file": "rsa.key"},
    "own_dh": {"ssl_cert_file": "rsa.crt", "ssl_key_file": "rsa.key", "ssl_dh_params_file": "dh.pem"},
}


@pytest.fixture(scope="module")
def running(shared_proxy, shared_fake_backend, certs):
    shown = certs.client("pgtlsproxy")
    backend = shared_fake_backend(lets_everybody_in)
    return shared_proxy(
        config(
            {name: with_tls(certs, **settings) for name, settings in LISTENERS.items()},
            primary=passthrough(backend, certs, login="certificate", sslcert=shown.crt, sslkey=shown.key),
        ),
        {"pg_hba.conf": "hostssl all all all cert\n", **rsa_files()},
    )


def rsa_files():
    """A certificate with an RSA key, which DHE suites need, and Diffie-Hellman parameters of 3072 bits."""
    issued = pki.issue_server(pki.make_ca("RSA"), ["localhost"], key_type=pki.KeyType.RSA)
    generated = subprocess.run(
        ["openssl", "genpkey", "-genparam", "-algorithm", "DH", "-pkeyopt", "group:modp_3072"],
        capture_output=True,
        check=True,
    )
    return {
        "rsa.crt": issued.certificate_pem(), "rsa.key": issued.key_pem().reveal(), "dh.pem": generated.stdout
    }  # fmt: skip


@pytest.fixture
def address(running):
    return lambda listener: ("127.0.0.1", running.port(listener))


@pytest.mark.parametrize(
    ("listener", "offered", "expected"),
    [
        ("default", (V12, V13), "TLSv1.3"),
        ("default", (V12, V12), "TLSv1.2"),
        ("default", (V10, V12), "TLSv1.2"),
        ("default", (V11, V11), None),
        ("default", (V10, V10), None),
        ("v13", (V12, V13), "TLSv1.3"),
        ("v13", (V12, V12), None),
        ("v12", (V12, V13), "TLSv1.2"),
        ("v12", (V13, V13), None),
        ("old", (V10, V10), "TLSv1"),
        ("old", (V10, V11), "TLSv1.1"),
        ("old", (V10, V13), "TLSv1.3"),
    ],
)
def test_the_version_lies_within_the_listeners_range(running, address, listener, offered, expected):
    ciphers = "ALL:@SECLEVEL=0" if offered[0] < V12 else None
    with wire.WireClient(address(listener), source=wire.another_source()) as client:
        assert client.ask_for_tls() == b"S"
        context = wire.tls_context(versions=offered, ciphers=ciphers)
        if expected is None:
            with pytest.raises(ssl.SSLError, match="(?i)protocol.version"):
                client.start_tls(context)
            assert refusal_of(running, client)["kind"] == "client_tls"
        else:
            client.start_tls(context)
            assert client.tls.version() == expected


@pytest.mark.parametrize(
    ("listener", "version", "offered", "expected"),
    [
        ("aes128", V13, None, "TLS_AES_128_GCM_SHA256"),
        ("chacha", V13, None, "TLS_CHACHA20_POLY1305_SHA256"),
        ("one_suite", V12, None, AES128),
        ("one_suite", V12, AES256, None),
        ("ours_first", V12, f"{AES128}:{AES256}", AES256),
        ("theirs_first", V12, f"{AES128}:{AES256}", AES128),
        ("default", V12, f"{AES128}:{AES256}", AES256),
    ],
)
def test_the_suite_is_one_of_the_listeners_in_its_order(address, listener, version, offered, expected):
    context = wire.tls_context(versions=(version, version), ciphers=offered)
    with wire.WireClient(address(listener), source=wire.another_source()) as client:
        assert client.ask_for_tls() == b"S"
        if expected is None:
            with pytest.raises(ssl.SSLError, match="(?i)handshake.failure"):
                client.start_tls(context)
        else:
            client.start_tls(context)
            assert client.tls.cipher()[0] == expected


@pytest.mark.parametrize("weak", ["aNULL", "eNULL", "3DES", "RC4", "EXPORT", "RSA", "aRSA+AES"])
def test_weak_suites_are_not_negotiated(address, weak):
    """With an ECDSA certificate none of RSA's can be; anonymous and NULL ones are switched off."""
    context = wire.tls_context(versions=(V12, V12))
    try:
        context.set_ciphers(f"{weak}:@SECLEVEL=0")
    except ssl.SSLError:
        return  # this OpenSSL has forgotten them, and nobody can offer them
    with wire.WireClient(address("default")) as client:
        assert client.ask_for_tls() == b"S"
        with pytest.raises(ssl.SSLError, match="(?i)handshake.failure"):
            client.start_tls(context)


def s_client(address, *arguments):
    """`openssl s_client -starttls postgres`, which closes after the handshake. Its status and its output."""
    program = shutil.which("openssl")
    assert program is not None
    done = subprocess.run(
        [program, "s_client", "-starttls", "postgres", "-connect", f"{address[0]}:{address[1]}", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=wire.PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("listener", "group", "key"),
    [
        ("default", "X25519", "X25519, 253 bits"),
        ("default", "P-256", "ECDH, prime256v1, 256 bits"),
        ("default", "P-384", None),
        ("default", "P-521", None),
        ("default", "X448", None),
        ("p256", "X25519", None),
        ("p256", "P-256", "ECDH, prime256v1, 256 bits"),
        ("p384", "P-384", "ECDH, secp384r1, 384 bits"),
        ("p384", "P-256", None),
        ("p384", "X25519", "X25519, 253 bits"),
        ("curve", "P-256", "ECDH, prime256v1, 256 bits"),
        ("curve", "X25519", None),
    ],
)
def test_the_group_is_one_of_the_listeners(address, listener, group, key):
    """In TLS 1.3, where groups have nothing to do with the curve of a certificate."""
    status, output = s_client(address(listener), "-tls1_3", "-groups", group)
    if key is None:
        assert status == 1
        assert "handshake failure" in output
    else:
        assert (status, f"Server Temp Key: {key}" in output) == (0, True), output


@pytest.mark.parametrize(("listener", "bits"), [("rsa", 2048), ("own_dh", 3072)])
def test_a_client_without_elliptic_curves_gets_the_listeners_group_or_postgresqls(address, listener, bits):
    """Java 6 and appliances of its time know no other key exchange with forward secrecy."""
    status, output = s_client(address(listener), "-tls1_2", "-cipher", "DHE-RSA-AES256-GCM-SHA384")
    assert status == 0, output
    assert f"Server Temp Key: DH, {bits} bits" in output
    assert "Cipher is DHE-RSA-AES256-GCM-SHA384" in output


def test_certificates_are_asked_for_by_the_names_of_their_issuers(address):
    """Java and .NET choose their certificate by this list."""
    _, output = s_client(address("default"))
    assert "Acceptable client certificate CA names\nCN = pgtlsproxy test CA" in output


def test_nothing_is_compressed_and_renegotiation_is_secure_at_least(address):
    _, output = s_client(address("default"), "-tls1_2", "-comp")
    assert "Compression: NONE" in output
    assert "Secure Renegotiation IS supported" in output


def log_in(address, context, user, session=None):
    """The TLS object and the outcome: True for a session, or the error."""
    with wire.WireClient(address) as client:
        assert client.ask_for_tls() == b"S"
        client.start_tls(context, session=session)
        client.send(wire.startup(user=user))
        first = client.read_message()
        if first.kind == b"E":
            return client.tls, first.error
        client.read_until(b"Z")
        client.send(wire.TERMINATE)
        client.end()
        client.read_to_end()
        return client.tls, True


@pytest.mark.parametrize("version", [V12, V13], ids=["TLS 1.2", "TLS 1.3"])
def test_a_session_offered_again_is_asked_for_its_certificate_again(address, certs, version):
    """Whoever resumed would be taken for the one whose certificate was verified then."""
    context = wire.tls_context(certificate=certs.client("alice"), versions=(version, version))
    first, allowed = log_in(address("default"), context, "alice")
    assert allowed is True
    session = first.session
    bob = certs.client("bob")
    context.load_cert_chain(bob.crt, bob.key)
    second, outcome = log_in(address("default"), context, "alice", session)
    assert not second.session_reused
    assert outcome == ("28000", 'certificate authentication failed for user "alice"')
    third, outcome = log_in(address("default"), context, "bob", session)
    assert (third.session_reused, outcome) == (False, True)


def test_tls_1_2_gives_no_ticket_and_no_session_id(address):
    context = wire.tls_context(versions=(V12, V12))
    with wire.connected(address("default"), context) as client:
        assert not client.tls.session.has_ticket
        assert client.tls.session.id == b""


@pytest.mark.parametrize("with_certificate", [False, True])
def test_renegotiation_is_refused(running, address, certs, with_certificate):
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    with socket.create_connection(address("default"), wire.PATIENCE) as sock:
        sock.sendall(wire.SSL_REQUEST)
        assert sock.recv(1) == b"S"
        sock.settimeout(None)
        connection = SSL.Connection(context, sock)
        connection.set_connect_state()
        connection.do_handshake()
        if with_certificate:
            client = certs.client("alice")
            again = SSL.Context(SSL.TLS_CLIENT_METHOD)
            again.use_certificate_file(str(client.crt))
            again.use_privatekey_file(str(client.key))
            connection.set_context(again)
        assert connection.renegotiate()
        with pytest.raises(SSL.Error, match="no renegotiation"):
            connection.do_handshake()
    with wire.connected(address("default")) as other:
        other.send(wire.startup(user="alice"))
        assert other.read_error().error == ("28000", "connection requires a valid client certificate")


def test_a_client_may_give_up_after_each_flight(running, address):
    """No bug, and the next one is served; `running` judges the log at its end."""
    for version in (V12, V13):
        for how in ("close", "reset"):
            for flight in range(3):
                client = wire.WireClient(address("default"))
                client.ask_for_tls()
                tls = client.hello(wire.tls_context(versions=(version, version)))
                if flight:
                    client.send_raw(client.pending())
                    client._incoming.write(client.sock.recv(65536))
                if flight == 2:
                    with contextlib.suppress(ssl.SSLWantReadError):
                        tls.do_handshake()
                    client.send_raw(client.pending()[:40])
                getattr(client, how)()
    with wire.connected(address("default")) as client:
        client.send(wire.startup(user="alice"))
        client.read_error()


@pytest.mark.parametrize(
    "name", ["localhost", "LOCALHOST", "unknown.example", "x" * 63 + ".example", "localhost.", None]
)
def test_the_name_that_a_client_asks_for_selects_nothing(running, address, certs, name):
    context = wire.tls_context(certificate=certs.client("alice"))
    with wire.connected(address("default"), context, server_name=name) as client:
        assert client.tls.getpeercert(binary_form=True) == ssl.PEM_cert_to_DER_cert(
            certs.server.crt.read_text()
        )
        client.send(wire.startup(user="alice"))
        client.read_until(b"Z")
        decided = running.wait_for_event("session_decided", **client.where)
        assert (decided["sni"], decided["verdict"]) == (name, "allowed")
