"""Why something waits: the reason that matters most, its figures, what to do, when it starts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planner_yard import GIB, MAIN, NIGHT, PROMPT, SECOND, Yard, cores, pool

from hatoba_scheduler.domain.capacity import PoolRoom
from hatoba_scheduler.domain.planning.model import BackendSettings, Entry, Needs
from hatoba_scheduler.domain.records import LabelRequirement, Placement, Resources
from hatoba_scheduler.domain.states import Operator, WaitReason

ONE = cores(1.0)
HOUR = 3600.0


def busy() -> Yard:
    """A pool of four cores of which three are taken for an hour."""
    yard = Yard(pool("a", 4.0))
    yard.put(cores(3.0, timeout=HOUR))
    yard.plan()
    return yard


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        (cores(9.0), "Needs 9 cpus; that is more than any host has (the largest, a, has 4 cpus)."),
        (
            ONE._replace(secrets=("db",)),
            "Needs 1 cpu and the secrets db; no known host has that.",
        ),
        (
            ONE._replace(embedded_only=True),
            "Needs 1 cpu and the submitter's own interpreter; no known host has that.",
        ),
        (
            cores(1.0, placement=Placement(require=(LabelRequirement("z", Operator.IN, ("x",)),))),
            "Needs 1 cpu and the label z = x; no known host has the label z = x.",
        ),
        (
            cores(3.0, members=2),
            "Needs 2 times 3 cpus; all hosts of one backend hold 1 of that.",
        ),
    ],
)
def test_what_never_fits(needs: Needs, message: str) -> None:
    yard = busy()
    told = yard.ask(needs)
    assert (told.reason, told.message) == (WaitReason.NEVER_FITS, message)
    assert yard.planner.never_fits(needs) == message
    assert told.remedy


def label(key: str, *values: str, operator: Operator = Operator.IN) -> LabelRequirement:
    return LabelRequirement(key, operator, values)


@pytest.mark.parametrize(
    ("require", "lacks", "remedy"),
    [
        (
            (label("zone", "a"), label("gpu", "h100", "h200")),
            "the label gpu = h100 or h200",
            "Correct `placement`, or start the worker of a host with `--label gpu=h100`.",
        ),
        (
            (label("zone", operator=Operator.NOT_EXISTS),),
            "no label zone",
            "Correct `placement`, or add a host without such a label.",
        ),
        (
            (label("fast", operator=Operator.EXISTS),),
            "the label fast",
            "Correct `placement`, or start the worker of a host with `--label fast=VALUE`.",
        ),
        (
            (label("hatoba/host", "nowhere"),),
            "the label hatoba/host = nowhere",
            "Correct `placement`; `hatoba hosts list` names the hosts there are.",
        ),
        (
            (label("zone", "a"), label("disk", "ssd")),
            "that",
            "Ask for something else of a host, or add one that has it.",
        ),
    ],
)
def test_a_label_that_no_host_has_is_named(
    require: tuple[LabelRequirement, ...], lacks: str, remedy: str
) -> None:
    one = replace(pool("one", 4.0), labels=(("zone", "a"),))
    two = replace(pool("two", 4.0), labels=(("zone", "b"), ("disk", "ssd")))
    told = Yard(one, two).ask(cores(1.0, placement=Placement(require=require)))
    assert told.reason is WaitReason.NEVER_FITS
    assert told.message.endswith(f"; no known host has {lacks}.")
    assert told.remedy == remedy


def test_while_no_host_is_known_nothing_is_said_to_never_fit() -> None:
    yard = Yard()
    assert yard.planner.never_fits(cores(99.0)) == ""
    told = yard.ask(cores(99.0))
    assert told.reason is WaitReason.BACKEND_UNAVAILABLE
    assert told.message == "Needs 99 cpus; no host of backend 'hosts' takes work now."


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"quota": Resources(cpus=0.5)}, "queue 'night' may use at most 0.5 cpus."),
        (
            {"guaranteed": Resources(cpus=0.5), "no_borrowing": True},
            "queue 'night' may use no more than its own 0.5 cpus.",
        ),
    ],
)
def test_a_limit_below_the_needs_never_fits(limits: dict[str, object], message: str) -> None:
    yard = busy()
    yard.queue(NIGHT, **limits)
    told = yard.ask(ONE, queue=NIGHT)
    assert (told.reason, told.message) == (WaitReason.NEVER_FITS, f"Needs 1 cpu; {message}")


def test_a_gang_beyond_the_number_that_may_run_never_fits() -> None:
    yard = busy()
    yard.queue(NIGHT, max_running=1)
    told = yard.ask(cores(1.0, members=2), queue=NIGHT)
    assert told.message == "Needs 2 times 1 cpu; queue 'night' runs at most 1 tasks."


def test_a_cordoned_queue() -> None:
    yard = busy()
    yard.queue(MAIN, cordoned=True, cordon_reason="quarter's end")
    yard.queue(NIGHT, parent=MAIN)
    told = yard.ask(ONE, queue=NIGHT)
    assert told.reason is WaitReason.QUEUE_CORDONED
    assert told.message == "Queue 'default' is cordoned: quarter's end"


def test_a_backend_that_takes_no_work() -> None:
    yard = busy()
    yard.planner.set_backend(
        BackendSettings("hosts", available=False, reason="its breaker is open")
    )
    told = yard.ask(ONE)
    assert told.reason is WaitReason.BACKEND_UNAVAILABLE
    assert "backend 'hosts' takes no work: its breaker is open" in told.message


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            {"quota": Resources(cpus=3.5)},
            "Needs 1 cpu; queue 'default' uses 3 cpus of at most 3.5 cpus.",
        ),
        ({"max_running": 1}, "Needs 1 cpu; queue 'default' runs 1 of at most 1 tasks."),
    ],
)
def test_a_quota_that_is_used_up(limits: dict[str, object], message: str) -> None:
    yard = busy()
    yard.queue(MAIN, **limits)
    told = yard.ask(ONE)
    assert (told.reason, told.message) == (WaitReason.QUOTA, message)


def test_what_would_start_says_where() -> None:
    yard = busy()
    told = yard.ask(ONE)
    assert (told.reason, told.message) == (WaitReason.NONE, "It would start now on a.")
    assert [place.pool for place in told.places] == ["a"]
    assert (told.position, told.queue_length, told.estimate) == (1, 1, yard.now)


def test_who_is_next_and_who_is_behind() -> None:
    yard = busy()
    first, second = yard.put(ONE), yard.put(ONE)
    assert yard.explain(first).reason is WaitReason.NEXT
    told = yard.explain(second)
    assert told.reason is WaitReason.BEHIND
    assert told.message == "1 job of its queue with the same needs and priority go first."
    assert (told.position, told.queue_length) == (2, 2)


def test_no_room_has_the_figures_of_the_nearest_place() -> None:
    yard = Yard(
        PoolRoom("a", Resources(4.0, 8 * GIB)),
        PoolRoom("b", Resources(8.0, 4 * GIB)),
    )
    yard.put(Needs(("hosts",), Resources(7.0, GIB)))
    yard.put(Needs(("hosts",), Resources(3.0, GIB)))
    yard.plan()
    told = yard.ask(Needs(("hosts",), Resources(4.0, 6 * GIB)))
    assert told.reason is WaitReason.NO_ROOM
    assert told.message == "Needs 4 cpus, 6 GiB; free now on a: 1 of 4 cpus, 7 GiB of 8 GiB."
    assert [(one.pool, one.fits, one.message) for one in told.candidates] == [
        ("a", False, "free: 1 of 4 cpus, 7 GiB of 8 GiB"),
        ("b", False, "has 8 cpus, 4 GiB in all"),
    ]


def test_places_say_why_they_would_not_do() -> None:
    yard = Yard(
        pool("fits", 4.0, zone="x"),
        pool("other", 4.0, zone="y"),
        pool("none", 4.0),
        PoolRoom("closed", Resources(cpus=4.0), accepting=False, labels=(("zone", "x"),)),
        pool("small", 0.5, zone="x"),
    )
    require = (LabelRequirement("zone", Operator.IN, ("x",)),)
    told = yard.ask(cores(1.0, placement=Placement(require=require)))
    assert [(one.pool, one.message) for one in told.candidates] == [
        ("fits", "free: 4 of 4 cpus"),
        ("closed", "takes no work: cordoned or not connected"),
        ("small", "has 0.5 cpus in all"),
        ("none", "it has no zone"),
        ("other", "its zone is y"),
    ]
    assert [one.fits for one in told.candidates] == [True, False, False, False, False]


def test_at_most_twenty_places_are_told_of() -> None:
    yard = Yard(*(pool(f"p{number}", 1.0) for number in range(90)))
    assert len(yard.ask(ONE).candidates) == 20


def test_another_queue_goes_first() -> None:
    yard = Yard(pool("a", 1.0))
    yard.put(ONE, queue=MAIN)
    yard.plan()
    yard.put(ONE, queue=NIGHT)
    waits = yard.put(ONE, queue=MAIN)
    yard.plan()
    told = yard.explain(waits)
    assert told.reason is WaitReason.FAIR_SHARE
    assert told.message == (
        "Queue 'night' uses 0% of all at weight 1 and goes before "
        "queue 'default' with 100% at weight 1."
    )
    assert "Needs 1 cpu; free now on a: 0 of 1 cpus." in told.also


def test_a_gang_of_which_some_find_room() -> None:
    yard = Yard(pool("a", 4.0), pool("b", 3.0))
    for _ in range(2):
        yard.put(cores(2.0))
    yard.plan()
    told = yard.ask(cores(2.0, members=2))
    assert told.reason is WaitReason.GANG_INCOMPLETE
    assert told.message == "Needs 2 times 2 cpus at once; there is room for 1 of 2."


def test_a_backend_whose_budget_is_spent() -> None:
    yard = busy()
    yard.planner.set_backend(BackendSettings("hosts", slots=0))
    assert yard.ask(ONE).reason is WaitReason.THROTTLED


def test_a_gang_that_runs_at_its_limit() -> None:
    yard = Yard(pool("a", 4.0))
    yard.planner.put(Entry("array", MAIN, ONE, 0, fresh=iter(range(9)), room=0))
    told = yard.planner.explain("array", MAIN, ONE, 0, yard.now)
    assert told.reason is WaitReason.MAX_PARALLEL


def test_the_estimate_of_the_first_in_line() -> None:
    yard = busy()
    head = yard.put(cores(4.0))
    yard.plan()
    yard.passes(60)
    told = yard.explain(head)
    assert told.estimate == yard.now + round((HOUR - 60) * SECOND)
    assert told.estimate_basis == "the time limits of what runs on a"


def test_the_estimate_of_one_behind_others_of_its_kind() -> None:
    yard = busy()
    line = [yard.put(cores(4.0, timeout=HOUR)) for _ in range(3)]
    yard.plan()
    told = yard.explain(line[2])
    assert told.estimate == yard.now + round(3 * HOUR * SECOND)
    assert told.position == 3


def test_no_estimate_where_nobody_knows() -> None:
    yard = Yard(pool("a", 1.0))
    yard.put(ONE)
    yard.plan()
    told = yard.explain(yard.put(ONE))
    assert (told.estimate, told.estimate_basis) == (
        None,
        "unknown: something that runs where it could go has no time limit",
    )


def test_position_counts_lines_of_other_needs_and_priorities() -> None:
    yard = Yard(pool("a", 1.0))
    yard.put(ONE, preemptible=False)
    yard.plan()
    for number in range(10):
        yard.put(cores(1.0 + number % 3))
    yard.put(ONE, priority=3)
    last = yard.put(cores(1.0))
    yard.plan()
    told = yard.explain(last)
    assert (told.position, told.queue_length) == (12, 12)


def test_brief_is_the_same_reason_without_the_rest() -> None:
    yard = busy()
    name = yard.put(cores(4.0))
    yard.plan()
    full = yard.explain(name)
    brief = yard.planner.explain(name, MAIN, cores(4.0), 0, yard.now, brief=True)
    assert (brief.reason, brief.message) == (full.reason, full.message)
    assert (brief.position, brief.candidates) == (0, ())


def test_asking_changes_nothing() -> None:
    plain, asked = (Yard(pool("a", 6.0), pool("b", 3.0), rules=PROMPT) for _ in range(2))
    orders: list[list[str]] = []
    for yard in (plain, asked):
        order: list[str] = []
        for number in range(30):
            name = yard.put(
                cores(1.0 + number % 4, timeout=60.0 * (number % 3)),
                queue=(MAIN, NIGHT)[number % 2],
                priority=number % 5,
            )
            if yard is asked:
                yard.explain(name)
                yard.ask(cores(2.0, members=2), queue=NIGHT, priority=2)
            if number % 4 == 0:
                order += [one.uid for one in yard.plan()]
                yard.passes(7)
            if number % 6 == 0 and yard.running:
                yard.end(min(one.uid for one in yard.running.values()))
        orders.append(order)
    assert orders[0] == orders[1]
