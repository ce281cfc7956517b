"""Files of 10,000 lines are read anew while sessions are relayed and begin: the event loop and the relay go on."""

import contextlib
import threading
import time

import pytest

from fixtures import wire
from fixtures.deployments import config, in_clear, passthrough, with_tls
from fixtures.fake_backend import lets_everybody_in

LINES = 10_000
RELOADS = 3
LONGEST = 0.2
"""Seconds that nobody may wait in the best of the reloads. 20 ms is what it takes where others have the machine, too."""


def hba(generation):
    return "".join(
        f"hostssl db{number} user{number}_{generation} 10.{number >> 8}.{number & 255}.0/24 cert map=people\n"
        for number in range(LINES)
    )


def ident(generation):
    return "".join(f"people cn{number} user{number}_{generation}\n" for number in range(LINES))


@pytest.fixture
def running(proxy, certs, fake_backend):
    files = {"clear.conf": "host all all all trust\n", "pg_hba.conf": hba(0), "pg_ident.conf": ident(0)}
    backend = passthrough(fake_backend(lets_everybody_in), certs, require_auth="none")
    listeners = {
        "clear": in_clear(hba_file="clear.conf"),
        "tls": with_tls(certs, ident_file="pg_ident.conf"),
    }
    running = proxy(config(listeners, primary=backend), files)
    running.wait_for_event("ready")
    return running


class Waits:
    """Does something again and again in a thread, and knows what took longest. A context manager."""

    def __init__(self, once):
        self._once = once
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.longest = 0.0
        self.count = 0

    def _run(self):
        while not self._is_over.is_set():
            begin = time.monotonic()
            self._once()
            self.longest = max(self.longest, time.monotonic() - begin)
            self.count += 1

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._is_over.set()
        self._thread.join()


def test_neither_who_comes_nor_who_is_there_waits(running):
    def begins():
        with wire.WireClient(("127.0.0.1", running.port("tls"))) as client:
            assert client.ask_for_tls() == b"S"

    with contextlib.ExitStack() as stack:
        session = stack.enter_context(wire.WireClient(("127.0.0.1", running.port("clear"))))
        session.send(wire.startup(user="alice"))
        session.read_until(b"Z")

        def asks():
            session.send(wire.query("SELECT 1"))
            session.read_until(b"Z")

        longest = []
        for generation in range(1, RELOADS + 1):
            (running.config.parent / "pg_hba.conf").write_text(hba(generation))
            (running.config.parent / "pg_ident.conf").write_text(ident(generation))
            with Waits(begins) as coming, Waits(asks) as being_there:
                assert running.reload(timeout=wire.PATIENCE)["event"] == "reloaded"
            assert min(coming.count, being_there.count) > 1
            longest.append(max(coming.longest, being_there.longest))
    assert min(longest) < LONGEST, longest
