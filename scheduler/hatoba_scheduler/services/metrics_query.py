"""Reads logged metrics back as series."""

from __future__ import annotations

from itertools import groupby

from hatoba.v1 import job_pb2
from hatoba_scheduler.convert import set_time
from hatoba_scheduler.domain.records import Job, MetricPoint
from hatoba_scheduler.store.base import MetricQuery, Store

DEFAULT_POINTS = 10_000


async def query_metrics(
    store: Store, job: Job, request: job_pb2.QueryMetricsRequest
) -> job_pb2.QueryMetricsResponse:
    """Series by key and task, each thinned evenly to what was asked for."""
    index = request.index if request.HasField("index") else None
    points = await store.metrics(MetricQuery(job.uid, tuple(request.keys), index))
    limit = request.max_points or DEFAULT_POINTS
    reply = job_pb2.QueryMetricsResponse()
    for (key, task), group in groupby(points, key=lambda point: (point.key, point.index)):
        series = reply.series.add(key=key, index=task)
        series.points.extend(_message(point) for point in thinned(list(group), limit))
    return reply


def thinned(points: list[MetricPoint], limit: int) -> list[MetricPoint]:
    """At most `limit` of the points, evenly spread, the first and the last among them."""
    if len(points) <= limit:
        return points
    if limit == 1:
        return points[-1:]
    step = (len(points) - 1) / (limit - 1)
    return [points[round(place * step)] for place in range(limit)]


def _message(point: MetricPoint) -> job_pb2.MetricPoint:
    out = job_pb2.MetricPoint(step=point.step, value=point.value, attempt=point.attempt)
    set_time(out.time, point.time)
    return out
