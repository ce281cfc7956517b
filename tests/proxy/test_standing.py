"""Sessions that are there when the configuration changes: judged once it can be known, and not ended before."""

from types import SimpleNamespace

import pytest
import trio

from pgtlsproxy.policy.access import AccessRefused, DecidedBy
from pgtlsproxy.policy.request import ClientHost, Facts, Unknown
from pgtlsproxy.proxy import standing
from pgtlsproxy.proxy.relay_ending import When


def refusal(*, is_certain):
    refused = AccessRefused("the roles of the user are not known", reply="no", decided_by=DecidedBy.HBA)
    refused.is_certain = is_certain
    return refused


class Sessions:
    """Stands for the relay, the log, and what one needs to judge sessions.

    Attributes:
        living: what is relayed.
        ended: those that were told to end, with when.
        verdicts: what the policy says of a session, one after the other; the last one stays.
        judged: those that were judged, in order.
        warned: events, with how many sessions they tell of.
    """

    def __init__(self, verdicts):
        listener = SimpleNamespace(name="tls", settings=SimpleNamespace(revoked_sessions="close"), trust=None)
        self.snapshot = SimpleNamespace(listeners={"tls": listener}, generation=2)
        self.newest = self.snapshot
        self.verdicts = verdicts
        self.judged = []
        self.warned = []
        self.ended = []
        self.living = [self._session(name) for name in verdicts]

    def _session(self, name):
        about = SimpleNamespace(grant=SimpleNamespace(listener="tls"), chain=(), request=name, session=name)
        return SimpleNamespace(standing=about, proof=None)

    @property
    def services(self):
        return SimpleNamespace(relay=self, logger=self, look_ups=None, in_service=lambda: self.newest)

    def warning(self, event, *, sessions, reason):
        assert reason
        self.warned.append((event, sessions))

    def carried(self):
        return tuple(self.living)

    def end(self, logged_in, wish):
        if any(each is logged_in for each in self.living):
            self.ended.append((logged_in.standing.session, wish.when))

    async def judge(self, _listener, request, _look_ups):
        self.judged.append(request)
        verdicts = self.verdicts[request]
        verdict = verdicts.pop(0) if len(verdicts) > 1 else verdicts[0]
        if isinstance(verdict, Exception):
            raise verdict
        return verdict


@pytest.fixture
def judging(monkeypatch):
    def go(verdicts):
        sessions = Sessions(verdicts)
        monkeypatch.setattr(standing, "judge", sessions.judge)
        monkeypatch.setattr(standing, "require_same", lambda *_: None)
        monkeypatch.setattr(standing, "encode_refusal", lambda *_: b"")

        async def no_vouching(*_args, **_options):
            return None

        monkeypatch.setattr(standing, "_vouching", no_vouching)
        return sessions

    return go


async def test_a_session_that_cannot_be_judged_stays_and_is_judged_again_until_it_can(
    judging, autojump_clock
):
    unknown = refusal(is_certain=False)
    sessions = judging({"alice": [unknown, unknown, "granted"], "bob": [unknown, refusal(is_certain=True)]})
    await standing.judge_the_living(sessions.services, sessions.snapshot)
    assert sessions.judged == ["alice", "bob", "alice", "bob", "alice"]
    assert sessions.ended == [("bob", When.BOUNDARY), ("bob", When.NOW)]
    assert sessions.warned == [("sessions_not_judged", 2), ("sessions_not_judged", 1)]


async def test_one_that_is_never_known_is_ended_in_the_end(judging, autojump_clock):
    sessions = judging({"alice": [refusal(is_certain=False)]})
    began = trio.current_time()
    await standing.judge_the_living(sessions.services, sessions.snapshot)
    assert sessions.ended == [("alice", When.BOUNDARY), ("alice", When.NOW)]
    assert 300 <= trio.current_time() - began < 310


async def test_one_that_is_over_is_not_judged_again(judging, autojump_clock):
    sessions = judging({"alice": [refusal(is_certain=False)]})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(standing.judge_the_living, sessions.services, sessions.snapshot)
        await trio.sleep(1)
        sessions.living.clear()
    assert sessions.judged == ["alice"]


async def test_what_is_newer_judges_it(judging, autojump_clock):
    sessions = judging({"alice": [refusal(is_certain=False)]})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(standing.judge_the_living, sessions.services, sessions.snapshot)
        await trio.sleep(1)
        sessions.newest = SimpleNamespace(generation=3)
    assert sessions.judged == ["alice"]


@pytest.mark.parametrize(
    ("facts", "are_known"),
    [
        (Facts(), True),
        (Facts(roles=frozenset({"staff"}), client_host=ClientHost("db", is_confirmed=False)), True),
        (Facts(roles=Unknown("no answer")), False),
        (Facts(client_host=Unknown("no answer")), False),
        (Facts(client_host=ClientHost("db", is_confirmed=Unknown("no answer"))), False),
    ],
)
def test_facts_are_known_where_every_look_up_had_an_answer(facts, are_known):
    assert facts.are_known is are_known
