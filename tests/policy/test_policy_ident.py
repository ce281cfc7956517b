import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgtlsproxy.errors import ConfigError
from pgtlsproxy.identity import decode_name
from pgtlsproxy.policy.ident import IdentMaps, IdentMatch, parse_ident
from pgtlsproxy.policy.inclusion import Unreadable
from pgtlsproxy.policy.records import LineRef
from pgtlsproxy.policy.request import Fact, Needs, Unknown


def maps(text: str) -> IdentMaps:
    return parse_ident("ident", text.encode())


def mistakes(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        maps(text)
    return [str(mistake) for mistake in caught.value.mistakes]


def test_the_lines_of_the_handbook_load_and_map() -> None:
    loaded = maps("cert_map myuser myuser\ncert_map admin_cert admin\ncert_map /^(.*)@example\\.com$ \\1\n")
    assert loaded.names == {"cert_map"}
    match = loaded.find("cert_map", "alice", "alice@example.com")
    assert isinstance(match, IdentMatch)
    assert str(match.ref) == "ident:3"
    assert loaded.find("cert_map", "admin", "admin_cert") is not None
    assert loaded.find("cert_map", "bob", "alice@example.com") is None
    assert loaded.find("cert_map", "alice", "alice@exampleXcom") is None


# The cases of PostgreSQL's own src/test/authentication/t/003_peer.pl that this version has, and some more.
@pytest.mark.parametrize(
    ("line", "user", "authenticated", "expected"),
    [
        ("m alice bob", "bob", "alice", True),
        ("m alice bob", "alice", "alice", False),
        ("m alice bob", "bob", "ALICE", False),
        ("m alice bob", "BOB", "alice", False),
        ("other alice bob", "bob", "alice", False),
        ("m alice all", "anybody", "alice", True),
        ('m alice "all"', "anybody", "alice", False),
        ('m alice "all"', "all", "alice", True),
        ("m all bob", "bob", "alice", False),
        ("m all bob", "bob", "all", True),
        ("m /^.*ice$ bob", "bob", "alice", True),
        ("m /lic bob", "bob", "alice", True),
        ('m "/^ali.*$" bob', "bob", "alice", True),
        ("m /^doesnotmatch$ bob", "bob", "alice", False),
        ("m /^.*ice$ all", "anybody", "alice", True),
        (r"m /^ali(.*)$ test\1", "testce", "alice", True),
        (r'm /^ali(.*)$ "test\1"', "testce", "alice", True),
        (r"m /^ali(.*)$ test\1", "testali", "alice", False),
        (r"m /^(.*)$ \1\1", "aa", "a", False),
        (r"m /^(.*)$ \1\1", "a\\1", "a", True),
        (r"m /^(.*)$ \1", "all", "all", True),
        (r"m /^(.*)$ \1", "anybody", "all", False),
        (r"m alice \1", "\\1", "alice", True),
        (r"m alice \1", "alice", "alice", False),
        ("m alice bob extra fields, many", "bob", "alice", True),
        ('m "CN=alice,O=Lab" bob', "bob", "CN=alice,O=Lab", True),
        ('m "/^CN=.*,O=Lab$" bob', "bob", "CN=alice,O=Lab", True),
        ('m alice "+group"', "+group", "alice", True),
        ("m alice +staff", "bob", "alice", True),
        ("m alice +bob", "bob", "alice", True),
        ("m alice +dba", "bob", "alice", False),
        ("m /^ali +staff", "bob", "alice", True),
        (r"m /^ali(.*)$ +\1", "bob", "alice", False),
        ("m alice /^b", "bob", "alice", True),
        ('m alice "/^b"', "bob", "alice", True),
        ("m alice /^c", "bob", "alice", False),
        ("m /^ali /ob$", "bob", "alice", True),
    ],
)
def test_a_line_maps_as_in_postgresql(line: str, user: str, authenticated: str, *, expected: bool) -> None:
    match = maps(line).find("m", user, authenticated, frozenset({user, "staff"}))
    assert isinstance(match, IdentMatch) is expected


@pytest.mark.parametrize(
    ("line", "literal"),
    [
        ("m alice bob", True),
        ("m /^a bob", True),
        ("m alice all", False),
        (r"m /^(.*)x?$ \1", False),
        (r'm /^ali(.*)$ "bob\1"', False),
        ("m alice +bob", False),
        ("m alice /bob", False),
    ],
)
def test_a_match_knows_whether_the_user_was_named(line: str, *, literal: bool) -> None:
    user = {r"m /^(.*)x?$ \1": "alice", r'm /^ali(.*)$ "bob\1"': "bobce"}.get(line, "bob")
    match = maps(line).find("m", user, "alice", frozenset({"bob"}))
    assert isinstance(match, IdentMatch)
    assert match.is_literal is literal


def test_the_first_line_that_fits_is_the_one_reported() -> None:
    match = maps("m bob bob\nm /. all\nm alice bob\n").find("m", "bob", "alice")
    assert isinstance(match, IdentMatch)
    assert match.ref == LineRef("ident", 2, "m /. all")


def test_the_first_line_that_fits_decides_among_literals_and_expressions() -> None:
    lines = [
        "m /^x bob",
        "m alice carol",
        "n alice bob",
        "m alice bob",
        "m /lic bob",
        "m alice all",
        "m alice bob",
    ]
    for first in range(3, 7):
        match = maps("\n".join(["# a comment", *lines[:3], *lines[first:]])).find("m", "bob", "alice")
        assert isinstance(match, IdentMatch)
        assert match.ref == LineRef("ident", 5, lines[first])


def test_roles_are_asked_for_only_where_they_decide() -> None:
    loaded = maps("m alice bob\nm alice +staff\nm alice carol\n")
    assert loaded.roles == {"staff": LineRef("ident", 2, "m alice +staff")}
    assert isinstance(loaded.find("m", "bob", "alice"), IdentMatch)
    assert loaded.find("m", "carol", "alice") == Needs(Fact.ROLES)
    assert loaded.find("m", "carol", "dave") is None
    assert loaded.find("m", "carol", "alice", Unknown("no answer")) == Unknown("no answer")
    match = loaded.find("m", "carol", "alice", frozenset({"carol"}))
    assert isinstance(match, IdentMatch)
    assert match.ref.number == 3


class OneFile:
    """A folder with one file in it."""

    def file(self, path: str) -> bytes | Unreadable:
        return b'"a b"' if path == "/etc/name" else b"m carol carol\n"

    def folder(self, path: str) -> tuple[str, ...] | Unreadable:
        return (path,)


def test_values_and_lines_of_other_files_map_and_are_named_where_they_stand() -> None:
    loaded = parse_ident("/etc/ident", b"m @name bob\ninclude more\nm mail@x dave\n", OneFile())
    for authenticated, user, ref in (
        ("a b", "bob", LineRef("/etc/ident", 1, "m @name bob")),
        ("carol", "carol", LineRef("/etc/more", 1, "m carol carol")),
        ("mail@x", "dave", LineRef("/etc/ident", 3, "m mail@x dave")),
    ):
        match = loaded.find("m", user, authenticated)
        assert isinstance(match, IdentMatch)
        assert match.ref == ref
        assert loaded.find("m", user, "@name") is None


def test_many_lines_of_literals_take_little_more_room_than_their_text() -> None:
    content = "".join(f'people "CN=user{n},O=Lab" user{n}\n' for n in range(20_000)).encode()
    tracemalloc.start()
    try:
        loaded = parse_ident("ident", content)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < 3 * len(content)
    assert isinstance(loaded.find("people", "user19999", "CN=user19999,O=Lab"), IdentMatch)
    assert loaded.find("people", "user1", "CN=user19999,O=Lab") is None


@pytest.mark.parametrize(
    ("line", "user", "authenticated"),
    [
        ("m alice{n} user{n}", "user2500", "alice2500"),
        ("m pooler user{n}", "user2500", "pooler"),
        ("m alice{n} all", "user2500", "alice2500"),
        ("m alice{n} /^user", "user2500", "alice2500"),
        ("m /^alice{n}$ user{n}", "user2500", "alice2500"),
        ("m /^alice{n}$ all", "user2500", "alice2500"),
        ("m /.*@corp$ user{n}", "user2500", "x@corp"),
        (r'm "/^CN=(.*),O=team{n}$" \1', "user2500", "CN=user2500,O=team2500"),
        (r"m /^(.*)-{n}$ user\1", "user2500", "2500-2500"),
        ('m "/^CN=[^,]*,OU=(a|b)x{n}$" +staff', "user2500", "CN=z,OU=bx2500"),
    ],
)
def test_of_many_lines_few_are_looked_at(line: str, user: str, authenticated: str) -> None:
    lines = [line.replace("{n}", str(number)) for number in range(1000, 3000)]
    loaded = maps("\n".join([*lines, "m nobody-else nobody"]))
    found = list(loaded.candidates("m", user, (authenticated, "another")))
    assert [rule.ref.number for rule in found] == [1501]
    match = loaded.find("m", user, authenticated, frozenset({"staff"}))
    assert isinstance(match, IdentMatch)
    assert match.ref.number == 1501
    assert list(loaded.candidates("n", user, (authenticated,))) == []


def test_a_line_of_several_texts_is_looked_at_once() -> None:
    loaded = maps("m /^(alice|lice)$ bob\nm alice bob\nm /x bob\n")
    found = loaded.candidates("m", "bob", ("alice", "alice"))
    assert [rule.ref.number for rule in found] == [1, 2]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["m", "n"]),
            st.sampled_from(["alice", "bob", "/^a", "/b$", "/^(x|o|li)?b", "/.", "all"]),
            st.sampled_from(["alice", "bob", "all", '"all"', "+staff", "/^b", "/(o|x)b"]),
        ),
        max_size=12,
    ),
    st.sampled_from(["alice", "bob", "all"]),
    st.sampled_from(["alice", "bob"]),
)
def test_find_equals_a_naive_reading(
    lines: list[tuple[str, str, str]], user: str, authenticated: str
) -> None:
    systems = {
        "/^a": authenticated == "alice",
        "/b$": authenticated == "bob",
        "/^(x|o|li)?b": authenticated == "bob",
        "/.": True,
    }
    users = {
        "all": True,
        '"all"': user == "all",
        "+staff": user == "bob",
        "/^b": user == "bob",
        "/(o|x)b": user == "bob",
    }
    expected = next(
        (
            number
            for number, (name, system, database) in enumerate(lines, 1)
            if name == "m"
            and systems.get(system, system == authenticated)
            and users.get(database, database == user)
        ),
        None,
    )
    roles = frozenset({user, "staff"}) if user == "bob" else frozenset({user})
    match = maps("\n".join(map(" ".join, lines))).find("m", user, authenticated, roles)
    assert (match.ref.number if isinstance(match, IdentMatch) else match) == expected


def test_a_name_that_is_not_utf8_is_compared_by_bytes_and_matches_no_expression() -> None:
    name = decode_name(b"\xff")
    assert parse_ident("ident", b"m \xff bob").find("m", "bob", name) is not None
    assert maps("m /.* bob").find("m", "bob", name) is None
    assert maps(r"m /^(.*)$ \1").find("m", name, name) is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("m", "missing entry at end of line"),
        ("m alice", "missing entry at end of line"),
        ("m,n alice bob", "multiple values in ident field"),
        ("m alice,carol bob", "multiple values in ident field"),
        ("m alice bob,carol", "multiple values in ident field"),
        ("m alice /b(", 'invalid regular expression "b(": parentheses () not balanced'),
        ("m /a( bob", 'invalid regular expression "a(": parentheses () not balanced'),
        (r"m /^alice$ \1", "has no group"),
        (r"m /^(alice|alice-admin).*@x$ \1", "must not contain |"),
        (r"m /(.*)@x \1", "must begin with ^"),
        ("m @users bob", 'could not open file "users": no file can be included here'),
        ("include more", 'could not open file "more": no file can be included here'),
    ],
)
def test_what_would_not_work_as_written_is_a_mistake(text: str, problem: str) -> None:
    (mistake,) = mistakes(text)
    assert mistake.startswith("ident:1: ")
    assert problem in mistake


def test_every_mistake_is_reported_with_its_line() -> None:
    found = mistakes("m\nm alice bob\nm /( bob\n")
    assert [mistake.split(": ")[0] for mistake in found] == ["ident:1", "ident:3"]


def test_an_empty_file_has_no_maps() -> None:
    assert maps("# nothing\n").names == frozenset()


@given(
    st.binary(max_size=80)
    | st.text(alphabet='m /^()*.|$\\1ab"+,@all\n', max_size=60).map(lambda text: f"m {text}".encode())
)
@settings(max_examples=200)
def test_any_bytes_give_maps_or_a_config_error(content: bytes) -> None:
    try:
        loaded = parse_ident("ident", content)
    except ConfigError:
        return
    for name in loaded.names:
        loaded.find(name, "ab", "ab1")
