"""The tour: six things that the proxy does, each with the command, its answer and what it means."""

from __future__ import annotations

import shlex
import socket
import subprocess
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.text import Text

from pgtlsproxy.demo.stage import PASSWORD, Stage, psql_environment
from pgtlsproxy.identity import printable
from pgtlsproxy.protocol.messages import SSL_REQUEST
from pgtlsproxy.tls.probe import presented_chain

WHO: Final = "SELECT current_user, ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
ANSWER_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What psql said.

    Args:
        status: its exit status.
        out: standard output, without the newline at its end.
        err: standard error, the same.
    """

    status: int
    out: str
    err: str


class NotAsExpected(Exception):
    """A step of the tour did not show what it is there to show."""


class Tour:
    """Walks through a stage.

    Args:
        stage: what runs.
        console: where to tell.
    """

    def __init__(self, stage: Stage, console: Console) -> None:
        self._stage = stage
        self._console = console

    def walk(self) -> None:
        """All steps, in order.

        Raises:
            NotAsExpected: one of them shows something else than it should.
        """
        self._preparation()
        self._legacy()
        self._sidecar()
        self._central()
        self._wrong_certificate()
        self._clear_text()
        self._renewal()

    def lines_to_try(self) -> list[str]:
        """A psql command for each deployment."""
        return [
            f"cd {self._stage.folder}",
            self._shown(self._legacy_words(), PASSWORD, query=False),
            self._shown(self._sidecar_words(), None, query=False),
            self._shown(self._central_words("alice"), None, query=False),
        ]

    def _legacy_words(self) -> str:
        port = self._stage.port("legacy")
        return f"host=127.0.0.1 port={port} user=legacy_app dbname=postgres sslmode=disable"

    def _sidecar_words(self) -> str:
        return f"host={self._stage.folder} user=shop dbname=postgres"

    def _central_words(self, name: str) -> str:
        port = self._stage.port("central")
        return (
            f"host=localhost hostaddr=127.0.0.1 port={port} user=alice dbname=postgres "
            f"sslmode=verify-full sslrootcert=ca.crt sslcert={name}.crt sslkey={name}.key"
        )

    def _preparation(self) -> None:
        self._command_line(f"cd {self._stage.folder}")
        self._command_line(f'WHO="{WHO}"')

    def _legacy(self) -> None:
        self._title("a", "Legacy: a client that cannot do TLS")
        answer = self._psql(self._legacy_words(), password=PASSWORD)
        self._expect(answer, answer.out == "legacy_app|t|TLSv1.3")
        self._explain(
            "The client spoke clear text, on this host alone. The server saw TLS 1.3, verified, and asked",
            "the client for its password; the proxy passed question and answer through.",
        )

    def _sidecar(self) -> None:
        self._title("b", "Sidecar: an application at a Unix socket, without a password")
        answer = self._psql(self._sidecar_words())
        self._expect(answer, answer.out == "shop|t|TLSv1.3")
        self._explain(
            "The operating system said who the application is, sidecar_ident.conf maps that to shop,",
            "and the proxy logged in with its own certificate.",
        )

    def _central(self) -> None:
        self._title("c", "Central: a client certificate, mapped to its user")
        answer = self._psql(self._central_words("alice"))
        self._expect(answer, answer.out == "alice|t|TLSv1.3")
        self._explain(
            "TLS on both legs. The certificate's alice@example.com is alice by central_ident.conf:1."
        )

    def _wrong_certificate(self) -> None:
        self._title("d", "A good certificate of somebody else")
        since = len(self._stage.log.lines)
        answer = self._psql(self._central_words("mallory"))
        self._expect(answer, 'certificate authentication failed for user "alice"' in answer.err)
        event = self._stage.event("session_decided", since=since, verdict="refused")
        reason = str(event["reason"]).replace(f"{self._stage.folder}/", "")
        self._explain(
            "The client learns an id; the log has the rule and the reason beside it:", printable(reason)
        )

    def _clear_text(self) -> None:
        self._title("e", "Clear text at the TLS listener")
        port = self._stage.port("central")
        answer = self._psql(f"host=127.0.0.1 port={port} user=alice dbname=postgres sslmode=disable")
        self._expect(answer, "no pg_hba.conf entry" in answer.err and "no encryption" in answer.err)
        self._explain("central_hba.conf has hostssl lines alone. These are PostgreSQL's own words.")

    def _renewal(self) -> None:
        self._title("f", "A renewed certificate while a session stays open")
        before = self._serial()
        with self._open_session() as session:
            self._ask(session, "SELECT 'before'")
            issued = self._stage.issue_server_certificate()
            generation = self._stage.reload()["generation"]
            after = self._serial()
            still = self._ask(session, "SELECT 'still here'")
        if (after, still) != (f"{issued.certificate.serial_number:x}", "still here"):
            raise NotAsExpected(f"{after} is served, the open session said {still}")
        self._say(f"    served before  {before}")
        self._say(f"    SIGHUP         generation {generation}")
        self._say(f"    served after   {after}")
        self._say(f"    open session   {still}")
        self._explain("New clients are shown the new certificate; the open session never noticed.")

    def _serial(self) -> str:
        """The serial number of the certificate that a new client is shown."""
        with socket.create_connection(("127.0.0.1", self._stage.port("central"))) as sock:
            sock.sendall(SSL_REQUEST)
            if sock.recv(1) != b"S":
                raise NotAsExpected("the TLS listener does not offer TLS")
            return f"{presented_chain(sock, 'localhost', 10)[0].serial_number:x}"

    def _open_session(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command(self._central_words("alice"), None),
            cwd=self._stage.folder,
            env=psql_environment(self._stage.client, None, self._stage.folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _ask(self, session: subprocess.Popen[str], sql: str) -> str:
        assert session.stdin is not None  # noqa: S101 - both are pipes
        assert session.stdout is not None  # noqa: S101
        session.stdin.write(f"{sql};\n")
        session.stdin.flush()
        return session.stdout.readline().rstrip("\n")

    def _command(self, words: str, sql: str | None) -> list[str]:
        psql = self._stage.client.program("psql")
        return [psql, "-X", "-q", "-A", "-t", "-w", words, *(["-c", sql] if sql is not None else [])]

    def _shown(self, words: str, password: str | None, *, query: bool) -> str:
        secret = f"PGPASSWORD={password} " if password is not None else ""
        return f"{secret}psql {shlex.quote(words)}" + (' -c "$WHO"' if query else "")

    def _psql(self, words: str, *, password: str | None = None) -> Answer:
        self._command_line(self._shown(words, password, query=True))
        finished = subprocess.run(
            self._command(words, WHO),
            cwd=self._stage.folder,
            env=psql_environment(self._stage.client, password, self._stage.folder),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ANSWER_SECONDS,
            check=False,
        )
        answer = Answer(finished.returncode, finished.stdout.rstrip("\n"), finished.stderr.rstrip("\n"))
        for line in (answer.out + answer.err).splitlines():
            self._say(f"    {printable(line)}")
        return answer

    def _expect(self, answer: Answer, is_as_expected: bool) -> None:  # noqa: FBT001 - reads as a sentence
        if not is_as_expected:
            raise NotAsExpected(f"psql ended with {answer.status}: {answer.out}{answer.err}")

    def _title(self, letter: str, text: str) -> None:
        self._console.print()
        self._console.print(Text(f"({letter}) {text}", style="bold"))

    def _say(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def _command_line(self, text: str) -> None:
        self._console.print(Text(f"  $ {text}", style="cyan"), soft_wrap=True)

    def _explain(self, *lines: str) -> None:
        for line in lines:
            self._console.print(Text(f"  {line}", style="green"), soft_wrap=True)
