"""Host names in pg_hba.conf hold for those who have them; DNS that does not answer delays nobody else."""

import json
import sys
import time
from contextlib import ExitStack

import pytest

from fixtures import wire
from fixtures.deployments import config, in_clear, passthrough
from fixtures.fake_backend import lets_everybody_in
from fixtures.wire import WireClient, another_source

RESOLVER = """
import json, sys, threading
from pgtlsproxy.policy.request import ClientHost, Unknown
from pgtlsproxy.proxy import client_hosts
answers = json.loads({answers!r})
def find_host(ip):
    answer = answers.get(str(ip))
    if answer == "hangs":
        threading.Event().wait()
    if answer == "fails":
        return Unknown("Temporary failure in name resolution")
    return ClientHost(answer, is_confirmed=bool(answer) and not answer.startswith("forged"))
client_hosts.find_host = find_host
client_hosts.LOOKUP_SECONDS = 1.0
from pgtlsproxy.cli import main
main(sys.argv[1:])
"""

HBA = """\
host all alice .example.com trust
host all bob .evil.example reject
host all bob all trust
host all carol all trust
"""


@pytest.fixture
def start(proxy, certs, fake_backend):
    """A proxy whose resolver gives these answers."""

    def go(**answers):
        return proxy(
            config(
                {"l": in_clear()},
                primary=passthrough(fake_backend(lets_everybody_in), certs, require_auth="none"),
            ),
            {"pg_hba.conf": HBA},
            command=[sys.executable, "-c", RESOLVER.format(answers=json.dumps(answers))],
        )

    return go


def verdict(running, user, source):
    with WireClient(("127.0.0.1", running.port("l")), source=source) as client:
        client.send(wire.startup(user=user))
        message = client.read_message()
        decided = running.wait_for_event("session_decided", **client.where)
    return message.kind == b"R", decided


def test_a_name_lets_in_and_keeps_out_whom_it_leads_back_to(start):
    friend, forger, foe, nobody = (another_source() for _ in range(4))
    running = start(
        **{friend: "db.EXAMPLE.com", forger: "forged.example.com", foe: "x.evil.example", nobody: None}
    )
    expected = {
        ("alice", friend): (True, 1),
        ("alice", forger): (False, None),
        ("alice", foe): (False, None),
        ("alice", nobody): (False, None),
        ("bob", friend): (True, 3),
        ("bob", foe): (False, 2),
        ("bob", nobody): (True, 3),
    }
    found = {who: verdict(running, *who) for who in expected}
    assert {who: (is_in, decided.get("hba_line")) for who, (is_in, decided) in found.items()} == expected
    assert (
        'resolved to "forged.example.com", forward lookup does not match'
        in found["alice", forger][1]["reason"]
    )


def test_a_resolver_that_fails_gets_nobody_past_a_line_that_rejects(start):
    source = another_source()
    running = start(**{source: "fails"})
    is_in, decided = verdict(running, "bob", source)
    assert (is_in, decided["hba_line"], decided["sqlstate"]) == (False, 2, "28000")
    assert "Temporary failure in name resolution" in decided["reason"]
    assert verdict(running, "alice", source)[0] is False
    assert verdict(running, "carol", source)[0] is True


def test_a_resolver_that_hangs_delays_nobody_who_needs_no_name_and_nobody_elsewhere(start):
    hanging = [another_source() for _ in range(5)]
    elsewhere = "127.200.0.1"
    running = start(**dict.fromkeys(hanging, "hangs"), **{elsewhere: "db.example.com"})
    begin = time.monotonic()
    with ExitStack() as stack:
        clients = []
        for source in hanging * 10:
            client = stack.enter_context(WireClient(("127.0.0.1", running.port("l")), source=source))
            client.send(wire.startup(user="bob"))
            clients.append(client)
        assert verdict(running, "carol", hanging[0])[0] is True
        assert verdict(running, "alice", elsewhere)[0] is True
        assert time.monotonic() - begin < wire.PROMPTLY
        assert {client.read_error().error[0] for client in clients} == {"28000"}
    assert time.monotonic() - begin < 10
