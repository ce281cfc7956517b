"""What a backend asks before AuthenticationOk, and who answers it.

The client, to whom it is passed on as it is; the client, by a SCRAM exchange that has to be bridged; or we,
with the password that the client has shown us. What a backend may ask at all is `policy.challenge`'s to say.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

import trio

from pgtlsproxy.errors import BackendMisbehaved, ChannelBindingImpossible, ClientGone, ErrorKind, ProxyError
from pgtlsproxy.identity import Challenge, Secret, encode_name, printable
from pgtlsproxy.policy.access import Grant
from pgtlsproxy.policy.challenge import Action, ClientLeg, judge
from pgtlsproxy.policy.hba import Method, Replication
from pgtlsproxy.policy.proofs import Login
from pgtlsproxy.protocol.backend import (
    SCRAM,
    SCRAM_PLUS,
    BindingFlag,
    LoginExchange,
    encode_initial_response,
    without_channel_binding,
)
from pgtlsproxy.protocol.messages import (
    AUTHENTICATION_SASL,
    Authentication,
    Message,
    client_reader,
    encode_sasl_mechanisms,
    md5_answer,
    parse_error_response,
    parse_password,
)
from pgtlsproxy.protocol.scram import client as scram_client
from pgtlsproxy.protocol.scram.messages import read_server_final
from pgtlsproxy.proxy.bridge import Bridge
from pgtlsproxy.proxy.client import Client
from pgtlsproxy.proxy.dial import read_message, send_to_backend
from pgtlsproxy.proxy.guessing import Guess, says_wrong_password
from pgtlsproxy.proxy.prove import (
    ASK_FOR_PASSWORD,
    ASK_TO_BEGIN,
    PASSWORD_CHECKS,
    client_end_point,
    greeting,
)
from pgtlsproxy.proxy.stages import BackendLeg, Negotiated, Proved
from pgtlsproxy.proxy.verifiers import Verifiers
from pgtlsproxy.tls.certificates import end_point_hash
from pgtlsproxy.tls.stream import MAX_RECORD_OCTETS, TLSLeg

_SASL_FINAL: Final = 12

_METHODS: Final = MappingProxyType({3: "password", 5: "md5", 7: "gss", 9: "sspi"})
"""What require_auth calls an Authentication message."""

_METHODS_OF_MECHANISMS: Final = MappingProxyType(
    {SCRAM: "scram-sha-256", SCRAM_PLUS: "scram-sha-256", "OAUTHBEARER": "oauth"}
)
"""What it calls a SASL mechanism; one that is not known may show a password, and counts as one."""


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


class Challenges:
    """One exchange, as far as AuthenticationOk.

    Args:
        negotiated: the client.
        grant: what it may do.
        backend: the leg to log in on.
        client: its end, to which the backend's questions go.
        proved: what the proxy has proved itself; None where the backend has to.
        verifiers: where the users' SCRAM verifiers are found; None where the listener has none.
        guess: waits before the client's password is judged.

    Attributes:
        exchange: what the backend has asked, and whether it was answered.
        client_reader: what the client has sent and nobody has taken yet.
        held: what the client is owed and has not been sent yet.
    """

    def __init__(
        self,
        negotiated: Negotiated,
        grant: Grant,
        backend: BackendLeg,
        client: Client,
        proved: Proved | None,
        verifiers: Verifiers | None,
        guess: Guess,
    ) -> None:
        self.exchange = exchange = LoginExchange()
        # Not `self.exchange`: in a cycle, both connections would wait for the garbage collector.
        self.client_reader = client_reader(lambda: exchange.awaited)
        self.held = bytearray()
        if proved is None or not proved.was_asked:
            self.held += greeting(negotiated, grant)
        else:
            self.client_reader.feed(proved.unread)
        self._negotiated = negotiated
        self._grant = grant
        self._backend = backend
        self._client = client
        self._verifiers = verifiers
        self._guess = guess
        self._settings = negotiated.accepted.listener.backends[grant.backend].settings
        self._bridge: Bridge | None = None
        self._is_binding_removed = False

    async def run(self) -> None:
        """The exchange as far as AuthenticationOk, of which the client has not heard then."""
        message = self._backend.first
        while True:
            match message.type:
                case b"R":
                    await self._answer(message)
                case b"E":
                    await self.end_with_error(message)
                case b"N":
                    self.held += message.raw
                case _:
                    self.exchange.other(message)
            if self.exchange.is_authenticated:
                self._guess.right()
                return
            if self.exchange.may_client_answer:
                message = await self._next_of_either()
            else:
                message = await self._read()

    async def _read(self) -> Message:
        return await read_message(self._backend.leg, self._backend.reader)

    async def _next_of_either(self) -> Message:
        """The backend's next message; should the client speak before it, its answer is relayed meanwhile.

        Behind GSSContinue either may be the next: a client whose context is complete says nothing more.
        """
        await self.flush()
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
            message = await self._read()
            waiting.cancel()
        return message

    async def _answer(self, message: Message) -> None:
        """Judge an Authentication message, and have it answered where an answer is due."""
        request = self._judged(message)
        if self._grant.login is Login.PASSFILE and request.code != 0:
            await self._prove_own(request)
            return
        if self._grant.method is Method.PASSWORD and request.code == AUTHENTICATION_SASL:
            await self._prove(await self._asked_password(), request)
            return
        self.held += self._for_client(request) or message.raw
        if self.exchange.is_client_turn:
            await self.flush()
            await self._relay_answer(await self._read_answer())

    def _judged(self, message: Message) -> Authentication:
        """An Authentication message that may come now.

        Raises:
            BackendMisbehaved: it may not.
        """
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
        if request.code == _SASL_FINAL and self.exchange.outcome.challenge is Challenge.SCRAM:
            read_server_final(request.data)  # an error ends nothing well, whoever it is for
        return request

    def _for_client(self, request: Authentication) -> bytes | None:
        """What a request of the backend becomes for the client; None for itself."""
        if self._bridge is not None:
            return self._bridge.for_client(request)
        if request.code != AUTHENTICATION_SASL or self._backend.is_same_leaf:
            return None
        is_bound = SCRAM_PLUS in request.mechanisms
        is_same_host = self._backend.address.ip is None
        if (
            self._verifiers is not None
            and self.exchange.outcome.challenge is Challenge.SCRAM
            and (is_bound or is_same_host)
        ):
            backend_end_point = self._backend_end_point()
            # What `require` means to a client holds on both legs: where another host could stand in between,
            # it may bind only if we do.
            may_bind = is_same_host or backend_end_point is not None
            self._bridge = Bridge(
                self._grant.user,
                self._verifiers,
                client_end_point(self._negotiated) if may_bind else None,
                request.mechanisms,
                backend_end_point,
            )
            return self._bridge.offer
        if is_bound:
            self._is_binding_removed = True
            return encode_sasl_mechanisms(without_channel_binding(request.mechanisms))
        return None

    def _backend_end_point(self) -> bytes | None:
        """What SCRAM binds to on the backend's leg; None where nothing."""
        leg = self._backend.leg
        if not isinstance(leg, TLSLeg) or leg.peer_leaf is None:
            return None
        return end_point_hash(leg.peer_leaf)

    async def _prove_own(self, request: Authentication) -> None:
        """Answer the backend with the password that the proxy has for the user."""
        password = self._own_password()
        match request.code:
            case 3:
                await self._send(Message(b"p", password.reveal() + b"\x00"))
            case 5:
                user = encode_name(self._grant.user)
                await self._send(Message(b"p", md5_answer(user, password, request.data)))
            case _:
                await self._prove(password, request)

    def _own_password(self) -> Secret:
        """The user's password for this server.

        Raises:
            BackendMisbehaved: there is none.
        """
        address, grant = self._backend.address, self._grant
        passfile = self._negotiated.accepted.listener.backends[grant.backend].passwords.users
        is_physical = grant.replication is Replication.PHYSICAL
        database = "replication" if is_physical else grant.backend_database
        host = address.host or address.ip or ""
        if passfile is not None:
            password = passfile.password(host, address.port, database, grant.user)
            if password is not None:
                return password
        wanted = ":".join((host, str(address.port), database, grant.user))
        raise BackendMisbehaved(
            f"{address} asks for the user's password, and no line of {self._settings.passfile} is for "
            f"{printable(wanted)}"
        )

    async def _asked_password(self) -> Secret:
        """The client's password, which it is asked for."""
        if self._client_leg() is ClientLeg.CLEAR_REMOTE:
            raise BackendMisbehaved("a password in clear would have to cross the client's clear leg")
        self.held += ASK_FOR_PASSWORD
        await self.flush()
        password = parse_password((await self._read_answer()).body)
        await self._guess.turn()
        return password

    async def _prove(self, password: Secret, request: Authentication) -> None:
        """Take the client's part of a SCRAM exchange with the backend.

        Args:
            password: the user's.
            request: the backend's AuthenticationSASL.
        """
        opened = scram_client.begin(request.mechanisms, self._backend_end_point())
        challenge = await self._asked(encode_initial_response(opened.mechanism, opened.client_first))
        answered = await trio.to_thread.run_sync(
            opened.answer, challenge.data, password, limiter=PASSWORD_CHECKS
        )
        answered.check((await self._asked(Message(b"p", answered.client_final))).data)

    async def _asked(self, answer: Message) -> Authentication:
        """Send the backend an answer of ours, and take what it says to it."""
        await self._send(answer)
        while (message := await self._read()).type == b"N":
            self.held += message.raw
        if message.type == b"E":
            await self.end_with_error(message)
        if message.type != b"R":
            self.exchange.other(message)
        return self._judged(message)

    async def _send(self, answer: Message) -> None:
        self.exchange.client_message(answer)
        await send_to_backend(self._backend.leg, answer.raw)

    def _check_require_auth(self, request: Authentication) -> None:
        """What require_auth says, as it holds for the backend's first question."""
        if request.code == AUTHENTICATION_SASL:
            methods = [_METHODS_OF_MECHANISMS.get(name, "password") for name in request.mechanisms]
        elif request.code in _METHODS:
            methods = [_METHODS[request.code]]
        elif request.code == 0 and self.exchange.outcome.challenge is Challenge.NONE:
            if self._settings.require_auth is None and self._grant.login is not Login.PASSFILE:
                return  # whether a proof is there is judged apart
            methods = ["none"]
        else:
            return
        for method in methods:
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
            while (for_backend := await self._bridge.for_backend(message)) is None:
                await self._client.send(ASK_TO_BEGIN)
                message = await self._read_answer()
            message = for_backend
        self.exchange.client_message(message)
        flag = self.exchange.binding_flag
        is_scram = self.exchange.outcome.challenge is Challenge.SCRAM
        if is_scram and self._is_binding_removed and flag not in {None, BindingFlag.NOT_SUPPORTED}:
            raise ChannelBindingImpossible(
                "client and backend both do SCRAM channel binding, and TLS ends in between. Ways out: "
                "the users' verifiers at the listener (scram_secrets_file, auth_query), "
                "channel_binding=disable in the client, method cert with login: certificate, or the "
                "backend's own certificate and key at the listener"
            )
        if self.exchange.is_password_given:
            await self._guess.turn()
        await send_to_backend(self._backend.leg, message.raw)

    def _client_leg(self) -> ClientLeg:
        if self._negotiated.leg.is_tls:
            return ClientLeg.SECURE
        is_local = self._negotiated.accepted.address.is_local
        return ClientLeg.CLEAR_LOCAL if is_local else ClientLeg.CLEAR_REMOTE

    async def end_with_error(self, message: Message) -> None:
        """Pass the backend's error on as it came; only a backend that has verified itself gets here.

        Raises:
            BackendRefused: always, but
            BackendMisbehaved: where the proxy's own credential failed, which the client cannot mend and
                need not know of.
        """
        error = parse_error_response(message.body)
        is_wrong = says_wrong_password(error.sqlstate, was_given=self.exchange.is_password_given)
        if is_wrong and not self.exchange.is_authenticated:
            if self._bridge is None or not self._bridge.is_unanswered:
                self._guess.wrong()
            if self._grant.login is not Login.PASSTHROUGH:
                raise BackendMisbehaved(f"the backend refused the proxy's own credential: {error.message}")
        self.held += message.raw
        await self.flush()
        raise BackendRefused(message, None if self._bridge is None else self._bridge.failure)

    async def flush(self) -> None:
        """Send the client what it is owed."""
        if self.held:
            data = bytes(self.held)
            self.held.clear()
            await self._client.send(data)
