"""A load balancer in front of deployments: a target group for each revision, a rule for each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from hatoba_plugins.aws import AwsClients, Paging
from hatoba_plugins.aws.tags import CLUSTER, listed
from hatoba_plugins.backends.ecs.calls import Item, said
from hatoba_plugins.backends.ecs.definitions import PORT
from hatoba_plugins.backends.ecs.names import REVISION_TAG, UID_TAG
from hatoba_plugins.backends.ecs.options import EcsOptions
from hatoba_plugins.backends.ecs.states import CONTAINER
from hatoba_plugins.errors import BackendError, Conflict, Retry
from hatoba_plugins.values import Target

FIRST_PRIORITY = 1000
"""Rules of ours come after those that people made by hand."""
GRACE_SECONDS = 300
"""So long after a task's start its target may be unhealthy."""
_ABSENT = ("targetgroupnotfound", "rulenotfound")


def group_name(uid: str, revision: int) -> str:
    """A target group's name has at most 32 characters: the uid goes in as a hash."""
    return f"hatoba-{hashlib.sha256(uid.encode()).hexdigest()[:12]}-{revision}"


class Balancer:
    """Rules of one listener, and their target groups."""

    def __init__(self, aws: AwsClients, options: EcsOptions, cluster_id: str) -> None:
        self._aws = aws
        self._options = options
        self._cluster_id = cluster_id
        self._groups: dict[str, str] = {}

    async def group(self, uid: str, revision: int) -> str:
        """ARN of a revision's target group, made where there is none."""
        name = group_name(uid, revision)
        if name not in self._groups:
            self._groups[name] = await self._group(name) or await self._make(name, uid, revision)
        return self._groups[name]

    async def _group(self, name: str) -> str:
        try:
            told = await self._aws.read("elbv2:DescribeTargetGroups", Names=[name])
        except BackendError as error:
            if any(word in said(error) for word in _ABSENT):
                return ""
            raise
        return str(next(iter(told.get("TargetGroups") or [{}])).get("TargetGroupArn", ""))

    async def _make(self, name: str, uid: str, revision: int) -> str:
        # The same parameters again are answered with the group that is there.
        tags = {CLUSTER: self._cluster_id, UID_TAG: uid, REVISION_TAG: str(revision)}
        told = await self._aws.read(
            "elbv2:CreateTargetGroup",
            Name=name,
            Protocol="HTTP",
            Port=PORT,
            VpcId=self._options.vpc,
            TargetType="ip",
            HealthCheckPath="/readyz",
            HealthCheckIntervalSeconds=10,
            HealthyThresholdCount=2,
            Tags=listed(tags, "Key", "Value"),
        )
        return str(told["TargetGroups"][0]["TargetGroupArn"])

    async def service_part(self, uid: str, revision: int) -> dict[str, Any]:
        """What CreateService has to know of it."""
        target = {"containerName": CONTAINER, "containerPort": PORT}
        group = await self.group(uid, revision)
        return {
            "loadBalancers": [{"targetGroupArn": group, **target}],
            "healthCheckGracePeriodSeconds": GRACE_SECONDS,
        }

    async def healthy(self, uid: str, revision: int) -> set[str]:
        """Addresses that the load balancer takes for healthy."""
        group = await self.group(uid, revision)
        told = await self._aws.read("elbv2:DescribeTargetHealth", TargetGroupArn=group)
        return {
            str(one["Target"]["Id"])
            for one in told.get("TargetHealthDescriptions") or []
            if one.get("TargetHealth", {}).get("State") == "healthy"
        }

    async def route(self, target: Target, weights: Mapping[int, int]) -> None:
        """Have a deployment's rule divide requests so. Raises Conflict for a host that is taken."""
        groups = {await self.group(target.uid, one): weight for one, weight in weights.items()}
        rule = await self._rule(target)
        if rule is None:
            await self._add_rule(target, groups)
        elif not _divides(rule, groups):
            await self._aws.read(
                "elbv2:ModifyRule", RuleArn=rule["RuleArn"], Actions=[_forward(groups)]
            )

    async def _rules(self) -> list[Item]:
        pages = self._aws.pages(
            "elbv2:DescribeRules",
            Paging("Rules", "Marker", "NextMarker"),
            ListenerArn=self._options.listener,
        )
        return [rule async for rule in pages]

    async def _rule(self, target: Target) -> Item | None:
        """The rule of a deployment's host."""
        host = self._host(target)
        found = next((rule for rule in await self._rules() if host in _hosts(rule)), None)
        ours = set(self._groups.values())
        if found is not None and not (_weights(found).keys() & ours):
            told = await self._aws.read("elbv2:DescribeTags", ResourceArns=[found["RuleArn"]])
            tags = told["TagDescriptions"][0]["Tags"]
            if {"Key": UID_TAG, "Value": target.uid} not in tags:
                raise Conflict(f"host {host!r} is taken at the listener", evidence=found["RuleArn"])
        return found

    async def _add_rule(self, target: Target, groups: Mapping[str, int]) -> None:
        taken = {rule.get("Priority") for rule in await self._rules()}
        priority = next(n for n in range(FIRST_PRIORITY, 50_001) if str(n) not in taken)
        host = {"Field": "host-header", "HostHeaderConfig": {"Values": [self._host(target)]}}
        tags = {CLUSTER: self._cluster_id, UID_TAG: target.uid}
        try:
            await self._aws.write(
                "elbv2:CreateRule",
                ListenerArn=self._options.listener,
                Conditions=[host],
                Priority=priority,
                Actions=[_forward(groups)],
                Tags=listed(tags, "Key", "Value"),
            )
        except BackendError as error:
            if "priorityinuse" in said(error):
                raise Retry(f"priority {priority} was taken meanwhile", after=1.0) from error
            raise

    def _host(self, target: Target) -> str:
        return target.deployment.rsplit("/", 1)[-1] + self._options.host_suffix

    async def remove(self, uid: str, revisions: Iterable[int]) -> None:
        """Take a deployment's rule and target groups away; what is gone already is."""
        numbers = list(revisions)
        groups = {await self._group(group_name(uid, number)) for number in numbers} - {""}
        for rule in await self._rules():
            if groups.intersection(_weights(rule)):
                await self._delete("elbv2:DeleteRule", RuleArn=rule["RuleArn"])
        for number in numbers:
            await self.forget(uid, number)

    async def forget(self, uid: str, revision: int) -> None:
        """Take a revision's target group away."""
        name = group_name(uid, revision)
        group = self._groups.pop(name, "") or await self._group(name)
        if group:
            await self._delete("elbv2:DeleteTargetGroup", TargetGroupArn=group)

    async def _delete(self, operation: str, **parameters: object) -> None:
        try:
            await self._aws.read(operation, **parameters)
        except BackendError as error:
            if not any(word in said(error) for word in _ABSENT):
                raise


def _forward(groups: Mapping[str, int]) -> dict[str, Any]:
    told = [{"TargetGroupArn": arn, "Weight": weight} for arn, weight in sorted(groups.items())]
    made: dict[str, Any] = {"Type": "forward", "ForwardConfig": {"TargetGroups": told}}
    return made | ({"TargetGroupArn": told[0]["TargetGroupArn"]} if len(told) == 1 else {})


def _divides(rule: Mapping[str, Any], groups: Mapping[str, int]) -> bool:
    """Whether a rule divides requests so; of one group the weight does not matter."""
    known = _weights(rule)
    return known == groups or (len(groups) == 1 and known.keys() == groups.keys())


def _weights(rule: Mapping[str, Any]) -> dict[str, int]:
    return {
        str(group["TargetGroupArn"]): int(group.get("Weight", 1))
        for action in rule.get("Actions") or []
        for group in (action.get("ForwardConfig") or {}).get("TargetGroups")
        or ([action] if action.get("TargetGroupArn") else [])
    }


def _hosts(rule: Mapping[str, Any]) -> list[str]:
    return [
        str(value)
        for condition in rule.get("Conditions") or []
        if condition.get("Field") == "host-header"
        for value in (condition.get("HostHeaderConfig") or {}).get("Values")
        or condition.get("Values")
        or []
    ]
