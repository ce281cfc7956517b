"""What docs/policy.md shows under "Client certificates" is taken as it stands there, and lets in and keeps out as it says."""

import re
import shlex
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

import pgtlsproxy
from fixtures import wire
from fixtures.certs import common_names
from fixtures.chains import CLIENT, NO_CA, node, saved
from fixtures.deployments import config, with_certificate, with_tls
from fixtures.fake_backend import lets_everybody_in

ROOT = Path(pgtlsproxy.__file__).parents[1]
PAGE = (ROOT / "docs" / "policy.md").read_text()

CLOSED = "closed"
LET_IN = None
WRONG_CA = "28000", "connection requires a valid client certificate"


def recipe(title):
    """The block under a heading."""
    section = PAGE.split(f"\n### {title}\n")[1].split("\n## ")[0].split("\n### ")[0]
    (block,) = re.findall(r"^```\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return block, section


def files_of(title):
    """pg_hba.conf and pg_ident.conf of a recipe; clients come from loopback here."""
    block, _ = recipe(title)
    parts = re.split(r"^# (pg_\w+\.conf)\n", block, flags=re.MULTILINE)[1:]
    files = dict(zip(parts[::2], parts[1::2], strict=True))
    assert "10.0.0.0/8" in files["pg_hba.conf"]
    return files | {"pg_hba.conf": files["pg_hba.conf"].replace("10.0.0.0/8", "all")}


def not_the_user(user):
    return "28000", f'certificate authentication failed for user "{user}"'


class Corporation:
    """The CAs that the recipes name."""

    def __init__(self, folder):
        self.folder = folder
        self.cas = {name: self._ca(name) for name in ("Team A CA", "Team A CA 2", "Team B CA", "SPIRE")}
        self.trusted = b"".join(ca.pem for ca in self.cas.values())

    def client(self, ca, name, *uris):
        names = [x509.UniformResourceIdentifier(uri) for uri in uris]
        extensions = [NO_CA, CLIENT, *([x509.SubjectAlternativeName(names)] if uris else [])]
        number = len(list(self.folder.iterdir()))
        return saved(self.folder / str(number), node(name, self.cas[ca], extensions))

    def _ca(self, name):
        organization = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Corp")
        subject = x509.Name([organization, x509.NameAttribute(NameOID.COMMON_NAME, name)])
        return node(name, subject=subject)


@pytest.fixture(scope="module")
def corporation(tmp_path_factory):
    return Corporation(tmp_path_factory.mktemp("corporation"))


@pytest.fixture
def follow(proxy, fake_backend, certs, corporation):
    def go(files):
        settings = {"ssl_ca_file": "cas.crt"}
        if "pg_ident.conf" in files:
            settings["ident_file"] = "pg_ident.conf"
        backend = with_certificate(fake_backend(lets_everybody_in), certs)
        return proxy(
            config({"tls": with_tls(certs, **settings)}, primary=backend),
            {"cas.crt": corporation.trusted, **files},
        )

    return go


def outcome(running, certificate, user, database):
    """None where somebody is let in, an error, or that the connection was closed."""
    with wire.WireClient(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        assert client.ask_for_tls() == b"S"
        try:
            client.start_tls(wire.tls_context(certificate=certificate))
            client.send(wire.startup(user=user, database=database))
            while (message := client.read_message()).kind not in b"EZ":
                pass
        except (ssl.SSLError, EOFError, ConnectionError):
            return CLOSED
        return message.error if message.kind == b"E" else LET_IN


TESTED_ELSEWHERE = {
    "# databases: {crm": "tests/promises/test_one_port_leads_each_database_to_its_server.py",
    "# role   members": "tests/policy/test_policy_roles.py",
    "$ pgtlsproxy explain": "tests/cli/test_explain_command.py",
}
"""How the other blocks of the page begin, and who takes them as they stand."""

RECIPES = ("One user a certificate", "One CA a team", "SPIFFE", "Somebody must be out now")


def test_every_block_of_the_page_is_taken_by_a_test():
    tested = [recipe(title)[0] for title in RECIPES]
    for block in re.findall(r"^```\w*\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        if block not in tested:
            (test,) = [path for begin, path in TESTED_ELSEWHERE.items() if block.startswith(begin)]
            assert "policy.md" in (ROOT / test).read_text()


def test_one_user_a_certificate(follow, corporation):
    running = follow(files_of("One user a certificate"))
    smith = corporation.client("Team A CA", "alice.smith")
    bob = corporation.client("Team A CA", "bob@corp.example")
    assert outcome(running, smith, "alice", "crm") is LET_IN
    assert outcome(running, bob, "bob", "crm") is LET_IN
    for certificate, user in ((smith, "bob"), (bob, "alice"), (smith, "alice.smith")):
        assert outcome(running, certificate, user, "crm") == not_the_user(user)


def test_one_ca_a_team(follow, corporation):
    files = files_of("One CA a team")
    running = follow(files)
    a, a2, b = (corporation.client(f"Team {which}", "alice") for which in ("A CA", "A CA 2", "B CA"))
    for certificate, database, expected in (
        (a, "crm", LET_IN),
        (a2, "crm", WRONG_CA),
        (b, "crm", WRONG_CA),
        (b, "shop", LET_IN),
        (a, "shop", WRONG_CA),
    ):
        assert outcome(running, certificate, "alice", database) == expected
    _, section = recipe("One CA a team")
    (both,) = re.findall(r"`(issuer=.* issuer=.*)`", section)
    hba = files["pg_hba.conf"].replace('issuer="CN=Team A CA,O=Corp"', both)
    (running.config.parent / "pg_hba.conf").write_text(hba)
    assert running.reload()["event"] == "reloaded"
    assert [outcome(running, each, "alice", "crm") for each in (a, a2, b)] == [LET_IN, LET_IN, WRONG_CA]


def test_spiffe(follow, corporation):
    running = follow(files_of("SPIFFE"))
    id_ = "spiffe://prod.corp/ns/crm/sa/web"
    web = corporation.client("SPIRE", "unused", id_)
    assert outcome(running, web, "crm_web", "crm") is LET_IN
    assert outcome(running, web, "web", "crm") == not_the_user("web")
    forged = corporation.client("Team B CA", "unused", id_)
    assert outcome(running, forged, "crm_web", "crm") == WRONG_CA
    other = corporation.client("SPIRE", "crm_web", "spiffe://test.corp/ns/crm/sa/web")
    assert outcome(running, other, "crm_web", "crm") == not_the_user("crm_web")


@pytest.fixture
def with_own_list(proxy, fake_backend, certs):
    """A proxy beside the files of the run's CA, and alice."""
    alice = certs.ca.issue(common_names("alice"), usage="client")
    listener = with_tls(certs, ssl_ca_file="ca.crt", ssl_crl_file="ca.crl", revoked_sessions="close")
    running = proxy(
        config({"tls": listener}, primary=with_certificate(fake_backend(lets_everybody_in), certs)),
        {"pg_hba.conf": "hostssl all all all cert\n", "ca.crl": certs.ca.crl().read_bytes()}
        | {"ca.crt": certs.ca.crt.read_bytes(), "ca.key": certs.ca.issued.key.read_bytes()},
    )
    shutil.copy(alice.crt, running.config.parent / "alice.crt")
    return running, alice


def test_somebody_must_be_out_now(with_own_list):
    running, alice = with_own_list
    block, section = recipe("Somebody must be out now")
    command, reload = block.strip().split(" && ")
    assert reload == "systemctl reload pgtlsproxy"
    with wire.WireClient(("127.0.0.1", running.port("tls"))) as client:
        assert client.ask_for_tls() == b"S"
        client.start_tls(wire.tls_context(certificate=alice))
        client.send(wire.startup(user="alice"))
        client.read_until(b"Z")
        program, *arguments = shlex.split(command)
        assert program == "pgtlsproxy"
        subprocess.run(
            [sys.executable, "-m", "pgtlsproxy", *arguments],
            cwd=running.config.parent,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
            check=True,
            capture_output=True,
        )
        assert running.reload()["event"] == "reloaded"
        assert client.read_error().error[0] == "57P01"
    assert outcome(running, alice, "alice", "crm") == CLOSED
    assert "`host all alice all reject`" in section


def test_a_line_keeps_one_user_out_where_there_is_no_list(follow, corporation):
    _, section = recipe("Somebody must be out now")
    (line,) = re.findall(r"`(host all alice all reject)`", section)
    running = follow({"pg_hba.conf": f"{line}\nhostssl all all all cert\n"})
    alice, bob = (corporation.client("Team A CA", name) for name in ("alice", "bob"))
    assert outcome(running, alice, "alice", "crm")[0] == "28000"
    assert outcome(running, bob, "bob", "crm") is LET_IN
