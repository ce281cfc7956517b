"""Whose certificate a backend may show: libpq's rule, with the differences that verify.py lists."""

import ipaddress
from dataclasses import dataclass

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from pgtlsproxy import pki
from pgtlsproxy.errors import BackendTLSFailed
from pgtlsproxy.tls import der
from pgtlsproxy.tls.verify import is_ip_address, verify_host_name

CA = pki.make_ca("Test CA")
DNS, URI, IP = 0x82, 0x86, 0x87

TEMPLATE = pki.issue_client(CA, "x").certificate
"""Without subjectAltNames."""


def tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes(2).lstrip(b"\0")
    return bytes([tag, 0x80 | len(length)]) + length + content


def certificate(
    *alternative: tuple[int, bytes], cns: tuple[bytes, ...] = (), extension: bool = True
) -> x509.Certificate:
    """A certificate with these raw names; the signature no longer fits."""
    outer = der.sole_element(TEMPLATE.public_bytes(Encoding.DER), der.SEQUENCE)
    tbs, *rest = der.elements(outer.content)
    fields = [field.encoding for field in der.elements(tbs.content)]
    common_names = (tlv(0x31, tlv(0x30, b"\x06\x03\x55\x04\x03" + tlv(0x0C, cn))) for cn in cns)
    fields[5] = tlv(0x30, b"".join(common_names))
    del fields[7]
    if extension:
        names = tlv(0x30, b"".join(tlv(tag, value) for tag, value in alternative))
        fields.append(tlv(0xA3, tlv(0x30, tlv(0x30, b"\x06\x03\x55\x1d\x11" + tlv(0x04, names)))))
    body = tlv(0x30, b"".join(fields)) + b"".join(field.encoding for field in rest)
    return x509.load_der_x509_certificate(tlv(0x30, body))


def ip(text: str) -> tuple[int, bytes]:
    return IP, ipaddress.ip_address(text).packed


def dns(*names: str) -> tuple[tuple[int, bytes], ...]:
    return tuple((DNS, name.encode()) for name in names)


def cn_only(*names: str) -> x509.Certificate:
    return certificate(cns=tuple(name.encode() for name in names), extension=False)


def is_for(shown: x509.Certificate, host: str) -> bool:
    try:
        verify_host_name(shown, host)
    except BackendTLSFailed:
        return False
    return True


@dataclass(frozen=True)
class Case:
    shown: x509.Certificate
    matches: tuple[str, ...] = ()
    refuses: tuple[str, ...] = ()


WILDCARD = certificate(*dns("*.wildcard.pg-ssltest.test"))

CASES = {
    "common name alone": Case(
        cn_only("common-name.pg-ssltest.test"),
        ("common-name.pg-ssltest.test", "COMMON-NAME.pg-ssltest.TEST"),
        (
            "wronghost.test",
            "common-name.pg-ssltest.test.",
            "pg-ssltest.test",
            "x.common-name.pg-ssltest.test",
        ),
    ),
    "first common name alone": Case(cn_only("a.test", "b.test"), ("a.test",), ("b.test",)),
    "common name with a wildcard": Case(cn_only("*.example.test"), (), ("a.example.test", "*.example.test")),
    "common name that is an address": Case(cn_only("192.0.2.1"), (), ("192.0.2.1", "192.000.002.001")),
    "common name that is an address of v6": Case(cn_only("2001:db8::1"), (), ("2001:db8::1",)),
    "one alternative name": Case(
        certificate(*dns("single.alt-name.pg-ssltest.test"), cns=(b"common-name.pg-ssltest.test",)),
        ("single.alt-name.pg-ssltest.test", "Single.Alt-Name.PG-ssltest.test"),
        (
            "common-name.pg-ssltest.test",
            "deep.subdomain.single.alt-name.pg-ssltest.test",
            "alt-name.pg-ssltest.test",
        ),
    ),
    "several alternative names": Case(
        certificate(
            *dns(
                "dns1.alt-name.pg-ssltest.test", "dns2.alt-name.pg-ssltest.test", "*.wildcard.pg-ssltest.test"
            )
        ),
        ("dns1.alt-name.pg-ssltest.test", "dns2.alt-name.pg-ssltest.test", "foo.wildcard.pg-ssltest.test"),
        (
            "wronghost.alt-name.pg-ssltest.test",
            "deep.subdomain.wildcard.pg-ssltest.test",
            "wildcard.pg-ssltest.test",
        ),
    ),
    "wildcard": Case(
        WILDCARD,
        ("a.wildcard.pg-ssltest.test", "A-1.WILDCARD.pg-ssltest.test"),
        (
            "a.b.wildcard.pg-ssltest.test",
            ".wildcard.pg-ssltest.test",
            "wildcard.pg-ssltest.test",
            "awildcard.pg-ssltest.test",
        ),
    ),
    "wildcard before a single label, unlike libpq": Case(certificate(*dns("*.test")), (), ("lab.test",)),
    "wildcard for an A-label, unlike libpq": Case(WILDCARD, (), ("xn--bcher-kva.wildcard.pg-ssltest.test",)),
    "wildcard elsewhere": Case(
        certificate(
            *dns(
                "*",
                "f*o.example.test",
                "a.*.example.test",
                "*.*.example.test",
                "**.example.test",
                "*a.example.test",
            )
        ),
        (),
        ("foo.example.test", "a.b.example.test", "aa.example.test", "x.example.test", "test"),
    ),
    "unusable names beside a good one": Case(
        certificate(*dns("*", "*.test", "192.0.2.1", "", "a b", "db.example.test")),
        ("db.example.test",),
        ("192.0.2.1",),
    ),
    "addresses": Case(
        certificate(ip("192.0.2.1"), ip("2001:db8::1"), cns=(b"common-name.test",)),
        (
            "192.0.2.1",
            "192.000.002.001",
            "2001:db8::1",
            "2001:DB8::1",
            "2001:db8:0:0:0:0:0:1",
            "2001:db8::0.0.0.1",
        ),
        (
            "192.0.2.2",
            "::1",
            "192.0.2.1/32",
            "2001:db8::1/128",
            "[2001:db8::1]",
            "::ffff:192.0.2.1",
            "fe80::1%eth0",
        ),
    ),
    "only addresses and a common name, unlike libpq": Case(
        certificate(ip("192.0.2.1"), cns=(b"common-name.test",)), ("192.0.2.1",), ("common-name.test",)
    ),
    "address in an odd form as common name": Case(cn_only("127.000.000.001"), (), ("127.000.000.001",)),
    "address in an odd form in a dNSName": Case(certificate(*dns("0x7f.1")), (), ("0x7f.1",)),
    "address in a dNSName, unlike libpq": Case(
        certificate(*dns("192.0.2.1")), (), ("192.0.2.1", "192.0.2.01")
    ),
    "address as common name and other addresses": Case(
        certificate(ip("192.0.2.2"), ip("2001:db8::1"), cns=(b"192.0.2.1",)),
        ("192.0.2.2", "2001:db8::1"),
        ("192.0.2.1",),
    ),
    "address as common name and dns names, unlike libpq": Case(
        certificate(*dns("dns1.test"), cns=(b"192.0.2.1",)), ("dns1.test",), ("192.0.2.1",)
    ),
    "localhost": Case(
        certificate(*dns("localhost"), ip("127.0.0.1"), ip("::1")),
        ("localhost", "127.0.0.1", "::1"),
        ("127.0.0.2", "localhost."),
    ),
    "no names": Case(certificate(extension=False), (), ("common-name.test", "192.0.2.1")),
    "empty extension": Case(certificate(cns=(b"db.test",)), (), ("db.test",)),
    "only names of other kinds": Case(
        certificate((URI, b"https://db.test"), (0x81, b"a@db.test"), cns=(b"db.test",)), (), ("db.test",)
    ),
    "trailing dot in the certificate": Case(certificate(*dns("db.test.")), ("db.test.",), ("db.test",)),
    "blanks in the certificate": Case(certificate((DNS, b" db.test"), (DNS, b"db.test\n")), (), ("db.test",)),
    "blanks around the host": Case(
        certificate(*dns("db.test")), ("db.test",), (" db.test", "db.test ", "db.test\n")
    ),
    "name beyond ascii": Case(
        certificate(*dns("bücher.test", "xn--bcher-kva.test")), ("xn--bcher-kva.test",), ("bücher.test",)
    ),
    "single label": Case(certificate(*dns("db", "*.db")), ("db",), ("a.db",)),
    "underscore": Case(certificate(*dns("my_db.test")), ("my_db.test",)),
    "numbers that are no address": Case(certificate(*dns("1a.test", "1")), ("1a.test",), ("1", "0.0.0.1")),
}


@pytest.mark.parametrize(
    ("shown", "host"), [(case.shown, host) for case in CASES.values() for host in case.matches],
    ids=[f"{name}: {host}" for name, case in CASES.items() for host in case.matches],
)  # fmt: skip
def test_certificate_is_for_the_host(shown: x509.Certificate, host: str) -> None:
    verify_host_name(shown, host)


@pytest.mark.parametrize(
    ("shown", "host"), [(case.shown, host) for case in CASES.values() for host in case.refuses],
    ids=[f"{name}: {host!r}" for name, case in CASES.items() for host in case.refuses],
)  # fmt: skip
def test_certificate_is_not_for_the_host(shown: x509.Certificate, host: str) -> None:
    with pytest.raises(BackendTLSFailed, match="host name"):
        verify_host_name(shown, host)


@pytest.mark.parametrize(
    ("shown", "host", "reason"),
    [
        (cn_only("a.test"), "h.test", 'server certificate for "a.test" does not match host name "h.test"'),
        (
            certificate(*dns("a.test", "b.test")),
            "h.test",
            'server certificate for "a.test" (and 1 other name) does not match host name "h.test"',
        ),
        (
            certificate(ip("192.0.2.1"), (URI, b"x:y"), *dns("b.test", "c.test"), cns=(b"cn",)),
            "h.test",
            'server certificate for "192.0.2.1" (and 2 other names) does not match host name "h.test"',
        ),
        (certificate(extension=False), "h.test", "could not get server's host name from server certificate"),
        (certificate((URI, b"x:y")), "h.test", "could not get server's host name from server certificate"),
        (cn_only("a.test"), "", "host name must be specified for a verified SSL connection"),
        (
            certificate(*dns("a\x1b[2J.test")),
            "h\n.test",
            'server certificate for "a\\x1b[2J.test" does not match host name "h\\x0a.test"',
        ),
        (
            certificate(*dns("db.test\0.evil.test"), *dns("db.test")),
            "db.test",
            "SSL certificate's name contains embedded null",
        ),
        (
            certificate(*dns("db.test"), (DNS, b"x\0")),
            "db.test",
            "SSL certificate's name contains embedded null",
        ),
        (cn_only("db.test\0.evil.test"), "db.test", "SSL certificate's name contains embedded null"),
        (
            certificate((IP, b"\x7f\0\0\x01\xff"), *dns("db.test")),
            "db.test",
            "certificate contains IP address with invalid length 5",
        ),
    ],
)
def test_refusal_is_told_in_libpqs_words(shown: x509.Certificate, host: str, reason: str) -> None:
    with pytest.raises(BackendTLSFailed) as caught:
        verify_host_name(shown, host)
    assert caught.value.reason == reason
    assert caught.value.sqlstate == "57P03"


@pytest.mark.parametrize(
    ("shown", "is_by_wildcard"),
    [
        (certificate(*dns("*.db.test")), True),
        (certificate(*dns("x.test", "*.db.test")), True),
        (certificate(*dns("*.db.test", "a.db.test")), False),
        (certificate(*dns("a.db.test")), False),
        (cn_only("a.db.test"), False),
    ],
)
def test_it_is_said_where_a_wildcard_alone_stands_for_the_host(
    shown: x509.Certificate, *, is_by_wildcard: bool
) -> None:
    assert verify_host_name(shown, "a.db.test") is is_by_wildcard


def test_client_is_told_nothing_of_the_names() -> None:
    with pytest.raises(BackendTLSFailed) as caught:
        verify_host_name(cn_only("secret.internal.test"), "h.test")
    assert "secret" not in caught.value.reply


def test_two_alternative_name_extensions_refuse_the_certificate() -> None:
    good = certificate(*dns("db.test"))
    encoding = good.public_bytes(Encoding.DER)
    extensions = tlv(0x30, b"\x06\x03\x55\x1d\x11" + tlv(0x04, tlv(0x30, tlv(DNS, b"db.test"))))
    assert extensions in encoding
    outer = der.sole_element(encoding, der.SEQUENCE)
    tbs, *rest = der.elements(outer.content)
    fields = [field.encoding for field in der.elements(tbs.content)]
    fields[-1] = tlv(0xA3, tlv(0x30, extensions * 2))
    body = tlv(0x30, b"".join(fields)) + b"".join(field.encoding for field in rest)
    doubled = x509.load_der_x509_certificate(tlv(0x30, body))
    with pytest.raises(BackendTLSFailed, match="two subjectAltName"):
        verify_host_name(doubled, "db.test")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "1", "127.1", "0x7f.1", "192.000.002.001", "::1", "::ffff:1.2.3.4"]
)
def test_what_libpq_dials_as_an_address_is_one(host: str) -> None:
    assert is_ip_address(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "localhost",
        "1.2.3.4.5",
        "256.1.1.1",
        "1.2.3.4 x",
        " 1.2.3.4",
        "[::1]",
        "fe80::1%lo",
        "1.2.3.4\0",
        "१",
    ],
)
def test_what_is_a_name_or_nothing_is_no_address(host: str) -> None:
    assert not is_ip_address(host)


_label = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True).filter(
    lambda one: not one.startswith("xn--")
)
_name = st.lists(_label, min_size=2, max_size=4).map(".".join)


@given(_name, _name, st.lists(_name, max_size=2))
def test_only_an_equal_name_or_a_wildcard_for_one_label_matches(
    presented: str, host: str, others: list[str]
) -> None:
    names = (presented, *others)
    assert is_for(certificate(*dns(*names)), host) is (host in names)
    wildcards = certificate(*dns(*(f"*.{name}" for name in names)))
    assert is_for(wildcards, host) is (host.partition(".")[2] in names)


@given(st.binary(max_size=30), st.text(max_size=30))
def test_nothing_but_a_refusal_escapes_whatever_is_presented(presented: bytes, host: str) -> None:
    try:
        shown = certificate((DNS, presented), cns=(b"x",))
    except ValueError:
        return  # the library already refuses it
    if is_for(shown, host):
        assert presented.lower() == host.lower().encode() or presented.startswith(b"*.")
