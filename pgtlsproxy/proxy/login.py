"""The authentication exchange, and the one place where a session becomes a `LoggedIn`.

The one rule stands here: nobody is let in whom neither the proxy nor a challenge that the
client's own bytes answered has proved. A backend that says AuthenticationOk to the proxy's
certificate or to its operating system user has believed the proxy, and that proves nobody.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

import trio

from pgtlsproxy.errors import (
    BackendMisbehaved,
    BackendUnavailable,
    ChannelBindingImpossible,
    ClientGone,
    ErrorKind,
    ProxyError,
    Unproven,
)
from pgtlsproxy.identity import Challenge, Proof, ProofKind
from pgtlsproxy.observability.logs import SessionLog
from pgtlsproxy.policy.access import Grant
from pgtlsproxy.policy.challenge import Action, ClientLeg, judge
from pgtlsproxy.policy.proofs import Login
from pgtlsproxy.protocol.backend import (
    SCRAM_PLUS,
    BindingFlag,
    LoginExchange,
    without_channel_binding,
)
from pgtlsproxy.protocol.messages import (
    AUTHENTICATION_SASL,
    Authentication,
    Message,
    client_reader,
    encode_sasl_mechanisms,
    parse_error_response,
)
from pgtlsproxy.protocol.startup import version_answer
from pgtlsproxy.proxy.bridge import BEGIN, Bridge
from pgtlsproxy.proxy.client import Client
from pgtlsproxy.proxy.dial import read_message, send_to_backend
from pgtlsproxy.proxy.stages import BackendLeg, CancelKey, LoggedIn, Negotiated, Standing
from pgtlsproxy.proxy.verifiers import Verifiers
from pgtlsproxy.tls.certificates import end_point_hash
from pgtlsproxy.tls.stream import MAX_RECORD_OCTETS, TLSLeg

PROVED_BY_THE_PROXY: Final = frozenset({ProofKind.CERTIFICATE, ProofKind.PEER, ProofKind.LITERAL_LOCAL_USER})
"""Proofs that `policy.access` has checked before it made the Grant."""


class BackendRefused(ProxyError):
    """The backend's own ErrorResponse ends the login. The client has it already, as it came.

    Args:
        message: the ErrorResponse.
        why: what the proxy knows of the reason.

    Attributes:
        backend_sqlstate: its code, for the log.
    """

    kind = ErrorKind.BACKEND_REFUSED

    def __init__(self, message: Message, why: str | None = None) -> None:
        error = parse_error_response(message.body)
        super().__init__("; ".join(filter(None, (f"the backend refused: {error.message}", why))))
        self.backend_sqlstate = error.sqlstate


class WrongSessionAttributes(BackendUnavailable):
    """The host's role is not what target_session_attrs asks for; another one may do."""


def own_proof(grant: Grant) -> Proof | None:
    """The proof that the proxy has already; None where one is still to be had from the backend."""
    for kind in grant.accepts & PROVED_BY_THE_PROXY:
        return Proof(kind, grant.user, grant.identity or grant.user)
    return None


async def log_in(
    negotiated: Negotiated,
    grant: Grant,
    backend: BackendLeg,
    target_session_attrs: str,
    client: Client,
    verifiers: Verifiers | None,
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
        verifiers: where the users' SCRAM verifiers are found; None where the listener has none.
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
    login = _Login(negotiated, grant, backend, target_session_attrs, client, verifiers)
    proof = await login.run()
    standing = await admit(proof)
    await login.tell_client()
    log.note(proof=proof.kind, identity=proof.identity)
    if login.exchange.cancel_key is not None:
        log.note(backend_pid=login.exchange.cancel_key[0])
    key = login.exchange.cancel_key
    return LoggedIn(
        client_leg=negotiated.leg,
        backend_leg=backend.leg,
        proof=proof,
        standing=standing,
        backend=negotiated.accepted.listener.backends[grant.backend],
        backend_address=backend.address,
        cancel_key=None if key is None else CancelKey(*key),
        unread_from_client=login.client_reader.take_unread(),
        unread_from_backend=backend.reader.take_unread(),
    )


class _Login:
    """One exchange. `held` is what the client is owed and has not been sent yet."""

    def __init__(
        self,
        negotiated: Negotiated,
        grant: Grant,
        backend: BackendLeg,
        target_session_attrs: str,
        client: Client,
        verifiers: Verifiers | None,
    ) -> None:
        self.exchange = exchange = LoginExchange()
        # Not `self.exchange`: in a cycle, both connections would wait for the garbage collector.
        self.client_reader = client_reader(lambda: exchange.awaited)
        self._negotiated = negotiated
        self._grant = grant
        self._backend = backend
        self._target_session_attrs = target_session_attrs
        self._client = client
        self._settings = negotiated.accepted.listener.backends[grant.backend].settings
        self._held = bytearray(version_answer(negotiated.startup, self._settings.max_protocol_version))
        self._verifiers = verifiers
        self._bridge: Bridge | None = None
        self._is_binding_removed = False

    async def run(self) -> Proof:
        """The exchange to its end, but for the client's hearing of it; what proves the client."""
        proof = await self._authenticate()
        leg, reader = self._backend.leg, self._backend.reader
        while not self.exchange.is_ready:
            # PostgreSQL sends 14 of them; to take them one by one cost 40 µs more.
            bodies, raw = reader.next_alike(b"S")
            self.exchange.reported(bodies)
            self._held += raw
            message = reader.next() or await read_message(leg, reader)
            if message.type == b"E":
                await self._end_with_error(message)
            if message.type != b"N":
                self.exchange.other(message)
            self._held += message.raw
        self._check_session_attributes()
        return proof

    async def tell_client(self) -> None:
        """Pass on what the client is owed: AuthenticationOk as far as ReadyForQuery."""
        await self._flush()

    async def _authenticate(self) -> Proof:
        message = self._backend.first
        while True:
            match message.type:
                case b"R":
                    await self._answer_authentication(message)
                case b"E":
                    await self._end_with_error(message)
                case b"N":
                    self._held += message.raw
                case _:
                    self.exchange.other(message)
            if self.exchange.is_authenticated:
                return self._proof()
            if self.exchange.may_client_answer:
                message = await self._next_of_either()
            else:
                message = await read_message(self._backend.leg, self._backend.reader)

    async def _next_of_either(self) -> Message:
        """The backend's next message; should the client speak before it, its answer is relayed meanwhile.

        Behind GSSContinue either may be the next: a client whose context is complete says nothing more.
        """
        await self._flush()
        waiting = trio.CancelScope()

        async def relay_answer() -> None:
            answer = None
            with waiting:
                answer = await self._read_answer()
            # What the client has said goes out whole, whatever the backend has said meanwhile.
            if answer is not None:
                await self._relay_answer(answer)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay_answer)
            message = await read_message(self._backend.leg, self._backend.reader)
            waiting.cancel()
        return message

    async def _answer_authentication(self, message: Message) -> None:
        """Judge an Authentication message, relay it, and relay the client's answer where one is due."""
        previous = self.exchange.last_code
        request = self.exchange.authentication(message)
        verdict = judge(
            self._grant.login,
            self._grant.method,
            request.code,
            request.mechanisms,
            self._client_leg(),
            previous=previous,
        )
        if verdict.action is Action.REFUSE:
            raise BackendMisbehaved(verdict.reason)
        self._check_require_auth(request)
        self._held += self._for_client(request) or message.raw
        if self.exchange.is_client_turn:
            await self._flush()
            await self._relay_answer(await self._read_answer())

    def _for_client(self, request: Authentication) -> bytes | None:
        """What a request of the backend becomes for the client; None for itself."""
        if self._bridge is not None:
            return self._bridge.for_client(request)
        if request.code != AUTHENTICATION_SASL or self._backend.is_same_leaf:
            return None
        if self._verifiers is not None and self.exchange.outcome.challenge is Challenge.SCRAM:
            self._bridge = self._make_bridge(self._verifiers, request.mechanisms)
            return self._bridge.offer
        if SCRAM_PLUS in request.mechanisms:
            self._is_binding_removed = True
            return encode_sasl_mechanisms(without_channel_binding(request.mechanisms))
        return None

    def _make_bridge(self, verifiers: Verifiers, mechanisms: tuple[str, ...]) -> Bridge:
        pair, leaf = self._negotiated.accepted.listener.pair, None
        if isinstance(self._backend.leg, TLSLeg):
            leaf = self._backend.leg.peer_leaf
        return Bridge(
            self._grant.user,
            verifiers,
            end_point_hash(pair.leaf) if pair is not None and self._negotiated.leg.is_tls else None,
            mechanisms,
            end_point_hash(leaf) if leaf is not None else None,
        )

    def _check_require_auth(self, request: Authentication) -> None:
        """What require_auth says, as it holds for the backend's first question."""
        methods = {3: "password", 5: "md5", 7: "gss", 9: "sspi"}
        if request.code == AUTHENTICATION_SASL:
            is_scram = self.exchange.outcome.challenge is Challenge.SCRAM
            method = "scram-sha-256" if is_scram else "oauth"
        elif request.code in methods:
            method = methods[request.code]
        elif request.code == 0 and self.exchange.outcome.challenge is Challenge.NONE:
            if self._settings.require_auth is None:
                return  # whether a proof is there is judged apart
            method = "none"
        else:
            return
        if not self._settings.allows_auth(method):
            raise BackendMisbehaved(
                f"the backend asks for {method} authentication, which its require_auth does not allow"
            )

    async def _read_answer(self) -> Message:
        while (message := self.client_reader.next()) is None:
            data = await self._client.read_some(MAX_RECORD_OCTETS)
            if not data:
                raise ClientGone("the client closed during authentication")
            self.client_reader.feed(data)
        return message

    async def _relay_answer(self, message: Message) -> None:
        if self._bridge is not None:
            while (for_backend := self._bridge.for_backend(message)) is None:
                await self._client.send(BEGIN)
                message = await self._read_answer()
            message = for_backend
        self.exchange.client_message(message)
        flag = self.exchange.binding_flag
        is_scram = self.exchange.outcome.challenge is Challenge.SCRAM
        if is_scram and self._is_binding_removed and flag not in {None, BindingFlag.NOT_SUPPORTED}:
            raise ChannelBindingImpossible(
                "client and backend both do SCRAM channel binding, and TLS ends in between. Ways out: "
                "the users' verifiers at the listener (scram_secrets_file), channel_binding=disable in the "
                "client, method cert with login: certificate, or the backend's own certificate and key at "
                "the listener"
            )
        await send_to_backend(self._backend.leg, message.raw)

    def _client_leg(self) -> ClientLeg:
        if self._negotiated.leg.is_tls:
            return ClientLeg.SECURE
        is_local = self._negotiated.accepted.address.is_local
        return ClientLeg.CLEAR_LOCAL if is_local else ClientLeg.CLEAR_REMOTE

    def _proof(self) -> Proof:
        """What proves the client, now that the backend has said AuthenticationOk."""
        if self._grant.is_fenced and self.exchange.outcome.challenge is Challenge.NONE:
            raise Unproven(
                f"backend {self._grant.backend} let a reserved user or a replication session in unasked: it "
                f"believes the proxy, and {self._grant.hba} and its map do not name the user"
            )
        outcome, user = self.exchange.outcome, self._grant.user
        proof = own_proof(self._grant)
        if proof is not None:
            return replace(proof, challenge=outcome.challenge)
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
        if self._target_session_attrs == "any":
            return
        problem = wrong_attributes(self._target_session_attrs, self.exchange.parameters)
        if problem is not None:
            raise WrongSessionAttributes(f"{self._backend.address}: {problem}")

    async def _end_with_error(self, message: Message) -> None:
        """Pass the backend's error on as it came; only a backend that has verified itself gets here."""
        if self._grant.login is not Login.PASSTHROUGH and not self.exchange.is_authenticated:
            # The proxy's own credential failed: the client cannot mend it and need not know of it.
            error = parse_error_response(message.body)
            if error.sqlstate in {"28000", "28P01"}:
                raise BackendMisbehaved(f"the backend refused the proxy's own credential: {error.message}")
        self._held += message.raw
        await self._flush()
        raise BackendRefused(message, None if self._bridge is None else self._bridge.failure)

    async def _flush(self) -> None:
        if self._held:
            data = bytes(self._held)
            self._held.clear()
            await self._client.send(data)


def wrong_attributes(wanted: str, parameters: dict[str, str]) -> str | None:
    """Why a host does not fit target_session_attrs; None where it does. libpq's rules and words.

    PostgreSQL reports both parameters since version 14; a server that does not cannot be judged.
    """
    standby, read_only = parameters.get("in_hot_standby"), parameters.get("default_transaction_read_only")
    if standby is None or read_only is None:
        missing = "in_hot_standby" if standby is None else "default_transaction_read_only"
        return f"the server does not report {missing}, so target_session_attrs cannot be judged"
    writable = standby == "off" and read_only == "off"
    problems = {
        "read-write": None if writable else "session is read-only",
        "read-only": "session is not read-only" if writable else None,
        "primary": "server is in hot standby mode" if standby == "on" else None,
        "standby": "server is not in hot standby mode" if standby == "off" else None,
        "prefer-standby": "server is not in hot standby mode" if standby == "off" else None,
    }
    return problems[wanted]
