"""The proofs that the proxy has of a client before a backend is dialled, and those that it asks for itself.

A certificate's name or an operating system user has been checked when the Grant was made. Where the backend
is satisfied with the proxy's own credential and asks nobody, the client's password is asked for here and held
against its verifier: as PostgreSQL would, and with the same answers for users who do not exist.
"""

from __future__ import annotations

import hmac
from typing import Final

import trio

from pgtlsproxy.errors import ClientGone, ProtocolViolation, Unproven
from pgtlsproxy.identity import Proof, ProofKind, Secret, printable
from pgtlsproxy.policy.access import Grant, Login
from pgtlsproxy.protocol.backend import MAX_SASL_OCTETS, parse_initial_response
from pgtlsproxy.protocol.messages import (
    Message,
    client_reader,
    encode_authentication,
    encode_sasl_mechanisms,
    parse_password,
)
from pgtlsproxy.protocol.scram import server
from pgtlsproxy.protocol.scram.binding import offered
from pgtlsproxy.protocol.scram.keys import Verifier
from pgtlsproxy.protocol.scram.server import WrongProof
from pgtlsproxy.protocol.startup import version_answer
from pgtlsproxy.proxy.client import Client
from pgtlsproxy.proxy.guessing import Guess
from pgtlsproxy.proxy.stages import Negotiated, Proved
from pgtlsproxy.proxy.verifiers import Known, Verifiers
from pgtlsproxy.tls.certificates import end_point_hash
from pgtlsproxy.tls.stream import MAX_RECORD_OCTETS

PROVED_BY_THE_POLICY: Final = frozenset({ProofKind.CERTIFICATE, ProofKind.PEER, ProofKind.LITERAL_LOCAL_USER})
"""Proofs that `policy.access` has checked before it made the Grant."""

ASK_FOR_PASSWORD: Final = encode_authentication(3)
"""AuthenticationCleartextPassword."""

ASK_TO_BEGIN: Final = encode_authentication(11)
"""An empty AuthenticationSASLContinue: asks for the first message that a client may leave out of
SASLInitialResponse, as PostgreSQL does."""

PASSWORD_CHECKS: Final = trio.CapacityLimiter(2)
"""Passwords that are hashed at once: each takes a thread and, with 4,096 iterations, 2 ms of a core."""


async def prove(
    negotiated: Negotiated, grant: Grant, client: Client, verifiers: Verifiers | None, guess: Guess
) -> Proved | None:
    """Prove a client, as far as that is the proxy's to do.

    Args:
        negotiated: the client.
        grant: what it may do, once it is proved.
        client: its end, to be asked.
        verifiers: where the users' verifiers are found; None where the listener has none.
        guess: waits before a password is judged.

    Returns:
        The proof; None where the backend has to make it.

    Raises:
        WrongProof: it does not know the password, or there is no such user.
        ChannelBindingFailed: it saw another certificate than ours.
        ProtocolViolation, ClientGone: it broke the exchange.
    """
    for kind in grant.accepts & PROVED_BY_THE_POLICY:
        return Proved(Proof(kind, grant.user, grant.identity or grant.user))
    if grant.login is Login.PASSTHROUGH:
        return None
    if verifiers is None:
        raise Unproven(f"{grant.hba} needs the users' verifiers, and the listener has none")
    asking = _Asking(negotiated, grant, client, verifiers, guess)
    if ProofKind.SCRAM in grant.accepts:
        return asking.proved(ProofKind.SCRAM, await asking.for_scram())
    if ProofKind.PASSWORD in grant.accepts:
        return asking.proved(ProofKind.PASSWORD, await asking.for_password())
    raise Unproven(f"{grant.hba}: nothing that the proxy can ask for proves the user")


async def require_still_good(proved: Proved, user: str, verifiers: Verifiers) -> None:
    """Hold a password that was good when the client was asked against the verifiers of now.

    Args:
        proved: the client.
        user: of the StartupMessage.
        verifiers: where the users' verifiers are found.

    Raises:
        WrongProof: the user has another verifier, or none any more.
    """
    if proved.verifier is None:
        return
    current = await verifiers.current(user)
    if current.verifier != proved.verifier:
        why = f"the password was good, and is not by the newest {current.where}"
        raise WrongProof(user, f"{why}, which {current.lack}" if current.lack else why)


def greeting(negotiated: Negotiated, grant: Grant) -> bytes:
    """What a client hears before it is asked for anything: NegotiateProtocolVersion, or nothing."""
    settings = negotiated.accepted.listener.backends[grant.backend].settings
    return version_answer(negotiated.startup, settings.max_protocol_version)


def client_end_point(negotiated: Negotiated) -> bytes | None:
    """What SCRAM binds to on a client's leg: the hash of our leaf in this handshake; None where nothing."""
    pair = negotiated.accepted.listener.pair
    return end_point_hash(pair.leaf) if pair is not None and negotiated.leg.is_tls else None


async def check_password(password: Secret, verifier: Verifier) -> bool:
    """Whether a password is that of a verifier. Off the event loop, for hashing takes its time."""

    def hashed() -> Verifier:
        return Verifier.make(password, verifier.salt, verifier.iterations)

    made = await trio.to_thread.run_sync(hashed, limiter=PASSWORD_CHECKS)
    return hmac.compare_digest(made.stored_key.reveal(), verifier.stored_key.reveal())


class _Asking:
    """One client that is asked by us."""

    def __init__(
        self, negotiated: Negotiated, grant: Grant, client: Client, verifiers: Verifiers, guess: Guess
    ) -> None:
        self._negotiated = negotiated
        self._grant = grant
        self._client = client
        self._verifiers = verifiers
        self._guess = guess
        is_scram = ProofKind.SCRAM in grant.accepts
        self._reader = client_reader(lambda: "SASL" if is_scram else "password")

    async def for_scram(self) -> Verifier:
        """Both sides prove to each other that they know the password, or its verifier."""
        end_point = client_end_point(self._negotiated)
        await self._say(greeting(self._negotiated, self._grant) + encode_sasl_mechanisms(offered(end_point)))
        mechanism, client_first = parse_initial_response((await self._read_scram()).body)
        if client_first is None:
            await self._say(ASK_TO_BEGIN)
            client_first = (await self._read_scram()).body
        user = self._grant.user
        known, verifier = await self._verifiers.for_challenge(user)
        asked = server.challenge(verifier, end_point, mechanism, client_first)
        await self._say(encode_authentication(11, asked.server_first))
        client_final = (await self._read_scram()).body
        await self._guess.turn()
        try:
            server_final = asked.verify(client_final, user)
        except WrongProof as error:
            raise self._wrong(error, known) from None
        await self._say(encode_authentication(12, server_final))
        return verifier

    async def for_password(self) -> Verifier:
        """The client sends its password in clear, which nobody on the path can read."""
        address = self._negotiated.accepted.address
        if not (self._negotiated.leg.is_tls or address.is_local):
            raise Unproven(f"{self._grant.hba} asks for a password in clear, and the client's leg is clear")
        await self._say(greeting(self._negotiated, self._grant) + ASK_FOR_PASSWORD)
        password = parse_password((await self._read()).body)
        await self._guess.turn()
        user = self._grant.user
        known = await self._verifiers.known(user)
        verifier = known.verifier or self._verifiers.doomed(user)
        if await check_password(password, verifier):
            return verifier
        fresh = await self._verifiers.fresh(user, known)
        is_newer = fresh.verifier is not None and fresh.verifier != known.verifier
        if fresh.verifier is None or not is_newer or not await check_password(password, fresh.verifier):
            judged = fresh if fresh.is_answered else known
            raise self._wrong(WrongProof(user, "the password is wrong"), judged)
        return fresh.verifier

    def _wrong(self, error: WrongProof, known: Known) -> WrongProof:
        """The same with why nobody could have been right, for the log. An outage is nobody's guess."""
        if not known.is_answered:
            self._guess.unknown()
        if known.verifier is not None:
            return error
        return WrongProof(self._grant.user, f"{error.reason}; {known.explained}")

    def proved(self, kind: ProofKind, verifier: Verifier) -> Proved:
        self._guess.right()
        user = self._grant.user
        unread = self._reader.take_unread()
        return Proved(Proof(kind, user, user), was_asked=True, unread=unread, verifier=verifier)

    async def _say(self, data: bytes) -> None:
        await self._client.send(data)

    async def _read_scram(self) -> Message:
        message = await self._read()
        if len(message.body) + 4 > MAX_SASL_OCTETS:
            raise ProtocolViolation("SCRAM message too long", reply="invalid message length")
        return message

    async def _read(self) -> Message:
        while (message := self._reader.next()) is None:
            data = await self._client.read_some(MAX_RECORD_OCTETS)
            if not data:
                asked = printable(self._grant.method)
                raise ClientGone(f"the client closed when it was asked ({asked})")
            self._reader.feed(data)
        return message
