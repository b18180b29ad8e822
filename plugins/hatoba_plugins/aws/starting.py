"""What the container agent says when it could not start a container: Batch and ECS have the same.

Pure; its words are from the agent's and the engine's own messages.
"""

from __future__ import annotations

import re

from hatoba_plugins.values import ExitKind

_NO_ACCESS = re.compile(
    r"pull access denied|no basic auth|unauthorized|403 forbidden|not authorized|accessdenied"
    r"|authentication required",
    re.I,
)
_OTHER_MACHINE = re.compile(
    r"no matching manifest|does not match the (specified|detected) platform"
    r"|image operating system|exec format error",
    re.I,
)
_NO_IMAGE = re.compile(
    r"not found|manifest unknown|no such image|does not exist|invalid reference|name unknown", re.I
)
_NO_COMMAND = re.compile(r"executable file not found|no such file or directory", re.I)
_NO_SECRET = re.compile(
    r"unable to (pull|retrieve) secrets?|secretsmanager|ssm:GetParameters|invalid ssm parameters"
    r"|can't find the specified secret|resourcenotfoundexception",
    re.I,
)


def start_failure(said: str) -> ExitKind:
    """What kept it from starting; FAILED where trying again may help."""
    if "CannotPull" in said or "pull image" in said:
        return _pull_failure(said)
    if _NO_SECRET.search(said):
        return ExitKind.SECRET_MISSING
    if _OTHER_MACHINE.search(said):
        return ExitKind.IMAGE_ARCHITECTURE
    if _NO_COMMAND.search(said):
        return ExitKind.NOT_FOUND
    return ExitKind.NOT_EXECUTABLE if "permission denied" in said.lower() else ExitKind.FAILED


def _pull_failure(said: str) -> ExitKind:
    # Docker says "pull access denied ... repository does not exist" of both: access comes first.
    if _OTHER_MACHINE.search(said):
        return ExitKind.IMAGE_ARCHITECTURE
    if _NO_ACCESS.search(said):
        return ExitKind.IMAGE_DENIED
    return ExitKind.IMAGE_MISSING if _NO_IMAGE.search(said) else ExitKind.IMAGE_UNREACHABLE
