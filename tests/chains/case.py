"""Cases of the public suites, issued anew: for a client or for a server, with names and keys of their own."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from chains.issuing import (
    CERT_SIGN,
    CLIENT_AUTH,
    CRL_SIGN,
    DIGITAL_SIGNATURE,
    SERVER_AUTH,
    Extension,
    Node,
    alternative_names,
    authority_key,
    basic_constraints,
    certify,
    common_name,
    dns,
    extended_usage,
    key_id,
    key_usage,
    named,
    p256,
    subject_key,
)

Role = Literal["client", "server"]
"""Whose certificate it is: a client's, shown to a listener, or a backend's, shown to the proxy."""

BOTH: Final[tuple[Role, ...]] = ("client", "server")
SERVER: Final[tuple[Role, ...]] = ("server",)
"""For cases that are about the name of a host alone: nobody looks for one in a client's certificate."""

Changes = Mapping[str, Any]
"""What differs from a certificate in which everything is in order: see `Forge`."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is shown, and to whom.

    Args:
        id: what the suite calls it.
        accepts: whether the suite wants it accepted.
        roots: what stands in ssl_ca_file or sslrootcert.
        chain: what the peer sends, the leaf first.
        host: whose certificate a server's has to be.
        crls: what stands in ssl_crl_file or sslcrl; None for no such setting.
        judged_at: when, where it is not now.
    """

    id: str
    accepts: bool
    roots: tuple[Node, ...]
    chain: tuple[Node, ...]
    host: str = "example.com"
    crls: tuple[bytes, ...] | None = None
    judged_at: datetime | None = None


class Forge:
    """Issues the certificates of one case.

    `root`, `intermediate` and `leaf` take what differs from a certificate in order: the extensions
    `constraints` (basicConstraints), `usage`, `extended`, `names` (subjectAltName), `own_key`, `issuer_key` (the
    key identifiers) and `limits` (nameConstraints), where None leaves one out; `more` extensions; `subject`,
    `issuer` (a Name in DER), `life`, and whatever else `certify` takes.

    Args:
        case: the suite's name for it.
        role: whose certificate the leaf is.
    """

    def __init__(self, case: str, role: Role) -> None:
        self._case, self.role = f"{case} {role}", role
        self.right, self.wrong = (
            (CLIENT_AUTH, SERVER_AUTH) if role == "client" else (SERVER_AUTH, CLIENT_AUTH)
        )

    def root(self, text: str = "root", /, **changes: Any) -> Node:
        """A self-signed certificate of a CA."""
        usual = _authority(changes) | {"names": alternative_names(dns("example.com")), "usage": _SIGNS_BOTH}
        return self._issue(text, None, usual | changes)

    def intermediate(self, parent: Node, text: str = "intermediate", /, **changes: Any) -> Node:
        """A CA's certificate by another CA. `length` is its pathLenConstraint."""
        usual = _authority(changes) | {"issuer_key": authority_key(parent.key_id), "usage": _SIGNS}
        return self._issue(text, parent, usual | changes)

    def leaf(self, parent: Node, /, **changes: Any) -> Node:
        """The certificate of whoever is judged, for example.com."""
        usual = {
            "issuer_key": authority_key(parent.key_id),
            "usage": key_usage(DIGITAL_SIGNATURE),
            "extended": extended_usage(self.right),
            "names": alternative_names(dns("example.com")),
            "subject": common_name("example.com"),
        }
        return self._issue("leaf", parent, usual | changes)

    def named(self, text: str) -> bytes:
        """A subject that is this case's alone."""
        return named(text, self._case)

    def direct(self, leaf: Changes | None = None, root: Changes | None = None, **rest: Any) -> Shown:
        """A root and a leaf by it."""
        above = self.root(**root or {})
        return shown(above, self.leaf(above, **leaf or {}), **rest)

    def below(
        self,
        intermediate: Changes | None = None,
        leaf: Changes | None = None,
        root: Changes | None = None,
        **rest: Any,
    ) -> Shown:
        """A root, an intermediate by it, and a leaf by that."""
        above = self.root(**root or {})
        middle = self.intermediate(above, **intermediate or {})
        return shown(above, self.leaf(middle, **leaf or {}), middle, **rest)

    def _issue(self, text: str, parent: Node | None, wanted: dict[str, Any]) -> Node:
        key = wanted.pop("key", None) or p256()
        subject = wanted.pop("subject", self.named(text))
        extensions = [wanted.pop(slot, None) for slot in _SLOTS]
        if "own_key" not in wanted:
            extensions.append(subject_key(key_id(key)))
        extensions += [wanted.pop("own_key", None), *wanted.pop("more", ())]
        issuer = wanted.pop("issuer", subject if parent is None else parent.subject)
        serial = wanted.pop("serial", None)
        return certify(
            subject,
            issuer,
            key,
            key if parent is None else parent.key,
            [extension for extension in extensions if extension is not None],
            serial=secrets.randbits(120) | 1 << 120 if serial is None else serial,
            **wanted,
        )


_SLOTS = ("constraints", "issuer_key", "usage", "extended", "names", "limits")
_SIGNS: Final[Extension] = key_usage(CERT_SIGN)
_SIGNS_BOTH: Final[Extension] = key_usage(CERT_SIGN, CRL_SIGN)


def _authority(changes: dict[str, Any]) -> dict[str, Any]:
    return {"constraints": basic_constraints(length=changes.pop("length", None))}


@dataclass(frozen=True, slots=True)
class Shown:
    """A case without its name."""

    roots: tuple[Node, ...]
    chain: tuple[Node, ...]
    rest: Mapping[str, Any]


def shown(roots: Node | Sequence[Node], leaf: Node, *others: Node, **rest: Any) -> Shown:
    """What a recipe makes: the roots, what is sent, and more of `Case`."""
    return Shown((roots,) if isinstance(roots, Node) else tuple(roots), (leaf, *others), rest)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a case is made.

    Args:
        accepts: whether the suite wants it accepted.
        make: makes it.
        roles: whose certificate it may be.
    """

    accepts: bool
    make: Callable[[Forge], Shown]
    roles: tuple[Role, ...] = BOTH


def issued(recipes: Mapping[str, Recipe], role: Role) -> Iterator[Case]:
    """The cases of a suite that there are for a role."""
    for case, recipe in recipes.items():
        if role in recipe.roles:
            made = recipe.make(Forge(case, role))
            yield Case(case, recipe.accepts, made.roots, made.chain, **made.rest)
