"""In which order two things are measured, and what is said of many values."""

from __future__ import annotations

import math
from collections.abc import Sequence


def abba(pairs: int) -> str:
    """`pairs` times A and B, turned about each time, so that a drift meets both alike."""
    return "".join("AB" if number % 2 == 0 else "BA" for number in range(pairs))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share (0 to 1) does not exceed. Raises ValueError."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
