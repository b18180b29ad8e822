"""What is kept of a visit: its prediction, its spans, and what it asked and was answered."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator
from random import Random

from google.protobuf.message import Message

from hatoba.captured import captured_item
from hatoba.v1 import deployment_pb2, job_pb2
from hatoba_worker.router.bodies import WHOLE
from hatoba_worker.router.table import Choice, Route
from hatoba_worker.router.visits import Body, Visit

MOST_PREDICTIONS = 1_000
MOST_BYTES = 3 << 20
_MAX_ERROR = 1_024
_MAX_FACT = 1_024


class Chooser:
    """Says of each visit that is over what is kept of it."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def wants_capture(self, visit: Visit) -> bool:
        """Whether input and prediction go to the deployment's dataset."""
        route = visit.route
        if route is None or route.capture_rate <= 0 or not 200 <= visit.status < 300:
            return False
        if visit.method != "POST" or visit.asked is None or visit.answered is None:
            return False
        if len(visit.asked.data) + len(visit.answered.data) > WHOLE:
            return False
        return route.capture_rate >= 1 or self._rng.random() < route.capture_rate


def requests(
    visits: Iterable[tuple[Visit, bool]],
) -> Iterator[deployment_pb2.ReportPredictionsRequest]:
    """Batches of what is kept of visits, each with whether it is captured; takes its time."""
    request, size = _new_request(), 0
    for visit, captured in visits:
        parts = _parts(visit, captured)
        grows = sum(part.ByteSize() + 8 for part in parts)
        if request.predictions and (
            len(request.predictions) >= MOST_PREDICTIONS or size + grows > MOST_BYTES
        ):
            yield request
            request, size = _new_request(), 0
        size += grows
        for part in parts:
            _add(request, part)
    if request.predictions:
        yield request


def _new_request() -> deployment_pb2.ReportPredictionsRequest:
    return deployment_pb2.ReportPredictionsRequest(batch=uuid.uuid4().hex)


def _add(request: deployment_pb2.ReportPredictionsRequest, part: Message) -> None:
    if isinstance(part, deployment_pb2.Prediction):
        request.predictions.append(part)
    elif isinstance(part, job_pb2.Span):
        request.spans.append(part)
    elif isinstance(part, deployment_pb2.CapturedItem):
        request.captured.append(part)


def _parts(visit: Visit, captured: bool) -> list[Message]:
    if visit.route is None or visit.choice is None:
        return []
    parts: list[Message] = [_prediction(visit, visit.route, visit.choice, captured)]
    parts += _spans(visit, visit.route, visit.choice)
    if captured and visit.asked is not None and visit.answered is not None:
        parts.append(_item(visit, visit.route, visit.choice, (visit.asked, visit.answered)))
    return parts


def _prediction(
    visit: Visit, route: Route, choice: Choice, captured: bool
) -> deployment_pb2.Prediction:
    out = deployment_pb2.Prediction(
        trace_id=visit.trace.trace_id,
        deployment=route.deployment,
        revision=choice.target.revision,
        model_version=choice.target.model_version,
        replica=choice.replica.name,
        status=visit.status,
        item=visit.trace.trace_id if captured else "",
    )
    out.time.FromNanoseconds(visit.began)
    out.duration.FromNanoseconds(visit.ended - visit.began)
    return out


def _spans(visit: Visit, route: Route, choice: Choice) -> Iterator[job_pb2.Span]:
    """The router's, and below it that of the call to the replica."""
    trace = visit.trace
    facts = {
        "deployment": route.deployment,
        "revision": str(choice.target.revision),
        "model": choice.target.model_version,
        "http.response.status_code": str(visit.status),
    }
    error = visit.fault[:_MAX_ERROR]
    process = f"hatoba-router/{os.getpid()}"
    yield job_pb2.Span(
        trace_id=trace.trace_id,
        span_id=trace.span_id,
        parent_span_id=trace.parent_id,
        name="predict",
        kind="server",
        start_unix_nanos=visit.began,
        end_unix_nanos=visit.ended,
        error=error,
        attributes=facts,
        process=process,
    )
    if not visit.call_began:
        return
    yield job_pb2.Span(
        trace_id=trace.trace_id,
        span_id=trace.call_id,
        parent_span_id=trace.span_id,
        name="predict.replica",
        kind="client",
        start_unix_nanos=visit.call_began,
        end_unix_nanos=visit.ended,
        error=error,
        attributes={"replica": choice.replica.name, "address": choice.replica.address[:_MAX_FACT]},
        process=process,
    )


def _item(
    visit: Visit, route: Route, choice: Choice, bodies: tuple[Body, Body]
) -> deployment_pb2.CapturedItem:
    asked, answered = bodies
    facts = {"model": choice.target.model, "deployment": route.name, "status": visit.status}
    item = captured_item(visit.trace.trace_id, asked, answered, facts)
    return deployment_pb2.CapturedItem(
        project=route.project, dataset=route.capture_dataset, item=item
    )
