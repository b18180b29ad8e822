"""What is configured of AWS itself, the same for every backend on it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hatoba_plugins.values import BackendOptions, Problem

_REGION = re.compile(r"[a-z]{2,}(-[a-z]+)+-[0-9]{1,2}")
_ENDPOINT = re.compile(r"https?://[^\s/?#]+/?")


@dataclass(frozen=True, slots=True)
class AwsOptions(BackendOptions):
    """Where AWS is reached and as whom. Credentials are named here and never written down."""

    region: str = ""
    """For example `eu-central-1`; without one the profile's or AWS_REGION."""
    profile: str = ""
    """Profile of the server's own `~/.aws/config`; without one the environment, then the machine's
    role."""
    credentials: str = ""
    """Name of the server's own (`credentials/NAME` in its data directory, mode 0600, or
    HATOBA_CREDENTIALS_NAME) that hold what a `credential_process` prints: a JSON object with
    `AccessKeyId`, `SecretAccessKey` and perhaps `SessionToken`. Instead of a profile."""
    endpoint: str = ""
    """`http://HOST:PORT` or `https://HOST` of an emulator or of an endpoint of your own; without
    one AWS's."""

    @classmethod
    def check(cls, options: dict[str, object]) -> list[Problem]:
        """Problems of these options."""
        # `super()` without arguments would look in the class that `slots` has replaced.
        known = super(AwsOptions, cls).check(options)
        return known or [
            *_unlike(options, "region", _REGION, "is no region, for example eu-central-1"),
            *_unlike(options, "endpoint", _ENDPOINT, "is no http://HOST:PORT or https://HOST"),
            *_both_given(options),
        ]


def _unlike(
    options: dict[str, object], name: str, pattern: re.Pattern[str], what: str
) -> list[Problem]:
    value = options.get(name)
    if not value or pattern.fullmatch(str(value)):
        return []
    return [Problem(name, f"{value!r} {what}")]


def _both_given(options: dict[str, object]) -> list[Problem]:
    if options.get("profile") and options.get("credentials"):
        return [Problem("credentials", "leave it out, or leave `profile` out: one of them rules")]
    return []
