"""libpq's password file, with libpq itself as the judge."""

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgtlsproxy.errors import ConfigError
from pgtlsproxy.protocol.passfile import parse_passfile

texts = st.text(
    st.characters(blacklist_characters="\n\r\0", blacklist_categories=["Cs"]), min_size=1, max_size=8
)


def escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace(":", "\\:")


def found(
    content: str, host: str = "h", port: int = 5432, database: str = "d", user: str = "u"
) -> bytes | None:
    password = parse_passfile("passwords", content.encode()).password(host, port, database, user)
    return None if password is None else password.reveal()


@given(texts.filter(lambda text: text[0] not in "*#"), texts, texts, texts)
def test_what_is_escaped_is_read_as_it_was_meant(host: str, database: str, user: str, password: str) -> None:
    line = ":".join((escaped(host), "*", escaped(database), escaped(user), escaped(password)))
    if "*" not in (database, user):
        assert found(line, host, 1, database, user) == password.encode()
        assert found(line, host + "x", 1, database, user) is None


CASES = {
    "the first line that fits": ("h:5432:d:x:no\nh:5432:d:u:yes\n*:*:*:*:late\n", b"yes"),
    "stars": ("*:*:*:*:any", b"any"),
    "a comment": ("#h:5432:d:u:no\nh:5432:d:u:yes", b"yes"),
    "another port": ("h:5433:d:u:no", None),
    "another database": ("h:5432:e:u:no", None),
    "another user": ("h:5432:d:v:no", None),
    "an escaped star is a star": ("h:5432:\\*:u:no", None),
    "a star with more": ("h:5432:d*:u:no", None),
    "escapes": ("h:5432:d:u:a\\:b\\\\c", b"a:b\\c"),
    "a needless escape": ("\\h:5432:d:u:\\p", b"p"),
    "a backslash at the end": ("h:5432:d:u:yes\\", b"yes\\"),
    "carriage returns": ("h:5432:d:u:yes\r\n", b"yes"),
    "blanks belong to the password": ("h:5432:d:u: yes ", b" yes "),
    "an empty file": ("", None),
}


@pytest.mark.parametrize(("content", "password"), CASES.values(), ids=CASES)
def test_the_first_line_that_fits_is_taken(content: str, password: bytes | None) -> None:
    assert found(content) == password


@pytest.mark.parametrize(("content", "password"), CASES.values(), ids=CASES)
def test_libpq_takes_the_same(postgres17, fake_backend, tmp_path, certs, content, password) -> None:  # type: ignore[no-untyped-def]
    """psql, asked for its password in clear by a server."""
    from fixtures import wire

    said: list[bytes] = []

    def script(conversation) -> None:  # type: ignore[no-untyped-def]
        conversation.accept()
        conversation.send(wire.authentication(3))
        said.append(conversation.read_message().body)
        conversation.hang_up()

    server = fake_backend(script, tls=False)
    file = tmp_path / "passwords"
    file.write_text(content.replace("5432", str(server.port)))
    file.chmod(0o600)
    target = f"host=h hostaddr=127.0.0.1 port={server.port} dbname=d user=u sslmode=disable passfile={file}"
    command = [postgres17.program("psql"), "-X", "-w", "-d", target, "-c", "SELECT 1"]
    subprocess.run(command, env=postgres17.environment(), capture_output=True, check=False, timeout=60)
    assert said == ([] if password is None else [password + b"\0"])


@pytest.mark.parametrize(
    ("host", "fits"), [("/var/run/postgresql", True), ("/tmp", True), ("/srv/pg", False)]
)
def test_localhost_means_the_usual_sockets_too(host: str, fits: bool) -> None:  # noqa: FBT001 - a table's cell
    assert (found("localhost:5432:d:u:p", host) == b"p") is fits
    assert found(f"{host}:5432:d:u:p", host) == (None if fits else b"p")


@pytest.mark.parametrize("line", ["h:5432:d:u", "h:5432:d:u:", "h:5432:d:u:p:q", "secret", "h:5432:d:u\\:p"])
def test_a_line_that_libpq_would_misread_is_a_mistake_that_shows_nothing(line: str) -> None:
    with pytest.raises(ConfigError) as failed:
        parse_passfile("passwords", f"# c\n{line}\nsecret2\n".encode())
    first, second = map(str, failed.value.mistakes)
    assert first.startswith("passwords:2: expected hostname:port:database:username:password")
    assert second.startswith("passwords:3: ")
    assert "secret" not in first + second


def test_no_text_of_it_shows_a_password() -> None:
    parsed = parse_passfile("passwords", b"h:5432:d:u:hunter2")
    assert "hunter2" not in repr(parsed) + repr(parsed.entries)
