"""The commands of docs/operations.md, typed as they stand there, in a folder in the place of the system's.

What installs packages, makes users or talks to systemd is noted instead of done.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures.clients import clean_environment
from pgtlsproxy.proxy.supervisor import _SIGNALS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()

NOTED = """#!/bin/sh
echo "$(basename "$0") $*" >> {notes}
case "$0 $1 $2" in
    */python3\\ -m\\ venv)
        mkdir -p "$3/bin"
        ln -s "$0" "$3/bin/pip"
        printf '#!/bin/sh\\nexec {python} -m pgtlsproxy "$@"\\n' > "$3/bin/pgtlsproxy"
        chmod +x "$3/bin/pgtlsproxy" ;;
esac
"""


def commands(title):
    """The lines of the one block of shell commands in a section."""
    section = re.split(rf"^##+ {re.escape(title)}$", PAGE, flags=re.MULTILINE)[1]
    section = re.split(r"^##+ ", section, flags=re.MULTILINE)[0]
    (block,) = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return block.splitlines()


class Machine:
    """A folder that stands for a machine, and what was noted on it."""

    def __init__(self, path, environment):
        self.path = path
        self._notes = path / "notes"
        programs = path / "programs"
        programs.mkdir()
        for name in ("useradd", "systemctl", "python3"):
            (programs / name).write_text(NOTED.format(notes=self._notes, python=sys.executable))
            (programs / name).chmod(0o755)
        path_variable = f"{programs}:{environment['PATH']}"
        self._environment = environment | {"PATH": path_variable, "PYTHONPATH": str(ROOT)}

    def type(self, title):
        """Type a section's commands. Returns those that were noted."""
        self._notes.write_text("")
        for line in commands(title):
            typed = re.sub(
                r"(?<= )/(opt|etc)/|^/(opt|etc)/", lambda match: f"{self.path}/{match[1] or match[2]}/", line
            )
            typed = typed.replace("-g pgtlsproxy", f"-g {os.getgid()}")
            if os.geteuid() != 0:  # a key that others may read has to be root's
                typed = typed.replace("-m 0640", "-m 0600")
            done = subprocess.run(
                ["sh", "-ec", typed], cwd=self.path / "source", env=self._environment,
                capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert done.returncode == 0, (line, done.stdout, done.stderr)
        return self._notes.read_text().replace(f"{self.path}/", "/").splitlines()


@pytest.fixture
def machine(tmp_path, empty_home):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "config", source / "config")
    for file in (ROOT / "config" / "central").iterdir():
        (source / file.name).write_text(file.read_text().replace("../../certs/dev/", ""))
    subprocess.run([ROOT / "certs/dev/make-certs", source], check=True, capture_output=True, timeout=60)
    (tmp_path / "etc" / "systemd" / "system").mkdir(parents=True)
    return Machine(tmp_path, clean_environment(empty_home))


def test_the_commands_lead_to_a_service_with_sockets_that_is_upgraded(machine):
    """With the central example's files, which `check` finds nothing wrong with where they are put."""
    assert machine.type("Under systemd") == [
        "useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin pgtlsproxy",
        "python3 -m venv /opt/pgtlsproxy",
        "pip install .",
        "systemctl daemon-reload",
        "systemctl enable --now pgtlsproxy",
    ]
    units = machine.path / "etc" / "systemd" / "system"
    assert [each.name for each in units.iterdir()] == ["pgtlsproxy.service"]
    assert machine.type("Sockets of systemd's") == [
        "systemctl daemon-reload",
        "systemctl stop pgtlsproxy",
        "systemctl enable --now pgtlsproxy.socket",
        "systemctl start pgtlsproxy",
    ]
    assert sorted(each.name for each in units.iterdir()) == ["pgtlsproxy.service", "pgtlsproxy.socket"]
    assert machine.type("An upgrade on one machine") == [
        "pip install --upgrade .",
        "systemctl kill --signal=USR2 pgtlsproxy",
    ]
    assert signal.SIGUSR2 in _SIGNALS


def test_the_user_of_the_service_is_the_one_that_is_made():
    service = (ROOT / "config" / "systemd" / "pgtlsproxy.service").read_text()
    (user,) = re.findall(r"^User=(.*)$", service, re.MULTILINE)
    assert commands("Under systemd")[0].endswith(f" {user}")
    assert any(f"-g {user}" in line for line in commands("Under systemd"))
