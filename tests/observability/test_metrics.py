"""What is said of the proxy, as Prometheus and people's programs read it."""

import json
import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from pgtlsproxy.observability.figures import Figures, Loaded, NotAfter, Service
from pgtlsproxy.observability.metrics import as_json, exposition

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()

LOADED = Loaded(
    is_good=False,
    good_at=5.5,
    failed=("policy of listener a",),
    not_after=(NotAfter("ca", "listeners.a", 7.0),),
)
FIGURES = Figures(
    "1.2", 3.0, Service(4, 2, is_stopping=False, last=LOADED), {"a": 1}, {"a": {"ok": 2, "bug": 0}}
)


def samples(figures, accept="", parse=text_string_to_metric_families):
    body, _ = exposition(figures, accept)
    return [
        (sample.name, sample.labels, sample.value)
        for family in parse(body.decode())
        for sample in family.samples
    ]


def test_every_metric_stands_in_the_documentation_with_its_labels_and_no_other():
    rows = re.findall(r"^\| `(pgtlsproxy_\w+)` \| (.*?) \|", PAGE, re.MULTILINE)
    documented = {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
    assert {name: set(labels) for name, labels, _ in samples(FIGURES)} == documented


def test_both_formats_say_the_same():
    plain = {(name, *sorted(labels.items())): value for name, labels, value in samples(FIGURES)}
    other = samples(FIGURES, "application/openmetrics-text; version=1.0.0", openmetrics)
    assert {(name, *sorted(labels.items())): value for name, labels, value in other} == plain
    assert exposition(FIGURES, "application/openmetrics-text; version=1.0.0")[1].startswith(
        "application/openmetrics"
    )
    assert exposition(FIGURES, "*/*")[1].startswith("text/plain; version=0.0.4")


@given(st.text(min_size=1))
def test_a_units_name_is_one_label_whatever_is_in_it(name):
    last = Loaded(is_good=False, good_at=0.0, failed=(name,))
    found = samples(Figures("1", 0.0, Service(1, 1, is_stopping=False, last=last)))
    units = [labels["unit"] for metric, labels, _ in found if metric == "pgtlsproxy_reload_failed"]
    assert len(units) == 1
    assert len(found) == len(samples(FIGURES)) - 4


def test_the_object_has_everything():
    found = json.loads(as_json(FIGURES))
    assert found["last_reload"] == {
        "successful": False,
        "success_at": 5.5,
        "failed": ["policy of listener a"],
    }
    assert found["certificates"] == [{"owner": "ca", "name": "listeners.a", "not_after": 7.0}]
    assert found["sessions"] == {"a": {"active": 1, "total": {"ok": 2, "bug": 0}}}
    assert (found["version"], found["generation"], found["workers"], found["ready"]) == ("1.2", 4, 2, True)


def test_it_is_ready_while_somebody_serves_and_nobody_has_said_stop():
    states = [(workers, stopping) for workers in (0, 1) for stopping in (False, True)]
    ready = [Service(1, workers, is_stopping=stopping, last=LOADED).is_ready for workers, stopping in states]
    assert ready == [False, False, True, False]
