"""What the two containers of ours in a pod have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from hatoba_worker import host
from hatoba_worker.absence import Absence
from hatoba_worker.course import Parts
from hatoba_worker.entrypoint.calls import Calls
from hatoba_worker.entrypoint.keys import Keys
from hatoba_worker.entrypoint.line import Line
from hatoba_worker.entrypoint.pod_files import PodBook
from hatoba_worker.entrypoint.pod_processes import PodProcesses
from hatoba_worker.entrypoint.settings import Settings
from hatoba_worker.entrypoint.staging import ElsewhereSecrets, container_environment
from hatoba_worker.entrypoint.ways import NotBuried
from hatoba_worker.environments import Environments
from hatoba_worker.homes import Homes
from hatoba_worker.logs import LogShipper
from hatoba_worker.reports import Reporter
from hatoba_worker.server_transfers import ServerTransfers
from hatoba_worker.spans import Spans
from hatoba_worker.staging import Stager
from hatoba_worker.streams_in import InputStreams
from hatoba_worker.timeouts import Timeouts
from hatoba_worker.trees import TreeCache

CACHE = ".cache"
_LAST_SPANS = 2.0


class Pod:
    """The pod's volumes and what stands in them: `shared` is every container's, `private` ours."""

    def __init__(
        self, settings: Settings, shared: Path, private: Path, environ: Mapping[str, str]
    ) -> None:
        boot = host.boot_id()
        self.settings = settings
        self.shared = shared
        self.private = private
        self.environ = environ
        self.keys = Keys(private, settings.attempt, settings.fence)
        self.calls = Calls(settings.target, self.keys, settings.attempt, settings.fence)
        self.book = PodBook(private, shared, boot, lambda: self.keys.nonce)
        self.absence = Absence(private, boot)

    @property
    def cache(self) -> Path:
        """Beside the attempt's directory, whose inputs are links into it."""
        return self.shared / CACHE

    def parts(self, tasks: asyncio.TaskGroup, line: Line, processes: PodProcesses) -> Parts:
        """Parts for the attempt, whose logs are its backend's to bring."""
        transfers = ServerTransfers(self.calls)
        stager = Stager(
            self.cache,
            self.environ,
            Homes(self.shared),
            TreeCache(self.cache / "trees", transfers),
            Environments(self.cache, self.environ, tasks, embedded=False),
            ElsewhereSecrets(self.cache, self.environ),
            host_has_gpus=False,
            base=container_environment(self.environ),
        )
        return Parts(
            book=self.book,
            executor=processes,
            session=line,
            stager=stager,
            shipper=LogShipper(self.book),
            reporter=Reporter(self.book, line, transfers, tasks),
            transfers=transfers,
            spans=Spans("hatoba-runner"),
            timeouts=Timeouts(),
            absence=self.absence,
            burials=NotBuried(),
            streams=InputStreams(transfers, tasks),
        )

    async def last_spans(self, parts: Parts) -> None:
        """Send what was made last, if that can be done now."""
        item = parts.spans.take()
        if item is not None:
            await self.calls.last_spans(list(item.spans.spans), _LAST_SPANS)
