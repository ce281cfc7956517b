import os
import select
import signal
import subprocess
import sys
from pathlib import Path

from benchmarks.processes import Memory, cpu_seconds, family, memory, memory_of, running, ticks_of

ROOT = Path(__file__).parents[2]

HOLDER = """
import sys
from benchmarks.processes import running
with running(["sleep", "600"]) as process:
    print(process.pid, flush=True)
    sys.stdin.read()
"""


def test_user_and_system_time_are_found_behind_any_name():
    head = "7 (a) b (c)) S 1 7 7 0 -1 4194304 1000 0 3 0 "
    assert ticks_of(f"{head}250 50 9 9 20 0 1 0 4242 1 2") == 300


def test_memory_is_read_from_the_sum_of_all_mappings():
    text = "55d0-7ffe ---p 00000000 00:00 0 [rollup]\nRss:  5120 kB\nPss:  2048 kB\nPss_Dirty: 12 kB\n"
    assert memory_of(text) == Memory(5120.0, 2048.0)


def test_a_family_has_the_children_of_all_threads_and_uses_cpu_together():
    with running(["sh", "-c", "sleep 600 & wait"], stdout=subprocess.DEVNULL) as process:
        while len(family(process.pid)) < 2:
            assert process.poll() is None
        assert family(process.pid)[0] == process.pid
        assert family(process.pid)[1] in family(os.getpid())
        assert memory(family(process.pid)).rss > 0
        child = family(process.pid)[1]
        os.kill(child, signal.SIGKILL)
        process.wait(20)
    assert cpu_seconds([process.pid, child]) == 0


def test_a_program_ends_with_the_context():
    with running(["sleep", "600"]) as process:
        pass
    assert process.returncode == -signal.SIGTERM


def test_a_program_ends_with_us_even_when_we_are_killed():
    command = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as holder:
        child = os.pidfd_open(int(holder.stdout.readline()))
        try:
            holder.kill()
            ended, _, _ = select.select([child], [], [], 20)
            assert ended
        finally:
            os.close(child)
