"""The verdict on each first message of a backend, for every login, method and kind of leg.

Nobody is let in whom neither the proxy nor a challenge that the client answered has proved, and a secret goes only
where the line of pg_hba.conf lets it be asked for.
"""

import os
import pwd

import ifaddr
import pytest

from fixtures import wire
from fixtures.deployments import config, passthrough, with_tls
from fixtures.shared_proxy import refusal_of

OWN_USER = pwd.getpwuid(os.geteuid()).pw_name
SECRET = "canary-4b1d"

OPENINGS = {
    "0": wire.AUTHENTICATION_OK,
    "1": wire.authentication(1),
    "2": wire.authentication(2),
    "3": wire.authentication(3),
    "4": wire.authentication(4, b"ab"),
    "5": wire.authentication(5, b"salt"),
    "6": wire.authentication(6),
    "7": wire.authentication(7),
    "8": wire.authentication(8, b"token"),
    "9": wire.authentication(9),
    "10": wire.authentication_sasl("SCRAM-SHA-256"),
    "10 with PLUS": wire.authentication_sasl("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"),
    "10 OAUTHBEARER": wire.authentication_sasl("OAUTHBEARER"),
    "10 PLAIN and SCRAM": wire.authentication_sasl("PLAIN", "SCRAM-SHA-256"),
    "11": wire.authentication(11, b"r=a,s=YQ==,i=4096"),
    "12": wire.authentication(12, b"v=YQ=="),
    "99": wire.authentication(99),
}

ASKED = ["3", "5", "7", "10", "10 with PLUS", "10 OAUTHBEARER", "10 PLAIN and SCRAM"]
"""What a client may be asked where the line leaves the question to the backend."""

SECRET_IN_CLEAR = ["3", "10 OAUTHBEARER", "10 PLAIN and SCRAM"]
"""What makes it say its secret to whoever listens."""


def verdicts(at_once, *asked):
    """The verdict on each opening: `at_once` on AuthenticationOk, `asked` on these, 57P03 on all others."""
    return {"0": at_once} | {name: "asked" if name in asked else "57P03" for name in OPENINGS if name != "0"}


BACKEND_ASKS = verdicts("28000", *ASKED)
BACKEND_ASKS_FROM_AFAR = verdicts("28000", *(name for name in ASKED if name not in SECRET_IN_CLEAR))
PROVED_BEFORE = verdicts("in", *ASKED)
SCRAM_ALONE = verdicts("57P03", "10", "10 with PLUS")
SCRAM_OR_MD5 = verdicts("57P03", "5", "10", "10 with PLUS")
PASSWORD_ALONE = verdicts("57P03", "3")
NOBODY_IS_ASKED = verdicts("in")

TABLE = {
    ("passthrough", "trust", "tls"): BACKEND_ASKS,
    ("passthrough", "trust", "loopback"): BACKEND_ASKS,
    ("passthrough", "trust", "unix"): BACKEND_ASKS,
    ("passthrough", "trust", "afar"): BACKEND_ASKS_FROM_AFAR,
    ("passthrough", "scram", "tls"): SCRAM_ALONE,
    ("passthrough", "scram", "loopback"): SCRAM_ALONE,
    ("passthrough", "scram", "unix"): SCRAM_ALONE,
    ("passthrough", "scram", "afar"): SCRAM_ALONE,
    ("passthrough", "md5", "tls"): SCRAM_OR_MD5,
    ("passthrough", "md5", "afar"): SCRAM_OR_MD5,
    ("passthrough", "ldap", "tls"): PASSWORD_ALONE,
    ("passthrough", "ldap", "loopback"): PASSWORD_ALONE,
    ("passthrough", "ldap", "afar"): verdicts("57P03"),
    ("passthrough", "gss", "tls"): verdicts("57P03", "7"),
    ("passthrough", "oauth", "tls"): verdicts("57P03", "10 OAUTHBEARER"),
    ("passthrough", "oauth", "loopback"): verdicts("57P03"),
    ("passthrough", "cert", "tls"): PROVED_BEFORE,
    ("passthrough", "peer", "unix"): PROVED_BEFORE,
    ("none", "trust", "tls"): NOBODY_IS_ASKED,
    ("none", "trust", "loopback"): NOBODY_IS_ASKED,
    ("none", "trust", "afar"): NOBODY_IS_ASKED,
    ("none", "scram", "tls"): verdicts("57P03"),
    ("none", "md5", "tls"): verdicts("57P03"),
    ("none", "ldap", "tls"): verdicts("57P03"),
    ("certificate", "trust", "tls"): NOBODY_IS_ASKED,
    ("certificate", "trust", "loopback"): NOBODY_IS_ASKED,
    ("certificate", "trust", "unix"): NOBODY_IS_ASKED,
    ("certificate", "cert", "tls"): NOBODY_IS_ASKED,
    ("certificate", "peer", "unix"): NOBODY_IS_ASKED,
}
"""(login, method, leg) to the verdicts. `none` is passthrough with require_auth: none."""

USERS = {"peer": OWN_USER} | {
    method: f"by_{method}" for method in ("trust", "scram", "cert", "md5", "ldap", "gss", "oauth")
}

PASSTHROUGH_HBA = f"""\
local all by_trust trust
local all by_scram scram-sha-256
local all {OWN_USER} peer
hostssl all by_cert all cert
host all by_trust all trust
host all by_scram all scram-sha-256
host all by_md5 all md5
host all by_ldap all ldap ldapserver=directory.example ldapprefix=cn=
host all by_gss all gss include_realm=0
host all by_oauth all oauth issuer=https://issuer.example scope=openid
"""

CERTIFICATE_HBA = f"""\
local all by_trust trust
local all {OWN_USER} peer
hostssl all by_cert all cert
host all by_trust 127.0.0.0/8 trust
"""

PROOFS = {
    ("passthrough", "cert"): "cert",
    ("passthrough", "peer"): "peer",
    ("none", "trust"): "none",
    ("certificate", "trust"): "trust",
    ("certificate", "cert"): "cert",
    ("certificate", "peer"): "peer",
}


@pytest.fixture(scope="module")
def own_address():
    """An IPv4 address of this machine beyond loopback: who comes from there is not local."""
    addresses = [entry.ip for adapter in ifaddr.get_adapters() for entry in adapter.ips if entry.is_IPv4]
    return next(address for address in addresses if not address.startswith("127."))


@pytest.fixture(scope="module")
def backend(shared_fake_backend, certs):
    return shared_fake_backend(client_ca=certs.ca)


@pytest.fixture(scope="module")
def addresses(shared_proxy, certs, backend, own_address, tmp_path_factory):
    """The proxy, and its address by (login, leg)."""
    shown = certs.client("pgtlsproxy")
    logins = ("passthrough", "none", "certificate", "tokens", "no_scram")
    folders = {login: tmp_path_factory.mktemp(login) for login in logins}
    running = shared_proxy(
        config(
            {
                login: with_tls(
                    certs,
                    listen=["127.0.0.1:0", f"{own_address}:0", f"unix:{folder}:5432"],
                    plaintext_from=[f"{own_address}/32"],
                    hba_file="certificate.conf" if login == "certificate" else "passthrough.conf",
                    backend=login,
                )
                for login, folder in folders.items()
            },
            passthrough=passthrough(backend, certs),
            none=passthrough(backend, certs, require_auth="none"),
            tokens=passthrough(backend, certs, require_auth="oauth"),
            no_scram=passthrough(backend, certs, require_auth="!scram-sha-256"),
            certificate=passthrough(backend, certs, login="certificate", sslcert=shown.crt, sslkey=shown.key),
        ),
        {"passthrough.conf": PASSTHROUGH_HBA, "certificate.conf": CERTIFICATE_HBA},
    )
    found = {}
    for login, folder in folders.items():
        ports = {
            host: int(port)
            for host, _, port in (address.rpartition(":") for address in running.addresses(login))
            if port.isdigit()
        }
        local, afar = ("127.0.0.1", ports["127.0.0.1"]), (own_address, ports[own_address])
        found |= {
            (login, "tls"): local,
            (login, "loopback"): local,
            (login, "afar"): afar,
            (login, "unix"): f"{folder}/.s.PGSQL.5432",
        }
    return running, found


def opens_with(opening):
    def script(conversation):
        conversation.accept()
        conversation.send(opening)
        if opening == wire.AUTHENTICATION_OK:
            conversation.get_ready()
            return
        conversation.read_message()
        conversation.send(wire.error_response("28P01", "that was not it"))

    return script


CELLS = [(*cell, opening) for cell, row in TABLE.items() for opening in row]


@pytest.mark.parametrize(("login", "method", "leg", "opening"), CELLS, ids=str)
def test_the_verdict_is_the_tables(addresses, backend, certs, login, method, leg, opening):
    running, found = addresses
    verdict = TABLE[login, method, leg][opening]
    backend.script = opens_with(OPENINGS[opening])
    backend.forget()
    since = running.mark()
    source = wire.another_source() if leg in {"tls", "loopback"} else None
    with wire.WireClient(found[login, leg], source=source) as client:
        if leg == "tls":
            assert client.ask_for_tls() == b"S"
            client.start_tls(
                wire.tls_context(certificate=certs.client("by_cert") if method == "cert" else None)
            )
        user = USERS[method]
        # A client that cannot wait to be asked: its secret lies ready.
        client.send(wire.startup(user=user) + wire.password_message(SECRET))
        if verdict == "in":
            assert [message.kind for message in client.read_until(b"Z")] == [b"R", b"S", b"K", b"Z"]
        elif verdict == "asked":
            assert client.read_message().code == int(opening.split()[0])
        else:
            assert client.read_error().error[0] == verdict
            if source is not None:  # where each comes from a source of its own, nothing is folded
                decided = refusal_of(running, client)
                kind = {"28000": "unproven", "57P03": "backend_protocol"}[verdict]
                assert (decided["user"], decided["kind"], decided["sqlstate"]) == (user, kind, verdict)
    conversation = backend.conversation()
    # Only one who has been let in, or asked, has sent something to this backend beyond his StartupMessage.
    assert (SECRET.encode() in conversation.received) <= (verdict in {"in", "asked"})
    if verdict == "in":
        decided = running.wait_for_event("session_decided", since=since, verdict="allowed")
        assert (decided["user"], decided["proof"]) == (user, PROOFS[login, method])


def test_the_reason_says_that_the_backend_believes_the_proxy(addresses, backend):
    running, found = addresses
    backend.script = opens_with(wire.AUTHENTICATION_OK)
    with wire.WireClient(found["passthrough", "loopback"], source=wire.another_source()) as client:
        client.send(wire.startup(user="by_trust"))
        assert client.read_error().error == ("28000", "authentication failed")
        reason = refusal_of(running, client)["reason"]
    assert "trusts the proxy's own certificate" in reason


@pytest.mark.parametrize("leg", ["loopback", "unix", "tls"])
def test_a_password_that_the_backend_takes_proves_its_user(addresses, backend, leg):
    running, found = addresses

    def script(conversation):
        conversation.accept()
        conversation.send(wire.authentication(3))
        assert conversation.read_message().body == SECRET.encode() + b"\x00"
        conversation.let_in()

    backend.script = script
    since = running.mark()
    with wire.WireClient(found["passthrough", leg]) as client:
        if leg == "tls":
            assert client.ask_for_tls() == b"S"
            client.start_tls()
        client.send(wire.startup(user="by_trust"))
        assert client.read_message().code == 3
        client.send(wire.password_message(SECRET))
        client.read_until(b"Z")
        decided = running.wait_for_event("session_decided", since=since)
        assert (decided["verdict"], decided["proof"]) == ("allowed", "backend")


def test_plus_is_taken_out_of_the_list_for_a_client_in_clear(addresses, backend):
    _, found = addresses
    backend.script = opens_with(OPENINGS["10 with PLUS"])
    with wire.WireClient(found["passthrough", "loopback"]) as client:
        client.send(wire.startup(user="by_scram"))
        asked = client.read_message()
        assert (asked.kind, asked.body) == (b"R", b"\x00\x00\x00\x0aSCRAM-SHA-256\x00\x00")


@pytest.mark.parametrize(("login", "mechanisms", "is_asked"), [
    ("tokens", ["OAUTHBEARER"], True),
    ("tokens", ["OAUTHBEARER", "SCRAM-SHA-256"], False),
    ("tokens", ["PLAIN"], False),
    ("no_scram", ["SCRAM-SHA-256", "OAUTHBEARER"], False),
    ("no_scram", ["OAUTHBEARER"], True),
])  # fmt: skip
def test_require_auth_judges_every_mechanism_of_a_list(addresses, backend, login, mechanisms, is_asked):
    running, found = addresses
    backend.script = opens_with(wire.authentication_sasl(*mechanisms))
    with wire.WireClient(found[login, "tls"], source=wire.another_source()) as client:
        assert client.ask_for_tls() == b"S"
        client.start_tls()
        client.send(wire.startup(user="by_trust"))
        if is_asked:
            assert client.read_message().code == 10
            return
        assert client.read_error().error[0] == "57P03"
        assert "which its require_auth does not allow" in refusal_of(running, client)["reason"]


@pytest.mark.parametrize("length", [1_000, 20_000, 60_000])
@pytest.mark.parametrize("opening", ["3", "10 OAUTHBEARER"])
def test_long_passwords_and_tokens_pass_inside_tls(addresses, backend, opening, length):
    _, found = addresses
    token = b"t" * length
    answer = (
        wire.message(b"p", token + b"\x00")
        if opening == "3"
        else wire.sasl_initial_response("OAUTHBEARER", token)
    )

    def script(conversation):
        conversation.accept()
        conversation.send(OPENINGS[opening])
        assert token in conversation.read_message().body
        conversation.let_in()

    backend.script = script
    with wire.WireClient(found["passthrough", "tls"]) as client:
        assert client.ask_for_tls() == b"S"
        client.start_tls()
        client.send(wire.startup(user="by_trust"))
        client.read_message()
        client.send(answer)
        client.read_until(b"Z")
