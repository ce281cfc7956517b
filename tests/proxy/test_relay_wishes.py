"""Sessions that are told to end do so between an answer and the next request: no answer is ever cut."""

import random

import pytest
import trio
import trio.testing

from fixtures.conversations import (
    COMPLETE,
    COPY_DONE,
    COPY_IN,
    ERROR,
    EXECUTE,
    ITALY,
    LOOKALIKE,
    NOTIFICATION,
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
from fixtures.relayed import LEGS, MODES, open_bench, read_exactly, read_to_end
from pgtlsproxy.proxy import relay_loop
from pgtlsproxy.proxy.relay_ending import Ending, When, Wish
from pgtlsproxy.tls.stream import LegLost

FAREWELL = message(b"E", b"SFATAL\x00C57P01\x00Mterminating connection\x00\x00")
SHUTDOWN = Ending("shutdown", "the proxy ends", is_clean=True)
ANSWER = COMPLETE + ready()


@pytest.fixture(params=[(legs, mode) for legs in LEGS for mode in MODES], ids="-".join)
async def bench(request, monkeypatch):
    legs, mode = request.param
    async with open_bench(LEGS[legs], mode, monkeypatch) as opened:
        yield opened


@pytest.fixture
async def relayed(bench):
    return await bench.session()


async def wish(bench, relayed, when):
    """Tell the session to end, and wait until the relay's thread knows it."""
    await until_all_is_done(bench)
    bench.relay.end(relayed.session, Wish(SHUTDOWN, when, FAREWELL))
    await until_all_is_done(bench)


async def until_all_is_done(bench):
    done = trio.Event()
    token = trio.lowlevel.current_trio_token()
    bench.relay._loop.post(lambda: token.run_sync_soon(done.set))
    await done.wait()


async def ask(relayed, *records):
    for record in records:
        await relayed.client.send(record)
        assert await read_exactly(relayed.backend, len(record)) == record


async def answer(relayed, *records):
    for record in records:
        await relayed.backend.send(record)
        assert await read_exactly(relayed.client, len(record)) == record


async def goes_on(bench, relayed):
    """Nothing comes for the client, and what the relay's thread has written would be there."""
    await until_all_is_done(bench)
    with trio.move_on_after(0.02) as silence:
        await relayed.client.receive(100)
    assert silence.cancelled_caught, "the session was ended in the middle of an answer"


async def says_goodbye(relayed):
    assert await read_to_end(relayed.client) == FAREWELL
    assert await read_exactly(relayed.backend, 5) == TERMINATE
    relayed.close()
    assert (await relayed.ended()).kind == "shutdown"


async def test_an_idle_session_says_goodbye_to_both_sides(bench, relayed):
    await ask(relayed, query("SELECT 1"))
    await answer(relayed, ANSWER)
    await wish(bench, relayed, When.IDLE)
    await says_goodbye(relayed)


async def test_a_session_that_was_never_used_is_idle(bench, relayed):
    await trio.testing.wait_all_tasks_blocked()
    await wish(bench, relayed, When.IDLE)
    await says_goodbye(relayed)


@pytest.mark.parametrize(("when", "last"), [(When.IDLE, "I"), (When.BOUNDARY, "T"), (When.BOUNDARY, "E")])
async def test_a_query_under_way_has_its_answer_first(bench, relayed, when, last):
    await ask(relayed, query("SELECT pg_sleep(5)"))
    await wish(bench, relayed, when)
    await goes_on(bench, relayed)
    await answer(relayed, row(b"x"), COMPLETE + ready(last))
    await says_goodbye(relayed)


@pytest.mark.parametrize("status", ["T", "E"])
async def test_a_transaction_is_not_idle_but_at_a_boundary(bench, relayed, status):
    await ask(relayed, query("BEGIN"))
    await answer(relayed, COMPLETE + ready(status))
    await wish(bench, relayed, When.IDLE)
    await goes_on(bench, relayed)
    await wish(bench, relayed, When.BOUNDARY)
    await says_goodbye(relayed)


async def test_a_busy_client_is_ended_at_its_next_idle_point(bench, relayed):
    """It need not fall silent."""
    await ask(relayed, query("BEGIN"))
    await wish(bench, relayed, When.IDLE)
    for _ in range(3):
        await answer(relayed, COMPLETE + ready("T"))
        await ask(relayed, query("SELECT 1"))
    await answer(relayed, ANSWER)
    await says_goodbye(relayed)


UNDER_WAY = {
    "two Syncs, the second answered late": [(True, SYNC * 2), (False, ready())],
    "two Queries in one record": [(True, query("a") + query("b")), (False, ANSWER)],
    "two Queries in two records": [(True, query("a")), (True, query("b")), (False, ANSWER)],
    "a row that ends as ReadyForQuery": [(True, query("a")), (False, LOOKALIKE)],
    "a row of which a read ends so": [(True, query("a")), (False, ITALY[:-4])],
    "many rows of which a read ends so": [(True, query("a")), (False, row(b"x" * 90) * 80 + ITALY[:-4])],
    "many large reads": [(True, query("a")), *[(False, row(b"x" * 8100))] * 20, (False, LOOKALIKE)],
    "a datum of COPY TO": [(True, query("a")), (False, message(b"H", b"\x00" * 3) + message(b"d", ready()))],
    "COPY FROM": [(True, query("a")), (False, COPY_IN), (True, message(b"d", b"x" * 9000) + COPY_DONE)],
    "a Query over two records": [(True, query("x" * 100)[:50]), (True, query("x" * 100)[50:])],
    "a part of a Query": [(True, query("x" * 100)[:50])],
    "a batch of which part is answered": [
        (True, parse() + bind() + EXECUTE), (True, SYNC + parse() + bind() + EXECUTE + SYNC), (False, ANSWER),
    ],
    "a batch without its Sync": [(True, parse() + message(b"H")), (False, message(b"1"))],
    "a FunctionCall": [(True, message(b"F", b"\x00" * 10)), (False, message(b"V", b"\x00" * 4)[:6])],
    "half a notification": [(False, NOTIFICATION[:7])],
}  # fmt: skip


@pytest.fixture(params=["clear-clear", "tls-tls"])
async def fast_bench(request, monkeypatch):
    async with open_bench(LEGS[request.param], "fast", monkeypatch) as opened:
        yield opened


async def converse(bench, relayed, said, when, *, is_told_early):
    """Say it all, and tell the session to end behind its first record or its last."""
    for number, (is_client, record) in enumerate(said, 1):
        await (ask if is_client else answer)(relayed, record)
        if number == (1 if is_told_early else len(said)):
            await wish(bench, relayed, when)


@pytest.mark.parametrize("said", UNDER_WAY.values(), ids=UNDER_WAY.keys())
@pytest.mark.parametrize("when", [When.IDLE, When.BOUNDARY])
@pytest.mark.parametrize("is_told_early", [False, True])
async def test_what_is_under_way_is_not_cut(fast_bench, said, when, is_told_early):
    relayed = await fast_bench.session()
    await converse(fast_bench, relayed, said, when, is_told_early=is_told_early)
    await goes_on(fast_bench, relayed)


IDLE = {
    "two Syncs": [(True, SYNC * 2), (False, ready()), (False, ready())],
    "two Queries in two records": [(True, query("a")), (True, query("b")), (False, ANSWER), (False, ANSWER)],
    "many rows": [(True, query("a")), (False, row(b"x" * 90) * 80), (False, ANSWER)],
    "many large reads": [(True, query("a")), *[(False, row(b"x" * 8100))] * 20, (False, ANSWER)],
    "COPY FROM": [
        (True, query("a")), (False, COPY_IN), *[(True, message(b"d", b"x" * 9000))] * 10,
        (True, message(b"d", b"x")), (True, COPY_DONE), (False, ANSWER),
    ],
    "COPY FROM that failed": [
        (True, query("a")), (False, COPY_IN), *[(True, message(b"d", b"x" * 65_536))] * 10, (False, ERROR + ready()),
    ],
    "COPY FROM of psycopg": [
        (True, parse() + bind() + EXECUTE + SYNC), (False, message(b"1") + message(b"2") + COPY_IN),
        (True, message(b"d", b"x")), (True, COPY_DONE + SYNC), (False, ANSWER),
    ],
    "a Query over two records": [(True, query("x")[:3]), (True, query("x")[3:]), (False, ANSWER)],
    "prepared by asyncpg": [
        (True, parse() + message(b"H")), (False, message(b"1")), (True, bind() + EXECUTE + SYNC), (False, ANSWER),
    ],
    "a batch of JDBC": [
        (True, (parse() + bind() + EXECUTE) * 40), (False, COMPLETE * 20), (True, bind() + EXECUTE + SYNC),
        (False, COMPLETE * 21 + ready()),
    ],
    "a FunctionCall": [(True, message(b"F", b"\x00" * 10)), (False, message(b"V", b"\x00" * 4000)), (False, ready())],
    "a notification in two reads": [(False, NOTIFICATION[:7]), (False, NOTIFICATION[7:])],
    "a notification behind an answer": [(True, query("a")), (False, ANSWER + NOTIFICATION)],
}  # fmt: skip


@pytest.mark.parametrize("said", IDLE.values(), ids=IDLE.keys())
@pytest.mark.parametrize("is_told_early", [False, True])
async def test_what_is_idle_again_is_ended(fast_bench, said, is_told_early):
    relayed = await fast_bench.session()
    await converse(fast_bench, relayed, said, When.IDLE, is_told_early=is_told_early)
    await says_goodbye(relayed)


@pytest.mark.parametrize("data", [[message(b"d", b"x" * 65_536)] * 10, [message(b"d", b"x") * 300] * 2])
@pytest.mark.parametrize(
    "rest",
    [
        [(True, message(b"d", b"x") + COPY_DONE)],
        [(True, message(b"d", b"x")), (True, COPY_DONE), (True, query("b")), (False, ANSWER)],
    ],
)
async def test_a_client_that_goes_on_behind_a_copy_that_failed_is_idle_when_it_is_through(
    fast_bench, data, rest
):
    relayed = await fast_bench.session()
    said = [(True, query("a")), (False, COPY_IN), *((True, each) for each in data), (False, ERROR + ready())]
    await converse(fast_bench, relayed, said + rest, When.IDLE, is_told_early=False)
    await says_goodbye(relayed)


async def test_a_session_that_listens_is_idle(bench, relayed):
    await ask(relayed, query("LISTEN channel"))
    await answer(relayed, ANSWER, *[NOTIFICATION] * 100)
    await wish(bench, relayed, When.IDLE)
    await says_goodbye(relayed)


async def test_a_half_closed_session_ends_by_itself(bench, relayed):
    await ask(relayed, query("SELECT 1"))
    await relayed.client.send_eof()
    assert await read_to_end(relayed.backend) == b""
    await wish(bench, relayed, When.IDLE)
    await relayed.backend.send(ANSWER)
    await relayed.backend.send_eof()
    assert await read_to_end(relayed.client) == ANSWER


async def test_a_session_behind_terminate_ends_by_itself(bench, relayed):
    await ask(relayed, TERMINATE)
    await wish(bench, relayed, When.IDLE)
    await relayed.backend.send_eof()
    assert await read_to_end(relayed.client) == b""


async def test_a_transfer_that_is_told_to_end_does_so_behind_its_last_large_read(bench, relayed, monkeypatch):
    monkeypatch.setattr(relay_loop, "SWEEP_SECONDS", 3600.0)  # which would find it in the end
    chunk = message(b"d", b"x" * 12_000)
    await ask(relayed, query("COPY t TO STDOUT"))
    await answer(relayed, *[chunk] * 8)  # a transfer by now
    await wish(bench, relayed, When.IDLE)
    await answer(relayed, chunk)
    last = chunk + message(b"c") + COMPLETE + ready()
    await relayed.backend.send(last)
    with trio.fail_after(5):
        assert await read_to_end(relayed.client) == last + FAREWELL


async def test_a_session_that_shows_no_boundary_is_cut_without_a_word(bench, relayed):
    await ask(relayed, query("SELECT pg_sleep(5)"))
    await wish(bench, relayed, When.BOUNDARY)
    bench.relay.end(relayed.session, Wish(Ending("shutdown", "the time is up"), When.NOW))
    with pytest.raises(LegLost):
        await relayed.client.receive(100)
    assert (await relayed.ended()).reason == "the time is up"


CONVERSATIONS = 60


@pytest.mark.parametrize("is_pipelined", [False, True])
async def test_a_wish_at_random_ends_a_conversation_at_its_next_idle_point(fast_bench, is_pipelined):
    for seed in range(CONVERSATIONS):
        numbers = random.Random(seed)
        conversation = Conversation(numbers, is_pipelined=is_pipelined)
        for unit in numbers.choices(UNITS, k=4):
            unit(conversation)
        when = numbers.choice((When.IDLE, When.BOUNDARY))
        await converse_until_ended(fast_bench, conversation, when, numbers.random())


async def is_being_ended(bench, relayed):
    await until_all_is_done(bench)
    direction = bench.relay._loop._directions.get(relayed.session.client_leg.sock.fileno())
    return direction is None or direction.session.ending is not None


async def converse_until_ended(bench, conversation, when, told_with_probability):
    relayed = await bench.session()
    is_told = is_ended = False
    for is_client, record, state in conversation.records():
        await (ask if is_client else answer)(relayed, record)
        if not is_told and conversation.numbers.random() < told_with_probability:
            await wish(bench, relayed, when)
            is_told = True
        is_idle = state.status == b"I" if when is When.IDLE else state.status is not None
        if is_told and is_idle and (state.must_be_known or await is_being_ended(bench, relayed)):
            assert await read_to_end(relayed.client) == FAREWELL
            is_ended = True
            break
    relayed.close()
    await relayed.over.wait()
    assert relayed.failure is None
    assert not is_ended or relayed.end.kind == "shutdown"
