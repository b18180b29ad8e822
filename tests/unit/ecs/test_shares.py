"""How a load balancer divides requests while replicas are exchanged."""

from __future__ import annotations

import pytest

from hatoba.v1 import worker_pb2
from hatoba_plugins.backends.ecs.shares import shares
from hatoba_plugins.values import RevisionTarget, Target


def _target(*revisions: tuple[int, int, int]) -> Target:
    made = [RevisionTarget(*one, worker_pb2.ReplicaSpec()) for one in revisions]
    return Target("projects/default/deployments/d", "0" * 32, 1, tuple(made))


@pytest.mark.parametrize(
    ("revisions", "ready", "told"),
    [
        ([(1, 2, 100)], {}, {1: 100}),
        ([(1, 2, 100)], {1: 2}, {1: 100}),
        ([(2, 2, 100)], {1: 2}, {1: 100, 2: 0}),
        ([(2, 2, 100)], {1: 2, 2: 1}, {1: 50, 2: 50}),
        ([(2, 2, 100)], {1: 1, 2: 2}, {1: 0, 2: 100}),
        ([(1, 2, 90), (2, 1, 10)], {1: 2, 2: 0}, {1: 90, 2: 0}),
        ([(1, 2, 90), (2, 1, 10)], {1: 2, 2: 1}, {1: 90, 2: 10}),
        ([(3, 4, 100)], {1: 1, 2: 3, 3: 0}, {1: 25, 2: 75, 3: 0}),
        ([(1, 500, 100)], {1: 1}, {1: 1}),
    ],
)
def test_shares(
    revisions: list[tuple[int, int, int]], ready: dict[int, int], told: dict[int, int]
) -> None:
    assert shares(_target(*revisions), ready) == told
