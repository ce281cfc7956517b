"""Where our verdict is not the suite's, by the names of the cases, and why.

What PostgreSQL 17 and libpq say of the same files is tried beside it: it is the same wherever `STRICTER` does not say
otherwise. BetterTLS's name constraints are too many to be listed: test_bettertls.py has the rule by which 216 of them
are refused that the suite would let pass (a commonName that looks like an address is held against DNS names).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from chains.case import BOTH, Role

CLIENT_ALONE: Final[tuple[Role, ...]] = ("client",)
SERVER_ALONE: Final[tuple[Role, ...]] = ("server",)


@dataclass(frozen=True, slots=True)
class Difference:
    """Cases with one reason.

    Args:
        why: the reason.
        cases: what the suite calls them.
        accepted: whether we accept what the suite refuses; the other way round if not.
        roles: whose certificates it is about.
    """

    why: str
    cases: tuple[str, ...]
    accepted: bool = True
    roles: tuple[Role, ...] = BOTH


DIFFERENCES: Final = (
    Difference(
        "RFC 5280 asks it of whoever issues. OpenSSL asks it of nobody without X509_V_FLAG_X509_STRICT, which "
        "neither PostgreSQL nor libpq sets; a CA that leaves it out can be believed for what it did sign",
        (
            "rfc5280::aki::intermediate-missing-aki",
            "rfc5280::aki::leaf-missing-aki",
            "rfc5280::ca-empty-subject",
            "rfc5280::leaf-ku-keycertsign",
            "rfc5280::nc::not-allowed-in-ee-critical",
            "rfc5280::nc::not-allowed-in-ee-noncritical",
            "rfc5280::nc::permitted-dns-match-noncritical",
            "rfc5280::pc::ica-noncritical-pc",
            "rfc5280::root-missing-basic-constraints",
            "rfc5280::root-non-critical-basic-constraints",
            "rfc5280::san::noncritical-with-empty-subject",
            "rfc5280::serial::negative",
            "rfc5280::serial::too-long",
            "rfc5280::serial::zero",
            "rfc5280::ski::intermediate-missing-ski",
            "rfc5280::ski::root-missing-ski",
            "rfc9881::ml-dsa-44-key-agreement",
            "rfc9881::ml-dsa-44-key-encipherment",
        ),
    ),
    Difference(
        "the signature of a root is not verified: it is believed for standing in the file",
        ("rfc5280::mismatching-signature-algorithm",),
    ),
    Difference(
        "the name is odd, but below what is permitted: nothing that is forbidden comes by it. A dot in front is read "
        "as all that is below; what stands behind the last @ is the host of a mail address",
        (
            "rfc5280::nc::invalid-dnsname-leading-period",
            "rfc5280::nc::nc-permits-invalid-dns-san",
            "rfc5280::nc::nc-permits-invalid-email-san",
            "rfc5280::san::underscore-dns",
        ),
    ),
    Difference(
        "an empty list of name constraints says nothing, and what the other list says holds",
        (
            "rfc5280::nc::permitted-empty-sequence-excluded-nonempty",
            "rfc5280::nc::permitted-nonempty-excluded-empty-sequence",
            "webpki::nc::intermediate-permitted-excluded-subtrees-both-empty-sequences",
            "webpki::nc::intermediate-permitted-excluded-subtrees-both-null",
        ),
    ),
    Difference(
        "the suite wants it refused for the work that it is. OpenSSL draws the line at 2^20 comparisons, which take "
        "some milliseconds",
        ("pathological::nc-dos-1",),
    ),
    Difference(
        "the CA/Browser Forum asks it of CAs of the public web. CAs of databases are not theirs, and PostgreSQL and "
        "libpq ask for none of it",
        (
            "webpki::aki::root-with-aki-missing-keyidentifier",
            "webpki::cn::case-mismatch",
            "webpki::cn::ipv4-hex-mismatch",
            "webpki::cn::ipv4-leading-zeros-mismatch",
            "webpki::cn::ipv6-non-rfc5952-mismatch",
            "webpki::cn::ipv6-uncompressed-mismatch",
            "webpki::cn::ipv6-uppercase-mismatch",
            "webpki::cn::not-in-san",
            "webpki::cn::punycode-not-in-san",
            "webpki::cn::utf8-vs-punycode-mismatch",
            "webpki::crl::crl-duplicate-revoked-serial",
            "webpki::ee-basicconstraints-ca",
            "webpki::eku::ee-anyeku",
            "webpki::eku::ee-codesigning-with-serverauth",
            "webpki::eku::ee-critical-eku",
            "webpki::eku::ee-emailprotection-with-serverauth",
            "webpki::eku::ee-ocspsigning-with-serverauth",
            "webpki::eku::ee-precertificate-with-serverauth",
            "webpki::eku::ee-timestamping-with-serverauth",
            "webpki::eku::ee-without-eku",
            "webpki::eku::root-has-eku",
            "webpki::forbidden-dsa-root",
            "webpki::forbidden-rsa-key-not-divisable-by-8-in-leaf",
            "webpki::forbidden-rsa-not-divisable-by-8-in-root",
            "webpki::malformed-aia",
            "webpki::san::san-critical-with-nonempty-subject",
            "webpki::v1-cert",
        ),
    ),
    Difference(
        "the commonName counts where there are no alternative names at all, as with libpq",
        ("webpki::san::no-san",),
        roles=SERVER_ALONE,
    ),
    Difference(
        "nobody looks for a host in a client's certificate, and a name with `*` in it is no user",
        ("cve::cve-2025-61727", "webpki::san::unicode-emoji-san"),
        roles=CLIENT_ALONE,
    ),
    Difference(
        "a list without a number is one that OpenSSL reads, and whoever is on it is refused",
        ("crl::crlnumber-missing",),
    ),
    Difference(
        "the suite ignores a list that is not in order. Here the file is not loaded, or the list is believed: nobody "
        "whom it names is let in",
        (
            "crl::external::crl-invalid-version",
            "crl::external::crl-missing-next-update",
            "crl::external::crl-update-generalizedtime-2025",
        ),
        accepted=False,
    ),
    Difference(
        "every CA of a chain needs a list that covers its own certificate, too; one for a part of the certificates "
        "does not cover the root's",
        ("crl::idp::idp-cdp-scope-match",),
        accepted=False,
    ),
    Difference(
        "a chain has to end in a root; the file has none, and is refused for that",
        ("rfc5280::root-and-intermediate-swapped",),
        accepted=False,
    ),
    Difference(
        "its keyUsage allows no signature, and whoever shows a certificate in a handshake has to sign with it",
        ("pathlen::validation-ignores-pathlen-in-leaf", "rfc5280::ca-as-leaf"),
        accepted=False,
    ),
    Difference(
        "OpenSSL follows one certificate of each issuer, of several the first that has not expired, and tries no "
        "other when the chain is refused",
        (
            "rfc5280::nc::nc-forbids-alternate-chain-ica",
            "rfc5280::nc::nc-forbids-same-chain-ica",
            *(
                f"bettertls::pathbuilding::tc{number}"
                for number in (2, 23, *range(31, 36), *range(49, 63), *range(64, 69))
            ),
        ),
        accepted=False,
    ),
)

STRICTER: Final[dict[Role, dict[str, str]]] = {
    "client": {},
    "server": {
        "cve::cve-2025-61727": "a wildcard does not stand for a host that the CA may not certify",
        "webpki::san::public-suffix-wildcard-san": "a wildcard has two labels behind it",
    },
}
"""What PostgreSQL 17 accepts of clients, or libpq of servers, and we do not."""
