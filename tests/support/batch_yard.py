"""AWS Batch as far as it is here: moto's real containers behind a proxy, and a desk for claims."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
from aiohttp import web
from aws_proxy import AwsProxy
from testbed_fixtures import AwsEmulator, DockerEngine

from hatoba_plugins.conformance.proxy import Json

REGION = "us-east-1"
KIT_IMAGE = "hatoba.test/batch-kit:1"
ENTRYPOINT = """#!/bin/sh
# Stands in for the runner: claims its attempt at the desk, and runs the command when it may.
shift 2
desk="${HATOBA_SERVER#grpc://}"
wget -q -O /dev/null "http://$desk/claim/$HATOBA_ATTEMPT/$(hostname)" || exit 83
exec "$@"
"""


@dataclass
class ClaimDesk:
    """Grants the first claim of each attempt, and counts them. Containers reach it at `address`."""

    address: str = ""
    claims: Counter[str] = field(default_factory=Counter)
    """By attempt, refused ones too."""
    starts: Counter[str] = field(default_factory=Counter)
    """By attempt: so often was a container let on to the user's code."""
    _granted: dict[str, str] = field(default_factory=dict)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    @asynccontextmanager
    async def open(cls, host: str) -> AsyncIterator[ClaimDesk]:
        """One that listens on this address until it is left."""
        desk = cls()
        app = web.Application()
        app.router.add_get("/claim/{attempt}/{nonce}", desk._claim)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, 0).start()
            desk.address = f"{host}:{runner.addresses[0][1]}"
            yield desk
        finally:
            await runner.cleanup()

    async def _claim(self, request: web.Request) -> web.Response:
        attempt, nonce = request.match_info["attempt"], request.match_info["nonce"]
        self.claims[attempt] += 1
        granted = self._granted.setdefault(attempt, nonce) == nonce
        self.starts[attempt] += granted
        self._news.set()
        return web.Response(status=200 if granted else 409)

    async def until_started(self, attempt: str) -> None:
        """Return once a container was let on."""
        while not self.starts[attempt]:
            self._news.clear()
            await self._news.wait()


def kit_image(engine: DockerEngine, directory: Path) -> str:
    """The image that the kit's jobs run in, built when it is not there."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "hatoba-entrypoint").write_text(ENTRYPOINT)
    (directory / "hatoba-entrypoint").chmod(0o755)
    (directory / "Dockerfile").write_text(
        f"FROM {engine.busybox}\nCOPY hatoba-entrypoint /bin/hatoba-entrypoint\n"
    )
    command = ["docker", "--host", engine.host, "build", "-q", "-t", KIT_IMAGE, str(directory)]
    plain = {**os.environ, "DOCKER_BUILDKIT": "0"}
    subprocess.run(command, check=True, capture_output=True, env=plain)
    return KIT_IMAGE


def make_queue(emulator: AwsEmulator, vcpus: int = 16) -> str:
    """A job queue of its own, with compute environment and role."""
    name = f"q-{uuid.uuid4().hex[:12]}"
    role = aws(emulator, "iam").create_role(RoleName=name, AssumeRolePolicyDocument="{}")
    ec2, iam = aws(emulator, "ec2"), aws(emulator, "iam")
    profile = iam.create_instance_profile(InstanceProfileName=name)
    subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    group = ec2.describe_security_groups()["SecurityGroups"][0]["GroupId"]
    batch = aws(emulator, "batch")
    made = batch.create_compute_environment(
        computeEnvironmentName=name,
        type="MANAGED",
        state="ENABLED",
        serviceRole=role["Role"]["Arn"],
        computeResources={
            "type": "SPOT",
            "allocationStrategy": "SPOT_PRICE_CAPACITY_OPTIMIZED",
            "minvCpus": 0,
            "desiredvCpus": 0,
            "maxvCpus": vcpus,
            "instanceTypes": ["m5.large"],
            "subnets": [subnet],
            "securityGroupIds": [group],
            "instanceRole": profile["InstanceProfile"]["Arn"],
        },
    )
    order = [{"order": 1, "computeEnvironment": made["computeEnvironmentArn"]}]
    batch.create_job_queue(
        jobQueueName=name, state="ENABLED", priority=1, computeEnvironmentOrder=order
    )
    return name


def aws(emulator: AwsEmulator, service: str) -> Any:
    """A plain client, for what a test does behind the backend's back."""
    return boto3.client(
        service,
        endpoint_url=emulator.endpoint,
        region_name=REGION,
        aws_access_key_id="hatoba-test",
        aws_secret_access_key="hatoba-test-secret",
    )


async def exit_codes(proxy: AwsProxy, operation: str, asked: Json, reply: Json) -> None:
    """moto tells exit codes in listings only; AWS in details too."""
    del asked
    if operation != "describejobs":
        return
    for job in reply["jobs"]:
        container = job.setdefault("container", {})
        if job["status"] != "FAILED" or "exitCode" in container:
            continue
        listed = await proxy.call(
            "/v1/listjobs",
            {
                "jobQueue": job["jobQueue"],
                "filters": [{"name": "JOB_NAME", "values": [job["jobName"]]}],
            },
        )
        for summary in listed["jobSummaryList"]:
            if summary["jobId"] == job["jobId"] and "container" in summary:
                container["exitCode"] = summary["container"]["exitCode"]


class Curtain:
    """Hides jobs: new ones for a while, or some for ever."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._hide_for = 0.0
        self._born: dict[str, float] = {}

    def hide_new_for(self, seconds: float) -> None:
        """What is seen first from now on is hidden for so long."""
        self._hide_for = seconds

    def _hides(self, job: Json) -> bool:
        if job["jobName"] in self.names:
            return True
        born = self._born.setdefault(job["jobId"], time.monotonic() + self._hide_for)
        return time.monotonic() < born

    async def __call__(self, proxy: AwsProxy, operation: str, asked: Json, reply: Json) -> None:
        """Take what is hidden out of a reply."""
        for key in ("jobs", "jobSummaryList"):
            if operation in ("describejobs", "listjobs") and key in reply:
                reply[key] = [job for job in reply[key] if not self._hides(job)]


class Reclaimer:
    """The provider who takes spot capacity back: a SIGTERM first, then the host is gone."""

    REASON = "Host EC2 (instance i-0abc) terminated."

    def __init__(self, batch: Any, engine: DockerEngine, queue: str) -> None:
        self._batch = batch
        self._engine = engine
        self._queue = queue

    def running(self) -> list[Json]:
        """Jobs of the queue whose containers run, the oldest first."""
        listed = self._batch.list_jobs(jobQueue=self._queue, jobStatus="RUNNING")["jobSummaryList"]
        return sorted(listed, key=lambda job: (job["createdAt"], job["jobName"]))

    def jobs(self) -> list[Json]:
        """All that the queue has ever had, with what is told of their containers."""
        states = ("RUNNABLE", "STARTING", "RUNNING", "SUCCEEDED", "FAILED")
        return [
            job
            for state in states
            for job in self._batch.list_jobs(jobQueue=self._queue, jobStatus=state)[
                "jobSummaryList"
            ]
        ]

    def end_all(self) -> None:
        """What a test left running goes with it: its server is gone already."""
        for job in self.jobs():
            if job["status"] not in ("SUCCEEDED", "FAILED"):
                self._batch.terminate_job(jobId=job["jobId"], reason="the test is over")

    def warn(self, attempt: str) -> None:
        """What an instance's agent does with its containers when a reclaim is announced."""
        self._engine.docker("kill", "--signal", "TERM", f"{attempt}-{self._id(attempt)}")

    def take(self, attempt: str) -> None:
        """The host is gone."""
        self._batch.terminate_job(jobId=self._id(attempt), reason=self.REASON)

    def _id(self, attempt: str) -> str:
        filters = [{"name": "JOB_NAME", "values": [attempt]}]
        (job,) = self._batch.list_jobs(jobQueue=self._queue, filters=filters)["jobSummaryList"]
        return str(job["jobId"])
