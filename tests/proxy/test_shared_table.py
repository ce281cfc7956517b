"""What workers know of each other: sums over slots, keys without their bytes, nothing of the dead."""

import os
import struct
import subprocess
import sys
import time

import pytest

from pgtlsproxy.identity import Secret
from pgtlsproxy.proxy import shared_table
from pgtlsproxy.proxy.shared_table import SharedTable, WorkerSlot

SECRET = Secret(b"s" * 32)


@pytest.fixture
def table():
    made = SharedTable(3)
    yield made
    made.words.release()
    made.octets.close()
    os.close(made.descriptor)


def slots(table):
    return [WorkerSlot(table, number, SECRET) for number in (1, 2, 3)]


def second_worker(table, body):
    """Worker 2, in a process of its own, which does this."""
    program = (
        "import os, sys\n"
        "from pgtlsproxy.identity import Secret\n"
        "from pgtlsproxy.proxy.shared_table import SharedTable, WorkerSlot\n"
        "slot = WorkerSlot(SharedTable(3, int(sys.argv[1])), 2, Secret(b's' * 32))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program + body, str(table.descriptor)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[table.descriptor],
    )  # fmt: skip


def test_sessions_are_summed_and_counted_down_whatever_ends_them(table):
    one, two, _ = slots(table)
    with one.session(), two.session(), two.session():
        assert (one.own_sessions, two.own_sessions, one.sessions) == (1, 2, 3)
    with pytest.raises(RuntimeError), one.session():
        raise RuntimeError
    assert two.sessions == 0


def test_another_process_sees_it_at_once(table):
    one, *_ = slots(table)
    body = "with slot.session(), slot.published(slot.tag('main', -7, b'key')): print(slot.sessions, flush=True); sys.stdin.read()"
    with one.session(), second_worker(table, body) as process:
        assert process.stdout.readline() == b"2\n"
        assert one.sessions == 2
        assert one.holders(one.tag("main", -7, b"key")) == [2]
        process.stdin.close()
        process.wait()
    assert one.sessions == 0
    assert one.holders(one.tag("main", -7, b"key")) == []


def test_who_is_ahead_is_judged_among_those_that_accept(table):
    one, two, three = slots(table)
    one.set_serving(serving=True)
    with one.session(), three.session(), three.session(), three.session():
        assert not one.is_ahead, "alone"
        two.set_serving(serving=True)
        assert one.is_ahead
        assert not two.is_ahead
        with two.session():
            assert not one.is_ahead, "even"


def test_a_key_is_found_by_others_while_it_lives_and_by_the_whole_of_it(table):
    one, two, _ = slots(table)
    tag = two.tag("main", 42, b"key")
    with two.published(tag):
        assert one.holders(tag) == [2]
        assert two.holders(tag) == [], "its own it knows"
        for other in (("main", 42, b"kez"), ("main", 43, b"key"), ("mai", 42, b"key"), ("main", 42, b"ke")):
            assert one.holders(one.tag(*other)) == []
        with two.published(tag):
            assert one.holders(tag) == [2, 2]
    assert one.holders(tag) == []


def test_no_byte_of_a_key_is_in_the_memory(table):
    one, *_ = slots(table)
    key = os.urandom(32)
    with one.published(one.tag("main", 1, key)):
        assert table.octets.find(key[:8]) < 0
    assert WorkerSlot(table, 1, Secret(b"t" * 32)).tag("main", 1, key) != one.tag("main", 1, key)


def test_a_digest_is_found_at_its_place_alone(table):
    """Two neighbours may by chance hold the bytes of a third between them."""
    one, two, _ = slots(table)
    first, second = bytes(range(16)), bytes(range(16, 32))
    with two.published(first), two.published(second):
        assert one.holders((first + second)[5:21]) == []
        assert one.holders(second) == [2]


def test_places_are_used_again(table):
    one, two, _ = slots(table)
    for number in range(100):
        with two.published(struct.pack("16xI", number)[-16:]), two.published(b"x" * 16):
            assert one.holders(b"x" * 16) == [2]
    assert list(table.each(shared_table._TAGS))[1] == 2


def test_what_no_longer_fits_is_not_told(table, monkeypatch):
    monkeypatch.setattr(shared_table, "MAX_CONNECTIONS", 1)
    one, two, _ = slots(table)
    with two.published(b"a" * 16), two.published(b"b" * 16):
        assert (one.holders(b"a" * 16), one.holders(b"b" * 16)) == ([2], [])
    with two.published(b"c" * 16):
        assert one.holders(b"c" * 16) == [2]


def test_cancels_of_a_source_are_counted_over_workers_and_anew_each_second(table, monkeypatch):
    now = 5.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    one, two, _ = slots(table)
    assert [slot.count_unknown("10.0.0.1") for slot in (one, two, one)] == [1, 2, 3]
    assert two.count_unknown("10.0.0.2") == 1
    now = 6.0
    assert two.count_unknown("10.0.0.1") == 1
    assert one.count_unknown("10.0.0.1") == 2


def test_those_under_way_are_summed(table):
    one, two, _ = slots(table)
    with one.forwarding() as first, two.forwarding() as second:
        assert (first, second) == (1, 2)
    with two.forwarding() as again:
        assert again == 1


def test_nothing_is_left_of_a_dead_worker_and_all_of_the_others(table):
    one, _, three = slots(table)
    dies = (
        "slot.set_serving(serving=True)\n"
        "slot.count_unknown('10.0.0.1')\n"
        "held = [slot.session(), slot.forwarding(), *(slot.published(bytes([n]) * 16) for n in range(1, 200))]\n"
        "for each in held: each.__enter__()\n"
        "os._exit(9)\n"
    )
    with second_worker(table, dies) as process:
        assert process.wait() == 9
    assert (one.sessions, one.holders(b"x" * 16)) == (1, [2])
    with three.session(), three.published(b"3" * 16), one.published(b"1" * 16):
        table.clear(2)
        assert (one.sessions, one.holders(b"3" * 16), three.holders(b"1" * 16)) == (1, [3], [1])
        assert [one.holders(bytes([n]) * 16) for n in range(1, 200) if n not in {0x31, 0x33}] == [[]] * 197
        assert one.count_unknown("10.0.0.1") == 1
        with one.forwarding() as under_way:
            assert under_way == 1
        start = table.start(2)
        assert not any(table.octets[start : table.start(3)])
