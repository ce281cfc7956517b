"""What metrics are served with: a certificate and a CA, each of which reloads on its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

from OpenSSL import SSL

from pgtlsproxy.config import Status
from pgtlsproxy.proxy.units import Units
from pgtlsproxy.tls.contexts import KeyPair
from pgtlsproxy.tls.trust import Trust

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class StatusTLS:
    """What metrics are served with.

    Args:
        pair: the certificate and its key.
        trust: whose certificates may see everything; None where nobody is asked for one.
        context: of both.
    """

    pair: KeyPair
    trust: Trust | None
    context: SSL.Context = field(repr=False)


class Attempt(Protocol):
    """Makes a unit, or keeps the old one."""

    def __call__(self, name: str, make: Callable[[], _T | None], old: _T | None, /) -> _T | None:
        """What `make` makes, or `old` where that raises ConfigError."""


def make_status_tls(
    units: Units, status: Status | None, old: StatusTLS | None, attempt: Attempt
) -> StatusTLS | None:
    """Make what metrics are served with.

    Args:
        units: of the files.
        status: the settings.
        old: what is in service.
        attempt: makes each unit.

    Returns:
        None for HTTP in clear, and where there is no whole set of units.
    """
    if status is None or status.ssl_cert_file is None:
        return None
    pair = attempt("certificate of status", partial(units.status_pair, status), old.pair if old else None)
    trust = attempt("CA of status", partial(units.trusts.of_status, status), old.trust if old else None)
    if pair is None or (status.ssl_ca_file is not None and trust is None):
        return old
    return attempt(
        "TLS settings of status", lambda: StatusTLS(pair, trust, units.status_context(pair, trust)), old
    )
