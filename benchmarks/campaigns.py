"""`./dev bench --campaign`: tests of the suite, with numbers that take too long for it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True, slots=True)
class Campaign:
    """Some tests, and how much they do.

    Args:
        variable: of the environment, that sets it.
        number: what a campaign sets it to.
        tests: arguments for pytest.
    """

    variable: str
    number: int
    tests: tuple[str, ...]

    def command(self) -> list[str]:
        """pytest, with what the tests say on the way shown and without its own deadline."""
        return [sys.executable, "-m", "pytest", "-q", "-s", "-o", "faulthandler_timeout=0", *self.tests]

    def run(self, number: int | None) -> int:
        """Run it, here or with another number. Returns pytest's exit status."""
        environment = os.environ | {self.variable: str(number or self.number)}
        root = Path(__file__).parents[1]
        return subprocess.run(self.command(), env=environment, cwd=root, check=False).returncode


CAMPAIGNS: Final[Mapping[str, Campaign]] = {
    "sessions": Campaign(
        "PGTLSPROXY_SESSIONS", 100_000, ("tests/promises/test_many_sessions_leave_nothing_behind.py",)
    ),
    "messages": Campaign("PGTLSPROXY_FUZZ", 1_000_000, ("tests/proxy/test_relay.py", "-k", "many_messages")),
    "copies": Campaign("PGTLSPROXY_COPY", 2**30, ("tests/promises/test_copy_keeps_every_byte.py",)),
    "verdicts": Campaign(
        "PGTLSPROXY_VERDICTS", 5_000, ("tests/matrix/test_every_verdict_is_postgresqls.py",)
    ),
    "idle": Campaign(
        "PGTLSPROXY_IDLE",
        5_000,
        ("tests/promises/test_thousands_of_idle_sessions_cost_memory_alone.py",),
    ),
    "reloads": Campaign(
        "PGTLSPROXY_RELOADS",
        50,
        ("tests/promises/test_reloads_disturb_no_session_and_mix_no_generations.py",),
    ),
    "rollouts": Campaign(
        "PGTLSPROXY_ROLLOUTS", 5, ("tests/promises/test_a_roll_out_loses_no_transaction.py",)
    ),
    "users": Campaign("PGTLSPROXY_USERS", 200, ("tests/promises/test_nobody_learns_who_exists.py",)),
    "floods": Campaign(
        "PGTLSPROXY_FLOOD",
        200_000,
        (
            "tests/promises/test_a_flood_of_key_updates_disturbs_nobody.py",
            "tests/promises/test_limits_and_cancels_hold_over_all_workers.py",
            "-k",
            "login or wrong_keys or silent",
        ),
    ),
}
"""By the name that `--campaign` has."""
