"""The kit must be able to fail: backends that break one rule each, and the test that says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf import json_format

from hatoba.v1 import job_pb2
from hatoba_plugins.backends.mock import FirstClaimWins, MockType, MockWorld
from hatoba_plugins.backends.mock.backend import MockBackend, MockJobs
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.conformance import BackendHarness, Command, FaultInjector, JobConformance
from hatoba_plugins.conformance.interrupt import interrupted
from hatoba_plugins.values import (
    Absent,
    BackendOptions,
    FindOutcome,
    GroupKind,
    LaunchGroup,
    LaunchOutcome,
    Observation,
    Owned,
    Phase,
    Problem,
    Ref,
    Released,
    ReleaseOutcome,
    StopResult,
    WatchItem,
)

SCRIPTS: dict[Command, dict[str, Any]] = {
    Command.SUCCEEDS: {"run_for": 1.0},
    Command.FAILS: {"run_for": 1.0, "exit_code": 3},
    Command.RUNS: {"run_for": 1_000.0},
    Command.IGNORES_STOP: {"run_for": 1_000.0, "on_stop": "ignore"},
    Command.PRINTS: {},
}
Break = Callable[[pytest.MonkeyPatch], None]


class Faults(FaultInjector):
    """Those that the broken backends are caught with."""

    def __init__(self, world: MockWorld) -> None:
        self._world = world

    async def reply_lost_after_effect(self) -> None:
        self._world.lose_reply()

    async def land_late(self, seconds: float) -> None:
        self._world.land_late(seconds)

    async def hide_for(self, seconds: float) -> None:
        self._world.hide_launches(seconds)

    async def unreachable_for(self, seconds: float) -> None:
        self._world.cut(seconds)


class Harness(BackendHarness):
    """A mock, honest until a test breaks it."""

    def __init__(self) -> None:
        self.world = MockWorld(runner=FirstClaimWins())
        super().__init__(MockType(self.world), clock=FakeClock(), faults=Faults(self.world))

    def command(self, kind: Command, name: str) -> job_pb2.JobSpec:
        spec = job_pb2.JobSpec(name="conformance", command=["true"])
        return json_format.ParseDict({"backend_options": {"mock": SCRIPTS[kind]}}, spec)

    async def starts(self, name: str) -> int | None:
        return self.world.count("start", name)


def forgets_a_member(patch: pytest.MonkeyPatch) -> None:
    honest = MockJobs.launch

    async def launch(self: MockJobs, group: LaunchGroup) -> list[LaunchOutcome]:
        return (await honest(self, group))[1:]

    patch.setattr(MockJobs, "launch", launch)


def launches_a_name_again(patch: pytest.MonkeyPatch) -> None:
    honest = MockWorld._add

    def add(self: MockWorld, wanted: Any) -> Any:
        self._population.objects.pop(wanted.name, None)
        return honest(self, wanted)

    patch.setattr(MockWorld, "_add", add)


def launches_any_kind(patch: pytest.MonkeyPatch) -> None:
    honest = MockJobs.launch

    async def launch(self: MockJobs, group: LaunchGroup) -> list[LaunchOutcome]:
        return await honest(self, replace(group, kind=GroupKind.SINGLE))

    patch.setattr(MockJobs, "launch", launch)


def hides_exit_codes(patch: pytest.MonkeyPatch) -> None:
    honest = MockJobs.observe

    async def observe(self: MockJobs, refs: Sequence[Ref]) -> list[Observation]:
        seen = await honest(self, refs)
        return [replace(o, exit=o.exit and o.exit._replace(code=0)) for o in seen]

    patch.setattr(MockJobs, "observe", observe)


def calls_the_unreachable_gone(patch: pytest.MonkeyPatch) -> None:
    honest = MockJobs.observe

    async def observe(self: MockJobs, refs: Sequence[Ref]) -> list[Observation]:
        seen = await honest(self, refs)
        return [o if o.reachable else Observation(o.name, Phase.GONE, False) for o in seen]

    patch.setattr(MockJobs, "observe", observe)


def never_kills(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MockWorld, "_stop", lambda self, known, grace: None)


def leaves_no_mark(patch: pytest.MonkeyPatch) -> None:
    async def stop(self: MockJobs, refs: Sequence[Ref], grace: float) -> list[StopResult]:
        return [StopResult(ref.name, known=False) for ref in refs]

    patch.setattr(MockJobs, "stop", stop)


def releases_what_runs(patch: pytest.MonkeyPatch) -> None:
    async def release(self: MockJobs, refs: Sequence[Ref]) -> list[ReleaseOutcome]:
        return [Released(ref.name) for ref in refs]

    patch.setattr(MockJobs, "release", release)


def lists_what_runs_only(patch: pytest.MonkeyPatch) -> None:
    honest = MockBackend.list_owned

    async def list_owned(self: MockBackend, cluster_id: str) -> AsyncIterator[Owned]:
        async for owned in honest(self, cluster_id):
            if not owned.ended:
                yield owned

    patch.setattr(MockBackend, "list_owned", list_owned)


def is_sure_too_soon(patch: pytest.MonkeyPatch) -> None:
    honest = MockBackend.find

    async def find(self: MockBackend, refs: Sequence[Ref]) -> list[FindOutcome]:
        found = await honest(self, refs)
        return [Absent(o.name) if type(o).__name__ == "Unsure" else o for o in found]

    patch.setattr(MockBackend, "find", find)


def calls_a_lost_reply_refused(patch: pytest.MonkeyPatch) -> None:
    from hatoba_plugins.errors import Retry

    honest = MockWorld.create

    async def create(self: MockWorld, wanted: Any) -> Any:
        try:
            return await honest(self, wanted)
        except OSError as error:
            raise Retry("try again") from error

    patch.setattr(MockWorld, "create", create)


def forgets_what_ended_in_watches(patch: pytest.MonkeyPatch) -> None:
    honest = MockWorld._everything

    def everything(self: MockWorld) -> list[Observation]:
        return [one for one in honest(self) if one.phase < Phase.ENDED]

    patch.setattr(MockWorld, "_everything", everything)


def tells_ends_twice(patch: pytest.MonkeyPatch) -> None:
    honest = MockWorld._tell

    def tell(self: MockWorld, known: Any) -> None:
        honest(self, known)
        honest(self, known)

    patch.setattr(MockWorld, "_tell", tell)


def has_no_capacity_to_tell(patch: pytest.MonkeyPatch) -> None:
    def capacity(self: MockJobs) -> Iterable[WatchItem]:
        return []

    patch.setattr(MockJobs, "_capacity", capacity)


def accepts_every_specification(patch: pytest.MonkeyPatch) -> None:
    async def validate(self: MockBackend, spec: job_pb2.JobSpec) -> list[Problem]:
        return []

    patch.setattr(MockBackend, "validate", validate)


def accepts_every_option(patch: pytest.MonkeyPatch) -> None:
    def check(cls: type[BackendOptions], options: dict[str, object]) -> list[Problem]:
        return []

    patch.setattr(MockType.options, "check", classmethod(check))


def spends_no_budget(patch: pytest.MonkeyPatch) -> None:
    honest = MockJobs.__init__

    def init(self: MockJobs, world: Any, options: Any, ctx: Any, memory: Any) -> None:
        async def free(operation: str) -> None:
            ctx.budget.asked.set()

        honest(self, world, options, replace(ctx, budget=free), memory)

    patch.setattr(MockJobs, "__init__", init)


def changes_its_handle(patch: pytest.MonkeyPatch) -> None:
    from hatoba_plugins.backends.mock import backend
    from hatoba_plugins.values import Handle

    numbers = iter(range(1_000))
    patch.setattr(backend, "handle_of", lambda known: Handle(1, str(next(numbers))))


BROKEN: list[tuple[Break, str]] = [
    (forgets_a_member, "test_every_member_is_answered"),
    (launches_a_name_again, "test_a_launch_after_the_end_creates_nothing"),
    (launches_any_kind, "test_what_it_cannot_launch_together_is_unsupported"),
    (hides_exit_codes, "test_exit_codes_are_true"),
    (calls_the_unreachable_gone, "test_out_of_reach_says_nothing"),
    (calls_the_unreachable_gone, "test_what_cannot_be_seen_yet_is_not_gone"),
    (leaves_no_mark, "test_a_stop_before_the_launch_refuses_it"),
    (releases_what_runs, "test_release_waits_until_it_is_gone"),
    (lists_what_runs_only, "test_list_owned_is_complete"),
    (is_sure_too_soon, "test_absence_is_told_only_when_it_is_certain"),
    (calls_a_lost_reply_refused, "test_a_lost_reply_is_ambiguous"),
    (forgets_what_ended_in_watches, "test_a_watch_begins_with_what_is"),
    (tells_ends_twice, "test_a_watch_tells_every_end_once"),
    (has_no_capacity_to_tell, "test_a_watch_begins_with_what_is"),
    (accepts_every_option, "test_wrong_options_are_refused"),
    (spends_no_budget, "test_the_budget_is_asked_before_each_call"),
    (changes_its_handle, "test_a_second_launch_of_a_name_creates_nothing"),
    (never_kills, "test_a_stop_ends_by_force_after_the_grace"),
]


@pytest.mark.parametrize(
    ("sabotage", "rule"), BROKEN, ids=lambda one: getattr(one, "__name__", one)
)
async def test_a_broken_backend_fails_its_rule(
    monkeypatch: pytest.MonkeyPatch, sabotage: Break, rule: str
) -> None:
    await getattr(JobConformance(), rule)(Harness())
    sabotage(monkeypatch)
    with pytest.raises(AssertionError):
        await getattr(JobConformance(), rule)(Harness())


async def test_a_dishonest_capability_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    await JobConformance().test_capabilities_are_honest(Harness(), "secrets")
    accepts_every_specification(monkeypatch)
    with pytest.raises(AssertionError):
        await JobConformance().test_capabilities_are_honest(Harness(), "secrets")


def test_every_rule_has_its_sentence() -> None:
    rules = [rule for name, rule in vars(JobConformance).items() if name.startswith("test_")]
    assert len(rules) >= 45
    assert [rule.__name__ for rule in rules if not rule.__doc__] == []


# -- cancelling at a given await -----------------------------------------------------------------


async def three_steps(done: list[str]) -> str:
    for step in ("one", "two", "three"):
        await asyncio.sleep(0)
        done.append(step)
    return "all"


@pytest.mark.parametrize(
    ("at", "cancelled", "steps"), [(1, True, 0), (2, True, 1), (3, True, 2), (4, False, 3)]
)
async def test_a_call_is_cancelled_at_the_await_it_is_told(
    at: int, cancelled: bool, steps: int
) -> None:
    done: list[str] = []
    assert await interrupted(three_steps(done), at) == (cancelled, None if cancelled else "all")
    assert len(done) == steps


async def test_what_a_call_raises_comes_through() -> None:
    async def broken() -> None:
        await asyncio.sleep(0)
        raise KeyError("x")

    with pytest.raises(ExceptionGroup) as caught:
        await interrupted(broken(), 5)
    assert caught.group_contains(KeyError)
