"""What workers know of each other: sums over slots, keys without their bytes, nothing of the dead."""

import os
import struct
import subprocess
import sys
import time

import pytest

from pgtlsproxy.identity import Secret
from pgtlsproxy.proxy import shared_table
from pgtlsproxy.proxy.shared_table import Count, SharedTable, Tag, WorkerSlot

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
        "from pgtlsproxy.proxy.shared_table import SharedTable, Tag, WorkerSlot\n"
        "slot = WorkerSlot(SharedTable(3, int(sys.argv[1])), 2, Secret(b's' * 32))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program + body, str(table.descriptor)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[table.descriptor],
    )  # fmt: skip


@pytest.mark.parametrize("count", Count)
def test_what_is_counted_is_summed_over_workers(table, count):
    one, two, _ = slots(table)
    one.add(count, 3)
    two.add(count, 2)
    two.add(count, -1)
    assert [slot.total(each) for slot in (one, two) for each in Count] == [
        4 * (each is count) for each in Count
    ] * 2


def test_another_process_sees_it_at_once(table):
    one, *_ = slots(table)
    body = "slot.add(0, 1)\nwith slot.published(slot.tag('main', -7, b'key')): print(slot.total(0), flush=True); sys.stdin.read()"
    one.add(Count.CONNECTIONS, 1)
    with second_worker(table, body) as process:
        assert process.stdout.readline() == b"2\n"
        assert one.total(Count.CONNECTIONS) == 2
        assert one.holders(one.tag("main", -7, b"key")) == [2]
        process.stdin.close()
        process.wait()
    assert one.holders(one.tag("main", -7, b"key")) == []


def test_who_is_ahead_is_judged_among_those_that_accept(table):
    one, two, three = slots(table)
    one.set_serving(serving=True)
    one.add(Count.CONNECTIONS, 1)
    three.add(Count.CONNECTIONS, 3)
    assert not one.is_ahead, "alone"
    two.set_serving(serving=True)
    assert one.is_ahead
    assert not two.is_ahead
    two.add(Count.CONNECTIONS, 1)
    assert not one.is_ahead, "even"


def test_the_oldest_is_known_also_when_the_clock_starts_over(table, monkeypatch):
    one, two, three = slots(table)
    over = 2**32 / 1000
    monkeypatch.setattr(time, "monotonic", lambda: over + 5.0)
    assert two.holder_of_oldest() == 2, "nobody has any"
    for slot, since in ((one, over + 3.0), (two, over - 2.0), (three, over + 4.0)):
        slot.beat()
        slot.add(Count.UNPROVEN, 1)
        slot.set_oldest(since)
    assert one.holder_of_oldest() == 2
    two.add(Count.UNPROVEN, -1)
    assert three.holder_of_oldest() == 1


def test_what_another_worker_writes_meanwhile_is_neither_old_nor_of_one_that_hangs(table, monkeypatch):
    one, two, _ = slots(table)
    now = 5.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    one.beat()
    one.add(Count.UNPROVEN, 1)
    one.set_oldest(4.0)
    now = 5.2
    two.beat()
    two.add(Count.UNPROVEN, 2)
    two.set_oldest(5.2)
    now = 5.0
    assert (one.total_unproven(), one.holder_of_oldest()) == (3, 1)


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


def test_sessions_are_counted_by_source_and_user_over_workers(table):
    one, two, three = slots(table)
    alice, bob = (one.user_tag("main", name) for name in ("alice", "b\udcffb"))
    held = [(slot, slot.publish(Tag.USER, alice)) for slot in (one, one, two)]
    two.publish(Tag.SOURCE, alice)
    two.publish(Tag.USER, bob)
    assert [three.count(*tag) for tag in ((Tag.USER, alice), (Tag.USER, bob), (Tag.SOURCE, alice))] == [
        3,
        1,
        1,
    ]
    for left, (slot, index) in enumerate(reversed(held)):
        assert three.count(Tag.USER, alice) == 3 - left
        slot.withdraw(Tag.USER, index)
    assert three.count(Tag.USER, alice) == 0
    assert one.user_tag("main", "alice") != one.user_tag("mainalice", "")


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
        "slot.add(0, 3)\n"
        "for kind in Tag: slot.publish(kind, bytes([kind + 1]) * 16)\n"
        "held = [slot.forwarding(), *(slot.published(bytes([n]) * 16) for n in range(1, 200))]\n"
        "for each in held: each.__enter__()\n"
        "os._exit(9)\n"
    )
    with second_worker(table, dies) as process:
        assert process.wait() == 9
    assert (one.total(Count.CONNECTIONS), one.holders(b"x" * 16)) == (3, [2])
    three.add(Count.CONNECTIONS, 1)
    with three.published(b"3" * 16), one.published(b"1" * 16):
        table.clear(2)
        assert (one.total(Count.CONNECTIONS), one.holders(b"3" * 16), three.holders(b"1" * 16)) == (
            1,
            [3],
            [1],
        )
        assert [one.holders(bytes([n]) * 16) for n in range(1, 200) if n not in {0x31, 0x33}] == [[]] * 197
        assert one.count_unknown("10.0.0.1") == 1
        assert [one.count(kind, bytes([kind + 1]) * 16) for kind in Tag] == [0, 0, 0]
        with one.forwarding() as under_way:
            assert under_way == 1
        start = table.start(2)
        assert not any(table.octets[start : table.start(3)])
