"""What is suspicious about a queue, and how long its oldest job has waited."""

from __future__ import annotations

from dataclasses import replace

import pytest
from memory_store import MemoryStore

from hatoba_plugins.clock import SystemClock
from hatoba_scheduler.control.activity import Activity
from hatoba_scheduler.control.counts import JobCounts
from hatoba_scheduler.control.ids import UidMaker
from hatoba_scheduler.control.ledger import Ledger
from hatoba_scheduler.control.queues import QueueBook
from hatoba_scheduler.control.usage import QueueUsages, made_at
from hatoba_scheduler.domain.planning.model import QueueShare
from hatoba_scheduler.domain.records import Queue, Resources

TOTAL = Resources(8.0, 1 << 34, 2, 64, (("licence", 3),))
NOW = 1_800_000_000_000_000
LAB = Queue("default", "lab", 1, "admin", NOW)


def usages(oldest: str = "", total: Resources = TOTAL) -> QueueUsages:
    store = MemoryStore().as_store()
    ledger = Ledger(store)
    return QueueUsages(
        QueueBook(store, lambda _: None, lambda _: None),
        JobCounts(store, ledger),
        Activity(SystemClock()),
        lambda key: QueueShare(0.5, 0.25, 0.125, Resources(2.0), 7, oldest),
        lambda: total,
        lambda: NOW,
    )


@pytest.mark.parametrize(
    ("quota", "told"),
    [
        (Resources(cpus=8), ""),
        (Resources(cpus=9), "quota (9 cpus) is above all known capacity"),
        (Resources(gpus=3), "quota (3 gpus) is above all known capacity"),
        (Resources(memory=1 << 35), "quota (32 GiB) is above"),
        (Resources(named=(("licence", 4),)), "quota"),
        (Resources(named=(("licence", 3),)), ""),
        (Resources(named=(("dongle", 1),)), "quota"),
    ],
)
def test_a_quota_above_all_capacity_is_told(quota: Resources, told: str) -> None:
    warnings = usages().warnings(replace(LAB, quota=quota))
    assert [bool(told)] == [told in one for one in warnings] if told else warnings == []


def test_while_no_capacity_is_known_nothing_is_above_it() -> None:
    assert usages(total=Resources()).warnings(replace(LAB, quota=Resources(cpus=99))) == []


def test_what_is_not_limited_is_above_nothing() -> None:
    queue = replace(LAB, quota=Resources(cpus=2), guaranteed=Resources(cpus=2, gpus=1))
    assert usages().warnings(queue) == []


def test_the_oldest_has_waited_since_its_uid_was_made() -> None:
    uid = UidMaker(lambda: NOW / 1e6 - 90)()
    assert made_at(uid) == NOW - 90_000_000
    usage = usages(uid).of(LAB)
    assert usage.oldest_wait == pytest.approx(90, abs=0.01)
    assert (usage.share.waiting, usage.cordoned) == (7, False)
