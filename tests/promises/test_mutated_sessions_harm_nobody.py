"""Sessions with bytes changed at random, on either side: each ends, the proxy stays as it was, others log in.

`PGTLSPROXY_FUZZ=100000` in the environment raises their number; with so many, pytest should be told
`-o faulthandler_timeout=0`, or it takes them for a test that hangs. Each is made from its number alone, so that
one that fails does so again.
"""

import os
import struct
from collections import Counter
from random import Random

import pytest
import trio

from fixtures import wire
from fixtures.deployments import config, in_clear, with_tls
from fixtures.mutations import mutated
from fixtures.processes import open_descriptors, resident_octets, threads
from fixtures.recordings import ANSWERS, CLEAR, INSIDE, OTHER_ANSWERS, opening, requests
from fixtures.replay import READY, Played, ReplayingBackend, play, recorded_answers
from fixtures.waiting import until

SESSIONS = int(os.environ.get("PGTLSPROXY_FUZZ", "300"))
AT_ONCE = 50
MAY_GROW_BY = 32_000_000
"""Octets, from the first third of the sessions to the last: the allocator's own ups and downs."""

GOOD = range(-20, 0)
"""Sessions that nobody changes, before and behind the others."""

STARTUP_TIMEOUT, AUTHENTICATION_TIMEOUT = 1, 5
BEGINNINGS = (wire.SSL_REQUEST, wire.GSSENC_REQUEST + wire.SSL_REQUEST, b"")
ALL_BYTES = [make("spliced") for make in CLEAR.values()]


@pytest.fixture
def running(proxy, certs, tmp_path):
    backend = {"host": tmp_path, "port": 5432, "login": "passthrough"}
    settings = config({"tls": with_tls(certs), "clear": in_clear()}, primary=backend)
    limits = {
        "startup_timeout": STARTUP_TIMEOUT, "authentication_timeout": AUTHENTICATION_TIMEOUT, "cancel_rate": 0,
    }  # fmt: skip
    hba = "host all alice all scram-sha-256\nhost all bob all trust\n"
    return proxy(settings | limits, {"pg_hba.conf": hba})


def listener_of(number):
    return "clear" if number % 4 == 0 else "tls"


def mutated_client(number):
    """A client whose bytes are changed on their way: before TLS, in its handshake, or inside."""
    random = Random(number)
    waits, goodbye = random.random() < 0.02, random.random() < 0.5
    name, layer = f"s{number}", random.choice(("clear", "handshake", "inside"))
    if layer == "clear" or listener_of(number) == "clear":
        data = mutated(random, CLEAR[random.choice(list(CLEAR))](name), ALL_BYTES)
        return Played(data, waits=waits)
    beginning, inside = random.choice(BEGINNINGS), INSIDE[random.choice(list(INSIDE))](name)
    if layer == "inside":
        data = mutated(random, inside, ALL_BYTES)
        return Played(beginning, data, waits=waits, says_goodbye=goodbye)
    changed = random.randrange(2)

    def change(flight, data):
        return mutated(random, data, ALL_BYTES) if flight == changed else data

    return Played(beginning, inside, change, waits=waits, says_goodbye=goodbye)


def good_client(number):
    random = Random(number)
    said = opening(random.choice(("alice", "bob")), f"s{number}")
    return Played(said) if listener_of(number) == "clear" else Played(random.choice(BEGINNINGS), said)


def may_ask_for(number, client):
    """What a backend may see of a client: one request at most."""
    if client.inside is not None:
        return Counter(requests(client.inside, offers_tls=True))
    return Counter(requests(client.clear, offers_tls=listener_of(number) == "tls"))


async def play_all(running, numbers, client_of, judge):
    """Play clients by their number, AT_ONCE at a time, and judge what each was told."""
    ports = {listener: running.port(listener) for listener in ("tls", "clear")}
    slots = trio.Semaphore(AT_ONCE)

    async def one(number):
        client = client_of(number)
        try:
            with trio.fail_after(wire.PATIENCE):
                told = await play(ports[listener_of(number)], client)
        except trio.TooSlowError:
            pytest.fail(f"session {number} is neither answered nor closed: {client}")
        finally:
            slots.release()
        judge(number, client, told)

    async with trio.open_nursery() as nursery:
        for number in numbers:
            await slots.acquire()
            nursery.start_soon(one, number)


async def becomes_true(look):
    await trio.to_thread.run_sync(until, look)


async def play_and_see_that_nothing_is_left(running, backend, folder, client_of, judge):
    """All sessions between two good ones: what the proxy holds is the same before and after."""
    running.wait_for_event("ready")
    (pid,) = running.workers

    def was_let_in(_number, _client, told):
        assert READY in told

    async def others_log_in():
        await play_all(running, GOOD, good_client, was_let_in)

    async with trio.open_nursery() as nursery:
        await nursery.start(backend.serve, folder / ".s.PGSQL.5432")
        before = open_descriptors(pid)
        await others_log_in()
        await becomes_true(lambda: open_descriptors(pid) == before)
        held = threads(pid)
        await play_all(running, range(SESSIONS // 3), client_of, judge)
        resident = resident_octets(pid)
        await play_all(running, range(SESSIONS // 3, SESSIONS), client_of, judge)
        grown = resident_octets(pid) - resident
        await becomes_true(lambda: open_descriptors(pid) == before)
        await becomes_true(
            lambda: threads(pid) <= held
        )  # trio's end when they have been idle for ten seconds
        await others_log_in()
        nursery.cancel_scope.cancel()
    assert grown < MAY_GROW_BY


async def test_a_mutated_client_reaches_a_backend_with_a_whole_request_alone(running, tmp_path):
    may_be_asked = Counter()
    backend = ReplayingBackend()

    def judge(number, client, _told):
        may_be_asked.update(may_ask_for(number, client))

    await play_and_see_that_nothing_is_left(running, backend, tmp_path, mutated_client, judge)
    for number in GOOD:
        may_be_asked.update(2 * list(may_ask_for(number, good_client(number))))
    assert backend.requests - may_be_asked == Counter()
    assert backend.requests.total() > SESSIONS / 20, "too few mutations leave a session that can be served"


def with_messages_mixed_up(random, turn):
    """One message of a turn is left out, or comes twice, or elsewhere."""
    said = [wire.message(each.kind, each.body) for each in wire.messages(turn)]
    taken = said.pop(random.randrange(len(said)))
    for _ in range(random.randrange(3)):
        said.insert(random.randint(0, len(said)), taken)
    return b"".join(said)


def mutated_answers(request):
    """What the backend says to a session: one turn is changed, or something else comes in its place."""
    if int(request.name[1:]) in GOOD:
        return recorded_answers(request)
    random = Random(request.name)
    turns = list(ANSWERS[request.user])
    changed = random.randrange(len(turns))
    if random.random() < 0.4:
        turns[-1] = with_messages_mixed_up(random, turns[-1])
        return tuple(turns)
    said = random.choice((turns[changed], turns[changed], turns[changed], *OTHER_ANSWERS))
    turns[changed] = mutated(random, said, (*OTHER_ANSWERS, *turns))
    return tuple(turns)


def authentications(told):
    """The codes of the Authentication messages of a login."""
    while len(told) >= 9 and told[:1] != b"Z":
        length = struct.unpack_from("!I", told, 1)[0] + 1
        if told[:1] == b"R":
            yield struct.unpack_from("!I", told, 5)[0]
        told = told[length:]


async def test_a_mutated_answer_of_a_backend_proves_nobody(running, tmp_path):
    """AuthenticationOk comes from the backend or not at all, and to alice behind all of SCRAM alone."""
    backend = ReplayingBackend(mutated_answers)
    outcomes = Counter()

    def judge(number, client, told):
        (request,) = may_ask_for(number, client)
        codes = list(authentications(told))
        outcomes["let in" if 0 in codes else "refused"] += 1
        if 0 in codes:
            assert wire.AUTHENTICATION_OK in backend.said[request], number
            assert request.user != "alice" or codes == [10, 11, 12, 0], number

    await play_and_see_that_nothing_is_left(running, backend, tmp_path, good_client, judge)
    assert min(outcomes["let in"], outcomes["refused"]) > SESSIONS / 100, outcomes
