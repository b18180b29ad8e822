"""One look at a deployment's services and tasks, and one step towards what is wanted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from typing import Any

from hatoba.replica_names import revision_prefix
from hatoba.v1 import common_pb2
from hatoba_plugins.aws import AwsClients
from hatoba_plugins.aws.tags import CLUSTER, SPEC, listed, mapped
from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.ecs.addresses import Addresses, answers
from hatoba_plugins.backends.ecs.balancer import Balancer
from hatoba_plugins.backends.ecs.calls import EcsCalls, Item, said
from hatoba_plugins.backends.ecs.definitions import replica_definition
from hatoba_plugins.backends.ecs.headroom import decide, headroom
from hatoba_plugins.backends.ecs.kept import Deployed, Revision
from hatoba_plugins.backends.ecs.names import (
    REVISION_TAG,
    UID_TAG,
    ServiceName,
    parse_service,
    replica_name,
    token,
)
from hatoba_plugins.backends.ecs.options import EcsOptions
from hatoba_plugins.backends.ecs.placing import placing
from hatoba_plugins.backends.ecs.services import (
    ServiceState,
    broken_off,
    event_messages,
    trouble,
)
from hatoba_plugins.backends.ecs.shares import shares
from hatoba_plugins.backends.ecs.slots import Slots, TaskView, seconds, task_view
from hatoba_plugins.backends.ecs.watchdogs import churning, churns, no_progress
from hatoba_plugins.errors import BackendError, Conflict, Invalid, Retry
from hatoba_plugins.runner import replica_environment
from hatoba_plugins.values import ReplicaPhase, ReplicaSet, RevisionTarget, Target

_BROKEN = (ServiceState.FAILED, ServiceState.ROLLED_BACK)
_GONE = ("", "INACTIVE")


class Fleet:
    """Services of deployments, in the clusters of one instance."""

    def __init__(
        self, aws: AwsClients, calls: EcsCalls, options: EcsOptions, ctx: BackendContext
    ) -> None:
        self._aws = aws
        self._calls = calls
        self._options = options
        self._ctx = ctx
        self._addresses = Addresses(calls, options.network)
        balancer = Balancer(aws, options, ctx.cluster_id)
        self._balancer = balancer if options.listener else None

    # -- taking a target in ---------------------------------------------------------------------

    async def definitions(self, target: Target) -> dict[int, str]:
        """Registered definitions by revision. Raises Invalid for what cannot run."""
        return {
            one.revision: await self._calls.definition(self._definition(target, one))
            for one in target.revisions
        }

    def _definition(self, target: Target, revision: RevisionTarget) -> dict[str, Any]:
        template = revision.template
        own = replica_environment(self._ctx, target, revision)
        # One definition for all of them: each adds what its task is called.
        own["HATOBA_REPLICA_PREFIX"] = revision_prefix(target.uid, revision.revision)
        return replica_definition(
            self._options,
            template.serving.environment.image or self._options.image,
            template.resources,
            {**template.env, **own},
            template.secrets,
            template.drain.ToTimedelta().total_seconds(),
            template.architecture,
        )

    async def discover(self, target: Target) -> list[Revision]:
        """Revisions of a target, and those that have services already. Raises Conflict."""
        gpus = {one.revision: one.template.resources.gpus for one in target.revisions}
        known = [
            _revision(ServiceName(target.uid, number), self._options.cluster_for(count), count)
            for number, count in gpus.items()
        ]
        for cluster in self._options.clusters:
            for name in await self._calls.service_names(cluster):
                parsed = parse_service(name)
                if parsed and parsed.uid == target.uid and parsed.revision not in gpus:
                    known.append(_revision(parsed, cluster, int(cluster != self._options.cluster)))
        return known

    # -- one look, one step ---------------------------------------------------------------------

    async def converge(self, known: Deployed) -> None:
        """Look, decide, and ask ECS for it. Raises a BackendError or Unanswered of a call."""
        await self._look(known)
        if known.removed:
            return
        await self._pace(known)
        self._step(known)
        await self._route(known)
        for number, revision in list(known.revisions.items()):
            await self._push(known, revision)
            if number not in known.definitions and revision.empty and revision.status in _GONE:
                del known.revisions[number]
                if self._balancer is not None:
                    await self._balancer.forget(known.target.uid, number)

    async def _route(self, known: Deployed) -> None:
        """Have the load balancer divide by what is ready; a service needs its group in a rule."""
        known.native = self._balancer is not None
        weights = shares(known.target, known.ready())
        if self._balancer is not None and weights and weights != known.routed:
            await self._balancer.route(known.target, weights)
            known.routed = weights

    async def _look(self, known: Deployed) -> None:
        by_cluster: dict[str, list[Revision]] = {}
        for one in known.revisions.values():
            by_cluster.setdefault(one.cluster, []).append(one)
        for cluster, some in by_cluster.items():
            services = await self._calls.services(cluster, [one.name for one in some])
            for revision in some:
                await self._see(known, revision, services.get(revision.name))

    async def _see(self, known: Deployed, revision: Revision, service: Item | None) -> None:
        if service is not None and service.get("status") != "INACTIVE":
            _require_ours(service, self._ctx.cluster_id)
            if revision.service is None and not revision.want:
                revision.want = int(service.get("desiredCount", 0))  # of before our start
        revision.service = service
        if service is None:
            return
        now = self._ctx.clock.time()
        tasks = await self._tasks(revision)
        revision.slots.take(tasks, revision.want, revision.running, now)
        ready = await self._ready(revision, tasks)
        revision.slots.judge(lambda task: task.arn in ready, now)
        self._diagnose(known, revision, now)

    async def _tasks(self, revision: Revision) -> list[TaskView]:
        """Its tasks; those that ended too, where some are missing."""
        slots = revision.slots
        missing = len(slots.slots) < revision.want or any(
            one.task is None for one in slots.slots.values()
        )
        arns = await self._calls.tasks_of_service(revision.cluster, revision.name, ended=missing)
        described = await self._calls.describe(
            revision.cluster, dict.fromkeys([*arns, *slots.tasks()])
        )
        # A service of the same name may have been there before.
        since = seconds(revision.service.get("createdAt")) if revision.service else 0.0
        addresses = await self._addresses.of(described.values())
        views = [task_view(task, addresses[arn]) for arn, task in described.items()]
        return [one for one in views if one.created >= since or not one.ended]

    async def _ready(self, revision: Revision, tasks: Iterable[TaskView]) -> set[str]:
        running = [one for one in tasks if one.running and one.address]
        if self._balancer is not None:
            healthy = await self._balancer.healthy(*revision.service_of)
            return {one.arn for one in running if one.address.rpartition(":")[0] in healthy}
        if self._options.readiness == "ecs":
            return {one.arn for one in running if one.healthy}
        async with asyncio.TaskGroup() as asking:
            asked = {
                one.arn: asking.create_task(
                    answers(one.address, replica_name(revision.service_of, one.arn)), name="probe"
                )
                for one in running
            }
        return {arn for arn, answer in asked.items() if answer.result()}

    # -- deciding -------------------------------------------------------------------------------

    async def _pace(self, known: Deployed) -> None:
        """Whether GPUs leave room for the exchange as it was asked for."""
        known.pace, known.problem = None, None
        gpus = {one.revision: one.template.resources.gpus for one in known.target.revisions}
        made = {one.revision for one in known.plan(self._ctx.rng).create if gpus[one.revision]}
        for number in made:
            cluster = self._options.cluster_for(gpus[number])
            scales = await self._calls.scales(self._options.provider_for(gpus[number]))
            instances = [] if scales else await self._calls.instances(cluster)
            room = headroom(instances, scales=scales)
            stop_first = self._options.gpu_exchange == "stop_first"
            made_of = decide(known.target, gpus[number], room, stop_first=stop_first)
            if made_of.problem is not None:
                known.pace, known.problem = made_of.target, made_of.problem

    def _step(self, known: Deployed) -> None:
        step = known.plan(self._ctx.rng)
        for name in step.end:
            self._drop(known, name)
        for one in step.create:
            known.revisions[one.revision].want += 1
        known.problem = known.problem or _told_problem(known, self._options, self._ctx.clock.time())

    def retire(self, known: Deployed, names: Sequence[str]) -> None:
        """Those that leave are to go."""
        for name in known.plan(self._ctx.rng).leaving.intersection(names):
            self._drop(known, name)

    def _drop(self, known: Deployed, name: str) -> None:
        for revision in known.revisions.values():
            if name in revision.slots.slots or name.startswith(f"{revision.name}/"):
                revision.drop(name)

    def _diagnose(self, known: Deployed, revision: Revision, now: float) -> None:
        """What ECS's breaker or our watchdogs say of replicas that are not ready."""
        number = revision.service_of.revision
        told = revision.verdict()
        ends = churns(revision.slots.ends, revision.want, now)
        if told.state in _BROKEN:
            revision.refused.add(revision.definition)
            cause = broken_off(told, number, revision.slots.last)
        elif ends:
            cause = churning(ends, number, revision.slots.last)
        else:
            return
        for slot in revision.slots.slots.values():
            if slot.phase is not ReplicaPhase.READY and not slot.retiring:
                slot.enter(ReplicaPhase.UNHEALTHY, now)
                slot.cause = cause

    # -- asking ECS -----------------------------------------------------------------------------

    async def _push(self, known: Deployed, revision: Revision) -> None:
        if revision.status in _GONE:
            if revision.want and revision.definition:
                await self._create(known, revision)
        elif revision.status == "DRAINING":
            if revision.want:
                raise Retry(f"service {revision.name} of before still drains", after=1.0)
        elif not revision.definition and revision.empty and not _desired(revision):
            await self._delete(known, revision, force=False)
        else:
            await self._update(known, revision)

    async def _create(self, known: Deployed, revision: Revision) -> None:
        target = known.target
        earlier = seconds(revision.service.get("createdAt")) if revision.service else 0.0
        tags = {
            CLUSTER: self._ctx.cluster_id,
            UID_TAG: target.uid,
            REVISION_TAG: str(revision.service_of.revision),
            SPEC: revision.definition.rsplit("/", 1)[-1],
        }
        parameters: dict[str, Any] = {
            "cluster": revision.cluster,
            "serviceName": revision.name,
            "taskDefinition": revision.definition,
            "desiredCount": revision.want,
            "deploymentConfiguration": _deployment_configuration(),
            "schedulingStrategy": "REPLICA",
            "enableECSManagedTags": True,
            "propagateTags": "SERVICE",
            "tags": listed(tags),
            **placing(self._options, revision.gpus),
        }
        if self._balancer is not None:
            parameters |= await self._balancer.service_part(*revision.service_of)
        # Another token when a service of this name was there before: that one is over.
        parameters["clientToken"] = token(repr(sorted(parameters.items())), earlier)
        try:
            await self._write(known, "ecs:CreateService", parameters)
        except Invalid as error:
            if "not idempotent" not in said(error):
                raise
            raise Retry(f"service {revision.name} is there already", after=1.0) from error

    async def _update(self, known: Deployed, revision: Revision) -> None:
        changes: dict[str, Any] = {}
        if _desired(revision) != revision.want:
            changes["desiredCount"] = revision.want
        other = revision.definition not in ("", revision.running, *revision.refused)
        if other:
            changes["taskDefinition"] = revision.definition
        if self._is_to_begin_anew(known, revision):
            changes["forceNewDeployment"] = True
            revision.forced = known.target.generation
            revision.refused.clear()
        await self._spare(revision)
        if changes:
            where = {"cluster": revision.cluster, "service": revision.name}
            await self._write(known, "ecs:UpdateService", where | changes)

    def _is_to_begin_anew(self, known: Deployed, revision: Revision) -> bool:
        """A newer generation wants what ECS gave up: once for each generation."""
        failed = revision.verdict().state is ServiceState.FAILED
        if not failed or not revision.definition:
            return False
        if not revision.forced:
            revision.forced = known.target.generation
        return revision.want > 0 and known.target.generation > revision.forced

    async def _spare(self, revision: Revision) -> None:
        """While some retire, have ECS stop those and no others."""
        now, before = revision.slots.spared(), revision.spared
        if now == before:
            return
        freed = (before - now).intersection(revision.slots.tasks())
        # Without it another one may be stopped: its model server goes on answering while it drains.
        with suppress(BackendError):
            await self._calls.protect(revision.cluster, sorted(freed), on=False)
            await self._calls.protect(revision.cluster, sorted(now - before), on=True)
            revision.spared = now

    async def _delete(self, known: Deployed, revision: Revision, *, force: bool) -> None:
        where = {"cluster": revision.cluster, "service": revision.name, "force": force}
        await self._write(known, "ecs:DeleteService", where)

    async def _write(self, known: Deployed, operation: str, parameters: dict[str, Any]) -> None:
        try:
            await self._aws.write(operation, **parameters)
        except BackendError:
            raise
        except BaseException:
            known.touched = True
            raise
        known.touched = True

    # -- removing, listing ----------------------------------------------------------------------

    async def remove(self, uid: str, known: Deployed | None) -> bool:
        """Delete all services of a deployment; whether something of it is left."""
        revisions = {r.name: r for r in known.revisions.values()} if known else {}
        for cluster in self._options.clusters:
            for name in await self._calls.service_names(cluster):
                parsed = parse_service(name)
                if parsed and parsed.uid == uid:
                    revisions.setdefault(name, _revision(parsed, cluster, 0))
        gone = [await self._removed(revision) for revision in revisions.values()]
        if not all(gone):
            return True
        if self._balancer is not None:
            numbers = [one.service_of.revision for one in revisions.values()]
            await self._balancer.remove(uid, numbers)
        return False

    async def _removed(self, revision: Revision) -> bool:
        """Whether nothing of a revision is left; it is asked to go."""
        revision.want = 0
        found = await self._calls.services(revision.cluster, [revision.name])
        revision.service = found.get(revision.name)
        if revision.status == "ACTIVE":
            _require_ours(revision.service or {}, self._ctx.cluster_id)
            where = {"cluster": revision.cluster, "service": revision.name, "force": True}
            await self._aws.read("ecs:DeleteService", **where)
            return False
        revision.slots.retire_all()
        described = await self._calls.describe(revision.cluster, revision.slots.tasks())
        views = [task_view(task, "") for task in described.values()]
        revision.slots.take(views, 0, revision.running, self._ctx.clock.time())
        return revision.status in _GONE and not revision.slots.slots

    async def all_services(self) -> AsyncIterator[Item]:
        """Every service whose name is of our kind, with its tags."""
        for cluster in self._options.clusters:
            names = [n for n in await self._calls.service_names(cluster) if parse_service(n)]
            for service in (await self._calls.services(cluster, names)).values():
                if service.get("status") != "INACTIVE":
                    yield service

    def seen(self, known: Deployed) -> ReplicaSet:
        """As the core is told of it."""
        return known.seen(self._ctx.rng)


def _revision(name: ServiceName, cluster: str, gpus: int) -> Revision:
    return Revision(name, cluster, gpus, Slots(name))


def _desired(revision: Revision) -> int:
    """How many tasks ECS keeps of it now."""
    return int(revision.service.get("desiredCount", 0)) if revision.service else 0


def _require_ours(service: Item, cluster_id: str) -> None:
    owner = mapped(service.get("tags") or []).get(CLUSTER, "")
    if owner != cluster_id:
        whose = f"of cluster {owner!r}" if owner else "of somebody else"
        raise Conflict(
            f"service {service['serviceName']} exists and is {whose}",
            evidence=str(service.get("serviceArn")),
        )


def _deployment_configuration() -> dict[str, Any]:
    """How ECS exchanges tasks within one revision: the new ones first, and back if they fail."""
    return {
        "minimumHealthyPercent": 100,
        "maximumPercent": 200,
        "deploymentCircuitBreaker": {"enable": True, "rollback": True},
    }


def _told_problem(known: Deployed, options: EcsOptions, now: float) -> common_pb2.Cause | None:
    """What keeps a deployment from being as wanted, the worst first."""
    problems = []
    for number, revision in known.revisions.items():
        if revision.service is None or number not in known.definitions:
            continue
        told = revision.verdict()
        if told.state in _BROKEN:
            return broken_off(told, number, revision.slots.last)
        ready = sum(one.phase is ReplicaPhase.READY for one in revision.slots.slots.values())
        revision.progress.saw(ready, revision.want, now)
        if ready < revision.want and (cause := trouble(revision.service)):
            problems.append(cause)
        if revision.progress.stuck(options.progress_deadline, now):
            newest = next(iter(event_messages(revision.service)), "")
            problems.append(
                no_progress(revision.progress, number, options.progress_deadline, newest)
            )
    return next(iter(problems), None)
