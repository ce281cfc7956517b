"""What a process that the supervisor has started does first: it sees to it that it never outlives it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def end_with(supervisor: int) -> None:
    """Let the kernel end us at once when the supervisor is gone, however that came about.

    Args:
        supervisor: the process that must be our parent.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != supervisor:  # it was gone before we asked
        sys.exit(0)
