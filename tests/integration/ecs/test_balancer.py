"""A load balancer in front: ministack's, which sends real requests to the containers.

Its targets are healthy as soon as they run, and it knows no weights: those are read back from moto,
which sends nothing anywhere.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import boto3
import pytest
from ecs_harness import EcsReplicaHarness
from ecs_yard import REGION
from testbed_fixtures import AwsEmulator, DockerEngine, fresh_name

from hatoba_plugins.aws import open_aws
from hatoba_plugins.backends.ecs import EcsType
from hatoba_plugins.backends.ecs.balancer import Balancer, group_name
from hatoba_plugins.backends.ecs.options import EcsOptions
from hatoba_plugins.conformance.fleets import Wish, deployed
from hatoba_plugins.conformance.harness import OpenHarness
from hatoba_plugins.errors import Conflict
from hatoba_plugins.values import Target

pytestmark = pytest.mark.timeout(300)


class BalancedHarness(EcsReplicaHarness):
    """With a listener of its own."""

    def __init__(self, emulator: AwsEmulator, engine: DockerEngine, image: str) -> None:
        self.elbv2 = _client(emulator)
        self.balancer = fresh_name("lb")
        made = self.elbv2.create_load_balancer(Name=self.balancer, Subnets=["subnet-1"])
        balancer = made["LoadBalancers"][0]
        fixed = {"StatusCode": "404", "ContentType": "text/plain", "MessageBody": "nobody"}
        listener = self.elbv2.create_listener(
            LoadBalancerArn=balancer["LoadBalancerArn"],
            Protocol="HTTP",
            Port=80,
            DefaultActions=[{"Type": "fixed-response", "FixedResponseConfig": fixed}],
        )
        self.listener = listener["Listeners"][0]["ListenerArn"]
        self.vpc = balancer["VpcId"]
        super().__init__(emulator, engine, image)

    def _options(self, endpoint: str) -> dict[str, object]:
        balanced = {"listener": self.listener, "vpc": self.vpc, "host_suffix": ".models.test"}
        return {**super()._options(endpoint), **balanced}

    def rules(self) -> list[Any]:
        """The listener's rules, without the default one."""
        told = self.elbv2.describe_rules(ListenerArn=self.listener)["Rules"]
        return [rule for rule in told if not rule["IsDefault"]]

    def group(self) -> str:
        """Name of the target group that the one rule forwards to."""
        (rule,) = self.rules()
        return str(rule["Actions"][0]["TargetGroupArn"].split("/")[1])

    async def ask(self) -> int:
        """What a request for the deployment's host is answered with; asked again while it is 502:
        a target counts as healthy before its server listens."""
        url = f"{self.emulator.endpoint}/_alb/{self.balancer}/readyz"
        headers = {"Host": "conformance.models.test"}
        async with aiohttp.ClientSession() as session, asyncio.timeout(30):
            while True:
                async with session.get(url, headers=headers) as reply:
                    if reply.status != 502:
                        return reply.status
                await asyncio.sleep(0.1)


def _client(emulator: AwsEmulator) -> Any:
    return boto3.client(
        "elbv2",
        endpoint_url=emulator.endpoint,
        region_name=REGION,
        aws_access_key_id="hatoba-test",
        aws_secret_access_key="hatoba-test-secret",
    )


@pytest.fixture
def harness_type() -> type[EcsReplicaHarness]:
    return BalancedHarness


@pytest.mark.asyncio
async def test_the_load_balancer_routes(harness: BalancedHarness) -> None:
    async with deployed(harness) as fleet:
        wish = Wish()
        await fleet.settle(wish.target(1, fleet.revision(1, 1)))
        assert fleet.seen(wish.uid).routed_by == "native"
        assert await harness.ask() == 200
        await fleet.settle(wish.target(2, fleet.revision(2, 1)))
        wanted = group_name(wish.uid, 2)
        async with asyncio.timeout(30):
            while await asyncio.to_thread(harness.group) != wanted:
                await harness.sleep(0.1)
        assert await harness.ask() == 200
        await fleet.remove(wish.uid)
        assert await asyncio.to_thread(harness.rules) == []
        assert await harness.ask() == 404


@pytest.mark.asyncio
async def test_weights_of_several_revisions(
    moto: AwsEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, text in moto.credentials.items():
        monkeypatch.setenv(key, text)
    client = _client(moto)
    subnets = boto3.client(
        "ec2", endpoint_url=moto.endpoint, region_name=REGION
    ).describe_subnets()["Subnets"][:2]
    ids = [one["SubnetId"] for one in subnets]
    made = client.create_load_balancer(Name=fresh_name("lb"), Subnets=ids)["LoadBalancers"][0]
    fixed = {"StatusCode": "404", "ContentType": "text/plain", "MessageBody": "nobody"}
    listener = client.create_listener(
        LoadBalancerArn=made["LoadBalancerArn"],
        Protocol="HTTP",
        Port=80,
        DefaultActions=[{"Type": "fixed-response", "FixedResponseConfig": fixed}],
    )["Listeners"][0]["ListenerArn"]
    options = EcsOptions(
        region=REGION,
        endpoint=moto.endpoint,
        listener=listener,
        vpc=made["VpcId"],
        host_suffix=".models.test",
    )
    target = Target("projects/default/deployments/faces", "ab" * 16, 1, ())
    async with open_aws(options, OpenHarness(EcsType()).context(), ("elbv2",)) as aws:
        balancer = Balancer(aws, options, "c1")
        for weights in ({1: 100}, {1: 90, 2: 10}, {1: 0, 2: 100}, {2: 100}):
            await balancer.route(target, weights)
            names = {group_name(target.uid, number): one for number, one in weights.items()}
            assert _weights_at(client, listener) == names
        await balancer.remove(target.uid, [1, 2])
    left = {one["TargetGroupName"] for one in client.describe_target_groups()["TargetGroups"]}
    assert not left & {group_name(target.uid, 1), group_name(target.uid, 2)}


def _weights_at(client: Any, listener: str) -> dict[str, int]:
    told = client.describe_rules(ListenerArn=listener)["Rules"]
    (rule,) = [rule for rule in told if not rule["IsDefault"]]
    groups = rule["Actions"][0]["ForwardConfig"]["TargetGroups"]
    return {one["TargetGroupArn"].split("/")[1]: one["Weight"] for one in groups}


@pytest.mark.asyncio
async def test_a_host_that_somebody_else_has_is_left_alone(harness: BalancedHarness) -> None:
    host = {"Field": "host-header", "HostHeaderConfig": {"Values": ["conformance.models.test"]}}
    fixed = {"StatusCode": "200", "ContentType": "text/plain", "MessageBody": "mine"}
    harness.elbv2.create_rule(
        ListenerArn=harness.listener,
        Priority=5,
        Conditions=[host],
        Actions=[{"Type": "fixed-response", "FixedResponseConfig": fixed}],
    )
    async with deployed(harness) as fleet:
        with pytest.raises(Conflict, match=r"conformance\.models\.test"):
            await fleet.role.apply(Wish().target(1, fleet.revision(1, 1)))
        assert len(harness.rules()) == 1
