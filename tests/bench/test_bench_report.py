import json

import pytest
from click.testing import CliRunner

from benchmarks import peers
from benchmarks.__main__ import bench
from benchmarks.measures import MEASURES, QUICK
from benchmarks.readings import Failure, Reading
from benchmarks.report import (
    COSTS,
    DOCUMENT_END,
    DOCUMENT_START,
    TITLES,
    UNITS,
    Outcome,
    as_json,
    as_markdown,
    number,
    put_into_document,
)


def outcome(*failures):
    taken = [
        Reading("simple", "8 clients", peer, count, {"cpu_us": cpu + count, "per_second": 1000.0})
        for peer, cpu in (("pgtlsproxy", 30.0), ("envoy", 20.0))
        for count in range(3)
    ] + [Reading("simple", "8 clients", "direct", 0, {"per_second": 2000.0})]
    return Outcome(QUICK, "partial", {"envoy": "1.2"}, taken, failures, 12.0)


def test_a_row_has_the_median_the_range_and_ours_divided_by_it():
    rows = [[cell.strip() for cell in line.split("|")] for line in as_markdown(outcome()).splitlines()]
    assert ["", "8 clients", "pgtlsproxy", "31.0", "30.0-32.0", "", "1000", ""] in rows
    assert ["", "8 clients", "envoy", "21.0", "20.0-22.0", "1.48", "1000", ""] in rows
    assert ["", "8 clients", "direct", "-", "-", "", "2000", ""] in rows


def test_what_is_missing_is_named_with_its_reason_made_printable():
    text = as_markdown(outcome(Failure("idle", "", "stunnel", "died\x1b[2J")))
    assert "* stunnel idle: died\\x1b[2J" in text


def test_the_json_keeps_every_round_and_what_is_missing():
    document = json.loads(as_json(outcome(Failure("", "", "haproxy", "not installed"))))
    assert [row["values"]["cpu_us"] for row in document["readings"] if row["peer"] == "envoy"] == [20, 21, 22]
    assert document["missing"][0]["reason"] == "not installed"
    assert {row["verdict"] for row in document["bars"]} == {"missed", "not measured"}
    assert document["machine"]["python"]


def test_figures_replace_what_stands_between_the_marks_and_nothing_else():
    document = f"before\n{DOCUMENT_START}\nold\n{DOCUMENT_END}\nafter\n"
    assert put_into_document(document, "new") == f"before\n{DOCUMENT_START}\n\nnew\n\n{DOCUMENT_END}\nafter\n"
    with pytest.raises(ValueError, match="no marks"):
        put_into_document("before and after", "new")


@pytest.mark.parametrize(
    ("value", "shown"), [(0.123, "0.12"), (9.87, "9.87"), (12.34, "12.3"), (12345.6, "12346")]
)
def test_a_figure_shows_what_it_is_worth(value, shown):
    assert number(value) == shown


def test_every_measure_has_a_title_and_every_cost_a_unit():
    assert TITLES.keys() >= MEASURES.keys() | {"memory"}
    assert UNITS.keys() >= set(COSTS)


def test_an_unknown_peer_is_refused_by_name():
    result = CliRunner().invoke(bench, ["--peers", "pgbouncer,pgcat"])
    assert result.exit_code != 0
    assert "pgcat: not one of pgbouncer, haproxy, envoy, stunnel, direct" in result.output


def test_only_packages_of_peers_that_were_asked_for_and_are_missing_are_wanted(monkeypatch):
    monkeypatch.setattr(peers, "_program", lambda name: "/bin/true" if name == "pgbouncer" else None)
    monkeypatch.setattr(peers, "_version", lambda program, _arguments: program and "1.2")
    result = CliRunner().invoke(bench, ["--missing-packages", "--peers", "pgbouncer,haproxy,envoy"])
    assert result.output.split() == ["haproxy"]


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("PgBouncer 1.18.0\nlibevent 2.1.12-stable", "1.18.0"),
        ("HAProxy version 2.6.12-1+deb12u4 2026/10/17", "2.6.12"),
        ("envoy  version: 3f0d/1.40.0/Clean/RELEASE/BoringSSL", "1.40.0"),
        ("nothing", None),
    ],
)
def test_a_version_is_what_a_program_says(said, version):
    assert peers.version_in(said) == version
