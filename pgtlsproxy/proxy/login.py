"""The authentication exchange, and the one place where a session becomes a `LoggedIn`.

The one rule stands here: nobody is let in whom neither the proxy nor a challenge that the
client's own bytes answered has proved. A backend that says AuthenticationOk to the proxy's
certificate or to its operating system user has believed the proxy, and that proves nobody.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from pgtlsproxy.errors import Unproven
from pgtlsproxy.identity import Challenge, Proof, ProofKind
from pgtlsproxy.observability.logs import SessionLog
from pgtlsproxy.policy.access import Grant
from pgtlsproxy.proxy.challenges import Challenges
from pgtlsproxy.proxy.client import Client
from pgtlsproxy.proxy.dial import read_message
from pgtlsproxy.proxy.guessing import Guess
from pgtlsproxy.proxy.session_attributes import ANY, WrongSessionAttributes, wrong_attributes
from pgtlsproxy.proxy.session_limits import limits_of
from pgtlsproxy.proxy.stages import BackendLeg, CancelKey, LoggedIn, Negotiated, Proved, Standing
from pgtlsproxy.proxy.verifiers import Verifiers


async def log_in(
    negotiated: Negotiated,
    grant: Grant,
    backend: BackendLeg,
    target_session_attrs: str,
    client: Client,
    proved: Proved | None,
    verifiers: Verifiers | None,
    guess: Guess,
    admit: Callable[[Proof], Awaitable[Standing]],
    log: SessionLog,
) -> LoggedIn:
    """Take the login to ReadyForQuery, and hold it against the Grant.

    Args:
        negotiated: the client.
        grant: what it may do.
        backend: the leg to log in on.
        target_session_attrs: what the host must be.
        client: its end, to which the backend's answers go.
        proved: what the proxy has proved itself; None where the backend has to.
        verifiers: where the users' SCRAM verifiers are found; None where the listener has none.
        guess: waits before a password is judged.
        admit: has the last word, when the backend has let the client in and the client does not know it yet.
        log: told what is known.

    With `login: passthrough` backend and client talk to each other; else the backend is answered by
    the proxy's own credential, and the client hears nothing before it is over.

    Raises:
        Unproven: the backend let the client in, and nobody has proved who it is.
        BackendMisbehaved: the backend asked what the policy does not let it ask.
        BackendRefused: the backend's own error.
        ChannelBindingImpossible: the client would bind SCRAM to the proxy's certificate, and there are no
            verifiers to bridge it with.
        ChannelBindingFailed: client and proxy do not agree on the channel.
        WrongSessionAttributes: another host is to be tried; the client has heard nothing yet.
        ProtocolViolation, ClientGone, BackendUnavailable: one side broke the exchange.
    """
    challenges = Challenges(negotiated, grant, backend, client, proved, verifiers, guess)
    proof = await _Login(challenges, grant, backend, target_session_attrs).run(proved)
    standing = await admit(proof)
    await challenges.flush()  # AuthenticationOk as far as ReadyForQuery
    log.note(proof=proof.kind, identity=proof.identity)
    key = challenges.exchange.cancel_key
    if key is not None:
        log.note(backend_pid=key[0])
    return LoggedIn(
        client_leg=negotiated.leg,
        backend_leg=backend.leg,
        proof=proof,
        standing=standing,
        backend=negotiated.accepted.listener.backends[grant.backend],
        backend_address=backend.address,
        cancel_key=None if key is None else CancelKey(*key),
        limits=limits_of(negotiated),
        unread_from_client=challenges.client_reader.take_unread(),
        unread_from_backend=backend.reader.take_unread(),
    )


class _Login:
    """One login, up to the moment when the client hears of it."""

    def __init__(self, challenges: Challenges, grant: Grant, backend: BackendLeg, attributes: str) -> None:
        self._challenges = challenges
        self._exchange = challenges.exchange
        self._grant = grant
        self._backend = backend
        self._target_session_attrs = attributes

    async def run(self, proved: Proved | None) -> Proof:
        """The exchange to its end, but for the client's hearing of it; what proves the client."""
        await self._challenges.run()
        proof = self._proof(proved)
        leg, reader, held = self._backend.leg, self._backend.reader, self._challenges.held
        while not self._exchange.is_ready:
            # PostgreSQL sends 14 of them; to take them one by one cost 40 µs more.
            bodies, raw = reader.next_alike(b"S")
            self._exchange.reported(bodies)
            held += raw
            message = reader.next() or await read_message(leg, reader)
            if message.type == b"E":
                await self._challenges.end_with_error(message)
            if message.type != b"N":
                self._exchange.other(message)
            held += message.raw
        self._check_session_attributes()
        return proof

    def _proof(self, proved: Proved | None) -> Proof:
        """What proves the client, now that the backend has said AuthenticationOk."""
        if self._grant.is_fenced and self._exchange.outcome.challenge is Challenge.NONE:
            raise Unproven(
                f"backend {self._grant.backend} let a reserved user or a replication session in unasked: it "
                f"believes the proxy, and {self._grant.hba} and its map do not name the user"
            )
        outcome, user = self._exchange.outcome, self._grant.user
        if proved is not None:
            return replace(proved.proof, challenge=outcome.challenge)
        if outcome.is_answered and outcome.is_finished:
            if ProofKind.SCRAM in self._grant.accepts and outcome.challenge is Challenge.SCRAM:
                return Proof(ProofKind.SCRAM, user, user, outcome.challenge)
            if ProofKind.BACKEND_CHALLENGE in self._grant.accepts:
                return Proof(ProofKind.BACKEND_CHALLENGE, user, user, outcome.challenge)
        if ProofKind.REQUIRE_AUTH_NONE in self._grant.accepts:
            return Proof(ProofKind.REQUIRE_AUTH_NONE, user, user)
        raise Unproven(
            f"backend {self._grant.backend} let the session in without asking the client: it trusts the "
            "proxy's own certificate, operating system user or address, not the user. Let the backend ask "
            "(scram-sha-256), or let the proxy prove the user (cert, peer)"
        )

    def _check_session_attributes(self) -> None:
        if self._target_session_attrs == ANY:
            return
        problem = wrong_attributes(self._target_session_attrs, self._exchange.parameters)
        if problem is not None:
            raise WrongSessionAttributes(f"{self._backend.address}: {problem}")
