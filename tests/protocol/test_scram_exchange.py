"""Our client against our server, and the client against servers that misbehave."""

import base64
import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgtlsproxy.errors import BackendMisbehaved, ProtocolViolation
from pgtlsproxy.identity import Secret
from pgtlsproxy.protocol.backend import BindingFlag
from pgtlsproxy.protocol.scram import client, server
from pgtlsproxy.protocol.scram.binding import Binding, choose, new_nonce, offered
from pgtlsproxy.protocol.scram.client import BackendUnproved
from pgtlsproxy.protocol.scram.keys import Keys, Verifier, encode_base64, fake_salt
from pgtlsproxy.protocol.scram.messages import (
    MAX_CLIENT_OCTETS,
    MAX_SERVER_NONCE_OCTETS,
    MAX_SERVER_OCTETS,
    BindingNegotiationFailed,
    ChannelBindingFailed,
)
from pgtlsproxy.protocol.scram.server import WrongProof

PLAIN, PLUS = "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"
LEAF = b"h" * 32
PENCIL = Secret(b"pencil")
VERIFIER = Verifier.make(PENCIL, b"0123456789abcdef", 2)

printable = st.text([chr(code) for code in range(0x21, 0x7F) if chr(code) != ","], min_size=1, max_size=40)
nonces = printable.map(str.encode)
leaves = st.none() | st.sampled_from([b"h" * 20, b"h" * 32, b"h" * 64])


def test_the_exchange_of_rfc_7677_is_answered_octet_by_octet() -> None:
    verifier = Verifier.make(PENCIL, base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="), 4096)
    asked = server.challenge(
        verifier, None, PLAIN, b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO", nonce=b"%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    )
    both = b"rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    assert asked.server_first == b"r=" + both + b",s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    final = b"c=biws,r=" + both + b",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    assert asked.verify(final, "user") == b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


@given(st.binary(max_size=40), st.binary(min_size=1, max_size=32), leaves, leaves, nonces, nonces)
def test_who_knows_the_password_is_let_in_and_knows_the_server(
    password: bytes,
    salt: bytes,
    server_leaf: bytes | None,
    client_leaf: bytes | None,
    client_nonce: bytes,
    server_nonce: bytes,
) -> None:
    """A client that binds sees the server's leaf; one that cannot bind is let in, too."""
    client_leaf = server_leaf and client_leaf and server_leaf
    verifier = Verifier.make(Secret(password), salt, 1)
    opened = client.begin(offered(server_leaf), client_leaf, nonce=client_nonce)
    assert opened.mechanism == (PLAIN if client_leaf is None else PLUS)
    asked = server.challenge(verifier, server_leaf, opened.mechanism, opened.client_first, nonce=server_nonce)
    for credential in (Secret(password), Keys.derive(Secret(password), salt, 1)):
        answered = opened.answer(asked.server_first, credential)
        answered.check(asked.verify(answered.client_final, "alice"))


@given(st.binary(max_size=8), st.binary(max_size=8), leaves)
def test_who_does_not_know_the_password_is_refused(right: bytes, wrong: bytes, leaf: bytes | None) -> None:
    verifier = Verifier.make(Secret(right), b"salt", 1)
    if Verifier.make(Secret(wrong), b"salt", 1) == verifier:
        return
    opened = client.begin(offered(leaf), leaf)
    asked = server.challenge(verifier, leaf, opened.mechanism, opened.client_first)
    with pytest.raises(WrongProof) as refused:
        asked.verify(opened.answer(asked.server_first, Secret(wrong)).client_final, "alice")
    assert (refused.value.sqlstate, refused.value.reply) == (
        "28P01",
        'password authentication failed for user "alice"',
    )


def test_an_unknown_user_is_refused_in_the_same_words() -> None:
    salt = fake_salt(Secret(b"m" * 32), "mallory")
    nobody = Verifier(salt, 4096, Secret(secrets.token_bytes(32)), Secret(secrets.token_bytes(32)))
    opened = client.begin(offered(LEAF), LEAF)
    asked = server.challenge(nobody, LEAF, opened.mechanism, opened.client_first)
    with pytest.raises(WrongProof) as refused:
        asked.verify(opened.answer(asked.server_first, PENCIL).client_final, "mallory")
    assert refused.value.reply == 'password authentication failed for user "mallory"'


def test_a_client_that_saw_another_certificate_is_refused() -> None:
    opened = client.begin(offered(LEAF), b"x" * 32)
    asked = server.challenge(VERIFIER, LEAF, opened.mechanism, opened.client_first)
    with pytest.raises(ChannelBindingFailed) as refused:
        asked.verify(opened.answer(asked.server_first, PENCIL).client_final, "alice")
    assert (refused.value.sqlstate, refused.value.reply) == ("28000", "SCRAM channel binding check failed")


def test_a_client_from_whom_plus_was_hidden_is_refused() -> None:
    opened = client.begin([PLAIN], LEAF)
    with pytest.raises(BindingNegotiationFailed):
        server.challenge(VERIFIER, LEAF, opened.mechanism, opened.client_first)


@pytest.mark.parametrize("mechanism", ["", "PLAIN", "OAUTHBEARER", "scram-sha-256", PLUS])
def test_a_mechanism_that_was_not_offered_is_refused(mechanism: str) -> None:
    with pytest.raises(ProtocolViolation) as refused:
        server.challenge(VERIFIER, None, mechanism, b"n,,n=,r=abc")
    assert refused.value.reply == "client selected an invalid SASL authentication mechanism"


def test_a_proof_counts_in_its_own_exchange_alone() -> None:
    opened = client.begin([PLAIN], None)
    first, second = (server.challenge(VERIFIER, None, PLAIN, opened.client_first) for _ in range(2))
    answered = opened.answer(first.server_first, PENCIL)
    with pytest.raises(ProtocolViolation, match="Nonce does not match"):
        second.verify(answered.client_final, "alice")


@pytest.mark.parametrize(
    ("mechanisms", "leaf", "mechanism", "attribute"),
    [
        ([PLUS, PLAIN], LEAF, PLUS, encode_base64(b"p=tls-server-end-point,," + LEAF)),
        ([PLUS], LEAF, PLUS, encode_base64(b"p=tls-server-end-point,," + LEAF)),
        ([PLAIN], LEAF, PLAIN, b"eSws"),
        ([PLUS, PLAIN], None, PLAIN, b"biws"),
        ([PLAIN], None, PLAIN, b"biws"),
        (["OAUTHBEARER", PLAIN], None, PLAIN, b"biws"),
    ],
)
def test_the_best_mechanism_is_chosen_that_the_leg_allows(
    mechanisms: list[str], leaf: bytes | None, mechanism: str, attribute: bytes
) -> None:
    binding = choose(mechanisms, leaf)
    assert (binding.mechanism, binding.attribute) == (mechanism, attribute)


@pytest.mark.parametrize("mechanisms", [[], ["OAUTHBEARER", "\x1b[2J"], [PLUS]])
def test_a_list_of_which_nothing_can_be_used_is_refused(mechanisms: list[str]) -> None:
    with pytest.raises(BackendMisbehaved, match="none of the backend's SASL mechanisms") as refused:
        choose(mechanisms, None)
    assert "\x1b" not in refused.value.reason


def test_nonces_are_as_libpqs_and_never_the_same() -> None:
    made = {new_nonce() for _ in range(100)}
    assert len(made) == 100
    assert all(len(base64.b64decode(nonce, validate=True)) == 18 for nonce in made)


NONCE = b"clientnonce"
FIRST = b"r=clientnonceSERVER,s=MDEyMzQ1Njc4OWFiY2RlZg==,i=2"


def test_a_well_formed_challenge_is_answered() -> None:
    client.begin([PLAIN], None, nonce=NONCE).answer(FIRST, PENCIL)


@pytest.mark.parametrize(
    ("server_first", "problem"),
    [
        (b"", "The message is empty"),
        (FIRST + b"\0", "length does not match"),
        (b"x" * (MAX_SERVER_OCTETS + 1), f"expected {MAX_SERVER_OCTETS} at most"),
        (b"e=other-error", "Expected attribute"),
        (b"m=x," + FIRST, "Expected attribute"),
        (b"r" + FIRST[2:], 'Expected character "="'),
        (b"r=clientnonce,s=MDEyMw==,i=2", "nonce of 11 octets, expected 11 and"),
        (b"r=SERVERclientnonce,s=MDEyMw==,i=2", "nonce mismatch"),
        (b"r=clientnoncf12,s=MDEyMw==,i=2", "nonce mismatch"),
        (b"r=client,s=MDEyMw==,i=2", "nonce of 6 octets"),
        (b"r=,s=MDEyMw==,i=2", "nonce of 0 octets"),
        (b"r=clientnonce\x7f,s=MDEyMw==,i=2", "printable"),
        (b"r=clientnonce" + b"S" * (MAX_SERVER_NONCE_OCTETS + 1) + b",s=MDEyMw==,i=2", "nonce of"),
        (b"r=clientnonceS,i=2", "Expected attribute"),
        (b"r=clientnonceS,i=2,s=MDEyMw==", "Expected attribute"),
        (b"r=clientnonceS,s=,i=2", "a salt of 0 octets"),
        (b"r=clientnonceS,s=MDEyMw,i=2", "invalid salt"),
        (b"r=clientnonceS,s=" + base64.b64encode(b"s" * 129) + b",i=2", "a salt of 129 octets"),
        (b"r=clientnonceS,s=MDEyMw==", "Expected attribute"),
        (b"r=clientnonceS,s=MDEyMw==,i=", "invalid iteration count"),
        (b"r=clientnonceS,s=MDEyMw==,i=0", "invalid iteration count"),
        (b"r=clientnonceS,s=MDEyMw==,i=-1", "invalid iteration count"),
        (b"r=clientnonceS,s=MDEyMw==,i= 1", "invalid iteration count"),
        (b"r=clientnonceS,s=MDEyMw==,i=1x", "invalid iteration count"),
        (b"r=clientnonceS,s=MDEyMw==,i=" + b"9" * 1500, "invalid iteration count"),
        (b"r=clientnonceS,s=MDEyMw==,i=1000000000", "expected 100000 at most"),
        (b"r=clientnonceS,s=MDEyMw==,i=100001", "expected 100000 at most"),
        (FIRST + b",x=y", "garbage"),
    ],
)
def test_a_malformed_challenge_is_refused(server_first: bytes, problem: str) -> None:
    with pytest.raises(BackendMisbehaved, match=problem):
        client.begin([PLAIN], None, nonce=NONCE).answer(server_first, PENCIL)


@pytest.mark.parametrize(
    ("server_final", "problem"),
    [
        (b"", "The message is empty"),
        (b"v", 'Expected character "="'),
        (b"v=", "invalid server signature"),
        (b"v=MDEyMw==", "invalid server signature"),
        (b"v=" + base64.b64encode(b"v" * 33), "invalid server signature"),
        (b"v=!", "invalid server signature"),
        (b"e=invalid-proof", "the error invalid-proof"),
        (b"e=\x1b[2J", r"the error \\x1b\[2J"),
        (b"r=abc", "Expected attribute"),
        (b"v=" + base64.b64encode(b"v" * 32) + b",x=y", "garbage"),
    ],
)
def test_a_malformed_verdict_is_refused(server_final: bytes, problem: str) -> None:
    answered = client.begin([PLAIN], None, nonce=NONCE).answer(FIRST, PENCIL)
    with pytest.raises(BackendMisbehaved, match=problem) as refused:
        answered.check(server_final)
    assert not isinstance(refused.value, BackendUnproved)


def test_a_server_that_does_not_know_the_verifier_is_found_out() -> None:
    answered = client.begin([PLAIN], None, nonce=NONCE).answer(FIRST, PENCIL)
    with pytest.raises(BackendUnproved):
        answered.check(b"v=" + base64.b64encode(b"v" * 32))


@given(
    st.binary(max_size=60) | st.text("npy=,ar \0mtls-server-end-point", max_size=60).map(str.encode), leaves
)
def test_no_first_message_is_a_bug(message: bytes, leaf: bytes | None) -> None:
    for mechanism in offered(leaf):
        try:
            asked = server.challenge(VERIFIER, leaf, mechanism, message)
        except (ProtocolViolation, ChannelBindingFailed):
            continue
        assert asked.server_first.startswith(b"r=")


@given(st.binary(max_size=60) | st.text("crp=,biwsx \0", max_size=60).map(str.encode))
def test_no_last_message_is_a_bug_or_a_proof(message: bytes) -> None:
    asked = server.challenge(VERIFIER, None, PLAIN, b"n,,n=,r=x", nonce=b"x")
    with pytest.raises((ProtocolViolation, WrongProof)):
        asked.verify(message, "alice")


def test_messages_are_taken_up_to_their_limit() -> None:
    longest = b"n,,n=,r=" + b"x" * (MAX_CLIENT_OCTETS - 8)
    server.challenge(VERIFIER, None, PLAIN, longest)
    with pytest.raises(ProtocolViolation) as refused:
        server.challenge(VERIFIER, None, PLAIN, longest + b"x")
    assert refused.value.reply == "invalid message length"


def test_a_binding_shows_no_hash() -> None:
    assert repr(Binding(BindingFlag.USED, LEAF)) == "Binding(flag=<BindingFlag.USED: 'p'>)"
