"""One replica's life on a clock that is moved by hand; what of it outlives the worker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from blockbuster import BlockBuster

from hatoba.v1 import common_pb2, deployment_pb2, worker_pb2
from hatoba_plugins.clock import FakeClock
from hatoba_worker.failures import AttemptFailed, environment_failed
from hatoba_worker.keeper.messages import (
    AttemptStatus,
    Exit,
    Sample,
    Spawn,
    Spawned,
    SpawnFailed,
    Usage,
)
from hatoba_worker.logs import FILES
from hatoba_worker.replicas import causes
from hatoba_worker.replicas.fleet import Fleet, last_bytes
from hatoba_worker.replicas.life import DRAINING, GONE, READY, STARTING, UNHEALTHY, Replica, Tools
from hatoba_worker.replicas.probe import Seen, ask
from hatoba_worker.replicas.records import Ordered, Standing
from hatoba_worker.replicas.staging import GRACE, Place, config_of

NAME = "r-" + "0" * 32 + "-1-00000001"
TINY = {"exists", "read_piece", "size", "swap", "write"}
WELL = Seen(200)
LOADING = Seen(503, "loading", "it loads")
REFUSED = Seen(503, "example_refused", "no x in it")
SILENT = Seen(0, "silent", "/readyz was not answered in 3 s")
STUCK = Seen(503, "stuck", "no prediction has ended")


def spec(name: str = NAME, drain: int = 5) -> worker_pb2.ReplicaSpec:
    """A replica's order."""
    made = worker_pb2.ReplicaSpec(name=name, revision=1)
    made.serving.handler = "serve:Model"
    made.drain.FromSeconds(drain)
    return made


class FakeKeeper:
    """Starts nothing, and remembers what was asked."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.spawned: list[str] = []
        self.stopped: list[tuple[str, float]] = []
        self.forgotten: list[str] = []
        self.refuses = False

    async def start(self, spawn: Spawn) -> Spawned | SpawnFailed:
        """It runs at once."""
        self.spawned.append(spawn.attempt)
        if self.refuses:
            return SpawnFailed(spawn.attempt, 2, "not_found", "no such file: python9")
        return Spawned(spawn.attempt, 1, 1, self._clock.time(), "none")

    def stop(self, name: str, grace: float) -> None:
        """Noted."""
        self.stopped.append((name, grace))

    def forget(self, name: str) -> None:
        """Noted."""
        self.forgotten.append(name)

    def published(self, name: str) -> str:
        """Nothing is."""
        return ""

    async def sample(self) -> Sequence[Sample]:
        """Nothing runs."""
        return []


class FakeStaging:
    """Brings nothing in, or fails to."""

    def __init__(self) -> None:
        self.brought = 0
        self.pinned = 0
        self.problem: AttemptFailed | None = None
        self.hold = asyncio.Event()
        self.hold.set()
        self.built = asyncio.Event()
        self.built.set()

    async def trees(self, spec: worker_pb2.ReplicaSpec, home: str) -> None:
        """Counted."""
        await self.hold.wait()
        self.brought += 1

    async def spawn(self, spec: worker_pb2.ReplicaSpec, place: Place) -> Spawn:
        """A command, whose address is known at once."""
        if self.problem is not None:
            raise self.problem
        address = json.dumps({"host": "127.0.0.1", "port": place.run})
        ready = Path(place.ready_file)
        await asyncio.to_thread(ready.parent.mkdir, exist_ok=True)
        await asyncio.to_thread(ready.write_text, address)
        return Spawn(place.process, ["server"], {}, place.home, "", "")

    async def pin(self, spec: worker_pb2.ReplicaSpec, home: str) -> None:
        """Noted; an environment that is gone is built first."""
        self.pinned += 1
        await self.built.wait()

    async def clear(self, name: str, home: str) -> None:
        """Nothing to remove."""


class Stage:
    """A replica with everything around it played."""

    def __init__(self, home: Path) -> None:
        self.clock = FakeClock()
        self.keeper = FakeKeeper(self.clock)
        self.staging = FakeStaging()
        self.answers = {"/readyz": WELL, "/healthz": WELL}
        self.states: list[int] = []
        self.times: list[float] = []
        self.home = home
        self.made = self.replica()

    def replica(self) -> Replica:
        """One more worker's view of it."""
        tools = Tools(
            self.keeper, self.staging, self.probe, self.clock.sleep, self.clock.time, self._told
        )
        return Replica(spec(), str(self.home), tools)

    async def probe(self, address: str, path: str, over_tls: bool) -> Seen:
        """What it answers."""
        assert not over_tls
        return self.answers[path]

    def _told(self, replica: Replica) -> None:
        if not self.states or self.states[-1] != replica.state:
            self.states.append(replica.state)
            self.times.append(self.clock.monotonic())

    @property
    def now(self) -> deployment_pb2.Replica:
        """As the server is told."""
        return self.made.message("host-1")

    def waits(self) -> list[float]:
        """How long it was down each time, before it was started again."""
        story = list(zip(self.states, self.times, strict=True))
        return [
            round(later - earlier, 3)
            for (before, earlier), (after, later) in pairwise(story)
            if (before, after) == (UNHEALTHY, STARTING)
        ]

    async def until(self, state: int) -> None:
        """Move time until it is in this state."""
        while self.made.state != state:
            await self.turn()
            if self.made.state != state:
                await self.clock.advance_to_next()

    async def turn(self) -> None:
        """Let threads and tasks do what they can without time."""
        for _ in range(5):
            await asyncio.to_thread(lambda: None)
        await self.clock.advance(0.0)

    async def end(self, code: int = 1) -> None:
        """Its process ends."""
        run = self.made.run
        assert run is not None
        run.exit = Exit(code, None, False, "exited", self.clock.time(), Usage(0, 0, 0))
        run.lose()
        await self.turn()


@pytest.fixture
async def stage(tmp_path: Path, no_blocking_call_on_the_loop: BlockBuster) -> Stage:
    """One that is not begun yet. The worker writes small files on the loop, on purpose."""
    for function in no_blocking_call_on_the_loop.functions.values():
        function.can_block_in("hatoba_worker/tinyfiles.py", TINY)
    return Stage(tmp_path / "home")


@asynccontextmanager
async def living(stage: Stage) -> AsyncIterator[asyncio.Task[None]]:
    """The replica lives; what is left of it at the end is thrown away."""
    async with asyncio.TaskGroup() as tasks:
        life = tasks.create_task(stage.made.live(), name="life")
        await stage.turn()
        yield life
        life.cancel()


# -- starting -----------------------------------------------------------------------------------


async def test_it_is_ready_once_it_says_so(stage: Stage) -> None:
    stage.answers["/readyz"] = LOADING
    async with living(stage):
        await stage.clock.advance(5.0)
        before = stage.now
        assert (before.state, before.address) == (STARTING, "")
        stage.answers["/readyz"] = WELL
        await stage.until(READY)
        assert stage.now.address == "127.0.0.1:1"
        assert stage.clock.monotonic() < 5.1
        assert stage.keeper.spawned == [f"{NAME}.1"]


async def test_one_that_refuses_its_example_says_so_and_may_think_better_of_it(
    stage: Stage,
) -> None:
    stage.answers["/readyz"] = REFUSED
    async with living(stage):
        await stage.until(UNHEALTHY)
        assert stage.now.cause.code == common_pb2.CAUSE_CODE_PREDICTIONS_FAIL
        assert stage.now.cause.retryable
        assert "no x in it" in stage.now.cause.message
        stage.answers["/readyz"] = WELL
        await stage.until(READY)
        assert stage.keeper.spawned == [f"{NAME}.1"]


async def test_one_that_answers_wrongly_will_do_so_elsewhere_too(stage: Stage) -> None:
    stage.answers["/readyz"] = Seen(503, "golden_refused", "golden case 2: $.y is 3, expected 4")
    async with living(stage):
        await stage.until(UNHEALTHY)
        cause = stage.now.cause
        assert (cause.code, cause.retryable) == (common_pb2.CAUSE_CODE_PREDICTIONS_FAIL, False)
        assert "golden case 2: $.y is 3, expected 4" in cause.message


async def test_what_cannot_be_brought_in_is_tried_again_ever_more_slowly(stage: Stage) -> None:
    stage.staging.problem = environment_failed("no wheel", ["error: no wheel for it"])
    async with living(stage):
        while len(stage.waits()) < 8:
            await stage.clock.advance_to_next()
            await stage.turn()
        waits = stage.waits()
        assert waits[:6] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
        assert max(waits) == 30.0
        assert stage.now.cause.code == common_pb2.CAUSE_CODE_ENVIRONMENT_FAILED
        assert list(stage.now.cause.last_log_lines) == ["error: no wheel for it"]
        assert stage.staging.brought == 1
        stage.staging.problem = None
        await stage.until(READY)


async def test_a_process_that_cannot_be_started_says_why(stage: Stage) -> None:
    stage.keeper.refuses = True
    async with living(stage):
        await stage.until(UNHEALTHY)
        assert stage.now.cause.code == common_pb2.CAUSE_CODE_COMMAND_NOT_FOUND
        assert "python9" in stage.now.cause.message
        stage.keeper.refuses = False
        await stage.until(READY)
        assert stage.keeper.spawned == [f"{NAME}.1", f"{NAME}.2"]


# -- ending by itself ---------------------------------------------------------------------------


async def test_ends_in_a_row_are_a_crash_loop_and_a_good_minute_forgives_them(
    stage: Stage,
) -> None:
    async with living(stage):
        for _ in range(4):
            await stage.until(READY)
            await stage.end(code=3)
            assert stage.now.state == UNHEALTHY
        assert stage.now.cause.code == common_pb2.CAUSE_CODE_CRASH_LOOP
        assert stage.now.cause.exit_code == 3
        assert "4 times in a row" in stage.now.cause.message
        await stage.until(READY)
        assert stage.waits() == [0.5, 1.0, 2.0, 4.0]
        await stage.clock.advance(61.0)
        await stage.end(code=3)
        assert stage.now.cause.code == common_pb2.CAUSE_CODE_EXIT_CODE
        assert stage.now.restarts == 4
        await stage.until(READY)
        assert stage.waits()[-1] == 0.5
        assert stage.keeper.forgotten == [f"{NAME}.{n}" for n in range(1, 6)]


# -- not answering ------------------------------------------------------------------------------


async def test_one_that_falls_silent_is_killed(stage: Stage) -> None:
    async with living(stage):
        await stage.until(READY)
        stage.answers["/readyz"] = SILENT
        await stage.until(UNHEALTHY)
        assert stage.now.cause.code == common_pb2.CAUSE_CODE_NOT_READY
        assert stage.clock.monotonic() < 5.0
        while not stage.keeper.stopped:
            await stage.clock.advance_to_next()
        assert 10.0 < stage.clock.monotonic() < 12.0
        assert stage.keeper.stopped == [(f"{NAME}.1", 0.0)]
        await stage.end(code=-9)
        assert "killed" in stage.now.cause.message
        stage.answers["/readyz"] = WELL
        await stage.until(READY)
        assert stage.now.restarts == 1


async def test_one_that_loads_for_long_is_let_be(stage: Stage) -> None:
    stage.answers["/readyz"] = LOADING
    async with living(stage):
        await stage.clock.advance(1_000.0)
        assert not stage.keeper.stopped
        assert stage.now.state == STARTING


async def test_one_whose_predictions_never_end_is_killed_once_it_is_not_well(stage: Stage) -> None:
    async with living(stage):
        await stage.until(READY)
        stage.answers["/readyz"] = STUCK
        await stage.until(UNHEALTHY)
        await stage.clock.advance(60.0)
        assert not stage.keeper.stopped
        stage.answers["/healthz"] = STUCK
        await stage.clock.advance(15.0)
        assert stage.keeper.stopped == [(f"{NAME}.1", 0.0)]


async def test_a_short_silence_is_forgiven(stage: Stage) -> None:
    async with living(stage):
        await stage.until(READY)
        stage.answers["/readyz"] = SILENT
        await stage.clock.advance(2.0)
        stage.answers["/readyz"] = WELL
        await stage.clock.advance(60.0)
        assert stage.now.state == READY
        assert stage.states == [STARTING, READY]


# -- being let go -------------------------------------------------------------------------------


async def test_one_that_is_let_go_gets_its_time_and_is_gone(stage: Stage) -> None:
    async with living(stage) as life:
        await stage.until(READY)
        stage.made.let_go()
        await stage.turn()
        assert stage.now.state == DRAINING
        assert stage.keeper.stopped == [(f"{NAME}.1", 5.0 + GRACE)]
        assert not life.done()
        await stage.end(code=0)
        await life
        assert stage.now.state == GONE
        assert stage.states[-2:] == [DRAINING, GONE]


async def test_one_that_is_let_go_while_it_is_brought_in_never_starts(stage: Stage) -> None:
    stage.staging.hold.clear()
    async with living(stage) as life:
        stage.made.let_go()
        await life
        assert stage.now.state == GONE
        assert not stage.keeper.spawned


async def test_one_that_is_let_go_between_two_starts_waits_for_nothing(stage: Stage) -> None:
    async with living(stage) as life:
        await stage.until(READY)
        await stage.end()
        stage.made.let_go()
        await life
        assert stage.now.state == GONE
        assert stage.keeper.spawned == [f"{NAME}.1"]


# -- another worker -----------------------------------------------------------------------------


def status(**fields: object) -> AttemptStatus:
    """What the keeper has of its first process."""
    known = {
        "attempt": f"{NAME}.1",
        "pid": 1,
        "start_ticks": 1,
        "started_at": 1.0,
        "limit_by": "none",
        "ending": None,
        "exit": None,
        "failed": None,
        "gone": False,
        "lost": False,
        **fields,
    }
    return AttemptStatus(**known)  # type: ignore[arg-type]


@pytest.mark.parametrize("turns", range(6))
async def test_one_that_rests_may_be_let_go_twice(stage: Stage, turns: int) -> None:
    """Whenever another order comes, or another replica has gone, it is told again."""
    async with living(stage) as life:
        await stage.until(READY)
        await stage.end()
        stage.made.let_go()
        for _ in range(turns):
            await asyncio.sleep(0)
        stage.made.let_go()
        await life
        assert stage.now.state == GONE


async def test_another_worker_takes_it_up_as_ready(stage: Stage) -> None:
    async with living(stage):
        await stage.until(READY)
        since = stage.now.since
    stage.made = stage.replica()
    await asyncio.to_thread(stage.made.recover)
    stage.made.adopt(status())
    assert (stage.now.state, stage.now.address) == (READY, "127.0.0.1:1")
    assert stage.now.since == since
    async with living(stage):
        await stage.clock.advance(30.0)
        assert stage.now.state == READY
        assert stage.staging.pinned == 1
        assert stage.keeper.spawned == [f"{NAME}.1"]


async def test_another_worker_starts_what_ended_meanwhile(stage: Stage) -> None:
    async with living(stage):
        await stage.until(READY)
    stage.made = stage.replica()
    await asyncio.to_thread(stage.made.recover)
    ended = Exit(7, None, False, "exited", 1.0, Usage(0, 0, 0))
    stage.staging.built.clear()
    stage.made.adopt(status(exit=ended, gone=True))
    async with living(stage):
        await stage.until(READY)
        assert stage.now.cause.exit_code == 7
        assert stage.now.restarts == 1
        assert stage.keeper.spawned == [f"{NAME}.1", f"{NAME}.2"]


async def test_what_a_dead_keeper_lost_is_started_only_once_it_is_gone(stage: Stage) -> None:
    async with living(stage):
        await stage.until(READY)
    stage.made = stage.replica()
    await asyncio.to_thread(stage.made.recover)
    stage.made.adopt(status(lost=True))
    async with living(stage):
        await stage.clock.advance(100.0)
        assert stage.keeper.spawned == [f"{NAME}.1"]
        assert stage.now.cause.code == common_pb2.CAUSE_CODE_LOST
        assert stage.made.run is not None
        stage.made.run.gone.set()
        await stage.until(READY)
        assert stage.keeper.spawned == [f"{NAME}.1", f"{NAME}.2"]


# -- records ------------------------------------------------------------------------------------


def test_an_order_keeps_what_is_known_and_lets_the_rest_go() -> None:
    first = Ordered().following(worker_pb2.ReplicaOrder(order=3, replicas=[spec("a"), spec("b")]))
    bare, fresh = worker_pb2.ReplicaSpec(name="a", revision=9), spec("c")
    unknown = worker_pb2.ReplicaSpec(name="d")
    outside = spec("../e")
    second = first.following(
        worker_pb2.ReplicaOrder(order=4, replicas=[bare, fresh, unknown, outside])
    )
    assert (second.number, set(second.kept), set(second.leaving)) == (4, {"a", "c"}, {"b"})
    assert second.kept["a"].revision == 1
    assert not second.without("b").leaving


def test_an_order_is_as_it_was_after_a_restart(tmp_path: Path) -> None:
    order = worker_pb2.ReplicaOrder(order=3, replicas=[spec("a"), spec("b")])
    kept = (
        Ordered().following(order).following(worker_pb2.ReplicaOrder(order=5, replicas=[spec("a")]))
    )
    kept.save(tmp_path / "replicas.json")
    assert Ordered.load(tmp_path / "replicas.json") == kept
    assert Ordered.load(tmp_path / "none.json") == Ordered()
    (tmp_path / "replicas.json").write_text("{")
    assert Ordered.load(tmp_path / "replicas.json") == Ordered()


def test_how_it_stands_is_as_it_was_after_a_restart(tmp_path: Path) -> None:
    standing = Standing(run=3, restarts=2, ends=1, address="127.0.0.1:1", ready_since=5.5)
    standing.save(str(tmp_path))
    assert Standing.load(str(tmp_path)) == standing
    assert Standing.load(str(tmp_path / "none")) == Standing()


def test_settings_of_the_model_server_are_what_was_ordered() -> None:
    one = spec()
    one.serving.example.data, one.serving.example.media_type = b"{}", "application/json"
    one.serving.max_batch, one.serving.batch_wait_ms, one.serving.golden = 8, 2.5, 2
    one.limits.max_queue, one.limits.max_body_bytes = 7, 9
    one.limits.timeout.FromMilliseconds(1500)
    found = config_of(one, Place(f"{NAME}.1", "/home", 1), ("10.0.0.1", 0))
    assert found["example"] == {"path": "/home/example", "media_type": "application/json"}
    assert found["golden"] == 2
    assert found["batching"] == {"max_batch": 8, "batch_wait_ms": 2.5}
    assert found["limits"]["timeout_seconds"] == 1.5
    assert (found["host"], found["port"], found["drain_seconds"]) == ("10.0.0.1", 0, 5.0)
    assert found["ready_file"] == "/home/ready-1.json"


# -- logs and probes ----------------------------------------------------------------------------


def test_the_last_lines_are_told_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / FILES["stderr"]
    path.write_bytes(b"".join(b"line %d\n" % n for n in range(5_000)))
    size = path.stat().st_size
    assert last_bytes(str(path), 2) == (size - 20, b"line 4998\nline 4999\n")
    offset, data = last_bytes(str(path), 10_000)
    assert (offset, len(data)) == (0, size)
    assert last_bytes(str(tmp_path / "none"), 5) == (0, b"")
    path.write_bytes(bytes(4096) + b"after the hole\n")
    assert last_bytes(str(path), 5) == (4096, b"after the hole\n")


PIECE = 9
TURNS = 5
"""Of the loop, in which who asked reads a piece before the next one comes."""


async def _answering(answer: bytes) -> asyncio.Server:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for at in range(0, len(answer), PIECE):
            writer.write(answer[at : at + PIECE])
            await writer.drain()
            for _ in range(TURNS):
                await asyncio.sleep(0)
        writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n{}", Seen(200)),
        (
            b'HTTP/1.1 503 No\r\n\r\n{"kind": "loading", "error": "wait"}',
            Seen(503, "loading", "wait"),
        ),
        (b"HTTP/1.1 500 No\r\n\r\nplain words", Seen(500)),
        (b"nonsense", Seen(0, "silent", "/readyz was not answered: the answer is not HTTP")),
        (b"", Seen(0, "silent", "/readyz was not answered: the answer is not HTTP")),
    ],
)
async def test_whatever_a_replica_answers_is_an_answer(answer: bytes, seen: Seen) -> None:
    async with await _answering(answer) as server:
        host, port = server.sockets[0].getsockname()
        assert await ask(f"{host}:{port}", "/readyz") == seen


async def test_nobody_there_is_an_answer() -> None:
    async with await _answering(b"") as server:
        host, port = server.sockets[0].getsockname()
    assert (await ask(f"{host}:{port}", "/readyz")).status == 0


# -- orders -------------------------------------------------------------------------------------


async def test_a_server_that_begins_hears_of_orders_that_are_not_acted_by_yet(
    tmp_path: Path,
) -> None:
    """Else it would give its own first order their number, and that would be dropped."""
    fleet = Fleet(tmp_path, "here", lambda item: None)
    for number in (4, 5, 3):
        fleet.ordered(worker_pb2.ReplicaOrder(order=number))
    assert [item.replicas.order for item in fleet.report()] == [5]


def container_status(run: int = 1) -> AttemptStatus:
    """A container that runs."""
    return AttemptStatus(
        attempt=f"{NAME}.{run}",
        pid=7,
        start_ticks=0,
        started_at=1.0,
        limit_by="none",
        ending=None,
        exit=None,
        failed=None,
        gone=False,
        lost=False,
    )


def contained_spec() -> worker_pb2.ReplicaSpec:
    """A replica in an image."""
    made = spec()
    made.serving.environment.image = "r.example/m@sha256:1"
    return made


@asynccontextmanager
async def fleet_of(stage: Stage, root: Path) -> AsyncIterator[tuple[Fleet, list[int]]]:
    """A fleet whose keeper has nothing; and which states of containers it told."""
    told: list[int] = []

    def hear(item: worker_pb2.WorkerItem) -> None:
        told.extend(one.state for one in item.replicas.replicas)

    fleet = Fleet(root, "here", hear)
    tools = Tools(stage.keeper, stage.staging, stage.probe, stage.clock.sleep, stage.clock.time)

    async def work() -> None:
        async with asyncio.TaskGroup() as tasks:
            fleet.begin(tools, tasks)
            await asyncio.to_thread(fleet.load)
            fleet.take_up({})
            await fleet.run()

    async with asyncio.TaskGroup() as tasks:
        working = tasks.create_task(work(), name="fleet")
        await stage.turn()
        yield fleet, told
        working.cancel()


async def test_a_container_that_was_ordered_before_its_engine_was_heard_is_started_once(
    stage: Stage, tmp_path: Path
) -> None:
    async with fleet_of(stage, tmp_path) as (fleet, _):
        fleet.ordered(worker_pb2.ReplicaOrder(order=1, replicas=[contained_spec()]))
        while not stage.keeper.spawned:
            await stage.turn()
        assert fleet.take_up({f"{NAME}.1": container_status()}, contained=True) == {f"{NAME}.1"}
        await stage.turn()
        lives = [one for one in asyncio.all_tasks() if one.get_name() == f"replica {NAME}"]
        assert len(lives) == 1
        assert stage.keeper.spawned == [f"{NAME}.1"]


async def test_a_container_that_goes_on_is_told_once_its_engine_was_heard(
    stage: Stage, tmp_path: Path
) -> None:
    home = tmp_path / "replicas" / NAME
    home.mkdir(parents=True)
    Standing(run=1, staged=True, address="127.0.0.1:1", ready_since=1.0).save(str(home))
    order = Ordered(1, {NAME: contained_spec()})
    await asyncio.to_thread(order.save, tmp_path / "replicas.json")
    async with fleet_of(stage, tmp_path) as (fleet, told):
        assert fleet.has_containers
        assert told == []
        fleet.take_up({f"{NAME}.1": container_status()}, contained=True)
        await stage.turn()
        assert told == [READY]
        assert stage.keeper.spawned == []


def test_why_a_container_did_not_serve_is_told_apart() -> None:
    usage = Usage(0, 0, 0)
    not_there = Exit(127, None, False, "exited", 2.0, usage, SpawnFailed(NAME, 0, "not_found", "x"))
    other = Exit(126, None, False, "exited", 2.0, usage, SpawnFailed(NAME, 0, "wrong_arch", "x"))
    found = [causes.of_exit(one, contained_spec(), (), 1) for one in (not_there, other, None)]
    assert [one.code for one in found] == [
        common_pb2.CAUSE_CODE_COMMAND_NOT_FOUND,
        common_pb2.CAUSE_CODE_IMAGE_ARCHITECTURE,
        common_pb2.CAUSE_CODE_LOST,
    ]
    assert "container engine" in found[2].message
    assert "keeper" in causes.of_exit(None, spec(), (), 1).message
