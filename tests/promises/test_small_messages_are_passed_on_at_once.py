"""Octet by octet, in pieces of any size, one small message behind another: all arrive, and none waits for an answer."""

import time

import pytest

from fixtures import wire
from fixtures.deployments import config, in_clear, passthrough, with_tls

ROUNDS = 200
DELAYED_ACK = 0.04
"""Seconds that Linux may let an acknowledgement wait for, and Nagle's algorithm the next small message with it."""


def echoes(conversation):
    conversation.accept()
    conversation.let_in()
    while data := conversation.receive():
        conversation.send(data)


def answers_each_pair_in_two(conversation):
    """Two messages make a request, and two an answer, as Parse and Sync do."""
    conversation.accept()
    conversation.let_in()
    while True:
        conversation.read_exactly(2)
        conversation.send(b"1")
        conversation.send(b"2")


@pytest.fixture(params=["clear", "tls"])
def client(request, proxy, certs, fake_backend):
    def log_in(script):
        running = proxy(
            config(
                {"clear": in_clear(), "tls": with_tls(certs)},
                primary=passthrough(fake_backend(script), certs, require_auth="none"),
            ),
            {"pg_hba.conf": "host all all all trust\n"},
        )
        client = wire.WireClient(("127.0.0.1", running.port(request.param)))
        clients.append(client)
        if request.param == "tls":
            assert client.ask_for_tls() == b"S"
            client.start_tls()
        client.send(wire.startup(user="alice"))
        client.read_until(b"Z")
        return client

    clients = []
    yield log_in
    for each in clients:
        each.close()


@pytest.mark.parametrize(("octets", "piece"), [(4096, 1), (262_144, 8191), (262_144, 16_411)])
def test_pieces_of_any_size_come_back_as_they_were(client, octets, piece):
    talking = client(echoes)
    data = bytes(number * 31 % 251 for number in range(octets))
    for start in range(0, octets, piece):
        talking.send(data[start : start + piece])
    assert talking.read_exactly(octets) == data


def test_the_second_of_two_small_messages_does_not_wait_for_the_firsts_acknowledgement(client):
    talking = client(answers_each_pair_in_two)
    begin = time.monotonic()
    for _ in range(ROUNDS):
        talking.send(b"a")
        talking.send(b"b")
        assert talking.read_exactly(2) == b"12"
    assert time.monotonic() - begin < ROUNDS * DELAYED_ACK / 2
