"""Every client library with every setting of its own for channel binding, and what each says when it logs in."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncpg
import pg8000.dbapi
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fixtures import jdbc_attempts, other_clients
from fixtures.clients import Psql, clean_environment
from fixtures.drivers import DRIVERS, Refused, Target

AT_ONCE = 6
SETTINGS = ("disable", "prefer", "require")


@dataclass(frozen=True, slots=True)
class Kind:
    """A client as somebody has set it up.

    Args:
        client: its name.
        setting: of channel binding, in libpq's words; None where there is nothing to set.
        binds: whether it knows channel binding and may use it.
    """

    client: str
    setting: str | None = None
    binds: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a login.

    Args:
        user: as whom it got in; None where it did not.
        error: what the client's user is told else.
    """

    user: str | None = None
    error: str = ""


KINDS = (
    *(Kind(client, setting) for client in ("psql 15", "psql 17", "psycopg", "psycopg2", "pgjdbc") for setting in SETTINGS),
    Kind("asyncpg", binds=False),
    Kind("pg8000"),
    Kind("node-postgres", binds=False),
    Kind("node-postgres, enableChannelBinding"),
)  # fmt: skip
"""The rows of the matrix."""

Attempts = Sequence[tuple[Kind, Target]]


def skipped_clients() -> dict[str, str]:
    """Clients that are not there, and why."""
    why = "could not be had by ./dev test, which says why"
    missing = {"node-postgres"} if other_clients.node_postgres() is None else set()
    missing |= {"pgjdbc"} if other_clients.pgjdbc() is None else set()
    return {
        kind.client: f"{name} {why}" for kind in KINDS for name in missing if kind.client.startswith(name)
    }


def run_all(attempts: Attempts, psql: Callable[[int], Psql], folder: Path) -> list[Outcome]:
    """Log in with each, several at once.

    Args:
        attempts: who, and where.
        psql: by major version.
        folder: for keys in the form that Java reads.

    Returns:
        What became of each, in their order.
    """
    by_program: dict[str, list[int]] = {}
    for index, (kind, _) in enumerate(attempts):
        by_program.setdefault(_program(kind), []).append(index)
    batches: dict[str, Callable[[Attempts], list[Outcome]]] = {
        "node-postgres": lambda batch: _node(batch, psql(17).home),
        "pgjdbc": lambda batch: _jdbc(batch, psql(17).home, folder),
    }
    found: dict[int, Outcome] = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        waiting = [
            (indices, pool.submit(run, [attempts[index] for index in indices]))
            for name, run in batches.items()
            if (indices := by_program.pop(name, []))
        ]
        single = sorted(index for indices in by_program.values() for index in indices)
        found |= zip(single, pool.map(lambda index: _one(*attempts[index], psql), single), strict=True)
        for indices, batch in waiting:
            found |= zip(indices, batch.result(), strict=True)
    return [found[index] for index in range(len(attempts))]


def _program(kind: Kind) -> str:
    return kind.client.partition(",")[0]


def _one(kind: Kind, target: Target, psql: Callable[[int], Psql]) -> Outcome:
    target = replace(target, channel_binding=kind.setting or "prefer")
    if kind.client.startswith("psql "):
        done = psql(int(kind.client.removeprefix("psql "))).run("SELECT current_user", **target.words)
        return Outcome(user=done.stdout.strip()) if done.returncode == 0 else Outcome(error=done.stderr)
    try:
        with DRIVERS[kind.client](target) as connection:
            return Outcome(user=connection.rows("SELECT current_user::text")[0][0])
    except Refused as error:
        return Outcome(error=error.text)
    except (asyncpg.InterfaceError, pg8000.dbapi.Error, OSError) as error:
        return Outcome(error=str(error))


def _node(attempts: Attempts, home: Path) -> list[Outcome]:
    found = other_clients.node_postgres()
    assert found is not None
    program, environment = found
    cases = [
        {
            "host": "localhost", "port": target.port, "user": target.user, "database": target.database,
            "password": target.password, "application_name": target.application_name,
            "enableChannelBinding": kind.client.endswith("enableChannelBinding"), "tls": _node_tls(target),
        }
        for kind, target in attempts
    ]  # fmt: skip
    return _batch(
        [program, str(other_clients.NODE / "attempts.cjs")], cases, clean_environment(home) | environment
    )


def _node_tls(target: Target) -> dict[str, str] | None:
    if target.ca is None:
        return None
    shown = target.certificate
    return {"ca": str(target.ca)} | ({"cert": str(shown.crt), "key": str(shown.key)} if shown else {})


def _jdbc(attempts: Attempts, home: Path, folder: Path) -> list[Outcome]:
    found = other_clients.pgjdbc()
    assert found is not None
    command = [sys.executable, jdbc_attempts.__file__, *map(str, found)]
    cases = [_jdbc_case(kind, target, folder) for kind, target in attempts]
    return _batch(command, cases, clean_environment(home))


def _jdbc_case(kind: Kind, target: Target, folder: Path) -> tuple[str, dict[str, str]]:
    words = {
        "user": target.user, "password": target.password or "", "ApplicationName": target.application_name,
        "sslmode": "disable" if target.ca is None else "verify-full", "connectTimeout": "60",
        "channelBinding": kind.setting or "prefer",
    }  # fmt: skip
    if target.ca is not None:
        words["sslrootcert"] = str(target.ca)
    if target.certificate is not None:
        key = folder / f"{target.user}.pk8"
        if not key.exists():
            key.touch(mode=0o600)
            key.write_bytes(target.certificate.private_key.private_bytes(
                Encoding.DER, PrivateFormat.PKCS8, NoEncryption()
            ))  # fmt: skip
        words |= {"sslcert": str(target.certificate.crt), "sslkey": str(key)}
    return f"jdbc:postgresql://localhost:{target.port}/{target.database}", words


def _batch(command: list[str], cases: Sequence[object], environment: Mapping[str, str]) -> list[Outcome]:
    done = subprocess.run(
        command, input=json.dumps(cases), env=dict(environment), capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return [Outcome(answer.get("user"), answer.get("error", "")) for answer in answers]
