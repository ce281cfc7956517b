"""x509-limbo's cases, shown to a listener and to the backend's leg: but for the listed ones the verdict is the
suite's, and for none is it looser than PostgreSQL's or libpq's."""

from collections import Counter
from types import SimpleNamespace

import pytest

from chains.bettertls import PATHS
from chains.case import BOTH, issued
from chains.conftest import ours
from chains.differences import DIFFERENCES, STRICTER
from chains.limbo import LIMBO

pytestmark = pytest.mark.filterwarnings(
    "ignore:Parsed a serial number"
)  # what cryptography says, and reads it

SUITES = LIMBO | PATHS


@pytest.fixture(scope="module", params=BOTH)
def judged(request, postgresql, libpq):
    """The cases of a role, what we make of them, and what PostgreSQL or libpq does."""
    cases = list(issued(SUITES, request.param))
    theirs = {"client": postgresql, "server": libpq}[request.param](cases)
    verdicts = ours(cases, request.param)
    return SimpleNamespace(role=request.param, cases=cases, ours=verdicts, theirs=theirs)


def test_every_case_is_there():
    assert Counter(case.partition("::")[0] for case in SUITES) == {
        "pathlen": 8,
        "rfc5280": 90,
        "webpki": 60,
        "pathological": 4,
        "cve": 3,
        "invalid": 1,
        "rfc9881": 6,
        "crl": 34,
        "bettertls": 81,
    }
    listed = [case for difference in DIFFERENCES for case in difference.cases]
    assert len(listed) == len(set(listed))
    assert set(listed) <= set(SUITES)


def test_but_for_the_listed_ones_the_verdict_is_the_suites(judged):
    expected = {case.id: case.accepts for case in judged.cases}
    for difference in DIFFERENCES:
        if judged.role in difference.roles:
            expected |= dict.fromkeys(difference.cases, difference.accepted)
    found = {case: verdict is None for case, verdict in judged.ours.items()}
    assert found == expected


def test_every_listed_difference_is_one(judged):
    for difference in DIFFERENCES:
        assert all(SUITES[case].accepts != difference.accepted for case in difference.cases), difference.why


def test_nobody_is_believed_whom_postgresql_or_libpq_would_refuse(judged):
    looser = {
        case: why for case, why in judged.theirs.items() if why is not None and judged.ours[case] is None
    }
    assert looser == {}


def test_who_is_refused_more_strictly_than_by_postgresql_or_libpq_is_listed(judged):
    stricter = {case for case, why in judged.theirs.items() if why is None and judged.ours[case] is not None}
    assert stricter == set(STRICTER[judged.role])
