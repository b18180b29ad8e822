"""Logs of pods, by byte offset. The kubelet keeps them by time, both streams as one."""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass

from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.k8s_gpu import names
from hatoba_plugins.backends.k8s_gpu.client import Kube, Refusal, Unreached
from hatoba_plugins.backends.k8s_gpu.lookups import Lookups
from hatoba_plugins.backends.k8s_gpu.objects import Running, SeenPod
from hatoba_plugins.backends.k8s_gpu.states import chosen
from hatoba_plugins.errors import Denied, Retry
from hatoba_plugins.values import LogChunk, Ref

STREAM = "stdout"
REMEMBERED = 10_000
"""Places in logs that are known by time, so that reading on does not begin at the beginning."""
SILENCE = 300.0
CHUNK = 65_536
LOOK_AGAIN = 1.0
_STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d) ")


@dataclass(frozen=True, slots=True)
class Place:
    """How far a log was read: to an offset; of the last moment so many lines were read."""

    offset: int = 0
    moment: bytes = b""
    lines: int = 0


class Cursor:
    """Turns stamped lines into bytes, each once, beginning behind a place."""

    def __init__(self, place: Place) -> None:
        self.place = place
        """How far it has come, in whole lines."""
        self.offset = place.offset
        """How far it has come in bytes."""
        self.refused = b""
        """Why the kubelet cannot give the log: it says so with status 200, as if it were one."""
        self._skip = place.lines
        self.moment = place.moment
        """Stamp of the line that was taken last."""
        self._within = False
        self._new = False

    def take(self, piece: bytes) -> bytes:
        """The new bytes of a line, or of the next piece of one; empty for what was read before."""
        text = piece if self._within else self._begin(piece)
        if text is None:
            self.refused = piece
            return b""
        self._within = not piece.endswith(b"\n")
        if not self._new:
            return b""
        self.offset += len(text)
        if not self._within:
            again = self.moment == self.place.moment
            self.place = Place(self.offset, self.moment, self.place.lines + 1 if again else 1)
        return text

    def _begin(self, piece: bytes) -> bytes | None:
        """What follows its stamp; None without one: stamps were asked for, no program said that."""
        found = _STAMP.match(piece)
        if found is None:
            return None
        moment, before = _moment(found), self.place.moment
        skipped = moment == before and self._skip > 0
        if skipped:
            self._skip -= 1
        elif moment > before:
            self._skip = 0
        self._new, self.moment = moment >= before and not skipped, moment
        return piece[found.end() :]


class Tail:
    """The last lines of a log whose length nobody knows, by offsets that grow with it: a line has
    that of its nanosecond. Only a look that begins within one tells its lines wrong.
    """

    def __init__(self) -> None:
        self.cursor = Cursor(Place())
        self._moment, self._within = b"", 0

    def take(self, name: str, stream: str, piece: bytes) -> LogChunk | None:
        """A line, or the next piece of one; None for what no program wrote."""
        text = self.cursor.take(piece)
        if not text:
            return None
        if self.cursor.moment != self._moment:
            self._moment, self._within = self.cursor.moment, 0
        digits = int(self._moment.translate(None, b"-T:.Z+"))
        start, self._within = (digits << 32) + self._within, self._within + len(text)
        return LogChunk(name, stream, start, text)


def _moment(found: re.Match[bytes]) -> bytes:
    """A stamp that compares as text: its fraction is written without trailing zeros."""
    return found[1] + b"." + (found[2] or b"").ljust(9, b"0") + found[3]


class LogReader:
    """Reads logs of attempts."""

    def __init__(self, kube: Kube, ctx: BackendContext, lookups: Lookups) -> None:
        self._kube = kube
        self._ctx = ctx
        self._lookups = lookups
        self._places: OrderedDict[tuple[str, int], Place] = OrderedDict()

    async def read(
        self, ref: Ref, stream: str, offset: int, follow: bool
    ) -> AsyncIterator[LogChunk]:
        """From an offset to the end, or on until the command has ended. Raises Retry, Denied."""
        if stream != STREAM:
            return
        while True:
            # The logs of all that ends together are asked for together: no look-up for each.
            pod = self._lookups.ended_pod(ref.name) or await self.pod_of(ref)
            begun = pod is not None and pod.main.state in (Running.RUNNING, Running.TERMINATED)
            if pod is not None and begun:
                async for chunk in self._of_pod(pod, ref.name, offset, follow):
                    offset = chunk.offset + len(chunk.data)
                    yield chunk
            if not follow or pod is None or pod.ended:
                return
            await self._ctx.clock.sleep(LOOK_AGAIN)

    async def pod_of(self, ref: Ref) -> SeenPod | None:
        """The pod of an attempt; None: there is none. Raises Retry."""
        try:
            job = await self._lookups.find(ref)
            if job is None:
                return None
            pods = await self._lookups.pods(job.name)
        except (Refusal, Unreached) as error:
            raise Retry(str(error)) from error
        index = job.members.index(ref.name)
        return chosen([one for one in pods if one.index == index], job.finished)

    async def _of_pod(
        self, pod: SeenPod, attempt: str, offset: int, follow: bool
    ) -> AsyncIterator[LogChunk]:
        place = self._places.pop((pod.uid, offset), Place())
        cursor = Cursor(place)
        query = {"container": names.MAIN, "timestamps": "true", "follow": str(follow).lower()}
        if place.moment:
            query["sinceTime"] = place.moment[:19].decode() + "Z"
        path = f"{self._lookups.core_path('pods')}/{pod.name}/log"
        try:
            await self._ctx.budget("read")
            async with self._kube.lines(path, query, SILENCE) as lines:
                async for chunk in chunks(lines, cursor, attempt, offset):
                    self._remember(pod.uid, cursor.place)
                    yield chunk
        except Refusal as refusal:
            if isinstance(denied := refusal.error(), Denied):
                raise denied from refusal
            if refusal.status not in (400, 404):
                raise Retry(refusal.message, after=refusal.after) from refusal
        except Unreached as error:
            if not follow:
                raise Retry(str(error)) from error

    def _remember(self, uid: str, place: Place) -> None:
        self._places[(uid, place.offset)] = place
        while len(self._places) > REMEMBERED:
            self._places.popitem(last=False)


async def chunks(
    lines: AsyncIterator[bytes], cursor: Cursor, attempt: str, offset: int
) -> AsyncIterator[LogChunk]:
    """Lines as they come; what lies before the offset was read by somebody before us."""
    async for line in lines:
        start = cursor.offset
        text = cursor.take(line)
        if skipped := max(0, offset - start):
            text, start = text[skipped:], start + skipped
        if text:
            yield LogChunk(attempt, STREAM, start, text)
        await asyncio.sleep(0)
