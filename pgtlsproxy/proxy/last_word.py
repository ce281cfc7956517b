"""The last word on a login: its backend has let the client in, and the client does not know it yet."""

from __future__ import annotations

from pgtlsproxy.identity import Proof
from pgtlsproxy.policy.access import Grant
from pgtlsproxy.proxy.admission import Seat
from pgtlsproxy.proxy.prove import require_still_good
from pgtlsproxy.proxy.services import Services
from pgtlsproxy.proxy.stages import Negotiated, Proved, Standing
from pgtlsproxy.proxy.standing import keep_up, standing_of
from pgtlsproxy.proxy.verifiers import Verifiers


class LastWord:
    """Judges one login by what is in service now.

    Args:
        negotiated: the client.
        grant: what it may do.
        proved: what the proxy has proved itself; None where the backend has to.
        verifiers: where the users' SCRAM verifiers are found; None where the listener has none.
        seat: what it takes up.
        services: what sessions share.
    """

    def __init__(
        self,
        negotiated: Negotiated,
        grant: Grant,
        proved: Proved | None,
        verifiers: Verifiers | None,
        seat: Seat,
        services: Services,
    ) -> None:
        self._leg = negotiated.leg
        self._grant = grant
        self._proved = proved
        self._verifiers = verifiers
        self._seat = seat
        self._services = services
        self._standing = standing_of(negotiated, grant)

    async def admit(self, proof: Proof) -> Standing:
        """Judge it, until nothing newer is in service. May be asked again.

        Args:
            proof: what proves the client.

        Raises:
            ProxyError: it may not become a session.
        """
        newest = None  # what is asked takes its time, and there may be a newer one then
        while newest != self._services.in_service().generation:
            newest = self._services.in_service().generation
            if self._proved is not None and self._verifiers is not None:
                await require_still_good(self._proved, self._grant.user, self._verifiers)
            self._standing = await keep_up(self._standing, self._leg, proof, self._services)
        self._services.admission.check_open()
        self._seat.take_user(self._grant.listener, proof.identity, self._grant.user)
        return self._standing
