"""Deployments: deploy a model version, follow its roll-out, scale, promote, go back, explain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from hatoba.devices import Group, Label, put_targets
from hatoba.errors import AlreadyExists, DeadlineExceeded, InvalidSpec, NotFound, Unavailable
from hatoba.following import Patience
from hatoba.v1 import common_pb2, deployment_pb2

if TYPE_CHECKING:
    from hatoba.aio import AsyncClient
    from hatoba.client import _LoopThread

Deployment = deployment_pb2.Deployment
Step = tuple[int, float]
"""A share of traffic in percent, and seconds for which it must stay healthy; 0: until resumed."""
OVER = frozenset(
    {
        deployment_pb2.ROLLOUT_STATE_SUCCEEDED,
        deployment_pb2.ROLLOUT_STATE_ROLLED_BACK,
        deployment_pb2.ROLLOUT_STATE_SUPERSEDED,
        deployment_pb2.ROLLOUT_STATE_FAILED,
    }
)
SETTLED = frozenset({deployment_pb2.DEPLOYMENT_STATE_READY, deployment_pb2.DEPLOYMENT_STATE_FAILED})
_STRATEGY = (
    "canary",
    "bake",
    "ready_deadline",
    "max_surge",
    "max_unavailable",
    "rollback",
    "max_error_share",
)
_LIMITS = ("timeout", "max_queue", "concurrency", "max_body_bytes")


class DeployOptions(TypedDict, total=False):
    """How to deploy. What is left out stays as it is, or is the server's default; times in seconds.

    `canary` are steps of (percent, seconds), an empty list none; `rollback` False leaves a failed
    roll-out as it is; `secrets` maps names to environment variables (None: not put into any).

    With a `selector` it runs on devices whose labels are so: `groups` one after the other, at most
    `per_minute`, times `growth` whenever `growth_after` more have succeeded. See DeviceTargets in
    the contract for the rest. `allow_removal`: devices may lose it by another selector.
    """

    replicas: int
    backend: str
    env: Mapping[str, str]
    secrets: Mapping[str, str | None]
    cpus: float
    memory: int
    gpus: int
    canary: Sequence[Step]
    bake: float
    ready_deadline: float
    max_surge: int
    max_unavailable: int
    rollback: bool
    max_error_share: float
    timeout: float
    max_queue: int
    concurrency: int
    max_body_bytes: int
    capture: str
    capture_rate: float
    drain: float
    labels: Mapping[str, str]
    selector: Sequence[Label]
    groups: Sequence[Group]
    per_minute: int
    growth: float
    growth_after: int
    go_on_share: float
    group_wait: float
    abort_share: float
    abort_least: int
    retries: int
    retry_wait: float
    offer_deadline: float
    apply_deadline: float
    approve_deadline: float
    allow_unenforced_limits: bool
    allow_removal: bool


class AsyncDeployments:
    """What keeps models deployed; `AsyncClient.deployments`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def deploy(
        self, model: str, name: str = "", **options: Unpack[DeployOptions]
    ) -> Deployment:
        """Have `digits:7` or `digits@production` deployed under a name (default: the model's).

        Makes the deployment, or changes the one there is: another model is one roll-out. Returns
        at once; see `wait`.
        """
        name = name or default_name(model)
        try:
            known = await self.get(name)
        except NotFound:
            try:
                return await self._create(model, name, options)
            except AlreadyExists:
                known = await self.get(name)
        return await self._update(known, model, options)

    async def _create(self, model: str, name: str, options: DeployOptions) -> Deployment:
        spec, _ = changed_spec(deployment_pb2.DeploymentSpec(), model, options)
        request = deployment_pb2.CreateDeploymentRequest(
            project=self._client.project, deployment=name, spec=spec
        )
        return await self._client.call(request, Deployment)

    async def _update(self, known: Deployment, model: str, options: DeployOptions) -> Deployment:
        spec, paths = changed_spec(known.spec, model, options)
        if not paths:
            raise InvalidSpec("nothing to change", remedy="say what to change, as in `deploy`")
        request = deployment_pb2.UpdateDeploymentRequest(
            name=known.name,
            update_mask=FieldMask(paths=paths),
            spec=spec,
            etag=known.etag,
            allow_removal=options.get("allow_removal", False),
        )
        return await self._client.call(request, Deployment)

    async def update(self, name: str, **options: Unpack[DeployOptions]) -> Deployment:
        """Change what is said of a deployment."""
        return await self._update(await self.get(name), "", options)

    async def scale(self, name: str, replicas: int) -> Deployment:
        """Another number of replicas."""
        return await self.update(name, replicas=replicas)

    async def get(self, name: str) -> Deployment:
        """One deployment. Raises NotFound."""
        request = deployment_pb2.GetDeploymentRequest(project=self._client.project, name=name)
        return await self._client.call(request, Deployment)

    async def list(self) -> list[Deployment]:
        """Deployments of the project, by name."""
        found: list[Deployment] = []
        request = deployment_pb2.ListDeploymentsRequest(
            project=self._client.project, page_size=1000
        )
        while True:
            page = await self._client.call(request, deployment_pb2.ListDeploymentsResponse)
            found.extend(page.deployments)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return found

    async def revisions(self, name: str, limit: int = 100) -> Sequence[deployment_pb2.Revision]:
        """Revisions, newest first."""
        request = deployment_pb2.ListRevisionsRequest(
            project=self._client.project, deployment=name, page_size=min(limit, 1000)
        )
        page = await self._client.call(request, deployment_pb2.ListRevisionsResponse)
        return page.revisions

    async def events(self, name: str, limit: int = 100) -> Sequence[deployment_pb2.DeploymentEvent]:
        """What happened, newest first."""
        request = deployment_pb2.ListDeploymentEventsRequest(
            project=self._client.project, deployment=name, page_size=min(limit, 1000)
        )
        page = await self._client.call(request, deployment_pb2.ListDeploymentEventsResponse)
        return page.events

    async def pause(self, name: str) -> Deployment:
        """No further step of its roll-out, and no roll-back by itself."""
        return await self._steer(deployment_pb2.PauseRolloutRequest, name)

    async def resume(self, name: str) -> Deployment:
        """Let its roll-out go on."""
        return await self._steer(deployment_pb2.ResumeRolloutRequest, name)

    async def promote(self, name: str) -> Deployment:
        """Skip the remaining steps of its roll-out."""
        return await self._steer(deployment_pb2.PromoteRolloutRequest, name)

    async def _steer(
        self,
        kind: type[
            deployment_pb2.PauseRolloutRequest
            | deployment_pb2.ResumeRolloutRequest
            | deployment_pb2.PromoteRolloutRequest
        ],
        name: str,
    ) -> Deployment:
        return await self._client.call(kind(project=self._client.project, name=name), Deployment)

    async def rollback(self, name: str, *, revision: int = 0, reason: str = "") -> Deployment:
        """Go back to a revision, by default the one before; it follows no alias any further."""
        request = deployment_pb2.RollBackDeploymentRequest(
            project=self._client.project, name=name, revision=revision, reason=reason
        )
        return await self._client.call(request, Deployment)

    async def traffic(self, name: str, weights: Mapping[int, int]) -> Deployment:
        """Shares of traffic by hand: percent by revision, 100 together."""
        request = deployment_pb2.SetTrafficRequest(
            project=self._client.project, name=name, weights=dict(weights)
        )
        return await self._client.call(request, Deployment)

    async def delete(self, name: str, *, allow_removal: bool = False) -> Deployment:
        """Take it away; its replicas finish what they have. `watch` tells when it is gone.

        Raises FailedPrecondition where devices run it and `allow_removal` is not set.
        """
        request = deployment_pb2.DeleteDeploymentRequest(
            project=self._client.project, name=name, allow_removal=allow_removal
        )
        return await self._client.call(request, Deployment)

    async def watch(self, name: str, *, follow: bool = False) -> AsyncGenerator[Deployment, None]:
        """A deployment each time it changes, until it is settled or, with `follow`, gone.

        Servers and connections may go and come back meanwhile. Raises NotFound when it never was.
        """
        patience = Patience(self._client.transport, self._client.notify)
        request = deployment_pb2.WatchDeploymentRequest(
            project=self._client.project, name=name, follow=follow
        )
        seen = False
        while True:
            try:
                messages = self._client.transport.stream(request, Deployment)
                async with aclosing(messages):
                    async for message in messages:
                        patience.good()
                        seen = True
                        yield message
                        if not follow and _settled(message):
                            return
                await patience.breath()
            except Unavailable as error:
                await patience.after(error)
            except NotFound:
                if not seen:
                    raise
                return

    async def wait(
        self,
        name: str,
        timeout: float | None = None,
        *,
        tell: Callable[[Deployment], None] = lambda _: None,
    ) -> Deployment:
        """The deployment once its roll-out is over, or halts until somebody acts.

        `tell` gets it each time it changes. Raises DeadlineExceeded after `timeout` seconds.
        """
        try:
            async with asyncio.timeout(timeout), aclosing(self.watch(name, follow=True)) as seen:
                async for message in seen:
                    tell(message)
                    if is_done(message):
                        return message
        except TimeoutError:
            raise DeadlineExceeded(
                f"the roll-out of {name} is not over after {timeout} s", remedy="wait again"
            ) from None
        raise NotFound(f"deployment {name!r} was removed meanwhile")

    async def logs(
        self,
        name: str,
        *,
        replica: str = "",
        stream: str = "",
        tail: int = 0,
        follow: bool = False,
    ) -> AsyncGenerator[deployment_pb2.TailReplicaLogsResponse, None]:
        """What a replica (default: the newest) wrote, oldest first."""
        request = deployment_pb2.TailReplicaLogsRequest(
            project=self._client.project,
            deployment=name,
            replica=replica,
            stream=stream,
            tail_lines=tail,
            follow=follow,
        )
        messages = self._client.transport.stream(request, deployment_pb2.TailReplicaLogsResponse)
        async with aclosing(messages):
            async for message in messages:
                yield message

    async def explain(self, prediction: str) -> deployment_pb2.PredictionExplanation:
        """Which model, job, code and data stand behind a prediction, by its trace id."""
        request = deployment_pb2.ExplainPredictionRequest(name=prediction)
        return await self._client.call(request, deployment_pb2.PredictionExplanation)


class Deployments:
    """The same calls, synchronously; `Client.deployments`."""

    def __init__(self, loop: _LoopThread, deployments: AsyncDeployments) -> None:
        self._loop = loop
        self._deployments = deployments

    def deploy(self, model: str, name: str = "", **options: Unpack[DeployOptions]) -> Deployment:
        """See AsyncDeployments.deploy."""
        return self._loop.run(self._deployments.deploy(model, name, **options))

    def update(self, name: str, **options: Unpack[DeployOptions]) -> Deployment:
        """See AsyncDeployments.update."""
        return self._loop.run(self._deployments.update(name, **options))

    def scale(self, name: str, replicas: int) -> Deployment:
        """Another number of replicas."""
        return self._loop.run(self._deployments.scale(name, replicas))

    def get(self, name: str) -> Deployment:
        """One deployment. Raises NotFound."""
        return self._loop.run(self._deployments.get(name))

    def list(self) -> list[Deployment]:
        """Deployments of the project, by name."""
        return self._loop.run(self._deployments.list())

    def revisions(self, name: str, limit: int = 100) -> Sequence[deployment_pb2.Revision]:
        """Revisions, newest first."""
        return self._loop.run(self._deployments.revisions(name, limit))

    def events(self, name: str, limit: int = 100) -> Sequence[deployment_pb2.DeploymentEvent]:
        """What happened, newest first."""
        return self._loop.run(self._deployments.events(name, limit))

    def pause(self, name: str) -> Deployment:
        """See AsyncDeployments.pause."""
        return self._loop.run(self._deployments.pause(name))

    def resume(self, name: str) -> Deployment:
        """See AsyncDeployments.resume."""
        return self._loop.run(self._deployments.resume(name))

    def promote(self, name: str) -> Deployment:
        """See AsyncDeployments.promote."""
        return self._loop.run(self._deployments.promote(name))

    def rollback(self, name: str, *, revision: int = 0, reason: str = "") -> Deployment:
        """See AsyncDeployments.rollback."""
        return self._loop.run(self._deployments.rollback(name, revision=revision, reason=reason))

    def traffic(self, name: str, weights: Mapping[int, int]) -> Deployment:
        """See AsyncDeployments.traffic."""
        return self._loop.run(self._deployments.traffic(name, weights))

    def delete(self, name: str, *, allow_removal: bool = False) -> Deployment:
        """See AsyncDeployments.delete."""
        return self._loop.run(self._deployments.delete(name, allow_removal=allow_removal))

    def watch(self, name: str, *, follow: bool = False) -> Generator[Deployment, None, None]:
        """See AsyncDeployments.watch."""
        return self._loop.iterate(self._deployments.watch(name, follow=follow))

    def wait(self, name: str, timeout: float | None = None) -> Deployment:
        """See AsyncDeployments.wait. Ctrl-C ends the waiting, not the roll-out."""
        return self._loop.run(self._deployments.wait(name, timeout))

    def logs(
        self,
        name: str,
        *,
        replica: str = "",
        stream: str = "",
        tail: int = 0,
        follow: bool = False,
    ) -> Generator[deployment_pb2.TailReplicaLogsResponse, None, None]:
        """See AsyncDeployments.logs."""
        return self._loop.iterate(
            self._deployments.logs(name, replica=replica, stream=stream, tail=tail, follow=follow)
        )

    def explain(self, prediction: str) -> deployment_pb2.PredictionExplanation:
        """See AsyncDeployments.explain."""
        return self._loop.run(self._deployments.explain(prediction))


def default_name(model: str) -> str:
    """The model's name in a reference: `digits` of `models/digits@production`."""
    parts = model.removeprefix("models/").split("/")
    name = parts[3] if model.startswith("projects/") and len(parts) > 3 else parts[0]
    return name.partition("@")[0].partition(":")[0]


def is_done(deployment: Deployment) -> bool:
    """Whether its roll-out is over and it is as wanted, or nothing goes on by itself."""
    if deployment.state == deployment_pb2.DEPLOYMENT_STATE_PAUSED:
        return True
    if deployment.spec.HasField("devices"):
        # Who comes late gets it late: the deployment goes on as long as there are devices.
        return deployment.rollout.state in OVER
    if deployment.rollout.state == deployment_pb2.ROLLOUT_STATE_SUCCEEDED:
        return deployment.state != deployment_pb2.DEPLOYMENT_STATE_PROGRESSING
    return deployment.rollout.state in OVER


def _settled(deployment: Deployment) -> bool:
    """Whether nothing is under way; devices that it does not work on are no more than that."""
    on_devices = deployment.spec.HasField("devices")
    return _over(deployment) and (on_devices or deployment.state in SETTLED)


def _over(deployment: Deployment) -> bool:
    return not deployment.rollout.number or deployment.rollout.state in OVER


def changed_spec(
    known: deployment_pb2.DeploymentSpec, model: str, options: DeployOptions
) -> tuple[deployment_pb2.DeploymentSpec, list[str]]:
    """A specification with what is said changed, and the names of its fields that are."""
    spec = deployment_pb2.DeploymentSpec()
    spec.CopyFrom(known)
    said: dict[str, Any] = dict(options)
    paths = set()
    if model:
        spec.model = model
        paths.add("model")
    for field in ("replicas", "backend"):
        if field in said:
            setattr(spec, field, said[field])
            paths.add(field)
    for field in ("env", "labels"):
        if field in said:
            spec.ClearField(field)  # type: ignore[arg-type]
            getattr(spec, field).update(said[field])
            paths.add(field)
    for put, field in (
        (_put_secrets, "secrets"),
        (_put_resources, "resources"),
        (_put_strategy, "strategy"),
        (_put_limits, "limits"),
        (_put_capture, "capture"),
        (_put_drain, "drain"),
        (put_targets, "devices"),
    ):
        if put(spec, said):
            paths.add(field)
    return spec, sorted(paths)


def _put_secrets(spec: deployment_pb2.DeploymentSpec, said: Mapping[str, Any]) -> bool:
    if "secrets" not in said:
        return False
    del spec.secrets[:]
    for name, variable in said["secrets"].items():
        spec.secrets.add(name=name, env=variable or "")
    return True


def _put_resources(spec: deployment_pb2.DeploymentSpec, said: Mapping[str, Any]) -> bool:
    found = common_pb2.Resources()
    found.CopyFrom(spec.resources)
    if "cpus" in said:
        found.cpus = said["cpus"]
    if "memory" in said:
        found.memory_bytes = said["memory"]
    if "gpus" in said:
        found.gpus = said["gpus"]
    if not said.keys() & {"cpus", "memory", "gpus"}:
        return False
    spec.resources.CopyFrom(found)
    return True


def _put_strategy(spec: deployment_pb2.DeploymentSpec, said: Mapping[str, Any]) -> bool:
    strategy = spec.strategy
    for field in ("max_surge", "max_unavailable", "max_error_share"):
        if field in said:
            setattr(strategy, field, said[field])
    for field in ("bake", "ready_deadline"):
        if field in said:
            _put_seconds(getattr(strategy, field), said[field])
    if "rollback" in said:
        strategy.no_rollback = not said["rollback"]
    if "canary" in said:
        del strategy.steps[:]
        for percent, seconds in said["canary"]:
            _put_seconds(strategy.steps.add(percent=percent).hold, seconds)
    return bool(said.keys() & set(_STRATEGY))


def _put_limits(spec: deployment_pb2.DeploymentSpec, said: Mapping[str, Any]) -> bool:
    for field in ("max_queue", "concurrency", "max_body_bytes"):
        if field in said:
            setattr(spec.limits, field, said[field])
    if "timeout" in said:
        _put_seconds(spec.limits.timeout, said["timeout"])
    return bool(said.keys() & set(_LIMITS))


def _put_capture(spec: deployment_pb2.DeploymentSpec, said: Mapping[str, Any]) -> bool:
    if "capture" in said:
        spec.capture.dataset = said["capture"]
        spec.capture.rate = said.get("capture_rate", spec.capture.rate or 1.0)
    elif "capture_rate" in said:
        spec.capture.rate = said["capture_rate"]
    return bool(said.keys() & {"capture", "capture_rate"})


def _put_drain(spec: deployment_pb2.DeploymentSpec, said: Mapping[str, Any]) -> bool:
    if "drain" in said:
        _put_seconds(spec.drain, said["drain"])
    return "drain" in said


def _put_seconds(duration: Duration, seconds: float) -> None:
    duration.FromMicroseconds(round(seconds * 1e6))
