"""What every backend on AWS needs: clients, and what their errors mean.

    async with open_aws(options, ctx, ("ecs", "logs")) as aws:
        reply = await aws.read("ecs:DescribeServices", cluster=cluster, services=[name])

`read` asks again by itself; `write` calls once, and what it raises says whether it happened.
"""

from __future__ import annotations

from hatoba_plugins.aws.clients import AwsClients, Paging, open_aws
from hatoba_plugins.aws.errors import AwsRefusal, Unanswered, refusal_of
from hatoba_plugins.aws.options import AwsOptions
from hatoba_plugins.aws.tags import AwsOwner, owner_of, owner_tags

__all__ = [
    "AwsClients",
    "AwsOptions",
    "AwsOwner",
    "AwsRefusal",
    "Paging",
    "Unanswered",
    "open_aws",
    "owner_of",
    "owner_tags",
    "refusal_of",
]
