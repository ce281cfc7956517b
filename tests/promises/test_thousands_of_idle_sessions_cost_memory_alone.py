"""A crowd that is logged in and says nothing takes its memory, and nobody's time.

`PGTLSPROXY_IDLE=5000` in the environment makes it larger; with `pytest -s` what was seen is printed. The server
is one of ours: PostgreSQL itself would take some 20 GB for 5,000 sessions.
"""

import asyncio
import os
import resource
import ssl
import threading
import time

import pytest

from fixtures import wire
from fixtures.deployments import config, with_tls
from fixtures.processes import held_by
from fixtures.wire import WireClient

IDLE = int(os.environ.get("PGTLSPROXY_IDLE", "0")) or 300
AT_ONCE = 20
ROUNDS = 200

MAY_TAKE = 90_000
"""Octets of a worker for each session; two TLS connections of OpenSSL are half of it."""

SLOWER_BY = 10
"""Times that the median round may take beside the crowd: each session's search would be thousands."""


class Crowd:
    """Both ends of many sessions, in a thread with an event loop of its own."""

    def __init__(self, certs):
        self._certs = certs
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._writers = []
        self._tasks = set()
        self._server = self._run(asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=4096))
        self.port = self._server.sockets[0].getsockname()[1]

    def _run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(600)

    async def _serve(self, reader, writer):
        """A server that lets everybody in and answers every query with nothing."""
        self._tasks.add(asyncio.current_task())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._certs.server.crt, self._certs.server.key)
        try:
            await reader.readexactly(8)
            writer.write(b"S")
            await writer.start_tls(context)
            length = int.from_bytes(await reader.readexactly(4))
            await reader.readexactly(length - 4)
            writer.write(wire.AUTHENTICATION_OK + wire.backend_key_data(1, b"keys") + wire.ready_for_query())
            while (await reader.readexactly(5))[:1] != b"X":
                await reader.readexactly(len(wire.query("SELECT 1")) - 5)
                writer.write(wire.message(b"I") + wire.ready_for_query())
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    async def _log_in(self, port, context):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        self._writers.append(writer)
        writer.write(wire.SSL_REQUEST)
        assert await reader.readexactly(1) == b"S"
        await writer.start_tls(context, server_hostname="localhost")
        writer.write(wire.startup(user="alice", database="alice"))
        return await reader.readuntil(wire.ready_for_query())

    def log_in(self, port, sessions):
        """Open sessions that stay."""
        context = wire.tls_context(certificate=self._certs.client("alice"))

        async def all_of_them():
            for begin in range(0, sessions, AT_ONCE):
                batch = range(begin, min(begin + AT_ONCE, sessions))
                await asyncio.gather(*(self._log_in(port, context) for _ in batch))

        self._run(all_of_them())

    def close(self):
        async def end():
            for writer in self._writers:
                writer.transport.abort()
            self._server.close()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        self._run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()


@pytest.fixture
def crowd(certs):
    wanted = 4 * IDLE + 200  # two legs here and two in the proxy, which takes our limit over
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(wanted, hard)), hard))
    crowd = Crowd(certs)
    yield crowd
    crowd.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def median_round(client):
    """What a query takes, in seconds."""
    seen = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        client.send(wire.query("SELECT 1"))
        client.read_until(b"Z")
        seen.append(time.perf_counter() - begin)
    return sorted(seen)[ROUNDS // 2]


def test_memory_grows_with_the_crowd_and_an_active_session_is_as_quick_as_before(proxy, crowd, certs):
    backend = {
        "host": "localhost", "hostaddr": "127.0.0.1", "port": crowd.port, "sslrootcert": certs.ca.crt,
        "sslcert": certs.client("pgtlsproxy").crt, "sslkey": certs.client("pgtlsproxy").key, "login": "certificate",
    }  # fmt: skip
    running = proxy(
        config({"tls": with_tls(certs)}, primary=backend) | {"max_connections": IDLE + 100},
        {"pg_hba.conf": "hostssl all alice all cert\n"},
    )
    running.wait_for_event("ready")
    (worker,) = running.workers
    crowd.log_in(running.port("tls"), 50)  # allocators and caches have taken what they need
    with WireClient(("127.0.0.1", running.port("tls"))) as client:
        assert client.ask_for_tls() == b"S"
        client.start_tls(wire.tls_context(certificate=certs.client("alice")))
        client.send(wire.startup(user="alice", database="alice"))
        client.read_until(b"Z")
        alone, before = median_round(client), held_by(worker)
        crowd.log_in(running.port("tls"), IDLE)
        beside, after = median_round(client), held_by(worker)
    each = (after.octets - before.octets) / IDLE
    seen = (
        f"{each / 1000:.1f} kB each; a round {alone * 1e6:.0f} µs before, {beside * 1e6:.0f} µs beside them"
    )
    print(f"\n{IDLE} idle sessions: {seen}")  # noqa: T201 - shown with -s
    assert each < MAY_TAKE
    assert after.threads <= before.threads + 2  # those that look names up come and go
    assert beside < alone * SLOWER_BY
