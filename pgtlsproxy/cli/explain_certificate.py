"""A client's certificate of which only some things are said: what the policy can be asked with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import click

from pgtlsproxy.identity import Certificate, printable
from pgtlsproxy.policy.explanation import Open

SAN_KINDS: Final = ("DNS", "URI", "email")
"""The subjectAltNames that a line can ask for, labelled as openssl(1) and the log do."""

_PAIR: Final = r"(?:[A-Za-z][A-Za-z0-9-]*|[0-9]+(?:\.[0-9]+)*)=(?:\\.|[^\\,+])*"
_DISTINGUISHED_NAME: Final = re.compile(rf"(?:{_PAIR}(?:[,+]{_PAIR})*)?", re.DOTALL)
_ATTRIBUTE: Final = re.compile(r"(?:\\.|[^\\,+])+")
_HEX_PAIR: Final = re.compile(r"\\[0-9A-F]{2}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What is said of a certificate; None where it is not.

    Args:
        cn, dn: names in it.
        san: all its subjectAltNames, each behind its label: `DNS:db.example.com`.
        issuer: the subject of the CA that issued it.
        issuer_key: that CA's key, as in `identity.Certificate`; None for the one that the name stands for.
    """

    cn: str | None = None
    dn: str | None = None
    san: tuple[str, ...] | None = None
    issuer: str | None = None
    issuer_key: str | None = None

    @property
    def is_nothing(self) -> bool:
        """Whether not even that there is one is said."""
        return self == Said()


def require_forms(dn: str | None, issuer: str | None, san: tuple[str, ...]) -> None:
    """Names are written as they are compared.

    Args:
        dn: a distinguished name.
        issuer: likewise.
        san: subjectAltNames, each behind its label.

    Raises:
        click.UsageError: one is not; no certificate could have it.
    """
    for option, name in (("--dn", dn), ("--issuer", issuer)):
        if name is not None and not _DISTINGUISHED_NAME.fullmatch(name):
            raise click.UsageError(
                f'{option} is written CN=alice,O=Lab, not "{printable(name)}": as in the log, and by '
                "openssl x509 -noout -subject -nameopt RFC2253"
            )
    if wrong := [name for name in san if name.partition(":")[0] not in SAN_KINDS]:
        kinds = ", ".join(f"{kind}:NAME" for kind in SAN_KINDS)
        raise click.UsageError(f'--san takes one of {kinds}, not "{printable(wrong[0])}"')


def described(said: Said, issuers: Mapping[str, str | None]) -> tuple[Certificate, frozenset[Open]]:
    """A certificate of which some things are known, and what is not.

    Args:
        said: what is known.
        issuers: the keys of the CAs that are trusted, by their subjects.
    """
    names = _common_names(said)
    labelled = [name.partition(":") for name in said.san or ()]
    of_kind = {kind: tuple(text for label, _, text in labelled if label == kind) for kind in SAN_KINDS}
    long_ago = datetime.fromtimestamp(0, UTC)
    certificate = Certificate(
        common_names=names or (),
        dn=said.dn or "",
        issuer_dn=said.issuer or "",
        serial=0,
        sha256="",
        not_before=long_ago,
        not_after=long_ago,
        dns_names=of_kind["DNS"],
        uris=of_kind["URI"],
        emails=of_kind["email"],
        # An issuer that is not among the CAs is an intermediate, which no line can name.
        issuer_key=said.issuer_key or issuers.get(said.issuer or ""),
    )
    known = {
        Open.COMMON_NAME: names,
        Open.DN: said.dn,
        Open.ALTERNATIVE_NAMES: said.san,
        Open.ISSUER: said.issuer_key or said.issuer,
    }
    return certificate, frozenset(each for each, value in known.items() if value is None)


def _common_names(said: Said) -> tuple[str, ...] | None:
    """The common names in a certificate of which only names are known; None where they cannot be told.

    A DN, as PostgreSQL prints it, has them all, but in UTF-8: in the certificate a name that is not plain
    ASCII may have other bytes.
    """
    if said.dn is None:
        return None if said.cn is None else (said.cn,)
    values = [part[3:] for part in _ATTRIBUTE.findall(said.dn) if part.startswith("CN=")]
    if any(_HEX_PAIR.search(value) or value.startswith("#") for value in values):
        return (said.cn,) if said.cn is not None and len(values) == 1 else None
    return tuple(re.sub(r"\\(.)", r"\1", value) for value in reversed(values))
