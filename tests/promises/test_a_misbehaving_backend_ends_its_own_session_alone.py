"""Whatever a backend sends before the login is over: its session goes on or ends, and nobody else notices."""

import struct
import time

import pytest

from fixtures import wire
from fixtures.deployments import config, in_clear, passthrough, with_tls
from fixtures.fake_backend import asks_for_scram
from fixtures.postgres import password
from fixtures.shared_proxy import refusal_of

OK, READY, KEY = wire.AUTHENTICATION_OK, wire.ready_for_query(), wire.backend_key_data(1, b"keys")
STATUS = wire.parameter_status("server_version", "17")
ASK = wire.authentication(3)
SCRAM = wire.authentication_sasl("SCRAM-SHA-256")
NOT_AVAILABLE = "57P03", "the database system is not available"


def length_of(kind, length, body=b""):
    """A message that lies about its length."""
    return kind + struct.pack("!I", length) + body


FIRST = {
    "length 0": length_of(b"R", 0),
    "length 3": length_of(b"R", 3),
    "length 2^31-1": length_of(b"R", 2**31 - 1),
    "length 2^32-1": length_of(b"E", 2**32 - 1),
    "Authentication without a code": wire.message(b"R"),
    "half a code": wire.message(b"R", b"\x00\x00"),
    "a code of -1": wire.authentication(2**32 - 1),
    "AuthenticationOk with a tail": wire.authentication(0, b"x"),
    "MD5 with half a salt": wire.authentication(5, b"sa"),
    "SASL without a mechanism": wire.authentication(10, b"\x00"),
    "SASL that is not ended": wire.authentication(10, b"SCRAM-SHA-256"),
    "SASL with bytes behind its end": wire.authentication(10, b"SCRAM-SHA-256\x00\x00x"),
    "an unknown type": wire.message(b"!", b"x"),
    "a NUL": b"\x00" * 64,
    "HTTP": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "DataRow": wire.message(b"D", b"\x00\x00"),
    "a client's message": wire.query("SELECT 1"),
    "ParameterStatus before AuthenticationOk": STATUS,
    "BackendKeyData before AuthenticationOk": KEY,
    "ReadyForQuery before AuthenticationOk": READY,
    "NegotiateProtocolVersion of 3 kB": wire.message(b"v", b"x" * 3000),
    "notices without end": wire.message(b"N", b"MSay\x00" * 5000 + b"\x00") * 60,
    "the end": b"",
}
"""What the backend says behind the StartupMessage."""

AFTER_THE_ANSWER = {
    "a second challenge": ASK,
    "another challenge": wire.authentication(5, b"salt"),
    "SCRAM": SCRAM,
    "SASLContinue": wire.authentication(11, b"r=x"),
    "SASLFinal": wire.authentication(12, b"v=x"),
    "AuthenticationOk twice": OK + OK,
    "a challenge behind AuthenticationOk": OK + ASK,
    "two keys": OK + KEY + KEY + READY,
    "a key of 3 bytes": OK + wire.backend_key_data(1, b"key") + READY,
    "a key of 257 bytes": OK + wire.backend_key_data(1, b"k" * 257) + READY,
    "a status of its own": OK + wire.ready_for_query(b"Q"),
    "a status of two bytes": OK + wire.ready_for_query(b"II"),
    "ParameterStatus of one string": OK + wire.message(b"S", b"name\x00") + READY,
    "ParameterStatus of three": OK + wire.message(b"S", b"a\x00b\x00c\x00") + READY,
    "ParameterStatus of 1 MB": OK + wire.parameter_status("x", "y" * 1_000_000) + READY,
    "ParameterStatus without end": OK + wire.parameter_status("x", "y" * 60_000) * 20 + READY,
    "CopyData": OK + wire.message(b"d", b"x"),
    "RowDescription": OK + wire.message(b"T", b"\x00\x00") + READY,
    "NegotiateProtocolVersion": OK + wire.message(b"v", struct.pack("!II", 0x30000, 0)) + READY,
    "the end": b"",
    "AuthenticationOk and the end": OK,
    "all but ReadyForQuery and the end": OK + STATUS + KEY,
}
"""What it says when the client has answered a password request."""

IN_SCRAM = {
    "AuthenticationOk at once": [OK + READY],
    "SASLFinal at once": [wire.authentication(12, b"v=YQ==") + OK + READY],
    "AuthenticationOk without SASLFinal": [wire.authentication(11, b"r=x,s=YQ==,i=1"), OK + READY],
    "a third turn": [wire.authentication(11, b"r=x,s=YQ==,i=1"), wire.authentication(11, b"r=y")],
    "a password request": [ASK],
    "a second list": [SCRAM],
    "SASLFinal twice": [
        wire.authentication(11, b"r=x,s=YQ==,i=1"), wire.authentication(12, b"v=YQ==") * 2 + OK + READY
    ],
}  # fmt: skip
"""What it says when the client has chosen SCRAM, turn by turn."""


@pytest.fixture(scope="module")
def good(shared_fake_backend):
    return shared_fake_backend(asks_for_scram(password("alice")))


@pytest.fixture(scope="module")
def bad(shared_fake_backend):
    return shared_fake_backend()


@pytest.fixture(scope="module")
def running(shared_proxy, certs, good, bad):
    return shared_proxy(
        config(
            {"good": with_tls(certs, backend="good"), "bad": with_tls(certs, backend="bad"), "clear": in_clear(backend="bad")},
            good=passthrough(good, certs),
            bad=passthrough(bad, certs),
        ),
        {"pg_hba.conf": "host all alice all scram-sha-256\nhost all anybody all trust\n"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def bystander(running):
    """A session to the good backend that is open all the time."""
    with wire.connected(("127.0.0.1", running.port("good")), source=wire.another_source()) as client:
        client.send(wire.startup(user="alice"))
        wire.log_in(client, password("alice"))
        yield client


@pytest.fixture(autouse=True)
def nobody_else_notices(running, bystander):
    yield
    bystander.send(wire.query("SELECT 1"))
    assert [message.kind for message in bystander.read_until(b"Z")] == [b"C", b"Z"]
    with wire.connected(("127.0.0.1", running.port("good")), source=wire.another_source()) as client:
        client.send(wire.startup(user="alice"))
        wire.log_in(client, password("alice"))


def attempt(running, user):
    client = wire.WireClient(("127.0.0.1", running.port("bad")), source=wire.another_source())
    assert client.ask_for_tls() == b"S"
    client.start_tls()
    client.send(wire.startup(user=user))
    return client


@pytest.mark.parametrize("said", FIRST.values(), ids=FIRST.keys())
@pytest.mark.parametrize("user", ["alice", "anybody"])
def test_what_is_no_answer_to_a_startup_message_ends_the_session(running, bad, user, said):
    def script(conversation):
        conversation.accept()
        conversation.send(said)
        if not said:
            conversation._sock.close()

    bad.script = script
    bad.forget()
    start = time.monotonic()
    with attempt(running, user) as client:
        assert client.read_error().error == NOT_AVAILABLE
        assert time.monotonic() - start < wire.PROMPTLY
        decided = refusal_of(running, client)
        assert decided["kind"] in {"backend_protocol", "backend_unreachable"}
    assert bad.conversation().startup == {"user": user, "database": user}


@pytest.mark.parametrize("said", AFTER_THE_ANSWER.values(), ids=AFTER_THE_ANSWER.keys())
def test_what_is_out_of_turn_behind_the_password_ends_the_session(running, bad, said):
    def script(conversation):
        conversation.accept()
        conversation.send(ASK)
        conversation.read_message()
        conversation.send(said)
        if said in {b"", OK, OK + STATUS + KEY}:
            conversation._sock.close()

    bad.script = script
    with attempt(running, "anybody") as client:
        assert client.read_message().code == 3
        client.send(wire.password_message("secret"))
        (error,) = wire.messages(client.read_to_end())
        assert error.error == NOT_AVAILABLE
        assert refusal_of(running, client)["kind"] in {"backend_protocol", "backend_unreachable"}


@pytest.mark.parametrize("turns", IN_SCRAM.values(), ids=IN_SCRAM.keys())
@pytest.mark.parametrize("user", ["alice", "anybody"])
def test_a_scram_exchange_that_is_cut_short_or_drawn_out_proves_nobody(running, bad, user, turns):
    def script(conversation):
        conversation.accept()
        conversation.send(SCRAM)
        for said in turns:
            conversation.read_message()
            conversation.send(said)

    bad.script = script
    with attempt(running, user) as client:
        assert client.read_message().code == 10
        client.send(wire.sasl_initial_response("SCRAM-SHA-256", b"n,,n=,r=abc"))
        for _ in turns[1:]:
            assert client.read_message().code == 11
            client.send(wire.message(b"p", b"c=biws,r=x,p=YQ=="))
        *before, error = wire.messages(client.read_to_end())
        assert error.error == NOT_AVAILABLE
        assert 0 not in {message.code for message in before}
        assert refusal_of(running, client)["kind"] == "backend_protocol"


@pytest.mark.parametrize("user", ["alice", "anybody"])
def test_a_list_of_plus_alone_is_no_list_for_us(running, bad, user):
    def script(conversation):
        conversation.accept()
        conversation.send(wire.authentication_sasl("SCRAM-SHA-256-PLUS"))

    bad.script = script
    with attempt(running, user) as client:
        assert client.read_error().error == NOT_AVAILABLE


ODD_ERRORS = {
    "without SQLSTATE": wire.message(b"E", b"SFATAL\x00Mno code\x00\x00"),
    "with an SQLSTATE of six": wire.message(b"E", b"SFATAL\x00C28P011\x00Mlong code\x00\x00"),
    "empty": wire.message(b"E"),
    "of one NUL": wire.message(b"E", b"\x00"),
    "without a terminator": wire.message(b"E", b"SFATAL\x00C28P01\x00Mno end"),
    "with bytes behind its end": wire.message(b"E", b"SFATAL\x00C28P01\x00Mx\x00\x00more"),
    "with a field twice": wire.message(b"E", b"C28P01\x00C57P03\x00Mx\x00\x00"),
    "that is not UTF-8": wire.error_response("28P01", b"\xff\xfe{}%s\n\x1b[2J"),
    "of 60 kB": wire.error_response("28P01", "x" * 60_000),
}


@pytest.mark.parametrize("error", ODD_ERRORS.values(), ids=ODD_ERRORS.keys())
@pytest.mark.parametrize("asked", [False, True], ids=["at once", "after the password"])
def test_an_error_of_a_verified_backend_is_passed_on_as_it_came(running, bad, error, asked):
    def script(conversation):
        conversation.accept()
        if asked:
            conversation.send(ASK)
            conversation.read_message()
        conversation.send(error)

    bad.script = script
    with attempt(running, "anybody") as client:
        if asked:
            assert client.read_message().code == 3
            client.send(wire.password_message("secret"))
        assert client.read_to_end() == error
        decided = refusal_of(running, client)
        assert decided["kind"] == "backend_refused"
        assert decided["sqlstate"] in {None, "28P01"}


def lets_in_behind(said, behind=b""):
    def script(conversation):
        conversation.accept()
        conversation.send(ASK)
        conversation.read_message()
        conversation.send(OK + said + KEY + READY + behind)
        conversation.answer_queries()

    return script


@pytest.mark.parametrize(
    "said",
    [
        wire.parameter_status("x", "y" * 60_000),
        b"".join(wire.parameter_status(f"p{number}", "") for number in range(5000)),
        wire.message(b"N", b"SNOTICE\x00C00000\x00Mhello\x00\x00") * 3,
        wire.parameter_status("é\x01", "\x1b[2J"),
    ],
    ids=["a ParameterStatus of 60 kB", "5000 ParameterStatus", "notices", "odd names"],
)
def test_what_is_allowed_passes_unchanged(running, bad, said):
    bad.script = lets_in_behind(said)
    with attempt(running, "anybody") as client:
        assert client.read_message().code == 3
        client.send(wire.password_message("secret"))
        expected = OK + said + KEY + READY
        assert client.read_exactly(len(expected)) == expected
        client.send(wire.TERMINATE)


def test_what_lies_behind_ready_for_query_is_not_lost(running, bad):
    behind = wire.message(b"A", struct.pack("!i", 1) + b"channel\x00payload\x00") * 100
    bad.script = lets_in_behind(b"", behind)
    with attempt(running, "anybody") as client:
        client.send(wire.password_message("secret"))
        client.read_until(b"Z")
        assert client.read_exactly(len(behind)) == behind
        client.send(wire.query("SELECT 1"))
        assert client.read_until(b"Z")[0].kind == b"C"


@pytest.mark.parametrize("step", [1, 7])
def test_a_backend_may_send_byte_by_byte(running, bad, step):
    def script(conversation):
        conversation.accept()
        conversation.send(ASK)
        conversation.read_message()
        said = OK + STATUS + KEY + READY
        for start in range(0, len(said), step):
            conversation.send(said[start : start + step])

    bad.script = script
    with attempt(running, "anybody") as client:
        client.send(wire.password_message("secret"))
        assert [message.kind for message in client.read_until(b"Z")] == [b"R", b"R", b"S", b"K", b"Z"]


def test_what_a_client_pipelines_behind_its_startup_message_waits_for_the_verdict(running, bad):
    """A Query before AuthenticationOk is out of turn: it never reaches the backend."""
    bad.script = lets_in_behind(b"")
    bad.forget()
    with attempt(running, "anybody") as client:
        client.send(wire.query("DROP TABLE accounts"))
        *_, error = wire.messages(client.read_to_end())
        assert error.error == ("08P01", "expected password response, got message type 81")
    assert b"DROP" not in bad.conversation().received


def test_queries_pipelined_behind_the_password_are_answered_once(running, bad):
    bad.script = lets_in_behind(b"")
    with attempt(running, "anybody") as client:
        client.send(wire.password_message("secret") + wire.query("SELECT 1") + wire.query("SELECT 2"))
        client.read_until(b"Z")
        for _ in range(2):
            assert [message.kind for message in client.read_until(b"Z")] == [b"C", b"Z"]
