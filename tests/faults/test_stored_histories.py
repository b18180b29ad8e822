"""Jobs through ledger, desk and the real store while everything goes wrong: what must hold, holds.

Crashes, failing disks, lost replies, doubled and reordered words, and a clock that jumps by a year.
Of the invariants (see docs/operate.md) those that one server can break: I1 to I9, I11, I16 to I20,
I22, I23, I26, I28, I30 to I34 and I43 are looked at here or by the doctor that runs at every crash.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import hypothesis.strategies as st
import pytest
from domain_rows import CANCEL
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from store_faults import Script, disk_error, disk_full

from hatoba.v1 import runner_pb2, worker_pb2
from hatoba_plugins import errors
from hatoba_plugins.values import Exit, ExitKind, Observation, Phase
from hatoba_scheduler.control.awaited_ends import AwaitedEnds, Place
from hatoba_scheduler.control.events import EventLog
from hatoba_scheduler.control.exits import Exits
from hatoba_scheduler.control.ids import UidMaker
from hatoba_scheduler.control.ledger import Ledger
from hatoba_scheduler.control.logged_models import LoggedModels
from hatoba_scheduler.control.observe import (
    Grounds,
    observation_step,
    of_attempt,
    refused_step,
)
from hatoba_scheduler.control.runners import RunnerDesk
from hatoba_scheduler.control.specs import SpecCache
from hatoba_scheduler.domain.naming import attempt_name
from hatoba_scheduler.domain.ranges import Ranges
from hatoba_scheduler.domain.records import Attempt, Change, Job, Resources, RetryPolicy
from hatoba_scheduler.domain.states import AttemptState, Desired, JobState, Release
from hatoba_scheduler.domain.transitions import (
    Intent,
    Now,
    Rows,
    Settings,
    cancel,
    first_state,
    hold,
    initial_counts,
    launch,
    submitted,
    updated,
)
from hatoba_scheduler.errors import HatobaError
from hatoba_scheduler.store.base import Duplicate, Mismatch, RequestKey, Submission, Submitted
from hatoba_scheduler.store.sqlite.store import SqliteStore, open_store

T = TypeVar("T")
YEAR = 365 * 86_400 * 1_000_000
START = 1_700_000_000_000_000
EXAMPLES = {"short": 60, "full": 10_000}
WORDS = [
    *["launch"] * 3,
    *["claim"] * 2,
    *["finish", "gone"] * 2,
    *["claim_twin", "start", "checkpoint", "fail", "die", "lost", "refused", "vanish"],
    *["away", "back", "old_word", "cancel", "hold", "let_go", "hurry", "commit_again"],
]


class Word(NamedTuple):
    """Something that happens to one of the attempts or jobs there are."""

    name: str
    pick: int
    reply_lost: bool


class Process:
    """A run of an attempt's user code, as its host has it."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.alive = True


words = st.lists(
    st.builds(Word, st.sampled_from(WORDS), st.integers(0, 7), st.booleans()),
    min_size=1,
    max_size=5,
)


class StoredHistories(RuleBasedStateMachine):
    """Several jobs in a store on disk, and all that can happen to them and to the server."""

    template: Path

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="hatoba-histories-"))
        shutil.copy(self.template / "hatoba.db", self.directory)
        self.runner = asyncio.Runner()
        self.script = Script()
        self.micros = START
        self.rng = random.Random(7)
        ends = AwaitedEnds(self, Place.HOST, lambda _: -1.0)
        self.grounds = Grounds(self.rng, ends, Exits(self))
        self.numbers = itertools.count(1)
        self.acknowledged: dict[str, int] = {}
        """Versions of jobs that somebody was told are stored."""
        self.requests: dict[str, tuple[bytes, str]] = {}
        self.ended: dict[tuple[str, int | None], JobState] = {}
        self.processes: dict[str, Process] = {}
        self.grants: dict[str, set[str]] = defaultdict(set)
        self.starts: Counter[str] = Counter()
        self.cancelled: dict[str, dict[int, int]] = {}
        """Of jobs whose cancel was acknowledged: attempts of each task at that time."""
        self.said: list[tuple[str, int, str, Observation]] = []
        self.told: list[int] = []
        self.new_uid = UidMaker(lambda: self.micros / 1e6)
        self.open()

    # -- the server --------------------------------------------------------------------------------

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def open(self) -> None:
        self.script.calm()
        self.store: SqliteStore = self.run(
            open_store(self.directory, lambda: self.micros, open_connection=self.script.connect)
        )
        self.ledger = Ledger(self.store)
        self.run(self.ledger.recover())
        _, newest = self.run(self.store.event_bounds())
        self.log = EventLog(self.store, newest)
        self.ledger.listen(self.log.on_commit)
        self.ledger.listen(lambda commits, events: self.told.extend(e.seq for e in events))
        specs = SpecCache(self.store)
        models = LoggedModels(self.store, specs, _no_manifest)
        self.desk = RunnerDesk(self.ledger, self.store, self, self.rng, models)
        loop = self.runner.get_loop()
        self.task = loop.create_task(self.ledger.run(), name="ledger")

    def shut(self) -> None:
        async def end() -> None:
            self.task.cancel()
            with suppress(asyncio.CancelledError):
                await self.task
            await self.store.close()

        self.run(end())

    # The machine is the clock of its server.

    def time(self) -> float:
        return self.micros / 1e6

    def monotonic(self) -> float:
        return self.micros / 1e6

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)

    def now(self) -> Now:
        self.micros += 1_000
        return Now(self.micros, "tester")

    # -- what is there -----------------------------------------------------------------------------

    def jobs(self) -> list[Rows]:
        return sorted(self.ledger.all_rows(), key=lambda rows: rows.job.uid)

    def attempts(self) -> list[Attempt]:
        return [rows.attempts[index] for rows in self.jobs() for index in sorted(rows.attempts)]

    # -- rules -------------------------------------------------------------------------------------

    @initialize()
    def submit_plain(self) -> None:
        """The simplest job."""
        self.submit_job(1, RetryPolicy(), False)

    @rule(
        size=st.sampled_from([1, 1, 2, 3]),
        retries=st.builds(
            RetryPolicy,
            user=st.integers(0, 2),
            infrastructure=st.integers(0, 2),
            preemption=st.integers(0, 2),
        ),
        held=st.sampled_from([False, False, True]),
    )
    def submit_job(self, size: int, retries: RetryPolicy, held: bool) -> None:
        """A new job, and its idempotency key."""
        job = self.new_job(size, retries, held)
        body = bytes([size, retries.user, held]) * 4
        key = RequestKey("default", "SubmitJob", f"r{next(self.numbers)}", body)
        item = Submission(job, "job", b"", submitted(job, self.now()), key)
        result = self.attempt_call(self.ledger.submit([item]))
        if result is None:
            return
        assert isinstance(result[0], Submitted)
        self.acknowledged[job.uid] = 1
        self.requests[key.request_id] = (body, job.uid)

    @precondition(lambda self: self.requests)
    @rule(pick=st.integers(0, 5), other=st.booleans())
    def submit_again(self, pick: int, other: bool) -> None:
        """I2: the same request is the same job; another body under its id is refused."""
        request_id = sorted(self.requests)[pick % len(self.requests)]
        body, uid = self.requests[request_id]
        key = RequestKey("default", "SubmitJob", request_id, b"other" if other else body)
        job = self.new_job(1, RetryPolicy(), False)
        item = Submission(job, "job", b"", submitted(job, self.now()), key)
        result = self.attempt_call(self.ledger.submit([item]))
        if result is not None:
            wanted = Mismatch(body.hex(), b"other".hex()) if other else Duplicate(uid)
            assert result == [wanted]

    @rule(burst=words)
    def happen(self, burst: list[Word]) -> None:
        """Several things at once; what answers are lost is done again by nobody."""
        self.run(self.all_of(burst))

    @rule(burst=words, place=st.integers(1, 12), full=st.booleans(), after=st.booleans())
    def happen_on_a_failing_disk(
        self, burst: list[Word], place: int, full: bool, after: bool
    ) -> None:
        """One statement fails, before or after its effect; the server goes on."""
        self.script.fail_at(place, disk_full() if full else disk_error(), after=after)
        self.run(self.all_of(burst))
        self.script.calm()

    @rule(burst=words, turns=st.integers(0, 12))
    def crash(self, burst: list[Word], turns: int) -> None:
        """The server dies while things happen, and another starts from what is stored."""

        async def begin() -> list[Awaitable[Any]]:
            acts = [act for word in burst if (act := self.act(word)) is not None]
            for _ in range(turns):
                await asyncio.sleep(0)
            return acts

        unanswered = self.run(begin())
        self.shut()
        self.run(_forget(unanswered))
        self.doctor()
        self.open()

    @rule(years=st.sampled_from([-1, 1]))
    def clock_jump(self, years: int) -> None:
        """I11: nothing is decided by a clock that jumped."""
        self.micros += years * YEAR

    # -- words -------------------------------------------------------------------------------------

    def new_job(self, size: int, retries: RetryPolicy, held: bool) -> Job:
        state = first_state(held, ())
        return Job(
            uid=self.new_uid(),
            project="default",
            name="",
            queue="default",
            backend="hosts",
            priority=0,
            size=size,
            max_parallel=0,
            fail_fast=False,
            resources=Resources(),
            retries=retries,
            state=state,
            desired=Desired.RUN,
            version=1,
            settings_version=1,
            unstarted=Ranges.upto(size),
            unstarted_state=state,
            counts=initial_counts(size, state),
            hold=held,
            blocked_on=(),
            created_by="tester",
            create_time=self.micros,
        )

    def attempt_call(self, call: Coroutine[Any, Any, T]) -> T | None:
        try:
            return self.run(call)
        except HatobaError:
            return None

    async def all_of(self, burst: list[Word]) -> None:
        acts = [act for word in burst if (act := self.act(word)) is not None]
        await asyncio.gather(*acts, return_exceptions=True)
        await asyncio.sleep(0)

    def act(self, word: Word) -> Awaitable[Any] | None:
        """Begin what a word says; None when there is nothing that it could be about."""
        rows = self.jobs()
        if word.name in ("launch", "cancel", "hold", "let_go", "hurry"):
            if not rows:
                return None
            one = rows[word.pick % len(rows)]
            return self.wish(word, one)
        found = self.attempts()
        if not found:
            return None
        return self.speak(word, found[word.pick % len(found)])

    def wish(self, word: Word, rows: Rows) -> asyncio.Future[Any]:
        now, uid = self.now(), rows.job.uid
        index = word.pick % rows.job.size
        wishes: dict[str, Callable[[Rows], Change | None]] = {
            "launch": lambda rows: launch(rows, self.intent(rows, index), now),
            "cancel": lambda rows: cancel(rows, CANCEL, now),
            "hold": lambda rows: hold(rows, True, now),
            "let_go": lambda rows: hold(rows, False, now),
            "hurry": lambda rows: updated(rows, Settings(priority=word.pick), now),
        }
        future = self.ledger.ask(uid, wishes[word.name])
        future.add_done_callback(lambda done: self.heard(word, uid, done))
        return future

    def heard(self, word: Word, uid: str, done: asyncio.Future[Change | None]) -> None:
        """What the caller of a change knows now, if the answer reached it."""
        if done.cancelled() or done.exception() is not None or word.reply_lost:
            return
        change = done.result()
        if change is None:
            return
        self.acknowledged[uid] = max(self.acknowledged.get(uid, 0), change.job.version)
        if change.job.desired is Desired.CANCELLED and uid not in self.cancelled:
            rows = self.ledger.rows(uid)
            tasks = rows.tasks if rows else {}
            self.cancelled[uid] = {index: task.attempt for index, task in tasks.items()}

    def intent(self, rows: Rows, index: int) -> Intent:
        task = rows.tasks.get(index)
        number = task.attempt + 1 if task else 1
        return Intent(
            index=index,
            name=attempt_name(1, rows.job.uid, index, number),
            backend="hosts",
            host="here",
            gpus=(),
            reserved=Resources(slots=1),
            fenced=True,
            span_id="b" * 16,
        )

    def speak(self, word: Word, attempt: Attempt) -> Awaitable[Any] | None:
        if word.name in ("claim", "claim_twin"):
            return self.claim(attempt, word)
        if word.name == "old_word":
            return self.old_word(word)
        process = self.processes.get(attempt.name)
        handlers: dict[str, Callable[[], Awaitable[Any] | None]] = {
            "start": lambda: self.start(attempt, process),
            "checkpoint": lambda: self.checkpoint(attempt, process),
            "finish": lambda: self.finish(attempt, process, 0),
            "fail": lambda: self.finish(attempt, process, 3),
            "commit_again": lambda: self.commit(attempt, 0),
            "die": lambda: self.die(process),
            "lost": lambda: self.lost(attempt, process),
            "gone": lambda: self.gone(attempt, process),
            "refused": lambda: self.refused(attempt, process),
            "vanish": lambda: self.vanish(attempt, process),
            "away": lambda: self.observe(attempt, Phase.RUNNING, reachable=False),
            "back": lambda: self.observe(attempt, Phase.EXISTS),
        }
        return handlers[word.name]()

    def claim(self, attempt: Attempt, word: Word) -> Awaitable[Any]:
        """A runner claims; so may its twin, where the provider doubled the run."""
        nonce = f"{attempt.name}-{word.name}"[-64:].rjust(16, "x")
        request = runner_pb2.ClaimAttemptRequest(
            attempt=attempt.name, fence=attempt.fence, nonce=nonce
        )
        future = self.desk.claim(request)

        def settled(done: asyncio.Future[runner_pb2.ClaimAttemptResponse]) -> None:
            if done.cancelled() or done.exception() is not None or word.reply_lost:
                return
            if done.result().verdict != runner_pb2.CLAIM_VERDICT_GRANTED:
                return
            known = self.grants[attempt.name]
            if nonce not in known:
                known.add(nonce)
                self.starts[attempt.name] += 1
                self.processes[attempt.name] = Process(attempt)

        future.add_done_callback(settled)
        return future

    def start(self, attempt: Attempt, process: Process | None) -> Awaitable[Any] | None:
        if process is None or not process.alive:
            return None
        told = worker_pb2.AttemptStarted(attempt=attempt.name, fence=attempt.fence)
        return self.desk.started(told)

    def checkpoint(self, attempt: Attempt, process: Process | None) -> Awaitable[Any] | None:
        if process is None or not process.alive:
            return None
        request = runner_pb2.CommitCheckpointRequest(
            attempt=attempt.name, fence=attempt.fence, step=next(self.numbers)
        )
        return self.desk.checkpoint(request)

    def finish(self, attempt: Attempt, process: Process | None, code: int) -> Awaitable[Any] | None:
        if process is None or not process.alive:
            return None
        process.alive = False
        return self.commit(attempt, code)

    def commit(self, attempt: Attempt, code: int) -> Awaitable[Any] | None:
        if not self.grants.get(attempt.name) or self.processes[attempt.name].alive:
            return None
        (nonce,) = self.grants[attempt.name]
        request = runner_pb2.CommitAttemptRequest(
            attempt=attempt.name,
            fence=attempt.fence,
            nonce=nonce,
            kind=runner_pb2.EXIT_KIND_EXITED,
            exit_code=code,
        )
        return self.desk.commit(request)

    def die(self, process: Process | None) -> None:
        if process is not None:
            process.alive = False

    def lost(self, attempt: Attempt, process: Process | None) -> Awaitable[Any] | None:
        """A loss is told only of what is proven to be dead and had begun."""
        if process is None or process.alive:
            return None
        return self.observe(attempt, Phase.ENDED, Exit(ExitKind.LOST), exists=False)

    def gone(self, attempt: Attempt, process: Process | None) -> Awaitable[Any] | None:
        if (process is not None and process.alive) or not attempt.state.terminal:
            return None
        told = worker_pb2.AttemptGone(attempt=attempt.name, fence=attempt.fence)
        return self.desk.gone(told)

    def refused(self, attempt: Attempt, process: Process | None) -> Awaitable[Any] | None:
        """A refusal promises that nothing happened, so it never follows a claim."""
        if process is not None or attempt.nonce or attempt.state is not AttemptState.LAUNCHING:
            return None
        if self.grants.get(attempt.name):
            return None
        step = refused_step(errors.Invalid("no such thing"), self.now())
        return self.ledger.ask(attempt.job_uid, of_attempt(attempt.index, attempt.name, step))

    def vanish(self, attempt: Attempt, process: Process | None) -> Awaitable[Any] | None:
        """A claimed attempt of which its host, alive and well, has nothing."""
        if not attempt.nonce or (process is not None and process.alive):
            return None
        return self.observe(attempt, Phase.GONE, exists=False)

    def observe(
        self,
        attempt: Attempt,
        phase: Phase,
        exit: Exit | None = None,
        *,
        exists: bool = True,
        reachable: bool = True,
    ) -> Awaitable[Any]:
        seen = Observation(attempt.name, phase, exists, exit, "here", reachable)
        self.said.append((attempt.job_uid, attempt.index, attempt.name, seen))
        return self.say(attempt.job_uid, attempt.index, attempt.name, seen)

    def say(self, uid: str, index: int, name: str, seen: Observation) -> Awaitable[Any]:
        step = observation_step(seen, self.now(), self.grounds)
        return self.ledger.ask(uid, of_attempt(index, name, step))

    def old_word(self, word: Word) -> Awaitable[Any] | None:
        """Something that was said before arrives once more, late."""
        if not self.said:
            return None
        return self.say(*self.said[word.pick % len(self.said)])

    # -- what must hold ----------------------------------------------------------------------------

    @invariant()
    def one_execution_of_each_attempt(self) -> None:
        """I4: one nonce is granted, so one process runs the user's code."""
        assert all(len(nonces) <= 1 for nonces in self.grants.values())
        assert all(count == 1 for count in self.starts.values())

    @invariant()
    def runs_of_a_task_never_overlap(self) -> None:
        """I7: the next attempt begins when nothing of the one before is left."""
        alive = Counter(
            (process.attempt.job_uid, process.attempt.index)
            for process in self.processes.values()
            if process.alive
        )
        assert all(count == 1 for count in alive.values()), alive

    @invariant()
    def terminal_is_final(self) -> None:
        """I8, I18."""
        for rows in self.jobs():
            self.note_end((rows.job.uid, None), rows.job.state)
            for index, task in rows.tasks.items():
                self.note_end((rows.job.uid, index), task.state)

    def note_end(self, key: tuple[str, int | None], state: JobState) -> None:
        known = self.ended.get(key)
        assert known is None or known is state, (key, known, state)
        if state.terminal:
            self.ended[key] = state

    @invariant()
    def a_cancel_is_never_forgotten(self) -> None:
        """I17: no attempt starts after an acknowledged cancel, whatever crashed since."""
        for uid, attempts in self.cancelled.items():
            rows = self.ledger.rows(uid)
            if rows is None:
                continue
            assert rows.job.desired is Desired.CANCELLED
            for index, task in rows.tasks.items():
                assert task.attempt == attempts.get(index, 0), (uid, index)

    @invariant()
    def nothing_acknowledged_is_lost(self) -> None:
        """I1: in memory as told or later, or over."""
        for uid, version in self.acknowledged.items():
            rows = self.ledger.rows(uid)
            if rows is not None:
                assert rows.job.version >= version

    @invariant()
    def counts_are_sums(self) -> None:
        """The job's counts are those of its tasks."""
        for rows in self.jobs():
            job = rows.job
            assert sum(job.counts) == job.size
            waiting = sum(not task.state.terminal for task in rows.tasks.values())
            ended = sum(job.counts[JobState.SUCCEEDED :])
            unstarted = len(job.unstarted) if not job.unstarted_state.terminal else 0
            assert waiting + ended + unstarted == job.size

    @invariant()
    def events_have_no_gap(self) -> None:
        """I19, I20: nothing is told twice, and nothing is left out that watchers wait for."""
        assert len(set(self.told)) == len(self.told)

    def doctor(self) -> None:
        """At a crash: the stored rows alone must be as they must be."""
        from doctor_check import problems_of

        assert problems_of(self.directory / "hatoba.db") == []

    def teardown(self) -> None:
        self.run(self.settled())
        _, newest = self.run(self.store.event_bounds())
        assert self.log.newest == newest, "watchers would wait for an event for ever"
        before = {rows.job.uid: rows for rows in self.jobs()}
        self.shut()
        self.doctor()
        self.open()
        after = {rows.job.uid: rows for rows in self.jobs()}
        try:
            assert set(after) == set(before)
            for uid, rows in after.items():
                # I28: what memory held is what a rebuild from the store gives.
                assert rows.job == before[uid].job
                assert dict(rows.tasks) == dict(before[uid].tasks)
                assert _held(rows) == _held(before[uid])
            self.everybody_acknowledged_is_there()
        finally:
            self.shut()
            self.runner.close()
            shutil.rmtree(self.directory)

    async def settled(self) -> None:
        """A decision that is answered comes after all that was in doubt."""
        await self.ledger.decide("nobody", lambda rows: None)

    def everybody_acknowledged_is_there(self) -> None:
        stored = self.run(self.store.jobs_by_uid(list(self.acknowledged)))
        for uid, version in self.acknowledged.items():
            assert stored[uid].version >= version, uid


def _held(rows: Rows) -> dict[int, Attempt]:
    """Newest attempts that still hold something."""
    return {
        index: attempt
        for index, attempt in rows.attempts.items()
        if attempt.release is not Release.RELEASED
    }


async def _forget(answers: list[Awaitable[Any]]) -> None:
    await asyncio.gather(*answers, return_exceptions=True)


async def _no_manifest(digest: str) -> Any:
    raise AssertionError(f"nobody asked for {digest}")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new store, made once: each history begins with a copy."""
    directory = tmp_path_factory.mktemp("template")

    async def make() -> None:
        store = await open_store(directory, lambda: START)
        await store.close()

    asyncio.run(make())
    return directory


@pytest.mark.parametrize("last", ["finish", "gone"])
@pytest.mark.parametrize("place", range(1, 9))
def test_an_end_that_the_disk_kept_although_it_failed(
    template: Path, last: str, place: int
) -> None:
    StoredHistories.template = template
    one = StoredHistories()
    one.submit_plain()
    for word in ("launch", "claim", "finish", "gone"):
        if word == last:
            one.happen_on_a_failing_disk([Word(word, 0, False)], place, False, True)
            break
        one.happen([Word(word, 0, False)])
    one.counts_are_sums()
    one.teardown()


@pytest.mark.slow
@pytest.mark.timeout(7_200)
def test_whatever_goes_wrong_what_must_hold_holds(template: Path, full_round: bool) -> None:
    """60 histories; 10,000 in a full round."""
    StoredHistories.template = template
    run_state_machine_as_test(
        StoredHistories,
        settings=settings(
            max_examples=EXAMPLES["full" if full_round else "short"],
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
