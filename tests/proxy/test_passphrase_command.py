"""ssl_passphrase_command: its first line is the passphrase, and whatever it does, it ends and leaves nothing behind."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from fixtures.waiting import until
from pgtlsproxy import pki
from pgtlsproxy.errors import ConfigError
from pgtlsproxy.proxy import passphrases
from pgtlsproxy.proxy.snapshot import load

CA = pki.make_ca("test CA")
SERVER = pki.issue_server(CA, ["localhost"])

YAML = """
listeners:
  a: {listen: ["127.0.0.1:0"], ssl: on, ssl_cert_file: server.crt, ssl_key_file: server.key, hba_file: pg_hba.conf,
      backend: b, ssl_passphrase_command: COMMAND}
backends:
  b: {host: localhost, sslrootcert: ca.crt, login: passthrough}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    encrypted = SERVER.key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"open sesame")
    )
    for name, content in {
        "pg_hba.conf": b"hostssl all all all scram-sha-256\n",
        "ca.crt": CA.certificate_pem(),
        "server.crt": SERVER.certificate_pem(),
        "server.key": encrypted,
    }.items():
        path = tmp_path / name
        path.touch(mode=0o600)
        path.write_bytes(content)
    return tmp_path


def mistake(folder: Path, command: str) -> str | None:
    """What is wrong with a configuration that has this command; None for nothing."""
    path = folder / "pgtlsproxy.yaml"
    path.write_text(YAML.replace("COMMAND", repr(command)))
    try:
        load(str(path))
    except ConfigError as error:
        (only,) = error.mistakes
        return only.what
    return None


def running_in_group(group: int) -> list[str]:
    """The processes of a group that have not ended; one that only waits to be reaped has."""

    def stats() -> Iterator[list[str]]:
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                yield path.read_text().rpartition(")")[2].split()
            except OSError:  # it has ended since
                continue

    return [state for state, _parent, found, *_ in stats() if int(found) == group and state not in "XZ"]


@pytest.mark.parametrize(
    "command",
    [
        "echo open sesame",
        "printf 'open sesame'",
        "printf 'open sesame\\r\\nand more\\n'",
        "test %p = 'Enter PEM pass phrase:' || echo 'open sesame'",
        "echo 'open sesame'; echo 'to stderr' >&2",
        "{ sleep 60 >/dev/null & kill $!; }; echo 'open sesame'",
    ],
)
def test_the_first_line_opens_the_key(folder: Path, command: str) -> None:
    assert mistake(folder, command) is None


@pytest.mark.parametrize(
    "command",
    ["sleep 60 & sleep 60", "sleep 60 & echo open sesame", "exec >&-; sleep 60", "echo open; sleep 60"],
)
def test_a_command_that_does_not_end_is_ended_with_all_that_it_started(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(passphrases, "PASSPHRASE_SECONDS", 0.5)
    what = mistake(folder, f"echo $$ > {folder}/group; {command}")
    assert what is not None
    assert "ssl_passphrase_command did not end within 0.5 s" in what
    group = int((folder / "group").read_text())
    until(lambda: not running_in_group(group))
    with pytest.raises(ChildProcessError):
        os.waitpid(group, os.WNOHANG)


@pytest.mark.parametrize("command", ["yes", "cat /dev/zero", "yes | cat"])
def test_a_command_that_prints_for_ever_is_ended_at_once(folder: Path, command: str) -> None:
    since = time.monotonic()
    what = mistake(folder, f"echo $$ > {folder}/group; {command}")
    assert time.monotonic() - since < passphrases.PASSPHRASE_SECONDS
    assert what is not None
    assert "ssl_passphrase_command printed over 4 kB" in what
    until(lambda: not running_in_group(int((folder / "group").read_text())))


def test_a_command_that_fails_is_a_mistake_without_what_it_printed(folder: Path) -> None:
    what = mistake(folder, "echo canary; echo canary >&2; exit 3")
    assert what == "ssl_passphrase_command ended with exit status 3"


def test_a_command_that_is_no_text_is_a_mistake(folder: Path) -> None:
    path = folder / "pgtlsproxy.yaml"
    path.write_text(YAML.replace("COMMAND", '"echo \\ud800"'))
    with pytest.raises(ConfigError, match="ssl_passphrase_command"):
        load(str(path))
