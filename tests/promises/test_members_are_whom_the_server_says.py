"""`roles_query`: lines for the members of a role go by the server's catalog, and let nobody in where it is not known."""

import time

import pytest

from fixtures import wire
from fixtures.deployments import (
    PROXY_CERTIFICATE_HBA,
    PROXY_CERTIFICATE_IDENT,
    config,
    passthrough,
    with_certificate,
    with_tls,
)
from fixtures.wire import WireClient, another_source, tls_context

HBA = """\
hostssl all app all cert
hostssl all +staff all cert
hostssl samerole bob all cert
"""
LIFETIME = 2.0


@pytest.fixture
def server(own_cluster):
    cluster = own_cluster(17, PROXY_CERTIFICATE_HBA, ident=PROXY_CERTIFICATE_IDENT)
    cluster.psql("CREATE ROLE staff; CREATE ROLE dba; GRANT staff TO dba; GRANT dba TO alice")
    return cluster


@pytest.fixture
def running(server, proxy, certs):
    listener = with_tls(certs, roles_query={"user": "app", "lifetime": f"{LIFETIME:g}s"})
    backend = with_certificate(server, certs, connect_timeout="1s")
    return proxy(config({"l": listener}, primary=backend), {"pg_hba.conf": HBA})


def attempt(running, certs, user, database="app"):
    """Whether somebody is let in, and how that was decided."""
    with WireClient(("127.0.0.1", running.port("l")), source=another_source()) as client:
        assert client.ask_for_tls() == b"S"
        client.start_tls(tls_context(certificate=certs.client(user)))
        client.send(wire.startup(user=user, database=database))
        is_in = client.read_message().kind == b"R"
        return is_in, running.wait_for_event("session_decided", **client.where)


def test_members_of_members_are_let_in_and_others_are_not(running, certs):
    found = {
        who: attempt(running, certs, *who)
        for who in (("alice", "app"), ("bob", "app"), ("bob", "bob"), ("postgres", "app"))
    }
    assert {who: (is_in, decided.get("hba_line")) for who, (is_in, decided) in found.items()} == {
        ("alice", "app"): (True, 2),
        ("bob", "app"): (False, None),
        ("bob", "bob"): (True, 3),
        ("postgres", "app"): (False, None),  # a superuser is a member of what it was made a member of
    }


def test_who_is_no_member_any_more_is_let_in_for_a_lifetime_at_most(running, server, certs):
    assert attempt(running, certs, "alice")[0] is True
    server.psql("REVOKE dba FROM alice")
    revoked = time.monotonic()
    while attempt(running, certs, "alice")[0]:
        assert time.monotonic() - revoked < 10 * LIFETIME
    server.psql("GRANT staff TO alice")
    granted = time.monotonic()
    while not attempt(running, certs, "alice")[0]:
        assert time.monotonic() - granted < 10 * LIFETIME


def test_the_server_is_asked_once_for_many_sessions(running, server, certs):
    for _ in range(10):
        attempt(running, certs, "alice")
    assert 1 <= server.log.count("connection authorized: user=app") <= 5


def test_nobody_is_let_in_by_or_behind_a_line_whose_members_nobody_can_tell(proxy, server, certs):
    """The server lets `bob` in; the role that asks does not exist there."""
    backend = with_certificate(server, certs)
    asked = passthrough(server, certs)
    running = proxy(
        config(
            {"l": with_tls(certs, roles_query={"backend": "asked", "user": "nobody"})},
            primary=backend,
            asked=asked,
        ),
        {
            "pg_hba.conf": "hostssl all app all cert\nhostssl all +staff all reject\nhostssl all all all cert\n"
        },
    )
    assert attempt(running, certs, "app")[0] is True
    is_in, decided = attempt(running, certs, "bob", "bob")
    assert (is_in, decided["hba_line"], decided["sqlstate"]) == (False, 2, "28000")
    assert "roles_query: backend asked: " in decided["reason"]


def test_a_server_that_is_gone_refuses_those_alone_whose_line_asks_for_roles(running, server, certs):
    server.stop()
    is_in, decided = attempt(running, certs, "alice")
    assert (is_in, decided["sqlstate"]) == (False, "28000")
    assert "Connection refused" in decided["reason"]
    assert attempt(running, certs, "app")[1]["sqlstate"] == "57P03"
