"""What all workers must know of each other at once, in memory that they share and without a lock.

Every worker has a slot that it alone writes and all read: how many connections and sessions it has, how
many CancelRequests with unknown keys it has seen, and its sessions' cancel keys, sources and users. A limit
over all workers is a sum over the slots. The supervisor clears the slot of a worker that is dead.

A key never stands in it, only a keyed digest of one. So the search need not take constant time: what it
compares cannot be chosen by whoever does not know the table's secret. The worker that has the session
compares the key itself, in constant time.
"""

from __future__ import annotations

import enum
import hashlib
import heapq
import mmap
import os
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from pgtlsproxy.config import MAX_CONNECTIONS
from pgtlsproxy.identity import Secret

SOURCES: Final = 16_384
"""Counters of a second's CancelRequests. Sources that share one by chance share a budget."""

TAG_OCTETS: Final = 16


class Count(enum.IntEnum):
    """What workers count, each as a word at the beginning of its slot."""

    CONNECTIONS = 0
    """That are open."""
    SESSIONS = 1
    """That hold one of max_connections."""
    UNPROVEN = 2
    """Connections whose client nobody has proved yet."""
    FORWARDING = 3
    """CancelRequests with unknown keys that are under way."""


class Tag(enum.IntEnum):
    """What sessions are known by, each in a list of its own in a slot."""

    KEY = 0
    """Their cancel key."""
    SOURCE = 1
    """Where their client comes from."""
    USER = 2
    """Who their client is."""


_SERVING, _OLDEST, _WINDOW, _BEAT, _TAGS = range(4, 9)
"""The other words there; from the last one on, how long each list of tags has become."""

HUNG_SECONDS: Final = 3.0
"""A worker whose event loop has not turned for so long lets nobody go, and nobody counts on it."""

AHEAD_SECONDS: Final = 1.0

_WORD: Final = 4
_WORD_RANGE: Final = 1 << 32
_COUNTERS: Final = 16
"""The first word behind them."""

_COUNTERS_END: Final = (_COUNTERS + SOURCES) * _WORD
_LIST_OCTETS: Final = MAX_CONNECTIONS * TAG_OCTETS
_SLOT_OCTETS: Final = -(-(_COUNTERS_END + len(Tag) * _LIST_OCTETS) // mmap.PAGESIZE) * mmap.PAGESIZE
"""12 MB, of which the kernel keeps the pages that were written to."""


class SharedTable:
    """The memory itself.

    Args:
        slots: how many workers have one.
        descriptor: of the memory, when another process has made it.
    """

    def __init__(self, slots: int, descriptor: int | None = None) -> None:
        self.slots = slots
        if descriptor is None:
            descriptor = os.memfd_create("pgtlsproxy", os.MFD_CLOEXEC)
            os.ftruncate(descriptor, slots * _SLOT_OCTETS)
        self.descriptor = descriptor
        self.octets = mmap.mmap(descriptor, slots * _SLOT_OCTETS)
        # A word is written and read by one instruction: whoever reads sees the old or the new one.
        self.words = memoryview(self.octets).cast("I")

    def start(self, number: int) -> int:
        """Where a slot begins.

        Args:
            number: of the worker, from 1.
        """
        return (number - 1) * _SLOT_OCTETS

    def each(self, word: int) -> Sequence[int]:
        """A word of every slot."""
        return self.words[word :: _SLOT_OCTETS // _WORD]

    def clear(self, number: int) -> None:
        """Forget a worker that is dead."""
        for kind in Tag:
            start, end = self.tags(number, kind)
            self.octets[start:end] = bytes(end - start)
        start = self.start(number)
        self.octets[start : start + _COUNTERS_END] = bytes(_COUNTERS_END)

    def tags(self, number: int, kind: Tag) -> tuple[int, int]:
        """Where a slot's list of tags begins, and where the last one that was ever used ends."""
        start = self.start(number) + _COUNTERS_END + kind * _LIST_OCTETS
        used = self.words[self.start(number) // _WORD + _TAGS + kind]
        return start, start + min(used, MAX_CONNECTIONS) * TAG_OCTETS


class WorkerSlot:
    """A worker's own slot, and what it asks the others'.

    Args:
        table: the memory.
        number: of this worker, from 1.
        secret: the digests' key, the same for all workers.
    """

    def __init__(self, table: SharedTable, number: int, secret: Secret) -> None:
        self.number = number
        self._table = table
        self._secret = secret
        self._base = table.start(number) // _WORD
        self._free: dict[Tag, list[int]] = {kind: [] for kind in Tag}

    # --- Connections ----------------------------------------------------------------------------------

    def add(self, count: Count, difference: int) -> None:
        """Count something of this worker's up or down."""
        self._add(count, difference)

    def _add(self, word: int, difference: int) -> None:
        self._table.words[self._base + word] += difference

    def total(self, count: Count) -> int:
        """How many all workers have."""
        return sum(self._table.each(count))

    def beat(self) -> None:
        """Show that this worker's event loop turns. To be called every second."""
        self._table.words[self._base + _BEAT] = _milliseconds(time.monotonic())

    def total_unproven(self) -> int:
        """How many connections nobody has proved yet, but for those of workers that hang.

        A worker that hangs lets none go when it is told to, and nobody else has to in its place.
        """
        return sum(count for count, _, _ in self._unproven())

    def _unproven(self) -> Iterator[tuple[int, int, int]]:
        """By worker that does not hang: how many it has, how old the oldest is in ms, and its number."""
        # Ahead of what others write while this is read; differences are of words that start over.
        now = _milliseconds(time.monotonic() + AHEAD_SECONDS)
        counts, oldest, beats = (self._table.each(word) for word in (Count.UNPROVEN, _OLDEST, _BEAT))
        for number, (count, since, beat) in enumerate(zip(counts, oldest, beats, strict=True), start=1):
            is_turning = (now - beat) % _WORD_RANGE <= (HUNG_SECONDS + AHEAD_SECONDS) * 1000
            if count and (is_turning or number == self.number):
                yield count, (now - since) % _WORD_RANGE, number

    def set_oldest(self, since: float) -> None:
        """Tell since when the oldest unproven connection of this worker is open, by `time.monotonic()`."""
        self._table.words[self._base + _OLDEST] = _milliseconds(since)

    def holder_of_oldest(self) -> int:
        """The number of the worker that has the oldest unproven connection; this one where nobody has any."""
        return max(((age, number) for _, age, number in self._unproven()), default=(0, self.number))[1]

    def set_serving(self, *, serving: bool) -> None:
        """Say whether this worker accepts."""
        self._table.words[self._base + _SERVING] = serving

    @property
    def is_ahead(self) -> bool:
        """Whether this worker has more than its share of the connections of those that accept."""
        serving = zip(self._table.each(_SERVING), self._table.each(Count.CONNECTIONS), strict=True)
        counts = [count for accepts, count in serving if accepts]
        return self._table.words[self._base + Count.CONNECTIONS] * len(counts) > sum(counts)

    # --- CancelRequests with unknown keys -----------------------------------------------------------------

    def count_unknown(self, source: str) -> int:
        """Count a CancelRequest. Returns how many of its source all workers have seen in this second.

        Args:
            source: a `ClientAddress.source`.
        """
        table, base = self._table, self._base
        window = int(time.monotonic()) % _WORD_RANGE  # the same clock in every process
        if table.words[base + _WINDOW] != window:
            start = (base + _COUNTERS) * _WORD
            table.octets[start : start + SOURCES * _WORD] = bytes(SOURCES * _WORD)
            table.words[base + _WINDOW] = window
        word = _COUNTERS + int.from_bytes(self.source_tag(source)) % SOURCES
        self._add(word, 1)
        counts = zip(table.each(_WINDOW), table.each(word), strict=True)
        return sum(count for counted_in, count in counts if counted_in == window)

    @contextmanager
    def forwarding(self) -> Iterator[int]:
        """Count one that is forwarded while the context lasts; its value is how many all workers forward."""
        self.add(Count.FORWARDING, 1)
        try:
            yield self.total(Count.FORWARDING)
        finally:
            self.add(Count.FORWARDING, -1)

    # --- Sources and users ------------------------------------------------------------------------------

    def source_tag(self, source: str) -> bytes:
        """What stands in the table for where a client comes from."""
        return self._digest(b"source", source.encode())

    def user_tag(self, listener: str, identity: str) -> bytes:
        """What stands in the table for who a client is."""
        return self._digest(b"user", listener.encode(), identity.encode("utf-8", "surrogateescape"))

    def count(self, kind: Tag, tag: bytes) -> int:
        """How many sessions all workers have with this tag."""
        return sum(self._count(number, kind, tag) for number in range(1, self._table.slots + 1))

    def publish(self, kind: Tag, tag: bytes) -> int:
        """Let the other workers know of a session by a tag. Returns what `withdraw` needs.

        Beyond the largest max_connections nothing is told: such a session is unknown to the others.
        """
        used, free = self._base + _TAGS + kind, self._free[kind]
        index = heapq.heappop(free) if free else self._table.words[used]
        if index < MAX_CONNECTIONS:
            self._write(kind, index, tag)
            self._table.words[used] = max(self._table.words[used], index + 1)
        return index

    def withdraw(self, kind: Tag, index: int) -> None:
        """Let them know of it no more."""
        if index < MAX_CONNECTIONS:
            self._write(kind, index, bytes(TAG_OCTETS))
            heapq.heappush(self._free[kind], index)

    def _write(self, kind: Tag, index: int, tag: bytes) -> None:
        start = self._table.tags(self.number, kind)[0] + index * TAG_OCTETS
        self._table.octets[start : start + TAG_OCTETS] = tag

    # --- Cancel keys ----------------------------------------------------------------------------------

    def tag(self, listener: str, pid: int, key: bytes) -> bytes:
        """What stands in the table for a cancel key."""
        return self._digest(b"key", struct.pack("!i", pid), listener.encode(), key)

    @contextmanager
    def published(self, tag: bytes) -> Iterator[None]:
        """Tell the other workers of a key while the context lasts."""
        index = self.publish(Tag.KEY, tag)
        try:
            yield
        finally:
            self.withdraw(Tag.KEY, index)

    def holders(self, tag: bytes) -> list[int]:
        """The other workers that have a session with this key; one twice where two of its have."""
        return [
            number
            for number in range(1, self._table.slots + 1)
            if number != self.number
            for _ in range(self._count(number, Tag.KEY, tag))
        ]

    def _count(self, number: int, kind: Tag, tag: bytes) -> int:
        (start, end), count = self._table.tags(number, kind), 0
        position = self._table.octets.find(tag, start, end)
        while position >= 0:
            count += (position - start) % TAG_OCTETS == 0
            position = self._table.octets.find(tag, position + 1, end)
        return count

    def _digest(self, *fields: bytes) -> bytes:
        message = b"".join(struct.pack("!I", len(field)) + field for field in fields)
        # Keyed, and without OpenSSL: its HMAC took 7 times as long alone, and 60 µs among a session's work.
        return hashlib.blake2b(message, key=self._secret.reveal(), digest_size=TAG_OCTETS).digest()


def _milliseconds(moment: float) -> int:
    """A moment as a word; it starts over every 49 days, which differences do not mind."""
    return int(moment * 1000) % _WORD_RANGE
