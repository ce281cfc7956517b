"""Whatever the kernel says while an address is dialled is that address's failure, and nobody's bug."""

import errno
import os
import socket
from types import SimpleNamespace
from typing import ClassVar

import pytest

from pgtlsproxy.errors import BackendUnavailable
from pgtlsproxy.proxy import dial
from pgtlsproxy.proxy.stages import BackendAddress

BACKEND = SimpleNamespace(
    connect_timeout=5.0,
    sslnegotiation="postgres",
    sslmode="disable",
    requirepeer=None,
    keepalives=True,
    keepalives_idle=60.0,
    keepalives_interval=10.0,
    keepalives_count=6,
    tcp_user_timeout=30.0,
)

OPENED = []


class FaultySocket(socket.socket):
    """A socket one of whose calls fails; remembered, so that a test sees whether it was closed."""

    fails: ClassVar = {}

    def __init__(self, *arguments):
        self._fail("socket")
        super().__init__(*arguments)
        OPENED.append(self)

    def _fail(self, call):
        if call in self.fails:
            raise self.fails[call]

    def connect_ex(self, where):
        self._fail("connect_ex")
        result = super().connect_ex(where)
        # To another host it would be under way still, and the outcome would be asked for.
        return errno.EALREADY if "getsockopt" in self.fails else result

    def getsockopt(self, *arguments):
        self._fail("getsockopt")
        return super().getsockopt(*arguments)

    def setsockopt(self, *arguments):
        self._fail("setsockopt")
        return super().setsockopt(*arguments)


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


@pytest.mark.parametrize("call", ["socket", "connect_ex", "getsockopt", "setsockopt"])
@pytest.mark.parametrize("number", [errno.EMFILE, errno.EAFNOSUPPORT, errno.ENETUNREACH, errno.ENOBUFS])
async def test_what_the_kernel_refuses_is_the_addresss_failure(monkeypatch, server, call, number):
    monkeypatch.setattr(FaultySocket, "fails", {call: OSError(number, os.strerror(number))})
    monkeypatch.setattr(dial.socket, "socket", FaultySocket)
    OPENED.clear()
    address = BackendAddress("db", server.getsockname()[1], "127.0.0.1")
    with pytest.raises(BackendUnavailable) as caught:
        await dial.dial(address, BACKEND, None)
    assert caught.value.reason == f"{address}: {os.strerror(number)}"
    assert all(sock.fileno() == -1 for sock in OPENED)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        (
            BackendAddress("/nonexistent", 5432, None),
            "No such file or directory; is the server running locally and accepting connections on that socket?",
        ),
        (BackendAddress("/" + "x" * 200, 5432, None), "AF_UNIX path too long"),
    ],
)
async def test_a_unix_socket_that_is_not_there_is_a_failure_too(address, reason):
    with pytest.raises(BackendUnavailable) as caught:
        await dial.dial(address, BACKEND, None)
    assert caught.value.reason == f"{address}: {reason}"


async def test_a_port_that_nobody_listens_at_is_said_in_the_systems_words(server):
    address = BackendAddress("db", server.getsockname()[1], "127.0.0.1")
    server.close()
    with pytest.raises(BackendUnavailable) as caught:
        await dial.dial(address, BACKEND, None)
    assert caught.value.reason.startswith(f"{address}: Connection refused; ")
