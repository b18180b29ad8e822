"""What is configured of one instance: how its devices are reached."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hatoba_plugins.aws import AwsOptions
from hatoba_plugins.checks import out_of_range
from hatoba_plugins.values import Problem

TRANSPORTS = ("grpc", "aws-iot", "both")
_PATTERNS = {
    "thing_prefix": (re.compile(r"[A-Za-z0-9_-]{1,64}"), "1 to 64 letters, digits, `_` and `-`"),
    "shadow": (re.compile(r"[A-Za-z0-9_-]{1,48}"), "1 to 48 letters, digits, `_` and `-`"),
    "fleet": (re.compile(r"[A-Za-z0-9_.,@/:#=-]{1,800}"), "letters, digits and `_.,@/:#=-`"),
    "policy": (re.compile(r"[\w+=,.@-]{1,128}", re.ASCII), "a policy's name, not its ARN"),
    "data_endpoint": (re.compile(r"https?://[^\s/?#]+/?"), "https://HOST"),
    "device_endpoint": (re.compile(r"[A-Za-z0-9.-]+(:[0-9]{1,5})?"), "HOST or HOST:PORT"),
    "content": (re.compile(r"s3://[^\s?#]+\?[^\s#]+"), "s3://BUCKET/PREFIX?region=..."),
    "queue": (re.compile(r"https?://[^\s?#]+/[^\s/?#]+"), "the URL of an SQS queue"),
}


@dataclass(frozen=True, slots=True)
class EdgeOptions(AwsOptions):
    """Devices bring their own settings. Without AWS, where they dial in is the server's
    `[devices]`; all but `transport` is for AWS alone."""

    transport: str = "grpc"
    """`grpc`: devices dial this server. `aws-iot`: they dial AWS IoT Core, by MQTT, and so does the
    server, by HTTPS. `both`: some do the one, some the other."""
    thing_prefix: str = "hatoba-"
    """What goes before a device's name in the name of its thing."""
    shadow: str = "hatoba"
    """Named shadow that tells a device what is wanted of it. What the device says is in another
    one, of this name with `-said`."""
    fleet: str = ""
    """What the attribute `hatoba-cluster` of our things says, as the template of fleet provisioning
    gives it; without one the identity of this installation."""
    policy: str = "hatoba-device"
    """Name of the IoT policy that devices' certificates get, and of the role alias that gives them
    credentials for the bucket."""
    data_endpoint: str = ""
    """`https://HOST` of this account, as `aws iot describe-endpoint --endpoint-type iot:Data-ATS`
    tells the host; without one the region's."""
    device_endpoint: str = ""
    """`HOST[:PORT]` that devices dial which are enrolled by the server; without one what
    `iot:Data-ATS` is, port 8883."""
    content: str = ""
    """What these are told of the bucket with models, without which they get none:
    `s3://BUCKET/PREFIX?region=REGION&role-alias=NAME&credentials=HOST`."""
    queue: str = ""
    """URL of the SQS queue that rules of AWS IoT put what devices say into. Without one their
    shadows are read every `poll_every`, and who is cut off is noticed late."""
    jobs: bool = False
    """Ring with an IoT Job, too, for devices that listen to these alone. AWS charges for each."""
    alive_every: float = 1200.0
    """Seconds: devices say that they live when they said nothing else for so long. Three times as
    long without a word, and one is taken for away."""
    away_after: float = 10.0
    """Seconds after which a device whose connection ended is taken for away, unless it came
    again."""
    poll_every: float = 60.0
    """Seconds between two looks at all shadows, without a queue."""
    sweep_every: float = 3600.0
    """Seconds in which every shadow is read once, with a queue: what was lost on its way is found
    so."""

    @classmethod
    def check(cls, options: dict[str, object]) -> list[Problem]:
        """Problems of these options."""
        # `super()` without arguments would look in the class that `slots` has replaced.
        known = super(EdgeOptions, cls).check(options)
        return known or [
            *_transport(options),
            *_unlike(options),
            *out_of_range(options, "alive_every", 1.0, 86_400.0),
            *out_of_range(options, "away_after", 0.1, 3_600.0),
            *out_of_range(options, "poll_every", 0.2, 86_400.0),
            *out_of_range(options, "sweep_every", 1.0, 604_800.0),
        ]

    @property
    def dialled(self) -> bool:
        """Whether devices dial this server."""
        return self.transport != "aws-iot"

    @property
    def by_aws(self) -> bool:
        """Whether devices dial AWS IoT."""
        return self.transport != "grpc"

    @property
    def said(self) -> str:
        """The shadow in which devices say how they are."""
        return f"{self.shadow}-said"


def _transport(options: dict[str, object]) -> list[Problem]:
    transport = options.get("transport", "grpc")
    if transport not in TRANSPORTS:
        known = ", ".join(map(repr, TRANSPORTS))
        return [Problem("transport", f"{transport!r} is none of {known}")]
    if transport != "grpc":
        return []
    remedy = 'is for `transport = "aws-iot"` or "both"; leave it out, or choose one of these'
    return [Problem(name, remedy) for name in options if name != "transport"]


def _unlike(options: dict[str, object]) -> list[Problem]:
    return [
        Problem(name, f"{options[name]!r} is not {what}")
        for name, (pattern, what) in _PATTERNS.items()
        if options.get(name) and not pattern.fullmatch(str(options[name]))
    ]
