"""`check --rules` shows a file as pg_hba_file_rules and pg_ident_file_mappings of the server do."""

from __future__ import annotations

import json
import random
from dataclasses import asdict

import pytest

from pgtlsproxy.identity import printable
from pgtlsproxy.policy.views import hba_rows, ident_rows
from pgtlsproxy.proxy.rule_files import InclusionReader

HBA = r"""
# Everything that both read.
local all bootstrap trust
local all all ident map=m
local sameuser,samerole,samegroup,replication all,+staff,"+staff",/^a peer
host all all all reject
host "all",/^app,"/b,c$" "a b",bob samehost trust
host all all samenet scram-sha-256
host all all 10.0.0.0/8 trust
host all all 10.1.0.0 255.255.0.0 trust
host all all 2001:db8::/32 trust
host all all ::1/128 trust
host all all 2001:db8::5 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff trust
host all all db.example.com reject
host all all .example.com reject
hostssl all all all cert
hostssl all all all cert map=people clientname=DN
hostssl all all all scram-sha-256 clientcert=verify-ca
hostssl all all all trust clientcert=verify-full
hostnossl all all all reject
hostnogssenc \
  all all all reject
include more.conf
include_dir d
include_if_exists nowhere
host @names all all trust
host all all all magic
hots all all all trust
host all all 10.0.0.0/33 trust
local all
host a b c d e
include missing
host all all all trust x=y
"""

FILES = {
    "more.conf": "host included all all trust\nbroken line\n",
    "d/1.conf": "host folder all all trust\n",
    "names": 'x y, "a b"\n',
    "ident.more": "m included bob\n",
}

IDENT = r"""
m alice bob
m /^(.*)@x\.com$ \1
m "a b" "all" and more
m alice +staff
"m x" alice /^b
include ident.more
m
m a,b bob
m /a( bob
"""

COLUMNS = (
    "rule_number, file_name, line_number, type, database, user_name, address, netmask, auth_method, options, "
    "error"
)
IDENT_COLUMNS = "map_number, file_name, line_number, map_name, sys_name, pg_username, error"


@pytest.fixture
def server(own_cluster):
    """Has read its pg_hba.conf already: the views show what the files say now."""
    cluster = own_cluster(17, hba="local all bootstrap trust\n")
    for name, text in FILES.items():
        path = cluster.data / name
        path.parent.mkdir(exist_ok=True)
        if path.parent != cluster.data:
            path.parent.chmod(0o755)
        path.write_text(text)
        path.chmod(0o644)
    return cluster


def by_the_server(server, name, content, columns, view):
    server.write(name, content)
    return json.loads(server.psql(f"SELECT json_agg(t) FROM (SELECT {columns} FROM {view}) t").stdout)


def plain(row):
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(row).items()}


def assert_same(ours, theirs):
    """The same but for the end of an error, where ours says what to do."""
    assert len(ours) == len(theirs)
    for mine, row in zip(map(plain, ours), theirs, strict=True):
        assert list(mine) == list(row)
        said, error = mine.pop("error"), row.pop("error")
        assert mine == row
        assert (said is None) is (error is None), row
        assert said is None or said.startswith(error.split('"')[0].split(": Name or")[0]), row


@pytest.mark.parametrize("tls", [True, False], ids=["ssl", "no-ssl"])
def test_a_file_with_everything_that_both_read(server, tls):
    if not tls:
        server.set(ssl="off")
        server.reload()
    expected = by_the_server(server, "pg_hba.conf", HBA, COLUMNS, "pg_hba_file_rules")
    assert {row["type"] for row in expected} > {"local", "host", "hostssl", "hostnossl"}
    path = str(server.data / "pg_hba.conf")
    assert_same(list(hba_rows(path, HBA.encode(), InclusionReader(), tls=tls)), expected)


def test_a_map_with_everything_that_both_read(server):
    expected = by_the_server(server, "pg_ident.conf", IDENT, IDENT_COLUMNS, "pg_ident_file_mappings")
    path = str(server.data / "pg_ident.conf")
    assert_same(list(ident_rows(path, IDENT.encode(), InclusionReader())), expected)


SEED, LINES = 17, 4000
SEPARATORS = (" ", "\t", "  ", "\r", " \\\n")
PIECES = (
    "local", "host", "hostssl", "all", '"all"', "sameuser", "samerole", "replication", "+staff", '"+staff"', "/^a", '"/^a b"',
    "alice", '"a""b"', '""', 'a"b"c', '"x,y"', "@nofile", '"@x"', "@", "10.0.0.0/8", "10.1.2.3", "255.255.0.0", "::1/128",
    "samehost", "SAMEHOST", '"samenet"', ".example.com", "trust", "reject", "cert", "md5", "map=m", '"map=m x"', 'map="m x"',
    "clientcert=verify-ca", "clientname=DN", "include", "\\", "\\\n", "\\\r\n", "\n", " ", "\t", "\r", ",", ", ", " ,", "#",
    '"', "é", "\xa0", "\x0b", "\x0c", "\x1c", "\u2028", "\ufeff", "\x01", "=", "/", "+", "10.0.0.0/+8", "0/0", "::/0",
    "clientcert=verify-full", "clientcert=1", "clientname=CN", "clientname=", "map", "map=", "map==", "map=a,b", "ldapserver=x",
    "peer", "ident", "scram-sha-256", "cert,reject", "local all all peer", "hostssl all all all cert clientcert=verify-ca",
    "host all all all trust clientcert=verify-ca", "/8", "::1/129", "fe80::1%lo", "samegroup", r"+\1", r"x\1y\1", '"all"x', 'al"l"',
    "::ffff:10.0.0.1", "1.2.3", "/(", "/a{2", "/[", r"/\1", "/a**", "/^(.*)$", r"\1", r'"\1"',
)  # fmt: skip
STRICTER_ERRORS = {
    "invalid host name", "invalid IP address", "invalid CIDR mask", "invalid regular expression", "file",
    'authentication method "ident"',
}  # fmt: skip
"""How the mistakes begin in what the server takes; each of them is told in docs/policy.md."""


def some_line(numbers, *columns):
    """One that is nearly right, or has no sense at all."""
    if numbers.random() < 0.4:
        return "".join(
            numbers.choice(PIECES) + numbers.choice(("", " ")) for _ in range(numbers.randint(1, 9))
        )
    words = [numbers.choice(PIECES if numbers.random() < 0.1 else column) for column in columns]
    line = numbers.choice(SEPARATORS).join(words)
    at = numbers.randrange(len(line) + 1)
    return line[:at] + (numbers.choice(PIECES) if numbers.random() < 0.3 else "") + line[at:]


def some_hba(numbers):
    columns = [("host", "hostssl"), ("all", "a,b", '"x y"'), ("all", "+s,/x", '"a"b')]
    addresses = ("all", "10.0.0.0/8", "::1/128", "samenet", "h.example", "10.0.0.0 255.0.0.0")
    columns += [addresses, ("trust", "reject", "md5", "cert", "scram-sha-256")]
    columns.append(
        ("", "", "# x", "map=m", "clientname=DN", "clientcert=verify-ca", "clientcert=verify-full")
    )
    return some_line(numbers, *columns)


def some_ident(numbers):
    return some_line(
        numbers, ("m", '"m x"', "m,n"), ("alice", "/^(.*)$", '"a b"'), ("bob", r"\1", "all", "+s")
    )


@pytest.mark.parametrize(
    ("name", "view", "columns", "made", "rows"),
    [
        ("pg_hba.conf", "pg_hba_file_rules", COLUMNS, some_hba, lambda *file: hba_rows(*file, tls=True)),
        ("pg_ident.conf", "pg_ident_file_mappings", IDENT_COLUMNS, some_ident, ident_rows),
    ],
    ids=["pg_hba.conf", "pg_ident.conf"],
)
def test_random_lines_are_read_as_by_the_server_or_refused(server, name, view, columns, made, rows):
    numbers = random.Random(SEED)
    content = "\n".join(made(numbers) for _ in range(LINES))
    theirs = by_place(by_the_server(server, name, content, columns, view))
    ours = by_place(map(plain, rows(str(server.data / name), content.encode(), InclusionReader())))
    assert len(theirs) > LINES // 2
    assert sum(row["error"] is None for row in ours.values()) > LINES // 8
    for place in ours | theirs:
        mine, row = ours.get(place), theirs.get(place)
        if mine is not None and mine["error"] is not None:
            if row is None or (row["error"] is None and not is_refused_silently(row)):
                assert any(map(mine["error"].startswith, STRICTER_ERRORS)), (row, mine)
        else:
            assert mine == row, place


def is_refused_silently(row):
    """A wrong value of `clientcert` or `clientname`, of which the server tells its log, and not the view."""
    return "type" in row and row["type"] is None


def by_place(rows):
    """By file and line, without what hangs on how many lines before it are right."""
    numbers = {"rule_number", "map_number"}
    return {
        (row["file_name"], row["line_number"]): {
            key: shown(value) for key, value in row.items() if key not in numbers
        }
        for row in rows
    }


def shown(value):
    if isinstance(value, list):
        return [printable(each) for each in value]
    return printable(value) if isinstance(value, str) else value
