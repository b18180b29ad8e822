"""WorkerService: the streams of host workers, and what operators do with hosts."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, NamedTuple

import grpc
import structlog

from hatoba.v1 import runner_pb2, worker_pb2, worker_pb2_grpc
from hatoba_plugins.values import Exit, ExitKind
from hatoba_scheduler.auth.device_credentials import DeviceCaller
from hatoba_scheduler.control.attachments import Seat
from hatoba_scheduler.control.draining import Drainer, host_place
from hatoba_scheduler.control.hub import Hub, Session
from hatoba_scheduler.control.latecomers import Latecomers
from hatoba_scheduler.control.ledger import Ledger
from hatoba_scheduler.control.metrics import MetricWriter
from hatoba_scheduler.control.observe import of_attempt
from hatoba_scheduler.control.runners import RunnerDesk
from hatoba_scheduler.convert import host_to_proto, micros
from hatoba_scheduler.domain import causes
from hatoba_scheduler.domain.device_jobs import speaker
from hatoba_scheduler.domain.gangs import ended
from hatoba_scheduler.domain.records import Attempt, Change, Host, MetricPoint
from hatoba_scheduler.domain.retries import back_off
from hatoba_scheduler.domain.states import AttemptState, Release
from hatoba_scheduler.domain.transitions import Now, Outcome, View, released
from hatoba_scheduler.errors import InvalidArgument, PermissionDenied, Reason
from hatoba_scheduler.failpoints import hit
from hatoba_scheduler.interceptors.context import call_or_none, current_call
from hatoba_scheduler.services.cordons import check_drain
from hatoba_scheduler.services.joining import Joining
from hatoba_scheduler.services.paging import Pager, page_size
from hatoba_scheduler.telemetry.trace_store import TraceStore

Context = grpc.aio.ServicerContext[Any, Any]
Item = worker_pb2.ServerItem
_EXITS = {
    runner_pb2.EXIT_KIND_EXITED: ExitKind.EXITED,
    runner_pb2.EXIT_KIND_SIGNALED: ExitKind.SIGNALED,
    runner_pb2.EXIT_KIND_OUT_OF_MEMORY: ExitKind.OUT_OF_MEMORY,
    runner_pb2.EXIT_KIND_RUN_TIMEOUT: ExitKind.RUN_TIMEOUT,
    runner_pb2.EXIT_KIND_STOPPED: ExitKind.STOPPED,
    runner_pb2.EXIT_KIND_LOST: ExitKind.LOST,
}
CONNECT = "hatoba.v1.WorkerService/Connect"
_ANSWERED = frozenset({"claim", "started", "commit", "gone", "heartbeat", "checkpoint", "metrics"})
"""What a worker says of attempts, and says again on its next stream."""
_OF_ATTEMPT = _ANSWERED - {"gone"}
"""Of these only what was sent to the host that says it is listened to."""
log = structlog.get_logger(__name__)


class WorkerItems:
    """Answers what one worker says, item by item."""

    def __init__(
        self,
        hub: Hub,
        desk: RunnerDesk,
        latecomers: Latecomers,
        metrics: MetricWriter,
        spans: TraceStore,
    ) -> None:
        self._hub = hub
        self._desk = desk
        self._latecomers = latecomers
        self._metrics = metrics
        self._spans = spans

    async def take(self, session: Session, item: worker_pb2.WorkerItem) -> None:
        """Carry out one item. What it leads to is answered on the session, in its own time."""
        kind = item.WhichOneof("item")
        if self._hub.restored and kind in _ANSWERED:
            # Said again on the stream that follows the adoption, by when it has an answer.
            return
        if kind in _OF_ATTEMPT and self._foreign(session, getattr(item, kind).attempt):
            self._refuse_foreign(session, item)
        elif kind == "claim":
            self._reply(session, self._desk.claim(item.claim), lambda r: Item(claimed=r))
        elif kind == "started":
            self._started(session, item.started)
        elif kind == "commit":
            await self._commit(session, item.commit)
        elif kind == "gone":
            self._gone(session, item.gone)
        elif kind == "heartbeat":
            self._heartbeat(session, item.heartbeat)
        elif kind == "checkpoint":
            answer = self._desk.checkpoint(item.checkpoint)
            self._reply(session, answer, lambda r: Item(checkpoint_stored=r))
        elif kind == "metrics":
            await self._report(session, item.metrics)
        elif kind == "spans":
            self._spans.add(item.spans.spans)
        elif kind == "held":
            await self._held(session, item.held)
        else:
            self._of_host(session, item)

    def _foreign(self, session: Session, attempt: str) -> bool:
        """Whether an attempt was sent to another host than the one that speaks."""
        return self._desk.host_of(attempt) not in ("", self._hub.speaker(session))

    def _refuse_foreign(self, session: Session, item: worker_pb2.WorkerItem) -> None:
        kind = item.WhichOneof("item")
        attempt = getattr(item, str(kind)).attempt
        speaker = self._hub.speaker(session)
        log.warning("host.foreign_attempt", host=speaker, attempt=attempt, said=kind)
        if session.denied is not None:
            session.denied(self._desk.host_of(attempt), f"{kind} of {attempt}, not its own")
        if kind == "claim":
            verdict = runner_pb2.CLAIM_VERDICT_SUPERSEDED
            claimed = runner_pb2.ClaimAttemptResponse(attempt=attempt, verdict=verdict)
            session.send(Item(claimed=claimed))

    def _of_host(self, session: Session, item: worker_pb2.WorkerItem) -> None:
        kind = item.WhichOneof("item")
        if kind == "inventory_complete":
            self._hub.inventory_complete(session, ended=item.inventory_complete.ended)
        elif kind == "replicas":
            self._hub.replicas_told(session, item.replicas)
        elif kind == "tail":
            self._hub.tail_told(item.tail)

    async def _held(self, session: Session, held: worker_pb2.HeldAttempt) -> None:
        self._hub.held(session, held)
        if held.HasField("outcome") or self._hub.restored or self._desk.known(held.attempt):
            return
        if not await self._latecomers.may_go_on(held, session.hello.host):
            drop = worker_pb2.DropAttempt(attempt=held.attempt)
            session.send(Item(drop=drop))

    async def _commit(self, session: Session, commit: runner_pb2.CommitAttemptRequest) -> None:
        def answer(reply: runner_pb2.CommitAttemptResponse) -> Item:
            if reply.accepted:
                self._hub.ended(commit.attempt, exit_of(commit), left=not commit.gone)
            if commit.gone:
                # Told again by a worker that was killed before it could say so by itself.
                self._hub.left_nothing(commit.attempt)
            return Item(committed=reply)

        if self._desk.known(commit.attempt):
            self._reply(session, self._desk.commit(commit), answer)
        else:
            session.send(Item(committed=await self._desk.late_commit(commit)))
            if commit.gone:
                self._hub.left_nothing(commit.attempt)

    def _started(self, session: Session, started: worker_pb2.AttemptStarted) -> None:
        def answer(_: bool) -> None:
            self._hub.started(started.attempt)

        self._reply(session, self._desk.started(started), answer)

    def _gone(self, session: Session, gone: worker_pb2.AttemptGone) -> None:
        current = self._desk.current(gone.attempt, gone.fence)
        if current is not None and self._foreign(session, gone.attempt):
            # It was refused the claim of what another host runs.
            return

        def answer(_: bool) -> None:
            self._hub.left_nothing(gone.attempt)

        self._reply(session, self._desk.gone(gone), answer)

    def _heartbeat(self, session: Session, request: runner_pb2.HeartbeatRequest) -> None:
        def answer(reply: runner_pb2.HeartbeatResponse) -> Item | None:
            plain = reply.order == runner_pb2.RUNNER_ORDER_RUN
            # Who may not be without the server for long counts from what it heard.
            listens = self._desk.stops_without_server(request.attempt)
            return Item(order=reply) if listens or not plain else None

        self._reply(session, self._desk.heartbeat(request), answer)

    async def _report(self, session: Session, request: runner_pb2.ReportMetricsRequest) -> None:
        attempt = self._desk.current(request.attempt, request.fence)
        reply = runner_pb2.ReportMetricsResponse(
            attempt=request.attempt, acked_report=request.report
        )
        if attempt is None:
            session.send(Item(metrics_stored=reply))
            return

        def done(stored: bool) -> None:
            if stored:
                session.send(Item(metrics_stored=reply))
            else:
                session.close()

        await self._metrics.add(metric_points(attempt, request), done)

    def _reply(
        self,
        session: Session,
        future: asyncio.Future[Any],
        answer: Callable[[Any], Item | None],
    ) -> None:
        def settle(done: asyncio.Future[Any]) -> None:
            if done.cancelled() or done.exception() is not None:
                # The worker says it again on its next stream.
                session.close()
                return
            hit("worker.answer.before")
            item = answer(done.result())
            if item is not None and not session.send(item):
                session.close()

        future.add_done_callback(settle)


def exit_of(commit: runner_pb2.CommitAttemptRequest) -> Exit:
    """An ending as the backend tells it."""
    kind = _EXITS.get(commit.kind, ExitKind.FAILED)
    return Exit(kind, commit.exit_code, commit.signal, commit.message)


def metric_points(attempt: Attempt, request: runner_pb2.ReportMetricsRequest) -> list[MetricPoint]:
    """The records of reported points."""
    return [
        MetricPoint(
            attempt.job_uid,
            attempt.index,
            sample.key,
            sample.step,
            attempt.number,
            sample.value,
            micros(sample.time),
        )
        for sample in request.samples
    ]


class Side(NamedTuple):
    """Where a stream belongs: devices have a hub of their own."""

    hub: Hub
    items: WorkerItems


def _device() -> DeviceCaller | None:
    """The device that calls; None: it is none."""
    call = call_or_none()
    return call.token if call and isinstance(call.token, DeviceCaller) else None


def _denials() -> Callable[[str, str], None] | None:
    """Where it is kept that who calls spoke for another; None: it is in the log."""
    token = _device()
    return (lambda other, why: token.spoke_for(other, CONNECT, why)) if token else None


async def _take_all(side: Side, session: Session, items: Iterable[worker_pb2.WorkerItem]) -> None:
    for item in items:
        if not side.hub.is_current(session):
            return
        await side.items.take(session, item)


class WorkerServicer(worker_pb2_grpc.WorkerServiceServicer):
    """See proto/hatoba/v1/worker.proto. `tasks` owns the readers of open streams."""

    def __init__(
        self,
        hub: Hub,
        items: WorkerItems,
        ledger: Ledger,
        drainer: Drainer,
        pager: Pager,
        tasks: asyncio.TaskGroup,
        joining: Joining,
        devices: Side | None = None,
    ) -> None:
        """`devices`: what devices are for with their jobs; None: none has any."""
        self._joining = joining
        self._devices = devices
        self._clock = hub.clock
        self._rng = random.Random()
        self._hub = hub
        self._items = items
        self._ledger = ledger
        self._drainer = drainer
        self._pager = pager
        self._tasks = tasks

    async def Connect(
        self,
        request_iterator: AsyncIterator[worker_pb2.WorkerServiceConnectRequest],
        context: Context,
    ) -> AsyncIterator[worker_pb2.WorkerServiceConnectResponse]:
        """One worker's stream, from hello to its end."""
        first = await anext(request_iterator, None)
        if first is None or not first.items or first.items[0].WhichOneof("item") != "hello":
            raise InvalidArgument("a worker's stream begins with hello")
        hello = first.items[0].hello
        side = self._side(hello.host)
        session = await side.hub.open(hello)
        session.denied = _denials()
        reader = self._tasks.create_task(
            self._read(side, session, first, request_iterator),
            name=f"worker:{side.hub.speaker(session)}",
        )
        try:
            async for response in session.responses():
                yield response
        finally:
            reader.cancel()
            await side.hub.left(session)

    def _side(self, host: str) -> Side:
        """Where a worker belongs that says to be this host. Raises PermissionDenied."""
        token = _device()
        if token is None:
            self._joining.check_speaker(host)
            return Side(self._hub, self._items)
        if self._devices is None:
            raise PermissionDenied("this server has no jobs for devices")
        if host != token.device:
            why = f"it said to be {host!r}"
            token.spoke_for(f"devices/{host}", CONNECT, why)
            raise PermissionDenied(
                f"{token.principal} runs jobs under no other name than its own; {why}",
                reason=Reason.NOT_YOUR_HOST,
                metadata={"host": host, "principal": token.principal},
            )
        return self._devices

    async def _read(
        self,
        side: Side,
        session: Session,
        first: worker_pb2.WorkerServiceConnectRequest,
        requests: AsyncIterator[worker_pb2.WorkerServiceConnectRequest],
    ) -> None:
        try:
            await _take_all(side, session, list(first.items)[1:])
            async for request in requests:
                await _take_all(side, session, request.items)
        except Exception as error:  # noqa: BLE001 - a broken stream is an ordinary end of a session
            log.warning("worker.stream.ended", host=session.hello.host, error=repr(error))
        finally:
            session.close()

    # -- operators ------------------------------------------------------------------------------

    def _message(self, host: Host) -> worker_pb2.Host:
        out = host_to_proto(host, self._hub.reachable(host.name), self._hub.held_of(host.name))
        out.joined = self._joining.has_joined(host.name)
        return out

    async def ListHosts(
        self, request: worker_pb2.ListHostsRequest, context: Context
    ) -> worker_pb2.ListHostsResponse:
        """Hosts by name."""
        after = self._pager.position("hosts", request.page_token)
        size = page_size(request.page_size)
        hosts = [host for host in self._hub.hosts() if host.name > after]
        reply = worker_pb2.ListHostsResponse(hosts=[self._message(one) for one in hosts[:size]])
        if len(hosts) > size:
            reply.next_page_token = self._pager.token("hosts", hosts[size - 1].name)
        return reply

    async def GetHost(
        self, request: worker_pb2.GetHostRequest, context: Context
    ) -> worker_pb2.Host:
        """One host."""
        return self._message(self._hub.host(_bare(request.name)))

    async def CordonHost(
        self, request: worker_pb2.CordonHostRequest, context: Context
    ) -> worker_pb2.Host:
        """Keep new work away from a host, or let it come again; have what runs there give way."""
        check_drain(request)
        host = await self._hub.cordon(
            _bare(request.name), request.cordoned, request.reason, drain=request.drain
        )
        if host.draining:
            actor = current_call().principal
            count = await self._drainer.drain(host_place(host), actor)
            log.info("host.drained", host=host.name, jobs=count, actor=actor)
        return self._message(host)

    async def DeclareHostGone(
        self, request: worker_pb2.DeclareHostGoneRequest, context: Context
    ) -> worker_pb2.Host:
        """Audited evidence that a host is gone for good."""
        host = await self._hub.declare_gone(_bare(request.name))
        log.warning("host.declared_gone", host=host.name, reason=request.reason)
        await self._lose_all(host.name, request.reason)
        return self._message(host)

    async def RemoveHost(
        self, request: worker_pb2.RemoveHostRequest, context: Context
    ) -> worker_pb2.Host:
        """Forget a host, and refuse its certificates."""
        name = _bare(request.name)
        host = await self._joining.remove(name)
        return self._message(host) if host else worker_pb2.Host(name=f"hosts/{name}")

    async def CreateJoinToken(
        self, request: worker_pb2.CreateJoinTokenRequest, context: Context
    ) -> worker_pb2.JoinToken:
        """A token with which one machine becomes a host."""
        return await self._joining.create_token(request)

    async def JoinHost(
        self, request: worker_pb2.JoinHostRequest, context: Context
    ) -> worker_pb2.HostCertificates:
        """Make the caller's machine a host."""
        return await self._joining.join(request)

    async def RenewHost(
        self, request: worker_pb2.RenewHostRequest, context: Context
    ) -> worker_pb2.HostCertificates:
        """New certificates for the host that calls."""
        return await self._joining.renew(request)

    async def Attach(  # type: ignore[override]  # it writes instead of yielding
        self,
        request_iterator: AsyncIterator[worker_pb2.WorkerServiceAttachRequest],
        context: Context,
    ) -> None:
        """A session that the caller's host was asked for."""
        first = await context.read()
        if isinstance(first, worker_pb2.WorkerServiceAttachRequest):
            seat = self._seat(first.session)
            if seat is not None:
                await seat.serve(first, context)

    def _seat(self, session: str) -> Seat | None:
        token = current_call().token
        if not isinstance(token, DeviceCaller):
            return self._hub.attachments.seat(session, token.host if token else "")
        if self._devices is None:
            return None
        return self._devices.hub.attachments.seat(session, token.device)

    async def _lose_all(self, host: str, reason: str) -> None:
        """End what was on a host, before its backend finds it gone and knows no reason."""
        actor = current_call().principal
        now = Now(round(self._clock.time() * 1e6), actor)
        cause = causes.declared_gone(host, actor, reason)
        held = [
            (rows.job.uid, attempt)
            for rows in self._ledger.all_rows()
            for attempt in rows.attempts.values()
            if speaker(rows.job, attempt) == host and attempt.release is not Release.RELEASED
        ]

        def step(view: View) -> Change | None:
            if view.attempt.state.terminal:
                return released(view)
            wait = back_off(view.job, view.task, self._rng)
            return ended(view, Outcome(AttemptState.LOST, cause, wait=wait, gone=True), now)

        await asyncio.gather(
            *(self._ledger.ask(uid, of_attempt(a.index, a.name, step)) for uid, a in held)
        )


def _bare(name: str) -> str:
    return name.removeprefix("hosts/")
