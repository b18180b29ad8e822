"""Replicas and the tasks that are them in turn."""

from __future__ import annotations

from dataclasses import replace

from hatoba.v1 import common_pb2
from hatoba_plugins.backends.ecs.names import ServiceName
from hatoba_plugins.backends.ecs.slots import MISSES_MOST, SILENT_MOST, Slots, TaskView, task_view
from hatoba_plugins.values import ReplicaPhase

UID = "0123456789abcdef0123456789abcdef"
OLD, NEW = "definition/a:1", "definition/b:1"
CRASH = common_pb2.Cause(code=common_pb2.CAUSE_CODE_EXIT_CODE, message="It ended.")


def _task(number: int, definition: str = OLD) -> TaskView:
    arn = f"arn:aws:ecs:r:1:task/c/{number:08x}{'0' * 24}"
    return TaskView(arn, definition, True, False, False, False, float(number), address="h:1")


def _ended(task: TaskView) -> TaskView:
    return replace(task, running=False, ending=True, ended=True, cause=CRASH)


def _scaled_in(task: TaskView) -> TaskView:
    return replace(_ended(task), scaled_in=True, cause=None)


def _slots(*tasks: TaskView, wanted: int | None = None) -> Slots:
    made = Slots(ServiceName(UID, 1))
    made.take(tasks, len(tasks) if wanted is None else wanted, OLD, 10.0)
    made.judge(lambda task: True, 10.0)
    return made


def _named(number: int) -> str:
    return f"r-{UID}-1-{number:08x}"


def test_a_replica_is_named_after_its_first_task() -> None:
    slots = _slots(_task(1), _task(2))
    assert set(slots.slots) == {_named(1), _named(2)}
    assert all(one.phase is ReplicaPhase.READY for one in slots.slots.values())


def test_another_task_goes_on_for_one_that_ended() -> None:
    slots = _slots(_task(1), _task(2))
    slots.take([_ended(_task(1)), _task(2)], 2, OLD, 20.0)
    crashed = slots.slots[_named(1)]
    assert (crashed.phase, crashed.cause, crashed.restarts) == (
        ReplicaPhase.UNHEALTHY,
        CRASH,
        0,
    )
    slots.take([_ended(_task(1)), _task(2), _task(3)], 2, OLD, 21.0)
    slots.judge(lambda task: True, 21.0)
    back = slots.slots[_named(1)]
    assert (back.phase, back.restarts, back.cause) == (ReplicaPhase.READY, 1, CRASH)
    assert set(slots.slots) == {_named(1), _named(2)}


def test_one_that_was_retired_drains_and_is_gone() -> None:
    slots = _slots(_task(1), _task(2))
    slots.slots[_named(2)].retiring = True
    stopping = replace(_task(2), running=False, ending=True, scaled_in=True)
    slots.take([_task(1), stopping], 1, OLD, 20.0)
    assert slots.slots[_named(2)].phase is ReplicaPhase.DRAINING
    slots.take([_task(1), _ended(_task(2))], 1, OLD, 21.0)
    assert set(slots.slots) == {_named(1)}


def test_when_ecs_stops_another_one_the_retired_stays() -> None:
    """It chooses which task goes when fewer are wanted, unless the others are spared."""
    slots = _slots(_task(1), _task(2))
    slots.slots[_named(2)].retiring = True
    stopping = replace(_task(1), running=False, ending=True, scaled_in=True)
    slots.take([stopping, _task(2)], 1, OLD, 20.0)
    assert slots.slots[_named(1)].phase is ReplicaPhase.DRAINING
    assert not slots.slots[_named(2)].retiring


def test_the_retired_stays_also_when_the_end_of_the_other_one_was_not_seen() -> None:
    """A busy machine, or a short drain: from one look to the next its task is gone."""
    slots = _slots(_task(1), _task(2), _task(3))
    slots.slots[_named(3)].retiring = True
    slots.take([_task(1), _scaled_in(_task(2)), _task(3)], 2, OLD, 20.0)
    assert set(slots.slots) == {_named(1), _named(3)}
    assert len(slots.current(OLD)) == 2, "both count, so that nothing is made or ended for it"


def test_the_retired_stays_when_another_one_ended_by_itself() -> None:
    """ECS has no more than are wanted then, and ends none."""
    slots = _slots(_task(1), _task(2), _task(3))
    slots.slots[_named(3)].retiring = True
    slots.take([_task(1), _ended(_task(2)), _task(3)], 2, OLD, 20.0)
    assert {one.name for one in slots.current(OLD)} == {_named(1), _named(3)}


def test_the_retired_stays_when_ecs_ends_one_that_was_never_seen() -> None:
    """A task that was to go on for a crashed one is ended at once, for fewer are wanted now."""
    slots = _slots(_task(1), _task(2))
    slots.take([_ended(_task(1)), _task(2)], 2, OLD, 20.0)
    slots.slots[_named(2)].retiring = True
    slots.take([_ended(_task(1)), _task(2), _scaled_in(_task(3))], 1, OLD, 21.0)
    assert [one.name for one in slots.current(OLD)] == [_named(2)]
    assert set(slots.slots) == {_named(2)}


def test_while_ecs_exchanges_the_retired_goes() -> None:
    """The task of another definition does not end in its place."""
    slots = _slots(_task(1), _task(2))
    tasks = [_task(1), _task(2), _task(3, NEW), _task(4, NEW)]
    slots.take(tasks, 2, NEW, 20.0)
    slots.slots[_named(4)].retiring = True
    slots.take([_ended(_task(1)), *tasks[1:]], 1, NEW, 21.0)
    assert slots.slots[_named(4)].retiring


def test_those_that_stay_are_spared_while_others_retire() -> None:
    slots = _slots(_task(1), _task(2), _task(3))
    assert slots.spared() == frozenset()
    slots.slots[_named(3)].retiring = True
    assert slots.spared() == {_task(1).arn, _task(2).arn}
    # Another one is retired before the first has gone: it is spared no longer.
    slots.slots[_named(2)].retiring = True
    assert slots.spared() == {_task(1).arn}
    ending = [replace(_scaled_in(_task(at)), ended=False) for at in (2, 3)]
    slots.take([_task(1), *ending], 1, OLD, 20.0)
    assert slots.spared() == frozenset()


def test_a_task_that_ended_before_it_was_seen_is_a_replica_with_a_cause() -> None:
    slots = _slots(_ended(_task(1)), wanted=1)
    (one,) = slots.slots.values()
    assert (one.phase, one.cause) == (ReplicaPhase.UNHEALTHY, CRASH)


def test_old_ends_make_no_replicas_beside_those_that_are_wanted() -> None:
    slots = _slots(_task(5), _ended(_task(1)), wanted=1)
    assert set(slots.slots) == {_named(5)}
    assert slots.last == CRASH


def test_what_is_wanted_no_more_is_not_waited_for() -> None:
    slots = _slots(_task(1), _task(2))
    slots.take([_ended(_task(1)), _task(2)], 1, OLD, 20.0)
    assert set(slots.slots) == {_named(2)}


def test_of_what_is_removed_only_those_with_a_task_are_left() -> None:
    slots = _slots(_task(1), _task(2))
    slots.take([_ended(_task(1)), _task(2)], 2, OLD, 20.0)
    slots.retire_all()
    assert set(slots.slots) == {_named(2)}
    slots.take([_ended(_task(2))], 0, OLD, 21.0)
    assert not slots.slots


def test_another_definition_takes_the_place_of_the_old_one() -> None:
    """While ECS exchanges them, the old one counts no more, and is ready still."""
    slots = _slots(_task(1))
    slots.take([_task(1), _task(2, NEW)], 1, NEW, 20.0)
    assert [one.name for one in slots.current(NEW)] == [_named(2)]
    assert slots.slots[_named(1)].phase is ReplicaPhase.READY
    slots.take([_ended(_task(1)), _task(2, NEW)], 1, NEW, 21.0)
    assert set(slots.slots) == {_named(2)}


def test_one_that_does_not_answer_any_more_is_unhealthy() -> None:
    slots = _slots(_task(1))
    (one,) = slots.slots.values()
    # A late answer says nothing, nor do many looks within a moment; what answers counts anew.
    for moments in ([30.0, 39.0], [40.0 + look / 10 for look in range(20)]):
        for moment in moments:
            slots.judge(lambda task: False, moment)
        assert one.phase is ReplicaPhase.READY
        slots.judge(lambda task: True, moments[-1])
    for look in range(MISSES_MOST):
        slots.judge(lambda task: False, 50.0 + look * SILENT_MOST / (MISSES_MOST - 1))
    assert one.phase is ReplicaPhase.UNHEALTHY
    assert one.cause is not None
    assert one.cause.code == common_pb2.CAUSE_CODE_NOT_READY
    assert one.view(1).address == ""


def test_health_and_end_of_a_described_task() -> None:
    described = {
        "taskArn": "arn:aws:ecs:r:1:task/c/1",
        "taskDefinitionArn": OLD,
        "lastStatus": "RUNNING",
        "desiredStatus": "STOPPED",
        "healthStatus": "HEALTHY",
        "stoppedReason": "Scaling activity initiated by (deployment ecs-svc/1)",
    }
    seen = task_view(described, "10.0.0.1:8080")
    assert (seen.running, seen.ending, seen.ended, seen.scaled_in) == (False, True, False, True)
    assert seen.healthy is True


def test_the_newest_task_is_known_after_its_end() -> None:
    slots = _slots(_task(1))
    slots.take([_ended(_task(1))], 1, OLD, 20.0)
    one = slots.slots[_named(1)]
    assert (one.task, one.newest) == (None, _task(1).arn)
    slots.take([_ended(_task(1)), _task(2)], 1, OLD, 30.0)
    assert one.newest == _task(2).arn
