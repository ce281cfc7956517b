"""Telling a client that it is refused fails for nobody: whatever goes wrong, the client has gone."""

import socket

import pytest
from OpenSSL import SSL

from pgtlsproxy.errors import AccessDenied
from pgtlsproxy.proxy.client import Client
from pgtlsproxy.tls.stream import LegLost


class BrokenLeg:
    """A leg of which one operation fails."""

    is_tls = True

    def __init__(self, sock, broken, error):
        self.sock = sock
        self._broken = broken
        self._error = error

    async def _do(self, operation):
        if operation == self._broken:
            raise self._error
        return b""

    async def send(self, _data):
        return await self._do("send")

    async def send_eof(self):
        return await self._do("send_eof")

    async def receive(self, _max_octets):
        return await self._do("receive")


@pytest.mark.parametrize(
    "error", [LegLost("reset"), SSL.Error([]), SSL.SysCallError(-1, "EOF"), OSError(9, "bad")]
)
@pytest.mark.parametrize("broken", ["send", "send_eof", "receive"])
async def test_an_answer_that_cannot_be_delivered_is_given_up(broken, error):
    with socket.socket() as sock:
        client = Client(sock, "0123")
        client.leg = BrokenLeg(sock, broken, error)
        await client.answer(AccessDenied("no line"))
        if broken == "send_eof":
            await client.say_goodbye()
