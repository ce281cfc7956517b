"""x509-limbo: path lengths, validity, paths among several, and what once was a CVE."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import mldsa

from chains.case import Forge, Recipe, Shown, shown
from chains.issuing import (
    DAY,
    DIGITAL_SIGNATURE,
    EXPIRED,
    KEY_AGREEMENT,
    KEY_ENCIPHERMENT,
    NOW,
    Spoilt,
    alternative_names,
    authority_key,
    dns,
    key_usage,
    name_constraints,
    sequence,
)

MONTH: Final = {"life": (-10 * DAY, 20 * DAY)}
FIRST, LAST = NOW - 10 * DAY, NOW + 20 * DAY


def path(*lengths: int | None) -> Any:
    """A leaf below CAs with these pathLenConstraints."""

    def make(f: Forge) -> Shown:
        root, sent = f.root(), []
        for number, length in enumerate(lengths):
            sent.insert(0, f.intermediate(sent[0] if sent else root, f"intermediate {number}", length=length))
        return shown(root, f.leaf(sent[0]), *sent)

    return make


def authority_as_leaf(f: Forge) -> Shown:
    root = f.root()
    above = f.intermediate(root, length=0)
    return shown(root, f.intermediate(above, "the last", length=0, names=_NAMES), above)


def self_issued(f: Forge) -> Shown:
    root = f.root()
    first = f.intermediate(root, length=1)
    second = f.intermediate(first, length=1, subject=first.subject)
    third = f.intermediate(second, "another", length=0)
    return shown(root, f.leaf(third), third, second, first)


def untrusted_root(f: Forge) -> Shown:
    root = f.root()
    middle = f.intermediate(root, length=0)
    return shown(f.root("unrelated"), f.leaf(middle), root, middle)


def swapped(f: Forge) -> Shown:
    root = f.root()
    middle = f.intermediate(root)
    return shown(middle, f.leaf(middle), root)


def two_paths(f: Forge) -> Shown:
    root, other = f.root(), f.root("the other")
    cross = f.intermediate(other, length=1, subject=root.subject, key=root.key, life=EXPIRED)
    return shown((root, other), f.leaf(root), cross)


def cycle(*texts: str) -> Any:
    """Two that have issued each other's certificates, and nobody else theirs."""

    def make(f: Forge) -> Shown:
        one, other = (f.root(text) for text in texts)
        there = f.intermediate(other, subject=one.subject, key=one.key)
        back = f.intermediate(one, subject=other.subject, key=other.key)
        return shown(f.root(), f.leaf(there), there, back)

    return make


def crossed(f: Forge) -> Shown:
    """Three CAs that have all signed each other, of which one is trusted."""
    roots = {text: f.root(text) for text in "ABC"}
    below = {text: f.intermediate(root, f"{text}1") for text, root in roots.items()}
    cross = [
        f.intermediate(by, subject=of.subject, key=of.key)
        for of in roots.values()
        for by in roots.values()
        if by is not of
    ]
    host = "cve-2024-0567.example.com"
    leaf = f.leaf(below["A"], subject=sequence(), names=alternative_names(dns(host), critical=True))
    return shown(roots["A"], leaf, *below.values(), *cross, host=host)


def wildcard_below(host: str, *, permitted: str, excluded: str | None = None) -> Any:
    """A wildcard stands for a name that its CA may not certify."""
    limits = name_constraints([dns(permitted)], None if excluded is None else [dns(excluded)])
    names = alternative_names(dns("*.example.com"))
    return lambda f: f.below({"limits": limits, "names": None}, {"names": names}, host=host)


def many_names(f: Forge) -> Shown:
    permitted = [dns(f"t{number}.test") for number in range(513)] + [dns(".test")]
    excluded = [dns(f"x{number}.test") for number in range(513)]
    return f.direct(
        {"subject": sequence(), "names": alternative_names(*permitted, critical=True)},
        {"limits": name_constraints(permitted, excluded)},
        host="t0.test",
    )


def spoilt_issuer(f: Forge) -> Shown:
    middle = f.intermediate(f.root("the other"), key=Spoilt())
    return shown(f.root(), f.leaf(middle), middle)


def ml_dsa(kind: Any, *usages: int) -> Any:
    usage = key_usage(DIGITAL_SIGNATURE, *usages)
    return lambda f: f.direct({"key": kind.generate(), "usage": usage}, {"key": kind.generate()})


def forged_ml_dsa(f: Forge) -> Shown:
    root = f.root(key=mldsa.MLDSA44PrivateKey.generate())
    impostor = f.root(key=mldsa.MLDSA44PrivateKey.generate(), subject=root.subject)
    leaf = f.leaf(impostor, key=mldsa.MLDSA44PrivateKey.generate(), issuer_key=authority_key(root.key_id))
    return shown(root, leaf)


def ended(which: str) -> Any:
    return lambda f: f.below(**{which: {"life": EXPIRED}})


def judged_at(seconds_after: float, end: Any) -> Any:
    """All three count for the same month, and are judged at one of its ends, as OpenSSL reads the clock."""
    moment = end + timedelta(seconds=seconds_after // 1)
    return lambda f: f.below(MONTH, MONTH, MONTH, judged_at=moment)


_NAMES: Final = alternative_names(dns("example.com"))

GRAPHS: Final = {
    "pathlen::ee-with-intermediate-pathlen-0": Recipe(True, path(0)),
    "pathlen::ee-with-intermediate-pathlen-1": Recipe(True, path(1)),
    "pathlen::ee-with-intermediate-pathlen-2": Recipe(True, path(2)),
    "pathlen::validation-ignores-pathlen-in-leaf": Recipe(True, authority_as_leaf),
    "pathlen::intermediate-violates-pathlen-0": Recipe(False, path(0, 0)),
    "pathlen::intermediate-pathlen-may-increase": Recipe(True, path(1, 2)),
    "pathlen::intermediate-pathlen-too-long": Recipe(False, path(1, 0, 0)),
    "pathlen::self-issued-certs-pathlen": Recipe(True, self_issued),
    "pathological::multiple-chains-expired-intermediate": Recipe(True, two_paths),
    "pathological::intermediate-cycle-distinct-cas": Recipe(False, cycle("one", "other")),
    "pathological::intermediate-cycle-same-logical-ca": Recipe(False, cycle("one", "one")),
    "pathological::nc-dos-1": Recipe(False, many_names),
    "cve::cve-2024-0567": Recipe(True, crossed),
    "cve::cve-2025-61727": Recipe(
        False, wildcard_below("bar.example.com", permitted="example.com", excluded="bar.example.com")
    ),
    "cve::cve-2025-61727-nc-permits-variant": Recipe(
        False, wildcard_below("foo.example.com", permitted="foo.example.com")
    ),
    "invalid::invalid-issuer-key": Recipe(False, spoilt_issuer),
    "rfc9881::ml-dsa-44": Recipe(True, ml_dsa(mldsa.MLDSA44PrivateKey)),
    "rfc9881::ml-dsa-65": Recipe(True, ml_dsa(mldsa.MLDSA65PrivateKey)),
    "rfc9881::ml-dsa-87": Recipe(True, ml_dsa(mldsa.MLDSA87PrivateKey)),
    "rfc9881::ml-dsa-44-bad-signature": Recipe(False, forged_ml_dsa),
    "rfc9881::ml-dsa-44-key-encipherment": Recipe(False, ml_dsa(mldsa.MLDSA44PrivateKey, KEY_ENCIPHERMENT)),
    "rfc9881::ml-dsa-44-key-agreement": Recipe(False, ml_dsa(mldsa.MLDSA44PrivateKey, KEY_AGREEMENT)),
    "rfc5280::chain-untrusted-root": Recipe(False, untrusted_root),
    "rfc5280::root-and-intermediate-swapped": Recipe(True, swapped),
    "rfc5280::validity::expired-root": Recipe(False, ended("root")),
    "rfc5280::validity::expired-intermediate": Recipe(False, ended("intermediate")),
    "rfc5280::validity::expired-leaf": Recipe(False, ended("leaf")),
    "rfc5280::validity::notbefore-exact": Recipe(True, judged_at(0, FIRST)),
    "rfc5280::validity::notbefore-fractional": Recipe(False, judged_at(-0.001, FIRST)),
    "rfc5280::validity::notafter-exact": Recipe(True, judged_at(0, LAST)),
    "rfc5280::validity::notafter-fractional": Recipe(True, judged_at(0.005, LAST)),
}
