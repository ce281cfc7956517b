"""One SCRAM exchange over two legs that bind to two certificates, by whoever holds the verifier."""

import secrets
import subprocess
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.certs import Certs
from fixtures.clients import Psql
from fixtures.fake_backend import Conversation, FakeBackends
from fixtures.packets import Message
from fixtures.scram_servers import (
    MECHANISMS,
    PASSWORD,
    USER,
    dialogue,
    end_point,
    scram_cluster,
    verdict,
    verifier_text,
)
from fixtures.wire import authentication, authentication_sasl, message
from pgtlsproxy.demo.postgres import Cluster
from pgtlsproxy.errors import BackendMisbehaved, ProtocolViolation
from pgtlsproxy.identity import Secret
from pgtlsproxy.protocol.scram import bridge, client, server
from pgtlsproxy.protocol.scram.binding import offered
from pgtlsproxy.protocol.scram.bridge import Failure
from pgtlsproxy.protocol.scram.client import BackendUnproved
from pgtlsproxy.protocol.scram.keys import MAX_ITERATIONS, Verifier
from pgtlsproxy.protocol.scram.messages import BindingNegotiationFailed, ChannelBindingFailed
from pgtlsproxy.protocol.scram.server import WrongProof

PLAIN, PLUS = "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"
OURS, THEIRS = b"o" * 32, b"t" * 48
PENCIL = Secret(b"pencil")
SALT = b"0123456789abcdef"
VERIFIER = Verifier.make(PENCIL, SALT, 2)
OTHER_SALT = Verifier(b"made by hand", 2, VERIFIER.stored_key, VERIFIER.server_key)
LEAVES = [None, OURS, THEIRS]

leaves = st.sampled_from(LEAVES)


class Legs:
    """Our client and our server with the bridge between them; each step is taken by hand."""

    def __init__(
        self,
        *,
        held: Verifier | None = VERIFIER,
        stored: Verifier = VERIFIER,
        client_leaf: bytes | None = OURS,
        seen: bytes | None = OURS,
        backend_leaf: bytes | None = THEIRS,
    ) -> None:
        self.client = client.begin(offered(client_leaf), seen)
        self.held = held
        self.bridge = bridge.begin(
            client_leaf,
            self.client.mechanism,
            self.client.client_first,
            offered(backend_leaf),
            backend_leaf,
        )
        self.backend = server.challenge(stored, backend_leaf, self.bridge.mechanism, self.bridge.client_first)
        self.asked = self.bridge.challenge(self.backend.server_first)

    def answer(self, password: Secret = PENCIL) -> tuple[client.Answered, bridge.Answered]:
        answered = self.client.answer(self.asked.server_first, password)
        return answered, self.asked.answer(answered.client_final, self.held)


@given(leaves, leaves, st.sampled_from(["binds", "cannot bind"]), st.binary(max_size=20))
def test_whoever_knows_the_password_is_proved_on_both_legs(
    client_leaf: bytes | None, backend_leaf: bytes | None, driver: str, password: bytes
) -> None:
    verifier = Verifier.make(Secret(password), SALT, 1)
    legs = Legs(
        held=verifier,
        stored=verifier,
        client_leaf=client_leaf,
        seen=client_leaf if driver == "binds" else None,
        backend_leaf=backend_leaf,
    )
    assert legs.bridge.mechanism == (PLAIN if backend_leaf is None else PLUS)
    assert legs.asked.server_first == legs.backend.server_first
    answered, bridged = legs.answer(Secret(password))
    assert bridged.failure is None
    answered.check(bridged.verdict(legs.backend.verify(bridged.client_final, "alice")))


def test_without_binding_on_either_leg_nothing_is_changed() -> None:
    legs = Legs(client_leaf=None, seen=None, backend_leaf=None)
    answered, bridged = legs.answer()
    assert legs.bridge.client_first == legs.client.client_first
    assert bridged.client_final == answered.client_final
    server_final = legs.backend.verify(bridged.client_final, "alice")
    assert bridged.verdict(server_final) == server_final


def test_extensions_of_the_client_are_passed_on_and_signed() -> None:
    first = b"p=tls-server-end-point,,n=bob,r=abc,x=y"
    opened = bridge.begin(OURS, PLUS, first, [PLUS, PLAIN], THEIRS)
    assert opened.client_first == first
    assert bridge.begin(OURS, PLUS, first, [PLAIN], None).client_first == b"n,,n=bob,r=abc,x=y"


@pytest.mark.parametrize(
    ("held", "stored", "password", "failure"),
    [
        (VERIFIER, VERIFIER, b"wrong", Failure.WRONG_PROOF),
        (None, VERIFIER, b"pencil", Failure.UNKNOWN_USER),
        (None, VERIFIER, b"wrong", Failure.UNKNOWN_USER),
        (VERIFIER, Verifier.make(PENCIL, b"another salt", 2), b"pencil", Failure.STALE_VERIFIER),
        (VERIFIER, Verifier.make(PENCIL, SALT, 3), b"pencil", Failure.STALE_VERIFIER),
        (VERIFIER, Verifier.make(Secret(b"new"), SALT + b"!", 2), b"new", Failure.STALE_VERIFIER),
        (VERIFIER, Verifier.make(Secret(b"new"), SALT, 2), b"new", Failure.WRONG_PROOF),
        (OTHER_SALT, VERIFIER, b"pencil", Failure.STALE_VERIFIER),
    ],
)
@pytest.mark.parametrize("leaf", [None, OURS])
def test_whoever_cannot_be_proved_is_refused_by_the_backend(
    held: Verifier | None, stored: Verifier, password: bytes, failure: Failure, leaf: bytes | None
) -> None:
    """All of it looks the same from outside, until the backend has spoken."""
    legs = Legs(held=held, stored=stored, client_leaf=leaf, seen=leaf)
    proved = Legs(client_leaf=leaf, seen=leaf).answer()[1]
    _, bridged = legs.answer(Secret(password))
    assert bridged.failure is failure
    assert len(bridged.client_final) == len(proved.client_final)
    with pytest.raises(WrongProof):
        legs.backend.verify(bridged.client_final, "alice")


def test_a_random_proof_is_never_the_clients_own() -> None:
    """It would let somebody in whom a stale verifier does not know, where no leg binds."""
    legs = Legs(stored=Verifier.make(Secret(b"new"), SALT, 2), client_leaf=None, seen=None, backend_leaf=None)
    answered, bridged = legs.answer(Secret(b"new"))
    legs.backend.verify(answered.client_final, "alice")
    assert bridged.client_final != answered.client_final
    assert bridged.client_final != legs.asked.answer(answered.client_final, VERIFIER).client_final


def test_a_proof_can_be_held_against_a_verifier_that_came_later() -> None:
    """Once only has the client to answer, whatever was known of its password before."""
    legs = Legs(held=None)
    answered, bridged = legs.answer()
    assert bridged.failure is Failure.UNKNOWN_USER
    proved = legs.asked.answer(answered.client_final, VERIFIER)
    answered.check(proved.verdict(legs.backend.verify(proved.client_final, "alice")))


@pytest.mark.parametrize("held", [VERIFIER, None])
def test_a_backend_that_takes_a_random_proof_is_not_believed(held: Verifier | None) -> None:
    _, bridged = Legs(held=held).answer(Secret(b"wrong"))
    with pytest.raises(BackendMisbehaved, match="took a random SCRAM proof for right"):
        bridged.verdict(b"v=" + b"A" * 43 + b"=")


def test_a_backend_that_does_not_know_the_verifier_is_not_believed() -> None:
    half = Verifier(SALT, 2, VERIFIER.stored_key, Secret(secrets.token_bytes(32)))
    legs = Legs(stored=half)
    _, bridged = legs.answer()
    server_final = legs.backend.verify(bridged.client_final, "alice")
    with pytest.raises(BackendUnproved):
        bridged.verdict(server_final)


@pytest.mark.parametrize("held", [VERIFIER, None])
def test_a_client_that_saw_another_certificate_is_refused(held: Verifier | None) -> None:
    with pytest.raises(ChannelBindingFailed):
        Legs(held=held, seen=THEIRS).answer()


def test_a_client_from_whom_plus_was_hidden_is_refused() -> None:
    with pytest.raises(BindingNegotiationFailed):
        bridge.begin(OURS, PLAIN, b"y,,n=,r=abc", [PLUS, PLAIN], THEIRS)


@pytest.mark.parametrize(("mechanism", "leaf"), [(PLUS, None), ("", OURS), ("PLAIN", OURS)])
def test_a_mechanism_that_was_not_offered_to_the_client_is_refused(
    mechanism: str, leaf: bytes | None
) -> None:
    """Whatever the backend offers."""
    with pytest.raises(ProtocolViolation) as refused:
        bridge.begin(leaf, mechanism, b"n,,n=,r=abc", [PLUS, PLAIN], THEIRS)
    assert refused.value.reply == "client selected an invalid SASL authentication mechanism"


@pytest.mark.parametrize("held", [VERIFIER, None])
def test_a_proof_of_another_exchange_is_refused(held: Verifier | None) -> None:
    legs = Legs(held=held)
    answered, _ = Legs(held=held).answer()
    with pytest.raises(ProtocolViolation, match="Nonce does not match"):
        legs.asked.answer(answered.client_final, held)


@pytest.mark.parametrize(
    "server_first",
    [
        b"",
        b"r=abc,s=MDEyMw==,i=2",
        b"r=xyzserver,s=MDEyMw==,i=2",
        b"r=abcserver,s=,i=2",
        b"r=abcserver,s=MDEyMw==,i=%d" % (MAX_ITERATIONS + 1),
        b"r=abcserver,s=MDEyMw==,i=2,x=y",
    ],
)
def test_a_malformed_challenge_of_the_backend_goes_no_further(server_first: bytes) -> None:
    opened = bridge.begin(None, PLAIN, b"n,,n=,r=abc", [PLAIN], None)
    with pytest.raises(BackendMisbehaved):
        opened.challenge(server_first)


# With a real PostgreSQL as the backend.


@pytest.fixture(scope="module")
def cluster(certs: Certs) -> Iterator[Cluster]:
    with scram_cluster(certs) as cluster:
        yield cluster


def verifier_of(cluster: Cluster, role: str = USER) -> Verifier:
    return Verifier.parse(verifier_text(cluster, role))


def mechanism_and_response(initial: Message) -> tuple[str, bytes]:
    mechanism, _, rest = initial.body.partition(b"\0")
    return mechanism.decode(), rest[4:]


@pytest.mark.parametrize("backend_leg", ["clear", "TLS"])
@pytest.mark.parametrize("client_leaf", LEAVES)
def test_our_client_logs_in_at_postgresql_through_the_bridge(
    cluster: Cluster, certs: Certs, backend_leg: str, client_leaf: bytes | None
) -> None:
    is_tls = backend_leg == "TLS"
    leaf = end_point(certs.server) if is_tls else None
    ours = client.begin(offered(client_leaf), client_leaf)
    opened = bridge.begin(client_leaf, ours.mechanism, ours.client_first, MECHANISMS[is_tls], leaf)
    with dialogue(cluster, tls=is_tls) as talk:
        asked = opened.challenge(talk.initial_response(opened.mechanism, opened.client_first).body[4:])
        answered = ours.answer(asked.server_first, Secret(PASSWORD.encode()))
        bridged = asked.answer(answered.client_final, verifier_of(cluster))
        answered.check(bridged.verdict(talk.response(bridged.client_final).body[4:]))
        talk.finish()


@pytest.mark.parametrize(
    ("user", "password", "failure"),
    [
        (USER, "wrong", Failure.WRONG_PROOF),
        ("nobody", PASSWORD, Failure.UNKNOWN_USER),
        ("bob", "new", Failure.STALE_VERIFIER),
        ("bob", "bob-secret", Failure.STALE_VERIFIER),
    ],
)
def test_postgresql_itself_refuses_whoever_cannot_be_proved(
    cluster: Cluster, certs: Certs, user: str, password: str, failure: Failure
) -> None:
    """With its own words, and a line in its log."""
    held = None if user == "nobody" else verifier_of(cluster, user)
    if user == "bob":
        cluster.psql("ALTER ROLE bob PASSWORD 'new'")
    leaf = end_point(certs.server)
    ours = client.begin(MECHANISMS[True], OURS)
    opened = bridge.begin(OURS, ours.mechanism, ours.client_first, MECHANISMS[True], leaf)
    since = len(cluster.log_lines)
    with dialogue(cluster, tls=True, user=user) as talk:
        asked = opened.challenge(talk.initial_response(opened.mechanism, opened.client_first).body[4:])
        answered = ours.answer(asked.server_first, Secret(password.encode()))
        bridged = asked.answer(answered.client_final, held)
        refusal = verdict(talk.response(bridged.client_final))
    assert bridged.failure is failure
    assert refusal == ("28P01", f'password authentication failed for user "{user}"', None)
    cluster.wait_for_log(refusal[1], since=since)


def bridges(cluster: Cluster, own: bytes | None, backend: bytes | None) -> Callable[[Conversation], None]:
    """A script of the fake backend: the bridge to a real one, as a session would drive it."""

    def script(conversation: Conversation) -> None:
        user = conversation.accept()["user"]
        conversation.send(authentication_sasl(*offered(own)))
        mechanism, first = mechanism_and_response(conversation.read_message())
        listed = MECHANISMS[backend is not None]
        opened = bridge.begin(own, mechanism, first, listed, backend)
        with dialogue(cluster, tls=backend is not None, user=user) as talk:
            challenge = talk.initial_response(opened.mechanism, opened.client_first)
            asked = opened.challenge(challenge.body[4:])
            conversation.send(authentication(11, asked.server_first))
            bridged = asked.answer(conversation.read_message().body, verifier_of(cluster, user))
            verdict_message = talk.response(bridged.client_final)
            if verdict_message.kind == b"E":
                conversation.send(message(b"E", verdict_message.body))
                conversation.hang_up()
                return
            conversation.send(authentication(12, bridged.verdict(verdict_message.body[4:])))
            talk.finish()
        conversation.let_in()
        conversation.answer_queries()

    return script


def run_psql(psql: Psql, port: int, password: str, **words: str) -> subprocess.CompletedProcess[str]:
    place = {"host": "localhost", "hostaddr": "127.0.0.1", "port": str(port), "dbname": "db", "user": USER}
    return psql.run("SELECT 1", password=password, **place, **words)


@pytest.mark.parametrize("version", [15, 17])
@pytest.mark.parametrize("backend_leg", ["clear", "TLS"])
@pytest.mark.parametrize("words", ["disable disable", "require disable", "require prefer", "require require"])
def test_psql_logs_in_at_postgresql_through_the_bridge(
    cluster: Cluster,
    certs: Certs,
    fake_backend: FakeBackends,
    psql: Callable[[int], Psql],
    version: int,
    backend_leg: str,
    words: str,
) -> None:
    """With every `channel_binding`, although the two legs show two certificates."""
    sslmode, binding = words.split()
    own = certs.ca.server("localhost", "127.0.0.1", "proxy") if sslmode == "require" else None
    script = bridges(
        cluster, own and end_point(own), end_point(certs.server) if backend_leg == "TLS" else None
    )
    port = fake_backend(script, own, tls=own is not None).port
    done = run_psql(psql(version), port, PASSWORD, sslmode=sslmode, channel_binding=binding)
    assert (done.returncode, done.stderr) == (0, "")
    done = run_psql(psql(version), port, "wrong", sslmode=sslmode, channel_binding=binding)
    assert f'FATAL:  password authentication failed for user "{USER}"' in done.stderr


def test_psql_without_plus_in_the_list_logs_in_at_a_backend_that_has_it(
    cluster: Cluster, certs: Certs, fake_backend: FakeBackends, psql: Callable[[int], Psql]
) -> None:
    """It sends `y`, which the backend itself would refuse."""
    own = certs.ca.server("localhost", "127.0.0.1", "proxy")
    port = fake_backend(bridges(cluster, None, end_point(certs.server)), own).port
    done = run_psql(psql(17), port, PASSWORD, sslmode="require", channel_binding="prefer")
    assert (done.returncode, done.stderr) == (0, "")


def test_an_expired_password_is_refused_by_the_backend(
    cluster: Cluster, certs: Certs, fake_backend: FakeBackends, psql: Callable[[int], Psql]
) -> None:
    own = certs.ca.server("localhost", "127.0.0.1", "proxy")
    port = fake_backend(bridges(cluster, end_point(own), end_point(certs.server)), own).port
    cluster.psql(f"ALTER ROLE {USER} VALID UNTIL '2001-01-01'")
    try:
        done = run_psql(psql(17), port, PASSWORD, sslmode="require")
    finally:
        cluster.psql(f"ALTER ROLE {USER} VALID UNTIL 'infinity'")
    assert f'FATAL:  password authentication failed for user "{USER}"' in done.stderr
