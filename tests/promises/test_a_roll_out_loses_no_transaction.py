"""Two proxies behind a balancer are replaced by turns, under clients that come all the time and a pool.

The pool connects again where it is told 57P01 at the beginning of a transaction. Nobody sees any other error.

`PGTLSPROXY_ROLLOUTS=5` in the environment makes it that many roll-outs, with 100 new connections a second; with
`pytest -s` what was seen is printed.
"""

import os
import re
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import psycopg
import pytest

from fixtures.balancer import Balancer, Member
from fixtures.clients import conninfo
from fixtures.deployments import config, with_certificate, with_tls
from fixtures.postgres import ROLES
from fixtures.waiting import until

ASKED_FOR = int(os.environ.get("PGTLSPROXY_ROLLOUTS", "0"))
ROLLOUTS = ASKED_FOR or 1
RATE = 100 if ASKED_FOR else 20
"""New connections a second, as far as the machine is able to make them."""

POOL = 40 if ASKED_FOR else 8
PAUSE_SECONDS = 0.2
"""Between two transactions of a connection of the pool."""

DRAIN_DELAY = "1s"
"""Longer than the balancer needs to hear of it."""

SERVER_HBA = "hostssl all all all cert map=pgtlsproxy\n"
SERVER_IDENT = "".join(f"pgtlsproxy pgtlsproxy {role}\n" for role in ROLES)
SHUTDOWN = "57P01"


@pytest.fixture
def cluster(own_cluster):
    cluster = own_cluster(17, SERVER_HBA, ident=SERVER_IDENT)
    cluster.psql("CREATE TABLE accounts AS SELECT i AS id, 0 AS n FROM generate_series(1, 100) AS i")
    cluster.psql("GRANT ALL ON accounts TO alice")
    return cluster


@pytest.fixture
def start(proxy, certs, cluster):
    def go():
        settings = config({"tls": with_tls(certs)}, primary=with_certificate(cluster, certs)) | {
            "status": {"listen": "127.0.0.1:0"},
            "drain_delay": DRAIN_DELAY,
        }
        running = proxy(settings, {"pg_hba.conf": "hostssl all alice all cert\n"})
        return running, Member(running.port("tls"), running.status_port)

    return go


class Client:
    """Connects through the balancer, and counts what it sees."""

    def __init__(self, balancer, certs, psql):
        shown = certs.client("alice")
        self._words = {
            "host": "localhost", "hostaddr": "127.0.0.1", "port": balancer.port, "user": "alice",
            "dbname": "postgres", "sslmode": "verify-full", "sslrootcert": str(certs.ca.crt),
            "sslcert": str(shown.crt), "sslkey": str(shown.key),
        }  # fmt: skip
        self._psql = psql
        self.seen = Counter()
        self.is_over = threading.Event()

    def come_and_go(self, script):
        """New connections for each transaction, a few seconds' worth at a time. pgbench ends at any error."""
        words = conninfo(**self._words)
        while not self.is_over.is_set():
            ended = subprocess.run(
                [self._psql.installation.program("pgbench"), "-n", "-C", "-c", "16", "-j", "16", "-R", str(RATE),
                 "-T", "3", "-f", str(script), words],
                env=self._psql.environment(), capture_output=True, text=True, timeout=120, check=False,
            )  # fmt: skip
            assert (ended.returncode, "number of failed transactions: 0 " in ended.stdout) == (0, True), ended
            self.seen["new"] += int(re.search(r"actually processed: (\d+)", ended.stdout)[1])

    def connect(self):
        """A connection, and the SQLSTATEs of what it is told between two queries, which libpq takes for notices."""
        connection = psycopg.connect(**self._words, autocommit=True)
        told = []
        connection.add_notice_handler(lambda notice: told.append(notice.sqlstate))
        return connection, told

    def pooled(self, number):
        """Transactions on one connection, which is made again where it was ended between two of them."""
        connection, told = self.connect()
        while not self.is_over.wait(PAUSE_SECONDS):
            try:
                connection.execute("BEGIN")
            except psycopg.OperationalError as error:
                if SHUTDOWN not in {error.sqlstate, *told}:
                    raise
                self.seen["told 57P01"] += 1
                connection.close()
                connection, told = self.connect()
                continue
            connection.execute("UPDATE accounts SET n = n + 1 WHERE id = %s", (number,))
            connection.execute("COMMIT")
            self.seen["committed"] += 1
        connection.close()


def test_a_pool_and_new_clients_see_no_error_while_both_proxies_are_replaced(
    start, cluster, certs, psql, tmp_path
):
    script = tmp_path / "select.sql"
    script.write_text("SELECT 1;\n")
    drains = []
    with ThreadPoolExecutor(POOL + 1) as pool, ExitStack() as stack:
        balancer = stack.enter_context(Balancer().going())
        serving = [start() for _ in range(2)]
        for _, member in serving:
            balancer.add(member)
        client = Client(balancer, certs, psql(17))
        stack.callback(client.is_over.set)
        going = [pool.submit(client.pooled, number + 1) for number in range(POOL)]
        going.append(pool.submit(client.come_and_go, script))
        began = time.monotonic()
        until(lambda: client.seen["committed"] >= POOL and client.seen["new"] >= 1)
        for _ in range(ROLLOUTS):
            for _ in range(2):
                serving.append(start())
                balancer.add(serving[-1][1])
                since = time.monotonic()
                old, member = serving.pop(0)
                assert old.stop(timeout=60) == 0
                drains.append(time.monotonic() - since)
                balancer.remove(member)
                assert_going(going)
        client.is_over.set()
        for each in going:
            each.result()
        seconds = time.monotonic() - began
    assert balancer.refused == 0
    assert cluster.psql("SELECT sum(n) FROM accounts").stdout.strip() == str(client.seen["committed"])
    assert client.seen["told 57P01"] >= POOL * ROLLOUTS
    print(  # noqa: T201 - the record of a campaign
        f"\n{ROLLOUTS} roll-outs of two proxies in {seconds:.0f} s: {client.seen['new'] / seconds:.0f} new "
        f"connections a second, {client.seen['committed']} transactions of a pool of {POOL}, which was told "
        f"57P01 {client.seen['told 57P01']} times at the beginning of one; no other error. Draining took "
        f"{min(drains):.1f} to {max(drains):.1f} s with drain_delay: {DRAIN_DELAY}"
    )


def assert_going(futures):
    assert not any(each.done() for each in futures), [each.exception() for each in futures if each.done()]
