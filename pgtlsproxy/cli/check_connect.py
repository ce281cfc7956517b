"""`pgtlsproxy check --connect`: what the servers say, when they are asked as sessions would ask them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from pgtlsproxy.errors import Mistake

if TYPE_CHECKING:
    from pgtlsproxy.proxy.probe import Probed, QueryAsked
    from pgtlsproxy.proxy.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Connected:
    """What came of it; nothing where nobody was asked.

    Args:
        backends: each address of each backend.
        queries: each `roles_query` and `auth_query` of each listener.
    """

    backends: tuple[Probed, ...] = ()
    queries: tuple[QueryAsked, ...] = ()

    def mistakes(self, path: str) -> Iterator[Mistake]:
        """What did not work.

        Args:
            path: the YAML file.
        """
        for probed in self.backends:
            if probed.problem is not None:
                yield Mistake(f"{path}: backends.{probed.backend}", probed.problem)
        for asked in self.queries:
            if asked.problem is not None:
                yield Mistake(f"{path}: listeners.{asked.listener}.{asked.key}", asked.problem)

    def as_object(self) -> dict[str, object]:
        """For machines."""
        return {
            "backends": [asdict(probed) for probed in self.backends],
            "roles": [asdict(asked) for asked in self.queries if asked.key == "roles_query"],
            "verifiers": [asdict(asked) for asked in self.queries if asked.key == "auth_query"],
        }

    def show(self) -> None:
        """Print what worked."""
        for probed in self.backends:
            if probed.problem is None:
                click.echo(f"backend {probed.backend} at {probed.address}: {probed.finding}")
        for asked in self.queries:
            if asked.problem is None:
                click.echo(f"{asked.key} of listener {asked.listener}: {asked.finding}")


def connect_to_all(snapshot: Snapshot) -> Connected:
    """Dial every address of every backend, and run the roles_query and auth_query of every listener."""
    import trio

    from pgtlsproxy.observability.logs import configure
    from pgtlsproxy.proxy.probe import ask_for_a_verifier, ask_for_roles, probe
    from pgtlsproxy.proxy.resolve import Resolver

    async def main() -> Connected:
        logger = configure(None, "error")
        resolver = Resolver(logger)
        probed = [await probe(backend, resolver) for backend in snapshot.backends.values()]
        asked = [
            await ask_for_roles(listener, query, resolver)
            for listener in snapshot.listeners.values()
            if (query := listener.settings.roles_query) is not None
        ]
        asked += [
            await ask_for_a_verifier(listener, auth_query, resolver, logger)
            for listener in snapshot.listeners.values()
            if (auth_query := listener.settings.auth_query) is not None
        ]
        return Connected(tuple(row for rows in probed for row in rows), tuple(asked))

    return trio.run(main)
