"""RSA, ECDSA, RSA-PSS and Ed25519 sign the certificates of the proxy and of the server: passwords go through, bound where there is a hash to bind to.

Ed25519 signatures have no hash, so tls-server-end-point is not defined for them (RFC 5929, section 4.1). A
PostgreSQL with such a certificate offers it all the same, and libpq does not get in; the proxy does not offer it.
"""

import re
import subprocess

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from clients.kinds import KINDS, run_all, skipped_clients
from clients.table import Verdict, verdict
from fixtures.certs import Issued
from fixtures.deployments import config, passthrough, with_tls
from fixtures.drivers import Target
from fixtures.postgres import password
from fixtures.scram_secrets import secrets_file

RSA = ["-pkeyopt", "rsa_keygen_bits:2048"]
KEYS = {
    # What `openssl genpkey` and what signs with the key are told.
    "RSA": (["-algorithm", "RSA", *RSA], ["-sha256"]),
    "ECDSA": (["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"], ["-sha384"]),
    "RSA-PSS": (["-algorithm", "RSA-PSS", *RSA], ["-sha512", "-sigopt", "rsa_pss_saltlen:digest"]),
    "Ed25519": (["-algorithm", "ED25519"], []),
}
PAIRS = {
    17: [(client, server) for client in KEYS for server in KEYS],
    15: [(kind, kind) for kind in KEYS],
}
SKIPPED = skipped_clients()
BINDING = [kind for kind in KINDS if kind.binds and kind.setting != "disable" and kind.client not in SKIPPED]


def openssl(folder, *arguments):
    subprocess.run(["openssl", *map(str, arguments)], cwd=folder, check=True, capture_output=True)


def issue(folder, kind):
    """A CA and a certificate for localhost, both with keys of this kind."""
    key, signing = KEYS[kind]
    folder.mkdir()
    for name in ("ca", "server", "proxy"):
        openssl(folder, "genpkey", *key, "-out", f"{name}.key")
        (folder / f"{name}.key").chmod(0o600)
    authority = ["-addext", "keyUsage=critical,keyCertSign", "-subj", f"/CN={kind} CA"]
    openssl(folder, "req", "-x509", "-days", 30, "-key", "ca.key", "-out", "ca.crt", *signing, *authority)
    (folder / "leaf.cnf").write_text("subjectAltName=DNS:localhost\nextendedKeyUsage=serverAuth\n")
    return {name: leaf(folder, name, signing) for name in ("server", "proxy")}


def leaf(folder, name, signing):
    crt, key = folder / f"{name}.crt", folder / f"{name}.key"
    openssl(folder, "req", "-new", "-key", key, "-out", "csr", "-subj", "/CN=localhost")
    issuer = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "leaf.cnf"]
    openssl(folder, "x509", "-req", "-days", 30, "-in", "csr", "-out", crt, *issuer, *signing)
    loaded = load_pem_private_key(key.read_bytes(), None)
    return Issued(x509.load_pem_x509_certificate(crt.read_bytes()), loaded, crt, key)


@pytest.fixture(scope="module")
def issued(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    found = {kind: issue(folder / kind, kind) for kind in KEYS}
    authorities = folder / "cas.crt"
    authorities.write_bytes(b"".join((folder / kind / "ca.crt").read_bytes() for kind in KEYS))
    return found, authorities


@pytest.fixture(scope="module")
def seen(issued, tls_cluster, shared_proxy, certs, psql, tmp_path_factory):
    """What became of every client that binds: by version, listener (or `direct` and the server's kind) and client."""
    leaves, authorities = issued
    cells, attempts = [], []
    for version, pairs in PAIRS.items():
        clusters = {kind: tls_cluster(version, server=leaves[kind]["server"]) for kind in KEYS}
        listeners = {
            f"{client}-{server}": with_tls(
                certs, leaves[client]["proxy"], backend=server, scram_secrets_file=f"{server}.txt"
            )
            for client, server in pairs
        } | {f"same-{kind}": with_tls(certs, leaves[kind]["server"], backend=kind) for kind in KEYS}
        backends = {
            kind: passthrough(cluster, certs, sslrootcert=authorities) for kind, cluster in clusters.items()
        }
        files = {f"{kind}.txt": secrets_file(cluster) for kind, cluster in clusters.items()}
        hba = {"pg_hba.conf": "hostssl all all all scram-sha-256\n"}
        running = shared_proxy(config(listeners, **backends), files | hba)
        ports = {name: running.port(name) for name in listeners}
        ports |= {f"direct-{kind}": cluster.port for kind, cluster in clusters.items()}
        for name, port in ports.items():
            target = Target(port=port, user="bob", database="bob", password=password("bob"), ca=authorities)
            cells += [(version, name, kind) for kind in BINDING]
            attempts += [(kind, target) for kind in BINDING]
    outcomes = run_all(attempts, psql, tmp_path_factory.mktemp("keys"))
    return dict(zip(cells, outcomes, strict=True))


@pytest.mark.parametrize(("version", "client", "server"), [
    (version, *pair) for version, pairs in PAIRS.items() for pair in pairs
])  # fmt: skip
def test_every_pair_of_kinds_is_bridged(seen, version, client, server):
    for kind in BINDING:
        wanted = Verdict.LOGGED_IN
        if "Ed25519" in {client, server} and kind.setting == "require":
            wanted = Verdict.NOT_OFFERED
        outcome = seen[version, f"{client}-{server}", kind]
        assert verdict(outcome, "bob") == wanted, (kind, outcome)


@pytest.mark.parametrize("version", PAIRS)
@pytest.mark.parametrize("key", KEYS)
def test_with_the_servers_own_certificate_it_is_as_without_a_proxy(seen, version, key):
    for kind in BINDING:
        through, direct = (seen[version, f"{way}-{key}", kind] for way in ("same", "direct"))
        assert through.user == direct.user, (kind, through, direct)
        assert re.sub(r"port \d+", "", through.error) == re.sub(r"port \d+", "", direct.error)
        if key != "Ed25519":
            assert through.user == "bob", through
        elif kind.client == "pgjdbc":  # before 42.7.12 it leaves the binding out (CVE-2026-54291)
            assert through.user == "bob"
        else:
            assert "could not find digest for NID" in through.error
