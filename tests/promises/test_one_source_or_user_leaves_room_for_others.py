"""Sessions have a limit a source and a limit a user, over all workers: one that takes all it gets keeps nobody out."""

from contextlib import ExitStack

import pytest

from fixtures import wire
from fixtures.deployments import config, in_clear, passthrough, with_tls
from fixtures.fake_backend import asks_for_scram, lets_everybody_in
from fixtures.postgres import password
from fixtures.waiting import until

LIMIT = 3
TOO_MANY = ("53300", "sorry, too many clients already")
TOO_MANY_OF_A_USER = ("53300", 'too many connections for role "app"')
FILES = {
    "cert.conf": "hostssl all all all cert map=people\n",
    "scram.conf": "host all all all scram-sha-256\n",
    "pg_ident.conf": "people alice app\npeople bob app\n",
}


@pytest.fixture(scope="module")
def backends(shared_fake_backend):
    return {
        "good": shared_fake_backend(lets_everybody_in),
        "asks": shared_fake_backend(asks_for_scram(password("app"))),
    }


@pytest.fixture
def start(proxy, certs, backends):
    shown = certs.client("pgtlsproxy")
    own = {"login": "certificate", "sslcert": shown.crt, "sslkey": shown.key}

    def go(**limits):
        cert = with_tls(certs, hba_file="cert.conf", ident_file="pg_ident.conf", backend="good")
        running = proxy(
            config(
                {
                    "cert": cert,
                    "again": cert,
                    "scram": in_clear(hba_file="scram.conf", backend="asks"),
                },
                good=passthrough(backends["good"], certs, **own),
                asks=passthrough(backends["asks"], certs),
            )
            | {"workers": 2}
            | limits,
            FILES,
        )
        running.wait_for_event("ready")
        return running

    return go


@pytest.fixture
def log_in(certs):
    """Logs somebody in; gives the client, or the error that it was told."""
    with ExitStack() as stack:

        def one(running, listener="cert", name="alice", source=None):
            address = "127.0.0.1", running.port(listener)
            client = stack.enter_context(wire.WireClient(address, source=source or wire.another_source()))
            if listener != "scram":
                assert client.ask_for_tls() == b"S"
                client.start_tls(wire.tls_context(certificate=certs.client(name)))
            client.send(wire.startup(user="app"))
            if listener == "scram":
                message, _ = wire.try_to_prove(client, password("app"))
            else:
                message = client.read_message()
            if message.kind == b"E":
                return message.error
            client.read_until(b"Z")
            return client

        yield one


def leave(running, client):
    client.send(wire.TERMINATE)
    client.read_to_end()
    running.wait_for_event("session_ended", **client.where)


def test_a_source_that_has_all_it_may_keeps_no_other_out(start, log_in):
    running = start(max_connections_per_source=LIMIT)
    source = wire.another_source()
    sessions = [log_in(running, source=source) for _ in range(LIMIT)]
    assert [log_in(running, source=source), log_in(running, "again", source=source)] == [TOO_MANY] * 2
    refused = running.wait_for_event("session_decided", verdict="refused")
    assert (refused["kind"], refused["user"], refused["client_addr"]) == ("limit", "app", source)
    assert "max_connections_per_source" in refused["reason"]
    assert log_in(running) != TOO_MANY
    leave(running, sessions[0])
    until(lambda: log_in(running, source=source) != TOO_MANY)


def test_a_certificate_that_has_all_it_may_keeps_no_other_out(start, log_in, backends):
    """Whatever the role is called; one that is refused is not led to a server."""
    running = start(max_connections_per_user=LIMIT)
    sessions = [log_in(running) for _ in range(LIMIT)]
    before = len(backends["good"].conversations)
    assert [log_in(running) for _ in range(3)] == [TOO_MANY_OF_A_USER] * 3
    assert len(backends["good"].conversations) == before
    refused = running.wait_for_event("session_decided", verdict="refused")
    assert (refused["kind"], refused["sqlstate"]) == ("limit", "53300")
    assert "max_connections_per_user" in refused["reason"]
    assert TOO_MANY_OF_A_USER not in [log_in(running, name="bob"), log_in(running, "again")]
    leave(running, sessions[0])
    until(lambda: log_in(running) != TOO_MANY_OF_A_USER)


def test_a_role_is_counted_once_its_password_is_proved(start, log_in):
    """Who only says that it is somebody takes nobody's place."""
    running = start(max_connections_per_user=LIMIT)
    with ExitStack() as stack:
        for _ in range(2 * LIMIT):
            silent = stack.enter_context(wire.WireClient(("127.0.0.1", running.port("scram"))))
            silent.send(wire.startup(user="app"))
            assert silent.read_message().code == 10
        for _ in range(LIMIT):
            assert log_in(running, "scram") != TOO_MANY_OF_A_USER
        assert log_in(running, "scram") == TOO_MANY_OF_A_USER
