"""Where the server believes the proxy, no general line reaches a superuser or a copy of the whole cluster."""

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
from fixtures.postgres import password
from fixtures.wire import connected, log_in, tls_context

IDENT = """\
people dba postgres
operators /^op[0-9]$ postgres
everybody /^(.*)$ \\1
roles dba all
"""

LET_IN = "let in"
FENCED = ("28000", "pg_hba.conf rejects connection for host")
FENCED_WALSENDER = ("28000", "pg_hba.conf rejects replication connection for host")
NO_WALSENDER_LINE = ("28000", "no pg_hba.conf entry for replication connection from host")
AT_THE_SERVER = ("42501", "permission denied to start WAL sender")
"""The fence is passed: the server itself judges, and this role may not."""

# The line; the certificate's name; the user; replication; what comes.
CASES = [
    ("hostssl all all all cert", "postgres", "postgres", None, FENCED),
    ("hostssl all all all cert", "alice", "alice", None, LET_IN),
    ("hostssl all postgres all cert", "postgres", "postgres", None, LET_IN),
    ("hostssl all alice,postgres all cert", "postgres", "postgres", None, LET_IN),
    ('hostssl all "all",all all cert', "postgres", "postgres", None, FENCED),
    ("hostssl all all all cert map=people", "dba", "postgres", None, FENCED),
    ("hostssl all postgres all cert map=people", "dba", "postgres", None, LET_IN),
    ("hostssl all postgres all cert map=operators", "op7", "postgres", None, LET_IN),
    ("hostssl all postgres all cert map=everybody", "postgres", "postgres", None, FENCED),
    ("hostssl all postgres all cert map=roles", "dba", "postgres", None, FENCED),
    ("hostssl all all all cert map=everybody", "bob", "bob", None, LET_IN),
    # Physical replication matches no line but one that says so.
    ("hostssl all all all cert", "app", "app", "true", NO_WALSENDER_LINE),
    ("hostssl all app all cert", "app", "app", "true", NO_WALSENDER_LINE),
    ("hostssl replication all all cert", "app", "app", "true", AT_THE_SERVER),
    ("hostssl replication all all cert", "postgres", "postgres", "true", FENCED_WALSENDER),
    ("hostssl replication postgres all cert", "postgres", "postgres", "true", LET_IN),
    # Logical replication matches lines for databases.
    ("hostssl all all all cert", "app", "app", "database", FENCED),
    (
        "hostssl replication all all cert",
        "app",
        "app",
        "database",
        ("28000", "no pg_hba.conf entry for host"),
    ),
    ("hostssl all app all cert", "app", "app", "database", AT_THE_SERVER),
    ("hostssl all all all cert", "postgres", "postgres", "database", FENCED),
    ("hostssl all postgres all cert", "postgres", "postgres", "database", LET_IN),
]

PHYSICAL = ("true", "TRUE", "tru", "tr", "t", "on", "ON", "yes", "ye", "y", "1")
NOT_AT_ALL = ("false", "fals", "f", "off", "of", "no", "n", "0")
NO_BOOLEAN = ("", "2", "o", "truely", "DATABASE", "databas", "database ", " true", "physical")


@pytest.fixture(scope="module")
def cluster(tls_cluster):
    return tls_cluster(17, PROXY_CERTIFICATE_HBA, ident=PROXY_CERTIFICATE_IDENT)


@pytest.fixture(scope="module")
def ports(shared_proxy, certs, cluster, tls_cluster):
    """A listener for each line, and some more for other backends."""
    lines = {f"line{number}": line for number, line in enumerate(dict.fromkeys(case[0] for case in CASES))}
    everybody = {"hba_file": "everybody.hba"}
    asking = {"hba_file": "asking.hba"}
    proxy_certificate = certs.client("pgtlsproxy")
    scram = tls_cluster(17)
    running = shared_proxy(
        config(
            {
                **{
                    name: with_tls(certs, hba_file=f"{name}.hba", ident_file="pg_ident.conf")
                    for name in lines
                },
                "reserves_app": with_tls(certs, backend="reserves_app", **everybody),
                "asks": with_tls(certs, backend="asks", **asking),
                "asks_and_sees_us": with_tls(certs, backend="asks_and_sees_us", **asking),
            },
            primary=with_certificate(cluster, certs),
            reserves_app=with_certificate(cluster, certs, reserved_users=["app"]),
            asks=passthrough(scram, certs),
            asks_and_sees_us=passthrough(
                scram, certs, sslcert=proxy_certificate.crt, sslkey=proxy_certificate.key
            ),
        ),
        {
            "pg_ident.conf": IDENT,
            "everybody.hba": "hostssl all all all cert\n",
            "asking.hba": "hostssl all all all scram-sha-256\nhostssl replication all all scram-sha-256\n",
            **{f"{name}.hba": f"{line}\n" for name, line in lines.items()},
        },
    )
    found = {
        event["listener"]: int(event["address"].rpartition(":")[2])
        for event in running.log_events("listening")
    }
    return found | {line: found[name] for name, line in lines.items()}


def attempt(port, certificate, user, replication, **more):
    """What a session for a user is told: that it is let in, or SQLSTATE and text."""
    words = {} if replication is None else {"replication": replication}
    with connected(("127.0.0.1", port), tls_context(certificate=certificate)) as client:
        client.send(wire.startup(user=user, database="postgres", **words, **more))
        while (message := client.read_message()).kind not in {b"E", b"Z"}:
            if message.kind == b"R" and message.code == 10:
                log_in(client, password(user), opening=message)
                return LET_IN
        return LET_IN if message.kind == b"Z" else message.error


@pytest.mark.parametrize(("line", "name", "user", "replication", "verdict"), CASES)
def test_a_line_opens_the_fence_only_by_naming_who_may_pass(
    ports, certs, line, name, user, replication, verdict
):
    found = attempt(ports[line], certs.client(name), user, replication)
    assert found == verdict or (found[0], found[1][: len(verdict[1])]) == verdict


@pytest.mark.parametrize("spelling", PHYSICAL)
def test_every_spelling_of_replication_meets_the_fence(ports, certs, spelling):
    sqlstate, text = attempt(ports["hostssl all app all cert"], certs.client("app"), "app", spelling)
    assert (sqlstate, text[: len(NO_WALSENDER_LINE[1])]) == NO_WALSENDER_LINE


@pytest.mark.parametrize("spelling", NOT_AT_ALL)
def test_a_no_is_an_ordinary_session(ports, certs, spelling):
    assert attempt(ports["hostssl all all all cert"], certs.client("app"), "app", spelling) == LET_IN


@pytest.mark.parametrize("spelling", NO_BOOLEAN)
def test_what_is_neither_is_refused_as_by_postgresql(ports, certs, spelling):
    found = attempt(ports["hostssl replication all all cert"], certs.client("app"), "app", spelling)
    assert found == ("22023", f'invalid value for parameter "replication": "{spelling}"')


def test_reserved_users_are_those_of_the_configuration(ports, certs):
    port = ports["reserves_app"]
    assert attempt(port, certs.client("app"), "app", None)[:1] == FENCED[:1]
    assert attempt(port, certs.client("postgres"), "postgres", None) == LET_IN


def test_where_the_server_asks_the_user_itself_there_is_no_fence(ports):
    assert attempt(ports["asks"], None, "postgres", None) == LET_IN
    assert attempt(ports["asks"], None, "postgres", "true") == LET_IN


def test_a_server_that_sees_the_proxys_certificate_is_fenced_though_it_may_ask(ports):
    assert attempt(ports["asks_and_sees_us"], None, "postgres", None)[1].startswith(FENCED[1])
    assert attempt(ports["asks_and_sees_us"], None, "postgres", "true")[1].startswith(FENCED_WALSENDER[1])
    assert attempt(ports["asks_and_sees_us"], None, "app", None) == LET_IN


@pytest.mark.parametrize(
    "words",
    [
        {"role": "postgres"},
        {"session_authorization": "postgres"},
        {"options": "-c role=postgres"},
        {"options": "-crole=postgres"},
        {"options": "--role=postgres"},
        {"options": r"-c application_name=a\ b  -c   role=postgres"},
    ],
    ids=str,
)
def test_a_role_that_a_client_asks_for_is_the_servers_to_judge(ports, certs, cluster, words):
    found = attempt(ports["hostssl all all all cert"], certs.client("alice"), "alice", None, **words)
    # Directly at the server the proxy's certificate is alice's, too.
    assert found == attempt(cluster.port, certs.client("pgtlsproxy"), "alice", None, **words)
    assert found[0] == "42501"
