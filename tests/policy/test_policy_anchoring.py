"""An expression is called anchored only where it means whole names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgtlsproxy.policy.anchoring import is_anchored
from pgtlsproxy.policy.pattern import ExpressionError, compile_expression


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("^alice$", True),
        (r"\Aalice\Z", True),
        ("^$", True),
        ("^(a|b)$", True),
        ("^a$|^b$", True),
        ("(^a$|^b$)", True),
        ("(?:^a$|^b$)", True),
        ("^(?:a|b)$", True),
        (r"^a\$$", True),
        ("^[$|]$", True),
        ("^[]|]$", True),
        ("^[^]|]$", True),
        ("^[[:alpha:]|]+$", True),
        (r"^[\]|]$", True),
        ("", False),
        ("alice", False),
        ("^alice", False),
        ("alice$", False),
        (r"^alice\$", False),
        (r"\^alice$", False),
        ("^alice[$]", False),
        ("^a|b$", False),
        ("^a$|b", False),
        ("(^a|b)$", False),
        ("(?:^a|b)$", False),
        ("(?:^a$|b)", False),
        ("(^a)|(b$)", False),
        ("^", False),
        ("$", False),
        ("(a)(b)", False),
        ("(^a$)|()", False),
    ],
)
def test_anchored_at_both_ends(expression: str, *, expected: bool) -> None:
    compile_expression(expression, captures=False)
    assert is_anchored(expression) is expected


@given(st.text("^$|()[]\\ab", max_size=10))
def test_nothing_around_a_name_goes_by_an_anchored_expression(expression: str) -> None:
    """Else it would be found, with a letter in front or behind, that it does not speak of."""
    try:
        program = compile_expression(expression, captures=False)
    except ExpressionError:
        return
    if is_anchored(expression) and "[^" not in expression:
        assert not any(program.matches(name) for name in ("zab", "abz", "za", "az", "z"))
