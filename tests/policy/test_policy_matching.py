from dataclasses import replace
from ipaddress import ip_address, ip_interface

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgtlsproxy.identity import ClientAddress
from pgtlsproxy.policy.hba import HbaRule, Replication, parse_hba
from pgtlsproxy.policy.matching import Mismatch, Undecidable, first_match, mismatch, skipped
from pgtlsproxy.policy.pattern import Pattern
from pgtlsproxy.policy.request import AccessRequest, ClientHost, Fact, Facts, Needs, Unknown

UNIX = ClientAddress(None, None, is_local=True)
LOOPBACK = ClientAddress(ip_address("127.0.0.1"), 5000, is_local=True)
REMOTE = ClientAddress(ip_address("10.1.2.3"), 5000, is_local=False)
REMOTE_V6 = ClientAddress(ip_address("2001:db8::5"), 5000, is_local=False)

REQUEST = AccessRequest(user="alice", database="app", replication=Replication.NONE, address=REMOTE, tls=True)
NO_FACTS = Facts()
INTERFACES = Facts((ip_interface("10.1.2.3/16"),))


def client(address: str) -> ClientAddress:
    return ClientAddress(ip_address(address), 5000, is_local=False)


def rule(text: str) -> HbaRule:
    (parsed,) = parse_hba("hba", text.encode())
    return parsed


def field(text: str, request: AccessRequest, facts: Facts = NO_FACTS) -> str | None:
    """The column that does not match, None where all do."""
    found = mismatch(rule(text), request, facts)
    assert found is None or isinstance(found, Mismatch)
    return None if found is None else found.field


@pytest.mark.parametrize(
    ("kind", "address", "tls", "expected"),
    [
        ("local", UNIX, False, True),
        ("local", LOOPBACK, False, False),
        ("host", UNIX, False, False),
        ("host", REMOTE, True, True),
        ("host", REMOTE, False, True),
        ("hostssl", REMOTE, True, True),
        ("hostssl", REMOTE, False, False),
        ("hostssl", UNIX, True, False),
        ("hostnossl", REMOTE, False, True),
        ("hostnossl", REMOTE, True, False),
        ("hostnossl", UNIX, False, False),
    ],
)
def test_the_connection_type_decides_first(
    kind: str, address: ClientAddress, *, tls: bool, expected: bool
) -> None:
    text = f"{kind} all all {'' if kind == 'local' else 'all'} trust"
    found = field(text, replace(REQUEST, address=address, tls=tls))
    assert found == (None if expected else "type")


@pytest.mark.parametrize(
    ("databases", "database", "user", "replication", "expected"),
    [
        ("all", "app", "alice", Replication.NONE, True),
        ('"all"', "app", "alice", Replication.NONE, False),
        ('"all"', "all", "alice", Replication.NONE, True),
        ("app", "app", "alice", Replication.NONE, True),
        ("crm,app", "app", "alice", Replication.NONE, True),
        ("APP", "app", "alice", Replication.NONE, False),
        ("sameuser", "alice", "alice", Replication.NONE, True),
        ("sameuser", "app", "alice", Replication.NONE, False),
        ('"sameuser"', "sameuser", "alice", Replication.NONE, True),
        ("replication", "replication", "alice", Replication.NONE, False),
        ('"replication"', "replication", "alice", Replication.NONE, True),
        ("all", "app", "alice", Replication.LOGICAL, True),
        ("app", "app", "alice", Replication.LOGICAL, True),
        ("replication", "replication", "alice", Replication.LOGICAL, False),
        ("replication", "", "alice", Replication.PHYSICAL, True),
        ("all", "", "alice", Replication.PHYSICAL, False),
        ('"replication"', "replication", "alice", Replication.PHYSICAL, False),
        ("sameuser", "alice", "alice", Replication.PHYSICAL, False),
    ],
)
def test_a_database_matches_as_in_postgresql(
    databases: str, database: str, user: str, replication: Replication, *, expected: bool
) -> None:
    request = replace(REQUEST, database=database, user=user, replication=replication)
    assert field(f"host {databases} all all trust", request) == (None if expected else "database")


@pytest.mark.parametrize(
    ("users", "user", "expected"),
    [
        ("all", "alice", True),
        ("alice", "alice", True),
        ("bob,alice", "alice", True),
        ("alice", "ALICE", False),
        ("alice", "alice ", False),
        ('"all"', "alice", False),
        ('"+ops"', "+ops", True),
        ('"+ops"', "alice", False),
        ("sameuser", "alice", False),
    ],
)
def test_a_user_matches_as_in_postgresql(users: str, user: str, *, expected: bool) -> None:
    request = replace(REQUEST, user=user)
    assert field(f"host all {users} all trust", request) == (None if expected else "user")


@pytest.mark.parametrize(
    ("address", "client", "expected"),
    [
        ("10.0.0.0/8", REMOTE, True),
        ("10.2.0.0/16", REMOTE, False),
        ("all", REMOTE_V6, True),
        ("0.0.0.0/0", REMOTE_V6, False),
        ("::/0", REMOTE, False),
        ("samehost", REMOTE, True),
        ("samehost", LOOPBACK, False),
        ("samenet", REMOTE, True),
        ("samenet", REMOTE_V6, False),
    ],
)
def test_an_address_matches_as_in_postgresql(address: str, client: ClientAddress, *, expected: bool) -> None:
    request = replace(REQUEST, address=client)
    assert field(f"host all all {address} trust", request, INTERFACES) == (None if expected else "address")


@pytest.mark.parametrize("word", ["samehost", "samenet"])
def test_interfaces_are_asked_for_only_where_they_decide(word: str) -> None:
    assert mismatch(rule(f"host all all {word} trust"), REQUEST, NO_FACTS) == Needs(Fact.INTERFACES)
    assert field(f"host all bob {word} trust", REQUEST) == "user"
    rules = parse_hba("hba", f"host all bob all trust\nhost all all {word} trust".encode())
    assert first_match(rules, REQUEST, NO_FACTS) == Needs(Fact.INTERFACES)


def test_a_mismatch_says_what_was_found_and_wanted() -> None:
    request = replace(REQUEST, user="eve\x1b", database="crm")
    assert mismatch(rule('host app,"all" all all trust'), request, NO_FACTS) == Mismatch(
        "database", "crm", 'app,"all"'
    )
    assert mismatch(rule("host all alice all trust"), request, NO_FACTS) == Mismatch(
        "user", "eve\\x1b", "alice"
    )
    assert mismatch(rule("host all all ::1/128 trust"), request, NO_FACTS) == Mismatch(
        "address", "10.1.2.3", "::1/128"
    )
    assert mismatch(rule("local all all trust"), request, NO_FACTS) == Mismatch("type", "hostssl", "local")
    physical = replace(request, replication=Replication.PHYSICAL)
    assert mismatch(rule("host all all all trust"), physical, NO_FACTS) == Mismatch(
        "database", "replication connection", "all"
    )
    over_unix = replace(request, address=UNIX, tls=False)
    assert mismatch(rule("host all all all trust"), over_unix, NO_FACTS) == Mismatch("type", "local", "host")
    in_clear = replace(request, tls=False)
    assert mismatch(rule("hostssl all all all trust"), in_clear, NO_FACTS) == Mismatch(
        "type", "hostnossl", "hostssl"
    )


def test_the_first_line_that_applies_decides_and_the_others_can_be_told() -> None:
    rules = parse_hba(
        "hba", b"local all all trust\nhost all bob all trust\nhost all all all reject\nhost all all all trust"
    )
    found = first_match(rules, REQUEST, NO_FACTS)
    assert found is rules[2]
    told = skipped(rules, REQUEST, NO_FACTS, rules[2])
    assert [(skip.rule, skip.mismatch.field) for skip in told] == [(rules[0], "type"), (rules[1], "user")]


def test_no_line_is_no_decision() -> None:
    rules = parse_hba("hba", b"local all all trust")
    assert first_match(rules, REQUEST, NO_FACTS) is None
    assert len(list(skipped(rules, REQUEST, NO_FACTS, None))) == 1


ROLES = Facts(roles=frozenset({"alice", "staff"}))
NO_ROLES = Facts(roles=Unknown("no answer"))


@pytest.mark.parametrize(
    ("kind", "address", "tls", "expected"),
    [
        ("hostgssenc", REMOTE, True, False),
        ("hostgssenc", REMOTE, False, False),
        ("hostgssenc", UNIX, False, False),
        ("hostnogssenc", REMOTE, True, True),
        ("hostnogssenc", REMOTE, False, True),
        ("hostnogssenc", UNIX, False, False),
    ],
)
def test_nobody_comes_with_gssapi_encryption(
    kind: str, address: ClientAddress, *, tls: bool, expected: bool
) -> None:
    found = field(f"{kind} all all all trust", replace(REQUEST, address=address, tls=tls))
    assert found == (None if expected else "type")


@pytest.mark.parametrize(
    ("databases", "users", "expected"),
    [
        ("all", "+staff", None),
        ("all", "+alice", None),
        ("all", "+dba", "user"),
        ("all", "+", "user"),
        ("all", "bob,+staff", None),
        ("samerole", "all", "database"),
        ("samegroup", "all", "database"),
        ("samerole,app", "all", None),
        ('"samerole"', "all", "database"),
        ("/^a", "all", None),
        ("/p$", "/lic", None),
        ("/^ap$", "all", "database"),
        ('"/^(app|x,y)$"', "all", None),
        ("all", "/^ali", None),
        ("all", "/", None),
        ("all", "/^ALICE$", "user"),
    ],
)
def test_roles_and_expressions_match_as_in_postgresql(
    databases: str, users: str, expected: str | None
) -> None:
    assert field(f"host {databases} {users} all trust", REQUEST, ROLES) == expected


def test_samerole_is_for_the_databases_that_have_the_name_of_a_role_of_the_user() -> None:
    assert field("host samerole all all trust", replace(REQUEST, database="staff"), ROLES) is None
    assert field("host samegroup all all trust", replace(REQUEST, database="alice"), ROLES) is None
    physical = replace(REQUEST, database="staff", replication=Replication.PHYSICAL)
    assert field("host samerole all all trust", physical, ROLES) == "database"


def test_expressions_never_match_a_physical_walsender() -> None:
    physical = replace(REQUEST, database="replication", replication=Replication.PHYSICAL)
    assert field("host /^replication$ all all trust", physical) == "database"
    assert field("host replication /^ali all trust", physical) is None


def test_roles_are_asked_for_only_where_they_decide() -> None:
    assert mismatch(rule("host all +staff all trust"), REQUEST, NO_FACTS) == Needs(Fact.ROLES)
    assert mismatch(rule("host samerole all all trust"), REQUEST, NO_FACTS) == Needs(Fact.ROLES)
    assert field("host all alice,+staff all trust", REQUEST) is None
    assert field("host app,samerole all all trust", REQUEST) is None
    assert field("host crm +staff all trust", REQUEST) == "database"
    assert field("host all +staff 10.9.0.0/16 trust", REQUEST) == "address"
    assert mismatch(rule("host all +staff x.example trust"), REQUEST, NO_FACTS) == Needs(Fact.ROLES)
    assert mismatch(rule("host all +staff x.example trust"), REQUEST, ROLES) == Needs(Fact.CLIENT_HOST)
    unknown_but = Facts(roles=Unknown("no answer"), client_host=ClientHost("y.example", is_confirmed=True))
    assert field("host all +staff x.example trust", REQUEST, unknown_but) == "address"


def test_a_line_that_nobody_can_judge_is_not_passed_over() -> None:
    rules = parse_hba("hba", b"host all +staff all trust\nhost all all all trust")
    assert first_match(rules, REQUEST, NO_ROLES) == Undecidable(rules[0], "no answer")
    expression = parse_hba("hba", b"host all /^b all reject\nhost all all all trust")
    found = first_match(expression, replace(REQUEST, user="b\udcff"), NO_FACTS)
    assert isinstance(found, Undecidable)
    assert "is not UTF-8" in found.reason
    elsewhere = parse_hba("hba", b"host all /^x all reject\nhost all all all trust")
    assert isinstance(first_match(elsewhere, replace(REQUEST, user="b\udcff"), NO_FACTS), Undecidable)


@pytest.mark.parametrize(
    "columns", ["all /^alice", "all /^alice$", "/^app all", "/^app$ /^a", "all /^alicex*"]
)
def test_an_expression_that_begins_as_the_name_does_is_found_by_the_index(columns: str) -> None:
    rules = parse_hba("hba", f"host all /^bob all reject\nhost {columns} all trust".encode())
    assert first_match(rules, REQUEST, NO_FACTS) is rules[1]


@pytest.mark.parametrize(
    ("method", "client", "expected"),
    [
        ("trust", ClientHost("db.example.com", is_confirmed=True), True),
        ("trust", ClientHost("db.example.com", is_confirmed=False), False),
        ("trust", ClientHost("db.example.com", is_confirmed=Unknown("late")), False),
        ("trust", ClientHost("evil.example.net", is_confirmed=True), False),
        ("trust", ClientHost(None, is_confirmed=False), False),
        ("trust", Unknown("late"), False),
        ("reject", ClientHost("db.example.com", is_confirmed=True), True),
        ("reject", ClientHost("db.example.com", is_confirmed=False), False),
        ("reject", ClientHost("db.example.com", is_confirmed=Unknown("late")), Unknown("late")),
        ("reject", ClientHost("evil.example.net", is_confirmed=Unknown("late")), False),
        ("reject", ClientHost(None, is_confirmed=False), False),
        ("reject", Unknown("late"), Unknown("late")),
    ],
)
def test_a_host_name_matches_where_it_leads_back_to_the_client(
    method: str, client: ClientHost | Unknown, *, expected: bool | Unknown
) -> None:
    found = mismatch(rule(f"host all all .example.com {method}"), REQUEST, Facts(client_host=client))
    if isinstance(expected, Unknown):
        assert found == expected
    else:
        assert (found is None) is expected
        assert found is None or (isinstance(found, Mismatch) and found.field == "address")


TYPES = {
    "local": {"local"},
    "host": {"ssl", "clear"},
    "hostssl": {"ssl"},
    "hostnossl": {"clear"},
    "hostgssenc": set[str](),
    "hostnogssenc": {"ssl", "clear"},
}
DATABASES = [
    "all",
    "app",
    "alice",
    "sameuser",
    "samerole",
    "samegroup",
    "replication",
    '"all"',
    "/^a",
    '"/p$"',
]
USERS = [
    "all",
    "alice",
    "bob",
    '"all"',
    "+staff",
    "+alice",
    '"+staff"',
    "/^a.*e$",
    "/^alic$",
    "/^bo*",
    "/li.?ce",
    "/^.(o+|x)b$",
]
ADDRESSES = [
    "all",
    "10.0.0.0/8",
    "10.1.2.3/32",
    "10.1.2.4/31",
    "0.0.0.0/0",
    "2001:db8::/32",
    "::/0",
    "samenet",
]
NAMES = [".example.com", "db.example.com"]
LINES = st.tuples(
    st.sampled_from(sorted(TYPES)),
    st.lists(st.sampled_from(DATABASES), min_size=1, max_size=3),
    st.lists(st.sampled_from(USERS), min_size=1, max_size=2),
    st.sampled_from(ADDRESSES + NAMES),
    st.sampled_from(["trust", "reject"]),
)
Written = tuple[str, list[str], list[str], str, str]
REQUESTS = st.builds(
    AccessRequest,
    user=st.sampled_from(["alice", "bob", "all", "+staff", "bo\udcff"]),
    database=st.sampled_from(["app", "alice", "all", "replication", "staff"]),
    replication=st.sampled_from(list(Replication)),
    address=st.sampled_from([UNIX, REMOTE, REMOTE_V6]),
    tls=st.booleans(),
)
KNOWN = st.builds(
    Facts,
    st.just(INTERFACES.interfaces),
    st.sampled_from([frozenset({"alice"}), frozenset({"staff", "bob"})]),
    st.sampled_from([ClientHost("db.example.com", is_confirmed=True), ClientHost(None, is_confirmed=False)]),
)


def naive(line: Written, request: AccessRequest, facts: Facts) -> bool:
    """Whether a line applies, as somebody reads it who knows the manual."""
    kind, databases, users, address, _ = line
    user, database, roles = request.user, request.database, facts.roles
    assert isinstance(roles, frozenset)
    way = "local" if request.address.is_unix else "ssl" if request.tls else "clear"
    meanings = {
        "all": True, "sameuser": user == database, "samerole": database in roles, "samegroup": database in roles,
        "replication": False, '"all"': database == "all", "/^a": database.startswith("a"),
        '"/p$"': database.endswith("p"),
    }  # fmt: skip
    if request.replication is Replication.PHYSICAL:
        meanings = {**dict.fromkeys(DATABASES, False), "replication": True}
    people = {
        "all": True, '"all"': user == "all", "+staff": "staff" in roles, "+alice": "alice" in roles,
        '"+staff"': user == "+staff", "/^a.*e$": user == "alice", "/^alic$": False, "/^bo*": user == "bob",
        "/li.?ce": user == "alice", "/^.(o+|x)b$": user == "bob",
    }  # fmt: skip
    v4 = request.address is REMOTE
    named = facts.client_host == ClientHost("db.example.com", is_confirmed=True)
    within = {
        "all": True, "10.0.0.0/8": v4, "10.1.2.3/32": v4, "10.1.2.4/31": False, "0.0.0.0/0": v4, "samenet": v4,
        "2001:db8::/32": not v4, "::/0": not v4, ".example.com": named, "db.example.com": named,
    }  # fmt: skip
    return (
        way in TYPES[kind]
        and any(meanings.get(word, word == database) for word in databases)
        and any(people.get(word, word == user) for word in users)
        and (kind == "local" or within[address])
    )


def written(lines: list[Written]) -> bytes:
    return "\n".join(
        f"{kind} {','.join(databases)} {','.join(users)} {'' if kind == 'local' else address} {method}"
        for kind, databases, users, address, method in lines
    ).encode()


@given(
    lines=st.lists(LINES, min_size=1, max_size=8),
    request=REQUESTS.filter(lambda request: request.user.isascii()),
    facts=KNOWN,
)
@settings(max_examples=500)
def test_first_match_equals_a_naive_reading(
    lines: list[Written], request: AccessRequest, facts: Facts
) -> None:
    rules = parse_hba("hba", written(lines))
    expected = next((index for index, line in enumerate(lines) if naive(line, request, facts)), None)
    decided = None if expected is None else rules[expected]
    assert first_match(rules, request, facts) is decided
    told = [skip.rule for skip in skipped(rules, request, facts, decided)]
    assert told == list(rules[:expected])


@given(
    lines=st.lists(LINES, min_size=1, max_size=200),
    request=REQUESTS,
    facts=st.sampled_from([NO_FACTS, ROLES, NO_ROLES, Facts(client_host=Unknown("late"))]),
)
@settings(max_examples=100, deadline=None)
def test_the_index_leaves_out_no_line_that_may_apply(
    lines: list[Written], request: AccessRequest, facts: Facts
) -> None:
    rules = parse_hba("hba", written(lines))
    candidates = list(rules.candidates(request, facts))
    assert [one.ref.number for one in candidates] == sorted({one.ref.number for one in candidates})
    for one in rules:
        if not isinstance(mismatch(one, request, facts), Mismatch):
            assert one in candidates


def test_a_decision_looks_at_few_of_many_lines() -> None:
    lines = [f"host db{n} user{n} 10.{n >> 8 & 255}.{n & 255}.0/24 trust" for n in range(10_000)]
    rules = parse_hba("hba", "\n".join([*lines, "host all all 0.0.0.0/0 trust"]).encode())
    assert [one.ref.number for one in rules.candidates(REQUEST, NO_FACTS)] == [10_001]
    nearly_last = replace(REQUEST, user="user9999", database="db9999", address=client("10.39.15.1"))
    assert [one.ref.number for one in rules.candidates(nearly_last, NO_FACTS)] == [10_000, 10_001]


@pytest.mark.parametrize(
    "expression",
    [
        "/^user{n}$",
        "/user{n}x",
        "/^.*_team{n}$",
        "/^(a{n}|user{n})$",
        r'"/^.*@corp{n}\.example$"',
        "/^u.*-{n}$",
    ],
)
def test_of_many_expressions_few_are_tried(expression: str) -> None:
    def line(number: int) -> str:
        name = expression.replace("{n}", str(number))
        return f"host {name} all 0.0.0.0/0 trust\nhost all {name} 0.0.0.0/0 trust"

    rules = parse_hba("hba", "\n".join([*map(line, range(1000, 3000)), "host all all all trust"]).encode())
    asked = replace(REQUEST, user="somebody", database="something")
    assert [one.ref.number for one in rules.candidates(asked, NO_FACTS)] == [4001]
    for name in ("user2500", "user2500x", "x_team2500", "a2500", "x@corp2500.example", "ux-2500"):
        asked = replace(REQUEST, user=name, database="something")
        assert [one.ref.number for one in rules.candidates(asked, NO_FACTS)] in ([3002, 4001], [4001])
        first = first_match(rules, asked, NO_FACTS)
        assert isinstance(first, HbaRule)
        token = first.users[0]
        assert first.ref.number == 4001 or (isinstance(token, Pattern) and token.program.matches(name))
