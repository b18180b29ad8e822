"""The policy of devices at AWS IoT as a list of rights of mosquitto's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hatoba import shadows
from hatoba_plugins.backends.iot_edge.options import EdgeOptions
from hatoba_plugins.backends.iot_edge.policy import THING, device_policy

OPTIONS = EdgeOptions(transport="aws-iot")
PLACE = ("aws", "eu-central-1", "123456789012")
RIGHTS = {"iot:Publish": "write", "iot:Receive": "read"}
"""Mosquitto grants any subscription, and then looks at each message that it would bring."""


def rights() -> str:
    """What `acl_file` takes; a client is known by the name in its certificate."""
    statements = device_policy(OPTIONS, *PLACE)["Statement"]
    lines = [
        f"pattern {RIGHTS[one['Action']]} {topic}"
        for one in statements
        if one["Action"] in RIGHTS
        for topic in _topics(one["Resource"])
    ]
    return "\n".join([*lines, ""])


def _topics(resources: Iterable[str]) -> Iterator[str]:
    """As mosquitto writes them: it knows no names that only begin like something."""
    for resource in resources:
        topic = resource.partition(":topic/")[2].replace(THING, "%u")
        head, star, tail = topic.partition("*")
        if not star:
            yield topic
        elif head.endswith("/"):
            yield f"{head}#"
        else:
            yield from (f"{head}{end}{tail or '/#'}" for end in _ends(head))


def _ends(head: str) -> list[str]:
    """What the names of our shadows have behind this."""
    name = head.rpartition("/")[2]
    said = shadows.part_names(OPTIONS.said, shadows.MOST_PARTS)
    return [one.removeprefix(name) for one in (OPTIONS.shadow, *said) if one.startswith(name)]
