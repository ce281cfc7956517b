"""What README.md shows can be typed, and what its files hold is taken, as it stands there."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fixtures.certs import common_names
from pgtlsproxy.cli import EXIT_BUG, EXIT_CONFIG, EXIT_OK, EXIT_USAGE

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks():
    """(language, text) of each block, in its order."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def block(beginning):
    """The one block that begins so."""
    (found,) = [text for _, text in blocks() if text.startswith(beginning)]
    return found


def section(title):
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


PICTURE, DEV = "            client leg", "./dev demo"
EXAMPLES, SMALLEST, SERVER = "certs/dev/make-certs\n", "listeners:\n", "# pg_hba.conf of the server"


def test_every_block_is_tested_here():
    beginnings = (PICTURE, DEV, EXAMPLES, SMALLEST, SERVER)
    assert len(blocks()) == len(beginnings)
    assert all(block(beginning) for beginning in beginnings)


def test_the_two_commands_are_dev_s():
    usage = subprocess.run([ROOT / "dev", "--help"], capture_output=True, text=True, check=False)
    for line in block(DEV).splitlines():
        command, _, _ = line.partition("#")
        assert re.search(rf"^ *(usage: )?{re.escape(command.strip())} ", usage.stdout, re.MULTILINE), usage


def test_the_shipped_examples_are_made_checked_and_served(tmp_path, proxy, command_line):
    """Served at ports that are free, and otherwise as they are shown."""
    for name in ("config", "certs"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.crt", "*.key", "*.crl")
        )
    make, check, serve = (shlex.split(line) for line in block(EXAMPLES).splitlines())
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    subprocess.run([tmp_path / make[0]], env=environment, check=True, capture_output=True)
    assert check[:3] == ["pgtlsproxy", "check", "-c"]
    done = command_line(*check[1:3], tmp_path / check[3])
    assert (done.returncode, done.stderr) == (EXIT_OK, "")
    assert serve == ["pgtlsproxy", "serve", "-c", check[3]]
    path = tmp_path / serve[3]
    shown = re.sub(r"(0\.0\.0\.0|\[::\]):6432", "127.0.0.1:0", path.read_text())
    absolute = shown.replace("../../certs", str(tmp_path / "certs"))
    beside = {name: (path.parent / name).read_text() for name in ("pg_hba.conf", "pg_ident.conf")}
    running = proxy(absolute, beside)
    assert len(running.addresses("central")) == 2
    assert running.stop() == EXIT_OK


@pytest.fixture
def smallest(tmp_path, certs):
    """The folder that the smallest configuration stands in, with what its comments say in its files."""
    text = block(SMALLEST)
    server = certs.ca.server("db.example.com")
    client = certs.ca.issue(common_names("pgtlsproxy"), usage="client")
    for name, source in {
        "server.crt": server.crt, "server.key": server.key, "ca.crt": certs.ca.crt,
        "proxy-client.crt": client.crt, "proxy-client.key": client.key,
    }.items():  # fmt: skip
        shutil.copy(source, tmp_path / name)
    for name in ("pg_hba.conf", "pg_ident.conf"):
        (line,) = re.findall(rf"_file: {re.escape(name)} +# (.*)", text)
        (tmp_path / name).write_text(f"{line}\n")
    path = tmp_path / "pgtlsproxy.yaml"
    path.write_text(text)
    return path


def test_the_smallest_configuration_is_right_with_the_lines_in_its_comments(smallest, command_line):
    done = command_line("check", "-c", smallest)
    assert (done.returncode, done.stderr) == (EXIT_OK, "")
    named = {
        Path(value).name
        for unit in yaml.safe_load(smallest.read_text()).values()
        for each in unit.values()
        for value in each.values()
        if isinstance(value, str) and re.search(r"\.(crt|key|conf)$", value)
    }
    assert named == {path.name for path in smallest.parent.iterdir() if path.is_file()} - {smallest.name}


def test_the_server_takes_the_fence_as_it_is_shown(own_cluster):
    """PostgreSQL's own views of both files say what is wrong with a line."""
    hba, ident = block(SERVER).split("# pg_ident.conf of the server (16 and newer)\n")
    cluster = own_cluster(17, hba, ident=ident)
    lines = "SELECT count(*), count(error) FROM"
    assert cluster.psql(f"{lines} pg_ident_file_mappings").stdout == "1|0\n"
    errors = "SELECT error FROM pg_hba_file_rules WHERE error IS NOT NULL"
    assert cluster.psql(errors).stdout == ""
    fence = "SELECT count(*) FROM pg_hba_file_rules WHERE address = '10.0.0.5'"
    assert cluster.psql(fence).stdout == f"{hba.count('10.0.0.5/32')}\n"


def commands():
    """What the table of commands names, one a command: `certs ca|server` is two."""
    for shown in re.findall(r"^\| `pgtlsproxy (.*?)` \|", section("Commands"), re.MULTILINE):
        words = shown.replace("\\|", "|").split(" ")
        for name in words[1].split("|") if len(words) > 1 and "|" in words[1] else [None]:
            yield pytest.param(
                [words[0], *([name] if name else [])],
                re.findall(r"-[-a-z]+", shown),
                id=" ".join(filter(None, (words[0], name))),
            )


@pytest.mark.parametrize(("command", "options"), list(commands()))
def test_the_commands_exist_with_their_options(command_line, command, options):
    done = command_line(*command, "--help")
    assert done.returncode == EXIT_OK
    assert done.stdout.startswith(f"Usage: pgtlsproxy {' '.join(command)} ")
    for option in options:
        assert re.search(rf"(^|\s){option}[,\s]", done.stdout, re.MULTILINE), option


def test_the_exit_statuses_are_those(tmp_path, command_line):
    shown = re.search(r"Exit statuses: (.*?)\.", section("Commands"), re.DOTALL).group(1)
    assert [int(part.split()[0]) for part in shown.split(";")] == [EXIT_OK, EXIT_CONFIG, EXIT_USAGE, EXIT_BUG]
    assert command_line("check", "-c", tmp_path / "nowhere.yaml").returncode == EXIT_CONFIG
    assert command_line("check").returncode == EXIT_USAGE


def test_what_it_links_to_is_there():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
