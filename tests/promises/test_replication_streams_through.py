"""pg_basebackup and pg_receivewal stream through the proxy; who has no `replication` line does not."""

import subprocess

import pytest

from fixtures.clients import conninfo
from fixtures.deployments import (
    PROXY_CERTIFICATE_HBA,
    PROXY_CERTIFICATE_IDENT,
    config,
    in_clear,
    passthrough,
    with_certificate,
    with_tls,
)
from fixtures.drivers import by_certificate, by_password

LEGACY_HBA = """\
host replication postgres 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 scram-sha-256
"""
CENTRAL_HBA = """\
hostssl replication postgres all cert
hostssl all alice,postgres all cert
"""


@pytest.fixture(scope="module", params=[15, 17])
def version(request):
    return request.param


@pytest.fixture(scope="module")
def clusters(version, tls_cluster):
    """The one that asks for a password, and the one that believes the proxy."""
    return tls_cluster(version), tls_cluster(version, PROXY_CERTIFICATE_HBA, ident=PROXY_CERTIFICATE_IDENT)


@pytest.fixture(scope="module")
def running(clusters, shared_proxy, certs):
    asking, believing = clusters
    return shared_proxy(
        config(
            {
                "legacy": in_clear(hba_file="legacy.conf", backend="asking"),
                "central": with_tls(certs, hba_file="central.conf", backend="believing"),
            },
            asking=passthrough(asking, certs),
            believing=with_certificate(believing, certs),
        ),
        {"legacy.conf": LEGACY_HBA, "central.conf": CENTRAL_HBA},
    )


@pytest.fixture(params=["legacy", "central"])
def words(request, running, certs):
    """postgres's connection, without a database."""
    if request.param == "legacy":
        target = by_password(running, "legacy", user="postgres")
    else:
        target = by_certificate(running, "central", certs, user="postgres")
    return target.words | {"dbname": "replication"}


def run(psql, program, *arguments, **words):
    done = subprocess.run(
        [psql.installation.program(program), *arguments, *(["-d", conninfo(**words)] if words else [])],
        env=psql.environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_pg_basebackup_takes_a_backup_that_verifies(running, version, psql, words, tmp_path):
    since = running.mark()
    folder = tmp_path / "backup"
    run(psql(version), "pg_basebackup", "-w", "-X", "stream", "-c", "fast", "-D", str(folder), **words)
    verified = run(psql(version), "pg_verifybackup", str(folder))
    assert "backup successfully verified" in verified.stdout
    # One session copies the files while another streams the log.
    first = running.wait_for_event("session_ended", since=since)
    assert (first["kind"], first["replication"], first["hba_line"]) == ("ok", "physical", 1)
    running.wait_for_event(
        "session_ended", since=since, kind="ok", session=other_session(running, since, first)
    )


def other_session(running, since, one):
    decided = [event for event in running.log_events()[since:] if event["event"] == "session_decided"]
    (other,) = {event["session"] for event in decided} - {one["session"]}
    return other


def test_pg_receivewal_receives_to_the_position_asked_for(clusters, version, psql, words, tmp_path):
    identified = psql(version).run("IDENTIFY_SYSTEM", **words | {"dbname": "", "replication": "true"})
    position = identified.stdout.split("|")[2]
    for cluster in clusters:
        cluster.psql("SELECT pg_logical_emit_message(true, 'test', repeat('.', 100000))")
    run(psql(version), "pg_receivewal", "-w", "--no-loop", "--endpos", position, "-D", str(tmp_path), **words)
    (segment,) = tmp_path.iterdir()
    assert segment.suffix == ".partial"
    assert segment.read_bytes().strip(b"\0") != b""


def test_logical_replication_is_judged_by_the_databases_lines(running, version, psql, certs):
    words = by_certificate(running, "central", certs, user="alice").words
    done = psql(version).run("SELECT 1", **words | {"replication": "database"})
    # PostgreSQL's own answers to a role without REPLICATION.
    assert {15: "must be superuser or replication role", 17: "permission denied to start WAL sender"}[
        version
    ] in done.stderr


@pytest.mark.parametrize("spelling", ["true", "on", "1", "yes"])
def test_without_a_line_for_it_there_is_none(running, version, psql, certs, spelling):
    for target in (
        by_password(running, "legacy", user="alice"),
        by_certificate(running, "central", certs, user="alice"),
    ):
        done = psql(version).run("IDENTIFY_SYSTEM", **target.words | {"replication": spelling})
        assert "no pg_hba.conf entry for replication connection from host" in done.stderr
        assert 'user "alice"' in done.stderr
