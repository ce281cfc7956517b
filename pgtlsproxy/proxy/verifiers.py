"""Where a login finds the SCRAM verifier of its user: in scram_secrets_file, and else by auth_query.

A user who has a line in the file is the file's alone, an expired line included. Who is listed, asked for or
unknown must not show: where the proxy asks for the proof, every login costs one question before it is asked
anything, and elsewhere everyone that fails does, before it is refused.
"""

from __future__ import annotations

import secrets as random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from pgtlsproxy.identity import Secret
from pgtlsproxy.protocol.scram.keys import KEY_OCTETS, Verifier
from pgtlsproxy.protocol.scram.secrets import Secrets
from pgtlsproxy.proxy.auth_connection import Asked
from pgtlsproxy.proxy.auth_query import AskedVerifiers, Asker, AuthQueries, LookUpFailed
from pgtlsproxy.proxy.hang_up import hung_up
from pgtlsproxy.proxy.snapshot import ListenerSnapshot, Snapshot
from pgtlsproxy.proxy.stages import Accepted

_ALWAYS: Final = float("-inf")


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a user's verifier.

    Args:
        verifier: None where there is none, or where it has expired.
        where: where it comes from, for the log.
        is_asked: whether it was asked for, and does not stand in a file.
        lack: why there is none, to be put behind `where`.
        since: when the look-up began; what is asked for from then on is newer.
        is_answered: whether whoever was asked has said anything.
    """

    verifier: Verifier | None
    where: str
    is_asked: bool
    lack: str
    since: float
    is_answered: bool = True

    @property
    def explained(self) -> str:
        """Why there is none, as a clause."""
        return f"{self.where} {self.lack}"


@dataclass(frozen=True, slots=True)
class Sources:
    """Where one configuration of a listener has its users' verifiers from.

    Args:
        secrets: what it lists.
        asked: whom it asks for others; None where nobody.
    """

    secrets: Secrets
    asked: AskedVerifiers | None

    async def look(self, user: str, asker: Asker, not_before: float = _ALWAYS) -> Known:
        """What is known of a user's verifier.

        Args:
            user: of the StartupMessage.
            asker: the login.
            not_before: what has been asked for must have been then or later, by the monotonic clock.
        """
        since = time.monotonic()
        if self.asked is None or (user in self.secrets.by_user and not_before == _ALWAYS):
            return self._listed(user, since)
        found = await self._found(self.asked, self.asked.look(user, asker, not_before), since)
        # Who fails is asked for even if listed: by the time that it takes nobody shall tell.
        return self._listed(user, since) if user in self.secrets.by_user else found

    async def look_alike(self, user: str, asker: Asker) -> Known:
        """The same, on one road for all who have proved nothing yet: listed, remembered, or unknown."""
        since = time.monotonic()
        if self.asked is None:
            return self._listed(user, since)
        if user in self.secrets.by_user:
            await self.asked.show_nothing(user, asker)
            return self._listed(user, since)
        return await self._found(self.asked, self.asked.look_alike(user, asker), since)

    def _listed(self, user: str, since: float) -> Known:
        verifier = self.secrets.verifier(user, time.time())
        lack = "" if verifier is not None else "has no line for the user, or one that has expired"
        return Known(verifier, self.secrets.where(user), is_asked=False, lack=lack, since=since)

    async def _found(self, asked: AskedVerifiers, asking: Awaitable[Asked], since: float) -> Known:
        where = f"auth_query at backend {asked.name}"
        try:
            secret = (await asking).secret
        except LookUpFailed as error:
            lack = f"has no answer: {error.reason}"
            return Known(None, where, is_asked=True, lack=lack, since=since, is_answered=False)
        now = time.time()  # behind the question, which may have taken a while
        lack = "says that the password has expired" if secret.is_expired(now) else secret.lack
        return Known(secret.at(now), where, is_asked=True, lack=lack, since=since)

    def doomed(self, user: str) -> Verifier:
        """A verifier that looks like the user's, or like one that it could have, and fits no password."""
        last = None if self.asked is None else self.asked.last(user)
        if last is not None and last.secret.verifier is not None and not last.secret.is_expired(time.time()):
            # The backend does not answer: the salt that the user had before is not to change for that.
            keys = (Secret(random.token_bytes(KEY_OCTETS)) for _ in range(2))
            return Verifier(last.secret.verifier.salt, last.secret.verifier.iterations, *keys)
        return self.secrets.doomed(user, None if self.asked is None else self.asked.iterations)


@dataclass(frozen=True, slots=True)
class Verifiers:
    """Where the verifier of a session's user is found.

    Args:
        sources: those of the session's configuration.
        newest: those of the configuration that is in service now; None where it has none any more.
        asker: the session.
    """

    sources: Sources
    newest: Callable[[], Sources | None] = field(repr=False)
    asker: Asker

    async def known(self, user: str) -> Known:
        """The user's verifier, by what is believed of it."""
        return await self.sources.look(user, self.asker)

    async def for_challenge(self, user: str) -> tuple[Known, Verifier]:
        """What is known, and the user's verifier, or one that looks the same and fits no password."""
        known = await self.sources.look_alike(user, self.asker)
        doomed = self.doomed(user)  # for everybody: it takes a tenth of the turn's time, which would show
        return known, known.verifier or doomed

    def doomed(self, user: str) -> Verifier:
        """A verifier that looks like the user's and fits no password."""
        return self.sources.doomed(user)

    async def fresh(self, user: str, known: Known) -> Known:
        """What is newer than what is known; for whom that does not prove.

        Where nobody has answered, nobody is asked again: whoever is known waits for one answer too.
        """
        return await self._newest(user, known.since) if known.is_answered else known

    async def current(self, user: str) -> Known:
        """What is believed now, by the configuration that is in service."""
        return await self._newest(user, _ALWAYS)

    async def _newest(self, user: str, not_before: float) -> Known:
        sources = self.newest()
        if sources is not None:
            return await sources.look(user, self.asker, not_before)
        where = "the configuration in service"
        return Known(None, where, is_asked=False, lack="has no verifiers", since=time.monotonic())


def verifiers_of(
    accepted: Accepted, in_service: Callable[[], Snapshot], asked: AuthQueries
) -> Verifiers | None:
    """Where the verifiers of a session's users are found; None where its listener has none.

    Args:
        accepted: the session.
        in_service: gives the configuration that is served now.
        asked: what has been asked of backends.
    """
    listener = accepted.listener

    def sources_of(found: ListenerSnapshot | None, number: int) -> Sources | None:
        if found is None or found.secrets is None:
            return None
        return Sources(found.secrets, asked.of(found, number))

    def newest() -> Sources | None:
        served = in_service()
        return sources_of(served.listeners.get(listener.name), served.generation)

    sources = sources_of(listener, accepted.snapshot.generation)
    asker = Asker(accepted.source, partial(hung_up, accepted.sock))
    return None if sources is None else Verifiers(sources, newest, asker)
