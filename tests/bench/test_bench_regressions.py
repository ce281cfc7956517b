"""`./dev bench --against`: what has become dearer since an earlier run is found, and nothing else."""

import json

import pytest

from benchmarks.bars import Verdict
from benchmarks.regressions import Regression, UnusableResults, earlier_bars, regressions


def verdict(what, found):
    return Verdict(what, "pgbouncer", 1.0, found)


def test_what_is_a_fifth_dearer_is_named():
    before = {("a", "pgbouncer"): 1.0, ("b", "pgbouncer"): 1.0, ("c", "pgbouncer"): 1.0}
    now = [verdict("a", 1.19), verdict("b", 1.21), verdict("c", None), verdict("new", 9.0)]
    assert regressions(before, now) == [Regression("b", "pgbouncer", 1.0, 1.21)]
    assert str(regressions(before, now)[0]) == "b against pgbouncer: 1.21, was 1.00"


def test_the_json_of_a_run_is_what_is_compared_with(tmp_path):
    path = tmp_path / "full.json"
    bars = [
        {"what": "a", "against": "envoy", "limit": 1.0, "found": 1.5, "verdict": "missed"},
        {"what": "b", "against": "envoy", "limit": 1.0, "found": None, "verdict": "not measured"},
    ]
    path.write_text(json.dumps({"bars": bars}))
    assert earlier_bars(path) == {("a", "envoy"): 1.5}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"bars": [1]}', '{"bars": [{"what": "a"}]}'])
def test_what_is_no_result_is_said_to_be_none(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(UnusableResults, match="no results of an earlier run"):
        earlier_bars(path)
