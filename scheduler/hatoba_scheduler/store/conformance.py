"""What every store must do, as a pytest suite.

Derive a class from `StoreConformance` and give it a fixture `open_store`, which returns an async
callable `(directory, now) -> Store`; opening the same directory again finds what was stored.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from hatoba_scheduler.domain.ranges import Ranges
from hatoba_scheduler.domain.records import (
    Adapted,
    Attempt,
    AttemptWrite,
    BackendNote,
    Cause,
    Change,
    Checkpoint,
    Event,
    Host,
    Job,
    LabelRequirement,
    ManifestRef,
    MetricPoint,
    Micros,
    Placement,
    Queue,
    Resources,
    RetryMutation,
    RetryPolicy,
    RetryRule,
    Task,
    TaskWrite,
    Terms,
    TokenRecord,
    Usage,
)
from hatoba_scheduler.domain.states import (
    AttemptState,
    CauseCode,
    Desired,
    GangPolicy,
    JobState,
    Operator,
    Origin,
    Release,
    RetryAction,
    Spot,
    Strategy,
)
from hatoba_scheduler.store.base import (
    Applied,
    Duplicate,
    JobQuery,
    MetricQuery,
    Mismatch,
    Parked,
    RequestKey,
    Stale,
    Store,
    Submitted,
)
from hatoba_scheduler.store.errors import StoreClosed, WriteRefused
from hatoba_scheduler.store.samples import (
    counts,
    event_of,
    first_event,
    new_attempt,
    new_job,
    new_task,
    request_key,
    submission,
)

OpenStore = Callable[[Path, Callable[[], Micros]], Awaitable[Store]]

CAUSE = Cause(
    CauseCode.EXIT_CODE,
    Origin.USER,
    "exit code 3 — schade",
    False,
    3,
    None,
    (("path", "a/b"), ("line", "7")),
    ("last\n", "lines \x00"),
)
MANIFEST = ManifestRef("sha256:" + "ab" * 32, 2**40, 7)
CHECKPOINT = Checkpoint(12, 2, MANIFEST, (("loss", 0.1), ("acc", 1 / 3)), 99)
RULE = RetryRule(
    (CauseCode.OUT_OF_MEMORY,),
    (Origin.USER,),
    (137,),
    RetryAction.FAIL,
    4,
    RetryMutation(1.5, 2**40, True, 3),
)
TERMS = Terms(
    gang=True,
    gang_policy=GangPolicy.RESTART,
    gang_timeout=0.7,
    placement=Placement(
        (LabelRequirement("zone", Operator.NOT_IN, ("a", "b")),),
        (LabelRequirement("ssd", Operator.EXISTS),),
        Strategy.PACK,
        (("team", "vision"),),
        (("role", "cache"),),
        True,
    ),
    start_after=1,
    deadline=2,
    max_queue_time=0.3,
    timeout=0.4,
    stop_after=0.5,
    lost_after=0.6,
    never_preempt=True,
    max_preemptions=5,
    preempt_grace=0.0,
    spot=Spot.NEVER,
    backends=("cheap", "dear"),
    inherited=Ranges(((0, 2),)),
)
ADAPTED = Adapted(2**33, ("host-a",), True, 2, (0, 1), 3)


class Clock:
    """The time a store is told, in microseconds."""

    def __init__(self) -> None:
        self.now = 1_000

    def __call__(self) -> Micros:
        """What it shows."""
        return self.now


async def stored(store: Store, *jobs: Job, base_name: str = "train") -> list[Job]:
    """Submit jobs; as they are stored."""
    results = await store.submit([submission(job, base_name) for job in jobs])
    found = [result.job for result in results if isinstance(result, Submitted)]
    assert len(found) == len(jobs)
    return found


def moved(job: Job, state: JobState = JobState.RUNNING, expected: int | None = None) -> Change:
    """A job's step to a state, over its own version unless told otherwise."""
    after = replace(job, state=state, version=job.version + 1)
    return Change(
        after,
        job.version if expected is None else expected,
        events=(event_of(job, job.version + 1, None),),
    )


def launched(job: Job, index: int = 0, number: int = 1) -> Change:
    """A task's launch, with its attempt and event."""
    task, attempt = replace(new_task(job, index), attempt=number), new_attempt(job, index, number)
    after = replace(job, version=job.version + 1, state=JobState.LAUNCHING)
    return Change(
        after,
        job.version,
        (TaskWrite(task, 0),),
        (AttemptWrite(attempt, 0),),
        (event_of(job, job.version + 1, index),),
    )


def whole_job() -> Job:
    """A job of which no field has its default."""
    return replace(
        new_job(5, "vision"),
        queue="fast",
        priority=-3,
        max_parallel=2,
        fail_fast=True,
        resources=Resources(0.1, 2**35, 2, 1, (("license", 2),)),
        retries=RetryPolicy(1, 2, 3, 0.3, 1e6, (RULE,)),
        desired=Desired.CANCELLED,
        version=4,
        settings_version=3,
        unstarted=Ranges(((0, 2), (4, 5))),
        unstarted_state=JobState.HELD,
        counts=counts(HELD=3, RUNNING=2),
        hold=True,
        blocked_on=("a", "b"),
        start_time=5,
        end_time=6,
        cause=CAUSE,
        sampled=True,
        rerun_of="older",
        stop_grace=0.7,
        labels=(("team", "vision"), ("größe", "ß")),
        secrets=("WANDB",),
        embedded_only=True,
        outputs=MANIFEST,
        restore=CHECKPOINT,
        terms=TERMS,
        blocked_any=("c",),
        blocked_end=("d", "e"),
        generation=2,
        dropped=Ranges(((7, 9),)),
    )


def _another(job: Job, number: int) -> Job:
    """A new job that is like this one."""
    return replace(
        job,
        uid=new_job().uid,
        name="",
        create_time=1_000 + number,
        trace_id=f"{number:032x}",
        span_id=f"{number:016x}",
        sampled=number % 2 == 0,
    )


def whole_task(job: Job) -> Task:
    """A task of which no field has its default."""
    return Task(
        job.uid, 3, JobState.FAILED, 6, 4, 7, 1, 2, 3, CAUSE, CHECKPOINT, MANIFEST, 8, 9, ADAPTED
    )


def whole_attempt(job: Job) -> Attempt:
    """An attempt of which no field has its default."""
    return replace(
        new_attempt(job, 3, 4),
        host="host-a",
        gpus=("GPU-1", "GPU-2"),
        state=AttemptState.STOPPING,
        release=Release.RELEASING,
        handle=b"\x00\xff",
        nonce="n",
        intended=AttemptState.CANCELLED,
        unknown_since=3,
        claim_time=4,
        start_time=5,
        end_time=6,
        cause=CAUSE,
        usage=Usage(0.1, 2, 0.3, "cgroup"),
        checkpoint=CHECKPOINT,
        outputs=MANIFEST,
        log_sizes=(("stdout", 10), ("stderr", 0)),
        reserved=Resources(0.5, 1, 1, 0),
        generation=3,
        address="10.0.0.7:29500",
    )


async def all_events(store: Store) -> list[Event]:
    """Every event, read by cursor in small pages."""
    found: list[Event] = []
    while page := await store.events(found[-1].seq if found else 0, 7):
        found += page
    return found


class StoreConformance:
    """Every sentence of `Store`, as a test."""

    @pytest.fixture
    def clock(self) -> Clock:
        """The clock of `store`."""
        return Clock()

    @pytest.fixture
    def elsewhere(self, tmp_path: Path) -> Path:
        """A second directory."""
        found = tmp_path / "elsewhere"
        found.mkdir()
        return found

    @pytest.fixture
    async def store(
        self, open_store: OpenStore, tmp_path: Path, clock: Clock
    ) -> AsyncIterator[Store]:
        """An empty store."""
        found = await open_store(tmp_path, clock)
        yield found
        await found.close()

    # -- submit -------------------------------------------------------------------------------

    async def test_jobs_are_numbered_per_project_and_name(self, store: Store) -> None:
        """NAME-N counts from 1 by project and NAME, over calls as within one."""
        first = await store.submit([submission(), submission(base_name="a-2"), submission()])
        other = await store.submit([submission(new_job(project="lab")), submission()])
        names = [found.job.name for found in first + other if isinstance(found, Submitted)]
        assert names == ["train-1", "a-2-1", "train-2", "train-1", "train-3"]

    async def test_a_job_is_stored_whole(self, store: Store) -> None:
        """Job, spec and first event are there when submit returns."""
        (job,) = await stored(store, given := whole_job(), base_name="digits")
        assert job == replace(given, name="digits-1")
        assert await store.job(job.uid) == job
        assert await store.job_by_name("vision", "digits-1") == job
        assert await store.specs([job.uid, "none"]) == {job.uid: submission().spec}
        (event,) = await store.events(0, 10)
        assert event == replace(first_event(given), job_name="digits-1", seq=1)

    async def test_the_answer_tells_the_first_event(self, store: Store) -> None:
        """`Submitted.seq` is the position of the job's first event."""
        results = await store.submit([submission() for _ in range(3)])
        assert [found.seq for found in results if isinstance(found, Submitted)] == [1, 2, 3]

    async def test_a_repeated_request_changes_nothing(self, store: Store) -> None:
        """An item whose key is known is a Duplicate that names the first job's uid."""
        item = submission()
        (first,) = await store.submit([item])
        again = replace(submission(), request=item.request)
        assert await store.submit([again]) == [Duplicate(item.job.uid)]
        assert isinstance(first, Submitted)
        assert await store.job(again.job.uid) is None
        assert await store.event_bounds() == (1, 1)
        (later,) = await stored(store, new_job())
        assert later.name == "train-2"

    async def test_a_repeated_request_with_another_body_is_a_mismatch(self, store: Store) -> None:
        """Both hashes are told, in hex."""
        item = submission()
        await store.submit([item])
        assert item.request is not None
        other = replace(submission(), request=item.request._replace(body_sha256=b"\x02" * 32))
        assert await store.submit([other]) == [Mismatch("01" * 32, "02" * 32)]

    async def test_a_key_counts_once_within_a_call(self, store: Store) -> None:
        """Two items of one call with the same request key are one job."""
        item, other = submission(), submission()
        results = await store.submit([item, replace(other, request=item.request)])
        assert isinstance(results[0], Submitted)
        assert results[1] == Duplicate(item.job.uid)

    async def test_keys_are_scoped_by_project_and_method(self, store: Store) -> None:
        """The same id in another project or method is another request."""
        key = request_key(new_job(), "same")
        keys = [key, key._replace(project="lab"), key._replace(method="RerunJob")]
        results = await store.submit([replace(submission(), request=one) for one in keys])
        assert [type(found) for found in results] == [Submitted] * 3

    async def test_items_without_a_key_are_always_new(self, store: Store) -> None:
        """No key, no memory."""
        results = await store.submit([submission(keyed=False), submission(keyed=False)])
        assert [type(found) for found in results] == [Submitted] * 2

    async def test_parallel_repeats_make_one_job_a_key(self, store: Store) -> None:
        """20 keys, each submitted by 10 callers at once: 20 jobs."""
        ids = [f"key-{number}" for number in range(20)] * 10
        items = [replace(submission(), request=request_key(new_job(), one)) for one in ids]
        results = await asyncio.gather(*(store.submit([item]) for item in items))
        assert sum(isinstance(found[0], Submitted) for found in results) == 20
        assert sum((await store.count_jobs(JobQuery("default"))).values()) == 20

    async def test_a_project_gets_its_default_queue(self, store: Store) -> None:
        """Made by the first submit, and left as it is by the next."""
        await stored(store, new_job(project="lab"))
        queue = await store.queue("lab", "default")
        assert queue is not None
        changed = replace(queue, version=queue.version + 1, weight=3.0)
        await store.put_queue(changed, queue.version)
        await stored(store, new_job(project="lab"))
        assert await store.queue("lab", "default") == changed

    async def test_a_refused_submit_stores_nothing(self, store: Store) -> None:
        """One transaction: the item before the bad one is not stored either."""
        (known,) = await stored(store, new_job())
        good, bad = submission(), submission(replace(new_job(), uid=known.uid))
        with pytest.raises(WriteRefused):
            await store.submit([good, bad])
        assert await store.job(good.job.uid) is None
        assert await store.event_bounds() == (1, 1)

    async def test_a_refused_call_takes_no_other_with_it(self, store: Store) -> None:
        """Calls that overlap with a refused one are stored."""
        (known,) = await stored(store, new_job())
        items = [submission() for _ in range(20)]
        items[7] = submission(replace(new_job(), uid=known.uid))
        results = await asyncio.gather(
            *(store.submit([item]) for item in items), return_exceptions=True
        )
        kinds = [type(found) for found in results]
        assert kinds == [list] * 7 + [WriteRefused] + [list] * 12
        assert [event.seq for event in await all_events(store)] == list(range(1, 21))

    async def test_text_that_is_no_unicode_is_refused(self, store: Store) -> None:
        """Half a surrogate pair cannot be stored; the store goes on."""
        with pytest.raises(WriteRefused):
            await store.submit([submission(replace(new_job(), created_by="\ud800"))])
        with pytest.raises(WriteRefused):
            await store.submit([submission(replace(new_job(), priority=2**70))])
        await stored(store, new_job())

    async def test_thousands_in_one_call(self, store: Store) -> None:
        """A call may be as large as it likes."""
        results = await store.submit([submission() for _ in range(2_345)])
        names = [found.job.name for found in results if isinstance(found, Submitted)]
        assert names[0] == "train-1"
        assert names[-1] == "train-2345"

    # -- apply --------------------------------------------------------------------------------

    async def test_a_change_is_written_whole(self, store: Store) -> None:
        """Job, task, attempt and events; their positions come back in order."""
        (job,) = await stored(store, whole_job())
        after = replace(
            job,
            queue="slow",
            priority=9,
            state=JobState.STOPPING,
            desired=Desired.RUN,
            version=5,
            settings_version=4,
            unstarted=Ranges(),
            unstarted_state=JobState.QUEUED,
            counts=counts(STOPPING=5),
            hold=False,
            blocked_on=(),
            start_time=11,
            end_time=12,
            cause=None,
            outputs=None,
        )
        task, attempt = whole_task(job), whole_attempt(job)
        events = (event_of(job, 2, 3), replace(event_of(job, 3, 4), cause=CAUSE, attempt=4))
        change = Change(after, 4, (TaskWrite(task, 0),), (AttemptWrite(attempt, 0),), events)
        assert await store.apply([change]) == [Applied((2, 3))]
        assert await store.job(job.uid) == after
        assert await store.tasks(job.uid, -1, 10) == [task]
        assert await store.attempt(attempt.name) == attempt
        found = await store.attempts_by_name(["nobody", attempt.name])
        assert found == {attempt.name: attempt}
        assert await store.events(1, 10) == [replace(events[0], seq=2), replace(events[1], seq=3)]

    async def test_rows_are_written_over(self, store: Store) -> None:
        """Over the version they were decided on."""
        (job,) = await stored(store, new_job())
        await store.apply([launched(job)])
        task = replace(whole_task(job), index=0, version=2)
        attempt = replace(
            whole_attempt(job), name=new_attempt(job).name, index=0, number=1, version=2
        )
        after = replace(job, version=3)
        write = (TaskWrite(task, 1),), (AttemptWrite(attempt, 1),)
        assert await store.apply([Change(after, 2, *write)]) == [Applied(())]
        assert await store.tasks(job.uid, -1, 10) == [task]
        assert await store.attempts(job.uid, 0, (-1, 0), 10) == [attempt]

    async def test_what_submit_fixed_stays(self, store: Store) -> None:
        """A change cannot rename a job or change its size."""
        (job,) = await stored(store, new_job())
        other = replace(job, name="x-9", size=7, created_by="eve", labels=(("a", "b"),))
        await store.apply([moved(other)])
        assert await store.job(job.uid) == replace(job, state=JobState.RUNNING, version=2)

    @pytest.mark.parametrize("guard", ["job", "task", "attempt", "new task", "new attempt"])
    async def test_a_guard_that_does_not_hold_is_stale(self, store: Store, guard: str) -> None:
        """Nothing of the change is written, and the others of the call are."""
        job, other = await stored(store, new_job(2), new_job())
        await store.apply([launched(job)])
        task, attempt = replace(new_task(job), version=2), replace(new_attempt(job), version=2)
        change = Change(
            replace(job, version=3, priority=5),
            9 if guard == "job" else 2,
            (TaskWrite(task, {"task": 9, "new task": 0}.get(guard, 1)),),
            (AttemptWrite(attempt, {"attempt": 9, "new attempt": 0}.get(guard, 1)),),
            (event_of(job, 3),),
        )
        assert await store.apply([change, moved(other)]) == [Stale.STALE, Applied((4,))]
        assert await store.job(job.uid) == launched(job).job
        assert await store.tasks(job.uid, -1, 10) == [new_task(job)]
        assert await store.attempts(job.uid, None, (-1, 0), 10) == [new_attempt(job)]
        assert len(await store.events(0, 10, [job.uid])) == 2

    async def test_a_job_that_is_not_there_is_stale(self, store: Store) -> None:
        """There is nothing to write over."""
        assert await store.apply([moved(new_job())]) == [Stale.STALE]

    async def test_an_unchanged_job_is_guarded(self, store: Store) -> None:
        """Its version is the expected one: the job stays, the guard counts."""
        (job,) = await stored(store, new_job())
        noted = Change(replace(job, priority=9), 1, (TaskWrite(new_task(job), 0),))
        assert await store.apply([noted]) == [Applied(())]
        assert await store.job(job.uid) == job
        late = Change(replace(job, version=2), 2, (TaskWrite(new_task(job, 1), 0),))
        assert await store.apply([late]) == [Stale.STALE]

    async def test_changes_of_one_call_follow_each_other(self, store: Store) -> None:
        """A later change is decided on the earlier one's outcome."""
        (job,) = await stored(store, new_job())
        first = launched(job)
        lost = replace(new_attempt(job), version=2, state=AttemptState.LOST)
        second = Change(
            replace(first.job, version=3),
            2,
            (TaskWrite(replace(new_task(job), version=2, attempt=2), 1),),
            (AttemptWrite(lost, 1), AttemptWrite(new_attempt(job, 0, 2), 0)),
            (event_of(job, 3),),
        )
        stale = moved(first.job)
        third = moved(second.job)
        results = await store.apply([first, second, stale, third])
        assert results == [Applied((2,)), Applied((3,)), Stale.STALE, Applied((4,))]
        assert await store.job(job.uid) == third.job
        found = await store.attempts(job.uid, 0, (-1, 0), 10)
        assert found == [lost, new_attempt(job, 0, 2)]

    async def test_a_change_after_a_stale_one_may_hold(self, store: Store) -> None:
        """A wrong guess at a version does not spoil the right one behind it."""
        (job,) = await stored(store, new_job())
        results = await store.apply([moved(job, expected=7), moved(job)])
        assert results == [Stale.STALE, Applied((2,))]

    async def test_calls_that_overlap_are_applied_in_order(self, store: Store) -> None:
        """A chain of calls made at once holds, each on the one before."""
        (job,) = await stored(store, new_job())
        chain = [moved(job)]
        for _ in range(40):
            chain.append(moved(chain[-1].job))
        results = await asyncio.gather(*(store.apply([change]) for change in chain))
        assert results == [[Applied((2 + place,))] for place in range(41)]
        assert await store.job(job.uid) == chain[-1].job

    async def test_one_of_many_rivals_wins(self, store: Store) -> None:
        """Of changes decided on the same version one is written."""
        (job,) = await stored(store, new_job())
        rivals = [moved(replace(job, priority=number)) for number in range(30)]
        results = await asyncio.gather(*(store.apply([change]) for change in rivals))
        assert results == [[Applied((2,))]] + [[Stale.STALE]] * 29
        found = await store.job(job.uid)
        assert found is not None
        assert found.priority == 0

    async def test_a_submitted_job_can_change_in_the_same_batch(self, store: Store) -> None:
        """Submit and apply made at once are carried out in this order."""
        item = submission()
        job = replace(item.job, name="train-1")
        submitted, applied = await asyncio.gather(store.submit([item]), store.apply([moved(job)]))
        assert isinstance(submitted[0], Submitted)
        assert applied == [Applied((2,))]

    @pytest.mark.parametrize("what", ["job", "task", "attempt"])
    async def test_a_final_state_is_never_left(self, store: Store, what: str) -> None:
        """Refused, even with the right version; nothing of the call is written."""
        job, other = await stored(store, new_job(), new_job())
        ended = replace(new_task(job), state=JobState.FAILED)
        gone = replace(new_attempt(job), state=AttemptState.LOST)
        over = replace(job, version=2, state=JobState.FAILED)
        await store.apply([Change(over, 1, (TaskWrite(ended, 0),), (AttemptWrite(gone, 0),))])
        revived = {
            "job": Change(replace(over, version=3, state=JobState.RUNNING), 2),
            "task": Change(
                over, 2, (TaskWrite(replace(ended, version=2, state=JobState.QUEUED), 1),)
            ),
            "attempt": Change(
                over,
                2,
                (),
                (AttemptWrite(replace(gone, version=2, state=AttemptState.SUCCEEDED), 1),),
            ),
        }[what]
        with pytest.raises(WriteRefused):
            await store.apply([moved(other), revived])
        assert await store.job(other.uid) == other
        assert await store.job(job.uid) == over
        assert await store.tasks(job.uid, -1, 10) == [ended]
        assert await store.attempt(gone.name) == gone
        assert await store.event_bounds() == (1, 2)

    async def test_what_is_final_may_still_be_noted(self, store: Store) -> None:
        """An ended attempt's release moves on."""
        (job,) = await stored(store, new_job())
        gone = replace(new_attempt(job), state=AttemptState.LOST, release=Release.RELEASING)
        over = replace(job, version=2, state=JobState.FAILED)
        await store.apply([Change(over, 1, (), (AttemptWrite(gone, 0),))])
        free = replace(gone, version=2, release=Release.RELEASED)
        assert await store.apply([Change(over, 2, (), (AttemptWrite(free, 1),))]) == [Applied(())]
        assert await store.attempt(gone.name) == free

    async def test_one_attempt_of_a_task_is_under_way(self, store: Store) -> None:
        """A second is refused until the first has ended; another task's is free."""
        (job,) = await stored(store, new_job(2))
        await store.apply([launched(job)])
        after = replace(job, version=3)
        second = Change(after, 2, (), (AttemptWrite(new_attempt(job, 0, 2), 0),))
        with pytest.raises(WriteRefused):
            await store.apply([second])
        other = Change(after, 2, (), (AttemptWrite(new_attempt(job, 1, 1), 0),))
        assert await store.apply([other]) == [Applied(())]

    async def test_nothing_is_applied_to_nothing(self, store: Store) -> None:
        """Empty calls are answered."""
        assert await store.apply([]) == []
        assert await store.submit([]) == []
        assert await store.jobs_by_uid([]) == {}

    async def test_a_caller_that_leaves_harms_nobody(self, store: Store) -> None:
        """Cancelled callers lose their answers; the next call has its own."""
        async with asyncio.TaskGroup() as group:
            calls = [
                group.create_task(store.submit([submission()]), name="submit") for _ in range(20)
            ]
            await asyncio.sleep(0)
            for call in calls[::2]:
                call.cancel()
        (job,) = await stored(store, new_job())
        events = await all_events(store)
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert events[-1].job_uid == job.uid

    # -- reading jobs -------------------------------------------------------------------------

    async def test_what_is_not_there_is_none(self, store: Store) -> None:
        """Looked up by whatever name."""
        await stored(store, new_job())
        assert await store.job("nobody") is None
        for name in ("train-2", "train", "train-01", "train-x", "", "-1", "1", "train-" + "9" * 30):
            assert await store.job_by_name("default", name) is None
        assert await store.job_by_name("lab", "train-1") is None
        assert await store.attempt("nobody") is None
        assert await store.queue("default", "nothing") is None
        assert await store.tasks("nobody", -1, 10) == []
        assert await store.attempts("nobody", None, (-1, 0), 10) == []

    async def test_many_jobs_by_uid(self, store: Store) -> None:
        """Those that exist, however many are asked for."""
        jobs = await stored(store, *(new_job() for _ in range(1_205)))
        found = await store.jobs_by_uid([*(job.uid for job in jobs), "nobody"])
        assert found == {job.uid: job for job in jobs}
        assert len(await store.specs([job.uid for job in jobs])) == 1_205

    async def test_lists_are_newest_first_and_paged(self, store: Store) -> None:
        """Each page begins below the last uid of the one before."""
        jobs = await stored(store, *(new_job() for _ in range(25)))
        await stored(store, new_job(project="lab"))
        query, found, after = JobQuery("default"), list[Job](), ""
        while page := await store.list_jobs(query, after, 10):
            found += page
            after = page[-1].uid
        assert found == jobs[::-1]

    async def test_lists_are_filtered(self, store: Store) -> None:
        """By every column and both operators, alone and together."""
        given = [
            replace(new_job(), queue="fast", labels=(("team", "a"),)),
            replace(new_job(), backend="hosts", labels=(("team", "b"), ("x", "1"))),
            replace(new_job(), created_by="user:eve"),
        ]
        jobs = await stored(store, *given)
        jobs += await stored(store, new_job(), base_name="eval")
        await store.apply([moved(jobs[1]), moved(jobs[2], JobState.FAILED)])
        expected: dict[tuple[tuple[str, str, str | int], ...], set[int]] = {
            (("state", "=", int(JobState.QUEUED)),): {0, 3},
            (("state", "=", int(JobState.FAILED)),): {2},
            (("state", "!=", int(JobState.FAILED)),): {0, 1, 3},
            (("queue", "=", "fast"),): {0},
            (("queue", "!=", "fast"),): {1, 2, 3},
            (("base_name", "=", "train"),): {0, 1, 2},
            (("base_name", "!=", "train"),): {3},
            (("name", "=", "train-2"),): {1},
            (("name", "!=", "train-2"),): {0, 2, 3},
            (("created_by", "=", "user:eve"),): {2},
            (("created_by", "!=", "user:eve"),): {0, 1, 3},
            (("backend", "=", "hosts"),): {1},
            (("backend", "!=", "hosts"),): {0, 2, 3},
            (("active", "=", 1),): {0, 1, 3},
            (("active", "=", 0),): {2},
            (("active", "!=", 1),): {2},
            (("label:team", "=", "a"),): {0},
            (("label:team", "!=", "a"),): {1, 2, 3},
            (("label:x", "=", "1"), ("label:team", "=", "b")): {1},
            (("active", "=", 1), ("base_name", "=", "train"), ("queue", "!=", "fast")): {1},
            (("state", "=", int(JobState.QUEUED)), ("active", "=", 0)): set(),
        }
        for terms, wanted in expected.items():
            found = await store.list_jobs(JobQuery("default", terms), "", 10)
            uids = [jobs[place].uid for place in sorted(wanted, reverse=True)]
            assert [job.uid for job in found] == uids, terms
            count = await store.count_jobs(JobQuery("default", terms))
            assert sum(count.values()) == len(wanted), terms

    @pytest.mark.parametrize("term", [("spec", "=", "x"), ("state", "<", 3), ("uid; --", "=", "")])
    async def test_an_unknown_term_is_a_mistake(
        self, store: Store, term: tuple[str, str, str | int]
    ) -> None:
        """ValueError, for lists as for counts."""
        with pytest.raises(ValueError, match="no such"):
            await store.list_jobs(JobQuery("default", (term,)), "", 10)
        with pytest.raises(ValueError, match="no such"):
            await store.count_jobs(JobQuery("default", (term,)))

    async def test_jobs_are_counted_per_state(self, store: Store) -> None:
        """Of one project; states without jobs are left out."""
        jobs = await stored(store, *(new_job() for _ in range(4)))
        await stored(store, new_job(project="lab"))
        await store.apply([moved(jobs[0], JobState.FAILED), moved(jobs[1])])
        assert await store.count_jobs(JobQuery("default")) == {
            JobState.QUEUED: 2,
            JobState.RUNNING: 1,
            JobState.FAILED: 1,
        }
        assert await store.count_jobs(JobQuery("nobody")) == {}

    async def test_succeeded_tasks_are_told_in_runs(self, store: Store) -> None:
        """Of one job alone, joined."""
        job, other = await stored(store, new_job(8), new_job(8))
        for one, good in ((job, {0, 1, 2, 5, 7}), (other, {3})):
            tasks = [
                replace(
                    new_task(one, i), state=JobState.SUCCEEDED if i in good else JobState.FAILED
                )
                for i in range(8)
            ]
            writes = tuple(TaskWrite(task, 0) for task in tasks)
            await store.apply([Change(replace(one, version=2), 1, writes)])
        assert await store.succeeded(job.uid) == Ranges(((0, 3), (5, 6), (7, 8)))

    async def test_tasks_and_attempts_are_paged(self, store: Store) -> None:
        """Tasks by index, attempts by index and number."""
        (job,) = await stored(store, new_job(12))
        tasks = [TaskWrite(new_task(job, index), 0) for index in range(12)]
        ended = [
            replace(new_attempt(job, index, number), state=AttemptState.LOST)
            for index in (0, 1)
            for number in (1, 2, 3)
        ]
        writes = tuple(AttemptWrite(attempt, 0) for attempt in ended)
        await store.apply([Change(replace(job, version=2), 1, tuple(tasks), writes)])
        assert [task.index for task in await store.tasks(job.uid, -1, 5)] == [0, 1, 2, 3, 4]
        assert [task.index for task in await store.tasks(job.uid, 9, 5)] == [10, 11]
        assert await store.succeeded(job.uid) == Ranges()
        assert await store.attempts(job.uid, None, (-1, 0), 4) == ended[:4]
        assert await store.attempts(job.uid, None, (1, 1), 4) == ended[4:]
        assert await store.attempts(job.uid, 0, (0, 1), 9) == ended[1:3]
        assert await store.attempts(job.uid, 1, (-1, 0), 9) == ended[3:]

    # -- recovery -----------------------------------------------------------------------------

    async def test_live_is_what_is_not_over(self, store: Store) -> None:
        """Unfinished jobs, and finished ones that hold resources; newest attempts only."""
        waiting, running, holding, over = await stored(
            store, new_job(), new_job(2), new_job(), new_job()
        )
        started = launched(running)
        lost = replace(new_attempt(running), version=2, state=AttemptState.LOST)
        again = Change(
            replace(started.job, version=3),
            2,
            (TaskWrite(replace(new_task(running), version=2, attempt=2), 1),),
            (AttemptWrite(lost, 1), AttemptWrite(new_attempt(running, 0, 2), 0)),
        )
        ends = [
            Change(
                replace(job, version=2, state=JobState.FAILED),
                1,
                (TaskWrite(replace(new_task(job), state=JobState.FAILED), 0),),
                (
                    AttemptWrite(
                        replace(new_attempt(job), state=AttemptState.FAILED, release=release), 0
                    ),
                ),
            )
            for job, release in ((holding, Release.RELEASING), (over, Release.RELEASED))
        ]
        await store.apply([started, again, *ends])
        live = await store.live(1_000)
        assert [job.uid for job in live.jobs] == [waiting.uid, running.uid, holding.uid]
        assert live.jobs[1:] == [again.job, ends[0].job]
        assert live.tasks == [again.tasks[0].row, ends[0].tasks[0].row]
        assert live.attempts == [new_attempt(running, 0, 2), ends[0].attempts[0].row]

    async def test_plain_jobs_are_apart(self, store: Store) -> None:
        """Those beyond a bound are left out of `live` and given, all of them, as parked."""
        plain = [new_job(project="lab" if number % 2 else "default") for number in range(7)]
        plain[3] = replace(plain[3], state=JobState.HELD, unstarted_state=JobState.HELD)
        plain[4] = replace(plain[4], terms=Terms(timeout=5.0), secrets=("hf",), priority=3)
        others = [
            new_job(3),
            replace(new_job(), state=JobState.BLOCKED, blocked_on=("x",)),
            replace(new_job(), state=JobState.HELD, blocked_end=("x",)),
            replace(new_job(), terms=Terms(deadline=5)),
            replace(new_job(), terms=Terms(gang=True, start_after=5)),
            replace(new_job(), terms=Terms(max_queue_time=1.5)),
        ]
        jobs = await stored(store, *others, *plain)
        await store.apply([launched(jobs[-1])])
        waiting = {job.uid for job in plain[:-1]}
        for bound in (0, 2, 4, 6, 100):
            live = {job.uid for job in (await store.live(bound)).jobs}
            parked = [one async for batch in store.parked(bound) for one in batch]
            assert len(live & waiting) == min(bound, 6)
            assert Counter(uid for one in parked for uid in one.uids) == Counter(waiting - live)
            assert {job.uid for job in [*others, plain[-1]]} <= live
        found = {tuple(one.uids): one async for batch in store.parked(0) for one in batch}
        assert (plain[0].uid, plain[2].uid) in found
        assert found[(plain[4].uid,)] == Parked(
            [plain[4].uid],
            "default",
            "default",
            plain[4].backend,
            3,
            JobState.QUEUED,
            plain[4].resources,
            Terms(timeout=5.0),
            ("hf",),
            plain[4].embedded_only,
            plain[4].created_by,
        )
        assert found[(plain[3].uid,)].state is JobState.HELD

    async def test_one_live_job(self, store: Store) -> None:
        """With what of it is started; nothing of one that is over."""
        waiting, started, over = await stored(store, new_job(), new_job(), new_job())
        await store.apply([launched(started), moved(over, JobState.FAILED)])
        whole = await store.live_job(started.uid)
        assert whole == (
            [launched(started).job],
            [launched(started).tasks[0].row],
            [launched(started).attempts[0].row],
        )
        assert (await store.live_job(waiting.uid)).jobs == [waiting]
        assert await store.live_job(over.uid) == await store.live_job("nobody") == ([], [], [])

    async def test_jobs_are_counted_by_queue_and_state(self, store: Store) -> None:
        """Of all projects."""
        jobs = await stored(store, new_job(), replace(new_job(), queue="fast"), new_job())
        await stored(store, new_job(project="lab"))
        await store.apply([moved(jobs[2], JobState.FAILED)])
        assert sorted(await store.job_counts()) == [
            ("default", "default", JobState.QUEUED, 1),
            ("default", "default", JobState.FAILED, 1),
            ("default", "fast", JobState.QUEUED, 1),
            ("lab", "default", JobState.QUEUED, 1),
        ]

    async def test_jobs_that_are_alike_are_stored_as_any_others(self, store: Store) -> None:
        """Among others, with a request that was there before, and all of each one's own."""
        whole = replace(whole_job(), state=JobState.QUEUED, counts=new_job().counts)
        mark = object()
        items = [
            replace(submission(_another(whole, number), "same"), like=mark)
            for number in range(1, 24)
        ]
        items[9] = replace(items[9], request=items[2].request)
        items[15] = submission()
        results = await store.submit(items)
        assert results[9] == Duplicate(items[2].job.uid)
        made = [found.job for found in results if isinstance(found, Submitted)]
        assert await store.jobs_by_uid([job.uid for job in made]) == {job.uid: job for job in made}
        names = [job.name for job in made]
        assert names == [*(f"same-{n}" for n in range(1, 15)), "train-1"] + [
            f"same-{n}" for n in range(15, 22)
        ]
        events = await all_events(store)
        told = [item.event for place, item in enumerate(items) if place != 9]
        assert events == [
            replace(event, seq=seq, job_name=name)
            for seq, (event, name) in enumerate(zip(told, names, strict=True), 1)
        ]
        specs = await store.specs([job.uid for job in made])
        assert set(specs.values()) == {items[0].spec}

    async def test_equal_specs_are_each_job_s_own(self, store: Store) -> None:
        """However they are kept."""
        items = [replace(submission(), spec=spec) for spec in (b"a", b"b", b"a")]
        for item in items:
            await store.submit([item])
        specs = await store.specs([item.job.uid for item in items])
        assert [specs[item.job.uid] for item in items] == [b"a", b"b", b"a"]

    async def test_everything_survives_a_restart(
        self, open_store: OpenStore, tmp_path: Path, clock: Clock
    ) -> None:
        """Rows, names, positions, keys and identity go on where they were."""
        first = await open_store(tmp_path, clock)
        item = submission()
        await first.submit([item, submission()])
        before = (first.identity, await all_events(first), await first.live(1_000))
        await first.close()
        second = await open_store(tmp_path, clock)
        try:
            assert (second.identity, await all_events(second), await second.live(1_000)) == before
            assert await second.submit([item]) == [Duplicate(item.job.uid)]
            (later,) = await second.submit([submission()])
            assert isinstance(later, Submitted)
            assert (later.job.name, later.seq) == ("train-3", 3)
        finally:
            await second.close()

    async def test_installations_differ(
        self, store: Store, open_store: OpenStore, elsewhere: Path, clock: Clock
    ) -> None:
        """Each store has an id of its own."""
        other = await open_store(elsewhere, clock)
        try:
            assert store.identity.cluster_id
            assert store.identity.cluster_id != other.identity.cluster_id
        finally:
            await other.close()

    # -- requests -----------------------------------------------------------------------------

    async def test_a_request_is_remembered(self, store: Store) -> None:
        """The first time None; then what it changed, or that the body differs."""
        key = RequestKey("default", "CancelJobs", "r-1", b"\x01" * 32)
        other = key._replace(body_sha256=b"\x02" * 32)
        assert await store.recall_request(key) is None
        assert await store.remember_request(key, "digits-1") is None
        assert await store.recall_request(key) == Duplicate("digits-1")
        assert await store.remember_request(key, "digits-2") == Duplicate("digits-1")
        assert await store.recall_request(other) == Mismatch("01" * 32, "02" * 32)
        assert await store.remember_request(other, "x") == Mismatch("01" * 32, "02" * 32)

    async def test_submitted_keys_are_recalled(self, store: Store) -> None:
        """With the job's uid."""
        item = submission()
        await store.submit([item])
        assert item.request is not None
        assert await store.recall_request(item.request) == Duplicate(item.job.uid)

    async def test_old_requests_are_forgotten(self, store: Store, clock: Clock) -> None:
        """Those older than the time given, and no others."""
        keys = [RequestKey("default", "M", str(number), b"") for number in range(6)]
        for number, key in enumerate(keys):
            clock.now = 10 * number
            await store.remember_request(key, "x")
        assert await store.forget_requests(30) == 3
        assert await store.forget_requests(30) == 0
        known = [await store.recall_request(key) is not None for key in keys]
        assert known == [False] * 3 + [True] * 3

    # -- events -------------------------------------------------------------------------------

    async def test_no_events_at_first(self, store: Store) -> None:
        """Bounds of nothing."""
        assert await store.event_bounds() == (1, 0)
        assert await store.events(0, 10) == []

    async def test_events_of_some_jobs(self, store: Store) -> None:
        """In order, above the position, up to the limit."""
        jobs = await stored(store, *(new_job() for _ in range(30)))
        await store.apply([moved(job) for job in jobs])
        wanted = [jobs[3].uid, jobs[20].uid, "nobody"]
        assert [event.seq for event in await store.events(0, 10, wanted)] == [4, 21, 34, 51]
        assert [event.seq for event in await store.events(4, 2, wanted)] == [21, 34]
        assert await store.event_bounds() == (1, 60)

    async def test_a_follower_misses_nothing(self, store: Store) -> None:
        """While many write, some in vain, positions are gapless and a cursor sees them all."""
        (known,) = await stored(store, new_job())
        seen: list[int] = []
        writing = True

        async def follow() -> None:
            while True:
                more = writing
                page = await store.events(len(seen), 50)
                seen.extend(event.seq for event in page)
                if not more and not page:
                    return

        async def write(number: int) -> None:
            for turn in range(15):
                if (number + turn) % 5 == 0:
                    bad = submission(replace(new_job(), uid=known.uid))
                    with pytest.raises(WriteRefused):
                        await store.submit([submission(), bad])
                    continue
                jobs = await stored(store, new_job(), new_job())
                change = moved(jobs[0])
                assert (await store.apply([change, moved(jobs[1], expected=9)]))[1] is Stale.STALE

        async with asyncio.TaskGroup() as group:
            group.create_task(follow(), name="follow")
            async with asyncio.TaskGroup() as writers:
                for number in range(8):
                    writers.create_task(write(number), name=f"write-{number}")
            writing = False
        assert seen == list(range(1, 1 + 8 * 12 * 3 + 1))

    # -- metrics ------------------------------------------------------------------------------

    async def test_metrics_are_read_in_order(self, store: Store) -> None:
        """By key, index and step; of one job, some keys, one index."""
        points = [
            MetricPoint("job", index, key, step, 1, 0.1 * step, 7)
            for step in (2, 1, 10)
            for index in (1, 0)
            for key in ("loss", "acc")
        ]
        await store.add_metrics(points)
        await store.add_metrics([MetricPoint("other", 0, "loss", 1, 1, 5.0, 7)])
        ordered = sorted(points, key=lambda point: (point.key, point.index, point.step))
        assert await store.metrics(MetricQuery("job")) == ordered
        assert await store.metrics(MetricQuery("job", ("loss", "x"))) == ordered[6:]
        assert await store.metrics(MetricQuery("job", ("acc",), 1)) == ordered[3:6]

    async def test_the_later_attempts_metrics_count(self, store: Store) -> None:
        """And within an attempt the later point; in one call as over several."""

        def point(attempt: int, value: float) -> MetricPoint:
            return MetricPoint("job", 0, "loss", 1, attempt, value, 7)

        await store.add_metrics([point(2, 0.5), point(1, 0.1), point(2, 0.25)])
        assert await store.metrics(MetricQuery("job")) == [point(2, 0.25)]
        await store.add_metrics([point(1, 9.0)])
        assert await store.metrics(MetricQuery("job")) == [point(2, 0.25)]
        await asyncio.gather(*(store.add_metrics([point(3, value)]) for value in (1.0, 2.0, 3.0)))
        assert await store.metrics(MetricQuery("job")) == [point(3, 3.0)]

    async def test_any_float_is_kept(self, store: Store) -> None:
        """To the last bit; infinities and NaN too."""
        values = [0.1 + 0.2, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, math.nan]
        await store.add_metrics(
            [MetricPoint("job", 0, "k", step, 1, value, 7) for step, value in enumerate(values)]
        )
        found = [repr(point.value) for point in await store.metrics(MetricQuery("job"))]
        assert found == [repr(value) for value in values]

    # -- queues, hosts, tokens ----------------------------------------------------------------

    async def test_queues_are_written_over_their_version(self, store: Store) -> None:
        """0 for one that must not exist; anything else is stale."""
        queue = Queue(
            "lab",
            "fast",
            1,
            "ada",
            5,
            2.5,
            3,
            4,
            (("a", "b"),),
            "all",
            Resources(0.5, 1, 2, 3, (("license", 4),)),
            Resources(0.1),
            True,
            True,
            "moved",
            True,
        )
        assert await store.put_queue(queue, 1) is Stale.STALE
        assert await store.put_queue(queue, 0) == queue
        assert await store.queue("lab", "fast") == queue
        assert await store.put_queue(queue, 0) is Stale.STALE
        newer = replace(queue, version=2, weight=1.0, labels=())
        assert await store.put_queue(newer, 1) == newer
        assert await store.queue("lab", "fast") == newer

    async def test_a_queue_is_written_with_the_key_of_who_asked(self, store: Store) -> None:
        """Both or none; a known key changes nothing, of a removal too."""
        key = RequestKey("lab", "UpdateQueue", "r-1", b"\x01" * 32)
        other = key._replace(body_sha256=b"\x02" * 32)
        queue = Queue("lab", "fast", 1, "ada", 5)
        assert await store.put_queue(queue, 3, key) is Stale.STALE
        assert await store.recall_request(key) is None
        assert await store.put_queue(queue, 0, key) == queue
        assert await store.recall_request(key) == Duplicate("fast")
        newer = replace(queue, version=2)
        assert await store.put_queue(newer, 1, key) == Duplicate("fast")
        assert await store.put_queue(newer, 1, other) == Mismatch("01" * 32, "02" * 32)
        assert await store.delete_queue("lab", "fast", 1, key) == Duplicate("fast")
        assert await store.queue("lab", "fast") == queue
        removal = key._replace(method="DeleteQueue")
        assert await store.delete_queue("lab", "fast", 2, removal) is Stale.STALE
        assert await store.delete_queue("lab", "fast", 1, removal) is True
        assert await store.delete_queue("lab", "fast", 1, removal) == Duplicate("fast")

    async def test_queues_are_paged(self, store: Store) -> None:
        """Of one project by name; of all by project and name."""
        places = [(project, name) for project in ("a", "b", "c") for name in ("default", "x", "y")]
        for project, name in places:
            await store.put_queue(Queue(project, name, 1, "ada", 5), 0)
        assert await _names(store, "b", "", 2) == [("b", "default"), ("b", "x")]
        assert await _names(store, "b", "x", 2) == [("b", "y")]
        found, after = list[tuple[str, str]](), ""
        while page := await _names(store, None, after, 2):
            found += page
            after = "/".join(page[-1])
        assert found == places

    async def test_a_queue_is_removed_when_nothing_waits_in_it(self, store: Store) -> None:
        """Stale of another version; False while it has unfinished jobs."""
        assert await store.delete_queue("default", "fast", 1) is Stale.STALE
        await store.put_queue(Queue("default", "fast", 1, "ada", 5), 0)
        (job,) = await stored(store, replace(new_job(), queue="fast"))
        assert await store.delete_queue("default", "fast", 2) is Stale.STALE
        assert await store.delete_queue("default", "fast", 1) is False
        await store.apply([moved(job, JobState.CANCELLED)])
        assert await store.delete_queue("default", "fast", 1) is True
        assert await store.queue("default", "fast") is None

    async def test_hosts_are_kept(self, store: Store) -> None:
        """By name; the last write stays."""
        host = Host(
            "b",
            "boot",
            "keeper",
            Resources(0.5, 2**36, 2, 64),
            ("GPU-1",),
            (("zone", "1"),),
            ("WANDB",),
            "0.1.0",
            True,
            True,
            True,
            77,
            "10.0.0.7",
            True,
            "broken fan",
            78,
        )
        plain = Host("a", "", "", Resources(), (), (), (), "", False)
        await store.put_host(host)
        await store.put_host(plain)
        assert await store.hosts() == [plain, host]
        newer = replace(host, cordoned=False, last_seen=78)
        await store.put_host(newer)
        assert await store.hosts() == [plain, newer]
        await store.delete_host("a")
        await store.delete_host("a")
        assert await store.hosts() == [newer]

    async def test_what_operators_say_of_backends_is_kept(self, store: Store) -> None:
        """By name; the last write stays."""
        await store.put_backend(BackendNote("spot", True, "prices"))
        await store.put_backend(BackendNote("gpu", True, draining=True))
        await store.put_backend(BackendNote("spot", False))
        assert await store.backends() == [
            BackendNote("gpu", True, draining=True),
            BackendNote("spot", False),
        ]

    async def test_what_queues_used_is_kept(self, store: Store) -> None:
        """By queue; the last write stays, of each queue alone."""
        await store.put_queue_usage({("p", "a"): (0.25, 7), ("p", "b"): (1 / 3, 7)})
        await store.put_queue_usage({("p", "a"): (0.5, 9)})
        assert await store.queue_usage() == {("p", "a"): (0.5, 9), ("p", "b"): (1 / 3, 7)}

    async def test_tokens_are_kept(self, store: Store) -> None:
        """By id; the last write stays."""
        token = TokenRecord("b", "ff" * 32, "user:ada", 2, 5, 6, False, "admin")
        deployment = "projects/default/deployments/reader"
        other = TokenRecord("a", "ee" * 32, "user:eve", 6, 5, deployment=deployment)
        used = TokenRecord("c", "dd" * 32, "gpu-1", 8, 5, host="gpu-1", used_by="cc" * 32)
        await store.put_token(token)
        await store.put_token(used)
        await store.put_token(other)
        await store.put_token(revoked := replace(token, revoked=True))
        assert await store.tokens() == [other, revoked, used]

    # -- life ---------------------------------------------------------------------------------

    async def test_close_finishes_what_is_queued(
        self, open_store: OpenStore, tmp_path: Path, clock: Clock
    ) -> None:
        """Calls made before the close are answered; later ones are refused."""
        store = await open_store(tmp_path, clock)
        async with asyncio.TaskGroup() as group:
            calls = [
                group.create_task(store.submit([submission()]), name="submit") for _ in range(30)
            ]
            await asyncio.sleep(0)
            await store.close()
        assert all(isinstance(call.result()[0], Submitted) for call in calls)
        with pytest.raises(StoreClosed):
            await store.submit([submission()])
        with pytest.raises(StoreClosed):
            await store.event_bounds()
        await store.close()


async def _names(
    store: Store, project: str | None, after: str, limit: int
) -> Sequence[tuple[str, str]]:
    return [(queue.project, queue.name) for queue in await store.queues(project, after, limit)]
