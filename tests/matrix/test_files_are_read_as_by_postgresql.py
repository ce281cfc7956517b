"""pg_hba.conf and pg_ident.conf are read as the server reads them, or are refused when they are loaded."""

from __future__ import annotations

import json
import os
import pwd
from ipaddress import ip_address, ip_interface

import pytest

from fixtures import wire
from fixtures.wire import WireClient
from pgtlsproxy.errors import ConfigError
from pgtlsproxy.identity import ClientAddress
from pgtlsproxy.policy.access import AccessRequest
from pgtlsproxy.policy.addresses import AddressKeyword, HostName
from pgtlsproxy.policy.hba import HbaRule, Replication, parse_hba
from pgtlsproxy.policy.ident import IdentMatch, parse_ident
from pgtlsproxy.policy.matching import first_match
from pgtlsproxy.policy.request import Facts
from pgtlsproxy.policy.roles import parse_roles
from pgtlsproxy.proxy.client_hosts import find_host
from pgtlsproxy.proxy.rule_files import InclusionReader

ADMIN_LINE = "local all bootstrap trust"
"""What the tests' own questions come by."""

AS_THE_SERVER = r"""
local all all trust
local all all ident map=m
local all all peer map=m,map=n
host all all 10.0.0.0/8 reject
host all all 10.1.2.3/8 trust
host all all 10.1.2.3 255.255.0.0 trust
host all all 10.0.0.0/032 trust
host all all ::1/128 trust
host all all 2001:db8::5 ffff:ffff:: trust
host all all all trust
host all all samehost trust
host all all samenet trust
host all all "all" trust
host all all "samenet" trust
host all all ALL trust
host all all db.example.com trust
host all all .example.com trust
hostssl all all all cert
hostssl all all all cert map=m clientcert=verify-full
hostssl all all all cert clientname=DN
hostssl all all all scram-sha-256 clientcert=verify-ca
hostnossl all all all scram-sha-256
hostnogssenc all all all trust
hostgssenc all all all trust
host "all",all,sameuser,samerole,samegroup,replication all,+staff,"+staff" all trust
host /^a,"/b,c$" "/^(a|b)$",bob all trust
host a, b, c d all trust
host a ,b all trust
host "a b""c" "x#y" all trust # host all all
host a"b c"d all all trust
host "" all all trust
"local" all all trust
"host" all all "10.0.0.0/8" "trust"
"hostssl" all all all cert "map=a b"
host all all all trust clientcert
local all
local
local all all
host all all
host all all 10.0.0.1
host all all 10.0.0.1 255.0.0.0
host all all 10.0.0.0/8
host,local all all all trust
host all all 10.0.0.0/8,::1/128 trust
host all all 10.0.0.1 255.0.0.0,255.0.0.0 trust
host all all all trust,cert
tcp all all all trust
HOST all all all trust
host all all x/24 trust
host all all /24 trust
host all all 10.0.0.0/33 trust
host all all 10.0.0.0/ trust
host all all 10.0.0.0/8x trust
host all all 10.0.0.0/8/8 trust
host all all ::/129 trust
host all all 10.0.0.1 trust md5
host all all 10.0.0.1 ffff:: trust
host all all all magic
host all all all TRUST
host all all all peer
host all all all cert
local all all cert
hostnossl all all all cert
host /a( all all trust
host all "/[" all trust
host all all all trust x=y
host all all all trust MAP=y
host all all all trust scope=y
hostssl all all all trust map=m
hostssl all all all scram-sha-256 map=m
host all all all trust clientcert=verify-ca
host all all all trust clientname=CN
hostssl all all all trust clientcert=1
hostssl all all all trust clientcert=off
hostssl all all all cert clientname=cn
host all all all trust ldapserver=y
host all all all trust ldapurl=y
host all all all trust ldapsuffix=y
host all all all trust radiusservers=y
host all all all trust radiusports=y
host all all all trust pamservice=y
host all all all trust pam_use_hostname=y
host all all all trust krb_realm=y
host all all all trust include_realm=1
host all all all trust compat_realm=1
host all all all trust upn_username=1
host all all all md5 map=m
host all all all radius radiusservers=127.0.0.1
host all all all radius radiussecrets=x
host @missing all all trust
include missing
include_dir missing
include_if_exists missing
include all all
"""

STRICTER = {
    "host all all 10.1 255.0.0.0 trust": "four decimal numbers",
    "host all all 010.0.0.1/32 trust": "four decimal numbers",
    "host all all 1.2.3.400 trust": "four decimal numbers",
    "host all all fe80:::1 trust": "invalid IP address",
    "host all all fe80::1%lo/64 trust": "leave the zone out",
    "host all all ::ffff:10.0.0.1/128 trust": "would never match",
    "host all all 10.0.0.1 255.0.255.0 trust": "must stand together",
    'host all all "" trust': "invalid host name",
    'host all all "a b" trust': "invalid host name",
    "hostssl all all all cert map=": "is empty",
    "host all all all ident": "use peer",
    r"host all /^(a)\1$ all trust": "the escape",
    "host all /(?i)a all trust": "are not in this version",
    'local all "/***=a" trust': "is not in this version",
}
"""Lines that the server takes and this proxy refuses to load, and what it says."""


@pytest.fixture
def server(own_cluster):
    return own_cluster(17, hba="host all all 127.0.0.1/32 reject\n")


def asked(server, query):
    return json.loads(server.psql(f"SELECT json_agg(t ORDER BY t) FROM ({query}) t").stdout) or []


HBA_VIEW = (
    "SELECT line_number AS line, file_name AS file, type, database, user_name AS users, address, netmask, "
    "auth_method AS method, options, error FROM pg_hba_file_rules"
)


def by_the_server(server, content):
    """How the server reads a pg_hba.conf: its rows in their order."""
    server.write("pg_hba.conf", content)
    rows = asked(server, f"SELECT row_number() OVER () AS number, v.* FROM ({HBA_VIEW}) v")
    return [{**row, "file": os.path.relpath(row["file"], server.data)} for row in rows]


def by_us(line):
    """How we read a line: a rule, or what is wrong with it; None where it stands for nothing."""
    try:
        (rule,) = parse_hba("/nowhere/pg_hba.conf", f"{line}\n".encode(), InclusionReader())
    except ConfigError as error:
        (mistake,) = error.mistakes
        return mistake.what
    return rule


def is_same_address(rule, row):
    match rule.address:
        case None:
            return row["address"] is None
        case AddressKeyword() | HostName():
            return (row["address"], row["netmask"]) == (str(rule.address), None)
        case network:
            bits = int(ip_address(row["netmask"])).bit_count()
            return ip_interface(f"{row['address']}/{bits}").network == network


def assert_same(rule: HbaRule, row):
    assert row["error"] is None or "cannot match because" in row["error"]
    assert row["type"] == rule.type
    assert row["database"] == [token.text for token in rule.databases]
    assert row["users"] == [token.text for token in rule.users]
    assert is_same_address(rule, row)
    assert row["method"] == rule.method
    options = {"map": rule.map, "clientcert": None if rule.clientcert == "off" else str(rule.clientcert)}
    assert set(row["options"] or ()) == {f"{name}={value}" for name, value in options.items() if value}


def test_a_line_is_read_as_by_the_server(server):
    lines = AS_THE_SERVER.strip().split("\n")
    rows = {row["line"]: row for row in by_the_server(server, "\n".join(lines))}
    for number, line in enumerate(lines, 1):
        ours, row = by_us(line), rows.get(number)
        if row is None:
            assert ours.startswith("the file contains no entries"), line  # it stands for nothing
        elif isinstance(ours, HbaRule):
            assert_same(ours, row)
        elif "missing" in line:
            assert row["error"].startswith(f'could not open {"directory" if "_dir" in line else "file"} "'), (
                line
            )
            assert ours.startswith(row["error"][: row["error"].index('"')]), line
        elif "verify-full" in (row["error"] or ""):
            assert 'when using "cert" authentication' in ours  # the view words it otherwise than the log
        else:
            assert row["type"] is None, line
            assert ours.startswith(
                row["error"].split(": Name or")[0] if row["error"] else "invalid value for"
            ), line


OURS = (
    "hostssl all all all cert clientname=SAN_DNS",
    "hostssl all all all cert clientname=SAN_URI",
    "hostssl all all all scram-sha-256 clientcert=verify-full clientname=SAN_EMAIL",
    'hostssl all all all cert issuer="CN=ca"',
)


def test_a_server_that_gets_a_line_of_ours_says_that_it_does_not_know_it(server):
    for row in by_the_server(server, "\n".join(OURS)):
        assert row["type"] is None  # and an error in its log, of which the view has not every text
    assert all(isinstance(by_us(line), HbaRule) for line in OURS)


def test_what_the_server_takes_and_we_do_not_is_refused_with_a_reason(server):
    rows = by_the_server(server, "\n".join(STRICTER))
    assert [row["error"] for row in rows] == [None] * len(STRICTER)
    for line, reason in STRICTER.items():
        assert reason in by_us(line)


TREE = {
    "pg_hba.conf": [
        ADMIN_LINE,
        "include sub/../sub/a.conf",
        "include_dir d",
        "include_if_exists nowhere/at/all",
        "host @sub/names,last @sub/nested all trust",
        'local @"names with blanks" all trust',
        'local "@sub/names" all trust',
        "local \\",
        "  one \\",
        "all trust",
        "include sub/deep1",
        "local end all trust",
    ],
    "sub/a.conf": ["local a all trust", "include b.conf", "include_dir ../d"],
    "sub/b.conf": ["# nothing", "local b @names trust"],
    "sub/names": ["x y", '"all", z # w', "@more"],
    "sub/more": ["v"],
    "sub/nested": ["include names"],
    "names with blanks": ["q"],
    "d/10.conf": ["local ten all trust"],
    "d/9.conf": ["local nine all trust"],
    "d/Z.conf": ["local capital all trust"],
    "d/z.conf": ["local small all trust"],
    "d/.hidden.conf": ["broken"],
    "d/other": ["broken"],
    "d/x.conf.bak": ["broken"],
    **{f"sub/deep{n}": [f"include deep{n + 1}", f"local deep{n} all trust"] for n in range(1, 12)},
}


def written(server, tree):
    for name, lines in tree.items():
        path = server.data / name
        path.parent.mkdir(exist_ok=True)
        path.parent.chmod(0o755) if path.parent != server.data else None
        path.write_text("\n".join(lines))
        path.chmod(0o644)


def shown(reader, server, name="pg_hba.conf"):
    """(file, line, databases) of each of our rules, and `file:line` of each mistake."""
    path = str(server.data / name)
    content = (server.data / name).read_bytes()
    try:
        rules = parse_hba(path, content, reader)
    except ConfigError as error:
        return [(os.path.relpath(m.where, server.data), m.what) for m in error.mistakes]
    return [
        (
            os.path.relpath(rule.ref.file, server.data),
            rule.ref.number,
            [token.text for token in rule.databases],
        )
        for rule in rules
    ]


def test_inclusions_stand_where_the_server_has_them(server):
    tree = {**TREE, "sub/deep10": ["local deep10 all trust"]}
    written(server, tree)
    rows = by_the_server(server, "\n".join(tree["pg_hba.conf"]))
    assert [row["error"] for row in rows] == [None] * len(rows)
    assert shown(InclusionReader(), server) == [(row["file"], row["line"], row["database"]) for row in rows]


NOT_INCLUDED = (
    "include sub/deep1",
    "include missing",
    "include pg_hba.conf",
    "local @sub/missing all trust",
    "local @pg_hba.conf all trust",
    "local a,@sub/names/x all trust",
    "include_dir missing",
    "include_dir sub/names",
    'include_dir " "',
)


def test_what_cannot_be_included_is_a_mistake_where_the_server_has_it(server):
    written(server, TREE)
    for line in NOT_INCLUDED:
        rows = by_the_server(server, f"{ADMIN_LINE}\n{line}")
        wrong = [(f"{row['file']}:{row['line']}", row["error"]) for row in rows if row["error"]]
        ours = shown(InclusionReader(), server)
        assert [where for where, _ in ours] == [where for where, _ in wrong], line
        for (_, what), (_, error) in zip(ours, wrong, strict=True):
            found = what.removeprefix("@sub/missing: ").removeprefix("@pg_hba.conf: ")
            assert found.startswith(error.split('"')[0]) or "nesting depth exceeded" in found, line


def test_a_folder_in_the_place_of_a_file_is_no_empty_file(server):
    """The server logs that it cannot be read, and goes on without it."""
    written(server, TREE)
    assert [row["error"] for row in by_the_server(server, f"{ADMIN_LINE}\ninclude d")] == [None]
    ((where, what),) = shown(InclusionReader(), server)
    assert where == "pg_hba.conf:2"
    assert "is not a regular file" in what


def test_a_field_that_vanishes_in_the_server_is_a_mistake(server):
    """`@empty` as the only value shifts the columns there: here, the database would be a user's name."""
    written(server, {"empty": ["# nobody yet"]})
    (_, row) = by_the_server(server, f"{ADMIN_LINE}\nlocal @empty staff all trust")
    assert (row["database"], row["users"], row["error"]) == (["staff"], ["all"], None)
    (mistake,) = shown(InclusionReader(), server)
    assert "@empty holds no entries" in mistake[1]


IDENT_LINES = r"""
m alice bob
m alice bob extra fields, here
m /^(.*)@x\.com$ \1
m alice "all"
m alice +staff
m alice /^b
"m x" "a, b" bob
m "/^CN=a,O=b$" bob
include ident.d/more
m
m alice
m,n alice bob
m a,b bob
m a b,c
m /a( bob
m a /b(
"""


def test_a_map_is_read_as_by_the_server(server):
    lines = IDENT_LINES.strip().split("\n")
    written(server, {"ident.d/more": ["m included bob", "m /x( bob"]})
    server.write("pg_ident.conf", "\n".join(lines))
    query = "SELECT row_number() OVER () AS n, file_name AS f, line_number AS l, error AS e FROM pg_ident_file_mappings"
    expected = [
        (f"{os.path.relpath(row['f'], server.data)}:{row['l']}", row["e"])
        for row in asked(server, query)
        if row["e"]
    ]
    path = server.data / "pg_ident.conf"
    with pytest.raises(ConfigError) as caught:
        parse_ident(str(path), path.read_bytes(), InclusionReader())
    ours = [(os.path.relpath(m.where, server.data), m.what) for m in caught.value.mistakes]
    assert [where for where, _ in ours] == [where for where, _ in expected]
    assert all(what.startswith(error) for (_, what), (_, error) in zip(ours, expected, strict=True))


# --- Who matches ----------------------------------------------------------------------------------------


MEMBERS = {"staff": ["dba", "carol"], "dba": ["alice"], "crew": ["bob"]}
ROLES_FILE = "".join(f"{role} {' '.join(members)}\n" for role, members in MEMBERS.items()).encode()

COLUMNS = """
all all
app alice
"all" all
all "all"
sameuser all
"sameuser" all
samerole all
samegroup,app all
"samerole" all
replication all
"replication" all
/^a all
/p$ all
"/^(app|x,y)$" all
/A all
all /^al
all /li
all "/^(alice|bob)$"
all /^$
all /
all +staff
all +dba
all +alice
all +nobody
all "+staff"
all +crew,alice
all +
staff,/^cr +dba,+crew
all ALICE
""".strip().split("\n")

REQUESTS = [
    *(
        (user, database, Replication.NONE)
        for user in ("alice", "bob", "postgres")
        for database in ("app", "alice", "staff")
    ),
    ("bob", "bob", Replication.NONE),
    ("bob", "crew", Replication.NONE),
    ("alice", "replication", Replication.NONE),
    ("alice", "app", Replication.LOGICAL),
    ("alice", "", Replication.PHYSICAL),
    ("bob", "", Replication.PHYSICAL),
]


@pytest.fixture
def matching(own_cluster):
    cluster = own_cluster(17, hba="")
    for role in (*MEMBERS, "carol"):
        cluster.psql(f"CREATE ROLE {role}")
    for role, members in MEMBERS.items():
        for member in members:
            cluster.psql(f"GRANT {role} TO {member}")
    cluster.psql("ALTER ROLE alice REPLICATION; ALTER ROLE bob REPLICATION")
    return cluster


def is_let_in(address, user, database, replication):
    """Whether a line of the server's pg_hba.conf applied; what comes behind that is not asked."""
    words = {
        Replication.NONE: {},
        Replication.LOGICAL: {"replication": "database"},
        Replication.PHYSICAL: {"replication": "true"},
    }[replication]
    with WireClient(address) as client:
        client.send(wire.startup(user=user, database=database or user, **words))
        message = client.read_message()
        if message.kind == b"E":
            assert message.fields["C"] in {"28000", "3D000"}, message.fields
            return message.fields["C"] == "3D000"
        return True


def test_the_same_clients_match_a_line_as_at_the_server(matching):
    roles = parse_roles("roles", ROLES_FILE)
    for columns in COLUMNS:
        line = f"host {columns} 127.0.0.1/32 trust"
        matching.write("pg_hba.conf", f"{ADMIN_LINE}\n{line}\n")
        matching.reload()
        rules = parse_hba("hba", line.encode())
        for user, database, replication in REQUESTS:
            found = first_match(rules, request(user, database, replication), Facts(roles=roles.of(user)))
            expected = is_let_in(("127.0.0.1", matching.port), user, database, replication)
            assert (found is not None) is expected, (line, user, database, replication)


def request(user, database, replication=Replication.NONE):
    address = ClientAddress(ip_address("127.0.0.1"), 1, is_local=True)
    return AccessRequest(user=user, database=database, replication=replication, address=address, tls=False)


ADDRESSES = """
host all
host 127.0.0.1/32
host 127.0.0.0 255.0.0.0
host 10.0.0.0/8
host ::1/128
host samehost
host localhost
host LOCALHOST
host .host
host db.example.com
hostnossl all
hostssl all
hostgssenc all
hostnogssenc all
""".strip().split("\n")


def test_the_same_addresses_match_as_at_the_server(matching):
    facts = Facts((ip_interface("127.0.0.1/8"),), client_host=find_host(ip_address("127.0.0.1")))
    for kind, _, address in (line.partition(" ") for line in ADDRESSES):
        line = f"{kind} all all {address} trust"
        matching.write("pg_hba.conf", f"{ADMIN_LINE}\n{line}\n")
        matching.reload()
        found = first_match(parse_hba("hba", line.encode()), request("alice", "app"), facts)
        expected = is_let_in(("127.0.0.1", matching.port), "alice", "app", Replication.NONE)
        assert (found is not None) is expected, line


MAPS = (
    "m {me} alice",
    "m {me} all",
    'm {me} "all"',
    "m {me} +staff",
    "m {me} +crew",
    'm {me} "+staff"',
    "m {me} /^ali",
    'm {me} "/^(bob|carol)$"',
    "m /^{me}$ +dba",
    "m /^(.*)$ /^al",
    "m nobody alice",
    "n {me} alice",
    "m NOBODY all\nm /. alice",
)


def test_the_same_users_are_mapped_as_at_the_server(matching):
    me = pwd.getpwuid(os.geteuid()).pw_name
    roles = parse_roles("roles", ROLES_FILE)
    matching.write("pg_hba.conf", f"{ADMIN_LINE}\nlocal all all peer map=m\n")
    for lines in MAPS:
        content = lines.format(me=me)
        matching.write("pg_ident.conf", content)
        matching.reload()
        maps = parse_ident("ident", content.encode())
        for user in ("alice", "bob", "postgres"):
            found = isinstance(maps.find("m", user, me, roles.of(user)), IdentMatch)
            path = f"{matching.socket_dir}/.s.PGSQL.{matching.port}"
            assert found is is_let_in(path, user, "app", Replication.NONE), (lines, user)
