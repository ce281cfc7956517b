"""Who stands between with a certificate that is trusted, too: channel_binding=require finds out, on either leg."""

import pytest

from fixtures import wire
from fixtures.certs import Issued
from fixtures.deployments import config, passthrough, with_tls
from fixtures.fake_backend import FakeBackend
from fixtures.postgres import password
from fixtures.scram_secrets import secrets_file
from fixtures.wire import WireClient
from pgtlsproxy import pki

SASL, ASKS = 10, {10, 11}


class InTheMiddle:
    """Ends TLS with a certificate of its own, and begins it anew at the server.

    Attributes:
        where: the server's address.
        strips: whether it takes channel binding out of what the server offers.
        let_in: how often the server has let somebody in.
    """

    def __init__(self):
        self.where = None
        self.strips = False
        self.let_in = 0

    def __call__(self, conversation):
        conversation.answer_ssl_request()
        conversation.start_tls()
        with WireClient(self.where) as server:
            assert server.ask_for_tls() == b"S"
            server.start_tls()
            length = conversation.read_exactly(4)
            server.send(length + conversation.read_exactly(int.from_bytes(length) - 4))
            while (said := server.read_message()).kind in {b"R", b"S", b"K", b"N"}:
                self.let_in += said.kind == b"R" and said.code == 0
                raw = wire.message(said.kind, said.body)
                if self.strips and said.kind == b"R" and said.code == SASL:
                    raw = wire.authentication_sasl("SCRAM-SHA-256")
                conversation.send(raw)
                if said.kind == b"R" and said.code in ASKS:
                    answer = conversation.read_message()
                    server.send(wire.message(answer.kind, answer.body))
            conversation.send(wire.message(said.kind, said.body))
        conversation.hang_up()


def certificate_of_another_ca(folder, key_type):
    """A good certificate for localhost, and the file of its CA."""
    ca = pki.make_ca("another", key_type=pki.KeyType(key_type))
    server = pki.issue_server(ca, ["localhost", "127.0.0.1"])
    crt, key, roots = (folder / name for name in ("middle.crt", "middle.key", "another.crt"))
    crt.write_bytes(server.certificate_pem())
    key.write_bytes(server.key_pem().reveal())
    key.chmod(0o600)
    roots.write_bytes(ca.certificate_pem())
    return Issued(server.certificate, server.key, crt, key), roots.read_text()


@pytest.fixture(scope="module")
def cluster(tls_cluster):
    return tls_cluster(17, "hostssl all all all scram-sha-256\n")


@pytest.fixture(scope="module", params=["p256", "ed25519"])
def middle(request, tmp_path_factory):
    """Whoever stands between, listening, and the CA that vouches for it."""
    attack = InTheMiddle()
    shown, roots = certificate_of_another_ca(tmp_path_factory.mktemp("middle"), request.param)
    with FakeBackend(attack, shown) as listening:
        yield attack, listening.port, roots, request.param


@pytest.fixture(scope="module")
def running(cluster, middle, shared_proxy, certs):
    _, port, roots, _ = middle
    backends = {
        "straight": passthrough(cluster, certs),
        "through": passthrough(cluster, certs, port=port, sslrootcert="roots.crt"),
    }
    own_leaf = certs.ca.server("localhost")
    listeners = {
        name: with_tls(certs, own_leaf, backend=name, scram_secrets_file="secrets.txt") for name in backends
    }
    files = {
        "pg_hba.conf": "hostssl all all all scram-sha-256\n",
        "secrets.txt": secrets_file(cluster),
        "roots.crt": certs.ca.crt.read_text() + roots,
    }
    return shared_proxy(config(listeners, **backends), files)


def connect(psql, port, roots, **words):
    return psql.run(
        "SELECT current_user", host="localhost", hostaddr="127.0.0.1", port=port, user="alice", dbname="alice",
        password=password("alice"), sslmode="verify-full", sslrootcert=roots, **words,
    )  # fmt: skip


@pytest.mark.parametrize("strips", [False, True], ids=["as offered", "without PLUS"])
@pytest.mark.parametrize("binding", ["prefer", "require"])
def test_between_proxy_and_server(running, cluster, middle, certs, each_psql, binding, strips):
    attack, _, _, signed_by = middle
    attack.where, attack.strips, attack.let_in = ("127.0.0.1", cluster.port), strips, 0
    done = connect(each_psql, running.port("through"), certs.ca.crt, channel_binding=binding)
    if binding == "prefer" and signed_by == "ed25519" and not strips:
        # There is no hash to bind to, as at a server that really has such a certificate.
        assert attack.let_in == 1
        return
    assert (done.returncode, attack.let_in) == (2, 0)


@pytest.mark.parametrize("strips", [False, True], ids=["as offered", "without PLUS"])
@pytest.mark.parametrize("binding", ["prefer", "require"])
def test_between_client_and_proxy(running, middle, certs, each_psql, binding, strips, tmp_path):
    attack, port, roots, _ = middle
    attack.where, attack.strips, attack.let_in = ("127.0.0.1", running.port("straight")), strips, 0
    both = tmp_path / "roots.crt"
    both.write_text(certs.ca.crt.read_text() + roots)
    done = connect(each_psql, port, both, channel_binding=binding)
    assert (done.returncode, attack.let_in) == (2, 0)
    assert connect(each_psql, running.port("straight"), both, channel_binding=binding).stdout == "alice\n"
