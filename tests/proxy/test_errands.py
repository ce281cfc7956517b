"""Reading in threads that may hang: it is noticed where, and neither waited for nor repeated for ever."""

import threading

import pytest

from fixtures.waiting import until
from pgtlsproxy.proxy import errands
from pgtlsproxy.proxy.errands import MAX_ERRANDS, Errands, NoThread


@pytest.fixture
def woken():
    return threading.Event()


@pytest.fixture
def gate():
    """What opens in the end for whoever hangs."""
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
def begun(woken):
    return Errands(woken.set)


def test_what_was_read_is_told_and_wakes(begun, woken):
    errand = begun.begin(lambda _: "content")
    assert woken.wait(20)
    assert (errand.outcome, errand.hangs_at, begun.hangs_at) == ("content", None, None)


def test_what_it_trips_over_is_its_outcome(begun, woken):
    errand = begun.begin(lambda _: 1 / 0)
    assert woken.wait(20)
    assert isinstance(errand.outcome, ZeroDivisionError)


def test_the_file_that_hangs_is_named(begun, gate, monkeypatch):
    monkeypatch.setattr(errands, "HANG_SECONDS", 0.1)

    def read(note):
        note("answers")
        note("hangs")
        gate.wait()

    errand = begun.begin(read)
    assert until(lambda: begun.hangs_at) == "hangs"
    assert begun.due == errand.due == float("inf"), "it is known: nobody has to look again"
    gate.set()
    until(lambda: errand.is_over)
    assert begun.hangs_at is None


def test_those_that_are_forgotten_are_told_no_more_and_are_bounded_all_the_same(begun, gate, monkeypatch):
    monkeypatch.setattr(errands, "HANG_SECONDS", 0.0)
    for _ in range(MAX_ERRANDS):
        begun.begin(lambda _: gate.wait())
        begun.forget()
    assert begun.hangs_at is None
    with pytest.raises(NoThread, match="8 threads hang"):
        begun.begin(lambda _: "content")
    gate.set()
    until(lambda: begun_again(begun))


def begun_again(begun):
    try:
        begun.begin(lambda _: "content")
    except NoThread:
        return False
    return True
