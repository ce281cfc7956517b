"""Sessions are counted in memory that workers share, and what was counted survives them."""

import os
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgtlsproxy.errors import ErrorKind
from pgtlsproxy.proxy.tally import OUTCOMES, Tally

LISTENERS = ("a", "b", "c")
ROWS = 3

SESSIONS = st.lists(
    st.tuples(
        st.integers(1, ROWS), st.sampled_from(LISTENERS), st.booleans(), st.none() | st.sampled_from(OUTCOMES)
    ),
    max_size=30,
)


@settings(max_examples=30)
@given(SESSIONS, st.data())
def test_the_figures_are_the_sums_of_what_all_workers_count(sessions, data):
    tally = Tally(ROWS, LISTENERS)
    active, total = Counter(), Counter()
    for row, listener, is_let_in, outcome in sessions:
        count = tally.row(row).session(listener)
        if is_let_in:
            count.let_in()
        if data.draw(st.booleans()):
            count.outcome = outcome
            count.over()
            total[listener, outcome] += 1
        elif is_let_in:
            active[listener] += 1
    for name, figures in tally.figures().items():
        assert figures.active == active[name]
        assert figures.total == {outcome: total[name, outcome] for outcome in OUTCOMES}


def test_another_process_sees_the_same_memory():
    tally = Tally(ROWS, LISTENERS)
    count = Tally(ROWS, LISTENERS, tally.descriptor).row(2).session("b")
    count.let_in()
    assert tally.figures()["b"].active == 1
    assert tally.figures()["a"].active == tally.figures()["c"].active == 0


def test_who_only_reads_sees_it_and_can_change_nothing():
    tally = Tally(1, ("a",))
    reader = Tally(1, ("a",), tally.open_to_read(), reads_only=True)
    session = tally.row(1).session("a")
    session.let_in()
    assert reader.figures()["a"].active == 1
    with pytest.raises(TypeError, match="read-only"):
        reader.row(1).session("a").let_in()
    with pytest.raises(PermissionError):
        Tally(1, ("a",), reader.descriptor)
    os.close(reader.descriptor)


def test_the_sessions_of_a_worker_that_dies_are_cut_and_its_counters_go_on():
    tally = Tally(ROWS, LISTENERS)
    for row in (1, 2):
        ended = tally.row(row).session("a")
        ended.let_in()
        ended.outcome = "ok"
        ended.over()
        tally.row(row).session("a").let_in()
    tally.bury(1)
    figures = tally.figures()["a"]
    assert (figures.active, figures.total["ok"], figures.total[ErrorKind.BUG]) == (1, 2, 1)
    again = tally.row(1).session("a")
    again.outcome = ErrorKind.DENIED
    again.over()
    assert tally.figures()["a"].total[ErrorKind.DENIED] == 1


def test_a_word_does_not_start_over():
    tally = Tally(1, ("a",))
    tally.words[1] = (1 << 32) - 1
    count = tally.row(1).session("a")
    count.outcome = "ok"
    count.over()
    assert tally.figures()["a"].total["ok"] == 1 << 32
