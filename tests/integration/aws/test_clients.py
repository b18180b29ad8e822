"""The real client library against a server that answers as AWS, as a proxy, or not at all."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from aws_proxy import AwsProxy
from scripted_batch import ScriptedBatch

from hatoba_plugins.aws import AwsOptions, Paging, Unanswered, open_aws, refusal_of
from hatoba_plugins.backend import BackendContext
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.conformance import GatedBudget, NoWorkers
from hatoba_plugins.conformance.proxy import aws_refusal
from hatoba_plugins.errors import Denied, Invalid, Retry, Throttled

JOBS = Paging("jobSummaryList")


class QuickClock(FakeClock):
    """Whoever sleeps wakes at once, and it is written down for how long."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "hatoba-test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hatoba-test-secret")


async def no_secret(name: str) -> str:
    raise KeyError(name)


def context() -> BackendContext:
    return BackendContext(
        QuickClock(),
        random.Random(0),
        "c1",
        1,
        "127.0.0.1:1",
        GatedBudget(),
        no_secret,
        NoWorkers(),
    )


@pytest.fixture
async def batch() -> AsyncIterator[ScriptedBatch]:
    async with ScriptedBatch.running(250, "c1") as running:
        yield running


@pytest.fixture
async def proxy(batch: ScriptedBatch) -> AsyncIterator[AwsProxy]:
    async with AwsProxy.before(batch.endpoint) as running:
        yield running


def options(endpoint: str) -> AwsOptions:
    return AwsOptions(region="us-east-1", endpoint=endpoint)


async def test_every_call_awaits_its_budget_first(proxy: AwsProxy) -> None:
    ctx = context()
    async with open_aws(options(proxy.endpoint), ctx, ("batch",)) as aws:
        listed = [one async for one in aws.pages("batch:ListJobs", JOBS, jobQueue="q")]
    assert len(listed) == 250
    assert isinstance(ctx.budget, GatedBudget)
    assert ctx.budget.taken == {"batch:ListJobs": 3}
    assert proxy.counts["listjobs"] == 3


async def test_a_question_is_asked_again_and_an_act_is_not(proxy: AwsProxy) -> None:
    async with open_aws(options(proxy.endpoint), context(), ("batch",)) as aws:
        proxy.lose_reply("describejobs")
        proxy.refuse("describejobs", aws_refusal(500, "ServerException", "oops"))
        assert (await aws.read("batch:DescribeJobs", jobs=["x"]))["jobs"] == []
        assert proxy.counts["describejobs"] == 3
        proxy.lose_reply("describejobs")
        with pytest.raises(Unanswered):
            await aws.write("batch:DescribeJobs", jobs=["x"])
        assert proxy.counts["describejobs"] == 4


async def test_what_answers_nobody_is_given_up(proxy: AwsProxy) -> None:
    async with open_aws(options(proxy.endpoint), context(), ("batch",)) as aws:
        proxy.cut = True
        with pytest.raises(Retry):
            await aws.read("batch:DescribeJobs", jobs=["x"])
        assert proxy.counts["describejobs"] == 4


async def test_a_throttled_question_waits_and_an_act_promises(proxy: AwsProxy) -> None:
    ctx = context()
    async with open_aws(options(proxy.endpoint), ctx, ("batch",)) as aws:
        proxy.throttle("describejobs")
        await aws.read("batch:DescribeJobs", jobs=["x"])
        assert isinstance(ctx.clock, QuickClock)
        assert len(ctx.clock.slept) == 1
        proxy.throttle("describejobs", after=30)
        with pytest.raises(Throttled) as caught:
            await aws.read("batch:DescribeJobs", jobs=["x"])
    assert caught.value.after == 30.0
    answer = refusal_of(caught.value)
    assert answer is not None
    assert answer.code == "TooManyRequestsException"


async def test_an_expired_page_begins_the_listing_anew(
    proxy: AwsProxy, batch: ScriptedBatch
) -> None:
    batch.expire_pages = 1
    async with open_aws(options(proxy.endpoint), context(), ("batch",)) as aws:
        with pytest.raises(Retry, match="page has expired"):
            _ = [one async for one in aws.pages("batch:ListJobs", JOBS, jobQueue="q")]
        again = [one async for one in aws.pages("batch:ListJobs", JOBS, jobQueue="q")]
    assert len(again) == 250


async def test_who_does_not_speak_aws_is_no_answer(proxy: AwsProxy) -> None:
    async with open_aws(options(proxy.endpoint), context(), ("batch",)) as aws:
        proxy.babble("describejobs")
        with pytest.raises(Unanswered):
            await aws.write("batch:DescribeJobs", jobs=["x"])


async def test_nobody_there_means_that_nothing_happened() -> None:
    async with open_aws(options("http://127.0.0.1:1"), context(), ("batch",)) as aws:
        with pytest.raises(Retry, match="Look at `region`, `endpoint`"):
            await aws.write("batch:TerminateJob", jobId="x", reason="y")


async def test_a_wrong_call_never_leaves(proxy: AwsProxy) -> None:
    async with open_aws(options(proxy.endpoint), context(), ("batch",)) as aws:
        with pytest.raises(Invalid, match="jobName"):
            await aws.write("batch:SubmitJob", jobQueue="q")
        assert not proxy.counts
        assert aws.can("batch:SubmitJob")
        assert not aws.can("batch:TerminateJobs")


async def test_no_region_and_no_profile_are_told_when_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(Invalid, match="AWS_REGION"):
        async with open_aws(AwsOptions(), context(), ("batch",)):
            pass
    with pytest.raises(Denied, match="nobody"):
        async with open_aws(AwsOptions(profile="nobody"), context(), ("batch",)):
            pass


async def test_credentials_by_reference(proxy: AwsProxy) -> None:
    canary = "canary-0b5e"

    async def secret(name: str) -> str:
        assert name == "aws"
        return f'{{"AccessKeyId": "AK", "SecretAccessKey": "{canary}"}}'

    async def broken(name: str) -> str:
        return canary

    by_name = replace(options(proxy.endpoint), credentials="aws")
    async with open_aws(by_name, replace(context(), secret=secret), ("batch",)) as aws:
        await aws.read("batch:DescribeJobs", jobs=["x"])
    with pytest.raises(Denied) as caught:
        async with open_aws(by_name, replace(context(), secret=broken), ("batch",)):
            pass
    assert canary not in f"{caught.value} {caught.value.__cause__} {caught.value.__context__}"
