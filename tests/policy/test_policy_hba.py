from ipaddress import ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgtlsproxy.errors import ConfigError
from pgtlsproxy.policy.addresses import AddressKeyword, HostName
from pgtlsproxy.policy.hba import ClientCert, ClientName, ConnectionType, HbaRule, Method, parse_hba
from pgtlsproxy.policy.pattern import Pattern


def rule(text: str) -> HbaRule:
    (parsed,) = parse_hba("hba", text.encode())
    return parsed


def mistakes(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_hba("hba", text.encode())
    return [str(mistake) for mistake in caught.value.mistakes]


def test_a_line_is_read_into_its_columns() -> None:
    parsed = rule("hostssl app,crm alice 10.0.0.0/8 cert clientname=DN map=m clientcert=verify-full")
    assert parsed.type is ConnectionType.HOSTSSL
    assert [token.text for token in parsed.databases] == ["app", "crm"]
    assert [token.text for token in parsed.users] == ["alice"]
    assert parsed.address == ip_network("10.0.0.0/8")
    assert parsed.method is Method.CERT
    assert (parsed.clientcert, parsed.clientname, parsed.map) == (ClientCert.VERIFY_FULL, ClientName.DN, "m")
    assert str(parsed.ref) == "hba:1"


@pytest.mark.parametrize("method", ["trust", "reject", "scram-sha-256"])
@pytest.mark.parametrize("kind", list(ConnectionType))
def test_every_type_and_method_of_this_version_loads(kind: str, method: str) -> None:
    address = "" if kind == "local" else "all"
    parsed = rule(f"{kind} all all {address} {method}")
    assert (parsed.type, parsed.method, parsed.clientcert) == (kind, method, ClientCert.OFF)


def test_the_lines_of_the_handbook_load() -> None:
    loaded = parse_hba(
        "hba",
        b"hostssl all all 0.0.0.0/0 scram-sha-256\n"
        b"hostssl all all ::/0 scram-sha-256\n"
        b"host all all 127.0.0.1/32 scram-sha-256\n"
        b"local all all peer\n"
        b"hostssl all all 10.0.0.0/8 cert\n"
        b"hostssl all all 10.0.0.0/8 cert clientcert=verify-full\n"
        b"hostssl all all 10.0.0.0/8 cert map=cert_map\n",
    )
    assert [parsed.ref.number for parsed in loaded] == [1, 2, 3, 4, 5, 6, 7]


def test_ident_at_a_unix_socket_is_peer_as_in_postgresql() -> None:
    assert rule("local all all ident map=m").method is Method.PEER


@pytest.mark.parametrize("text", ["db.example.com", ".example.com", '"all"', "samenet.", "localhost", "ALL"])
def test_what_is_no_address_is_a_host_name(text: str) -> None:
    assert rule(f"host all all {text} trust").address == HostName(text.strip('"'))


def test_names_that_begin_with_a_slash_are_expressions_quoted_or_not() -> None:
    parsed = rule('host /^app,"/,x" "/^a",bob all trust')
    assert [isinstance(token, Pattern) for token in (*parsed.databases, *parsed.users)] == [
        True,
        True,
        True,
        False,
    ]


def test_cert_implies_verify_full() -> None:
    assert rule("hostssl all all all cert").clientcert is ClientCert.VERIFY_FULL


@pytest.mark.parametrize("word", ["all", "samehost", "samenet"])
def test_address_keywords_are_read(word: str) -> None:
    assert rule(f"host all all {word} trust").address is AddressKeyword(word)


def test_a_mask_may_have_a_column_of_its_own() -> None:
    assert rule("host all all 10.1.2.3 255.255.0.0 trust").address == ip_network("10.1.0.0/16")


def test_the_last_of_a_repeated_option_wins_as_in_postgresql() -> None:
    assert rule("local all all peer map=a,map=b").map == "b"


def test_every_issuer_of_a_line_counts_and_its_commas_are_its_own() -> None:
    assert rule("hostssl all all all cert").issuers == ()
    parsed = rule(
        'hostssl all all all cert issuer="CN=A,O=x" clientname=SAN_URI issuer="CN=B \\C3\\A4" map=m'
    )
    assert parsed.issuers == ("CN=A,O=x", "CN=B \\C3\\A4")
    assert (parsed.clientname, parsed.map) == (ClientName.SAN_URI, "m")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("tcp all all all trust", 'invalid connection type "tcp"'),
        ("HOST all all all trust", 'invalid connection type "HOST"'),
        ("host,local all all all trust", "multiple values specified for connection type"),
        ("host", "end-of-line before database specification"),
        ("host all", "end-of-line before role specification"),
        ("host all all", "end-of-line before IP address specification"),
        ("host all all 10.0.0.1", "end-of-line before netmask specification"),
        ("host all all 10.0.0.0/8", "end-of-line before authentication method"),
        ("host all all 10.0.0.1 trust", 'invalid IP mask "trust"'),
        ("host all all 10.0.0.1 255.0.0.0,255.0.0.0 trust", "multiple values specified for netmask"),
        ("host all all 10.0.0.0/8,::1/128 trust", "multiple values specified for host address"),
        ("host all all x/24 trust", 'specifying both host name and CIDR mask is invalid: "x/24"'),
        ("host all all 10.1 trust", "four decimal numbers"),
        ('host all all "" trust', 'invalid host name ""'),
        ("host all all db_1\\x trust", 'invalid host name "db_1\\x"'),
        ('host "/a(" all all trust', 'invalid regular expression "a(": parentheses () not balanced'),
        ("host all a,/[ all trust", 'invalid regular expression "[": brackets [] not balanced'),
        ("host all @users all trust", 'could not open file "users": no file can be included here'),
        ("include more.conf", 'could not open file "more.conf": no file can be included here'),
        ("host all all all trust,cert", "multiple values specified for authentication type"),
        ("host all all all magic", 'invalid authentication method "magic"'),
        ("host all all all TRUST", 'invalid authentication method "TRUST"'),
        ("host all all all ident", '"ident" is not in this version: use peer'),
        ("host all all all sspi", '"sspi" is not in this version: use trust'),
        (
            "host all all all ldap ldapserver=x",
            '"ldap" requires argument "ldapbasedn", "ldapprefix", or "ldapsuffix" to be set',
        ),
        ("host all all all radius radiussecrets=x", '"radius" requires argument "radiusservers" to be set'),
        ("host all all all radius radiusservers=x", '"radius" requires argument "radiussecrets" to be set'),
        ("local all all gss", "gssapi authentication is not supported on local sockets"),
        ("host all all all pam ldapserver=y", '"ldapserver" is only valid for authentication methods ldap'),
        ("host all all all md5 map=m", 'authentication option "map" is only valid for'),
        ("host all all all gss scope=x", 'unrecognized authentication option name: "scope"'),
        ("host all all all peer", "peer authentication is only supported on local sockets"),
        ("host all all all cert", "cert authentication is only supported on hostssl connections"),
        ("local all all cert", "cert authentication is only supported on hostssl connections"),
        ("host all all all trust clientcert", "authentication option not in name=value format: clientcert"),
        ("host all all all trust x=y", 'unrecognized authentication option name: "x"'),
        ("host all all all trust mpa=y", "; there are map, clientcert, clientname and issuer"),
        ("host all all all trust MAP=y", 'unrecognized authentication option name: "MAP"'),
        ("host all all all trust ldapserver=y", '"ldapserver" is only valid for authentication methods ldap'),
        ("local all all peer include_realm=1", "only valid for authentication methods gssapi and sspi"),
        ("hostssl all all all scram-sha-256 map=m", 'authentication option "map" is only valid for'),
        ("hostssl all all all trust map=m", 'authentication option "map" is only valid for'),
        ("hostssl all all all cert map=", 'authentication option "map" is empty'),
        (
            "host all all all trust clientcert=verify-ca",
            'clientcert can only be configured for "hostssl" rows',
        ),
        ("hostssl all all all cert clientcert=verify-ca", 'clientcert only accepts "verify-full"'),
        ("hostssl all all all trust clientcert=1", 'invalid value for clientcert: "1"'),
        ("hostssl all all all trust clientcert=off", 'invalid value for clientcert: "off"'),
        ("host all all all trust clientname=CN", 'clientname can only be configured for "hostssl" rows'),
        ("hostssl all all all cert clientname=cn", 'invalid value for clientname: "cn"'),
        (
            "hostssl all all all cert clientname=SAN",
            'clientname: "SAN"; write one of CN, DN, SAN_DNS, SAN_URI',
        ),
        (
            "hostssl all all all trust clientname=SAN_DNS",
            "clientname=SAN_DNS needs a line that compares names",
        ),
        (
            "hostssl all all all trust clientcert=verify-ca clientname=SAN_URI",
            "clientname=SAN_URI needs a line that compares names",
        ),
        ("host all all all trust issuer=CN=a", 'issuer can only be configured for "hostssl" rows'),
        ("hostssl all all all cert issuer=", 'authentication option "issuer" is empty'),
        ("hostssl all all all trust issuer=CN=a", "issuer needs a line that asks for a certificate"),
        ("hostssl all all all reject issuer=CN=a", "issuer does not choose whom a line is for"),
        (
            "hostssl all all all reject clientcert=verify-ca issuer=CN=a",
            "issuer does not choose whom a line is for",
        ),
        ("hostssl all all all cert issuer=CN=a,O=b", "a DN with commas in it needs quotes"),
    ],
)
def test_what_postgresql_refuses_or_this_version_has_not_is_a_mistake(text: str, problem: str) -> None:
    (mistake,) = mistakes(text)
    assert mistake.startswith("hba:1: ")
    assert problem in mistake


def test_every_mistake_is_reported_with_its_line() -> None:
    found = mistakes("host all all all magic\n\nlocal all all trust\n\\\nbad\n")
    assert [mistake.split(": ")[0] for mistake in found] == ["hba:1", "hba:4"]


@pytest.mark.parametrize("text", ["", "\n# only a comment\n"])
def test_a_file_without_entries_is_a_mistake(text: str) -> None:
    (mistake,) = mistakes(text)
    assert mistake.startswith("hba: the file contains no entries")


def test_names_from_the_file_are_shown_without_control_characters() -> None:
    (mistake,) = mistakes("host all all all \x1b[2J")
    assert "\x1b" not in mistake


@pytest.mark.parametrize(
    ("users", "names_alice", "literal_only"),
    [
        ("alice", True, True),
        ("bob,alice", True, True),
        ("bob", False, True),
        ("all", False, False),
        ("alice,all", True, False),
        ('"all"', False, True),
        ('"+x",alice', True, True),
        ("+alice", False, False),
        ("+ops,alice", True, False),
        ("/alice", False, False),
        ('"/alice"', False, False),
    ],
)
def test_a_rule_knows_whom_it_names(users: str, *, names_alice: bool, literal_only: bool) -> None:
    parsed = rule(f"local all {users} trust")
    assert parsed.names_user("alice") is names_alice
    assert parsed.has_literal_users_only is literal_only


def test_all_as_a_user_name_is_named_only_in_quotes() -> None:
    assert rule('local all "all" trust').names_user("all")
    assert not rule("local all all trust").names_user("all")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("local all a trust", True),
        ("host all a 127.0.0.1/32 trust", True),
        ("host all a 127.1.2.0 255.255.255.0 trust", True),
        ("host all a ::1/128 trust", True),
        ("host all a all trust", False),
        ("host all a samehost trust", False),
        ("host all a samenet trust", False),
        ("host all a 0.0.0.0/0 trust", False),
        ("host all a ::/0 trust", False),
        ("host all a localhost trust", False),
    ],
)
def test_only_local_and_numeric_loopback_addresses_are_loopback(text: str, *, expected: bool) -> None:
    assert rule(text).is_loopback_only is expected


WORDS = st.sampled_from(
    [
        *("local", "host", "hostssl", "all", "alice", '"all"', "sameuser", "replication", "+x", "/x", "@f"),
        *("10.0.0.0/8", "10.1", "255.0.0.0", "::1/128", "samenet", "trust", "reject", "cert", "peer"),
        *(
            "scram-sha-256",
            "md5",
            "clientcert=verify-ca",
            "map=m",
            "map=",
            "x=y",
            ",",
            "\\\n",
            "\n",
            "#",
            '"',
        ),
    ]
)


@given(st.binary(max_size=100) | st.lists(WORDS, max_size=20).map(lambda words: " ".join(words).encode()))
@settings(max_examples=200)
def test_any_bytes_give_rules_or_a_config_error(content: bytes) -> None:
    try:
        parsed = parse_hba("hba", content)
    except ConfigError:
        return
    assert parsed
    for one in parsed:
        assert one.map is None or one.method in {Method.CERT, Method.PEER}
        assert one.clientcert is ClientCert.OFF or one.type is ConnectionType.HOSTSSL
        assert (one.address is None) is (one.type is ConnectionType.LOCAL)


@pytest.mark.parametrize(
    ("line", "method", "ignored"),
    [
        ("local all all md5", Method.MD5, ()),
        (
            "host all all all pam pamservice=x pam_use_hostname=1",
            Method.PAM,
            ("pamservice=x", "pam_use_hostname=1"),
        ),
        ("host all all all bsd", Method.BSD, ()),
        ("host all all all gss include_realm=0 map=m", Method.GSS, ("include_realm=0", "map=m")),
        (
            'host all all all ldap ldapserver=x ldapprefix="cn=" ldapbindpasswd=hunter2',
            Method.LDAP,
            ("ldapserver=x", "ldapprefix=cn=", "ldapbindpasswd=***"),
        ),
        ("host all all all ldap ldapurl=ldap://x/b", Method.LDAP, ("ldapurl=ldap://x/b",)),
        (
            'host all all all radius radiusservers="a,b" radiussecrets=hunter2',
            Method.RADIUS,
            ("radiusservers=a,b", "radiussecrets=***"),
        ),
        (
            "hostssl all all all oauth issuer=https://x scope=y map=m",
            Method.OAUTH,
            ("issuer=https://x", "scope=y", "map=m"),
        ),
    ],
)
def test_a_method_of_the_backends_keeps_its_options_for_those_who_look_and_no_secret(line, method, ignored):
    (rule,) = parse_hba("pg_hba.conf", line.encode())
    assert (rule.method, rule.ignored) == (method, ignored)
    assert (rule.map, rule.issuers) == (None, ())
    assert "hunter2" not in repr(rule).replace(line, "")
