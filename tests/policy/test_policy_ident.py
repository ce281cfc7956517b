import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgtlsproxy.errors import ConfigError
from pgtlsproxy.identity import decode_name
from pgtlsproxy.policy.ident import IdentMaps, parse_ident


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
    assert match is not None
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
    ],
)
def test_a_line_maps_as_in_postgresql(line: str, user: str, authenticated: str, *, expected: bool) -> None:
    assert (maps(line).find("m", user, authenticated) is not None) is expected


@pytest.mark.parametrize(
    ("line", "literal"),
    [
        ("m alice bob", True),
        ("m /^a bob", True),
        ("m alice all", False),
        (r"m /^(.*)x?$ \1", False),
        (r'm /^ali(.*)$ "bob\1"', False),
    ],
)
def test_a_match_knows_whether_the_user_was_named(line: str, *, literal: bool) -> None:
    user = {r"m /^(.*)x?$ \1": "alice", r'm /^ali(.*)$ "bob\1"': "bobce"}.get(line, "bob")
    match = maps(line).find("m", user, "alice")
    assert match is not None
    assert match.is_literal is literal


def test_the_first_line_that_fits_is_the_one_reported() -> None:
    match = maps("m bob bob\nm /. all\nm alice bob\n").find("m", "bob", "alice")
    assert match is not None
    assert match.ref.number == 2


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
        ("m alice +group", "the members of a role (+group)"),
        ("m alice /^b", 'a regular expression for the database user ("/^b")'),
        ('m alice "/^b"', 'a regular expression for the database user ("/^b")'),
        ("m /a( bob", 'invalid regular expression "a(": parentheses () not balanced'),
        (r"m /^alice$ \1", "has no group"),
        (r"m /^(alice|alice-admin).*@x$ \1", "must not contain |"),
        (r"m /(.*)@x \1", "must begin with ^"),
        ("m @users bob", 'reading another file ("@users")'),
        ("include more", 'reading another file ("include")'),
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
    assert maps("# nothing\n") == IdentMaps()


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
