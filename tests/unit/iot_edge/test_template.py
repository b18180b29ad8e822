"""The rights that deploy/aws/iot.yaml gives devices and the server are those that are needed."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from hatoba_plugins.aws.errors import action_of
from hatoba_plugins.backends.iot_edge.calls import CLUSTER, LIMITS
from hatoba_plugins.backends.iot_edge.options import EdgeOptions
from hatoba_plugins.backends.iot_edge.policy import device_policy
from hatoba_worker.agent.provisioning import CLIENT, CREATE
from hatoba_worker.agent.settings import AwsIot

ROOT = Path(__file__).resolve().parents[3]
EMULATORS = ROOT / ".venv-emulators" / "bin" / "python"
OPTIONS = EdgeOptions(transport="aws-iot")
PLACE = ("aws", "eu-central-1", "123456789012")
MOST_CHARACTERS = 2048
"""Of a policy at AWS IoT, without white space."""
GIVEN = {
    "AWS::Partition": PLACE[0],
    "AWS::Region": PLACE[1],
    "AWS::AccountId": PLACE[2],
    "Name": "hatoba",
    "Shadow": OPTIONS.shadow,
    "ThingPrefix": OPTIONS.thing_prefix,
    "Fleet": "shops",
    "Bucket": "models/hatoba",
    "Credentials": "c0.credentials.iot.eu-central-1.amazonaws.com",
}


class Template(yaml.SafeLoader):
    """Reads CloudFormation's own tags, as far as the template has them."""


def substituted(loader: yaml.Loader, node: yaml.ScalarNode) -> str:
    return filled(str(node.value))


def filled(text: str, **more: str) -> str:
    given = GIVEN | more
    text = re.sub(r"\$\{([A-Za-z:]+)\}", lambda found: given[found[1]], text)
    return text.replace("${!", "${")


def listed(loader: yaml.Loader, node: yaml.SequenceNode) -> list[Any]:
    return loader.construct_sequence(node, deep=True)


Template.add_constructor("!Sub", substituted)
for tag in ("!Not", "!Equals", "!If"):
    Template.add_constructor(tag, listed)
Template.add_constructor("!Ref", lambda loader, node: f"ref {node.value}")
Template.add_constructor("!GetAtt", lambda loader, node: f"attribute {node.value}")


@pytest.fixture(scope="module")
def made() -> Any:
    return yaml.load((ROOT / "deploy" / "aws" / "iot.yaml").read_text(), Template)["Resources"]


def test_the_policy_of_devices_is_ours(made: Any) -> None:
    properties = made["DevicePolicy"]["Properties"]
    assert properties["PolicyName"] == OPTIONS.policy
    assert properties["PolicyDocument"] == device_policy(OPTIONS, *PLACE)


@pytest.mark.parametrize("shadow", ["hatoba", "s" * 48])
def test_the_policy_is_no_larger_than_aws_takes(shadow: str) -> None:
    options = EdgeOptions(transport="aws-iot", shadow=shadow)
    document = json.dumps(device_policy(options, "aws-us-gov", "us-gov-east-1", PLACE[2]))
    assert len("".join(document.split())) <= MOST_CHARACTERS


def test_the_servers_policy_allows_what_is_called_and_no_more(made: Any) -> None:
    statements = made["ServerPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    allowed: set[str] = set()
    for one in statements:
        action = one["Action"]
        allowed |= {action} if isinstance(action, str) else set(action)
    assert allowed == {action_of(operation) for operation, _ in LIMITS}


def test_everything_of_the_servers_policy_is_ours_by_name(made: Any) -> None:
    """But for what AWS has no names for: listings, and certificates."""
    statements = made["ServerPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    open_to_all = {
        one["Sid"] for one in statements if "*" in one["Resource"] or one["Resource"] == "*"
    }
    wide = {"Look", "Sign"}
    assert {one["Sid"] for one in statements if one["Resource"] == "*"} == wide <= open_to_all
    things = re.compile(r"arn:aws:iot:[^:]+:\d+:(thing/hatoba-|job/hatoba-|cert/)|attribute Queue")
    for one in statements:
        resources = one["Resource"]
        for resource in [resources] if isinstance(resources, str) else resources:
            assert one["Sid"] in wide or things.match(resource), resource


def provisioned(made: Any) -> Any:
    """The template of fleet provisioning, with a bucket."""
    text, more = made["ProvisioningTemplate"]["Properties"]["TemplateBody"]["Fn::Sub"]
    _, content, nothing = more["From"]
    assert nothing == ""
    return json.loads(filled(text, From=content))


def test_a_claim_makes_things_of_ours(made: Any) -> None:
    body = provisioned(made)
    thing = body["Resources"]["thing"]
    assert thing["Properties"]["AttributePayload"] == {CLUSTER: GIVEN["Fleet"]}
    assert thing["Properties"]["ThingName"]["Fn::Join"][1][0] == OPTIONS.thing_prefix
    # Who has a claim takes over nobody who is there already.
    assert set(thing["OverrideSettings"].values()) == {"FAIL"}
    assert body["Resources"]["policy"]["Properties"]["PolicyName"] == OPTIONS.policy


def test_what_a_device_is_told_is_what_it_understands(made: Any) -> None:
    known = AwsIot.of({"thing": "hatoba-a", **provisioned(made)["DeviceConfiguration"]})
    assert known.shadow == OPTIONS.shadow
    assert known.place is not None
    assert known.place.key("chunks/x") == "hatoba/chunks/x"
    assert known.place.role_alias == made["ContentAlias"]["Properties"]["RoleAlias"]
    (statement,) = made["ContentRole"]["Properties"]["Policies"][0]["PolicyDocument"]["Statement"]
    assert statement["Action"] == "s3:GetObject"
    assert statement["Resource"] == [
        f"arn:aws:s3:::models/hatoba/{folder}/*" for folder in ("chunks", "manifests")
    ]


def test_a_claim_may_do_nothing_else(made: Any) -> None:
    policy = made["ClaimPolicy"]["Properties"]["PolicyDocument"]
    connects, says, hears = policy["Statement"]
    place = "arn:aws:iot:eu-central-1:123456789012"
    assert connects["Resource"] == f"{place}:client/{CLIENT}*"
    name = made["ProvisioningTemplate"]["Properties"]["TemplateName"]
    signing = CREATE.removesuffix("/json")
    topics = [f"{signing}/*", f"$aws/provisioning-templates/{name}/provision/*"]
    assert says["Resource"] == [f"{place}:topic/{one}" for one in topics]
    assert hears["Resource"] == [f"{place}:topicfilter/{one}" for one in topics]


def test_the_rules_tell_of_our_things_alone(made: Any) -> None:
    for name, source in (
        ("SaidRule", f"'$aws/things/+/shadow/name/{OPTIONS.said}/update/documents'"),
        ("RecordsRule", "'hatoba/+/records'"),
        ("PresenceRule", "'$aws/events/presence/+/+'"),
    ):
        payload = made[name]["Properties"]["TopicRulePayload"]
        assert source in payload["Sql"]
        assert payload["Sql"].endswith(f", '^{OPTIONS.thing_prefix}')")
        assert " OR " not in re.sub(r"\(.*?\)", "", payload["Sql"])
        (action,) = payload["Actions"]
        assert action["Sqs"]["QueueUrl"] == "ref Queue"


OWN = "$aws/things/hatoba-a"
OTHER = "$aws/things/hatoba-b"
MAY = [
    ("iot:Connect", "client/hatoba-a"),
    ("iot:Publish", f"topic/{OWN}/shadow/name/hatoba/get"),
    ("iot:Publish", f"topic/{OWN}/shadow/name/hatoba-said/update"),
    ("iot:Publish", f"topic/{OWN}/shadow/name/hatoba-said-3/update"),
    ("iot:Publish", f"topic/{OWN}/jobs/start-next"),
    ("iot:Publish", "topic/hatoba/hatoba-a/records"),
    ("iot:Subscribe", f"topicfilter/{OWN}/shadow/name/hatoba/update/delta"),
    ("iot:Subscribe", f"topicfilter/{OWN}/shadow/name/hatoba/get/accepted"),
    ("iot:Subscribe", f"topicfilter/{OWN}/shadow/name/hatoba-said/update/delta"),
    ("iot:Receive", f"topic/{OWN}/shadow/name/hatoba/update/delta"),
    ("iot:Receive", f"topic/{OWN}/jobs/notify-next"),
]
MAY_NOT = [
    ("iot:Connect", "client/hatoba-b"),
    ("iot:Connect", "client/+"),
    ("iot:Publish", f"topic/{OWN}/shadow/name/hatoba/update"),
    ("iot:Publish", f"topic/{OWN}/shadow/name/hatoba/delete"),
    ("iot:Publish", f"topic/{OWN}/shadow/name/hatoba-said/delete"),
    ("iot:Publish", f"topic/{OWN}/shadow/update"),
    ("iot:Publish", f"topic/{OWN}/shadow/name/other/update"),
    ("iot:Publish", f"topic/{OTHER}/shadow/name/hatoba-said/update"),
    ("iot:Publish", f"topic/{OTHER}/shadow/name/hatoba/get"),
    ("iot:Publish", f"topic/{OTHER}/jobs/start-next"),
    ("iot:Publish", "topic/anything"),
    ("iot:Publish", "topic/hatoba/hatoba-b/records"),
    ("iot:Publish", "topic/$aws/rules/hatoba"),
    ("iot:Publish", "topic/$aws/events/presence/connected/hatoba-b"),
    ("iot:Subscribe", f"topicfilter/{OTHER}/shadow/name/hatoba/update/delta"),
    ("iot:Subscribe", "topicfilter/$aws/things/+/shadow/name/hatoba/update/delta"),
    ("iot:Subscribe", "topicfilter/$aws/things/#"),
    ("iot:Subscribe", "topicfilter/#"),
    ("iot:Subscribe", "topicfilter/$aws/events/presence/connected/+"),
    ("iot:Receive", f"topic/{OTHER}/shadow/name/hatoba/update/delta"),
    ("iot:DeleteThingShadow", "thing/hatoba-a"),
    ("iot:RetainPublish", f"topic/{OWN}/shadow/name/hatoba-said/update"),
]
JUDGE = """
import json, sys
from ministack.core.iam_evaluator import EvalContext, evaluate
from ministack.services.iot import _parsed_iot_policy
asked = json.load(sys.stdin)
variables = tuple(sorted(asked["variables"].items()))
policy = _parsed_iot_policy(asked["policy"], variables)
def allows(action, resource):
    context = EvalContext(
        principal_arn=asked["place"] + ":cert/1", principal_type="Certificate",
        principal_account="123456789012", action=action,
        resource_arn=asked["place"] + ":" + resource, region="eu-central-1",
        service_context=asked["variables"],
    )
    return evaluate(context, [policy]).decision == "Allow"
print(json.dumps([allows(*one) for one in asked["questions"]]))
"""


def judged(variables: dict[str, str]) -> dict[tuple[str, str], bool]:
    """What ministack's broker lets a device do."""
    questions = [*MAY, *MAY_NOT]
    asked = {
        "policy": json.dumps(device_policy(OPTIONS, *PLACE)),
        "place": "arn:aws:iot:eu-central-1:123456789012",
        "variables": variables,
        "questions": questions,
    }
    done = subprocess.run(
        [EMULATORS, "-c", JUDGE], input=json.dumps(asked), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(questions, json.loads(done.stdout), strict=True))


@pytest.mark.skipif(not EMULATORS.exists(), reason="the emulators' environment is missing")
def test_a_device_may_do_what_it_needs_and_nothing_else() -> None:
    attached = {
        "iot:clientid": "hatoba-a",
        "iot:connection.thing.isattached": "true",
        "iot:connection.thing.thingname": "hatoba-a",
    }
    told = judged(attached)
    assert [one for one in MAY if not told[one]] == []
    assert [one for one in MAY_NOT if told[one]] == []


@pytest.mark.skipif(not EMULATORS.exists(), reason="the emulators' environment is missing")
def test_a_certificate_that_is_no_things_may_do_nothing() -> None:
    told = judged({"iot:clientid": "hatoba-a", "iot:connection.thing.isattached": "false"})
    assert [one for one, allowed in told.items() if allowed] == []
