"""With host_probe, clients that prove themselves to the server reach a real primary and its hot standby, before and behind a promotion."""

import time

import pytest

from fixtures.deployments import config, in_clear, with_tls
from fixtures.postgres import TLS_HBA, password
from fixtures.scram_secrets import secrets_file
from fixtures.standby import REPLICATION_HBA, standby_of
from fixtures.wire import PATIENCE

ROLE, SECRET = "pgtlsproxy_probe", "probe-secret"
PROBE = {"user": ROLE, "passfile": "probe.pass", "interval": "0.1s"}
HBA = f"{REPLICATION_HBA}{TLS_HBA}local all all scram-sha-256\n"
REFUSED = "the database system is not available"

WANTED = {
    "read-write": "primary",
    "read-only": "standby",
    "primary": "primary",
    "standby": "standby",
    "prefer-standby": "standby",
}
"""target_session_attrs, and who has it."""

ROADS = ("clear", "bridge", "socket", "bridge_to_socket")
"""Client in clear, or in TLS with channel binding, to servers in TLS or at Unix sockets."""


def listeners(certs):
    own_leaf = certs.ca.server("localhost")
    return {
        f"{road}-{wanted}": (
            with_tls(certs, own_leaf, scram_secrets_file="secrets.txt", backend=f"{road}-{wanted}")
            if road.startswith("bridge")
            else in_clear(backend=f"{road}-{wanted}")
        )
        for road in ROADS
        for wanted in WANTED
    }


def backends(certs, clusters, probe):
    ports = [cluster.port for cluster in clusters]
    by_tcp = {"host": ["localhost"] * 2, "hostaddr": ["127.0.0.1"] * 2, "sslrootcert": certs.ca.crt}
    by_socket = {"host": [str(cluster.socket_dir) for cluster in clusters]}
    return {
        f"{road}-{wanted}": (by_socket if road.endswith("socket") else by_tcp)
        | {"port": ports, "login": "passthrough", "target_session_attrs": wanted, "host_probe": probe}
        for road in ROADS
        for wanted in WANTED
    }


def serving(proxy, certs, clusters, probe=PROBE):
    """A proxy with a listener for each road and each wish; the hosts are listed in this order."""
    files = {
        "pg_hba.conf": "host all all all scram-sha-256\n",
        "probe.pass": f"*:*:postgres:{ROLE}:{SECRET}\n",
        "secrets.txt": secrets_file(clusters[0], "alice"),
    }
    return proxy(config(listeners(certs), **backends(certs, clusters, probe)), files)


def log_in(psql, certs, running, road, wanted):
    """The port of the server that it lands on, or what it is refused with."""
    encryption = {"sslmode": "disable"}
    if road.startswith("bridge"):
        encryption = {"sslmode": "verify-full", "sslrootcert": certs.ca.crt, "channel_binding": "require"}
    done = psql(17).run(
        "SHOW port", host="localhost", hostaddr="127.0.0.1", port=running.port(f"{road}-{wanted}"),
        user="alice", dbname="alice", password=password("alice"), **encryption,
    )  # fmt: skip
    return int(done.stdout) if done.returncode == 0 else done.stderr


def primary_of(made):
    made.psql(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{SECRET}'")
    return made


@pytest.fixture(scope="module")
def pair(tls_cluster):
    """A primary and its standby, which stay what they are."""
    primary = primary_of(tls_cluster(15, HBA))
    with standby_of(primary) as standby:
        yield {"primary": primary, "standby": standby}


@pytest.fixture(scope="module")
def running(pair, shared_proxy, certs):
    """The host that is wanted most often comes last."""
    return serving(shared_proxy, certs, [pair["standby"], pair["primary"]])


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("road", ROADS)
def test_each_wish_leads_to_who_has_it(running, pair, psql, certs, road, wanted):
    assert log_in(psql, certs, running, road, wanted) == pair[WANTED[wanted]].port


def test_a_promotion_is_followed_and_nobody_lands_on_the_wrong_host(own_cluster, proxy, certs, psql):
    """The primary is lost, and its standby promoted. What is known for an hour is doubted when a host is lost."""
    old = primary_of(own_cluster(17, HBA))
    with standby_of(old) as new:
        soon = serving(proxy, certs, [old, new])
        lasting = serving(proxy, certs, [old, new], PROBE | {"interval": "1h"})
        wishes = ("read-write", "standby")
        every = [
            (running, road, wanted) for running in (soon, lasting) for road in ROADS for wanted in wishes
        ]
        before = {"primary": old.port, "standby": new.port}
        for running, road, wanted in every:
            assert log_in(psql, certs, running, road, wanted) == before[WANTED[wanted]]
        old.stop()
        for running, road, wanted in every[::5]:
            landed = log_in(psql, certs, running, road, wanted)
            assert landed == new.port if wanted == "standby" else REFUSED in landed
        assert new.psql("SELECT pg_promote()").stdout == "t\n"
        deadline = time.monotonic() + 10 * PATIENCE
        for running, road, wanted in every:
            if wanted == "read-write":
                while (landed := log_in(psql, certs, running, road, wanted)) != new.port:
                    assert REFUSED in landed
                    assert time.monotonic() < deadline
        assert log_in(psql, certs, soon, "bridge", "prefer-standby") == new.port
        assert REFUSED in log_in(psql, certs, soon, "clear", "standby")
