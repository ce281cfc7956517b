"""A reader that stops stops the server, and a server that stops stops the client; the proxy keeps nothing."""

import os
import signal
import threading

import psycopg
import pytest

from fixtures.processes import resident_octets
from fixtures.waiting import until

MAY_GROW_BY = 1_000_000
"""Octets."""

LINE = 8 * 1024
LOOKS = 20
"""How often, one after the other, nothing must have moved before it counts as stopped."""


def until_still(look):
    """Wait until the answer is the same LOOKS times in a row and true."""
    seen = []

    def is_still():
        seen.append(look())
        return len(seen) >= LOOKS and seen[-1] and len(set(seen[-LOOKS:])) == 1

    until(is_still)


@pytest.mark.parametrize(("name", "octets"), [("tls_tls", 1_000_000_000), ("clear_socket", 100_000_000)])
def test_a_large_result_for_a_reader_that_stops_for_a_while(legs, name, octets):
    count = octets // LINE
    (pid,) = legs.running.workers
    number = received = largest = 0
    sql = f"COPY (SELECT rpad(n::text, {LINE - 1}, '.') FROM generate_series(1, {count}) n) TO STDOUT"
    with psycopg.connect(**legs.target(name).words) as connection:
        backend = connection.info.backend_pid

        def is_server_waiting():
            asked = f"SELECT wait_event FROM pg_stat_activity WHERE pid = {backend}"
            return legs.cluster.psql(asked).stdout == "ClientWrite\n"

        before = resident_octets(pid)
        with connection.cursor().copy(sql) as copy:
            for number, data in enumerate(copy, start=1):
                received += len(data)
                assert data[: len(str(number)) + 1] == b"%d." % number
                if number == 1000:
                    until_still(is_server_waiting)
                if number % 1000 == 0:
                    largest = max(largest, resident_octets(pid))
    assert (number, received) == (count, count * LINE)
    assert largest - before < MAY_GROW_BY


@pytest.mark.parametrize("name", ["tls_tls", "clear_socket"])
def test_a_large_copy_into_a_server_that_stops_for_a_while(legs, name):
    count = 100_000_000 // LINE
    (pid,) = legs.running.workers
    written = 0
    is_copying, may_go_on = threading.Event(), threading.Event()

    def write(connection):
        nonlocal written
        with connection.cursor().copy("COPY received (line) FROM STDIN") as copy:
            is_copying.set()
            may_go_on.wait()
            for number in range(count):
                copy.write(b"%d".ljust(LINE - 1, b".") % number + b"\n")
                written += 1

    with psycopg.connect(**legs.target(name).words) as connection:
        connection.execute("CREATE TEMP TABLE received (number serial, line text)")
        before = resident_octets(pid)
        backend = connection.info.backend_pid
        writer = threading.Thread(target=write, args=(connection,))
        writer.start()
        assert is_copying.wait(20)
        os.kill(backend, signal.SIGSTOP)
        may_go_on.set()
        try:
            until_still(lambda: written)
            stopped = resident_octets(pid), written
        finally:
            os.kill(backend, signal.SIGCONT)
        writer.join()
        largest = max(stopped[0], resident_octets(pid))
        assert stopped[1] < count
        asked = "SELECT count(*), count(*) FILTER (WHERE line LIKE number - 1 || '.%') FROM received"
        assert connection.execute(asked).fetchone() == (count, count)
    assert largest - before < MAY_GROW_BY
