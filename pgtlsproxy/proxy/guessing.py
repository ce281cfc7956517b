"""How often a user's password was guessed wrong from one place, and how long the next guess waits for it.

What is counted is a pair of source and user: nobody can slow down a user who comes from somewhere else. A
pair without failures has AT_ONCE logins judged at once, so that a pool opens as fast as ever. After a failure
they are judged one at a time, and from the fifth on each waits, twice as long as the one before, counted from
the last failure. It waits before it is judged: whoever hangs up early, or asks many times in parallel, has
learnt nothing. The first right one ends it for all that wait.

Nothing here knows whether a user exists. It is this worker's alone: over several workers there are so many
times as many guesses at most, and no login has to wait for another process.

A login that waits holds what one holds that says nothing: a place among `max_pending`, of which the oldest
makes room for whoever comes next.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

from pgtlsproxy.errors import ShuttingDown
from pgtlsproxy.observability.logs import SessionLog
from pgtlsproxy.protocol.scram.server import WrongProof

AT_ONCE: Final = 32
"""Logins of a pair without failures that are judged at once."""

FREE_FAILURES: Final = 4
"""Failures that delay nothing: people mistype."""

FIRST_DELAY: Final = 0.25
"""Seconds that the login behind the fifth failure waits."""

LONGEST_DELAY: Final = 8.0
"""Seconds: 450 guesses an hour. Shorter than most clients wait, and than authentication_timeout."""

REMEMBERED_SECONDS: Final = 600.0
"""How long after its last failure a pair counts as one without. Whoever waits for it makes fewer guesses than
with LONGEST_DELAY between them."""

MOST_WAITING: Final = 64
"""Logins of one pair that wait. More are refused unjudged."""

USERS_A_SOURCE: Final = 64
"""Users of one source that are counted apart. All others share a counter, which no success resets: a source
that tries more names slows itself down, and pushes none of its own counters out."""

MOST_PAIRS: Final = 16_384
"""Pairs that are remembered, 8 MB. Where there are more, the source goes whose last failure is the longest
ago. Whoever has so many sources has as many fresh counters already."""


class TooManyGuesses(WrongProof):
    """So many logins of this user and source wait that one more is not even judged.

    Args:
        user: the user of the StartupMessage.
    """

    def __init__(self, user: str) -> None:
        super().__init__(user, f"not judged: {MOST_WAITING} logins of this user from its source wait already")


def delay(failures: int) -> float:
    """Seconds between a failure and the next login that is judged.

    Args:
        failures: how many there were, one after the other.
    """
    doublings = failures - FREE_FAILURES - 1
    return 0.0 if doublings < 0 else min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(doublings, 32))


def says_wrong_password(sqlstate: str | None, *, was_given: bool) -> bool:
    """Whether a backend's refusal is that of a password; PgBouncer's is 08P01, as that of many other things.

    Args:
        sqlstate: its code.
        was_given: whether the backend has had one to judge.
    """
    return sqlstate in {"28000", "28P01"} or (sqlstate == "08P01" and was_given)


class _Pair:
    """What is known of one user from one source.

    Attributes:
        failures: one after the other.
        failed_at: when the last one was, by `trio.current_time()`.
        judged: logins that are being judged.
        waiting: logins that wait to be.
        changed: where they wait.
    """

    __slots__ = ("changed", "failed_at", "failures", "is_shared", "judged", "waiting")

    def __init__(self, *, is_shared: bool = False) -> None:
        self.failures = 0
        self.failed_at = 0.0
        self.judged = 0
        self.waiting = 0
        self.changed = trio.lowlevel.ParkingLot()
        self.is_shared = is_shared

    def seconds_to_wait(self) -> float:
        """Until the next login may be judged; infinite where that hangs on others."""
        now = trio.current_time()
        if now - self.failed_at > REMEMBERED_SECONDS:
            self.failures = 0
        if self.judged >= (1 if self.failures else AT_ONCE):
            return float("inf")
        return max(0.0, self.failed_at + delay(self.failures) - now) if self.failures else 0.0

    def is_idle(self) -> bool:
        """Whether there is nothing to be remembered."""
        return not (self.judged or self.waiting) and (
            not self.failures or trio.current_time() - self.failed_at > REMEMBERED_SECONDS
        )


class _Source:
    """The users of one source."""

    __slots__ = ("others", "users")

    def __init__(self) -> None:
        self.users: dict[str, _Pair] = {}
        self.others = _Pair(is_shared=True)

    def pair(self, user: str) -> _Pair:
        """The user's counter."""
        if user not in self.users and len(self.users) >= USERS_A_SOURCE:
            self.users = {name: pair for name, pair in self.users.items() if not pair.is_idle()}
            if len(self.users) >= USERS_A_SOURCE:
                return self.others
        return self.users.setdefault(user, _Pair())

    def __len__(self) -> int:
        return len(self.users) + 1


class Guesses:
    """Of all users and sources; one a worker."""

    def __init__(self) -> None:
        # The source whose last failure is the longest ago is the first.
        self._sources: OrderedDict[str, _Source] = OrderedDict()
        self._count = 0
        self._is_closed = False

    def __len__(self) -> int:
        return self._count

    @contextmanager
    def of(self, source: str, user: str, log: SessionLog | None = None) -> Iterator[Guess]:
        """One login, while the context lasts. A `WrongProof` that leaves it was a wrong guess.

        Args:
            source: where it comes from (see `ClientAddress.source`).
            user: of the StartupMessage.
            log: told in the end how long it had to wait.
        """
        guess = Guess(self, source, user)
        try:
            yield guess
        except WrongProof:
            guess.wrong()
            raise
        finally:
            guess.unknown()
            if log is not None and guess.waited:
                log.note(delayed=round(guess.waited, 3))

    def close(self) -> None:
        """Let nobody wait any more: the worker ends."""
        self._is_closed = True
        for source in self._sources.values():
            for pair in (*source.users.values(), source.others):
                pair.changed.unpark_all()

    def check_open(self) -> None:
        """Judge whether a login may wait.

        Raises:
            ShuttingDown: none may.
        """
        if self._is_closed:
            raise ShuttingDown("the worker ends, and the login would have had to wait for earlier failures")

    def pair(self, source: str, user: str) -> _Pair:
        """The counter of a pair; it is remembered until `settled`."""
        known = self._sources.get(source)
        if known is None:
            known = self._sources[source] = _Source()
            self._count += 1
            self._make_room()
        before = len(known)
        pair = known.pair(user)
        self._count += len(known) - before
        if self._count > MOST_PAIRS:
            self._make_room()
        return pair

    def settled(self, source: str, user: str, pair: _Pair, *, failed: bool) -> None:
        """Remember what has to be: a pair that nothing is known of is forgotten."""
        known = self._sources.get(source)
        if known is None:
            return  # it has made room for others
        if failed:
            self._sources.move_to_end(source)
        if known.users.get(user) is pair and pair.is_idle():
            del known.users[user]
            self._count -= 1
        self._forget_if_idle(source, known)

    def _make_room(self) -> None:
        """Forget the sources of long ago, and where there are too many, the oldest."""
        while len(self._sources) > 1:
            name, oldest = next(iter(self._sources.items()))
            if self._count <= MOST_PAIRS and not self._forget_if_idle(name, oldest):
                return
            if name in self._sources:
                del self._sources[name]
                self._count -= len(oldest)

    def _forget_if_idle(self, name: str, source: _Source) -> bool:
        if not (source.others.is_idle() and all(pair.is_idle() for pair in source.users.values())):
            return False
        del self._sources[name]
        self._count -= len(source)
        return True


class Guess:
    """One login, whose password is to be judged, and may be guessed.

    Args:
        guesses: where it is counted.
        source: where it comes from.
        user: of the StartupMessage.

    Attributes:
        waited: seconds that it had to.
    """

    def __init__(self, guesses: Guesses, source: str, user: str) -> None:
        self.waited = 0.0
        self._guesses = guesses
        self._source = source
        self._user = user
        self._pair: _Pair | None = None

    async def turn(self) -> None:
        """Wait until this login's password may be judged. Whoever calls judges it, and then says what it was.

        Raises:
            TooManyGuesses: so many wait that it is not judged at all.
            ShuttingDown: the worker ends.
        """
        pair = self._guesses.pair(self._source, self._user)
        if pair.seconds_to_wait():
            await self._wait(pair)
        pair.judged += 1
        self._pair = pair

    async def _wait(self, pair: _Pair) -> None:
        if pair.waiting >= MOST_WAITING:
            raise TooManyGuesses(self._user)
        since = trio.current_time()
        pair.waiting += 1
        try:
            while seconds := pair.seconds_to_wait():
                self._guesses.check_open()
                with trio.move_on_after(seconds):
                    await pair.changed.park()
        except BaseException:
            pair.waiting -= 1
            self._guesses.settled(self._source, self._user, pair, failed=False)
            raise
        else:
            pair.waiting -= 1
        finally:
            self.waited += trio.current_time() - since

    def right(self) -> None:
        """The password was right: earlier failures are forgotten."""
        if self._pair is not None and not self._pair.is_shared:
            self._pair.failures = 0
        self._settle(failed=False)

    def wrong(self) -> None:
        """The password was wrong."""
        if self._pair is not None:
            self._pair.failures += 1
            self._pair.failed_at = trio.current_time()
        self._settle(failed=True)

    def unknown(self) -> None:
        """Nobody has said whether it was right, or somebody has and it was counted."""
        self._settle(failed=False)

    def _settle(self, *, failed: bool) -> None:
        pair, self._pair = self._pair, None
        if pair is None:
            return
        pair.judged -= 1
        pair.changed.unpark_all()
        self._guesses.settled(self._source, self._user, pair, failed=failed)
