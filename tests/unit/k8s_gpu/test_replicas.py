"""What a replica's pod says of it."""

from __future__ import annotations

from typing import Any

import pytest

from hatoba_plugins.backends.k8s_gpu.objects import seen_pod
from hatoba_plugins.backends.k8s_gpu.replicas import view_of
from hatoba_plugins.values import ReplicaPhase

STARTED, BEFORE, AFTER = "2026-11-27T08:00:10Z", "2026-11-27T08:00:08Z", "2026-11-27T08:03:00Z"


def pod(ready: str, since: str, state: dict[str, Any], restarts: int = 0) -> dict[str, Any]:
    """A replica's pod with this Ready condition, and its program in this state."""
    conditions = [{"type": "Ready", "status": ready, "lastTransitionTime": since}]
    main = {"name": "main", "state": state, "restartCount": restarts, "ready": ready == "True"}
    return {
        "metadata": {
            "name": "r-1-x",
            "uid": "u-1",
            "creationTimestamp": "2026-11-27T08:00:00Z",
            "labels": {"hatoba.dev/replica": "r-1"},
        },
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.7",
            "conditions": conditions,
            "containerStatuses": [main],
        },
    }


RUNNING = {"running": {"startedAt": STARTED}}


@pytest.mark.parametrize(
    ("told", "phase"),
    [
        (pod("False", BEFORE, {"waiting": {"reason": "ContainerCreating"}}), "STARTING"),
        (pod("False", BEFORE, RUNNING), "STARTING"),
        (pod("True", AFTER, RUNNING), "READY"),
        # Its probe failed, or its node was not heard of: routers may still know its address.
        (pod("False", AFTER, RUNNING), "UNHEALTHY"),
        (pod("Unknown", AFTER, RUNNING), "UNHEALTHY"),
        (pod("False", BEFORE, RUNNING, restarts=1), "UNHEALTHY"),
        (pod("False", AFTER, {"waiting": {"reason": "CrashLoopBackOff"}}, 3), "UNHEALTHY"),
    ],
)
def test_phase(told: dict[str, Any], phase: str) -> None:
    seen = view_of("r-1", 1, [seen_pod(told)], let_go=False, since=0.0)
    assert seen.phase is ReplicaPhase[phase]
