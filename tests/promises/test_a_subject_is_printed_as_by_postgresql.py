"""The identity in our log is the one in PostgreSQL 17's, and behind `cert:` in its system_user, for every subject."""

import re
import ssl

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from fixtures import wire
from fixtures.certs import Issued, common_names
from fixtures.deployments import config, passthrough, with_tls
from fixtures.fake_backend import lets_everybody_in
from fixtures.subjects import CN, COMMON_NAMES, SUBJECTS, name, tlv
from pgtlsproxy.identity import printable
from pgtlsproxy.tls.der import SEQUENCE, elements, sole_element

HBA = "hostssl app all all cert\nhostssl all all all cert clientname=DN map=any\n"
IDENT = 'any "/^" alice\n'

CLOSED = "closed"
NOT_ALLOWED = "28000", 'certificate authentication failed for user "alice"'
NO_NID = "22023", "could not get NID for ASN1_OBJECT object"

REFUSED = {
    "empty subject": (NOT_ALLOWED, NOT_ALLOWED),
    "printable string with other characters": (CLOSED, None),
    "unknown type": (CLOSED, NO_NID),
    "unknown type with a bmp string": (CLOSED, NO_NID),
    "unknown type in a multi-valued rdn": (CLOSED, NO_NID),
    "unknown type with large arcs": (CLOSED, NO_NID),
    "unknown type of the first arc": (CLOSED, NO_NID),
    "unknown type, long value": (CLOSED, NO_NID),
}
"""What we say and what PostgreSQL does, where not both let in. It has logged the identity before it finds no name for a
type; a certificate with characters that its string type has not is one that we do not read."""

COMMON_NAME_VERDICTS = {
    "utf8": (None, None),
    "numeric string": (None, None),
    "object descriptor": (None, None),
    "sequence": (NOT_ALLOWED, NOT_ALLOWED),
    "constructed string": (CLOSED, None),
    "bit string": (CLOSED, None),
    "ia5 string with a high byte": (NOT_ALLOWED, NOT_ALLOWED),
    "printable string with other characters": (CLOSED, NOT_ALLOWED),
}
"""Whether a common name is alice: what we say, and what PostgreSQL does."""


def issued(ca, subject, folder):
    """A certificate with this very subject, properly signed: cryptography would not make all of them."""
    template = ca.issue(common_names("template"), usage="client")
    tbs = sole_element(template.certificate.tbs_certificate_bytes, SEQUENCE)
    fields = [field.encoding for field in elements(tbs.content)]
    fields[5] = subject
    body = tlv(SEQUENCE, b"".join(fields))
    outer = list(elements(sole_element(template.certificate.public_bytes(Encoding.DER), SEQUENCE).content))
    signature = ca.issued.private_key.sign(body, ec.ECDSA(hashes.SHA256()))
    whole = tlv(SEQUENCE, body + outer[1].encoding + tlv(0x03, b"\0" + signature))
    crt = folder / "client.crt"
    crt.write_text(ssl.DER_cert_to_PEM_cert(whole))
    return Issued(template.certificate, template.private_key, crt, template.key)


def outcome(client, certificate, database="alice"):
    """An error, that the connection was closed, or a session that is ready: None."""
    assert client.ask_for_tls() == b"S"
    try:
        client.start_tls(wire.tls_context(certificate=certificate))
        client.send(wire.startup(user="alice", database=database))
        while (message := client.read_message()).kind not in b"EZ":
            pass
    except (ssl.SSLError, EOFError, ConnectionError):
        return CLOSED
    return message.error if message.kind == b"E" else None


@pytest.fixture(scope="module")
def server(tls_cluster):
    return tls_cluster(17, HBA, ident=IDENT)


@pytest.fixture(scope="module")
def running(shared_proxy, shared_fake_backend, certs):
    shown, backend = certs.client("pgtlsproxy"), shared_fake_backend(lets_everybody_in)
    primary = passthrough(backend, certs, login="certificate", sslcert=shown.crt, sslkey=shown.key)
    listener = with_tls(certs, ident_file="pg_ident.conf")
    return shared_proxy(
        config({"tls": listener}, primary=primary), {"pg_hba.conf": HBA, "pg_ident.conf": IDENT}
    )


def logged_identity(server, since):
    """What PostgreSQL's `connection authenticated` has."""
    line = server.wait_for_log("connection authenticated: identity=", since=since)
    return re.search(r'identity="(.*)" method=cert', line)[1]


@pytest.mark.parametrize("which", SUBJECTS)
def test_the_identity_is_postgresqls(running, server, certs, tmp_path, which):
    certificate = issued(certs.ca, name(*SUBJECTS[which]), tmp_path)
    ours, theirs = REFUSED.get(which, (None, None))
    since = len(server.log_lines)
    with wire.WireClient((server.host, server.port)) as direct:
        assert outcome(direct, certificate) == theirs
        if theirs is None:
            direct.send(wire.query("SELECT system_user"))
            (row,) = [message for message in direct.read_until(b"Z") if message.kind == b"D"]
            system_user = row.body[6:].decode()
    with wire.WireClient(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        assert outcome(client, certificate) == ours
        decided = running.wait_for_event("session_decided", **client.where)
    if theirs == NOT_ALLOWED:
        assert decided["cert_dn"] == ""
        return
    expected = logged_identity(server, since)
    if theirs is None:
        assert system_user == f"cert:{expected}"
    if ours is None:
        assert decided["identity"] == expected
    is_unread = ours == CLOSED and theirs is None
    assert decided["cert_dn"] == (None if is_unread else printable(expected))


@pytest.mark.parametrize("which", COMMON_NAMES)
def test_a_common_name_is_read_as_by_postgresql_or_refused(running, server, certs, tmp_path, which):
    certificate = issued(certs.ca, name([(CN, *COMMON_NAMES[which])]), tmp_path)
    ours, theirs = COMMON_NAME_VERDICTS[which]
    with wire.WireClient((server.host, server.port)) as direct:
        assert outcome(direct, certificate, "app") == theirs
    with wire.WireClient(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        assert outcome(client, certificate, "app") == ours


def test_forty_subjects_and_more_are_let_in():
    assert len(SUBJECTS) - len(REFUSED) > 40
