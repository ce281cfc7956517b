"""subjectAltNames and issuers, which are ours: what of a certificate is held against a line, and how."""

import itertools
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address

import pytest

from fixtures.policies import make_rules
from pgtlsproxy.identity import Certificate, ClientAddress, decode_name
from pgtlsproxy.policy.access import (
    AccessRefused,
    AccessRequest,
    DecidedBy,
    Fact,
    Facts,
    Grant,
    Login,
    Needs,
    Rules,
    decide,
)
from pgtlsproxy.policy.hba import Replication
from pgtlsproxy.policy.ident import IdentMatch, parse_ident
from pgtlsproxy.policy.names import MAX_ALTERNATIVE_NAMES
from pgtlsproxy.policy.records import LineRef
from pgtlsproxy.policy.request import Unknown
from pgtlsproxy.policy.soundness import check_issuers

KEY_A, KEY_B = "aa" * 32, "bb" * 32
CA_A, CA_B = "CN=Team A CA,O=Corp", "CN=Team B CA,O=Corp"

CERTIFICATE = Certificate(
    common_names=("nobody",),
    dn="CN=nobody",
    issuer_dn=CA_A,
    serial=1,
    sha256="ab" * 32,
    not_before=datetime(2020, 1, 1, tzinfo=UTC),
    not_after=datetime(2040, 1, 1, tzinfo=UTC),
    issuer_key=KEY_A,
)
NO_FACTS = Facts()
REMOTE = ClientAddress(ip_address("10.1.2.3"), 5000, is_local=False)

KINDS = {"SAN_DNS": "dns_names", "SAN_URI": "uris", "SAN_EMAIL": "emails"}
"""The fields of a certificate in which the names are."""


def rules(hba: str, ident: str = "", **changes: object) -> Rules:
    values: dict[str, object] = {
        "issuers": {CA_A: KEY_A, CA_B: KEY_B},
        "login": Login.CERTIFICATE,
        "own_credential": True,
    }
    return make_rules(hba, ident, **(values | changes))


def asking(certificate: Certificate | None, user: str = "alice") -> AccessRequest:
    return AccessRequest(
        user=user,
        database="app",
        replication=Replication.NONE,
        address=REMOTE,
        tls=True,
        certificate=certificate,
    )


def named(kind: str, *names: str) -> Certificate:
    return replace(CERTIFICATE, **{KINDS[kind]: names})  # type: ignore[arg-type]


def granted(policy: Rules, request: AccessRequest, facts: Facts = NO_FACTS) -> Grant:
    grant = decide(policy, request, facts)
    assert isinstance(grant, Grant)
    return grant


def refused(policy: Rules, request: AccessRequest, facts: Facts = NO_FACTS) -> AccessRefused:
    with pytest.raises(AccessRefused) as caught:
        decide(policy, request, facts)
    return caught.value


# --- subjectAltNames


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_map_one_name_of_the_kind_is_the_user(kind: str) -> None:
    policy = rules(f"hostssl all all all cert clientname={kind}")
    for names in (("alice",), ("bob", "alice"), ("alice", "bob"), ("", "alice")):
        assert granted(policy, asking(named(kind, *names))).identity == "alice"
    for names in ((), ("",), ("bob",), ("ALICE",), ("alice ",), ("alice.",), ("ali",), ("\uff41lice",)):
        error = refused(policy, asking(named(kind, *names)))
        assert error.reply == 'certificate authentication failed for user "alice"'
        assert (error.sqlstate, error.decided_by) == ("28000", DecidedBy.HBA)


@pytest.mark.parametrize(("kind", "other"), list(itertools.permutations(KINDS, 2)))
def test_names_of_another_kind_and_common_names_do_not_count(kind: str, other: str) -> None:
    certificate = replace(named(other, "alice"), common_names=("alice",), dn="alice")
    refused(rules(f"hostssl all all all cert clientname={kind}"), asking(certificate))
    for subject in ("CN", "DN"):
        certificate = named(kind, "alice")
        refused(rules(f"hostssl all all all cert clientname={subject}"), asking(certificate))


def test_what_is_shown_in_the_log_is_never_compared() -> None:
    certificate = replace(CERTIFICATE, subject_alt_names=("DNS:alice", "alice"))
    refused(rules("hostssl all all all cert clientname=SAN_DNS"), asking(certificate))


def test_bytes_that_are_no_utf_8_are_compared_as_they_are() -> None:
    policy = rules("hostssl all all all cert clientname=SAN_URI")
    raw = decode_name(b"al\xe4ce")
    assert granted(policy, asking(named("SAN_URI", raw), raw)).identity == raw
    refused(policy, asking(named("SAN_URI", "aläce"), raw))


@pytest.mark.parametrize("wildcard", ["*", "*.corp.example", "a*.corp.example", "app.*"])
def test_a_wildcard_is_nobody(wildcard: str) -> None:
    policy = rules("hostssl all all all cert clientname=SAN_DNS")
    assert "no SAN_DNS that can name a user" in refused(policy, asking(named("SAN_DNS", wildcard))).reason
    refused(policy, asking(named("SAN_DNS", wildcard), wildcard))
    refused(policy, asking(named("SAN_DNS", wildcard), "app.corp.example"))
    mapped = rules("hostssl all all all cert clientname=SAN_DNS map=m", "m /. all\n")
    refused(mapped, asking(named("SAN_DNS", wildcard)))
    assert granted(mapped, asking(named("SAN_DNS", wildcard, "app.corp.example"))).identity == (
        "app.corp.example"
    )


def test_with_a_map_the_first_line_that_takes_one_of_the_names_is_told() -> None:
    ident = "m carol alice\nm /^b alice\nm dave alice\nm bob alice\n"
    policy = rules("hostssl all all all cert clientname=SAN_URI map=m", ident)
    for names, line, name in (
        (("dave", "carol"), 1, "carol"),
        (("carol", "dave"), 1, "carol"),
        (("dave", "bob"), 2, "bob"),
        (("bob", "dave"), 2, "bob"),
        (("bx", "bob"), 2, "bx"),
        (("bob", "bx"), 2, "bob"),
        (("x", "dave", "dave"), 3, "dave"),
    ):
        grant = granted(policy, asking(named("SAN_URI", *names)))
        assert grant.ident == LineRef("ident", line, ident.splitlines()[line - 1])
        assert grant.identity == name
    error = refused(policy, asking(named("SAN_URI", "x", "y")))
    assert error.decided_by is DecidedBy.IDENT
    assert 'no match in usermap "m" for user "alice" authenticated as "x", "y"' in error.reason


def test_a_spiffe_id_is_mapped_by_what_it_captures() -> None:
    policy = rules(
        f'hostssl all all all cert clientname=SAN_URI issuer="{CA_A}" map=spiffe',
        "spiffe /^spiffe://prod\\.corp/ns/crm/sa/([a-z0-9_]+)$ \\1\n",
    )
    id_ = "spiffe://prod.corp/ns/crm/sa/alice"
    assert granted(policy, asking(named("SAN_URI", id_))).identity == id_
    for wrong in (f"{id_}x", f"{id_}/", f"x{id_}", f"{id_}\n", "spiffe://prodxcorp/ns/crm/sa/alice"):
        refused(policy, asking(named("SAN_URI", wrong)))


def test_a_map_asks_for_roles_once_for_all_names() -> None:
    policy = rules(
        "hostssl all all all cert clientname=SAN_URI map=m",
        "m carol +staff\nm bob alice\n",
        looks_up_roles=True,
    )
    request = asking(named("SAN_URI", "bob", "carol"))
    assert decide(policy, request, Facts()) == Needs(Fact.ROLES)
    assert granted(policy, request, Facts(roles=frozenset({"staff"}))).identity == "carol"
    assert granted(policy, request, Facts(roles=frozenset())).identity == "bob"
    assert "no answer" in refused(policy, request, Facts(roles=Unknown("no answer"))).reason


def test_as_many_names_as_a_hundred_are_looked_at_and_one_more_is_refused() -> None:
    policy = rules("hostssl all all all cert clientname=SAN_DNS")
    names = [f"host{number}" for number in range(MAX_ALTERNATIVE_NAMES - 1)] + ["alice"]
    assert granted(policy, asking(named("SAN_DNS", *names))).identity == "alice"
    error = refused(policy, asking(named("SAN_DNS", "alice", *names)))
    assert "has 101 names of SAN_DNS, and 100 are the most" in error.reason
    others = replace(named("SAN_DNS", "alice"), uris=tuple(names) * 2)
    assert granted(policy, asking(others)).identity == "alice"


def test_a_refusal_lists_only_some_of_many_names() -> None:
    names = [f"host{number}" for number in range(50)]
    error = refused(rules("hostssl all all all cert clientname=SAN_DNS"), asking(named("SAN_DNS", *names)))
    assert error.reason.endswith('(host0", "host1", "host2", "host3", "host4 and 45 more) do not match')


def test_a_reserved_user_needs_a_literal_map_for_its_alternative_name_too() -> None:
    for ident, is_granted in (("m /^s postgres", True), ("m s /^p", False), ("m s all", False)):
        policy = rules("hostssl all postgres all cert clientname=SAN_URI map=m", ident)
        request = asking(named("SAN_URI", "s"), "postgres")
        if is_granted:
            granted(policy, request)
        else:
            assert refused(policy, request).decided_by is DecidedBy.RESERVED_USERS


def test_find_any_says_which_name_it_was() -> None:
    maps = parse_ident("ident", b"m a x\nm b x\n")
    assert maps.find_any("m", "x", ("b", "a")) == IdentMatch(LineRef("ident", 1, "m a x"), True, "a")
    assert maps.find_any("m", "x", ()) is None


# --- issuers

ONLY_A = f'hostssl all all all cert issuer="{CA_A}" clientname=SAN_URI'
ALICE = named("SAN_URI", "alice")


def test_a_certificate_of_the_issuer_is_taken_and_of_no_other() -> None:
    assert granted(rules(ONLY_A), asking(ALICE)).identity == "alice"
    error = refused(rules(ONLY_A), asking(replace(ALICE, issuer_dn=CA_B, issuer_key=KEY_B)))
    assert error.reply == "connection requires a valid client certificate"
    assert (error.sqlstate, error.decided_by) == ("28000", DecidedBy.HBA)
    assert (
        f"needs a certificate issued by {CA_A} of ssl_ca_file, and the client's is by {CA_B}" in error.reason
    )
    refused(rules(ONLY_A), asking(None))


def test_the_name_of_an_issuer_alone_is_nothing() -> None:
    """Another CA that is trusted can sign an intermediate of any name."""
    for key in (KEY_B, "cc" * 32, None):
        error = refused(rules(ONLY_A), asking(replace(ALICE, issuer_key=key)))
        assert error.reason.endswith("with a key that is not in ssl_ca_file")


def test_one_of_several_issuers_will_do() -> None:
    policy = rules(f'{ONLY_A} issuer="{CA_B}"')
    granted(policy, asking(ALICE))
    granted(policy, asking(replace(ALICE, issuer_dn=CA_B, issuer_key=KEY_B)))
    refused(policy, asking(replace(ALICE, issuer_dn=CA_B, issuer_key="cc" * 32)))


def test_an_issuer_is_asked_of_lines_that_compare_no_names_too() -> None:
    policy = rules(
        f'hostssl all all all trust clientcert=verify-ca issuer="{CA_A}"',
        login=Login.PASSTHROUGH,
        own_credential=False,
    )
    granted(policy, asking(CERTIFICATE))
    refused(policy, asking(replace(CERTIFICATE, issuer_key=KEY_B)))


@pytest.mark.parametrize("issuers", [{}, {CA_B: KEY_B}, {CA_A: None, CA_B: KEY_B}])
def test_an_issuer_that_is_trusted_no_more_or_ambiguous_vouches_for_nobody(
    issuers: dict[str, str | None],
) -> None:
    policy = rules(ONLY_A, issuers=issuers)
    refused(policy, asking(ALICE))
    refused(policy, asking(replace(ALICE, issuer_key=None)))


def test_an_issuer_that_is_not_there_or_ambiguous_is_a_mistake() -> None:
    assert check_issuers(rules(ONLY_A)) == ()
    for issuers, problem in (
        ({CA_B: KEY_B}, f"has no CA of this name, only {CA_B}"),
        ({CA_A: None}, "has CAs with several keys that bear this name"),
        ({f"CN={n}": KEY_B for n in range(9)}, "only CN=0, CN=1, CN=2, CN=3, CN=4 and 4 more"),
    ):
        (mistake,) = check_issuers(rules(ONLY_A, issuers=issuers))
        assert mistake.where == "hba:1"
        assert mistake.what.startswith(f'issuer "{CA_A}": ssl_ca_file of listener central has ')
        assert problem in mistake.what
