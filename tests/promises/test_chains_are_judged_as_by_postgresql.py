"""Chains that must not verify do not, and odd good ones do, as with PostgreSQL 17; none of them keeps others waiting."""

import ipaddress
import itertools
import ssl
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from fixtures import wire
from fixtures.certs import common_names
from fixtures.chains import CA, CLIENT, NO_CA, SIGNS, node, saved, usages
from fixtures.deployments import config, with_certificate, with_tls
from fixtures.fake_backend import lets_everybody_in
from fixtures.processes import held_by

HBA = "hostssl all all all cert\n"
LEAF = (NO_CA, CLIENT)
CLOSED = "closed"
LET_IN = None

UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
DNS = x509.DNSName


def path_length(length):
    return x509.BasicConstraints(ca=True, path_length=length)


def names(*listed):
    return x509.SubjectAlternativeName(listed)


def permitted(*listed):
    return x509.NameConstraints(listed, None)


def excluded(*listed):
    return x509.NameConstraints(None, listed)


def issuers(root, other):
    """Who may issue, and who may not: (case, leaf, what is sent behind it, whether it lets in)."""
    good = node("good", root)
    yield "an intermediate", (node("alice", good, LEAF), good), LET_IN
    for case, authority in {
        "an issuer that is no CA": node("no CA", root, (NO_CA, SIGNS)),
        "an issuer without basic constraints": node("no constraints", root, (SIGNS,)),
        "an issuer that may not sign": node("no signer", root, (CA, usages("digital_signature"))),
        "a client's certificate as issuer": node("client", root, LEAF),
        "an issuer that has expired": node("expired", root, days=(-9, -1)),
    }.items():
        yield case, (node("alice", authority, LEAF), authority), CLOSED
    short = node("short", root, (path_length(0), SIGNS))
    beyond = node("beyond", short)
    yield "a path as long as allowed", (node("alice", short, LEAF), short), LET_IN
    yield "a path that is too long", (node("alice", beyond, LEAF), beyond, short), CLOSED
    yield "an intermediate that is missing", (node("alice", good, LEAF),), CLOSED
    wrong = node("good", other)
    yield "a wrong intermediate of the name", (node("alice", good, LEAF), wrong), CLOSED
    yield "an intermediate that is of no use", (node("alice", root, LEAF), wrong), LET_IN
    expired = node("good", root, key=good.key, days=(-9, -1))
    for case, order in (("behind", (good, expired)), ("in front", (expired, good))):
        yield f"two of an intermediate, the expired one {case}", (node("alice", good, LEAF), *order), LET_IN
    yield "the other root", (node("alice", other, LEAF),), LET_IN
    first, second = node("first", good), node("second", good)
    round_ = node("first", second, key=first.key)
    back = node("second", round_, key=second.key)
    yield "two that issue each other", (node("alice", back, LEAF), back, round_), CLOSED


def constraints(root):
    """Name constraints and critical extensions."""
    inside = DNS("a.corp.example")
    for case, constraint, shown, verdict in (
        ("a permitted DNS name", permitted(DNS("corp.example")), names(inside), LET_IN),
        ("a DNS name that is not permitted", permitted(DNS("other.example")), names(inside), CLOSED),
        ("an excluded DNS name", excluded(DNS("corp.example")), names(DNS("x"), inside), CLOSED),
        ("a wildcard over an excluded name", excluded(DNS("a.corp.example")), names(DNS("*.corp.example")), LET_IN),
        ("a wildcard below an excluded name", excluded(DNS("corp.example")), names(DNS("*.corp.example")), CLOSED),
        ("an excluded URI", excluded(x509.UniformResourceIdentifier("corp.example")),
         names(x509.UniformResourceIdentifier("spiffe://corp.example/x")), CLOSED),
        ("an address that is not permitted", permitted(x509.IPAddress(ipaddress.ip_network("10.0.0.0/8"))),
         names(x509.IPAddress(ipaddress.ip_address("192.0.2.1"))), CLOSED),
        ("an excluded subject", excluded(x509.DirectoryName(common_names("alice"))), None, CLOSED),
        ("a permitted subject", permitted(x509.DirectoryName(common_names("alice"))), None, LET_IN),
        ("a subject that is not permitted", permitted(x509.DirectoryName(common_names("bob"))), None, CLOSED),
    ):  # fmt: skip
        authority = node(f"CA for {case}", root, critical=(constraint,))
        yield case, (node("alice", authority, (*LEAF, *([shown] if shown else []))), authority), verdict
    critical = node("critical", root, critical=(UNKNOWN,))
    yield "a critical unknown extension", (node("alice", root, LEAF, critical=(UNKNOWN,)),), CLOSED
    yield "a critical unknown extension of the CA", (node("alice", critical, LEAF), critical), CLOSED
    yield "an unknown extension", (node("alice", root, (*LEAF, UNKNOWN)),), LET_IN


def keys(root):
    """Kinds of keys and signatures."""
    rsa_root_key = rsa.generate_private_key(65537, 2048)
    rsa_ca, ed_ca = (
        node("RSA", root, key=rsa_root_key),
        node("Ed", root, key=ed25519.Ed25519PrivateKey.generate()),
    )
    for case, key in {
        "a P-384 key": ec.generate_private_key(ec.SECP384R1()),
        "an RSA key of 3072 bits": rsa.generate_private_key(65537, 3072),
        "an Ed25519 key": ed25519.Ed25519PrivateKey.generate(),
    }.items():
        yield case, (node("alice", root, LEAF, key=key),), LET_IN
    yield "signed with RSA-PSS", (node("alice", rsa_ca, LEAF, pss=True), rsa_ca), LET_IN
    yield "signed with Ed25519", (node("alice", ed_ca, LEAF), ed_ca), LET_IN


def pathological(root):
    """What takes an eager verifier for ever, or much memory."""
    good = node("good", root)
    namesakes = [node("many", good) for _ in range(60)]
    yield (
        "60 of a name, of which the last signed",
        (node("alice", namesakes[-1], LEAF), *namesakes, good),
        CLOSED,
    )
    shared = ec.generate_private_key(ec.SECP256R1())
    every = [node(f"n{number}", None, key=shared) for number in range(8)]
    crossed = [
        node(one.certificate.subject.rfc4514_string()[3:], other, key=shared)
        for one, other in itertools.permutations(every, 2)
    ]
    yield "56 that sign each other with one key", (node("alice", every[0], LEAF), *crossed), CLOSED
    long = list(itertools.accumulate(range(49), lambda above, n: node(f"long{n}", above), initial=root))
    yield "a path of 50", (node("alice", long[-1], LEAF), *reversed(long[1:])), LET_IN
    many = permitted(*(DNS(f"h{number}.example") for number in range(1000)))
    constrained = node("1,000 constraints", root, critical=(many,))
    shown = names(*(DNS(f"h{number}.example") for number in range(700)))
    yield (
        "700 names under 1,000 constraints",
        (node("alice", constrained, (*LEAF, shown)), constrained),
        LET_IN,
    )
    more = permitted(*(DNS(f"h{number}.example") for number in range(2048)))
    constrained = node("2,048 constraints", root, critical=(more,))
    yield (
        "2,048 names under as many constraints",
        (
            node(
                "alice", constrained, (*LEAF, names(*(DNS(f"h{number}.example") for number in range(2048))))
            ),
            constrained,
        ),
        CLOSED,
    )
    ballast = node("ballast", root, (CA, SIGNS, x509.UnrecognizedExtension(UNKNOWN.oid, bytes(20_000))))
    yield "a message of 200 kB", (node("alice", root, LEAF), *[ballast] * 10), CLOSED


@pytest.fixture(scope="module")
def roots():
    return node("root of chains"), node("other root of chains")


@pytest.fixture(scope="module")
def cases(roots, tmp_path_factory):
    """What is shown and what comes of it, by its name."""
    folder, (root, other) = tmp_path_factory.mktemp("chains"), roots
    made = (*issuers(root, other), *constraints(root), *keys(root), *pathological(root))
    return {
        case: (saved(folder / str(number), *chain), verdict)
        for number, (case, chain, verdict) in enumerate(made)
    }


@pytest.fixture(scope="module")
def server(tls_cluster, roots):
    return tls_cluster(17, HBA, files={"root.crt": b"".join(root.pem for root in roots)})


@pytest.fixture(scope="module")
def running(shared_proxy, shared_fake_backend, certs, roots):
    """The roots are in the other order here."""
    backend = with_certificate(shared_fake_backend(lets_everybody_in), certs)
    return shared_proxy(
        config({"tls": with_tls(certs, ssl_ca_file="ca.crt")}, primary=backend),
        {"pg_hba.conf": HBA, "ca.crt": b"".join(root.pem for root in reversed(roots))},
    )


def outcome(address, certificate, source=None):
    """None where alice is let in, an error, or that the connection was closed."""
    with wire.WireClient(address, source=source) as client:
        assert client.ask_for_tls() == b"S"
        try:
            client.start_tls(wire.tls_context(certificate=certificate))
            client.send(wire.startup(user="alice"))
            while (message := client.read_message()).kind not in b"EZ":
                pass
        except (ssl.SSLError, EOFError, ConnectionError):
            return CLOSED
        return message.error if message.kind == b"E" else LET_IN


CASES = [
    *("an intermediate", "an issuer that is no CA", "an issuer without basic constraints"),
    *("an issuer that may not sign", "a client's certificate as issuer", "an issuer that has expired"),
    *("a path as long as allowed", "a path that is too long", "an intermediate that is missing"),
    *("a wrong intermediate of the name", "an intermediate that is of no use", "the other root"),
    *("two of an intermediate, the expired one behind", "two of an intermediate, the expired one in front"),
    *("two that issue each other", "a permitted DNS name", "a DNS name that is not permitted"),
    *("an excluded DNS name", "a wildcard over an excluded name", "a wildcard below an excluded name"),
    *("an excluded URI", "an address that is not permitted", "an excluded subject", "a permitted subject"),
    *("a subject that is not permitted", "a critical unknown extension", "an unknown extension"),
    *("a critical unknown extension of the CA", "a P-384 key", "an RSA key of 3072 bits", "an Ed25519 key"),
    *("signed with RSA-PSS", "signed with Ed25519"),
]
PATHOLOGICAL = [
    *("60 of a name, of which the last signed", "56 that sign each other with one key", "a path of 50"),
    *("700 names under 1,000 constraints", "2,048 names under as many constraints", "a message of 200 kB"),
]


def test_every_case_is_tried(cases):
    assert list(cases) == sorted([*CASES, *PATHOLOGICAL], key=list(cases).index)
    assert len(cases) == len({*CASES, *PATHOLOGICAL})


@pytest.mark.parametrize("case", [*CASES, *PATHOLOGICAL])
def test_the_verdict_is_postgresqls(running, server, cases, case):
    shown, expected = cases[case]
    assert outcome((server.host, server.port), shown) == expected
    assert outcome(("127.0.0.1", running.port("tls")), shown, wire.another_source()) == expected


def test_a_good_client_logs_in_beside_the_pathological_and_their_memory_is_given_back(running, cases):
    port, (worker,) = running.port("tls"), running.workers
    is_over, rounds = threading.Event(), itertools.count()

    def come_again():
        for case in itertools.cycle(PATHOLOGICAL):
            if is_over.is_set():
                return
            outcome(("127.0.0.1", port), cases[case][0], wire.another_source())
            next(rounds)

    good, _ = cases["an intermediate"]
    threads = [threading.Thread(target=come_again, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            assert outcome(("127.0.0.1", port), good, wire.another_source()) is LET_IN
        before = held_by(worker).octets
        for _ in range(40):
            assert outcome(("127.0.0.1", port), good, wire.another_source()) is LET_IN
    finally:
        is_over.set()
        for thread in threads:
            thread.join(wire.PATIENCE)
    assert next(rounds) > 10
    assert held_by(worker).octets - before < 20_000_000
