"""How a load balancer divides requests among revisions. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from hatoba_plugins.values import Target

ALL = 100


def shares(target: Target, ready: Mapping[int, int]) -> dict[int, int]:
    """Weights by revision, from how many replicas of each are ready.

    A wanted revision gets its weight in the measure in which it is there; what is left goes to
    those that are being replaced. Nothing is sent where nothing is ready, while something is.
    """
    wanted = {one.revision: one for one in target.revisions}
    made = {
        number: one.weight * min(1.0, ready.get(number, 0) / max(1, one.replicas))
        for number, one in wanted.items()
    }
    others = {number: count for number, count in ready.items() if number not in wanted and count}
    left = max(0.0, ALL - sum(made.values()))
    for number, count in others.items():
        made[number] = left * count / sum(others.values())
    if not any(made.values()):
        made = {number: float(one.weight) for number, one in wanted.items()}
    return {number: _whole(weight) for number, weight in sorted(made.items())}


def _whole(weight: float) -> int:
    """A little is not nothing."""
    return max(1, round(weight)) if weight > 0 else 0
