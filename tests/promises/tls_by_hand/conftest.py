"""A listener that asks for certificates, with a hand-made TLS client in front of it and a fake backend behind."""

from __future__ import annotations

import pytest

from fixtures import wire
from fixtures.deployments import config, passthrough, with_tls
from fixtures.fake_backend import lets_everybody_in
from fixtures.handmade_tls import HandmadeTLS


@pytest.fixture(scope="module")
def backend(shared_fake_backend):
    return shared_fake_backend(lets_everybody_in)


@pytest.fixture(scope="module")
def running(shared_proxy, certs, backend):
    shown = certs.client("pgtlsproxy")
    primary = passthrough(backend, certs, login="certificate", sslcert=shown.crt, sslkey=shown.key)
    hba = {"pg_hba.conf": "hostssl all all all cert\n"}
    return shared_proxy(config({"tls": with_tls(certs)}, primary=primary), hba)


@pytest.fixture
def client(running):
    with wire.WireClient(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        assert client.ask_for_tls() == b"S"
        yield client


@pytest.fixture
def tls(client):
    return HandmadeTLS(client)
