"""x509-limbo: revocation lists."""

from __future__ import annotations

from typing import Any, Final

from chains.case import Forge, Recipe, Shown, shown
from chains.issuing import (
    CERT_SIGN,
    CRL_NUMBER,
    CRL_SIGN,
    DAY,
    DISTRIBUTION_POINTS,
    ISSUING_POINT,
    NOW,
    Extension,
    dns,
    integer,
    key_usage,
    moment,
    name,
    p256,
    revocation_list,
    sequence,
    tlv,
    unknown,
    uri,
)
from fixtures.subjects import CN, UTF8

SOMEBODY: Final = 0x1234_5678_9ABC_DEF0
"""A serial number that no certificate here has."""

PART: Final = uri("http://example.com/partition.crl")
SIGNS_BOTH: Final = key_usage(CERT_SIGN, CRL_SIGN)
TRUE: Final = b"\xff"


def listed(
    *serials: int, leaf: dict[str, Any] | None = None, root: dict[str, Any] | None = None, **changes: Any
) -> Any:
    """A root with a list, on which there is somebody else."""

    def make(f: Forge) -> Shown:
        above = f.root(**root or {})
        crl = revocation_list(above, serials, **changes)
        return shown(above, f.leaf(above, **leaf or {}), crls=(crl,))

    return make


def revoked(*, leaf: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A root with a list, on which the leaf is."""

    def make(f: Forge) -> Shown:
        above = f.root()
        under = f.leaf(above, **leaf or {})
        return shown(above, under, crls=(revocation_list(above, [under.serial], **changes),))

    return make


def other_issuer(f: Forge) -> Shown:
    one, other = f.root("one"), f.root("other")
    leaf = f.leaf(one)
    return shown((one, other), leaf, crls=(revocation_list(one), revocation_list(other, [leaf.serial])))


def other_signer(f: Forge) -> Shown:
    one, other = f.root("one"), f.root("other")
    return shown((one, other), f.leaf(one), crls=(revocation_list(one, [SOMEBODY], signer=other.key),))


def of_users_for_authority(f: Forge) -> Shown:
    root = f.root()
    middle = f.intermediate(root, usage=SIGNS_BOTH)
    crls = revocation_list(root, extensions=[scope(users=True)]), revocation_list(middle)
    return shown(root, f.leaf(middle), middle, crls=crls)


def points(*names: bytes) -> dict[str, Any]:
    """cRLDistributionPoints with one point of these names."""
    value = sequence(sequence(tlv(0xA0, tlv(0xA0, b"".join(names)))))
    return {"more": [(DISTRIBUTION_POINTS, False, value)]}


def scope(
    *names: bytes,
    relative: bytes | None = None,
    users: bool = False,
    authorities: bool = False,
    reasons: bytes | None = None,
    indirect: bool = False,
    attributes: bool = False,
) -> Extension:
    """issuingDistributionPoint (RFC 5280 5.2.5)."""
    point = tlv(0xA0, b"".join(names)) if names else b"" if relative is None else tlv(0xA1, relative)
    parts = [
        tlv(0xA0, point) if point else b"",
        tlv(0x81, TRUE) if users else b"",
        tlv(0x82, TRUE) if authorities else b"",
        b"" if reasons is None else tlv(0x83, reasons),
        tlv(0x84, TRUE) if indirect else b"",
        tlv(0x85, TRUE) if attributes else b"",
    ]
    return ISSUING_POINT, True, sequence(*parts)


def scoped(extension: Extension, *names: bytes) -> Any:
    """A list for a part of the certificates, and a leaf that says in which list it would be."""
    return listed(leaf=points(*names) if names else None, extensions=[extension])


RELATIVE: Final = name([(CN, UTF8, b"partition")])[4:]
"""The attribute of a Name alone, without its sequence and its set."""

KEY_COMPROMISE: Final = b"\x06\x40"
YEAR: Final = moment(NOW - 365 * DAY)

CRLS: Final = {
    "crl::revoked-certificate-with-crl": Recipe(False, revoked()),
    "crl::certificate-not-on-crl": Recipe(True, listed(SOMEBODY, SOMEBODY + 1)),
    "crl::certificate-serial-on-crl-different-issuer": Recipe(True, other_issuer),
    "crl::crlnumber-missing": Recipe(False, listed(SOMEBODY, number=None)),
    "crl::crlnumber-critical": Recipe(
        False, listed(SOMEBODY, number=None, extensions=[(CRL_NUMBER, True, integer(12345))])
    ),
    "crl::issuer-missing-crlsign": Recipe(False, listed(SOMEBODY, root={"usage": key_usage(CERT_SIGN)})),
    "crl::issuer-no-keyusage-extension": Recipe(True, listed(SOMEBODY, root={"usage": None})),
    "crl::issuer-valid-crlsign-and-keycertsign": Recipe(True, listed(SOMEBODY, root={"usage": SIGNS_BOTH})),
    "crl::structure::crl-invalid-signature": Recipe(False, listed(SOMEBODY, signer=p256())),
    "crl::structure::crl-wrong-signing-key": Recipe(False, other_signer),
    "crl::structure::crl-empty": Recipe(True, listed()),
    "crl::structure::crl-very-large": Recipe(True, listed(*range(SOMEBODY, SOMEBODY + 10_000))),
    "crl::structure::crl-unknown-critical-extension": Recipe(
        False, listed(SOMEBODY, extensions=[unknown(critical=True)])
    ),
    "crl::structure::crl-unknown-noncritical-extension": Recipe(
        True, listed(SOMEBODY, extensions=[unknown(critical=False)])
    ),
    "webpki::crl::crl-duplicate-revoked-serial": Recipe(False, listed(SOMEBODY, SOMEBODY)),
    "crl::temporal::this-update-in-future": Recipe(False, listed(since=moment(NOW + DAY))),
    "crl::temporal::next-update-in-past": Recipe(False, listed(since=YEAR, until=moment(NOW - 30 * DAY))),
    "crl::temporal::revocation-date-in-future": Recipe(False, revoked(revoked_at=DAY)),
    "crl::temporal::revocation-date-before-not-before": Recipe(
        False, revoked(leaf={"life": (-30 * DAY, 30 * DAY)}, revoked_at=-60 * DAY)
    ),
    "crl::temporal::crl-validity-no-overlap": Recipe(
        False, listed(leaf={"life": (-30 * DAY, 30 * DAY)}, since=YEAR, until=moment(NOW - 180 * DAY))
    ),
    "crl::idp::idp-cdp-scope-mismatch": Recipe(
        False, scoped(scope(uri("http://example.com/other.crl")), uri("http://example.com/cdp.crl"))
    ),
    "crl::idp::idp-cdp-scope-match": Recipe(True, scoped(scope(PART), PART)),
    "crl::idp::idp-only-contains-user-certs-ca-target": Recipe(False, of_users_for_authority),
    "crl::idp::idp-only-contains-ca-certs-ee-target": Recipe(False, scoped(scope(authorities=True))),
    "crl::idp::idp-present-certificate-missing-cdp": Recipe(False, scoped(scope(PART))),
    "crl::idp::idp-present-certificate-cdp-non-uri-generalname": Recipe(
        False, scoped(scope(PART), PART, dns("example.com"))
    ),
    "crl::idp::idp-only-contains-attribute-certs": Recipe(False, scoped(scope(attributes=True))),
    "crl::cabf::idp-name-relative-to-crl-issuer": Recipe(False, scoped(scope(relative=RELATIVE))),
    "crl::cabf::idp-fullname-non-uri-generalname": Recipe(
        False, scoped(scope(PART, dns("example.com")), PART)
    ),
    "crl::cabf::idp-indirect-crl": Recipe(False, scoped(scope(PART, indirect=True), PART)),
    "crl::cabf::idp-only-some-reasons-no-complete-crl": Recipe(
        False, scoped(scope(PART, reasons=KEY_COMPROMISE), PART)
    ),
    "crl::cabf::idp-uri-not-byte-identical": Recipe(
        False,
        scoped(scope(uri("http://example.com/crls/shard.crl")), uri("http://example.com/crls/%73hard.crl")),
    ),
    "crl::external::crl-invalid-version": Recipe(True, revoked(version=3)),
    "crl::external::crl-update-generalizedtime-2025": Recipe(
        True,
        revoked(since=moment(NOW - DAY, general=True), until=moment(NOW + 30 * DAY, general=True)),
    ),
    "crl::external::crl-missing-next-update": Recipe(True, revoked(until=None)),
}
