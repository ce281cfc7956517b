"""Behind GSSContinue either side may speak next, and both are heard, as often as the mechanism wants."""

import time

import pytest

from fixtures import wire
from fixtures.deployments import config, in_clear, passthrough, with_tls
from fixtures.shared_proxy import events_of, refusal_of

LISTENERS = ("clear", "tls")
GSS, GSS_CONTINUE = 7, 8
LOGIN_SECONDS = 3.0


def token(side, number, octets=40):
    return f"{side}{number}:".encode().ljust(octets, b"\xff")


@pytest.fixture(scope="module")
def backend(shared_fake_backend):
    return shared_fake_backend()


@pytest.fixture(scope="module")
def running(shared_proxy, certs, backend):
    return shared_proxy(
        config({"clear": in_clear(), "tls": with_tls(certs)}, primary=passthrough(backend, certs))
        | {"authentication_timeout": f"{LOGIN_SECONDS:g}s"},
        {"pg_hba.conf": "host all all all trust\n"},
    )


@pytest.fixture(params=LISTENERS)
def client(request, running, backend):
    """Its StartupMessage has been sent; set the backend's script before it is asked for."""
    backend.forget()
    address = "127.0.0.1", running.port(request.param)
    with wire.WireClient(address, source=wire.another_source()) as client:
        if request.param == "tls":
            assert client.ask_for_tls() == b"S"
            client.start_tls()
        yield client


def log_in(client):
    client.send(wire.startup(user="alice"))
    assert client.read_message().code == GSS


def speaks(rounds, *, client_is_last, octets=40, between=b""):
    """A server whose context takes so many tokens of the client."""

    def script(conversation):
        conversation.accept()
        conversation.send(wire.authentication(GSS))
        for number in range(rounds):
            message = conversation.read_message()
            assert message == wire.Message(b"p", token("client", number, octets))
            if number < rounds - 1 or not client_is_last:
                conversation.send(
                    wire.authentication(GSS_CONTINUE, token("server", number, octets)) + between
                )
        conversation.let_in()
        conversation.answer_queries()

    return script


NOTICE = wire.message(b"N", b"Mpatience\x00\x00")


@pytest.mark.parametrize("client_is_last", [True, False])
@pytest.mark.parametrize("rounds", [1, 2, 3])
@pytest.mark.parametrize(
    ("octets", "between"), [(40, b""), (60_000, b""), (40, NOTICE)], ids=["", "long", "with notices"]
)
def test_every_token_arrives_and_the_session_is_let_in(
    running, backend, client, rounds, client_is_last, octets, between
):
    backend.script = speaks(rounds, client_is_last=client_is_last, octets=octets, between=between)
    log_in(client)
    for number in range(rounds):
        client.send(wire.message(b"p", token("client", number, octets)))
        if number < rounds - 1 or not client_is_last:
            message = next_but_notices(client)
            assert (message.code, message.body[4:]) == (GSS_CONTINUE, token("server", number, octets))
    assert next_but_notices(client).code == 0
    client.read_until(b"Z")
    client.send(wire.query("SELECT 1"))
    assert [message.kind for message in client.read_until(b"Z")] == [b"C", b"Z"]
    decided = running.wait_for_event("session_decided", **client.where)
    assert (decided["verdict"], decided["proof"]) == ("allowed", "backend")


def next_but_notices(client):
    while (message := client.read_message()).kind == b"N":
        pass
    return message


def test_a_token_that_comes_in_pieces_is_one_answer(backend, client):
    backend.script = speaks(2, client_is_last=True)
    log_in(client)
    client.send(wire.message(b"p", token("client", 0)))
    assert client.read_message().code == GSS_CONTINUE
    last = wire.message(b"p", token("client", 1))
    for start in range(0, len(last), 7):
        client.send(last[start : start + 7])
        time.sleep(0.01)  # the kernel must not join them
    assert client.read_message().code == 0
    client.read_until(b"Z")


def asks_on_and_waits(conversation):
    """GSSContinue, and no word more."""
    conversation.accept()
    conversation.send(wire.authentication(GSS))
    conversation.read_message()
    conversation.send(wire.authentication(GSS_CONTINUE, b"token"))


def until_continued(client):
    log_in(client)
    client.send(wire.message(b"p", b"token"))
    assert client.read_message().code == GSS_CONTINUE


def test_where_neither_goes_on_the_login_ends_in_time(running, backend, client):
    backend.script = asks_on_and_waits
    start = time.monotonic()
    until_continued(client)
    assert client.read_to_end() == b""
    assert time.monotonic() - start < LOGIN_SECONDS * 10
    assert refusal_of(running, client)["kind"] == "timeout"


def test_a_client_that_says_something_else_is_told_what_was_expected(running, backend, client):
    backend.script = asks_on_and_waits
    until_continued(client)
    client.send(wire.query("SELECT 1"))
    assert client.read_error().error == ("08P01", "expected GSS response, got message type 81")
    assert refusal_of(running, client)["kind"] == "client_protocol"
    assert b"SELECT" not in backend.conversation().received


def test_a_client_that_leaves_takes_its_backend_along(backend, client):
    backend.script = asks_on_and_waits
    start = time.monotonic()
    until_continued(client)
    client.close()
    backend.conversation()
    assert time.monotonic() - start < LOGIN_SECONDS * 0.9, "nobody noticed before the deadline"


def test_the_backends_error_arrives_as_it_came(running, backend, client):
    error = wire.error_response("28000", "GSSAPI authentication failed")

    def script(conversation):
        asks_on_and_waits(conversation)
        conversation.send(error)

    backend.script = script
    until_continued(client)
    assert client.read_to_end() == error
    assert refusal_of(running, client)["kind"] == "backend_refused"


def test_what_comes_behind_the_last_token_belongs_to_the_session(running, backend, client):
    """A client that does not wait for AuthenticationOk is a fault of its own; its bytes keep their order."""
    backend.script = speaks(2, client_is_last=True)
    log_in(client)
    client.send(wire.message(b"p", token("client", 0)))
    assert client.read_message().code == GSS_CONTINUE
    client.send(wire.message(b"p", token("client", 1)) + wire.query("SELECT 1"))
    assert client.read_message().code == 0
    client.read_until(b"Z")
    assert [message.kind for message in client.read_until(b"Z")] == [b"C", b"Z"]


def test_a_backend_that_asks_on_unanswered_has_misbehaved(running, backend, client):
    def script(conversation):
        asks_on_and_waits(conversation)
        conversation.send(wire.authentication(GSS_CONTINUE, b"more"))

    backend.script = script
    until_continued(client)
    assert client.read_error().error == ("57P03", "the database system is not available")
    assert refusal_of(running, client)["kind"] == "backend_protocol"
    assert len(events_of(running, client)) == 1
