"""SASLprep against PostgreSQL's own, which is asked by what it stores for a password."""

import unicodedata
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fixtures.certs import Certs
from fixtures.scram_servers import scram_cluster
from pgtlsproxy.demo.postgres import Cluster
from pgtlsproxy.identity import Secret
from pgtlsproxy.protocol.saslprep import saslprep
from pgtlsproxy.protocol.scram.keys import Verifier

NBSP, ZWSP, SOFT_HYPHEN, ALEF = "\u00a0", "\u200b", "\u00ad", "\u05d0"

PREPARED = [
    ("pass word", "pass word"),
    ("tab\tbell\aescape\x1b\x7f", "tab\tbell\aescape\x1b\x7f"),  # ASCII passes, whatever RFC 4013 says
    (f"a{NBSP}b", "a b"),
    (f"a{ZWSP}b", "a b"),  # in both tables of RFC 3454
    (f"I{SOFT_HYPHEN}X", "IX"),
    ("a\u1806\ufe0fb", "ab"),
    ("\ufb01le", "file"),
    ("\u2168", "IX"),
    ("\uff21\uff76\uff9e", "A\u30ac"),
    ("u\u0308ber", "\u00fcber"),
    ("\u1112\u1161\u11ab", "\ud55c"),
    ("a\u0315\u0300\u05ae", "\u00e0\u05ae\u0315"),  # put into canonical order
    ("\U0002f868", "\u36fc"),  # changed by Unicode's corrigendum 4, after 3.2
    ("\u0308", "\u0308"),
    (f"{ALEF}1{ALEF}", f"{ALEF}1{ALEF}"),
    ("\u0627\u0661\u0628", "\u0627\u0661\u0628"),
    ("\u2135b", "\u05d0b"),  # a left-to-right letter until it is normalised
    ("\u037a", " \u0345"),
]

SPOILERS = [
    "\u0080",
    "\u06dd",
    "\ue000",
    "\ufdd0",
    "\ufffe",
    "\ufffd",
    "\u2ff0",
    "\u0340",
    "\u200e",
    "\u2028",
    "\U000e0041",
    "\U0010ffff",
    "\u0221",  # assigned since Unicode 4.0
    "\u11a7",  # since 5.2, and lost by some normalisations
    "\U0001f600",
    "\u20bf",
    "\t\u00e9",
]
"""Each makes a password that has it one that cannot be prepared."""

LEFT_ALONE = [
    SOFT_HYPHEN,  # of which nothing would be left
    f"{ALEF}{SOFT_HYPHEN}1",
    f"{ALEF}{SOFT_HYPHEN}b{ALEF}",
    f"1{SOFT_HYPHEN}{ALEF}",
    f"\u0661{SOFT_HYPHEN}{ALEF}",
    *(f"a{SOFT_HYPHEN}{spoiler}" for spoiler in SPOILERS),
]
"""With a soft hyphen in each, which would be gone if it had been prepared."""

NOT_UTF8 = [
    b"\xff",
    b"caf\xe9",
    b"\xc3",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xe2\x82x\xc2\xa0",
]

AWKWARD = (
    "\u00a0\u200b\u00ad\u0080\u06dd\u05d0\u0627\u0661\u0308\u0315\u1161\u11ab\u1112\uac00"
    "\ufb01\uff76\uff9e\u2135\u0340\u0221\ufdfa a1"
)
"""Characters of every table, so that they meet."""


@pytest.mark.parametrize(("password", "expected"), PREPARED)
def test_a_password_is_prepared(password: str, expected: str) -> None:
    assert saslprep(password.encode()) == expected.encode()


@pytest.mark.parametrize("password", [*map(str.encode, LEFT_ALONE), *NOT_UTF8])
def test_a_password_that_cannot_be_prepared_is_used_as_it_is(password: bytes) -> None:
    assert saslprep(password) == password


def test_a_row_of_marks_is_in_order_before_python_would_sort_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It sorts by insertion, with no other thread running: 64 kB of a stranger's marks stopped all for a second."""
    given_texts: list[str] = []

    def normalize(form: Literal["NFC", "NFD", "NFKC", "NFKD"], text: str) -> str:
        given_texts.append(text)
        return real(form, text)

    real = unicodedata.normalize
    monkeypatch.setattr(unicodedata, "normalize", normalize)
    above, below = "\u0301", "\u0323"
    expected = "\u1ea1" + below * 15_999 + above * 16_000
    assert saslprep(("a" + (above + below) * 16_000).encode()) == expected.encode()
    assert given_texts
    for text in given_texts:
        classes = list(map(unicodedata.combining, text))
        assert len(text) == 1 or all(after == 0 or before <= after for before, after in pairwise(classes))


@pytest.fixture(scope="module")
def cluster(certs: Certs) -> Iterator[Cluster]:
    with scram_cluster(certs) as cluster:
        cluster.psql("CREATE DATABASE raw TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
        yield cluster


def stored(cluster: Cluster, passwords: Sequence[bytes]) -> list[Verifier]:
    """What PostgreSQL makes of these passwords."""

    def literal(password: bytes) -> str:
        return "E'" + "".join(f"\\x{octet:02x}" for octet in password) + "'"

    look = "SELECT rolpassword FROM pg_authid WHERE rolname = 'bob';\n"
    alter = [f"ALTER ROLE bob PASSWORD {literal(password)};\n{look}" for password in passwords]
    # A database without an encoding lets any bytes through.
    output = cluster.psql("SET scram_iterations = 1;\n" + "".join(alter), database="raw").stdout
    found = [Verifier.parse(line) for line in output.splitlines()]
    assert len(found) == len(passwords)
    return found


def assert_same(cluster: Cluster, passwords: Sequence[bytes]) -> None:
    for password, theirs in zip(passwords, stored(cluster, passwords), strict=True):
        assert Verifier.make(Secret(password), theirs.salt, theirs.iterations) == theirs, password


def test_chosen_passwords_have_postgresqls_verifier(cluster: Cluster) -> None:
    texts = [password for password, _ in PREPARED] + LEFT_ALONE
    long = [
        "x" * 5000,
        "\u00e9" * 3000,
        "a\u0300\u0315" * 700,
        ALEF * 900,
        "\ufdfa" * 500,
        "a" + "\u0301\u0323\u0315" * 700,
    ]
    singles = [chr(code) + SOFT_HYPHEN for code in range(0x80, 0x3100, 7)]
    assert_same(cluster, [text.encode() for text in texts + long + singles] + NOT_UTF8)


characters = st.characters(min_codepoint=1, exclude_categories=["Cs"]) | st.sampled_from(AWKWARD)
passwords = st.text(characters, min_size=1, max_size=12).map(str.encode) | st.binary(
    min_size=1, max_size=12
).filter(lambda raw: b"\0" not in raw)


@given(st.lists(passwords, min_size=20, max_size=40))
@example([f"{ALEF}{NBSP}{ALEF}".encode()])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_password_has_postgresqls_verifier(cluster: Cluster, given_passwords: list[bytes]) -> None:
    assert_same(cluster, given_passwords)
