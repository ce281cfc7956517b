"""Whatever is sent in clear before the handshake stays outside it (CVE-2021-23214, CVE-2021-3935, CVE-2023-40217)."""

import contextlib
import os
import socket
import ssl

import pytest

from fixtures import wire
from fixtures.deployments import config, passthrough, with_tls
from fixtures.fake_backend import lets_everybody_in
from fixtures.shared_proxy import events_of, refusal_of

SMUGGLED = wire.startup(user="postgres", database="postgres") + wire.query("DROP TABLE accounts")
NO_TLS = "TLS handshake failed: "


@pytest.fixture(scope="module")
def backend(shared_fake_backend):
    return shared_fake_backend(lets_everybody_in)


@pytest.fixture(scope="module")
def running(shared_proxy, certs, backend):
    return shared_proxy(
        config({"tls": with_tls(certs)}, primary=passthrough(backend, certs, require_auth="none")),
        {"pg_hba.conf": "hostssl all all all trust\n"},
    )


@pytest.fixture
def client(running):
    with wire.WireClient(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        yield client


@pytest.fixture(autouse=True)
def nobody_dialled(running, backend, client):
    backend.forget()
    yield
    assert backend.conversations == []


@pytest.mark.parametrize("smuggled", [SMUGGLED, b"Q", b"\x00" * 16384, wire.SSL_REQUEST], ids=len)
@pytest.mark.parametrize(
    "ahead", [wire.SSL_REQUEST, wire.GSSENC_REQUEST + wire.SSL_REQUEST], ids=["ssl", "gssenc+ssl"]
)
def test_what_lies_behind_ssl_request_in_one_segment_breaks_the_handshake(running, client, smuggled, ahead):
    client.send(ahead + smuggled)
    client.end()
    answer = client.read_to_end()
    assert answer.startswith(b"S" if ahead == wire.SSL_REQUEST else b"NS")
    assert b"postgres" not in answer
    decided = refusal_of(running, client)
    assert (decided["kind"], decided["user"], decided["tls_version"]) == ("client_tls", None, None)


@pytest.mark.parametrize("smuggled", [b"Q", SMUGGLED, b"\x00" * 16384], ids=len)
def test_what_comes_between_the_answer_and_the_handshake_breaks_it(running, client, smuggled):
    assert client.ask_for_tls() == b"S"
    client.hello()
    client.send_raw(smuggled + client.pending())
    client.read_to_end()
    decided = refusal_of(running, client)
    assert decided["kind"] == "client_tls"
    assert decided["reason"].startswith(NO_TLS), decided["reason"]


def test_what_follows_the_hello_in_clear_breaks_the_handshake(running, client):
    assert client.ask_for_tls() == b"S"
    client.hello()
    client.send_raw(client.pending() + SMUGGLED)
    client.read_to_end()
    assert refusal_of(running, client)["kind"] == "client_tls"


def test_what_lies_behind_gssenc_request_is_read_in_clear_and_refused_there(running, client):
    """GSSENCRequest is refused, so a packet may follow; hostssl does not let it in."""
    client.send(wire.GSSENC_REQUEST + wire.startup(user="postgres"))
    assert client.read_exactly(1) == b"N"
    sqlstate, text = client.read_error().error
    assert sqlstate == "28000"
    assert text.endswith('user "postgres", database "postgres", no encryption')
    assert refusal_of(running, client)["tls_version"] is None


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_plaintext_and_an_end_before_the_handshake_are_nobody_s_session(running, client, how):
    client.send(wire.SSL_REQUEST + SMUGGLED)
    if how == "FIN":
        client.end()
        client.read_to_end()
        refusal_of(running, client)
        return
    client.reset()
    with wire.connected(("127.0.0.1", running.port("tls")), source=wire.another_source()) as other:
        other.send(wire.startup(user=""))
        other.read_error()
        refusal_of(running, other)
    assert all(event["user"] is None for event in events_of(running, client))


def test_a_cleartext_message_inside_an_established_session_ends_it(running, backend, client):
    assert client.ask_for_tls() == b"S"
    client.start_tls()
    client.send(wire.startup(user="alice"))
    client.read_until(b"Z")
    client.send_raw(wire.query("DROP TABLE accounts"))
    client.read_to_end()
    ended = running.wait_for_event("session_ended", **client.where)
    assert ended["kind"] == "client_lost"
    conversation = backend.conversation()
    assert b"DROP" not in conversation.received
    backend.forget()


def test_a_cleartext_message_inside_the_backends_stream_ends_the_session_too(running, backend, client):
    forged = wire.message(b"C", b"FORGED\x00") + wire.ready_for_query()

    def script(conversation):
        conversation.accept()
        conversation.let_in()
        conversation.read_message()
        os.write(conversation._sock.fileno(), forged)

    backend.script = script
    try:
        assert client.ask_for_tls() == b"S"
        client.start_tls()
        client.send(wire.startup(user="alice"))
        client.read_until(b"Z")
        client.send(wire.query("SELECT 1"))
        assert b"FORGED" not in client.read_to_end()
        assert running.wait_for_event("session_ended", **client.where)["kind"] == "backend_lost"
    finally:
        backend.script = lets_everybody_in
        backend.forget()


def test_plaintext_behind_close_notify_is_dropped(backend, client):
    assert client.ask_for_tls() == b"S"
    client.start_tls()
    client.send(wire.startup(user="alice"))
    client.read_until(b"Z")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.tls.unwrap()
    client.send_raw(client.pending() + wire.query("DROP TABLE accounts"))
    client.sock.shutdown(socket.SHUT_WR)
    assert b"DROP" not in backend.conversation().received
    backend.forget()


def test_what_follows_terminate_is_dropped(running, backend, client):
    assert client.ask_for_tls() == b"S"
    client.start_tls()
    client.send(wire.startup(user="alice"))
    client.read_until(b"Z")
    client.send(wire.TERMINATE)
    client.send(wire.query("SELECT 1"))
    client.read_to_end()
    assert running.wait_for_event("session_ended", **client.where)["kind"] == "ok"
    backend.conversation()
    backend.forget()


def test_a_hello_pipelined_behind_ssl_request_works_as_with_postgresql_17(running, backend, client):
    tls = client.hello()
    client.send_raw(wire.SSL_REQUEST + client.pending())
    assert client.sock.recv(1) == b"S"
    client.finish_handshake(tls)
    client.send(wire.startup(user="alice"))
    assert client.read_until(b"Z")[0].code == 0
    client.send(wire.TERMINATE)
    client.end()
    assert backend.conversation().startup == {"user": "alice", "database": "alice"}
    assert client.read_to_end() == b""
    backend.forget()
