"""The desk at which runners claim, report and commit, whichever way their words arrive.

Everything is fenced: what the current attempt did not say is history and changes nothing.
Answers come as futures, so that a worker's stream is not held up by one commit.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from hatoba.v1 import runner_pb2, worker_pb2
from hatoba_plugins.backend import Clock
from hatoba_scheduler.control.gang_commits import GangCommits
from hatoba_scheduler.control.ledger import Commit, Ledger
from hatoba_scheduler.control.logged_models import LoggedModels, ModelRefused
from hatoba_scheduler.control.observe import Step, of_attempt
from hatoba_scheduler.control.orders import fill_order
from hatoba_scheduler.control.places import NO_PLACES, Places
from hatoba_scheduler.convert import (
    checkpoint_to_proto,
    manifest_of,
    micros,
    progress_of,
    usage_of,
)
from hatoba_scheduler.domain import causes, gangs
from hatoba_scheduler.domain.causes import Ending, ExitKind
from hatoba_scheduler.domain.changing import changed
from hatoba_scheduler.domain.device_jobs import speaker
from hatoba_scheduler.domain.gangs import ended
from hatoba_scheduler.domain.models import ModelVersion
from hatoba_scheduler.domain.naming import parse_attempt
from hatoba_scheduler.domain.records import (
    Attempt,
    Cause,
    Change,
    Checkpoint,
    Event,
    Progress,
)
from hatoba_scheduler.domain.retries import back_off
from hatoba_scheduler.domain.states import AttemptState, Desired
from hatoba_scheduler.domain.transitions import (
    Now,
    Outcome,
    View,
    checkpointed,
    claimed,
    reachability,
    released,
    running,
    used,
)
from hatoba_scheduler.store.base import Store

GRANTED = runner_pb2.CLAIM_VERDICT_GRANTED
DUPLICATE = runner_pb2.CLAIM_VERDICT_DUPLICATE
SUPERSEDED = runner_pb2.CLAIM_VERDICT_SUPERSEDED
CANCELLED = runner_pb2.CLAIM_VERDICT_CANCELLED
WAIT = runner_pb2.CLAIM_VERDICT_WAIT
ASK_AGAIN = 0.3
"""Seconds until a gang's member asks again whether the others have claimed."""
Logged = tuple[ModelVersion, ...] | Cause
"""Versions that a commit makes, or why it is refused them."""
T = TypeVar("T")
R = TypeVar("R")


class RunnerDesk:
    """Claims, reports and commits of attempts."""

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        clock: Clock,
        rng: random.Random,
        models: LoggedModels,
        places: Places = NO_PLACES,
    ) -> None:
        self._models = models
        self._places = places
        self._commits = asyncio.TaskGroup()
        self._gangs = GangCommits(ledger, clock)
        self._ledger = ledger
        self._store = store
        self._clock = clock
        self._rng = rng
        self._progress: dict[tuple[str, int], Progress] = {}
        self._heard: dict[str, float] = {}

    def _now(self) -> Now:
        return Now(round(self._clock.time() * 1e6), "runner")

    def _ask(self, name: str, step: Step) -> asyncio.Future[Change | None]:
        where = self._ledger.find_attempt(name)
        if where is None:
            nothing: asyncio.Future[Change | None] = asyncio.get_running_loop().create_future()
            nothing.set_result(None)
            return nothing
        return self._ledger.ask(where[0], of_attempt(where[1], name, step))

    def current(self, name: str, fence: int) -> Attempt | None:
        """The attempt, when it is its task's newest, has this fence and is not over."""
        where = self._ledger.find_attempt(name)
        rows = self._ledger.rows(where[0]) if where else None
        attempt = rows.attempts.get(where[1]) if rows and where else None
        if attempt is None or attempt.fence != fence or attempt.state.terminal:
            return None
        return attempt

    def stops_without_server(self, name: str) -> bool:
        """Whether the attempt's runner ends it when it is without the server for too long."""
        where = self._ledger.find_attempt(name)
        rows = self._ledger.rows(where[0]) if where else None
        return rows is not None and rows.job.terms.stop_after > 0

    def progress(self, job_uid: str, index: int) -> Progress | None:
        """The newest progress that a task told of; lost with a restart, told again soon."""
        return self._progress.get((job_uid, index))

    def heard(self, name: str) -> float:
        """When a live attempt's runner claimed or sent a heartbeat last, in monotonic seconds.

        Below 0: not since our start.
        """
        return self._heard.get(name, -1.0)

    def on_commit(self, commits: Sequence[Commit], events: Sequence[Event]) -> None:
        """Forget what former attempts told of; a listener of the ledger."""
        self._gangs.on_commit(commits)
        for commit in commits:
            for attempt, _ in commit.change.attempts:
                if attempt.state.terminal:
                    self._heard.pop(attempt.name, None)
        for event in events:
            if event.index is not None and (event.terminal or event.reason == "launch"):
                self._progress.pop((event.job_uid, event.index), None)

    # -- claim ----------------------------------------------------------------------------------

    def claim(
        self, request: runner_pb2.ClaimAttemptRequest
    ) -> asyncio.Future[runner_pb2.ClaimAttemptResponse]:
        """Grant the attempt to one nonce; the same nonce gets the same answer."""
        reply = runner_pb2.ClaimAttemptResponse(attempt=request.attempt, verdict=SUPERSEDED)
        now = self._now()

        def step(view: View) -> Change | None:
            reply.verdict = verdict(view, request.fence, request.nonce)
            if reply.verdict != GRANTED:
                return None
            self._heard[request.attempt] = self._clock.monotonic()
            if view.task.checkpoint is not None:
                reply.checkpoint.CopyFrom(checkpoint_to_proto(view.task.checkpoint))
            if view.job.terms.gang:
                return _member_claims(view, request, reply, now)
            return None if view.attempt.nonce else claimed(view, request.nonce, now)

        return _then(self._ask(request.attempt, step), lambda _: reply)

    # -- reports --------------------------------------------------------------------------------

    def started(self, told: worker_pb2.AttemptStarted) -> asyncio.Future[bool]:
        """The user's code began."""
        now = self._now()
        start = micros(told.time) or now.time

        def step(view: View) -> Change | None:
            if view.attempt.fence != told.fence:
                return None
            return running(view, start, told.memory_limit_by, now)

        return _then(self._ask(told.attempt, step), lambda change: change is not None)

    def heartbeat(
        self, request: runner_pb2.HeartbeatRequest
    ) -> asyncio.Future[runner_pb2.HeartbeatResponse]:
        """Keep progress and highest use; answer what is wanted."""
        order = runner_pb2.HeartbeatResponse(
            attempt=request.attempt, order=self._to(request.attempt)
        )
        usage = usage_of(request.usage) if request.HasField("usage") else None
        start = micros(request.start_time)

        def step(view: View) -> Change | None:
            if view.attempt.fence != request.fence or view.attempt.state.terminal:
                order.order = runner_pb2.RUNNER_ORDER_STOP
                return None
            self._heard[request.attempt] = self._clock.monotonic()
            if request.HasField("progress"):
                key = (view.job.uid, view.task.index)
                self._progress[key] = progress_of(request.progress)
            fill_order(order, view.job.stop_grace, view.attempt, self._now().time)
            if start and (begun := running(view, start, "", self._now())):
                return begun
            if view.attempt.unknown_since:
                return reachability(view, reachable=True, now=self._now())
            return used(view, usage) if usage else None

        return _then(self._ask(request.attempt, step), lambda _: order)

    def _to(self, attempt: str) -> runner_pb2.RunnerOrder.ValueType:
        """What an attempt is told that no job knows: of an earlier epoch, it is left alone.

        A restored store does not know of it, and people were told so when they adopted the rest.
        """
        named = parse_attempt(attempt)
        strange = named is not None and named.epoch != self._store.identity.store_epoch
        if named is not None and strange and self._ledger.rows(named.job_uid) is None:
            return runner_pb2.RUNNER_ORDER_RUN
        return runner_pb2.RUNNER_ORDER_STOP

    def checkpoint(
        self, request: runner_pb2.CommitCheckpointRequest
    ) -> asyncio.Future[runner_pb2.CommitCheckpointResponse]:
        """Record a complete checkpoint of the current attempt."""
        reply = runner_pb2.CommitCheckpointResponse(attempt=request.attempt, step=request.step)
        now = self._now()

        def step(view: View) -> Change | None:
            reply.accepted = _current(view, request.fence)
            if not reply.accepted:
                return None
            return checkpointed(
                view,
                Checkpoint(
                    request.step,
                    view.attempt.number,
                    manifest_of(request.manifest),
                    tuple(sorted(request.metrics.items())),
                    now.time,
                ),
            )

        return _then(self._ask(request.attempt, step), lambda _: reply)

    def commit(
        self, request: runner_pb2.CommitAttemptRequest
    ) -> asyncio.Future[runner_pb2.CommitAttemptResponse]:
        """Decide how the attempt ended; the first commit of the granted nonce counts.

        Models that it logged are looked at before, and become with the outcome or not at all.
        """
        if not request.models:
            return self._decide(request, ())
        answer: asyncio.Future[runner_pb2.CommitAttemptResponse]
        answer = asyncio.get_running_loop().create_future()
        commit = self._with_models(request, answer)
        self._commits.create_task(commit, name=f"commit:{request.attempt}")
        return answer

    async def run(self) -> None:
        """Own the commits that wait for their models to be looked at, until cancelled."""
        async with self._commits:
            await asyncio.get_running_loop().create_future()

    async def _with_models(
        self,
        request: runner_pb2.CommitAttemptRequest,
        answer: asyncio.Future[runner_pb2.CommitAttemptResponse],
    ) -> None:
        try:
            logged = await self._logged(request)
            if await self._ended_whole(request, logged):
                reply = runner_pb2.CommitAttemptResponse(attempt=request.attempt, accepted=True)
            else:
                reply = await self._decide(request, logged)
            if not reply.accepted:
                # It may have left memory while its models were looked at: what is stored decides.
                reply = await self.late_commit(request)
        except asyncio.CancelledError:
            answer.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - told to who asked
            if not answer.done():
                answer.set_exception(error)
            return
        if not answer.done():
            answer.set_result(reply)

    async def _ended_whole(self, request: runner_pb2.CommitAttemptRequest, logged: Logged) -> bool:
        """Of a gang's member that makes versions: whether its end is stored with all others'."""
        attempt = self.current(request.attempt, request.fence)
        rows = self._ledger.rows(attempt.job_uid) if attempt is not None else None
        if attempt is None or rows is None or isinstance(logged, Cause):
            return False
        if not (logged and rows.job.terms.gang) or attempt.nonce != request.nonce:
            return False

        def outcome(view: View) -> Outcome | None:
            if not (_current(view, request.fence) and _owns(view, request)):
                return None
            return _with_logged(self._outcome(view, request), logged)

        return await self._gangs.ended(attempt, outcome)

    async def _logged(self, request: runner_pb2.CommitAttemptRequest) -> Logged:
        """Versions of a good end's models, or why they cannot become."""
        attempt = self.current(request.attempt, request.fence)
        where = self._ledger.find_attempt(request.attempt)
        rows = self._ledger.rows(where[0]) if where else None
        if attempt is None or rows is None or not _good(request):
            return ()
        try:
            return await self._models.of(rows.job, attempt, request, self._now().time)
        except ModelRefused as refused:
            return causes.model_refused(str(refused), tuple(request.last_log_lines))

    def _decide(
        self, request: runner_pb2.CommitAttemptRequest, logged: Logged
    ) -> asyncio.Future[runner_pb2.CommitAttemptResponse]:
        reply = runner_pb2.CommitAttemptResponse(attempt=request.attempt)
        now = self._now()

        def step(view: View) -> Change | None:
            if view.attempt.state.terminal:
                reply.accepted = _decided(view.attempt, request)
                return None
            reply.accepted = view.attempt.fence == request.fence and _owns(view, request)
            if not reply.accepted:
                return None
            outcome = self._outcome(view, request)
            return ended(view, _with_logged(outcome, logged), now)

        return _then(self._ask(request.attempt, step), lambda _: reply)

    async def late_commit(
        self, request: runner_pb2.CommitAttemptRequest
    ) -> runner_pb2.CommitAttemptResponse:
        """The answer to a commit of an attempt that left memory: what is stored decides."""
        attempt = await self._store.attempt(request.attempt)
        accepted = attempt is not None and attempt.state.terminal and _decided(attempt, request)
        return runner_pb2.CommitAttemptResponse(attempt=request.attempt, accepted=accepted)

    def known(self, name: str) -> bool:
        """Whether the attempt is its task's newest and in memory."""
        return self._ledger.find_attempt(name) is not None

    def host_of(self, name: str) -> str:
        """The host that an attempt in memory was sent to, `devices/NAME` where that is a device;
        empty: none, or not in memory."""
        where = self._ledger.find_attempt(name)
        rows = self._ledger.rows(where[0]) if where else None
        attempt = rows.attempts.get(where[1]) if rows and where else None
        if rows is None or attempt is None or attempt.name != name:
            return ""
        return speaker(rows.job, attempt)

    def _outcome(self, view: View, request: runner_pb2.CommitAttemptRequest) -> Outcome:
        usage = usage_of(request.usage)
        ending = Ending(
            ExitKind(request.kind),
            request.exit_code,
            request.signal,
            request.message,
            tuple(request.last_log_lines),
            usage,
            self._places.on_spot(view.attempt),
        )
        state, cause = causes.judge(ending, gpus=bool(view.attempt.gpus))
        return Outcome(
            state,
            cause,
            wait=back_off(view.job, view.task, self._rng),
            start=micros(request.start_time),
            end=micros(request.end_time),
            usage=usage,
            outputs=manifest_of(request.outputs) if request.outputs.digest else None,
            log_sizes=tuple(sorted(request.log_sizes.items())),
            gone=request.gone,
            most_memory=self._places.most_memory(view.job) if view.job.retries.rules else 0,
        )

    def gone(self, told: worker_pb2.AttemptGone) -> asyncio.Future[bool]:
        """Nothing of it is left: it is released; one that never ran ends as it was meant to."""
        now = self._now()

        def step(view: View) -> Change | None:
            if view.attempt.fence != told.fence:
                return None
            if view.attempt.state.terminal:
                return released(view)
            cause = causes.lost("Its host has nothing of it.")
            return ended(view, Outcome(AttemptState.LOST, cause, gone=True), now)

        return _then(self._ask(told.attempt, step), lambda change: change is not None)


def _member_claims(
    view: View,
    request: runner_pb2.ClaimAttemptRequest,
    reply: runner_pb2.ClaimAttemptResponse,
    now: Now,
) -> Change | None:
    """A gang's member claims: it may run once all have."""
    change = None
    if not view.attempt.nonce:
        change = gangs.claimed(view, request.nonce, request.address, now)
    assert view.rows is not None
    rows = gangs.after(view.rows, change)
    if not gangs.all_claimed(rows):
        reply.verdict = WAIT
        reply.retry_after.FromMilliseconds(round(ASK_AGAIN * 1000))
        return change
    reply.generation = rows.job.generation
    # It is decided anew when somebody else wrote the job meanwhile.
    del reply.members[:]
    for one in gangs.members(rows):
        reply.members.add(index=one.rank, host=one.host, address=one.address)
    return change


def verdict(view: View, fence: int, nonce: str) -> runner_pb2.ClaimVerdict.ValueType:
    """Whether this nonce may run this attempt; of a gang's member, once all have claimed."""
    attempt = view.attempt
    if attempt.fence != fence or attempt.state.terminal:
        return SUPERSEDED
    if attempt.nonce and attempt.nonce != nonce:
        return DUPLICATE
    if attempt.nonce and not (view.job.terms.gang and attempt.state is AttemptState.STOPPING):
        return GRANTED
    if view.job.desired is not Desired.RUN or attempt.state is AttemptState.STOPPING:
        return CANCELLED
    return GRANTED


def _current(view: View, fence: int) -> bool:
    return view.attempt.fence == fence and not view.attempt.state.terminal


def _owns(view: View, request: runner_pb2.CommitAttemptRequest) -> bool:
    """An unclaimed attempt may be given up by anybody who has its fence, and not be carried out."""
    if view.attempt.nonce:
        return view.attempt.nonce == request.nonce
    return request.kind != runner_pb2.EXIT_KIND_EXITED or request.exit_code != 0


def _good(request: runner_pb2.CommitAttemptRequest) -> bool:
    return request.kind == runner_pb2.EXIT_KIND_EXITED and request.exit_code == 0


def _with_logged(outcome: Outcome, logged: Logged) -> Outcome:
    """A good end with the versions that it makes; a bad one when its models are refused."""
    if isinstance(logged, Cause):
        return changed(outcome, state=AttemptState.FAILED, cause=logged, outputs=None)
    return changed(outcome, models=logged) if logged else outcome


def _decided(attempt: Attempt, request: runner_pb2.CommitAttemptRequest) -> bool:
    """Whether it was this runner's commit that ended the attempt."""
    lost = attempt.state is AttemptState.LOST and request.kind != runner_pb2.EXIT_KIND_LOST
    same = (attempt.fence, attempt.nonce) == (request.fence, request.nonce)
    return same and not lost


def _then(future: asyncio.Future[T], use: Callable[[T], R]) -> asyncio.Future[R]:
    """A future of what `use` makes of another's result; failures pass through."""
    out: asyncio.Future[R] = asyncio.get_running_loop().create_future()

    def settle(done: asyncio.Future[T]) -> None:
        if out.done():
            return
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        if error is not None:
            out.set_exception(error)
        else:
            out.set_result(use(done.result()))

    future.add_done_callback(settle)
    return out
