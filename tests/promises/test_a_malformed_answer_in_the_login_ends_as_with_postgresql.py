"""A client that answers the login with nonsense hears what PostgreSQL would say, and its nonsense proves nobody."""

import base64
import struct

import pytest

from fixtures import wire
from fixtures.deployments import config, passthrough, with_tls
from fixtures.postgres import password
from fixtures.shared_proxy import refusal_of


@pytest.fixture(scope="module", params=[15, 17])
def cluster(request, tls_cluster):
    return tls_cluster(request.param)


@pytest.fixture(scope="module")
def running(shared_proxy, certs, cluster):
    listener = with_tls(certs, server=certs.ca.server("localhost", "127.0.0.1", "proxy"))
    return shared_proxy(
        config({"tls": listener}, primary=passthrough(cluster, certs)),
        {"pg_hba.conf": "host all all all scram-sha-256\n"},
    )


def initial(mechanism, response, length=None):
    said = struct.pack("!I", (len(response) if length is None else length) & 0xFFFFFFFF)
    return wire.message(b"p", wire.string(mechanism) + said + response)


SCRAM = "SCRAM-SHA-256"
FIRST = b"n,,n=,r=fyko+d2lbbFgONRv9qkxdawL"

ANSWERS = {
    "a Query": (wire.query("SELECT 1"), "08P01"),
    "a Terminate": (wire.TERMINATE, "08P01"),
    "a NUL": (b"\x00" * 8, "08P01"),
    "an empty answer": (wire.message(b"p"), "08P01"),
    "a mechanism without end": (wire.message(b"p", b"SCRAM-SHA-256"), "08P01"),
    "a mechanism and no length": (wire.message(b"p", b"SCRAM-SHA-256\x00"), "08P01"),
    "half a length": (wire.message(b"p", b"SCRAM-SHA-256\x00\x00\x00"), "08P01"),
    "a length beyond the message": (initial(SCRAM, FIRST, length=1000), "08P01"),
    "a length of 2^31-1": (initial(SCRAM, FIRST, length=2**31 - 1), "08P01"),
    "a length of -2": (initial(SCRAM, FIRST, length=-2), "08P01"),
    "a length of -1 and an answer": (initial(SCRAM, FIRST, length=-1), "08P01"),
    "a length that is too short": (initial(SCRAM, FIRST, length=3), "08P01"),
    "an answer of no bytes": (initial(SCRAM, b""), "08P01"),
    "no mechanism": (initial("", FIRST), "08P01"),
    "a mechanism that was not offered": (initial("SCRAM-SHA-1", FIRST), "08P01"),
    "a mechanism in lower case": (initial("scram-sha-256", FIRST), "08P01"),
    "no channel binding flag": (initial(SCRAM, b"x,,n=,r=abc"), "08P01"),
}
"""What the client says to AuthenticationSASL, and the code of the answer."""


def hears(client, said):
    """The error that comes in answer to this."""
    client.send(wire.startup(user="alice"))
    assert client.read_message().code == 10
    client.send(said)
    return client.read_error().error


@pytest.mark.parametrize(("said", "sqlstate"), ANSWERS.values(), ids=ANSWERS.keys())
def test_it_hears_what_postgresql_says(running, cluster, said, sqlstate):
    with wire.connected((cluster.host, cluster.port)) as direct:
        expected = hears(direct, said)
    assert expected[0] == sqlstate
    with wire.connected(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        assert hears(client, said) == expected
        refusal_of(running, client)


@pytest.mark.parametrize("length", [0, 3, 65536, 2**31 - 1, 2**31, 2**32 - 1])
def test_a_message_of_an_impossible_length_is_not_waited_for(running, length):
    with wire.connected(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        assert hears(client, b"p" + struct.pack("!I", length) + b"x" * 100)[0] == "08P01"
        assert refusal_of(running, client)["kind"] == "client_protocol"


def test_a_scram_message_longer_than_postgresql_reads_ends_the_login(running):
    with wire.connected(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        assert hears(client, initial(SCRAM, b"n,,n=,r=" + b"x" * 2000))[0] == "08P01"


def test_a_mechanism_of_60_kb_ends_the_login(running):
    with wire.connected(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        assert hears(client, initial("x" * 60_000, FIRST))[0] == "08P01"
        assert len(refusal_of(running, client)["reason"]) < 1000


def test_a_password_is_no_answer_to_a_list_of_mechanisms(running):
    with wire.connected(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        assert hears(client, wire.password_message(password("alice")))[0] == "08P01"


def after_the_challenge(client, said):
    """The error that comes in answer to this in the second turn."""
    client.send(wire.startup(user="alice"))
    assert client.read_message().code == 10
    client.send(initial(SCRAM, FIRST))
    challenge = client.read_message()
    assert challenge.code == 11
    nonce = wire.scram_attributes(challenge.body[4:])["r"]
    client.send(said(nonce.encode()))
    return client.read_error().error


SECOND = {
    "a Query": lambda _: wire.query("SELECT 1"),
    "nothing": lambda _: wire.message(b"p"),
    "no proof": lambda nonce: wire.message(b"p", b"c=biws,r=" + nonce),
    "another nonce": lambda _: wire.message(b"p", b"c=biws,r=abc,p=" + base64.b64encode(b"x" * 32)),
    "another channel binding": lambda nonce: wire.message(
        b"p", b"c=eSws,r=" + nonce + b",p=" + base64.b64encode(b"x" * 32)
    ),
    "a proof of three bytes": lambda nonce: wire.message(b"p", b"c=biws,r=" + nonce + b",p=YWJj"),
    "a wrong proof": lambda nonce: wire.message(
        b"p", b"c=biws,r=" + nonce + b",p=" + base64.b64encode(b"x" * 32)
    ),
}


@pytest.mark.parametrize("said", SECOND.values(), ids=SECOND.keys())
def test_so_it_is_in_the_second_turn(running, cluster, said):
    with wire.connected((cluster.host, cluster.port)) as direct:
        expected = after_the_challenge(direct, said)
    with wire.connected(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        assert after_the_challenge(client, said) == expected
        assert refusal_of(running, client)["sqlstate"] == expected[0]


def test_a_right_proof_is_let_in(running):
    with wire.connected(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        client.send(wire.startup(user="alice"))
        assert wire.log_in(client, password("alice"))[-1].kind == b"Z"


@pytest.mark.parametrize("flag", [b"y,,", b"p=tls-server-end-point,,"], ids=["y", "p"])
def test_channel_binding_that_must_fail_is_named_with_its_ways_out(running, flag):
    with wire.connected(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        sqlstate, text = hears(client, initial(SCRAM, flag + b"n=,r=abc"))
        if flag[:1] == b"y":
            assert sqlstate == "28000"
            assert "channel_binding=disable" in text
            assert refusal_of(running, client)["kind"] == "channel_binding"
        else:
            assert sqlstate == "08P01"  # PLUS was not offered, so nobody may use it
