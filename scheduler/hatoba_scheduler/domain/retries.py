"""Whether another attempt follows an ending, when, and what is changed for it.

The policy's rules are asked first, in their order; the first whose conditions all hold decides.
What no rule speaks of goes by its origin's budget. All that is decided is also said in words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from hatoba_scheduler.domain.causes import human_bytes
from hatoba_scheduler.domain.changing import changed
from hatoba_scheduler.domain.records import (
    Adapted,
    Cause,
    Job,
    RetryMutation,
    RetryPolicy,
    RetryRule,
    Task,
)
from hatoba_scheduler.domain.states import AttemptState, CauseCode, Desired, Origin, RetryAction

if TYPE_CHECKING:
    from hatoba_scheduler.domain.transitions import Outcome, View

MOST_AVOIDED = 8
"""So many hosts are avoided at most; of more the oldest is forgiven."""
_LABELS = {
    Origin.USER: "user errors",
    Origin.PREEMPTION: "preemption",
}
_NOTHING = RetryMutation()
_ELSEWHERE = RetryMutation(other_host=True)


class Chance(Protocol):
    """Where randomness comes from: `random.Random` is one."""

    def uniform(self, a: float, b: float) -> float:
        """Any number between two."""
        ...


class Verdict(NamedTuple):
    """What follows an ending: another attempt after `wait` seconds, or none; and why, in words."""

    retry: bool
    wait: float
    adapted: Adapted
    note: str = ""
    charge: Origin | None = None
    """Whose budget the ending is charged to; None: nobody's."""


class _Match(NamedTuple):
    """The rule that speaks of an ending, and its number from 0."""

    place: int
    rule: RetryRule


def back_off(job: Job, task: Task, rng: Chance) -> float:
    """Seconds until the next attempt: doubling from the policy's first, with full jitter."""
    counted = task.user_failures + task.infrastructure_failures + task.preemptions
    failures = max(counted, sum(task.adapted.rule_uses))
    ceiling = min(job.retries.max_backoff, job.retries.backoff * 2.0 ** min(failures, 20))
    return rng.uniform(0, ceiling)


def budget(policy: RetryPolicy, origin: Origin) -> int:
    """How many retries a policy pays for endings of an origin."""
    if origin is Origin.USER:
        return policy.user
    return policy.preemption if origin is Origin.PREEMPTION else policy.infrastructure


def spent(task: Task, origin: Origin) -> int:
    """How many endings of an origin a task has had."""
    if origin is Origin.USER:
        return task.user_failures
    return task.preemptions if origin is Origin.PREEMPTION else task.infrastructure_failures


def charge(task: Task, origin: Origin | None) -> Task:
    """The task with one more ending laid to an origin; unchanged for None."""
    if origin is None:
        return task
    if origin is Origin.USER:
        return changed(task, user_failures=task.user_failures + 1)
    if origin is Origin.PREEMPTION:
        return changed(task, preemptions=task.preemptions + 1)
    return changed(task, infrastructure_failures=task.infrastructure_failures + 1)


def label(origin: Origin) -> str:
    """An origin's budget in words."""
    return _LABELS.get(origin, "infrastructure")


def decide(view: View, outcome: Outcome) -> Verdict:
    """What follows an attempt that ended so. `outcome.wait` is the back-off drawn for it."""
    task, cause = view.task, outcome.cause
    if cause is None or outcome.state is AttemptState.CANCELLED:
        return Verdict(False, 0.0, task.adapted, charge=cause.origin if cause else None)
    adapted = _lost_spot(task.adapted, cause)
    match = _matching(view.job.retries, cause)
    payer = _payer(match, outcome, cause)
    if view.job.desired is not Desired.RUN:
        return Verdict(False, 0.0, adapted, charge=payer)
    refusal = _refusal(view, outcome, match)
    if refusal:
        return Verdict(False, 0.0, adapted, f"No retry: {refusal}.", payer)
    mutate = _mutation(match, cause)
    after = _mutated(_used(adapted, match), mutate, view, outcome)
    note = _note(view, outcome, match, after)
    return Verdict(True, outcome.wait, after, note, payer)


def _lost_spot(adapted: Adapted, cause: Cause) -> Adapted:
    if cause.code is not CauseCode.SPOT_RECLAIMED:
        return adapted
    return changed(adapted, spot_losses=adapted.spot_losses + 1)


def _matching(policy: RetryPolicy, cause: Cause) -> _Match | None:
    for place, rule in enumerate(policy.rules):
        if _speaks_of(rule, cause):
            return _Match(place, rule)
    return None


def _speaks_of(rule: RetryRule, cause: Cause) -> bool:
    if rule.causes and cause.code not in rule.causes:
        return False
    if rule.origins and cause.origin not in rule.origins:
        return False
    if not rule.exit_codes:
        return True
    return cause.code is CauseCode.EXIT_CODE and cause.exit_code in rule.exit_codes


def _payer(match: _Match | None, outcome: Outcome, cause: Cause) -> Origin | None:
    """Capacity is never charged; a user error that a rule's own limit pays for neither."""
    if not outcome.charged or cause.origin is Origin.CAPACITY:
        return None
    return None if _pays_itself(match, cause) else cause.origin


def _pays_itself(match: _Match | None, cause: Cause) -> bool:
    """A user error is paid by its rule's limit, where it has one, instead of the user budget."""
    return match is not None and match.rule.limit is not None and cause.origin is Origin.USER


def _refusal(view: View, outcome: Outcome, match: _Match | None) -> str:
    """Why no other attempt follows; empty: one does."""
    cause = outcome.cause
    assert cause is not None
    if match is not None:
        if match.rule.action is RetryAction.FAIL:
            return f"rule {match.place + 1} says to fail"
        limit = match.rule.limit
        if limit is not None and _uses(view.task.adapted, match.place) >= limit:
            return f"the limit of {limit} of rule {match.place + 1} is reached"
    if not outcome.charged or cause.origin is Origin.CAPACITY:
        return ""
    if not (cause.retryable or _named(match, cause)):
        return f"{cause.code.name} would come again"
    if _pays_itself(match, cause):
        return ""
    most = budget(view.job.retries, cause.origin)
    if spent(view.task, cause.origin) < most:
        return ""
    return f"the budget of {most} for {label(cause.origin)} is spent"


def _named(match: _Match | None, cause: Cause) -> bool:
    """A rule that names the very cause is taken at its word, except of what policy ended."""
    return (
        match is not None and cause.code in match.rule.causes and cause.origin is not Origin.POLICY
    )


def _uses(adapted: Adapted, place: int) -> int:
    return adapted.rule_uses[place] if place < len(adapted.rule_uses) else 0


def _used(adapted: Adapted, match: _Match | None) -> Adapted:
    if match is None:
        return adapted
    uses = list(adapted.rule_uses) + [0] * (match.place + 1 - len(adapted.rule_uses))
    uses[match.place] += 1
    return changed(adapted, rule_uses=tuple(uses))


# -- what is changed ----------------------------------------------------------------------------


def _mutation(match: _Match | None, cause: Cause) -> RetryMutation:
    """What the rule says; without one a faulty device is left behind."""
    if match is not None:
        return match.rule.mutate
    return _ELSEWHERE if cause.code is CauseCode.DEVICE_FAULT else _NOTHING


def _mutated(adapted: Adapted, mutate: RetryMutation, view: View, outcome: Outcome) -> Adapted:
    if mutate == _NOTHING:
        return adapted
    memory = _more_memory(view, mutate, outcome.most_memory)
    avoid = adapted.avoid
    host = view.attempt.host
    if mutate.other_host and host and host not in avoid:
        avoid = (*avoid, host)[-MOST_AVOIDED:]
    losses = mutate.on_demand_after and adapted.spot_losses >= mutate.on_demand_after
    return changed(
        adapted,
        memory=memory or adapted.memory,
        avoid=avoid,
        on_demand=adapted.on_demand or bool(losses),
    )


def memory_of(job: Job, task: Task) -> int:
    """Bytes that a task asks for now; 0: it states none."""
    return task.adapted.memory or job.resources.memory


def _more_memory(view: View, mutate: RetryMutation, most: int) -> int:
    """Bytes to ask for next; 0: as before. Never more than the largest place there is has."""
    asked = memory_of(view.job, view.task)
    if not asked or mutate.memory_factor <= 1:
        return 0
    caps = [cap for cap in (mutate.memory_max, most) if cap]
    wanted = min([round(asked * mutate.memory_factor), *caps])
    return wanted if wanted > asked else 0


# -- in words -----------------------------------------------------------------------------------


def _note(view: View, outcome: Outcome, match: _Match | None, after: Adapted) -> str:
    rule = f" by rule {match.place + 1}" if match else ""
    changes = _changes(view, after)
    told = f"; {', '.join(changes)}{rule}" if changes else ""
    return f"{_paid(view, outcome, match, rule)} in {outcome.wait:.1f} s{told}."


def _paid(view: View, outcome: Outcome, match: _Match | None, rule: str) -> str:
    cause = outcome.cause
    assert cause is not None
    if not outcome.charged or cause.origin is Origin.CAPACITY:
        return "Tried again without charge"
    if match is not None and _pays_itself(match, cause):
        number = _uses(view.task.adapted, match.place) + 1
        return f"Retry {number} of {match.rule.limit}{rule}"
    number = spent(view.task, cause.origin) + 1
    return f"Retry {number} of {budget(view.job.retries, cause.origin)} for {label(cause.origin)}"


def _changes(view: View, after: Adapted) -> list[str]:
    before = view.task.adapted
    told = []
    if after.memory != before.memory:
        asked = memory_of(view.job, view.task)
        told.append(f"memory {human_bytes(asked)} -> {human_bytes(after.memory)}")
    if after.avoid != before.avoid:
        told.append(f"not on {after.avoid[-1]} while there is another")
    if after.on_demand and not before.on_demand:
        told.append(f"no spot capacity after {after.spot_losses} losses of it")
    return told
