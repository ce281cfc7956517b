"""Who is a member of which role: what PostgreSQL has in pg_auth_members, from there or from a file.

A line of a file names a role and then its members, `"role" "member" ...`; a role may have several lines.
It is split as pg_ident.conf is, inclusion too. Members of members are members.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter

from pgtlsproxy.errors import ConfigError, Mistake
from pgtlsproxy.identity import printable
from pgtlsproxy.policy.inclusion import NoSources, Sources, parse_lines
from pgtlsproxy.policy.records import Line, LineError


@dataclass(frozen=True, slots=True)
class Memberships:
    """Roles and their members.

    Args:
        names: the roles that were named with members, or none.
        groups: for every member the roles that list it.
    """

    names: frozenset[str] = frozenset()
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)

    def of(self, user: str) -> frozenset[str]:
        """The roles that a user is a member of, directly or not.

        It is a member of itself, known here or not: whether there is such a role the backend says, which
        lets nobody in as a role that there is not.
        """
        found = {user}
        waiting = [user]
        while waiting:
            for role in self.groups.get(waiting.pop(), ()):
                if role not in found:
                    found.add(role)
                    waiting.append(role)
        return frozenset(found)


def parse_roles(file: str, content: bytes, sources: Sources | None = None) -> Memberships:
    """Read a roles file.

    Args:
        file: the name that messages show; relative inclusions start in its folder.
        content: the whole file.
        sources: what the files hold that it includes; None where it may include none.

    Raises:
        ConfigError: with every mistake; roles that are members of each other are one.
    """
    found = memberships(parse_lines(file, content, sources or NoSources(), _parse_line))
    try:
        TopologicalSorter(found.groups).prepare()
    except CycleError as error:
        circle = ", ".join(printable(role) for role in error.args[1][1:])
        what = f"these roles are members of each other, which no server allows: {circle}"
        raise ConfigError([Mistake(printable(file), what)]) from None
    return found


def memberships(roles: Iterable[tuple[str, tuple[str, ...]]]) -> Memberships:
    """What roles and their members, in any order, come to."""
    names: set[str] = set()
    groups: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for role, members in roles:
        names.add(role)
        for member in members:
            groups[member][role] = None
    return Memberships(frozenset(names), {member: tuple(groups[member]) for member in groups})


def _parse_line(line: Line) -> tuple[str, tuple[str, ...]]:
    (role, *others), *members = line.fields
    if others:
        raise LineError("multiple values in role field: write one line for each role")
    return role.text, tuple(token.text for field in members for token in field)
