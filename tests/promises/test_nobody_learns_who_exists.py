"""Whoever does not know a password cannot tell from messages, lengths, codes or time whether its user exists.

`./dev bench --campaign users` takes times, of all waits for an answer together: the medians of 200 logins for every user, in
turn. They must be within 10 % of each other, or of what the halves of one user's own runs differ by: noise. The figures
are in benchmarks/README.md.
"""

import os
import statistics
import time

import pytest

from fixtures import auth_query, wire
from fixtures.deployments import (
    PROXY_CERTIFICATE_HBA,
    PROXY_CERTIFICATE_IDENT,
    config,
    passthrough,
    with_certificate,
    with_tls,
)
from fixtures.postgres import password
from fixtures.scram_secrets import secrets_file
from fixtures.scram_servers import end_point

RUNS = int(os.environ.get("PGTLSPROXY_USERS", "2"))
TIMED_FROM = 100
"""Runs from which on times are judged."""

WITHIN = 0.1

USERS = ("alice", "nolog", "md5on", "nobod")
"""Names of one length: who may log in, who may not, whose secret is an MD5 hash, and nobody."""

SETUP = (
    "CREATE ROLE nolog PASSWORD 'nolog-secret'; "
    "CREATE ROLE md5on LOGIN PASSWORD 'md5d6fd467a8f48b6603f515e403372de6f'"
)
P, N, Y = b"p=tls-server-end-point,,", b"n,,", b"y,,"


@pytest.fixture(scope="module")
def cluster(tls_cluster):
    found = tls_cluster(17)
    found.psql(SETUP)
    auth_query.install(found)
    yield found
    found.psql("DROP ROLE nolog, md5on")


@pytest.fixture(scope="module")
def believing(tls_cluster):
    return tls_cluster(17, PROXY_CERTIFICATE_HBA, ident=PROXY_CERTIFICATE_IDENT)


@pytest.fixture(scope="module")
def running(cluster, believing, shared_proxy, certs):
    listed = {"scram_secrets_file": "secrets.txt"}
    asked = {
        "auth_query": auth_query.AUTH_QUERY | {"backend": "primary"},
        "scram_mock_secret_file": "mock",
    }
    other = certs.ca.server("localhost")
    own_password = {"backend": "believing", "hba_file": "password.conf"}
    listeners = {
        "bridge": with_tls(certs, other, **listed),
        "own_scram": with_tls(certs, other, **listed, backend="believing"),
        "own_password": with_tls(certs, other, **listed, **own_password),
        "shown": with_tls(certs, other, hba_file="password.conf"),
        "asked_bridge": with_tls(certs, other, **asked),
        "asked_own_scram": with_tls(certs, other, **asked, backend="believing"),
        "asked_own_password": with_tls(certs, other, **asked, **own_password),
    }
    return shared_proxy(
        config(
            listeners,
            primary=passthrough(cluster, certs),
            believing=with_certificate(believing, certs),
        ),
        {
            "pg_hba.conf": "hostssl all all all scram-sha-256\n",
            "password.conf": "hostssl all all all password\n",
            "secrets.txt": secrets_file(cluster, "alice", "nolog"),
        }
        | auth_query.FILES,
    )


class Timed:
    """A client that takes the time for which it waits.

    Attributes:
        seconds: from what it sends to what it hears, all in all.
    """

    def __init__(self, client):
        self.seconds = 0.0
        self._client = client
        self._sent = 0.0

    def send(self, data):
        self._sent = time.perf_counter()
        self._client.send(data)

    def read_message(self):
        message = self._client.read_message()
        self.seconds += time.perf_counter() - self._sent
        return message


def attempt(running, certs, listener, user, flag, secret):
    """What a client hears, as (type, length, code), and the seconds that it waits for answers to its own."""
    with wire.connected(("127.0.0.1", running.port(listener)), source=wire.another_source()) as client:
        client.send(wire.startup(user=user, database="postgres"))
        opening = client.read_message()
        timed = Timed(client)
        if opening.code == 3:
            timed.send(wire.password_message(secret))
            answer = timed.read_message()
        elif flag == Y:
            timed.send(wire.sasl_initial_response("SCRAM-SHA-256", Y + b"n=,r=abc"))
            answer = timed.read_message()
        else:
            bound = end_point(certs.ca.server("localhost")) if flag == P else b""
            answer, _ = wire.try_to_prove(timed, secret, opening=opening, flag=flag, end_point=bound)
        if answer.kind == b"R":
            return [(each.kind, 0, "") for each in client.read_until(b"Z")], timed.seconds
        heard = [opening, answer, *wire.messages(client.read_to_end())]
    seen = [(each.kind, len(each.body), each.fields["C"] if each.kind == b"E" else "") for each in heard]
    return seen, timed.seconds


CELLS = [
    ("bridge", P), ("bridge", N), ("bridge", Y), ("own_scram", P), ("own_scram", N), ("own_scram", Y),
    ("own_password", None), ("shown", None),
    ("asked_bridge", P), ("asked_own_scram", P), ("asked_own_password", None),
]  # fmt: skip


@pytest.mark.parametrize(("listener", "flag"), CELLS, ids=lambda each: str(each)[:3])
def test_a_wrong_password_is_answered_alike(running, certs, listener, flag, request):
    seconds = {user: [] for user in USERS}
    heard = set()
    # Who may log in has done so: where the server is asked, the proxy remembers her.
    (*_, let_in), _ = attempt(running, certs, listener, "alice", flag, password("alice"))
    assert let_in[2] == ("28000" if flag == Y else "")
    for _ in range(RUNS):
        for user in USERS:
            seen, took = attempt(running, certs, listener, user, flag, "wrong")
            heard.add(tuple(seen))
            seconds[user].append(took)
    (only,) = heard
    assert only[-1][2] == ("28000" if flag == Y else "28P01")
    if RUNS < TIMED_FROM:
        return
    medians = {user: statistics.median(each) for user, each in seconds.items()}
    spread = max(medians.values()) - min(medians.values())
    noise = max(
        abs(statistics.median(each[::2]) - statistics.median(each[1::2])) for each in seconds.values()
    )
    shown = ", ".join(f"{user} {1e3 * median:.3f}" for user, median in medians.items())
    told = f"{request.node.name}: ms {shown}; spread {1e3 * spread:.3f}, noise {1e3 * noise:.3f}"
    print(f"\n{told}")  # noqa: T201 - the campaign's figures
    assert spread <= max(WITHIN * min(medians.values()), noise), told


@pytest.mark.parametrize("flag", [P, N])
def test_a_right_password_that_lets_nobody_in_is_answered_as_a_wrong_one(running, certs, flag):
    """An MD5 secret does not do for SCRAM, and the server does not say why."""
    wrong, _ = attempt(running, certs, "bridge", "alice", flag, "wrong")
    for user in ("md5on", "nobod"):
        assert attempt(running, certs, "bridge", user, flag, f"{user}-secret")[0] == wrong
