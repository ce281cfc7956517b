"""scram_secrets_file: who is listed, until when, and what a line that cannot be used is told."""

import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgtlsproxy.errors import ConfigError
from pgtlsproxy.identity import Secret
from pgtlsproxy.protocol.scram.keys import DEFAULT_ITERATIONS, Verifier
from pgtlsproxy.protocol.scram.secrets import parse_secrets

VERIFIER = Verifier.make(Secret(b"pencil"), b"salt", 1)
TEXT = VERIFIER.text()
NOW = datetime(2026, 6, 1, tzinfo=UTC).timestamp()


def secrets(text: str, now: float = NOW) -> dict[str, Verifier | None]:
    parsed = parse_secrets("secrets.txt", text.encode("utf-8", "surrogateescape"))
    return {user: parsed.verifier(user, now) for user in parsed.by_user}


def mistakes(text: str) -> list[str]:
    with pytest.raises(ConfigError) as failed:
        secrets(text)
    return [str(mistake) for mistake in failed.value.mistakes]


names = st.text(st.characters(blacklist_characters="\n\0", blacklist_categories=["Cs"]), min_size=1)


@given(st.dictionaries(names, st.binary(min_size=1, max_size=16), max_size=5))
def test_what_is_written_is_read(salts: dict[str, bytes]) -> None:
    listed = {
        user: Verifier(salt, 1, VERIFIER.stored_key, VERIFIER.server_key) for user, salt in salts.items()
    }
    lines = (
        '"{}" "{}"\n'.format(user.replace('"', '""'), verifier.text()) for user, verifier in listed.items()
    )
    assert secrets("".join(lines)) == listed


@pytest.mark.parametrize(
    "text",
    [f'"alice" "{TEXT}"', f'\t "alice"\t"{TEXT}" \r\n', f'; users\n\n# and more\n"alice" "{TEXT}" ""\n', f'"alice" "{TEXT}" "infinity"'],
)  # fmt: skip
def test_blanks_comments_and_line_ends_do_not_matter(text: str) -> None:
    assert secrets(text) == {"alice": VERIFIER}


def test_an_empty_file_lists_nobody() -> None:
    parsed = parse_secrets("secrets.txt", b"")
    assert parsed.verifier("alice", NOW) is None
    assert parsed.usual_iterations == DEFAULT_ITERATIONS


@pytest.mark.parametrize(
    ("expiry", "is_good"),
    [
        ("2026-06-01 00:00:00+00", True),  # the very moment
        ("2026-05-31 23:59:59.999999+00", False),
        ("2026-06-01 01:59:59+02", False),
        ("2026-06-01 02:00:01+02", True),
        ("2026-06-01T00:00:01Z", True),
        ("infinity", True),
    ],
)
def test_a_password_is_good_until_its_expiry(expiry: str, is_good: bool) -> None:  # noqa: FBT001 - a table's cell
    assert secrets(f'"alice" "{TEXT}" "{expiry}"') == {"alice": VERIFIER if is_good else None}


WRONG = {
    "no quotes": (f"alice {TEXT}", "not of the form"),
    "one field": ('"alice"', "not of the form"),
    "an open quote": (f'"alice" "{TEXT}', "not of the form"),
    "four fields": (f'"alice" "{TEXT}" "infinity" "x"', "not of the form"),
    "nothing between the fields": (f'"alice""{TEXT}"', "not of the form"),
    "no name": (f'"" "{TEXT}"', "name is empty"),
    "an MD5 secret": ('"alice" "md5' + "a" * 32 + '"', "MD5 secret"),
    "a password": ('"alice" "hunter2"', "cannot be used: not of the form SCRAM-SHA-256"),
    "a secret before the name": (f'"{TEXT}" "alice"', "the name comes first"),
    "an MD5 secret before the name": ('"md5' + "a" * 32 + '" "alice"', "the name comes first"),
    "too many iterations": (f'"alice" "{TEXT.replace("$1:", "$1000001:")}"', "1000001 iterations; expected 1 to 1000000"),
    "a time without a zone": (f'"alice" "{TEXT}" "2027-01-01 00:00:00"', "is no expiry"),
    "no time": (f'"alice" "{TEXT}" "tomorrow"', "is no expiry"),
}  # fmt: skip


@pytest.mark.parametrize(("line", "what"), WRONG.values(), ids=WRONG)
def test_a_line_that_cannot_be_used_is_named_without_its_secret(line: str, what: str) -> None:
    (mistake,) = mistakes(f"# first\n{line}\n")
    assert mistake.startswith("secrets.txt:2: ")
    assert what in mistake
    assert not re.search(
        r"hunter2|a{32}|\$", mistake.replace("SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>", "")
    )


def test_every_mistake_is_told_at_once() -> None:
    good = f'"alice" "{TEXT}"'
    found = mistakes(f'{good}\n"bob" "x"\n{good}\nnonsense\n')
    assert [each.partition(":")[2].partition(":")[0] for each in found] == ["2", "3", "4"]
    assert 'user "alice" is listed in line 1 already' in found[1]


def test_names_that_are_not_utf8_are_the_bytes_that_they_are() -> None:
    assert secrets('"\udcff" "{}"'.replace("{}", TEXT)) == {"\udcff": VERIFIER}


def test_no_text_of_it_shows_a_verifier() -> None:
    parsed = parse_secrets("secrets.txt", f'"alice" "{TEXT}"'.encode())
    for shown in (repr(parsed), repr(parsed.by_user), str(parsed.by_user["alice"])):
        assert TEXT[20:40] not in shown
        assert TEXT[-44:] not in shown


def test_the_usual_iterations_are_those_of_most_users() -> None:
    lines = [
        f'"u{index}" "{TEXT.replace("$1:", f"${count}:")}"'
        for index, count in enumerate([4096, 5000, 5000, 1])
    ]
    assert parse_secrets("secrets.txt", "\n".join(lines).encode()).usual_iterations == 5000
    assert parse_secrets("secrets.txt", "\n".join(lines[:2]).encode()).usual_iterations == 5000
