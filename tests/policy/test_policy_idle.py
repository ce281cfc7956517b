"""A line is called idle only where it certainly never decides."""

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgtlsproxy.identity import ClientAddress
from pgtlsproxy.policy.hba import HbaRules, Replication, parse_hba
from pgtlsproxy.policy.idle import MAX_COMPARED, Door, Idle, idle_lines
from pgtlsproxy.policy.matching import Undecidable, first_match
from pgtlsproxy.policy.request import AccessRequest, ClientHost, Facts, Unknown

LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
OPEN = Door(unix=True, tls=True, versions=frozenset({4, 6}), clear_from=LOOPBACK)


def idle(text: str, door: Door = OPEN) -> list[Idle]:
    return list(idle_lines(parse_hba("hba", text.encode()), "central", door))


def is_shadowed(earlier: str, later: str) -> bool:
    found = [one for one in idle(f"{earlier} trust\n{later} trust") if one.rule.ref.number == 2]
    assert all("hba:1 comes first" in str(one.why) for one in found)
    return bool(found)


COVERED = [
    ("host all all all", "host all all all"),
    ("host all all all", "hostssl app alice 10.0.0.0/8"),
    ("host all all all", "hostnossl app alice 127.0.0.1/32"),
    ("host all all all", "hostnogssenc app alice samenet"),
    ("host all all all", "host /^a /^b .example.com"),
    ("host all all all", "host sameuser,samerole +staff samehost"),
    ("hostnogssenc all all all", "host app alice all"),
    ("local all all", "local app alice"),
    ("host app,crm alice,bob all", "host app bob all"),
    ("host all all 10.0.0.0/8", "host all all 10.1.0.0/16"),
    ("host all all ::/0", "host all all 2001:db8::/32"),
    ("host all all samenet", "host all all samehost"),
    ("host all all .example.com", "host all all .EXAMPLE.com"),
    ("host /^app /^al all", "host app1,/^app alice,/^al all"),
    ("host samegroup +staff all", "host samerole +staff all"),
    ("host replication all all", "host replication bob all"),
    ("host all,replication all all", "host all,replication bob all"),
    ('host all "all" all', 'host all "all" all'),
    ("hostssl all all all", "hostssl all all all"),
    ("hostssl all all 10.0.0.0/8", "host all all 10.0.0.0/8"),  # clear text from there starts no session
]

NOT_COVERED = [
    ("host all all 10.0.0.0/8", "host all all all"),
    ("host all all 10.1.0.0/16", "host all all 10.0.0.0/8"),
    ("host all all 10.0.0.0/16", "host all all 10.0.0.0/8"),
    ("host all all 2001:db8::/48", "host all all 2001:db8::/32"),
    ("host all all 0.0.0.0/0", "host all all ::/0"),
    ("host all all samehost", "host all all samenet"),
    ("host all all samenet", "host all all 10.0.0.0/8"),
    ("host all all .example.com", "host all all db.example.com"),
    ("hostssl all all all", "host all all all"),
    ("hostnossl all all all", "host all all all"),
    ("hostssl all all 127.0.0.1/32", "host all all 127.0.0.1/32"),
    ("host all all all", "local all all"),
    ("local all all", "host all all all"),
    ("host all all all", "host replication all all"),
    ("host all all all", "host all,replication all all"),
    ("host replication all all", "host all all all"),
    ('host "replication" all all', "host replication all all"),
    ("host app all all", "host app,crm all all"),
    ("host all alice all", "host all alice,bob all"),
    ('host all "all" all', "host all all all"),
    ("host all all all", 'host "replication",replication all all'),
    ("host sameuser all all", "host alice alice all"),
    ("host samerole all all", "host sameuser all all"),
    ("host all +staff all", "host all alice all"),
    ('host all "+staff" all', "host all +staff all"),
    ("host all /^al all", "host all bob,alice all"),
    ("host all /^a all", "host all /^al all"),
    ("host all alice all", "host all /^alice$ all"),
    ("hostgssenc all all all", "host all all all"),
]


@pytest.mark.parametrize(("earlier", "later"), COVERED)
def test_a_line_behind_one_that_takes_everybody_is_idle(earlier: str, later: str) -> None:
    assert is_shadowed(earlier, later)


@pytest.mark.parametrize(("earlier", "later"), NOT_COVERED)
def test_a_line_that_may_decide_is_not(earlier: str, later: str) -> None:
    assert not is_shadowed(earlier, later)


def test_the_method_matters_for_a_name_that_cannot_be_looked_up() -> None:
    """There a `reject` line ends the session, and any other is passed over."""
    assert len(idle("host all all .x.com trust\nhost all all .x.com reject")) == 0
    assert len(idle("host all all .x.com reject\nhost all all .x.com trust")) == 1
    assert len(idle("host all all .x.com reject\nhost all all .x.com reject")) == 1


DOORS = {
    "unix": replace(OPEN, tls=False, versions=frozenset(), clear_from=()),
    "tls": replace(OPEN, unix=False),
    "v4": replace(OPEN, unix=False, versions=frozenset({4}), clear_from=LOOPBACK[:1]),
    "afar": replace(OPEN, unix=False, clear_from=()),
    "clear": replace(OPEN, unix=False, tls=False),
    "listed": replace(OPEN, unix=False, tls=False, clear_from=(ip_network("10.0.0.0/8"),)),
}


@pytest.mark.parametrize(
    ("door", "line", "text"),
    [
        ("unix", "local all all", None),
        ("unix", "host all all all", "has Unix sockets only"),
        ("unix", "hostssl all all all", "has Unix sockets only"),
        ("tls", "local all all", "has no Unix socket"),
        ("tls", "hostssl all all all", None),
        ("v4", "hostssl all all 2001:db8::/32", "listens on no IPv6 address"),
        ("v4", "hostssl all all 10.0.0.0/8", None),
        ("v4", "hostssl all all all", None),
        (
            "afar",
            "hostnossl all all all",
            "in clear text from this host and from plaintext_from only, and all",
        ),
        ("afar", "host all all all", None),
        ("tls", "hostnossl all all 10.0.0.0/8", "and 10.0.0.0/8 has none of these"),
        ("tls", "hostnossl all all 127.0.0.1/32", None),
        ("tls", "hostnossl all all 0.0.0.0/0", None),
        ("tls", "hostnossl all all .example.com", None),
        ("clear", "host all all 10.0.0.0/8", "has none of these"),
        ("listed", "host all all 10.1.0.0/16", None),
        ("listed", "host all all 127.0.0.1/32", "has none of these"),
    ],
)
def test_a_line_to_which_nobody_can_come_is_idle(door: str, line: str, text: str | None) -> None:
    found = idle(f"{line} trust", DOORS[door])
    assert [text is not None and text in str(one.why) for one in found] == [True] * (text is not None)
    assert all("listener central" in str(one.why) for one in found)


def test_what_the_loader_warns_of_is_not_told_twice() -> None:
    found = idle("hostssl all all all trust\nhostgssenc all all all trust", DOORS["clear"])
    assert [one.why for one in found] == [None, None]


def test_a_large_file_is_judged_in_time() -> None:
    dots = ["." * number for number in range(20)]
    lines = [f"host all /[x]{one}[y]{two}$ all trust" for one in dots for two in dots]
    assert len(lines) > MAX_COMPARED
    lines += ["host all all all trust", "host app bob all trust"]
    assert [one.rule.ref.number for one in idle("\n".join(lines))] == []
    lines = [f"host all /user{number}$ all trust" for number in range(MAX_COMPARED * 4)]
    lines += ["host all all all trust", "host app bob all trust"]
    assert [one.rule.ref.number for one in idle("\n".join(lines))] == [MAX_COMPARED * 4 + 2]
    lines = [f"host db{number} user{number} all trust" for number in range(5000)]
    lines += ["host all all all trust", "host app bob all trust"]
    assert [one.rule.ref.number for one in idle("\n".join(lines))] == [5002]


# --- Soundness ------------------------------------------------------------------------------------------

DATABASES = [
    "all",
    "app",
    "alice",
    "sameuser",
    "samerole",
    "replication",
    '"all"',
    "/^a",
    "/p$",
    '"replication"',
]
USERS = [
    "all",
    "alice",
    "bob",
    '"all"',
    "+staff",
    '"+staff"',
    "/^a",
    "/b$",
    "/^a.*ce$",
    "/^(bo|.*x)b$",
    "/[ab]",
]
ADDRESSES = ["all", "10.0.0.0/8", "10.1.2.3/32", "127.0.0.1/32", "0.0.0.0/0", "2001:db8::/32", "::/0"]
ADDRESSES += ["samenet", "samehost", ".example.com", "db.example.com"]
LINES = st.builds(
    lambda kind, databases, users, address, method: (
        f"{kind} {','.join(databases)} {','.join(users)} {'' if kind == 'local' else address} {method}"
    ),
    st.sampled_from(["local", "host", "host", "hostssl", "hostnossl", "hostnogssenc", "hostgssenc"]),
    st.lists(st.sampled_from(DATABASES), min_size=1, max_size=3),
    st.lists(st.sampled_from(USERS), min_size=1, max_size=2),
    st.sampled_from(ADDRESSES),
    st.sampled_from(["trust", "reject"]),
)
FILES = st.lists(LINES, min_size=1, max_size=6)
CLIENTS = ["10.1.2.3", "10.9.9.9", "127.0.0.1", "192.0.2.1", "2001:db8::5", "::1"]
REQUESTS = st.builds(
    AccessRequest,
    user=st.sampled_from(["alice", "bob", "all", "+staff", "zb", "bo\udcff"]),
    database=st.sampled_from(["app", "alice", "all", "replication", "staff", "ap\udcff"]),
    replication=st.sampled_from(list(Replication)),
    address=st.sampled_from(
        [
            ClientAddress(None, None, is_local=True),
            *(ClientAddress(ip_address(text), None, is_local=False) for text in CLIENTS),
        ]
    ),
    tls=st.booleans(),
)
FACTS = st.builds(
    Facts,
    st.just((ip_interface("10.1.2.3/16"), ip_interface("127.0.0.1/8"))),
    st.sampled_from([frozenset({"alice", "staff"}), frozenset({"bob"}), Unknown("nobody answers")]),
    st.sampled_from(
        [
            ClientHost("db.example.com", is_confirmed=True),
            ClientHost(None, is_confirmed=False),
            Unknown("late"),
        ]
    ),
)


def comes(request: AccessRequest, door: Door) -> bool:
    """Whether such a client can come to a listener."""
    ip = request.address.ip
    if ip is None:
        return door.unix and not request.tls
    if ip.version not in door.versions:
        return False
    return door.tls if request.tls else any(ip in network for network in door.clear_from)


@given(FILES, st.sampled_from([OPEN, *DOORS.values()]), st.lists(REQUESTS, min_size=20, max_size=20), FACTS)
@settings(max_examples=400, deadline=None)
def test_an_idle_line_decides_about_nobody(
    lines: list[str], door: Door, requests: list[AccessRequest], facts: Facts
) -> None:
    rules: HbaRules = parse_hba("hba", "\n".join(lines).encode())
    found = {one.rule.ref.number for one in idle_lines(rules, "central", door)}
    for request in requests:
        if not comes(request, door):
            continue
        decided = first_match(rules, request, facts)
        rule = decided.rule if isinstance(decided, Undecidable) else decided
        assert rule is None or rule.ref.number not in found  # type: ignore[union-attr]


@given(FILES, FILES)
@settings(max_examples=200, deadline=None)
def test_the_index_hides_no_line_that_covers(first: list[str], second: list[str]) -> None:
    """A copy of every line, behind all of them, is idle."""
    rules = parse_hba("hba", "\n".join([*first, *second, *first]).encode())
    found = {one.rule.ref.number for one in idle_lines(rules, "central", OPEN)}
    behind = len(first) + len(second)
    assert found.issuperset(range(behind + 1, behind + len(first) + 1))
