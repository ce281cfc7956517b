"""Legs as the relay's thread holds them: memory is put between OpenSSL and the socket and taken away, at any moment."""

import contextlib
import select
import socket
import threading

import pytest
from OpenSSL import SSL

from fixtures import key_updates
from fixtures.relayed import SERVER, sockets
from pgtlsproxy.tls.contexts import KeyPair, TLSOptions, server_context
from pgtlsproxy.tls.raw import Buffers, Want
from pgtlsproxy.tls.raw_tls import EMPTY_RECORDS, raw_leg
from pgtlsproxy.tls.stream import MAX_RECORD_OCTETS, TLSLeg

MESSAGE = b"SELECT 1 AS a_query_of_some_length"


@pytest.fixture
def ends():
    """A raw leg, the socket of its peer, and the maker of the peer's records."""
    ours, theirs = sockets()
    ours.setblocking(True)
    theirs.setblocking(True)
    made = {}

    def shake_hands():
        made["connection"], made["sender"] = key_updates.handshake(theirs, SSL.Context(SSL.TLS_METHOD))

    client = threading.Thread(target=shake_hands)
    client.start()
    connection = SSL.Connection(
        server_context(KeyPair((SERVER.certificate,), SERVER.key), None, TLSOptions()), ours
    )
    connection.set_accept_state()
    connection.do_handshake()
    client.join()
    ours.setblocking(False)
    buffers = Buffers()
    yield raw_leg(TLSLeg(ours, connection), buffers), theirs, made["sender"], made["connection"]
    ours.close()
    theirs.close()


def receive(raw):
    select.select([raw.sock], [], [], 5)
    return raw.receive(MAX_RECORD_OCTETS)


def swap(raw):
    if raw.is_buffered:
        assert raw.unbuffer()
    else:
        raw.buffer()


@pytest.mark.parametrize("starts_buffered", [False, True])
def test_a_swap_at_any_octet_of_a_record_loses_nothing(ends, starts_buffered):
    raw, peer, sender, _ = ends
    if starts_buffered:
        raw.buffer()
    for cut in range(len(sender.record(b"")) + len(MESSAGE)):
        sender.sequence = max(sender.sequence - (cut == 0), 0)  # the record that was made to be measured
        record = sender.record(MESSAGE)
        if cut:
            peer.sendall(record[:cut])
            assert receive(raw) is Want.READ
        swap(raw)
        peer.sendall(record[cut:])
        assert receive(raw) == len(MESSAGE)
        assert bytes(raw._buffers.plain[: len(MESSAGE)]) == MESSAGE
        swap(raw)
        swap(raw)


def test_a_leg_is_not_swapped_back_while_something_lies_in_between(ends):
    raw, peer, sender, _ = ends
    raw.buffer()
    peer.sendall(sender.flood(EMPTY_RECORDS + 1, requested=False) + sender.record(MESSAGE))
    assert receive(raw) is Want.READ
    assert raw.has_more
    assert not raw.unbuffer()
    assert raw.receive(MAX_RECORD_OCTETS) == len(MESSAGE)
    assert raw.unbuffer()


def test_a_leg_is_not_swapped_back_before_its_end_is_told_behind_what_came_before(ends):
    raw, peer, sender, _ = ends
    raw.buffer()
    peer.sendall(sender.record(MESSAGE) + sender.record(key_updates.CLOSE_NOTIFY, key_updates.ALERT))
    assert receive(raw) == len(MESSAGE)
    assert raw.has_more
    assert not raw.unbuffer()
    assert raw.receive(MAX_RECORD_OCTETS) is Want.END


def test_a_whole_record_leaves_nothing_behind_that_no_event_announces(ends):
    raw, peer, sender, _ = ends
    for octets in (1, 100, 8192, MAX_RECORD_OCTETS):
        peer.sendall(sender.record(b"x" * octets))
        assert receive(raw) == octets
        assert raw.leg.connection.pending() == 0


@pytest.mark.parametrize("is_buffered", [False, True])
def test_what_a_full_socket_does_not_take_is_kept_from_other_sessions(ends, is_buffered):
    raw, _peer, _, connection = ends
    raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    if is_buffered:
        raw.buffer()
    plain = raw._buffers.plain
    sent = 0
    while True:
        plain[:MAX_RECORD_OCTETS] = b"m" * MAX_RECORD_OCTETS
        sent += MAX_RECORD_OCTETS
        if not raw.send(MAX_RECORD_OCTETS):
            break
    assert not raw.unbuffer()  # what is kept would be encrypted once more
    plain[:] = b"?" * len(plain)  # another session's
    raw._buffers.cipher_view[:] = b"?" * len(plain)
    received = b""

    def read():
        nonlocal received
        while len(received) < sent:
            received += connection.recv(65536)

    reader = threading.Thread(target=read)
    reader.start()
    while not raw.flush():
        select.select([], [raw.sock], [], 5)
    reader.join(10)
    assert received == b"m" * sent
    assert raw.unbuffer()


def fill(raw):
    """Write until the socket is full; returns how many octets."""
    raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sent, has_room = 0, True
    while has_room:
        raw._buffers.plain[:MAX_RECORD_OCTETS] = b"m" * MAX_RECORD_OCTETS
        sent += MAX_RECORD_OCTETS
        has_room = raw.send(MAX_RECORD_OCTETS)
    return sent


def flush_to(raw, connection, octets=None):
    """Write all that is unsent while the peer reads so many octets, or to the end; returns what it has read."""
    received = bytearray()

    def read():
        with contextlib.suppress(SSL.ZeroReturnError):
            while octets is None or len(received) < octets:
                received.extend(connection.recv(65536))

    reader = threading.Thread(target=read)
    reader.start()
    while not raw.flush():
        select.select([], [raw.sock], [], 5)
    reader.join(10)
    return bytes(received)


def test_openssl_never_holds_half_a_record(ends):
    """It could put no other behind it: neither an answer to a KeyUpdate nor close_notify."""
    raw, peer, sender, connection = ends
    sent = fill(raw)
    peer.sendall(sender.key_update(requested=True) + sender.record(MESSAGE))
    assert receive(raw) == len(MESSAGE)
    assert not raw.end()
    assert flush_to(raw, connection) == b"m" * sent


def test_a_full_socket_gets_what_was_written_to_it_and_no_memory_stays(ends):
    raw, _, _, connection = ends
    for data in (bytes(range(256)) * 1000, bytes(range(7)) * 9999):
        sent = fill(raw)
        assert raw.is_buffered
        assert flush_to(raw, connection, sent) == b"m" * sent
        assert raw.unbuffer()
        assert not raw.put(data)
        assert flush_to(raw, connection, len(data)) == data
        assert raw.unbuffer()
