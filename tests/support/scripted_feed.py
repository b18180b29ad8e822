"""A server that has deployments only: it feeds routers and takes what they report."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
from waiting import News

from hatoba.v1 import deployment_pb2, deployment_pb2_grpc

ROUTER_TOKEN = "hr_scripted"
USER_TOKEN = "hu_scripted"


async def _absent(_self: object, _request: object, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no router asks for this")


class ScriptedFeed(deployment_pb2_grpc.DeploymentServiceServicer):
    """Tests set routes and access, and look at what came back."""

    CreateDeployment: Any = _absent
    ListDeployments: Any = _absent
    UpdateDeployment: Any = _absent
    SetTraffic: Any = _absent
    PauseRollout: Any = _absent
    ResumeRollout: Any = _absent
    PromoteRollout: Any = _absent
    RollBackDeployment: Any = _absent
    DeleteDeployment: Any = _absent
    ListRevisions: Any = _absent
    ListDeploymentEvents: Any = _absent
    WatchDeployment: Any = _absent
    TailReplicaLogs: Any = _absent
    ExplainPrediction: Any = _absent
    SignRouter: Any = _absent

    def __init__(self) -> None:
        self.port = 0
        self.cursor = 100
        self.acked = 0
        self.routers: list[tuple[str, str]] = []
        self.first_acks: list[int] = []
        self.statistics: list[deployment_pb2.RouteStatistics] = []
        self.batches: dict[str, deployment_pb2.ReportPredictionsRequest] = {}
        self.deliveries: Counter[str] = Counter()
        self.refuse_reports: grpc.StatusCode | None = None
        self.lose_replies = 0
        self._routes: dict[str, deployment_pb2.Route] = {}
        self._access = [access(USER_TOKEN)]
        self._streams: list[asyncio.Queue[deployment_pb2.WatchDeploymentsResponse]] = []
        self._news = News()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Serve; on the same port as before when there was one."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        deployment_pb2_grpc.add_DeploymentServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        """End all calls at once, as a server does that is killed."""
        if self._server is not None:
            await self._server.stop(0)
            self._server = None
        self._streams.clear()

    # -- what tests say -------------------------------------------------------------------------

    def put(self, *routes: deployment_pb2.Route) -> int:
        """New or changed routes; the cursor that tells of them."""
        for route in routes:
            self._routes[route.deployment] = route
        return self._tell(routes=routes)

    def remove(self, deployment: str) -> int:
        """A deployment that is no more."""
        del self._routes[deployment]
        return self._tell(removed=[deployment])

    def grant(self, *granted: deployment_pb2.Access) -> int:
        """Who may ask, all of them."""
        self._access = list(granted)
        return self._tell(access=granted, access_changed=True)

    def _tell(self, **fields: Any) -> int:
        self.cursor += 1
        for stream in self._streams:
            message = deployment_pb2.WatchDeploymentsResponse(cursor=self.cursor, **fields)
            stream.put_nowait(message)
        return self.cursor

    # -- what tests wait for --------------------------------------------------------------------

    async def acknowledged(self, cursor: int) -> None:
        """Wait until a router acts by a cursor."""
        await self.until(lambda: self.acked >= cursor)

    async def until(self, what: Callable[[], bool]) -> None:
        """Wait until `what()` holds; it is asked whenever something came."""
        await self._news.until(what)

    @property
    def captured(self) -> list[deployment_pb2.CapturedItem]:
        """All captured inputs, in order."""
        return [item for batch in self.batches.values() for item in batch.captured]

    @property
    def predictions(self) -> list[deployment_pb2.Prediction]:
        """All kept predictions, in order."""
        return [one for batch in self.batches.values() for one in batch.predictions]

    @property
    def spans(self) -> list[Any]:
        """All spans, in order."""
        return [span for batch in self.batches.values() for span in batch.spans]

    def counted(self, revision: int) -> tuple[int, int]:
        """Requests and errors of a revision, so far."""
        rows = [row for row in self.statistics if row.revision == revision]
        return sum(row.requests for row in rows), sum(row.errors for row in rows)

    # -- DeploymentService ----------------------------------------------------------------------

    async def WatchDeployments(  # type: ignore[override]  # it writes instead of yielding
        self,
        request_iterator: AsyncIterator[deployment_pb2.WatchDeploymentsRequest],
        context: Any,
    ) -> None:
        _authorized(context)
        out: asyncio.Queue[deployment_pb2.WatchDeploymentsResponse] = asyncio.Queue(10_000)
        out.put_nowait(
            deployment_pb2.WatchDeploymentsResponse(
                cursor=self.cursor,
                complete=True,
                routes=self._routes.values(),
                access=self._access,
                access_changed=True,
            )
        )
        self._streams.append(out)
        async with asyncio.TaskGroup() as tasks:
            writer = tasks.create_task(self._write(out, context))
            await self._listen(request_iterator)
            writer.cancel()

    async def _write(self, out: asyncio.Queue[Any], context: Any) -> None:
        while True:
            await context.write(await out.get())

    async def _listen(
        self, requests: AsyncIterator[deployment_pb2.WatchDeploymentsRequest]
    ) -> None:
        async for request in requests:
            if request.router:
                self.routers.append((request.router, request.url))
                self.first_acks.append(request.acked)
            self.acked = request.acked
            self.statistics += request.statistics
            self._news.tell()

    async def GetDeployment(
        self, request: deployment_pb2.GetDeploymentRequest, context: Any
    ) -> deployment_pb2.Deployment:
        name = f"projects/{request.project or 'default'}/deployments/{request.name}"
        if name not in self._routes:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no deployment {name}")
        urls = [f"{url}/{request.name}" for _, url in self.routers[-1:]]
        return deployment_pb2.Deployment(name=name, urls=urls)

    async def ReportPredictions(
        self, request: deployment_pb2.ReportPredictionsRequest, context: Any
    ) -> deployment_pb2.ReportPredictionsResponse:
        _authorized(context)
        if self.refuse_reports is not None:
            await context.abort(self.refuse_reports, "not now")
        self.deliveries[request.batch] += 1
        self.batches.setdefault(request.batch, request)
        self._news.tell()
        if self.lose_replies:
            self.lose_replies -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the reply was lost")
        return deployment_pb2.ReportPredictionsResponse()


def _authorized(context: Any) -> None:
    assert ("authorization", f"Bearer {ROUTER_TOKEN}") in context.invocation_metadata()


def access(token: str, deployment: str = "", principal: str = "ann") -> deployment_pb2.Access:
    """What a token opens."""
    sha256 = hashlib.sha256(token.encode()).hexdigest()
    return deployment_pb2.Access(sha256=sha256, deployment=deployment, principal=principal)
