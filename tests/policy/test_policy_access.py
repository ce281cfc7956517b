from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.policies import make_rules
from pgtlsproxy.errors import ErrorKind
from pgtlsproxy.identity import Certificate, ClientAddress, OSUser, ProofKind
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
from pgtlsproxy.policy.hba import HbaRules, Method, Replication, parse_hba
from pgtlsproxy.policy.records import LineRef
from pgtlsproxy.policy.request import ClientHost, Unknown
from pgtlsproxy.policy.roles import parse_roles

UNIX = ClientAddress(None, None, is_local=True)
LOOPBACK = ClientAddress(ip_address("127.0.0.1"), 5000, is_local=True)
REMOTE = ClientAddress(ip_address("10.1.2.3"), 5000, is_local=False)
NO_FACTS = Facts()


def certificate(*common_names: str, dn: str = "CN=alice,O=Lab") -> Certificate:
    return Certificate(
        common_names=common_names,
        dn=dn,
        issuer_dn="CN=ca",
        serial=1,
        sha256="ab" * 32,
        not_before=datetime(2020, 1, 1, tzinfo=UTC),
        not_after=datetime(2040, 1, 1, tzinfo=UTC),
    )


REQUEST = AccessRequest(user="alice", database="app", replication=Replication.NONE, address=REMOTE, tls=True)
ALICE = replace(REQUEST, certificate=certificate("alice"))
IN_CLEAR = replace(REQUEST, tls=False)
AT_SOCKET = replace(IN_CLEAR, address=UNIX, os_user=OSUser(1000, 1000, 42, "alice"))


def granted(policy: Rules, request: AccessRequest, facts: Facts = NO_FACTS) -> Grant:
    grant = decide(policy, request, facts)
    assert isinstance(grant, Grant)
    return grant


def refused(policy: Rules, request: AccessRequest, facts: Facts = NO_FACTS) -> AccessRefused:
    with pytest.raises(AccessRefused) as caught:
        decide(policy, request, facts)
    assert caught.value.kind is ErrorKind.DENIED
    return caught.value


def test_a_grant_names_listener_backend_line_and_what_was_checked() -> None:
    policy = make_rules("hostssl all all all cert map=m", "m alice bob\n")
    assert granted(policy, replace(ALICE, user="bob")) == Grant(
        listener="central",
        backend="primary",
        user="bob",
        database="app",
        backend_database="app",
        replication=Replication.NONE,
        method=Method.CERT,
        login=Login.PASSTHROUGH,
        accepts=frozenset({ProofKind.CERTIFICATE}),
        identity="CN=alice,O=Lab",
        certificate_sha256="ab" * 32,
        is_fenced=False,
        hba=policy.hba[0].ref,
        ident=LineRef("ident", 1, "m alice bob"),
    )


@pytest.mark.parametrize(
    ("line", "request_", "reply"),
    [
        ("local all all trust", REQUEST, 'host "10.1.2.3", user "alice", database "app", SSL encryption'),
        (
            "hostssl all bob all trust",
            REQUEST,
            'host "10.1.2.3", user "alice", database "app", SSL encryption',
        ),
        (
            "hostssl all all all trust",
            replace(IN_CLEAR, address=LOOPBACK),
            'host "127.0.0.1", user "alice", database "app", no encryption',
        ),
        ("host all all all trust", AT_SOCKET, 'host "[local]", user "alice", database "app", no encryption'),
        (
            "host all all all trust",
            replace(REQUEST, replication=Replication.PHYSICAL, database=""),
            'replication connection from host "10.1.2.3", user "alice", SSL encryption',
        ),
        (
            "host all bob all trust",
            replace(REQUEST, replication=Replication.LOGICAL),
            'host "10.1.2.3", user "alice", database "app", SSL encryption',
        ),
        (
            "host all bob all trust",
            replace(REQUEST, user="eve\x1b[2J", database="\udcff"),
            'host "10.1.2.3", user "eve\\x1b[2J", database "\\xff", SSL encryption',
        ),
    ],
)
def test_no_line_gets_postgresqls_text(line: str, request_: AccessRequest, reply: str) -> None:
    error = refused(make_rules(line), request_)
    wanted = reply if reply.startswith("replication") else f"for {reply}"
    assert error.reply == f"no pg_hba.conf entry {wanted}".replace(
        "entry replication", "entry for replication"
    )
    assert (error.sqlstate, error.decided_by, error.hba, error.method) == ("28000", DecidedBy.HBA, None, None)


def test_reject_gets_postgresqls_text() -> None:
    policy = make_rules("host replication,all all all reject\nhost all all all trust")
    error = refused(policy, REQUEST)
    assert error.reply == (
        'pg_hba.conf rejects connection for host "10.1.2.3", user "alice", database "app", SSL encryption'
    )
    assert (error.sqlstate, error.hba, error.method) == ("28000", policy.hba[0].ref, Method.REJECT)
    assert error.reason.startswith("hba:1: ")
    physical = refused(policy, replace(REQUEST, replication=Replication.PHYSICAL))
    assert physical.reply == (
        'pg_hba.conf rejects replication connection for host "10.1.2.3", user "alice", SSL encryption'
    )


# --- clear text ---------------------------------------------------------------------------------------------


def test_clear_text_from_afar_is_refused_before_pg_hba_is_read() -> None:
    error = refused(make_rules("host all all all trust"), IN_CLEAR)
    assert error.reply == (
        'no pg_hba.conf entry for host "10.1.2.3", user "alice", database "app", no encryption'
    )
    assert (error.sqlstate, error.decided_by, error.hba) == ("28000", DecidedBy.PLAINTEXT_FROM, None)


@pytest.mark.parametrize("address", [LOOPBACK, UNIX])
def test_clear_text_from_this_host_is_judged_by_pg_hba(address: ClientAddress) -> None:
    policy = make_rules("local all all trust\nhost all all all trust")
    assert granted(policy, replace(IN_CLEAR, address=address)).method is Method.TRUST


@pytest.mark.parametrize(
    ("network", "allowed"), [("10.0.0.0/8", True), ("192.0.2.0/24", False), ("::/0", False)]
)
def test_clear_text_from_a_listed_network_is_judged_by_pg_hba(network: str, *, allowed: bool) -> None:
    policy = make_rules("host all all all trust", plaintext_from=(ip_network(network),))
    if allowed:
        assert granted(policy, IN_CLEAR).method is Method.TRUST
    else:
        assert refused(policy, IN_CLEAR).decided_by is DecidedBy.PLAINTEXT_FROM


def test_a_loopback_address_that_is_not_local_is_not_trusted_in_clear() -> None:
    forged = replace(IN_CLEAR, address=replace(LOOPBACK, is_local=False))
    assert refused(make_rules("host all all all trust"), forged).decided_by is DecidedBy.PLAINTEXT_FROM


# --- certificates -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "hostssl all all all cert",
        "hostssl all all all trust clientcert=verify-ca",
        "hostssl all all all scram-sha-256 clientcert=verify-full",
        "hostssl all all all reject clientcert=verify-ca",
    ],
)
def test_a_line_that_wants_a_certificate_refuses_without_one(line: str) -> None:
    error = refused(make_rules(line), REQUEST)
    assert (error.reply, error.sqlstate) == ("connection requires a valid client certificate", "28000")


@pytest.mark.parametrize(
    ("common_names", "user"),
    [
        (("bob",), "alice"),
        (("ALICE",), "alice"),
        (("*.corp.example",), "app.corp.example"),
        (("alice ",), "alice"),
        (("\uff41lice",), "alice"),
        (("alice\u200b",), "alice"),
        (("alice\n",), "alice"),
        (("bob", "alice"), "alice"),
        (("alice", "bob"), "alice"),
        (("alice", "alice"), "alice"),
        ((), "alice"),
        (("",), "alice"),
        (("",), ""),
    ],
)
def test_a_common_name_that_is_not_exactly_the_user_is_refused(
    common_names: tuple[str, ...], user: str
) -> None:
    request = replace(REQUEST, user=user, certificate=certificate(*common_names))
    error = refused(make_rules("hostssl all all all cert"), request)
    assert error.reply == f'certificate authentication failed for user "{user}"'
    assert (error.sqlstate, error.decided_by) == ("28000", DecidedBy.HBA)


def test_several_common_names_are_refused_with_a_map_too() -> None:
    policy = make_rules("hostssl all all all cert map=m", "m bob alice\nm alice alice\n")
    error = refused(policy, replace(REQUEST, certificate=certificate("bob", "alice")))
    assert "several common names: bob, alice" in error.reason


def test_a_subject_alternative_name_is_no_identity() -> None:
    only_san = replace(certificate("nobody"), subject_alt_names=("DNS:alice",), dns_names=("alice",))
    refused(make_rules("hostssl all all all cert"), replace(REQUEST, certificate=only_san))


def test_the_dn_decides_where_the_line_says_so() -> None:
    policy = make_rules("hostssl all all all cert clientname=DN map=dn", 'dn "CN=alice,O=Lab" alice\n')
    request = replace(REQUEST, certificate=certificate("bob", "carol"))
    assert granted(policy, request).identity == "CN=alice,O=Lab"
    refused(policy, replace(REQUEST, certificate=certificate("alice", dn="CN=alice")))
    refused(policy, replace(REQUEST, certificate=certificate("alice", dn="")))
    without_map = make_rules("hostssl all all all scram-sha-256 clientcert=verify-full clientname=DN")
    assert refused(without_map, ALICE).sqlstate == "28P01"
    assert granted(without_map, replace(ALICE, user="CN=alice,O=Lab")).identity == "CN=alice,O=Lab"


@pytest.mark.parametrize(
    ("method", "reply", "sqlstate"),
    [
        ("cert", 'certificate authentication failed for user "bob"', "28000"),
        ("trust", '"trust" authentication failed for user "bob"', "28000"),
        ("scram-sha-256", 'password authentication failed for user "bob"', "28P01"),
    ],
)
def test_a_wrong_name_gets_the_text_of_the_method(method: str, reply: str, sqlstate: str) -> None:
    error = refused(
        make_rules(f"hostssl all all all {method} clientcert=verify-full"), replace(ALICE, user="bob")
    )
    assert (error.reply, error.sqlstate) == (reply, sqlstate)
    assert error.reason == "hba:1: provided user name (bob) and authenticated user name (alice) do not match"


def test_verify_ca_asks_for_a_certificate_of_anybody() -> None:
    grant = granted(make_rules("hostssl all all all trust clientcert=verify-ca"), replace(ALICE, user="bob"))
    assert grant.accepts == {ProofKind.BACKEND_CHALLENGE}
    assert (grant.identity, grant.certificate_sha256) == (None, "ab" * 32)


def test_a_map_that_does_not_reach_the_user_refuses() -> None:
    policy = make_rules("hostssl all all all cert map=m", "m alice bob\n")
    error = refused(policy, ALICE)
    assert error.reply == 'certificate authentication failed for user "alice"'
    assert error.decided_by is DecidedBy.IDENT
    assert error.reason == 'hba:1: no match in usermap "m" for user "alice" authenticated as "alice"'


def test_a_failed_line_does_not_fall_through_to_the_next() -> None:
    policy = make_rules("hostssl all all all cert\nhostssl all all all trust")
    assert refused(policy, replace(ALICE, user="bob")).hba == policy.hba[0].ref


# --- peer ---------------------------------------------------------------------------------------------------


def test_peer_is_the_operating_systems_word() -> None:
    grant = granted(make_rules("local all all peer"), AT_SOCKET)
    assert (grant.accepts, grant.identity) == ({ProofKind.PEER}, "alice")
    mapped = granted(make_rules("local all all peer map=m", "m alice bob\n"), replace(AT_SOCKET, user="bob"))
    assert str(mapped.ident) == "ident:1"


@pytest.mark.parametrize("os_user", [None, OSUser(65534, 65534, 1, None), OSUser(1, 1, 1, "bob")])
def test_peer_refuses_another_user_and_one_without_a_name(os_user: OSUser | None) -> None:
    error = refused(make_rules("local all all peer"), replace(AT_SOCKET, os_user=os_user))
    assert (error.reply, error.sqlstate) == ('Peer authentication failed for user "alice"', "28000")


# --- which proof --------------------------------------------------------------------------------------------

CERT = "hostssl all all all cert"
TRUST_FULL = "hostssl all all all trust clientcert=verify-full"
TRUST_CA = "hostssl all all all trust clientcert=verify-ca"
TRUST = "host all all all trust"
SCRAM = "host all all all scram-sha-256"
MD5 = "host all all all md5"
SCRAM_FULL = "hostssl all all all scram-sha-256 clientcert=verify-full"
PEER = "local all all peer"


@pytest.mark.parametrize(
    ("line", "login", "expected"),
    [
        (CERT, Login.PASSTHROUGH, {ProofKind.CERTIFICATE}),
        (CERT, Login.CERTIFICATE, {ProofKind.CERTIFICATE}),
        (CERT, Login.PASSFILE, {ProofKind.CERTIFICATE}),
        (TRUST_FULL, Login.PASSTHROUGH, {ProofKind.CERTIFICATE}),
        (TRUST_FULL, Login.CERTIFICATE, {ProofKind.CERTIFICATE}),
        (TRUST_FULL, Login.PASSFILE, {ProofKind.CERTIFICATE}),
        (PEER, Login.PASSTHROUGH, {ProofKind.PEER}),
        (PEER, Login.CERTIFICATE, {ProofKind.PEER}),
        (PEER, Login.PASSFILE, {ProofKind.PEER}),
        (TRUST, Login.PASSTHROUGH, {ProofKind.BACKEND_CHALLENGE}),
        (TRUST, Login.CERTIFICATE, None),
        (TRUST, Login.PASSFILE, None),
        (TRUST_CA, Login.PASSTHROUGH, {ProofKind.BACKEND_CHALLENGE}),
        (TRUST_CA, Login.CERTIFICATE, None),
        (TRUST_CA, Login.PASSFILE, None),
        (SCRAM, Login.PASSTHROUGH, {ProofKind.SCRAM}),
        (SCRAM, Login.CERTIFICATE, None),
        (SCRAM, Login.PASSFILE, None),
        (SCRAM_FULL, Login.PASSTHROUGH, {ProofKind.SCRAM}),
        (SCRAM_FULL, Login.CERTIFICATE, None),
        (SCRAM_FULL, Login.PASSFILE, None),
    ],
)
def test_which_proof_would_do(line: str, login: Login, expected: set[ProofKind] | None) -> None:
    policy = make_rules(line, login=login, own_credential=login is not Login.PASSTHROUGH)
    request = AT_SOCKET if line == PEER else ALICE
    if expected is None:
        error = refused(policy, request)
        assert (error.decided_by, error.hba) == (DecidedBy.PROOF, policy.hba[0].ref)
        return
    assert granted(policy, request).accepts == expected


def test_require_auth_none_counts_only_where_the_backend_would_ask() -> None:
    assert granted(make_rules(TRUST, require_auth_none=True), ALICE).accepts == {
        ProofKind.BACKEND_CHALLENGE,
        ProofKind.REQUIRE_AUTH_NONE,
    }
    assert granted(make_rules(SCRAM, require_auth_none=True), ALICE).accepts == {ProofKind.SCRAM}
    assert granted(make_rules(MD5, require_auth_none=True), ALICE).accepts == {ProofKind.BACKEND_CHALLENGE}
    assert granted(make_rules(CERT, require_auth_none=True), ALICE).accepts == {ProofKind.CERTIFICATE}


@pytest.mark.parametrize(
    ("line", "address", "allowed"),
    [
        ("local all alice trust", UNIX, True),
        ("host all alice 127.0.0.1/32 trust", LOOPBACK, True),
        ("host all alice 127.0.0.0/8 trust", LOOPBACK, True),
        ("host all alice,bob 127.0.0.1/32 trust", LOOPBACK, True),
        ("host all alice 127.0.0.1/32 trust", replace(LOOPBACK, is_local=False), False),
        ("host all alice,all 127.0.0.1/32 trust", LOOPBACK, False),
        ("host all alice all trust", LOOPBACK, False),
        ("host all alice samehost trust", LOOPBACK, False),
        ("host all alice 0.0.0.0/0 trust", LOOPBACK, False),
        ("host all all 127.0.0.1/32 trust", LOOPBACK, False),
        ("local all all trust", UNIX, False),
    ],
)
@pytest.mark.parametrize("login", [Login.CERTIFICATE, Login.PASSFILE])
def test_trust_with_the_proxys_credential_is_for_literal_local_users(
    line: str, address: ClientAddress, login: Login, *, allowed: bool
) -> None:
    policy = make_rules(line, login=login, own_credential=True)
    request = replace(REQUEST, address=address, tls=not address.is_local)
    facts = Facts((ip_interface("127.0.0.1/8"),))
    if allowed:
        assert granted(policy, request, facts).accepts == {ProofKind.LITERAL_LOCAL_USER}
    else:
        assert refused(policy, request, facts).decided_by is DecidedBy.PROOF


def test_trust_with_the_proxys_credential_is_never_for_reserved_users() -> None:
    policy = make_rules("local all postgres trust", login=Login.CERTIFICATE, own_credential=True)
    assert refused(policy, replace(AT_SOCKET, user="postgres")).decided_by is DecidedBy.PROOF


# --- reserved users and replication -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hba", "ident", "own_credential", "allowed"),
    [
        ("hostssl all all all cert map=m", "m alice postgres", True, False),
        ("hostssl all all all cert map=m", "m alice postgres", False, True),
        ("hostssl all postgres all cert map=m", "m alice postgres", True, True),
        ("hostssl all all,postgres all cert map=m", "m alice postgres", True, True),
        ("hostssl all postgres all cert map=m", "m alice all", True, False),
        ("hostssl all postgres all cert map=m", "m alice all", False, True),
        (r"hostssl all postgres all cert map=m", r"m /^(.*)$ \1", True, False),
        ("hostssl all postgres all cert map=m", "m /^ali postgres", True, True),
    ],
)
def test_a_reserved_user_needs_a_line_and_a_map_that_name_him(
    hba: str, ident: str, *, own_credential: bool, allowed: bool
) -> None:
    policy = make_rules(hba, ident, own_credential=own_credential, login=Login.CERTIFICATE)
    common_name = "postgres" if "\\1" in ident else "alice"
    request = replace(REQUEST, user="postgres", certificate=certificate(common_name))
    if allowed:
        assert granted(policy, request).user == "postgres"
        return
    error = refused(policy, request)
    assert (error.decided_by, error.sqlstate) == (DecidedBy.RESERVED_USERS, "28000")
    assert error.reply.startswith("pg_hba.conf rejects connection for host")
    assert 'user "postgres" is in reserved_users' in error.reason
    assert str(error.ident) == "ident:1"


def test_a_reserved_user_without_a_map_needs_a_line_that_names_him() -> None:
    request = replace(REQUEST, user="postgres", certificate=certificate("postgres"))
    assert refused(make_rules(CERT, own_credential=True), request).decided_by is DecidedBy.RESERVED_USERS
    named = make_rules("hostssl all postgres all cert", own_credential=True)
    assert granted(named, request).user == "postgres"


@pytest.mark.parametrize(
    ("hba", "ident", "replication", "own_credential", "allowed"),
    [
        ("hostssl replication all all cert", "", Replication.PHYSICAL, True, True),
        ("hostssl replication all all cert map=m", "m alice all", Replication.PHYSICAL, True, False),
        ("hostssl replication all all cert map=m", "m alice all", Replication.PHYSICAL, False, True),
        ("hostssl replication all all cert map=m", "m alice alice", Replication.PHYSICAL, True, True),
        ("hostssl all all all cert", "", Replication.LOGICAL, True, False),
        ("hostssl app all all cert", "", Replication.LOGICAL, True, False),
        ("hostssl all,replication all all cert", "", Replication.LOGICAL, True, False),
        ("hostssl all all all cert", "", Replication.LOGICAL, False, True),
        ("hostssl all alice all cert", "", Replication.LOGICAL, True, True),
        ("hostssl all alice all cert map=m", r"m /^(.*)$ \1", Replication.LOGICAL, True, False),
    ],
)
def test_replication_needs_a_line_and_a_map_that_mean_it(
    hba: str, ident: str, replication: Replication, *, own_credential: bool, allowed: bool
) -> None:
    policy = make_rules(hba, ident, own_credential=own_credential, login=Login.CERTIFICATE)
    request = replace(ALICE, replication=replication)
    if allowed:
        assert granted(policy, request).replication is replication
    else:
        error = refused(policy, request)
        assert error.decided_by is DecidedBy.RESERVED_USERS
        assert "replication: with the proxy's own credential" in error.reason


def test_physical_replication_of_a_reserved_user_needs_his_name_in_the_line() -> None:
    request = replace(
        REQUEST, user="postgres", certificate=certificate("postgres"), replication=Replication.PHYSICAL
    )
    general = make_rules("hostssl replication all all cert", own_credential=True)
    assert refused(general, request).decided_by is DecidedBy.RESERVED_USERS
    assert granted(make_rules("hostssl replication postgres all cert", own_credential=True), request)


# --- facts and properties -----------------------------------------------------------------------------------


def test_a_missing_fact_is_asked_for_and_then_decides() -> None:
    policy = make_rules("host all all samenet trust")
    assert decide(policy, REQUEST, NO_FACTS) == Needs(Fact.INTERFACES)
    assert granted(policy, REQUEST, Facts((ip_interface("10.1.0.1/16"),)))
    refused(policy, REQUEST, Facts(()))


def test_a_roles_file_answers_without_a_look_up() -> None:
    members = parse_roles("roles", b"staff dba carol\ndba alice\n")
    policy = make_rules("host app +staff all trust\nhost samerole all all trust", roles=members)
    assert granted(policy, REQUEST).hba.number == 1
    assert refused(policy, replace(REQUEST, user="bob")).hba is None
    assert granted(policy, replace(REQUEST, database="dba")).hba.number == 2
    assert granted(policy, replace(REQUEST, user="bob", database="bob")).hba.number == 2
    assert refused(policy, replace(REQUEST, user="carol", database="dba")).hba is None


def test_without_a_roles_file_the_roles_are_asked_for() -> None:
    policy = make_rules("host all +staff all trust\nhost all all all trust")
    assert decide(policy, REQUEST, NO_FACTS) == Needs(Fact.ROLES)
    assert granted(policy, REQUEST, Facts(roles=frozenset({"alice", "staff"}))).hba.number == 1
    assert granted(policy, REQUEST, Facts(roles=frozenset({"alice"}))).hba.number == 2


@pytest.mark.parametrize("method", ["trust", "reject"])
@pytest.mark.parametrize("column", ["all +staff", "samerole all"])
def test_nobody_is_let_in_behind_a_line_whose_members_cannot_be_known(column: str, method: str) -> None:
    policy = make_rules(f"host {column} all {method}\nhost all all all trust")
    refusal = refused(policy, REQUEST, Facts(roles=Unknown("the backend does not answer")))
    assert "the backend does not answer" in refusal.reason
    assert refusal.hba == policy.hba[0].ref
    assert refusal.reply.startswith("no pg_hba.conf entry for host")


def test_members_that_cannot_be_known_matter_only_where_the_rest_of_the_line_applies() -> None:
    unknown = Facts(roles=Unknown("the backend does not answer"))
    for line in (
        "host all +staff 10.9.0.0/16 reject",
        "host crm +staff all reject",
        "local all +staff reject",
    ):
        assert granted(make_rules(f"{line}\nhost all all all trust"), REQUEST, unknown).hba.number == 2
    assert granted(make_rules("host all alice,+staff all trust"), REQUEST, unknown)


def test_the_members_in_a_map_are_looked_up_too() -> None:
    policy = make_rules(CERT + " map=m", "m alice +staff\n")
    request = replace(ALICE, user="bob")
    assert decide(policy, request, NO_FACTS) == Needs(Fact.ROLES)
    assert granted(policy, request, Facts(roles=frozenset({"bob", "staff"})))
    assert refused(policy, request, Facts(roles=frozenset({"bob"}))).decided_by is DecidedBy.IDENT
    assert "no answer" in refused(policy, request, Facts(roles=Unknown("no answer"))).reason
    by_file = make_rules(CERT + " map=m", "m alice +staff\n", roles=parse_roles("roles", b"staff bob"))
    assert granted(by_file, request)
    refused(by_file, replace(ALICE, user="carol"))


def test_a_role_or_an_expression_names_no_reserved_user() -> None:
    request = replace(REQUEST, user="postgres", certificate=certificate("postgres"))
    for users in ("+dba", "/^postgres$", '"/^postgres$"'):
        policy = make_rules(
            f"hostssl all {users} all cert", own_credential=True, roles=parse_roles("r", b"dba postgres")
        )
        assert refused(policy, request).decided_by is DecidedBy.RESERVED_USERS
    for line in ("m postgres +dba", "m postgres /^postgres$"):
        policy = make_rules(
            "hostssl all postgres all cert map=m",
            line,
            own_credential=True,
            roles=parse_roles("r", b"dba postgres"),
        )
        assert refused(policy, request).decided_by is DecidedBy.RESERVED_USERS


def test_a_refusal_without_a_line_says_how_the_name_was_looked_up() -> None:
    policy = make_rules("host all all .example.com trust")
    assert decide(policy, REQUEST, NO_FACTS) == Needs(Fact.CLIENT_HOST)
    forged = Facts(client_host=ClientHost("db.example.com", is_confirmed=False))
    assert refused(policy, REQUEST, forged).reason == (
        'no line of pg_hba.conf applies; client IP address resolved to "db.example.com", forward lookup does not match'
    )
    assert granted(policy, REQUEST, Facts(client_host=ClientHost("db.example.com", is_confirmed=True)))


def test_a_reject_line_for_a_name_that_cannot_be_looked_up_lets_nobody_past() -> None:
    policy = make_rules("host all all .example.com reject\nhost all all all trust")
    refusal = refused(policy, REQUEST, Facts(client_host=Unknown("the resolver does not answer")))
    assert refusal.hba == policy.hba[0].ref
    assert "the resolver does not answer" in refusal.reason
    assert granted(policy, REQUEST, Facts(client_host=ClientHost(None, is_confirmed=False))).hba.number == 2


LINES = st.lists(
    st.sampled_from(
        [
            *(CERT, TRUST, TRUST_FULL, TRUST_CA, SCRAM, SCRAM_FULL, PEER, "local all alice trust"),
            *(
                "host all bob 10.0.0.0/8 reject",
                "hostssl all all all cert map=m",
                "host replication all all trust",
            ),
            *(
                "host all alice 127.0.0.1/32 trust",
                "hostssl sameuser all all cert clientname=DN",
                "host x all all reject",
                "hostssl all +staff all cert",
                "host samerole /^b all trust",
                "hostssl /^al all .example.com cert map=m",
                "hostnogssenc all +dba .example.net reject",
            ),
        ]
    ),
    min_size=1,
    max_size=5,
)
REQUESTS = st.builds(
    AccessRequest,
    user=st.sampled_from(["alice", "bob", "postgres"]),
    database=st.sampled_from(["app", "alice"]),
    replication=st.sampled_from(list(Replication)),
    address=st.sampled_from([LOOPBACK, REMOTE, UNIX]),
    tls=st.booleans(),
    certificate=st.sampled_from([None, certificate("alice"), certificate("bob"), certificate("a", "b")]),
    os_user=st.sampled_from([None, OSUser(1, 1, 1, "alice"), OSUser(1, 1, 1, None)]),
)
POLICIES = st.builds(
    lambda lines, login, own: make_rules(
        "\n".join(lines),
        "m alice bob\nm bob all\n",
        login=login,
        own_credential=own or login != "passthrough",
    ),
    LINES,
    st.sampled_from(list(Login)),
    st.booleans(),
)


def outcome(policy: Rules, request: AccessRequest) -> Grant | None:
    known = Facts(
        roles=frozenset({request.user, "staff"}),
        client_host=ClientHost("db.example.com", is_confirmed=True),
    )
    try:
        return granted(policy, request, known)
    except AccessRefused:
        return None


@given(POLICIES, REQUESTS, st.sampled_from(["local all all", "host all all all", "host all bob 10.0.0.0/8"]))
@settings(max_examples=200)
def test_a_reject_on_top_never_grants_more(policy: Rules, request: AccessRequest, where: str) -> None:
    (reject,) = parse_hba("top", f"{where} reject".encode())
    before = outcome(policy, request)
    after = outcome(replace(policy, hba=HbaRules((reject, *policy.hba))), request)
    assert after in {None, before}


@given(POLICIES, REQUESTS)
@settings(max_examples=200)
def test_nobody_is_granted_what_no_proof_can_back(policy: Rules, request: AccessRequest) -> None:
    grant = outcome(policy, request)
    if grant is None:
        return
    assert grant.accepts
    rule = next(one for one in policy.hba if one.ref == grant.hba)
    if ProofKind.CERTIFICATE in grant.accepts:
        assert request.certificate is not None
        assert len(request.certificate.common_names) == 1 or rule.clientname == "DN"
        assert rule.map or request.user in {request.certificate.common_names[0], request.certificate.dn}
    if ProofKind.PEER in grant.accepts:
        assert request.os_user is not None
        assert request.os_user.name is not None
    if ProofKind.LITERAL_LOCAL_USER in grant.accepts:
        assert request.address.is_local
        assert rule.names_user(request.user)
    if policy.databases.backends[0].own_credential and request.user == "postgres":
        assert rule.names_user("postgres")
    if not request.tls:
        assert request.address.is_local
