"""The calls to ECS that both roles need, in its own batches."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

from hatoba_plugins.aws import AwsClients, Paging, refusal_of
from hatoba_plugins.backends.ecs.definitions import Definition, family_of
from hatoba_plugins.errors import Invalid
from hatoba_plugins.values import Rate

SERVICES_AT_ONCE = 10
TASKS_AT_ONCE = 100
Item = dict[str, Any]
LIMITS: tuple[tuple[str, Rate], ...] = (
    ("ecs:RegisterTaskDefinition", Rate(1.0, 20)),
    ("ecs:DescribeTaskDefinition", Rate(20.0, 100)),
    ("ecs:CreateService", Rate(5.0, 50)),
    ("ecs:UpdateService", Rate(5.0, 50)),
    ("ecs:DeleteService", Rate(5.0, 50)),
    ("ecs:DescribeServices", Rate(20.0, 100)),
    ("ecs:ListServices", Rate(20.0, 100)),
    ("ecs:RunTask", Rate(40.0, 100)),
    ("ecs:StopTask", Rate(40.0, 100)),
    ("ecs:DescribeTasks", Rate(20.0, 100)),
    ("ecs:ListTasks", Rate(20.0, 100)),
    ("ecs:UpdateTaskProtection", Rate(5.0, 50)),
    ("ecs:DescribeClusters", Rate(20.0, 50)),
    ("ecs:DescribeCapacityProviders", Rate(5.0, 10)),
    ("ecs:ListContainerInstances", Rate(20.0, 100)),
    ("ecs:DescribeContainerInstances", Rate(20.0, 100)),
    ("ec2:DescribeInstances", Rate(10.0, 50)),
    ("elbv2:DescribeTargetGroups", Rate(5.0, 20)),
    ("elbv2:DescribeTargetHealth", Rate(5.0, 20)),
    ("elbv2:DescribeRules", Rate(5.0, 20)),
    ("elbv2:DescribeTags", Rate(5.0, 20)),
    ("elbv2:CreateTargetGroup", Rate(3.0, 10)),
    ("elbv2:DeleteTargetGroup", Rate(3.0, 10)),
    ("elbv2:CreateRule", Rate(3.0, 10)),
    ("elbv2:ModifyRule", Rate(3.0, 10)),
    ("elbv2:DeleteRule", Rate(3.0, 10)),
    ("logs:GetLogEvents", Rate(10.0, 20)),
)
"""What AWS allows an account in a region: a second, and in a burst."""


class EcsCalls:
    """ECS of one account and region."""

    def __init__(self, aws: AwsClients) -> None:
        self.aws = aws
        self._definitions: dict[str, str] = {}
        self._registering: dict[str, asyncio.Lock] = {}

    # -- task definitions -----------------------------------------------------------------------

    async def definition(self, wanted: Definition) -> str:
        """ARN of a task definition with this content, registered where there is none."""
        family = family_of(wanted)
        async with self._registering.setdefault(family, asyncio.Lock()):
            if family not in self._definitions:
                known = await self._registered(family)
                self._definitions[family] = known or await self._register(family, wanted)
        self._registering.pop(family, None)
        return self._definitions[family]

    async def _registered(self, family: str) -> str:
        """The newest of a family that is active; empty: there is none."""
        try:
            told = await self.aws.read("ecs:DescribeTaskDefinition", taskDefinition=family)
        except Invalid as error:
            if "describe task definition" in error.message.lower():
                return ""
            raise
        known = told["taskDefinition"]
        return str(known["taskDefinitionArn"]) if known.get("status") == "ACTIVE" else ""

    async def _register(self, family: str, wanted: Definition) -> str:
        # Twice is no harm: a second revision of the same content.
        told = await self.aws.read("ecs:RegisterTaskDefinition", family=family, **wanted)
        return str(told["taskDefinition"]["taskDefinitionArn"])

    # -- tasks ----------------------------------------------------------------------------------

    async def tasks_started_by(self, cluster: str, who: str) -> list[Item]:
        """All tasks that carry this `startedBy`, stopped ones too, the oldest first."""
        both = [await self._arns(cluster, status, startedBy=who) for status in _STATUSES]
        tasks = await self.describe(cluster, dict.fromkeys(itertools.chain(*both)))
        return sorted(tasks.values(), key=lambda one: (str(one.get("createdAt")), one["taskArn"]))

    async def tasks_of_service(self, cluster: str, service: str, *, ended: bool) -> list[str]:
        """ARNs of a service's tasks, with `ended` also of those of the last hour that ended."""
        arns = await self._arns(cluster, "RUNNING", serviceName=service)
        return arns + (await self._arns(cluster, "STOPPED", serviceName=service) if ended else [])

    async def all_tasks(self, cluster: str) -> AsyncIterator[Item]:
        """Every task of a cluster, stopped ones too."""
        for status in _STATUSES:
            arns = await self._arns(cluster, status)
            for task in (await self.describe(cluster, arns)).values():
                yield task

    async def _arns(self, cluster: str, status: str, **of: str) -> list[str]:
        pages = self.aws.pages(
            "ecs:ListTasks", Paging("taskArns"), cluster=cluster, desiredStatus=status, **of
        )
        return [str(arn) async for arn in pages]

    async def describe(self, cluster: str, arns: Iterable[str]) -> dict[str, Item]:
        """Tasks by ARN, with their tags; what is not told does not exist any more."""
        found: dict[str, Item] = {}
        for some in _batches(list(arns), TASKS_AT_ONCE):
            told = await self.aws.read(
                "ecs:DescribeTasks", cluster=cluster, tasks=some, include=["TAGS"]
            )
            found |= {task["taskArn"]: task for task in told.get("tasks") or []}
        return found

    # -- services -------------------------------------------------------------------------------

    async def services(self, cluster: str, names: Iterable[str]) -> dict[str, Item]:
        """Services by name, with their tags; also those that drain, and some that were deleted."""
        found: dict[str, Item] = {}
        for some in _batches(list(names), SERVICES_AT_ONCE):
            told = await self.aws.read(
                "ecs:DescribeServices", cluster=cluster, services=some, include=["TAGS"]
            )
            found |= {one["serviceName"]: one for one in told.get("services") or []}
        return found

    async def service_names(self, cluster: str) -> list[str]:
        """Names of all services that are not deleted."""
        pages = self.aws.pages(
            "ecs:ListServices", Paging("serviceArns"), cluster=cluster, maxResults=100
        )
        return [str(arn).rsplit("/", 1)[-1] async for arn in pages]

    async def protect(self, cluster: str, arns: Sequence[str], *, on: bool) -> None:
        """Have these tasks spared, or not, when fewer are wanted."""
        for some in _batches(list(arns), 10):
            lasting: Mapping[str, object] = {"expiresInMinutes": 60} if on else {}
            await self.aws.read(
                "ecs:UpdateTaskProtection",
                cluster=cluster,
                tasks=some,
                protectionEnabled=on,
                **lasting,
            )

    async def missing_clusters(self, names: Sequence[str]) -> list[str]:
        """Those of these clusters that are not there or not active."""
        told = await self.aws.read("ecs:DescribeClusters", clusters=list(names))
        active = {
            one.get("clusterName")
            for one in told.get("clusters") or []
            if one.get("status") == "ACTIVE"
        }
        return [name for name in names if name not in active]

    # -- room -----------------------------------------------------------------------------------

    async def instances(self, cluster: str, arns: Sequence[str] = ()) -> list[Item]:
        """Container instances of a cluster, these or all."""
        known = list(arns)
        if not known:
            pages = self.aws.pages(
                "ecs:ListContainerInstances", Paging("containerInstanceArns"), cluster=cluster
            )
            known = [str(arn) async for arn in pages]
        found: list[Item] = []
        for some in _batches(known, TASKS_AT_ONCE):
            told = await self.aws.read(
                "ecs:DescribeContainerInstances", cluster=cluster, containerInstances=some
            )
            found += told.get("containerInstances") or []
        return found

    async def hosts(self, machines: Sequence[str]) -> dict[str, str]:
        """Private addresses of EC2 instances."""
        found: dict[str, str] = {}
        for some in _batches(machines, TASKS_AT_ONCE):
            told = await self.aws.read("ec2:DescribeInstances", InstanceIds=some)
            for reservation in told.get("Reservations") or []:
                for one in reservation.get("Instances") or []:
                    found[one["InstanceId"]] = str(one.get("PrivateIpAddress") or "")
        return {machine: host for machine, host in found.items() if host}

    async def scales(self, provider: str) -> bool:
        """Whether a capacity provider makes instances by itself."""
        if not provider:
            return False
        told = await self.aws.read("ecs:DescribeCapacityProviders", capacityProviders=[provider])
        return any(
            (one.get("autoScalingGroupProvider") or {}).get("managedScaling", {}).get("status")
            == "ENABLED"
            or one.get("name", "").startswith("FARGATE")
            for one in told.get("capacityProviders") or []
        )


_STATUSES = ("RUNNING", "STOPPED")


def _batches(items: Sequence[str], size: int) -> Iterable[list[str]]:
    return (list(items[at : at + size]) for at in range(0, len(items), size))


def said(error: BaseException) -> str:
    """What AWS said behind an error, in small letters."""
    answer = refusal_of(error)
    return f"{answer.code} {answer.message}".lower() if answer else str(error).lower()
