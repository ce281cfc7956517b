from __future__ import annotations

import contextlib

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pgtlsproxy.errors import ConfigError
from pgtlsproxy.strict_yaml import MAX_OCTETS, Document, parse, show_path


def read(text: str | bytes) -> Document:
    return parse("x.yaml", text.encode() if isinstance(text, str) else text)


def refused(text: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        read(text)
    (mistake,) = caught.value.mistakes
    return str(mistake)


def noted(text: str) -> list[str]:
    return [str(mistake) for mistake in read(text).mistakes.values()]


def test_plain_data_comes_back_as_plain_data() -> None:
    document = read("a: on\nb: [1, -2, 1.5, x, null]\nc: {d: '5', e: \"no\"}\n")
    assert document.data == {"a": True, "b": [1, -2, 1.5, "x", None], "c": {"d": "5", "e": "no"}}
    assert not document.mistakes


def test_duplicate_key_names_both_lines() -> None:
    (mistake,) = noted("a:\n  b: 1\n  c: 2\n  b: 3\n")
    assert mistake.startswith("x.yaml:4: a.b: ")
    assert "line 2" in mistake


def test_duplicate_key_keeps_the_first_and_reading_goes_on() -> None:
    assert read("a: 1\na: 2\nb: 3\n").data == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    "text", ["0770", "0x1F", "0b11", "1_000", "1:30", "22:22", "190:20:30.15", ".inf", ".nan"]
)
def test_number_that_is_no_plain_decimal_is_to_be_quoted(text: str) -> None:
    (mistake,) = noted(f"a:\n  b: {text}\n")
    assert mistake.startswith("x.yaml:2: a.b: ")
    assert "quote it" in mistake
    assert not noted(f"a: '{text}'\n")


@pytest.mark.parametrize("key", ["on", "no", "1", "1.5", "null", "1:30"])
def test_key_that_is_no_text_is_to_be_quoted(key: str) -> None:
    assert "quote it" in noted(f"{key}: x\n")[0]


@pytest.mark.parametrize("text", ["2026-11-24", "="])
def test_dates_and_equals_signs_are_texts(text: str) -> None:
    assert read(f"a: {text}\n").data == {"a": text}


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system [x]",
        "a: !!str x",
        "a: !none",
        "a: [!none, !md5]",
        "a: ! x",
        "!x\na: 1",
    ],
)
def test_tag_is_refused(text: str) -> None:
    assert "tag" in refused(text)


@pytest.mark.parametrize(
    "text", ["listen: [::1]:5432", "listen:\n- [::1]:5432", "listen: [[::1]:5432]", "a: [::1]"]
)
def test_unquoted_ipv6_address_says_to_quote(text: str) -> None:
    assert '"[::1]:5432"' in refused(text)


def test_unquoted_ipv6_address_that_yaml_can_read_says_to_quote_too() -> None:
    assert '"[::1]:5432"' in noted("listen: [[2001:db8::1]:5432]")[0]


def test_unquoted_star_says_to_quote() -> None:
    assert '"*:5432"' in refused("listen: *:5432")


def test_tab_is_named() -> None:
    assert refused("a:\n\tb: 1").startswith("x.yaml:2: a tab")


def test_nul_is_named_with_its_line() -> None:
    assert refused(b"a: 1\nb: \0\n").startswith("x.yaml:2: a NUL")


@pytest.mark.parametrize("text", [r'"\0"', r'"\ud800"'])
def test_escaped_nul_and_surrogates_are_mistakes(text: str) -> None:
    assert noted(f"a: {text}\n")


def test_bytes_that_are_not_utf8_are_refused() -> None:
    assert "0xff" in refused(b"a: 1\nb: \xff\n")


def test_byte_order_mark_is_skipped() -> None:
    assert read(b"\xef\xbb\xbfa: 1").data == {"a": 1}


def test_second_document_is_refused() -> None:
    assert "second document" in refused("a: 1\n---\nb: 2\n")


def test_file_over_a_megabyte_is_refused() -> None:
    assert read(b"a: 1\n#".ljust(MAX_OCTETS, b"x")).data == {"a": 1}
    assert str(MAX_OCTETS) in refused(b"a: 1\n#".ljust(MAX_OCTETS + 1, b"x"))


def test_aliases_are_as_many_as_anybody_likes_as_long_as_the_document_stays_small() -> None:
    def text(count: int) -> str:
        return "a: &a [1, 2, 3]\nb: [" + ", ".join(["*a"] * count) + "]\n"

    assert read(text(1000)).data == {"a": [1, 2, 3], "b": [[1, 2, 3]] * 1000}
    assert "grow" in refused(text(30_000))


def test_document_that_grows_by_its_aliases_is_refused() -> None:
    bomb = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))
    assert "grow" in refused(bomb)


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {b: *a}", "&a {<<: *a}"])
def test_alias_to_what_contains_it_is_refused(text: str) -> None:
    assert "deep" in refused(text)


@pytest.mark.parametrize("text", ["[" * 5000, "- " * 5000 + "x", "{a: " * 5000])
def test_deep_nesting_is_refused(text: str) -> None:
    assert "deep" in refused(text)


def test_merged_mapping_fills_what_is_not_written() -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc: {<<: [*a, *b], x: 0}\n"
    data = read(text).data
    assert isinstance(data, dict)
    assert data["c"] == {"x": 0, "y": 2, "z": 4}


def test_merging_what_is_no_mapping_is_a_mistake() -> None:
    assert "<<" in noted("a: {<<: 1}\n")[0]


def test_place_names_line_and_path() -> None:
    document = read("a:\n  b.c:\n    - x\n    - y\n")
    assert document.where(("a", "b.c", 1)) == 'x.yaml:4: a."b.c"[1]'
    assert document.where(("a", "missing", "key")) == "x.yaml:1: a.missing.key"
    assert document.where(()) == "x.yaml:1"


def test_path_cannot_smuggle_control_characters() -> None:
    assert show_path(("a\x1b[31m",)) == '"a\\x1b[31m"'


@pytest.mark.parametrize(
    "text", ["a: [b", 'a: "b', "a: b: c", "a: @b", "- a\nb: 1", "a: *b", "a: {user}.crt"]
)
def test_what_is_no_yaml_is_one_mistake_with_a_line(text: str) -> None:
    assert refused(text).startswith("x.yaml:")


@pytest.mark.parametrize(
    "text",
    ["sslpassword: *hunter2", "sslpassword: !hunter2", "sslpassword: @hunter2", "sslpassword: hunter2: x"],
)
def test_no_message_shows_a_value(text: str) -> None:
    assert "hunter2" not in refused(text)


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**17), 10**17)
    | st.text(st.characters(codec="utf-8", exclude_characters="\0"))
)
documents = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abcxyz", min_size=2), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=200)
@given(documents)
def test_what_yaml_writes_is_read_back(data: object) -> None:
    document = read(yaml.safe_dump(data, default_style='"' if isinstance(data, str) else None))
    if not document.mistakes:
        assert document.data == data


@settings(max_examples=200)
@given(st.binary(max_size=200) | st.text("ab:-[]{}&*!|>'\"%@`,?#\n\t 01", max_size=60).map(str.encode))
def test_whatever_the_bytes_there_is_a_document_or_a_config_error(content: bytes) -> None:
    with contextlib.suppress(ConfigError):
        assert read(content).file == "x.yaml"
