"""Hundreds of megabytes of COPY, out and in, arrive as they were sent, over every pair of legs.

`PGTLSPROXY_COPY` in the environment says how many octets go each way; from a gigabyte on, more often.
"""

import hashlib
import itertools
import os
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from fixtures.legs import LEGS

REPEATS = 61
LINE = 32 * REPEATS + 1
"""Octets of a line, short enough to be stored in one piece and as it is."""

OCTETS = int(os.environ.get("PGTLSPROXY_COPY", "0")) or 200_000_000
TIMES, AT_ONCE = (3, 2) if OCTETS >= 1_000_000_000 else (1, 1)
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


def copy_out(target):
    """How many octets came, and their SHA-256."""
    received, digest = 0, hashlib.sha256()
    with (
        psycopg.connect(**target.words) as connection,
        connection.cursor().copy(f"COPY ({GENERATED}) TO STDOUT") as copy,
    ):
        for data in copy:
            received += len(data)
            digest.update(data)
    return received, digest.hexdigest()


def copy_in(target):
    """How many lines the server has, and what it makes of them."""
    with psycopg.connect(**target.words) as connection:
        connection.execute("CREATE TEMP TABLE received (number serial, line text STORAGE PLAIN)")
        with connection.cursor().copy("COPY received (line) FROM STDIN") as copy:
            iterator = lines()
            while batch := list(itertools.islice(iterator, 32)):
                copy.write(b"\n".join(batch) + b"\n")
        return connection.execute(RECEIVED).fetchone()


@pytest.mark.parametrize("name", LEGS)
def test_copy_out(legs, name, checksums):
    session = f"out over {name}"
    assert copy_out(legs.target(name, application_name=session)) == (LINES * LINE, checksums[0])
    ended = legs.running.wait_for_event("session_ended", application_name=session)
    assert ended["kind"] == "ok"
    assert ended["bytes_from_backend"] > LINES * LINE


@pytest.mark.parametrize("name", LEGS)
def test_copy_in(legs, name, checksums):
    session = f"in over {name}"
    assert copy_in(legs.target(name, application_name=session)) == (LINES, checksums[1])
    ended = legs.running.wait_for_event("session_ended", application_name=session)
    assert ended["kind"] == "ok"
    assert ended["bytes_from_client"] > LINES * LINE


def both_at_once(target, checksums, sessions):
    """So many sessions each way, side by side."""
    with ThreadPoolExecutor(2 * sessions) as pool:
        outs = [pool.submit(copy_out, target) for _ in range(sessions)]
        intos = [pool.submit(copy_in, target) for _ in range(sessions)]
    assert {out.result() for out in outs} == {(LINES * LINE, checksums[0])}
    assert {into.result() for into in intos} == {(LINES, checksums[1])}


def test_both_at_once(legs, checksums):
    target = legs.target("tls_tls", application_name="both")
    for _ in range(TIMES):
        both_at_once(target, checksums, 1)
    if AT_ONCE > 1:
        both_at_once(target, checksums, AT_ONCE)
