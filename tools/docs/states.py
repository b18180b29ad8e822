"""Write docs/states.md from the transition table and the contract: `states.py [--check]`.

The words on the arrows are not written down anywhere: a job is led through everything that the
named constructors can do to it, and each arrow gets the reasons that its events were told with.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import device_stages
from made_page import DOCS, ROOT, made, table

from hatoba_plugins import errors
from hatoba_scheduler.control.observe import refused_step
from hatoba_scheduler.domain import causes, preempting
from hatoba_scheduler.domain.causes import Ending, ExitKind
from hatoba_scheduler.domain.changing import changed
from hatoba_scheduler.domain.dependencies import Upstream, upstream_ended
from hatoba_scheduler.domain.device_jobs import without_devices
from hatoba_scheduler.domain.device_rollouts import Stage
from hatoba_scheduler.domain.ranges import Ranges
from hatoba_scheduler.domain.records import Cause, Change, Job, Resources, RetryPolicy, Terms
from hatoba_scheduler.domain.states import (
    AttemptState,
    CauseCode,
    Desired,
    JobState,
    Origin,
    Release,
)
from hatoba_scheduler.domain.timing import timed_out
from hatoba_scheduler.domain.transitions import (
    ATTEMPT_OF,
    TRANSITIONS,
    Intent,
    Now,
    Outcome,
    Rows,
    View,
    cancel,
    claimed,
    ended,
    first_state,
    hold,
    initial_counts,
    launch,
    released,
    running,
    starting,
    stopping,
    waiting,
)

TARGET = DOCS / "states.md"
PROTO = ROOT / "proto" / "hatoba" / "v1"
CONTRACT, DEVICES = PROTO / "common.proto", PROTO / "device.proto"
NOW = Now(1)
NAMES = [state.name for state in (*JobState, *AttemptState, *Release)]
HEAD = """# States

Written by `python tools/docs/states.py` from the one transition table
(`hatoba_scheduler/domain/transitions.py`), its named constructors and the contract
(`proto/hatoba/v1/common.proto`), and for devices from `hatoba_scheduler/domain/device_rollouts.py`.

A job has tasks, a task has attempts. Each change of state is one event, stored in the same
transaction as the rows it tells of. A job of one task has that task's state. An array is RUNNING
once one of its tasks ran and over when all are; it has then SUCCEEDED if all did, else it is
CANCELLED if that was wanted, else FAILED, TIMED_OUT, UPSTREAM_FAILED or CANCELLED: the first of
these that any task is. What has ended stays as it is: `hatoba jobs rerun` makes a new job."""
RETRIES = """An attempt that ended for a cause below is followed by another as far as its origin's
budget pays: by default {0.user} for USER, {0.infrastructure} for INFRASTRUCTURE (and for UNKNOWN)
and {0.preemption} for PREEMPTION, which counts anew after each new checkpoint. Between two attempts
lies a random time up to {0.backoff:g} s, doubling with each failure up to {0.max_backoff:g} s. The
next attempt begins only once nothing of the last is left. A rule of the job's retry policy that
speaks of an ending goes before this table; each decision is told in the note of its event."""

DEVICE_STAGES = """A deployment to devices has a row for each device and roll-out
([devices](devices.md)). The words on the arrows say what leads along them: the device's own word,
no answer in the time that it had, its turn in the roll-out, a `selector` or label that changed,
another revision, more room on a device that it did not fit, somebody's `hatoba deployments retry`.
Errors are what roll-outs are given up by. What may pass is offered anew, as often as `--retries`
says: tried again when the device says so, or for want of an answer."""

GANGS = (
    (CauseCode.GANG_FAILED, Origin.POLICY, "with its gang's next generation, if there is one"),
    (CauseCode.GANG_TIMEOUT, Origin.CAPACITY, "with its gang's next generation, uncharged"),
)

Step = Callable[[Rows], Change | None]
Arrows = dict[tuple[str, str], set[str]]


def main() -> int:
    """Write the page, or with --check fail when it is not up to date."""
    return made(TARGET, page, __doc__)


def page() -> str:
    """The whole page."""
    found = Walk()
    found.all_ways()
    check_table(found.tasks)
    parts = [HEAD, *tasks_part(found.tasks), *attempts_part(found), *causes_part(), *stages_part()]
    return "\n\n".join(parts) + "\n"


# -- what can happen ----------------------------------------------------------------------------


class Walk:
    """All that can happen to a job of one task, by trying everything on everything."""

    def __init__(self) -> None:
        self.tasks: Arrows = defaultdict(set)
        self.attempts: Arrows = defaultdict(set)
        self.releases: Arrows = defaultdict(set)

    def all_ways(self) -> None:
        """Lead jobs of every first state, with and without retries, to all their ends."""
        for budget in (0, 1000):
            policy = RetryPolicy(user=budget, infrastructure=budget, preemption=budget)
            for held in (False, True):
                for blocked_on in ((), ("upstream",)):
                    self.lead(Rows(sample(policy, held, blocked_on), {}, {}))

    def lead(self, first: Rows) -> None:
        """From these rows to all that can be reached; versions and times do not matter."""
        self.tasks["[*]", first.job.state.name].add("submit")
        todo, seen = [first], {shape(first)}
        while todo:
            rows = todo.pop()
            for step in steps():
                change = step(rows)
                if change is None:
                    continue
                after = self.note(rows, change)
                if shape(after) not in seen:
                    seen.add(shape(after))
                    todo.append(after)

    def note(self, before: Rows, change: Change) -> Rows:
        """Keep the change's arrows; the rows after it."""
        for event in change.events:
            if event.job_from is not event.job_to:
                self.tasks[event.job_from.name, event.job_to.name].add(event.reason)
        for attempt, _ in change.attempts:
            known = before.attempts.get(0)
            old = known if known and known.name == attempt.name else None
            reason = change.events[-1].reason if change.events else "release"
            if old is None or old.state is not attempt.state:
                self.attempts[old.state.name if old else "[*]", attempt.state.name].add(reason)
            if old is None or old.release is not attempt.release:
                self.releases[old.release.name if old else "[*]", attempt.release.name].add(reason)
        tasks = dict(before.tasks) | {task.index: task for task, _ in change.tasks}
        attempts = dict(before.attempts) | {one.index: one for one, _ in change.attempts}
        return Rows(change.job, tasks, attempts)


def sample(policy: RetryPolicy, held: bool, blocked_on: tuple[str, ...]) -> Job:
    """A job of one task, just submitted."""
    state = first_state(held, blocked_on)
    return Job(
        uid="job",
        project="default",
        name="job-1",
        queue="default",
        backend="null",
        priority=0,
        size=1,
        max_parallel=0,
        fail_fast=False,
        resources=Resources(),
        retries=policy,
        state=state,
        desired=Desired.RUN,
        version=1,
        settings_version=1,
        unstarted=Ranges.upto(1),
        unstarted_state=state,
        counts=initial_counts(1, state),
        hold=held,
        blocked_on=blocked_on,
        created_by="",
        create_time=1,
    )


def shape(rows: Rows) -> tuple[object, ...]:
    """What of the rows decides what can follow, as far as the arrows go."""
    job, task, attempt = rows.job, rows.tasks.get(0), rows.attempts.get(0)
    facts = (job.state, job.hold, job.blocked_on, job.desired)
    if task is None or attempt is None:
        return facts
    return (*facts, attempt.state, attempt.release, attempt.intended)


def steps() -> Iterator[Step]:
    """Everything that can be tried on a job of one task."""
    cause = causes.cancelled("owner", "")
    yield launched
    yield from (partial(hold, held=held, now=NOW) for held in (False, True))
    for state in (JobState.SUCCEEDED, JobState.FAILED):
        yield partial(upstream_ended, upstream=Upstream("upstream", "upstream-1", state), now=NOW)
    for late in (causes.past_deadline("now"), causes.queued_too_long(60.0)):
        yield partial(timed_out, cause=late, now=NOW)
    yield partial(cancel, cause=cause, now=NOW)
    yield device_gone
    for step in (partial(waiting, now=NOW), partial(starting, now=NOW), claim, released):
        yield partial(of_attempt, step=step)
    yield partial(of_attempt, step=partial(running, start=1, limit_by="", now=NOW))
    for ending in (Ending(kind, code=code) for kind in ExitKind for code in (0, 1)):
        yield partial(of_attempt, step=partial(end, ending=ending))
    yield partial(of_attempt, step=refused_step(errors.NoCapacity("no room"), NOW))
    yield partial(of_attempt, step=refused_step(errors.Invalid("no such thing"), NOW))
    for kind in (ExitKind.STOPPED, ExitKind.RUN_TIMEOUT):
        yield partial(of_attempt, step=partial(stop, ending=Ending(kind)))


def launched(rows: Rows) -> Change | None:
    """The next attempt of the task."""
    number = rows.tasks[0].attempt + 1 if rows.tasks else 1
    name = f"attempt-{number}"
    return launch(rows, Intent(0, name, "null", "", (), Resources(), False, ""), NOW)


def device_gone(rows: Rows) -> Change | None:
    """The device on which alone it runs is one no more."""
    job = changed(rows.job, terms=Terms(devices=("shelf-1",)))
    gone = Rows(job, rows.tasks, rows.attempts)
    return without_devices(gone, lambda name: causes.device_gone(name, "was revoked"), NOW)


def of_attempt(rows: Rows, step: Callable[[View], Change | None]) -> Change | None:
    """A step of the newest attempt, where there is one."""
    view = rows.view(0)
    return step(view) if view else None


def claim(view: View) -> Change | None:
    """A claim, where the desk would grant it."""
    return claimed(view, "nonce", NOW) if view.attempt.state <= AttemptState.WAITING else None


def end(view: View, ending: Ending) -> Change | None:
    """The attempt ended so."""
    return ended(view, Outcome(*causes.judge(ending)), NOW)


def stop(view: View, ending: Ending) -> Change | None:
    """The attempt is stopped, to end so."""
    state, cause = causes.judge(ending)
    return stopping(view, state, cause, NOW)


def check_table(found: Arrows) -> None:
    """Raise ValueError where the table has an arrow that nothing goes along."""
    for state, following in TRANSITIONS.items():
        for after in following:
            if (state.name, after.name) not in found:
                raise ValueError(f"nothing leads from {state.name} to {after.name}")


# -- the page's parts ---------------------------------------------------------------------------


def tasks_part(found: Arrows) -> Iterator[str]:
    """Diagrams and table of jobs and tasks."""
    said = meanings("JobState")
    ends = {state.name for state in JobState if state.terminal}
    live = {arrow: words for arrow, words in found.items() if arrow[1] not in ends}
    over = {arrow: words for arrow, words in found.items() if arrow[1] in ends}
    yield "## Jobs and tasks"
    yield table(("State", "Means"), ((state.name, said[state.name]) for state in JobState))
    yield "Until it ends (the words on the arrows are the events' reasons):"
    yield diagram(live)
    yield "How it ends:"
    yield diagram(over | {(state, "[*]"): set() for state in sorted(ends)})


def attempts_part(found: Walk) -> Iterator[str]:
    """States of attempts, their release, and what the task becomes."""
    said = meanings("AttemptState")
    yield "## Attempts"
    yield (
        "One placement of one task. The task has the state on the right; where it would be FAILED, "
        "it is QUEUED if another attempt follows and CANCELLED if a cancel was wanted."
    )
    rows = ((state.name, said[state.name], ATTEMPT_OF[state].name) for state in AttemptState)
    yield table(("State", "Means", "Task"), rows)
    live = {
        arrow: words
        for arrow, words in found.attempts.items()
        if not AttemptState[arrow[1]].terminal
    }
    yield diagram(live)
    yield (
        "From each of these states it may end in any of the others; what has ended is never "
        "changed by later words about it."
    )
    yield "### Release"
    yield (
        "An attempt holds its place until nothing of it is left, which may be after its end. That "
        "delays the next attempt of the task, never the job's end."
    )
    released_means = meanings("Release")
    yield table(("Release", "Means"), ((one.name, released_means[one.name]) for one in Release))
    yield diagram(found.releases)


def causes_part() -> Iterator[str]:
    """What can be the reason of an end."""
    yield "## Causes"
    yield RETRIES.format(RetryPolicy())
    origins = meanings("Origin")
    yield table(("Origin", "Means"), ((one.name, origins[one.name]) for one in Origin))
    said, known = meanings("CauseCode"), advice()
    rows = ((code.name, said[code.name], *known[code]) for code in CauseCode)
    yield table(("Cause", "Means", "Origin", "Another attempt"), rows)


def stages_part() -> Iterator[str]:
    """Where a device stands on the way to a revision."""
    said, found = meanings("DeviceStage", DEVICES), device_stages.arrows()
    names = [stage.name for stage in Stage]
    over = {stage.name for stage in Stage if stage.over}
    yield "## Devices on the way to a revision"
    yield DEVICE_STAGES
    rows = ((stage.name, said[stage.name], "yes" if stage.bad else "") for stage in Stage)
    yield table(("Stage", "Means", "An error"), rows)
    yield "Until something is decided:"
    yield diagram({each: why for each, why in found.items() if not over & set(each)}, names)
    yield "How that ends:"
    ends = {each: why for each, why in found.items() if each[0] not in over and each[1] in over}
    yield diagram(ends, names)
    yield "What a device may still say, or hear of, after that:"
    yield diagram({each: why for each, why in found.items() if each[0] in over}, names)


def advice() -> dict[CauseCode, tuple[str, str]]:
    """Of each cause: whom it is laid to, and whether another attempt follows."""
    found: dict[CauseCode, tuple[str, str]] = {}
    for cause, again in (*ends(), *refusals(), *revisions()):
        origin, known = found.get(cause.code, (cause.origin.name, ""))
        words = known if again in known else f"{known}; {again}".strip("; ")
        found[cause.code] = (origin, words)
    return found


def ends() -> Iterator[tuple[Cause, str]]:
    """Why what was launched ends."""
    made = [causes.judge(Ending(kind, code=1))[1] for kind in ExitKind]
    faulty = Ending(ExitKind.EXITED, code=1, last_log_lines=causes.DEVICE_FAULTS[:1])
    made.append(causes.judge(faulty, gpus=True)[1])
    made.append(causes.judge(Ending(ExitKind.PREEMPTED, spot=True))[1])
    made.append(preempting.preempted("more urgent"))
    made.append(causes.cancelled("owner", ""))
    made.append(causes.upstream_failed("job-1", "FAILED"))
    made.append(causes.past_deadline("now"))
    made.append(causes.queued_too_long(60.0))
    made.append(causes.sibling_failed(0))
    made.append(causes.model_refused("no"))
    gone = (CauseCode.HOST_LOST, CauseCode.DECLARED_GONE, CauseCode.NOT_COMMITTED)
    made.extend(causes.lost("It is gone.", code) for code in gone)
    for cause in made:
        if cause is not None:
            yield cause, "as far as its budget pays" if cause.retryable else "never"
    yield preempting.drained("it", "owner", ""), "elsewhere, uncharged"
    for code, origin, again in GANGS:
        yield Cause(code, origin, "no", retryable=True), again


def refusals() -> Iterator[tuple[Cause, str]]:
    """Why a backend refuses a launch."""
    rows = Rows(sample(RetryPolicy(0, 0, 0), False, ()), {}, {})
    after = Walk().note(rows, launched(rows) or Change(rows.job, 0))
    for refusal in errors.BackendError.__subclasses__():
        change = of_attempt(after, refused_step(refusal("no"), NOW))
        assert change is not None
        cause = change.attempts[0].row.cause
        assert cause is not None
        waits = change.job.state is JobState.QUEUED
        yield cause, "refused: after a wait, uncharged" if waits else "refused: never"


def revisions() -> Iterator[tuple[Cause, str]]:
    """Why a deployment's revision is given up; replicas themselves are started again and again."""
    for code in (CauseCode.NOT_READY, CauseCode.PREDICTIONS_FAIL, CauseCode.CRASH_LOOP):
        yield Cause(code, Origin.USER, "no", retryable=False), "of a revision: rolled back"


def meanings(enum: str, contract: Path = CONTRACT) -> dict[str, str]:
    """The contract's comment on each value of an enum, by the value's name without prefix."""
    body = re.search(rf"^enum {enum} {{\n(.*?)^}}", contract.read_text(), re.S | re.M)
    assert body is not None
    values = re.findall(r"((?:^  // .*\n)+)^  (\w+) = \d+;", body[1], re.M)
    prefix = values[0][1].removesuffix("UNSPECIFIED")
    return {name.removeprefix(prefix): sentence(comment) for comment, name in values[1:]}


def sentence(comment: str) -> str:
    """A comment on one line."""
    return " ".join(line.strip().removeprefix("// ") for line in comment.splitlines())


def diagram(arrows: Mapping[tuple[str, str], Iterable[str]], names: Sequence[str] = NAMES) -> str:
    """A Mermaid state diagram, its arrows in the order of the names."""
    lines = ["```mermaid", "stateDiagram-v2"]
    for (before, after), reasons in arrows.items():
        words = ", ".join(sorted(reasons))
        lines.append(f"    {before} --> {after}{': ' if words else ''}{words}")
    arranged = sorted(lines[2:], key=partial(order, names=names))
    return "\n".join([*lines[:2], *arranged, "```"])


def order(line: str, names: Sequence[str]) -> list[int]:
    """Arrows in the order in which things happen."""
    before, _, after = line.strip().partition(":")[0].partition(" --> ")
    return [names.index(name) if name in names else -1 for name in (before, after)]


if __name__ == "__main__":
    sys.exit(main())
