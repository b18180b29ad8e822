"""A Batch of many jobs that run for ever, for counting calls: it starts nothing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

PAGE = 100


class ScriptedBatch:
    """Answers listings by pages of 100 and details of at most 100 jobs, as Batch does."""

    def __init__(self, count: int, cluster_id: str) -> None:
        self.status = "RUNNING"
        self.expire_pages = 0
        """So many more page tokens are refused."""
        self.jobs = {job["jobId"]: job for job in (_job(n, cluster_id) for n in range(count))}
        self.endpoint = ""

    @classmethod
    @asynccontextmanager
    async def running(cls, count: int, cluster_id: str) -> AsyncIterator[ScriptedBatch]:
        """One that listens on loopback until it is left."""
        batch = cls(count, cluster_id)
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/v1/listjobs", batch._list)
        app.router.add_post("/v1/describejobs", batch._describe)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            batch.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield batch
        finally:
            await runner.cleanup()

    async def _list(self, request: web.Request) -> web.Response:
        asked = await request.json()
        token = asked.get("nextToken")
        if token and self.expire_pages:
            self.expire_pages -= 1
            return _refused("nextToken is expired")
        begin = int(token or 0)
        some = list(self.jobs.values())[begin : begin + PAGE]
        reply: dict[str, Any] = {"jobSummaryList": [_summary(job) for job in some]}
        if begin + PAGE < len(self.jobs):
            reply["nextToken"] = str(begin + PAGE)
        return web.json_response(reply)

    async def _describe(self, request: web.Request) -> web.Response:
        ids = (await request.json())["jobs"]
        if len(ids) > PAGE:
            return _refused(f"{len(ids)} jobs in one call")
        known = [self.jobs[one] for one in ids if one in self.jobs]
        return web.json_response({"jobs": [{**job, "status": self.status} for job in known]})


def _refused(message: str) -> web.Response:
    headers = {"x-amzn-errortype": "ClientException"}
    return web.Response(text=json.dumps({"message": message}), status=400, headers=headers)


def _job(n: int, cluster_id: str) -> dict[str, Any]:
    name = f"h1-aa-{n}-1"
    tags = {
        "hatoba:cluster": cluster_id,
        "hatoba:job": "aa",
        "hatoba:index": str(n),
        "hatoba:number": "1",
        "hatoba:attempt": name,
        "hatoba:fence": "1",
        "hatoba:spec": "0",
    }
    return {
        "jobId": f"{n:08d}-0000-4000-8000-000000000000",
        "jobArn": f"arn:aws:batch:us-east-1:123456789012:job/{n:08d}",
        "jobName": name,
        "jobQueue": "arn:aws:batch:us-east-1:123456789012:job-queue/many",
        "jobDefinition": "arn:aws:batch:us-east-1:123456789012:job-definition/hatoba-1:1",
        "createdAt": 1_764_000_000_000 + n,
        "startedAt": 1_764_000_060_000,
        "tags": tags,
    }


def _summary(job: dict[str, Any]) -> dict[str, Any]:
    return {key: job[key] for key in ("jobId", "jobArn", "jobName", "createdAt")}
