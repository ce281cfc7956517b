"""A PostgreSQL cluster that lives in a temporary folder and ends with us, whatever ends us."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

from pgtlsproxy.demo.installations import (
    Installation,
    PostgresFailed,
    ServerUser,
    reachable_folder,
    runnable_by,
    server_user,
)
from pgtlsproxy.demo.output import FollowedOutput, OutputEnded

ADMIN = "bootstrap"
"""The superuser that initdb makes. It gets in through the cluster's own Unix socket, whose folder
is the server user's alone, and nowhere else; `postgres` is a role like others, made by SQL or not."""

_ADMIN_LINE = f"local all {ADMIN} trust\n"

_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 15.0
_PORT_ATTEMPTS = 10

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "fsync": "off",
    "full_page_writes": "off",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_connections": "on",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    "lc_messages": "C",
}

# The server's standard error is ours alone to follow, so that its end is the server's end. Our end of
# the shell's standard input closes when we ask for it or die, even by SIGKILL: the server is then
# shut down at once.
_SUPERVISOR = """
"$@" </dev/null & server=$!
exec 2>/dev/null
read -r _
kill -QUIT "$server"
wait "$server"
"""


@dataclass(frozen=True, slots=True)
class _Server:
    """A running server: its supervisor, the pipe that keeps it alive, and its log."""

    process: subprocess.Popen[bytes]
    hold: IO[bytes]
    output: FollowedOutput


class Cluster:
    """One PostgreSQL server with its data, on 127.0.0.1 and a Unix socket.

    A context manager: entering starts it, leaving shuts it down and removes its folder.
    Safe to use from `trio.to_thread`; not from two threads at once.

    Args:
        installation: whose server to run; moved by itself to where the server's user can run it.
        hba: pg_hba.conf. One line of ours stands above it (see `ADMIN`), so its lines count from 2.
        ident: pg_ident.conf.
        settings: postgresql.conf, above the defaults of a throw-away server.
        files: more files of the data folder by name, as certificates and keys; mode 0600.
        setup: SQL statements that make roles and databases, run before the first start.
        client: whose psql `psql` runs, when `installation` came without one.

    Attributes:
        host: 127.0.0.1.
        port: chosen at the first start, and kept.
        folder: the temporary folder; its name ends with it.
        data: the data folder.
        socket_dir: where the Unix socket is.

    Raises:
        PostgresFailed: initdb, the setup or the server failed; says what it said.
    """

    host = "127.0.0.1"

    def __init__(
        self,
        installation: Installation,
        *,
        hba: str,
        ident: str = "",
        settings: Mapping[str, str] | None = None,
        files: Mapping[str, bytes] | None = None,
        setup: Sequence[str] = (),
        client: Installation | None = None,
    ) -> None:
        self._user = server_user()
        self.installation = runnable_by(installation, self._user)
        self.client = client or installation
        self.port = 0
        self._settings = _SETTINGS | dict(settings or {})
        self._server: _Server | None = None
        self._earlier: tuple[str, ...] = ()
        template = _template(self.installation, self._user, tuple(setup))
        self.folder = _folder_of(self._user)
        atexit.register(self.close)
        self.socket_dir = self.folder
        self.data = self.folder / "data"
        try:
            copy = ["cp", "-Rp", str(template), str(self.data)]
            self._user.run(copy, environment=self.installation.environment())
            self.write("pg_hba.conf", _ADMIN_LINE + hba)
            self.write("pg_ident.conf", ident)
            for name, content in (files or {}).items():
                self.write(name, content)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process number of the postmaster."""
        return int((self.data / "postmaster.pid").read_text().split()[0])

    @property
    def log_lines(self) -> tuple[str, ...]:
        """What all servers of this cluster have said until now."""
        return self._earlier + (self._server.output.lines if self._server else ())

    @property
    def log(self) -> str:
        """The same as one text."""
        return "\n".join(self.log_lines)

    def write(self, name: str, content: str | bytes) -> None:
        """Put a file of the data folder in place, as a whole, readable by the server alone.

        Takes effect with `reload` or at the next start. pg_hba.conf is written as given: whoever
        still wants `psql` keeps the line for `ADMIN` in it.
        """
        target = self.data / name
        scratch = target.with_name(f".{name}.new")
        scratch.unlink(missing_ok=True)
        # Root writes into a folder of somebody else's: never through a link that lies there.
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            if self._user.uid is not None and self._user.gid is not None:
                os.fchown(descriptor, self._user.uid, self._user.gid)
            file.write(content.encode() if isinstance(content, str) else content)
        scratch.replace(target)

    def set(self, **settings: str) -> None:
        """Change postgresql.conf, for `reload` or the next start."""
        self._settings |= settings
        self._write_settings()

    def start(self) -> None:
        """Start the server and wait until it takes connections. The port of an earlier start is kept.

        Raises:
            PostgresFailed: it did not; says what it said.
        """
        attempts = 1 if self.port else _PORT_ATTEMPTS
        for attempt in range(1, attempts + 1):
            port = self.port or _free_port()
            try:
                self._launch(port)
            except OutputEnded as error:
                self.stop()
                if "Address already in use" not in str(error) or attempt == attempts:
                    raise PostgresFailed(f"the server did not start: {error}") from error
            except TimeoutError as error:
                raise PostgresFailed(f"the server did not start: {error}") from error
            else:
                self.port = port
                return

    def stop(self) -> None:
        """Shut the server down at once (PostgreSQL's immediate mode). It may be started again."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.hold.close()
        try:
            server.process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(server.process.pid, signal.SIGKILL)
            server.process.wait()
        server.output.wait_until_ended(_STOP_TIMEOUT)
        self._earlier += server.output.lines

    def close(self) -> None:
        """Stop for good and remove the folder. May be called twice."""
        try:
            self.stop()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
            atexit.unregister(self.close)

    def reload(self) -> None:
        """SIGHUP. When this returns, every new connection is judged by the new files.

        Files that PostgreSQL cannot use it says so of in its log, and keeps the old ones.
        """
        since = len(self.log_lines)
        os.kill(self.pid, signal.SIGHUP)
        # The postmaster reads its files in the same turn, before it accepts another connection.
        self.wait_for_log("received SIGHUP", since=since)

    def wait_for_log(self, text: str, *, timeout: float = 10.0, since: int = 0) -> str:
        """The first line of the log that contains `text`, as soon as it is there.

        Args:
            text: what to look for.
            timeout: seconds.
            since: how many of `log_lines`, from the first, are not looked at.

        Raises:
            OutputEnded: the server ended without saying it.
            PostgresFailed: it is not running.
            TimeoutError: it did not say it in time.
        """
        if self._server is None:
            raise PostgresFailed("the server is not running")
        skipped = max(0, since - len(self._earlier))
        return self._server.output.wait_for(lambda line: text in line, timeout=timeout, since=skipped)

    def psql(
        self, sql: str, *, database: str = "postgres", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run SQL as the superuser `ADMIN`, through the Unix socket.

        Args:
            sql: any number of statements; the first error ends it.
            database: where.
            check: whether a failure is an exception.

        Returns:
            psql, finished; its output unaligned, rows only.

        Raises:
            PostgresFailed: `check`, and an error came.
        """
        command = [self.client.program("psql"), "-X", "-q", "-A", "-t", "-w", "-v", "ON_ERROR_STOP=1"]
        target = f"host={self.socket_dir} port={self.port} user={ADMIN} dbname='{database}'"
        done = subprocess.run(
            [*command, "-d", target],
            env=self.client.environment() | {"HOME": str(self.folder)},
            input=sql,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if check and done.returncode != 0:
            raise PostgresFailed(f"{sql!r}: {done.stderr.strip()}")
        return done

    def _launch(self, port: int) -> None:
        """Start a server at this port and wait for its word that it takes connections."""
        self._settings |= {"port": str(port), "unix_socket_directories": str(self.socket_dir)}
        self._write_settings()
        server = [self.installation.program("postgres"), "-D", str(self.data)]
        process = subprocess.Popen(
            ["/bin/sh", "-c", _SUPERVISOR, "sh", *server],
            cwd="/",
            env=self.installation.environment(),
            user=self._user.uid,
            group=self._user.gid,
            extra_groups=self._user.groups,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in our terminal is ours to answer
        )
        pipes = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stderr)
        self._server = _Server(process, pipes[0], FollowedOutput(pipes[1]))
        # A hot standby says "read-only connections".
        self.wait_for_log("database system is ready to accept", timeout=_START_TIMEOUT)

    def _write_settings(self) -> None:
        lines = (f"{name} = '{_quoted(value)}'\n" for name, value in self._settings.items())
        self.write("postgresql.conf", "".join(lines))


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")


def _free_port() -> int:
    """A port that was free a moment ago; whoever uses it must expect that it is not any more."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _folder_of(user: ServerUser) -> Path:
    """A new temporary folder that only this user, and root, may enter."""
    folder = Path(tempfile.mkdtemp(prefix="pgtlsproxy-", dir=reachable_folder(user)))
    if user.uid is not None and user.gid is not None:
        os.chown(folder, user.uid, user.gid)
    return folder


_templates: dict[tuple[Path, tuple[str, ...]], Path] = {}
_templates_lock = threading.Lock()


def _template(installation: Installation, user: ServerUser, setup: tuple[str, ...]) -> Path:
    """A data folder fresh from initdb and the setup, made once a process: initdb takes a second."""
    key = (installation.bindir, setup)
    with _templates_lock:
        if key in _templates:
            return _templates[key]
        folder = _folder_of(user)
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        data = folder / "data"
        environment = installation.environment()
        initdb = [installation.program("initdb"), "-D", str(data), "-U", ADMIN, "-E", "UTF8"]
        user.run([*initdb, "--locale=C", "--auth=reject", "--no-sync"], environment=environment)
        if setup:
            # Single-user mode with -j: a statement ends with a semicolon and an empty line.
            single = [installation.program("postgres"), "--single", "-j", "-F", "-D", str(data)]
            statements = "".join(f"{statement};\n\n" for statement in setup)
            user.run(
                [*single, "-c", "exit_on_error=on", "postgres"], environment=environment, text=statements
            )
        _templates[key] = data
        return data
