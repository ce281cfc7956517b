"""The demo shows all it promises, ends by itself, and leaves nothing behind, interrupted or not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures.clients import clean_environment
from pgtlsproxy.demo.output import FollowedOutput

STEPS = [
    ("(a)", "legacy_app|t|TLSv1.3"),
    ("(b)", "shop|t|TLSv1.3"),
    ("(c)", "alice|t|TLSv1.3"),
    ("(d)", 'certificate authentication failed for user "alice"'),
    ("(d)", "central_hba.conf:1: no match in usermap"),
    ("(e)", "no encryption"),
    ("(f)", "still here"),
]


@pytest.fixture
def temporary(tmp_path_factory):
    """A folder that the demo takes for the system's: what is left in it is left behind."""
    folder = Path("/tmp") / f"demo-{os.getpid()}"
    folder.mkdir(mode=0o755)
    yield folder
    subprocess.run(["rm", "-rf", folder], check=True)


def start(temporary, empty_home, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "pgtlsproxy", "demo", *arguments],
        env=clean_environment(empty_home) | {"TMPDIR": str(temporary)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def left_running(temporary):
    """Processes that name the folder in their arguments or work in it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(temporary).encode() in arguments:
                found.append(arguments)
    return found


def left_behind(temporary):
    """Files that are not the cache of installations, which is kept on purpose."""
    return [path.name for path in temporary.iterdir() if path.name.startswith("pgtlsproxy-demo-")]


def test_every_step_shows_what_it_is_there_for(temporary, empty_home):
    with start(temporary, empty_home) as demo:
        shown = demo.communicate(timeout=120)[0].decode()
    assert demo.returncode == 0, shown
    parts = {f"({part[0]})": part for part in shown.split("\n(")[1:]}
    for letter, text in STEPS:
        assert text in parts[letter], shown
    assert "\x1b" not in shown
    assert shown.count("\n") <= 80
    assert left_running(temporary) == []
    assert left_behind(temporary) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_cleans_up(temporary, empty_home, number):
    demo = start(temporary, empty_home, "--keep")
    output = FollowedOutput(demo.stdout)
    output.wait_for(lambda line: "runs until Ctrl-C" in line, timeout=60)
    demo.send_signal(number)
    assert demo.wait(30) == 130
    output.wait_until_ended(10)
    assert left_running(temporary) == []
    assert left_behind(temporary) == []
