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
from pgtlsproxy.proxy.lifetimes import Lifetime
from pgtlsproxy.proxy.snapshot import Snapshot
from pgtlsproxy.tls.certificates import describe, worth_a_warning
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
    moment = (now or datetime.now(UTC)).timestamp()
    expired: list[Mistake] = []
    soon: list[Mistake] = []
    for each in lifetimes(snapshot):
        where = f"{snapshot.path}: {each.setting}"
        if each.is_bad(moment):
            expired.append(Mistake(where, each.problem(moment)))
        elif each.is_short(moment):
            soon.append(Mistake(where, each.problem(moment)))
    return Expiry(tuple(expired), tuple(soon))


def lifetimes(snapshot: Snapshot) -> Iterator[Lifetime]:
    """Those of every certificate and CRL of a snapshot.

    Args:
        snapshot: the configuration.
    """
    for setting, file, certificate in _certificates(snapshot):
        try:
            subject = describe(certificate).dn
        except ClientCertificateRefused:
            subject = "a certificate whose names cannot be read"
        since, until = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        yield _lifetime(setting, file, subject, since, until)
    for setting, file, crl in _crls(snapshot):
        if crl.next_update_utc is not None:
            yield _lifetime(setting, file, "", crl.last_update_utc, crl.next_update_utc)


def _lifetime(setting: str, file: str | None, what: str, since: datetime, until: datetime) -> Lifetime:
    soon = worth_a_warning(since, until)
    return Lifetime(setting, file or "", what, since.timestamp(), soon.timestamp(), until.timestamp())


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


def _certificates(snapshot: Snapshot) -> Iterator[tuple[str, str | None, x509.Certificate]]:
    """Every certificate, the setting that names its file, and the file."""

    def of(
        setting: str, file: str | None, found: Iterable[x509.Certificate]
    ) -> Iterator[tuple[str, str | None, x509.Certificate]]:
        yield from ((setting, file, certificate) for certificate in found)

    for name, listener in snapshot.listeners.items():
        where, named = f"listeners.{name}", listener.settings
        if listener.pair is not None:
            yield from of(f"{where}.ssl_cert_file", named.ssl_cert_file, listener.pair.chain)
        if listener.trust is not None:
            yield from of(f"{where}.ssl_ca_file", named.ssl_ca_file, listener.trust.anchors)
    status = snapshot.settings.status
    if snapshot.status is not None and status is not None:
        yield from of("status.ssl_cert_file", status.ssl_cert_file, snapshot.status.pair.chain)
        if snapshot.status.trust is not None:
            yield from of("status.ssl_ca_file", status.ssl_ca_file, snapshot.status.trust.anchors)
    for name, backend in snapshot.backends.items():
        where, dialled = f"backends.{name}", backend.settings
        if backend.pair is not None:
            yield from of(f"{where}.sslcert", dialled.sslcert, backend.pair.chain)
        if backend.trust is not None and dialled.sslrootcert != SYSTEM_ROOTS:
            yield from of(f"{where}.sslrootcert", dialled.sslrootcert, backend.trust.anchors)


def _crls(snapshot: Snapshot) -> Iterator[tuple[str, str | None, x509.CertificateRevocationList]]:
    def of(
        setting: str, file: str | None, trust: Trust | None
    ) -> Iterator[tuple[str, str | None, x509.CertificateRevocationList]]:
        yield from ((setting, file, crl) for crl in (trust.crls if trust is not None else ()))

    for name, listener in snapshot.listeners.items():
        named = listener.settings
        key = "ssl_crl_file" if named.ssl_crl_file is not None else "ssl_crl_dir"
        yield from of(f"listeners.{name}.{key}", named.ssl_crl_file or named.ssl_crl_dir, listener.trust)
    for name, backend in snapshot.backends.items():
        dialled = backend.settings
        key = "sslcrl" if dialled.sslcrl is not None else "sslcrldir"
        yield from of(f"backends.{name}.{key}", dialled.sslcrl or dialled.sslcrldir, backend.trust)
