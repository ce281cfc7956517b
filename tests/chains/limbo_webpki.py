"""x509-limbo: what the CA/Browser Forum demands of certificates of servers on the public web, beside RFC 5280."""

from __future__ import annotations

from typing import Any, Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa

from chains.case import SERVER, Forge, Recipe, Shown
from chains.issuing import (
    ANY_USAGE,
    AUTHORITY_INFORMATION,
    BIT_STRING,
    CODE_SIGNING,
    EMAIL_PROTECTION,
    OCSP_SIGNING,
    OCTET_STRING,
    PRECERTIFICATE,
    TIME_STAMPING,
    address,
    alternative_names,
    authority_key,
    basic_constraints,
    common_name,
    directory,
    dns,
    extended_usage,
    integer,
    key_id,
    key_usage,
    p256,
    sequence,
    tlv,
)
from chains.limbo_profile import authority_as_leaf, root_with_key
from fixtures.subjects import oid

MY_CN: Final = directory(common_name("myCN"))
NO_USAGE: Final = key_usage(critical=True)


def p192() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP192R1())


def rsa_key(bits: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def dsa_key() -> dsa.DSAPrivateKey:
    return dsa.generate_private_key(2048)


def in_full(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The public half with the parameters of P-256 (SEC 2, 2.4.2) in place of their name."""
    prime = 2**256 - 2**224 + 2**192 + 2**96 - 1
    b = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
    x = 0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296
    y = 0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    parameters = sequence(
        integer(1),
        sequence(oid("1.2.840.10045.1.1"), integer(prime)),
        sequence(*(tlv(OCTET_STRING, number.to_bytes(32)) for number in (prime - 3, b))),
        tlv(OCTET_STRING, b"\x04" + x.to_bytes(32) + y.to_bytes(32)),
        integer(order),
        integer(1),
    )
    point = key.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    return sequence(sequence(oid("1.2.840.10045.2.1"), parameters), tlv(BIT_STRING, b"\0" + point))


def explicit_curve(f: Forge) -> Shown:
    leaf, root = p256(), p256()
    return f.direct({"key": leaf, "public": in_full(leaf)}, {"key": root, "public": in_full(root)})


def usages(*others: str) -> Any:
    """The right usage of the role, and others."""
    return lambda f: f.direct({"extended": extended_usage(f.right, *others)})


def named(names: bytes, host: str) -> Any:
    return lambda f: f.direct({"names": alternative_names(names)}, host=host)


def common(text: str, host: str, *names: bytes) -> Any:
    """A common name that is none of the alternative names, or not spelt like it."""
    leaf = {"subject": common_name(text), "names": alternative_names(*names)}
    return lambda f: f.direct(leaf, host=host)


def root_has_usage(f: Forge) -> Shown:
    return f.direct(root={"extended": extended_usage(f.right)})


WEBPKI: Final = {
    "webpki::explicit-curve": Recipe(False, explicit_curve),
    "webpki::malformed-aia": Recipe(
        False, lambda f: f.direct({"more": [(AUTHORITY_INFORMATION, False, b"malformed")]})
    ),
    "webpki::forbidden-p192-root": Recipe(False, lambda f: f.direct(root={"key": p192()})),
    "webpki::forbidden-p192-leaf": Recipe(False, lambda f: f.direct({"key": p192()})),
    "webpki::forbidden-dsa-root": Recipe(False, lambda f: f.direct(root={"key": dsa_key()})),
    "webpki::forbidden-dsa-leaf": Recipe(False, lambda f: f.direct({"key": dsa_key()})),
    "webpki::forbidden-weak-rsa-key-in-root": Recipe(False, lambda f: f.direct(root={"key": rsa_key(1024)})),
    "webpki::forbidden-weak-rsa-in-leaf": Recipe(False, lambda f: f.direct({"key": rsa_key(1024)})),
    "webpki::forbidden-rsa-not-divisable-by-8-in-root": Recipe(
        False, lambda f: f.direct(root={"key": rsa_key(2052)})
    ),
    "webpki::forbidden-rsa-key-not-divisable-by-8-in-leaf": Recipe(
        False, lambda f: f.direct({"key": rsa_key(2052)})
    ),
    "webpki::v1-cert": Recipe(False, lambda f: f.direct({"version": 1})),
    "webpki::ee-basicconstraints-ca": Recipe(False, lambda f: f.direct({"constraints": basic_constraints()})),
    "webpki::ca-as-leaf": Recipe(False, authority_as_leaf(host="ca.example.com")),
    "webpki::aki::root-with-aki-missing-keyidentifier": Recipe(
        False, lambda f: f.direct(root={"issuer_key": authority_key(None)})
    ),
    "webpki::aki::root-with-aki-authoritycertissuer": Recipe(
        False, root_with_key(lambda key: {"issuer_key": authority_key(key, issuer=MY_CN)})
    ),
    "webpki::aki::root-with-aki-authoritycertserialnumber": Recipe(
        False, root_with_key(lambda key: {"issuer_key": authority_key(key, serial=1234)})
    ),
    "webpki::aki::root-with-aki-all-fields": Recipe(
        False, root_with_key(lambda key: {"issuer_key": authority_key(key, issuer=MY_CN, serial=1234)})
    ),
    "webpki::aki::root-with-aki-ski-mismatch": Recipe(
        False, lambda f: f.direct(root={"issuer_key": authority_key(key_id(p256()))})
    ),
    "webpki::eku::ee-anyeku": Recipe(False, usages(ANY_USAGE)),
    "webpki::eku::ee-critical-eku": Recipe(
        False, lambda f: f.direct({"extended": extended_usage(f.right, critical=True)})
    ),
    "webpki::eku::ee-without-eku": Recipe(False, lambda f: f.direct({"extended": None})),
    "webpki::eku::root-has-eku": Recipe(False, root_has_usage),
    "webpki::eku::ee-clientauth-only": Recipe(
        False, lambda f: f.direct({"extended": extended_usage(f.wrong)})
    ),
    "webpki::eku::ee-precertificate-only": Recipe(
        False, lambda f: f.direct({"extended": extended_usage(PRECERTIFICATE)})
    ),
    "webpki::eku::ee-precertificate-with-serverauth": Recipe(False, usages(PRECERTIFICATE)),
    "webpki::eku::ee-serverauth-with-additional": Recipe(
        True, lambda f: f.direct({"extended": extended_usage(f.right, f.wrong)})
    ),
    "webpki::eku::ee-codesigning-with-serverauth": Recipe(False, usages(CODE_SIGNING)),
    "webpki::eku::ee-emailprotection-with-serverauth": Recipe(False, usages(EMAIL_PROTECTION)),
    "webpki::eku::ee-timestamping-with-serverauth": Recipe(False, usages(TIME_STAMPING)),
    "webpki::eku::ee-ocspsigning-with-serverauth": Recipe(False, usages(OCSP_SIGNING)),
    "webpki::ku::ee-rsa-without-any-usages": Recipe(
        False, lambda f: f.direct({"key": rsa_key(2048), "usage": NO_USAGE})
    ),
    "webpki::ku::ee-ecc-without-digitalsignature": Recipe(False, lambda f: f.direct({"usage": NO_USAGE})),
    "webpki::san::exact-dns-san": Recipe(True, named(dns("example.com"), "example.com")),
    "webpki::san::exact-localhost-ip-san": Recipe(True, named(address("127.0.0.1"), "127.0.0.1")),
    "webpki::san::mismatch-domain-san": Recipe(False, named(dns("example.com"), "example2.com"), SERVER),
    "webpki::san::mismatch-subdomain-san": Recipe(
        False, named(dns("abc.example.com"), "def.example.com"), SERVER
    ),
    "webpki::san::mismatch-subdomain-apex-san": Recipe(
        False, named(dns("example.com"), "abc.example.com"), SERVER
    ),
    "webpki::san::mismatch-apex-subdomain-san": Recipe(
        False, named(dns("abc.example.com"), "example.com"), SERVER
    ),
    "webpki::san::public-suffix-wildcard-san": Recipe(False, named(dns("*.com"), "example.com"), SERVER),
    "webpki::san::leftmost-wildcard-san": Recipe(True, named(dns("*.example.com"), "foo.example.com")),
    "webpki::san::wildcard-embedded-leftmost-san": Recipe(
        False, named(dns("ba*.example.com"), "baz.example.com"), SERVER
    ),
    "webpki::san::wildcard-not-in-leftmost-san": Recipe(
        False, named(dns("foo.*.example.com"), "foo.bar.example.com"), SERVER
    ),
    "webpki::san::wildcard-match-across-labels-san": Recipe(
        False, named(dns("*.example.com"), "foo.bar.example.com"), SERVER
    ),
    "webpki::san::wildcard-embedded-ulabel-san": Recipe(
        False, named(dns("xn--*-1b3c148a.example.com"), "xn--bliss-1b3c148a.example.com"), SERVER
    ),
    "webpki::san::unicode-emoji-san": Recipe(
        False,
        named(dns("\N{FACE WITH STUCK-OUT TONGUE AND WINKING EYE}.example.com"), "xn--628h.example.com"),
    ),
    "webpki::san::no-san": Recipe(False, lambda f: f.direct({"names": None}), SERVER),
    "webpki::san::san-critical-with-nonempty-subject": Recipe(
        False,
        lambda f: f.direct(
            {
                "subject": common_name("something-else"),
                "names": alternative_names(dns("example.com"), critical=True),
            }
        ),
    ),
    "webpki::cn::ipv4-hex-mismatch": Recipe(
        False, common("0xC0A80101", "192.168.1.1", address("192.168.1.1"))
    ),
    "webpki::cn::ipv4-leading-zeros-mismatch": Recipe(
        False, common("192.168.001.001", "192.168.1.1", address("192.168.1.1"))
    ),
    "webpki::cn::ipv6-uppercase-mismatch": Recipe(
        False,
        common("2001:DB8::8A2E:370:7334", "2001:db8::8a2e:370:7334", address("2001:db8::8a2e:370:7334")),
    ),
    "webpki::cn::ipv6-uncompressed-mismatch": Recipe(
        False, common("2001:0db8:0000:0000:0000:0000:0000:0001", "2001:db8::1", address("2001:db8::1"))
    ),
    "webpki::cn::ipv6-non-rfc5952-mismatch": Recipe(
        False, common("2001:db8:0:0:1:0:0:1", "2001:db8::1:0:0:1", address("2001:db8::1:0:0:1"))
    ),
    "webpki::cn::punycode-not-in-san": Recipe(
        False, common("xn--nxasmq6b.com", "xn--n3h.com", dns("xn--n3h.com"))
    ),
    "webpki::cn::utf8-vs-punycode-mismatch": Recipe(
        False,
        common(
            "test-\N{CJK UNIFIED IDEOGRAPH-6E2C}.com", "xn--test--wg5h0h.com", dns("xn--test--wg5h0h.com")
        ),
    ),
    "webpki::cn::not-in-san": Recipe(
        False,
        common(
            "notinsan.example.com", "valid.example.com", dns("valid.example.com"), dns("another.example.com")
        ),
    ),
    "webpki::cn::case-mismatch": Recipe(False, common("Example.COM", "example.com", dns("example.com"))),
}
