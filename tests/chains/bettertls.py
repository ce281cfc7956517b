"""BetterTLS: which path is found among several, and what name constraints forbid."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from chains.case import Case, Forge, Recipe, Role, Shown, shown
from chains.issuing import (
    EMAIL_PROTECTION,
    EXPIRED,
    Extension,
    Node,
    address,
    alternative_names,
    basic_constraints,
    dns,
    extended_usage,
    name_constraints,
    network,
    p256,
)
from fixtures.subjects import CN, ORG, UTF8, name

# --- Paths ----------------------------------------------------------------------------------------------

Edge = tuple[str, str]
"""A certificate: by whom, and of whom."""

LINEAR: Final = (("ICA", "EE"), ("Trust Anchor", "ICA"))
TWO_ROOTS: Final = (("ICA", "EE"), ("Root1", "ICA"), ("Root2", "ICA"))


def _edges(text: str) -> tuple[Edge, ...]:
    """`A>B` is a certificate of B by A, `A=B` one by each of the two of the other."""
    found: list[Edge] = []
    for word in text.split():
        one, other = word.replace("=", ">").replace("_", " ").split(">")
        found += [(one, other), (other, one)] if "=" in word else [(one, other)]
    return tuple(found)


FIGURE_SEVEN: Final = _edges("B>EE C>B A>B C>A A>C Trust_Anchor>C Trust_Anchor>A")
BRIDGE: Final = _edges(
    "F>H F=G H=I G>I TA_W>F TA_W>G J>K N>EE L>N L>M TA_X>J TA_X>L B>E B>D A>B C>B A=C TA_Y>A TA_Y>C "
    "R>S O>R O>Q P>S TA_Z>O TA_Z>P TA_W=Bridge_CA TA_X=Bridge_CA TA_Y=Bridge_CA TA_Z=Bridge_CA"
)
"""The figures of RFC 4158, 2.3 and 2.4."""

FLAWS: Final = (
    "EXPIRED",
    "NAME_CONSTRAINTS",
    "BAD_EKU",
    "MISSING_BASIC_CONSTRAINTS",
    "NOT_A_CA",
    "DEPRECATED_CRYPTO",
)
"""What is wrong with the certificates that must not be on the path, in the suite's order."""


@dataclass(frozen=True, slots=True)
class Path:
    """Whether there is a way from the root that is trusted to whoever is judged.

    Args:
        graph: the certificates there are.
        root: who is trusted.
        leaf: who is judged.
        flawed: which certificates are not in order.
    """

    graph: tuple[Edge, ...]
    root: str = "Trust Anchor"
    leaf: str = "EE"
    flawed: tuple[Edge, ...] = ()

    @property
    def is_there(self) -> bool:
        reached, ahead = {self.root}, [self.root]
        while ahead:
            at = ahead.pop()
            further = {to for by, to in self.graph if by == at and (by, to) not in self.flawed} - reached
            reached |= further
            ahead += further
        return self.leaf in reached


def _flaw(flaw: str) -> dict[str, Any]:
    return {
        "EXPIRED": {"life": EXPIRED},
        "NAME_CONSTRAINTS": {"limits": name_constraints([dns("bad.example.com")])},
        "BAD_EKU": {"extended": extended_usage(EMAIL_PROTECTION)},
        "MISSING_BASIC_CONSTRAINTS": {"constraints": None},
        "NOT_A_CA": {"constraints": basic_constraints(ca=False)},
        "DEPRECATED_CRYPTO": {"sha1": True},
    }[flaw]


def _make(path: Path, flaw: str | None) -> Any:
    def make(f: Forge) -> Shown:
        owners = {who: f.root(who) for who in dict.fromkeys(itertools.chain(*path.graph))}
        leaf, others = None, []
        for edge in path.graph:
            by, of = owners[edge[0]], owners[edge[1]]
            changes = _flaw(flaw) if flaw is not None and edge in path.flawed else {}
            if edge[1] == path.leaf:
                names = alternative_names(dns("localhost"))
                leaf = f.leaf(by, subject=of.subject, key=of.key, names=names, **changes)
            else:
                others.append(f.intermediate(by, subject=of.subject, key=of.key, **changes))
        assert leaf is not None
        return shown(owners[path.root], leaf, *others, host="localhost")

    return make


EXPLICIT: Final = (
    Path(LINEAR),
    Path(LINEAR, flawed=(("Trust Anchor", "ICA"),)),
    Path(LINEAR, "ICA", flawed=(("Trust Anchor", "ICA"),)),
    Path(TWO_ROOTS, "Root1"),
    Path(TWO_ROOTS, "Root2"),
    Path(TWO_ROOTS, "Root1", flawed=(("Root2", "ICA"),)),
    Path(TWO_ROOTS, "Root2", flawed=(("Root1", "ICA"),)),
    Path(TWO_ROOTS, "Root1", flawed=(("Root1", "ICA"),)),
    Path(TWO_ROOTS, "Root2", flawed=(("Root2", "ICA"),)),
    Path(FIGURE_SEVEN),
    Path(FIGURE_SEVEN, flawed=(("Trust Anchor", "C"), ("A", "B"))),
    Path(FIGURE_SEVEN, flawed=(("Trust Anchor", "A"), ("C", "B"))),
    Path(BRIDGE, "TA Z", "D"),
    Path(BRIDGE, "TA Z"),
    Path(BRIDGE, "TA Z", flawed=(("TA X", "Bridge CA"),)),
    Path(BRIDGE, "TA Z", flawed=(("Bridge CA", "TA X"),)),
    Path(BRIDGE, "TA Z", flawed=(("TA Z", "Bridge CA"),)),
)


def _numbered() -> Iterator[tuple[Path, str | None]]:
    """The paths in the suite's order: three that show what a verifier can do, one a flaw, and the others."""
    yield Path(LINEAR), None
    yield Path(TWO_ROOTS, "Root1"), None
    yield Path(TWO_ROOTS, "Root2"), None
    yield from ((EXPLICIT[1], flaw) for flaw in FLAWS)
    for path in EXPLICIT:
        yield from ((path, flaw) for flaw in (FLAWS if path.flawed else (None,)))


PATHS: Final = {
    f"bettertls::pathbuilding::tc{number}": Recipe(path.is_there, _make(path, flaw))
    for number, (path, flaw) in enumerate(_numbered())
}

# --- Name constraints -----------------------------------------------------------------------------------

Choice = Literal["none", "good", "bad"]
CHOICES: Final[tuple[Choice, ...]] = ("none", "good", "bad")
Kind = Literal["dns", "ip"]

VALUES: Final[dict[Kind, dict[Choice, str]]] = {
    "dns": {"good": "test.localhost", "bad": "bad.example.com"},
    "ip": {"good": "127.0.0.1", "bad": "1.1.1.1"},
}
_ENCODED: Final = {"dns": dns, "ip": address}
_PERMITTED: Final[dict[Kind, dict[Choice, bytes]]] = {
    "dns": {"good": dns("localhost"), "bad": dns("example.com")},
    "ip": {"good": network("127.0.0.0/24"), "bad": network("1.1.1.0/24")},
}
_EXCLUDED: Final[dict[Kind, dict[Choice, bytes]]] = {
    "dns": {"good": dns("localhost"), "bad": dns("bad.example.com")},
    "ip": _PERMITTED["ip"],
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a CA permits and excludes: the names that are looked for, others, or it does not say."""

    permitted_dns: Choice = "none"
    permitted_ip: Choice = "none"
    excluded_dns: Choice = "none"
    excluded_ip: Choice = "none"

    def forbid(self, kind: Kind, shown: Choice) -> bool:
        """Whether a name of a kind is outside of what is permitted, or inside of what is excluded."""
        permitted, excluded = (
            (self.permitted_dns, self.excluded_dns)
            if kind == "dns"
            else (self.permitted_ip, self.excluded_ip)
        )
        return shown != "none" and (permitted not in ("none", shown) or excluded == shown)

    def extension(self) -> Extension | None:
        permitted = _some(_PERMITTED, self.permitted_dns, self.permitted_ip)
        excluded = _some(_EXCLUDED, self.excluded_dns, self.excluded_ip)
        return name_constraints(permitted or None, excluded or None) if permitted or excluded else None


def _some(table: dict[Kind, dict[Choice, bytes]], of_dns: Choice, of_ip: Choice) -> list[bytes]:
    chosen: Sequence[tuple[Kind, Choice]] = (("dns", of_dns), ("ip", of_ip))
    return [table[kind][choice] for kind, choice in chosen if choice != "none"]


@dataclass(frozen=True, slots=True)
class Names:
    """What a leaf calls itself.

    Args:
        common_kind: what its commonName looks like.
        common, of_dns, of_ip: its commonName and its alternative names.
    """

    common_kind: Kind = "dns"
    common: Choice = "none"
    of_dns: Choice = "none"
    of_ip: Choice = "none"

    @property
    def normal(self) -> Names:
        """Without what does not show."""
        return Names("dns", "none", self.of_dns, self.of_ip) if self.common == "none" else self


@dataclass(frozen=True, slots=True)
class Constrained:
    """A case of name constraints.

    Args:
        id: what the suite calls it.
        host_kind: what the host is that is asked for.
        names: what the leaf says.
        limits: what its CA says.
    """

    id: str
    host_kind: Kind
    names: Names
    limits: Limits

    @property
    def host(self) -> str:
        return VALUES[self.host_kind]["good"]

    @property
    def violates(self) -> bool:
        """Whether an alternative name is forbidden."""
        names = self.names
        return self.limits.forbid("dns", names.of_dns) or self.limits.forbid("ip", names.of_ip)

    @property
    def common_name_violates(self) -> bool:
        """Whether the commonName would be, if it were one. The suite leaves to the verifier what follows."""
        return self.limits.forbid(self.names.common_kind, self.names.common)

    @property
    def matches(self) -> bool:
        """Whether an alternative name is the host."""
        return (self.names.of_dns if self.host_kind == "dns" else self.names.of_ip) == "good"

    @property
    def common_name_matches(self) -> bool:
        """Whether the commonName is. The suite would have it count for nothing, and leaves that to the verifier."""
        return self.names.common_kind == self.host_kind and self.names.common == "good"


SANITY: Final = (
    Constrained("bettertls::nameconstraints::tc0", "dns", Names("dns", "good", "good"), Limits()),
    Constrained("bettertls::nameconstraints::tc1", "dns", Names("dns", "good", "good"), Limits("good")),
    Constrained("bettertls::nameconstraints::tc2", "dns", Names("dns", "none", "good"), Limits()),
    Constrained("bettertls::nameconstraints::tc3", "dns", Names("dns", "none", "bad"), Limits()),
    Constrained("bettertls::nameconstraints::tc4", "ip", Names("ip", "none", "none", "good"), Limits()),
    Constrained("bettertls::nameconstraints::tc5", "ip", Names("ip", "none", "none", "bad"), Limits()),
)


def constrained() -> Iterator[Constrained]:
    """All cases, in the suite's order: the last choice turns fastest."""
    yield from SANITY
    kinds: tuple[Kind, ...] = ("dns", "ip")
    every = itertools.product(kinds, kinds, *[CHOICES] * 7)
    for number, (host, kind, common, of_dns, of_ip, *limits) in enumerate(every, len(SANITY)):
        names, id_ = Names(kind, common, of_dns, of_ip), f"bettertls::nameconstraints::tc{number}"
        yield Constrained(id_, host, names, Limits(*limits))


class ConstrainedChains:
    """The chains of the cases, of which many have one in common.

    Args:
        role: whose certificate the leaves are.
    """

    def __init__(self, role: Role) -> None:
        forge = Forge("bettertls::nameconstraints", role)
        self._forge, self._key = forge, p256()
        self.root = forge.root()
        self._above = forge.intermediate(self.root, "local root")
        self._authorities: dict[Limits, Node] = {}

    def case(self, names: Names, limits: Limits) -> Case:
        """A chain as a case, of which it is not said what becomes of it."""
        if limits not in self._authorities:
            self._authorities[limits] = self._forge.intermediate(
                self._above, f"CA {len(self._authorities)}", limits=limits.extension()
            )
        authority = self._authorities[limits]
        shown_names = [
            _ENCODED[kind](VALUES[kind][choice])
            for kind, choice in (("dns", names.of_dns), ("ip", names.of_ip))
            if choice != "none"
        ]
        rdns = [[(ORG, UTF8, b"leaf")]]
        if names.common != "none":
            rdns.append([(CN, UTF8, VALUES[names.common_kind][names.common].encode())])
        leaf = self._forge.leaf(
            authority,
            key=self._key,
            subject=name(*rdns),
            names=alternative_names(*shown_names) if shown_names else None,
        )
        return Case(f"{names} under {limits}", True, (self.root,), (leaf, authority, self._above))
