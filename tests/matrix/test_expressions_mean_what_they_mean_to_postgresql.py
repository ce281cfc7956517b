"""Random expressions and names: what is found, and what a group captures, is what PostgreSQL 17 finds and captures.

It matches as it does at a login: in a database without an encoding, by the rules of C.
"""

from __future__ import annotations

import json
import random

import pytest

from pgtlsproxy.identity import encode_name
from pgtlsproxy.policy.pattern import ExpressionError, compile_expression

EXPRESSIONS = 3000
NAMES_OF_EACH = 6
SEED = 7

ATOMS = (
    "a", "b", "ab", ".", r"\.", "[ab]", "[^a]", "[]a]", "[^]a]", "[a-c]", "[-a]", "[a-]", "[[:alpha:]]", "[^[:digit:]_]",
    "[[:space:][:punct:]]", r"[\w-]", r"[\d_]", r"\d", r"\w", r"\s", r"\D", r"\W", r"\S", r"\A", r"\Z", "^", "$", "|",
    "(", ")", "(a|b)", "(a*)", "(b+)?", "*", "+", "?", "*?", "+?", "??", "{2}", "{1,2}", "{0}", "{,2}", "{1,}", "{2,1}",
    "{", "}", "[[:print:]]", "[[:cntrl:]]", "[[:graph:]]", "[[:word:]]", r"\_", r"\-", r"\\", "\n", "\t", " ", "é", "@",
    "()", "(|a)", r"\y", r"\m", r"\1", "(?:a)", "(?:", "(?:b|ab)", "(?i)", "***=", "[[.a.]]", "[[=a=]]", "[[:<:]]", r"[a\]b]", r"[\\]", "[$^|]",
    r"\x41", r"[a\-c]", "[--/]", "[+--]", r"[\D]", "a{255}", "a{256}", "(((a)))", "#", "\x0b", "[\n]", "\\\n",
)  # fmt: skip
PARTS = (
    "a",
    "b*",
    ".",
    ".*",
    "[ab]+",
    "a?",
    "[^a]{1,2}",
    r"\w*",
    "-",
    "@?",
    ".{0,2}",
    "b{0}",
    "[[:alpha:]]+",
    "é",
)
"""What stands around and in the one group of an expression that captures."""
CHARACTERS = (*"abcA1_-. \n\t@[]\\{}$^|\x0b\x0c\x1b\x7fé,2()*/x#?+", "a{")

FUNCTION = """\
CREATE FUNCTION found(name text, expression text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE groups text[];
BEGIN
  groups := regexp_match(convert_from(decode(name, 'hex'), 'SQL_ASCII'), convert_from(decode(expression, 'hex'), 'SQL_ASCII'));
  RETURN CASE WHEN groups IS NOT NULL THEN encode(convert_to(coalesce(groups[1], ''), 'SQL_ASCII'), 'hex') END;
EXCEPTION WHEN invalid_regular_expression THEN RETURN 'invalid';
END $$"""


def some_expression(numbers):
    if numbers.random() < 0.5:
        before, inside, behind = ("".join(numbers.choices(PARTS, k=numbers.randint(0, 3))) for _ in range(3))
        return f"^{before}({inside}){behind}$"
    middle = "".join(numbers.choices(ATOMS, k=numbers.randint(1, 6)))
    return f"{numbers.choice(('', '', '^'))}{middle}{numbers.choice(('', '', '$'))}"


def some_name(numbers):
    return "".join(numbers.choices(CHARACTERS if numbers.random() < 0.3 else "ab-@", k=numbers.randint(1, 6)))


@pytest.fixture
def server(own_cluster):
    cluster = own_cluster(17)
    cluster.psql("CREATE DATABASE bytes TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
    cluster.psql(FUNCTION, database="bytes")
    return cluster


def found_by(server, pairs):
    """What the server finds: None, or what the first group captured in hex, or `invalid`."""
    for start in range(0, len(pairs), 1000):
        values = ", ".join(
            f"({number}, '{name.encode().hex()}', '{expression.encode().hex()}')"
            for number, (expression, name) in enumerate(pairs[start : start + 1000])
        )
        query = f"SELECT json_agg(found(name, expression) ORDER BY number) FROM (VALUES {values}) v(number, name, expression)"
        yield from json.loads(server.psql(query, database="bytes").stdout)


def compiled(expression, *, captures):
    try:
        return compile_expression(expression, captures=captures)
    except ExpressionError:
        return None


def test_random_expressions_find_and_capture_what_they_do_at_the_server(server):
    numbers = random.Random(SEED)
    expressions = [some_expression(numbers) for _ in range(EXPRESSIONS)]
    pairs = [(expression, some_name(numbers)) for expression in expressions for _ in range(NAMES_OF_EACH)]
    matched = captured = 0
    for (expression, name), expected in zip(pairs, found_by(server, pairs), strict=True):
        plain, capturing = (compiled(expression, captures=captures) for captures in (False, True))
        if plain is not None:
            assert expected != "invalid", expression
            assert plain.matches(name) is (expected is not None), (expression, name)
            matched += expected is not None
        if capturing is not None:
            group = capturing.first_group(name)
            assert (None if group is None else encode_name(group).hex()) == expected, (expression, name)
            captured += expected is not None
    assert matched > EXPRESSIONS // 4
    assert captured > EXPRESSIONS // 8
