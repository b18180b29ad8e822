"""What the cordons of hosts, queues and backends have in common."""

from __future__ import annotations

from hatoba.v1 import admin_pb2, queue_pb2, worker_pb2
from hatoba_scheduler.errors import InvalidArgument

Cordon = (
    worker_pb2.CordonHostRequest | queue_pb2.CordonQueueRequest | admin_pb2.CordonBackendRequest
)


def check_drain(request: Cordon) -> None:
    """Refuse a drain of what is let go on. Raises InvalidArgument."""
    if request.drain and not request.cordoned:
        raise InvalidArgument.field(
            "drain",
            "goes with `cordoned`: what may take work again is not drained",
            value=True,
            remedy="set `cordoned` too, or leave `drain` out",
        )
