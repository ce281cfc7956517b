import base64
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgtlsproxy.identity import Secret
from pgtlsproxy.protocol.scram.keys import (
    MAX_ITERATIONS,
    MAX_SALT_OCTETS,
    InvalidVerifier,
    Keys,
    Verifier,
    decode_base64,
    encode_base64,
    fake_salt,
)

SALT = "W22ZaJ0SNY7soEsUEjb6gQ=="
STORED = "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY="
SERVER = "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
RFC_7677 = f"SCRAM-SHA-256$4096:{SALT}${STORED}:{SERVER}"
"""The verifier of RFC 7677's example, whose password is `pencil`."""


def verifier_text(
    scheme: str = "SCRAM-SHA-256",
    iterations: object = 4096,
    salt: str = SALT,
    stored: str = STORED,
    server: str = SERVER,
) -> str:
    return f"{scheme}${iterations}:{salt}${stored}:{server}"


def octets(count: int) -> str:
    return base64.b64encode(b"k" * count).decode()


def test_the_verifier_of_rfc_7677_is_made_from_its_password() -> None:
    made = Verifier.make(Secret(b"pencil"), base64.b64decode(SALT), 4096)
    assert made.text() == RFC_7677
    assert Verifier.parse(RFC_7677) == made


def test_the_same_password_typed_in_two_ways_has_one_verifier() -> None:
    made = {Verifier.make(Secret(text.encode()), b"salt", 1).text() for text in ("\ufb01\u00a0x", "fi x")}
    assert len(made) == 1


@given(
    st.binary(min_size=1, max_size=MAX_SALT_OCTETS),
    st.integers(1, MAX_ITERATIONS),
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=32, max_size=32),
)
def test_a_verifier_is_read_as_it_was_written(
    salt: bytes, iterations: int, stored: bytes, server: bytes
) -> None:
    verifier = Verifier(salt, iterations, Secret(stored), Secret(server))
    assert Verifier.parse(verifier.text()) == verifier


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pencil",
        "md5" + "0" * 32,
        verifier_text(scheme="scram-sha-256"),
        verifier_text(scheme="SCRAM-SHA-1"),
        verifier_text(scheme="SCRAM-SHA-256-PLUS"),
        verifier_text(iterations=""),
        verifier_text(iterations=0),
        verifier_text(iterations=-1),
        verifier_text(iterations="+1"),
        verifier_text(iterations=" 1"),
        verifier_text(iterations="4096 "),
        verifier_text(iterations="4_096"),
        verifier_text(iterations="\u0664"),
        verifier_text(iterations=MAX_ITERATIONS + 1),
        verifier_text(iterations="9" * 10000),
        verifier_text(salt=""),
        verifier_text(salt="W22ZaJ0SNY7soEsUEjb6gQ"),
        verifier_text(salt="W22ZaJ0SNY7soEsUEjb6gR=="),
        verifier_text(salt="W22ZaJ0SNY7s oEsUEjb6gQ=="),
        verifier_text(salt="W22ZaJ0S=Y7soEsUEjb6gQ=="),
        verifier_text(salt="W22ZaJ0S_Y7soEsUEjb6gQ=="),
        verifier_text(salt=octets(MAX_SALT_OCTETS + 1)),
        verifier_text(stored=octets(31)),
        verifier_text(stored=octets(33)),
        verifier_text(server=octets(31)),
        verifier_text(server=octets(33)),
        verifier_text(server=SERVER + ":"),
        verifier_text(server=SERVER + "\n"),
        verifier_text(server=""),
        RFC_7677.replace("$", ":"),
        RFC_7677 + "\0",
    ],
)
def test_what_is_no_verifier_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(InvalidVerifier) as refused:
        Verifier.parse(text)
    shown = str(refused.value)
    assert not any(part in shown for part in re.split(r"[$:]", text) if len(part) > 13)


def test_the_longest_verifier_is_taken() -> None:
    text = verifier_text(iterations=MAX_ITERATIONS, salt=octets(MAX_SALT_OCTETS))
    assert Verifier.parse(text).text() == text


@pytest.mark.parametrize(
    ("salt", "iterations"), [(b"", 1), (b"s" * (MAX_SALT_OCTETS + 1), 1), (b"s", 0), (b"s", 2**40)]
)
def test_no_verifier_is_made_beyond_the_bounds(salt: bytes, iterations: int) -> None:
    with pytest.raises(InvalidVerifier):
        Verifier.make(Secret(b"pencil"), salt, iterations)


@given(st.binary(max_size=100))
def test_base64_is_read_as_it_was_written(data: bytes) -> None:
    assert encode_base64(data) == base64.b64encode(data)
    assert decode_base64(encode_base64(data)) == data


@given(st.text("ABCab01+/=_- \n", max_size=12).map(str.encode) | st.binary(max_size=6))
@settings(max_examples=300)
def test_base64_has_one_spelling(text: bytes) -> None:
    try:
        data = decode_base64(text)
    except ValueError:
        return
    assert base64.b64encode(data) == text


def test_a_fake_salt_is_as_long_as_a_real_one_and_each_users_own() -> None:
    mock = Secret(b"m" * 32)
    salts = {user: fake_salt(mock, user) for user in ("alice", "bob", "caf\udce9", "")}
    assert all(len(salt) == 16 for salt in salts.values())
    assert len(set(salts.values())) == len(salts)
    assert salts == {user: fake_salt(mock, user) for user in salts}
    assert fake_salt(Secret(b"n" * 32), "alice") != salts["alice"]


def test_values_with_keys_do_not_show_them() -> None:
    keys = Keys.derive(Secret(b"pencil"), b"salt", 1)
    verifier = Verifier.parse(RFC_7677)
    assert repr(keys) == "Keys(client_key=Secret(...), server_key=Secret(...))"
    assert repr(verifier) == "Verifier(iterations=4096, stored_key=Secret(...), server_key=Secret(...))"
    assert str(verifier) == repr(verifier)
