"""A worker that starts later serves what the others do, whatever loaded when, and the sets it is given stay few."""

import random

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from pgtlsproxy import pki
from pgtlsproxy.proxy.history import History
from pgtlsproxy.proxy.orders import FileSet
from pgtlsproxy.proxy.origins import make
from pgtlsproxy.proxy.reading import read

RELOADS = 25

YAML = """
listeners:
  a: {listen: ["127.0.0.1:0"], ssl: on, ssl_cert_file: %(cert)s, ssl_key_file: %(cert)s, ssl_ca_file: ca.crt,
      hba_file: a_hba.conf, backend: shared %(more)s}
  u: {listen: ["unix:/tmp"], ssl: off, hba_file: u_hba.conf, backend: users}
  p: {listen: ["127.0.0.1:0"], ssl: off, hba_file: p_hba.conf, backend: passwords, scram_secrets_file: secrets.txt}
backends:
  shared: {host: localhost, port: %(port)s, sslrootcert: ca.crt, login: passthrough}
  users: {host: localhost, sslrootcert: roots.crt, sslcert: "%(folder)s/{user}.crt", sslkey: "%(folder)s/{user}.key",
          login: certificate}
  passwords: {host: localhost, sslrootcert: roots.crt, login: passfile, passfile: passwords.txt}
"""
VERIFIER = "SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0c2FsdA==$" + ":".join(
    ["AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="] * 2
)
PASSPHRASE = ', ssl_passphrase_command: "echo sesame"'


@pytest.fixture(scope="module")
def contents():
    """For each file, what it may become: good ones that differ, and one that does not load."""
    ca, other = pki.make_ca("one"), pki.make_ca("other")

    def pem(issued):
        key = issued.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return issued.certificate_pem() + key

    yaml = {"cert": "server.pem", "more": "", "port": 5432, "folder": "users"}
    return {
        "pgtlsproxy.yaml": [
            YAML % yaml,
            YAML % (yaml | {"cert": "second.pem"}),
            YAML % (yaml | {"port": 5433, "folder": "others"}),
            YAML % (yaml | {"more": PASSPHRASE}),
            "listeners: [",
        ],
        "server.pem": [pem(pki.issue_server(ca, ["localhost"])) for _ in range(2)] + [b"broken"],
        "second.pem": [pem(pki.issue_server(ca, ["localhost"])) for _ in range(2)] + [b"broken"],
        "ca.crt": [ca.certificate_pem(), other.certificate_pem(), b"broken"],
        "roots.crt": [ca.certificate_pem(), other.certificate_pem(), b"broken"],
        "a_hba.conf": ["hostssl all all all scram-sha-256\n", "hostssl all all all cert\n", "broken\n"],
        "p_hba.conf": ["host all all all scram-sha-256\n", "broken\n"],
        "secrets.txt": [f'"one" "{VERIFIER}"\n', f'"two" "{VERIFIER}"\n', "broken\n"],
        "passwords.txt": ["*:*:*:one:x\n", "*:*:*:two:x\n", "bro:ken\n"],
        "u_hba.conf": ["local all all peer\n", "local x all peer\n", "broken\n"],
    }


def write(folder, name, content):
    path = folder / name
    path.touch(mode=0o600)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def shown(made):
    """What a snapshot serves, without the objects that it is made of."""

    def pair(each):
        return each and (
            each.leaf.fingerprint(each.leaf.signature_hash_algorithm),
            each.key.public_key().public_numbers(),
        )

    def trust(each):
        return each and [anchor.subject for anchor in each.anchors]

    def backend(each):
        folder = each.users and each.users.files.folder.path
        return each.name, each.settings, pair(each.pair), trust(each.trust), folder, each.passwords.users

    snapshot = made.snapshot
    return (
        snapshot.generation,
        snapshot.settings,
        [backend(each) for each in snapshot.backends.values()],
        [
            (each.name, each.settings, repr(each.rules), pair(each.pair), trust(each.trust), each.options,
             [backend(inner) for inner in each.backends.values()],
             each.secrets and (sorted(each.secrets.by_user), each.secrets.mock_secret.reveal()))
            for each in snapshot.listeners.values()
        ],
    )  # fmt: skip


def start(folder, contents):
    for name, options in contents.items():
        write(folder, name, options[0])
    for name in ("users", "others"):
        (folder / name).mkdir()
    path = str(folder / "pgtlsproxy.yaml")
    files = read(path, serves=True)
    history = History(files, files.settings)
    return path, history, make(1, history.sets, None)


def reload(path, history, running):
    """As the supervisor and a worker do it. Returns what is in service then."""
    files = read(path, in_service=history.settings, serves=True)
    generation = history.generation + 1
    made = make(generation, (FileSet(generation, files, generation),), running)
    history.advance(files, made.in_use, made.result.mistakes)
    return made


@pytest.mark.parametrize("seed", range(12))
def test_who_goes_through_the_history_serves_what_those_do_who_were_there(tmp_path, contents, seed):
    chance = random.Random(seed)
    path, history, running = start(tmp_path, contents)
    longest = 0
    for _ in range(RELOADS):
        for name in chance.sample(sorted(contents), chance.randint(1, 3)):
            write(tmp_path, name, chance.choice(contents[name]))
        running = reload(path, history, running)
        assert shown(make(history.generation, history.sets, None)) == shown(running)
        longest = max(longest, len(history.sets))
    assert 1 < longest <= 12


def test_a_reload_without_mistakes_leaves_nothing_of_those_before(tmp_path, contents):
    path, history, running = start(tmp_path, contents)
    write(tmp_path, "a_hba.conf", contents["a_hba.conf"][-1])
    running = reload(path, history, running)
    assert running.result.mistakes
    assert [each.generation for each in history.sets] == [1, 2]
    write(tmp_path, "a_hba.conf", contents["a_hba.conf"][1])
    assert not reload(path, history, running).result.mistakes
    assert [each.generation for each in history.sets] == [3]


def test_one_mistake_that_stays_does_not_let_the_history_grow(tmp_path, contents):
    path, history, running = start(tmp_path, contents)
    write(tmp_path, "a_hba.conf", contents["a_hba.conf"][-1])
    for number in range(10):
        write(tmp_path, "server.pem", contents["server.pem"][number % 2])
        running = reload(path, history, running)
        assert running.result.mistakes
    assert [each.generation for each in history.sets] == [1, 11]
