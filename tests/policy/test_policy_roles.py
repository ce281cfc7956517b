import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgtlsproxy.errors import ConfigError
from pgtlsproxy.policy.roles import Memberships, parse_roles
from pgtlsproxy.proxy.rule_files import InclusionReader

MANUAL = (Path(__file__).parents[2] / "docs" / "policy.md").read_text()


def members(text: str) -> Memberships:
    return parse_roles("roles", text.encode())


def mistakes(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        members(text)
    return [str(mistake) for mistake in caught.value.mistakes]


def test_members_of_members_are_members() -> None:
    found = members('staff dba, "web team"\ndba alice bob # the boss\n"web team" carol\nstaff dave')
    assert found.of("alice") == {"alice", "dba", "staff"}
    assert found.of("carol") == {"carol", "web team", "staff"}
    assert found.of("dave") == {"dave", "staff"}
    assert found.of("dba") == {"dba", "staff"}
    assert found.names == {"staff", "dba", "web team"}


def test_the_example_of_the_manual_says_what_its_columns_are_called(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```\n(# role   members\n.*?)^```$", MANUAL, re.MULTILINE | re.DOTALL)
    (tmp_path / "more_names").write_text("dave erin\n")
    found = parse_roles(str(tmp_path / "roles"), example.encode(), InclusionReader())
    assert {name: found.of(name) - {name} for name in ("alice", "bob", "Carol Smith", "dave", "carol")} == {
        "alice": {"staff", "admins"},
        "bob": {"staff"},
        "Carol Smith": {"staff"},
        "dave": {"everyone"},
        "carol": set(),
    }


def test_a_user_that_no_line_knows_is_a_member_of_itself_alone() -> None:
    assert members("staff alice").of("bob") == {"bob"}
    assert Memberships().of("bob") == {"bob"}


def test_names_are_names_whatever_they_mean_elsewhere() -> None:
    found = members('all +x /y "@z"')
    assert [found.of(name) for name in ("+x", "/y", "@z")] == [{n, "all"} for n in ("+x", "/y", "@z")]
    assert found.of("alice") == {"alice"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a,b c", "roles:1: multiple values in role field"),
        ("a b\nb c\nc a", "roles: these roles are members of each other, which no server allows: "),
        ("a a", "roles: these roles are members of each other, which no server allows: a"),
        ("a @b", 'roles:1: could not open file "b"'),
    ],
)
def test_what_no_server_has_is_a_mistake(text: str, problem: str) -> None:
    (mistake,) = mistakes(text)
    assert mistake.startswith(problem)


EDGES = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 6)).filter(lambda edge: edge[0] < edge[1]), max_size=12
)


@given(EDGES)
def test_membership_is_what_can_be_reached(edges: list[tuple[int, int]]) -> None:
    found = members("\n".join(f"r{group} r{member}" for group, member in edges))
    reached = {member: {member} for member in range(7)}
    for _ in range(7):
        for group, member in edges:
            for groups in reached.values():
                if member in groups:
                    groups.add(group)
    assert all(found.of(f"r{member}") == {f"r{group}" for group in reached[member]} for member in range(7))
