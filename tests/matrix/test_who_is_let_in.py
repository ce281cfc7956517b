"""Nobody is let in without a proof: every cell of the table gets the verdict that the rules foresee."""

from __future__ import annotations

import json
import struct

import pytest

from matrix.deployment import addresses, configuration, listener_name, observe
from matrix.table import Backend, Verdict, by_hand, cells, expected

CELLS = tuple(cells())
LOADABLE = [cell for cell in CELLS if expected(cell) is not Verdict.NOT_LOADABLE]


@pytest.fixture(scope="module")
def listening(shared_proxy, certs, servers):
    """One proxy with every listener that loads, and where each is."""
    config, files = configuration(LOADABLE, certs, servers)
    return addresses(shared_proxy(config, files))


@pytest.mark.parametrize("cell", LOADABLE, ids=str)
def test_a_client_gets_the_verdict_of_the_rules(cell, listening, certs, fake_server):
    fake_server.forget()
    assert observe(cell, listening[listener_name(cell)], certs) == expected(cell)
    is_refused = expected(cell) is Verdict.PROXY_57P03
    if is_refused and cell.backend.is_fake and cell.backend is not Backend.FAKE_HALF_SCRAM:
        received = fake_server.conversation().inside
        assert len(received) == struct.unpack_from("!I", received)[0], "more than the StartupMessage arrived"


def test_exactly_the_lines_without_a_proof_are_refused_at_load(proxy, command_line, certs, servers):
    config, files = configuration(CELLS, certs, servers)
    path = proxy.write(config, files)
    checked = command_line("check", "-c", path, "--json")
    found = {mistake["where"] for mistake in json.loads(checked.stdout)["mistakes"]}
    unloadable = {listener_name(cell) for cell in CELLS if expected(cell) is Verdict.NOT_LOADABLE}
    assert found == {f"{path.parent}/{name}.hba:1" for name in unloadable}
    assert checked.returncode == 1


def test_what_loads_passes_the_check(proxy, command_line, certs, servers):
    path = proxy.write(*configuration(LOADABLE, certs, servers))
    checked = command_line("check", "-c", path, "--json")
    assert (checked.returncode, json.loads(checked.stdout)["mistakes"]) == (0, [])


@pytest.mark.parametrize(("cell", "verdict"), by_hand().items(), ids=str)
def test_the_rules_are_what_a_reviewer_wrote_down_by_hand(cell, verdict):
    assert cell in CELLS
    assert expected(cell) is verdict


def test_the_table_covers_every_verdict_and_more_than_300_cells():
    assert {expected(cell) for cell in CELLS} == set(Verdict)
    assert len(LOADABLE) > 300
