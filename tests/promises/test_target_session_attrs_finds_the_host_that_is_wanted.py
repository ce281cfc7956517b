"""With login certificate, target_session_attrs chooses among hosts as libpq does, by what they report at login."""

import pytest

from fixtures import wire
from fixtures.deployments import config, passthrough, with_tls

HOSTS = {
    "primary": {"in_hot_standby": "off", "default_transaction_read_only": "off"},
    "standby": {"in_hot_standby": "on", "default_transaction_read_only": "off"},
    "read_only": {"in_hot_standby": "off", "default_transaction_read_only": "on"},
    "old": {},
    "starting": {},
}
"""Hosts and what they report; `old` is a server before PostgreSQL 14, `starting` takes no sessions yet."""

CHOICES = [
    (("standby", "primary"), "any", "standby"),
    (("standby", "primary"), "read-write", "primary"),
    (("standby", "primary"), "read-only", "standby"),
    (("standby", "primary"), "primary", "primary"),
    (("standby", "primary"), "standby", "standby"),
    (("standby", "primary"), "prefer-standby", "standby"),
    (("primary", "standby"), "any", "primary"),
    (("primary", "standby"), "read-write", "primary"),
    (("primary", "standby"), "read-only", "standby"),
    (("primary", "standby"), "primary", "primary"),
    (("primary", "standby"), "standby", "standby"),
    (("primary", "standby"), "prefer-standby", "standby"),
    (("read_only", "primary"), "read-write", "primary"),
    (("primary", "read_only"), "read-only", "read_only"),
    (("standby", "read_only"), "primary", "read_only"),
    (("standby", "read_only"), "read-write", None),
    (("primary", "read_only"), "standby", None),
    (("old", "primary"), "read-write", "primary"),
    (("old", "primary"), "any", "old"),
    (("standby",), "primary", None),
    (("primary",), "prefer-standby", "primary"),
    (("read_only", "primary"), "prefer-standby", "read_only"),
    (("primary", "old"), "prefer-standby", "primary"),
    (("old",), "prefer-standby", "old"),
    (("starting", "primary"), "prefer-standby", "primary"),
    (("primary", "starting"), "prefer-standby", "primary"),
    (("primary", "old", "standby"), "prefer-standby", "standby"),
    (("starting",), "prefer-standby", None),
]


@pytest.fixture(scope="module")
def backends(shared_fake_backend):
    def reporting(name):
        def script(conversation):
            conversation.accept()
            if name == "starting":
                conversation.send(wire.error_response("57P03", "the database system is starting up"))
                return
            conversation.let_in(parameters={**HOSTS[name], "name": name})
            conversation.answer_queries()

        return script

    return {name: shared_fake_backend(reporting(name)) for name in HOSTS}


@pytest.fixture(scope="module")
def running(shared_proxy, certs, backends):
    shown = certs.client("pgtlsproxy")

    def reached(hosts, wanted):
        return passthrough(
            backends["old"],
            certs,
            host=["localhost"] * len(hosts),
            hostaddr=["127.0.0.1"] * len(hosts),
            port=[backends[name].port for name in hosts],
            target_session_attrs=wanted,
            login="certificate",
            sslcert=shown.crt,
            sslkey=shown.key,
        )

    return shared_proxy(
        config(
            {f"b{number}": with_tls(certs, backend=f"b{number}") for number in range(len(CHOICES))},
            **{f"b{number}": reached(hosts, wanted) for number, (hosts, wanted, _) in enumerate(CHOICES)},
        ),
        {"pg_hba.conf": "hostssl all all all cert\n"},
    )


@pytest.mark.parametrize(
    "number", range(len(CHOICES)), ids=lambda n: f"{CHOICES[n][1]} of {' '.join(CHOICES[n][0])}"
)
def test_the_first_host_that_fits_is_taken(running, backends, certs, number):
    hosts, _, chosen = CHOICES[number]
    for name in hosts:
        backends[name].forget()
    context = wire.tls_context(certificate=certs.client("alice"))
    with wire.connected(("127.0.0.1", running.port(f"b{number}")), context) as client:
        client.send(wire.startup(user="alice"))
        if chosen is None:
            assert client.read_error().error == ("57P03", "the database system is not available")
            return
        messages = client.read_until(b"Z")
        statuses = [message.body for message in messages if message.kind == b"S"]
        assert b"name\x00" + chosen.encode() + b"\x00" in statuses
        assert [message.kind for message in messages].count(b"R") == 1, "a host that did not fit was heard"
        client.send(wire.query("SELECT 1"))
        client.read_until(b"Z")
        # A port may have been another test's client's, too, towards another listener.
        decided = running.wait_for_event("session_decided", listener=f"b{number}", **client.where)
        assert decided["backend_addr"] == f"localhost (127.0.0.1:{backends[chosen].port})"
    for name in hosts:
        if name != chosen:
            assert all(b"SELECT" not in each.received for each in backends[name].conversations)


def test_prefer_standby_tries_again_only_where_a_host_has_answered(running, backends, certs):
    """Where none has, a second round would only double the wait for the same answer."""
    backends["starting"].forget()
    number = CHOICES.index((("starting",), "prefer-standby", None))
    context = wire.tls_context(certificate=certs.client("alice"))
    with wire.connected(("127.0.0.1", running.port(f"b{number}")), context) as client:
        client.send(wire.startup(user="alice"))
        client.read_error()
    assert len(backends["starting"].conversations) == 1
