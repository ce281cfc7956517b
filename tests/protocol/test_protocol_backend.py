import contextlib
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgtlsproxy.errors import BackendMisbehaved, ProtocolViolation
from pgtlsproxy.identity import Challenge
from pgtlsproxy.protocol.backend import (
    BindingFlag,
    LoginExchange,
    Outcome,
    without_channel_binding,
)
from pgtlsproxy.protocol.messages import Message, encode_sasl_mechanisms

PLAIN, PLUS, OAUTH = "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS", "OAUTHBEARER"


def request(code: int, data: bytes = b"") -> Message:
    return Message(b"R", struct.pack("!I", code) + data)


def sasl(*mechanisms: str) -> Message:
    return Message(b"R", encode_sasl_mechanisms(mechanisms)[5:])


def p(body: bytes = b"x\x00") -> Message:
    return Message(b"p", body)


def initial(mechanism: str, response: bytes | None) -> Message:
    length = -1 if response is None else len(response)
    return p(mechanism.encode() + b"\x00" + struct.pack("!i", length) + (response or b""))


OK, CLEARTEXT, MD5, GSS, SSPI = request(0), request(3), request(5, b"salt"), request(7), request(9)
GSS_CONTINUE, CONTINUE, FINAL = request(8, b"token"), request(11, b"r=,s=,i=1"), request(12, b"v=")
FIRST = initial(PLAIN, b"n,,n=,r=x")
LAST = p(b"c=biws,r=x,p=y")

SCRAM = [sasl(PLAIN), FIRST, CONTINUE, LAST, FINAL]


def after(*messages: Message) -> LoginExchange:
    """An exchange that has taken these messages: `p` from the client, all else from the backend."""
    exchange = LoginExchange()
    for message in messages:
        feed(exchange, message)
    return exchange


def feed(exchange: LoginExchange, message: Message) -> None:
    if message.type == b"p":
        exchange.client_message(message)
    elif message.type == b"R":
        exchange.authentication(message)
    else:
        exchange.other(message)


@pytest.mark.parametrize(
    ("messages", "challenge"),
    [
        ([CLEARTEXT, p()], Challenge.CLEARTEXT),
        ([MD5, p()], Challenge.MD5),
        ([GSS, p()], Challenge.GSS),
        ([GSS, p(), GSS_CONTINUE], Challenge.GSS),
        ([GSS, p(), GSS_CONTINUE, p()], Challenge.GSS),
        ([GSS, p(), GSS_CONTINUE, p(), GSS_CONTINUE], Challenge.GSS),
        ([SSPI, p(), GSS_CONTINUE], Challenge.GSS),
        (SCRAM, Challenge.SCRAM),
        ([sasl(PLUS, PLAIN), initial(PLUS, b"p=tls-server-end-point,,n=,r=x"), *SCRAM[2:]], Challenge.SCRAM),
        ([sasl(PLAIN), initial(PLAIN, None), CONTINUE, p(b"n,,n=,r=x"), *SCRAM[2:]], Challenge.SCRAM),
        ([sasl(OAUTH, PLAIN), *SCRAM[1:]], Challenge.SCRAM),
        ([sasl(OAUTH), initial(OAUTH, b"n,,\x01auth=Bearer t\x01\x01")], Challenge.OTHER_SASL),
        ([sasl(OAUTH), initial(OAUTH, b"n,,\x01auth=\x01\x01"), CONTINUE, p(b"\x01")], Challenge.OTHER_SASL),
        ([sasl("X"), initial("X", b""), CONTINUE, p(b""), FINAL], Challenge.OTHER_SASL),
    ],
)
def test_a_challenge_that_the_client_answered_is_finished_by_authentication_ok(
    messages: list[Message], challenge: Challenge
) -> None:
    exchange = after(*messages)
    assert exchange.outcome == Outcome(challenge, is_answered=True, is_finished=False)
    assert not exchange.is_authenticated
    feed(exchange, OK)
    assert exchange.outcome == Outcome(challenge, is_answered=True, is_finished=True)
    assert exchange.is_authenticated


def test_an_unasked_authentication_ok_shows_nothing() -> None:
    exchange = after(OK)
    assert exchange.is_authenticated
    assert exchange.outcome == Outcome(Challenge.NONE, is_answered=False, is_finished=False)


@pytest.mark.parametrize(
    ("messages", "misbehaviour"),
    [
        # without the client's answer
        *[([asked], OK) for asked in (CLEARTEXT, MD5, GSS, SSPI, sasl(PLAIN), sasl(OAUTH))],
        ([sasl(PLAIN)], CONTINUE),
        ([sasl(PLAIN)], FINAL),
        ([sasl(PLAIN), FIRST, CONTINUE], OK),
        ([sasl(PLAIN), FIRST, CONTINUE], FINAL),
        ([sasl(OAUTH), initial(OAUTH, b"x"), CONTINUE], OK),
        ([GSS], GSS_CONTINUE),
        # in the middle of a SCRAM exchange
        ([sasl(PLAIN), FIRST], OK),
        ([sasl(PLAIN), FIRST], FINAL),
        ([sasl(PLAIN), initial(PLAIN, None)], FINAL),
        ([sasl(PLAIN), initial(PLAIN, None), CONTINUE, p(b"n,,n=,r=x")], FINAL),
        ([sasl(PLAIN), FIRST, CONTINUE, LAST], OK),
        ([sasl(PLAIN), FIRST, CONTINUE, LAST], CONTINUE),
        ([sasl(OAUTH, PLAIN), FIRST], OK),
        # a second beginning
        ([sasl(PLAIN), FIRST], sasl(PLAIN)),
        ([sasl(PLAIN), FIRST, CONTINUE, LAST], sasl(PLAIN)),
        ([MD5, p()], CLEARTEXT),
        ([MD5, p()], MD5),
        ([CLEARTEXT, p()], sasl(PLAIN)),
        ([GSS, p()], CLEARTEXT),
        # what goes on with nothing
        ([], CONTINUE),
        ([], FINAL),
        ([], GSS_CONTINUE),
        ([CLEARTEXT, p()], CONTINUE),
        ([CLEARTEXT, p()], FINAL),
        ([CLEARTEXT, p()], GSS_CONTINUE),
        ([sasl(PLAIN), FIRST], GSS_CONTINUE),
        ([GSS, p()], CONTINUE),
        ([GSS, p(), GSS_CONTINUE], GSS_CONTINUE),
        # after the end
        (SCRAM, FINAL),
        (SCRAM, CONTINUE),
        (SCRAM, sasl(PLAIN)),
        ([OK], OK),
        ([OK], CLEARTEXT),
        ([*SCRAM, OK], OK),
        # what nobody asks for
        *[([], request(code)) for code in (1, 2, 4, 6, 13, 99, 0xFFFFFFFF)],
        ([], Message(b"R", b"")),
        ([], request(10, b"\x00")),
    ],
)
def test_a_backend_that_leaves_the_order_has_misbehaved(
    messages: list[Message], misbehaviour: Message
) -> None:
    exchange = after(*messages)
    before = exchange.outcome
    with pytest.raises(BackendMisbehaved):
        exchange.authentication(misbehaviour)
    assert exchange.outcome == before


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [MD5, p()],
        [sasl(PLAIN), FIRST],
        SCRAM,
        [OK],
        [GSS, p(), GSS_CONTINUE, p()],
        [OK, Message(b"Z", b"I")],
    ],
)
def test_a_client_that_speaks_out_of_turn_proves_nothing(messages: list[Message]) -> None:
    exchange = after(*messages)
    before = exchange.outcome
    with pytest.raises(ProtocolViolation):
        exchange.client_message(p())
    assert exchange.outcome == before


def test_whose_turn_it_is() -> None:
    exchange = LoginExchange()
    turns = []
    for message in [GSS, p(), GSS_CONTINUE, OK]:
        turns.append((exchange.is_client_turn, exchange.may_client_answer))
        feed(exchange, message)
    assert turns == [(False, False), (True, True), (False, False), (False, True)]
    assert (exchange.is_client_turn, exchange.may_client_answer) == (False, False)


@pytest.mark.parametrize(
    ("challenge", "awaited"),
    [
        (CLEARTEXT, "password"),
        (MD5, "password"),
        (GSS, "GSS"),
        (SSPI, "GSS"),
        (sasl(PLAIN), "SASL"),
        (sasl(OAUTH), "SASL"),
    ],
)
def test_what_is_awaited_is_named_in_postgresqls_words(challenge: Message, awaited: str) -> None:
    assert after(challenge).awaited == awaited


def test_what_a_backend_asked_is_given_back() -> None:
    assert LoginExchange().authentication(sasl(PLUS, PLAIN)).mechanisms == (PLUS, PLAIN)
    assert after(MD5).last_code == 5
    assert LoginExchange().last_code is None


# SASLInitialResponse and the first SCRAM message


@pytest.mark.parametrize(
    ("mechanism", "first", "flag"),
    [
        (PLAIN, b"n,,n=,r=x", BindingFlag.NOT_SUPPORTED),
        (PLAIN, b"y,,n=,r=x", BindingFlag.NOT_OFFERED),
        (PLUS, b"p=tls-server-end-point,,n=,r=x", BindingFlag.USED),
    ],
)
def test_the_channel_binding_flag_is_read(mechanism: str, first: bytes, flag: BindingFlag) -> None:
    assert after(sasl(PLUS, PLAIN), initial(mechanism, first)).binding_flag is flag
    late = after(sasl(PLUS, PLAIN), initial(mechanism, None))
    assert late.binding_flag is None
    feed(late, CONTINUE)
    feed(late, p(first))
    assert late.binding_flag is flag


@pytest.mark.parametrize(
    ("mechanism", "first"),
    [
        (PLAIN, b""),
        (PLAIN, b"x,,"),
        (PLAIN, b"n"),
        (PLAIN, b"N,,n=,r=x"),
        (PLAIN, b"p,,n=,r=x"),
        (PLAIN, b"p=tls-server-end-point,,n=,r=x"),
        (PLUS, b"n,,n=,r=x"),
        (PLUS, b"y,,n=,r=x"),
    ],
)
def test_a_flag_that_does_not_fit_the_mechanism_is_malformed(mechanism: str, first: bytes) -> None:
    for messages in ([], [initial(mechanism, None), CONTINUE]):
        exchange = after(sasl(PLUS, PLAIN), *messages)
        with pytest.raises(ProtocolViolation) as caught:
            feed(exchange, p(first) if messages else initial(mechanism, first))
        assert (caught.value.reply, caught.value.sqlstate) == ("malformed SCRAM message", "08P01")


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ((PLAIN,), PLUS),
        ((PLAIN,), OAUTH),
        ((OAUTH,), PLAIN),
        ((PLAIN, PLUS), "scram-sha-256"),
        ((PLAIN,), ""),
        ((PLAIN,), "M" * 60_000),
    ],
)
def test_a_mechanism_that_was_not_offered_is_refused(offered: Sequence[str], chosen: str) -> None:
    exchange = after(sasl(*offered))
    with pytest.raises(ProtocolViolation) as caught:
        exchange.client_message(initial(chosen, b"n,,n=,r=x"))
    assert caught.value.reply == "client selected an invalid SASL authentication mechanism"
    assert len(caught.value.reason) < 700
    assert not exchange.outcome.is_answered


@pytest.mark.parametrize(
    ("body", "reply"),
    [
        (b"", "invalid string in message"),
        (b"SCRAM-SHA-256", "invalid string in message"),
        (b"SCRAM-SHA-256\x00", "insufficient data left in message"),
        (b"SCRAM-SHA-256\x00\x00\x00\x00", "insufficient data left in message"),
        (b"SCRAM-SHA-256\x00\x00\x00\x00\x02n", "insufficient data left in message"),
        (b"SCRAM-SHA-256\x00\x7f\xff\xff\xffn,,", "insufficient data left in message"),
        (b"SCRAM-SHA-256\x00\xff\xff\xff\xfen,,", "insufficient data left in message"),
        (b"SCRAM-SHA-256\x00\x80\x00\x00\x00n,,", "insufficient data left in message"),
        (b"SCRAM-SHA-256\x00\x00\x00\x00\x01n,,", "invalid message format"),
        (b"SCRAM-SHA-256\x00\xff\xff\xff\xffn,,", "invalid message format"),
    ],
)
def test_a_malformed_initial_response_gets_postgresqls_words(body: bytes, reply: str) -> None:
    exchange = after(sasl(PLAIN))
    with pytest.raises(ProtocolViolation) as caught:
        exchange.client_message(p(body))
    assert (caught.value.reply, caught.value.sqlstate) == (reply, "08P01")
    assert not exchange.outcome.is_answered


def test_scram_messages_end_at_1024_octets_and_others_do_not() -> None:
    room = 1024 - 4 - len(PLAIN) - 1 - 4
    after(sasl(PLAIN), initial(PLAIN, b"n,,".ljust(room, b"x")), CONTINUE, p(bytes(1020)))
    with pytest.raises(ProtocolViolation):
        after(sasl(PLAIN), initial(PLAIN, b"n,,".ljust(room + 1, b"x")))
    with pytest.raises(ProtocolViolation):
        after(sasl(PLAIN), FIRST, CONTINUE, p(bytes(1021)))
    after(sasl(OAUTH), initial(OAUTH, bytes(60_000)))
    after(CLEARTEXT, p(bytes(20_000)))


# From AuthenticationOk to ReadyForQuery


def status(name: str, value: str) -> Message:
    return Message(b"S", name.encode() + b"\x00" + value.encode() + b"\x00")


KEY = Message(b"K", struct.pack("!i", 77) + b"secretkey")
READY = Message(b"Z", b"I")


def test_what_comes_before_ready_for_query_is_kept() -> None:
    exchange = after(OK, status("in_hot_standby", "off"), status("TimeZone", "UTC"), KEY)
    feed(exchange, status("in_hot_standby", "on"))
    feed(exchange, status("default_transaction_read_only", "off"))
    feed(exchange, status("server_version", "18.4"))
    assert not exchange.is_ready
    feed(exchange, READY)
    assert exchange.is_ready
    assert exchange.is_authenticated
    assert exchange.parameters == {
        "in_hot_standby": "on",
        "default_transaction_read_only": "off",
        "server_version": "18.4",
    }
    assert exchange.cancel_key is not None
    pid, key = exchange.cancel_key
    assert (pid, key.reveal()) == (77, b"secretkey")
    assert "secretkey" not in repr(exchange.cancel_key)


def test_a_backend_without_a_cancel_key_is_let_be() -> None:
    exchange = after(OK, READY)
    assert exchange.is_ready
    assert exchange.cancel_key is None


@pytest.mark.parametrize("message", [KEY, READY, status("in_hot_standby", "off"), Message(b"v", bytes(8))])
@pytest.mark.parametrize("before", [[], [CLEARTEXT], [CLEARTEXT, p()], SCRAM, [OK, READY]])
def test_nothing_of_a_session_comes_before_authentication_ok_or_behind_ready_for_query(
    before: list[Message], message: Message
) -> None:
    exchange = after(*before)
    with pytest.raises(BackendMisbehaved):
        exchange.other(message)


@pytest.mark.parametrize(
    "message",
    [
        KEY,
        Message(b"K", bytes(7)),
        Message(b"S", b"a"),
        Message(b"Z", b"X"),
        Message(b"v", bytes(8)),
        Message(b"D", b""),
    ],
)
def test_what_does_not_belong_there_is_refused_after_authentication_ok(message: Message) -> None:
    exchange = after(OK, KEY)
    with pytest.raises(BackendMisbehaved):
        exchange.other(message)
    assert not exchange.is_ready


# Whatever two peers say


anything = st.one_of(
    st.sampled_from(
        [OK, CLEARTEXT, MD5, GSS, SSPI, GSS_CONTINUE, CONTINUE, FINAL, FIRST, LAST, p(), KEY, READY]
    ),
    st.sampled_from([sasl(PLAIN), sasl(PLUS, PLAIN), sasl(OAUTH), sasl(OAUTH, PLAIN)]),
    st.sampled_from([initial(OAUTH, b"n,,"), initial(PLAIN, None), initial(PLUS, b"p=x,,n=")]),
    st.builds(Message, st.sampled_from([b"R", b"p", b"K", b"S", b"Z", b"v"]), st.binary(max_size=12)),
)


@given(st.lists(anything, max_size=14))
@settings(max_examples=200)
def test_no_order_of_messages_makes_a_proof_without_the_clients_answer_to_a_challenge(
    messages: list[Message],
) -> None:
    exchange = LoginExchange()
    taken: list[Message] = []
    for message in messages:
        blamed = ProtocolViolation if message.type == b"p" else BackendMisbehaved
        with contextlib.suppress(blamed):
            feed(exchange, message)
            taken.append(message)
    outcome = exchange.outcome
    said = [struct.unpack("!I", message.body[:4])[0] if message.type == b"R" else "p" for message in taken]
    if outcome.is_answered:
        assert said[0] in {3, 5, 7, 9, 10}
        assert said[1] == "p"
    if outcome.is_finished:
        assert outcome.is_answered
        assert exchange.is_authenticated
    if outcome.is_finished and outcome.challenge is Challenge.SCRAM:
        end = said.index(0)
        assert said[:end] in ([10, "p", 11, "p", 12], [10, "p", 11, "p", 11, "p", 12])


def test_channel_binding_is_taken_out_of_the_list() -> None:
    assert without_channel_binding((PLUS, PLAIN)) == (PLAIN,)
    assert without_channel_binding((PLAIN, OAUTH)) == (PLAIN, OAUTH)


def test_a_list_of_channel_binding_alone_leaves_nothing() -> None:
    with pytest.raises(BackendMisbehaved):
        without_channel_binding((PLUS,))
