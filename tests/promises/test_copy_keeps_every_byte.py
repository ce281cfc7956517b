"""Hundreds of megabytes of COPY, out and in, arrive as they were sent, over every pair of legs.

PGTLSPROXY_LONG=1 makes it a gigabyte each way.
"""

import hashlib
import itertools
import os

import psycopg
import pytest

from fixtures.legs import LEGS

REPEATS = 61
LINE = 32 * REPEATS + 1
"""Octets of a line, short enough to be stored in one piece and as it is."""

OCTETS = 1_000_000_000 if os.environ.get("PGTLSPROXY_LONG") else 200_000_000
LINES = OCTETS // LINE + 1

GENERATED = f"SELECT repeat(md5(n::text), {REPEATS}) FROM generate_series(1, {LINES}) n"
"""Each line has a content of its own, so that one lost, doubled or out of order shows."""


RECEIVED = """
SELECT count(*), encode(sha256(string_agg(sha256(line::bytea), '' ORDER BY number)), 'hex') FROM received
"""


def lines():
    for number in range(1, LINES + 1):
        yield hashlib.md5(b"%d" % number).hexdigest().encode() * REPEATS


@pytest.fixture(scope="module")
def checksums():
    """SHA-256 of what COPY sends of `GENERATED`, and that of all lines' SHA-256, computed here."""
    whole, each = hashlib.sha256(), hashlib.sha256()
    for line in lines():
        whole.update(line + b"\n")
        each.update(hashlib.sha256(line).digest())
    return whole.hexdigest(), each.hexdigest()


@pytest.mark.parametrize("name", LEGS)
def test_copy_out(legs, name, checksums):
    since = legs.running.mark()
    received, digest = 0, hashlib.sha256()
    with (
        psycopg.connect(**legs.target(name).words) as connection,
        connection.cursor().copy(f"COPY ({GENERATED}) TO STDOUT") as copy,
    ):
        for data in copy:
            received += len(data)
            digest.update(data)
    assert received == LINES * LINE
    assert digest.hexdigest() == checksums[0]
    ended = legs.running.wait_for_event("session_ended", since=since)
    assert ended["kind"] == "ok"
    assert ended["bytes_from_backend"] > received


def batches(items, size):
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


@pytest.mark.parametrize("name", LEGS)
def test_copy_in(legs, name, checksums):
    since = legs.running.mark()
    with psycopg.connect(**legs.target(name).words) as connection:
        connection.execute("CREATE TEMP TABLE received (number serial, line text STORAGE PLAIN)")
        with connection.cursor().copy("COPY received (line) FROM STDIN") as copy:
            for batch in batches(lines(), 32):
                copy.write(b"\n".join(batch) + b"\n")
        assert connection.execute(RECEIVED).fetchone() == (LINES, checksums[1])
    ended = legs.running.wait_for_event("session_ended", since=since)
    assert ended["kind"] == "ok"
    assert ended["bytes_from_client"] > LINES * LINE
