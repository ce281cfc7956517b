"""The demo shows what it promises, says when something is not so, and leaves nothing behind."""

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

import pgtlsproxy
from fixtures.clients import clean_environment
from pgtlsproxy.cli import main
from pgtlsproxy.demo import tour
from pgtlsproxy.demo.interrupts import SIGNALS, Interrupts
from pgtlsproxy.demo.narrator import Narrator
from pgtlsproxy.demo.output import FollowedOutput
from pgtlsproxy.demo.visits import Unexpected, Visit

ROOT = Path(pgtlsproxy.__file__).parents[1]
TIMEOUT = 120


@pytest.fixture
def temporary():
    """What the demo takes for the system's temporary folder; its name marks the demo's processes."""
    folder = Path(tempfile.mkdtemp(prefix="demo-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    for pid in processes(folder):
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder)


@pytest.fixture
def start(temporary, empty_home):
    """`start("--keep")` runs the demo in a pipe, in a session of its own as a terminal's job."""
    started = []

    def run(*arguments):
        demo = subprocess.Popen(
            [sys.executable, "-m", "pgtlsproxy", "demo", *arguments],
            cwd=ROOT,
            env=clean_environment(empty_home) | {"TMPDIR": str(temporary)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        output = FollowedOutput(demo.stdout)
        started.append((demo, output))
        return demo, output

    yield run
    for demo, output in started:
        if demo.poll() is None:
            demo.kill()
        demo.wait()
        output.wait_until_ended(10)


def processes(folder):
    """The processes that have the folder in their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if f"{folder}/".encode() in arguments:
                found.append(int(entry.name))
    return found


def files(folder):
    """What is left in the folder, but the cache of programs that root's PostgreSQL runs from."""
    return [path.name for path in folder.iterdir() if path.name != f"pgtlsproxy-{os.geteuid()}"]


def parts(lines):
    """The lines of each visit, by its letter."""
    found, letter = {}, ""
    for line in lines:
        if start := re.match(r"\((\w)\) ", line):
            letter = start[1]
        found.setdefault(letter, []).append(line)
    return {letter: "\n".join(part) for letter, part in found.items()}


def test_every_visit_shows_what_it_is_there_for_and_nothing_is_left(start, temporary):
    demo, output = start()
    assert demo.wait(TIMEOUT) == 0, output.lines
    output.wait_until_ended(10)
    shown = parts(output.lines)
    assert sorted(filter(None, shown)) == ["a", "b", "c", "d", "e", "f"]
    for letter, wanted in (
        ("a", ["PGPASSWORD=", "sslmode=disable", r"app +\| t +\| TLSv1.3 \|"]),
        ("b", [rf"host={temporary}/pgtlsproxy-demo-", r"orders +\| t +\| TLSv1.3 \| /CN=pgtlsproxy"]),
        ("c", ["sslmode=verify-full", "sslcert=alice.crt", r"alice +\| t +\| TLSv1.3 \| /CN=pgtlsproxy"]),
        ("d", ["sslcert=bob.crt", 'FATAL:  certificate authentication failed for user "alice"']),
        ("d", ['central_hba.conf:2: no match in usermap "people" for user "alice" authenticated as "bob.jones"']),
        ("d", [r"central_hba.conf:2 reads: hostssl .* cert map=people"]),
        ("e", ["sslmode=disable", 'no pg_hba.conf entry for host "127.0.0.1", user "alice", .*no encryption']),
        ("f", [r"kill -HUP \d+"]),
        *((letter, [r"\n    ok: \w"]) for letter in "abcdef"),
    ):  # fmt: skip
        for pattern in wanted:
            assert re.search(pattern, shown[letter]), (pattern, shown[letter])
    old, new = re.findall(r"is shown serial ([0-9a-f]+)", shown["f"])
    assert old != new
    before, after = re.findall(r"pg_backend_pid\(\);\n    (\d+)", shown["f"])
    assert before == after
    assert len(output.lines) <= 80
    assert "\x1b" not in "".join(output.lines)
    assert (processes(temporary), files(temporary)) == ([], [])


@pytest.mark.parametrize(
    ("line", "end"),
    [
        ("pgtlsproxy demo:", lambda demo: demo.send_signal(signal.SIGINT)),  # nothing runs yet, or initdb
        ("(b) ", lambda demo: os.killpg(demo.pid, signal.SIGINT)),  # as a terminal does
        ("(a) ", lambda demo: demo.send_signal(signal.SIGTERM)),
    ],
    ids=["at the start", "Ctrl-C", "SIGTERM"],
)
def test_an_interrupted_demo_leaves_nothing(start, temporary, line, end):
    demo, output = start()
    output.wait_for(lambda shown: shown.startswith(line), timeout=TIMEOUT)
    end(demo)
    assert demo.wait(TIMEOUT) == 130, output.lines
    output.wait_until_ended(10)
    assert "Traceback" not in "\n".join(output.lines)
    assert (processes(temporary), files(temporary)) == ([], [])


def test_nothing_outlives_a_demo_that_is_killed(start, temporary):
    demo, output = start()
    output.wait_for(lambda shown: shown.startswith("(a) "), timeout=TIMEOUT)
    with ExitStack() as stack:
        ends = [os.pidfd_open(pid) for pid in processes(temporary)]
        for end in ends:
            stack.callback(os.close, end)
        assert len(ends) >= 2, "PostgreSQL and the proxy"
        demo.kill()
        for end in ends:
            assert select.select([end], [], [], 20)[0], "a process is still there"


def test_what_is_kept_can_be_tried_until_ctrl_c(start, temporary):
    demo, output = start("--keep")
    output.wait_for(lambda shown: "Ctrl-C ends it" in shown, timeout=TIMEOUT)
    kept = "\n".join(line[4:] for line in output.lines).partition("$ cd ")[2]
    folder, _, commands = kept.partition("\n")
    seen = len(output.lines)
    tried = subprocess.run(
        ["sh", "-ec", commands.partition("Ctrl-C")[0].partition("\n\n")[0].replace("$ ", "")],
        cwd=folder,
        input="",
        capture_output=True,
        text=True,
        check=False,
    )
    # All but the last get in; that one is there to be refused.
    assert tried.returncode == 2, tried
    assert tried.stderr.count("FATAL") == 1
    assert 'certificate authentication failed for user "alice"' in tried.stderr
    for decision in ("allowed: app", "allowed: orders", "allowed: alice", "refused: alice"):
        output.wait_for(lambda line, wanted=decision: wanted in line, since=seen, timeout=20)
    hup = re.search(r"kill -HUP (\d+)", commands)[1]
    hba = Path(folder) / "central_hba.conf"
    right = hba.read_text()
    for content, told in (
        (right + "hots all all all cert\n", "mistake: central_hba.conf:3: "),
        (None, "reloaded, but for what was wrong: policy of listener central as before"),
        (right, "reloaded: new sessions live under the new files"),
    ):
        if content is not None:
            seen = len(output.lines)
            hba.write_text(content)
            os.kill(int(hup), signal.SIGHUP)
        output.wait_for(lambda line, wanted=told: wanted in line, since=seen, timeout=20)
    os.killpg(demo.pid, signal.SIGINT)
    assert demo.wait(TIMEOUT) == 130
    output.wait_until_ended(10)
    assert (processes(temporary), files(temporary)) == ([], [])


def test_what_is_not_as_expected_is_said_and_is_a_failure(monkeypatch, capsys):
    def fails(_scene, _narrator):
        raise Unexpected("expected ssl to be t, found f")

    monkeypatch.setattr(tour, "_find_installation", lambda: None)
    monkeypatch.setattr(tour, "_set_up", lambda *_: None)
    visits = {"a": Visit("goes wrong", fails), "b": Visit("goes right", lambda *_: "it is so")}
    monkeypatch.setattr(tour, "VISITS", visits)
    with pytest.raises(SystemExit) as ended:
        main(["demo"])
    shown = parts(capsys.readouterr().out.splitlines())
    assert ended.value.code == 1
    assert "NOT AS EXPECTED: expected ssl to be t, found f" in shown["a"]
    assert "ok: it is so" in shown["b"]
    assert "1 of 2 did not go as expected" in shown["b"]


def test_without_a_postgresql_it_says_how_to_get_one(monkeypatch, capsys):
    monkeypatch.setattr(tour, "find_installations", lambda: ())
    with pytest.raises(SystemExit) as ended:
        main(["demo"])
    told = capsys.readouterr()
    assert ended.value.code == 1
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert 'pip install "pgtlsproxy[demo]"' in told.err


def test_what_a_program_prints_cannot_play_with_the_terminal(capsys):
    Narrator().output("\x1b]0;owned\x07 [/x] [bold]name[/bold] \u202etxt")
    assert capsys.readouterr().out == "    \\x1b]0;owned\\x07 [/x] [bold]name[/bold] \\u202etxt\n"


@pytest.fixture
def own_signals():
    """Puts back what the test does to the process's signals."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("own_signals")
def test_an_interrupt_waits_for_what_must_not_be_cut_and_comes_once():
    reached = []
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        with interrupts.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append("the end of the block")
        reached.append("beyond it")
    assert reached == ["the end of the block"]
    os.kill(os.getpid(), signal.SIGINT)  # ignored: the clean-up is under way
    assert [signal.getsignal(number) for number in SIGNALS] == [signal.SIG_IGN] * 3


@pytest.mark.usefixtures("own_signals")
def test_without_an_interrupt_signals_are_as_before():
    before = [signal.getsignal(number) for number in SIGNALS]
    with Interrupts():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before
