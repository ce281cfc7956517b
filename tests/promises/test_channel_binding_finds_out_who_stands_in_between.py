"""A man in the middle with a certificate of a CA that is trusted, too, is found out on either leg by channel binding."""

import contextlib
import select
import socket
import ssl
import threading

import pytest

from fixtures import wire
from fixtures.certs import Issued
from fixtures.deployments import (
    PROXY_CERTIFICATE_HBA,
    PROXY_CERTIFICATE_IDENT,
    config,
    passthrough,
    with_certificate,
    with_tls,
)
from fixtures.postgres import password
from fixtures.scram_secrets import secrets_file
from pgtlsproxy import pki

BOTH = wire.authentication_sasl("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256")
PLAIN = wire.authentication_sasl("SCRAM-SHA-256")

CHECK_FAILED = "SCRAM channel binding check failed"
NEGOTIATION_FAILED = "SCRAM channel binding negotiation error"


class Middle:
    """Ends TLS with a certificate of its own, and goes on to a server that it does not verify.

    Args:
        shown: its certificate.
        port: the server's.
        hides_plus: whether it takes channel binding out of the server's offer.

    Attributes:
        port: its own.
        overheard: what it could read.
    """

    def __init__(self, shown, port, *, hides_plus):
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(shown.crt, shown.key)
        self._context.set_alpn_protocols([wire.ALPN])
        self._target = port
        self._hides_plus = hides_plus
        self.overheard = bytearray()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self):
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._stand_between, args=(sock,), daemon=True).start()

    def _stand_between(self, sock):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            sock.settimeout(wire.PATIENCE)
            stack.enter_context(sock)
            assert sock.recv(8) == wire.SSL_REQUEST
            sock.sendall(b"S")
            client = stack.enter_context(self._context.wrap_socket(sock, server_side=True))
            plain = socket.create_connection(("127.0.0.1", self._target), timeout=wire.PATIENCE)
            stack.enter_context(plain)
            plain.sendall(wire.SSL_REQUEST)
            assert plain.recv(1) == b"S"
            server = stack.enter_context(wire.tls_context().wrap_socket(plain))
            other = {client: server, server: client}
            while True:
                ready, _, _ = select.select(list(other), [], [], wire.PATIENCE)
                for source in ready:
                    # What has come may be a record without data, or half of one. More than one is not read at
                    # a time, so that nothing is left inside OpenSSL.
                    source.setblocking(False)
                    try:
                        data = source.recv(65536)
                    except ssl.SSLWantReadError:
                        continue
                    finally:
                        source.settimeout(wire.PATIENCE)
                    if not data:
                        return
                    self.overheard += data
                    other[source].sendall(data.replace(BOTH, PLAIN) if self._hides_plus else data)


@pytest.fixture(scope="module")
def ed25519_ca():
    return pki.make_ca("signs with Ed25519", key_type=pki.KeyType("ed25519"))


@pytest.fixture(scope="module")
def unhashed(ed25519_ca, tmp_path_factory):
    """A certificate that is as good as the real one, and has no hash that SCRAM could bind to."""
    folder = tmp_path_factory.mktemp("ed25519")
    server = pki.issue_server(ed25519_ca, ["localhost", "127.0.0.1"])
    crt, key = folder / "middle.crt", folder / "middle.key"
    crt.write_bytes(server.certificate_pem())
    key.write_bytes(server.key_pem().reveal())
    return Issued(server.certificate, server.key, crt, key)


@pytest.fixture(scope="module")
def middles(certs):
    """`middles(port, hides_plus, shown)`: one whose certificate is as good as the real one."""
    with contextlib.ExitStack() as stack:

        def start(port, *, hides_plus=False, shown=None):
            shown = shown or certs.other_ca.server("localhost", "127.0.0.1")
            middle = Middle(shown, port, hides_plus=hides_plus)
            stack.callback(middle.close)
            return middle

        yield start


@pytest.fixture(scope="module")
def trusted(certs, ed25519_ca, tmp_path_factory):
    """All CAs in one file, as a system has many."""
    path = tmp_path_factory.mktemp("roots") / "roots.crt"
    roots = [certs.ca.crt.read_bytes(), certs.other_ca.crt.read_bytes(), ed25519_ca.certificate_pem()]
    path.write_bytes(b"".join(roots))
    return path


@pytest.fixture(scope="module")
def cluster(tls_cluster):
    return tls_cluster(17)


@pytest.fixture(scope="module")
def believing(tls_cluster):
    return tls_cluster(17, PROXY_CERTIFICATE_HBA, ident=PROXY_CERTIFICATE_IDENT)


METHODS = ("bridge", "own", "shown", "passfile")


@pytest.fixture(scope="module")
def before(cluster, middles, unhashed):
    """Who stands before the server."""
    return {
        "middle": middles(cluster.port),
        "hiding": middles(cluster.port, hides_plus=True),
        "unhashed": middles(cluster.port, shown=unhashed),
        "unhashed-hiding": middles(cluster.port, shown=unhashed, hides_plus=True),
    }


@pytest.fixture(scope="module")
def running(cluster, believing, before, trusted, shared_proxy, certs):
    """Listeners by (method, who stands before the backend)."""
    other = certs.ca.server("localhost")
    met_at = {"nobody": cluster.port} | {who: middle.port for who, middle in before.items()}
    by_passfile = {"login": "passfile", "passfile": "passwords"}
    backends = {"believing": with_certificate(believing, certs)}
    listeners = {"own-nobody": with_tls(certs, other, backend="believing", hba_file="scram.conf")}
    for who, port in met_at.items():
        met = passthrough(cluster, certs) | {"port": port, "sslrootcert": trusted}
        backends |= {who: met, f"{who}-passfile": met | by_passfile}
        listeners[f"bridge-{who}"] = with_tls(certs, other, backend=who, hba_file="scram.conf")
        listeners[f"shown-{who}"] = with_tls(certs, other, backend=who, hba_file="password.conf")
        listeners[f"passfile-{who}"] = with_tls(
            certs, other, backend=f"{who}-passfile", hba_file="scram.conf"
        )
    listeners = {name: each | {"scram_secrets_file": "secrets.txt"} for name, each in listeners.items()}
    files = {
        "scram.conf": "hostssl all all all scram-sha-256\n",
        "password.conf": "hostssl all all all password\n",
        "passwords": f"localhost:*:*:alice:{password('alice')}\n",
        "secrets.txt": secrets_file(cluster),
    }
    return shared_proxy(config(listeners, **backends), files)


def connect(psql, trusted, port, **words):
    return psql.run(
        "SELECT 'a canary'", host="localhost", hostaddr="127.0.0.1", port=port, user="alice", dbname="alice",
        password=password("alice"), sslmode="verify-full", sslrootcert=trusted, **words,
    )  # fmt: skip


BEFORE_THE_PROXY = {
    ("require", False): CHECK_FAILED,
    ("prefer", False): CHECK_FAILED,
    ("require", True): "channel binding is required",
    ("prefer", True): NEGOTIATION_FAILED,
    ("disable", False): None,
    ("disable", True): None,
}
"""What a client hears with its channel_binding, and whether the offer of it is hidden from it."""


@pytest.mark.parametrize(("binding", "hides_plus"), BEFORE_THE_PROXY)
@pytest.mark.parametrize("method", ["bridge", "own", "passfile"])
def test_between_client_and_proxy(running, middles, trusted, each_psql, method, binding, hides_plus):
    """Without channel binding it reads all: so it is a real one."""
    middle = middles(running.port(f"{method}-nobody"), hides_plus=hides_plus)
    done = connect(each_psql, trusted, middle.port, channel_binding=binding)
    expected = BEFORE_THE_PROXY[binding, hides_plus]
    if expected is None:
        assert (done.stdout, b"a canary" in middle.overheard) == ("a canary\n", True)
    else:
        assert expected in done.stderr
        assert b"a canary" not in middle.overheard


@pytest.mark.parametrize("hides_plus", [False, True])
@pytest.mark.parametrize("binding", ["prefer", "require"])
def test_between_client_and_proxy_without_a_hash_to_bind_to(
    running, middles, trusted, unhashed, each_psql, binding, hides_plus
):
    middle = middles(running.port("bridge-nobody"), hides_plus=hides_plus, shown=unhashed)
    done = connect(each_psql, trusted, middle.port, channel_binding=binding)
    assert (done.returncode, done.stdout) == (2, "")
    assert b"a canary" not in middle.overheard


BEFORE_THE_BACKEND = {"middle": CHECK_FAILED, "hiding": NEGOTIATION_FAILED}
NOT_OFFERED = "server did not offer an authentication method that supports channel binding"


@pytest.mark.parametrize("binding", ["require", "prefer"])
@pytest.mark.parametrize("who", BEFORE_THE_BACKEND)
def test_between_proxy_and_backend_of_a_bridged_login(running, trusted, each_psql, cluster, who, binding):
    """The server finds it out, and says so; a client that insists is not even offered what cannot be bound."""
    heard = len(cluster.log_lines)
    done = connect(each_psql, trusted, running.port(f"bridge-{who}"), channel_binding=binding)
    if (who, binding) == ("hiding", "require"):
        assert NOT_OFFERED in done.stderr
        return
    assert f"FATAL:  {BEFORE_THE_BACKEND[who]}\n" in done.stderr
    cluster.wait_for_log(BEFORE_THE_BACKEND[who], since=heard)


@pytest.mark.parametrize(
    ("who", "binding", "told"),
    [
        ("unhashed", "require", NOT_OFFERED),
        ("unhashed", "prefer", None),  # as at a server that really has such a certificate
        ("unhashed-hiding", "require", NOT_OFFERED),
        ("unhashed-hiding", "prefer", NEGOTIATION_FAILED),
    ],
)
def test_between_proxy_and_backend_without_a_hash_to_bind_to(
    running, before, trusted, each_psql, who, binding, told
):
    before[who].overheard.clear()
    done = connect(each_psql, trusted, running.port(f"bridge-{who}"), channel_binding=binding)
    if told is None:
        assert done.stdout == "a canary\n"
    else:
        assert told in done.stderr
        assert b"a canary" not in before[who].overheard


@pytest.mark.parametrize("who", BEFORE_THE_BACKEND)
@pytest.mark.parametrize("method", ["shown", "passfile"])
def test_between_proxy_and_backend_where_the_proxy_has_the_password(
    running, trusted, psql, cluster, method, who
):
    heard = len(cluster.log_lines)
    done = connect(psql(17), trusted, running.port(f"{method}-{who}"))
    assert "FATAL:" in done.stderr
    cluster.wait_for_log(BEFORE_THE_BACKEND[who], since=heard)


def test_a_client_that_binds_nothing_binds_nothing_at_the_backend_either(running, trusted, each_psql):
    """It speaks to the server itself, so that the proxy cannot bind for it."""
    done = connect(each_psql, trusted, running.port("bridge-middle"), channel_binding="disable")
    assert done.stdout == "a canary\n"


@pytest.mark.parametrize("method", METHODS)
def test_where_nobody_stands_in_between_everybody_logs_in(running, trusted, each_psql, method):
    binding = "disable" if method == "shown" else "require"
    done = connect(each_psql, trusted, running.port(f"{method}-nobody"), channel_binding=binding)
    assert (done.stdout, done.stderr) == ("a canary\n", "")
