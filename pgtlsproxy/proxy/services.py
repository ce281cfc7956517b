"""What the sessions of a process share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from structlog.typing import FilteringBoundLogger

from pgtlsproxy.observability.logs import RefusalFolder
from pgtlsproxy.proxy.admission import Admission
from pgtlsproxy.proxy.auth_query import AuthQueries
from pgtlsproxy.proxy.authorise import LookUps
from pgtlsproxy.proxy.cancel import Cancels
from pgtlsproxy.proxy.guessing import Guesses
from pgtlsproxy.proxy.handshakes import Handshakes
from pgtlsproxy.proxy.host_probes import HostProbes
from pgtlsproxy.proxy.relay import Relay
from pgtlsproxy.proxy.resolve import Resolver
from pgtlsproxy.proxy.snapshot import Snapshot
from pgtlsproxy.proxy.tally import TallyRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What the sessions of a process share.

    Args:
        logger: where events go.
        folder: what holds floods of refusals back.
        resolver: names of backends to addresses.
        host_probes: what the hosts of backends are like.
        look_ups: what has to be asked about clients.
        auth_queries: the verifiers that backends are asked for.
        cancels: the live sessions' cancel keys.
        relay: what carries sessions that are logged in.
        admission: how many are there, and whether anybody is let in.
        handshakes: lets clients' TLS handshakes begin.
        guesses: how often passwords were wrong.
        tally: where sessions are counted.
        in_service: gives the configuration that is served now.
    """

    logger: FilteringBoundLogger
    folder: RefusalFolder
    resolver: Resolver
    host_probes: HostProbes
    look_ups: LookUps
    auth_queries: AuthQueries
    cancels: Cancels
    relay: Relay
    admission: Admission
    handshakes: Handshakes
    guesses: Guesses
    tally: TallyRow
    in_service: Callable[[], Snapshot]
