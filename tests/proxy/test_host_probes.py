"""What hosts are: asked when a session needs it, once for all who wait, all at once, and never waited for long."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import structlog
import trio
import trio.testing

from pgtlsproxy.config import Host, HostProbe
from pgtlsproxy.errors import BackendUnavailable
from pgtlsproxy.proxy import host_probes
from pgtlsproxy.proxy.candidates import Candidates
from pgtlsproxy.proxy.host_probes import HostProbes
from pgtlsproxy.proxy.resolve import Resolver
from pgtlsproxy.proxy.session_attributes import WrongSessionAttributes
from pgtlsproxy.proxy.stages import BackendAddress

PRIMARY = {"in_hot_standby": "off", "default_transaction_read_only": "off"}
STANDBY = {"in_hot_standby": "on", "default_transaction_read_only": "off"}
ONE, TWO, THREE = (BackendAddress(f"10.0.0.{n}", 5432, f"10.0.0.{n}") for n in (1, 2, 3))
PROBE = HostProbe(user="probe", interval=2, timeout=1)


def backend(*addresses, wanted="read-write", probe=PROBE):
    """A backend as a configuration has it, with these addresses in its list."""
    hosts = tuple(Host(address.host, address.ip, address.port) for address in addresses or (ONE, TWO))
    settings = SimpleNamespace(
        hosts=hosts, host_probe=probe, target_session_attrs=wanted, load_balance_hosts="disable"
    )
    return SimpleNamespace(name="b", settings=settings)


class Servers:
    """What each address says; a gate in the place of an answer hangs until it is opened."""

    def __init__(self, answers):
        self.answers = answers
        self.asked = []

    async def ask(self, _, probe, address):
        assert probe.user == "probe"
        self.asked.append(address)
        answer = self.answers[address]
        if isinstance(answer, trio.Event):
            await answer.wait()
            answer = PRIMARY
        if isinstance(answer, Exception):
            raise answer
        return answer


def resolver():
    return Resolver(structlog.wrap_logger(structlog.ReturnLogger()))


def probes_of(servers, logger=None):
    silent = structlog.wrap_logger(structlog.ReturnLogger())
    return HostProbes(resolver(), logger or silent, servers.ask)


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(host_probes, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


async def led_to(probes, to):
    """The addresses that a session would dial, and why not the others."""
    candidates = Candidates(to.settings, resolver(), probes.of(to))
    found = []
    while (address := await candidates.next()) is not None:
        found.append(address)
    return found, [error.reason for error in candidates.failures]


async def settled():
    await trio.testing.wait_all_tasks_blocked()


async def test_only_hosts_that_fit_are_dialled_and_the_others_are_named():
    servers = Servers({ONE: STANDBY, TWO: PRIMARY})
    found, why_not = await led_to(probes_of(servers), backend())
    assert found == [TWO]
    assert why_not == ["10.0.0.1:5432: host_probe: session is read-only"]


async def test_prefer_standby_takes_any_that_answers_where_no_host_is_a_standby():
    servers = Servers({ONE: BackendUnavailable("gone"), TWO: PRIMARY, THREE: {}})
    found, _ = await led_to(probes_of(servers), backend(ONE, TWO, THREE, wanted="prefer-standby"))
    assert found == [TWO, THREE]
    servers.answers[THREE] = STANDBY
    found, _ = await led_to(probes_of(servers), backend(ONE, TWO, THREE, wanted="prefer-standby"))
    assert found[0] == THREE


@pytest.mark.parametrize("missing", ["in_hot_standby", "default_transaction_read_only"])
async def test_a_server_that_does_not_report_what_it_takes_fits_nothing(missing):
    servers = Servers({ONE: {name: value for name, value in PRIMARY.items() if name != missing}})
    found, (why_not,) = await led_to(probes_of(servers), backend(ONE))
    assert found == []
    assert f"does not report {missing}" in why_not


async def test_an_answer_is_believed_for_the_interval(clock):
    servers = Servers({ONE: STANDBY, TWO: PRIMARY})
    probes, asked = probes_of(servers), backend()
    assert (await led_to(probes, asked))[0] == [TWO]
    await settled()  # all hosts are asked at once, and the last may still be: the clock would age it
    servers.answers = {ONE: PRIMARY, TWO: STANDBY}
    clock.seconds += 1.9
    assert (await led_to(probes, asked))[0] == [TWO]
    await settled()
    assert sorted(servers.asked, key=str) == [ONE, TWO]
    clock.seconds += 0.1
    assert (await led_to(probes, asked))[0] == [ONE]


async def test_a_failure_is_believed_for_the_interval_too(clock):
    servers = Servers({ONE: BackendUnavailable("no"), TWO: PRIMARY})
    probes, asked = probes_of(servers), backend()
    for _ in range(5):
        assert await led_to(probes, asked) == ([TWO], ["no"])
    assert servers.asked.count(ONE) == 1
    servers.answers[ONE] = PRIMARY
    clock.seconds += 2
    assert (await led_to(probes, asked))[0] == [ONE, TWO]


async def test_sessions_wait_for_one_answer():
    gate, found = trio.Event(), []
    servers = Servers({ONE: gate})
    probes, asked = probes_of(servers), backend(ONE)

    async def session():
        found.append((await led_to(probes, asked))[0])

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(session)
        await settled()
        gate.set()
    assert (found, servers.asked) == ([[ONE]] * 10, [ONE])


async def test_all_hosts_are_asked_at_once():
    servers = Servers({ONE: trio.Event(), TWO: trio.Event(), THREE: trio.Event()})
    probes, asked = probes_of(servers), backend(ONE, TWO, THREE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(led_to, probes, asked)
        await settled()
        assert sorted(servers.asked, key=str) == [ONE, TWO, THREE]
        for gate in servers.answers.values():
            gate.set()


async def test_hosts_that_hang_cost_one_timeout_once_an_interval(clock, autojump_clock):
    servers = Servers({ONE: trio.Event(), TWO: trio.Event(), THREE: PRIMARY})
    probes, asked = probes_of(servers), backend(ONE, TWO, THREE)
    begin = trio.current_time()
    found, why_not = await led_to(probes, asked)
    assert trio.current_time() - begin == pytest.approx(PROBE.timeout)
    assert found == [THREE]
    assert why_not[0] == "10.0.0.1:5432: host_probe: no answer within 1 s"
    assert (await led_to(probes, asked))[0] == [THREE]
    assert trio.current_time() - begin == pytest.approx(PROBE.timeout)
    clock.seconds += 2
    assert (await led_to(probes, asked))[0] == [THREE]
    assert trio.current_time() - begin == pytest.approx(2 * PROBE.timeout)


async def test_a_host_behind_the_one_that_fits_is_not_waited_for(autojump_clock):
    servers = Servers({ONE: PRIMARY, TWO: trio.Event()})
    asked = backend()
    candidates = Candidates(asked.settings, resolver(), probes_of(servers).of(asked))
    begin = trio.current_time()
    assert await candidates.next() == ONE
    assert trio.current_time() == begin


async def test_what_is_known_and_young_is_not_waited_for_while_it_is_asked_anew(clock):
    servers = Servers({ONE: PRIMARY, TWO: STANDBY})
    probes, asked = probes_of(servers), backend()
    await led_to(probes, asked)
    known = probes.of(asked)
    known._known[ONE].asked_at += 1
    clock.seconds += 2
    servers.answers[ONE] = trio.Event()
    assert isinstance(await known.problem(TWO, "read-write"), WrongSessionAttributes)
    await settled()
    assert servers.asked.count(ONE) == 2
    assert await known.problem(ONE, "read-write") is None
    servers.answers[ONE].set()
    await settled()


async def test_a_session_that_ends_ends_no_asking_for_others():
    gate = trio.Event()
    servers = Servers({ONE: gate})
    probes, asked = probes_of(servers), backend(ONE)
    with trio.move_on_after(0.01):
        await led_to(probes, asked)
    gate.set()
    assert (await led_to(probes, asked))[0] == [ONE]
    assert servers.asked == [ONE]


async def test_a_host_that_has_changed_ends_the_session_and_all_are_asked_anew():
    servers = Servers({ONE: PRIMARY, TWO: STANDBY})
    probes, asked = probes_of(servers), backend()
    candidates = Candidates(asked.settings, resolver(), probes.of(asked))
    assert await candidates.next() == ONE
    await settled()
    servers.answers = {ONE: STANDBY, TWO: PRIMARY}
    with pytest.raises(WrongSessionAttributes, match="session is read-only; it has changed since"):
        candidates.unfit(WrongSessionAttributes("10.0.0.1:5432: session is read-only"))
    assert (await led_to(probes, asked))[0] == [TWO]


async def test_a_host_that_cannot_be_dialled_has_all_asked_anew_and_this_session_led_to_the_next():
    servers = Servers({ONE: PRIMARY, TWO: STANDBY})
    probes, asked = probes_of(servers), backend()
    await led_to(probes, asked)
    await settled()
    servers.answers = {ONE: BackendUnavailable("gone"), TWO: PRIMARY}
    candidates = Candidates(asked.settings, resolver(), probes.of(asked))
    assert await candidates.next() == ONE
    candidates.failed(BackendUnavailable("refused"), ONE)
    assert await candidates.next() == TWO


async def test_that_no_host_will_do_is_believed_for_a_moment_whatever_the_interval(clock):
    servers = Servers({ONE: BackendUnavailable("gone"), TWO: STANDBY})
    probes, asked = probes_of(servers), backend(probe=HostProbe(user="probe", interval=3600, timeout=1))

    async def exhausted():
        candidates = Candidates(asked.settings, resolver(), probes.of(asked))
        assert await candidates.next() is None
        candidates.exhausted("b")
        await settled()

    await exhausted()
    servers.asked.clear()
    servers.answers[TWO] = PRIMARY
    clock.seconds += host_probes.DOUBTED_SECONDS - 0.1
    await exhausted()
    assert servers.asked == []
    clock.seconds += 0.1
    await exhausted()  # from here on it is doubted
    assert (await led_to(probes, asked))[0] == [TWO]


async def test_an_answer_to_a_question_from_before_the_change_is_forgotten_too():
    gate = trio.Event()
    servers = Servers({ONE: gate})
    probes, asked = probes_of(servers), backend(ONE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(led_to, probes, asked)
        await settled()
        probes.of(asked).forget()
        gate.set()
    servers.answers[ONE] = STANDBY
    assert (await led_to(probes, asked))[0] == []


async def test_a_newer_configuration_asks_for_itself():
    servers = Servers({ONE: STANDBY, TWO: PRIMARY})
    probes, before, after = probes_of(servers), backend(), backend()
    await led_to(probes, before)
    servers.answers = {ONE: PRIMARY, TWO: STANDBY}
    assert (await led_to(probes, after))[0] == [ONE]
    assert (await led_to(probes, before))[0] == [TWO]


async def test_what_is_remembered_is_bounded():
    servers = Servers({ONE: PRIMARY})
    probes = probes_of(servers)
    for _ in range(10):
        await led_to(probes, backend(ONE))
    assert len(probes._kept["b"]) == host_probes.SNAPSHOTS
    known = probes.of(backend(ONE))
    for number in range(host_probes.REMEMBERED + 10):
        address = BackendAddress("h", number, "10.0.0.1")
        servers.answers[address] = PRIMARY
        await known.problem(address, "read-write")
    assert len(known._known) == host_probes.REMEMBERED


async def test_a_bug_is_logged_and_leaves_nothing_behind(clock):
    """The host is passed over by those who wait for it; the next session asks it anew."""
    servers, logged = Servers({ONE: ZeroDivisionError("ours"), TWO: PRIMARY}), []
    logger = SimpleNamespace(error=lambda event, exc_info: logged.append((event, exc_info)))
    probes, asked = probes_of(servers, logger), backend()
    found, (why_not,) = await led_to(probes, asked)
    assert found == [TWO]
    assert why_not == "10.0.0.1:5432: host_probe: a bug of ours: see the event `bug`"
    await settled()
    assert logged == [("bug", servers.answers[ONE])] * servers.asked.count(ONE)
    servers.answers[ONE] = PRIMARY
    assert (await led_to(probes, asked))[0] == [ONE, TWO]


async def test_a_backend_without_host_probe_is_asked_nothing():
    servers = Servers({})
    assert probes_of(servers).of(backend(probe=None)) is None
