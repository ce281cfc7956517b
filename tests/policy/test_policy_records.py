import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgtlsproxy.identity import decode_name, encode_name
from pgtlsproxy.policy.records import Token, logical_lines, split_fields


def fields(text: str) -> list[list[str]]:
    """The fields of a line; a quoted token is shown with a leading quote."""
    return [['"' * token.quoted + token.text for token in field] for field in split_fields(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host all all", [["host"], ["all"], ["all"]]),
        ("a\tb \r c", [["a"], ["b"], ["c"]]),
        ("a,b c", [["a", "b"], ["c"]]),
        ("a, b", [["a", "b"]]),
        ("a ,b", [["a"], ["b"]]),
        ("a,,b", [["a", "b"]]),
        (",a", [["a"]]),
        ("a,", [["a"]]),
        ("a, # nothing", [["a"]]),
        ("a#b c", [["a"]]),
        ('"a#b" c', [['"a#b'], ["c"]]),
        ('"a b"', [['"a b']]),
        ('"a,b"', [['"a,b']]),
        ('a"b c"d', [["ab cd"]]),
        ('"a""b"', [['"a"b']]),
        ('""', [['"']]),
        ('""""', [['""']]),
        ('"all" all', [['"all'], ["all"]]),
        ('a"all"', [["aall"]]),
        ('"open to the end # , x', [['"open to the end # , x']]),
        ('""x', [['"x']]),
        (r"a\b", [[r"a\b"]]),
    ],
)
def test_a_line_is_split_as_postgresql_splits_it(text: str, expected: list[list[str]]) -> None:
    assert fields(text) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a \\\nb\nc", [(1, "a b"), (3, "c")]),
        (b"a \\\r\nb\r\nc\r\n", [(1, "a b"), (3, "c")]),
        (b"a\\\n\\\nb\n", [(1, "ab")]),
        (b"a\\\n\nb", [(1, "a"), (3, "b")]),
        (b'"a\\\nb"', [(1, '"ab"')]),
        (b"# comment \\\nhidden\nshown", [(3, "shown")]),
        (b"a\\", [(1, "a")]),
        (b"a\\\n", [(1, "a")]),
        (b"\n\n  \n#x\na", [(5, "a")]),
        (b'a "b\r\\\n\r\nc', [(1, 'a "b'), (3, "c")]),
        (b'a "b\r\\\n\\\n\nc', [(1, 'a "b'), (4, "c")]),
        (b'a "b\r\\\n', [(1, 'a "b\r')]),
    ],
)
def test_a_backslash_continues_a_line_and_the_first_number_counts(
    content: bytes, expected: list[tuple[int, str]]
) -> None:
    lines = logical_lines(content.decode())
    assert [(number, text) for number, text in lines if split_fields(text)] == expected


def test_bytes_that_are_not_utf8_survive() -> None:
    ((token,),) = split_fields(decode_name(b"\xff\xe9"))
    assert encode_name(token.text) == b"\xff\xe9"


def test_quotes_take_the_meaning_of_keywords_away() -> None:
    assert Token("all").is_keyword("all")
    assert not Token("all", quoted=True).is_keyword("all")
    assert not Token("ALL").is_keyword("all")


def test_a_token_is_shown_without_control_characters() -> None:
    assert str(Token("a\x1b[2J")) == "a\\x1b[2J"


@pytest.mark.parametrize(
    ("text", "role", "expression"),
    [
        ("+ops", "ops", None),
        ('"+ops"', None, None),
        ("+", "", None),
        ("/ops", None, "ops"),
        ('"/ops"', None, "ops"),
        ("/", None, ""),
        ("ops", None, None),
    ],
)
def test_quotes_make_a_role_a_name_and_leave_an_expression_one(
    text: str, role: str | None, expression: str | None
) -> None:
    ((token,),) = split_fields(text)
    assert (token.role, token.expression) == (role, expression)


def by_hand(text: str) -> list[list[tuple[str, bool]]]:
    """The same one character after the other, as `next_token` goes about it."""
    found: list[list[tuple[str, bool]]] = []
    goes_on = False
    position = 0
    while True:
        while position < len(text) and text[position] in " \t\r,":
            position += 1
        value, in_quote, was_quote, saw_quote, initial_quote, comma = "", False, False, False, False, False
        while position < len(text) and (text[position] not in " \t\r" or in_quote):
            character = text[position]
            if character == "#" and not in_quote:
                position = len(text)
                break
            if character == "," and not in_quote:
                comma = True
                break
            if character != '"' or was_quote:
                value += character
            was_quote = in_quote and character == '"' and not was_quote
            if character == '"':
                in_quote, saw_quote = not in_quote, True
                initial_quote = initial_quote or not value
            position += 1
        if not saw_quote and not value:
            return found
        if goes_on:
            found[-1].append((value, initial_quote))
        else:
            found.append([(value, initial_quote)])
        goes_on = comma


@given(st.text(alphabet='ab" ,#@\\\t\r/+', max_size=40))
@settings(max_examples=1000)
def test_a_line_is_split_as_character_by_character(text: str) -> None:
    found = [[(token.text, token.quoted) for token in field] for field in split_fields(text)]
    assert found == by_hand(text)


@given(st.text(alphabet="ab\\\r\n", max_size=40))
def test_every_physical_line_is_in_one_logical_line(text: str) -> None:
    numbers = [number for number, _ in logical_lines(text)]
    assert numbers == sorted(set(numbers))
    joined = "".join(line for _, line in logical_lines(text))
    assert joined.replace("\r", "").replace("\\", "") == "".join(c for c in text if c in "ab")


@given(st.lists(st.text(alphabet='ab ,#"\\@', max_size=5), min_size=1, max_size=5))
@settings(max_examples=100)
def test_a_quoted_value_comes_back_as_it_was(values: list[str]) -> None:
    quoted = " ".join('"' + value.replace('"', '""') + '"' for value in values)
    assert [field[0].text for field in split_fields(quoted)] == values
