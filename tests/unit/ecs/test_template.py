"""The rights that the template gives the server are the calls that are made."""

from __future__ import annotations

from pathlib import Path

from hatoba_plugins.backends.ecs.calls import LIMITS

TEMPLATE = Path(__file__).resolve().parents[3] / "deploy" / "aws" / "ecs.yaml"
TAGGING = {"ecs:TagResource", "elasticloadbalancing:AddTags"}
"""Needed for tags that are given with what is made."""


def test_the_servers_policy_allows_what_is_called_and_no_more() -> None:
    text = TEMPLATE.read_text()
    policy = text[text.index("ServerPolicy:") : text.index("Outputs:")]
    words = policy.replace("[", " ").replace("]", " ").replace(",", " ").split()
    services = ("ecs:", "ec2:", "elasticloadbalancing:", "logs:")
    named = {word for word in words if word.startswith(services) and "/" not in word}
    called = {name.replace("elbv2:", "elasticloadbalancing:") for name, _ in LIMITS if ":" in name}
    assert named - TAGGING == called
