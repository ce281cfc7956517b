"""BetterTLS's cases of name constraints: no chain is believed that a constraint forbids, as with PostgreSQL and libpq."""

from dataclasses import replace

import pytest
import trio

from chains.bettertls import ConstrainedChains, constrained
from chains.verdicts import backend_chain, host_verdict, listener_verdict

CASES = list(constrained())
CHAINS = list(dict.fromkeys((case.names.normal, case.limits) for case in CASES))

# A handshake takes a millisecond or two. Everything in the cases comes in threes, so that a sample by other
# numbers has some of everything.
OF_SERVERS = set(CHAINS[::4])
SERVERS = [case for case in CASES if (case.names.normal, case.limits) in OF_SERVERS]
ASKED_OF_POSTGRESQL, ASKED_OF_LIBPQ = CHAINS[::13], SERVERS[::7]


def common_name_is_forbidden(names, limits):
    """Where there is no DNS name, OpenSSL takes a commonName for one; an address is one that lies in no domain."""
    if names.of_dns != "none" or names.common == "none":
        return False
    if names.common_kind == "dns":
        return limits.forbid("dns", names.common)
    return limits.permitted_dns != "none"


def is_forbidden(names, limits):
    """What we refuse: the alternative names that the suite wants refused, and common names beside."""
    return (
        limits.forbid("dns", names.of_dns)
        or limits.forbid("ip", names.of_ip)
        or common_name_is_forbidden(names, limits)
    )


async def of_clients():
    chains = ConstrainedChains("client")
    return {key: await listener_verdict(chains.case(*key)) for key in CHAINS}


async def of_servers():
    chains = ConstrainedChains("server")
    return {key: await backend_chain(chains.case(*key)) for key in OF_SERVERS}


@pytest.fixture(scope="module")
def clients():
    return trio.run(of_clients)


@pytest.fixture(scope="module")
def servers():
    """The chain that was believed or what was said, and what then became of the host, by the case."""
    chains = trio.run(of_servers)
    found = {}
    for case in SERVERS:
        chain = chains[case.names.normal, case.limits]
        found[case.id] = chain if isinstance(chain, str) else host_verdict(chain, case.host)
    return found


def test_every_case_is_there():
    assert len({case.id for case in CASES}) == 8754
    assert len(CHAINS) == 3645
    assert len(SERVERS) > 2000


def test_no_client_is_believed_whose_ca_may_not_certify_its_names(clients):
    assert {key: why is not None for key, why in clients.items()} == {
        key: is_forbidden(*key) for key in CHAINS
    }


def test_no_server_is_believed_whose_ca_may_not_certify_its_names(servers):
    for case in SERVERS:
        if case.violates:
            assert servers[case.id] is not None, case


def test_no_server_is_believed_to_be_a_host_that_it_does_not_name(servers):
    """By its commonName only where it has no alternative names, and for no address: so it is with libpq, but for that."""
    for case in SERVERS:
        names = case.names
        by_common_name = case.common_name_matches and names.common_kind == "dns"
        has_none = names.of_dns == names.of_ip == "none"
        if not case.matches and not (by_common_name and has_none):
            assert servers[case.id] is not None, case


def test_every_other_server_is_believed(servers):
    """But where a commonName is forbidden, which the suite leaves to the verifier; an address it would let pass."""
    refused = {
        case.id for case in SERVERS if case.matches and not case.violates and servers[case.id] is not None
    }
    assert refused == {
        case.id
        for case in SERVERS
        if case.matches and not case.violates and common_name_is_forbidden(case.names, case.limits)
    }


def test_postgresql_says_the_same_of_clients(clients, postgresql):
    chains = ConstrainedChains("client")
    asked = {chains.case(*key): key for key in ASKED_OF_POSTGRESQL}
    theirs = postgresql(list(asked))
    assert {case.id: theirs[case.id] is None for case in asked} == {
        case.id: clients[key] is None for case, key in asked.items()
    }


def test_libpq_believes_no_server_less(servers, libpq):
    """It takes a commonName for an address, too, where there is no alternative name that is one."""
    chains, asked = ConstrainedChains("server"), []
    for case in ASKED_OF_LIBPQ:
        chain = chains.case(case.names.normal, case.limits)
        asked.append(replace(chain, id=case.id, host=case.host))
    theirs = {case: why is None for case, why in libpq(asked).items()}
    ours = {case.id: servers[case.id] is None for case in ASKED_OF_LIBPQ}
    assert [case for case in ours if ours[case] and not theirs[case]] == []
    stricter = {case for case in ours if theirs[case] and not ours[case]}
    assert stricter <= {case.id for case in ASKED_OF_LIBPQ if case.common_name_matches and not case.matches}
