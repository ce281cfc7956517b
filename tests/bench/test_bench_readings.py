import pytest

from benchmarks.bars import judge
from benchmarks.readings import Reading, Readings, is_equal, quotient, rotated


def readings(*rows):
    return Readings(
        Reading(measure, case, peer, number, {metric: value})
        for measure, case, peer, metric, values in rows
        for number, value in enumerate(values)
    )


def test_a_metric_is_the_median_of_its_rounds_and_keeps_their_range():
    taken = readings(("simple", "1 client", "envoy", "cpu_us", [50.0, 10.0, 20.0]))
    summary = taken.summary("simple", "1 client", "envoy", "cpu_us")
    assert (summary.median, summary.lowest, summary.highest) == (20.0, 10.0, 50.0)


def test_ours_comes_first_and_the_control_last():
    taken = readings(
        *[
            ("simple", "1 client", peer, "cpu_us", [1.0])
            for peer in ("direct", "haproxy", "pgtlsproxy", "envoy")
        ]
    )
    assert taken.peers("simple", "1 client") == ["pgtlsproxy", "envoy", "haproxy", "direct"]


@pytest.mark.parametrize(("ours", "theirs"), [(None, 1.0), (1.0, None), (1.0, 0.0)])
def test_what_is_not_known_has_no_quotient(ours, theirs):
    assert quotient(ours, theirs) is None


@pytest.mark.parametrize(
    ("ratio", "equal"), [(1.0, True), (1.049, True), (0.951, True), (1.05, False), (0.94, False)]
)
def test_less_than_five_percent_is_no_difference(ratio, equal):
    assert is_equal(ratio) is equal


def test_each_round_begins_with_another_proxy_and_has_them_all():
    rounds = [list(rotated("abc", number)) for number in range(4)]
    assert rounds == [list("abc"), list("bca"), list("cab"), list("abc")]
    assert rotated([], 3) == []


def verdict(found, what, against):
    return next(each for each in found if (each.what, each.against) == (what, against))


@pytest.mark.parametrize(
    ("ours", "word"), [([20.0], "met"), ([19.0], "met"), ([20.9], "equal"), ([21.1], "missed")]
)
def test_a_bar_is_met_equal_or_missed_by_the_medians(ours, word):
    taken = readings(
        ("simple", "8 clients", "pgtlsproxy", "cpu_us", ours),
        ("simple", "8 clients", "pgbouncer", "cpu_us", [20.0, 1.0, 90.0]),
    )
    found = judge(taken)
    assert verdict(found, "CPU of a transaction, 8 clients", "pgbouncer").word == word
    assert verdict(found, "CPU of a transaction, 8 clients", "envoy").word == "not measured"


def test_two_workers_must_do_half_as_much_again():
    def time_of_two(per_second):
        taken = readings(
            ("workers", "1 process", "pgtlsproxy", "per_second", [1000.0]),
            ("workers", "2 processes", "pgtlsproxy", "per_second", [per_second]),
        )
        return verdict(judge(taken), "time of a transaction with 2 workers", "with 1").word

    assert (time_of_two(1500.0), time_of_two(1300.0)) == ("met", "missed")


def test_an_active_session_is_compared_with_itself_without_idle_ones():
    taken = readings(
        ("idle", "alone", "pgtlsproxy", "cpu_us", [40.0]),
        ("idle", "beside 3000 idle", "pgtlsproxy", "cpu_us", [50.0]),
    )
    found = verdict(judge(taken), "CPU of a transaction beside 3000 idle", "alone")
    assert (found.found, found.word) == (1.25, "missed")
