"""The queue behind stderr: whole lines in order, a bound, one gap and its size, and an end that does not wait."""

import contextlib
import fcntl
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import pytest

from pgtlsproxy.observability import stream as module
from pgtlsproxy.observability.stream import QueuedStream

PIPE_OCTETS = 4096
LONG = "x" * 3000


@pytest.fixture
def pipe():
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_OCTETS)
    with open(reading, "rb", closefd=False) as reader, open(writing, "w", closefd=False) as writer:
        yield reader, writer
    for descriptor in (reading, writing):
        with contextlib.suppress(OSError):  # the test has
            os.close(descriptor)


def counted(queued):
    """What is told of dropped lines, and written as a line of its own."""
    counts = []

    def on_dropped(count):
        counts.append(count)
        queued.write(f"dropped {count}\n")

    return on_dropped, counts


def fill(queued, lines):
    """More lines than pipe and queue hold, each with its number."""
    for number in range(lines):
        queued.write(f"{number} {LONG}\n")


def read_lines(reader, until):
    """Lines up to this one."""
    found = []
    while not found or found[-1] != until:
        found.append(reader.readline().decode().rstrip("\n"))
    return found


def numbers(lines):
    return [int(line.split()[0]) for line in lines if line.endswith(LONG)]


def test_lines_of_many_threads_are_whole_and_each_threads_are_in_order(pipe):
    reader, writer = pipe
    queued = QueuedStream(writer)

    def speak(name):
        for number in range(100):
            queued.write(f"{name} {number} {LONG}\n")

    with queued.writing(pytest.fail):
        threads = [threading.Thread(target=speak, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        seen = defaultdict(list)
        for _ in range(400):
            name, number, rest = reader.readline().decode().split()
            assert rest == LONG
            seen[name].append(int(number))
        for thread in threads:
            thread.join()
    assert seen == {name: list(range(100)) for name in "abcd"}


def test_a_line_that_its_reader_has_room_for_needs_no_thread(pipe):
    reader, writer = pipe
    queued = QueuedStream(writer)
    queued.write("first\n")
    assert reader.readline() == b"first\n"
    queued.write("x" * 4096 + "\n")
    queued.write("behind it\n")
    assert select.select([reader], [], [], 0)[0] == [], "a pipe takes only so much at once, and order is kept"
    with queued.writing(pytest.fail):
        assert reader.readline() == b"x" * 4096 + b"\n"
        assert reader.readline() == b"behind it\n"


def test_a_line_waits_for_its_thread_while_another_process_writes(pipe):
    reader, writer = pipe
    with tempfile.TemporaryFile() as lock:
        holds = "import fcntl, sys; fcntl.lockf(int(sys.argv[1]), fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
        with subprocess.Popen(
            [sys.executable, "-c", holds, str(lock.fileno())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[lock.fileno()],
        ) as holder:  # fmt: skip
            holder.stdout.readline()
            queued = QueuedStream(writer, lock.fileno())
            queued.write("waits\n")
            assert select.select([reader], [], [], 0)[0] == []
            holder.stdin.close()
        with queued.writing(pytest.fail):
            assert reader.readline() == b"waits\n"


@pytest.mark.parametrize(("bound", "value"), [("MAX_LINES", 10), ("MAX_OCTETS", 10 * len(LONG))])
def test_a_full_queue_drops_lines_and_says_once_how_many_where_they_are_missing(
    pipe, monkeypatch, bound, value
):
    monkeypatch.setattr(module, bound, value)
    reader, writer = pipe
    queued = QueuedStream(writer)
    on_dropped, counts = counted(queued)
    with queued.writing(on_dropped):
        fill(queued, 100)
        assert counts == []
        before_the_gap = []
        while not counts:
            before_the_gap.append(reader.readline().decode().rstrip("\n"))
        queued.write("after\n")
        lines = before_the_gap + read_lines(reader, "after")
    assert lines[-2:] == [f"dropped {counts[0]}", "after"]
    assert numbers(lines) == list(range(100 - counts[0])), "what was queued comes whole and in order"
    assert 80 < counts[0] < 100


def test_what_ships_holds_ten_thousand_lines(pipe):
    reader, writer = pipe
    queued = QueuedStream(writer)
    with queued.writing(pytest.fail):
        for number in range(module.MAX_LINES):
            queued.write(f"{number}\n")
        assert read_lines(reader, "9999") == [str(number) for number in range(10_000)]


def test_the_end_writes_what_is_queued(pipe):
    reader, writer = pipe
    queued = QueuedStream(writer)
    found = []
    thread = threading.Thread(target=lambda: found.extend(read_lines(reader, "last")))
    with queued.writing(pytest.fail):
        fill(queued, 20)
        queued.write("last\n")
        thread.start()
    thread.join()
    assert numbers(found) == list(range(20))


def test_the_end_does_not_wait_for_a_reader_that_never_reads(pipe):
    reader, writer = pipe
    queued = QueuedStream(writer)
    with queued.writing(pytest.fail):
        fill(queued, 20)
        start = time.monotonic()
    assert time.monotonic() - start < 10 * module.DRAIN_SECONDS
    read_lines(reader, f"19 {LONG}")  # the writer is done with the descriptor, which others will get


def test_a_reader_that_is_gone_stops_nobody(pipe):
    reader, writer = pipe
    os.close(reader.fileno())
    queued = QueuedStream(writer)
    start = time.monotonic()
    with queued.writing(pytest.fail):
        fill(queued, 20)
    assert time.monotonic() - start < module.DRAIN_SECONDS, "every line was tried"


def test_lines_are_whole_where_somebody_made_stderr_non_blocking(pipe):
    reader, writer = pipe
    os.set_blocking(writer.fileno(), False)
    queued = QueuedStream(writer)
    with queued.writing(pytest.fail):
        fill(queued, 20)
        queued.write("last\n")
        assert numbers(read_lines(reader, "last")) == list(range(20))


PROGRAM = """
import os, sys
from pgtlsproxy.observability.logs import configure, queued_log
with queued_log("json", "info") as logger:
    {body}
"""


def run(body):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM.format(body=body)], capture_output=True, timeout=60, check=False,
        cwd=Path(module.__file__).parents[2],
    )  # fmt: skip


def test_a_forked_child_writes_its_own_lines():
    done = run("os.fork() or (logger.info('child'), os._exit(0))\n    os.wait()\n    logger.info('parent')")
    assert [line.count(b'"child"') for line in done.stderr.splitlines()] == [1, 0]
    assert done.stderr.count(b'"parent"') == 1


def test_an_object_that_is_collected_while_a_line_is_queued_makes_its_event():
    """The garbage collector may call into the log from any allocation, and so while the queue is locked."""
    body = (
        "from pgtlsproxy.observability import stream\n"
        "    class Lines(stream.deque):\n"
        "        def append(self, line):\n"
        "            super().append(line)\n"
        "            if b'outer' in line: logger.info('inner')\n"
        "    for queued in [each for each in __import__('gc').get_objects() if isinstance(each, stream.QueuedStream)]:\n"
        "        queued._lines = Lines()\n"
        "    logger.info('outer')"
    )
    done = run(body)
    assert (done.stderr.count(b'"outer"'), done.stderr.count(b'"inner"')) == (1, 1), done.stderr


def test_an_error_behind_the_log_is_told_behind_it():
    done = run("logger.info('first')\nprint('second', file=sys.stderr)")
    first, second = done.stderr.splitlines()
    assert b'"first"' in first
    assert second == b"second"


SPEAKS = """
import os, sys
from pgtlsproxy.observability.stream import QueuedStream
name, lock = sys.argv[1], int(sys.argv[2])
stream = QueuedStream(sys.stderr, lock)
with stream.writing(print):
    for number in range({lines}):
        stream.write(f"{{name}} {{number}} " + name * (1 + number % 7 * 5000) + "\\n")
    sys.stdin.read()
"""


def test_lines_of_many_processes_are_whole_however_long(pipe):
    reader, writer = pipe
    lines, names = 100, "abcd"
    lock = os.memfd_create("lock")
    speakers = [
        subprocess.Popen(
            [sys.executable, "-c", SPEAKS.format(lines=lines), name, str(lock)],
            stdin=subprocess.PIPE, stderr=writer, pass_fds=[lock], cwd=Path(module.__file__).parents[2],
        )
        for name in names
    ]  # fmt: skip
    os.close(lock)
    seen = defaultdict(list)
    for _ in range(lines * len(names)):
        name, number, rest = reader.readline().decode().split()
        assert rest == name * (1 + int(number) % 7 * 5000)
        seen[name].append(int(number))
    for speaker in speakers:
        speaker.stdin.close()
        assert speaker.wait() == 0
    assert seen == {name: list(range(lines)) for name in names}


def test_a_process_that_dies_with_the_lock_lets_the_others_write(pipe):
    reader, writer = pipe
    with tempfile.TemporaryFile() as lock:
        holds = "import fcntl, sys, time; fcntl.lockf(int(sys.argv[1]), fcntl.LOCK_EX); print(flush=True); time.sleep(60)"
        with subprocess.Popen(
            [sys.executable, "-c", holds, str(lock.fileno())],
            stdout=subprocess.PIPE,
            pass_fds=[lock.fileno()],
        ) as holder:
            holder.stdout.readline()
            queued = QueuedStream(writer, lock.fileno())
            with queued.writing(pytest.fail):
                queued.write("waits\n")
                holder.kill()
                assert reader.readline() == b"waits\n"
