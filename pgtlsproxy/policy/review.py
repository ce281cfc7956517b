"""What works, and deserves a look: lines that never decide, or may mean more than was meant.

For `check` alone: nobody is let in or kept out by it. Several listeners may share a file, so that a line
idle at one of them serves at another: it is told only where it serves at none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pgtlsproxy.errors import Mistake
from pgtlsproxy.identity import printable
from pgtlsproxy.policy.access import Rules
from pgtlsproxy.policy.anchoring import is_anchored
from pgtlsproxy.policy.databases import BackendTerms
from pgtlsproxy.policy.idle import Door, idle_lines, ways
from pgtlsproxy.policy.pattern import Pattern
from pgtlsproxy.policy.records import LineRef, Token
from pgtlsproxy.policy.rule import HbaRule, Method


@dataclass(frozen=True, slots=True)
class Reviewed:
    """A listener.

    Args:
        rules: its policy.
        door: how clients come to it.
        reserved_users: by backend, those that the configuration lists, and not only the default does.
    """

    rules: Rules
    door: Door
    reserved_users: Mapping[str, frozenset[str]] = field(default_factory=dict)


def review(listeners: Sequence[Reviewed]) -> list[Mistake]:
    """What deserves a look in the policies of all listeners."""
    return [
        *_idle(listeners),
        *_unused_maps(listeners),
        *_unanchored(listeners),
        *_unnamed_reserved_users(listeners),
    ]


def for_the_backend(policies: Iterable[Rules]) -> list[Mistake]:
    """The lines with options that the backend's own file gives a meaning, and this proxy none."""
    lines = {rule.ref: rule for rules in policies for rule in rules.hba if rule.ignored}
    return [
        ref.mistake(
            f"{', '.join(option.partition('=')[0] for option in rule.ignored)}: the backend's own file says "
            f"what it does; here {rule.method} only says how the backend has to ask"
        )
        for ref, rule in lines.items()
    ]


def _idle(listeners: Sequence[Reviewed]) -> Iterator[Mistake]:
    found: dict[LineRef, str | None] = {}
    serving: set[LineRef] = set()
    for one in listeners:
        idle = {id(each.rule): each.why for each in idle_lines(one.rules.hba, one.rules.listener, one.door)}
        for rule in one.rules.hba:
            if id(rule) in idle:
                found.setdefault(rule.ref, idle[id(rule)])
            else:
                serving.add(rule.ref)
    for ref, why in found.items():
        if why is not None and ref not in serving:
            yield ref.mistake(why)


def _unused_maps(listeners: Sequence[Reviewed]) -> Iterator[Mistake]:
    asked_for = [frozenset(rule.map for rule in one.rules.hba) for one in listeners]
    if all(one.rules.ident.names <= asked for one, asked in zip(listeners, asked_for, strict=True)):
        return
    unused: dict[LineRef, str] = {}
    used: set[LineRef] = set()
    for one, asked in zip(listeners, asked_for, strict=True):
        firsts: dict[str, LineRef] = {}
        for line in one.rules.ident:
            firsts.setdefault(line.map, line.ref)
        for name, ref in firsts.items():
            if name in asked:
                used.add(ref)
            else:
                unused.setdefault(ref, name)
    for ref, name in unused.items():
        if ref not in used:
            yield ref.mistake(
                f'map "{printable(name)}" is used by no line of pg_hba.conf (map={printable(name)}): take '
                "its lines out, or look for a name that is spelt otherwise"
            )


def _unanchored(listeners: Sequence[Reviewed]) -> Iterator[Mistake]:
    lines: dict[LineRef, tuple[Token, ...]] = {}
    for one in listeners:
        for rule in one.rules.hba:
            lines[rule.ref] = (*rule.databases, *rule.users)
        for line in one.rules.ident.with_expressions:
            lines[line.ref] = (line.system_user, line.database_user)
    for ref, tokens in lines.items():
        if loose := [str(token) for token in tokens if isinstance(token, Pattern) and not _is_whole(token)]:
            shown = ", ".join(f'"{text}"' for text in loose)
            yield ref.mistake(
                f"{shown} is found anywhere in a name, not only in a whole one: begin it with ^ and end it "
                "with $, and write .* where anything may stand"
            )


def _is_whole(token: Pattern) -> bool:
    return is_anchored(token.program.text)


def _unnamed_reserved_users(listeners: Sequence[Reviewed]) -> Iterator[Mistake]:
    named = {
        (backend.name, token.text)
        for one in listeners
        for rule in one.rules.hba
        for token in rule.users
        if rule.names_user(token.text)
        for backend in one.rules.databases.reached_by(rule.databases)
    }
    told: set[tuple[str, str]] = set()
    for one in listeners:
        for backend in one.rules.databases.backends:
            for user in sorted(one.reserved_users.get(backend.name, ())):
                if not backend.own_credential or (backend.name, user) in named | told:
                    continue
                rule = next(
                    (rule for rule in _open_lines(one, backend) if _means(rule, user, one.rules)), None
                )
                if rule is None:
                    continue
                told.add((backend.name, user))
                yield rule.ref.mistake(
                    f'user "{printable(user)}" is in reserved_users of backend {backend.name} and comes to '
                    "this line, which does not name it: it is refused; name it in a line of its own, or "
                    "reject it there"
                )


def _open_lines(one: Reviewed, backend: BackendTerms) -> Iterable[HbaRule]:
    """The lines by which somebody may come to a backend."""
    return (
        rule
        for rule in one.rules.hba
        if rule.method is not Method.REJECT
        and ways(rule, one.door)
        and backend in one.rules.databases.reached_by(rule.databases)
    )


def _means(rule: HbaRule, user: str, rules: Rules) -> bool:
    """Whether it is certain that a line is for a user, without naming it."""
    return any(
        token.is_keyword("all")
        or (isinstance(token, Pattern) and token.program.matches(user))
        or (token.role is not None and rules.roles is not None and token.role in rules.roles.of(user))
        for token in rule.users
    )
