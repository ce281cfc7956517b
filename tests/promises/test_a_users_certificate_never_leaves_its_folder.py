"""With `sslcert: users/{user}.crt` no user's name opens a file elsewhere, and each certificate is its user's own."""

import re
import shutil
import sys

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from fixtures import wire
from fixtures.certs import common_names
from fixtures.deployments import config, in_clear, passthrough, with_tls
from fixtures.fake_backend import lets_everybody_in
from fixtures.wire import WireClient, connected, tls_context

TELLS_WHAT_IT_OPENS = """
import sys
told = open(sys.argv.pop(1), "a", buffering=1)
sys.addaudithook(lambda event, details: event == "open" and print(repr(details[0]), file=told))
from pgtlsproxy.cli import main
main(sys.argv[1:])
"""

LONGEST = "A" * 63
GOOD_NAMES = ("alice", "_", "0", "alice.smith@example.com", "Ops-2", LONGEST)
HOSTILE_NAMES = (
    "../admin/postgres", "..", ".", ".hidden", " ", "-x", "\u00e4lice", "admin/postgres", "alice\n", "alice ",
    "{user}", "%s", "~", "*", "\x1b[31m", "/etc/passwd", b"\xff",
)  # fmt: skip

ANYBODY = {"hba_file": "pg_hba.conf", "ident_file": "pg_ident.conf"}
ANYBODY_FILES = {"pg_hba.conf": "local all all peer map=anybody\n", "pg_ident.conf": "anybody /^ all\n"}


def name_of(user):
    return user if isinstance(user, str) else user.decode("utf-8", "surrogateescape")


def pair(issued):
    return issued.crt.read_bytes(), issued.key.read_bytes()


def user_files(certs, holders):
    """Files beside a configuration: under each path without its suffix, a certificate for this subject."""
    found = {}
    for stem, subject in holders.items():
        issued = (
            certs.client(subject) if isinstance(subject, str) else certs.ca.issue(subject, usage="client")
        )
        found[f"{stem}.crt"], found[f"{stem}.key"] = pair(issued)
    return found


def per_user(target, certs, **words):
    return passthrough(
        target, certs, login="certificate", sslcert="users/{user}.crt", sslkey="users/{user}.key", **words
    )


@pytest.fixture(scope="module")
def backend(shared_fake_backend, certs):
    return shared_fake_backend(lets_everybody_in, client_ca=certs.ca)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return tmp_path_factory.mktemp("opened") / "paths"


@pytest.fixture(scope="module")
def running(shared_proxy, certs, backend, opened):
    """A proxy that tells what it opens. Whatever name a file could have, one with a fitting certificate is there."""
    decoys = {
        "admin/postgres": "../admin/postgres",
        "users/.hidden": ".hidden",
        "users/..": ".",
        "users/...": "..",
        "users/ ": " ",
        "users/-x": "-x",
        "users/\u00e4lice": "\u00e4lice",
        "users/admin/postgres": "admin/postgres",
        "users/alice ": "alice ",
        "users/alice\n": "alice\n",
        "users/{user}": "{user}",
        "users/%s": "%s",
        "users/~": "~",
        "users/*": "*",
    }
    misfits = {
        "users/bob": "alice",
        "users/Alice": "alice",
        "users/both": common_names("both", "alice"),
        "users/nobody": x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "nobody")]),
    }
    return shared_proxy(
        config(
            {"local": in_clear(listen=[f"unix:{opened.parent}:1"], **ANYBODY)},
            primary=per_user(backend, certs),
        ),
        {**ANYBODY_FILES, **user_files(certs, {"users/alice": "alice", **decoys, **misfits})},
        command=[sys.executable, "-c", TELLS_WHAT_IT_OPENS, str(opened)],
    )


def attempt(running, user):
    """The refusal that a session for this user gets, and the event that the log has of it."""
    since = running.mark()
    with WireClient(running.addresses("local")[0].removeprefix("unix:")) as client:
        client.send(wire.startup(("user", user), ("database", "postgres")))
        error = client.read_error().error
    return error, running.wait_for_event("session_decided", since=since)


@pytest.mark.parametrize("user", HOSTILE_NAMES, ids=lambda user: ascii(name_of(user)))
def test_a_hostile_name_opens_no_file_and_dials_nobody(running, backend, opened, user):
    backend.forget()
    before = opened.read_text()
    error, decided = attempt(running, user)
    assert error == ("57P03", "the database system is not available")
    assert "no certificate is looked for under such a name" in decided["reason"]
    assert decided["verdict"] == "refused"
    assert backend.conversations == []
    assert not re.search(r"\.(crt|key)|[./]hidden", opened.read_text()[len(before) :])


def test_a_name_of_no_byte_or_too_many_is_no_name(running):
    assert attempt(running, "")[0][0] == "28000"
    assert attempt(running, "A" * 64)[0][0] == "08P01"


@pytest.mark.parametrize(
    ("user", "reason"),
    [
        ("bob", "its common name must be the user, not alice"),
        ("Alice", "its common name must be the user, not alice"),
        ("both", "its common name must be the user, not both, alice"),
        ("nobody", "its common name must be the user, not none"),
        ("carol", "users/carol.crt"),
    ],
)
def test_a_certificate_that_is_not_the_users_is_never_shown(running, backend, user, reason):
    backend.forget()
    error, decided = attempt(running, user)
    assert error == ("57P03", "the database system is not available")
    assert reason in decided["reason"]
    assert backend.conversations == []


def test_only_the_users_own_two_files_are_opened_and_once(running, opened):
    for _ in range(2):
        log_in(running, "alice")
    alices = [line for line in opened.read_text().splitlines() if "alice." in line]
    assert alices == [repr("alice.crt"), repr("alice.key")]


def log_in(running, user):
    with WireClient(running.addresses("local")[0].removeprefix("unix:")) as client:
        client.send(wire.startup(user=user, database="postgres"))
        client.read_until(b"Z")


@pytest.fixture
def own(proxy, certs, backend, tmp_path):
    """A proxy of the test's own, with these users."""

    def start(*users):
        listener = in_clear(listen=[f"unix:{tmp_path}:2"], **ANYBODY)
        files = user_files(certs, {f"users/{user}": user for user in users})
        running = proxy(config({"local": listener}, primary=per_user(backend, certs)), ANYBODY_FILES | files)
        return running, running.config.parent / "users"

    return start


def test_what_takes_the_place_of_the_folder_counts_from_the_next_reload_on(own):
    running, folder = own("alice", "bob")
    folder.rename(folder.with_name("replaced"))
    shutil.copytree(folder.with_name("replaced"), folder)
    (folder / "bob.crt").unlink()
    log_in(running, "bob")
    assert running.reload()["event"] == "reloaded"
    assert "users/bob.crt" in attempt(running, "bob")[1]["reason"]
    log_in(running, "alice")


def test_a_folder_that_is_gone_at_a_reload_is_a_mistake_and_the_one_in_service_stays(own):
    running, folder = own("alice")
    folder.rename(folder.with_name("moved"))
    assert running.reload()["kept"] == ["certificates of users at backend primary"]
    assert 'users": it does not exist' in running.wait_for_event("config_mistake")["mistake"]
    log_in(running, "alice")


def test_a_folder_as_kubernetes_mounts_it_is_read_through_its_links(own):
    running, folder = own("alice")
    mounted = folder / "..2026"
    mounted.mkdir()
    for name in ("alice.crt", "alice.key"):
        (folder / name).rename(mounted / name)
        (folder / name).symlink_to(f"..data/{name}")
    (folder / "..data").symlink_to("..2026")
    log_in(running, "alice")


def test_each_user_is_at_the_server_who_its_certificate_says_byte_for_byte(own_cluster, certs, proxy):
    cluster = own_cluster(17, "hostssl all all all cert\n")
    for name in GOOD_NAMES:
        cluster.psql(f'CREATE ROLE "{name}" LOGIN' if name != "alice" else "SELECT")
    running = proxy(
        config({"central": with_tls(certs)}, primary=per_user(cluster, certs)),
        {
            "pg_hba.conf": "hostssl all all all cert\n",
            **user_files(certs, {f"users/{name}": name for name in GOOD_NAMES}),
        },
    )
    for name in GOOD_NAMES:
        address = ("127.0.0.1", running.port("central"))
        with connected(address, tls_context(certificate=certs.client(name))) as client:
            client.send(wire.startup(user=name, database="postgres"))
            client.read_until(b"Z")
            client.send(wire.query("SELECT session_user"))
            (row,) = [message.body[6:] for message in client.read_until(b"Z") if message.kind == b"D"]
            assert row == name.encode()
