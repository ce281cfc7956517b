import subprocess
from pathlib import Path

import pytest

from benchmarks.campaigns import CAMPAIGNS


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_a_campaign_names_tests_that_are_there_and_ask_for_its_number(name):
    campaign = CAMPAIGNS[name]
    root = Path(__file__).parents[2]
    found = subprocess.run(
        [*campaign.command(), "--collect-only"], cwd=root, capture_output=True, text=True, check=True
    )
    assert "::test_" in found.stdout
    files = [root / each for each in campaign.tests if each.endswith(".py")]
    assert all(f'environ.get("{campaign.variable}"' in file.read_text() for file in files)


def test_the_number_reaches_the_tests(tmp_path, monkeypatch):
    campaign = CAMPAIGNS["floods"]
    monkeypatch.setattr(
        type(campaign), "command", lambda self: ["sh", "-c", f'echo ${self.variable} > "{tmp_path}/number"']
    )
    assert campaign.run(7) == 0
    assert (tmp_path / "number").read_text() == "7\n"
    assert campaign.run(None) == 0
    assert (tmp_path / "number").read_text() == f"{campaign.number}\n"
