"""What looking at many jobs costs, counted by the proxy before a scripted Batch."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest
from aws_proxy import AwsProxy
from scripted_batch import ScriptedBatch

from hatoba_plugins.aws import open_aws
from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.batch_spot.calls import BatchCalls
from hatoba_plugins.backends.batch_spot.options import BatchOptions
from hatoba_plugins.backends.batch_spot.watching import Sweeper
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.conformance import GatedBudget, NoWorkers
from hatoba_plugins.values import Phase

MANY = 10_000
MOST_CALLS = 100


@pytest.fixture
async def batch(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ScriptedBatch]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "hatoba-test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hatoba-test-secret")
    async with ScriptedBatch.running(MANY, "c1") as running:
        yield running


async def no_secret(name: str) -> str:
    raise KeyError(name)


async def test_a_sweep_of_ten_thousand_takes_a_hundred_calls(batch: ScriptedBatch) -> None:
    clock = FakeClock()
    ctx = BackendContext(
        clock, random.Random(0), "c1", 1, "127.0.0.1:1", GatedBudget(), no_secret, NoWorkers()
    )
    async with AwsProxy.before(batch.endpoint) as proxy:
        options = BatchOptions(
            region="us-east-1", endpoint=proxy.endpoint, queues={"spot": {"queue": "many"}}
        )
        async with open_aws(options, ctx, ("batch",)) as aws:
            sweeper = Sweeper(ctx, BatchCalls(aws), options)
            listed = [known async for known in sweeper.list_all()]
            assert len(listed) == MANY
            assert proxy.counts == {"listjobs": 100, "describejobs": 100}

            # Just looked at: nothing is due.
            proxy.counts.clear()
            await sweeper.sweep()
            assert not proxy.counts

            await clock.advance(options.sweep_every)
            batch.status = "SUCCEEDED"
            await sweeper.sweep()
            assert 0 < proxy.counts.total() <= MOST_CALLS
            assert {known.seen.phase for known in sweeper.book.all()} == {Phase.ENDED}

            # What has ended costs nothing any more, and a listing only its pages.
            proxy.counts.clear()
            await clock.advance(options.sweep_every)
            await sweeper.sweep()
            assert len([known async for known in sweeper.list_all()]) == MANY
            assert proxy.counts == {"listjobs": 100}
