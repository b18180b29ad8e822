"""Sets of task indices as sorted runs, so that a million of them cost what one costs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Ranges:
    """Disjoint half-open runs `(start, stop)`, ascending."""

    runs: tuple[tuple[int, int], ...] = ()

    @classmethod
    def upto(cls, size: int) -> Self:
        """All indices from 0 below `size`."""
        return cls(((0, size),)) if size else cls()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `"0-4,7"` (inclusive bounds); empty text is the empty set.

        Raises ValueError when the text is not of that form.
        """
        runs = []
        for part in text.split(",") if text else ():
            low, _, high = part.partition("-")
            runs.append((int(low), int(high or low) + 1))
        return cls(tuple(runs))

    @classmethod
    def of(cls, runs: Iterable[tuple[int, int]]) -> Self:
        """The set of these half-open runs, in any order, overlapping or not."""
        merged: list[tuple[int, int]] = []
        for start, stop in sorted(run for run in runs if run[0] < run[1]):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
            else:
                merged.append((start, stop))
        return cls(tuple(merged))

    def __str__(self) -> str:
        return ",".join(str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in self.runs)

    def __len__(self) -> int:
        return sum(b - a for a, b in self.runs)

    def __bool__(self) -> bool:
        return bool(self.runs)

    def __iter__(self) -> Iterator[int]:
        for a, b in self.runs:
            yield from range(a, b)

    def __contains__(self, index: int) -> bool:
        return any(a <= index < b for a, b in self.runs)

    @property
    def first(self) -> int:
        """The lowest index. Raises IndexError on the empty set."""
        return self.runs[0][0]

    def union(self, other: Ranges) -> Ranges:
        """What is in either."""
        return Ranges.of((*self.runs, *other.runs))

    def common(self, other: Ranges) -> Ranges:
        """What is in both."""
        out = []
        i = j = 0
        while i < len(self.runs) and j < len(other.runs):
            (a, b), (c, d) = self.runs[i], other.runs[j]
            if max(a, c) < min(b, d):
                out.append((max(a, c), min(b, d)))
            if b < d:
                i += 1
            else:
                j += 1
        return Ranges(tuple(out))

    def less(self, other: Ranges) -> Ranges:
        """What is in this and not in the other."""
        edges = [0, *(edge for run in other.runs for edge in run)]
        gaps = list(zip(edges[::2], edges[1::2], strict=False))
        last = edges[-1]
        end = max((stop for _, stop in self.runs), default=0)
        return self.common(Ranges.of([*gaps, (last, end)]))

    def without(self, index: int) -> Ranges:
        """The same set less one index; unchanged when it is not in it."""
        if self.runs == ((index, index + 1),):
            return NONE
        out: list[tuple[int, int]] = []
        for a, b in self.runs:
            if a <= index < b:
                out.extend(run for run in ((a, index), (index + 1, b)) if run[0] < run[1])
            else:
                out.append((a, b))
        return Ranges(tuple(out))


NONE = Ranges()
"""The empty set."""


def read_ranges(text: str, size: int) -> Ranges:
    """Indices below `size` as people write them: `0-4,7`.

    Raises ValueError with what is wrong and what to write instead.
    """
    runs = []
    for part in text.split(","):
        low, dash, high = (piece.strip() for piece in part.partition("-"))
        if not _digits(low) or (dash and not _digits(high)):
            raise ValueError(f"{part.strip()!r} is no index or range; write for example 0-4,7")
        start, stop = int(low), int(high if dash else low)
        if stop < start:
            raise ValueError(f"{low}-{high} is upside down; write {high}-{low}")
        if stop >= size:
            raise ValueError(f"{stop} is outside: the indices are 0 to {size - 1}")
        runs.append((start, stop + 1))
    return Ranges.of(runs)


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9
