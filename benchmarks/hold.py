"""Holds idle sessions: `python -m benchmarks.hold CONNINFO`, then a number a line on standard input.

For each number that many sessions are open when the number comes back; with the end of the input
they close. Each has run one query and taken 3 kB, so that its proxy has used its buffers once.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

from psycopg import pq

from benchmarks.processes import raise_descriptor_limit

CONNECTING = 8
"""Sessions that are being opened at once."""


def connect(conninfo: str) -> pq.abc.PGconn:
    """One session.

    Raises:
        ConnectionError: it was refused, or lost in its first query.
    """
    connection = pq.PGconn.connect(conninfo.encode())
    if connection.status != pq.ConnStatus.OK:
        raise ConnectionError(connection.get_error_message())
    result = connection.exec_(b"SELECT repeat('x', 3000)")
    if result.status != pq.ExecStatus.TUPLES_OK:
        raise ConnectionError(result.get_error_message())
    return connection


def main(conninfo: str) -> None:
    """Hold as many sessions as standard input says."""
    raise_descriptor_limit()
    held: list[pq.abc.PGconn] = []
    with ThreadPoolExecutor(CONNECTING) as executor:
        for line in sys.stdin:
            wanted = int(line)
            held += executor.map(connect, [conninfo] * (wanted - len(held)))
            sys.stdout.write(f"{wanted}\n")
            sys.stdout.flush()
    for connection in held:
        connection.finish()


if __name__ == "__main__":
    main(sys.argv[1])
