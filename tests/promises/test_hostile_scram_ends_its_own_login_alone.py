"""SCRAM that is malformed, out of order, too long, too dear or replayed, from either side: one refusal, one line without its payload."""

import base64
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest

from fixtures import wire
from fixtures.deployments import (
    PROXY_CERTIFICATE_HBA,
    PROXY_CERTIFICATE_IDENT,
    config,
    in_clear,
    passthrough,
    with_certificate,
    with_tls,
)
from fixtures.postgres import password
from fixtures.processes import resident_octets
from fixtures.scram_secrets import secrets_file
from fixtures.scram_servers import end_point
from fixtures.shared_proxy import refusal_of
from fixtures.wire import WireClient

PLAIN, PLUS = "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"
SALT = b"s=MDEyMzQ1Njc4OWFiY2RlZg=="
CANARY = b"canary"
PROOF = base64.b64encode(bytes(32))


@pytest.fixture(scope="module")
def cluster(tls_cluster):
    return tls_cluster(17)


@pytest.fixture(scope="module")
def believing(tls_cluster):
    return tls_cluster(17, PROXY_CERTIFICATE_HBA, ident=PROXY_CERTIFICATE_IDENT)


@pytest.fixture(scope="module")
def hostile(shared_fake_backend):
    return shared_fake_backend()


@pytest.fixture(scope="module")
def running(cluster, believing, hostile, shared_proxy, certs):
    other = certs.ca.server("localhost")
    fake = {"host": "localhost", "port": hostile.port, "sslrootcert": certs.ca.crt}
    backends = {
        "primary": passthrough(cluster, certs),
        "believing": with_certificate(believing, certs),
        "fake": fake | {"login": "passthrough"},
        "fake_passfile": fake | {"login": "passfile", "passfile": "passwords"},
    }
    listeners = {
        "bridge": with_tls(certs, other),
        "own_scram": with_tls(certs, other, backend="believing"),
        "own_clear": in_clear(backend="believing"),
        "fake_bridge": with_tls(certs, other, backend="fake"),
        "fake_shown": with_tls(certs, other, backend="fake", hba_file="password.conf"),
        "fake_passfile": with_tls(certs, other, backend="fake_passfile", hba_file="cert.conf"),
    }
    files = {
        "pg_hba.conf": "host all all all scram-sha-256\n",
        "password.conf": "host all all all password\n",
        "cert.conf": "hostssl all all all cert\n",
        "passwords": f"*:*:*:alice:{password('alice')}\n",
        "secrets.txt": secrets_file(cluster),
    }
    secrets = {"scram_secrets_file": "secrets.txt"}
    return shared_proxy(config({name: each | secrets for name, each in listeners.items()}, **backends), files)


def connected(running, listener, certificate=None):
    return wire.connected(
        ("127.0.0.1", running.port(listener)),
        wire.tls_context(certificate=certificate),
        source=wire.another_source(),
    )


# --- From the backend -----------------------------------------------------------------------------------------

FIRST = {
    "a nonce of 300 octets more": lambda nonce: b"r=" + nonce + b"x" * 300 + b"," + SALT + b",i=4096",
    "another nonce": lambda _: b"r=canary," + SALT + b",i=4096",
    "the client's nonce alone": lambda nonce: b"r=" + nonce + b"," + SALT + b",i=4096",
    "no salt": lambda nonce: b"r=" + nonce + b"canary,i=4096",
    "a salt that is not base64": lambda nonce: b"r=" + nonce + b"x,s=canary!,i=4096",
    "no iterations": lambda nonce: b"r=" + nonce + b"x," + SALT,
    "iterations of 0": lambda nonce: b"r=" + nonce + b"x," + SALT + b",i=0",
    "iterations below 0": lambda nonce: b"r=" + nonce + b"x," + SALT + b",i=-4096",
    "10^9 iterations": lambda nonce: b"r=" + nonce + b"x," + SALT + b",i=1000000000",
    "10^30 iterations": lambda nonce: b"r=" + nonce + b"x," + SALT + b",i=1" + b"0" * 30,
    "an extension that must be understood": lambda nonce: b"m=canary,r=" + nonce + b"x," + SALT + b",i=4096",
    "a NUL": lambda nonce: b"r=" + nonce + b"x\0canary," + SALT + b",i=4096",
    "nothing": lambda _: b"",
    "what it is not": lambda _: b"canary",
}

FINAL = {
    "no signature": b"",
    "another attribute": b"x=canary",
    "a signature that is wrong": b"v=" + PROOF,
    "a signature of 3 octets": b"v=YWJj",
    "a signature that is not base64": b"v=canary!",
    "an error": b"e=other-error",
    "more behind it": b"v=" + PROOF + b",canary",
}


def asks(hostile, first, final=None):
    """Let the fake ask so."""

    def script(conversation):
        conversation.accept()
        conversation.send(wire.authentication_sasl(PLUS, PLAIN))
        response = conversation.read_message().body
        nonce = response.rpartition(b"r=")[2]
        conversation.send(wire.authentication(11, first(nonce)))
        if final is not None:
            conversation.read_message()
            conversation.send(wire.authentication(12, final) + wire.AUTHENTICATION_OK)

    hostile.script = script


def hears(running, certs, listener):
    """The error that a client hears whose own part is right, and the event."""
    shown = certs.client("alice") if listener == "fake_passfile" else None
    with connected(running, listener, shown) as client:
        client.send(wire.startup(user="alice"))
        if listener == "fake_shown":
            assert client.read_message().code == 3
            client.send(wire.password_message(password("alice")))
        elif listener == "fake_bridge":
            assert client.read_message().code == 10
            header = b"p=tls-server-end-point,,"
            client.send(wire.sasl_initial_response(PLUS, header + b"n=,r=abc"))
            answer = client.read_message()
            if answer.kind == b"E":
                return answer.error, refusal_of(running, client)
            nonce = answer.body[4:].partition(b",")[0][2:]
            bound = base64.b64encode(header + end_point(certs.ca.server("localhost")))
            client.send(wire.message(b"p", b"c=" + bound + b",r=" + nonce + b",p=" + PROOF))
        return client.read_error().error, refusal_of(running, client)


@pytest.mark.parametrize("first", FIRST.values(), ids=FIRST)
@pytest.mark.parametrize("listener", ["fake_bridge", "fake_shown", "fake_passfile"])
def test_a_challenge_that_cannot_be_is_refused(running, hostile, certs, listener, first):
    asks(hostile, first)
    error, event = hears(running, certs, listener)
    assert error[0] == "57P03"
    assert event["kind"] == "backend_protocol"
    assert CANARY.decode() not in str(event)


@pytest.mark.parametrize("final", FINAL.values(), ids=FINAL)
@pytest.mark.parametrize("listener", ["fake_bridge", "fake_shown", "fake_passfile"])
def test_a_verdict_that_proves_nothing_is_refused(running, hostile, certs, listener, final):
    asks(hostile, lambda nonce: b"r=" + nonce + b"x," + SALT + b",i=4096", final)
    error, event = hears(running, certs, listener)
    assert error[0] == "57P03"
    assert event["kind"] == "backend_protocol"
    assert CANARY.decode() not in str(event)


# --- From the client ------------------------------------------------------------------------------------------


def initial(mechanism, length, rest=b""):
    return wire.message(b"p", wire.string(mechanism) + struct.pack("!i", length) + rest)


# Names of mechanisms and of channel bindings, and the words of an error, are shown.
OPENINGS = {
    "a length of 2^31 - 1": initial(PLAIN, 2**31 - 1, CANARY),
    "a length of -2": initial(PLAIN, -2, CANARY),
    "a length of -1 and something": initial(PLAIN, -1, CANARY),
    "a length of 0": initial(PLAIN, 0),
    "more than it says": initial(PLAIN, 3, b"n,," + CANARY),
    "no length": wire.message(b"p", wire.string(PLAIN)),
    "a mechanism of 60 kB": initial("unheard" * 10_000, 0),
    "a mechanism that was not offered": initial("unheard", 9, b"n,,canary"),
    "a name": initial(PLAIN, 15, b"n,a=canary,n=,r"),
    "no nonce": wire.sasl_initial_response(PLAIN, b"n,,n=canary"),
    "a nonce that is not printable": wire.sasl_initial_response(PLAIN, b"n,,n=,r=canary\x01"),
    "an extension that must be understood": wire.sasl_initial_response(PLAIN, b"n,,m=canary,n=,r=x"),
    "a message of 2 kB": wire.sasl_initial_response(PLAIN, b"n,,n=,r=" + b"canary" * 350),
    "PLUS without binding": wire.sasl_initial_response(PLUS, b"n,,n=,r=canary"),
    "binding without PLUS": wire.sasl_initial_response(PLAIN, b"p=tls-server-end-point,,n=,r=canary"),
    "another binding": wire.sasl_initial_response(PLUS, b"p=unheard,,n=,r=canary"),
    "a query": wire.query("canary"),
    "the proof at once": wire.message(b"p", b"c=biws,r=canary,p=" + PROOF),
}


@pytest.mark.parametrize("said", OPENINGS.values(), ids=OPENINGS)
@pytest.mark.parametrize("listener", ["bridge", "own_scram"])
def test_a_first_message_that_cannot_be_is_refused(running, listener, said):
    with connected(running, listener) as client:
        client.send(wire.startup(user="alice"))
        assert client.read_message().code == 10
        client.send(said)
        assert client.read_error().error[0] in {"08P01", "0A000"}
        assert CANARY.decode() not in str(refusal_of(running, client))


def proved(nonce, binding=b"biws", proof=PROOF):
    return b"c=" + binding + b",r=" + nonce + b",p=" + proof


PROOFS = {
    "no proof": lambda nonce: b"c=biws,r=" + nonce,
    "a proof of 6 octets": lambda nonce: proved(nonce, proof=b"Y2FuYXJ5"),
    "a proof that is not base64": lambda nonce: proved(nonce, proof=b"canary!"),
    "another nonce": lambda _: proved(b"canary"),
    "no binding": lambda nonce: b"r=" + nonce + b",p=" + PROOF,
    "another binding": lambda nonce: proved(nonce, b"Y2FuYXJ5"),
    "more behind it": lambda nonce: proved(nonce) + b",x=canary",
    "the first message again": lambda _: b"n,,n=,r=canary",
    "nothing": lambda _: b"",
    "2 kB": lambda nonce: proved(nonce + b"canary" * 350),
    "a wrong proof": proved,
}


@pytest.mark.parametrize("said", PROOFS.values(), ids=PROOFS)
@pytest.mark.parametrize("header", [b"n,,", b"p=tls-server-end-point,,"], ids=["n", "p"])
@pytest.mark.parametrize("listener", ["bridge", "own_scram"])
def test_a_second_message_that_cannot_be_is_refused(running, listener, header, said):
    with connected(running, listener) as client:
        client.send(wire.startup(user="alice"))
        challenge = wire.begin_scram(client, flag=header)
        client.send(wire.message(b"p", said(challenge.nonce)))
        assert client.read_error().error[0] in {"08P01", "28P01", "28000"}
        assert CANARY.decode() not in str(refusal_of(running, client))


@pytest.mark.parametrize("listener", ["bridge", "own_scram"])
def test_a_proof_that_was_overheard_lets_nobody_in_again(running, listener):
    """All of it, byte by byte; the other side's nonce is a new one."""
    overheard = []
    with connected(running, listener) as client:
        client.send(wire.startup(user="alice"))

        def recording(data, send=client.send):
            overheard.append(data)
            send(data)

        client.send = recording
        wire.log_in(client, password("alice"))
    for said in (overheard, [overheard[0], overheard[1] * 2], [overheard[1]]):
        with connected(running, listener) as client:
            client.send(wire.startup(user="alice"))
            assert client.read_message().code == 10
            for turn, data in enumerate(said):
                client.send(data)
                if turn + 1 < len(said):
                    assert client.read_message().code == 11
            assert client.read_error().error[0] in {"08P01", "28P01"}
            refusal_of(running, client)


def test_nothing_is_left_of_10_000_attempts(running):
    """T98: the worker is the same one, as large as before, and lets in who knows the password."""
    port = running.port("own_clear")
    said = [*OPENINGS.values(), wire.sasl_initial_response(PLAIN, b"n,,n=,r=abc")]

    def attempts(numbers):
        for number in numbers:
            source = f"127.{100 + number % 100}.{number // 100 % 250}.1"
            with WireClient(("127.0.0.1", port), source=source) as client:
                client.send(wire.startup(user=f"user {number % 7}"))
                assert client.read_message().code == 10
                client.send(said[number % len(said)])
                if number % len(said) == len(said) - 1:
                    nonce = wire.scram_attributes(client.read_message().body[4:])["r"].encode()
                    client.send(wire.message(b"p", proved(nonce)))
                assert client.read_message().kind == b"E"

    (worker,) = running.workers
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(attempts, (range(each, 1000, 4) for each in range(4))))
        before = resident_octets(worker)
        list(pool.map(attempts, (range(1000 + each, 10_000, 4) for each in range(4))))
    assert running.workers == [worker]
    assert resident_octets(worker) - before < 16 << 20
    with connected(running, "own_scram") as client:
        client.send(wire.startup(user="alice"))
        wire.log_in(client, password("alice"))
