"""A text that an expression is said to need stands in every name in which it is found."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgtlsproxy.policy.literals import MAX_TEXTS, needed, within
from pgtlsproxy.policy.pattern import ExpressionError, compile_expression


@pytest.mark.parametrize(
    ("expression", "texts"),
    [
        ("abc", {"abc"}),
        ("^abc$", {"abc"}),
        (r"^(.*)@corp\.example$", {"@corp.example"}),
        ("^.*_team7$", {"_team7"}),
        ("ab*c", {"a"}),
        ("ab+cd", {"ab"}),
        ("ab{2}cde", {"cde"}),
        ("ab{0,2}", {"a"}),
        ("ab??c", {"a"}),
        ("{,2}", {"{,2}"}),
        ("a{x}", {"a{x}"}),
        ("a{\u00b2", {"a{"}),
        ("^(alice|bob)$", {"alice", "bob"}),
        ("^(?:alice|bob)$", {"alice", "bob"}),
        ("^alice$|^bob$", {"alice", "bob"}),
        ("^x(alice|bob)+$", {"alice", "bob"}),
        ("^xyz(alice|bob)*$", {"xyz"}),
        ("^(alice|.*)$", set()),
        ("^(alice|)$", set()),
        ("^(a(bc|de)f|gh)$", {"bc", "de", "gh"}),
        ("[abc]", set()),
        ("[abc]d", {"d"}),
        (r"\w+\d", set()),
        ("x\u00e9yz", {"yz"}),
        ("", set()),
        ("^", set()),
        ("()", set()),
        ("(" * 400 + "a" + ")" * 400, set()),
        (
            "|".join(f"u{number}" for number in range(MAX_TEXTS)),
            {f"u{number}" for number in range(MAX_TEXTS)},
        ),
        ("|".join(f"u{number}" for number in range(MAX_TEXTS + 1)), set()),
    ],
)
def test_texts_that_an_expression_needs(expression: str, texts: set[str]) -> None:
    compile_expression(expression, captures=False)
    assert needed(expression) == texts


EXPRESSIONS = st.lists(
    st.sampled_from(["a", "b", "ab", "(", ")", "(?:", "|", "*", "+", "?", "{0}", "{2}", "{1,}", ".", "^", "$", r"\.", "[ab]", r"\w", "{", "é"])
).map("".join)  # fmt: skip


@given(
    EXPRESSIONS | st.text(alphabet="ab|()*+?{}012,.^$\\[]é", max_size=12),
    st.text(alphabet="ab.{é", max_size=8),
)
@settings(max_examples=3000)
def test_no_name_without_them_is_found(expression: str, name: str) -> None:
    try:
        compiled = compile_expression(expression, captures=False)
    except ExpressionError:
        return
    texts = needed(expression)
    if compiled.matches(name) and texts:
        assert any(text in name for text in texts)
        assert texts & set(within(name, {len(text) for text in texts}))
