"""Logs that Batch keeps in CloudWatch: one stream for each job, read by cursor."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from hatoba_plugins.aws import AwsClients
from hatoba_plugins.backend import Clock
from hatoba_plugins.errors import Invalid
from hatoba_plugins.values import LogChunk

GROUP = "/aws/batch/job"
STREAM = "stdout"
"""The driver writes both of a container's streams into one."""
PAUSE = 2.0
REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Cursor:
    """A page's end: the token that goes on from there, and how many bytes came before."""

    token: str
    offset: int


class CloudWatchLogs:
    """Reads streams. Tokens are remembered, so that who goes on need not read from the start."""

    def __init__(self, aws: AwsClients, clock: Clock) -> None:
        self._aws = aws
        self._clock = clock
        self._cursors: OrderedDict[str, Cursor] = OrderedDict()

    async def page(self, log: str, cursor: Cursor) -> tuple[bytes, Cursor]:
        """The next page, and where it ends; the same cursor at the end of what there is."""
        more = {"nextToken": cursor.token} if cursor.token else {}
        try:
            reply = await self._aws.read(
                "logs:GetLogEvents",
                logGroupName=GROUP,
                logStreamName=log,
                startFromHead=True,
                **more,
            )
        except Invalid:
            # Written to after the first line only, so there is no such stream before.
            return b"", cursor
        data = b"".join(map(_line, reply["events"]))
        return data, Cursor(reply["nextForwardToken"], cursor.offset + len(data))

    async def read(self, attempt: str, log: str, offset: int) -> AsyncIterator[LogChunk]:
        """What there is from this byte on."""
        cursor = self._known(attempt, offset)
        while True:
            data, following = await self.page(log, cursor)
            skipped = max(0, offset - cursor.offset)
            if data[skipped:]:
                yield LogChunk(attempt, STREAM, cursor.offset + skipped, data[skipped:])
            if following.token == cursor.token:
                return
            cursor = following
            self._remember(attempt, cursor)

    def _known(self, attempt: str, offset: int) -> Cursor:
        cursor = self._cursors.get(attempt)
        return cursor if cursor is not None and cursor.offset <= offset else Cursor("", 0)

    def _remember(self, attempt: str, cursor: Cursor) -> None:
        self._cursors[attempt] = cursor
        self._cursors.move_to_end(attempt)
        if len(self._cursors) > REMEMBERED:
            self._cursors.popitem(last=False)

    async def pause(self) -> None:
        """Until there may be more."""
        await self._clock.sleep(PAUSE)


def _line(event: dict[str, Any]) -> bytes:
    return f"{event['message']}\n".encode()
