"""Every client, with each of its settings for channel binding, in every set-up for passwords: it logs in, or is told what the manual says.

All of it against PostgreSQL 15 and 17, with TLS 1.2 and with 1.3, which make no difference. The manual's table is made
from what was seen.
"""

import os

import pytest

from clients.kinds import KINDS, run_all, skipped_clients
from clients.setups import SERVER_HBA, SERVER_IDENT, SETUPS, WAYS, configuration
from clients.table import expected, in_file, render, verdict, write_to_file
from fixtures.auth_query import install

SERVERS = (15, 17)
SKIPPED = skipped_clients()
TRIED = [kind for kind in KINDS if kind.client not in SKIPPED]


@pytest.fixture(scope="module")
def seen(tls_cluster, shared_proxy, certs, psql, tmp_path_factory):
    """Who logged in where, or what else: for each client and set-up one outcome a server and version of TLS."""
    cells, attempts, proxies = [], [], {}
    for server in SERVERS:
        cluster = tls_cluster(server, SERVER_HBA, ident=SERVER_IDENT)
        install(cluster)
        running = shared_proxy(*configuration(cluster, certs))
        cells += [(kind, way.setup.name, f"PostgreSQL {server}, {way.tls}") for kind in TRIED for way in WAYS]
        attempts += [(kind, way.target(running, certs)) for kind in TRIED for way in WAYS]
        proxies[server] = running
    found = {}
    outcomes = run_all(attempts, psql, tmp_path_factory.mktemp("keys"))
    for (kind, setup, where), outcome in zip(cells, outcomes, strict=True):
        found.setdefault((kind, setup), {})[where] = outcome
    for running in proxies.values():
        assert_tls_was_as_wanted(running)
    return found


def assert_tls_was_as_wanted(running):
    legs = {
        (event["listener"], event.get("tls_version"), event.get("backend_tls_version"))
        for event in running.log_events("session_decided")
        if event["verdict"] == "allowed"
    }
    for way in WAYS:
        client = None if way.setup.clear else way.tls
        server = None if way.setup.backend == "socket" else way.tls
        assert (way.listener, client, server) in legs, legs
    assert len(legs) == len(WAYS), legs


@pytest.mark.parametrize("setup", SETUPS, ids=[setup.name for setup in SETUPS])
@pytest.mark.parametrize("kind", KINDS, ids=[f"{kind.client} {kind.setting or ''}".strip() for kind in KINDS])
def test_each_client_in_each_set_up(seen, kind, setup):
    if kind.client in SKIPPED:
        pytest.skip(SKIPPED[kind.client])
    outcomes = seen[kind, setup.name]
    assert len(outcomes) == 4
    assert {where: verdict(outcome, "alice") for where, outcome in outcomes.items()} == dict.fromkeys(
        outcomes, expected(kind, setup)
    ), outcomes


def test_the_tables_in_the_manual_are_what_was_seen(seen):
    def judged(kind, setup):
        if kind.client in SKIPPED:
            return expected(kind, setup)
        verdicts = {verdict(outcome, "alice") for outcome in seen[kind, setup.name].values()}
        assert len(verdicts) == 1, (kind, setup.name, seen[kind, setup.name])
        return verdicts.pop()

    for path, table in render(judged).items():
        if os.environ.get("PGTLSPROXY_WRITE_TABLE"):
            write_to_file(path, table)
        assert in_file(path) == table, (
            f"{path}: PGTLSPROXY_WRITE_TABLE=1 ./dev test tests/clients writes it anew"
        )


def test_the_tables_in_the_manual_are_what_the_tests_demand():
    for path, table in render(expected).items():
        assert in_file(path) == table
