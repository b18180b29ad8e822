"""What users of a cluster rely on, told as scenarios on the virtual clock."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable

import pytest

from hatoba_scheduler.domain.capacity import PoolRoom
from hatoba_scheduler.domain.causes import Ending, ExitKind
from hatoba_scheduler.domain.records import (
    LabelRequirement,
    Placement,
    Resources,
    RetryMutation,
    RetryPolicy,
    RetryRule,
    Terms,
)
from hatoba_scheduler.domain.states import (
    CauseCode,
    GangPolicy,
    JobState,
    Operator,
    Spot,
    Strategy,
    WaitReason,
)
from hatoba_scheduler.simulation.agenda import SECOND
from hatoba_scheduler.simulation.cluster import Span
from hatoba_scheduler.simulation.script import Run, always, in_turn
from hatoba_scheduler.simulation.simulation import Ask, Simulation

J = JobState
CPU = Resources(cpus=1.0)
HOUR, DAY = 3600.0, 86_400.0
BAD = Ending(ExitKind.EXITED, 3)
LOST = Ending(ExitKind.LOST)


def host(name: str, cpus: float = 4.0, **more: object) -> PoolRoom:
    """A pool with so many cores."""
    memory, gpus = int(more.pop("memory", 0)), int(more.pop("gpus", 0))  # type: ignore[call-overload]
    ids = tuple(f"{name}-gpu{n}" for n in range(gpus))
    labels = tuple(sorted(dict(more.pop("labels", {})).items()))  # type: ignore[call-overload]
    return PoolRoom(name, Resources(cpus, memory, gpus, 100), ids, labels=labels, **more)  # type: ignore[arg-type]


def cluster(*pools: PoolRoom) -> Simulation:
    """A simulation with these pools of the backend `hosts`."""
    sim = Simulation()
    sim.pools("hosts", *pools)
    return sim


def overlapping(spans: Iterable[Span]) -> list[tuple[Span, Span]]:
    """Pairs of runs of one task that ran at the same time."""
    found, last = [], dict[tuple[str, int], Span]()
    for span in sorted(spans, key=lambda span: span.start):
        before = last.get((span.uid, span.index))
        if before is not None and (not before.end or before.end > span.start):
            found.append((before, span))
        last[span.uid, span.index] = span
    return found


def most_at_once(spans: Iterable[Span]) -> int:
    """How many ran at the same time at most."""
    moments = [(s.start, 1) for s in spans] + [(s.end, -1) for s in spans if s.end]
    counts = itertools.accumulate(step for _, step in sorted(moments))
    return max(counts, default=0)


# -- shares and order -----------------------------------------------------------------------------


def test_three_queues_share_by_weight() -> None:
    """1:2:3 under saturation, within 2 % after 1,000 jobs."""
    sim = cluster(host("a", 30.0))
    weights = {"one": 1.0, "two": 2.0, "three": 3.0}
    for name, weight in weights.items():
        sim.queue(name, weight=weight)
        sim.submit_all([Ask(name, CPU, name)] * 1_000, always(Run(60.0)))
    while len(sim.cluster.spans) < 1_000:
        sim.run_for(60.0)
    queues = Counter(sim.job(span.uid).queue for span in sim.cluster.spans)
    total = sum(queues.values())
    for name, weight in weights.items():
        assert queues[name] / total == pytest.approx(weight / 6, abs=0.02 * weight / 6 + 1e-3)


def test_a_flood_keeps_nobody_waiting() -> None:
    """20,000 jobs of one queue are there first; the other's first job is next."""
    sim = cluster(host("a", 2.0))
    sim.queue("flood")
    sim.queue("calm")
    sim.submit_all([Ask("flood", CPU, "flood")] * 20_000, always(Run(100.0)))
    sim.run_for(150.0)
    late = sim.submit(Ask("calm", CPU, "calm"))
    sim.run_for(101.0)
    assert sim.spans(late), "the first place that became free was not theirs"


def test_priority_goes_first_and_age_ends_starvation() -> None:
    """A low job behind an endless stream of higher ones starts within days, not never."""
    sim = cluster(host("a", 1.0))
    low = sim.submit(Ask("low", CPU, priority=0))
    for _ in range(5 * 24):
        sim.submit(Ask("high", CPU, priority=10), always(Run(HOUR)))
    first = sim.submit(Ask("first", CPU, priority=20), always(Run(HOUR)))
    sim.run_for(1.0)
    assert [span.uid for span in sim.cluster.spans] in ([low], [first])
    for _ in range(5 * 24):
        sim.submit(Ask("high", CPU, priority=10), always(Run(HOUR)))
        sim.run_for(HOUR)
    assert not sim.spans(low)
    sim.run_for(DAY)
    assert sim.spans(low)


def test_a_quota_holds_and_the_guarantee_is_taken_back() -> None:
    """One queue borrows all; when the other wants its own, it has it again."""
    sim = cluster(host("a", 10.0))
    sim.queue("mine", guaranteed=Resources(cpus=6.0))
    sim.queue("theirs", guaranteed=Resources(cpus=4.0))
    sim.queue("small", quota=Resources(cpus=1.0))
    borrowed = sim.submit_all([Ask("t", CPU, "theirs")] * 10, always(Run(DAY)))
    small = sim.submit_all([Ask("s", CPU, "small")] * 3, always(Run(60.0)))
    sim.run_for(60.0)
    assert sum(sim.state(uid) is J.RUNNING for uid in borrowed) >= 9
    assert most_at_once(s for uid in small for s in sim.spans(uid)) <= 1
    mine = sim.submit_all([Ask("m", CPU, "mine")] * 8, always(Run(DAY)))
    sim.run_for(600.0)
    assert sum(sim.state(uid) is J.RUNNING for uid in mine) == 6
    assert sum(sim.state(uid) is J.RUNNING for uid in borrowed) in (3, 4)


# -- preemption -----------------------------------------------------------------------------------


def test_a_higher_job_takes_a_place_and_the_lower_goes_on_where_it_was() -> None:
    """The victim saves a checkpoint and repeats no work that was saved."""
    sim = cluster(host("a", 2.0))
    low = sim.submit(Ask("low", Resources(cpus=2.0)), always(Run(HOUR, checkpoint_every=600.0)))
    sim.run_for(1_000.0)
    high = sim.submit(Ask("high", Resources(cpus=2.0), priority=100), always(Run(600.0)))
    sim.run()
    first, second = sim.spans(low)
    (between,) = sim.spans(high)
    assert first.end <= between.start
    assert between.end <= second.start
    assert second.work == pytest.approx(HOUR - (first.end - first.start) / SECOND, abs=2.0)
    assert [e.reason for e in sim.events(low)].count("preempt") == 1
    assert sim.state(low) is J.SUCCEEDED


def test_nothing_is_preempted_for_a_job_that_would_not_run_anyway() -> None:
    """Two of three places are of a higher job: taking the third helps nobody."""
    sim = cluster(host("a", 3.0))
    sim.submit(Ask("top", Resources(cpus=2.0), priority=200), always(Run(HOUR)))
    low = sim.submit(Ask("low", CPU), always(Run(HOUR)))
    sim.run_for(10.0)
    sim.submit(Ask("high", Resources(cpus=3.0), priority=100), always(Run(60.0)))
    sim.run_for(600.0)
    assert sim.state(low) is J.RUNNING
    assert len(sim.spans(low)) == 1


def test_the_cheapest_victims_are_taken() -> None:
    """Lowest priority first; of these the one that loses least work since its checkpoint."""
    sim = cluster(host("a", 3.0))
    middle = sim.submit(Ask("middle", CPU, priority=50), always(Run(DAY)))
    unsaved = sim.submit(Ask("unsaved", CPU), always(Run(DAY)))
    saved = sim.submit(Ask("saved", CPU), always(Run(DAY, checkpoint_every=60.0)))
    sim.run_for(HOUR)
    sim.submit(Ask("high", CPU, priority=100), always(Run(HOUR)))
    sim.run_for(600.0)
    assert [sim.state(uid) for uid in (middle, unsaved)] == [J.RUNNING, J.RUNNING]
    assert len([e for e in sim.events(saved) if e.reason == "preempt"]) == 1


def test_no_job_is_preempted_more_often_than_its_policy_says() -> None:
    """After two losses of its place it stays."""
    sim = cluster(host("a", 1.0))
    low = sim.submit(Ask("low", CPU, terms=Terms(max_preemptions=2)), always(Run(DAY)))
    for _ in range(5):
        sim.run_for(600.0)
        sim.submit(Ask("high", CPU, priority=100), always(Run(60.0)))
    sim.run()
    assert [e.reason for e in sim.events(low)].count("preempt") == 2


def test_a_preempted_job_starts_no_war() -> None:
    """Back in the queue at once, it takes nobody's place in turn."""
    sim = cluster(host("a", 4.0))
    lows = sim.submit_all([Ask("low", CPU, priority=1)] * 4, always(Run(HOUR)))
    sim.run_for(60.0)
    highs = sim.submit_all([Ask("high", CPU, priority=2)] * 2, always(Run(HOUR)))
    sim.run()
    taken = Counter(e.job_uid for e in sim.books.events if e.reason == "preempt")
    assert sum(taken.values()) == 2
    assert set(taken) <= set(lows)
    assert all(len(sim.spans(uid)) == 1 for uid in highs)


# -- gangs ----------------------------------------------------------------------------------------


def gang(size: int, policy: GangPolicy = GangPolicy.FAIL, **terms: object) -> Ask:
    """A gang of one core each."""
    made = Terms(gang=True, gang_policy=policy, **terms)  # type: ignore[arg-type]
    return Ask("gang", CPU, size=size, terms=made)


def test_a_gang_whose_eighth_member_finds_no_place_starts_nobody() -> None:
    """Until it does; then all begin at one moment."""
    sim = cluster(host("a"), host("b"))
    other = sim.submit(Ask("other", CPU), always(Run(HOUR)))
    sim.run_for(1.0)
    uid = sim.submit(gang(8), always(Run(600.0)))
    sim.run_for(HOUR / 2)
    assert sim.spans(uid) == []
    assert sim.explain(uid).reason is WaitReason.GANG_INCOMPLETE
    sim.run()
    starts = {span.start for span in sim.spans(uid)}
    assert len(starts) == 1
    assert min(starts) >= sim.spans(other)[0].end
    assert sim.state(uid) is J.SUCCEEDED


def test_generation_two_begins_when_generation_one_is_gone() -> None:
    """A member is lost in mid-run: all stop, then all begin anew."""
    sim = cluster(*(host(name, 1.0) for name in "abcdefgh"))
    uid = sim.submit(gang(8, GangPolicy.RESTART), always(Run(600.0, stops_in=5.0)))
    sim.run_for(60.0)
    lost = sim.spans(uid)[3].pool
    sim.lose_pool("hosts", lost)
    sim.run_for(60.0)
    assert {span.generation for span in sim.spans(uid)} == {1}
    sim.pools("hosts", host("new", 1.0))
    sim.run()
    first = [span for span in sim.spans(uid) if span.generation == 1]
    second = [span for span in sim.spans(uid) if span.generation == 2]
    assert len(first) == len(second) == 8
    assert max(span.end for span in first) <= min(span.start for span in second)
    assert sim.job(uid).generation == 2
    assert sim.state(uid) is J.SUCCEEDED


def test_one_failed_member_fails_its_gang() -> None:
    """By the policy FAIL the others are stopped."""
    sim = cluster(host("a", 8.0))
    uid = sim.submit(gang(4), lambda index, _: Run(60.0, BAD) if index == 2 else Run(HOUR))
    sim.run()
    assert sim.state(uid) is J.FAILED
    assert max(span.end for span in sim.spans(uid)) < sim.spans(uid)[0].start + 120 * SECOND


def test_a_gang_is_preempted_whole() -> None:
    """One core is wanted; all four members give way, and come back together."""
    sim = cluster(host("a", 4.0))
    uid = sim.submit(gang(4, GangPolicy.RESTART), always(Run(HOUR, checkpoint_every=60.0)))
    sim.run_for(600.0)
    sim.submit(Ask("high", CPU, priority=100), always(Run(600.0)))
    sim.run()
    generations = Counter(span.generation for span in sim.spans(uid))
    assert generations == {1: 4, 2: 4}
    assert overlapping(sim.cluster.spans) == []


# -- backfill -------------------------------------------------------------------------------------


def test_backfill_never_delays_the_head() -> None:
    """Small short jobs go before a large one only where they are sure to be over in time."""
    alone, beside = cluster(host("a", 4.0)), cluster(host("a", 4.0))
    start = _head_start(alone, lambda: None)
    small: list[str] = []
    others: list[str] = []

    def fill() -> None:
        short = Ask("short", CPU, terms=Terms(timeout=600.0))
        small.extend(beside.submit_all([short] * 8, always(Run(600.0))))
        slow = Ask("slow", CPU, terms=Terms(timeout=2 * HOUR))
        others.append(beside.submit(slow, always(Run(HOUR))))
        others.append(beside.submit(Ask("endless", CPU), always(Run(HOUR))))

    assert _head_start(beside, fill) == start
    assert sum(beside.spans(uid)[0].start < start for uid in small) >= 4
    assert all(beside.spans(uid)[0].start > start for uid in others)


def _head_start(sim: Simulation, fill: Callable[[], None]) -> int:
    """When a job that needs all of the host starts, of which three quarters are taken."""
    three = Ask("long", Resources(cpus=3.0), terms=Terms(timeout=HOUR))
    sim.submit(three, always(Run(HOUR)))
    sim.run_for(1.0)
    head = sim.submit(Ask("head", Resources(cpus=4.0)), always(Run(600.0)))
    sim.run_for(1.0)
    fill()
    sim.run()
    return sim.spans(head)[0].start


@pytest.mark.parametrize("looks", range(4))
def test_what_comes_later_never_takes_what_a_head_waits_for(looks: int) -> None:
    """However often the head was looked after before: nothing without a limit goes before it."""
    sim = cluster(host("a", 4.0))
    sim.submit(Ask("long", Resources(cpus=3.0), terms=Terms(timeout=HOUR)), always(Run(HOUR)))
    sim.run_for(1.0)
    sim.submit(Ask("head", Resources(cpus=4.0)), always(Run(600.0)))
    for _ in range(looks):
        sim.run_for(2.0)
        sim.plan()
    sim.run_for(2.0)
    endless = sim.submit(Ask("endless", CPU), always(Run(2 * HOUR)))
    sim.run_for(60.0)
    assert sim.spans(endless) == []


# -- order among jobs -----------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_a_chain_of_10_000_links_runs_in_order() -> None:
    """Each begins after the one before has succeeded."""
    sim = cluster(host("a"))
    last = sim.submit(Ask(resources=CPU), always(Run(1.0)))
    uids = [last]
    for _ in range(9_999):
        last = sim.submit(Ask(resources=CPU, after_ok=(last,)), always(Run(1.0)))
        uids.append(last)
    sim.run()
    assert all(sim.state(uid) is J.SUCCEEDED for uid in uids)
    spans = sim.cluster.spans
    assert [span.uid for span in spans] == uids
    assert all(a.end <= b.start for a, b in itertools.pairwise(spans))


def test_a_failure_falls_through_10_000_links() -> None:
    """None of them runs, all of them end."""
    sim = cluster(host("a"))
    first = last = sim.submit(Ask(resources=CPU), always(Run(1.0, BAD)))
    rest = []
    for _ in range(9_999):
        last = sim.submit(Ask(resources=CPU, after_ok=(last,)))
        rest.append(last)
    sim.run()
    assert sim.state(first) is J.FAILED
    assert all(sim.state(uid) is J.UPSTREAM_FAILED for uid in rest)
    assert len(sim.cluster.spans) == 1


def test_any_and_end() -> None:
    """One success is enough for after_any, any end for after_end."""
    sim = cluster(host("a"))
    good = sim.submit(Ask(resources=CPU), always(Run(60.0)))
    bad = sim.submit(Ask(resources=CPU), always(Run(10.0, BAD)))
    some = sim.submit(Ask(resources=CPU, after_any=(good, bad)))
    end = sim.submit(Ask(resources=CPU, after_end=(bad,)))
    none = sim.submit(Ask(resources=CPU, after_any=(bad,)))
    sim.run()
    assert [sim.state(uid) for uid in (some, end, none)] == [
        J.SUCCEEDED,
        J.SUCCEEDED,
        J.UPSTREAM_FAILED,
    ]


def test_an_array_of_a_million_costs_what_runs_of_it() -> None:
    """100 at once; a thousand have run when it is cancelled, and no more have rows."""
    sim = cluster(host("a", 1_000.0))
    uid = sim.submit(Ask(resources=CPU, size=1_000_000, max_parallel=100), always(Run(60.0)))
    while len(sim.spans(uid)) < 1_000:
        sim.run_for(60.0)
    assert most_at_once(sim.spans(uid)) == 100
    sim.cancel(uid)
    sim.run()
    rows = sim.rows(uid)
    assert rows.job.state is J.CANCELLED
    assert len(rows.tasks) < 1_300
    assert sum(rows.job.counts) == 1_000_000


# -- time -----------------------------------------------------------------------------------------


def test_dates_are_kept() -> None:
    """start_after, deadline and max_queue_time, over days."""
    sim = cluster(host("a", 1.0))
    tomorrow = sim.now + round(DAY * SECOND)
    later = sim.submit(Ask(resources=CPU, terms=Terms(start_after=tomorrow)))
    late = sim.submit(Ask(resources=CPU, terms=Terms(deadline=tomorrow)), always(Run(2 * DAY)))
    sim.run_for(1.0)
    hasty = sim.submit(Ask(resources=CPU, terms=Terms(max_queue_time=HOUR)))
    sim.run()
    assert sim.spans(later)[0].start >= tomorrow
    assert sim.state(late) is J.TIMED_OUT
    assert sim.job(late).cause is not None
    assert sim.job(late).end_time < tomorrow + 60 * SECOND
    assert sim.state(hasty) is J.TIMED_OUT
    assert sim.job(hasty).end_time < sim.job(hasty).create_time + 2 * HOUR * SECOND


def test_hold_keeps_back_and_is_undone() -> None:
    """Nothing of it runs while it is held."""
    sim = cluster(host("a"))
    uid = sim.submit(Ask(resources=CPU, held=True))
    sim.run_for(DAY)
    assert sim.spans(uid) == []
    sim.hold(uid, False)
    sim.run()
    assert sim.state(uid) is J.SUCCEEDED


def test_live_changes_of_priority_and_queue_are_obeyed() -> None:
    """A waiting job that is moved forward goes next."""
    sim = cluster(host("a", 1.0))
    sim.queue("other", max_running=1)
    stays = Ask(resources=CPU, terms=Terms(never_preempt=True))
    uids = sim.submit_all([stays] * 5, always(Run(60.0)))
    sim.run_for(1.0)
    sim.update(uids[4], priority=50)
    sim.update(uids[3], queue="other")
    sim.run()
    order = [span.uid for span in sim.cluster.spans]
    assert order[1] in (uids[4], uids[3])
    assert sorted(order) == sorted(uids)


# -- places ---------------------------------------------------------------------------------------


def test_labels_spread_and_pack() -> None:
    """Requirements hold; spread takes the emptiest, pack the fullest."""
    sim = cluster(
        host("a", 4.0, labels={"zone": "1"}),
        host("b", 4.0, labels={"zone": "1"}),
        host("c", 64.0, labels={"zone": "2"}),
    )
    zone = (LabelRequirement("zone", Operator.IN, ("1",)),)
    spread = Ask(resources=CPU, terms=Terms(placement=Placement(zone)))
    pack = Ask(resources=CPU, terms=Terms(placement=Placement(zone, strategy=Strategy.PACK)))
    sim.submit_all([spread] * 2, always(Run(DAY)))
    sim.run_for(1.0)
    assert sorted(span.pool for span in sim.cluster.spans) == ["a", "b"]
    sim.submit_all([pack] * 3, always(Run(DAY)))
    sim.run_for(1.0)
    packed = [span.pool for span in sim.cluster.spans[2:]]
    assert len(set(packed)) == 1


def test_apart_and_near() -> None:
    """Each task on a host of its own; a helper only where what it helps runs."""
    sim = cluster(*(host(name) for name in "abc"))
    apart = Terms(placement=Placement(apart=True))
    uid = sim.submit(
        Ask(resources=CPU, size=3, terms=apart, labels=(("role", "cache"),)), always(Run(DAY))
    )
    sim.run_for(1.0)
    assert len({span.pool for span in sim.spans(uid)}) == 3
    sim.cancel(uid)
    sim.run_for(60.0)
    lone = sim.submit(Ask(resources=CPU, labels=(("role", "cache"),)), always(Run(DAY)))
    near = Terms(placement=Placement(near=(("role", "cache"),)))
    away = Terms(placement=Placement(apart_from=(("role", "cache"),)))
    helper = sim.submit(Ask(resources=CPU, terms=near), always(Run(DAY)))
    other = sim.submit(Ask(resources=CPU, terms=away), always(Run(DAY)))
    sim.run_for(120.0)
    assert sim.spans(helper)[0].pool == sim.spans(lone)[0].pool
    assert sim.spans(other)[0].pool != sim.spans(lone)[0].pool


def test_gpus_are_exclusive() -> None:
    """No id is held by two attempts at once."""
    sim = cluster(host("a", 64.0, gpus=4))
    sim.submit_all([Ask(resources=Resources(cpus=1.0, gpus=2))] * 6, always(Run(60.0)))
    for _ in range(10):
        sim.run_for(20.0)
        live = {span.name for span in sim.cluster.running()}
        held = [
            gpu
            for rows in sim.books.all_rows()
            for attempt in rows.attempts.values()
            if attempt.name in live
            for gpu in attempt.gpus
        ]
        assert len(held) == len(set(held)) <= 4
    sim.run()


def test_the_cheapest_backend_that_fits_is_taken() -> None:
    """Until it is full."""
    sim = cluster(host("a", 1.0))
    sim.pools("dear", host("d", 10.0))
    sim.backend("hosts", cost_per_hour=1.0)
    sim.backend("dear", cost_per_hour=5.0)
    both = Terms(backends=("hosts", "dear"))
    sim.submit_all([Ask(resources=CPU, terms=both)] * 2, always(Run(600.0)))
    sim.run_for(1.0)
    assert sorted(span.backend for span in sim.cluster.spans) == ["dear", "hosts"]


def test_after_losses_of_spot_capacity_it_goes_where_it_can_stay() -> None:
    """A rule moves it to other capacity after two losses."""
    spot = {"spot": "true"}
    sim = cluster(host("s1", 4.0, labels=spot), host("s2", 4.0, labels=spot), host("z", 4.0))
    rule = RetryRule(causes=(CauseCode.SPOT_RECLAIMED,), mutate=RetryMutation(on_demand_after=2))
    ask = Ask(
        resources=Resources(cpus=4.0),
        terms=Terms(spot=Spot.PREFER),
        retries=RetryPolicy(rules=(rule,)),
    )
    uid = sim.submit(ask, always(Run(DAY, checkpoint_every=600.0)))
    for _ in range(2):
        sim.run_for(HOUR)
        sim.lose_pool("hosts", sim.spans(uid)[-1].pool, reclaimed=True)
    sim.run()
    pools = [span.pool for span in sim.spans(uid)]
    assert set(pools[:2]) == {"s1", "s2"}
    assert pools[2:] == ["z"]
    assert sim.state(uid) is J.SUCCEEDED


def test_out_of_memory_is_retried_with_more() -> None:
    """A rule doubles what it asks for."""
    sim = cluster(host("a", 4.0, memory=64 << 30))
    rule = RetryRule(
        causes=(CauseCode.OUT_OF_MEMORY,), limit=3, mutate=RetryMutation(memory_factor=2.0)
    )
    uid = sim.submit(
        Ask(resources=Resources(1.0, 4 << 30), retries=RetryPolicy(rules=(rule,))),
        in_turn(Run(10.0, Ending(ExitKind.OUT_OF_MEMORY)), Run(10.0)),
    )
    sim.run()
    attempt = sim.rows(uid).attempts[0]
    assert (attempt.number, attempt.reserved.memory) == (2, 8 << 30)
    (retry,) = [event for event in sim.events(uid) if event.reason == "retry"]
    assert "4 GiB -> 8 GiB" in retry.note


# -- all of it together ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_busy_week_leaves_nothing_undone(seed: int) -> None:
    """Random jobs, losses and cancels over a week; all end, and no two runs of a task overlap."""
    sim = Simulation(seed=seed)
    dice = random.Random(seed)
    sim.pools("hosts", *(host(f"h{n}", 8.0, gpus=2) for n in range(6)))
    for name in ("a", "b"):
        sim.queue(name, weight=1.0 + dice.random())
    uids: list[str] = []
    for _ in range(7 * 24):
        uids += [_some_job(sim, dice) for _ in range(dice.randrange(4))]
        if dice.random() < 0.05:
            name = f"h{dice.randrange(6)}"
            sim.lose_pool("hosts", name)
            sim.pools("hosts", host(name, 8.0, gpus=2))
        if uids and dice.random() < 0.1:
            sim.cancel(dice.choice(uids))
        sim.run_for(HOUR)
    sim.run()
    assert all(sim.state(uid).terminal for uid in uids)
    assert overlapping(sim.cluster.spans) == []


def _some_job(sim: Simulation, dice: random.Random) -> str:
    roll = dice.random
    size = 4 if roll() < 0.2 else 1
    terms = Terms(
        gang=size > 1 and roll() < 0.5,
        gang_policy=GangPolicy.RESTART,
        timeout=DAY if roll() < 0.5 else 0.0,
    )
    ask = Ask(
        resources=Resources(cpus=float(1 + int(roll() * 4)), gpus=int(roll() * 2)),
        queue="a" if roll() < 0.5 else "b",
        priority=int(roll() * 3) * 10,
        size=size,
        terms=terms,
        retries=RetryPolicy(user=1, infrastructure=5),
    )
    ending = BAD if roll() < 0.1 else Ending(ExitKind.EXITED)
    run = Run(HOUR * (0.1 + 4 * roll()), ending, checkpoint_every=900.0 if roll() < 0.5 else 0.0)
    return sim.submit(ask, always(run))
