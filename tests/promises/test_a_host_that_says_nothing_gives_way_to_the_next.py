"""A host that takes the connection and then says nothing costs connect_timeout, not the login."""

import time

import pytest

from fixtures import wire
from fixtures.deployments import config, passthrough, with_tls
from fixtures.fake_backend import lets_everybody_in, silent

CONNECT_SECONDS = 0.5


def after_the_startup_message(conversation):
    conversation.accept()


def after_half_a_message(conversation):
    conversation.accept()
    conversation.send(wire.authentication(3)[:3])


def with_notices_for_ever(conversation):
    conversation.accept()
    while True:
        conversation.send(wire.message(b"N", b"Mpatience\x00\x00"))
        time.sleep(CONNECT_SECONDS / 5)


SILENT = {
    "from the start": silent,
    "after the StartupMessage": after_the_startup_message,
    "after half a message": after_half_a_message,
    "with notices for ever": with_notices_for_ever,
}


@pytest.fixture(scope="module")
def fakes(shared_fake_backend):
    return {name: shared_fake_backend(script) for name, script in SILENT.items()}


@pytest.fixture(scope="module")
def good(shared_fake_backend):
    return shared_fake_backend(lets_everybody_in)


@pytest.fixture(scope="module")
def running(shared_proxy, certs, fakes, good):
    def backend(*hosts):
        return passthrough(
            good,
            certs,
            host=["localhost"] * len(hosts),
            hostaddr=["127.0.0.1"] * len(hosts),
            port=[host.port for host in hosts],
            connect_timeout=f"{CONNECT_SECONDS * 1000:g}ms",
            require_auth="none",
        )

    backends = {f"alone{n}": backend(fake) for n, fake in enumerate(fakes.values())}
    backends |= {f"first{n}": backend(fake, good) for n, fake in enumerate(fakes.values())}
    return shared_proxy(
        config({name: with_tls(certs, backend=name) for name in backends}, **backends)
        | {"authentication_timeout": "600s"},
        {"pg_hba.conf": "host all all all trust\n"},
    )


def client_of(running, listener):
    client = wire.WireClient(("127.0.0.1", running.port(listener)), source=wire.another_source())
    assert client.ask_for_tls() == b"S"
    client.start_tls()
    client.send(wire.startup(user="alice"))
    return client


@pytest.mark.parametrize("number", range(len(SILENT)), ids=list(SILENT))
def test_the_next_host_is_tried_and_the_silent_one_is_last_from_then_on(running, fakes, good, number):
    fake = list(fakes.values())[number]
    fake.forget()
    for _ in range(2):
        with client_of(running, f"first{number}") as client:
            client.read_until(b"Z")
            decided = running.wait_for_event("session_decided", **client.where)
            assert decided["backend_addr"] == f"localhost (127.0.0.1:{good.port})"
    assert len(fake.conversations) == 1


@pytest.mark.parametrize("number", range(len(SILENT)), ids=list(SILENT))
def test_where_there_is_no_other_the_client_is_told(running, number):
    start = time.monotonic()
    with client_of(running, f"alone{number}") as client:
        assert client.read_error().error == ("57P03", "the database system is not available")
        assert CONNECT_SECONDS * 0.9 < time.monotonic() - start < CONNECT_SECONDS * 10
        decided = running.wait_for_event("session_decided", **client.where)
        assert decided["kind"] == "backend_unreachable"
        assert "within 0.5 s (connect_timeout)" in decided["reason"]
