"""What is wanted of a live attempt, as its runner is told."""

from __future__ import annotations

from hatoba.v1 import runner_pb2
from hatoba_scheduler.domain import preempting
from hatoba_scheduler.domain.records import Attempt, Micros
from hatoba_scheduler.domain.states import AttemptState


def fill_order(
    order: runner_pb2.HeartbeatResponse, stop_grace: float, attempt: Attempt, now: Micros
) -> None:
    """What is wanted of an attempt now, and how long it has for that."""
    if attempt.state is not AttemptState.STOPPING:
        order.order = runner_pb2.RUNNER_ORDER_RUN
    elif preempting.may_save(attempt, now):
        order.order = runner_pb2.RUNNER_ORDER_CHECKPOINT
        order.grace.FromMicroseconds(preempting.stop_at(attempt) - now)
    else:
        order.order = runner_pb2.RUNNER_ORDER_STOP
    if order.order != runner_pb2.RUNNER_ORDER_CHECKPOINT:
        order.grace.FromMilliseconds(round(stop_grace * 1000))
    if attempt.cause is not None:
        order.reason = attempt.cause.message
