"""Revocation lists decide as with PostgreSQL 17 and psql with the same files, on both legs, or more strictly."""

import ssl
import subprocess
from dataclasses import dataclass
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fixtures import wire
from fixtures.certs import Authority, Issued, common_names
from fixtures.chains import CA, Node, node, saved, usages
from fixtures.crls import ISSUING_DISTRIBUTION_POINT, crl, crl_number
from fixtures.deployments import config, passthrough, with_certificate, with_tls
from fixtures.fake_backend import lets_everybody_in
from fixtures.openssl_ca import OpenSSLAuthority
from fixtures.processes import held_by
from fixtures.shared_proxy import refusal_of

HBA = "hostssl all all all cert\n"
CLOSED = "closed"
LET_IN = None

REVOKED = "certificate revoked"
NO_LIST = "unable to get certificate CRL"

VERDICTS = {
    "openssl: unlisted": LET_IN,
    "openssl: revoked": (0, REVOKED),
    "openssl: revoked, on hold": (0, REVOKED),
    "openssl: the serial of another issuer's revoked": LET_IN,
    "openssl: the same serial, revoked": (0, REVOKED),
    "openssl: a name beyond ASCII, unlisted": LET_IN,
    "openssl: a name beyond ASCII, revoked": (0, REVOKED),
    "openssl: below an intermediate": LET_IN,
    "openssl: below a revoked intermediate": (1, REVOKED),
    "openssl: the intermediate's list is missing": (0, NO_LIST),
    "openssl: the root's list is missing": (1, NO_LIST),
    "openssl: an issuer that may sign no list": (0, "key usage does not include CRL signing"),
    "unlisted": LET_IN,
    "revoked": (0, REVOKED),
    "a list of another CA alone": (0, NO_LIST),
    "expired": (0, "CRL has expired"),
    "revoked, expired": (0, "CRL has expired"),
    "not yet valid": (0, "CRL is not yet valid"),
    "signed with another key": (0, "CRL signature failure"),
    "revoked by the newer of two lists, which is the first": (0, REVOKED),
    "revoked by the newer of two lists, which is the last": (0, REVOKED),
    "a number": LET_IN,
    "a critical number": (0, "unhandled critical CRL extension"),
    "an unknown extension": LET_IN,
    "a critical unknown extension": (0, "unhandled critical CRL extension"),
    "a critical unknown extension of an entry": (0, "unhandled critical CRL extension"),
    "of CAs' certificates alone": (0, "different CRL scope"),
    "100,000 others": LET_IN,
    "100,000 and revoked": (0, REVOKED),
    "the root is revoked": (1, REVOKED),
    "a part that the leaf is in, and the root is not": (1, "different CRL scope"),
    "self-signed: unlisted": LET_IN,
    "self-signed: revoked": (0, REVOKED),
    "self-signed: a list of another CA alone": (0, NO_LIST),
    "self-signed: expired": (0, "CRL has expired"),
    "self-signed: not yet valid": (0, "CRL is not yet valid"),
    "self-signed: of users' certificates alone": (0, "different CRL scope"),
}
"""At which depth the chain fails, and why, in OpenSSL's words."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is trusted, what is revoked, and what is shown."""

    trusted: bytes
    lists: bytes
    shown: Issued


def made_by_openssl(folder):
    """Two roots, an intermediate, a CA with a name beyond ASCII, and one that may sign no list."""
    root, other = OpenSSLAuthority(folder / "root", "root"), OpenSSLAuthority(folder / "other", "other")
    alice, twin = root.client("alice"), other.client("alice")
    assert alice.certificate.serial_number == twin.certificate.serial_number
    others = other.crl()
    trusted = root.crt.read_bytes() + other.crt.read_bytes()
    held, carol = root.client("alice"), root.client("alice")
    root.revoke(alice.crt)
    root.revoke(held.crt, "certificateHold")
    revoked = root.crl()
    yield "openssl: unlisted", Case(trusted, revoked, carol)
    yield "openssl: revoked", Case(trusted, revoked, alice)
    yield "openssl: revoked, on hold", Case(trusted, revoked, held)
    yield "openssl: the serial of another issuer's revoked", Case(trusted, revoked + others, twin)
    yield "openssl: the same serial, revoked", Case(trusted, others + revoked, alice)

    beyond = OpenSSLAuthority(folder / "beyond", "Zürich Ω")
    one, two = beyond.client("alice"), beyond.client("alice")
    beyond.revoke(two.crt)
    for which, shown in (("unlisted", one), ("revoked", two)):
        yield f"openssl: a name beyond ASCII, {which}", Case(beyond.crt.read_bytes(), beyond.crl(), shown)

    below = OpenSSLAuthority(folder / "below", "below", root)
    shown, anchor = below.client("alice"), root.crt.read_bytes()
    yield "openssl: below an intermediate", Case(anchor, root.crl() + below.crl(), shown)
    yield "openssl: the intermediate's list is missing", Case(anchor, root.crl(), shown)
    yield "openssl: the root's list is missing", Case(anchor, below.crl(), shown)
    root.revoke(below.crt)
    yield "openssl: below a revoked intermediate", Case(anchor, root.crl() + below.crl(), shown)

    mute = OpenSSLAuthority(folder / "mute", "mute", usages="keyCertSign")
    yield (
        "openssl: an issuer that may sign no list",
        Case(mute.crt.read_bytes(), mute.crl(), mute.client("alice")),
    )


def made_by_hand(folder):
    """The odd ones."""
    ca, other = Authority.root(folder / "ca", "by hand"), Authority.root(folder / "another", "another")
    alice = ca.issue(common_names("alice"), names=("localhost",), usage=None)
    serial = alice.certificate.serial_number
    day, many = timedelta(days=1), range(2**100, 2**100 + 100_000)
    unknown = "1.3.6.1.4.1.99999.1"
    cas_alone = ISSUING_DISTRIBUTION_POINT, True, b"\x30\x03\x82\x01\xff"
    lists = {
        "unlisted": crl(ca, [serial + 1]),
        "revoked": crl(ca, [serial]),
        "a list of another CA alone": crl(other),
        "expired": crl(ca, since=-2 * day, until=-day),
        "revoked, expired": crl(ca, [serial], since=-2 * day, until=-day),
        "not yet valid": crl(ca, since=day, until=2 * day),
        "signed with another key": crl(ca, signer=ec.generate_private_key(ec.SECP256R1())),
        "revoked by the newer of two lists, which is the first": crl(ca, [serial]) + crl(ca, since=-day),
        "revoked by the newer of two lists, which is the last": crl(ca, since=-day) + crl(ca, [serial]),
        "a number": crl(ca, extensions=[crl_number(7)]),
        "a critical number": crl(ca, extensions=[crl_number(7, critical=True)]),
        "an unknown extension": crl(ca, extensions=[(unknown, False, b"\x05\x00")]),
        "a critical unknown extension": crl(ca, extensions=[(unknown, True, b"\x05\x00")]),
        "a critical unknown extension of an entry": crl(
            ca, [serial + 1], entry_extensions=[(unknown, True, b"\x05\x00")]
        ),
        "of CAs' certificates alone": crl(ca, extensions=[cas_alone]),
        "100,000 others": crl(ca, many),
        "100,000 and revoked": crl(ca, [*many, serial]),
    }
    yield from ((which, Case(ca.crt.read_bytes(), each, alice)) for which, each in lists.items())


def about_roots(folder):
    """OpenSSL 4 asks no list about them."""
    ca, other = Authority.root(folder / "ca", "of a root"), Authority.root(folder / "another", "another root")
    point = x509.DistributionPoint([x509.UniformResourceIdentifier("http://a.example/1")], None, None, None)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    root = Node(ca.issued.certificate, ca.issued.private_key)
    extensions = (names, x509.CRLDistributionPoints([point]))
    part = x509.IssuingDistributionPoint(point.full_name, None, False, False, None, False, False)
    lists = {
        "the root is revoked": crl(ca, [ca.issued.certificate.serial_number]),
        "a part that the leaf is in, and the root is not": crl(
            ca, extensions=[(ISSUING_DISTRIBUTION_POINT, True, part.public_bytes())]
        ),
    }
    for number, (which, each) in enumerate(lists.items()):
        shown = saved(folder / f"leaf{number}", node("alice", root, extensions))
        yield which, Case(ca.crt.read_bytes(), each, shown)

    usage = usages("digital_signature", "key_cert_sign", "crl_sign")
    alone = saved(folder / "alone", node("alice", None, (CA, usage, names)))
    own, day = Authority(folder, alone), timedelta(days=1)
    users_alone = ISSUING_DISTRIBUTION_POINT, True, b"\x30\x03\x81\x01\xff"
    lists = {
        "unlisted": crl(own),
        "revoked": crl(own, [alone.certificate.serial_number]),
        "a list of another CA alone": crl(other),
        "expired": crl(own, since=-2 * day, until=-day),
        "not yet valid": crl(own, since=day, until=2 * day),
        "of users' certificates alone": crl(own, extensions=[users_alone]),
    }
    for which, each in lists.items():
        yield f"self-signed: {which}", Case(alone.crt.read_bytes(), each, alone)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("revocation")
    found = dict(
        (*made_by_openssl(folder / "openssl"), *made_by_hand(folder / "hand"), *about_roots(folder / "roots"))
    )
    assert found.keys() == VERDICTS.keys()
    return found


@pytest.fixture(scope="module")
def running(shared_proxy, shared_fake_backend, certs, cases):
    """For each case a listener whose clients it is about, and one whose backend."""
    good = with_certificate(shared_fake_backend(lets_everybody_in), certs)
    listeners, files = {}, {"pg_hba.conf": HBA, "trust.conf": "host all all all trust\n"}
    backends = {"good": good}
    for number, case in enumerate(cases.values()):
        ca, lists = f"{number}.crt", f"{number}.crl"
        files |= {ca: case.trusted, lists: case.lists}
        listeners[f"client{number}"] = with_tls(certs, ssl_ca_file=ca, ssl_crl_file=lists, backend="good")
        listeners[f"server{number}"] = with_tls(certs, hba_file="trust.conf", backend=f"server{number}")
        server = shared_fake_backend(lets_everybody_in, case.shown)
        backends[f"server{number}"] = passthrough(
            server, certs, sslrootcert=ca, sslcrl=lists, require_auth="none"
        )
    running = shared_proxy(config(listeners, **backends), files)
    running.backend_ports = [backends[f"server{number}"]["port"] for number in range(len(cases))]
    return running


@pytest.fixture(scope="module")
def server(tls_cluster, certs):
    """A server that is this file's alone, by its name, since it is reloaded."""
    settings = {"cluster_name": "revocation", "ssl_crl_file": "root.crl"}
    return tls_cluster(17, HBA, settings=settings, files={"root.crl": certs.ca.crl().read_bytes()})


def outcome(client, certificate):
    """None where alice is let in, an error, or that the connection was closed."""
    assert client.ask_for_tls() == b"S"
    try:
        client.start_tls(wire.tls_context(certificate=certificate))
        client.send(wire.startup(user="alice"))
        while (message := client.read_message()).kind not in b"EZ":
            pass
    except (ssl.SSLError, EOFError, ConnectionError):
        return CLOSED
    return message.error if message.kind == b"E" else None


@pytest.mark.parametrize("which", VERDICTS)
def test_a_client_is_judged_as_by_postgresql(running, server, cases, which):
    case, verdict = cases[which], VERDICTS[which]
    expected = LET_IN if verdict is LET_IN else CLOSED
    server.write("root.crt", case.trusted)
    server.write("root.crl", case.lists)
    since = len(server.log_lines)
    server.reload()
    with wire.WireClient((server.host, server.port)) as direct:
        assert outcome(direct, case.shown) == expected
    port = running.port(f"client{list(cases).index(which)}")
    with wire.WireClient(("127.0.0.1", port), source=wire.another_source()) as client:
        assert outcome(client, case.shown) == expected
        if verdict is LET_IN:
            return
        decided = refusal_of(running, client)
    depth, error = verdict
    text = f"Client certificate verification failed at depth {depth}: {error}"
    assert text in server.wait_for_log("Client certificate verification failed", since=since)
    assert (decided["kind"], decided["tls_error"]) == ("client_certificate", error)
    assert decided["reason"].startswith(text)


@pytest.mark.parametrize("which", VERDICTS)
def test_a_server_is_judged_as_by_psql(running, cases, psql, which, tmp_path):
    case, verdict, number = cases[which], VERDICTS[which], list(cases).index(which)
    files = {"sslrootcert": case.trusted, "sslcrl": case.lists}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    done = psql(17).run(
        "SELECT 1", host="localhost", hostaddr="127.0.0.1", port=running.backend_ports[number], user="alice",
        dbname="alice", sslmode="verify-full", **{name: tmp_path / name for name in files},
    )  # fmt: skip
    port = running.port(f"server{number}")
    with wire.WireClient(("127.0.0.1", port), source=wire.another_source()) as client:
        told = outcome(client, None)
        decided = running.wait_for_event("session_decided", **client.where)
    if verdict is LET_IN:
        assert (done.returncode, told) == (0, None), done.stderr
        return
    depth, error = verdict
    assert (done.returncode, "SSL error: " in done.stderr) == (2, True), done.stderr
    assert told == ("57P03", "the database system is not available")
    assert decided["kind"] == "backend_tls"
    assert f"{error} at depth {depth}" in decided["reason"]


@pytest.fixture
def folder(tmp_path, server):
    """A folder that PostgreSQL's user may read, too."""
    made = server.data / f"crl-{tmp_path.name}"
    made.mkdir()
    made.chmod(0o755)
    return made


FOLDERS = {
    "every list": (("root", "below"), LET_IN),
    "a list is missing": (("below",), (1, NO_LIST)),
    "revoked": (("root", "revoked"), (0, REVOKED)),
    "empty": ((), (0, NO_LIST)),
}


@pytest.mark.parametrize("which", FOLDERS)
def test_a_folder_of_lists_is_judged_as_by_postgresql_and_psql(
    server, folder, tmp_path, proxy, fake_backend, certs, psql, which
):
    """As `openssl rehash` leaves it, so that PostgreSQL finds them."""
    root = OpenSSLAuthority(tmp_path / "root", "root of a folder")
    below = OpenSSLAuthority(tmp_path / "below", "below", root)
    alice = below.client("alice")
    lists = {"root": root.crl(), "below": below.crl()}
    below.revoke(alice.crt)
    lists["revoked"] = below.crl()
    names, verdict = FOLDERS[which]
    for name in names:
        (folder / f"{name}.pem").write_bytes(lists[name])
        (folder / f"{name}.pem").chmod(0o644)
    subprocess.run(["openssl", "rehash", folder], check=True, capture_output=True)
    expected = LET_IN if verdict is LET_IN else CLOSED

    server.write("root.crt", root.crt.read_bytes())
    server.set(ssl_crl_file="", ssl_crl_dir=str(folder))
    server.reload()
    with wire.WireClient((server.host, server.port)) as direct:
        assert outcome(direct, alice) == expected
    server.set(ssl_crl_file="root.crl", ssl_crl_dir="")

    good, backend = fake_backend(lets_everybody_in), fake_backend(lets_everybody_in, alice)
    trusting = {"sslrootcert": root.crt, "sslcrldir": folder, "require_auth": "none"}
    running = proxy(
        config(
            {
                "client": with_tls(certs, ssl_ca_file=root.crt, ssl_crl_dir=folder, backend="good"),
                "server": with_tls(certs, hba_file="trust.conf", backend="server"),
            },
            good=with_certificate(good, certs),
            server=passthrough(backend, certs, **trusting),
        ),
        {"pg_hba.conf": HBA, "trust.conf": "host all all all trust\n"},
    )
    with wire.WireClient(("127.0.0.1", running.port("client"))) as client:
        assert outcome(client, alice) == expected
        decided = running.wait_for_event("session_decided", **client.where)
        assert decided["tls_error"] == (None if verdict is LET_IN else verdict[1])
    done = psql(17).run(
        "SELECT 1", host="localhost", hostaddr="127.0.0.1", port=backend.port, user="alice", dbname="alice",
        sslmode="verify-full", sslrootcert=root.crt, sslcrldir=folder,
    )  # fmt: skip
    with wire.WireClient(("127.0.0.1", running.port("server"))) as client:
        told = outcome(client, None)
    if verdict is LET_IN:
        assert (done.returncode, told) == (0, None), done.stderr
    else:
        assert (done.returncode, told[0]) == (2, "57P03"), done.stderr


def with_list(certs, backend, content):
    """A listener that trusts the run's CA, and what its ssl_crl_file holds."""
    listener = with_tls(certs, ssl_crl_file="ca.crl")
    return config({"tls": listener}, primary=with_certificate(backend, certs)), {
        "pg_hba.conf": HBA,
        "ca.crl": content,
    }


def test_a_list_in_der_counts(proxy, fake_backend, certs):
    """PostgreSQL wants PEM."""
    alice, bob = (certs.ca.issue(common_names(name), usage="client") for name in ("alice", "alice"))
    der = ssl.PEM_cert_to_DER_cert(
        crl(certs.ca, [bob.certificate.serial_number]).decode().replace("X509 CRL", "CERTIFICATE")
    )
    running = proxy(*with_list(certs, fake_backend(lets_everybody_in), der))
    for certificate, expected in ((alice, LET_IN), (bob, CLOSED)):
        with wire.WireClient(("127.0.0.1", running.port("tls"))) as client:
            assert outcome(client, certificate) == expected


def test_a_list_that_never_ends_is_refused_at_load(proxy, command_line, fake_backend, certs):
    """PostgreSQL would believe it for ever, whatever is revoked behind it."""
    path = proxy.write(*with_list(certs, fake_backend(lets_everybody_in), crl(certs.ca, until=None)))
    checked = command_line("check", "-c", path)
    assert checked.returncode == 1
    assert "it has no nextUpdate, which RFC 5280 (5.1.2.5) demands" in checked.stderr


def test_a_list_of_100_000_takes_effect_in_seconds_and_its_memory_does_not_grow(proxy, fake_backend, certs):
    alice = certs.ca.issue(common_names("alice"), usage="client")
    running = proxy(*with_list(certs, fake_backend(lets_everybody_in), crl(certs.ca)))
    (worker,) = running.workers
    before = held_by(worker).octets
    others, content = range(2**100, 2**100 + 100_000), running.config.parent / "ca.crl"
    for _ in range(4):
        content.write_bytes(crl(certs.ca, others))
        assert running.reload()["event"] == "reloaded"
        with wire.WireClient(("127.0.0.1", running.port("tls"))) as client:
            assert outcome(client, alice) is LET_IN
    assert held_by(worker).octets - before < 200_000_000
    content.write_bytes(crl(certs.ca, [*others, alice.certificate.serial_number]))
    assert running.reload()["event"] == "reloaded"
    with wire.WireClient(("127.0.0.1", running.port("tls"))) as client:
        assert outcome(client, alice) == CLOSED
