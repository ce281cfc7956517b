"""Snapshots made of several file sets, and which of the sets is still in use.

A unit that does not load is taken over from the snapshot before, as the very object. So what a part
was made of is told by where it first appeared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from pgtlsproxy.proxy.channel import FileSet
from pgtlsproxy.proxy.snapshot import BackendSnapshot, ListenerSnapshot, Reloaded, Snapshot, build

_Place = tuple[str, ...]


class Builder:
    """Builds one snapshot after the other, and knows the origin of every part of the last one taken.

    Attributes:
        snapshot: the last one taken; None at first.
    """

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None
        self._origins: dict[_Place, tuple[object, int]] = {}

    def build(self, generation: int, sets: Sequence[FileSet]) -> Reloaded:
        """Build and take what the sets make, one after the other, beside what was taken before.

        Args:
            generation: the number of the result.
            sets: not empty.

        Returns:
            What came of the last one.

        Raises:
            ConfigError: there was nothing before, and the first set has mistakes.
        """
        for each in sets:
            result = build(each.files, self.snapshot)
            self._note(result.snapshot, each.generation)
            self.snapshot = result.snapshot
        self.snapshot = replace(result.snapshot, generation=generation)
        return replace(result, snapshot=self.snapshot)

    @property
    def in_use(self) -> list[int]:
        """The generations of the sets that something in the snapshot was made of."""
        return sorted({generation for _, generation in self._origins.values()})

    def _note(self, snapshot: Snapshot, generation: int) -> None:
        before = self._origins
        self._origins = {}
        for place, part in _parts(snapshot):
            known, origin = before.get(place, (None, generation))
            if part is not None:
                self._origins[place] = part, origin if part is known else generation


def _parts(snapshot: Snapshot) -> Iterator[tuple[_Place, object]]:
    """Everything in a snapshot that is made of files, and where it is."""
    yield ("settings",), snapshot.settings
    yield ("status",), snapshot.status
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
    for backend in listener.backends.values():
        yield from _backend_parts(place, backend)


def _backend_parts(owner: _Place, backend: BackendSnapshot) -> Iterator[tuple[_Place, object]]:
    place = *owner, "backend", backend.name
    yield (*place, "settings"), backend.settings
    yield (*place, "pair"), backend.pair
    yield (*place, "trust"), backend.trust
    yield (*place, "context"), backend.tls_context
    yield (*place, "users"), backend.users and backend.users.files
