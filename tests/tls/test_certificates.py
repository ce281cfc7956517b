"""What `describe` reads out of a certificate is what PostgreSQL reads, byte for byte."""

import hashlib
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.utils import CryptographyDeprecationWarning
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.subjects import (
    BMP,
    CN,
    EMAIL,
    IA5,
    NUMERIC,
    ORG,
    OU,
    PRINTABLE,
    SUBJECTS,
    T61,
    UID,
    UNIVERSAL,
    UNKNOWN,
    UTF8,
    Attribute,
    name,
    oid,
    tlv,
)
from pgtlsproxy import pki
from pgtlsproxy.errors import ClientCertificateRefused
from pgtlsproxy.identity import encode_name
from pgtlsproxy.tls import certificates, der, distinguished_name
from pgtlsproxy.tls.certificates import days_left, describe, end_point_hash_name, expires_soon
from pgtlsproxy.tls.distinguished_name import SHORT_NAMES

CA = pki.make_ca("Test CA")
CLIENT = pki.issue_client(CA, "alice").certificate


def raw_with_field(index: int, encoding: bytes) -> bytes:
    """A certificate with one field of its TBSCertificate exchanged; the signature no longer fits."""
    outer = der.sole_element(CLIENT.public_bytes(Encoding.DER), der.SEQUENCE)
    tbs, *rest = der.elements(outer.content)
    fields = [field.encoding for field in der.elements(tbs.content)]
    fields[index] = encoding
    return tlv(0x30, tlv(0x30, b"".join(fields)) + b"".join(field.encoding for field in rest))


def with_field(index: int, encoding: bytes) -> x509.Certificate:
    return x509.load_der_x509_certificate(raw_with_field(index, encoding))


def with_subject(*rdns: list[Attribute]) -> x509.Certificate:
    return with_field(5, name(*rdns))


def printed(encoding: bytes) -> str:
    return distinguished_name.rfc2253(distinguished_name.parse(encoding))


def with_extension(kind: str, value: bytes) -> x509.Certificate:
    extension = tlv(0x30, oid(kind) + tlv(0x04, value))
    return with_field(7, tlv(0xA3, tlv(0x30, extension)))


def openssl_subject(certificate: bytes, what: str = "subject") -> str:
    done = subprocess.run(
        ["openssl", "x509", "-inform", "DER", "-noout", f"-{what}", "-nameopt", "RFC2253"],
        input=certificate,
        capture_output=True,
        check=True,
    )
    return done.stdout.decode("ascii").removesuffix("\n").removeprefix(f"{what}=")


def with_size(octets: int) -> x509.Certificate:
    """A certificate whose DER has this many octets, around 16,000."""
    frame = len(with_extension(UNKNOWN, bytes(16_000)).public_bytes(Encoding.DER)) - 16_000
    return with_extension(UNKNOWN, bytes(octets - frame))


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS.keys())
def test_subject_is_printed_as_openssl_prints_it(subject: list[list[Attribute]]) -> None:
    encoding = name(*subject)
    assert printed(encoding) == openssl_subject(raw_with_field(5, encoding))


def test_certificate_is_described_with_both_names_as_openssl_prints_them() -> None:
    encoding = name([(ORG, UTF8, "Ämter, ".encode()), (UID, T61, b"\xe4")], [(ORG, BMP, b"\0C\0A")])
    for field, what in ((3, "issuer"), (5, "subject")):
        described = describe(with_field(field, encoding))
        dn = described.dn if what == "subject" else described.issuer_dn
        assert dn == openssl_subject(raw_with_field(field, encoding), what)


_wide = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
_values = st.one_of(
    st.tuples(st.sampled_from([PRINTABLE, T61, IA5, NUMERIC]), st.binary(max_size=12)),
    st.tuples(st.just(UTF8), _wide.map(str.encode)),
    st.tuples(st.just(UNIVERSAL), _wide.map(lambda value: value.encode("utf-32-be"))),
    st.tuples(st.just(T61), st.text(' #,+"\\a', max_size=4).map(str.encode)),
)
_attributes = st.tuples(st.sampled_from([ORG, OU, UID, EMAIL, UNKNOWN, "2.5.4.72"]), _values).map(
    lambda pair: (pair[0], *pair[1])
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(_attributes, min_size=1, max_size=3), max_size=4))
def test_any_subject_is_printed_as_openssl_prints_it(rdns: list[list[Attribute]]) -> None:
    encoding = name(*rdns)
    assert printed(encoding) == openssl_subject(raw_with_field(5, encoding))


def test_short_names_are_openssls() -> None:
    listing = subprocess.run(
        ["openssl", "list", "-objects"], capture_output=True, check=True, text=True
    ).stdout
    known = {
        line.rpartition(", ")[2].rpartition(" = ")[2].strip(): line.partition(" = ")[0].strip()
        for line in listing.splitlines()
        if " = " in line
    }
    attribute_arcs = {kind.rpartition(".")[0] for kind in SHORT_NAMES} - {"1.2.840.113549.1.9"}
    expected = {kind: short for kind, short in known.items() if kind.rpartition(".")[0] in attribute_arcs}
    assert len(expected) > 100
    assert {kind: SHORT_NAMES.get(kind) for kind in expected} == expected
    assert all(known[kind] == short for kind, short in SHORT_NAMES.items() if kind in known)


def test_common_names_are_raw_bytes_in_the_order_of_the_encoding() -> None:
    certificate = with_subject(
        [(CN, T61, b"M\xfcller")], [(ORG, UTF8, b"x")], [(UID, UTF8, b"u"), (CN, UTF8, "Ω".encode())]
    )
    assert [encode_name(one) for one in describe(certificate).common_names] == [b"M\xfcller", "Ω".encode()]


def test_common_names_are_not_folded() -> None:
    spellings = ["\uff41lice", "ali\u200bce", "alice\u0301", "alice ", "ALICE", "ali\u0441e"]
    certificate = with_subject(*[[(CN, UTF8, one.encode())] for one in spellings])
    assert describe(certificate).common_names == tuple(spellings)


def test_certificate_without_common_name_has_none_and_an_empty_one_is_kept() -> None:
    assert describe(with_subject([(ORG, UTF8, b"x")])).common_names == ()
    assert describe(with_subject([(CN, UTF8, b"")])).common_names == ("",)


@pytest.mark.parametrize(
    "value",
    [
        (UTF8, b"admin\0.evil.example.com"),
        (UTF8, b"\0"),
        (BMP, b"\0a\0l"),
        (UNIVERSAL, b"\0\0\0a"),
        (IA5, b"a\0"),
    ],
)
def test_nul_in_any_common_name_refuses_the_certificate(value: tuple[int, bytes]) -> None:
    for subject in ([[(CN, *value)]], [[(CN, UTF8, b"alice")], [(CN, *value)]]):
        with pytest.raises(ClientCertificateRefused) as caught:
            describe(with_subject(*subject))
        assert caught.value.reason == "SSL certificate's common name contains embedded null"


def test_characters_that_openssl_would_leave_out_refuse_the_certificate() -> None:
    for value in ((BMP, b"\xd8\x00\0a"), (UNIVERSAL, b"\x00\x11\x00\x00"), (UNIVERSAL, b"\xff\xff\xff\xff")):
        with pytest.raises(der.MalformedDER, match="no Unicode character"):
            printed(name([(ORG, *value)]))


def test_dn_is_plain_ascii_in_one_line_whatever_the_subject_says() -> None:
    dn = describe(with_subject([(ORG, UTF8, bytes(range(1, 256)))])).dn
    assert dn.isascii()
    assert dn.isprintable()


@settings(max_examples=200)
@given(st.data())
def test_a_damaged_name_raises_nothing_but_a_refusal(data: st.DataObject) -> None:
    encoding = bytearray(name([(CN, UTF8, b"alice"), (UID, UTF8, b"u")], [(ORG, BMP, b"\0a")]))
    for _ in range(data.draw(st.integers(1, 3))):
        encoding[data.draw(st.integers(2, len(encoding) - 1))] = data.draw(st.integers(0, 255))
    try:
        certificate = with_field(5, bytes(encoding))
    except ValueError:
        return  # the library already refuses it
    try:
        described = describe(certificate)
    except ClientCertificateRefused:
        return
    assert described.dn.isascii()


def test_serial_fingerprint_and_validity_are_told() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    end = start + timedelta(days=10)
    certificate = pki.issue_client(CA, "alice", lifetime=pki.Validity(start, end)).certificate
    described = describe(certificate)
    assert described.serial == certificate.serial_number
    assert described.sha256 == hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()
    assert (described.not_before, described.not_after) == (start, end)


def test_negative_serial_is_read_as_the_number_that_it_is() -> None:
    with pytest.warns(CryptographyDeprecationWarning):
        certificate = with_field(1, b"\x02\x01\xff")
    assert describe(certificate).serial == -1


def test_alternative_names_are_told_by_kind_and_printable() -> None:
    names = tlv(
        0x30,
        tlv(0x82, b"db.example.com")
        + tlv(0x82, b"\x1b[31m\xff")
        + tlv(0x86, b"spiffe://example.com/db")
        + tlv(0x81, b"a@example.com")
        + tlv(0x87, b"\x7f\0\0\x01")
        + tlv(0x87, bytes(15) + b"\x01")
        + tlv(0x87, b"\x01\x02\x03")
        + tlv(0x88, b"\x2a\x03")
        + tlv(0x82, b"x" * 1000),
    )
    assert describe(with_extension("2.5.29.17", names)).subject_alt_names == (
        "DNS:db.example.com",
        "DNS:\\x1b[31m\\xff",
        "URI:spiffe://example.com/db",
        "email:a@example.com",
        "IP:127.0.0.1",
        "IP:::1",
        "IP:010203",
        "DNS:" + "x" * 256 + "...",
    )


def test_many_alternative_names_are_capped() -> None:
    names = tlv(0x30, b"".join(tlv(0x82, b"h%d" % number) for number in range(60)))
    shown = describe(with_extension("2.5.29.17", names)).subject_alt_names
    assert len(shown) == 51
    assert shown[-1] == "... 10 more"


def test_alternative_names_are_kept_whole_and_raw_by_kind() -> None:
    names = [tlv(0x82, b"h%d" % number) for number in range(200)]
    names += [tlv(0x82, b"x" * 1000), tlv(0x82, b"\x1b\xff"), tlv(0x82, b""), tlv(0x86, b"spiffe://a/b")]
    names += [tlv(0x81, b"a@example.com"), tlv(0x87, b"\x7f\0\0\x01"), tlv(0x88, b"\x2a\x03")]
    other_name = tlv(0xA0, oid(UNKNOWN) + tlv(0xA0, tlv(UTF8, b"alice")))
    described = describe(with_extension("2.5.29.17", tlv(0x30, b"".join([*names, other_name]))))
    assert [encode_name(one) for one in described.dns_names[198:]] == [
        b"h198",
        b"h199",
        b"x" * 1000,
        b"\x1b\xff",
        b"",
    ]
    assert described.uris == ("spiffe://a/b",)
    assert described.emails == ("a@example.com",)
    assert (describe(CLIENT).dns_names, describe(CLIENT).uris, describe(CLIENT).emails) == ((), (), ())


@pytest.mark.parametrize("tag", [0x81, 0x82, 0x86])
def test_nul_in_an_alternative_name_refuses_the_certificate(tag: int) -> None:
    for value in (b"admin\0.evil.example.com", b"\0", b"a\0"):
        certificate = with_extension("2.5.29.17", tlv(0x30, tlv(0x82, b"good") + tlv(tag, value)))
        with pytest.raises(ClientCertificateRefused) as caught:
            describe(certificate)
        assert caught.value.reason == "a subjectAltName of the certificate contains embedded null"


def test_an_issuer_is_told_by_its_key() -> None:
    key = CA.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert describe(CLIENT, CA.certificate).issuer_key == hashlib.sha256(key).hexdigest()
    assert describe(CLIENT).issuer_key is None
    assert (
        describe(CLIENT, with_field(3, b"\x30\x02\x31\x00")).issuer_key == describe(CLIENT, CLIENT).issuer_key
    )
    assert describe(CLIENT, with_extension("2.5.29.17", b"\x30\x01")).issuer_key is None


def test_a_certificate_of_16_kb_is_read_and_one_octet_more_refuses_it() -> None:
    assert describe(with_size(16_384)).common_names == ("alice",)
    with pytest.raises(ClientCertificateRefused, match="is 16385 octets long, and 16384 are the most"):
        describe(with_size(16_385))


@pytest.mark.parametrize(
    "certificate",
    [
        with_subject(*[[(CN, UTF8, b"a")]] * 3600),
        with_subject([(OU, UTF8, b"\xc3\xa9" * 22_000)]),
        with_extension("2.5.29.17", tlv(0x30, tlv(0x82, b"a") * 20_000)),
    ],
    ids=["names", "one name", "alternative names"],
)
def test_nothing_in_a_longer_certificate_is_read(
    monkeypatch: pytest.MonkeyPatch, certificate: x509.Certificate
) -> None:
    """Whoever is not known yet could keep all others waiting with it."""
    monkeypatch.setattr(certificates, "read_names", None)
    with pytest.raises(ClientCertificateRefused, match="octets long"):
        describe(certificate)


@pytest.mark.parametrize(
    ("lifetime", "left", "warns"),
    [
        (365, 31, False),
        (365, 29, True),
        (365, -1, True),
        (30, 11, False),
        (30, 9, True),
        (1, 0.5, False),
        (1, 0.3, True),
    ],
)
def test_expiry_warns_under_thirty_days_and_under_a_third_of_the_lifetime(
    lifetime: float, left: float, *, warns: bool
) -> None:
    now = datetime(2026, 6, 1, tzinfo=UTC)
    end = now + timedelta(days=left)
    issued = pki.issue_client(CA, "alice", lifetime=pki.Validity(end - timedelta(days=lifetime), end))
    assert expires_soon(describe(issued.certificate), now) is warns


def test_days_left_are_whole_days_and_negative_when_over() -> None:
    described = describe(CLIENT)
    end = described.not_after
    assert days_left(described, end - timedelta(days=2, hours=1)) == 2
    assert days_left(described, end - timedelta(hours=1)) == 0
    assert days_left(described, end + timedelta(hours=1)) == -1


def signed_with(
    key: rsa.RSAPrivateKey, digest: hashes.HashAlgorithm, *, pss: bool = False
) -> x509.Certificate:
    now = datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "db")])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 1, now, now + timedelta(days=1))
    return builder.sign(key, digest, rsa_padding=padding.PSS(padding.MGF1(digest), 32) if pss else None)


def test_channel_binding_hash_is_the_signatures() -> None:
    key = rsa.generate_private_key(65537, 2048)
    assert end_point_hash_name(CLIENT) == "sha256"
    assert end_point_hash_name(signed_with(key, hashes.SHA384())) == "sha384"
    assert end_point_hash_name(signed_with(key, hashes.SHA512())) == "sha512"
    assert end_point_hash_name(signed_with(key, hashes.SHA384(), pss=True)) == "sha384"
    assert hashlib.new(end_point_hash_name(signed_with(key, hashes.SHA3_256())) or "").digest_size == 32


def test_channel_binding_hash_of_sha1_and_md5_is_sha256() -> None:
    for algorithm in ("1.2.840.113549.1.1.5", "1.2.840.113549.1.1.4"):
        outer = der.sole_element(CLIENT.public_bytes(Encoding.DER), der.SEQUENCE)
        tbs, _, signature = der.elements(outer.content)
        identifier = tlv(0x30, oid(algorithm) + b"\x05\x00")
        fields = [field.encoding for field in der.elements(tbs.content)]
        fields[2] = identifier
        body = tlv(0x30, b"".join(fields)) + identifier + signature.encoding
        assert end_point_hash_name(x509.load_der_x509_certificate(tlv(0x30, body))) == "sha256"


def test_certificate_signed_by_ed25519_has_no_channel_binding_hash() -> None:
    issuer = pki.make_ca("Ed", key_type=pki.KeyType.ED25519)
    assert isinstance(issuer.key, ed25519.Ed25519PrivateKey)
    assert end_point_hash_name(pki.issue_server(issuer, ["db"]).certificate) is None
    server = pki.issue_server(issuer, ["db"])
    assert isinstance(server.key, ec.EllipticCurvePrivateKey)


@pytest.mark.parametrize(
    "data",
    [
        b"\x30",
        b"\x30\x80\x00\x00",  # indefinite
        b"\x30\x81\x01\x00",  # long form where the short one would do
        b"\x30\x82\x00\x81" + bytes(129),  # padded length
        b"\x30\x05\x00",  # beyond the end
        b"\x1f\x81\x01\x00",  # tag number over 30
        b"\x30\x84\xff\xff\xff\xff",
    ],
)
def test_encodings_that_are_no_der_are_refused(data: bytes) -> None:
    with pytest.raises(der.MalformedDER):
        list(der.elements(data))


@pytest.mark.parametrize("content", [b"", b"\x80\x01", b"\x2a\x80\x01", b"\x2a\x86", b"\x2a" + b"\x01" * 586])
def test_object_identifiers_that_are_padded_cut_off_or_endless_are_refused(content: bytes) -> None:
    with pytest.raises(der.MalformedDER):
        der.object_identifier(der.Element(der.OBJECT_IDENTIFIER, content, b""))


@settings(max_examples=200)
@given(st.binary(max_size=60))
def test_reading_der_ends_or_refuses_and_covers_every_byte(data: bytes) -> None:
    try:
        found = list(der.elements(data))
    except der.MalformedDER:
        return
    assert b"".join(element.encoding for element in found) == data
