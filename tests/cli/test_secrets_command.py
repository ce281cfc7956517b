"""`pgtlsproxy secrets`: the lines with which the bridge works, also where nobody may read pg_authid."""

import os
import pty
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from fixtures.auth_query import LOOKUP_ROLE
from fixtures.clients import clean_environment
from fixtures.deployments import config, passthrough, with_tls
from fixtures.postgres import password
from fixtures.scram_secrets import secrets_file
from pgtlsproxy.identity import Secret
from pgtlsproxy.protocol.scram.keys import Verifier
from pgtlsproxy.protocol.scram.secrets import parse_secrets

HBA = "host all all all trust\n"


@pytest.fixture(scope="module")
def cluster(tls_cluster):
    return tls_cluster(17)


@pytest.fixture
def configured(proxy, cluster, certs):
    """The configuration's path, and beside it files of mode 0600."""
    listener = with_tls(certs, certs.ca.server("localhost"))
    files = {
        "pg_hba.conf": HBA,
        "password": password("alice") + "\n",
        "wrong": "wrong\n",
        "userlist.txt": f'; comment\n"alice" "{password("alice")}"\n"bob" "md5{"0" * 32}"\n"app" "{password("app")}" "more"\n'
        + secrets_file(cluster, "postgres"),
    }
    return proxy.write(config({"l": listener}, primary=passthrough(cluster, certs)), files)


def at_the_backend(configured, *arguments):
    return ("secrets", "-c", str(configured), "--backend", "primary", *arguments)


def test_the_line_of_a_role_is_what_the_server_has(configured, cluster, command_line):
    done = command_line(
        *at_the_backend(
            configured, "--user", "alice", "--password-file", str(configured.with_name("password"))
        )
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == secrets_file(cluster, "alice")


def test_a_wrong_password_and_a_role_that_does_not_exist_make_no_line(configured, command_line):
    for user, file in (("alice", "wrong"), ("nobody", "password")):
        done = command_line(
            *at_the_backend(configured, "--user", user, "--password-file", str(configured.with_name(file)))
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert f'28P01: password authentication failed for user "{user}"' in done.stderr
        assert "secret" not in done.stderr


def test_a_server_that_does_not_prove_itself_is_told_nothing(proxy, cluster, certs, command_line):
    files = {"pg_hba.conf": HBA, "password": password("alice")}
    backend = passthrough(cluster, certs, sslrootcert=certs.other_ca.crt)
    path = proxy.write(config({"l": with_tls(certs)}, primary=backend), files)
    since = len(cluster.log_lines)
    done = command_line(
        "secrets",
        "-c",
        str(path),
        "--backend",
        "primary",
        "--user",
        "alice",
        "--password-file",
        str(path.with_name("password")),
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "unable to get local issuer certificate" in done.stderr or "self-signed" in done.stderr
    assert not any("alice" in line for line in cluster.log_lines[since:])


def test_a_userlist_becomes_lines_and_what_cannot_is_named(configured, cluster, command_line):
    done = command_line(*at_the_backend(configured, "--from", str(configured.with_name("userlist.txt"))))
    assert done.returncode == 1
    assert done.stdout == "".join(secrets_file(cluster, role) for role in ("alice", "app", "postgres"))
    assert (
        done.stderr
        == 'error: user "bob" (line 3): has an MD5 secret, of which no verifier can be made; set the password anew\n'
    )


def test_without_a_backend_the_salt_is_new(configured, command_line):
    file = str(configured.with_name("password"))
    made = [command_line("secrets", "--user", 'al"ice', "--password-file", file).stdout for _ in range(2)]
    verifiers = [parse_secrets("made", line.encode()).by_user['al"ice'].verifier for line in made]
    assert verifiers[0].salt != verifiers[1].salt
    for verifier in verifiers:
        assert (
            Verifier.make(Secret(password("alice").encode()), verifier.salt, verifier.iterations) == verifier
        )


def test_the_query_of_a_superuser_makes_a_file_that_loads(cluster, command_line):
    cluster.psql('CREATE ROLE "a""b c" LOGIN PASSWORD \'x\'')
    try:
        listed = cluster.psql(command_line("secrets", "--sql").stdout).stdout
    finally:
        cluster.psql('DROP ROLE "a""b c"')
    assert set(parse_secrets("listed", listed.encode()).by_user) - {LOOKUP_ROLE} == {
        "alice",
        "app",
        "bob",
        "postgres",
        'a"b c',
    }


def test_the_query_takes_along_until_when_a_password_is_good(cluster, command_line):
    roles = {
        "soon": "VALID UNTIL '2099-05-06 07:08:09.5+02'", "never": "VALID UNTIL 'infinity'",
        "far": "VALID UNTIL '20000-01-01'", "over": "VALID UNTIL '2001-01-01'", "lost": "VALID UNTIL '-infinity'",
        "two\nlines": "", "SCRAM-SHA-256$x": "", "md5" + "a" * 32: "",
    }  # fmt: skip
    salt, key = "W22ZaJ0SNY7soEsUEjb6gQ==", "A" * 43 + "="
    # What any role may give itself, and what PostgreSQL takes for verifiers: numbers are what strtol takes.
    spoiled = {
        "many": f"1000001:{salt}${key}:{key}",
        "blank": f"\\n4096:{salt}${key}:{key}",
        "long_salt": f"4096:{'A' * 176}${key}:{key}",
    }
    for role, until in roles.items():
        cluster.psql(f"CREATE ROLE \"{role}\" LOGIN PASSWORD 'x' {until}")
    for role, verifier in spoiled.items():
        cluster.psql(f"CREATE ROLE {role} LOGIN PASSWORD E'SCRAM-SHA-256${verifier}'")
    try:
        taken = cluster.psql("SELECT count(*) FROM pg_authid WHERE rolpassword LIKE '%AAAAAAAAAA%'").stdout
        assert int(taken) == len(spoiled), "the server has hashed one"
        listed = cluster.psql(command_line("secrets", "--sql").stdout).stdout
    finally:
        for role in (*roles, *spoiled):
            cluster.psql(f'DROP ROLE "{role}"')
    until = {
        user: line.valid_until for user, line in parse_secrets("listed", listed.encode()).by_user.items()
    }
    moment = datetime(2099, 5, 6, 5, 8, 9, 500_000, UTC).timestamp()
    until.pop(LOOKUP_ROLE, None)  # other tests' role, of the same server
    assert until == dict.fromkeys(("alice", "app", "bob", "postgres", "never", "far")) | {"soon": moment}


@pytest.mark.parametrize("arguments", [
    [], ["--sql", "--user", "alice"], ["--user", "alice", "--backend", "primary"], ["--from", "x", "-c", "y"],
])  # fmt: skip
def test_what_is_not_clear_is_wrong_usage(command_line, arguments):
    assert command_line("secrets", *arguments).returncode == 64


@pytest.mark.parametrize("arguments", [["--from", "open"], ["--user", "alice", "--password-file", "open"]])
def test_a_file_that_others_may_read_is_not_read(tmp_path, command_line, arguments):
    (tmp_path / "open").write_text('"alice" "pencil"\n')
    (tmp_path / "open").chmod(0o644)
    done = command_line("secrets", *(str(tmp_path / each) if each == "open" else each for each in arguments))
    assert (done.returncode, done.stdout) == (1, "")
    assert "has group or world access" in done.stderr
    assert "pencil" not in done.stderr


def test_a_backend_that_there_is_not_is_named(configured, command_line):
    done = command_line(
        "secrets",
        "-c",
        str(configured),
        "--backend",
        "x",
        "--user",
        "a",
        "--password-file",
        str(configured.with_name("password")),
    )
    assert done.returncode == 1
    assert "backends.x: there is none, only primary" in done.stderr


def test_a_password_is_asked_for_on_the_terminal_and_never_shown(configured, cluster, empty_home):
    """On standard error, so that standard output is the file's alone."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", sys.executable, "-m", "pgtlsproxy", *at_the_backend(configured, "--user", "alice")],
        stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, env=clean_environment(empty_home),
    )  # fmt: skip
    os.close(theirs)
    try:
        said = b""
        while b"Password of" not in said:
            said += os.read(ours, 1000)
        os.write(ours, password("alice").encode() + b"\n")
        assert process.stdout.read().decode() == secrets_file(cluster, "alice")
        assert process.wait(20) == 0
        said += os.read(ours, 1000)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        os.close(ours)
    assert password("alice").encode() not in said
