"""How a parallel run spreads the tests: those that wait for real components all the way through,
beside those that keep the processors busy.

Tests of a file go to one process, for they share what it has started. Where each has everything of
its own and takes long, each goes to whichever process is free. Folders keep pace with each other:
when half of one is done, half of every other is.
"""

from __future__ import annotations

from collections import Counter

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

APART = (
    "tests/conformance/test_batch_spot.py",
    "tests/conformance/test_ecs.py",
    "tests/conformance/test_iot_edge_agent.py",
    "tests/conformance/test_iot_edge_aws.py",
    "tests/conformance/test_iot_edge_both.py",
    "tests/conformance/test_k8s_gpu.py",
    "tests/faults/test_real_kills.py",
    "tests/integration/k8s_gpu/",
)
"""Files and folders whose tests share nothing."""
FOLDER = 3
"""Parts of a path that name a suite's folder: `tests/unit/control`."""


class Spread(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
    """Hands out what `unit_of` says belongs together, in the order in which it was collected."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)


def unit_of(nodeid: str) -> str:
    """What goes to one process as a whole: a file, or a test of those that stand alone."""
    return nodeid if nodeid.startswith(APART) else nodeid.partition("::")[0]


def interleaved(units: list[str]) -> list[str]:
    """Units such that every folder is as far as all others; those that stand alone come first in
    theirs.
    """
    ordered = sorted(dict.fromkeys(units), key=lambda unit: "::" not in unit)
    folders = [_folder(unit) for unit in ordered]
    sizes, seen = Counter(folders), Counter[str]()
    share: dict[str, float] = {}
    for unit, folder in zip(ordered, folders, strict=True):
        share[unit] = (seen[folder] + 0.5) / sizes[folder]
        seen[folder] += 1
    return sorted(ordered, key=share.__getitem__)


def _folder(unit: str) -> str:
    return "/".join(unit.partition("::")[0].split("/")[:-1][:FOLDER])


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Spread:
    """Whatever was asked for by `--dist`: this is how our tests can be taken apart."""
    config.option.loadscopereorder = False
    return Spread(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a process of a parallel run; alone, tests run as they stand."""
    if not hasattr(config, "workerinput"):
        return
    units = [unit_of(item.nodeid) for item in items]
    place = {unit: number for number, unit in enumerate(interleaved(units))}
    items.sort(key=lambda item: place[unit_of(item.nodeid)])
