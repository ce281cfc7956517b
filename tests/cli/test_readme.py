"""What README.md shows can be typed, and what its files hold is taken, as it stands there."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from fixtures.certs import common_names
from pgtlsproxy.cli import EXIT_BUG, EXIT_CONFIG, EXIT_OK, EXIT_USAGE
from pgtlsproxy.cli.explain import EXIT_REFUSED
from pgtlsproxy.proxy.worker import STATUS_CUT

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


PICTURE, DEV, INSTALL = "            client leg", "./dev demo", "python3 -m venv"
EXAMPLES, SMALLEST, SERVER = "certs/dev/make-certs\n", "listeners:\n", "# pg_hba.conf of the server"


def test_every_block_is_tested_here():
    beginnings = (PICTURE, DEV, INSTALL, EXAMPLES, SMALLEST, SERVER)
    assert len(blocks()) == len(beginnings)
    assert all(block(beginning) for beginning in beginnings)


def test_the_two_commands_are_dev_s():
    usage = subprocess.run([ROOT / "dev", "--help"], capture_output=True, text=True, check=False)
    for line in block(DEV).splitlines():
        command, _, _ = line.partition("#")
        assert re.search(rf"^ *(usage: )?{re.escape(command.strip())} ", usage.stdout, re.MULTILINE), usage


def test_the_commands_are_where_the_install_puts_them():
    """Where `./dev` puts them, too, so that whoever has run it is not told to install again."""
    lines = [line.partition("#")[0].strip() for line in block(INSTALL).splitlines()]
    assert lines == ["python3 -m venv .venv && .venv/bin/pip install .", ". .venv/bin/activate"]
    assert ".venv/bin/python -m pip install" in (ROOT / "dev").read_text()
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["pgtlsproxy"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folders config/ and certs/ of a checkout, the latter filled as the block says."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("config", "certs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.crt", "*.key", "*.crl"))
    make = block(EXAMPLES).splitlines()[0]
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    subprocess.run([folder / make], env=environment, check=True, capture_output=True)
    return folder


def test_the_shipped_examples_are_made_checked_and_served(made, proxy, command_line):
    """Served at ports that are free, and otherwise as they are shown."""
    _, check, serve = (shlex.split(line) for line in block(EXAMPLES).splitlines())
    assert check[:3] == ["pgtlsproxy", "check", "-c"]
    done = command_line(*check[1:3], made / check[3])
    assert (done.returncode, done.stderr) == (EXIT_OK, "")
    assert serve == ["pgtlsproxy", "serve", "-c", check[3]]
    path = made / serve[3]
    shown = re.sub(r"(0\.0\.0\.0|\[::\]):6432", "127.0.0.1:0", path.read_text())
    absolute = shown.replace("../../certs", str(made / "certs"))
    beside = {name: (path.parent / name).read_text() for name in ("pg_hba.conf", "pg_ident.conf")}
    running = proxy(absolute, beside)
    assert len(running.addresses("central")) == 2
    assert running.stop() == EXIT_OK


@pytest.mark.parametrize("deployment", ["legacy", "sidecar", "central"])
def test_the_shipped_examples_reach_a_server_when_hostaddr_is_uncommented(
    made, tls_cluster, command_line, deployment
):
    dev = made / "certs" / "dev"
    server = SimpleNamespace(crt=dev / "server.crt", key=dev / "server.key")
    cluster = tls_cluster(17, server=server, client_ca=SimpleNamespace(crt=dev / "ca.crt"))
    path = made / "config" / deployment / "pgtlsproxy.yaml"
    text = re.sub(r"^    port: 5432\n", "", path.read_text(), flags=re.MULTILINE)
    tried, uncommented = re.subn("# (hostaddr: 127.0.0.1 )", rf"port: {cluster.port}\n    \1", text)
    assert uncommented == 1
    (path.parent / "tried.yaml").write_text(tried)
    done = command_line("check", "--connect", "-c", path.parent / "tried.yaml")
    assert (done.returncode, done.stderr) == (EXIT_OK, "")
    assert f"db.example.com (127.0.0.1:{cluster.port})" in done.stdout


def test_everybody_on_the_host_can_reach_the_shipped_sockets(made):
    """As with PostgreSQL's own: who may come in is pg_hba.conf's to say."""
    for deployment in ("legacy", "sidecar"):
        text = (made / "config" / deployment / "pgtlsproxy.yaml").read_text()
        for listener in yaml.safe_load(text)["listeners"].values():
            assert listener["unix_socket_permissions"] == "0777"


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


NEWER = "# pg_ident.conf of the server (16 and newer)\n"
OLDER = re.search(r"^# pg_ident\.conf of the server \(15 and older.*\n", README, re.MULTILINE)[0]


def fence():
    """pg_hba.conf, and pg_ident.conf for newer and older servers."""
    hba, _, ident = block(SERVER).partition(NEWER)
    return hba, *ident.split(OLDER)


def test_the_server_takes_the_fence_as_it_is_shown(own_cluster):
    """PostgreSQL's own views of both files say what is wrong with a line."""
    hba, ident, _ = fence()
    cluster = own_cluster(17, hba, ident=ident)
    lines = "SELECT count(*), count(error) FROM"
    assert cluster.psql(f"{lines} pg_ident_file_mappings").stdout == "1|0\n"
    errors = "SELECT error FROM pg_hba_file_rules WHERE error IS NOT NULL"
    assert cluster.psql(errors).stdout == ""
    addresses = "SELECT count(*) FROM pg_hba_file_rules WHERE address = '10.0.0.5'"
    assert cluster.psql(addresses).stdout == f"{hba.count('10.0.0.5/32')}\n"


@pytest.mark.parametrize(
    ("version", "is_newer_line", "let_in"), [(17, True, True), (15, False, True), (15, True, False)]
)
def test_each_server_needs_its_own_line_of_the_fence(
    own_cluster, certs, psql, version, is_newer_line, let_in
):
    hba, newer, older = fence()
    cluster = own_cluster(
        version, hba.replace("10.0.0.5/32", "127.0.0.1/32"), ident=newer if is_newer_line else older
    )
    cluster.psql("CREATE ROLE pgtlsproxy_users; GRANT pgtlsproxy_users TO alice")
    shown = certs.client("pgtlsproxy")
    result = psql(17).run(
        "SELECT current_user", host=cluster.host, port=cluster.port, user="alice", dbname="alice",
        sslmode="require", sslcert=shown.crt, sslkey=shown.key,
    )  # fmt: skip
    assert (result.stdout == "alice\n") is let_in, result.stderr
    if not let_in:
        assert 'certificate authentication failed for user "alice"' in result.stderr


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
    statuses = [EXIT_OK, EXIT_CONFIG, EXIT_REFUSED, STATUS_CUT, EXIT_USAGE, EXIT_BUG]
    assert [int(part.split()[0]) for part in shown.split(";")] == statuses
    assert command_line("check", "-c", tmp_path / "nowhere.yaml").returncode == EXIT_CONFIG
    assert command_line("check").returncode == EXIT_USAGE


def test_what_it_links_to_is_there():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
