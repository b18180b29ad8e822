"""GPUs that are free for a new replica, and what is made of none."""

from __future__ import annotations

from hatoba.v1 import common_pb2
from hatoba_plugins.backends.ecs.headroom import Headroom, decide, headroom
from hatoba_plugins.values import Target

TARGET = Target("projects/default/deployments/d", "0" * 32, 2, (), 0, 1)


def _instance(free: list[str], **more: object) -> dict[str, object]:
    remaining = [
        {"name": "CPU", "type": "INTEGER", "integerValue": 4096},
        {"name": "GPU", "type": "STRINGSET", "stringSetValue": free},
    ]
    return {"status": "ACTIVE", "agentConnected": True, "remainingResources": remaining, **more}


def test_free_gpus_count_instance_by_instance() -> None:
    room = headroom([_instance(["a", "b", "c"]), _instance(["d"])], scales=False)
    assert room.free == (3, 1)
    assert (room.places(1), room.places(2), room.places(4)) == (4, 1, 0)


def test_instances_that_cannot_take_anything_do_not_count() -> None:
    gone = _instance(["a"], agentConnected=False)
    draining = _instance(["a"], status="DRAINING")
    assert headroom([gone, draining], scales=False).places(1) == 0


def test_a_provider_that_scales_has_room() -> None:
    assert headroom([], scales=True).places(8) > 0


def test_with_room_the_exchange_is_as_asked() -> None:
    made = decide(TARGET, 1, Headroom((1,)), stop_first=False)
    assert (made.target, made.problem) == (TARGET, None)
    assert decide(TARGET, 0, Headroom(()), stop_first=False).problem is None


def test_without_room_it_is_refused_with_figures() -> None:
    made = decide(TARGET, 2, Headroom((1, 0)), stop_first=False)
    assert made.target.max_surge == 0
    assert made.target.max_unavailable == 0
    assert made.problem is not None
    assert made.problem.code == common_pb2.CAUSE_CODE_NO_CAPACITY
    assert made.problem.message.startswith("Refused: a new replica needs 2 GPUs")
    assert "free on each: 1, 0" in made.problem.message


def test_stop_first_says_so() -> None:
    made = decide(TARGET, 1, Headroom((0,)), stop_first=True)
    assert (made.target.max_unavailable, made.target.max_surge) == (1, 0)
    assert made.problem is not None
    assert made.problem.message.startswith("Stop-first:")
