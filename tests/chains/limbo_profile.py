"""x509-limbo: fields and extensions that RFC 5280's profile demands or forbids, but name constraints."""

from __future__ import annotations

import random
from typing import Any, Final

from chains.case import SERVER, Forge, Recipe, Shown, shown
from chains.issuing import (
    ALTERNATIVE_NAME,
    AUTHORITY_INFORMATION,
    CERT_SIGN,
    DIGITAL_SIGNATURE,
    ECDSA_WITH_SHA384,
    POLICY_CONSTRAINTS,
    alternative_names,
    authority_key,
    basic_constraints,
    dns,
    extended_usage,
    key_id,
    key_usage,
    p256,
    sequence,
    subject_key,
    tlv,
    unknown,
)
from fixtures.subjects import oid

NOBODY: Final = sequence()
"""An empty Name."""

EXAMPLE: Final = dns("example.com")
UNKNOWN_CRITICAL: Final = {"more": [unknown(critical=True)]}
SIGNS_NOTHING: Final = key_usage()
ISSUERS: Final = sequence(sequence(oid("1.3.6.1.5.5.7.48.2"), EXAMPLE))
THREE_WITHOUT_POLICY: Final = (POLICY_CONSTRAINTS, False, sequence(tlv(0x80, b"\x03")))


def cross_signed(f: Forge) -> Shown:
    root = f.intermediate(f.root(), length=0, issuer_key=None)
    return shown(root, f.leaf(root))


def authority_as_leaf(**rest: Any) -> Any:
    def make(f: Forge) -> Shown:
        root = f.root()
        names = alternative_names(dns("ca.example.com"))
        return shown(root, f.intermediate(root, names=names), **rest)

    return make


def root_with_key(extension: Any) -> Any:
    """A root of whose key something is made."""

    def make(f: Forge) -> Shown:
        key = p256()
        return f.direct(root={"key": key, **extension(key_id(key))})

    return make


NO_BASIC_CONSTRAINTS: Final = {"constraints": None}
TWICE: Final = {"names": alternative_names(EXAMPLE), "more": [alternative_names(EXAMPLE)]}
MALFORMED_NAMES: Final = {"names": None, "more": [(ALTERNATIVE_NAME, False, b"example.com")]}
RANDOM: Final = random.Random(1)
LONG_SERIAL: Final = int.from_bytes(b"\x55" + RANDOM.randbytes(21))

PROFILE: Final = {
    "rfc5280::ee-empty-issuer": Recipe(False, lambda f: f.direct({"issuer": NOBODY})),
    "rfc5280::ca-empty-subject": Recipe(False, lambda f: f.direct(root={"subject": NOBODY})),
    "rfc5280::unknown-critical-extension-ee": Recipe(False, lambda f: f.direct(UNKNOWN_CRITICAL)),
    "rfc5280::unknown-critical-extension-root": Recipe(False, lambda f: f.direct(root=UNKNOWN_CRITICAL)),
    "rfc5280::unknown-critical-extension-intermediate": Recipe(False, lambda f: f.below(UNKNOWN_CRITICAL)),
    "rfc5280::intermediate-ca-without-ca-bit": Recipe(
        False, lambda f: f.below({"constraints": basic_constraints(ca=False)})
    ),
    "rfc5280::intermediate-ca-missing-basic-constraints": Recipe(
        False, lambda f: f.below(NO_BASIC_CONSTRAINTS)
    ),
    "rfc5280::root-missing-basic-constraints": Recipe(False, lambda f: f.direct(root=NO_BASIC_CONSTRAINTS)),
    "rfc5280::root-non-critical-basic-constraints": Recipe(
        False, lambda f: f.direct(root={"constraints": basic_constraints(critical=False)})
    ),
    "rfc5280::root-inconsistent-ca-extensions": Recipe(
        False, lambda f: f.direct(root={"usage": SIGNS_NOTHING})
    ),
    "rfc5280::ica-ku-keycertsign": Recipe(False, lambda f: f.below({"length": 0, "usage": SIGNS_NOTHING})),
    "rfc5280::leaf-ku-keycertsign": Recipe(
        False,
        lambda f: f.direct(
            {"constraints": basic_constraints(ca=False), "usage": key_usage(DIGITAL_SIGNATURE, CERT_SIGN)}
        ),
    ),
    "rfc5280::ee-aia": Recipe(True, lambda f: f.direct({"more": [(AUTHORITY_INFORMATION, False, ISSUERS)]})),
    "rfc5280::ee-critical-aia-invalid": Recipe(
        False, lambda f: f.direct({"more": [(AUTHORITY_INFORMATION, True, ISSUERS)]})
    ),
    "rfc5280::duplicate-extensions": Recipe(False, lambda f: f.direct(TWICE)),
    "rfc5280::no-keyusage": Recipe(True, lambda f: f.direct({"usage": None})),
    "rfc5280::no-basicconstraints": Recipe(True, lambda f: f.direct({"constraints": None})),
    "rfc5280::mismatching-signature-algorithm": Recipe(
        False, lambda f: f.below(root={"outer_algorithm": ECDSA_WITH_SHA384})
    ),
    "rfc5280::ca-as-leaf": Recipe(True, authority_as_leaf(host="ca.example.com")),
    "rfc5280::ca-as-leaf-wrong-san": Recipe(
        False, authority_as_leaf(host="some-other-ca.example.com"), SERVER
    ),
    "rfc5280::aki::critical-aki": Recipe(
        False, root_with_key(lambda key: {"issuer_key": authority_key(key, critical=True)})
    ),
    "rfc5280::aki::leaf-missing-aki": Recipe(False, lambda f: f.direct({"issuer_key": None})),
    "rfc5280::aki::intermediate-missing-aki": Recipe(
        False, lambda f: f.below({"length": 0, "issuer_key": None})
    ),
    "rfc5280::aki::self-signed-root-missing-aki": Recipe(True, lambda f: f.direct()),
    "rfc5280::aki::cross-signed-root-missing-aki": Recipe(False, cross_signed),
    "rfc5280::eku::ee-wrong-eku": Recipe(False, lambda f: f.direct({"extended": extended_usage(f.wrong)})),
    "rfc5280::eku::ee-without-eku": Recipe(True, lambda f: f.direct({"extended": None})),
    "rfc5280::eku::ee-eku-empty": Recipe(False, lambda f: f.direct({"extended": extended_usage()})),
    "rfc5280::pc::ica-noncritical-pc": Recipe(False, lambda f: f.below({"more": [THREE_WITHOUT_POLICY]})),
    "rfc5280::san::malformed": Recipe(False, lambda f: f.direct(MALFORMED_NAMES)),
    "rfc5280::san::noncritical-with-empty-subject": Recipe(False, lambda f: f.direct({"subject": NOBODY})),
    "rfc5280::san::underscore-dns": Recipe(
        False,
        lambda f: f.direct(
            {"names": alternative_names(dns("foo_bar.example.com"))}, host="foo_bar.example.com"
        ),
    ),
    "rfc5280::serial::too-long": Recipe(False, lambda f: f.direct({"serial": LONG_SERIAL})),
    "rfc5280::serial::zero": Recipe(False, lambda f: f.direct({"serial": 0})),
    "rfc5280::serial::negative": Recipe(False, lambda f: f.direct({"serial": -4711})),
    "rfc5280::ski::critical-ski": Recipe(
        False, root_with_key(lambda key: {"own_key": subject_key(key, critical=True)})
    ),
    "rfc5280::ski::root-missing-ski": Recipe(False, lambda f: f.direct(root={"own_key": None})),
    "rfc5280::ski::intermediate-missing-ski": Recipe(False, lambda f: f.below({"own_key": None})),
}
