"""Each wrong password makes the next one wait, whoever judges it, and nobody who comes from elsewhere."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from fixtures import wire
from fixtures.deployments import (
    PROXY_CERTIFICATE_HBA,
    PROXY_CERTIFICATE_IDENT,
    config,
    in_clear,
    passthrough,
    with_certificate,
    with_tls,
)
from fixtures.fake_backend import FakeBackend
from fixtures.postgres import password
from fixtures.scram_secrets import secrets_file
from fixtures.scram_servers import end_point
from fixtures.wire import WireClient
from pgtlsproxy.proxy import guessing

SECRETS = {"scram_secrets_file": "secrets.txt"}

JUDGES = ("bridge", "relay", "shown", "own_scram", "own_password", "clear", "md5")
"""Who judges: the server behind the bridge, the server that the client speaks to, the server that we prove the
client's password to, we by SCRAM and in clear, and servers that ask in other ways."""


def asks_in_clear(conversation):
    conversation.accept()
    conversation.send(wire.authentication(3))
    answer(conversation)


def asks_for_md5(conversation):
    conversation.accept()
    conversation.send(wire.authentication(5, b"salt"))
    answer(conversation)


def answer(conversation):
    """Let in whoever says so."""
    if conversation.read_message().body == b"right\0":
        conversation.let_in()
        conversation.answer_queries()
    else:
        conversation.send(wire.error_response("28P01", "password authentication failed"))


def asks_for_a_token(conversation):
    conversation.accept()
    conversation.send(wire.authentication_sasl("OAUTHBEARER"))
    assert b"auth=\1" in conversation.read_message().body
    conversation.send(wire.authentication(11, b'{"status": "invalid_token"}'))
    assert conversation.read_message().body == b"\1"
    conversation.send(wire.error_response("28000", "OAuth bearer authentication failed"))


@pytest.fixture(scope="module")
def cluster(tls_cluster):
    return tls_cluster(17)


@pytest.fixture(scope="module")
def believing(tls_cluster):
    return tls_cluster(17, PROXY_CERTIFICATE_HBA, ident=PROXY_CERTIFICATE_IDENT)


@pytest.fixture(scope="module")
def running(cluster, believing, shared_fake_backend, shared_proxy, certs):
    fakes = {
        "fake_clear": asks_in_clear,
        "fake_md5": asks_for_md5,
        "fake_oauth": asks_for_a_token,
    }
    backends = {
        name: {
            "host": "localhost", "port": shared_fake_backend(script).port, "sslrootcert": certs.ca.crt,
            "login": "passthrough",
        }
        for name, script in fakes.items()
    }  # fmt: skip
    other = certs.ca.server("localhost")
    listeners = {
        "bridge": with_tls(certs, other, **SECRETS),
        "relay": with_tls(certs, other),
        "shown": with_tls(certs, other, hba_file="password.conf"),
        "own_scram": with_tls(certs, other, **SECRETS, hba_file="scram.conf", backend="believing"),
        "own_password": with_tls(certs, other, **SECRETS, hba_file="password.conf", backend="believing"),
        "clear": with_tls(certs, other, backend="fake_clear"),
        "md5": with_tls(certs, other, backend="fake_md5"),
        "oauth": with_tls(certs, other, backend="fake_oauth", hba_file="oauth.conf"),
        "without_tls": in_clear(**SECRETS, hba_file="scram.conf", backend="believing"),
    }
    files = {
        "pg_hba.conf": "host all all all trust\n",
        "scram.conf": "host all all all scram-sha-256\n",
        "password.conf": "host all all all password\n",
        "oauth.conf": "hostssl all all all oauth issuer=https://issuer.example scope=openid\n",
        "secrets.txt": secrets_file(cluster),
    }
    return shared_proxy(
        config(
            listeners,
            primary=passthrough(cluster, certs),
            believing=with_certificate(believing, certs),
            **backends,
        ),
        files,
    )


@contextmanager
def asked(running, judge, user, source):
    """A client that is being asked, and how."""
    with wire.connected(("127.0.0.1", running.port(judge)), source=source) as client:
        client.send(wire.startup(user=user, database="alice"))
        yield client, client.read_message()


def log_in(running, certs, judge, secret, *, user="alice", source):
    """One login; how many seconds it was delayed (None: not), and its SQLSTATE (None: it was let in)."""
    with asked(running, judge, user, source) as (client, opening):
        if opening.code == 10:
            is_bound = judge in {"bridge", "own_scram"}
            verdict, _ = wire.try_to_prove(
                client,
                secret,
                opening=opening,
                flag=b"p=tls-server-end-point,," if is_bound else b"n,,",
                end_point=end_point(certs.ca.server("localhost")) if is_bound else b"",
            )
        else:
            client.send(wire.password_message(secret))
            verdict = client.read_message()
        if verdict.kind == b"R" and verdict.code == 12:
            verdict = client.read_message()
        decided = running.wait_for_event("session_decided", timeout=wire.PATIENCE, **client.where)
        return decided["delayed"], verdict.fields["C"] if verdict.kind == b"E" else None


WRONG = [(None, "28P01")] * 5


def is_slowed_down(outcome, sqlstate, at_least):
    delayed, code = outcome
    return code == sqlstate and delayed is not None and at_least <= delayed


@pytest.mark.parametrize("judge", JUDGES)
def test_the_sixth_guess_waits_and_nobody_else_does(running, certs, judge):
    source, elsewhere = wire.another_source(), wire.another_source()
    right = "right" if judge in {"clear", "md5"} else password("alice")

    def guess(secret="wrong", **whose):
        return log_in(running, certs, judge, secret, **{"source": source} | whose)

    assert [guess() for _ in range(5)] == WRONG
    assert is_slowed_down(guess(), "28P01", 0.01)
    assert guess(right, source=elsewhere) == (None, None)
    assert guess(user="bob") == (None, "28P01")
    assert is_slowed_down(guess(right), None, 0.1)
    assert guess() == (None, "28P01")  # which begins anew


@pytest.mark.parametrize("judge", ["bridge", "relay", "own_scram", "own_password"])
def test_a_user_who_does_not_exist_waits_as_long(running, certs, judge):
    source = wire.another_source()
    outcomes = [log_in(running, certs, judge, "x", user="nobody", source=source) for _ in range(7)]
    assert outcomes[:5] == WRONG
    assert is_slowed_down(outcomes[5], "28P01", 0.01)
    assert is_slowed_down(outcomes[6], "28P01", 0.1)


@pytest.mark.parametrize("judge", ["bridge", "shown", "own_scram", "own_password", "clear"])
def test_a_client_that_hangs_up_when_it_is_asked_has_not_guessed(running, certs, judge):
    source = wire.another_source()
    for _ in range(8):
        with asked(running, judge, "alice", source) as (client, opening):
            assert opening.code in {3, 10}
            client.end()
    assert log_in(running, certs, judge, "wrong", source=source) == (None, "28P01")


def test_the_discovery_of_an_issuer_is_no_guess(running):
    source = wire.another_source()
    for _ in range(8):
        with asked(running, "oauth", "alice", source) as (client, _):
            client.send(wire.sasl_initial_response("OAUTHBEARER", b"n,,\1auth=\1\1"))
            assert client.read_message().code == 11
            client.send(wire.message(b"p", b"\1"))
            assert client.read_error().fields["C"] == "28000"
            decided = running.wait_for_event("session_decided", timeout=wire.PATIENCE, **client.where)
            assert decided["delayed"] is None


def test_each_login_is_judged_afresh(running, certs, cluster):
    """T101: what was right once lets nobody else in, nor the same user with something else."""
    source = wire.another_source()
    for judge in ("bridge", "relay", "shown", "own_scram", "own_password"):
        heard = len(cluster.log_lines)
        good = log_in(running, certs, judge, password("alice"), source=source)
        assert good == (None, None)
        others = [("bob", "wrong"), ("bob", password("alice")), ("alice", "wrong")]
        for user, secret in others:
            assert log_in(running, certs, judge, secret, user=user, source=source) == (None, "28P01")
        if not judge.startswith("own"):
            cluster.wait_for_log('password authentication failed for user "alice"', since=heard)
            failed = [line for line in cluster.log_lines[heard:] if "FATAL:  password auth" in line]
            assert len(failed) == len(others)
        log_in(running, certs, judge, password("bob"), user="bob", source=source)
        log_in(running, certs, judge, password("alice"), source=source)


# --- Many at once ---------------------------------------------------------------------------------------------

CROWD = 12
"""Wrong passwords that are judged together, after which the longest delay is due."""


@pytest.fixture
def delayed(proxy, certs):
    """`delayed(**settings)`: a proxy, and a source whose next login as alice waits for the longest delay."""
    together = threading.Barrier(CROWD)

    def script(conversation):
        conversation.accept()
        conversation.send(wire.authentication(3))
        secret = conversation.read_message().body
        if secret == b"right\0":
            conversation.let_in()
            conversation.answer_queries()
        else:
            together.wait(wire.PATIENCE)
            conversation.send(wire.error_response("28P01", "password authentication failed"))

    with FakeBackend(script, certs.ca.server("localhost")) as fake:

        def start(**settings):
            backend = {
                "host": "localhost", "port": fake.port, "sslrootcert": certs.ca.crt, "login": "passthrough",
            }  # fmt: skip
            running = proxy(
                config({"l": in_clear()}, primary=backend) | settings,
                {"pg_hba.conf": "host all all all trust\n"},
            )
            source = wire.another_source()
            with ThreadPoolExecutor(CROWD) as pool:
                list(pool.map(lambda _: wrong(running, source), range(CROWD)))
            return running, source

        yield start


def opened(running, source, secret):
    """A client that has sent its password."""
    client = WireClient(("127.0.0.1", running.port("l")), source=source)
    client.send(wire.startup(user="alice", database="alice"))
    assert client.read_message().code == 3
    client.send(wire.password_message(secret))
    return client


def wrong(running, source):
    with opened(running, source, "wrong") as client:
        assert client.read_message().fields["C"] == "28P01"


def test_a_login_that_waits_ends_at_its_deadline(delayed):
    running, source = delayed(authentication_timeout="2s")
    with opened(running, source, "right") as client:
        assert client.read_to_end() == b""
        decided = running.wait_for_event("session_decided", timeout=wire.PATIENCE, **client.where)
    assert (decided["kind"], decided["verdict"]) == ("timeout", "refused")
    assert decided["delayed"] > 1


def test_a_login_that_waits_holds_up_no_shutdown(delayed):
    running, source = delayed()
    with opened(running, source, "right") as client, opened(running, wire.another_source(), "right") as other:
        assert other.read_until(b"Z")
        running.stop(guessing.LONGEST_DELAY - 3)
        client.read_to_end()


def test_logins_that_wait_make_room_for_whoever_comes_next(delayed):
    """K14: a crowd of them holds no budget that others need."""
    running, source = delayed(max_pending=CROWD)
    waiting = [opened(running, source, "right") for _ in range(CROWD)]
    try:
        with opened(running, wire.another_source(), "right") as client:
            assert client.read_until(b"Z")
        assert waiting[0].read_to_end() == b""
        decided = running.wait_for_event("session_decided", timeout=wire.PATIENCE, **waiting[0].where)
        assert (decided["kind"], decided["delayed"] > 0) == ("limit", True)
        # The rest wait for one delay all together, and the first success lets them all in.
        for client in waiting[1:]:
            assert client.read_until(b"Z")
    finally:
        for client in waiting:
            client.close()
