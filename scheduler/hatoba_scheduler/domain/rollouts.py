"""Roll-outs: each legal change of a deployment is a named function here, and the only way to it.

A function looks at the deployment and at what is seen of it, and gives the change to be written,
or None where there is nothing to do. `Refused` says why what somebody asked for cannot be done.
Time is handed in; what the backend is asked for only changes together with the generation.

    RUNNING -> BAKING -> SUCCEEDED     all ready, then healthy with all traffic for `bake`
    RUNNING | BAKING <-> PAUSED        by somebody, at a step without an end, weights by hand
    RUNNING | BAKING -> ROLLING_BACK -> ROLLED_BACK    the new revision failed
    RUNNING | BAKING -> FAILED         it failed, and there is nothing to go back to
    any of them -> SUPERSEDED          another revision takes its place
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hatoba_scheduler.domain.changing import changed
from hatoba_scheduler.domain.deployments import (
    ALL,
    Change,
    Deployment,
    DeploymentEvent,
    DeploymentState,
    Figures,
    Pause,
    ReplicaState,
    Revision,
    Rollout,
    RolloutState,
    Seen,
    SeenSet,
    Settings,
    Share,
)
from hatoba_scheduler.domain.records import Cause, Micros
from hatoba_scheduler.domain.states import CauseCode, Origin

ENDINGS = 2
"""So often a replica of a new revision may not end."""
LEAST_REQUESTS = 10
"""A share of errors is not judged by fewer requests."""
_ENDED = (CauseCode.EXIT_CODE, CauseCode.SIGNAL, CauseCode.OUT_OF_MEMORY)
_NOBODYS_FAULT = (Origin.INFRASTRUCTURE, Origin.CAPACITY, Origin.PREEMPTION)
_HOPELESS = (CauseCode.CRASH_LOOP, CauseCode.PREDICTIONS_FAIL)


class Refused(Exception):
    """What was asked for cannot be done now; the message says why and what can."""


class Now(NamedTuple):
    """When, and who asked."""

    time: Micros
    actor: str = "system"


@dataclass(frozen=True, slots=True)
class View:
    """A deployment, those of its revisions that matter, and what is seen of it."""

    deployment: Deployment
    revisions: Mapping[int, Revision] = field(default_factory=dict)
    seen: SeenSet | None = None
    """None until its backend has told of it since we are here."""
    figures: Figures = Figures()
    restarts: Mapping[str, int] = field(default_factory=dict)
    """How often replicas had been started again before this roll-out began."""
    watched_since: Micros = 0
    """Since when we are here: time in which nobody looked does not count against a revision."""


# -- what somebody asks for ------------------------------------------------------------------------


def created(deployment: Deployment, first: Revision, now: Now, *, devices: bool = False) -> Change:
    """A new deployment with its first revision and roll-out; `deployment` has neither yet."""
    where = "for devices, with" if devices else f"with {deployment.replicas} replicas of"
    text = f"Made {where} {_short(first.model_version)}."
    draft = Draft(View(deployment), now)
    draft.tell("create", text)
    draft.begin(first)
    return draft.change(expected=0)


def updated(
    view: View, settings: Settings, revision: Revision | None, followed: str, now: Now
) -> Change | None:
    """Other settings, and with `revision` another content. None: nothing differs.

    `followed` is the version that the named alias points to, empty without one.
    """
    before = view.deployment
    _not_deleting(before)
    if revision is None and settings == before.settings:
        return None
    draft = Draft(view, now)
    if settings.replicas != before.replicas:
        draft.tell("scale", f"{before.replicas} replicas become {settings.replicas}.")
    draft.set(
        settings=settings,
        settings_version=before.settings_version + 1,
        following=_follows(before, settings, revision),
        followed=followed,
    )
    if revision is not None:
        draft.begin(revision)
    else:
        draft.resize(before.replicas)
    if _pace(settings) != _pace(before.settings):
        draft.want(draft.deployment.wanted, force=True)
    return draft.change()


def followed(view: View, revision: Revision, now: Now) -> Change:
    """The alias that it follows moved."""
    draft = Draft(view, now)
    draft.set(followed=revision.model_version)
    draft.begin(revision)
    return draft.change()


def ignored(view: View, model_version: str, message: str, now: Now) -> Change:
    """The alias moved to what cannot be deployed, or is deployed already."""
    draft = Draft(view, now)
    draft.set(followed=model_version)
    draft.tell("alias", message)
    return draft.change()


def traffic_set(view: View, weights: Mapping[int, int], now: Now) -> Change | None:
    """Weights by hand. Raises Refused for revisions without ready replicas and wrong sums."""
    deployment = view.deployment
    _not_deleting(deployment)
    if deployment.active is not None and deployment.active.state is RolloutState.ROLLING_BACK:
        raise Refused("it rolls back; set its traffic once that is over")
    if sum(weights.values()) != ALL:
        raise Refused(f"the weights add up to {sum(weights.values())}, not to {ALL}; correct them")
    for number in sorted(weights):
        if view.seen is None or not view.seen.ready(number):
            raise Refused(
                f"revision {number} has no ready replicas; "
                f"those with some are {_listed(_with_ready(view)) or 'none'}"
            )
    size = deployment.replicas
    others = [one for one in deployment.wanted if one.revision not in weights]
    wanted = [Share(one.revision, one.replicas, 0) for one in others]
    for number, weight in weights.items():
        have = deployment.share(number).replicas
        least = max(min(size, 1), _part(size, weight)) if weight else 0
        if have or weight:
            wanted.append(Share(number, max(have, least), weight))
    wanted.sort()
    if tuple(wanted) == deployment.wanted:
        return None
    draft = Draft(view, now)
    text = ", ".join(
        f"{weight}% to revision {number}" for number, weight in sorted(weights.items())
    )
    draft.tell("traffic", f"Traffic by hand: {text}.")
    draft.want(wanted)
    if deployment.active is not None and deployment.active.state is not RolloutState.ROLLING_BACK:
        draft.move(RolloutState.PAUSED, pause=Pause.TRAFFIC)
    return draft.change()


def paused(view: View, now: Now) -> Change | None:
    """No further step and no roll-back by itself. Raises Refused without a roll-out."""
    rollout = _active(view)
    if rollout.state is RolloutState.PAUSED:
        return None
    if rollout.state is RolloutState.ROLLING_BACK:
        raise Refused("it rolls back; that cannot be paused, wait for its end")
    draft = Draft(view, now)
    draft.move(RolloutState.PAUSED, pause=Pause.ASKED)
    draft.tell("pause", "The roll-out is paused.", rollout.to_revision)
    return draft.change()


def resumed(view: View, now: Now) -> Change | None:
    """Go on from where it was paused. Raises Refused without a roll-out."""
    rollout = _active(view)
    if rollout.state is not RolloutState.PAUSED:
        return None
    if rollout.pause is Pause.TRAFFIC:
        raise Refused("its traffic was set by hand; promote it or roll it back to end that")
    draft = Draft(view, now)
    draft.tell("resume", "The roll-out goes on.", rollout.to_revision)
    if rollout.pause is Pause.STEP:
        draft.next_step()
    else:
        draft.move(RolloutState.RUNNING)
    return draft.change()


def promoted(view: View, now: Now) -> Change | None:
    """Skip what steps remain. Raises Refused without a roll-out."""
    rollout, draft = promotion(view, now)
    if rollout.state is RolloutState.PAUSED or rollout.in_steps:
        draft.tell("promote", "All traffic to the new revision.", rollout.to_revision)
        draft.move(RolloutState.RUNNING, step=len(rollout.steps))
        draft.want([Share(rollout.to_revision, view.deployment.replicas, ALL)])
    return draft.change() if draft.deployment != view.deployment else None


def promotion(view: View, now: Now) -> tuple[Rollout, Draft]:
    """A roll-out that somebody wants to end well, and what follows from that alone.

    Raises Refused.
    """
    rollout = _active(view)
    if rollout.state is RolloutState.ROLLING_BACK:
        raise Refused(
            f"revision {rollout.to_revision} failed and is rolled back; deploy another one"
        )
    following = bool(view.deployment.settings.alias) and not rollout.back
    draft = Draft(view, now)
    draft.set(following=following or view.deployment.following)
    return rollout, draft


def back_to(view: View, asked: int, known: Iterable[Revision]) -> int:
    """The revision that a roll-back goes to, `asked` or the proven one before. Raises Refused."""
    deployment, rollout = view.deployment, view.deployment.active
    _not_deleting(deployment)
    target = target_of(deployment)
    numbers = {one.revision: one for one in known}
    if asked:
        if asked not in numbers:
            raise Refused(f"there is no revision {asked}; there are 1 to {deployment.newest}")
        if asked == target:
            raise Refused(f"revision {asked} is what is deployed now; name another one")
        return asked
    if rollout is not None and rollout.state is RolloutState.ROLLING_BACK:
        raise Refused(f"it goes back to revision {target} already")
    if deployment.current not in (0, target):
        return deployment.current
    proven = [one for one in numbers.values() if one.proven and one.revision < target]
    if not proven:
        raise Refused(
            f"no revision before {target} ever had all of its replicas ready; "
            "name one, or deploy another version"
        )
    return max(one.revision for one in proven)


def target_of(deployment: Deployment) -> int:
    """The revision that shall have all of the traffic in the end."""
    rollout = deployment.rollout
    if rollout is None:
        return deployment.current
    back = rollout.state in (RolloutState.ROLLING_BACK, RolloutState.ROLLED_BACK)
    return rollout.from_revision if back else rollout.to_revision


def deployed_already(view: View, template: bytes) -> bool:
    """What is deployed, or rolled out now, is made from this; what was given up is not."""
    target = view.revisions.get(target_of(view.deployment))
    return target is not None and target.cause is None and target.template == template


def rolled_back(view: View, to: Revision, settings: Settings, reason: str, now: Now) -> Change:
    """Go back to an earlier revision because somebody asked; it follows no alias any further."""
    draft = Draft(view, now)
    why = f": {reason}" if reason else ""
    rollout = view.deployment.active
    if rollout is not None:
        text = f"Rolled back by {now.actor}{why}."
        draft.give_up(rollout.to_revision, Cause(CauseCode.CANCELLED, Origin.POLICY, text, False))
    draft.set(
        following=False,
        settings=settings,
        settings_version=view.deployment.settings_version + 1,
    )
    draft.tell("rollback", f"Back to revision {to.revision}{why}.", to.revision)
    draft.begin(to, back=True)
    return draft.change()


def deleted(view: View, now: Now) -> Change | None:
    """Take it away. Again is the same."""
    if view.deployment.deleting:
        return None
    draft = Draft(view, now)
    draft.set(deleting=True, settings_version=view.deployment.settings_version + 1)
    draft.tell("delete", "It is taken away.")
    if view.deployment.active is not None:
        draft.end(RolloutState.SUPERSEDED)
    return draft.change()


def handled(view: View, handle: str, now: Now) -> Change | None:
    """Its backend told how it is to be found again."""
    if handle == view.deployment.handle:
        return None
    draft = Draft(view, now)
    draft.set(handle=handle)
    return draft.change()


# -- what happens ----------------------------------------------------------------------------------


def observed(view: View, before: SeenSet | None, now: Now) -> Change | None:
    """What came and went since `before`, told as events; None where nothing did."""
    if before is None or view.seen is None:
        return None
    old = {one.name: one for one in before.replicas}
    draft = Draft(view, now)
    for one in view.seen.replicas:
        draft.tell_replica(old.pop(one.name, None), one)
    for one in old.values():
        draft.tell("replica", f"{one.name} is gone.", one.revision)
    return draft.change() if draft.events else None


def step(view: View, now: Now) -> Change | None:
    """The next change that follows from what is seen; None: wait."""
    rollout = view.deployment.active
    if rollout is None or view.seen is None or view.deployment.deleting:
        return None
    if rollout.state is RolloutState.ROLLING_BACK:
        return _going_back(view, rollout, now)
    if rollout.state is RolloutState.PAUSED and rollout.pause is not Pause.STEP:
        return None
    cause = _refused(view) or _broken(view, rollout) or _failing(view, rollout)
    if cause is not None:
        return _failed(view, rollout, cause, now)
    if rollout.state is RolloutState.PAUSED:
        return None
    if not _all_ready(view, rollout.to_revision):
        return _unready(view, rollout, now)
    return _onward(view, rollout, now)


def _onward(view: View, rollout: Rollout, now: Now) -> Change | None:
    """All of the new revision's replicas are ready."""
    healthy = -1
    if rollout.healthy_since:
        healthy = now.time - max(rollout.healthy_since, view.watched_since)
    draft = Draft(view, now)
    if rollout.in_steps:
        hold = rollout.steps[rollout.step].hold
        if healthy < 0:
            draft.reached_step(hold)
        elif healthy >= hold:
            draft.next_step()
        else:
            return None
    elif rollout.state is RolloutState.RUNNING:
        draft.bake()
    elif healthy < 0:
        draft.put(changed(rollout, healthy_since=now.time))
    elif healthy >= view.deployment.settings.strategy.bake:
        draft.succeed()
    else:
        return None
    return draft.change()


def _unready(view: View, rollout: Rollout, now: Now) -> Change | None:
    """Some replicas of the new revision are not ready yet, or not any more."""
    if rollout.healthy_since:
        draft = Draft(view, now)
        draft.put(changed(rollout, healthy_since=0, since=now.time))
        return draft.change()
    limit = view.deployment.settings.strategy.ready_deadline
    if now.time - max(rollout.since, view.watched_since) < limit:
        return None
    return _failed(view, rollout, _not_ready(view, rollout), now)


def _failed(view: View, rollout: Rollout, cause: Cause, now: Now) -> Change:
    draft = Draft(view, now)
    draft.give_up(rollout.to_revision, cause)
    size, last = view.deployment.replicas, _good_before(view, rollout)
    if not view.deployment.settings.strategy.rollback:
        draft.tell("failed", f"Left as it is: {cause.message}", rollout.to_revision, cause)
        draft.end(RolloutState.FAILED, cause)
    elif not last:
        draft.tell("failed", cause.message, rollout.to_revision, cause)
        if not view.deployment.current:
            draft.want([Share(rollout.to_revision, 0, ALL)])
        draft.end(RolloutState.FAILED, cause)
    else:
        text = f"Back to revision {last}: {cause.message}"
        draft.tell("rollback", text, rollout.to_revision, cause)
        draft.want([Share(last, size, ALL)])
        draft.move(RolloutState.ROLLING_BACK, cause=cause)
    return draft.change()


def _good_before(view: View, rollout: Rollout) -> int:
    """The revision to go back to; 0: none, or one that was given up itself."""
    before = view.revisions.get(rollout.from_revision)
    return 0 if before is not None and before.cause is not None else rollout.from_revision


def _going_back(view: View, rollout: Rollout, now: Now) -> Change | None:
    limit = view.deployment.settings.strategy.ready_deadline
    late = now.time - max(rollout.since, view.watched_since) >= limit
    back = _all_ready(view, rollout.from_revision)
    if not back and not late:
        return None
    draft = Draft(view, now)
    short = "" if back else ", which does not have all of its replicas ready"
    draft.tell(
        "rolled back", f"All is on revision {rollout.from_revision}{short}.", rollout.from_revision
    )
    draft.end(RolloutState.ROLLED_BACK, rollout.cause)
    return draft.change()


# -- how it is -------------------------------------------------------------------------------------


def state_of(deployment: Deployment, seen: SeenSet | None) -> DeploymentState:
    """How a deployment is, from what is wanted and what is seen."""
    if (state := unsettled(deployment)) is not None:
        return state
    if seen is None or seen.generation < deployment.generation:
        return DeploymentState.PROGRESSING
    if all(seen.ready(one.revision) >= one.replicas for one in deployment.wanted):
        going = _going(deployment, seen)
        return DeploymentState.PROGRESSING if going else DeploymentState.READY
    return DeploymentState.PROGRESSING if _coming(deployment, seen) else DeploymentState.DEGRADED


def unsettled(deployment: Deployment) -> DeploymentState | None:
    """How it is as long as that does not depend on what is seen of it; None: it does."""
    rollout = deployment.active
    if deployment.deleting:
        return DeploymentState.DELETING
    if rollout is not None:
        halted = rollout.state is RolloutState.PAUSED
        return DeploymentState.PAUSED if halted else DeploymentState.PROGRESSING
    return None if deployment.current else DeploymentState.FAILED


def settled(deployment: Deployment, seen: SeenSet | None) -> bool:
    """Nothing is under way: READY or FAILED, and no roll-out."""
    state = state_of(deployment, seen)
    return state in (DeploymentState.READY, DeploymentState.FAILED)


def trouble(deployment: Deployment, seen: SeenSet | None) -> Cause | None:
    """Why a deployment is FAILED or DEGRADED, or cannot go on."""
    rollout = deployment.rollout
    if rollout is not None and rollout.state is RolloutState.FAILED:
        return rollout.cause
    if seen is None or state_of(deployment, seen) is DeploymentState.READY:
        return None
    return seen.problem or _worst(seen.replicas)


def waiting_for(view: View, now: Micros) -> str:
    """What a roll-out waits for, in a sentence; empty when it is over."""
    rollout = view.deployment.active
    if rollout is None:
        return ""
    if rollout.state is RolloutState.PAUSED:
        return PAUSED[rollout.pause]
    back = rollout.state is RolloutState.ROLLING_BACK
    number = rollout.from_revision if back else rollout.to_revision
    if view.seen is None or view.seen.generation < view.deployment.generation:
        return f"backend {view.deployment.backend!r} to take it in"
    if not _all_ready(view, number):
        ready, share = view.seen.ready(number), view.deployment.share(number)
        why = f": {view.seen.problem.message}" if view.seen.problem else ""
        return f"revision {number}: {ready} of {share.replicas} replicas are ready{why}"
    if not rollout.healthy_since:
        return ""
    since = max(rollout.healthy_since, view.watched_since)
    left = (since + _stay(view.deployment, rollout) - now) / 1e6
    return f"revision {number} to stay healthy for {max(left, 0):.3g} s more"


PAUSED = {
    Pause.ASKED: "somebody to resume it",
    Pause.STEP: "somebody to resume it: this step has no end",
    Pause.TRAFFIC: "somebody to promote it or to roll it back: its traffic was set by hand",
    Pause.APPROVAL: "somebody to resume it: the next group of devices needs that",
    Pause.NONE: "",
}
"""What a paused roll-out waits for."""


def needed(deployment: Deployment, revisions: Iterable[Revision]) -> set[int]:
    """Revisions that have replicas or traffic, or that a roll-back would go to."""
    rollout = deployment.active
    keep = {one.revision for one in deployment.wanted} | {deployment.current}
    if rollout is not None:
        keep |= {rollout.from_revision, rollout.to_revision}
    before = [one.revision for one in revisions if one.proven and one.revision < min(keep - {0})]
    return (keep | {max(before, default=0)}) - {0}


# -- reasons ---------------------------------------------------------------------------------------


def _refused(view: View) -> Cause | None:
    """The backend says that it can never do what it is asked."""
    seen = view.seen
    if seen is None or seen.problem is None or seen.generation >= view.deployment.generation:
        return None
    return seen.problem if seen.problem.code is CauseCode.REFUSED_INVALID else None


def _broken(view: View, rollout: Rollout) -> Cause | None:
    """A replica of the new revision ends again and again, or its predictions fail."""
    assert view.seen is not None
    for one in view.seen.staying(rollout.to_revision):
        hopeless = one.cause is not None and one.cause.code in _HOPELESS
        if one.state is ReplicaState.UNHEALTHY and hopeless:
            return one.cause
        if _endings(view, one) >= ENDINGS and _blamed(one):
            return _crash_loop(view, one)
    return None


def _blamed(one: Seen) -> bool:
    """Whether the last end says something of the revision; of others' the deadline makes an end."""
    return one.cause is None or one.cause.origin not in _NOBODYS_FAULT


def _endings(view: View, one: Seen) -> int:
    """How often a replica ended since the roll-out began."""
    return one.restarts - view.restarts.get(one.name, 0)


def _crash_loop(view: View, one: Seen) -> Cause:
    last, endings = one.cause, _endings(view, one)
    times = "once" if endings < ENDINGS else f"{endings} times"
    why = f", last: {last.message}" if last is not None else "."
    return Cause(
        CauseCode.CRASH_LOOP,
        last.origin if last is not None else Origin.USER,
        f"Replica {one.name} of revision {one.revision} ended {times}{why}",
        False,
        last.exit_code if last is not None else None,
        last.signal if last is not None else None,
        last.evidence if last is not None else (),
        last.last_log_lines if last is not None else (),
    )


def _failing(view: View, rollout: Rollout) -> Cause | None:
    """Too many of the new revision's requests fail."""
    told, limit = view.figures, view.deployment.settings.strategy.max_error_share
    if told.requests < LEAST_REQUESTS or told.errors <= limit * told.requests:
        return None
    replicas = view.seen.staying(rollout.to_revision) if view.seen else []
    for one in replicas:
        # What failed was under way in a replica that died: that it died is the cause.
        down = one.state is ReplicaState.UNHEALTHY
        if _endings(view, one) or (down and one.cause is not None and one.cause.code in _ENDED):
            return _crash_loop(view, one)
    last = f"; the last said: {told.last_error}" if told.last_error else ""
    worst = _worst(replicas)
    return Cause(
        CauseCode.PREDICTIONS_FAIL,
        Origin.USER,
        f"{told.errors} of {told.requests} requests to revision {rollout.to_revision} failed, "
        f"more than {limit:.3g} of them{last}",
        False,
        evidence=(("errors", str(told.errors)), ("requests", str(told.requests))),
        last_log_lines=worst.last_log_lines if worst is not None else (),
    )


def _not_ready(view: View, rollout: Rollout) -> Cause:
    assert view.seen is not None
    number, share = rollout.to_revision, view.deployment.share(rollout.to_revision)
    limit = view.deployment.settings.strategy.ready_deadline / 1e6
    text = (
        f"Revision {number} had {view.seen.ready(number)} of {share.replicas} replicas ready "
        f"after {limit:g} s"
    )
    if view.seen.generation < view.deployment.generation:
        text += f"; backend {view.deployment.backend!r} has not taken it in"
    worst = _worst(view.seen.staying(number)) or view.seen.problem
    if worst is None:
        return Cause(CauseCode.NOT_READY, Origin.USER, f"{text}.", False)
    return changed(worst, code=CauseCode.NOT_READY, message=f"{text}: {worst.message}")


def _worst(replicas: Iterable[Seen]) -> Cause | None:
    """The cause that tells most: with log lines rather than without."""
    causes = [
        one.cause
        for one in replicas
        if one.cause is not None and one.state is not ReplicaState.READY
    ]
    return max(causes, key=lambda cause: len(cause.last_log_lines), default=None)


# -- helpers ---------------------------------------------------------------------------------------


def _all_ready(view: View, revision: int) -> bool:
    seen, deployment = view.seen, view.deployment
    if seen is None or seen.generation < deployment.generation:
        return False
    return seen.ready(revision) >= deployment.share(revision).replicas


def _going(deployment: Deployment, seen: SeenSet) -> bool:
    """Something is there that is not wanted, and more than finishes what it has."""
    wanted = {one.revision for one in deployment.wanted if one.replicas}
    return any(
        one.revision not in wanted or one.name in seen.leaving
        for one in seen.replicas
        if one.state not in (ReplicaState.DRAINING, ReplicaState.GONE)
    )


def _coming(deployment: Deployment, seen: SeenSet) -> bool:
    """What is missing is on its way for the first time."""
    missing = [
        one
        for share in deployment.wanted
        for one in seen.staying(share.revision)
        if one.state is not ReplicaState.READY
    ]
    fresh = (ReplicaState.PENDING, ReplicaState.STARTING)
    calm = all(one.state in fresh and not one.restarts for one in missing)
    return bool(missing) and calm and seen.problem is None


def _stay(deployment: Deployment, rollout: Rollout) -> Micros:
    if rollout.in_steps:
        return rollout.steps[rollout.step].hold
    return deployment.settings.strategy.bake


def _with_ready(view: View) -> list[int]:
    seen = view.seen
    if seen is None:
        return []
    return sorted({one.revision for one in seen.replicas if seen.ready(one.revision)})


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _part(size: int, percent: int) -> int:
    """So many of `size` replicas, rounded up."""
    return -(-size * percent // ALL)


def _pace(settings: Settings) -> tuple[int, int]:
    return settings.strategy.max_unavailable, settings.strategy.max_surge


def _follows(before: Deployment, settings: Settings, revision: Revision | None) -> bool:
    """A new content or another model is an update that follows its alias again."""
    if not settings.alias:
        return False
    same = revision is None and settings.model == before.settings.model
    return before.following if same else True


def _active(view: View) -> Rollout:
    _not_deleting(view.deployment)
    rollout = view.deployment.active
    if rollout is None:
        raise Refused("no roll-out is under way; `hatoba deploy` begins one")
    return rollout


def _not_deleting(deployment: Deployment) -> None:
    if deployment.deleting:
        raise Refused("it is being taken away")


def _short(model_version: str) -> str:
    parts = model_version.split("/")
    return f"{parts[3]}:{parts[5]}" if len(parts) == 6 else model_version


class Draft:
    """A change in the making: the deployment as it will be, and what goes with it."""

    def __init__(self, view: View, now: Now) -> None:
        self._view = view
        self._now = now
        self.deployment = view.deployment
        self.events: list[DeploymentEvent] = []
        self._rollouts: dict[int, Rollout] = {}
        self._revisions: dict[int, Revision] = {}

    # -- parts ----------------------------------------------------------------------------------

    def set(self, **fields: object) -> None:
        """Other values of the deployment's fields."""
        self.deployment = changed(self.deployment, **fields)  # type: ignore[arg-type]

    def tell(self, kind: str, message: str, revision: int = 0, cause: Cause | None = None) -> None:
        """An event."""
        seq = self.deployment.events + 1
        now = self._now
        event = DeploymentEvent(seq, now.time, kind, message, revision, now.actor, cause)
        self.events.append(event)
        self.set(events=seq)

    def tell_replica(self, old: Seen | None, new: Seen) -> None:
        """What became of one replica."""
        state = old.state if old is not None else ReplicaState.PENDING
        if new.state is ReplicaState.READY and state is not ReplicaState.READY:
            self.tell("ready", f"{new.name} is ready at {new.address}.", new.revision)
        ended = new.restarts > (old.restarts if old is not None else 0)
        lost = new.state is ReplicaState.UNHEALTHY and state is not ReplicaState.UNHEALTHY
        if ended or lost:
            why = new.cause.message if new.cause is not None else "it does not answer."
            self.tell("replica", f"{new.name}: {why}", new.revision, new.cause)

    def want(self, shares: Iterable[Share], *, force: bool = False) -> None:
        """Ask the backend for this; a new generation if it is another thing."""
        wanted = tuple(sorted(shares))
        if wanted != self.deployment.wanted or force:
            self.set(wanted=wanted, generation=self.deployment.generation + 1)

    def renew(self) -> None:
        """What was asked for is to be looked at anew, by where its roll-out stands now."""
        self.set(generation=self.deployment.generation + 1)

    def put(self, rollout: Rollout) -> None:
        """The roll-out as it will be."""
        self._rollouts[rollout.number] = rollout
        self.set(rollout=rollout)

    def revise(self, revision: Revision) -> None:
        """A revision as it will be."""
        self._revisions[revision.revision] = revision

    def give_up(self, number: int, cause: Cause) -> None:
        """A revision failed, or somebody does not want it."""
        known = self._revisions.get(number) or self._view.revisions.get(number)
        if known is not None:
            self.revise(changed(known, cause=cause))

    # -- moves ----------------------------------------------------------------------------------

    def move(
        self,
        state: RolloutState,
        *,
        step: int | None = None,
        pause: Pause = Pause.NONE,
        cause: Cause | None = None,
    ) -> None:
        """The roll-out under way comes to a state, from now on."""
        rollout = self.deployment.active
        assert rollout is not None
        self.put(
            changed(
                rollout,
                state=state,
                step=rollout.step if step is None else step,
                pause=pause,
                cause=cause,
                since=self._now.time,
                healthy_since=0,
            )
        )

    def end(self, state: RolloutState, cause: Cause | None = None) -> None:
        """The roll-out under way is over."""
        self.move(state, cause=cause)
        assert self.deployment.rollout is not None
        self.put(changed(self.deployment.rollout, end_time=self._now.time))

    def begin(self, revision: Revision, *, back: bool = False) -> None:
        """A roll-out to this revision; one that is under way makes place."""
        deployment, former = self.deployment, self.deployment.active
        stable = deployment.current
        if former is not None:
            if former.state is RolloutState.BAKING:
                # It had all of the traffic and was well: there is nothing older to go back to.
                stable = former.to_revision
            self.end(RolloutState.SUPERSEDED, former.cause)
        number = self.deployment.rollout.number + 1 if self.deployment.rollout else 1
        begins_in_steps = stable and not back and stable != revision.revision
        steps = deployment.settings.strategy.steps if begins_in_steps else ()
        origin = stable
        if stable == revision.revision:
            origin = former.to_revision if former is not None else 0
        at = self._now.time
        self.set(current=stable, newest=max(deployment.newest, revision.revision))
        self.put(
            Rollout(
                number, origin, revision.revision, RolloutState.RUNNING, steps, 0, at, at, back=back
            )
        )
        self.revise(changed(revision, cause=None))
        text = f"Revision {revision.revision} ({_short(revision.model_version)}) is rolled out."
        self.tell("rollout", text, revision.revision)
        self.want(self._shares())

    def reached_step(self, hold: Micros) -> None:
        """All replicas of a canary step are ready."""
        rollout = self.deployment.active
        assert rollout is not None
        if hold:
            self.put(changed(rollout, healthy_since=self._now.time))
        else:
            self.move(RolloutState.PAUSED, pause=Pause.STEP)

    def next_step(self) -> None:
        """To the next canary step, or past the last one."""
        rollout = self.deployment.active
        assert rollout is not None
        self.move(RolloutState.RUNNING, step=min(rollout.step + 1, len(rollout.steps)))
        self.want(self._shares())
        rollout = self.deployment.active
        assert rollout is not None
        percent = rollout.steps[rollout.step].percent if rollout.in_steps else ALL
        text = f"{percent}% of the traffic to revision {rollout.to_revision}."
        self.tell("step", text, rollout.to_revision)

    def bake(self) -> None:
        """All traffic is on the new revision, whose replicas are all ready."""
        self.move(RolloutState.BAKING)
        rollout = self.deployment.active
        assert rollout is not None
        self.put(changed(rollout, healthy_since=self._now.time))
        number = rollout.to_revision
        self.tell("ready", f"All replicas of revision {number} are ready.", number)
        if self.deployment.replicas:
            self.prove(number)

    def prove(self, number: int) -> None:
        """A revision was seen to work wherever it is wanted."""
        known = self._revisions.get(number) or self._view.revisions.get(number)
        if known is not None:
            self.revise(changed(known, proven=True))

    def succeed(self) -> None:
        """The new revision has it all, and stayed healthy."""
        rollout = self.deployment.active
        assert rollout is not None
        self.set(current=rollout.to_revision)
        self.end(RolloutState.SUCCEEDED)
        text = f"Revision {rollout.to_revision} is the current one."
        self.tell("rolled out", text, rollout.to_revision)

    def resize(self, before: int) -> None:
        """Another number of replicas, in the middle of whatever goes on."""
        size, rollout = self.deployment.replicas, self.deployment.active
        if size == before:
            return
        if rollout is None or rollout.pause is Pause.TRAFFIC:
            self.want(_scaled(self.deployment.wanted, before, size))
        else:
            self.want(self._shares())

    def _shares(self) -> list[Share]:
        """What the roll-out under way asks for where it stands."""
        rollout, size = self.deployment.active, self.deployment.replicas
        assert rollout is not None
        if rollout.state is RolloutState.ROLLING_BACK:
            return [Share(rollout.from_revision, size, ALL)]
        if not rollout.in_steps:
            return [Share(rollout.to_revision, size, ALL)]
        percent = rollout.steps[rollout.step].percent
        some = max(min(size, 1), _part(size, percent))
        return [
            Share(rollout.from_revision, size, ALL - percent),
            Share(rollout.to_revision, some, percent),
        ]

    # -- the whole ------------------------------------------------------------------------------

    def change(self, *, expected: int | None = None) -> Change:
        """What is to be written over the version that was looked at."""
        before = self._view.deployment.version if expected is None else expected
        self.set(version=before + 1)
        self._mark_needed()
        return Change(
            self.deployment,
            before,
            tuple(self._rollouts.values()),
            tuple(self._revisions.values()),
            tuple(self.events),
        )

    def _mark_needed(self) -> None:
        every = {**self._view.revisions, **self._revisions}
        if not every:
            return
        keep = needed(self.deployment, every.values())
        for number, one in every.items():
            if one.in_use != (number in keep):
                self.revise(changed(one, in_use=number in keep))


def _scaled(wanted: Sequence[Share], before: int, size: int) -> list[Share]:
    """The same shares for another number of replicas; together never fewer than that number."""
    if not before:
        return [Share(one.revision, size if one.weight else 0, one.weight) for one in wanted]
    return [Share(r, -(-replicas * size // before), weight) for r, replicas, weight in wanted]
