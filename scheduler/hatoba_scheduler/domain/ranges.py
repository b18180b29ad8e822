"""Sets of task indices as sorted runs, so that a million of them cost what one costs."""

from __future__ import annotations

from collections.abc import Iterator
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

    def without(self, index: int) -> Ranges:
        """The same set less one index; unchanged when it is not in it."""
        out: list[tuple[int, int]] = []
        for a, b in self.runs:
            if a <= index < b:
                out.extend(run for run in ((a, index), (index + 1, b)) if run[0] < run[1])
            else:
                out.append((a, b))
        return Ranges(tuple(out))
