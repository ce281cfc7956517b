"""`check` tells what works and deserves a look, and prints the rules that it read."""

import json
import re
import sys

import pytest

from fixtures.deployments import config, in_clear, passthrough, with_certificate, with_tls
from pgtlsproxy.cli import main


class NoServer:
    port = 1


LOOSE = """\
hostssl all all 127.0.0.1/32 cert map=people
hostssl app all 127.0.0.1/32 cert
local all all peer
hostnossl all all 10.0.0.0/8 reject
hostssl all all ::1/128 cert
hostssl /^app all 127.0.0.2/32 cert
hostgssenc all all all reject
"""
IDENT = "people alice alice\nothers bob bob\n"


@pytest.fixture
def loose(certs, proxy):
    return proxy.write(
        config(
            {"a": with_tls(certs, ident_file="pg_ident.conf")},
            primary=with_certificate(NoServer, certs, reserved_users=["postgres"]),
        ),
        {"pg_hba.conf": LOOSE, "pg_ident.conf": IDENT},
    )


def test_each_warning_has_its_line_and_the_configuration_is_taken(loose, command_line):
    done = command_line("check", "-c", loose)
    assert done.returncode == 0
    found = {}
    for line in done.stderr.splitlines():
        assert line.startswith(f"warning: {loose.parent}/")
        where, _, what = line.removeprefix(f"warning: {loose.parent}/").partition(": ")
        found.setdefault(where, []).append(what)
    assert {where: len(texts) for where, texts in found.items()} == {
        "pg_hba.conf:1": 1,
        "pg_hba.conf:2": 1,
        "pg_hba.conf:3": 1,
        "pg_hba.conf:4": 1,
        "pg_hba.conf:5": 1,
        "pg_hba.conf:6": 1,
        "pg_hba.conf:7": 1,
        "pg_ident.conf:2": 1,
    }
    texts = {where: text for where, (text,) in found.items()}
    assert 'user "postgres" is in reserved_users of backend primary' in texts["pg_hba.conf:1"]
    assert f"never decides: {loose.parent}/pg_hba.conf:1 comes first" in texts["pg_hba.conf:2"]
    assert "listener a has no Unix socket" in texts["pg_hba.conf:3"]
    assert "in clear text from this host and from plaintext_from only" in texts["pg_hba.conf:4"]
    assert "listens on no IPv6 address" in texts["pg_hba.conf:5"]
    assert '"/^app" is found anywhere in a name' in texts["pg_hba.conf:6"]
    assert "no GSSAPI encryption" in texts["pg_hba.conf:7"]
    assert 'map "others" is used by no line' in texts["pg_ident.conf:2"]


WAYS_IN = """\
hostnossl all all 127.0.0.0/8 scram-sha-256
hostnossl all all ::1/128 scram-sha-256
hostnossl all all 10.0.0.0/8 scram-sha-256
hostnossl all all 2001:db8::/32 scram-sha-256
local all all scram-sha-256
"""


@pytest.mark.parametrize(
    ("listen", "idle"),
    [
        (["127.0.0.1:1"], [2, 4, 5]),
        (["localhost:1"], [5]),
        (["0.0.0.0:1"], [2, 4, 5]),
        (["*:1", "unix:/tmp:1"], []),
        (["192.0.2.1:1"], [1, 2, 4, 5]),
        (["[2001:db8::1]:1"], [1, 2, 3, 5]),
        (["192.0.2.1:1", "[::1]:1"], [1, 5]),
        (["unix:/tmp:1"], [1, 2, 3, 4]),
    ],
    ids=str,
)
def test_who_can_come_is_by_the_addresses_and_by_plaintext_from(certs, proxy, command_line, listen, idle):
    words = {"listen": listen, "plaintext_from": ["10.0.0.0/8", "2001:db8::/32"]}
    path = proxy.write(
        config({"a": {**with_tls(certs), **words}}, primary=passthrough(NoServer, certs)),
        {"pg_hba.conf": WAYS_IN},
    )
    done = command_line("check", "-c", path)
    assert done.returncode == 0
    assert [
        int(number) for number in re.findall(r"pg_hba\.conf:(\d): \w+ record cannot match", done.stderr)
    ] == idle


def test_a_load_balancer_may_bring_clients_of_either_family(certs, proxy, command_line):
    listener = with_tls(
        certs, proxy_protocol_from=["127.0.0.1/32"], plaintext_from=["10.0.0.0/8", "2001:db8::/32"]
    )
    path = proxy.write(
        config({"a": listener}, primary=passthrough(NoServer, certs)), {"pg_hba.conf": WAYS_IN}
    )
    done = command_line("check", "-c", path)
    assert done.returncode == 0
    # But nobody from loopback of IPv6, and through no Unix socket.
    assert re.findall(r"pg_hba\.conf:(\d): \w+ record cannot match", done.stderr) == ["2", "5"]


def test_the_default_of_reserved_users_is_no_oversight(certs, proxy, command_line):
    path = proxy.write(
        config({"a": with_tls(certs)}, primary=with_certificate(NoServer, certs)),
        {"pg_hba.conf": "hostssl all all all cert\n"},
    )
    done = command_line("check", "-c", path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("roots", ["one", "renewed", "several", "system"])
def test_cas_that_vouch_for_more_clients_than_need_be_are_told(
    certs, proxy, command_line, tmp_path, monkeypatch, capsys, roots
):
    bundle = tmp_path / "ca.crt"
    own, other = certs.ca.crt.read_text(), certs.other_ca.crt.read_text()
    bundle.write_text({"one": own, "renewed": own + own, "several": own + other, "system": own}[roots])
    if roots == "system":
        link = tmp_path / "link.crt"
        link.symlink_to(bundle)
        monkeypatch.setattr("pgtlsproxy.tls.file_access.is_system_bundle.__defaults__", ((str(bundle),),))
        bundle = link
    path = proxy.write(
        config({"a": with_tls(certs, ssl_ca_file=bundle)}, primary=with_certificate(NoServer, certs)),
        {"pg_hba.conf": "hostssl all all all cert\n"},
    )
    with pytest.raises(SystemExit) as ended:
        main(["check", "-c", str(path)])
    shown = capsys.readouterr().err
    assert ended.value.code == 0
    assert ("listeners.a.ssl_ca_file: holds 2 root certificates (CN=" in shown) is (roots == "several")
    assert ("listeners.a.ssl_ca_file: is this system's list of public CAs" in shown) is (roots == "system")
    assert shown.count("warning:") == (roots in {"several", "system"})


@pytest.mark.parametrize(
    ("others", "is_told"),
    [
        ("", False),
        ("hostssl all all all scram-sha-256\n", False),
        ("hostssl all all all reject clientcert=verify-ca\n", False),
        ("hostssl all all all scram-sha-256 clientcert=verify-ca\n", True),
    ],
)
def test_several_cas_are_well_where_every_line_says_which_one_counts(
    certs, proxy, command_line, tmp_path, others, is_told
):
    bundle = tmp_path / "ca.crt"
    bundle.write_text(certs.ca.crt.read_text() + certs.other_ca.crt.read_text())
    names = [each.issued.certificate.subject.rfc4514_string() for each in (certs.ca, certs.other_ca)]
    lines = "".join(f'hostssl app u{number} all cert issuer="{name}"\n' for number, name in enumerate(names))
    path = proxy.write(
        config({"a": with_tls(certs, ssl_ca_file=bundle)}, primary=passthrough(NoServer, certs)),
        {"pg_hba.conf": lines + others},
    )
    done = command_line("check", "-c", path)
    assert done.returncode == 0
    assert ("holds 2 root certificates" in done.stderr) is is_told


# --- The rules ------------------------------------------------------------------------------------------


def test_the_rules_are_printed_listener_by_listener(certs, proxy, command_line):
    path = proxy.write(
        config(
            {
                "a": with_tls(certs, ident_file="pg_ident.conf"),
                "b": in_clear(hba_file="b.hba", listen=["127.0.0.1:0"]),
            },
            primary=passthrough(NoServer, certs),
        ),
        {
            "pg_hba.conf": "# first\nhostssl app alice,bob 10.0.0.0/8 cert map=m\n",
            "pg_ident.conf": "m /^a$ alice\n",
            "b.hba": "include more\nhostssl all all all reject\n",
            "more": 'host all "+x\x1b[2J" localhost reject\n',
        },
    )
    found = json.loads(command_line("check", "-c", path, "--rules", "--json").stdout)
    assert found["ok"]
    rules = found["rules"]
    assert list(rules) == ["a", "b"]
    hba, ident = str(path.parent / "pg_hba.conf"), str(path.parent / "pg_ident.conf")
    assert rules["a"] == {
        "pg_hba_file_rules": [
            {
                "rule_number": 1, "file_name": hba, "line_number": 2, "type": "hostssl", "database": ["app"],
                "user_name": ["alice", "bob"], "address": "10.0.0.0", "netmask": "255.0.0.0",
                "auth_method": "cert", "options": ["map=m", "clientcert=verify-full"], "error": None,
            }
        ],
        "pg_ident_file_mappings": [
            {
                "map_number": 1, "file_name": ident, "line_number": 1, "map_name": "m", "sys_name": "/^a$",
                "pg_username": "alice", "error": None,
            }
        ],
        "databases": [{"database": "*", "backend": "primary", "dbname": None}],
    }  # fmt: skip
    first, second = rules["b"]["pg_hba_file_rules"]
    assert (first["file_name"], first["user_name"], first["netmask"]) == (
        str(path.parent / "more"), [r"+x\x1b[2J"], None,
    )  # fmt: skip
    assert (second["rule_number"], second["error"]) == (
        None, "hostssl record cannot match because SSL is disabled",
    )  # fmt: skip
    shown = command_line("check", "-c", path, "--rules").stdout
    assert "pg_hba_file_rules of listener a:\n  rule_number  file_name" in shown
    assert "{app}     {alice,bob}  10.0.0.0  255.0.0.0  cert         {map=m,clientcert=verify-full}" in shown
    assert "pg_ident_file_mappings of listener a:" in shown
    assert "databases of listener" not in shown
    assert "\x1b" not in shown


def test_where_databases_lead_is_printed_with_the_rules(certs, proxy, command_line):
    listener = with_tls(
        certs, databases={"crm": "primary", "ro": {"backend": "other", "dbname": "crm"}, "*": "other"}
    )
    listener.pop("backend", None)
    path = proxy.write(
        config({"a": listener}, primary=passthrough(NoServer, certs), other=passthrough(NoServer, certs)),
        {"pg_hba.conf": "hostssl all all all scram-sha-256\n"},
    )
    rows = json.loads(command_line("check", "-c", path, "--rules", "--json").stdout)["rules"]["a"]
    assert rows["databases"] == [
        {"database": "*", "backend": "other", "dbname": None},
        {"database": "crm", "backend": "primary", "dbname": None},
        {"database": "ro", "backend": "other", "dbname": "crm"},
    ]
    shown = command_line("check", "-c", path, "--rules").stdout.splitlines()
    start = shown.index("databases of listener a:")
    assert [line.split() for line in shown[start + 1 : start + 5]] == [
        ["database", "backend", "dbname"], ["*", "other"], ["crm", "primary"], ["ro", "other", "crm"],
    ]  # fmt: skip


def test_our_options_are_among_the_options(certs, proxy, command_line):
    name = certs.ca.issued.certificate.subject.rfc4514_string()
    path = proxy.write(
        config({"a": with_tls(certs)}, primary=passthrough(NoServer, certs)),
        {
            "pg_hba.conf": f'hostssl all all all cert clientname=SAN_URI issuer="{name}"\n'
            "hostssl all all all cert clientname=DN\n"
        },
    )
    rows = json.loads(command_line("check", "-c", path, "--rules", "--json").stdout)["rules"]["a"]
    assert [row["options"] for row in rows["pg_hba_file_rules"]] == [
        ["clientcert=verify-full", "clientname=SAN_URI", f"issuer={name}"],
        ["clientcert=verify-full"],
    ]


def test_the_rules_of_files_with_mistakes_are_printed_with_them(certs, proxy, command_line):
    path = proxy.write(
        config({"a": with_tls(certs, ident_file="nowhere")}, primary=passthrough(NoServer, certs)),
        {"pg_hba.conf": "hostssl all all all cert\nhots all all all trust\nhost all all all sspi\n"},
    )
    done = command_line("check", "-c", path, "--rules", "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)["rules"]["a"]
    assert [(row["rule_number"], row["line_number"], row["type"]) for row in found["pg_hba_file_rules"]] == [
        (1, 1, "hostssl"), (None, 2, None), (None, 3, None),
    ]  # fmt: skip
    assert found["pg_hba_file_rules"][1]["error"].startswith('invalid connection type "hots"')
    assert found["pg_ident_file_mappings"] == []


def test_without_a_configuration_there_are_no_rules(tmp_path, command_line):
    done = command_line("check", "-c", tmp_path / "nowhere.yaml", "--rules", "--json")
    assert (done.returncode, json.loads(done.stdout)["rules"]) == (1, {})


def test_in_a_terminal_the_rules_are_a_table(loose, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "500")
    with pytest.raises(SystemExit):
        main(["check", "-c", str(loose), "--rules"])
    shown = capsys.readouterr().out
    assert "│ hostnossl  │" in shown
    assert "hostgssenc record cannot match because GSSAPI is not supported by this build" in shown
