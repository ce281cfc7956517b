"""What runs out is said once a day a file, and at once where it is something else that does."""

from datetime import UTC, datetime

import pytest
import structlog

from pgtlsproxy.proxy import lifetimes
from pgtlsproxy.proxy.lifetimes import AGAIN_SECONDS, DAY, Lifetime, Lifetimes

NOW = datetime(2026, 3, 1, tzinfo=UTC).timestamp()


def lifetime(days, *, file="/etc/server.crt", what="CN=localhost", setting="listeners.a.ssl_cert_file"):
    """One of 90 days, of which so many are left."""
    until = NOW + days * DAY
    return Lifetime(setting, file, what, until - 90 * DAY, until - 30 * DAY, until)


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = NOW

    monkeypatch.setattr(lifetimes.time, "time", lambda: Clock.now)
    return Clock


@pytest.fixture
def told(clock):
    """`told()` is what is said now: (event, file, problems)."""
    log = structlog.testing.LogCapture()
    told_of = Lifetimes(structlog.wrap_logger(None, processors=[log], wrapper_class=structlog.BoundLogger))

    def tell(*found):
        if found:
            told_of.take(found)
        told_of.due = 0.0
        log.entries.clear()
        told_of.tell()
        return [(entry["event"], entry["file"], entry["problems"]) for entry in log.entries]

    return tell


SOON = ("expires_soon", "/etc/server.crt", ["CN=localhost expires in 5 days, on 2026-03-06"])


def test_what_is_good_for_long_is_not_worth_a_word(told):
    assert told(lifetime(40)) == []


def test_it_is_said_once_a_day_however_often_it_is_loaded(told, clock):
    assert told(lifetime(5)) == [SOON]
    assert told() == told(lifetime(5)) == []
    clock.now += AGAIN_SECONDS - 1
    assert told() == []
    clock.now += 1
    assert [event for event, *_ in told()] == ["expires_soon"]


def test_it_is_said_at_once_when_it_has_run_out(told, clock):
    told(lifetime(0.01))
    clock.now += 0.02 * DAY
    assert told() == [
        ("expired", "/etc/server.crt", ["CN=localhost expired on 2026-03-01 00:14 UTC: renew it"])
    ]


def test_a_file_that_two_listeners_name_is_said_once(told):
    pair = [lifetime(5), lifetime(5, setting="listeners.b.ssl_cert_file")]
    assert told(*pair) == [SOON]


def test_another_certificate_in_the_file_is_news(told):
    told(lifetime(5))
    assert len(told(lifetime(6))) == 1
    assert told(lifetime(60)) == []
    assert len(told(lifetime(6))) == 1, "what was renewed meanwhile is forgotten"


def test_lists_have_their_own_words(told):
    (soon,) = told(lifetime(5, file="/etc/ca.crl", what=""))
    assert soon == (
        "expires_soon",
        "/etc/ca.crl",
        ["the CRL runs out in 5 days, on 2026-03-06 00:00 UTC: it admits nobody then"],
    )
    (over,) = told(lifetime(-1, file="/etc/ca.crl", what=""))
    assert over[2] == ["the CRL is past its nextUpdate, 2026-02-28 00:00 UTC: it admits nobody"]


def test_what_is_not_good_yet_is_said(told):
    (found,) = told(lifetime(100))
    assert (found[0], found[2]) == ("expired", ["CN=localhost is not valid before 2026-03-11 00:00 UTC"])
