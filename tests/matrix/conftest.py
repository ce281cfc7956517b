"""The servers behind the matrix, for all its test files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.certs import Certs
from fixtures.fake_backend import FakeBackend
from fixtures.postgres import ClusterFactory
from matrix.deployment import SERVER_HBA, SERVER_IDENT, Servers, fake


@pytest.fixture(scope="module")
def fake_server(certs: Certs) -> Iterator[FakeBackend]:
    """One that does what the session's database says."""
    with FakeBackend(fake, certs.server, client_ca=certs.ca) as backend:
        yield backend


@pytest.fixture(scope="module")
def servers(tls_cluster: ClusterFactory, fake_server: FakeBackend) -> Iterator[Servers]:
    cluster = tls_cluster(17, SERVER_HBA, ident=SERVER_IDENT)
    with tempfile.TemporaryDirectory(prefix="matrix-") as sockets:  # a socket's path has 107 bytes at most
        yield Servers(cluster, fake_server.port, Path(sockets))
