"""Keys that are for RSA-PSS alone are taken for their certificates, on both legs."""

import subprocess

import pytest
from OpenSSL import SSL

from pgtlsproxy import pki
from pgtlsproxy.tls import files, openssl
from pgtlsproxy.tls.contexts import (
    ContextError,
    HandshakeRecord,
    KeyPair,
    TLSOptions,
    Trust,
    backend_context,
    handshake,
    server_context,
)
from pgtlsproxy.tls.rsa_pss import as_pss_key

CA = pki.make_ca("test CA")


@pytest.fixture(scope="module", params=[(), ("rsa_pss_keygen_md:sha512",)], ids=["any hash", "SHA-512"])
def pair(request, tmp_path_factory):
    """Self-signed; the second key may sign with SHA-512 alone, which the certificate says."""
    folder = tmp_path_factory.mktemp("pss")
    options = [word for option in ("rsa_keygen_bits:2048", *request.param) for word in ("-pkeyopt", option)]
    for command in (
        ["genpkey", "-algorithm", "RSA-PSS", *options, "-out", "key"],
        ["req", "-x509", "-key", "key", "-sha512", "-subj", "/CN=localhost", "-out", "crt"],
    ):
        subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True)
    chain = files.certificate_chain((folder / "crt").read_bytes(), "crt")
    key = files.private_key((folder / "key").read_bytes(), "key")
    return files.key_pair(chain, key, certificate_file="crt", key_file="key")


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_both_ends_of_a_handshake_may_have_one(pair, version):
    options, trust = TLSOptions(version, version), Trust((pair.leaf,))
    server = SSL.Connection(server_context(pair, trust, options), None)
    client = SSL.Connection(backend_context(pair, trust, options), None)
    for end, start in ((server, server.set_accept_state), (client, client.set_connect_state)):
        end.set_app_data(HandshakeRecord())
        start()
    handshake(server, client)
    for end in (server, client):
        assert end.get_peer_certificate(as_cryptography=True) == pair.leaf
        assert end.get_protocol_version_name() == version


def test_other_keys_are_left_as_they_are():
    for kind in pki.KeyType:
        issued = pki.issue_server(CA, ["localhost"], key_type=kind)
        assert as_pss_key(issued.certificate, issued.key) is None


def test_it_is_a_mistake_where_the_binding_is_missing(pair, monkeypatch):
    monkeypatch.setattr(openssl, "HAS_BINDING", False)
    with pytest.raises(ContextError) as caught:
        server_context(KeyPair(pair.chain, pair.key), None, TLSOptions())
    assert "takes no RSA-PSS keys" in str(caught.value)
