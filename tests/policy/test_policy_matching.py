from dataclasses import replace
from ipaddress import ip_address, ip_interface

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgtlsproxy.identity import ClientAddress
from pgtlsproxy.policy.hba import HbaRule, Replication, parse_hba
from pgtlsproxy.policy.matching import Mismatch, first_match, mismatch
from pgtlsproxy.policy.request import AccessRequest, Fact, Facts, Needs

UNIX = ClientAddress(None, None, is_local=True)
LOOPBACK = ClientAddress(ip_address("127.0.0.1"), 5000, is_local=True)
REMOTE = ClientAddress(ip_address("10.1.2.3"), 5000, is_local=False)
REMOTE_V6 = ClientAddress(ip_address("2001:db8::5"), 5000, is_local=False)

REQUEST = AccessRequest(user="alice", database="app", replication=Replication.NONE, address=REMOTE, tls=True)
NO_FACTS = Facts()
INTERFACES = Facts((ip_interface("10.1.2.3/16"),))


def rule(text: str) -> HbaRule:
    (parsed,) = parse_hba("hba", text.encode())
    return parsed


def field(text: str, request: AccessRequest, facts: Facts = NO_FACTS) -> str | None:
    """The column that does not match, None where all do."""
    found = mismatch(rule(text), request, facts)
    assert not isinstance(found, Needs)
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
    found, skipped = first_match(rules, REQUEST, NO_FACTS)
    assert found == Needs(Fact.INTERFACES)
    assert len(skipped) == 1


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


def test_the_first_line_that_applies_decides_and_the_others_are_named() -> None:
    rules = parse_hba(
        "hba", b"local all all trust\nhost all bob all trust\nhost all all all reject\nhost all all all trust"
    )
    found, skipped = first_match(rules, REQUEST, NO_FACTS)
    assert found is rules[2]
    assert [(skip.rule, skip.mismatch.field) for skip in skipped] == [(rules[0], "type"), (rules[1], "user")]


def test_no_line_is_no_decision() -> None:
    found, skipped = first_match(parse_hba("hba", b"local all all trust"), REQUEST, NO_FACTS)
    assert found is None
    assert len(skipped) == 1


TYPES = {"local": {"local"}, "host": {"ssl", "clear"}, "hostssl": {"ssl"}, "hostnossl": {"clear"}}
LINES = st.tuples(
    st.sampled_from(sorted(TYPES)),
    st.lists(
        st.sampled_from(["all", "app", "alice", "sameuser", "replication", '"all"']), min_size=1, max_size=3
    ),
    st.lists(st.sampled_from(["all", "alice", "bob", '"all"']), min_size=1, max_size=2),
    st.sampled_from(["all", "10.0.0.0/8", "10.1.2.3/32", "2001:db8::/32"]),
)


@given(
    lines=st.lists(LINES, min_size=1, max_size=6),
    user=st.sampled_from(["alice", "bob", "all"]),
    database=st.sampled_from(["app", "alice", "all", "replication"]),
    replication=st.sampled_from(list(Replication)),
    way=st.sampled_from(["local", "ssl", "clear"]),
    remote=st.sampled_from([REMOTE, REMOTE_V6]),
)
@settings(max_examples=200)
def test_first_match_equals_a_naive_reading(
    *,
    lines: list[tuple[str, list[str], list[str], str]],
    user: str,
    database: str,
    replication: Replication,
    way: str,
    remote: ClientAddress,
) -> None:
    text = "\n".join(
        f"{kind} {','.join(databases)} {','.join(users)} {'' if kind == 'local' else address} trust"
        for kind, databases, users, address in lines
    )
    address_of = UNIX if way == "local" else remote
    request = AccessRequest(
        user=user, database=database, replication=replication, address=address_of, tls=way == "ssl"
    )
    meanings = {"all": True, "sameuser": user == database, f'"{database}"': True, database: True}
    meanings["replication"] = False
    if replication is Replication.PHYSICAL:
        meanings = {"replication": True}
    within = {"all": True, "10.0.0.0/8": remote is REMOTE, "10.1.2.3/32": remote is REMOTE}

    def applies(kind: str, databases: list[str], users: list[str], address: str) -> bool:
        return (
            way in TYPES[kind]
            and any(meanings.get(word, False) for word in databases)
            and any(word in {"all", user, f'"{user}"'} for word in users)
            and (kind == "local" or within.get(address, remote is REMOTE_V6))
        )

    expected = next((number for number, line in enumerate(lines, 1) if applies(*line)), None)
    found, skipped = first_match(parse_hba("hba", text.encode()), request, NO_FACTS)
    assert not isinstance(found, Needs)
    assert (None if found is None else found.ref.number) == expected
    assert len(skipped) == (len(lines) if expected is None else expected - 1)
