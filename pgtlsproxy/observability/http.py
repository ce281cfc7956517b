"""HTTP for machines that look: one request a connection, GET or HEAD, answered from memory.

What acts has a path of its own, and takes a POST, which no link and no prefetch of a browser makes.

Everything that is read has a limit, and the connection as a whole a deadline, which its owner sets.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Protocol

import h11

MAX_HEAD_OCTETS: Final = 8192
"""How long a request may be, to the end of its header."""

MAX_IGNORED_OCTETS: Final = 65_536
"""What is read and dropped behind a request, so that closing does not take the answer away with it."""

_TEXT: Final = "text/plain; charset=utf-8"


class Leg(Protocol):
    """A connection."""

    async def receive(self, max_octets: int) -> bytes:
        """The next bytes; empty at the end."""

    async def send(self, data: bytes) -> None:
        """Send all of it."""

    async def send_eof(self) -> None:
        """Say that nothing follows."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked.

    Args:
        path: without a query.
        accept: the Accept field.
    """

    path: str
    accept: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """What is answered.

    Args:
        status: of HTTP.
        body: in octets.
        content_type: of the body.
        fields: further header fields.
        then: what is done once it has been sent, or could not be.
    """

    status: int
    body: bytes = field(repr=False)
    content_type: str = _TEXT
    fields: tuple[tuple[str, str], ...] = ()
    then: Callable[[], None] | None = None

    @classmethod
    def text(cls, status: int, text: str, *fields: tuple[str, str]) -> Reply:
        """A line for people."""
        return cls(status, f"{text}\n".encode(), fields=fields)


async def serve_request(
    leg: Leg, answer: Callable[[Request], Reply], hosts: Collection[str], actions: Collection[str] = ()
) -> None:
    """Read one request and answer it.

    Args:
        leg: where it comes; closed by the caller.
        answer: what is said.
        hosts: names by which we may be called, besides localhost and numeric addresses.
        actions: the paths that take a POST, and nothing else.

    Raises:
        whatever the leg does.
    """
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_OCTETS)
    try:
        event = await _next_event(leg, connection)
        if not isinstance(event, h11.Request):
            return  # it has closed without a word
        is_head = event.method == b"HEAD"
        reply = _refusal(event, hosts, actions) or answer(_request(event))
    except h11.RemoteProtocolError as error:
        is_head = False
        reply = Reply.text(error.error_status_hint, "that is no request of HTTP/1.1 that is taken here")
    try:
        await _send(leg, connection, reply, is_head=is_head)
    finally:
        if reply.then is not None:
            reply.then()
    await leg.send_eof()
    ignored = 0
    while ignored < MAX_IGNORED_OCTETS and (data := await leg.receive(MAX_HEAD_OCTETS)):
        ignored += len(data)


async def _next_event(leg: Leg, connection: h11.Connection) -> object:
    left = MAX_HEAD_OCTETS
    while (event := connection.next_event()) is h11.NEED_DATA:
        if not left:
            raise h11.RemoteProtocolError(f"over {MAX_HEAD_OCTETS} octets", error_status_hint=431)
        data = await leg.receive(left)
        left -= len(data)
        connection.receive_data(data)
    return event


def _refusal(event: h11.Request, hosts: Collection[str], actions: Collection[str]) -> Reply | None:
    is_action = _path(event) in actions
    if is_action and event.method != b"POST":
        return Reply.text(405, "this takes a POST", ("Allow", "POST"))
    if not is_action and event.method not in {b"GET", b"HEAD"}:
        return Reply.text(405, "only GET and HEAD are answered here", ("Allow", "GET, HEAD"))
    if not event.target.startswith(b"/"):
        return Reply.text(400, "the target of a request begins with /")
    if not _is_ours(_field(event, b"host"), hosts):
        # A page of another site, whose name leads here now, must not read this (DNS rebinding).
        return Reply.text(421, "this is not served under that name: list it in status.hosts")
    if is_action and (_field(event, b"origin") or _field(event, b"sec-fetch-site")):
        # A browser sends a form of any page here, and says so.
        return Reply.text(403, "no page in a browser may do this")
    return None


def _is_ours(host: str, hosts: Collection[str]) -> bool:
    """Whether a Host field is an IP literal, localhost or listed, with a port or without."""
    name, bracket, port = host.rpartition("]")
    if not bracket:
        name, _, port = host.partition(":")
        port = f":{port}" if port else ""
    if port and not (port[0] == ":" and port[1:].isascii() and port[1:].isdecimal()):
        return False
    if bracket:
        return name.startswith("[") and _is_ip(name[1:])
    name = name.lower().removesuffix(".")
    return name == "localhost" or _is_ip(name) or name in {each.removesuffix(".") for each in hosts}


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _request(event: h11.Request) -> Request:
    return Request(_path(event), _field(event, b"accept"))


def _path(event: h11.Request) -> str:
    return event.target.decode("ascii").partition("?")[0]


def _field(event: h11.Request, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in event.headers if key == name), "")


async def _send(leg: Leg, connection: h11.Connection, reply: Reply, *, is_head: bool) -> None:
    fields = [
        ("Content-Type", reply.content_type),
        ("Content-Length", str(len(reply.body))),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        ("Connection", "close"),
        *reply.fields,
    ]
    reason = HTTPStatus(reply.status).phrase.encode()
    response = h11.Response(status_code=reply.status, headers=fields, reason=reason)
    data = connection.send(response) or b""
    if not is_head:
        data += connection.send(h11.Data(data=reply.body)) or b""
    await leg.send(data)
