"""What the relay knows of a session's idle points, against a model: never one that is none, and each that is."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.conversations import (
    BOUND,
    COLUMNS,
    COMPLETE,
    COPY_DONE,
    COPY_IN,
    DESCRIBE,
    ERROR,
    EXECUTE,
    FUNCTION_CALL,
    NOTICE,
    NOTIFICATION,
    PARAMETER,
    PARSED,
    SYNC,
    TERMINATE,
    UNITS,
    Conversation,
    bind,
    parse,
    ready,
    row,
)
from fixtures.packets import message, query
from pgtlsproxy.proxy.relay_count import begins_copy
from pgtlsproxy.proxy.relay_owed import KEPT_OCTETS, Owed, request_in

CONVERSATIONS = st.lists(st.sampled_from(UNITS), min_size=1, max_size=6)
SEEDS = st.integers(0, 2**32)

LONG = row(b"x" * 100) * 40
"""Rows that are not kept from their beginning, and not too many to be followed."""

MANY = row(b"x") * 300

MANY_DATA = message(b"d", b"x") * 300

DATA_LIKE_A_QUERY = message(b"d", query("SELECT 1"))

DATA_LIKE_ITS_END = message(b"d", b"x" + COPY_DONE + query("COPY 42"))

POOLERS_ERROR = message(b"E", b"SFATAL\x00C08P01\x00Mserver conn crashed?\x00\x00")
"""PgBouncer's own name no routine."""


def hear(owed, is_client, record):
    (owed.asked if is_client else owed.answered)(bytearray(record + b"of an earlier read"), len(record))


def after(*records):
    """The status behind records: the client's are marked with True."""
    owed = Owed()
    for is_client, record in records:
        hear(owed, is_client, record)
    return owed.status.decode()


def have(conversation, units, *, must_be_known):
    """Have a conversation of these units, a last simple one behind them; returns what is owed then."""
    for unit in units:
        unit(conversation)
    for _ in range(2):
        conversation.ask(query(""), waits=True)
        conversation.answer(message(b"I"), conversation.ready())
    owed = Owed()
    for is_client, record, state in conversation.records():
        hear(owed, is_client, record)
        if owed.status:
            assert owed.status == state.status, "it was taken for idle"
        elif must_be_known and state.status is not None:
            assert not state.must_be_known, "it was idle, and not known to be"
    return owed


@settings(max_examples=400, deadline=None)
@given(CONVERSATIONS, SEEDS, st.booleans())
def test_every_idle_point_of_a_conversation_is_known_and_no_other(units, seed, is_pipelined):
    have(Conversation(random.Random(seed), is_pipelined=is_pipelined), units, must_be_known=True)


@settings(max_examples=100, deadline=None)
@given(CONVERSATIONS, SEEDS)
def test_long_answers_change_nothing_for_a_client_that_waits(units, seed):
    assert have(Conversation(random.Random(seed), is_long=True), units, must_be_known=False).status


@settings(max_examples=100, deadline=None)
@given(CONVERSATIONS, SEEDS)
def test_a_pipeline_with_long_answers_is_never_taken_for_idle(units, seed):
    have(Conversation(random.Random(seed), is_long=True, is_pipelined=True), units, must_be_known=False)


C, B = True, False


@pytest.mark.parametrize(
    ("records", "status"),
    [
        pytest.param([], "I", id="login"),
        pytest.param([(C, query("x"))], "", id="query"),
        pytest.param([(C, query("x")), (B, COMPLETE + ready("T"))], "T", id="transaction"),
        pytest.param([(C, query("x")), (B, ERROR + ready("E"))], "E", id="failed transaction"),
        pytest.param([(C, query("x") * 2), (B, COMPLETE + ready())], "", id="two queries, one record"),
        pytest.param([(C, query("x") * 2), (B, (COMPLETE + ready()) * 2)], "I", id="two queries, answered"),
        pytest.param([(C, query("x"))] * 2 + [(B, COMPLETE + ready())], "", id="two queries, two records"),
        pytest.param([(C, SYNC * 2), (B, ready())], "", id="two Syncs"),
        pytest.param([(C, SYNC), (C, SYNC), (B, ready()), (B, ready())], "I", id="two Syncs, answered"),
        pytest.param([(C, query("x")), (B, row(ready()))], "", id="a row"),
        pytest.param([(C, query("x")), (B, row(b"\x00" + ready()))], "", id="a binary row"),
        pytest.param([(C, query("x")), (B, row(COMPLETE + ready()))], "", id="a row of the protocol itself"),
        pytest.param([(C, query("x")), (B, row(b"NZ", b"Italy")[:-4])], "", id="a read that ends within a row"),
        pytest.param([(C, query("x")), (B, LONG + row(ready()))], "", id="a row behind many"),
        pytest.param([(C, query("x")), (B, LONG + row(b"\x00" + ready()))], "", id="a binary row behind many"),
        pytest.param([(C, query("x")), (B, LONG), (B, COMPLETE + ready())], "I", id="many rows"),
        pytest.param([(C, query("x")), (B, LONG + row(ready())), (B, COMPLETE + ready())], "I", id="and an end"),
        pytest.param([(C, query("x")), (B, LONG + ERROR + ready())], "I", id="many rows and an error"),
        pytest.param([(C, query("x")), (B, COLUMNS * 100 + ready())], "I", id="many columns"),
        pytest.param([(C, query("x")), (B, LONG + COMPLETE + PARAMETER + ready())], "I", id="and a parameter"),
        pytest.param([(C, query("x")), (B, LONG + COMPLETE + ready() + NOTIFICATION)], "I", id="and a NOTIFY"),
        pytest.param([(C, parse()), (C, DESCRIBE + message(b"H")), (B, PARSED + COLUMNS)], "", id="no Sync yet"),
        pytest.param([(C, FUNCTION_CALL), (B, message(b"V", LONG + ready()))], "", id="a function's result"),
        pytest.param([(C, FUNCTION_CALL), (B, message(b"V", LONG)), (B, ready())], "I", id="a function"),
        pytest.param([(C, query("x")[:3])], "", id="a part of a request"),
        pytest.param([(C, query("x")[:3]), (C, query("x")[3:]), (B, COMPLETE + ready())], "I", id="both parts"),
        pytest.param([(C, bind(SYNC)[:-2]), (B, b"")], "", id="a part that ends like a Sync"),
        pytest.param([(C, query("COPY")), (B, COPY_IN)], "", id="COPY"),
        pytest.param([(C, query("COPY")), (B, COPY_IN), (C, message(b"d", b"x") + COPY_DONE)], "", id="COPY done"),
        pytest.param(
            [(C, query("COPY")), (B, COPY_IN), (C, message(b"d", b"xc\0\0\0\x04")), (B, COMPLETE + ready())],
            "I", id="COPY whose data looks like its end",
        ),
        pytest.param(
            [(C, parse() + bind() + EXECUTE + SYNC), (B, PARSED + BOUND + COPY_IN), (C, COPY_DONE + SYNC)],
            "", id="extended COPY",
        ),
        pytest.param(
            [(C, parse() + bind() + EXECUTE + SYNC), (B, PARSED + BOUND + COPY_IN), (C, COPY_DONE + SYNC), (B, COMPLETE + ready())],
            "I", id="extended COPY, over",
        ),
        pytest.param(
            [(C, query("COPY")), (B, COPY_IN), (C, message(b"d", b"x")), (B, ERROR + ready())],
            "I", id="COPY that failed",
        ),
        pytest.param(
            [(C, query("COPY")), (B, COPY_IN), (C, message(b"d", b"x")[:3]), (B, ERROR + ready())],
            "", id="COPY that failed, in the middle of its data",
        ),
        pytest.param(
            [(C, query("COPY")), (B, COPY_IN), (C, DATA_LIKE_A_QUERY[:5]), (B, ERROR + ready()), (C, DATA_LIKE_A_QUERY[5:])],
            "I", id="COPY that failed, whose data look like a query",
        ),
        pytest.param(
            [(C, query("COPY")), (B, COPY_IN), (C, message(b"d", b"x")), (B, ERROR + ready()), (C, message(b"d", b"x")), (C, query("x"))],
            "", id="COPY that failed, and a query",
        ),
        pytest.param(
            [(C, query("COPY")), (B, COPY_IN), (C, COPY_DONE + query("x")), (B, COMPLETE + ready())],
            "", id="COPY and a query in one record",
        ),
        pytest.param(
            [(C, query("COPY")), (B, COPY_IN), (C, COPY_DONE + query("x")), (B, COMPLETE + ready()), (B, COMPLETE + ready())],
            "I", id="COPY and a query in one record, answered",
        ),
        pytest.param(
            [(C, query("COPY")), (B, COPY_IN), (C, message(b"d", b"x") + query("x")), (B, ERROR + ready())],
            "", id="COPY with a query within",
        ),
        pytest.param(
            [(C, query("COPY")), (B, COPY_IN), (C, MANY_DATA), (B, ERROR + ready())],
            "", id="COPY of many messages that failed",
        ),
        pytest.param(
            [(C, query("COPY")), (B, COPY_IN), (C, MANY_DATA), (B, ERROR + ready()), (C, MANY_DATA + COPY_DONE)],
            "I", id="COPY of many messages that failed, ended",
        ),
        pytest.param(
            [(C, query("COPY")), (B, COPY_IN), (C, MANY_DATA), (C, DATA_LIKE_ITS_END[:-13]), (C, DATA_LIKE_ITS_END[-13:]), (C, COPY_DONE), (B, COMPLETE + ready())],
            "I", id="COPY of many messages, one of which looks like its end in the middle",
        ),
        pytest.param(
            [(C, parse() + bind() + EXECUTE + SYNC), (B, PARSED + BOUND + COPY_IN), (C, message(b"d", b"x")), (B, ERROR)],
            "", id="extended COPY that failed",
        ),
        pytest.param(
            [(C, parse() + bind() + EXECUTE + SYNC), (B, PARSED + BOUND + COPY_IN), (C, message(b"d", b"x")), (B, ERROR), (C, SYNC), (B, ready())],
            "I", id="extended COPY that failed, and Sync",
        ),
        pytest.param(
            [(C, query("x")), (B, LONG + POOLERS_ERROR + ready())], "I", id="many rows and a pooler's error",
        ),
        pytest.param(
            [(C, query("x")), (B, LONG + row(POOLERS_ERROR + ready())[:-1])], "", id="a part of a row like it",
        ),
        pytest.param([(B, NOTIFICATION)], "I", id="NOTIFY"),
        pytest.param([(B, NOTIFICATION[:7])], "", id="half a NOTIFY"),
        pytest.param([(B, NOTIFICATION[:7]), (B, NOTIFICATION[7:])], "I", id="both halves"),
        pytest.param([(B, NOTIFICATION[:2]), (B, NOTIFICATION[2:] + NOTICE)], "I", id="cut in its header"),
        pytest.param([(B, NOTIFICATION)] * 100, "I", id="many NOTIFYs"),
        pytest.param([(B, NOTIFICATION), (C, query("x"))], "", id="NOTIFY and a query"),
        pytest.param([(B, b"A\0\0\0\x01")], "", id="a length that is none"),
        pytest.param([(C, query("x")), (B, LONG), (C, query("y")), (B, COMPLETE + ready())], "", id="late second"),
        pytest.param(
            [(C, query("x")), (B, LONG), (C, query("y")), (B, COMPLETE + ready() + COMPLETE), (B, ready())],
            "I", id="late second, answered",
        ),
        pytest.param(
            [(C, query("x") * 2), (B, MANY + row(b"NZ", b"Italy")[:-4]), (B, b"taly" + COMPLETE + ready()), (B, COMPLETE + ready())],
            "I", id="a pipeline of many rows",
        ),
        pytest.param(
            [(C, parse() + query("x")), (B, ERROR + ready())], "", id="a query that was perhaps skipped"
        ),
    ],
)  # fmt: skip
def test_what_a_session_is_known_to_be(records, status):
    assert after(*records) == status


@pytest.mark.parametrize(
    ("record", "is_one"),
    [
        (query("SELECT 1"), True),
        (query("SELECT 1") * 2, False),
        (query("SELECT 1")[:-1], False),
        (query("SELECT 1")[:1], False),
        (SYNC, True),
        (SYNC * 2, False),
        (parse() + bind() + DESCRIBE + EXECUTE + SYNC, True),
        (parse("SELECT 'FAQ'") + bind(b"Qx") + SYNC, True),
        (parse() + bind(), False),
        (bind() + SYNC + bind() + SYNC, False),
        (bind() + query("x") + SYNC, False),
        (bind() + FUNCTION_CALL + SYNC, False),
        (FUNCTION_CALL, False),
        (TERMINATE, False),
    ],
)
def test_one_request_is_told_from_its_two_ends(record, is_one):
    assert bool(request_in(bytearray(record + b"\x00" * 8), len(record))) == is_one


@pytest.mark.parametrize("octets", [0, 1, 249, 250, 251, 252, KEPT_OCTETS, 7_993, 65_530, 100_000])
def test_a_query_of_any_length_is_told_from_one_that_is_cut_and_from_two(octets):
    record = query("x" * octets)
    for cut, is_one in ((record, True), (record[:-1], False), (record + query("y"), False)):
        assert bool(request_in(bytearray(cut + b"\x00" * 8), len(cut))) == is_one


def test_nothing_is_counted_where_one_request_is_sent_at_a_time():
    owed = Owed()
    for request in (query("x" * KEPT_OCTETS), query("x"), parse("y" * 3000) + bind() + EXECUTE + SYNC):
        hear(owed, C, request)
        assert owed.count is None
        hear(owed, B, LONG + COMPLETE + ready())
        assert (owed.count, owed.status) == (None, b"I")


@pytest.mark.parametrize("before", [b"", query("x"), query("x") * 2, message(b"d", b"x" * 300)])
def test_terminate_is_seen_behind_whatever_comes_before_it(before):
    owed = Owed()
    hear(owed, C, before + TERMINATE[:2])
    assert not owed.is_terminated
    hear(owed, C, TERMINATE[2:])
    assert owed.is_terminated


@pytest.mark.parametrize("octets", [10, 250, 300, 2000])
def test_a_copy_that_the_client_ends_with_a_long_reason_is_over(octets):
    """psycopg sends the whole text of an exception."""
    copy_fail = message(b"f", b"x" * octets + b"\x00")
    said = [(True, query("COPY t FROM STDIN")), (False, COPY_IN), (True, message(b"d", b"x" * 9000))]
    assert after(*said, (True, copy_fail), (False, ERROR + ready())) == "I"
    in_batch = [(True, parse() + bind() + EXECUTE + SYNC), (False, message(b"1") + message(b"2") + COPY_IN)]
    assert after(*in_batch, (True, copy_fail + SYNC), (False, ERROR + ready())) == "I"


@pytest.mark.parametrize("rows", [LONG, MANY])
@pytest.mark.parametrize("octets", [10, 240, 1000])
def test_a_long_notification_in_a_long_answer_hides_no_end(rows, octets):
    notification = message(b"A", b"\x00\x00\x12\x34" + b"channel\x00" + b"x" * octets + b"\x00")
    said = [(True, query("SELECT 1")), (False, rows), (False, COMPLETE + notification + ready())]
    assert after(*said) == "I"
    assert after(*said, (True, query("SELECT 2"))) == ""
    assert after(*said, (True, query("SELECT 2")), (False, COMPLETE + ready())) == "I"


@pytest.mark.parametrize("columns", [0, 1, 3, 300])
@pytest.mark.parametrize("before", [NOTICE * 100, MANY])
def test_a_copy_behind_long_notices_is_over_when_it_is(columns, before):
    """They are no part of what is kept of an answer, and its Sync counts for nothing."""
    copy_in = message(b"G", b"\x00" + columns.to_bytes(2) + b"\x00\x01" * columns)
    said = [(True, parse() + bind() + EXECUTE + SYNC), (False, PARSED + BOUND + before + copy_in)]
    assert after(*said) == ""
    said += [(True, message(b"d", b"x")), (True, COPY_DONE + SYNC)]
    assert after(*said) == ""
    assert after(*said, (False, COMPLETE + ready())) == "I"


@pytest.mark.parametrize(
    "data",
    [
        row(b"G", b"x" * 7)[:-7],
        row(b"RING", b"\x01" + b"x" * 6)[:-4],
        message(b"G", b"\x00\x00\x02\x00\x00"),
        message(b"G", b"\x02\x00\x00"),
        COPY_IN + NOTICE,
        COPY_IN[:-1],
    ],
)
def test_nothing_else_is_taken_for_the_beginning_of_a_copy(data):
    assert begins_copy(LONG + COPY_IN)
    assert not begins_copy(LONG + data)
