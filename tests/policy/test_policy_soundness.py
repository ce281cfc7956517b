from dataclasses import replace
from ipaddress import ip_network

import pytest

from fixtures.policies import PRIMARY, make_rules
from pgtlsproxy.policy.databases import Databases, Destination
from pgtlsproxy.policy.proofs import PROOFS, Evidence, Login
from pgtlsproxy.policy.roles import parse_roles
from pgtlsproxy.policy.soundness import BackendFacts, ListenerTransports, Soundness, check_soundness

EVERYTHING = ListenerTransports(unix=True, tcp=True, tls=True, has_client_ca=True)
TCP_CLEAR = ListenerTransports(unix=False, tcp=True, tls=False, has_client_ca=False)
UNIX_ONLY = ListenerTransports(unix=True, tcp=False, tls=False, has_client_ca=False)
TCP_TLS = ListenerTransports(unix=False, tcp=True, tls=True, has_client_ca=True)
NO_CA = ListenerTransports(unix=False, tcp=True, tls=True, has_client_ca=False)
PLAIN_BACKEND = BackendFacts(sslcert=False, unix_socket=False)


def check(
    hba: str,
    login: Login,
    transports: ListenerTransports = EVERYTHING,
    backend: BackendFacts = PLAIN_BACKEND,
    *,
    ident: str = "",
    roles: str | None = None,
    require_auth_none: bool = False,
    has_verifiers: bool = False,
    plaintext_from: str = "",
) -> Soundness:
    rules = make_rules(
        hba,
        ident,
        roles=None if roles is None else parse_roles("roles", roles.encode()),
        login=login,
        own_credential=login is not Login.PASSTHROUGH or backend.sslcert or backend.unix_socket,
        require_auth_none=require_auth_none,
    )
    networks = (ip_network(plaintext_from),) if plaintext_from else ()
    rules = replace(rules, has_verifiers=has_verifiers, plaintext_from=networks)
    return check_soundness(rules, transports, {"primary": backend})


SOUND = "sound"
UNSOUND = "trust with login"
NO_SECRETS = "needs the users' verifiers: set scram_secrets_file or auth_query at listener central"
ASKS_NOBODY = "is for the backend to ask"


@pytest.mark.parametrize(
    ("line", "passthrough", "own_credential"),
    [
        ("hostssl all all all cert", SOUND, SOUND),
        ("hostssl all all all trust clientcert=verify-full", SOUND, SOUND),
        ("local all all peer", SOUND, SOUND),
        ("local all all reject", SOUND, SOUND),
        ("host all all all reject", SOUND, SOUND),
        ("host all all all scram-sha-256", SOUND, NO_SECRETS),
        ("hostssl all all all scram-sha-256 clientcert=verify-full", SOUND, NO_SECRETS),
        ("host all all all password", SOUND, NO_SECRETS),
        ("host all all all md5", SOUND, ASKS_NOBODY),
        ("host all all all ldap ldapprefix=x", SOUND, ASKS_NOBODY),
        ("host all all all pam", SOUND, ASKS_NOBODY),
        ("host all all all gss", SOUND, ASKS_NOBODY),
        ("host all all all trust", SOUND, UNSOUND),
        ("local all all trust", SOUND, UNSOUND),
        ("hostssl all alice 10.0.0.0/8 trust clientcert=verify-ca", SOUND, UNSOUND),
        ("hostssl all alice 127.0.0.1/32 trust clientcert=verify-ca", SOUND, SOUND),
        ("local all alice trust", SOUND, SOUND),
        ("local all alice,bob trust", SOUND, SOUND),
        ("local all alice,all trust", SOUND, UNSOUND),
        ('local all "all" trust', SOUND, SOUND),
        ("local all alice,postgres trust", SOUND, UNSOUND),
        ("host all alice 127.0.0.1/32 trust", SOUND, SOUND),
        ("host all alice 127.0.0.0/8 trust", SOUND, SOUND),
        ("host all alice ::1/128 trust", SOUND, SOUND),
        ("host all alice 126.0.0.0/7 trust", SOUND, UNSOUND),
        ("host all alice 0.0.0.0/0 trust", SOUND, UNSOUND),
        ("host all alice ::/0 trust", SOUND, UNSOUND),
        ("host all alice all trust", SOUND, UNSOUND),
        ("host all alice samehost trust", SOUND, UNSOUND),
        ("host all alice samenet trust", SOUND, UNSOUND),
        ("host all all 127.0.0.1/32 trust", SOUND, UNSOUND),
        ("host all postgres 127.0.0.1/32 trust", SOUND, UNSOUND),
    ],
)
@pytest.mark.parametrize("login", list(Login))
def test_a_line_loads_only_where_a_proof_can_exist(
    line: str, passthrough: str, own_credential: str, login: Login
) -> None:
    expected = passthrough if login is Login.PASSTHROUGH else own_credential
    found = check(line, login).mistakes
    if expected == SOUND:
        assert found == ()
        return
    (mistake,) = found
    assert mistake.where == "hba:1"
    assert expected in mistake.what
    assert f"login: {login}" in mistake.what
    assert "primary" in mistake.what


@pytest.mark.parametrize("login", list(Login))
@pytest.mark.parametrize("method", ["scram-sha-256", "scram-sha-256 clientcert=verify-full", "password"])
def test_with_the_users_verifiers_every_login_can_ask_for_passwords(method: str, login: Login) -> None:
    assert check(f"hostssl all all all {method}", login, has_verifiers=True).mistakes == ()


@pytest.mark.parametrize(
    ("line", "is_safe"),
    [
        ("host all all all password", False),
        ("hostnossl all all 10.0.0.0/8 password", False),
        ("hostssl all all all password", True),
        ("local all all password", True),
        ("host all all 127.0.0.1/32 password", True),
        ("host all all all scram-sha-256", True),
    ],
)
def test_no_password_crosses_a_leg_in_clear_from_afar(line: str, is_safe: bool) -> None:  # noqa: FBT001 - a table's cell
    found = check(line, Login.PASSTHROUGH, plaintext_from="10.0.0.0/8").mistakes
    assert [each.where for each in found] == ([] if is_safe else ["hba:1"])
    assert all("could read the password" in each.what for each in found)
    assert check(line, Login.PASSTHROUGH).mistakes == ()


def test_the_table_has_no_proof_only_where_the_backend_would_have_to_ask() -> None:
    missing = {(evidence, login) for evidence in Evidence for login in Login} - set(PROOFS)
    assert missing == {(Evidence.CHALLENGE, login) for login in (Login.CERTIFICATE, Login.PASSFILE)}


SHARED = "local all all trust\nhost all alice 127.0.0.1/32 trust\nhost all all 10.0.0.0/8 trust\n"


@pytest.mark.parametrize(
    ("transports", "lines"),
    [(UNIX_ONLY, ["hba:1"]), (TCP_TLS, ["hba:3"]), (TCP_CLEAR, ["hba:3"]), (EVERYTHING, ["hba:1", "hba:3"])],
)
def test_a_shared_file_is_judged_for_each_listener(transports: ListenerTransports, lines: list[str]) -> None:
    found = check(SHARED, Login.CERTIFICATE, transports).mistakes
    assert [mistake.where for mistake in found] == lines


@pytest.mark.parametrize(
    "line",
    [
        "hostssl all all all cert",
        "hostssl all all all trust clientcert=verify-ca",
        "hostssl all all all reject clientcert=verify-ca",
    ],
)
def test_certificates_need_a_listener_that_verifies_them(line: str) -> None:
    (mistake,) = check(line, Login.PASSTHROUGH, NO_CA).mistakes
    assert "client certificates can only be checked if a root certificate store is available" in mistake.what
    assert "set ssl_ca_file at listener central" in mistake.what
    assert check("hostssl all all all trust", Login.PASSTHROUGH, NO_CA).mistakes == ()


def test_a_hostssl_line_without_tls_is_a_warning_as_in_postgresql() -> None:
    found = check("hostssl all all all cert", Login.CERTIFICATE, TCP_CLEAR)
    assert found.mistakes == ()
    assert "hostssl record cannot match" in found.warnings[0].what
    assert check("hostssl all all all cert", Login.CERTIFICATE, UNIX_ONLY) == Soundness()


def test_a_map_that_does_not_exist_is_a_mistake() -> None:
    (mistake,) = check("hostssl all all all cert map=n", Login.PASSTHROUGH, ident="m alice bob").mistakes
    assert 'map "n" has no line in the ident_file of listener central' in mistake.what
    assert not check("hostssl all all all cert map=m", Login.PASSTHROUGH, ident="m alice bob").mistakes


@pytest.mark.parametrize(
    ("backend", "word"),
    [
        (BackendFacts(sslcert=True, unix_socket=False), "certificate (sslcert)"),
        (BackendFacts(sslcert=False, unix_socket=True), "operating system user (Unix socket)"),
    ],
)
def test_passthrough_with_a_credential_of_the_proxy_warns_of_lines_that_trust(
    backend: BackendFacts, word: str
) -> None:
    hba = "host all all all trust\nhost all all all scram-sha-256\nhostssl all all all cert\nlocal a a reject"
    found = check(hba, Login.PASSTHROUGH, backend=backend)
    assert found.mistakes == ()
    (warning,) = found.warnings
    assert warning.where == "hba:1"
    assert word in warning.what


def test_require_auth_none_is_called_out() -> None:
    (warning,) = check("host all all all trust", Login.PASSTHROUGH, require_auth_none=True).warnings
    assert "require_auth of backend primary says none" in warning.what
    assert not check("host all all all trust", Login.PASSTHROUGH).warnings
    assert not check("host all all all md5", Login.PASSTHROUGH, require_auth_none=True).warnings


def test_every_mistake_of_every_line_is_found() -> None:
    found = check(
        "hostssl all all all cert map=n\nhost all all all scram-sha-256", Login.CERTIFICATE, NO_CA
    ).mistakes
    assert [mistake.where for mistake in found] == ["hba:1", "hba:1", "hba:2"]


@pytest.mark.parametrize("columns", ["all +staff", "samerole all", "app,samegroup all", "all alice,+staff"])
@pytest.mark.parametrize("method", ["trust", "reject"])
def test_lines_for_the_members_of_a_role_need_to_know_them(columns: str, method: str) -> None:
    line = f"host {columns} all {method}"
    (mistake,) = check(line, Login.PASSTHROUGH).mistakes
    assert (mistake.where, "set roles_file or roles_query at listener central" in mistake.what) == (
        "hba:1",
        True,
    )
    assert check(line, Login.PASSTHROUGH, roles="staff alice").mistakes == ()
    assert check(line, Login.PASSTHROUGH, UNIX_ONLY).mistakes == ()


def test_names_that_look_like_roles_need_none() -> None:
    assert check('host "samerole" "+staff" all trust', Login.PASSTHROUGH) == Soundness()


def test_maps_for_the_members_of_a_role_need_to_know_them() -> None:
    line, ident = "hostssl all all all cert map=m", "m alice bob\nm alice +staff\nm bob +staff"
    (mistake,) = check(line, Login.PASSTHROUGH, ident=ident).mistakes
    assert (mistake.where, "set roles_file" in mistake.what) == ("ident:2", True)
    assert check(line, Login.PASSTHROUGH, ident=ident, roles="staff bob") == Soundness()


def test_a_role_that_the_roles_file_does_not_know_is_warned_of() -> None:
    found = check(
        "host all +stuff,+staff all scram-sha-256\nlocal all all peer map=m",
        Login.PASSTHROUGH,
        ident="m a +crew",
        roles="staff alice",
    )
    assert found.mistakes == ()
    assert [(warning.where, warning.what.split(" has")[0]) for warning in found.warnings] == [
        ("hba:1", 'role "stuff"'),
        ("ident:1", 'role "crew"'),
    ]


def test_a_line_for_gssapi_encryption_is_warned_of_and_asks_for_nothing() -> None:
    found = check("hostgssenc all +staff all trust\nhost all all all reject", Login.CERTIFICATE)
    assert found.mistakes == ()
    (warning,) = found.warnings
    assert "hostgssenc record cannot match" in warning.what


@pytest.mark.parametrize("users", ["+staff", "/^alice$", '"/alice"', "alice,+staff"])
@pytest.mark.parametrize("address", ["127.0.0.1/32", "localhost"])
def test_trust_with_the_proxys_own_credential_is_for_users_by_name_alone(users: str, address: str) -> None:
    (mistake,) = check(f"host all {users} {address} trust", Login.CERTIFICATE, roles="staff bob").mistakes
    assert "would let anybody be such a user" in mistake.what


def test_a_host_name_is_no_loopback_address() -> None:
    (mistake,) = check("host all alice localhost trust", Login.CERTIFICATE).mistakes
    assert "is not a numeric one" in mistake.what


CRM = replace(PRIMARY, name="crm", login=Login.CERTIFICATE, own_credential=True)
SHOP = replace(PRIMARY, name="shop")
PLAIN = {"crm": PLAIN_BACKEND, "shop": PLAIN_BACKEND}


@pytest.mark.parametrize(
    ("columns", "refused"),
    [
        ("crm all", True),
        ("shop all", False),
        ("shop,sales all", False),
        ("shop,crm all", True),
        ("all all", True),
        ("sameuser all", True),
        ("samerole all", True),
        ("samegroup all", True),
        ('"sameuser" all', False),
        ('"all" all', False),
        ("/^sh all", False),
        ("/^c all", True),
        ("/^crm$ all", True),
        ("unlisted all", False),
        ("replication all", False),
        ('"replication" all', False),
    ],
)
def test_a_line_is_held_against_the_backends_to_which_its_databases_lead(columns: str, refused: bool) -> None:  # noqa: FBT001 - a column
    """At `crm` the proxy's certificate would make anybody whoever the line lets in; `shop` asks for itself."""
    databases = Databases(
        listed={"crm": Destination(CRM), "sales": Destination(SHOP, "shop")}, others=Destination(SHOP)
    )
    rules = make_rules(
        f"host {columns} 10.0.0.0/8 trust", databases=databases, roles=parse_roles("roles", b"staff alice")
    )
    found = check_soundness(rules, EVERYTHING, PLAIN)
    assert [mistake.where for mistake in found.mistakes] == (["hba:1"] if refused else [])
    assert found.warnings == ()
    for mistake in found.mistakes:
        assert "trust with login: certificate would let anybody be such a user at backend crm" in mistake.what


@pytest.mark.parametrize(
    ("line", "is_idle"),
    [
        ("hostssl shop all all cert", True),
        ("hostssl replication all all cert", True),
        ("hostssl /^c all all cert", False),
        ("hostssl /^s all all cert", True),
        ("hostssl shop,crm all all cert", False),
        ("hostssl all all all cert", False),
        ("hostssl shop all all reject", False),
    ],
)
def test_a_line_whose_databases_lead_nowhere_is_warned_of(line: str, is_idle: bool) -> None:  # noqa: FBT001 - a column
    rules = make_rules(line, databases=Databases(listed={"crm": Destination(CRM)}))
    found = check_soundness(rules, EVERYTHING, PLAIN)
    assert found.mistakes == ()
    assert [warning.where for warning in found.warnings] == (["hba:1"] if is_idle else [])
