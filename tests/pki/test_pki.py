"""What is issued follows RFC 5280, and OpenSSL and PostgreSQL's readers agree."""

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from pgtlsproxy import pki

ISSUED_AT = datetime.now(UTC)
CA = pki.make_ca("Test CA")
INTERMEDIATE = pki.make_intermediate(CA, "Intermediate")
SERVER = pki.issue_server(CA, ["db.example.com", "*.db.example.com", "127.0.0.1", "::1"])
CLIENT = pki.issue_client(CA, "alice")


def extension(
    certificate: x509.Certificate, kind: type[x509.ExtensionType]
) -> x509.Extension[x509.ExtensionType]:
    return certificate.extensions.get_extension_for_class(kind)


def common_name(certificate: x509.Certificate) -> str | bytes:
    return certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value


def openssl_verify(folder: Path, *issued: pki.Issued, options: tuple[str, ...] = ()) -> bool:
    """Whether openssl takes the first certificate, with the CA as anchor and its own intermediates."""
    (folder / "ca.crt").write_bytes(CA.certificate_pem())
    (folder / "leaf.crt").write_bytes(issued[0].certificate_pem())
    done = subprocess.run(
        [
            "openssl",
            "verify",
            "-x509_strict",
            "-CAfile",
            "ca.crt",
            "-untrusted",
            "leaf.crt",
            *options,
            "leaf.crt",
        ],
        cwd=folder,
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


@pytest.mark.parametrize(
    "issued", [CA, INTERMEDIATE, SERVER, CLIENT], ids=["ca", "intermediate", "server", "client"]
)
def test_every_certificate_has_what_rfc_5280_asks(issued: pki.Issued) -> None:
    certificate = issued.certificate
    assert certificate.version is x509.Version.v3
    assert 2**64 < certificate.serial_number < 2**159
    assert extension(certificate, x509.BasicConstraints).critical
    assert extension(certificate, x509.KeyUsage).critical
    assert extension(certificate, x509.SubjectKeyIdentifier).value == (
        x509.SubjectKeyIdentifier.from_public_key(certificate.public_key())
    )
    identifier = extension(CA.certificate, x509.SubjectKeyIdentifier).value
    assert isinstance(identifier, x509.SubjectKeyIdentifier)
    assert extension(certificate, x509.AuthorityKeyIdentifier).value == (
        x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
    )
    certificate.verify_directly_issued_by(CA.certificate)
    # Of when they were made: where all tests run, it is a quarter of an hour until this one's turn.
    age = ISSUED_AT - certificate.not_valid_before_utc
    assert timedelta(minutes=4) <= age < timedelta(minutes=15)


def test_authorities_may_sign_and_leaves_may_not() -> None:
    for issued, path_length in ((CA, None), (INTERMEDIATE, 0)):
        assert extension(issued.certificate, x509.BasicConstraints).value == x509.BasicConstraints(
            ca=True, path_length=path_length
        )
        usage = extension(issued.certificate, x509.KeyUsage).value
        assert isinstance(usage, x509.KeyUsage)
        assert usage.key_cert_sign
        assert usage.crl_sign
    for issued, purpose in (
        (SERVER, ExtendedKeyUsageOID.SERVER_AUTH),
        (CLIENT, ExtendedKeyUsageOID.CLIENT_AUTH),
    ):
        assert extension(issued.certificate, x509.BasicConstraints).value == x509.BasicConstraints(
            ca=False, path_length=None
        )
        usage = extension(issued.certificate, x509.KeyUsage).value
        assert isinstance(usage, x509.KeyUsage)
        assert usage.digital_signature
        assert not usage.key_cert_sign
        assert extension(issued.certificate, x509.ExtendedKeyUsage).value == x509.ExtendedKeyUsage([purpose])


def test_openssl_takes_each_for_its_purpose_and_for_no_other(tmp_path: Path) -> None:
    for leaf, purpose, other in ((SERVER, "sslserver", "sslclient"), (CLIENT, "sslclient", "sslserver")):
        assert openssl_verify(tmp_path, leaf, options=("-purpose", purpose))
        assert not openssl_verify(tmp_path, leaf, options=("-purpose", other))
    assert openssl_verify(tmp_path, SERVER, options=("-verify_hostname", "x.db.example.com"))
    assert openssl_verify(tmp_path, SERVER, options=("-verify_ip", "::1"))


def test_leaf_below_an_intermediate_carries_it_and_the_root_is_left_out(tmp_path: Path) -> None:
    leaf = pki.issue_client(INTERMEDIATE, "alice")
    assert leaf.chain == (INTERMEDIATE.certificate,)
    assert leaf.certificate_pem().count(b"BEGIN CERTIFICATE") == 2
    assert openssl_verify(tmp_path, leaf)
    assert CLIENT.chain == ()


def test_path_length_is_written() -> None:
    top = pki.make_ca("Top", path_length=1)
    assert extension(top.certificate, x509.BasicConstraints).value == x509.BasicConstraints(
        ca=True, path_length=1
    )


@pytest.mark.parametrize("key_type", list(pki.KeyType))
def test_every_kind_of_key_can_be_asked_for_and_works(key_type: pki.KeyType, tmp_path: Path) -> None:
    kinds = {
        pki.KeyType.P256: ec.EllipticCurvePrivateKey,
        pki.KeyType.RSA: rsa.RSAPrivateKey,
        pki.KeyType.ED25519: ed25519.Ed25519PrivateKey,
    }
    authority = pki.make_ca("A", key_type=key_type)
    leaf = pki.issue_server(CA, ["db"], key_type=key_type)
    assert isinstance(authority.key, kinds[key_type])
    assert isinstance(leaf.key, kinds[key_type])
    assert openssl_verify(tmp_path, leaf, options=("-purpose", "sslserver"))
    pki.issue_client(authority, "alice").certificate.verify_directly_issued_by(authority.certificate)
    assert load_pem_private_key(leaf.key_pem().reveal(), None).public_key() == leaf.certificate.public_key()


def test_default_key_is_p256() -> None:
    assert isinstance(SERVER.key, ec.EllipticCurvePrivateKey)
    assert isinstance(SERVER.key.curve, ec.SECP256R1)


def test_keys_are_not_shown() -> None:
    assert "key" not in repr(SERVER).lower().replace("keyusage", "")
    assert "PRIVATE" not in repr(SERVER.key_pem())


def test_server_names_become_dns_and_ip_names_and_the_first_the_common_name() -> None:
    names = extension(SERVER.certificate, x509.SubjectAlternativeName)
    assert isinstance(names.value, x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.DNSName) == ["db.example.com", "*.db.example.com"]
    assert [str(ip) for ip in names.value.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert common_name(SERVER.certificate) == "db.example.com"
    assert not names.critical


def test_server_name_too_long_for_a_common_name_leaves_the_subject_empty() -> None:
    long = ".".join(["a" * 40, "b" * 40, "example"])
    certificate = pki.issue_server(CA, [long]).certificate
    assert list(certificate.subject) == []
    assert extension(certificate, x509.SubjectAlternativeName).critical


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", "a b", "db:5432", "bücher.example", "*", "a.*.example", "*a.example", "-a.example"),
        *("a..b", "a.", "1.2.3", "999.1.1.1", "a/b", "a\n", "x" * 64, ".".join(["a" * 60] * 5)),
    ],
)
def test_name_that_is_neither_dns_nor_ip_is_refused(name: str) -> None:
    with pytest.raises(pki.CannotIssue, match="neither an IP address nor a DNS name"):
        pki.issue_server(CA, [name])


def test_server_without_a_name_is_refused() -> None:
    with pytest.raises(pki.CannotIssue, match="at least one name"):
        pki.issue_server(CA, [])


@pytest.mark.parametrize("user", ["alice", "Ω" * 31, "a b", 'a"b', "a,b", "x" * 63, "../x"])
def test_client_common_name_is_the_user(user: str) -> None:
    certificate = pki.issue_client(CA, user).certificate
    assert common_name(certificate) == user
    assert len(list(certificate.subject)) == 1


@pytest.mark.parametrize("user", ["", "x" * 64, "Ω" * 32, "a\0b", "a\nb", "\x7f", "a\x85b", "a\udc80"])
def test_user_that_cannot_exist_gets_no_certificate(user: str) -> None:
    with pytest.raises(pki.CannotIssue, match="is no name for a database user"):
        pki.issue_client(CA, user)


@given(st.text(max_size=70))
def test_whatever_the_user_is_called_it_is_the_common_name_or_refused(user: str) -> None:
    try:
        issued = pki.issue_client(CA, user)
    except pki.CannotIssue:
        return
    assert common_name(issued.certificate) == user
    assert 1 <= len(user.encode()) <= 63


def test_ca_name_too_long_is_refused() -> None:
    with pytest.raises(pki.CannotIssue, match="1 to 64 characters"):
        pki.make_ca("x" * 65)


def test_subject_can_be_given_whole() -> None:
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Lab")])
    for issued in (
        pki.make_ca("unused", subject=subject),
        pki.make_intermediate(CA, "unused", subject=subject),
        pki.issue_server(CA, ["db"], subject=subject),
        pki.issue_client(CA, "", subject=subject),
    ):
        assert issued.certificate.subject == subject


def test_validity_can_be_given_exactly() -> None:
    when = pki.Validity(datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 2, tzinfo=UTC))
    for issued in (pki.make_ca("x", lifetime=when), pki.issue_client(CA, "a", lifetime=when)):
        assert issued.certificate.not_valid_before_utc == when.not_before
        assert issued.certificate.not_valid_after_utc == when.not_after


def test_nothing_outlives_its_issuer() -> None:
    short = pki.make_ca("Short", lifetime=timedelta(days=2))
    leaf = pki.issue_client(short, "alice", lifetime=timedelta(days=900))
    assert leaf.certificate.not_valid_after_utc == short.certificate.not_valid_after_utc


def test_expired_ca_issues_nothing() -> None:
    past = pki.Validity(datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 2, tzinfo=UTC))
    with pytest.raises(pki.CannotIssue, match="expired on 2020-01-02"):
        pki.issue_client(pki.make_ca("Old", lifetime=past), "alice")


def test_leaf_issues_nothing() -> None:
    for make in (
        lambda: pki.issue_client(CLIENT, "bob"),
        lambda: pki.make_intermediate(SERVER, "x"),
        lambda: pki.make_crl(CLIENT),
    ):
        with pytest.raises(pki.CannotIssue, match="is no CA"):
            make()


def test_renewal_keeps_names_and_purposes_and_nothing_else() -> None:
    renewed = pki.renew(CA, SERVER.certificate)
    old, new = SERVER.certificate, renewed.certificate
    assert new.subject == old.subject
    for kind in (x509.SubjectAlternativeName, x509.KeyUsage, x509.ExtendedKeyUsage, x509.BasicConstraints):
        assert extension(new, kind) == extension(old, kind)
    assert new.serial_number != old.serial_number
    assert new.public_key() != old.public_key()
    assert extension(new, x509.SubjectKeyIdentifier) != extension(old, x509.SubjectKeyIdentifier)
    lifetime = new.not_valid_after_utc - new.not_valid_before_utc
    assert lifetime == old.not_valid_after_utc - old.not_valid_before_utc


def test_renewal_can_keep_the_key() -> None:
    renewed = pki.renew(CA, CLIENT.certificate, key=CLIENT.key, lifetime=timedelta(days=3))
    assert renewed.certificate.public_key() == CLIENT.certificate.public_key()
    assert renewed.certificate.not_valid_after_utc - datetime.now(UTC) <= timedelta(days=3)


@pytest.mark.parametrize("key_type", list(pki.KeyType))
def test_renewed_key_is_of_the_same_kind(key_type: pki.KeyType) -> None:
    issued = pki.issue_client(CA, "alice", key_type=key_type)
    assert type(pki.renew(CA, issued.certificate).key) is type(issued.key)


def test_renewal_by_a_new_ca_names_the_new_one() -> None:
    other = pki.make_ca("New CA")
    renewed = pki.renew(other, CLIENT.certificate)
    renewed.certificate.verify_directly_issued_by(other.certificate)


def test_root_is_not_renewed() -> None:
    with pytest.raises(pki.CannotIssue, match="a root certificate is not renewed"):
        pki.renew(CA, CA.certificate)


def test_crl_names_the_revoked_and_openssl_obeys_it(tmp_path: Path) -> None:
    crl = pki.make_crl(CA, [CLIENT.certificate.serial_number])
    (tmp_path / "ca.crl").write_bytes(crl.public_bytes(Encoding.PEM))
    options = ("-crl_check", "-CRLfile", "ca.crl")
    assert openssl_verify(tmp_path, SERVER, options=options)
    assert not openssl_verify(tmp_path, CLIENT, options=options)
    assert crl.is_signature_valid(CA.key.public_key())
    assert crl.issuer == CA.certificate.subject
    assert crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)


def test_empty_crl_revokes_nobody(tmp_path: Path) -> None:
    (tmp_path / "ca.crl").write_bytes(pki.make_crl(CA).public_bytes(Encoding.PEM))
    assert openssl_verify(tmp_path, CLIENT, options=("-crl_check", "-CRLfile", "ca.crl"))


def test_next_crl_keeps_what_was_revoked_and_counts_on() -> None:
    first = pki.make_crl(CA, [5, 5])
    second = pki.make_crl(CA, [5, 7], previous=first)
    assert [entry.serial_number for entry in second] == [5, 7]
    kept, before = (
        second.get_revoked_certificate_by_serial_number(5),
        first.get_revoked_certificate_by_serial_number(5),
    )
    assert kept is not None
    assert before is not None
    assert kept.revocation_date_utc == before.revocation_date_utc
    numbers = [
        crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number for crl in (first, second)
    ]
    assert numbers == [1, 2]


def test_crl_of_another_ca_is_not_continued() -> None:
    for other in (pki.make_ca("Test CA"), pki.make_ca("Ed", key_type=pki.KeyType.ED25519)):
        with pytest.raises(pki.CannotIssue, match="signed by another CA"):
            pki.make_crl(CA, previous=pki.make_crl(other))


def test_crl_can_be_given_its_times() -> None:
    when = pki.Validity(datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 2, tzinfo=UTC))
    crl = pki.make_crl(CA, lifetime=when)
    assert (crl.last_update_utc, crl.next_update_utc) == (when.not_before, when.not_after)
