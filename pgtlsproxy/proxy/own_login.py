"""A login of the proxy's own, to ask a backend something that no client asks.

By the proxy's certificate or operating system user, or by SCRAM with a password, bound to the backend's
certificate. A password is never sent, in clear or as MD5, whatever the backend asks for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import trio

from pgtlsproxy.config import Backend
from pgtlsproxy.errors import BackendMisbehaved, BackendUnavailable
from pgtlsproxy.identity import Challenge, Secret, printable
from pgtlsproxy.protocol.backend import LoginExchange, encode_initial_response
from pgtlsproxy.protocol.messages import (
    Authentication,
    Message,
    MessageReader,
    backend_reader,
    parse_error_response,
)
from pgtlsproxy.protocol.passfile import Passfile
from pgtlsproxy.protocol.scram import client
from pgtlsproxy.protocol.scram.keys import Keys, Verifier
from pgtlsproxy.protocol.startup import NEWEST, StartupMessage, encode_startup
from pgtlsproxy.proxy.candidates import Candidates
from pgtlsproxy.proxy.dial import OwnCertificateRefused, dial, read_message, send_startup, send_to_backend
from pgtlsproxy.proxy.resolve import Resolver
from pgtlsproxy.proxy.snapshot import BackendSnapshot
from pgtlsproxy.proxy.stages import BackendAddress
from pgtlsproxy.tls.certificates import end_point_hash
from pgtlsproxy.tls.stream import Leg, TLSLeg

_T = TypeVar("_T")

DERIVATIONS: Final = trio.CapacityLimiter(2)
"""Keys that are derived from passwords at once."""


@dataclass(frozen=True, slots=True)
class LoggedInAs:
    """The backend has let us in.

    Args:
        verifier: the role's, as the backend has it; None where it did not ask for SCRAM.
        parameters: what the backend reported (ParameterStatus).
        unread: what it has sent behind ReadyForQuery.
    """

    verifier: Verifier | None
    parameters: Mapping[str, str]
    unread: bytes = field(repr=False)


async def at_a_server(
    backend: BackendSnapshot, resolver: Resolver, user: str, ask: Callable[[Leg], Awaitable[_T]]
) -> _T:
    """Ask the first server of a backend that answers, over a leg that is closed afterwards.

    Args:
        backend: whose.
        resolver: its names to addresses.
        user: whose certificate is shown, where there is one a user.
        ask: what to do on the leg; BackendUnavailable makes the next server be tried.

    Raises:
        BackendUnavailable: none answers, or not as it should.
    """

    async def ask_and_close(leg: Leg, _: BackendAddress) -> _T:
        try:
            return await ask(leg)
        finally:
            leg.close()

    return await open_at_a_server(backend, resolver, user, ask_and_close)


async def open_at_a_server(
    backend: BackendSnapshot,
    resolver: Resolver,
    user: str,
    begin: Callable[[Leg, BackendAddress], Awaitable[_T]],
) -> _T:
    """The same over a leg that belongs to whoever began on it; it is closed here where that fails.

    Args:
        backend: whose.
        resolver: its names to addresses.
        user: whose certificate is shown, where there is one a user.
        begin: what to do on the leg; BackendUnavailable makes the next server be tried.

    Raises:
        BackendUnavailable: none answers, or not as it should.
    """
    candidates = Candidates(backend.settings, resolver)
    context = await backend.context_for(user)
    while (address := await candidates.next()) is not None:
        try:
            leg = await dial(address, backend.settings, context)
            try:
                return await begin(leg, address)
            except BaseException:
                leg.close()
                raise
        except OwnCertificateRefused as error:
            candidates.failed(error.at(address, backend.settings))
        except BackendUnavailable as error:
            candidates.failed(error)
    raise candidates.exhausted(backend.name)


def password_at(
    address: BackendAddress, passfile: Passfile | None, database: str, user: str
) -> Secret | None:
    """The password of a role of the proxy's own at a server; None where it needs none.

    Args:
        address: the server's.
        passfile: where it stands; None for a role without.
        database: where it logs in.
        user: the role.

    Raises:
        BackendMisbehaved: the file has none for this server.
    """
    if passfile is None:
        return None
    host = address.host or address.ip or ""
    password = passfile.password(host, address.port, database, user)
    if password is None:
        wanted = ":".join((host, str(address.port), database, user))
        raise BackendMisbehaved(f"no line of {printable(passfile.file)} is for {printable(wanted)}")
    return password


async def log_in_as(
    leg: Leg,
    backend: Backend,
    user: str,
    database: str,
    password: Secret | None,
    parameters: Sequence[tuple[str, str]] = (),
) -> LoggedInAs:
    """Log in at a backend that has proved itself.

    Args:
        leg: nothing has been said on it.
        backend: its settings.
        user: the role.
        database: where.
        password: the role's; None where the backend must not ask for one.
        parameters: settings of the session.

    Raises:
        BackendMisbehaved: it does not let us in, or does not know the role's password itself.
        BackendUnavailable: it closed.
    """
    startup = StartupMessage(NEWEST, user, database, parameters=tuple(parameters))
    login = _Login(leg, user)
    await send_startup(leg, encode_startup(startup, newest=backend.max_protocol_version))
    verifier = None
    while not login.exchange.is_authenticated:
        request = await login.next_request()
        if request is not None and request.code != 0:
            verifier = await login.prove(request, password)
    while not login.exchange.is_ready:
        await login.next_request()
    return LoggedInAs(verifier, login.exchange.parameters, login.reader.take_unread())


class _Login:
    def __init__(self, leg: Leg, user: str) -> None:
        self.reader: MessageReader = backend_reader()
        self.exchange = LoginExchange()
        self._leg = leg
        self._who = f'user "{printable(user)}"'

    async def next_request(self) -> Authentication | None:
        """The backend's next message, taken; an Authentication message is given."""
        message = await read_message(self._leg, self.reader)
        match message.type:
            case b"R":
                return self.exchange.authentication(message)
            case b"E":
                error = parse_error_response(message.body)
                raise BackendMisbehaved(f"the backend refuses {self._who}: {error.sqlstate}: {error.message}")
            case b"v" | b"N":
                return None
            case _:
                self.exchange.other(message)
                return None

    async def prove(self, request: Authentication, password: Secret | None) -> Verifier:
        """Take the client's part of a SCRAM exchange."""
        if password is None:
            raise BackendMisbehaved(
                f"the backend asks {self._who} for a password, and there is none: its pg_hba.conf "
                "needs a line with cert, or at a Unix socket peer, for this role"
            )
        if self.exchange.outcome.challenge is not Challenge.SCRAM:
            raise BackendMisbehaved(
                f"the backend asks {self._who} for something else than SCRAM, and a password is proved by it "
                "alone: let its pg_hba.conf say scram-sha-256, and set the password anew if its secret is MD5"
            )
        opened = client.begin(request.mechanisms, self._end_point())
        server_first = await self._answer(
            encode_initial_response(opened.mechanism, opened.client_first), expected=11
        )
        salt, iterations = opened.challenge(server_first)
        keys = await trio.to_thread.run_sync(Keys.derive, password, salt, iterations, limiter=DERIVATIONS)
        answered = opened.answer(server_first, keys)
        answered.check(await self._answer(Message(b"p", answered.client_final), expected=12))
        stored_key = Secret(hashlib.sha256(keys.client_key.reveal()).digest())
        return Verifier(salt, iterations, stored_key, keys.server_key)

    async def _answer(self, answer: Message, expected: int) -> bytes:
        """Send an answer, and give what comes of it."""
        self.exchange.client_message(answer)
        await send_to_backend(self._leg, answer.raw)
        while (request := await self.next_request()) is None:
            pass
        if request.code != expected:
            raise BackendMisbehaved(f"the backend sent Authentication {request.code}, expected {expected}")
        return request.data

    def _end_point(self) -> bytes | None:
        leg = self._leg
        leaf = leg.peer_leaf if isinstance(leg, TLSLeg) else None
        return None if leaf is None else end_point_hash(leaf)
