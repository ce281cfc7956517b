"""The answer to auth_query: taken apart strictly, and nothing of a secret is shown."""

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgtlsproxy.errors import BackendMisbehaved, ProxyError
from pgtlsproxy.identity import Secret, decode_name, encode_name
from pgtlsproxy.protocol.auth_query import NO_ROLE, Question
from pgtlsproxy.protocol.messages import Message
from pgtlsproxy.protocol.query import answer_reader, encode_question, parse_fields, parse_row_description
from pgtlsproxy.protocol.scram.keys import Verifier

VERIFIER = Verifier.make(Secret(b"secret"), bytes(16), 1)
QUERY = "SELECT a, b, c FROM f($1)"


def description(*oids):
    columns = b"".join(b"c\0" + struct.pack("!ihihih", 0, 0, oid, -1, -1, 1) for oid in oids)
    return Message(b"T", struct.pack("!h", len(oids)) + columns)


def row(*fields):
    data = b"".join(
        struct.pack("!i", -1) if field is None else struct.pack("!i", len(field)) + field for field in fields
    )
    return Message(b"D", struct.pack("!h", len(fields)) + data)


def error(severity, sqlstate, text):
    return Message(b"E", f"SFEHLER\0V{severity}\0C{sqlstate}\0M{text}\0\0".encode())


COLUMNS = description(19, 25, 1184)
DONE = (Message(b"C", b"SELECT 1\0"), Message(b"Z", b"I"))
BEGIN = (Message(b"1", b""), Message(b"2", b""))


def answered(*messages, user="alice"):
    question = Question(QUERY, user)
    ends = [question.take(message) for message in messages]
    assert ends == [False] * (len(ends) - 1) + [True]
    return question.answer()


def microseconds(value):
    return struct.pack("!q", value)


EXPIRIES = {
    "none": (None, None),
    "infinity": (microseconds(2**63 - 1), None),
    "the epoch": (microseconds(0), 946684800.0),
    "a time": (microseconds(1_500_000), 946684801.5),
    "-infinity": (microseconds(-(2**63)), 946684800 - 2**63 / 1e6),
}


@pytest.mark.parametrize("expiry", EXPIRIES)
def test_a_row_is_a_verifier_and_its_expiry(expiry):
    field, valid_until = EXPIRIES[expiry]
    found = answered(*BEGIN, COLUMNS, row(b"alice", VERIFIER.text().encode(), field), *DONE)
    assert (found.verifier, found.valid_until, found.lack) == (VERIFIER, valid_until, "")
    assert found.is_expired(1e9) is (expiry in {"the epoch", "a time", "-infinity"})
    assert found.at(1e9) == (None if found.is_expired(1e9) else VERIFIER)


def test_a_password_is_good_until_the_moment_of_its_expiry():
    found = answered(COLUMNS, row(b"alice", VERIFIER.text().encode(), microseconds(0)), *DONE)
    assert found.at(946684800.0) == VERIFIER
    assert found.at(946684800.001) is None


WITHOUT = {
    "no row": ((), NO_ROLE),
    "no password": ((row(b"alice", None, None),), "has no SCRAM verifier for the role"),
    "MD5": ((row(b"alice", b"md5" + b"0" * 32, None),), "MD5"),
    "something": ((row(b"alice", b"hunter2", None),), "is no SCRAM verifier"),
}


@pytest.mark.parametrize("case", WITHOUT)
def test_whoever_has_no_verifier_has_none_and_the_log_says_why(case):
    rows, lack = WITHOUT[case]
    found = answered(COLUMNS, *rows, *DONE)
    assert found.verifier is None
    assert lack in found.lack
    assert "hunter2" not in found.lack


@pytest.mark.parametrize("sqlstate", ["22021", "22P05"])
def test_a_name_that_is_no_text_there_is_nobodys(sqlstate):
    assert answered(error("ERROR", sqlstate, "invalid byte sequence"), DONE[1]).verifier is None


REFUSED = {
    "another role": ((COLUMNS, row(b"bob", VERIFIER.text().encode(), None), *DONE), "another role"),
    "the name in capitals": ((COLUMNS, row(b"Alice", None, None), *DONE), "another role"),
    "two rows": ((COLUMNS, row(b"alice", None, None), row(b"alice", None, None), *DONE), "more than one row"),
    "two fields": ((COLUMNS, row(b"alice", None), *DONE), "not what was asked for"),
    "no columns": ((Message(b"n", b""),), "gives no rows"),
    "two columns": ((description(19, 25),), "2 columns"),
    "an expiry as text": ((description(19, 25, 25),), "NULL::timestamptz"),
    "a timestamp": ((description(19, 25, 1114),), "NULL::timestamptz"),
    "a short expiry": ((COLUMNS, row(b"alice", VERIFIER.text().encode(), b"1"), *DONE), "malformed timestamp"),
    "nothing": ((DONE[1],), "did not answer"),
    "an error": ((error("ERROR", "42883", "function x does not exist"), DONE[1]), "42883: function x does not exist; run"),
    "the end": ((error("FATAL", "57P01", "terminating connection"),), "57P01"),
    "a secret in an error": ((error("ERROR", "22P02", f'invalid input: "{VERIFIER.text()}"'), DONE[1]), "not shown"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_answer_is_refused(case):
    messages, why = REFUSED[case]
    with pytest.raises(BackendMisbehaved) as caught:
        answered(*messages)
    assert why in caught.value.reason
    assert "SCRAM-SHA-256$" not in caught.value.reason


@given(
    st.text(min_size=1, max_size=63), st.binary(min_size=1, max_size=63).filter(lambda name: 0 not in name)
)
def test_the_name_stands_beside_the_query_byte_by_byte(text, raw):
    for user in (text.replace("\0", "x"), decode_name(raw)):
        sent = encode_question(QUERY, user, 2)
        kinds = {}
        while sent:
            (length,) = struct.unpack_from("!I", sent, 1)
            kinds[sent[:1]], sent = sent[5 : length + 1], sent[length + 1 :]
        assert list(kinds) == [b"P", b"B", b"D", b"E", b"S"]
        assert kinds[b"P"] == b"\0" + QUERY.encode() + b"\0\0\0"
        name = encode_name(user)
        assert kinds[b"B"] == b"\0\0\0\0\0\1" + struct.pack("!i", len(name)) + name + b"\0\1\0\1"


@given(st.lists(st.none() | st.binary(max_size=50), max_size=5))
def test_fields_come_back_as_they_went(fields):
    assert parse_fields(row(*fields).body, len(fields)) == tuple(fields)


@given(st.binary(max_size=200))
def test_noise_is_malformed_and_nothing_else(noise):
    for parse in (parse_row_description, lambda body: parse_fields(body, 3)):
        with contextlib.suppress(BackendMisbehaved):
            parse(noise)
    reader, question = answer_reader(is_extended=True), Question(QUERY, "alice")
    reader.feed(noise)
    try:
        while (message := reader.next()) is not None and not question.take(message):
            pass
    except ProxyError:
        pass
