"""Take a rule's check out of the proxy, and cells of the table turn red: the matrix would have told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import pgtlsproxy
from matrix import mutants
from matrix.deployment import addresses, configuration, listener_name, observe
from matrix.table import Backend, Cell, Listener, Login, Method, Secret, Shown, Verdict, cells, expected

ASKS_NOTHING = {Backend.TRUST, Backend.CERT_MAP, Backend.PEER, Backend.FAKE_OK}

# For each mutant: the cells that its rule alone keeps as they should be, and what becomes of them.
RED = {
    "k1": (
        lambda c: c.login is Login.PASSTHROUGH and c.method is Method.TRUST and c.listener is Listener.TLS
        and c.backend in ASKS_NOTHING and c.shown is Shown.NOTHING,
        Verdict.LET_IN,
    ),
    "k2_at_load": (
        lambda c: c.login is Login.CERTIFICATE and c.method is Method.TRUST and c.listener is Listener.CLEAR
        and c.backend is Backend.CERT_MAP,
        Verdict.PROXY_28000,  # the session judges again
    ),
    "k2": (
        lambda c: c.login is Login.CERTIFICATE and c.method in {Method.TRUST, Method.TRUST_VERIFY_CA}
        and c.listener is Listener.TLS and c.backend is Backend.CERT_MAP and c.shown is Shown.ANOTHERS,
        Verdict.LET_IN,
    ),
    "k2_verifiers": (
        lambda c: c.login is Login.CERTIFICATE and c.method is Method.SCRAM
        and c.listener is Listener.TLS and c.backend is Backend.CERT_MAP and c.secret is Secret.WRONG
        and c.shown is Shown.NOTHING,
        Verdict.LET_IN,
    ),
    "scram_proof": (
        lambda c: c.login is Login.CERTIFICATE_VERIFIERS and c.method is Method.SCRAM
        and c.listener is not Listener.AFAR and c.backend is Backend.CERT_MAP and c.secret is Secret.WRONG
        and c.shown in {Shown.NOTHING, Shown.OWN},
        Verdict.LET_IN,
    ),
    "password": (
        lambda c: c.login is Login.CERTIFICATE_VERIFIERS and c.method is Method.PASSWORD
        and c.listener is not Listener.AFAR and c.backend is Backend.CERT_MAP and c.secret is Secret.WRONG
        and c.shown in {Shown.NOTHING, Shown.OWN},
        Verdict.LET_IN,
    ),
    "k3": (
        lambda c: c.secret is Secret.RIGHT and (
            (c.login is Login.CERTIFICATE and c.method is Method.CERT and c.listener is Listener.TLS
             and c.shown is Shown.OWN and c.backend in {Backend.SCRAM, Backend.FAKE_CLEARTEXT, Backend.FAKE_MD5})
            or (c.login is Login.PASSTHROUGH and c.method is Method.TRUST and c.listener is Listener.LISTED
                and c.backend is Backend.FAKE_CLEARTEXT)
        ),
        Verdict.LET_IN,
    ),
    "k3_requirepeer": (
        lambda c: c.method is Method.PEER_MAP and c.listener is Listener.UNIX and c.backend is Backend.IMPOSTOR
        and c.login is not Login.PASSFILE,  # of which SCRAM is asked, too
        Verdict.LET_IN,
    ),
    "k4": (
        lambda c: c.login is Login.PASSTHROUGH and c.method in {Method.TRUST, Method.SCRAM}
        and c.listener is Listener.AFAR and c.backend is Backend.SCRAM,
        Verdict.LET_IN,
    ),
    "cert_presence": (
        lambda c: c.login is Login.PASSTHROUGH and c.method is Method.TRUST_VERIFY_CA
        and c.listener is Listener.TLS and c.backend is Backend.SCRAM and c.shown is Shown.NOTHING
        and c.secret is Secret.RIGHT,
        Verdict.LET_IN,
    ),
    "cert_name": (
        lambda c: c.login is Login.CERTIFICATE and c.method in {Method.CERT, Method.CERT_MAP, Method.TRUST_VERIFY_FULL}
        and c.listener is Listener.TLS and c.backend is Backend.CERT_MAP and c.shown is Shown.ANOTHERS,
        Verdict.LET_IN,
    ),
    "peer_name": (
        lambda c: c.login is Login.CERTIFICATE and c.method is Method.PEER_MAP and c.listener is Listener.UNIX
        and c.backend is Backend.PEER and c.shown is Shown.ANOTHERS,
        Verdict.LET_IN,
    ),
}  # fmt: skip


def needing(mutant: str) -> list[Cell]:
    select, _ = RED[mutant]
    return [cell for cell in cells() if select(cell)]


@pytest.mark.parametrize("mutant", mutants.MUTANTS)
def test_without_its_check_a_rule_turns_cells_red(mutant, proxy, certs, servers):
    chosen, (_, became) = needing(mutant), RED[mutant]
    running = proxy(
        *configuration(chosen, certs, servers),
        command=[sys.executable, mutants.__file__, mutant],
        environment={"PYTHONPATH": str(Path(pgtlsproxy.__file__).parents[1])},
    )
    listening = addresses(running)
    observed = {cell: observe(cell, listening[listener_name(cell)], certs) for cell in chosen}
    assert observed == dict.fromkeys(chosen, became)
    assert chosen
    assert became not in map(expected, chosen)
