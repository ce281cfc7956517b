"""Many lines of files in little memory: their text in one buffer, everything else in arrays."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from pgtlsproxy.identity import decode_name, encode_name
from pgtlsproxy.policy.records import LineRef


@dataclass(slots=True)
class LineStore:
    """Lines, by the number under which they were put in, from 0."""

    _text: bytearray = field(default_factory=bytearray, repr=False)
    _ends: array[int] = field(default_factory=lambda: array("Q"), repr=False)
    _numbers: array[int] = field(default_factory=lambda: array("I"), repr=False)
    _positions: array[int] = field(default_factory=lambda: array("I"), repr=False)
    _files: array[int] = field(default_factory=lambda: array("H"), repr=False)
    _indices: dict[str, int] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self._ends)

    def append(self, ref: LineRef, position: int) -> None:
        """Put a line in.

        Args:
            ref: where it stands, and its text.
            position: a number that comes back with it.
        """
        self._text += encode_name(ref.text)
        self._ends.append(len(self._text))
        self._numbers.append(ref.number)
        self._positions.append(position)
        self._files.append(self._indices.setdefault(ref.file, len(self._indices)))

    def __getitem__(self, index: int) -> tuple[LineRef, int]:
        start = self._ends[index - 1] if index else 0
        text = decode_name(bytes(self._text[start : self._ends[index]]))
        file = list(self._indices)[self._files[index]]
        return LineRef(file, self._numbers[index], text), self._positions[index]
