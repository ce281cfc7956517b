"""docs/guide.md, typed as it stands there: certificates, both sides' files, clients, renewal, and what goes wrong."""

import json
import re
import sys
from datetime import UTC, datetime, timedelta

import psycopg2
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fixtures import jdbc_attempts, other_clients
from fixtures.certs import Authority, Issued, common_names
from fixtures.guide import OS_USER, PAGE, blocks, sole_block

WHO = """\\set QUIET on
\\pset format unaligned
\\pset tuples_only on
\\pset fieldsep ' '
SELECT session_user, current_database();
"""
ME = ["myuser", "myapp"]


def who(done):
    """What was answered to WHO."""
    return done.stdout.split()


def asked(guide, command, listener="central", secret="secret"):
    return guide.type(command, listener, stdin=WHO, PGPASSWORD=secret)


def the_lines(block):
    return block.strip().split("\n")


def test_the_files_of_the_guide_are_right_and_the_server_answers(guide):
    check, serve = the_lines(blocks(3, "sh")[1])
    assert serve == "pgtlsproxy serve -c pgtlsproxy.yaml"
    done = guide.type(check.replace("pgtlsproxy.yaml", "as_written.yaml"))
    assert "warning" not in (done.stdout + done.stderr).lower()


def test_cert_may_say_what_it_means_anyway(guide):
    """As guides write it for a certificate and a password, which it is not."""
    written_out = blocks(3, "conf")[0].replace("cert map=people", "cert clientcert=verify-full map=people")
    assert "cert clientcert" in written_out
    guide.write("written_out.conf", written_out)
    changed = (guide.path / "as_written.yaml").read_text().replace("pg_hba.conf", "written_out.conf")
    guide.write("written_out.yaml", changed)
    assert guide.type("pgtlsproxy check -c written_out.yaml").stderr == ""


def test_a_line_behind_one_for_everybody_is_warned_of(guide):
    """As guides have it: the lines for everybody first, and those for certificates last."""
    lines = blocks(3, "conf")[0].splitlines(keepends=True)
    everybody = [line for line in lines if "0.0.0.0/0" in line or "::/0" in line]
    others = [line for line in lines if line not in everybody]
    guide.write("everybody_first.conf", "".join(everybody + others))
    changed = (guide.path / "as_written.yaml").read_text().replace("pg_hba.conf", "everybody_first.conf")
    guide.write("everybody_first.yaml", changed)
    done = guide.type("pgtlsproxy check -c everybody_first.yaml")
    dead = [
        str(number)
        for number, line in enumerate(everybody + others, 1)
        if line.startswith("hostssl all  all  10.")
    ]
    assert len(dead) == 2
    assert re.findall(r"everybody_first.conf:(\d+): never decides", done.stderr) == dead


@pytest.mark.parametrize("block", blocks(4, "sh"))
@pytest.mark.parametrize("listener", ["central", "others"])
def test_psql_logs_in_by_password(guide, block, listener):
    commands = the_lines(block)
    if commands[0].startswith("export"):
        commands = ["; ".join(commands)]
    for command in commands:
        assert who(asked(guide, command, listener)) == ME


def test_psql_logs_in_by_certificate(guide):
    connect = blocks(5, "sh")[1]
    assert who(asked(guide, connect, "certificates", secret="")) == ME


def test_a_certificate_and_a_password_are_both_needed(guide):
    with_both = blocks(5, "sh")[1]
    password_alone = blocks(4, "sh")[0]
    assert who(asked(guide, with_both, "two_factors")) == ME
    for command, secret in ((with_both, "wrong"), (password_alone, "secret")):
        done = guide.type(command, "two_factors", check=False, stdin=WHO, PGPASSWORD=secret)
        assert done.returncode == 2
        assert "FATAL" in done.stderr


def test_on_this_host_the_operating_system_says_who_it_is(guide):
    done = asked(guide, f"psql -h {guide.sockets} -p 6432 -U '{OS_USER}' -d myapp", "socket", "")
    assert who(done) == [OS_USER, "myapp"]
    refused = guide.type(
        f"psql -w -h {guide.sockets} -U myuser -d myapp", "socket", check=False, PGPORT="6432"
    )
    assert 'Peer authentication failed for user "myuser"' in refused.stderr


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"])
def test_every_sslmode_means_what_it_means_in_front_of_postgresql(guide, mode):
    """This host does without TLS; elsewhere only those who would not speak it are refused."""
    connect = f"psql 'host=localhost port=6432 sslmode={mode} sslrootcert=ca.crt user=myuser dbname=myapp'"
    assert who(asked(guide, connect, "central")) == ME
    done = guide.type(connect, "others", check=False, stdin=WHO, PGPASSWORD="secret")
    assert who(done) == ([] if mode == "disable" else ME)


def test_on_this_host_a_password_does_without_tls(guide):
    connect = "psql 'host=localhost port=6432 sslmode=disable user=myuser dbname=myapp'"
    assert who(asked(guide, connect, "in_clear")) == ME


PLACES = {
    # Where somebody comes from, and with what: the line that decides, as its comment says, and what is needed.
    ("10.2.3.4", "--cn", "myuser"): ("10.0.0.0/8", "allowed", "cert"),
    ("10.2.3.4", "--cn", "admin_cert", "--user", "admin"): ("10.0.0.0/8", "allowed", "cert"),
    ("10.2.3.4", "--cn", "admin@example.com", "--user", "admin"): ("10.0.0.0/8", "allowed", "cert"),
    ("10.2.3.4", "--cn", "myuser", "--user", "admin"): ("10.0.0.0/8", "refused", "cert"),
    ("10.1.3.4", "--cn", "myuser"): ("10.1.0.0/16", "allowed", "scram-sha-256"),
    ("192.0.2.1",): ("0.0.0.0/0", "allowed", "scram-sha-256"),
    ("2001:db8::1",): ("::/0", "allowed", "scram-sha-256"),
    ("192.0.2.1", "--no-tls"): (None, "refused", None),
}


@pytest.mark.parametrize(("place", "wanted"), PLACES.items())
def test_every_line_decides_about_whom_it_is_for(guide, place, wanted):
    command = blocks(7, "sh")[0]
    address, *more = place
    assert "--address 10.2.3.4 --cn myuser" in command
    command = command.strip().replace("pgtlsproxy.yaml", "as_written.yaml")
    command = command.replace("--address 10.2.3.4 --cn myuser", " ".join(["--address", address, *more]))
    answer = json.loads(guide.type(f"{command} --json", check=False).stdout)
    line, verdict, needs = wanted
    assert answer["allowed"] == (verdict == "allowed"), answer
    assert line is None or line in answer["hba"]["text"].split()
    assert verdict == "refused" or answer["needs"] == needs


def test_python_logs_in(guide):
    block = sole_block(6, "python")
    by_certificate = block.replace('password="secret"', 'sslcert="myuser.crt", sslkey="myuser.key"')
    look = "cursor = connection.cursor()\ncursor.execute('SELECT session_user, current_database()')\nprint(*cursor.fetchone())\n"
    for code, listener in ((block, "central"), (block, "others"), (by_certificate, "certificates")):
        program = guide.here(code + look, listener)
        for driver in ("psycopg2", "psycopg"):
            guide.write("example.py", program.replace("import psycopg2", f"import {driver} as psycopg2"))
            assert who(guide.type("python example.py")) == ME


def test_node_logs_in(guide):
    found = other_clients.node_postgres()
    if found is None:
        pytest.skip("node-postgres could not be had by ./dev test, which says why")
    program, environment = found
    with_password, certificate = re.split(
        r"(?=^const byCertificate)", sole_block(6, "javascript"), flags=re.MULTILINE
    )
    look = """
    (async () => {
      require('dns').setDefaultResultOrder('ipv4first');
      for (const pool of [byPassword, byCertificate]) {
        const { rows } = await pool.query('SELECT session_user AS name, current_database() AS place');
        console.log(rows[0].name, rows[0].place);
        await pool.end();
      }
    })();
    """
    guide.write(
        "example.cjs", guide.here(with_password, "others") + guide.here(certificate, "certificates") + look
    )
    assert who(guide.type(f"'{program}' example.cjs", **environment)) == ME * 2


def test_java_logs_in(guide):
    found = other_clients.pgjdbc()
    if found is None:
        pytest.skip("pgjdbc could not be had by ./dev test, which says why")
    url, user, secret = re.fullmatch(
        r'String url = "(.*)";\nConnection connection = DriverManager.getConnection\(url, "(.*)", "(.*)"\);\n',
        sole_block(6, "java"),
    ).groups()
    (convert,) = re.findall(r"`(openssl pkcs8 [^`]*)`", PAGE)
    guide.type(convert)
    shown = "&sslcert=myuser.crt&sslkey=myuser.pk8"
    cases = [
        (guide.here(url, "others"), {"user": user, "password": secret}),
        (guide.here(url, "certificates") + shown, {"user": user}),
    ]
    words = " ".join(f"'{word}'" for word in (sys.executable, jdbc_attempts.__file__, *found))
    answers = json.loads(guide.type(words, stdin=json.dumps(cases)).stdout)
    assert answers == [{"user": "myuser"}] * 2


def test_the_server_sees_tls_and_the_proxy_and_the_client_sees_tls(guide):
    command = blocks(4, "sh")[0].strip() + " -AtX"
    assert guide.type(f"{command} -c 'SHOW ssl'", "others", PGPASSWORD="secret").stdout == "on\n"
    done = guide.type(command, "others", stdin="\\conninfo\n" + sole_block(7, "sql"), PGPASSWORD="secret")
    encrypted, row = done.stdout.splitlines()[-2:]
    assert "TLSv1.3" in encrypted
    tls, version, _cipher, bits, name = row.split("|")
    assert (tls, version, name) == ("t", "TLSv1.3", "/CN=pgtlsproxy")
    assert int(bits) >= 128


def test_certificates_are_shown_and_verified(guide):
    for command in the_lines(blocks(7, "sh")[1]):
        done = guide.type(command)
        if command.startswith("openssl verify"):
            assert done.stdout == "proxy.crt: OK\n"
        elif command.startswith("openssl"):
            assert "Verify return code: 0 (ok)" in done.stdout
        else:
            assert "CN=localhost" in done.stdout


def test_a_renewed_certificate_is_shown_from_the_next_reload_on(guide):
    renew, reload = the_lines(blocks(8, "sh")[0])[0].split(" && ")
    assert reload == "systemctl reload pgtlsproxy"
    before = (guide.path / "proxy.crt").read_bytes()
    with psycopg2.connect(
        host="localhost", port=guide.ports["others"], user="myuser", dbname="myapp", password="secret"
    ) as old:
        guide.type(renew)
        after = (guide.path / "proxy.crt").read_bytes()
        assert after != before
        assert guide.proxy.reload()["event"] == "reloaded"
        old.cursor().execute("SELECT 1")
    old.close()
    shown = json.loads(guide.type("pgtlsproxy certs show --connect pgproxy.example.com:6432 --json").stdout)
    filed = json.loads(guide.type("pgtlsproxy certs show proxy.crt --json").stdout)
    assert shown[0]["sha256"] == filed[0]["sha256"]
    assert who(asked(guide, blocks(4, "sh")[0])) == ME
    check = the_lines(blocks(8, "sh")[1])[0]
    assert "expires" not in guide.type(check.replace("pgtlsproxy.yaml", "as_written.yaml")).stderr


def test_whoever_forgot_is_warned_a_month_before(guide):
    certificate, key = (guide.path / f"ca.{ending}" for ending in ("crt", "key"))
    issued = Issued(
        x509.load_pem_x509_certificate(certificate.read_bytes()),
        load_pem_private_key(key.read_bytes(), None), certificate, key,
    )  # fmt: skip
    now = datetime.now(UTC)
    soon = Authority(guide.path, issued).issue(
        common_names("localhost"),
        names=["localhost"],
        not_before=now - timedelta(days=340),
        not_after=now + timedelta(days=25),
    )
    changed = yaml.safe_load((guide.path / "as_written.yaml").read_text())
    changed["listeners"]["central"] |= {"ssl_cert_file": str(soon.crt), "ssl_key_file": str(soon.key)}
    guide.write("soon.yaml", yaml.safe_dump(changed))
    done = guide.type(blocks(8, "sh")[1].replace("pgtlsproxy.yaml", "soon.yaml"))
    assert re.search(r"warning.*ssl_cert_file.*24 days", done.stdout + done.stderr), done


def troubles():
    """The first column of the last table."""
    table = PAGE.split("\n## 9. ")[1]
    return re.findall(r"^\| `(.*?)` \|", table, re.MULTILINE)


WORDS = {
    "host": "localhost",
    "user": "myuser",
    "dbname": "myapp",
    "sslmode": "verify-full",
    "sslrootcert": "ca.crt",
}
TROUBLES = {
    "server does not support SSL": ("in_clear", {}),
    "certificate verify failed": ("others", {"sslrootcert": "myuser.crt"}),
    "server certificate for ... does not match host name": ("others", {"host": "other.example.com", "hostaddr": "127.0.0.1"}),
    "no pg_hba.conf entry for host ...": ("others", {"sslmode": "disable"}),
    "connection requires a valid client certificate": ("certificates", {}),
    'private key file "..." has group or world access': ("certificates", {"sslcert": "myuser.crt", "sslkey": "open.key"}),
    "the database system is not available": ("gone", {}),
}  # fmt: skip


def test_every_trouble_is_tried():
    assert set(troubles()) - set(TROUBLES) == {"SCRAM channel binding cannot pass through this proxy"}
    assert set(TROUBLES) <= set(troubles())


@pytest.mark.parametrize("said", TROUBLES)
def test_trouble_looks_as_the_guide_says(guide, said):
    listener, changes = TROUBLES[said]
    (guide.path / "open.key").write_bytes((guide.path / "myuser.key").read_bytes())
    (guide.path / "open.key").chmod(0o644)
    words = " ".join(f"{name}={value}" for name, value in (WORDS | changes).items())
    done = guide.type(f"psql 'port=6432 {words}'", listener, check=False, PGPASSWORD="secret")
    assert done.returncode == 2
    assert re.search(".*".join(re.escape(part) for part in said.split("...")), done.stderr), done.stderr
