"""config/systemd: systemd understands the units, and they say what the proxy is and does."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import pgtlsproxy
from fixtures import wire
from fixtures.clients import clean_environment
from fixtures.deployments import config, in_clear, passthrough
from fixtures.fake_backend import lets_everybody_in
from fixtures.waiting import until
from fixtures.wire import WireClient
from pgtlsproxy.cli import EXIT_CONFIG, EXIT_USAGE
from pgtlsproxy.config.settings import General
from pgtlsproxy.config.values import parse_time
from pgtlsproxy.proxy.crew import STATUS_CUT

CONFIG = Path(pgtlsproxy.__file__).parents[1] / "config"
SERVICE, SOCKET = (CONFIG / "systemd" / f"pgtlsproxy.{kind}" for kind in ("service", "socket"))
PROGRAM = "/opt/pgtlsproxy/bin/pgtlsproxy"

HBA = {"pg_hba.conf": "local all all trust\n"}


def settings_of(unit):
    """By section, (key, value) pairs; a key may stand there more than once."""
    found = {}
    for line in unit.read_text().splitlines():
        if line.startswith("["):
            pairs = found.setdefault(line.strip("[]"), [])
        elif line and line[0] not in "#;":
            pairs.append(tuple(line.split("=", 1)))
    return found


def value(pairs, key):
    (found,) = [each for name, each in pairs if name == key]
    return found


def tool(name):
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"there is no {name} here")
    return path


@pytest.fixture
def units(tmp_path):
    """Both, with a program that is there."""
    for unit in (SERVICE, SOCKET):
        text = unit.read_text().replace(PROGRAM, f"{sys.executable} -m pgtlsproxy")
        (tmp_path / unit.name).write_text(text)
    return [str(tmp_path / unit.name) for unit in (SERVICE, SOCKET)]


def test_systemd_finds_nothing_wrong_with_them(units):
    done = subprocess.run(
        [tool("systemd-analyze"), "verify", *units], capture_output=True, text=True, timeout=60, check=False
    )
    about_us = [line for line in (done.stdout + done.stderr).splitlines() if "pgtlsproxy" in line]
    assert (done.returncode, about_us) == (0, [])


def test_little_is_open_to_the_service(units):
    """20 is 2.0 of 10 in systemd's own measure."""
    done = subprocess.run(
        [tool("systemd-analyze"), "security", "--offline=yes", "--threshold=20", "--no-pager", units[0]],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_every_key_of_the_service_stands_there_once_and_keeps_it_in():
    service = settings_of(SERVICE)["Service"]
    keys = [key for key, _ in service if key != "SystemCallFilter"]
    assert len(keys) == len(set(keys))
    assert value(service, "NoNewPrivileges") == "yes"
    assert value(service, "ProtectSystem") == "strict"
    assert value(service, "CapabilityBoundingSet") == value(service, "AmbientCapabilities") == ""
    assert value(service, "User") not in {"", "root"}
    assert ("SystemCallFilter", "@system-service") in service
    assert "MemoryDenyWriteExecute" not in keys, "OpenSSL's callbacks cannot be made then"


def test_the_service_gives_sessions_the_time_that_they_have_and_knows_the_exit_statuses():
    service = settings_of(SERVICE)["Service"]
    seconds = parse_time(value(service, "TimeoutStopSec"))
    fields = General.model_fields
    assert seconds > fields["drain_delay"].default + fields["drain_timeout"].default + 5
    assert value(service, "SuccessExitStatus") == str(STATUS_CUT)
    assert value(service, "Restart") == "on-failure"
    assert value(service, "RestartPreventExitStatus") == str(EXIT_USAGE) != str(EXIT_CONFIG)
    assert value(service, "Type") == "notify"
    assert parse_time(value(service, "WatchdogSec")) >= 10
    needed = 2 * 1.25 * fields["max_connections"].default
    assert int(value(service, "LimitNOFILE")) > 2 * needed


def test_what_it_starts_is_a_command_of_ours(command_line):
    service = settings_of(SERVICE)["Service"]
    program, *arguments = value(service, "ExecStart").split()
    assert program == PROGRAM
    assert arguments[:2] == ["serve", "-c"]
    assert "Run the proxy" in command_line(arguments[0], "--help").stdout


def test_the_sockets_are_those_of_the_central_example():
    socket_unit = settings_of(SOCKET)["Socket"]
    listeners = yaml.safe_load((CONFIG / "central" / "pgtlsproxy.yaml").read_text())["listeners"]
    name = value(socket_unit, "FileDescriptorName")
    assert [each for key, each in socket_unit if key == "ListenStream"] == listeners[name]["listen"]
    assert value(socket_unit, "BindIPv6Only") == "ipv6-only"
    assert value(socket_unit, "Service") == SERVICE.name
    assert not [key for key, each in socket_unit if key == "Accept" and each != "no"]


def test_systemds_own_tool_hands_its_socket_over(proxy, certs, fake_backend, empty_home, tmp_path):
    """systemd-socket-activate opens sockets as PID 1 does, and starts the program when somebody connects."""
    activate = tool("systemd-socket-activate")
    backend = passthrough(fake_backend(lets_everybody_in), certs, require_auth="none")
    listener = in_clear(listen=[f"unix:{tmp_path}:1"])
    path = proxy.write(config({"central": listener}, primary=backend) | {"log": {"format": "json"}}, HBA)
    command = [activate, "-l", f"{tmp_path}/.s.PGSQL.1", "--fdname=central"]
    command += [f"-E{name}={text}" for name, text in clean_environment(empty_home).items()]
    command += [sys.executable, "-m", "pgtlsproxy", "serve", "-c", str(path)]
    with subprocess.Popen(command, cwd=CONFIG.parent, stderr=subprocess.PIPE, text=True) as process:
        try:
            until(lambda: "Listening on" in process.stderr.readline())
            with WireClient(f"{tmp_path}/.s.PGSQL.1", timeout=60.0) as client:
                client.send(wire.startup(user="alice"))
                client.read_until(b"Z")
        finally:
            process.terminate()
            said = process.stderr.read()
    assert process.returncode == 0
    assert '"is_passed": true' in said
