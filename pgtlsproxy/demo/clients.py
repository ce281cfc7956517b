"""psql as the tour runs it: exactly as printed, from the tour's folder, with nobody's own settings."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

from pgtlsproxy.demo.installations import Installation
from pgtlsproxy.demo.output import FollowedOutput

_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class PsqlCommand:
    """One call of psql.

    Args:
        conninfo: the connection string; where it is long, in several lines.
        sql: what it runs; None to run what it reads.
        password: for PGPASSWORD.
        options: its options.
    """

    conninfo: str
    sql: str | None = None
    password: str | None = None
    options: str = "-X"

    @property
    def arguments(self) -> list[str]:
        """Program and arguments; the program is a link in the tour's folder."""
        sql = [] if self.sql is None else ["-c", self.sql]
        return ["./psql", self.options, self.conninfo, *sql]

    @property
    def environment(self) -> dict[str, str]:
        """Its variables."""
        return {} if self.password is None else {"PGPASSWORD": self.password}

    @property
    def shown(self) -> str:
        """The same for a shell, the SQL in a line of its own."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        first = " ".join([*variables, *map(shlex.quote, self.arguments[:3])])
        return first if self.sql is None else f"{first} \\\n    -c {shlex.quote(self.sql)}"


class Psql:
    """Runs psql.

    Args:
        installation: whose psql.
        folder: where the certificates are; a link `psql` is made there. Also psql's home, so that no
            ~/.pgpass and no ~/.postgresql is looked at.
    """

    def __init__(self, installation: Installation, folder: Path) -> None:
        self.folder = folder
        self._environment = {**installation.environment(), "HOME": str(folder)}
        (folder / "psql").symlink_to(installation.program("psql"))

    def run(self, command: PsqlCommand) -> subprocess.CompletedProcess[str]:
        """Run it to its end.

        Raises:
            subprocess.TimeoutExpired: it does not end.
        """
        return subprocess.run(
            command.arguments,
            cwd=self.folder,
            env=self._environment | command.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
            check=False,
        )

    def open(self, command: PsqlCommand) -> OpenSession:
        """Start it and keep its session open."""
        return OpenSession(command.arguments, self.folder, self._environment | command.environment)


class OpenSession:
    """A psql that waits for statements. A context manager: leaving ends it."""

    def __init__(self, arguments: list[str], folder: Path, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            arguments,
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._input = cast("IO[bytes]", self._process.stdin)
        self._output = FollowedOutput(cast("IO[bytes]", self._process.stdout))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._output.wait_until_ended(_TIMEOUT)
        self._input.close()

    def ask(self, sql: str) -> str:
        """The first line of the answer to a statement.

        Raises:
            OSError, OutputEnded, TimeoutError: the session is gone, or silent.
        """
        since = len(self._output.lines)
        self._input.write(f"{sql}\n".encode())
        self._input.flush()
        return self._output.wait_for(lambda _line: True, since=since, timeout=_TIMEOUT)
