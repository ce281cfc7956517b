"""x509-limbo: name constraints, as RFC 5280 (4.2.1.10) has them and as the CA/Browser Forum does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from chains.case import Forge, Recipe, Shown, shown
from chains.issuing import (
    address,
    alternative_names,
    common_name,
    directory,
    dns,
    email,
    name_constraints,
    network,
    other_name,
)

EXAMPLE: Final = dns("example.com")
NOT_EXAMPLE: Final = dns("not-example.com")
FOO, NOT_FOO = common_name("foo"), common_name("not-foo")
PERMITTED, FORBIDDEN = dns("permitted.example.com"), dns("forbidden.example.com")
BLOCK: Final = network("192.0.2.0/24")

Names = Sequence[bytes]


def limited(
    names: Names,
    permitted: Names | None = None,
    excluded: Names | None = None,
    *,
    host: str = "example.com",
    subject: bytes | None = None,
    critical: bool = True,
) -> Any:
    """A root with name constraints, and a leaf with these names."""
    limits = name_constraints(permitted, excluded, critical=critical)
    leaf = {"names": alternative_names(*names)} | ({} if subject is None else {"subject": subject})
    return lambda f: f.direct(leaf, {"limits": limits}, host=host)


def below(
    names: Names, permitted: Names | None = None, excluded: Names | None = None, host: str = "example.com"
) -> Any:
    """An intermediate with name constraints, and a leaf with these names."""
    middle = {"limits": name_constraints(permitted, excluded), "names": None}
    return lambda f: f.below(middle, {"names": alternative_names(*names)}, host=host)


def in_leaf(*, critical: bool) -> Any:
    limits = name_constraints([EXAMPLE], critical=critical)
    return lambda f: f.direct({"limits": limits})


def self_issued(f: Forge) -> Shown:
    root = f.root(names=alternative_names(NOT_EXAMPLE), limits=name_constraints([EXAMPLE]))
    middle = f.intermediate(root, subject=root.subject, names=alternative_names(NOT_EXAMPLE))
    return shown(root, f.leaf(middle), middle)


def self_issued_leaf(f: Forge) -> Shown:
    root = f.root(limits=name_constraints([EXAMPLE]))
    names = alternative_names(NOT_EXAMPLE)
    middle = f.intermediate(root, names=names)
    leaf = f.leaf(middle, subject=middle.subject, names=names)
    return shown(root, leaf, middle, host="not-example.com")


def forbidden_intermediate(*, by_root: bool) -> Any:
    """An intermediate whose own name is forbidden by one above it, and that issues for one that is not."""
    limits = name_constraints([PERMITTED], [FORBIDDEN])

    def make(f: Forge) -> Shown:
        root = f.root(limits=limits if by_root else None)
        first = f.intermediate(root, "first", limits=None if by_root else limits)
        second = f.intermediate(first, "second", names=alternative_names(FORBIDDEN))
        leaf = f.leaf(second, names=alternative_names(PERMITTED))
        return shown(root, leaf, second, first, host="permitted.example.com")

    return make


def twice_limited(first: Names, second: Names) -> Any:
    def make(f: Forge) -> Shown:
        root = f.root()
        above = f.intermediate(root, "first", limits=name_constraints(first))
        under = f.intermediate(above, "second", limits=name_constraints(second))
        leaf = f.leaf(under, names=alternative_names(dns("foo.example.com")))
        return shown(root, leaf, under, above, host="foo.example.com")

    return make


def another_chain(f: Forge) -> Shown:
    """Of two certificates of one intermediate the one without a forbidden name leads to the root."""
    unknown, root = f.root("unknown", names=None), f.root(names=None)
    limits = name_constraints([PERMITTED], [FORBIDDEN])
    above = f.intermediate(root, "above", limits=limits, names=None)
    one = f.intermediate(unknown, names=alternative_names(FORBIDDEN))
    other = f.intermediate(above, key=one.key, names=None)
    leaf = f.leaf(one, subject=common_name("permitted.example.com"), names=alternative_names(PERMITTED))
    return shown(root, leaf, above, one, other, host="permitted.example.com")


def another_root(f: Forge) -> Shown:
    """Of two trusted roots one forbids the name of the intermediate's certificate by it."""
    one, other = f.root("one", names=None), f.root("other", names=None)
    above = f.intermediate(one, "above", limits=name_constraints(None, [FORBIDDEN]), names=None)
    first = f.intermediate(above, names=alternative_names(FORBIDDEN))
    names = alternative_names(dns("unconstrained-ica.example.com"))
    second = f.intermediate(other, key=first.key, names=names)
    free = "unconstrained.example.com"
    leaf = f.leaf(first, subject=common_name(free), names=alternative_names(dns(free)))
    return shown((one, other), leaf, above, first, second, host=free)


def of_intermediate(permitted: Names | None, excluded: Names | None) -> Any:
    return lambda f: f.below({"limits": name_constraints(permitted, excluded)})


CONSTRAINTS: Final = {
    "rfc5280::nc::permitted-dns-mismatch": Recipe(False, limited([NOT_EXAMPLE], [EXAMPLE])),
    "rfc5280::nc::excluded-dns-match": Recipe(False, below([EXAMPLE], None, [EXAMPLE])),
    "rfc5280::nc::permitted-dns-match": Recipe(True, limited([EXAMPLE], [EXAMPLE])),
    "rfc5280::nc::permitted-dns-match-noncritical": Recipe(
        False, limited([EXAMPLE], [EXAMPLE], critical=False)
    ),
    "rfc5280::nc::permitted-dns-match-more": Recipe(
        True, limited([dns("foo.bar.example.com")], [EXAMPLE], host="foo.bar.example.com")
    ),
    "rfc5280::nc::excluded-dns-match-second": Recipe(
        False,
        limited([EXAMPLE, dns("not-allowed.example.com")], None, [dns("not-allowed.example.com")]),
    ),
    "rfc5280::nc::permitted-ip-mismatch": Recipe(
        False, limited([address("192.0.3.1")], [BLOCK], host="192.0.3.1")
    ),
    "rfc5280::nc::excluded-ipv4-match": Recipe(
        False, limited([address("192.0.2.1")], None, [BLOCK], host="192.0.2.1")
    ),
    "rfc5280::nc::excluded-ipv6-match": Recipe(
        False, limited([address("::1")], None, [network("::1/128")], host="::1")
    ),
    "rfc5280::nc::permitted-ipv4-match": Recipe(
        True, limited([address("192.0.2.1")], [BLOCK], host="192.0.2.1")
    ),
    "rfc5280::nc::permitted-ipv6-match": Recipe(
        True, limited([address("::1")], [network("::1/128")], host="::1")
    ),
    "rfc5280::nc::permitted-dn-mismatch": Recipe(
        False, limited([directory(NOT_FOO)], [directory(FOO)], subject=NOT_FOO)
    ),
    "rfc5280::nc::excluded-dn-match": Recipe(
        False, limited([directory(FOO)], None, [directory(FOO)], subject=FOO)
    ),
    "rfc5280::nc::permitted-dn-match": Recipe(
        True, limited([directory(FOO), EXAMPLE], [directory(FOO)], subject=FOO)
    ),
    "rfc5280::nc::permitted-dn-match-subject-san-mismatch": Recipe(
        False, limited([directory(FOO)], [directory(FOO)], subject=NOT_FOO)
    ),
    "rfc5280::nc::excluded-dn-match-sub-mismatch": Recipe(
        False, limited([directory(NOT_FOO)], None, [directory(FOO)], subject=FOO)
    ),
    "rfc5280::nc::permitted-self-issued": Recipe(True, self_issued),
    "rfc5280::nc::excluded-self-issued-leaf": Recipe(False, self_issued_leaf),
    "rfc5280::nc::excluded-match-permitted-and-excluded": Recipe(
        False, limited([EXAMPLE], [EXAMPLE], [EXAMPLE])
    ),
    "rfc5280::nc::permitted-different-constraint-type": Recipe(True, limited([EXAMPLE], [BLOCK])),
    "rfc5280::nc::excluded-different-constraint-type": Recipe(True, limited([EXAMPLE], None, [BLOCK])),
    "rfc5280::nc::invalid-dnsname-wildcard": Recipe(
        False, limited([dns("foo.example.com")], [dns("*.example.com")], host="foo.example.com")
    ),
    "rfc5280::nc::invalid-dnsname-leading-period": Recipe(
        False, limited([dns("foo.example.com")], [dns(".example.com")], host="foo.example.com")
    ),
    "rfc5280::nc::invalid-ipv4-address": Recipe(
        False, limited([address("127.0.0.1")], [address("127.0.0.1")], host="127.0.0.1")
    ),
    "rfc5280::nc::invalid-ipv6-address": Recipe(
        False, limited([address("::1")], [address("::1")], host="::1")
    ),
    "rfc5280::nc::invalid-email-address": Recipe(
        False, limited([email("example@example.com"), EXAMPLE], [email("invalid@invalid@example.com")])
    ),
    "rfc5280::nc::not-allowed-in-ee-noncritical": Recipe(False, in_leaf(critical=False)),
    "rfc5280::nc::not-allowed-in-ee-critical": Recipe(False, in_leaf(critical=True)),
    "rfc5280::nc::intermediate-with-san-rejected-by-intermediate-nc": Recipe(
        False, forbidden_intermediate(by_root=False)
    ),
    "rfc5280::nc::intermediate-with-san-rejected-by-root-nc": Recipe(
        False, forbidden_intermediate(by_root=True)
    ),
    "rfc5280::nc::restrictive-permits-in-intermediates-narrows": Recipe(
        False, twice_limited([dns("foo.example.com"), dns("bar.example.com")], [dns("bar.example.com")])
    ),
    "rfc5280::nc::restrictive-permits-in-intermediates-widens": Recipe(
        False, twice_limited([dns("bar.example.com")], [dns("foo.example.com"), dns("bar.example.com")])
    ),
    "rfc5280::nc::nc-permits-invalid-dns-san": Recipe(
        False, below([dns(".example.com"), dns("foo.example.com")], [EXAMPLE], host="foo.example.com")
    ),
    "rfc5280::nc::nc-permits-invalid-ip-san": Recipe(
        False, below([BLOCK, address("192.0.2.1")], [BLOCK], host="192.0.2.1")
    ),
    "rfc5280::nc::nc-permits-invalid-email-san": Recipe(
        False,
        below(
            [email("good@example.com"), email("invalid@address@example.com"), EXAMPLE], [email("example.com")]
        ),
    ),
    "rfc5280::nc::nc-forbids-alternate-chain-ica": Recipe(True, another_chain),
    "rfc5280::nc::nc-forbids-same-chain-ica": Recipe(True, another_root),
    "rfc5280::nc::nc-permits-email-exact": Recipe(
        True, below([email("foo@example.com"), EXAMPLE], [email("foo@example.com")])
    ),
    "rfc5280::nc::nc-permits-email-domain": Recipe(
        True, below([email("foo@example.com"), EXAMPLE], [email("example.com")])
    ),
    "rfc5280::nc::nc-forbids-othername": Recipe(
        False, below([EXAMPLE, other_name()], [EXAMPLE], [other_name()])
    ),
    "rfc5280::nc::nc-forbids-othername-noop": Recipe(True, below([EXAMPLE], [EXAMPLE], [other_name()])),
    "rfc5280::nc::permitted-empty-sequence-excluded-nonempty": Recipe(
        False, of_intermediate([], [dns("other.example")])
    ),
    "rfc5280::nc::permitted-nonempty-excluded-empty-sequence": Recipe(False, of_intermediate([EXAMPLE], [])),
    "webpki::nc::permitted-dns-match-noncritical": Recipe(
        True, limited([EXAMPLE], [EXAMPLE], critical=False)
    ),
    "webpki::nc::intermediate-permitted-excluded-subtrees-both-null": Recipe(
        False, of_intermediate(None, None)
    ),
    "webpki::nc::intermediate-permitted-excluded-subtrees-both-empty-sequences": Recipe(
        False, of_intermediate([], [])
    ),
}
"""A DNS name stands beside the names of the suite where these name no host: else a server's certificate would be
refused for that, whatever became of the constraint."""
