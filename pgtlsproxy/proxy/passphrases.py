"""Passphrases of private keys: what ssl_passphrase_command prints."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from typing import Final

from pgtlsproxy.config import Listener
from pgtlsproxy.identity import Secret, printable
from pgtlsproxy.tls.file_access import UnusableFile

PASSPHRASE_SECONDS: Final = 10.0
"""How long ssl_passphrase_command may take."""

PASSPHRASE_OCTETS: Final = 1024

MAX_OUTPUT_OCTETS: Final = 4096
"""How much ssl_passphrase_command may print; its first line counts."""


def passphrase(listener: Listener) -> Secret:
    """Run ssl_passphrase_command, as PostgreSQL does: a shell command, `%p` a prompt, `%%` a percent sign.

    Its first line is the passphrase. Never shown: what it prints, to either stream.

    Args:
        listener: whose.

    Raises:
        UnusableFile: it cannot be run, fails, or prints or takes too much.
    """
    prompt = "Enter PEM pass phrase:"
    command = (
        (listener.ssl_passphrase_command or "").replace("%%", "\0").replace("%p", prompt).replace("\0", "%")
    )
    try:
        process = subprocess.Popen(  # noqa: S602 - a shell command by definition, written by the administrator
            command,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text that a shell can be given"
        raise UnusableFile(f"ssl_passphrase_command cannot be run: {reason}") from None
    with process:
        try:
            output = _output(process, time.monotonic() + PASSPHRASE_SECONDS)
        except BaseException:
            # The shell leads a group of its own, in which is whatever it started.
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode != 0:
        raise UnusableFile(
            f"ssl_passphrase_command ended with exit status {printable(str(process.returncode))}"
        )
    return Secret(output.partition(b"\n")[0].rstrip(b"\r")[:PASSPHRASE_OCTETS])


def _output(process: subprocess.Popen[bytes], deadline: float) -> bytes:
    """What a process prints until it ends."""
    assert process.stdout is not None  # noqa: S101 - it was asked for
    late = UnusableFile(
        f"ssl_passphrase_command did not end within {PASSPHRASE_SECONDS:g} s, or something that it started "
        "keeps its output open: let it print the passphrase and end"
    )
    output = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(max(deadline - time.monotonic(), 0)):
            more = os.read(process.stdout.fileno(), MAX_OUTPUT_OCTETS)
            if not more:
                break
            output += more
            if len(output) > MAX_OUTPUT_OCTETS:
                raise UnusableFile(
                    f"ssl_passphrase_command printed over {MAX_OUTPUT_OCTETS >> 10} kB: let it print the "
                    "passphrase and nothing else"
                )
        else:
            raise late
    try:
        process.wait(max(deadline - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        raise late from None
    return output
