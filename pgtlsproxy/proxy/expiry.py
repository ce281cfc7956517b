"""What in a snapshot has expired or soon will: an error for `check`, a warning for a proxy that serves.

An expired certificate never keeps the proxy from starting, as it does not keep PostgreSQL: whoever
verifies it refuses it, and everything else goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509

from pgtlsproxy.errors import ClientCertificateRefused, Mistake
from pgtlsproxy.observability.figures import NotAfter
from pgtlsproxy.proxy.files import SYSTEM_ROOTS
from pgtlsproxy.proxy.snapshot import Snapshot
from pgtlsproxy.tls.certificates import days_left, describe, expires_soon
from pgtlsproxy.tls.contexts import KeyPair
from pgtlsproxy.tls.trust import Trust


@dataclass(frozen=True, slots=True)
class Expiry:
    """What was found.

    Args:
        expired: out of date now, or not yet valid.
        soon: valid, for less than 30 days and less than a third of its lifetime.
    """

    expired: tuple[Mistake, ...]
    soon: tuple[Mistake, ...]


def judge_expiry(snapshot: Snapshot, now: datetime | None = None) -> Expiry:
    """Look at every certificate and CRL of a snapshot.

    Args:
        snapshot: the configuration.
        now: aware; the present when None.
    """
    moment = now or datetime.now(UTC)
    expired: list[Mistake] = []
    soon: list[Mistake] = []
    for where, certificate in _certificates(snapshot):
        try:
            named = describe(certificate)
        except ClientCertificateRefused as error:
            soon.append(Mistake(where, f"a certificate whose names cannot be read: {error.reason}"))
            continue
        if moment > named.not_after:
            expired.append(
                Mistake(where, f"{named.dn} expired on {named.not_after:%Y-%m-%d %H:%M} UTC: renew it")
            )
        elif moment < named.not_before:
            expired.append(
                Mistake(where, f"{named.dn} is not valid before {named.not_before:%Y-%m-%d %H:%M} UTC")
            )
        elif expires_soon(named, moment):
            left = days_left(named, moment)
            soon.append(Mistake(where, f"{named.dn} expires in {left} days, on {named.not_after:%Y-%m-%d}"))
    for where, crl in _crls(snapshot):
        if crl.next_update_utc is not None and moment > crl.next_update_utc:
            text = (
                f"the CRL is past its nextUpdate, {crl.next_update_utc:%Y-%m-%d %H:%M} UTC: it admits nobody"
            )
            expired.append(Mistake(where, text))
    return Expiry(tuple(expired), tuple(soon))


def not_after(snapshot: Snapshot) -> list[NotAfter]:
    """When what of a snapshot runs out: of several certificates or lists in one place the earliest.

    Args:
        snapshot: the configuration.
    """
    found: list[NotAfter] = []

    def note(owner: str, name: str, moments: Iterable[datetime | None]) -> None:
        known = [moment.timestamp() for moment in moments if moment is not None]
        if known:
            found.append(NotAfter(owner, name, min(known)))

    def note_trust(name: str, trust: Trust | None, *, is_system: bool = False) -> None:
        if trust is None:
            return
        if not is_system:
            note("ca", name, (anchor.not_valid_after_utc for anchor in trust.anchors))
        note("crl", name, (crl.next_update_utc for crl in trust.crls))

    def note_pair(owner: str, name: str, pair: KeyPair | None) -> None:
        if pair is not None:
            note(owner, name, (certificate.not_valid_after_utc for certificate in pair.chain))

    for name, listener in snapshot.listeners.items():
        note_pair("listener", name, listener.pair)
        note_trust(f"listeners.{name}", listener.trust)
    for name, backend in snapshot.backends.items():
        note_pair("backend", name, backend.pair)
        note_trust(f"backends.{name}", backend.trust, is_system=backend.settings.sslrootcert == SYSTEM_ROOTS)
    if snapshot.status is not None:
        note_pair("status", "status", snapshot.status.pair)
        note_trust("status", snapshot.status.trust)
    return found


def _certificates(snapshot: Snapshot) -> Iterator[tuple[str, x509.Certificate]]:
    for name, listener in snapshot.listeners.items():
        where = f"{snapshot.path}: listeners.{name}"
        if listener.pair is not None:
            yield from ((f"{where}.ssl_cert_file", certificate) for certificate in listener.pair.chain)
        if listener.trust is not None:
            yield from ((f"{where}.ssl_ca_file", certificate) for certificate in listener.trust.anchors)
    if snapshot.status is not None:
        where = f"{snapshot.path}: status"
        yield from ((f"{where}.ssl_cert_file", certificate) for certificate in snapshot.status.pair.chain)
        if snapshot.status.trust is not None:
            yield from ((f"{where}.ssl_ca_file", anchor) for anchor in snapshot.status.trust.anchors)
    for name, backend in snapshot.backends.items():
        where = f"{snapshot.path}: backends.{name}"
        if backend.pair is not None:
            yield from ((f"{where}.sslcert", certificate) for certificate in backend.pair.chain)
        if backend.trust is not None and backend.settings.sslrootcert != SYSTEM_ROOTS:
            yield from ((f"{where}.sslrootcert", certificate) for certificate in backend.trust.anchors)


def _crls(snapshot: Snapshot) -> Iterator[tuple[str, x509.CertificateRevocationList]]:
    def of(where: str, trust: Trust | None) -> Iterator[tuple[str, x509.CertificateRevocationList]]:
        yield from ((where, crl) for crl in (trust.crls if trust is not None else ()))

    for name, listener in snapshot.listeners.items():
        yield from of(f"{snapshot.path}: listeners.{name}.ssl_crl_file", listener.trust)
    for name, backend in snapshot.backends.items():
        yield from of(f"{snapshot.path}: backends.{name}.sslcrl", backend.trust)
