import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgtlsproxy.errors import ConfigError
from pgtlsproxy.policy.records import Token, inclusion, tokenize


def fields(text: str) -> list[list[str]]:
    """The fields of a one-line file; a quoted token is shown with a leading quote."""
    (line,) = tokenize("f", text.encode())
    return [['"' * token.quoted + token.text for token in field] for field in line.fields]


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
    ],
)
def test_a_backslash_continues_a_line_and_the_first_number_counts(
    content: bytes, expected: list[tuple[int, str]]
) -> None:
    assert [(line.ref.number, line.ref.text) for line in tokenize("f", content)] == expected


def test_a_nul_byte_is_a_mistake_with_its_line() -> None:
    with pytest.raises(ConfigError) as caught:
        tokenize("hba", b"a\nb\0c\n\0")
    assert [mistake.where for mistake in caught.value.mistakes] == ["hba:2", "hba:3"]


def test_bytes_that_are_not_utf8_survive() -> None:
    (line,) = tokenize("f", b"\xff\xe9")
    assert line.fields[0][0].text.encode("utf-8", "surrogateescape") == b"\xff\xe9"


def test_quotes_take_the_meaning_of_keywords_away() -> None:
    assert Token("all").is_keyword("all")
    assert not Token("all", quoted=True).is_keyword("all")
    assert not Token("ALL").is_keyword("all")


def test_a_token_is_shown_without_control_characters() -> None:
    assert str(Token("a\x1b[2J")) == "a\\x1b[2J"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host @names all", "@names"),
        ('host a,@"a b" all', "@a b"),
        ('host "@names" all', None),
        ("host @ all", None),
        ("include x", "include"),
        ('"include" x', "include"),
        ("include_dir x", "include_dir"),
        ("include_if_exists x", "include_if_exists"),
        ("include x y", None),
        ("host all", None),
    ],
)
def test_what_asks_for_another_file_is_found(text: str, expected: str | None) -> None:
    (line,) = tokenize("f", text.encode())
    assert inclusion(line) == expected


@given(st.binary(max_size=200) | st.text(alphabet='ab" ,#@\\\n\t\r\0', max_size=60).map(str.encode))
@settings(max_examples=200)
def test_any_bytes_give_lines_or_a_config_error(content: bytes) -> None:
    try:
        lines = tokenize("f", content)
    except ConfigError:
        assert b"\0" in content
        return
    assert all(line.fields and all(line.fields) for line in lines)
    numbers = [line.ref.number for line in lines]
    assert numbers == sorted(set(numbers))


@given(st.lists(st.text(alphabet='ab ,#"\\@', max_size=5), min_size=1, max_size=5))
@settings(max_examples=100)
def test_a_quoted_value_comes_back_as_it_was(values: list[str]) -> None:
    quoted = " ".join('"' + value.replace('"', '""') + '"' for value in values)
    (line,) = tokenize("f", quoted.encode())
    assert [field[0].text for field in line.fields] == values
