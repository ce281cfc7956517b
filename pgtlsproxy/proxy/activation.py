"""Listening sockets that a service manager has opened for us: socket activation, sd_listen_fds(3).

systemd keeps them open while the proxy is restarted, so that clients wait in their queues instead of being
refused. A socket's name (FileDescriptorName=) says whose it is: a listener's, or `status`. It takes the place
of everything that this one's `listen` says.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pgtlsproxy.config import Listener, Settings, TCPAddress, UnixAddress
from pgtlsproxy.errors import ConfigError, Mistake
from pgtlsproxy.identity import printable
from pgtlsproxy.proxy.sockets import STATUS_NAME, ListeningSocket, shown

_FIRST: Final = 3
"""The descriptor of the first one, as the protocol has it."""

_UNNAMED: Final = "unknown"
"""The name of all of them where the environment has none, as in sd_listen_fds_with_names(3)."""

_SERVICE_MANAGER: Final = "the service manager"


@dataclass(frozen=True, slots=True)
class PassedSocket:
    """One of them.

    Args:
        name: what the service manager calls it.
        opened: the socket.
    """

    name: str
    opened: ListeningSocket


@dataclass(frozen=True, slots=True)
class Assigned:
    """Whose they are.

    Args:
        listeners: by listener.
        status: those that metrics are served on.
        warnings: where they differ from what the configuration says.
    """

    listeners: dict[str, list[ListeningSocket]]
    status: list[ListeningSocket]
    warnings: list[Mistake]


def passed_sockets() -> list[PassedSocket]:
    """Take the sockets that were passed to this process, and what tells of them out of the environment.

    Nothing else may have been opened before, nor any process started.

    Raises:
        ConfigError: what was passed are no sockets that listen.
    """
    pid, count, names = (os.environ.pop(key, None) for key in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    os.environ.pop("LISTEN_PIDFDID", None)
    if pid != str(os.getpid()) or count is None:
        return []  # somebody else's, who has started us
    if not (count.isascii() and count.isdigit() and len(count) < len("1000")):
        what = f"LISTEN_FDS is {printable(count)}, expected how many sockets there are"
        raise ConfigError([Mistake(_SERVICE_MANAGER, what)])
    number = int(count)
    given = [_UNNAMED] * number if names is None else names.split(":") if number else []
    if len(given) != number:
        what = f"LISTEN_FDNAMES has {len(given)} names, expected {number}, as many as LISTEN_FDS says"
        raise ConfigError([Mistake(_SERVICE_MANAGER, what)])
    taken: list[PassedSocket] = []
    mistakes: list[Mistake] = []
    for descriptor, name in enumerate(given, start=_FIRST):
        try:
            taken.append(PassedSocket(name, _take(descriptor)))
        except ValueError as error:
            mistakes.append(_mistake(f"descriptor {descriptor}", name, str(error)))
    if mistakes:
        raise ConfigError(mistakes)
    return taken


def _mistake(which: str, name: str, what: str) -> Mistake:
    return Mistake(f"{_SERVICE_MANAGER}: {which}, called {printable(name)}", what)


def _take(descriptor: int) -> ListeningSocket:
    """The socket behind a descriptor that was passed.

    Raises:
        ValueError: it is none that listens; says what it is.
    """
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ValueError(f"is no socket ({error.strerror})") from None
    if sock.family not in {socket.AF_INET, socket.AF_INET6, socket.AF_UNIX}:
        raise ValueError("is neither a TCP nor a Unix socket")
    if sock.type != socket.SOCK_STREAM:
        raise ValueError("is no stream socket: expected ListenStream= in its unit")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ValueError("does not listen: expected Accept=no in its unit")
    sock.setblocking(False)
    os.set_inheritable(descriptor, False)
    address = _shown(sock)
    return ListeningSocket(sock, address, address, is_passed=True)


def _shown(sock: socket.socket) -> str:
    address = sock.getsockname()
    if sock.family != socket.AF_UNIX:
        return shown(address[0], address[1])
    if isinstance(address, bytes):  # an abstract one
        address = "@" + address[1:].decode("utf-8", "backslashreplace")
    return f"unix:{printable(address)}"


def assign(path: str, settings: Settings, passed: list[PassedSocket]) -> Assigned:
    """Whose each socket is.

    Args:
        path: the configuration file, for messages.
        settings: what it says.
        passed: the sockets.

    Raises:
        ConfigError: one is nobody's, or of a kind that its listener's rules were not judged for.
    """
    found = Assigned({}, [], [])
    mistakes = [*_ambiguous(path, settings, passed)]
    for each in passed:
        listener = settings.listeners.get(each.name)
        if listener is not None:
            found.listeners.setdefault(each.name, []).append(each.opened)
            kinds = {type(address) for address in listener.listen}
        elif each.name == STATUS_NAME and settings.status is not None:
            found.status.append(each.opened)
            kinds = {TCPAddress}
        else:
            mistakes.append(_mistake(each.opened.shown, each.name, _nobodys(settings)))
            continue
        kind = UnixAddress if each.opened.sock.family == socket.AF_UNIX else TCPAddress
        if kind not in kinds:
            has, lacks = ("Unix", "TCP") if kind is UnixAddress else ("TCP", "Unix")
            what = (
                f"is a {has} socket, and listen there says {lacks} alone, which its rules are judged for: "
                "have both say the same"
            )
            mistakes.append(_mistake(each.opened.shown, each.name, what))
    if mistakes:
        for each in passed:
            each.opened.close()
        raise ConfigError(mistakes)
    for name, sockets in found.listeners.items():
        where = f"{path}: listeners.{name}"
        found.warnings.extend(_differences(where, settings.listeners[name].listen, sockets))
        found.warnings.extend(_modes(where, settings.listeners[name], sockets))
    if settings.status is not None and found.status:
        found.warnings.extend(_differences(f"{path}: status", [settings.status.listen], found.status))
    return found


def _ambiguous(path: str, settings: Settings, passed: list[PassedSocket]) -> Iterator[Mistake]:
    both = STATUS_NAME in settings.listeners and settings.status is not None
    if both and any(each.name == STATUS_NAME for each in passed):
        yield Mistake(
            f"{path}: listeners.{STATUS_NAME}",
            f"a socket called {STATUS_NAME} is passed, which could be meant for status.listen as well: call "
            "the listener something else",
        )


def _nobodys(settings: Settings) -> str:
    names = [*settings.listeners]
    if settings.status is not None:
        names.append(STATUS_NAME)
    return (
        "there is no listener of this name: set FileDescriptorName= in the socket's unit to one of "
        + ", ".join(names)
    )


def _differences(
    where: str,
    wanted: tuple[TCPAddress | UnixAddress, ...] | list[TCPAddress],
    sockets: list[ListeningSocket],
) -> Iterator[Mistake]:
    """What is listened on and does not stand in the configuration, and the other way round."""
    expected = {each for address in wanted for each in _each(address)}
    got = {each.shown for each in sockets} | {
        shown("0.0.0.0", each.sock.getsockname()[1])  # noqa: S104 - what the kernel does, not what we ask for
        for each in sockets
        if each.sock.family == socket.AF_INET6
        and each.sock.getsockname()[0] == "::"
        and not each.sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    }
    any_port = {each.removesuffix(":0") for each in expected if each.endswith(":0")}
    for each in sorted(got - expected):
        if each.rpartition(":")[0] not in any_port:
            what = f"the service manager's socket is {each}, which is not among these; the socket counts"
            yield Mistake(f"{where}.listen", what)
    for each in sorted(expected - got):
        if not each.endswith(":0"):
            what = (
                f"{each} is not among the sockets that the service manager has passed: nobody listens there"
            )
            yield Mistake(f"{where}.listen", what)


def _each(address: TCPAddress | UnixAddress) -> list[str]:
    if isinstance(address, UnixAddress):
        return [f"unix:{address.path}"]
    return [shown(host, address.port) for host in address.hosts]


def _modes(where: str, listener: Listener, sockets: list[ListeningSocket]) -> Iterator[Mistake]:
    """Where more people may knock than `unix_socket_permissions` says."""
    for each in sockets:
        if each.sock.family != socket.AF_UNIX:
            continue
        file = Path(each.shown.removeprefix("unix:"))
        try:
            found = file.stat().st_mode
        except OSError:  # gone, or in a folder that we may not search
            continue
        mode = stat.S_IMODE(found)
        if stat.S_ISSOCK(found) and mode & ~listener.unix_socket_permissions:
            yield Mistake(
                f"{where}.unix_socket_permissions",
                f"is {listener.unix_socket_permissions:04o}, and {file} has {mode:04o}: set SocketMode= in "
                "the socket's unit",
            )
