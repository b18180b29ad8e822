"""Named places where a fault can be put, to show that none of them loses or doubles anything.

Each commit and each call of a backend has one before it and one after it. They cost nothing until
`HATOBA_FAILPOINTS` arms some for a process: `NAME:ACTION[@COUNT[+]]`, several with commas. The
action is taken the COUNTth time (1 when none is given) that NAME is passed, with `+` each time from
then on. Actions: `kill9` (the process kills itself), `error` (an `InjectedFault` is raised) and
`hang(SECONDS)` (the whole process stands still).
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

VARIABLE = "HATOBA_FAILPOINTS"

POINTS: dict[str, str] = {
    "dispatch.intent.before": "it is decided what goes where, no intent is stored",
    "dispatch.intent.after": "an intent is stored, its backend does not know",
    "gang.let_go.before": "a gang's time to claim is over, nothing of it is stored",
    "drain.before": "it is decided what gives way to a drain, nothing of it is stored",
    "drain.after": "what gives way to a drain is stored",
    "host.cordon.before": "a host's cordon is about to be stored",
    "host.cordon.after": "a host's cordon is stored, nobody was told",
    "dispatch.preempt.before": "it is decided who gives way, nothing of it is stored",
    "ledger.submit.before": "new jobs are about to be stored",
    "ledger.submit.after": "new jobs are stored, nobody was told",
    "ledger.commit.before": "changes of jobs are decided, nothing of them is stored",
    "ledger.commit.after": "changes of jobs are stored, nobody was told",
    "worker.answer.before": "what a worker said is stored, it was not answered",
    "adopt.attach.before": "something that runs is about to be attached to its task",
    "adopt.attach.after": "something that runs belongs to its task again",
    "adopt.commit.after": "how something ended that a host remembers is stored",
    "disconnect.lost.before": "what cannot be reached is about to be taken for lost",
    "disconnect.lost.after": "that it is lost is stored",
    "recall.call.before": "the backend is about to be asked to stop what was taken for lost",
    "recall.call.after": "the backend took note that what was taken for lost is to end",
    "list.call.before": "the backend is about to be asked for all that is ours",
    "list.call.after": "the backend told all that is ours",
    "reap.call.before": "the backend is about to be told to end what nobody wants",
    "reap.call.after": "the backend took note that nobody wants something",
    "backend.cordon.before": "a backend is about to be cordoned, or no more",
    "backend.cordon.after": "that a backend is cordoned is stored, and not in force",
    "queue.cordon.before": "a queue is about to be cordoned, or no more",
    "queue.cordon.after": "that a queue is cordoned is stored, nothing of it was drained",
    "launch.call.before": "intents are stored, the backend was not asked to launch them",
    "launch.call.after": "the backend answered a launch, nothing of the answer is stored",
    "launch.stored.before": "the answer to a launch is about to be handed to the ledger",
    "launch.stored.after": "handles or refusals of a launch are stored",
    "find.call.before": "something is in doubt, the backend was not asked for it",
    "find.call.after": "the backend said what it knows of something in doubt",
    "find.stored.after": "what the backend found is stored",
    "observe.call.before": "the backend is about to be asked how attempts are",
    "observe.call.after": "the backend told how attempts are, nothing of it is stored",
    "observe.stored.after": "what was observed is stored",
    "stop.call.before": "a stop is stored, the backend was not told",
    "stop.call.after": "the backend took note of a stop",
    "release.call.before": "outcomes are stored, the backend was not asked to let go",
    "release.call.after": "the backend let go, which is not stored",
    "release.stored.after": "a release is stored",
    "follow.step.before": "jobs ended, some that wait for them were not told",
    "follow.step.after": "some that waited for ended jobs were told",
    "timer.end.before": "jobs' time is over, which is not stored",
    "timer.end.after": "jobs whose time was over were ended",
    "schedule.intent.before": "a schedule's time has come, nothing of it is stored",
    "schedule.intent.after": "a schedule says that its job is to be submitted, it was not yet",
    "schedule.submit.after": "a schedule's job is submitted, the schedule does not know",
    "schedule.moved.after": "a schedule knows of its new job",
}
"""All names, and what has happened there. Nothing else may be passed, and each is somewhere."""

_FORM = re.compile(
    r"(?P<name>[a-z0-9_.]+):(?P<action>kill9|error|hang\((?P<seconds>\d+(\.\d+)?)\))"
    r"(@(?P<count>[1-9]\d*)(?P<on>\+?))?"
)


class InjectedFault(RuntimeError):
    """An error that a failpoint was told to raise."""


@dataclass(slots=True)
class _Armed:
    act: Callable[[], None]
    count: int
    on: bool
    passed: int = 0

    def pass_by(self) -> None:
        self.passed += 1
        if self.passed == self.count or (self.on and self.passed > self.count):
            self.act()


_armed: dict[str, list[_Armed]] = {}


def hit(name: str) -> None:
    """Pass by `name`; the fault that was put there happens now."""
    if _armed:
        for one in _armed.get(name, ()):
            one.pass_by()


def arm(wanted: str) -> None:
    """Put these faults in place of all there were; an empty text takes all away.

    Raises ValueError for a name that is not in the list and for what is not of the form.
    """
    found: dict[str, list[_Armed]] = {}
    for text in filter(None, (part.strip() for part in wanted.split(","))):
        name, armed = _parsed(text)
        found.setdefault(name, []).append(armed)
    _armed.clear()
    _armed.update(found)


def arm_from_environment() -> None:
    """Put the faults in place that the environment of this process names."""
    arm(os.environ.get(VARIABLE, ""))


def _parsed(text: str) -> tuple[str, _Armed]:
    form = _FORM.fullmatch(text)
    if form is None:
        raise ValueError(
            f"{VARIABLE}: {text!r} is not NAME:ACTION[@COUNT[+]] with kill9, error or hang(SECONDS)"
        )
    name = _known(form["name"])
    act = _action(name, form["action"], float(form["seconds"] or 0))
    return name, _Armed(act, int(form["count"] or 1), bool(form["on"]))


def _known(name: str) -> str:
    if name not in POINTS:
        raise ValueError(f"{VARIABLE}: no failpoint is named {name!r}; see failpoints.POINTS")
    return name


def _action(name: str, action: str, seconds: float) -> Callable[[], None]:
    if action == "kill9":
        return _kill
    if action == "error":
        return lambda: _raise(name)
    return lambda: time.sleep(seconds)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _raise(name: str) -> None:
    raise InjectedFault(f"failpoint {name}")
