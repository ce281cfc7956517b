import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgtlsproxy.identity import decode_name
from pgtlsproxy.policy.pattern import (
    LONGEST_EXPRESSION,
    Expression,
    ExpressionError,
    Pattern,
    compile_expression,
    compile_token,
)
from pgtlsproxy.policy.records import LineError, Token


def matches(expression: str, name: str) -> bool:
    return compile_expression(expression, captures=False).matches(name)


def group(expression: str, name: str) -> str | None:
    return compile_expression(expression, captures=True).first_group(name)


# Verdicts of PostgreSQL 15: `name ~ expression` in a database with encoding SQL_ASCII and locale C, in which
# it reads a name as it reads pg_ident.conf.
@pytest.mark.parametrize(
    ("expression", "name", "expected"),
    [
        ("b", "abc", True),
        ("^b", "abc", False),
        ("^bob$", "bob", True),
        ("^bob$", "bob\n", False),
        ("^bob$", "x\nbob", False),
        ("a.c", "a\nc", True),
        ("[^x]", "\n", True),
        ("\\Aa\\Z", "a", True),
        ("^BOB$", "bob", False),
        ("^(alice|alice-admin)$", "alice-admin", True),
        ("^a{2,3}$", "aaa", True),
        ("^a{2,3}$", "a", False),
        ("^a{2}$", "aaa", False),
        ("^a{2,}$", "aaaa", True),
        ("^a{0}$", "", True),
        ("^a+?b$", "aab", True),
        ("^{,3}$", "{,3}", True),
        ("^a{x}$", "a{x}", True),
        ("^\\d\\w\\s$", "1_ ", True),
        ("^\\s$", "\x0b", True),
        ("^\\d$", "\u0661", False),
        ("^\\D\\W\\S$", "a-x", True),
        ("^\\W{2}$", "é", True),
        ("^.$", "é", False),
        ("^..$", "é", True),
        ("^é$", "é", True),
        ("^[[:alpha:]]+$", "abcZ", True),
        ("^[[:alpha:]]+$", "é", False),
        ("^[[:cntrl:]]$", "\x1b", True),
        ("^[]a]+$", "]a", True),
        ("^[^]a]$", "]", False),
        ("^[a-c-]+$", "b-", True),
        ("^[-a]+$", "-a", True),
        ("^[\\d.]+$", "1.2", True),
        ("^[\\]\\\\]+$", "]\\", True),
        ("^[+--]+$", "+,-", True),
        ("^a\\.b$", "axb", False),
        ("^a\\.b$", "a.b", True),
        ("^()$", "", True),
        ("^(a(b|c))+$", "abac", True),
        ("^(?:alice|bob)$", "bob", True),
        ("^(?:alice|bob)$", "bobby", False),
        ("^(?:ab)+?(?:)$", "abab", True),
        ("", "anything", True),
    ],
)
def test_an_expression_matches_what_it_matches_in_postgresql(
    expression: str, name: str, *, expected: bool
) -> None:
    assert matches(expression, name) is expected


@pytest.mark.parametrize(
    ("expression", "name", "expected"),
    [
        (r"^(.*)@example\.com$", "alice@example.com", "alice"),
        (r"^(.*)@example\.com$", "alice@example.com.evil", None),
        (r"^(.*)@example\.com$", "alice@example.com\n", None),
        ("^(.*)-.*$", "a-b-c", "a-b"),
        ("^.*-(.*)$", "a-b-c", "c"),
        ("^a*(a*)$", "aaa", ""),
        ("^a{0,1}(a*)b*$", "aaab", "aa"),
        ("^([ab]{1,2})b{0,2}a*$", "abba", "ab"),
        (r"\A(.+)\Z", "x", "x"),
        (r"^(\w+)\.corp$", "bob.corp", "bob"),
        ("^(.)x$", "éx", None),
    ],
)
def test_a_group_captures_what_it_captures_in_postgresql(
    expression: str, name: str, expected: str | None
) -> None:
    assert group(expression, name) == expected


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("a(", "parentheses () not balanced"),
        ("a)", "parentheses () not balanced"),
        ("(?:a", "parentheses () not balanced"),
        ("(?:*a)", "quantifier operand invalid"),
        ("(?", "(?"),
        ("(?=a)", "(?"),
        ("(?i)a", "(?"),
        ("***=a", "***"),
        ("***:a", "***"),
        ("*a", "quantifier operand invalid"),
        ("^*", "quantifier operand invalid"),
        ("a|*", "quantifier operand invalid"),
        ("(*a)", "quantifier operand invalid"),
        ("a**", "quantifier operand invalid"),
        ("a{2}{3}", "quantifier operand invalid"),
        ("a*+", "quantifier operand invalid"),
        ("a{256}", "at most 255"),
        ("a{3,2}", "the smaller first"),
        ("a{1", "braces {} not balanced"),
        ("a{1,x}", "invalid repetition count"),
        ("a{0001}", "invalid repetition count"),
        ("é+", "outside ASCII cannot be repeated"),
        ("[é]", "outside ASCII cannot stand in brackets"),
        ("[a", "brackets [] not balanced"),
        ("[", "brackets [] not balanced"),
        ("[]", "brackets [] not balanced"),
        ("[a-", "brackets [] not balanced"),
        ("[z-a]", "it runs backwards"),
        ("[a-c-e]", "hyphen first or last"),
        ("[\\d-z]", "hyphen first or last"),
        ("[a-\\d]", "the escape \\d"),
        ("[a\\D]", "the escape \\D"),
        ("[a[b]", "write [ in brackets as"),
        ("[[.a.]]", "[. and [="),
        ("[[=a=]]", "[. and [="),
        ("[[:<:]]", "invalid character class"),
        ("[[:alfa:]]", "invalid character class"),
        ("[[:alpha", "invalid character class"),
        ("\\", "nothing behind the backslash"),
        ("[\\", "nothing behind the backslash"),
        ("(a)\\1", "the escape \\1"),
        ("\\m", "the escape \\m"),
        ("\\y", "the escape \\y"),
        ("\\n", "the escape \\n"),
        ("\\x41", "the escape \\x"),
        ("\\é", "the escape \\\\xc3"),
        ("((a{255}){255}){255}", "too complex"),
        ("a" * (LONGEST_EXPRESSION + 1), "longer than 1024 bytes"),
        ("(" * LONGEST_EXPRESSION, "parentheses () not balanced"),
    ],
)
def test_an_expression_that_would_mean_something_else_is_refused(expression: str, problem: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        compile_expression(expression, captures=False)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("^abc$", "has no group"),
        ("^(a)(b)$", "it has several"),
        ("^((a)b)$", "it has several"),
        ("^(?:a?(?:ab)?)(.*)$", "it has several"),
        ("^(?:a)$", "has no group"),
        ("(a)$", "must begin with ^"),
        ("^(a)", "must begin with ^"),
        ("^(a)\\$", "must begin with ^"),
        ("(^a)$", "must begin with ^"),
        ("^(a$)", "must begin with ^"),
        ("x^(a)$", "must begin with ^"),
        ("^(alice|alice-admin).*$", "must not contain |"),
        ("^a|(b)$", "must not contain |"),
        ("^(a*?).*$", "lazy"),
        ("^.??(a)$", "lazy"),
        ("^(a)*$", "must not repeat its group"),
        ("^(a){0,1}$", "must not repeat its group"),
    ],
)
def test_a_capture_that_could_differ_from_postgresql_is_refused(expression: str, problem: str) -> None:
    compile_expression(expression, captures=False)
    with pytest.raises(ExpressionError) as caught:
        compile_expression(expression, captures=True)
    assert problem in str(caught.value)


def test_names_that_are_not_utf8_match_nothing() -> None:
    broken = decode_name(b"a\xff")
    assert not matches(".*", broken)
    assert group("^(.*)$", broken) is None


@pytest.mark.parametrize(
    "expression",
    [
        "^(a|aa)+$",
        "^(a*)*b$",
        "^(a+)+$",
        "(.*a){20}b",
        "((a{1,9}){1,9}){1,9}",
        "^(.*a.{0,200}){1,3}$",
        "^" + ".*" * 250 + "x$",
    ],
)
def test_a_catastrophic_expression_is_decided_in_bounded_time(expression: str) -> None:
    compiled = compile_expression(expression, captures=False)
    names = ["a" * 64, "ab" * 32, "a" * 63 + "!"]
    compiled.matches(names[0])
    for name in names:
        assert min(_seconds(compiled, name) for _ in range(5)) < 0.01


def _seconds(compiled: Expression, name: str) -> float:
    start = time.perf_counter()
    compiled.matches(name)
    return time.perf_counter() - start


SETS = {"a": "a", "b": "b", "[ab]": "ab", ".": "ab-", "[^a]": "b-"}
COUNTS = {
    "": (1, 1),
    "*": (0, 99),
    "+": (1, 99),
    "?": (0, 1),
    "{2}": (2, 2),
    "{1,2}": (1, 2),
    "{2,}": (2, 99),
}
ATOMS = st.lists(st.tuples(st.sampled_from(sorted(SETS)), st.sampled_from(sorted(COUNTS))), max_size=4)


def _lengths(atoms: list[tuple[str, str]], text: str) -> set[int]:
    """How far into a text a sequence of repeated sets can reach."""
    reached = {0}
    for characters, count in atoms:
        least, most = COUNTS[count]
        following = set()
        for position in reached:
            for length in range(len(text) - position + 1):
                if length and text[position + length - 1] not in SETS[characters]:
                    break
                if least <= length <= most:
                    following.add(position + length)
        reached = following
    return reached


@given(ATOMS, ATOMS, ATOMS, st.text(alphabet="ab-", max_size=8))
@settings(max_examples=200)
def test_a_group_captures_the_longest_behind_the_longest(
    before: list[tuple[str, str]], inside: list[tuple[str, str]], behind: list[tuple[str, str]], name: str
) -> None:
    """PostgreSQL's rule, spelled out: the part before the group first, then the group."""
    text = ["".join(map("".join, part)) for part in (before, inside, behind)]
    captured = group(f"^{text[0]}({text[1]}){text[2]}$", name)
    expected = None
    for start in sorted(_lengths(before, name), reverse=True):
        for length in sorted(_lengths(inside, name[start:]), reverse=True):
            rest = name[start + length :]
            if expected is None and len(rest) in _lengths(behind, rest):
                expected = name[start : start + length]
    assert captured == expected


@given(
    expression=st.text(max_size=30) | st.text(alphabet="ab^$()[]{}*+?|\\.-:1,", max_size=15),
    captures=st.booleans(),
)
@settings(max_examples=200)
def test_any_text_compiles_or_is_refused(*, expression: str, captures: bool) -> None:
    try:
        compiled = compile_expression(expression, captures=captures)
    except ExpressionError:
        return
    compiled.matches("ab1,-")


def test_a_value_with_a_slash_becomes_a_pattern_and_another_stays_what_it_is() -> None:
    assert compile_token(Token("alice", quoted=True)) == Token("alice", quoted=True)
    compiled = compile_token(Token("/^al", quoted=True))
    assert isinstance(compiled, Pattern)
    assert (compiled.text, compiled.quoted, compiled.program.matches("alice")) == ("/^al", True, True)
    with pytest.raises(LineError, match=r'invalid regular expression "\(": parentheses \(\) not balanced'):
        compile_token(Token("/("))


@pytest.mark.parametrize(
    ("expression", "prefix"),
    [
        ("^team_", "team_"),
        ("^team_.*$", "team_"),
        ("^abc$", "abc"),
        ("^ab*c", "a"),
        ("^ab?", "a"),
        ("^ab+", "a"),
        ("^ab{0}", "a"),
        ("^a*", ""),
        ("^a|b", ""),
        ("^ab(c|d)", ""),
        ("^(ab)", ""),
        ("^(?:ab)", ""),
        ("^a(?:b)", "a"),
        ("^a.b", "a"),
        ("^a\\.b", "a"),
        ("^[ab]", ""),
        ("abc", ""),
        ("^", ""),
        ("", ""),
    ],
)
def test_an_expression_knows_what_names_must_begin_with(expression: str, prefix: str) -> None:
    assert compile_expression(expression, captures=False).prefix == prefix


@given(st.text(alphabet="^ab_*+?{01}.|()[]$\\", max_size=8), st.text(alphabet="ab_01.", max_size=6))
@settings(max_examples=1000)
def test_an_expression_is_found_in_no_name_that_begins_otherwise(expression: str, name: str) -> None:
    try:
        compiled = compile_expression(expression, captures=False)
    except ExpressionError:
        return
    if compiled.matches(name):
        assert name.startswith(compiled.prefix)


def test_names_that_are_no_text_cannot_be_judged() -> None:
    assert Expression.can_judge("al\u00efce")
    assert not Expression.can_judge(decode_name(b"\xff"))
    assert not matches(".", decode_name(b"\xff"))
