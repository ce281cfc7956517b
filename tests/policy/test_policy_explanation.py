"""What explain says is what decide decides, and each line before the deciding one has its reason."""

from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.policies import make_rules
from pgtlsproxy.identity import Certificate, ClientAddress, OSUser
from pgtlsproxy.policy.access import AccessRefused, AccessRequest, Facts, Grant, Login, Needs, Rules, decide
from pgtlsproxy.policy.explanation import Explanation, Open, explain
from pgtlsproxy.policy.hba import Replication
from pgtlsproxy.policy.request import ClientHost, Fact, Unknown
from pgtlsproxy.policy.roles import parse_roles

UNIX = ClientAddress(None, None, is_local=True)
LOOPBACK = ClientAddress(ip_address("127.0.0.1"), None, is_local=True)
REMOTE = ClientAddress(ip_address("10.1.2.3"), None, is_local=False)


def rules(hba: str, ident: str = "", **changes: object) -> Rules:
    return make_rules(hba, ident, **({"issuers": {"CN=A": "aa" * 32, "CN=B": "bb" * 32}} | changes))


NOW = datetime(2020, 1, 1, tzinfo=UTC)


def certificate(*common_names: str, dn: str = "CN=alice,O=Lab", **fields: object) -> Certificate:
    values = {"issuer_dn": "", "serial": 1, "sha256": "", "not_before": NOW, "not_after": NOW}
    return Certificate(common_names=common_names, dn=dn, **(values | fields))  # type: ignore[arg-type]


REQUEST = AccessRequest(user="alice", database="app", replication=Replication.NONE, address=REMOTE, tls=True)

LINES = [
    "hostssl all all all cert",
    "hostssl all all all cert map=m",
    "hostssl sameuser all all cert clientname=DN",
    "hostssl all all all scram-sha-256 clientcert=verify-full",
    "hostssl all all all trust clientcert=verify-ca",
    "hostssl all bob all reject clientcert=verify-ca",
    "hostssl all +staff all cert",
    "hostssl all all all cert clientname=SAN_DNS",
    "hostssl all alice all cert clientname=SAN_URI map=m",
    "hostssl app all all trust clientcert=verify-full clientname=SAN_EMAIL issuer=CN=A",
    "hostssl all /b all cert issuer=CN=A",
    "hostssl all all all cert issuer=CN=B issuer=CN=A map=m",
    "hostssl all all 10.0.0.0/8 scram-sha-256 clientcert=verify-ca issuer=CN=B",
    "hostssl /^al all .example.com cert map=m",
    "host all all all scram-sha-256",
    "host all all all password",
    "host all bob all md5",
    "hostssl app all all ldap ldapprefix=x clientcert=verify-ca",
    "host all all all trust",
    "host x all all reject",
    "host all bob 10.0.0.0/8 reject",
    "host samerole /^b all trust",
    "host replication all all trust",
    "hostnossl all alice 127.0.0.1/32 trust",
    "hostnogssenc all +dba .example.net reject",
    "hostgssenc all all all trust",
    "local all all peer map=m",
    "local all alice trust",
]
POLICIES = st.builds(
    lambda lines, login, own, roles, verifiers: rules(
        "\n".join(lines),
        "m alice bob\nm bob all\nm /^a +staff\n",
        login=login,
        own_credential=own or login != "passthrough",
        roles=roles,
        has_verifiers=verifiers,
    ),
    st.lists(st.sampled_from(LINES), min_size=1, max_size=8),
    st.sampled_from(list(Login)),
    st.booleans(),
    st.sampled_from([None, parse_roles("roles", b"staff alice\ndba bob\n")]),
    st.booleans(),
)
NAMES = st.lists(st.sampled_from(["alice", "bob", "a", "*"]), max_size=2).map(tuple)
CERTIFICATES = st.builds(
    lambda common_names, issuer, **names: certificate(*common_names, **names, **issuer),
    NAMES,
    st.sampled_from(
        [
            {"issuer_dn": "CN=A", "issuer_key": "aa" * 32},
            {"issuer_dn": "CN=B", "issuer_key": "bb" * 32},
            {"issuer_dn": "CN=A", "issuer_key": "cc" * 32},
            {"issuer_dn": "CN=A"},
        ]
    ),
    dns_names=NAMES,
    uris=NAMES,
    emails=NAMES,
)
REQUESTS = st.builds(
    AccessRequest,
    user=st.sampled_from(["alice", "bob", "postgres", "b\udcff"]),
    database=st.sampled_from(["app", "alice", "x", "staff"]),
    replication=st.sampled_from(list(Replication)),
    address=st.sampled_from([LOOPBACK, REMOTE, UNIX]),
    tls=st.booleans(),
    certificate=st.none() | CERTIFICATES,
    os_user=st.sampled_from([None, OSUser(1, 1, 1, "alice"), OSUser(1, 1, 1, None)]),
)
FACTS = st.builds(
    Facts,
    st.just(()),
    st.sampled_from([None, frozenset({"alice", "staff"}), Unknown("nobody answers")]),
    st.sampled_from([None, ClientHost("db.example.com", is_confirmed=True), Unknown("late")]),
)


def decided(policy: Rules, request: AccessRequest, facts: Facts) -> Grant | Needs | AccessRefused:
    try:
        return decide(policy, request, facts)
    except AccessRefused as refusal:
        return refusal


@given(POLICIES, REQUESTS, FACTS)
@settings(max_examples=1000, deadline=None)
def test_the_verdict_is_the_policys_and_the_trace_lists_exactly_the_earlier_lines(
    policy: Rules, request: AccessRequest, facts: Facts
) -> None:
    told = explain(policy, request, facts)
    match decided(policy, request, facts):
        case Needs() as needs:
            assert told == needs
            return
        case Grant() as grant:
            assert isinstance(told, Explanation)
            assert (told.allowed, told.hba, told.ident) == (True, grant.hba, grant.ident)
            assert told.needs is not None
            assert (told.sqlstate, told.reply, told.decided_by) == (None, None, None)
        case AccessRefused() as refusal:
            assert isinstance(told, Explanation)
            assert (told.allowed, told.hba, told.ident) == (False, refusal.hba, refusal.ident)
            assert (told.sqlstate, told.reply) == (refusal.sqlstate, refusal.reply)
            assert (told.reason, told.decided_by) == (refusal.reason, refusal.decided_by)
            assert told.needs is None
    number = len(policy.hba) + 1 if told.hba is None else told.hba.number
    before = 0 if told.decided_by == "plaintext_from" else number - 1
    assert [one.rule.ref.number for one in told.skipped] == list(range(1, before + 1))


@given(POLICIES, REQUESTS, FACTS, st.sets(st.sampled_from(Open)))
@settings(max_examples=500, deadline=None)
def test_what_is_left_open_never_changes_an_answer_into_another(
    policy: Rules, request: AccessRequest, facts: Facts, left_open: set[Open]
) -> None:
    whole, told = explain(policy, request, facts), explain(policy, request, facts, frozenset(left_open))
    if isinstance(told, Explanation) and told.allowed is None:
        assert "the question does not say" in told.reason
        assert told.hba is not None
    else:
        assert told == whole


@pytest.mark.parametrize(
    ("line", "address", "missing"),
    [
        ("hostssl all all all cert", REMOTE, {Open.CERTIFICATE, Open.COMMON_NAME}),
        ("hostssl all all all cert clientname=DN", REMOTE, {Open.CERTIFICATE, Open.DN}),
        ("hostssl all all all cert clientname=SAN_DNS", REMOTE, {Open.CERTIFICATE, Open.ALTERNATIVE_NAMES}),
        ("hostssl all all all cert clientname=SAN_URI", REMOTE, {Open.CERTIFICATE, Open.ALTERNATIVE_NAMES}),
        ("hostssl all all all cert clientname=SAN_EMAIL", REMOTE, {Open.CERTIFICATE, Open.ALTERNATIVE_NAMES}),
        ("hostssl all all all cert issuer=CN=A", REMOTE, {Open.CERTIFICATE, Open.COMMON_NAME, Open.ISSUER}),
        (
            "hostssl all all all trust clientcert=verify-ca issuer=CN=A",
            REMOTE,
            {Open.CERTIFICATE, Open.ISSUER},
        ),
        ("hostssl all all all trust clientcert=verify-ca", REMOTE, {Open.CERTIFICATE}),
        ("hostssl all all all reject clientcert=verify-ca", REMOTE, {Open.CERTIFICATE}),
        ("hostssl all all all scram-sha-256", REMOTE, set()),
        ("hostssl all all all reject", REMOTE, set()),
        ("local all all peer", UNIX, {Open.OS_USER}),
        ("local all all scram-sha-256", UNIX, set()),
    ],
)
def test_only_what_the_line_asks_for_is_missed(line: str, address: ClientAddress, missing: set[Open]) -> None:
    request = replace(REQUEST, address=address, tls=not address.is_unix)
    for each in Open:
        told = explain(rules(line), request, Facts(), frozenset({each}))
        assert isinstance(told, Explanation)
        assert (told.allowed is None) is (each in missing)
        assert (each.value in told.reason) is (each in missing)


@pytest.mark.parametrize(
    ("method", "login", "needs", "text"),
    [
        ("scram-sha-256", Login.PASSTHROUGH, "scram-sha-256", "by SCRAM"),
        ("scram-sha-256", Login.CERTIFICATE, "scram-sha-256", "by SCRAM"),
        ("password", Login.CERTIFICATE, "password", "its password"),
        ("password", Login.PASSFILE, "password", "its password"),
        ("password", Login.PASSTHROUGH, "backend", "the backend still has to ask"),
        ("md5", Login.PASSTHROUGH, "backend", "the backend still has to ask"),
        ("trust", Login.PASSTHROUGH, "backend", "the backend still has to ask"),
    ],
)
def test_what_is_still_asked_for_is_said(method: str, login: Login, needs: str, text: str) -> None:
    policy = rules(f"host all all all {method}", login=login, has_verifiers=True)
    told = explain(policy, REQUEST, Facts())
    assert isinstance(told, Explanation)
    assert (told.allowed, told.needs) == (True, needs)
    assert text in told.reason


def test_members_that_a_file_lists_are_no_question() -> None:
    policy = rules("host all +staff all trust", roles=parse_roles("roles", b"staff alice\n"))
    told = explain(policy, REQUEST, Facts())
    assert isinstance(told, Explanation)
    assert told.allowed
    assert explain(replace(policy, roles=None), REQUEST, Facts()) == Needs(Fact.ROLES)
