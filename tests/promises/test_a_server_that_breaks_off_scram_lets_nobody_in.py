"""Whatever a server says in the middle of SCRAM, nobody is let in before it has proved itself and the client."""

import base64
import itertools

import pytest

from fixtures import wire
from fixtures.deployments import config, in_clear, passthrough, with_tls
from fixtures.fake_backend import FakeBackend
from fixtures.scram_servers import end_point
from fixtures.shared_proxy import refusal_of
from fixtures.wire import WireClient
from pgtlsproxy.identity import Secret
from pgtlsproxy.protocol.scram.keys import Verifier

PASSWORD, SALT, ITERATIONS = "alice-secret", bytes(range(16)), 4096
OFFER = wire.authentication_sasl("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256")
OK, CLEAR, MD5 = wire.AUTHENTICATION_OK, wire.authentication(3), wire.authentication(5, b"salt")
SERVER_NONCE = "server"


class Server:
    """Its side of one exchange, step by step.

    Args:
        conversation: with the proxy.
    """

    def __init__(self, conversation):
        self._conversation = conversation
        conversation.accept()

    def say(self, data):
        self._conversation.send(data)

    def offer(self):
        self.say(OFFER)
        response = self._conversation.read_message().body
        self._bare = response[response.index(b"\0") + 5 :].split(b",", 2)[2]
        self.nonce = wire.scram_attributes(self._bare)["r"]

    def challenge(self, *, nonce=None, iterations=ITERATIONS):
        salt = base64.b64encode(SALT).decode()
        self._first = f"r={nonce or self.nonce + SERVER_NONCE},s={salt},i={iterations}".encode()
        self.say(wire.authentication(11, self._first))
        self._without_proof = self._conversation.read_message().body.rpartition(b",p=")[0]

    def conclude(self, password=PASSWORD):
        _, server_key = wire.scram_keys(password, SALT, ITERATIONS)
        auth_message = b",".join((self._bare, self._first, self._without_proof))
        signature = wire.scram_signature(server_key, auth_message)
        self.say(wire.authentication(12, b"v=" + base64.b64encode(signature)))

    def let_in(self):
        self.say(OK)
        self._conversation.get_ready()


def offered(*then):
    return lambda server: (server.offer(), *map(server.say, then), server.let_in())


def challenged(*then):
    return lambda server: (server.offer(), server.challenge(), *map(server.say, then), server.let_in())


def concluded(*then):
    return lambda server: (
        server.offer(), server.challenge(), server.conclude(), *map(server.say, then), server.let_in()
    )  # fmt: skip


BREAKS = {
    "AuthenticationOk at once": lambda server: server.let_in(),
    "AuthenticationOk for the first message": offered(),
    "AuthenticationOk for the proof": challenged(),
    "SASLFinal for the first message": offered(wire.authentication(12, b"v=" + bytes(44))),
    "a second list of mechanisms": offered(OFFER),
    "a password in clear instead": offered(CLEAR),
    "a password in clear for the proof": challenged(CLEAR),
    "MD5 for the proof": challenged(MD5),
    "SASLContinue for the proof": challenged(wire.authentication(11, b"r=x,s=AAAA,i=4096")),
    "an error of SCRAM": challenged(wire.authentication(12, b"e=other-error")),
    "a second list behind SASLFinal": concluded(OFFER),
    "a password in clear behind SASLFinal": concluded(CLEAR),
    "SASLFinal twice": concluded(wire.authentication(12, b"v=" + bytes(44))),
    "ParameterStatus before AuthenticationOk": concluded(wire.parameter_status("a", "b")),
    "ReadyForQuery before AuthenticationOk": concluded(wire.ready_for_query()),
}

FORGERIES = {
    "a signature of another password": lambda server: (
        server.offer(), server.challenge(), server.conclude("another"), server.let_in()
    ),
    "no signature": challenged(wire.authentication(12, b"v=")),
    "a nonce of another exchange": lambda server: (
        server.offer(), server.challenge(nonce="another" + SERVER_NONCE), server.conclude(), server.let_in()
    ),
    "the client's nonce alone": lambda server: (
        server.offer(), server.challenge(nonce=server.nonce), server.conclude(), server.let_in()
    ),
    "a billion iterations": lambda server: (
        server.offer(), server.challenge(iterations=10**9), server.conclude(), server.let_in()
    ),
}  # fmt: skip
"""What a client finds out itself where it is relayed, and the proxy has to where it takes part."""

BOUND, RELAYED, SHOWN, OWN = "bridged", "relayed", "by_password", "by_passfile"


@pytest.fixture(scope="module")
def server(certs):
    with FakeBackend(lambda _: None, certs.server) as listening:
        yield listening


@pytest.fixture(scope="module")
def running(server, shared_proxy, certs):
    own_leaf = certs.ca.server("localhost")
    asking = passthrough(server, certs)
    knowing = passthrough(server, certs, login="passfile", passfile="passwords")
    listeners = {
        BOUND: with_tls(certs, own_leaf, backend="asking", scram_secrets_file="secrets.txt"),
        RELAYED: with_tls(certs, own_leaf, backend="asking"),
        SHOWN: with_tls(certs, own_leaf, backend="asking", hba_file="password.conf"),
        OWN: in_clear(backend="knowing", hba_file="alice.conf"),
    }
    verifier = Verifier.make(Secret(PASSWORD.encode()), SALT, ITERATIONS)
    files = {
        "pg_hba.conf": "hostssl all all all scram-sha-256\n",
        "password.conf": "hostssl all all all password\n",
        "alice.conf": "host all alice 127.0.0.0/8 trust\n",
        "secrets.txt": f'"alice" "{verifier.text()}"\n',
        "passwords": f"*:*:*:alice:{PASSWORD}\n",
    }
    return shared_proxy(config(listeners, asking=asking, knowing=knowing), files)


class Alice:
    """A client that takes part in whatever it is asked.

    Attributes:
        heard: codes of Authentication messages and types of others, in their order.
        refusal: the error that ended it, or None.
    """

    def __init__(self, connection, way, leaf):
        self._connection = connection
        self._header, self._bound = b"n,,", b""
        self._mechanism = "SCRAM-SHA-256"
        if way == BOUND:
            self._header, self._bound = b"p=tls-server-end-point,,", end_point(leaf)
            self._mechanism = "SCRAM-SHA-256-PLUS"
        self._bare = b"n=,r=client"
        self.heard = []
        self.refusal = None

    def log_in(self):
        self._connection.send(wire.startup(user="alice", database="alice"))
        while self.heard[-1:] != ["Z"]:
            said = self._connection.read_message()
            if said.kind == b"E":
                self.refusal = said
                return
            self.heard.append(said.code if said.kind == b"R" else said.kind.decode())
            if said.kind == b"R":
                self._answer(said)

    def _answer(self, said):
        if said.code == 10:
            self._connection.send(wire.sasl_initial_response(self._mechanism, self._header + self._bare))
        elif said.code == 11:
            self._connection.send(wire.message(b"p", self._proof(said.body[4:])))
        elif said.code == 3:
            self._connection.send(wire.password_message(PASSWORD))

    def _proof(self, server_first):
        client_key, _ = wire.scram_keys(PASSWORD, SALT, ITERATIONS)
        nonce = wire.scram_attributes(server_first)["r"].encode()
        without_proof = b"c=" + base64.b64encode(self._header + self._bound) + b",r=" + nonce
        auth_message = b",".join((self._bare, server_first, without_proof))
        return without_proof + b",p=" + base64.b64encode(wire.scram_proof(client_key, auth_message))


def log_in(running, server, certs, way, script):
    server.script = lambda conversation: script(Server(conversation))
    server.forget()
    with WireClient(("127.0.0.1", running.port(way)), source=wire.another_source()) as connection:
        if way != OWN:
            assert connection.ask_for_tls() == b"S"
            connection.start_tls()
        alice = Alice(connection, way, certs.ca.server("localhost"))
        alice.log_in()
        if alice.refusal is not None:
            return alice, refusal_of(running, connection)
    return alice, None


@pytest.mark.parametrize("way", [BOUND, RELAYED, SHOWN, OWN])
def test_as_it_should_be_it_lets_in(running, server, certs, way):
    alice, _ = log_in(running, server, certs, way, concluded())
    assert alice.heard[-4:] == [0, "S", "K", "Z"]


CELLS = [
    *itertools.product([BOUND, RELAYED, SHOWN, OWN], BREAKS),
    *itertools.product([BOUND, SHOWN, OWN], FORGERIES),
]


@pytest.mark.parametrize(("way", "what"), CELLS)
def test_it_lets_nobody_in(running, server, certs, way, what):
    alice, decided = log_in(running, server, certs, way, (BREAKS | FORGERIES)[what])
    assert 0 not in alice.heard
    assert alice.refusal is not None
    assert (alice.refusal.fields["C"], decided["kind"]) == ("57P03", "backend_protocol")
    # Only the proof of a password has gone to the server, whatever it asked for.
    (conversation,) = server.conversations
    assert PASSWORD.encode() not in conversation.received
