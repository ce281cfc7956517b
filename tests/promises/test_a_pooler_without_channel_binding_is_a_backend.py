"""PgBouncer offers no channel binding, so default clients log in through TLS on both legs, untouched."""

import psycopg
import pytest

from fixtures.deployments import config, in_clear, with_tls
from fixtures.drivers import DRIVERS, Target
from fixtures.pgbouncer import running_pgbouncer
from fixtures.postgres import password
from pgtlsproxy.identity import Secret
from pgtlsproxy.protocol.scram.keys import Verifier

HBA = "host all all all scram-sha-256\n"
VERIFIER = Verifier.make(Secret(b"another"), bytes(16))


@pytest.fixture(scope="module")
def pooler(tls_cluster, certs):
    with running_pgbouncer(tls_cluster(17), certs.server) as running:
        yield running


@pytest.fixture(scope="module")
def running(pooler, shared_proxy, certs):
    def backend(**settings):
        return {
            "host": "localhost", "hostaddr": "127.0.0.1", "port": pooler.port, "sslrootcert": certs.ca.crt,
            "login": "passthrough", **settings,
        }  # fmt: skip

    backends = {
        "pooler": backend(max_protocol_version="3.0"),
        "newest": backend(),
        "telling": backend(client_address=True, max_protocol_version="3.0"),
    }
    own_leaf = certs.ca.server("localhost")
    listeners = {name: with_tls(certs, own_leaf, backend=name) for name in backends}
    listeners["clear"] = in_clear(backend="pooler")
    # Verifiers that are not the pooler's, as where it makes a new salt for every login.
    listeners["knowing"] = with_tls(certs, own_leaf, backend="pooler", scram_secrets_file="secrets.txt")
    files = {"pg_hba.conf": HBA, "secrets.txt": f'"alice" "{VERIFIER.text()}"\n'}
    return shared_proxy(config(listeners, **backends), files)


@pytest.mark.parametrize("binding", ["disable", "prefer"])
@pytest.mark.parametrize("mode", ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"])
def test_every_sslmode_logs_in(running, certs, each_psql, mode, binding):
    name = f"{each_psql.major}-{mode}-{binding}"
    ca = {"sslrootcert": certs.ca.crt} if mode.startswith("verify") else {}
    done = each_psql.run(
        "SELECT current_user", host="localhost", hostaddr="127.0.0.1", port=running.port("pooler"), user="alice",
        dbname="alice", password=password("alice"), sslmode=mode, channel_binding=binding, application_name=name,
        **ca,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("alice\n", "")
    decided = running.wait_for_event("session_decided", application_name=name)
    assert (decided["verdict"], decided["proof"]) == ("allowed", "scram-sha-256")
    assert (decided["tls_version"] is None) == (mode in {"disable", "allow"})
    assert decided["backend_tls_version"] == "TLSv1.3"


@pytest.mark.parametrize("binding", ["disable", "prefer"])
def test_it_needs_no_verifier_and_no_right_one(running, certs, each_psql, binding):
    done = each_psql.run(
        "SELECT current_user", host="localhost", hostaddr="127.0.0.1", port=running.port("knowing"), user="alice",
        dbname="alice", password=password("alice"), sslmode="require", channel_binding=binding,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("alice\n", "")


@pytest.mark.parametrize("listener", ["pooler", "knowing"])
def test_channel_binding_that_is_required_ends_in_the_client(running, certs, each_psql, listener):
    done = each_psql.run(
        "SELECT 1", host="localhost", hostaddr="127.0.0.1", port=running.port(listener), user="alice",
        dbname="alice", password=password("alice"), sslmode="require", channel_binding="require",
    )  # fmt: skip
    assert "server did not offer an authentication method that supports channel binding" in done.stderr


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("listener", ["pooler", "clear"])
def test_every_driver_logs_in_by_its_defaults(running, certs, driver, listener):
    ca = certs.ca.crt if listener == "pooler" else None
    since = running.mark()
    with DRIVERS[driver](
        Target(running.port(listener), "alice", "alice", password("alice"), ca=ca, application_name=driver)
    ) as connection:
        assert connection.rows("SELECT 6 * $1::int", 7) == [(42,)]
    ended = running.wait_for_event("session_ended", since=since, application_name=driver)
    assert ended["kind"] == "ok"


def test_a_wrong_password_is_the_poolers_own_error(running, certs, each_psql):
    done = each_psql.run(
        "SELECT 1", host="localhost", hostaddr="127.0.0.1", port=running.port("pooler"), user="alice",
        dbname="alice", password="wrong", sslmode="require",
    )  # fmt: skip
    assert done.returncode == 2
    assert "pgtlsproxy session" not in done.stderr


def connect(running, certs, listener, **words):
    target = Target(running.port(listener), "alice", "alice", password("alice"), ca=certs.ca.crt)
    return psycopg.connect(**target.words | words)


def test_protocol_3_2_is_not_told_to_a_pooler_that_does_not_know_it(running, pooler, certs):
    with connect(running, certs, "pooler", max_protocol_version="latest") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
        assert connection.pgconn.full_protocol_version == 30000
    # Told of it, this PgBouncer hangs up, which is why the setting exists.
    with pytest.raises(psycopg.OperationalError):
        connect(running, certs, "newest", max_protocol_version="latest")
    with connect(running, certs, "newest") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_parameters_that_the_pooler_must_be_told_to_ignore_are_refused_by_it(running, certs):
    with pytest.raises(
        psycopg.OperationalError, match=r"unsupported startup parameter: pgtlsproxy\.client_addr"
    ):
        connect(running, certs, "telling")
