"""Where a line says `issuer`, the CA of that name in ssl_ca_file vouches for its users, and no other one does."""

import ssl
from contextlib import ExitStack

import pytest

from fixtures import wire
from fixtures.certs import Authority
from fixtures.deployments import config, passthrough, with_tls
from fixtures.fake_backend import lets_everybody_in
from fixtures.shared_proxy import refusal_of

HBA = """
hostssl a     all all cert issuer="CN=Team A CA"
hostssl b     all all cert issuer="CN=Team B CA"
hostssl both  all all cert issuer="CN=Team B CA" issuer="CN=Team A CA"
hostssl below all all cert issuer="CN=below A"
hostssl any   all all cert
"""
WRONG_CA = "28000", "connection requires a valid client certificate"


class Teams:
    """Two CAs, what they issued, and what a listener trusts."""

    def __init__(self, folder):
        self.a, self.b = (Authority.root(folder / name, f"Team {name.upper()} CA") for name in "ab")
        below, unlisted = self.a.intermediate("below A"), self.a.intermediate("unlisted")
        self.trusted = b"".join(ca.crt.read_bytes() for ca in (self.a, below, self.b))
        self.certificates = {
            "A": self.a.client("alice"),
            "B": self.b.client("alice"),
            "below A": below.client("alice"),
            "unlisted, below A": unlisted.client("alice"),
            "B, calls itself A": self.b.intermediate("Team A CA").client("alice"),
            "B, calls itself below A": self.b.intermediate("below A").client("alice"),
        }


@pytest.fixture(scope="module")
def teams(tmp_path_factory):
    return Teams(tmp_path_factory.mktemp("teams"))


def deployment(certs, backend):
    shown = certs.client("pgtlsproxy")
    return config(
        {"tls": with_tls(certs, ssl_ca_file="clients.crt")},
        primary=passthrough(backend, certs, login="certificate", sslcert=shown.crt, sslkey=shown.key),
    )


def start(make, certs, backend, teams, hba=HBA):
    return make(deployment(certs, backend), {"pg_hba.conf": hba, "clients.crt": teams.trusted})


@pytest.fixture(scope="module")
def running(shared_proxy, shared_fake_backend, certs, teams):
    return start(shared_proxy, certs, shared_fake_backend(lets_everybody_in), teams)


def verdict(client, certificate, database, version=ssl.TLSVersion.TLSv1_3):
    """None where alice is let in, else what she is told."""
    assert client.ask_for_tls() == b"S"
    client.start_tls(wire.tls_context(certificate=certificate, versions=(version, version)))
    client.send(wire.startup(user="alice", database=database))
    first = client.read_message()
    if first.kind == b"E":
        return first.error
    client.read_until(b"Z")
    return None


def asked(running, certificate, database):
    with wire.WireClient(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        return verdict(client, certificate, database)


LET_IN = {
    "A": {"a", "both", "any"},
    "B": {"b", "both", "any"},
    "below A": {"below", "any"},
    "unlisted, below A": {"any"},
    "B, calls itself A": {"any"},
    "B, calls itself below A": {"any"},
}


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda v: v.name)
@pytest.mark.parametrize("issuer", LET_IN)
def test_a_line_takes_the_certificates_of_its_issuer_alone(running, teams, issuer, version):
    for database in ("a", "b", "both", "below", "any"):
        with wire.WireClient(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
            found = verdict(client, teams.certificates[issuer], database, version)
            assert found == (None if database in LET_IN[issuer] else WRONG_CA), database


def test_the_log_says_which_ca_was_wanted_and_whose_certificate_it_was(running, teams):
    for issuer, shown in (
        ("B", "and the client's is by CN=Team B CA"),
        ("B, calls itself A", "and the client's is by CN=Team A CA with a key that is not in ssl_ca_file"),
    ):
        with wire.WireClient(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
            assert verdict(client, teams.certificates[issuer], "a") == WRONG_CA
            decided = refusal_of(running, client)
        assert decided["reason"].endswith(
            f"the line needs a certificate issued by CN=Team A CA of ssl_ca_file, {shown}"
        )
        assert (decided["decided_by"], decided["hba_line"], decided["cert_verified"]) == ("hba", 2, True)


def test_a_reload_keeps_a_renewed_ca_and_drops_one_that_only_has_its_name(
    proxy, fake_backend, certs, teams, tmp_path
):
    running = start(proxy, certs, fake_backend(lets_everybody_in), teams)
    trusted = running.config.parent / "clients.crt"
    others = teams.trusted.removeprefix(teams.a.crt.read_bytes())
    a, b = teams.certificates["A"], teams.certificates["B"]

    trusted.write_bytes(teams.a.renewed().crt.read_bytes() + others)
    assert running.reload()["event"] == "reloaded"
    assert asked(running, a, "a") is None

    namesake = Authority.root(tmp_path / "namesake", "Team A CA")
    trusted.write_bytes(namesake.crt.read_bytes() + teams.trusted)
    assert running.reload()["event"] == "reload_failed"
    for certificate in (a, namesake.client("alice")):
        assert asked(running, certificate, "a") == WRONG_CA
    assert asked(running, b, "b") is None

    trusted.write_bytes(namesake.crt.read_bytes() + others)
    assert running.reload()["event"] == "reloaded"
    assert asked(running, namesake.client("alice"), "a") is None
    with pytest.raises((ssl.SSLError, EOFError, ConnectionError)):
        asked(running, a, "a")


def test_with_close_a_renewed_ca_ends_no_session_and_one_that_is_taken_out_does(
    proxy, fake_backend, certs, teams
):
    settings = deployment(certs, fake_backend(lets_everybody_in))
    settings["listeners"]["tls"]["revoked_sessions"] = "close"
    hba = 'hostssl all all all cert issuer="CN=Team A CA" issuer="CN=Team B CA"\n'
    running = proxy(settings, {"pg_hba.conf": hba, "clients.crt": teams.trusted})
    folder = running.config.parent
    with ExitStack() as stack:
        client = stack.enter_context(wire.WireClient(("127.0.0.1", running.port("tls"))))
        assert verdict(client, teams.certificates["A"], "any") is None
        renewed = teams.a.renewed().crt.read_bytes()
        (folder / "clients.crt").write_bytes(renewed + teams.b.crt.read_bytes())
        assert running.reload()["event"] == "reloaded"
        client.send(wire.query("SELECT 1"))
        client.read_until(b"Z")
        (folder / "pg_hba.conf").write_text('hostssl all all all cert issuer="CN=Team B CA"\n')
        assert running.reload()["event"] == "reloaded"
        assert client.read_error().error[0] == "57P01"


@pytest.mark.parametrize(
    ("hba", "problem"),
    [
        (
            'hostssl all all all cert issuer="CN=Team C CA"\n',
            "has no CA of this name, only CN=Team A CA, CN=",
        ),
        ('hostssl all all all cert issuer="/CN=Team A CA"\n', "has no CA of this name"),
        ('hostssl all all all cert issuer="CN=team a ca"\n', "has no CA of this name"),
        ("hostssl all all all cert issuer=CN=twice\n", "CAs with several keys that bear this name"),
    ],
)
def test_an_issuer_that_no_ca_or_several_could_be_is_refused_at_load(
    proxy, command_line, certs, fake_backend, teams, tmp_path, hba, problem
):
    twice = [Authority.root(tmp_path / name, "twice").crt.read_bytes() for name in ("one", "two")]
    files = {"pg_hba.conf": hba, "clients.crt": teams.trusted + b"".join(twice)}
    checked = command_line(
        "check", "-c", proxy.write(deployment(certs, fake_backend(lets_everybody_in)), files)
    )
    assert checked.returncode == 1
    (line,) = [line for line in checked.stderr.splitlines() if line.startswith("error: ")]
    assert "pg_hba.conf:1: issuer" in line
    assert problem in line


def test_a_line_without_names_asks_for_its_issuer_too(proxy, fake_backend, certs, teams):
    """Beside the proof that the backend asks for."""
    backend = fake_backend(lets_everybody_in)
    running = proxy(
        config({"tls": with_tls(certs, ssl_ca_file="clients.crt")}, primary=passthrough(backend, certs)),
        {"pg_hba.conf": 'hostssl all all all trust clientcert=verify-ca issuer="CN=Team A CA"\n'}
        | {"clients.crt": teams.trusted},
    )
    assert asked(running, teams.certificates["B"], "any") == WRONG_CA
    assert backend.conversations == []
    code, _ = asked(running, teams.certificates["A"], "any")  # this backend asks nobody for anything
    assert code == "28000"
    assert len(backend.conversations) == 1
