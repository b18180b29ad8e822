"""What a device may do at AWS IoT: its own shadows, its own jobs, credentials for the bucket with
models, and nothing else.

One policy for all devices: the broker puts the name of the thing that connects in place of the
variable. `deploy/aws/iot.yaml` makes it.
"""

from __future__ import annotations

from typing import Any

from hatoba.shadows import records_topic
from hatoba_plugins.backends.iot_edge.options import EdgeOptions

THING = "${iot:Connection.Thing.ThingName}"
"""Only of a client that connects by the certificate, and with the name, of this thing."""
OWN = f"$aws/things/{THING}"


MOST_CHARACTERS = 2048
"""Of a policy at AWS IoT, without white space."""


def device_policy(
    options: EdgeOptions, partition: str, region: str, account: str
) -> dict[str, Any]:
    """The policy's document."""
    place = f"arn:{partition}:iot:{region}:{account}"
    said, heard = said_topics(options), heard_topics(options)
    connects = _allow("iot:Connect", [f"{place}:client/{THING}"])
    connects["Condition"] = {"Bool": {"iot:Connection.Thing.IsAttached": "true"}}
    return {
        "Version": "2012-10-17",
        "Statement": [
            connects,
            _allow("iot:Publish", [f"{place}:topic/{one}" for one in said]),
            _allow("iot:Subscribe", [f"{place}:topicfilter/{one}" for one in heard]),
            _allow("iot:Receive", [f"{place}:topic/{one}" for one in heard]),
            _allow("iot:AssumeRoleWithCertificate", [f"{place}:rolealias/{options.policy}"]),
        ],
    }


def said_topics(options: EdgeOptions) -> list[str]:
    """Topics that a device writes to: never what is wanted of it."""
    shadows = f"{OWN}/shadow/name"
    return [
        f"{shadows}/{options.shadow}/get",
        f"{shadows}/{options.said}*/get",
        f"{shadows}/{options.said}*/update",
        f"{OWN}/jobs/*",
        records_topic(THING),
    ]


def heard_topics(options: EdgeOptions) -> list[str]:
    """Topics that a device listens to."""
    return [f"{OWN}/shadow/name/{options.shadow}*", f"{OWN}/jobs/*"]


def _allow(action: str, resources: list[str]) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": action, "Resource": resources}
