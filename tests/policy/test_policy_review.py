"""What works and deserves a look is told once, at its line, with what to do."""

from dataclasses import replace
from ipaddress import ip_network

import pytest

from fixtures.policies import PRIMARY, make_rules
from pgtlsproxy.policy.access import Login
from pgtlsproxy.policy.databases import Databases, Destination
from pgtlsproxy.policy.hba import HbaRules
from pgtlsproxy.policy.idle import Door
from pgtlsproxy.policy.review import Reviewed, for_the_backend, review
from pgtlsproxy.policy.roles import parse_roles

OPEN = Door(unix=True, tls=True, versions=frozenset({4, 6}), clear_from=(ip_network("127.0.0.0/8"),))
TCP = replace(OPEN, unix=False)


def listener(hba: str, ident: str = "", door: Door = OPEN, reserved: str = "", **changes: object) -> Reviewed:
    policy = make_rules(hba, ident, **({"login": Login.CERTIFICATE, "own_credential": True} | changes))
    listed = frozenset(reserved.split())
    return Reviewed(policy, door, {backend.name: listed for backend in policy.databases.backends})


def told(*listeners: Reviewed) -> list[str]:
    return [mistake.where for mistake in review(listeners)]


@pytest.mark.parametrize(
    ("hba", "ident", "reserved"),
    [
        ("hostssl all all all cert map=m", "m alice alice", ""),
        ("hostssl all all all cert map=m\nlocal all all peer map=n", "m a a\nn b b\nm c c\n", ""),
        ("hostssl all all all cert map=m", r"m /^(.*)@example\.com$ \1", ""),
        ("hostssl /^app_.*$ /^(a|b)$ all cert", "", ""),
        ("hostssl all postgres all cert\nhostssl all all all cert", "", "postgres"),
        ("hostssl all postgres all reject\nhostssl all all all cert", "", "postgres"),
        ("hostssl all alice all cert", "", "postgres"),
        ("hostssl all all all reject", "", "postgres"),
    ],
)
def test_nothing_is_said_of_what_is_as_it_should_be(hba: str, ident: str, reserved: str) -> None:
    assert review([listener(hba, ident, reserved=reserved)]) == []


def test_a_line_is_idle_only_where_it_serves_at_no_listener() -> None:
    both = "local all all peer\nhost all all all trust"
    assert told(listener(both)) == []
    assert told(listener(both, door=TCP)) == ["hba:1"]
    assert told(listener(both, door=TCP), listener(both)) == []
    assert told(listener(both, door=TCP), listener(both, door=TCP)) == ["hba:1"]


def test_a_line_that_is_included_twice_serves_once() -> None:
    once = listener("host all all all trust")
    twice = replace(once.rules, hba=HbaRules((*once.rules.hba, *once.rules.hba)))
    assert told(replace(once, rules=twice)) == []


def test_a_map_that_nobody_uses_is_told_at_its_first_line() -> None:
    ident = "m alice alice\nn bob bob\nn /^b$ bob\n"
    used = listener("hostssl all all all cert map=m", ident)
    (mistake,) = review([used])
    assert mistake.where == "ident:2"
    assert 'map "n" is used by no line' in mistake.what
    other = listener("hostssl all all all cert map=n", ident)
    assert told(used, other) == told(other, used) == []
    assert told(listener("hostssl all all all cert", ident)) == ["ident:1", "ident:2"]


def test_expressions_that_mean_parts_of_names_are_told_with_their_line() -> None:
    hba = "hostssl /^app /^al,bob,/b$ all cert map=m\nhostssl all /^a$ all cert"
    ident = "m /example alice\nm alice /^al\nm /^x$ bob\n"
    found = review([listener(hba, ident), listener(hba, ident)])
    assert [one.where for one in found] == ["hba:1", "ident:1", "ident:2"]
    assert '"/^app", "/^al", "/b$" is found anywhere' in found[0].what


@pytest.mark.parametrize(
    ("hba", "expected"),
    [
        ("hostssl all all all cert", ["hba:1"]),
        ("hostssl all alice all cert\nhostssl all +staff all cert", ["hba:2"]),
        ("hostssl all +crew all cert", []),
        ("hostssl all /^post.*$ all cert", ["hba:1"]),
        ('hostssl all "all" all cert', []),
    ],
)
def test_a_reserved_user_that_no_line_names_is_told_where_it_comes(hba: str, expected: list[str]) -> None:
    roles = parse_roles("roles", b"staff postgres\ncrew bob\n")
    one = listener(hba, reserved="postgres", roles=roles)
    assert told(one) == expected
    assert told(one, one) == expected
    assert told(listener(hba, reserved="postgres", roles=roles, own_credential=False)) == []
    assert told(replace(one, reserved_users={})) == []


def test_one_listener_that_names_a_reserved_user_is_enough() -> None:
    general = listener("hostssl all all all cert", reserved="postgres")
    bastion = listener("hostssl all postgres all cert", reserved="postgres")
    assert told(general, bastion) == []
    other = listener("hostssl all postgres all cert", reserved="postgres", name="other")
    assert told(general, other) == ["hba:1"]


def test_members_that_only_a_server_knows_are_not_guessed() -> None:
    assert told(listener("hostssl all +staff all cert", reserved="postgres", looks_up_roles=True)) == []


def test_options_that_the_backend_alone_knows_are_noted_once() -> None:
    hba = (
        "host all all all ldap ldapserver=x ldapprefix=y\nhost all all all pam\nhost all all all gss map=m\n"
    )
    policies = [listener(hba).rules, listener(hba, door=TCP).rules]
    assert [(note.where, note.what.partition(":")[0]) for note in for_the_backend(policies)] == [
        ("hba:1", "ldapserver, ldapprefix"),
        ("hba:3", "map"),
    ]


def test_each_backend_has_reserved_users_of_its_own() -> None:
    """Clients of the first line go to `crm` alone, where nobody listed `app`."""
    crm, primary = (replace(PRIMARY, name=name, own_credential=True) for name in ("crm", "primary"))
    databases = Databases(listed={"crm": Destination(crm)}, others=Destination(primary))
    policy = make_rules("hostssl crm all all cert\nhostssl all all all cert", databases=databases)
    one = Reviewed(policy, OPEN, {"primary": frozenset({"app"})})
    (mistake,) = review([one])
    assert mistake.where == "hba:2"
    assert "reserved_users of backend primary" in mistake.what
    named = make_rules("hostssl crm app all cert\nhostssl all all all cert", databases=databases)
    assert told(replace(one, rules=named)) == ["hba:2"]
