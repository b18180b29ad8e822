"""The calls to Batch, with their limits: what takes many takes as many as Batch does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from hatoba_plugins.aws import AwsClients, Paging
from hatoba_plugins.backends.batch_spot.manifest import Parameters
from hatoba_plugins.backends.batch_spot.states import Detail
from hatoba_plugins.values import Rate

AT_ONCE = 100
"""Jobs of one DescribeJobs, and of one page of ListJobs."""
KEPT_SECONDS = 8 * 86_400
"""Batch forgets jobs that ended a week ago; what is older is not asked for."""
LIMITS = (
    ("launch", Rate(40.0, 100)),
    ("batch:SubmitJob", Rate(45.0, 50)),
    ("batch:DescribeJobs", Rate(10.0, 20)),
    ("batch:ListJobs", Rate(10.0, 20)),
    ("batch:TerminateJob", Rate(20.0, 40)),
    ("batch:TagResource", Rate(10.0, 20)),
    ("batch:RegisterJobDefinition", Rate(2.0, 10)),
    ("batch:DescribeJobDefinitions", Rate(5.0, 10)),
    ("batch:DescribeJobQueues", Rate(2.0, 10)),
    ("batch:DescribeComputeEnvironments", Rate(2.0, 10)),
    ("logs:GetLogEvents", Rate(10.0, 20)),
)
"""50 submits a second are documented; the others are not, and are lower than one would think."""


class BatchCalls:
    """What this backend asks of Batch."""

    def __init__(self, aws: AwsClients) -> None:
        self._aws = aws

    async def submit(self, parameters: Parameters) -> str:
        """The new job's id. Raises Unanswered when perhaps there is one: never call it again."""
        reply = await self._aws.write("batch:SubmitJob", **parameters)
        return str(reply["jobId"])

    async def terminate(self, job_id: str, reason: str) -> None:
        """End it, wherever it stands; CancelJob would do nothing to one that runs."""
        await self._aws.write("batch:TerminateJob", jobId=job_id, reason=reason)

    async def tag(self, arn: str, tags: dict[str, str]) -> None:
        """Add tags to a job."""
        await self._aws.write("batch:TagResource", resourceArn=arn, tags=tags)

    async def describe(self, ids: Iterable[str]) -> dict[str, Detail]:
        """Details by id; those that Batch does not know are missing."""
        found: dict[str, Detail] = {}
        wanted = list(dict.fromkeys(ids))
        for start in range(0, len(wanted), AT_ONCE):
            some = wanted[start : start + AT_ONCE]
            reply = await self._aws.read("batch:DescribeJobs", jobs=some)
            found |= {one["jobId"]: one for one in reply["jobs"]}
        return found

    async def named(self, queues: Sequence[str], name: str) -> list[Detail]:
        """Summaries of jobs with this name, or that begin with it when it ends with `*`."""
        filters = [{"name": "JOB_NAME", "values": [name]}]
        return [one for queue in queues async for one in self._listed(queue, filters)]

    def since(self, queue: str, time: float) -> AsyncIterator[Detail]:
        """Summaries of all jobs of a queue, in every state, that were made after a time."""
        filters = [{"name": "AFTER_CREATED_AT", "values": [str(max(0, round(time * 1000)))]}]
        return self._listed(queue, filters)

    def _listed(self, queue: str, filters: list[dict[str, Any]]) -> AsyncIterator[Detail]:
        return self._aws.pages(
            "batch:ListJobs", Paging("jobSummaryList"), jobQueue=queue, filters=filters
        )

    async def definition(self, name: str) -> str:
        """ARN of a definition's newest revision; empty: there is none."""
        newest: tuple[int, str] = (0, "")
        pages = self._aws.pages(
            "batch:DescribeJobDefinitions",
            Paging("jobDefinitions"),
            jobDefinitionName=name,
            status="ACTIVE",
        )
        async for one in pages:
            newest = max(newest, (one["revision"], one["jobDefinitionArn"]))
        return newest[1]

    async def register(self, name: str, definition: Parameters) -> str:
        """ARN of the new revision. Twice is no harm: it makes one that is never used."""
        reply = await self._aws.read(
            "batch:RegisterJobDefinition", jobDefinitionName=name, **definition
        )
        return str(reply["jobDefinitionArn"])

    async def queues(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Descriptions of those queues that there are."""
        reply = await self._aws.read("batch:DescribeJobQueues", jobQueues=list(names))
        return list(reply["jobQueues"])

    async def environments(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Descriptions of compute environments."""
        reply = await self._aws.read(
            "batch:DescribeComputeEnvironments", computeEnvironments=list(names)
        )
        return list(reply["computeEnvironments"])
