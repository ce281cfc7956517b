"""An idle time begins with the last answer or question, and never ends early: whatever came between two looks."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgtlsproxy.proxy import relay_limits
from pgtlsproxy.proxy.relay_ending import Due, Ending, Limits, When, Wish
from pgtlsproxy.proxy.relay_limits import Watched

IDLE_SECONDS = 10.0
IDLE = Wish(Ending("timeout", "idle"), When.IDLE)
OLD, DUE, OVER = (Wish(Ending("timeout", when.value), when) for when in When)


@dataclass
class Session:
    """A session as far as it is looked at."""

    is_idle: bool = True
    wish: Wish | None = None
    from_client: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(octets=0))
    from_backend: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(octets=0))

    def may_be_ended(self, when):
        assert when is When.IDLE
        return self.is_idle


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture(autouse=True)
def clock():
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        patch.setattr(relay_limits, "time", clock)
        yield clock


def watch(**limits):
    session = Session()
    return session, Watched(session, Limits(**limits))


@given(st.lists(st.sampled_from(["question", "answer", "notification", "look"]), min_size=1, max_size=60))
def test_nobody_ends_early_and_everybody_within_two_looks(events):
    """A second passes before each event; a question is answered by the next answer."""
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        patch.setattr(relay_limits, "time", clock)
        session, watched = watch(idle=Due(IDLE_SECONDS, IDLE))
        idle_since = clock.now
        for event in [*events, *["look"] * 20]:
            clock.now += 1
            if event == "question":
                session.from_client.octets += 9
                session.is_idle = False
            elif event == "answer" and not session.is_idle:
                session.from_backend.octets += 7
                session.is_idle, idle_since = True, clock.now
            elif event == "notification":
                session.from_backend.octets += 5
            elif event == "look" and watched.due() is not None:
                assert session.is_idle
                assert clock.now - idle_since >= IDLE_SECONDS
                return
        assert not session.is_idle


def test_a_client_that_only_listens_is_idle(clock):
    """PostgreSQL ends it, too."""
    session, watched = watch(idle=Due(IDLE_SECONDS, IDLE))
    for _ in range(10):
        assert watched.due() is None
        clock.now += 1
        session.from_backend.octets += 50
    assert watched.due() is IDLE


def test_a_client_that_asks_now_and_then_is_not(clock):
    session, watched = watch(idle=Due(IDLE_SECONDS, IDLE))
    for _ in range(50):
        clock.now += 1
        session.from_client.octets += 20
        session.from_backend.octets += 50
        assert watched.due() is None


def test_what_grows_more_urgent_with_age_takes_the_place_of_what_was_wished_before(clock):
    session, watched = watch(ends=(Due(10, OLD), Due(20, DUE), Due(22, OVER)))
    for seconds, wish in ((9, None), (1, OLD), (9, None), (1, DUE), (1, None), (1, OVER), (1, None)):
        clock.now += seconds
        assert watched.due() is wish
        session.wish = wish or session.wish


def test_the_most_urgent_of_what_is_due_counts(clock):
    _, watched = watch(ends=(Due(10, OVER), Due(11, OLD)))
    clock.now += 11
    assert watched.due() is OVER


def test_whoever_leaves_with_the_proxy_is_not_asked_to_stay_longer(clock):
    session, watched = watch(idle=Due(IDLE_SECONDS, IDLE), ends=(Due(5, OLD),))
    session.wish = Wish(Ending("shutdown", "the proxy ends"), When.BOUNDARY)
    clock.now += 100
    watched.due()
    clock.now += 100
    assert watched.due() is None
