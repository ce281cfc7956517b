"""`explain` says of a certificate what the proxy does with it, where subjectAltNames and issuers count."""

import io
import json
import ssl
import sys

import pytest
from cryptography import x509

from fixtures import wire
from fixtures.certs import Authority, common_names
from fixtures.deployments import config, passthrough, with_tls
from fixtures.fake_backend import lets_everybody_in
from pgtlsproxy.cli import main

HBA = r"""
hostssl dns   all all cert clientname=SAN_DNS
hostssl uri   all all cert clientname=SAN_URI map=spiffe
hostssl email all all trust clientcert=verify-full clientname=SAN_EMAIL
hostssl a     all all cert issuer="CN=Team A CA"
hostssl both  all all cert issuer="CN=Team B CA" issuer="CN=below A"
hostssl mixed all all cert clientname=SAN_DNS issuer="CN=Team A CA"
"""
IDENT = r"spiffe /^spiffe://corp/([a-z]+)$ \1"
DATABASES = ("dns", "uri", "email", "a", "both", "mixed")

DNS, URI, EMAIL = x509.DNSName, x509.UniformResourceIdentifier, x509.RFC822Name
ALL_KINDS = [DNS("x"), DNS("alice"), URI("spiffe://corp/alice"), EMAIL("alice")]
NOBODYS = [DNS("*"), DNS("bob"), URI("spiffe://corp/bob"), URI("spiffe://corp/bob2"), EMAIL("Alice")]

LET_IN = {
    "A": {"a"},
    "A, with names": {"dns", "uri", "email", "a", "mixed"},
    "A, with others' names": {"a"},
    "A, with many names": set(),
    "A, with a long name": {"a"},
    "B": {"both"},
    "B, with names": {"dns", "uri", "email", "both"},
    "below A": {"both"},
    "unlisted, below A": set(),
    "B, calls itself A": set(),
    "nobody's": set(),
    "with a NUL in a name": set(),
    "with a type without a name": set(),
}
"""Into which databases alice gets with which certificate."""


@pytest.fixture(scope="module")
def teams(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teams")
    return {
        "A": Authority.root(folder / "a", "Team A CA"),
        "B": Authority.root(folder / "b", "Team B CA"),
        "nobody": Authority.root(folder / "nobody", "Team A CA"),
    }


@pytest.fixture(scope="module")
def below(teams):
    return teams["A"].intermediate("below A")


@pytest.fixture(scope="module")
def certificates(teams, below):
    a, b = teams["A"], teams["B"]
    odd = x509.NameAttribute(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), "x")
    return {
        "A": issued(a),
        "A, with names": issued(a, ALL_KINDS),
        "A, with others' names": issued(a, NOBODYS),
        "A, with many names": issued(a, [DNS(f"alice{number}") for number in range(60)], common_names("bob")),
        "A, with a long name": issued(a, [URI("spiffe://corp/" + "a" * 300)]),
        "B": issued(b),
        "B, with names": issued(b, ALL_KINDS),
        "below A": issued(below),
        "unlisted, below A": issued(a.intermediate("unlisted")),
        "B, calls itself A": issued(b.intermediate("Team A CA")),
        "nobody's": issued(teams["nobody"], ALL_KINDS),
        "with a NUL in a name": issued(a, [*ALL_KINDS, DNS("a\0b")]),
        "with a type without a name": issued(a, ALL_KINDS, x509.Name([*common_names("alice"), odd])),
    }


def issued(authority, names=(), subject=None):
    extensions = [x509.SubjectAlternativeName(names)] if names else []
    return authority.issue(subject or common_names("alice"), usage="client", extensions=extensions)


@pytest.fixture(scope="module")
def running(shared_proxy, shared_fake_backend, certs, teams, below):
    shown, backend = certs.client("pgtlsproxy"), shared_fake_backend(lets_everybody_in)
    primary = passthrough(backend, certs, login="certificate", sslcert=shown.crt, sslkey=shown.key)
    trusted = b"".join(ca.crt.read_bytes() for ca in (teams["A"], below, teams["B"]))
    listener = with_tls(certs, ident_file="pg_ident.conf", ssl_ca_file="clients.crt")
    files = {"pg_hba.conf": HBA, "pg_ident.conf": IDENT, "clients.crt": trusted}
    return shared_proxy(config({"tls": listener}, primary=primary), files)


@pytest.fixture
def explained(running, capsys, monkeypatch):
    """`explained(options...)` gives the JSON object, `log=event` asks about one."""

    def run(*options, log=None):
        if log is None:
            options = ("--user", "alice", "--address", "127.0.0.1", *options)
        else:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(log).encode())))
            options = ("--log", "-")
        with pytest.raises(SystemExit) as ended:
            main(["explain", "-c", str(running.config), "--json", *map(str, options)])
        found = json.loads(capsys.readouterr().out)
        assert ended.value.code == {True: 0, False: 2, None: 1}[found["allowed"]]
        return found

    return run


def session(running, certificate, database):
    """What the log says of a session."""
    with wire.WireClient(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        assert client.ask_for_tls() == b"S"
        try:
            client.start_tls(wire.tls_context(certificate=certificate))
            client.send(wire.startup(user="alice", database=database))
            while client.read_message().kind not in {b"E", b"Z"}:
                pass
        except (ssl.SSLError, EOFError, ConnectionError):
            pass
        return running.wait_for_event("session_decided", **client.where)


def number(ref):
    return None if ref is None else ref["line"]


def verdict(found):
    return found["allowed"], number(found["hba"]), number(found["ident"]), found["decided_by"]


def assert_agrees(found, event):
    assert verdict(found) == (
        event["verdict"] == "allowed", event["hba_line"], event["ident_line"], event["decided_by"],
    )  # fmt: skip
    if not found["allowed"]:
        assert (found["reason"], found["sqlstate"]) == (event["reason"], event["sqlstate"])


def test_a_line_of_a_log_without_the_issuers_key_is_no_guess(running, certificates, explained):
    """As older versions write it: a name alone is no CA."""
    event = session(running, certificates["A"], "a") | {"cert_issuer_key": None}
    found = explained(log=event)
    assert (found["allowed"], "which CA issued its certificate" in found["reason"]) == (None, True)


@pytest.mark.parametrize("which", LET_IN)
def test_a_certificate_and_its_line_of_the_log_have_the_sessions_verdict(
    running, certificates, explained, which
):
    for database in DATABASES:
        event = session(running, certificates[which], database)
        assert (event["verdict"] == "allowed") is (database in LET_IN[which]), (database, event["reason"])
        by_file = explained("--database", database, "--certificate", certificates[which].crt)
        by_log = explained(log=event)
        if event["kind"] == "client_certificate":  # nobody was asked: the handshake is what failed
            assert (by_file["allowed"], by_file["decided_by"], by_file["hba"]) == (False, "proof", None)
            assert by_log["allowed"] is not True
            continue
        assert_agrees(by_file, event)
        asks_for_names = database in {"dns", "uri", "email", "mixed"}
        if which in {"A, with many names", "A, with a long name"} and asks_for_names:
            assert (by_log["allowed"], "the subjectAltNames" in by_log["reason"]) == (None, True)
        else:
            assert_agrees(by_log, event)


REASONS = {
    ("A", "dns"): "client certificate contains no SAN_DNS that can name a user",
    ("A, with others' names", "dns"): "provided user name (alice) and authenticated user name (bob) do not match",
    ("A, with others' names", "uri"): 'for user "alice" authenticated as "spiffe://corp/bob", "spiffe://corp/bob2"',
    ("A, with others' names", "email"): "provided user name (alice) and authenticated user name (Alice) do not",
    ("B", "a"): "needs a certificate issued by CN=Team A CA of ssl_ca_file, and the client's is by CN=Team B CA",
    ("A", "both"): "issued by CN=Team B CA or CN=below A of ssl_ca_file, and the client's is by CN=Team A CA",
    ("unlisted, below A", "a"): "and the client's is by CN=unlisted",
    ("B, calls itself A", "a"): "is by CN=Team A CA with a key that is not in ssl_ca_file",
    ("nobody's", "dns"): "the TLS handshake fails, and pg_hba.conf is not asked: at depth 0: ",
    ("with a NUL in a name", "dns"): "a subjectAltName of the certificate contains embedded null",
    ("with a type without a name", "dns"): "nobody has a name for the attribute type 1.3.6.1.4.1.99999.1",
}  # fmt: skip


@pytest.mark.parametrize(("which", "database"), REASONS)
def test_the_reason_is_told_exactly(explained, certificates, which, database):
    found = explained("--database", database, "--certificate", certificates[which].crt)
    assert found["allowed"] is False
    assert REASONS[which, database] in found["reason"]


SUPPOSED = {
    "a name": ("dns", ["--san", "DNS:x", "--san", "DNS:alice"], True),
    "another name": ("dns", ["--san", "DNS:bob"], False),
    "a name of another kind": ("dns", ["--san", "URI:alice"], False),
    "a name for a map": ("uri", ["--san", "URI:spiffe://corp/alice"], True),
    "an address": ("email", ["--san", "email:alice"], True),
    "names that are not said": ("dns", ["--cn", "alice"], "the subjectAltNames of its certificate"),
    "a CA": ("a", ["--cn", "alice", "--issuer", "CN=Team A CA"], True),
    "a CA that the line does not name": ("a", ["--cn", "alice", "--issuer", "CN=Team B CA"], False),
    "a CA that nobody knows": ("a", ["--cn", "alice", "--issuer", "CN=other"], False),
    "a CA and no name": ("a", ["--issuer", "CN=Team A CA"], "the common name of its certificate"),
    "a CA that is not said": ("a", ["--cn", "alice"], "which CA issued its certificate"),
    "neither": ("a", [], "does not say whether it has a certificate"),
    "both": ("mixed", ["--san", "DNS:alice", "--issuer", "CN=Team A CA"], True),
    "one of both": ("mixed", ["--san", "DNS:alice"], "which CA issued its certificate"),
    "no certificate": ("mixed", ["--no-certificate"], False),
}


@pytest.mark.parametrize("case", SUPPOSED)
def test_what_is_said_of_a_certificate_is_enough_or_what_is_missing_is_named(explained, case):
    database, options, expected = SUPPOSED[case]
    found = explained("--database", database, *options)
    if isinstance(expected, str):
        assert (found["allowed"], expected in found["reason"]) == (None, True)
    else:
        assert found["allowed"] is expected


def test_the_command_line_tells_people(running, certificates, command_line):
    options = ("explain", "-c", running.config, "--user", "alice", "--address", "127.0.0.1", "--database")
    for which, database, status in (("A, with names", "mixed", 0), ("B, with names", "mixed", 2)):
        done = command_line(*options, database, "--certificate", certificates[which].crt)
        assert (done.returncode, done.stderr) == (status, "")
        assert "pg_hba.conf:7: " in done.stdout
    assert "the client's is by CN=Team B CA" in done.stdout


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--san", "IP:127.0.0.1"], '--san takes one of DNS:NAME, URI:NAME, email:NAME, not "IP:127.0.0.1"'),
        (["--san", "alice"], 'not "alice"'),
        (["--san", "DNS:a", "--no-certificate"], "--no-certificate and --san do not go together"),
        (["--issuer", "CN=A", "--no-tls"], "--no-tls and --issuer do not go together"),
        (["--issuer", "CN=A", "--address", "local"], "there is no TLS at a Unix socket"),
    ],
)
def test_what_cannot_be_said_is_wrong_usage(running, command_line, options, text):
    done = command_line("explain", "-c", running.config, "--user", "a", "--address", "127.0.0.1", *options)
    assert done.returncode == 64
    assert text in done.stderr


def test_an_issuer_that_no_ca_bears_is_a_mistake_of_the_configuration(
    proxy, command_line, certs, fake_backend
):
    path = proxy.write(
        config({"tls": with_tls(certs)}, primary=passthrough(fake_backend(lets_everybody_in), certs)),
        {"pg_hba.conf": 'hostssl all all all cert issuer="CN=Team C CA"\n'},
    )
    asked = command_line("explain", "-c", path, "--user", "alice", "--address", "127.0.0.1", "--cn", "alice")
    checked = command_line("check", "-c", path)
    mistakes = [line for line in checked.stderr.splitlines() if line.startswith("error:")]
    assert 'pg_hba.conf:1: issuer "CN=Team C CA": ssl_ca_file of listener tls has no CA' in mistakes[0]
    assert (asked.returncode, asked.stderr.splitlines()) == (1, mistakes)
