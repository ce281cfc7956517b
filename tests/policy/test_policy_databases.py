"""Where a database leads, and what is said of one that leads nowhere."""

from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fixtures.policies import PRIMARY, make_rules
from pgtlsproxy.identity import Certificate, Challenge, ClientAddress, OSUser, Proof, ProofKind
from pgtlsproxy.policy.access import AccessRefused, AccessRequest, DecidedBy, Facts, Grant, Rules, decide
from pgtlsproxy.policy.continuity import require_same
from pgtlsproxy.policy.databases import BackendTerms, Databases, Destination
from pgtlsproxy.policy.hba import Method, Replication
from pgtlsproxy.policy.matching import first_match
from pgtlsproxy.policy.proofs import Login
from pgtlsproxy.policy.rule import HbaRule

NOW = datetime(2020, 1, 1, tzinfo=UTC)
ALICE = Certificate(
    common_names=("alice",), dn="CN=alice", issuer_dn="", serial=1, sha256="", not_before=NOW, not_after=NOW
)
REQUEST = AccessRequest(
    user="alice",
    database="crm",
    replication=Replication.NONE,
    address=ClientAddress(ip_address("10.1.2.3"), 5000, is_local=False),
    tls=True,
    certificate=ALICE,
)
AT_SOCKET = replace(
    REQUEST, address=ClientAddress(None, None, is_local=True), tls=False, os_user=OSUser(1, 1, 1, "alice")
)
PHYSICAL = replace(REQUEST, replication=Replication.PHYSICAL)


def backend(name: str, login: Login = Login.PASSTHROUGH) -> BackendTerms:
    return replace(PRIMARY, name=name, login=login, own_credential=login is not Login.PASSTHROUGH)


CRM, REPLICAS, OTHERS = backend("crm"), backend("replicas", Login.CERTIFICATE), backend("others")
LISTED = {"crm": Destination(CRM), "crm_ro": Destination(REPLICAS, "crm")}
WITH_OTHERS = Databases(listed=LISTED, others=Destination(OTHERS))
WITHOUT = Databases(listed=LISTED)


def granted(policy: Rules, request: AccessRequest) -> Grant:
    grant = decide(policy, request, Facts())
    assert isinstance(grant, Grant)
    return grant


def refused(policy: Rules, request: AccessRequest) -> AccessRefused:
    with pytest.raises(AccessRefused) as caught:
        decide(policy, request, Facts())
    return caught.value


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (REQUEST, ("crm", "crm", Login.PASSTHROUGH)),
        (replace(REQUEST, database="crm_ro"), ("replicas", "crm", Login.CERTIFICATE)),
        (replace(REQUEST, database="CRM"), ("others", "CRM", Login.PASSTHROUGH)),
        (replace(REQUEST, database="*"), ("others", "*", Login.PASSTHROUGH)),
        (replace(REQUEST, replication=Replication.LOGICAL), ("crm", "crm", Login.PASSTHROUGH)),
        (PHYSICAL, ("others", "crm", Login.PASSTHROUGH)),
        (replace(PHYSICAL, database=""), ("others", "", Login.PASSTHROUGH)),
    ],
)
def test_a_grant_names_the_backend_of_its_database(
    request_: AccessRequest, expected: tuple[str, str, Login]
) -> None:
    policy = make_rules("hostssl all,replication alice all cert", databases=WITH_OTHERS)
    grant = granted(policy, request_)
    assert (grant.backend, grant.backend_database, grant.login) == expected
    assert grant.database == request_.database


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        ("hostssl all all all cert", REQUEST),
        ("hostssl all all all trust clientcert=verify-full", REQUEST),
        ("local all all peer", AT_SOCKET),
    ],
)
def test_who_has_been_proved_is_told_that_there_is_no_such_database(
    line: str, request_: AccessRequest
) -> None:
    error = refused(make_rules(line, databases=WITHOUT), replace(request_, database="shop"))
    assert (error.sqlstate, error.reply) == ("3D000", 'database "shop" does not exist')
    assert error.decided_by is DecidedBy.DATABASES
    assert 'hba:1: the client asks for database "shop", which is not listed' in error.reason


@pytest.mark.parametrize("method", ["trust", "scram-sha-256", "md5", "ldap ldapserver=x ldapprefix=x", "gss"])
@pytest.mark.parametrize("option", ["", "clientcert=verify-ca", "clientcert=verify-full"])
@pytest.mark.parametrize("request_", [REQUEST, PHYSICAL])
def test_who_would_still_have_to_prove_it_is_told_that_this_failed(
    method: str, option: str, request_: AccessRequest
) -> None:
    if method == "trust" and option == "clientcert=verify-full":
        return  # that is proved
    policy = make_rules(f"hostssl all,replication all all {method} {option}", databases=WITHOUT)
    error = refused(policy, replace(request_, database="shop"))
    name = Method(method.partition(" ")[0])
    assert error.sqlstate == ("28P01" if name in {Method.SCRAM_SHA_256, Method.MD5} else "28000")
    assert error.reply.endswith('authentication failed for user "alice"')
    assert "shop" not in error.reply
    assert error.decided_by is DecidedBy.DATABASES


@pytest.mark.parametrize("database", ["crm", "shop"])
@pytest.mark.parametrize(
    ("hba", "changes"),
    [
        ("hostssl all all 10.9.0.0/16 cert", {}),
        ("hostssl all all all reject", {}),
        ("hostssl all all all cert", {"certificate": None}),
        ("hostssl all all all cert", {"user": "bob"}),
        ("hostssl all all all cert map=m", {}),
        ("hostssl all all all cert", {"tls": False, "certificate": None}),
    ],
)
def test_a_refusal_of_the_policy_comes_first_and_is_the_same_for_every_name(
    hba: str, changes: dict[str, object], database: str
) -> None:
    policy = make_rules(hba, "m bob alice", databases=WITHOUT)
    error = refused(policy, replace(REQUEST, database=database, **changes))  # type: ignore[arg-type]
    assert error.decided_by is not DecidedBy.DATABASES
    assert error.sqlstate == "28000"


def test_physical_replication_without_a_star_is_rejected() -> None:
    policy = make_rules("hostssl replication alice all cert", databases=WITHOUT)
    error = refused(policy, PHYSICAL)
    assert error.sqlstate == "28000"
    assert error.reply.startswith("pg_hba.conf rejects replication connection for host")
    assert (error.decided_by, 'which goes to "*"' in error.reason) == (DecidedBy.DATABASES, True)


def test_the_fence_is_that_of_the_database_that_is_asked_for() -> None:
    policy = make_rules("hostssl all all all cert map=m", "m alice postgres", databases=WITH_OTHERS)
    postgres = replace(REQUEST, user="postgres")
    assert granted(policy, postgres).is_fenced
    assert refused(policy, replace(postgres, database="crm_ro")).decided_by is DecidedBy.RESERVED_USERS


@pytest.mark.parametrize(
    ("listed", "problem"),
    [
        (LISTED, None),
        ({}, "listener central leads to backend others now, and no more to backend crm"),
        (
            {"crm": Destination(CRM, "crm_2")},
            'leads to database "crm_2" of backend crm now, and no more to backend crm',
        ),
        ({"crm": Destination(CRM, "crm")}, None),
    ],
)
def test_a_session_stays_only_where_its_database_leads_to_the_same_place(
    listed: dict[str, Destination], problem: str | None
) -> None:
    before = granted(make_rules("hostssl all all all cert", databases=WITH_OTHERS), REQUEST)
    databases = Databases(listed=listed, others=Destination(OTHERS))
    newer = granted(make_rules("hostssl all all all cert", databases=databases), REQUEST)
    proof = Proof(ProofKind.CERTIFICATE, "alice", "CN=alice")
    if problem is None:
        require_same(before, newer, REQUEST, proof)
        return
    with pytest.raises(AccessRefused, match=problem):
        require_same(before, newer, REQUEST, proof)


BY_CERTIFICATE = Proof(ProofKind.CERTIFICATE, "alice", "CN=alice")


def by_backend(challenge: Challenge) -> Proof:
    return Proof(ProofKind.BACKEND_CHALLENGE, "alice", "alice", challenge)


@pytest.mark.parametrize(
    ("line", "proof", "problem"),
    [
        ("cert", BY_CERTIFICATE, None),
        ("trust", by_backend(Challenge.CLEARTEXT), None),
        ("trust", by_backend(Challenge.OTHER_SASL), None),
        ("md5", by_backend(Challenge.MD5), None),
        ("md5", by_backend(Challenge.SCRAM), None),
        ("gss", by_backend(Challenge.GSS), None),
        ("oauth", by_backend(Challenge.OTHER_SASL), None),
        ("scram-sha-256", BY_CERTIFICATE, "proved by cert, and has to be by scram-sha-256 now"),
        ("md5", by_backend(Challenge.CLEARTEXT), "otherwise than md5 demands"),
        ("md5", by_backend(Challenge.OTHER_SASL), "otherwise than md5 demands"),
        ("gss", by_backend(Challenge.MD5), "otherwise than gss demands"),
        ("pam", by_backend(Challenge.GSS), "otherwise than pam demands"),
        ("oauth", by_backend(Challenge.SCRAM), "otherwise than oauth demands"),
    ],
)
def test_a_session_stays_only_while_its_proof_is_one_that_the_line_takes(
    line: str, proof: Proof, problem: str | None
) -> None:
    grant = granted(make_rules(f"hostssl all all all {line}"), REQUEST)
    if problem is None:
        require_same(grant, grant, REQUEST, proof)
        return
    with pytest.raises(AccessRefused, match=problem) as caught:
        require_same(grant, grant, REQUEST, proof)
    assert caught.value.decided_by is DecidedBy.PROOF


@pytest.mark.parametrize(
    ("reserved", "challenge", "is_refused"),
    [
        ({"alice"}, Challenge.NONE, True),
        ({"alice"}, Challenge.SCRAM, False),
        (set(), Challenge.NONE, False),
    ],
)
def test_a_session_that_was_let_in_unasked_does_not_stay_behind_a_newer_fence(
    reserved: set[str], challenge: Challenge, *, is_refused: bool
) -> None:
    def leading_to(reserved_users: set[str]) -> Grant:
        terms = replace(PRIMARY, reserved_users=frozenset(reserved_users))
        databases = Databases(others=Destination(terms))
        return granted(make_rules("hostssl all all all cert", databases=databases), REQUEST)

    before, newer, proof = (
        leading_to(set()),
        leading_to(reserved),
        replace(BY_CERTIFICATE, challenge=challenge),
    )
    if not is_refused:
        require_same(before, newer, REQUEST, proof)
        return
    with pytest.raises(AccessRefused, match="unasked") as caught:
        require_same(before, newer, REQUEST, proof)
    assert caught.value.decided_by is DecidedBy.RESERVED_USERS


NAMES = ("crm", "crm_ro", "shop", "alice", "all", "replication", "samerole", "x", "\udcff")
COLUMNS = st.lists(
    st.sampled_from(
        [
            *(f'"{name}"' for name in NAMES[:-1]),
            "all", "sameuser", "samerole", "samegroup", "replication", "/^crm", "/^c.*m$", "/o", "shop", "crm",
        ]
    ),
    min_size=1,
    max_size=4,
).map(",".join)  # fmt: skip
DATABASES = st.builds(
    lambda names, others: Databases(
        listed={name: Destination(backend(f"to {name}")) for name in names},
        others=Destination(OTHERS) if others else None,
    ),
    st.sets(st.sampled_from(NAMES[:-1])),
    st.booleans(),
)


@given(COLUMNS, DATABASES, st.sampled_from(NAMES), st.sampled_from(list(Replication)))
def test_a_line_reaches_every_backend_to_which_it_lets_somebody(
    column: str, databases: Databases, database: str, replication: Replication
) -> None:
    """So what the loader judges a line for is never less than what sessions get by it."""
    policy = make_rules(f"hostssl {column} all all cert", databases=databases)
    request = replace(REQUEST, database=database, replication=replication)
    line = first_match(policy.hba, request, Facts(roles=frozenset({"alice", "crm"})))
    assume(isinstance(line, HbaRule))
    destination = databases.destination(database, replication)
    if destination is not None:
        assert destination.backend in databases.reached_by(policy.hba[0].databases)


@given(COLUMNS, DATABASES)
def test_a_line_reaches_no_backend_that_the_listener_does_not(column: str, databases: Databases) -> None:
    policy = make_rules(f"hostssl {column} all all cert", databases=databases)
    reached = databases.reached_by(policy.hba[0].databases)
    assert set(reached) <= set(databases.backends)
    assert len({each.name for each in reached}) == len(reached)
