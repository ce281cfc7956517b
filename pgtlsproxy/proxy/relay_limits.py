"""Sessions that end by themselves: what the relay looks at once a second, and never when a message passes.

How much was carried shows whether anything was asked. So a session's idle time is counted from the look at
which it was seen to be idle: it may be a second or two longer than it says, and never shorter.
"""

from __future__ import annotations

import time

from pgtlsproxy.proxy.relay_ending import Limits, When, Wish
from pgtlsproxy.proxy.relay_session import RelaySession


class Watched:
    """A session with limits, as it was when it was looked at last.

    Args:
        session: the session; the relay's thread alone looks at it.
        limits: when it is to end.
    """

    __slots__ = ("_answered", "_asked", "_began", "_idle_since", "_is_idle", "limits", "session")

    def __init__(self, session: RelaySession, limits: Limits) -> None:
        self.session = session
        self.limits = limits
        self._began = self._idle_since = time.monotonic()
        self._asked = self._answered = 0
        self._is_idle = False

    def due(self) -> Wish | None:
        """What is to be wished of the session now; None where nothing is, or something as urgent was."""
        now = time.monotonic()
        wishes = [due.wish for due in self.limits.ends if now - self._began >= due.seconds]
        if (idle := self._by_silence(now)) is not None:
            wishes.append(idle)
        wish = max(wishes, key=lambda wish: wish.when.urgency, default=None)
        present = self.session.wish
        if wish is None or (present is not None and wish.when.urgency <= present.when.urgency):
            return None
        return wish

    def _by_silence(self, now: float) -> Wish | None:
        idle = self.limits.idle
        if idle is None:
            return None
        asked, answered = self.session.from_client.octets, self.session.from_backend.octets
        if asked != self._asked:
            self._is_idle = False
        if answered != self._answered or not self._is_idle:
            was_idle, self._is_idle = self._is_idle, self.session.may_be_ended(When.IDLE)
            if not was_idle:  # else it was a notification, which is no answer
                self._idle_since = now
        self._asked, self._answered = asked, answered
        return idle.wish if self._is_idle and now - self._idle_since >= idle.seconds else None
