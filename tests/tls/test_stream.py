"""Legs: what goes in comes out, ends are told apart, and two tasks can use one leg."""

import contextlib
import socket
import threading

import pytest
import trio
import trio.testing
from OpenSSL import SSL
from OpenSSL._util import lib

from fixtures import key_updates
from pgtlsproxy import pki
from pgtlsproxy.errors import ClientTLSFailed
from pgtlsproxy.tls import contexts, openssl
from pgtlsproxy.tls.contexts import KeyPair, TLSOptions, backend_context, server_context
from pgtlsproxy.tls.stream import (
    ClearLeg,
    LegAbused,
    LegLost,
    LegTruncated,
    TLSLeg,
    accept_tls,
    connect_tls,
)
from pgtlsproxy.tls.trust import Trust
from pgtlsproxy.tls.verdicts import ClientCertificateFailed

CA = pki.make_ca("test CA")
SERVER = pki.issue_server(CA, ["localhost"])
CLIENT = pki.issue_client(CA, "alice")
TRUST = Trust((CA.certificate,))


def pair(issued):
    return KeyPair((issued.certificate,), issued.key)


def sockets():
    """Two connected TCP sockets, so that ends are TCP's ends."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        one = socket.create_connection(listening.getsockname())
        other, _ = listening.accept()
    for sock in (one, other):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one, other


async def tls_legs(version, client_pair=None, trust=TRUST):
    options = TLSOptions(min_protocol_version=version, max_protocol_version=version)
    client_sock, server_sock = sockets()
    legs = {}

    async def accept():
        legs["server"] = await accept_tls(server_sock, server_context(pair(SERVER), trust, options))

    async def connect():
        legs["client"] = await connect_tls(
            client_sock, backend_context(client_pair, TRUST, options), b"localhost"
        )

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            nursery.start_soon(connect)
    except BaseException:
        client_sock.close()
        server_sock.close()
        raise
    return legs["client"], legs["server"]


async def clear_legs():
    one, other = sockets()
    return ClearLeg(one), ClearLeg(other)


@pytest.fixture(params=["clear", "TLSv1.2", "TLSv1.3"])
async def legs(request):
    one, other = await (clear_legs() if request.param == "clear" else tls_legs(request.param))
    with trio.fail_after(20):
        yield one, other
    one.close()
    other.close()


async def receive_all(leg, octets):
    received = b""
    while len(received) < octets and (data := await leg.receive(16384)):
        received += data
    return received


async def test_bytes_arrive_whole_in_both_directions_at_once(legs):
    payload = [bytes([number]) * 3_000_000 for number in (1, 2)]
    received = {}

    async def read(name, leg, octets):
        received[name] = await receive_all(leg, octets)

    async with trio.open_nursery() as nursery:
        for name, leg, sent in ((0, legs[0], payload[0]), (1, legs[1], payload[1])):
            nursery.start_soon(leg.send, sent)
            nursery.start_soon(read, name, leg, len(payload[1 - name]))
    assert received == {0: payload[1], 1: payload[0]}


async def test_an_end_is_a_half_close_and_the_other_direction_goes_on(legs):
    one, other = legs
    await one.send(b"last words")
    await one.send_eof()
    assert await receive_all(other, 100) == b"last words"
    await other.send(b"and the answer")
    await other.send_eof()
    assert await receive_all(one, 100) == b"and the answer"


async def test_a_reset_is_a_lost_leg(legs):
    one, other = legs
    one.abort()
    with pytest.raises(LegLost):
        while True:
            await other.receive(100)
            await other.send(b"x")


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
async def test_an_end_without_close_notify_is_a_truncation(version):
    one, other = await tls_legs(version)
    await one.send(b"half a message")
    one.sock.shutdown(socket.SHUT_WR)
    assert await other.receive(100) == b"half a message"
    with pytest.raises(LegTruncated):
        await other.receive(100)
    one.close()
    other.close()


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
async def test_clear_text_put_into_a_tls_stream_breaks_it(version):
    one, other = await tls_legs(version)
    one.sock.send(b"Q\x00\x00\x00\x0dSELECT 1\x00" * 10)
    with pytest.raises(LegLost):
        await other.receive(100)
    one.close()
    other.close()


async def test_a_record_is_read_whole_and_leaves_nothing_behind():
    one, other = await tls_legs("TLSv1.3")
    await one.send(b"x" * 16384)
    assert len(await other.receive(16384)) == 16384
    assert other.connection.pending() == 0
    one.close()
    other.close()


async def test_two_tasks_that_want_the_same_direction_wait_in_turn():
    one, other = await tls_legs("TLSv1.3")
    received = []

    async def read():
        received.append(await other.receive(1))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            await one.send(b"ab")
    assert sorted(received) == [b"a", b"b"]
    one.close()
    other.close()


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
async def test_a_verified_certificate_is_at_the_leg_with_its_chain(version):
    one, other = await tls_legs(version, pair(CLIENT))
    assert isinstance(other, TLSLeg)
    assert other.peer_leaf == CLIENT.certificate
    assert other.peer_chain == (CLIENT.certificate, CA.certificate)
    assert (other.version, other.server_name) == (version, b"localhost")
    one.close()
    other.close()


async def test_a_foreign_certificate_is_refused_with_openssls_reason():
    stranger = pki.issue_client(pki.make_ca("stranger"), "alice")
    with pytest.raises(ExceptionGroup) as caught:
        await tls_legs("TLSv1.2", pair(stranger))
    (error,) = caught.value.split(ClientCertificateFailed)[0].exceptions
    assert error.reason.startswith(
        "Client certificate verification failed at depth 0: unable to get local issuer"
    )
    assert error.record.certificate == stranger.certificate


async def test_only_certificates_that_do_not_verify_are_looked_at_by_python(monkeypatch):
    looked_at = []

    def note(_connection, certificate, error, *_):
        looked_at.append((certificate.to_cryptography(), error))
        return False

    monkeypatch.setattr(contexts, "_note_verify_error", note)
    for leg in await tls_legs("TLSv1.3", pair(CLIENT)):
        assert leg.is_verified
        leg.close()
    assert looked_at == []
    stranger = pki.issue_client(pki.make_ca("another"), "alice")
    with pytest.raises(ExceptionGroup):
        await tls_legs("TLSv1.3", pair(stranger))
    assert [certificate for certificate, _ in looked_at] == [stranger.certificate]


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05garbage", b"\x00" * 300]
)
async def test_what_is_no_handshake_fails_and_names_no_certificate(garbage):
    one, other = sockets()
    one.send(garbage)
    one.shutdown(socket.SHUT_WR)
    with trio.fail_after(10), pytest.raises(ClientTLSFailed):
        await accept_tls(other, server_context(pair(SERVER), TRUST, TLSOptions()))
    one.close()
    other.close()


async def test_a_failed_session_leaves_nothing_in_openssls_queue_for_the_next(legs):
    one, other = sockets()
    one.send(b"garbage" * 100)
    with pytest.raises(ClientTLSFailed):
        await accept_tls(other, server_context(pair(SERVER), TRUST, TLSOptions()))
    one.close()
    other.close()
    await legs[0].send(b"still fine")
    assert await legs[1].receive(100) == b"still fine"


async def test_a_cancelled_reader_leaves_a_leg_that_can_be_closed(legs):
    with trio.move_on_after(0.01):
        await legs[1].receive(1)
    legs[1].close()
    legs[1].close()


def test_the_connection_uses_no_memory_bio():
    """What nobody has read stays in the kernel."""
    one, other = sockets()
    connection = SSL.Connection(server_context(pair(SERVER), TRUST, TLSOptions()), other)
    with pytest.raises(TypeError):
        connection.bio_read(1)
    one.close()
    other.close()


@pytest.mark.parametrize("requested", [False, True])
@pytest.mark.parametrize("binding", [True, False])
async def test_a_flood_of_key_updates_ends_the_leg_and_holds_nobody_up(monkeypatch, requested, binding):
    """Without the binding, too, where one read of OpenSSL works off all that has arrived."""
    monkeypatch.setattr(openssl, "HAS_BINDING", binding)
    one, other = sockets()
    one.setblocking(True)
    context = server_context(pair(SERVER), None, TLSOptions())
    flooding = threading.Event()

    def flood():
        _, sender = key_updates.handshake(one, SSL.Context(SSL.TLS_METHOD))
        records = sender.flood(20_000, requested=requested)
        flooding.set()
        with contextlib.suppress(OSError):
            one.sendall(records)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, flood)
            leg = await accept_tls(other, context)
            await trio.to_thread.run_sync(flooding.wait)
            with pytest.raises(LegAbused):
                await leg.receive(16384)
            leg.abort()
    one.close()


async def test_data_between_key_updates_is_no_flood():
    one, other = sockets()
    one.setblocking(True)
    sent = []

    def send():
        _, sender = key_updates.handshake(one, SSL.Context(SSL.TLS_METHOD))
        for _ in range(10):
            sent.append(sender.flood(500, requested=False) + sender.record(b"x"))
            one.sendall(sent[-1])

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, send)
            leg = await accept_tls(other, server_context(pair(SERVER), None, TLSOptions()))
            assert await receive_all(leg, 10) == b"x" * 10
    one.close()
    other.close()


async def test_a_broken_handshake_and_a_broken_leg_leave_openssls_queue_empty(legs):
    """What stays there is taken for the next connection's failure."""
    assert openssl_errors() == 0
    one, other = sockets()
    one.send(b"\x16\x03\x01\x00\x05")
    one.shutdown(socket.SHUT_WR)
    with pytest.raises(ClientTLSFailed):
        await accept_tls(other, server_context(pair(SERVER), TRUST, TLSOptions()))
    assert openssl_errors() == 0
    one.close()
    other.close()
    legs[0].abort()
    with pytest.raises(LegLost):
        while True:
            await legs[1].receive(100)
            await legs[1].send(b"x")
    assert openssl_errors() == 0


def openssl_errors():
    return lib.ERR_peek_error()
