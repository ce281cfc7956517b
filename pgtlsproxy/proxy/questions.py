"""Of whom a backend is asked next: one question for all logins of a user, and sources of logins take turns.

So whoever sends a crowd of invented names delays those of its own source. A question that nobody waits for
any more is not asked.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import Final

import trio

from pgtlsproxy.proxy.auth_connection import Asked

MOST_OF_A_SOURCE: Final = 64
"""Users that logins of one source wait to be asked for; one more, and its login is refused."""

MOST_WAITING: Final = 4_000
"""The same of all sources together."""


class TooManyQuestions(Exception):
    """So many questions wait that one more is not asked."""


@dataclass(slots=True, eq=False)
class Asking:
    """A question, for all who wait for its answer.

    Attributes:
        user: who is asked for.
        waiting: how many logins of each source wait.
        is_begun: whether it is being asked.
        over: set when there is an answer, or a failure.
        asked: the answer.
        failure: why there is none, for the log.
        bug: what went wrong with us.
    """

    user: str
    waiting: Counter[str] = field(default_factory=Counter)
    is_begun: bool = False
    over: trio.Event = field(default_factory=trio.Event)
    asked: Asked | None = None
    failure: str = ""
    bug: Exception | None = None


class Questions:
    """Those that wait, and the one that is being asked."""

    def __init__(self) -> None:
        self._open: dict[str, Asking] = {}
        # The source whose turn it is comes first; so does its oldest question.
        self._turns: OrderedDict[str, OrderedDict[str, Asking]] = OrderedDict()
        self._places = 0

    def join(self, user: str, source: str) -> Asking:
        """Wait for an answer, and `leave` when it is there or no longer wanted.

        Args:
            user: who is asked for.
            source: whose login waits.

        Raises:
            TooManyQuestions: it may not wait.
        """
        question = self._open.get(user) or Asking(user)
        if not question.is_begun and source not in question.waiting:
            self._line_up(question, source)
        question.waiting[source] += 1
        self._open[user] = question
        return question

    def _line_up(self, question: Asking, source: str) -> None:
        # The question of another source that waits for the user too may have its turn much later.
        if len(self._turns.get(source, ())) >= MOST_OF_A_SOURCE:
            raise TooManyQuestions(
                f"logins of this source wait for {MOST_OF_A_SOURCE} users to be asked for already"
            )
        if self._places >= MOST_WAITING:
            raise TooManyQuestions(f"{MOST_WAITING} questions wait already")
        self._turns.setdefault(source, OrderedDict())[question.user] = question
        self._places += 1

    def leave(self, question: Asking, source: str) -> None:
        """Wait no longer; a question that nobody waits for is not asked."""
        question.waiting[source] -= 1
        if question.waiting[source]:
            return
        del question.waiting[source]
        if question.is_begun:
            return
        self._take_out(question, source)
        if not question.waiting:
            del self._open[question.user]

    def begin(self) -> Asking | None:
        """The question to be asked now; None where none waits. When it is `over`, the next one may begin."""
        if not self._turns:
            return None
        source, questions = next(iter(self._turns.items()))
        question = next(iter(questions.values()))
        question.is_begun = True
        for each in question.waiting:
            self._take_out(question, each)
        if source in self._turns:
            self._turns.move_to_end(source)
        return question

    def end(self, question: Asking) -> None:
        """Let those hear the answer who wait for it; whoever comes now asks anew."""
        del self._open[question.user]
        question.over.set()

    def _take_out(self, question: Asking, source: str) -> None:
        del self._turns[source][question.user]
        self._places -= 1
        if not self._turns[source]:
            del self._turns[source]
