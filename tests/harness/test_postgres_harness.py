import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fixtures.certs import Certs, common_names
from fixtures.clients import Psql
from fixtures.postgres import ClusterFactory, password
from pgtlsproxy.demo.installations import Installation, PostgresFailed, ServerUser, runnable_by, server_user
from pgtlsproxy.demo.postgres import Cluster

CERT_HBA = "hostssl all all all cert map=people\n"
CERT_IDENT = "people alice.example.com alice\n"


@pytest.mark.parametrize("version", [15, 17, 18])
def test_a_query_runs_over_verified_tls(
    version: int, tls_cluster: ClusterFactory, each_psql: Psql, certs: Certs
) -> None:
    cluster = tls_cluster(version)
    done = each_psql.run(
        "SHOW server_version_num; SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
        host="localhost",
        hostaddr=cluster.host,
        port=cluster.port,
        user="alice",
        dbname="alice",
        password=password("alice"),
        sslmode="verify-full",
        sslrootcert=certs.ca.crt,
    )
    assert done.stderr == ""
    number, tls = done.stdout.splitlines()
    assert number.startswith(str(version))
    assert tls == "t|TLSv1.3"


@pytest.mark.parametrize("version", [15, 17, 18])
def test_a_client_certificate_is_mapped_to_its_user(
    version: int, tls_cluster: ClusterFactory, psql: Callable[[int], Psql], certs: Certs
) -> None:
    cluster = tls_cluster(version, CERT_HBA, ident=CERT_IDENT)
    alice = certs.client("alice.example.com")
    identity: dict[str, Any] = {
        "sslmode": "verify-full",
        "sslrootcert": certs.ca.crt,
        "sslcert": alice.crt,
        "sslkey": alice.key,
    }
    target: dict[str, Any] = {
        "host": "localhost",
        "hostaddr": cluster.host,
        "port": cluster.port,
        "dbname": "postgres",
    }
    assert psql(17).run("SELECT session_user", user="alice", **target, **identity).stdout == "alice\n"
    refused = psql(17).run("SELECT session_user", user="bob", **target, **identity)
    assert 'certificate authentication failed for user "bob"' in refused.stderr


def test_equal_wishes_share_a_cluster_and_others_do_not(tls_cluster: ClusterFactory) -> None:
    assert tls_cluster(15) is tls_cluster(15)
    assert tls_cluster(15) is not tls_cluster(15, CERT_HBA, ident=CERT_IDENT)


def test_reload_takes_the_new_files_before_it_returns(
    own_cluster: ClusterFactory, psql: Callable[[int], Psql]
) -> None:
    cluster = own_cluster(15, "host all all all trust\n", settings={"ssl": "off"})
    target: dict[str, Any] = {"host": cluster.host, "port": cluster.port, "user": "alice", "dbname": "alice"}
    assert psql(15).run("SELECT 1", **target).stdout == "1\n"
    cluster.write("pg_hba.conf", "host all all all reject\n")
    cluster.reload()
    assert "pg_hba.conf rejects connection" in psql(15).run("SELECT 1", **target).stderr


def test_a_stopped_cluster_comes_back_at_its_port_with_its_data(own_cluster: ClusterFactory) -> None:
    cluster = own_cluster(17)
    cluster.psql("CREATE TABLE kept AS SELECT 7 AS value")
    port, pid = cluster.port, cluster.pid
    cluster.stop()
    assert not _alive(pid)
    cluster.start()
    assert cluster.port == port
    assert cluster.psql("SELECT value FROM kept").stdout == "7\n"


def test_leaving_ends_the_server_and_removes_its_folder(postgres15: Installation) -> None:
    cluster = Cluster(postgres15, hba="")
    try:
        with cluster:
            pid = cluster.pid
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert not _alive(pid)
    assert not cluster.folder.exists()


def test_a_server_dies_with_its_owner_even_by_sigkill(postgres15: Installation) -> None:
    owner = (
        "import pathlib, sys\n"
        "from pgtlsproxy.demo.installations import Installation\n"
        "from pgtlsproxy.demo.postgres import Cluster\n"
        f"bindir = pathlib.Path({str(postgres15.bindir)!r})\n"
        "with Cluster(Installation(bindir, None, '15'), hba='') as cluster:\n"
        "    print(cluster.pid, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with tempfile.TemporaryDirectory(prefix="pgtlsproxy-killed-") as scratch:
        Path(scratch).chmod(0o755)
        with subprocess.Popen(
            [sys.executable, "-c", owner],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "TMPDIR": scratch},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            pid = int(process.stdout.readline())
            server = os.pidfd_open(pid)
            process.send_signal(signal.SIGKILL)
        ended, _, _ = select.select([server], [], [], 10)
        os.close(server)
        assert ended


def test_a_wrong_setting_is_told_with_the_servers_own_words(postgres15: Installation) -> None:
    cluster = Cluster(postgres15, hba="", settings={"no_such_setting": "1"})
    with pytest.raises(PostgresFailed, match='unrecognized configuration parameter "no_such_setting"'):
        cluster.start()
    cluster.close()


def test_a_failed_setup_statement_is_told(postgres17: Installation) -> None:
    with pytest.raises(PostgresFailed, match="syntax error"):
        Cluster(postgres17, hba="", setup=["CREATE SOMETHING"])


def test_the_server_runs_as_somebody_who_is_not_root(tls_cluster: ClusterFactory) -> None:
    pid = tls_cluster(18).pid
    assert Path(f"/proc/{pid}").stat().st_uid == (server_user().uid or os.geteuid()) != 0


def test_an_installation_that_its_user_can_run_stays_where_it_is(postgres15: Installation) -> None:
    assert runnable_by(postgres15, ServerUser()) is postgres15


def test_psql_sees_nothing_of_the_developers_settings(
    psql: Callable[[int], Psql], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGSSLMODE", "nonsense")
    monkeypatch.setenv("PGHOST", "nowhere.invalid")
    shown = psql(15).environment()
    assert not [name for name in shown if name.startswith("PG")]
    assert list(Path(shown["HOME"]).iterdir()) == []


def test_odd_certificates_are_odd_in_the_way_they_say(certs: Certs) -> None:
    expired = certs.ca.expired(common_names("alice"), usage="client")
    verdict = subprocess.run(
        ["openssl", "verify", "-CAfile", certs.ca.crt, expired.crt],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "certificate has expired" in verdict.stderr
    below = certs.ca.intermediate("department").client("alice")
    chained: list[str | Path] = [
        "openssl",
        "verify",
        "-purpose",
        "sslclient",
        "-CAfile",
        certs.ca.crt,
        "-untrusted",
        below.crt,
    ]
    assert subprocess.run([*chained, below.crt], capture_output=True, check=False).returncode == 0
    wrong_use = certs.ca.issue(common_names("alice"), usage="server")
    assert subprocess.run([*chained, wrong_use.crt], capture_output=True, check=False).returncode != 0


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
