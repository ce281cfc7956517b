"""SCRAM against a real PostgreSQL and real clients: who is let in, and what is said to whoever is not."""

import base64
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fixtures.certs import Certs
from fixtures.clients import Psql
from fixtures.fake_backend import Conversation, FakeBackends
from fixtures.scram_servers import (
    MECHANISMS,
    PASSWORD,
    USER,
    Dialogue,
    dialogue,
    end_point,
    scram_cluster,
    verdict,
    verifier_text,
)
from fixtures.wire import Message, authentication, authentication_sasl, error_response
from pgtlsproxy.demo.postgres import Cluster
from pgtlsproxy.errors import ProxyError
from pgtlsproxy.identity import Secret
from pgtlsproxy.protocol.scram import client, server
from pgtlsproxy.protocol.scram.binding import offered
from pgtlsproxy.protocol.scram.keys import Keys, Verifier, encode_base64

PLAIN, PLUS = "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"


@pytest.fixture(scope="module")
def cluster(certs: Certs) -> Iterator[Cluster]:
    with scram_cluster(certs) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def verifier(cluster: Cluster) -> Verifier:
    return Verifier.parse(verifier_text(cluster))


# Our client, PostgreSQL's server.


@contextmanager
def opened(
    cluster: Cluster, certs: Certs, leg: str, user: str = USER
) -> Iterator[tuple[Dialogue, client.Opened]]:
    """Our client, begun: `clear`, `TLS` where it binds, or `TLS, unbound`."""
    leaf = end_point(certs.server) if leg == "TLS" else None
    with dialogue(cluster, tls=leg != "clear", user=user) as talk:
        yield talk, client.begin(MECHANISMS[leg != "clear"], leaf)


@pytest.mark.parametrize(("leg", "mechanism"), [("clear", PLAIN), ("TLS", PLUS), ("TLS, unbound", PLAIN)])
@pytest.mark.parametrize("by", ["password", "keys"])
def test_our_client_logs_in_at_postgresql(
    cluster: Cluster, certs: Certs, verifier: Verifier, leg: str, mechanism: str, by: str
) -> None:
    password = Secret(PASSWORD.encode())
    keys = Keys.derive(password, verifier.salt, verifier.iterations)
    with opened(cluster, certs, leg) as (talk, ours):
        assert ours.mechanism == mechanism
        asked = talk.initial_response(ours.mechanism, ours.client_first)
        answered = ours.answer(asked.body[4:], keys if by == "keys" else password)
        answered.check(talk.response(answered.client_final).body[4:])
        talk.finish()


@pytest.mark.parametrize("password", ["\ufb01sh\u00a0chips", "caf\u00e9", "\u05d0b", "x" * 2000])
def test_our_client_logs_in_with_a_password_of_any_letters(
    cluster: Cluster, certs: Certs, password: str
) -> None:
    cluster.psql(f"ALTER ROLE bob PASSWORD '{password}'")
    with opened(cluster, certs, "clear", "bob") as (talk, ours):
        asked = talk.initial_response(ours.mechanism, ours.client_first)
        answered = ours.answer(asked.body[4:], Secret(password.encode()))
        answered.check(talk.response(answered.client_final).body[4:])
        talk.finish()


@pytest.mark.parametrize(
    ("user", "password"), [(USER, "wrong"), (USER, ""), ("nobody", PASSWORD), (USER, PASSWORD + " ")]
)
def test_a_wrong_password_is_refused_by_our_server_as_by_postgresql(
    cluster: Cluster, certs: Certs, verifier: Verifier, user: str, password: str
) -> None:
    known = verifier if user == USER else Verifier(b"s" * 16, 4096, Secret(b"?" * 32), Secret(b"?" * 32))
    with opened(cluster, certs, "TLS", user) as (talk, ours):
        asked = talk.initial_response(ours.mechanism, ours.client_first)
        answered = ours.answer(asked.body[4:], Secret(password.encode()))
        theirs = verdict(talk.response(answered.client_final))
    asked_here = server.challenge(known, end_point(certs.server), ours.mechanism, ours.client_first)
    with pytest.raises(server.WrongProof) as refused:
        asked_here.verify(ours.answer(asked_here.server_first, Secret(password.encode())).client_final, user)
    assert theirs == (refused.value.sqlstate, refused.value.reply, None)


# Malformed messages: the same to PostgreSQL and to our server.

FIRST_MESSAGES = [
    *((PLAIN, text) for text in (
        b"", b"n", b"n,", b"n,,", b"n,,n", b"n,,n=", b"n,,n=,", b"n,,n=,r", b"n,,n=,r=", b"n,,n=,r=abc",
        b"n,,n=,r=abc,", b"n,,n=user,r=abc", b"n,,r=abc,n=", b"n,,n=,n=,r=abc", b"n,,n=,r=abc,x=y",
        b"n,,n=,r=abc,xy", b"n,,n=,r=abc,1=y", b"n,,n=,r=abc,,", b"n,,n=,r=abc,\xff=y", b"n,,n=,r=abc,x=\xff",
        b"n,,n=,r=a c", b"n,,n=,r=a\x7fc", b"n,,n=,r=\xc3\xa9", b"n,,n=,r=abc\0", b"\0", b"n\0,n=,r=abc",
        b"n,a=bob,n=,r=abc", b"n,a,n=,r=abc", b"n,b=bob,n=,r=abc", b"n,\x01,n=,r=abc", b"nn,n=,r=abc",
        b"n;,n=,r=abc", b"n,,m=ext,n=,r=abc", b"n,,m", b"n,,n=,m=ext,r=abc", b"N,,n=,r=abc", b"x,,n=,r=abc",
        b" n,,n=,r=abc", b"\xff,,n=,r=abc", b",,n=,r=abc", b"y,,n=,r=abc", b"y", b"y,a=bob,n=,r=abc",
        b"yy,n=,r=abc", b"p=tls-server-end-point,,n=,r=abc", b"p", b"p,,n=,r=abc",
    )),
    *((PLUS, text) for text in (
        b"n,,n=,r=abc", b"y,,n=,r=abc", b"n", b"p", b"p,", b"p=", b"p=,", b"p=,,n=,r=abc",
        b"p=tls-server-end-point", b"p=tls-server-end-point,", b"p=tls-server-end-point,,n=,r=abc",
        b"p=tls-server-end-point,a=x,n=,r=abc", b"p=tls-server-end-point,,m=x,n=,r=abc",
        b"p=tls-server-end-point,x,n=,r=abc", b"p=tls-unique,,n=,r=abc", b"p=tls-exporter,,n=,r=abc",
        b"p=TLS-server-end-point,,n=,r=abc", b"p=\x1b[2J\xff, ,n=", b"p=" + b"x" * 31 + b",,n=,r=abc",
        b"p=tls-server-end-point ,,n=,r=abc", b"p=tls-server-end-point,,n=",
    )),
    ("PLAIN", b"n,,n=,r=abc"), ("scram-sha-256", b"n,,n=,r=abc"), ("", b"n,,n=,r=abc"),
    ("SCRAM-SHA-256 ", b"n,,n=,r=abc"), ("OAUTHBEARER", b"n,,\x01auth=\x01\x01"),
]  # fmt: skip


Verdict = tuple[str | None, str, str | None]


def ours_of(error: ProxyError) -> Verdict:
    return error.sqlstate, error.reply, getattr(error, "detail", None)


def our_answer(verifier: Verifier, leaf: bytes | None, mechanism: str, message: bytes) -> bytes | Verdict:
    try:
        return server.challenge(verifier, leaf, mechanism, message).server_first
    except ProxyError as error:
        return ours_of(error)


def without_nonce(server_first: bytes) -> tuple[bytes, bytes]:
    """What stands around the server's own part of the nonce, which is random."""
    nonce, _, rest = server_first.partition(b",")
    return nonce[:-24], rest


def assert_first_answered_alike(
    cluster: Cluster, certs: Certs, verifier: Verifier, mechanism: str, message: bytes, leg: str
) -> None:
    leaf = end_point(certs.server) if leg == "TLS" else None
    with dialogue(cluster, tls=leg == "TLS") as talk:
        theirs = talk.initial_response(mechanism, message)
    ours = our_answer(verifier, leaf, mechanism, message)
    if isinstance(ours, bytes):
        assert theirs.kind == b"R", theirs.fields
        assert without_nonce(theirs.body[4:]) == without_nonce(ours)
    else:
        assert theirs.kind == b"E", ours
        assert verdict(theirs) == ours


@pytest.mark.parametrize(("mechanism", "message"), FIRST_MESSAGES)
@pytest.mark.parametrize("leg", ["clear", "TLS"])
def test_a_first_message_has_postgresqls_answer(
    cluster: Cluster, certs: Certs, verifier: Verifier, mechanism: str, message: bytes, leg: str
) -> None:
    assert_first_answered_alike(cluster, certs, verifier, mechanism, message, leg)


pieces = st.sampled_from(
    [
        b"n",
        b"y",
        b"p",
        b"p=",
        b"=",
        b",",
        b"a",
        b"m=",
        b"n=",
        b"r=",
        b"x=",
        b"tls-server-end-point",
        b"\xe9",
        b" ",
    ]
)


@given(
    st.lists(pieces | st.binary(min_size=1, max_size=2), max_size=10).map(b"".join),
    st.sampled_from([PLAIN, PLUS]),
)
@example(b"p=tls-server-end-point,,n=,r=", PLUS)
@settings(max_examples=150, deadline=None)
def test_any_first_message_has_postgresqls_answer(
    cluster: Cluster, certs: Certs, verifier: Verifier, message: bytes, mechanism: str
) -> None:
    leg = "TLS" if mechanism == PLUS else "clear"
    assert_first_answered_alike(cluster, certs, verifier, mechanism, message, leg)


PROOF = b"p=" + base64.b64encode(b"p" * 32)

FINAL_MESSAGES = [
    b"", b"\0", b"c", b"c=", b"C=%c", b"c=%c", b"c=%c,", b"c=%c,r", b"c=%c,r=", b"c=%c,r=%n", b"c=%c,r=%n,",
    b"c=%c,r=%n,p", b"c=%c,r=%n,p=", b"c=%c,r=%n,p=AAAA", b"c=%c,r=%n," + PROOF, b"c=%c,r=%n," + PROOF + b",",
    b"c=%c,r=%n," + PROOF + b",x=y", b"c=%c,r=%n," + PROOF + b",,", b"c=%c,r=%n," + PROOF + b"\0",
    b"c=%c,r=%n,x=y," + PROOF, b"c=%c,r=%n,xy," + PROOF, b"c=%c,r=%n,1=y," + PROOF, b"c=%c,r=%n,,",
    b"c=%c,r=%n,x=\xff," + PROOF, b"c=%c,r=%n,\xff=x," + PROOF, b"c=%c,r=%n,m=x," + PROOF, b"c=%c,x=y,r=%n",
    b"c=%c,r=%nx," + PROOF, b"c=%c,r=x%n," + PROOF, b"c=%c,r=abc," + PROOF, b"c=%c,r=," + PROOF,
    b"c=%c,r=%n,p=" + base64.b64encode(b"p" * 31), b"c=%c,r=%n,p=" + base64.b64encode(b"p" * 33),
    b"c=%c,r=%n,p=" + base64.b64encode(b"p" * 32).rstrip(b"="), b"c=%c,r=%n,p=%%%%",
    b"c=%c,r=%n,p=\xff", b"c=%cA,r=%n," + PROOF, b"c=biws,r=%n," + PROOF, b"c=eSws,r=%n," + PROOF,
    b"c=bi ws,r=%n," + PROOF, b"r=%n,c=%c," + PROOF, b"p=,c=%c", b"c=,r=%n," + PROOF, b"c=\xff,r=%n," + PROOF,
]  # fmt: skip


@pytest.mark.parametrize("template", FINAL_MESSAGES)
@pytest.mark.parametrize("flag", [b"n,,", b"y,,", b"p=tls-server-end-point,,"])
def test_a_final_message_has_postgresqls_answer(
    cluster: Cluster, certs: Certs, verifier: Verifier, template: bytes, flag: bytes
) -> None:
    """In each message %n stands for the nonce and %c for the right channel binding."""
    leaf = end_point(certs.server) if flag.startswith(b"p") else None
    mechanism = PLUS if leaf else PLAIN
    bare = b"n=,r=abc"

    def filled(server_first: bytes) -> bytes:
        nonce = server_first[2:].partition(b",")[0]
        return template.replace(b"%n", nonce).replace(b"%c", encode_base64(flag + (leaf or b"")))

    with dialogue(cluster, tls=leaf is not None) as talk:
        theirs = talk.response(filled(talk.initial_response(mechanism, flag + bare).body[4:]))
    asked = server.challenge(verifier, leaf, mechanism, flag + bare)
    with pytest.raises(ProxyError) as refused:
        asked.verify(filled(asked.server_first), USER)
    assert verdict(theirs) == ours_of(refused.value)


# libpq's client, our server.


def initial_response(message: Message) -> tuple[str, bytes]:
    mechanism, _, rest = message.body.partition(b"\0")
    return mechanism.decode(), rest[4:]


def asks(leaf: bytes | None, verifier: Verifier) -> Callable[[Conversation], None]:
    """A script of the fake backend: our server, with this leaf and verifier."""

    def script(conversation: Conversation) -> None:
        user = conversation.accept()["user"]
        conversation.send(authentication_sasl(*offered(leaf)))
        try:
            asked = server.challenge(verifier, leaf, *initial_response(conversation.read_message()))
            conversation.send(authentication(11, asked.server_first))
            final = asked.verify(conversation.read_message().body, user)
        except ProxyError as error:
            conversation.send(error_response(error.sqlstate or "", error.reply))
            conversation.hang_up()
            return
        conversation.send(authentication(12, final))
        conversation.let_in()
        conversation.answer_queries()

    return script


def run_psql(psql: Psql, port: int, **words: str) -> subprocess.CompletedProcess[str]:
    return psql.run(
        "SELECT 1", host="localhost", hostaddr="127.0.0.1", port=port, dbname="db", user=USER, **words
    )


@pytest.mark.parametrize("version", [15, 17])
@pytest.mark.parametrize(
    ("sslmode", "binding"),
    [
        ("disable", "disable"),
        ("disable", "prefer"),
        ("require", "disable"),
        ("require", "prefer"),
        ("require", "require"),
    ],
)
def test_psql_logs_in_at_our_server(
    fake_backend: FakeBackends,
    certs: Certs,
    psql: Callable[[int], Psql],
    verifier: Verifier,
    version: int,
    sslmode: str,
    binding: str,
) -> None:
    is_tls = sslmode == "require"
    leaf = end_point(certs.server) if is_tls else None
    backend = fake_backend(asks(leaf, verifier), certs.server if is_tls else None, tls=is_tls)
    words = {"sslmode": sslmode, "channel_binding": binding}
    done = run_psql(psql(version), backend.port, password=PASSWORD, **words)
    assert (done.returncode, done.stderr) == (0, "")
    done = run_psql(psql(version), backend.port, password="wrong", **words)
    assert f'FATAL:  password authentication failed for user "{USER}"' in done.stderr


def test_psql_finds_out_a_server_that_does_not_know_its_verifier(
    fake_backend: FakeBackends, psql: Callable[[int], Psql], verifier: Verifier
) -> None:
    half = Verifier(verifier.salt, verifier.iterations, verifier.stored_key, Secret(b"?" * 32))
    backend = fake_backend(asks(None, half), tls=False)
    done = run_psql(psql(17), backend.port, password=PASSWORD, sslmode="disable")
    assert "incorrect server signature" in done.stderr


@pytest.mark.parametrize(("leaf", "problem"), [(b"x" * 32, "channel binding check failed"), (None, "")])
def test_psql_is_held_to_the_certificate_that_it_saw(
    fake_backend: FakeBackends,
    certs: Certs,
    psql: Callable[[int], Psql],
    verifier: Verifier,
    leaf: bytes | None,
    problem: str,
) -> None:
    """Another leaf than the one it saw is refused; where none can be bound, PLUS is not offered, and `y` is right."""
    backend = fake_backend(asks(leaf, verifier), certs.server)
    done = run_psql(psql(17), backend.port, password=PASSWORD, sslmode="require")
    assert problem in done.stderr
    assert (done.returncode == 0) == (problem == "")
