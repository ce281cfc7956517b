"""`explain` says what the proxy would do, by which lines, and its exit status says it too."""

import io
import json
import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from fixtures import wire
from fixtures.certs import common_names
from fixtures.deployments import config, in_clear, passthrough, with_tls
from fixtures.fake_backend import lets_everybody_in
from fixtures.wire import connected, tls_context
from pgtlsproxy.cli import EXIT_USAGE, main
from pgtlsproxy.cli.explain import EXIT_ALLOWED, EXIT_NO_ANSWER, EXIT_REFUSED
from pgtlsproxy.identity import printable

ROOT = Path(__file__).parents[2]

HBA = """\
# type database user address method
local all all peer map=os
hostssl all postgres 10.0.0.7/32 cert
hostssl all /^dba_ 10.0.0.0/8 reject
hostssl orders all 10.0.0.0/8 cert clientname=DN map=people
hostssl all carol 10.9.0.0/16 trust clientcert=verify-ca
hostssl\tall\tall\t10.0.0.0/8\tcert map=people
host all all 127.0.0.1/32 scram-sha-256
hostssl replication all 2001:db8::/32 cert
"""

IDENT = """\
people alice alice
people /^(.*)@example\\.com$ \\1
people "CN=alice,O=Lab" alice
people reader +staff
people /^b$ /^bob$
os me alice
os uid:1000 alice
"""

OTHERS = {"staff": "hostssl all +staff 10.0.0.0/8 cert\n", "named": "host all all .example.com reject\n"}

FIELDS = {
    "allowed": (bool, type(None)),
    "sqlstate": (str, type(None)),
    "reply": (str, type(None)),
    "reason": (str,),
    "listener": (str, type(None)),
    "backend": (str, type(None)),
    "login": (str, type(None)),
    "needs": (str, type(None)),
    "hba": (dict, type(None)),
    "ident": (dict, type(None)),
    "decided_by": (str, type(None)),
    "skipped": (list,),
}


class NoServer:
    port = 1


def backend_of(certs, server):
    """One that sees the proxy's certificate, and asks the client where a line leaves that to it."""
    shown = certs.client("pgtlsproxy")
    return passthrough(server, certs, sslcert=shown.crt, sslkey=shown.key)


@pytest.fixture(scope="module")
def folder():
    """For a Unix socket, whose path has to be short."""
    with tempfile.TemporaryDirectory(prefix="explain-") as made:
        yield made


@pytest.fixture
def written(certs, proxy, folder):
    """A configuration of several listeners; changes are settings of the first one, central."""

    def write(hba=HBA, ident=IDENT, more=None, **central):
        words = {"ident_file": "pg_ident.conf", "roles_file": "roles", "unix_socket_permissions": "0777"}
        everywhere = ["0.0.0.0:0", "[::]:0", f"unix:{folder}:1"]
        listeners = {"central": with_tls(certs, **{"listen": everywhere} | words | central)}
        return proxy.write(
            config(listeners | (more or {}), primary=backend_of(certs, NoServer)),
            {
                "pg_hba.conf": hba,
                "pg_ident.conf": ident,
                "roles": "staff alice\n",
                **{f"{name}.hba": text for name, text in OTHERS.items()},
            },
        )

    return write


@pytest.fixture
def explained(written, capsys):
    """`explained(options...)` gives the exit status and the JSON object; its form is always the same."""

    def run(*options, path=None, user="alice", address="10.0.0.1"):
        who = () if "--log" in options else ("--user", user, "--address", address)
        with pytest.raises(SystemExit) as ended:
            main(["explain", "-c", str(path or written()), "--json", *who, *map(str, options)])
        found = json.loads(capsys.readouterr().out)
        assert_form(found, ended.value.code)
        return ended.value.code, found

    return run


def assert_form(found, status):
    assert list(found) == list(FIELDS)
    for name, kinds in FIELDS.items():
        assert isinstance(found[name], kinds), (name, found[name])
    for name in ("hba", "ident"):
        assert found[name] is None or list(found[name]) == ["file", "line", "text"]
    for one in found["skipped"]:
        assert list(one) == ["file", "line", "field", "found", "wanted"]
    assert found["needs"] in {None, "cert", "peer", "scram-sha-256", "password", "backend", "none"}
    assert found["decided_by"] in {
        None,
        "hba",
        "ident",
        "plaintext_from",
        "proxy_protocol_from",
        "reserved_users",
        "proof",
    }
    assert status == {True: EXIT_ALLOWED, False: EXIT_REFUSED, None: EXIT_NO_ANSWER}[found["allowed"]]
    assert (found["needs"] is not None) is (found["allowed"] is True)
    assert (found["decided_by"] is not None) is (found["allowed"] is False)


def line(ref):
    return None if ref is None else ref["line"]


# Options; the user; the address; allowed; needs or decided_by; lines of hba and ident; what it says.
CASES = {
    "a name in a map": (["--cn", "alice"], "alice", "10.0.0.1", True, "cert", 7, 1, ""),
    "an expression in a map": (["--cn", "bob@example.com"], "bob", "10.0.0.1", True, "cert", 7, 2, ""),
    "an expression in a map's last column": (["--cn", "b"], "bob", "10.0.0.1", True, "cert", 7, 5, ""),
    "a role in a map": (["--cn", "reader"], "alice", "10.0.0.1", True, "cert", 7, 4, ""),
    "a DN": (["--dn", "CN=alice,O=Lab", "--database", "orders"], "alice", "10.0.0.1", True, "cert", 5, 3, ""),
    "the CN in a DN": (["--dn", "O=Lab,CN=alice"], "alice", "10.0.0.1", True, "cert", 7, 1, ""),
    "the CN in a DN with escapes": (["--dn", r"CN=a\,CN\=x+OU=alice"], "a,CN=x", "10.0.0.1", False, "ident", 7, None, "a,CN=x"),
    "several CNs in a DN": (["--dn", "CN=a,CN=alice"], "alice", "10.0.0.1", False, "hba", 7, None, "several common names: alice, a"),
    "no CN in a DN": (["--dn", "O=Lab"], "alice", "10.0.0.1", False, "hba", 7, None, "contains no user name"),
    "no match in a map": (["--cn", "mallory"], "alice", "10.0.0.1", False, "ident", 7, None, 'authenticated as "mallory"'),
    "no map": (["--cn", "postgres"], "postgres", "10.0.0.7", True, "cert", 3, None, ""),
    "a reserved user": (["--cn", "postgres@example.com"], "postgres", "10.0.0.1", False, "reserved_users", 7, 2, "must list the user by name"),
    "reject": (["--cn", "x"], "dba_1", "10.0.0.1", False, "hba", 4, None, "the line rejects"),
    "reject, whoever it is": ([], "dba_1", "10.0.0.1", False, "hba", 4, None, "the line rejects"),
    "no certificate": (["--no-certificate"], "alice", "10.0.0.1", False, "hba", 7, None, "none was sent"),
    "a certificate that may be there": ([], "alice", "10.0.0.1", None, None, 7, None, "whether it has a certificate"),
    "a CN where a DN counts": (["--cn", "alice", "--database", "orders"], "alice", "10.0.0.1", None, None, 5, None, "the distinguished name"),
    "a DN whose CN may have other bytes": (["--dn", r"CN=\C3\A9"], "alice", "10.0.0.1", None, None, 7, None, "the common name"),
    "any certificate": (["--cn", "x"], "carol", "10.9.0.1", True, "backend", 6, None, ""),
    "nobody's line": (["--cn", "x"], "alice", "192.0.2.1", False, "hba", None, None, "no line of pg_hba.conf applies"),
    "in clear from afar": (["--no-tls"], "alice", "10.0.0.1", False, "plaintext_from", None, None, "in clear text from 10.0.0.1"),
    "an operating system user": (["--os-user", "me"], "alice", "local", True, "peer", 2, 6, ""),
    "one without a name": (["--os-user", "uid:1000"], "alice", "local", True, "peer", 2, 7, ""),
    "one that nobody knows": (["--os-user", "uid:65534"], "alice", "local", False, "hba", 2, None, "does not know who the client is"),
    "another one": (["--os-user", "you"], "alice", "local", False, "ident", 2, None, 'authenticated as "you"'),
    "an operating system user that is not said": ([], "alice", "local", None, None, 2, None, "which operating system user"),
    "replication": (["--cn", "alice", "--replication", "true"], "alice", "2001:db8::1", True, "cert", 9, None, ""),
    "replication without a line": (["--cn", "alice", "--replication", "true"], "alice", "10.0.0.1", False, "hba", None, None, "no line"),
    "logical replication": (["--cn", "alice", "--replication", "database"], "alice", "10.0.0.1", False, "reserved_users", 7, 1, "replication"),
    "an IPv4-mapped address": (["--cn", "alice"], "alice", "::ffff:10.0.0.1", True, "cert", 7, 1, ""),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.replace(" ", "-"))
def test_the_lines_that_decide_are_named(explained, case):
    options, user, address, allowed, how, hba, ident, text = CASES[case]
    _, found = explained(*options, user=user, address=address)
    assert (found["allowed"], line(found["hba"]), line(found["ident"])) == (allowed, hba, ident)
    assert how == (found["needs"] if allowed else found["decided_by"])
    assert text in found["reason"]
    assert (found["listener"], found["backend"], found["login"]) == ("central", "primary", "passthrough")
    refused = allowed is False
    assert (found["sqlstate"] is not None, found["reply"] is not None) == (refused, refused)


@pytest.mark.parametrize("listen", [["127.0.0.1:0"], ["0.0.0.0:0"]])
def test_behind_a_load_balancer_the_address_is_the_headers(written, explained, listen):
    behind = written(listen=listen, proxy_protocol_from=["127.0.0.1/32", "10.0.0.0/8"])
    for address, number in (("10.0.0.1", 7), ("2001:db8::1", 9)):
        replication = ("--replication", "true") if ":" in address else ()
        _, found = explained("--cn", "alice", *replication, path=behind, address=address)
        assert (found["allowed"], line(found["hba"])) == (True, number)
    status, found = explained(path=behind, address="127.0.0.1")
    assert (status, found["decided_by"]) == (EXIT_REFUSED, "proxy_protocol_from")
    assert "no header may name a loopback address" in found["reason"]


def test_every_earlier_line_has_the_column_that_does_not_match(explained):
    _, found = explained("--cn", "alice")
    assert [(one["line"], one["field"], one["found"], one["wanted"]) for one in found["skipped"]] == [
        (2, "type", "hostssl", "local"),
        (3, "user", "alice", "postgres"),
        (4, "user", "alice", "/^dba_"),
        (5, "database", "alice", "orders"),
        (6, "user", "alice", "carol"),
    ]
    assert found["hba"]["file"].endswith("/pg_hba.conf")
    assert found["hba"]["text"] == "hostssl all all 10.0.0.0/8 cert map=people"


def test_the_reply_is_what_the_client_reads(explained):
    _, found = explained("--cn", "mallory")
    assert (found["sqlstate"], found["reply"]) == (
        "28000", 'certificate authentication failed for user "alice"',
    )  # fmt: skip


CERTIFICATES = {
    "vouched for": (lambda certs, _: certs.client("alice").crt, None),
    "of another CA": (lambda certs, _: certs.other_ca.client("alice").crt, "unable to get local issuer"),
    "a server's": (lambda certs, _: certs.ca.server("alice").crt, "unsuitable certificate purpose"),
    "expired": (
        lambda certs, _: certs.ca.expired(common_names("alice"), usage="client").crt, "certificate has expired",
    ),
    "of an intermediate": (lambda certs, _: certs.ca.intermediate("middle").client("alice").crt, None),
    "with a NUL": (lambda certs, _: certs.ca.issue(nul_name(), usage="client").crt, "embedded null"),
}  # fmt: skip


def nul_name():
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "alice\0.example.com")])


@pytest.mark.parametrize("case", CERTIFICATES, ids=lambda case: case.replace(" ", "-"))
def test_a_certificate_is_verified_as_in_the_handshake(explained, certs, tmp_path, case):
    make, problem = CERTIFICATES[case]
    status, found = explained("--certificate", make(certs, tmp_path))
    if problem is None:
        assert (status, line(found["hba"]), line(found["ident"])) == (EXIT_ALLOWED, 7, 1)
        return
    assert status == EXIT_REFUSED
    assert problem in found["reason"]
    assert (found["decided_by"], found["sqlstate"], found["reply"]) == ("proof", None, None)
    assert (found["hba"], found["skipped"]) == (None, [])


def test_a_revoked_certificate_is_refused_whatever_the_lines_say(explained, written, certs):
    shown, other = certs.ca.client("alice"), certs.ca.client("bob")
    path = written("hostssl all all all trust clientcert=verify-ca\n" + HBA, ssl_crl_file=certs.ca.crl(shown))
    assert "certificate revoked" in explained("--certificate", shown.crt, path=path)[1]["reason"]
    assert explained("--certificate", other.crt, path=path)[0] == EXIT_ALLOWED


def test_a_file_without_a_certificate_is_no_answer(explained, written, certs):
    for file, text in ((certs.client("alice").key, "no certificate in it"), ("/nowhere", "does not exist")):
        status, found = explained("--certificate", file)
        assert status == EXIT_NO_ANSWER
        assert text in found["reason"]


def test_where_no_certificate_is_asked_for_none_counts(explained, written, certs):
    path = written(more={"clear": in_clear(listen=["127.0.0.1:0"], hba_file="named.hba")})
    for options in (["--certificate", certs.client("alice").crt], ["--cn", "alice"], []):
        _, found = explained("--listener", "clear", *options, address="127.0.0.1", path=path)
        assert (found["allowed"], found["decided_by"], found["listener"]) == (False, "hba", "clear")


def test_nobody_comes_where_nothing_listens(explained, written):
    path = written(listen=["127.0.0.1:0"], ident="people a b\nos a b\n")
    for address, text in (("local", "has no Unix socket"), ("::1", "listens on no IPv6 address")):
        status, found = explained(address=address, path=path)
        assert status == EXIT_NO_ANSWER
        assert text in found["reason"]


def test_interfaces_and_host_names_are_looked_up(explained, written, monkeypatch):
    path = written("host all all samehost reject\nhost all all localhost reject\nhost all all all reject\n")
    assert line(explained(address="127.0.0.1", path=path)[1]["hba"]) == 1
    assert line(explained(address="198.51.100.7", path=path)[1]["hba"]) in {2, 3}


def test_a_server_is_asked_for_roles_only_where_that_is_said(explained, written):
    path = written(OTHERS["staff"], roles_file=None, roles_query={"user": "reader"}, ident_file=None)
    text = path.read_text().replace("    roles_file: null\n", "").replace("    ident_file: null\n", "")
    path.write_text(text)
    status, found = explained("--cn", "alice", path=path)
    assert status == EXIT_NO_ANSWER
    assert "--connect" in found["reason"]
    status, found = explained("--cn", "alice", "--connect", path=path)
    assert (status, found["decided_by"], line(found["hba"])) == (EXIT_REFUSED, "hba", 1)
    assert "roles_query: " in found["reason"]


# --- How it is asked ------------------------------------------------------------------------------------

WRONG = {
    "no user": (["--address", "10.0.0.1"], "--user is missing"),
    "an empty user": (["--user", "", "--address", "10.0.0.1"], "--user is missing"),
    "no address": (["--user", "alice"], "--address is missing"),
    "no IP address": (["--user", "alice", "--address", "host"], 'not "host"'),
    "a long user": (["--user", "a" * 64, "--address", "10.0.0.1"], "has 64 bytes"),
    "a long database": (["--user", "a", "--database", "é" * 32, "--address", "10.0.0.1"], "has 64 bytes"),
    "two certificates": (
        ["--user", "a", "--address", "10.0.0.1", "--cn", "a", "--dn", "CN=a"], "--cn and --dn do not go together",
    ),
    "a certificate and none": (
        ["--user", "a", "--address", "10.0.0.1", "--cn", "a", "--no-certificate"], "do not go together",
    ),
    "a certificate in clear": (
        ["--user", "a", "--address", "10.0.0.1", "--cn", "a", "--no-tls"], "do not go together",
    ),
    "a certificate at a Unix socket": (["--user", "a", "--address", "local", "--cn", "a"], "no TLS at a Unix socket"),
    "a DN with blanks": (["--user", "a", "--address", "10.0.0.1", "--dn", "CN=a, O=Lab"], 'is written CN=alice,O=Lab, not "CN=a, O=Lab"'),
    "a DN with slashes": (["--user", "a", "--address", "10.0.0.1", "--dn", "/O=Lab/CN=a"], "--dn is written"),
    "a DN that ends too late": (["--user", "a", "--address", "10.0.0.1", "--dn", "CN=a,"], "--dn is written"),
    "a DN with an escape too short": (["--user", "a", "--address", "10.0.0.1", "--dn", "CN=a\\"], "--dn is written"),
    "an issuer that is no DN": (["--user", "a", "--address", "10.0.0.1", "--issuer", "Team A CA"], "--issuer is written"),
    "an operating system user beyond it": (
        ["--user", "a", "--address", "10.0.0.1", "--os-user", "a"], "at a Unix socket only",
    ),
    "an unknown kind of replication": (
        ["--user", "a", "--address", "10.0.0.1", "--replication", "yes"], "'yes' is not one of",
    ),
    "an unknown listener": (
        ["--user", "a", "--address", "10.0.0.1", "--listener", "x\x1b"], r'no listener "x\x1b": there is central',
    ),
    "a log and a user": (["--log", "-", "--user", "a"], "--log says who the client is"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.replace(" ", "-"))
def test_a_question_that_makes_no_sense_is_wrong_usage(written, capsys, case):
    options, text = WRONG[case]
    with pytest.raises(SystemExit) as ended:
        main(["explain", "-c", str(written()), *options])
    shown = capsys.readouterr()
    assert (ended.value.code, shown.out) == (EXIT_USAGE, "")
    assert text in shown.err


def test_of_several_listeners_one_has_to_be_named(written, capsys):
    path = written(more={"clear": in_clear(hba_file="named.hba")})
    with pytest.raises(SystemExit) as ended:
        main(["explain", "-c", str(path), "--user", "a", "--address", "10.0.0.1"])
    assert ended.value.code == EXIT_USAGE
    assert "there are central, clear" in capsys.readouterr().err


def test_what_is_wrong_with_the_configuration_is_said_as_by_check(written, command_line):
    path = written("hostssl all all all cert\nhots all all all trust\nhost all all all sspi\n")
    checked = command_line("check", "-c", path)
    options = ("explain", "-c", path, "--user", "alice", "--address", "10.0.0.1")
    plain, machine = command_line(*options), command_line(*options, "--json")
    mistakes = [one for one in checked.stderr.splitlines() if one.startswith("error:")]
    assert len(mistakes) == 2
    assert (plain.returncode, plain.stdout, plain.stderr.splitlines()) == (EXIT_NO_ANSWER, "", mistakes)
    assert machine.stderr.splitlines() == mistakes
    found = json.loads(machine.stdout)
    assert_form(found, machine.returncode)
    assert "pg_hba.conf:2: invalid connection type" in found["reason"]


def test_a_broken_yaml_file_is_said_as_by_check(tmp_path, command_line):
    path = tmp_path / "x.yaml"
    path.write_text("listeners: {}\n")
    checked = command_line("check", "-c", path)
    asked = command_line("explain", "-c", path, "--user", "alice", "--address", "10.0.0.1")
    mistakes = [one for one in checked.stderr.splitlines() if one.startswith("error:")]
    assert (asked.returncode, asked.stderr.splitlines()) == (EXIT_NO_ANSWER, mistakes)


# --- How it is shown ------------------------------------------------------------------------------------


def test_people_get_the_verdict_the_lines_and_what_the_others_failed_on(written, command_line):
    options = ("explain", "-c", written(), "--user", "alice", "--address", "10.0.0.1", "--cn")
    refused = command_line(*options, "mallory")
    verdict, *rest = refused.stdout.splitlines()
    assert (refused.returncode, refused.stderr) == (EXIT_REFUSED, "")
    assert verdict == 'refused: user "alice", database "alice", from 10.0.0.1, listener central'
    text = "\n".join(rest)
    assert 'no match in usermap "people" for user "alice" authenticated as "mallory"' in text
    assert '28000: certificate authentication failed for user "alice"' in text
    assert "pg_hba.conf:7: hostssl all all 10.0.0.0/8 cert map=people" in text
    assert re.search(r"pg_hba\.conf:3 +user +alice +postgres$", text, re.MULTILINE)
    allowed = command_line(*options, "alice").stdout
    assert allowed.startswith("allowed: ")
    assert "backend primary, login passthrough" in allowed
    assert "pg_ident.conf:1: people alice alice" in allowed


HOSTILE = ["\x1b[2Jx", "[bold red]x[/x]", "x\u202eexe", "x\udcff", 'x"y\n', "{0}%s"]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
def test_hostile_names_reach_no_terminal(written, capsys, monkeypatch, name, terminal):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    quoted = '"' + name.replace('"', '""').replace("\n", "") + '"'
    hba = f"hostssl {quoted} {quoted}x all cert\nhostssl all all all cert\n"
    path = written("")
    (path.parent / "pg_hba.conf").write_bytes(hba.encode("utf-8", "surrogateescape"))
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "explain",
                "-c",
                str(path),
                "--user",
                name,
                "--address",
                "10.0.0.1",
                "--cn",
                name,
                "--database",
                "d",
            ]
        )
    assert ended.value.code == EXIT_ALLOWED
    shown = capsys.readouterr().out
    assert printable(name) in shown
    styles = re.compile(r"\x1b\[\d*m") if terminal else re.compile("(?!)")
    assert all(map(str.isprintable, styles.sub("", shown).split("\n")))


def test_in_a_terminal_the_earlier_lines_are_a_table(written, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main(["explain", "-c", str(written()), "--user", "alice", "--address", "10.0.0.1", "--cn", "alice"])
    shown = capsys.readouterr().out
    assert "the line wants" in shown
    assert "│ user " in shown


# --- A line of the log ----------------------------------------------------------------------------------


@pytest.fixture
def asked_by_log(explained, monkeypatch):
    """What explain says of an event of the log."""

    def ask(path, *events, raw=None):
        text = raw if raw is not None else "\n".join(map(json.dumps, events))
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        return explained("--log", "-", path=path)

    return ask


def tls_session(running, certs, user, *names, source=None, **words):
    shown = tls_context(certificate=certs.client(*names)) if names else tls_context()
    try:
        with connected(("127.0.0.1", running.port("central")), shown, source=source) as client:
            client.send(wire.startup(user=user, **words))
            while client.read_message().kind not in {b"E", b"Z"}:
                pass
    except OSError:
        pass


def test_sessions_are_explained_by_their_lines_of_the_log(
    written, certs, proxy, fake_backend, folder, asked_by_log
):
    """Verdict and lines are those of the session, and earlier ones do not come between."""
    backend = fake_backend(lets_everybody_in)
    me = pwd.getpwuid(os.geteuid()).pw_name
    words = {"ident_file": "pg_ident.conf", "unix_socket_permissions": "0777"}
    listen = ["127.0.0.1:0", f"unix:{folder}:2"]
    running = proxy(
        config(
            {"central": with_tls(certs, listen=listen, **words)},
            primary=backend_of(certs, backend),
        ),
        {
            "pg_hba.conf": HBA.replace("10.0.0.0/8", "127.0.0.0/8").replace("10.9.0.0/16", "127.0.0.1/32"),
            "pg_ident.conf": IDENT.replace("me alice", f"{me} alice").replace("people reader +staff\n", "\n"),
        },
    )
    tls_session(running, certs, "alice", "alice")
    tls_session(running, certs, "bob", "bob@example.com", database="postgres")
    tls_session(running, certs, "alice", "mallory")
    tls_session(running, certs, "alice", "alice", "second")
    tls_session(running, certs, "alice", "alice", database="orders")
    tls_session(running, certs, "postgres", "postgres@example.com")
    tls_session(running, certs, "dba_1", "dba_1")
    tls_session(running, certs, "alice", "alice", replication="true")
    tls_session(running, certs, "alice", "alice", replication="database")
    tls_session(running, certs, "alice")
    for user in ("alice", "bob"):
        with wire.WireClient(f"{folder}/.s.PGSQL.2") as client:
            client.send(wire.startup(user=user))
            while client.read_message().kind not in {b"E", b"Z"}:
                pass
    running.wait_for_event("session_decided", user="bob", client_addr="[local]")
    running.stop()
    sessions = running.log_events("session_decided")
    assert len(sessions) == 12
    assert {one["verdict"] for one in sessions} == {"allowed", "refused"}
    for event in sessions:
        _, found = asked_by_log(running.config, event)
        assert (found["allowed"], line(found["hba"]), line(found["ident"])) == (
            event["verdict"] == "allowed", event["hba_line"], event["ident_line"],
        ), event  # fmt: skip
        if found["allowed"]:
            assert found["needs"] == event["proof"]
        else:
            assert [found[name] for name in ("reason", "sqlstate", "decided_by")] == [
                event[name] for name in ("reason", "sqlstate", "decided_by")
            ]


EVENT = {
    "event": "session_decided", "listener": "central", "client_addr": "10.0.0.1", "user": "alice", "database": "alice",
    "replication": None, "tls_version": "TLSv1.3", "cert_cn": "alice", "cert_dn": "CN=alice", "cert_verified": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "allowed", "text"),
    [
        ({}, True, ""),
        ({"cert_cn": None, "cert_dn": None}, False, "none was sent"),
        ({"cert_cn": "é", "cert_dn": r"CN=\C3\A9"}, False, 'authenticated as "é"'),
        ({"cert_cn": "é", "cert_dn": r"CN=\C3\A9,CN=alice"}, None, "the common name"),
        ({"tls_version": None, "cert_cn": None, "cert_dn": None}, False, "in clear text"),
        ({"user": r"a\x1b"}, None, "may stand for characters"),
        ({"cert_dn": "CN=" + "a" * 512}, None, "may stand for characters"),
        ({"user": None, "reason": "no startup"}, None, "before a policy was asked about it: no startup"),
        ({"user": 5}, None, "user of the event is no text"),
        ({"client_addr": "nowhere"}, None, "no address"),
        ({"replication": "perhaps"}, None, "no kind of it"),
        ({"decided_by": "proxy_protocol_from"}, None, "PROXY header named no client"),
        ({"listener": None}, None, "names no listener"),
        ({"cert_verified": False, "tls_error": "certificate has expired", "user": None}, False, "expired"),
    ],
    ids=str,
)
def test_what_the_log_does_not_say_is_not_guessed(written, asked_by_log, changes, allowed, text):
    _, found = asked_by_log(written(), {**EVENT, **changes})
    assert found["allowed"] is allowed
    assert text in found["reason"]


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("", "no event session_decided"),
        ("not JSON\n[1]\n{}\n", "no event session_decided"),
        ("[" * 100_000, "no event session_decided"),
        ("\n".join([json.dumps(EVENT)] * 2), "there are 2 events"),
    ],
    ids=["nothing", "no JSON", "deep", "two"],
)
def test_one_session_has_to_be_given(written, asked_by_log, raw, text):
    _, found = asked_by_log(written(), raw=raw)
    assert found["allowed"] is None
    assert text in found["reason"]


def test_a_log_is_read_from_a_file_too(written, explained, tmp_path):
    log = tmp_path / "log"
    log.write_text(json.dumps({"event": "listening"}) + "\n" + json.dumps(EVENT) + "\n")
    path = written()
    assert explained("--log", log, path=path)[0] == EXIT_ALLOWED
    status, found = explained("--log", tmp_path / "nowhere", path=path)
    assert status == EXIT_NO_ANSWER
    assert "does not exist" in found["reason"]


# --- What it loads --------------------------------------------------------------------------------------


# What takes a cold process its time, and answers no question.
NEVER_LOADED = {
    "trio", "asyncio", "ssl", "attr", "structlog", "logging", "rich", "subprocess", "pgtlsproxy.protocol",
    "pgtlsproxy.proxy.reading", "pgtlsproxy.proxy.units", "pgtlsproxy.proxy.snapshot",
}  # fmt: skip
OF_CERTIFICATES = {"OpenSSL", "cryptography"}

COLD = {
    "a name": (["--cn", "alice"], False),
    "a DN": (["--dn", "CN=alice"], False),
    "subjectAltNames": (["--cn", "alice", "--san", "DNS:alice"], False),
    "no certificate": (["--no-certificate"], False),
    "clear text": (["--no-tls"], False),
    "a certificate": (["--certificate"], True),
    "a CA": (["--cn", "alice", "--issuer", "CN=pgtlsproxy test CA"], True),
    "a line of the log": (["--log", "-"], False),
}
"""Options, and whether certificates have to be read for them."""


def loaded(*arguments, folder=None):
    """What a process has loaded when it has answered a question, which is nearly all of its time."""
    program = (
        "import sys\nfrom pgtlsproxy.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as ended: print(ended.code, *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "explain", "--json", *map(str, arguments)],
        capture_output=True, input=json.dumps(EVENT), text=True, check=True,
        env=os.environ | ({"PYTHONPATH": str(folder)} if folder else {}),
    )  # fmt: skip
    status, *modules = done.stdout.splitlines()[-1].split()
    assert int(status) in {EXIT_ALLOWED, EXIT_REFUSED}
    return set(modules)


@pytest.mark.parametrize("case", COLD)
def test_only_what_the_question_needs_is_loaded(written, certs, case):
    options, reads_certificates = COLD[case]
    if "--certificate" in options:
        options = [*options, certs.client("alice").crt]
    if "--log" not in options:
        options = ["--user", "alice", "--address", "10.0.0.1", *options]
    hba = 'hostssl all all all cert issuer="CN=pgtlsproxy test CA"\n' if "--issuer" in options else HBA
    modules = loaded("-c", written(hba), *options)
    assert not modules & NEVER_LOADED
    assert modules & OF_CERTIFICATES == (OF_CERTIFICATES if reads_certificates else set())


def test_what_is_installed_beside_the_proxy_has_no_part_in_reading_settings(written, tmp_path):
    """Where pydantic finds a plugin it calls it with every value, secrets among them."""
    plugin = tmp_path / "curious-1.dist-info"
    plugin.mkdir()
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: curious\nVersion: 1\n")
    (plugin / "entry_points.txt").write_text("[pydantic]\ncurious = curious:plugin\n")
    (tmp_path / "curious.py").write_text("plugin = None\n")
    options = ["--user", "alice", "--address", "10.0.0.1", "--cn", "alice"]
    assert "curious" not in loaded("-c", written(), *options, folder=tmp_path)


def test_certificates_and_keys_are_left_alone(written, explained):
    """Whoever may read the policy alone can ask."""
    path = written()
    text = path.read_text()
    for key in ("ssl_cert_file", "ssl_key_file", "ssl_ca_file", "sslcert", "sslkey", "sslrootcert"):
        text = "\n".join(
            f"{one.partition(key)[0]}{key}: /nowhere/{key}" if one.strip().startswith(f"{key}:") else one
            for one in text.split("\n")
        )
    Path(path).write_text(text)
    assert explained("--cn", "alice", path=path)[0] == EXIT_ALLOWED


# --- The manual -----------------------------------------------------------------------------------------


def test_the_example_in_the_manual_is_what_is_printed(tmp_path, command_line):
    manual = (ROOT / "docs/policy.md").read_text()
    ((command, shown),) = re.findall(
        r"^```\n\$ pgtlsproxy (explain .*)\n((?:.|\n)*?)^```$", manual, re.MULTILINE
    )
    shutil.copytree(ROOT / "config/central", tmp_path / "central")
    done = command_line(*shlex.split(command.replace("/etc/pgtlsproxy", str(tmp_path / "central"))))
    assert (done.returncode, done.stderr) == (EXIT_REFUSED, "")
    printed = done.stdout.replace(str(tmp_path / "central"), "/etc/pgtlsproxy")
    assert re.sub(" {2,}", "  ", printed) == re.sub(" {2,}", "  ", shown)  # a table is as wide as its paths
