"""What devices of tests say of what is wanted of them."""

from __future__ import annotations

from typing import TypeAlias

from hatoba.v1 import common_pb2, device_pb2

Phase: TypeAlias = device_pb2.SlotPhase.ValueType
GOOD, BAD = device_pb2.SLOT_PHASE_GOOD, device_pb2.SLOT_PHASE_BAD
CRASHES = common_pb2.Cause(
    code=common_pb2.CAUSE_CODE_CRASH_LOOP,
    origin=common_pb2.ORIGIN_USER,
    message="It ended with exit code 1.",
)
PASSES = common_pb2.Cause(
    code=common_pb2.CAUSE_CODE_STAGING_FAILED,
    origin=common_pb2.ORIGIN_INFRASTRUCTURE,
    message="The disk is full.",
    retryable=True,
)


def report_on(
    desired: device_pb2.DeviceDesired,
    phase: Phase,
    *,
    running: int = 0,
    cause: common_pb2.Cause | None = None,
) -> device_pb2.DeviceReport:
    """All of it stands there, for one cause; what is good runs, or what is said."""
    report = device_pb2.DeviceReport(generation=desired.generation, settled=phase in (GOOD, BAD))
    for want in desired.wants:
        report.slots.add(
            deployment=want.deployment,
            revision=want.revision,
            tries=want.tries,
            phase=phase,
            running=running or (want.revision if phase == GOOD else 0),
            cause=cause,
        )
    return report
