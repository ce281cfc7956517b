"""However many sessions have come and gone, and however they ended: no descriptor, thread or memory is left of them.

`PGTLSPROXY_SESSIONS=100000` in the environment raises their number; with `pytest -s` what
was seen on the way is printed.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections import Counter

import pytest

from fixtures import wire
from fixtures.clients import conninfo
from fixtures.deployments import config, with_certificate, with_tls
from fixtures.postgres import ROLES
from fixtures.processes import family, held_by
from fixtures.proxy import COMMAND
from fixtures.waiting import until

SESSIONS = int(os.environ.get("PGTLSPROXY_SESSIONS", "0")) or 600
ROUNDS = 6 if SESSIONS <= 6000 else 40
AT_ONCE = 8
ODD_SHARE = 20
"""One client in so many does not come to run a query and say goodbye."""

WARM_AFTER = ROUNDS // 3
"""Rounds behind which allocators, caches and bounded tables have taken what they need."""

MAY_GROW_BY = 4_000_000
"""Octets of one process behind that: 10 kB a session of 600, 60 of 100,000; a leg that is lost has 25 kB."""

SERVER_HBA = "hostssl all all all cert map=pgtlsproxy\n"
SERVER_IDENT = "".join(f"pgtlsproxy pgtlsproxy {role}\n" for role in ROLES)


@pytest.fixture
def cluster(own_cluster):
    return own_cluster(17, SERVER_HBA, ident=SERVER_IDENT)


WITHOUT_THE_COLLECTOR = """
import gc, sys
gc.disable()
gc.enable = lambda: None
from pgtlsproxy.cli import main
main(sys.argv[1:])
"""


@pytest.fixture
def start(proxy, certs, cluster):
    def go(command=COMMAND):
        running = proxy(
            config({"tls": with_tls(certs)}, primary=with_certificate(cluster, certs)) | {"workers": 2},
            {"pg_hba.conf": "hostssl all alice all cert\n"},
            command=command,
        )
        running.wait_for_event("ready")
        return running

    return go


class Crowd:
    """Clients that come, and what they were."""

    def __init__(self, running, certs, psql):
        self._port, self._certs = running.port("tls"), certs
        self._context = wire.tls_context(certificate=certs.client("alice"))
        self._psql = psql
        self.let_in = self.refused = 0

    def run_queries_and_leave(self, count):
        """As pgbench does it, which takes one session more than it is told to."""
        shown = self._certs.client("alice")
        where = conninfo(
            host="localhost", hostaddr="127.0.0.1", port=self._port, dbname="alice", user="alice",
            sslmode="verify-full", sslrootcert=self._certs.ca.crt, sslcert=shown.crt, sslkey=shown.key,
        )  # fmt: skip
        each = max(count // AT_ONCE, 1)
        subprocess.run(
            [self._psql.installation.program("pgbench"), "-n", "-C", "-c", str(AT_ONCE), "-j", "2", "-t", str(each),
             "-f", "-", where],
            input=b"SELECT 1;\n", env=self._psql.environment(), check=True, capture_output=True, timeout=3600,
        )  # fmt: skip
        self.let_in += AT_ONCE * each + 1

    def behave_oddly(self, count):
        odd = (
            self._resets, self._vanishes_in_a_query, self._says_nothing, self._cancels, self._is_refused,
            self._stops_in_the_handshake,
        )  # fmt: skip
        for number in range(count):
            source = f"127.{1 + number // 250 % 250}.{number % 250}.{1 + number % 7}"
            with wire.WireClient(("127.0.0.1", self._port), source=source) as client:
                odd[number % len(odd)](client)

    def _log_in(self, client):
        assert client.ask_for_tls() == b"S"
        client.start_tls(self._context)
        client.send(wire.startup(user="alice"))
        client.read_until(b"Z")
        self.let_in += 1

    def _resets(self, client):
        self._log_in(client)
        client.reset()

    def _vanishes_in_a_query(self, client):
        self._log_in(client)
        client.send(wire.query("SELECT repeat('x', 1000000)"))
        client.read_exactly(5)

    def _says_nothing(self, client):
        pass

    def _cancels(self, client):
        client.send(wire.cancel_request(4711, b"none"))
        assert client.read_to_end() == b""

    def _is_refused(self, client):
        assert client.ask_for_tls() == b"S"
        client.start_tls(self._context)
        client.send(wire.startup(user="bob"))
        assert client.read_error().error[0] == "28000"
        self.refused += 1

    def _stops_in_the_handshake(self, client):
        assert client.ask_for_tls() == b"S"
        client.send_raw(b"\x16\x03\x01")


def test_descriptors_threads_and_memory_stay_what_they_were(start, cluster, certs, psql):
    running = start()
    crowd = Crowd(running, certs, psql(17))
    crowd.run_queries_and_leave(AT_ONCE)
    baseline = held_in_the_end(running, held(running))
    seen = []
    begin = time.monotonic()
    for number in range(1, ROUNDS + 1):
        count = SESSIONS // ROUNDS
        crowd.behave_oddly(count // ODD_SHARE)
        crowd.run_queries_and_leave(count - count // ODD_SHARE)
        seen.append(held_in_the_end(running, baseline))
        if SESSIONS > 6000:
            tell(f"{time.monotonic() - begin:5.0f} s, {number * count} sessions: {shown(seen[-1])}")
    warm, last = seen[WARM_AFTER - 1], seen[-1]
    grown = {pid: last[pid].octets - warm[pid].octets for pid in last}
    assert max(grown.values()) < MAY_GROW_BY, f"{shown(warm)} -> {shown(last)}"
    every_session_is_accounted_for(running, cluster, crowd)


def test_nothing_of_a_session_waits_for_pythons_collector(start, certs, psql):
    """It looks rarely at what has lived for long: 50 kB of OpenSSL's for each session of a day would wait."""
    running = start((sys.executable, "-c", WITHOUT_THE_COLLECTOR))
    crowd = Crowd(running, certs, psql(17))
    crowd.run_queries_and_leave(200)
    warm = held_in_the_end(running, held(running))
    crowd.behave_oddly(30)
    crowd.run_queries_and_leave(200)
    last = held_in_the_end(running, warm)
    assert max(last[pid].octets - warm[pid].octets for pid in last) < MAY_GROW_BY, (
        f"{shown(warm)} -> {shown(last)}"
    )


def held(running):
    """By process, the supervisor's first."""
    return {pid: held_by(pid) for pid in family(running.pid)}


def held_in_the_end(running, baseline):
    """What is held when everybody has gone: descriptors and threads as at the baseline, or the test fails."""

    def differences():
        now = held(running)
        assert now.keys() == baseline.keys(), "a worker has died"
        return [
            (pid, now[pid], baseline[pid])
            for pid in now
            if now[pid].descriptors > baseline[pid].descriptors or now[pid].threads > baseline[pid].threads
        ]

    with contextlib.suppress(AssertionError):
        until(lambda: not differences())
    assert differences() == []
    return held(running)


def every_session_is_accounted_for(running, cluster, crowd):
    asked = "SELECT sessions FROM pg_stat_database WHERE datname = 'alice'"
    until(lambda: int(cluster.psql(asked).stdout) == crowd.let_in)
    until(
        lambda: verdicts(running)["allowed"] == len(running.log_events("session_ended")), timeout=60, pause=1
    )
    folded = sum(event["count"] for event in running.log_events("refusals_folded"))
    counted = verdicts(running)
    assert (counted["allowed"], counted["refused"] + folded >= crowd.refused) == (crowd.let_in, True)


def verdicts(running):
    return Counter(event["verdict"] for event in running.log_events("session_decided"))


def shown(processes):
    return "; ".join(
        f"{each.octets / 1e6:.1f} MB, {each.descriptors} descriptors, {each.threads} threads"
        for each in processes.values()
    )


def tell(line):
    sys.__stderr__.write(f"{line}\n")
    sys.__stderr__.flush()
