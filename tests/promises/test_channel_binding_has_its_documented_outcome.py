"""SCRAM through a hop that ends TLS: every channel_binding over every pair of legs ends as the manual's table says."""

import pytest

from fixtures import wire
from fixtures.deployments import config, in_clear, passthrough, with_tls
from fixtures.postgres import password

HBA = "host all all all scram-sha-256\n"
ONLY_TLS = "hostssl all all all scram-sha-256\n"

LOGGED_IN = ""
NOT_OFFERED = "channel binding is required, but server did not offer an authentication method that supports channel binding"
NO_TLS = "channel binding required, but SSL not in use"
PROXY_ENDS_TLS = "SCRAM channel binding cannot pass through this proxy"

TABLE = {
    # The client's leg and the server: what psql says with channel_binding = disable, prefer, require.
    ("clear", "TLS"): (LOGGED_IN, LOGGED_IN, NO_TLS),
    ("other_leaf", "TLS"): (LOGGED_IN, PROXY_ENDS_TLS, NOT_OFFERED),
    ("same_leaf", "TLS"): (LOGGED_IN, LOGGED_IN, LOGGED_IN),
    ("clear", "socket"): (LOGGED_IN, LOGGED_IN, NO_TLS),
    ("other_leaf", "socket"): (LOGGED_IN, LOGGED_IN, NOT_OFFERED),
    ("same_leaf", "socket"): (LOGGED_IN, LOGGED_IN, NOT_OFFERED),
}
CELLS = {
    f"{leg} client, {server} server, {binding}": (leg, server, binding, said)
    for (leg, server), row in TABLE.items()
    for binding, said in zip(("disable", "prefer", "require"), row, strict=True)
}


@pytest.fixture(scope="module", params=[15, 17])
def running(request, tls_cluster, shared_proxy, certs):
    cluster = tls_cluster(request.param, "hostssl all all all scram-sha-256\nlocal all all scram-sha-256\n")
    other = certs.ca.server("localhost")
    listeners = {
        f"{leg}-{server}": listener | {"backend": server}
        for server in ("TLS", "socket")
        for leg, listener in {
            "clear": in_clear(),
            "other_leaf": with_tls(certs, other),
            "same_leaf": with_tls(certs, certs.server),
        }.items()
    }
    listeners["only-tls"] = with_tls(certs, other, hba_file="only_tls.conf", backend="TLS")
    backends = {
        "TLS": passthrough(cluster, certs),
        "socket": {"host": cluster.socket_dir, "port": cluster.port, "login": "passthrough"},
    }
    return shared_proxy(config(listeners, **backends), {"pg_hba.conf": HBA, "only_tls.conf": ONLY_TLS})


def connect(psql, certs, port, **words):
    encryption = {"sslmode": "verify-full", "sslrootcert": certs.ca.crt}
    return psql.run(
        "SELECT 'here'", host="localhost", hostaddr="127.0.0.1", port=port, user="alice", dbname="alice",
        password=password("alice"), **(encryption | words),
    )  # fmt: skip


@pytest.mark.parametrize(("leg", "server", "binding", "said"), CELLS.values(), ids=CELLS.keys())
def test_each_pair_of_legs(running, certs, each_psql, leg, server, binding, said):
    mode = {"sslmode": "disable"} if leg == "clear" else {}
    port = running.port(f"{leg}-{server}")
    done = connect(each_psql, certs, port, channel_binding=binding, **mode)
    if said == LOGGED_IN:
        assert (done.stdout, done.stderr) == ("here\n", "")
    else:
        assert done.returncode == 2
        assert said in done.stderr


def test_the_refusal_names_the_ways_out(running, certs, each_psql):
    since = running.mark()
    done = connect(each_psql, certs, running.port("other_leaf-TLS"), application_name="ways out")
    for way_out in ("channel_binding=disable", "client certificate", "SCRAM secrets"):
        assert way_out in done.stderr
    decided = running.wait_for_event("session_decided", since=since, application_name="ways out")
    assert (decided["verdict"], decided["kind"], decided["sqlstate"]) == (
        "refused",
        "channel_binding",
        "28000",
    )
    for way_out in ("channel_binding=disable", "login: certificate", "backend's own certificate"):
        assert way_out in decided["reason"]
    assert f"pgtlsproxy session {decided['session']}" in done.stderr


def test_sslmode_prefer_does_not_log_in_in_clear_where_pg_hba_wants_tls(running, certs, each_psql):
    done = connect(each_psql, certs, running.port("only-tls"), sslmode="prefer")
    assert done.returncode == 2
    assert PROXY_ENDS_TLS in done.stderr
    assert "no pg_hba.conf entry" in done.stderr
    assert "no encryption" in done.stderr


@pytest.mark.parametrize(("leg", "offered"), [
    ("clear", ["SCRAM-SHA-256"]),
    ("other_leaf", ["SCRAM-SHA-256"]),
    ("same_leaf", ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]),
])  # fmt: skip
@pytest.mark.parametrize("user", ["alice", "nobody_knows_her"])
def test_what_is_offered_does_not_depend_on_the_user(running, leg, offered, user):
    with wire.WireClient(("127.0.0.1", running.port(f"{leg}-TLS"))) as client:
        if leg != "clear":
            assert client.ask_for_tls() == b"S"
            client.start_tls()
        client.send(wire.startup(user=user, database="alice"))
        opening = client.read_message()
    assert opening.code == 10
    assert opening.body[4:].decode().split("\0")[:-2] == offered
