"""A session ends with the first certificate of its chain that does, and with nothing where the listener says nothing."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from pgtlsproxy.config.listener import Listener
from pgtlsproxy.protocol.startup import Replication
from pgtlsproxy.proxy.relay_ending import NO_LIMITS, When
from pgtlsproxy.proxy.session_limits import SPREAD, limits_of
from pgtlsproxy.tls.stream import ClearLeg, TLSLeg

HOUR = 3600.0


class Shown(TLSLeg):
    """A leg whose client has shown certificates that last for so long."""

    def __init__(self, *seconds):
        now = datetime.now(UTC)
        self._chain = tuple(
            SimpleNamespace(not_valid_after_utc=now + timedelta(seconds=each)) for each in seconds
        )

    @property
    def peer_chain(self):
        return self._chain


def limits(leg=None, replication=Replication.NONE, **settings):
    listener = SimpleNamespace(settings=Listener.model_construct(**settings))
    accepted = SimpleNamespace(session="0a", listener=listener)
    startup = SimpleNamespace(replication=replication)
    return limits_of(SimpleNamespace(accepted=accepted, leg=leg or Shown(HOUR), startup=startup))


def moments(found):
    return [(due.wish.when, due.seconds) for due in found.ends]


def test_by_default_there_are_none():
    assert limits() is NO_LIMITS


@pytest.mark.parametrize("chain", [(HOUR, 9 * HOUR), (9 * HOUR, HOUR, 9 * HOUR)])
def test_the_first_certificate_to_end_counts(chain):
    for _ in range(50):
        (idle, boundary, now) = moments(limits(Shown(*chain), expired_sessions="close"))
        assert [when for when, _ in (idle, boundary, now)] == list(When)
        assert HOUR * (1 - SPREAD) - 1 < idle[1] <= HOUR
        assert HOUR - 1 < boundary[1] <= HOUR < now[1] + 1


def test_not_all_sessions_of_an_hour_end_at_once():
    first = {round(moments(limits(expired_sessions="close"))[0][1]) for _ in range(50)}
    assert len(first) > 10


def test_a_certificate_that_has_run_out_meanwhile_ends_its_session_at_once():
    found = moments(limits(Shown(-5), expired_sessions="close"))
    assert [seconds for _, seconds in found][:2] == [0, 0]


@pytest.mark.parametrize("leg", [Shown(), ClearLeg.__new__(ClearLeg)])
def test_without_a_certificate_nothing_runs_out(leg):
    assert limits(leg, expired_sessions="close") is NO_LIMITS


@pytest.mark.parametrize("replication", [Replication.PHYSICAL, Replication.LOGICAL])
def test_replication_has_no_lifetime_but_its_certificates(replication):
    assert limits(replication=replication, session_lifetime=60.0) is NO_LIMITS
    found = limits(replication=replication, session_lifetime=60.0, expired_sessions="close")
    assert len(found.ends) == 3


def test_what_comes_first_is_first():
    found = limits(session_lifetime=60.0, idle_session_timeout=5.0, expired_sessions="close")
    assert found.idle.seconds == 5
    assert moments(found)[0] == (When.IDLE, 60)
    assert b"57P05" in found.idle.wish.farewell
    assert b"57P01" in found.ends[0].wish.farewell
