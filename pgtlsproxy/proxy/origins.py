"""Snapshots made of several file sets, and which of the sets is still in use.

A unit that does not load is taken over from the snapshot before, as the very object. So what a part
was made of is told by where it first appeared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pgtlsproxy.proxy.orders import FileSet
from pgtlsproxy.proxy.snapshot import BackendSnapshot, ListenerSnapshot, Reloaded, Snapshot, build

_Place = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Made:
    """A snapshot, and what each part of it was made of.

    Args:
        result: what came of the last of the file sets.
        origins: by place, the part itself and the generation of the set that it was made of.
    """

    result: Reloaded
    origins: Mapping[_Place, tuple[object, int]] = field(repr=False)

    @property
    def snapshot(self) -> Snapshot:
        """What is to be served."""
        return self.result.snapshot

    @property
    def in_use(self) -> list[int]:
        """The generations of the sets that something in the snapshot was made of."""
        return sorted({generation for _, generation in self.origins.values()})


def make(generation: int, sets: Sequence[FileSet], before: Made | None) -> Made:
    """Make a snapshot of several file sets, one after the other.

    Args:
        generation: the number of the result.
        sets: not empty.
        before: what is in service, whose units stay where newer ones do not load; None at the start.

    Raises:
        ConfigError: there was nothing before, and the first set has mistakes.
    """
    origins = {} if before is None else before.origins
    in_service = None if before is None else before.snapshot
    for each in sets:
        result = build(each.files, in_service)
        in_service = result.snapshot
        origins = _origins(in_service, each.generation, origins)
    return Made(replace(result, snapshot=replace(result.snapshot, generation=generation)), origins)


def _origins(
    snapshot: Snapshot, generation: int, before: Mapping[_Place, tuple[object, int]]
) -> dict[_Place, tuple[object, int]]:
    """What each part was made of: the newest set, unless it was there before."""
    origins: dict[_Place, tuple[object, int]] = {}
    for place, part in _parts(snapshot):
        known, origin = before.get(place, (None, generation))
        if part is not None:
            origins[place] = part, origin if part is known else generation
    return origins


def _parts(snapshot: Snapshot) -> Iterator[tuple[_Place, object]]:
    """Everything in a snapshot that is made of files, and where it is."""
    yield ("settings",), snapshot.settings
    if snapshot.status is not None:
        yield ("status", "pair"), snapshot.status.pair
        yield ("status", "trust"), snapshot.status.trust
        yield ("status", "context"), snapshot.status.context
    for backend in snapshot.backends.values():
        yield from _backend_parts((), backend)
    for listener in snapshot.listeners.values():
        yield from _listener_parts(listener)


def _listener_parts(listener: ListenerSnapshot) -> Iterator[tuple[_Place, object]]:
    place = "listener", listener.name
    yield (*place, "settings"), listener.settings
    yield (*place, "rules"), listener.rules
    yield (*place, "pair"), listener.pair
    yield (*place, "trust"), listener.trust
    yield (*place, "options"), listener.options
    yield (*place, "context"), listener.tls_context
    yield (*place, "secrets"), listener.secrets
    yield (*place, "mock"), listener.secrets and listener.secrets.mock_secret
    yield (*place, "auth_passfile"), listener.auth_passfile
    for backend in listener.backends.values():
        yield from _backend_parts(place, backend)


def _backend_parts(owner: _Place, backend: BackendSnapshot) -> Iterator[tuple[_Place, object]]:
    place = *owner, "backend", backend.name
    yield (*place, "settings"), backend.settings
    yield (*place, "pair"), backend.pair
    yield (*place, "trust"), backend.trust
    yield (*place, "context"), backend.tls_context
    yield (*place, "users"), backend.users and backend.users.files
    yield (*place, "passwords"), backend.passwords
