"""Nobody is let in without a proof: every cell of the table gets the verdict that the rules foresee."""

from __future__ import annotations

import pytest

from matrix.deployment import configuration, observe
from matrix.table import Verdict, cells, expected

CELLS = list(cells())
LOADABLE = [cell for cell in CELLS if expected(cell) is not Verdict.NOT_LOADABLE]


@pytest.fixture(scope="module")
def running(shared_proxy, certs, servers):
    config, files = configuration(LOADABLE, certs, servers)
    return shared_proxy(config, files)


@pytest.mark.parametrize("cell", LOADABLE, ids=str)
def test_the_verdict_is_the_rules(cell, running, certs, fake_server):
    fake_server.forget()
    assert observe(cell, running, certs) == expected(cell)
