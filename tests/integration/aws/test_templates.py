"""The CloudFormation templates: linted against AWS's own specification, and deployed on moto."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from typing import Any

import pytest
from batch_yard import aws
from testbed_fixtures import AwsEmulator, fresh_name

from hatoba_plugins.backends.batch_spot.calls import LIMITS

ROOT = Path(__file__).resolve().parents[3]
LINT = ROOT / ".venv-emulators" / "bin" / "cfn-lint"
TEMPLATES = sorted((ROOT / "deploy" / "aws").glob("*.yaml"))


@pytest.mark.skipif(not LINT.exists(), reason="the emulators' environment is missing")
@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_a_template_is_what_aws_takes(template: Path) -> None:
    done = subprocess.run([LINT, template], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def with_service_role(template: str) -> str:
    """moto does not know that Batch has a role of its own where none is named."""
    line = "      ReplaceComputeEnvironment: false\n"
    assert line in template
    return template.replace(line, f"{line}      ServiceRole: !GetAtt InstanceRole.Arn\n")


def deployed(moto: AwsEmulator, **parameters: str) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Outputs of a stack, and its resources; the stack is gone again."""
    name = fresh_name("stack")
    ec2, formation = aws(moto, "ec2"), aws(moto, "cloudformation")
    subnet = ec2.describe_subnets()["Subnets"][0]
    given = {
        "Name": name[:20],
        "VpcId": subnet["VpcId"],
        "SubnetIds": subnet["SubnetId"],
        "InstanceTypes": "m5.large",
        **parameters,
    }
    formation.create_stack(
        StackName=name,
        TemplateBody=with_service_role((ROOT / "deploy" / "aws" / "batch.yaml").read_text()),
        Parameters=[{"ParameterKey": key, "ParameterValue": given[key]} for key in given],
        Capabilities=["CAPABILITY_IAM"],
    )
    (stack,) = formation.describe_stacks(StackName=name)["Stacks"]
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    resources = formation.describe_stack_resources(StackName=name)["StackResources"]
    queues = aws(moto, "batch").describe_job_queues()["jobQueues"]
    ours = [one for one in queues if one["jobQueueName"].startswith(given["Name"])]
    return {one["OutputKey"]: one["OutputValue"] for one in stack["Outputs"]}, [*resources, *ours]


async def test_queues_are_made_as_parameters_say(moto: AwsEmulator) -> None:
    outputs, made = await asyncio.to_thread(deployed, moto)
    assert {"SpotQueue", "JobRole", "ExecutionRole", "ServerPolicy"} <= outputs.keys()
    assert "GpuQueue" not in outputs
    assert len([one for one in made if "jobQueueName" in one]) == 1
    outputs, made = await asyncio.to_thread(
        deployed, moto, OnDemandMaxvCpus="16", GpuInstanceTypes="g5.xlarge"
    )
    assert {"SpotQueue", "OnDemandQueue", "GpuQueue"} <= outputs.keys()
    assert len([one for one in made if "jobQueueName" in one]) == 3


def test_the_servers_policy_allows_what_is_called_and_no_more() -> None:
    text = (ROOT / "deploy" / "aws" / "batch.yaml").read_text()
    words = text[text.index("ServerPolicy:") : text.index("Outputs:")].split()
    allowed = {word for word in words if word.startswith(("batch:", "logs:"))}
    assert allowed == {operation for operation, _ in LIMITS if ":" in operation}
