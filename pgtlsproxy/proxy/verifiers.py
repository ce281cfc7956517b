"""Where a login finds the SCRAM verifier of its user."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pgtlsproxy.protocol.scram.keys import Verifier
from pgtlsproxy.protocol.scram.secrets import Secrets
from pgtlsproxy.proxy.snapshot import ListenerSnapshot, Snapshot


@dataclass(frozen=True, slots=True)
class Verifiers:
    """Where the verifier of a session's user is found.

    Args:
        secrets: what the session's configuration lists.
        newest: what is listed in the configuration that is in service now; None where nothing is any more.
    """

    secrets: Secrets
    newest: Callable[[], Secrets | None] = field(repr=False)

    def known(self, user: str) -> Verifier | None:
        """The user's verifier, as far as it is known without asking."""
        return self.secrets.verifier(user, time.time())

    def for_challenge(self, user: str) -> Verifier:
        """The user's verifier, or one that looks the same and fits no password."""
        return self.secrets.for_challenge(user, time.time())

    def fresh(self, user: str) -> Verifier | None:
        """The newest that can be had; for whom the known one does not prove."""
        newest = self.newest()
        return None if newest is None else newest.verifier(user, time.time())

    def where(self, user: str) -> str:
        """Where the user's verifier stands, for the log."""
        return (self.newest() or self.secrets).where(user)


def verifiers_of(listener: ListenerSnapshot, in_service: Callable[[], Snapshot]) -> Verifiers | None:
    """Where the verifiers of a listener's users are found; None where it has none.

    Args:
        listener: as a session came to it.
        in_service: gives the configuration that is served now.
    """

    def newest() -> Secrets | None:
        served = in_service().listeners.get(listener.name)
        return None if served is None else served.secrets

    return None if listener.secrets is None else Verifiers(listener.secrets, newest)
