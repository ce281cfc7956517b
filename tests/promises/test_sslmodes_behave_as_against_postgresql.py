"""Each sslmode of psql ends at the proxy as it ends at a PostgreSQL with the same pg_hba.conf, word for word."""

import re

import pytest

from fixtures.deployments import config, in_clear, passthrough, with_tls
from fixtures.postgres import password

HBA = """\
host all alice all scram-sha-256
hostssl all bob all scram-sha-256
hostnossl all app all scram-sha-256
"""
"""alice as she likes, bob in TLS alone, app in clear alone."""

ONLY_HOSTSSL = "hostssl all all all scram-sha-256\n"

MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

SERVERS = {
    "tls": ({}, HBA),
    "hostssl": ({}, ONLY_HOSTSSL),
    "no_tls": ({"ssl": "off"}, HBA),
}
"""Settings of PostgreSQL, and the pg_hba.conf of both."""

REFUSED = "refused"


@pytest.fixture(scope="module")
def running(tls_cluster, shared_proxy, certs):
    listeners = {
        "tls": with_tls(certs, hba_file="hba.conf"),
        "hostssl": with_tls(certs, hba_file="hostssl.conf"),
        "no_tls": in_clear(hba_file="hba.conf"),
    }
    backend = passthrough(tls_cluster(17), certs)
    return shared_proxy(config(listeners, primary=backend), {"hba.conf": HBA, "hostssl.conf": ONLY_HOSTSSL})


def connect(psql, certs, port, user, **words):
    """How it ended, and what psql said of it; the port, and what our refusals have besides, taken out."""
    if words["sslmode"].startswith("verify"):
        words["sslrootcert"] = certs.ca.crt
    # Two certificates on the way: SCRAM cannot bind to them, which is another promise's subject.
    words |= {"password": password(user), "channel_binding": "disable"}
    done = psql.run(
        "\\conninfo", host="localhost", hostaddr="127.0.0.1", port=port, user=user, dbname=user, **words
    )
    told = re.sub(r"DETAIL:  pgtlsproxy session [0-9a-f]{16}\n", "", done.stdout + done.stderr)
    told = told.replace(str(port), "PORT")
    if done.returncode != 0:
        return REFUSED, told
    return "TLS" if "SSL connection" in told else "clear", told


@pytest.mark.parametrize("user", ["alice", "bob", "app"])
@pytest.mark.parametrize("server", SERVERS)
def test_outcome_encryption_and_words_are_postgresqls(running, tls_cluster, certs, each_psql, server, user):
    settings, hba = SERVERS[server]
    direct = tls_cluster(17, hba, settings=settings)
    ends = {}
    for mode in MODES:
        through = connect(each_psql, certs, running.port(server), user, sslmode=mode)
        assert through == connect(each_psql, certs, direct.port, user, sslmode=mode), mode
        ends[mode] = through[0]
    assert ends == expected(server, user)


def expected(server, user):
    """What PostgreSQL's manual says of each sslmode (34.19, Protection Provided in Different Modes)."""
    tls_modes = dict.fromkeys(("require", "verify-ca", "verify-full"), "TLS")
    no_tls = dict.fromkeys(tls_modes, REFUSED)
    match server, user:
        case "hostssl", _:
            return {"disable": REFUSED, "allow": "TLS", "prefer": "TLS"} | tls_modes
        case "tls", "alice":
            return {"disable": "clear", "allow": "clear", "prefer": "TLS"} | tls_modes
        case "tls", "bob":
            return {"disable": REFUSED, "allow": "TLS", "prefer": "TLS"} | tls_modes
        case "tls", "app":
            return {"disable": "clear", "allow": "clear", "prefer": "clear"} | no_tls
        case "no_tls", "bob":
            return dict.fromkeys(MODES, REFUSED)
        case _:
            return {"disable": "clear", "allow": "clear", "prefer": "clear"} | no_tls


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
@pytest.mark.parametrize("server", ["tls", "no_tls"])
def test_direct_tls_ends_as_against_postgresql(running, tls_cluster, certs, psql, server, mode):
    settings, hba = SERVERS[server]
    direct = tls_cluster(17, hba, settings=settings)
    words = {"sslmode": mode, "sslnegotiation": "direct"}
    through = connect(psql(17), certs, running.port(server), "alice", **words)
    assert through[0] == {"tls": "TLS", "no_tls": REFUSED}[server]
    assert through[0] == connect(psql(17), certs, direct.port, "alice", **words)[0]


def test_a_client_that_does_not_know_the_ca_never_logs_in(running, tls_cluster, certs, each_psql):
    for mode in ("verify-ca", "verify-full"):
        done = each_psql.run(
            "SELECT 1", host="localhost", hostaddr="127.0.0.1", port=running.port("tls"), user="alice",
            dbname="alice", password=password("alice"), sslmode=mode, sslrootcert=certs.other_ca.crt,
        )  # fmt: skip
        assert done.returncode == 2
        assert "certificate verify failed" in done.stderr


def test_verify_full_refuses_another_name_and_verify_ca_does_not(running, certs, each_psql):
    ends = {}
    for mode in ("verify-ca", "verify-full"):
        done = each_psql.run(
            "SELECT 1", host="db.example.com", hostaddr="127.0.0.1", port=running.port("tls"), user="alice",
            dbname="alice", password=password("alice"), channel_binding="disable", sslmode=mode,
            sslrootcert=certs.ca.crt,
        )  # fmt: skip
        ends[mode] = (done.returncode, "does not match host name" in done.stderr)
    assert ends == {"verify-ca": (0, False), "verify-full": (2, True)}
