"""What routers report of predictions: kept, traced, and captured for datasets; each report once."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from hatoba.v1 import dataset_pb2, deployment_pb2
from hatoba_scheduler.convert_deployments import prediction_of
from hatoba_scheduler.domain.naming import DEFAULT_PROJECT
from hatoba_scheduler.errors import HatobaError, Unavailable
from hatoba_scheduler.store.deployments import DeploymentStore
from hatoba_scheduler.telemetry.trace_store import TraceStore
from hatoba_scheduler.validation import check

log = structlog.get_logger(__name__)

Append = Callable[[dataset_pb2.AppendDatasetItemsRequest], Awaitable[object]]
"""Adds items to a dataset's head, durably and once for its request id; raises a HatobaError."""
Items = Sequence[dataset_pb2.DatasetItem]


@dataclass(frozen=True, slots=True)
class PredictionDesk:
    """Takes reports."""

    store: DeploymentStore
    traces: TraceStore
    append: Append

    async def take(self, report: deployment_pb2.ReportPredictionsRequest) -> int:
        """Keep a report; the number of captured items that were refused.

        The same batch is taken once: every part of it is idempotent, and what marks it as taken
        comes last. Raises Unavailable.
        """
        if await self.store.taken(report.batch):
            return 0
        refused = 0
        for (project, dataset), items in _by_dataset(report).items():
            refused += await self._capture(report.batch, project, dataset, items)
        self.traces.add(report.spans)
        kept = [prediction_of(one) for one in report.predictions]
        await self.store.add_predictions(report.batch, kept)
        return refused

    async def _capture(self, batch: str, project: str, dataset: str, items: Items) -> int:
        """Append items together, or one by one when some cannot be; how many were refused."""
        request = dataset_pb2.AppendDatasetItemsRequest(
            project=project, dataset=dataset, items=items
        )
        request.request_id = _request_id(batch, project, dataset, items)
        try:
            check(request)
            await self.append(request)
        except Unavailable:
            raise
        except HatobaError as error:
            if len(items) > 1:
                return sum([await self._capture(batch, project, dataset, [i]) for i in items])
            log.warning("capture.refused", dataset=dataset, item=items[0].id, error=error.message)
            return 1
        return 0


def _by_dataset(
    report: deployment_pb2.ReportPredictionsRequest,
) -> dict[tuple[str, str], list[dataset_pb2.DatasetItem]]:
    found: dict[tuple[str, str], list[dataset_pb2.DatasetItem]] = defaultdict(list)
    for one in report.captured:
        found[one.project or DEFAULT_PROJECT, one.dataset].append(one.item)
    return found


def _request_id(batch: str, project: str, dataset: str, items: Items) -> str:
    """The same for the same part of a batch; not for one that a caller could choose."""
    ids = "\0".join(one.id for one in items)
    text = f"capture\0{batch}\0{project}\0{dataset}\0{ids}"
    return f"capture-{hashlib.sha256(text.encode()).hexdigest()}"
