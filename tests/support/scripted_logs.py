"""CloudWatch's GetLogEvents from memory, page by page, with tokens that can expire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from hatoba_plugins.aws import AwsRefusal, Paging
from hatoba_plugins.aws.errors import AwsAnswer
from hatoba_plugins.errors import Invalid

GROUP = "/hatoba/ecs"


class ScriptedLogs:
    """The streams of one group, as `AwsClients`."""

    region = "eu-central-1"

    def __init__(self, page: int = 10_000) -> None:
        self.calls = 0
        self.age = 0
        """Tokens of another age are refused."""
        self._streams: dict[str, list[str]] = {}
        self._page = page

    def wrote(self, stream: str, *lines: str) -> None:
        """A container wrote these lines."""
        self._streams.setdefault(stream, []).extend(lines)

    def can(self, operation: str) -> bool:
        """The one that is here."""
        return operation == "logs:GetLogEvents"

    async def read(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """A page, and the token behind it."""
        assert self.can(operation)
        assert parameters["logGroupName"] == GROUP
        self.calls += 1
        lines = self._streams.get(parameters["logStreamName"])
        if lines is None:
            raise _refused("ResourceNotFoundException")
        head, token = parameters["startFromHead"], parameters.get("nextToken", "")
        start = self._at(token) if token else 0 if head else max(0, len(lines) - self._page)
        some = lines[start : start + self._page]
        following = f"{self.age}/{start + len(some)}"
        return {"events": [{"message": one} for one in some], "nextForwardToken": following}

    def _at(self, token: str) -> int:
        age, _, at = token.partition("/")
        if int(age) != self.age:
            raise _refused("InvalidParameterException")
        return int(at)

    async def write(self, operation: str, **parameters: object) -> dict[str, Any]:
        """Nothing is written."""
        raise NotImplementedError(operation)

    def pages(self, operation: str, paging: Paging, **parameters: object) -> AsyncIterator[Any]:
        """Nothing is listed."""
        raise NotImplementedError(operation)


def _refused(code: str) -> Invalid:
    error = Invalid(f"logs:GetLogEvents: {code}")
    error.__cause__ = AwsRefusal(AwsAnswer("logs:GetLogEvents", code, "", 400))
    return error
