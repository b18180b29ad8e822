"""A backend that has an image for jobs that name none takes those of callers who name nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from hatoba_plugins.backends.batch_spot.options import Queue
from hatoba_plugins.backends.batch_spot.queues import pool_of
from hatoba_plugins.backends.ecs.jobs import pools_of
from hatoba_plugins.backends.ecs.options import EcsOptions
from hatoba_plugins.backends.k8s_gpu.capacity import Quota, snapshot
from hatoba_plugins.backends.k8s_gpu.options import K8sOptions
from hatoba_plugins.values import Pool


def batch(image: str) -> Iterable[Pool]:
    return [pool_of(Queue("spot", "q"), 4.0, embedded=bool(image))]


def ecs(image: str) -> Iterable[Pool]:
    return pools_of(EcsOptions(region="eu-central-1", cluster="c", image=image))


def k8s(image: str) -> Iterable[Pool]:
    return snapshot([], Quota(), K8sOptions(image=image), frozenset(), 0.0).pools


@pytest.mark.parametrize("pools", [batch, ecs, k8s])
@pytest.mark.parametrize("image", ["", "registry.test/train:1"])
def test_their_interpreter_does_not_matter_where_there_is_an_image(
    pools: Callable[[str], Iterable[Pool]], image: str
) -> None:
    assert {pool.embedded for pool in pools(image)} == {bool(image)}
