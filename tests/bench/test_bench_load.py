import pytest

from benchmarks.load import Bench, LoadFailed, Transaction, Window, parse_log, quantile, summarise


def test_a_line_of_pgbenchs_log_is_its_end_and_its_latency():
    lines = ["0 199 2241 0 1175850568 995598", "3 7 81 0 1175850569 608 12"]
    assert list(parse_log(lines)) == [
        Transaction(1175850568.995598, 0.002241),
        Transaction(1175850569.000608, 0.000081),
    ]


def test_transactions_that_failed_or_were_skipped_are_none():
    assert list(parse_log(["0 9 skipped 0 1175850568 995598 5", "0 9 failed 0 1175850568 995598"])) == []


def test_only_what_ended_while_the_proxy_was_watched_counts():
    transactions = [Transaction(at, at / 1000) for at in (9.9, 10.0, 11.0, 11.999, 12.0)]
    values = summarise(transactions, Window(10.0, 12.0, 0.3))
    assert values == {"per_second": 1.5, "p50_ms": 11.0, "p99_ms": 11.999, "cpu_us": 1e5}


def test_without_a_proxy_there_is_no_cpu():
    assert "cpu_us" not in summarise([Transaction(1.0, 0.1)], Window(0.0, 2.0, None))


def test_an_idle_window_is_a_failure_and_not_a_division_by_zero():
    with pytest.raises(LoadFailed, match="no transaction"):
        summarise([Transaction(5.0, 0.1)], Window(0.0, 2.0, 0.1))


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (0.01, 1), (1.0, 100)])
def test_a_quantile_is_a_value_that_occurred(share, value):
    assert quantile(list(range(1, 101)), share) == value
    assert quantile([7.0], share) == 7.0


def test_pgbench_is_told_what_the_load_is():
    assert Bench(8, 4).arguments() == ["-n", "-c", "8", "-j", "1", "-T", "4", "-M", "simple", "-S"]
    assert Bench(4, 2, threads=4, reconnect=True).arguments()[-1] == "-C"
    pings = Bench(20, 5, rate=400, script="SELECT 1;\n").arguments()
    assert "-S" not in pings
    assert pings[-4:] == ["-f", "script.sql", "-R", "400"]
