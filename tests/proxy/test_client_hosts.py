"""Host names of clients: found once, kept for a moment, and never waited for longer than that."""

import socket
import threading
from ipaddress import ip_address

import pytest
import trio
import trio.testing

from pgtlsproxy.policy.request import ClientHost, Unknown
from pgtlsproxy.proxy import client_hosts
from pgtlsproxy.proxy.client_hosts import ClientHosts, find_host

IP = ip_address("192.0.2.1")
GOOD = ClientHost("db.example.com", is_confirmed=True)


def known(answers):
    """A look-up that gives answers in turn, and how often it was asked."""
    asked = []

    def look_up(ip):
        asked.append(ip)
        answer = answers[len(asked) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return ClientHosts(look_up), asked


@pytest.fixture
def hanging():
    """A look-up that hangs for one /24, and what ends it."""
    release = threading.Event()

    def look_up(ip):
        if ip in ip_network_of_the_hanging:
            release.wait()
        return GOOD

    yield look_up
    release.set()


ip_network_of_the_hanging = {ip_address(f"198.51.100.{n}") for n in range(256)}


async def test_an_answer_is_kept_and_an_unknown_name_for_a_moment_only(monkeypatch):
    hosts, asked = known([GOOD, Unknown("no answer"), GOOD])
    assert [await hosts.of(IP), await hosts.of(IP)] == [GOOD, GOOD]
    assert asked == [IP]
    other = ip_address("2001:db8::1")
    monkeypatch.setattr(client_hosts, "KEEP_UNKNOWN_SECONDS", 0.0)
    assert await hosts.of(other) == Unknown("no answer")
    assert await hosts.of(other) == GOOD


async def test_sessions_of_one_address_wait_for_one_look_up():
    asked, found, release = [], [], threading.Event()

    def look_up(ip):
        asked.append(ip)
        release.wait()
        return GOOD

    hosts = ClientHosts(look_up)

    async def ask():
        found.append(await hosts.of(IP))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        release.set()
    assert asked == [IP]
    assert found == [GOOD] * 10


async def test_a_look_up_that_hangs_is_unknown_in_time_and_delays_nobody_else(hanging, monkeypatch):
    monkeypatch.setattr(client_hosts, "LOOKUP_SECONDS", 0.1)
    hosts = ClientHosts(hanging)
    with trio.fail_after(5):
        answers = [await hosts.of(ip) for ip in sorted(ip_network_of_the_hanging)[:10]]
        assert answers[:4] == [Unknown("the look-up took longer than 0.1 s")] * 4
        assert set(answers[4:]) == {Unknown("too many look-ups of clients' names are under way")}
        assert await hosts.of(IP) == GOOD


async def test_threads_that_hang_are_bounded(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(client_hosts, "LOOKUP_SECONDS", 0.05)
    monkeypatch.setattr(client_hosts, "LOOKUPS", 3)
    hosts = ClientHosts(lambda _: release.wait() and GOOD)
    before = threading.active_count()
    try:
        answers = [await hosts.of(ip_address(f"10.0.{n}.1")) for n in range(10)]
        assert answers[:3] == [Unknown("the look-up took longer than 0.05 s")] * 3
        assert answers[3:] == [Unknown("too many look-ups of clients' names are under way")] * 7
        assert threading.active_count() <= before + 3 + 1
    finally:
        release.set()


async def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(client_hosts, "REMEMBERED", 8)
    hosts = ClientHosts(lambda ip: ClientHost(str(ip), is_confirmed=True))
    for n in range(50):
        assert await hosts.of(ip_address(f"10.0.{n}.1")) == ClientHost(f"10.0.{n}.1", is_confirmed=True)
    assert len(hosts._known) <= 8


async def test_a_bug_reaches_the_session_and_ends_nothing_else():
    hosts, _ = known([ZeroDivisionError("ours"), GOOD])
    with pytest.raises(ZeroDivisionError):
        await hosts.of(IP)


async def test_a_session_that_ends_ends_no_look_up_of_others(monkeypatch):
    release = threading.Event()
    hosts = ClientHosts(lambda _: release.wait() and GOOD)
    with trio.move_on_after(0.05):
        await hosts.of(IP)
    release.set()
    assert await hosts.of(IP) == GOOD


# --- The system's resolver ------------------------------------------------------------------------------


@pytest.fixture
def resolver(monkeypatch):
    """Reverse and forward answers as a test writes them; an int is the resolver's error."""
    reverse, forward = {}, {}

    def getnameinfo(address, flags):
        assert flags == socket.NI_NAMEREQD
        answer = reverse[address[0]]
        if isinstance(answer, int):
            raise socket.gaierror(answer, "made to fail")
        return answer, "0"

    def getaddrinfo(host, *_, **__):
        answer = forward[host.decode()]
        if isinstance(answer, int):
            raise socket.gaierror(answer, "made to fail")
        return [(0, 0, 0, "", (address, 0)) for address in answer]

    monkeypatch.setattr(socket, "getnameinfo", getnameinfo)
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return reverse, forward


@pytest.mark.parametrize(
    ("name", "addresses", "expected"),
    [
        ("db.example.com", ["192.0.2.9", "192.0.2.1"], ClientHost("db.example.com", is_confirmed=True)),
        ("db.example.com", ["192.0.2.9"], ClientHost("db.example.com", is_confirmed=False)),
        ("db.example.com", ["::ffff:192.0.2.1"], ClientHost("db.example.com", is_confirmed=False)),
        ("db.example.com", socket.EAI_NONAME, ClientHost("db.example.com", is_confirmed=False)),
        ("db.example.com", socket.EAI_AGAIN, ClientHost("db.example.com", Unknown("made to fail"))),
        (socket.EAI_NONAME, [], ClientHost(None, is_confirmed=False)),
        (socket.EAI_AGAIN, [], Unknown("made to fail")),
        (socket.EAI_FAIL, [], Unknown("made to fail")),
    ],
)
def test_a_name_counts_where_it_leads_back_to_the_address(resolver, name, addresses, expected):
    reverse, forward = resolver
    reverse["192.0.2.1"], forward["db.example.com"] = name, addresses
    assert find_host(IP) == expected


def test_zones_of_ipv6_addresses_do_not_matter(resolver):
    reverse, forward = resolver
    reverse["fe80::1"], forward["x"] = "x", ["fe80::1%lo"]
    assert find_host(ip_address("fe80::1")) == ClientHost("x", is_confirmed=True)


def test_this_host_has_a_name():
    assert find_host(ip_address("127.0.0.1")) == ClientHost("localhost", is_confirmed=True)
