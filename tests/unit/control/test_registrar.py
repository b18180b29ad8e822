"""Checks of models are submitted once, followed to their ends, and survive the server."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from domain_rows import NOW, intent

from hatoba.v1 import artifact_pb2, common_pb2, job_pb2, model_pb2
from hatoba_plugins.clock import FakeClock
from hatoba_scheduler.control.ledger import Ledger
from hatoba_scheduler.control.observe import of_attempt
from hatoba_scheduler.control.registrar import AGAIN, Registrar, RegistrarParts
from hatoba_scheduler.control.submit import Caller
from hatoba_scheduler.convert_models import content_of
from hatoba_scheduler.domain import causes
from hatoba_scheduler.domain.causes import Ending, ExitKind
from hatoba_scheduler.domain.models import ModelState, ModelVersion
from hatoba_scheduler.domain.records import Job, ManifestRef
from hatoba_scheduler.domain.states import AttemptState, CauseCode
from hatoba_scheduler.domain.transitions import Outcome, ended, launch
from hatoba_scheduler.errors import FailedPrecondition, HatobaError, NotFound, ResourceExhausted
from hatoba_scheduler.store.base import RequestKey, Submitted
from hatoba_scheduler.store.samples import new_job, submission
from hatoba_scheduler.store.sqlite import SqliteStore, open_store
from hatoba_scheduler.telemetry.tracing import Tracer

REPORT = ManifestRef("sha256:" + "5" * 64, 10, 1)
SIGNATURE = {"input": {"type": "object"}, "input_type": "application/json"}


class Blobs:
    """Trees by digest, as far as the registrar needs them."""

    def __init__(self) -> None:
        self.chunks: dict[bytes, bytes] = {}
        self.trees: dict[str, artifact_pb2.Manifest] = {}

    @asynccontextmanager
    async def upload(self) -> AsyncIterator[Blobs]:
        yield self

    async def add(self, piece: Any) -> None:
        self.chunks[piece.sha256] = piece.data

    async def commit(self) -> None:
        pass

    async def put_manifest(self, manifest: artifact_pb2.Manifest) -> common_pb2.ManifestRef:
        digest = f"sha256:{hashlib.sha256(manifest.SerializeToString()).hexdigest()}"
        self.trees[digest] = manifest
        return common_pb2.ManifestRef(digest=digest, files=len(manifest.entries))

    async def manifest(self, digest: str) -> artifact_pb2.Manifest:
        if digest not in self.trees:
            raise NotFound(f"{digest} is not stored")
        return self.trees[digest]

    async def read(self, digests: Sequence[bytes]) -> AsyncGenerator[list[Any], None]:
        for digest in digests:
            yield [_Read(self.chunks[digest])]

    def put_report(self, data: bytes) -> None:
        digest = hashlib.sha256(data).digest()
        self.chunks[digest] = data
        manifest = artifact_pb2.Manifest()
        entry = manifest.entries.add(path="report.json", size=len(data))
        entry.chunks.add(sha256=digest, size=len(data))
        self.trees[REPORT.digest] = manifest


@dataclass
class _Read:
    data: bytes


@dataclass
class House:
    """A registrar over a ledger and a store; jobs are submitted by hand."""

    store: SqliteStore
    ledger: Ledger
    blobs: Blobs = field(default_factory=Blobs)
    clock: FakeClock = field(default_factory=FakeClock)
    specs: list[job_pb2.JobSpec] = field(default_factory=list)
    callers: list[Caller] = field(default_factory=list)
    refusals: list[HatobaError] = field(default_factory=list)
    jobs: dict[str, Job] = field(default_factory=dict)
    submitted: asyncio.Event = field(default_factory=asyncio.Event)
    one_by_one: asyncio.Lock = field(default_factory=asyncio.Lock)

    def made(self) -> Registrar:
        parts = RegistrarParts(
            self.store, self.ledger, cast(Any, self.blobs), Tracer([]), self.clock
        )
        return Registrar(parts)

    async def submit(self, spec: job_pb2.JobSpec, caller: Caller, key: RequestKey) -> Job:
        if self.refusals:
            raise self.refusals.pop(0)
        self.specs.append(spec)
        self.callers.append(caller)
        async with self.one_by_one:
            return await self._once(spec, key)

    async def _once(self, spec: job_pb2.JobSpec, key: RequestKey) -> Job:
        if key.request_id not in self.jobs:
            (done,) = await self.ledger.submit([submission(new_job(), spec.name)])
            assert isinstance(done, Submitted)
            self.jobs[key.request_id] = done.job
            self.submitted.set()
        return self.jobs[key.request_id]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Registrar]:
        registrar = self.made()
        registrar.open(self.submit)
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(registrar.run(), name="registrar")
            yield registrar
            task.cancel()

    async def end(self, job: Job, outcome: Outcome) -> None:
        uid = job.uid
        await self.ledger.decide(uid, lambda rows: launch(rows, intent(rows), NOW))
        rows = self.ledger.rows(uid)
        assert rows is not None
        name = rows.attempts[0].name
        await self.ledger.decide(uid, of_attempt(0, name, lambda view: ended(view, outcome, NOW)))

    async def settled(self, version: ModelVersion) -> ModelVersion:
        async with asyncio.timeout(10):
            while True:
                found = await self.store.models.version(version.key)
                assert found is not None
                if found.state is not ModelState.REGISTERING:
                    return found


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    store = await open_store(tmp_path, lambda: 1)
    ledger = Ledger(store)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(ledger.run(), name="ledger")
        yield House(store, ledger)
        task.cancel()
    await store.close()


async def registered(house: House, golden: int = 0, **fields: Any) -> ModelVersion:
    serving = model_pb2.Serving(handler="serve:Digits", golden=golden)
    serving.code.digest = "sha256:" + "2" * 64
    serving.example.data, serving.example.media_type = b"[1]", "application/json"
    serving.environment.python = "3.11"
    version = ModelVersion(
        "vision",
        "digits",
        0,
        ModelState.REGISTERING,
        ManifestRef("sha256:" + "3" * 64),
        content_of(serving, None, {}),
        5,
        "ada",
        "serve:Digits",
        **fields,
    )
    made = await house.store.models.register(version, None)
    assert isinstance(made, ModelVersion)
    return made


GOOD = Outcome(AttemptState.SUCCEEDED, None, gone=True, outputs=REPORT)


async def test_a_check_runs_the_handler_on_the_example(house: House) -> None:
    version = await registered(house)
    async with house.running() as registrar:
        await registrar.start(version, Tracer([]).root())
        spec = house.specs[0]
        assert spec.command[:4] == ["python", "-m", "hatoba_worker.serving", "check"]
        command = list(spec.command)
        assert command[command.index("--handler") + 1] == "serve:Digits"
        assert spec.code.digest == "sha256:" + "2" * 64
        assert [one.name for one in spec.inputs] == ["model", "example"]
        (entry,) = house.blobs.trees[spec.inputs[1].manifest.digest].entries
        assert house.blobs.chunks[entry.chunks[0].sha256] == b"[1]"
        assert (spec.environment.python, dict(spec.labels)) == (
            "3.11",
            {"hatoba/checks": version.name},
        )
        assert house.callers[0][:2] == ("ada", "vision")
        house.blobs.put_report(json.dumps({"ok": True, "signature": SIGNATURE}).encode())
        await house.end(house.jobs[version.name], GOOD)
        found = await house.settled(version)
    message = model_pb2.ModelVersion.FromString(found.content)
    assert (found.state, message.signature.input_type) == (ModelState.READY, "application/json")
    assert message.signature.input["type"] == "object"


@pytest.mark.parametrize(("golden", "said"), [(0, []), (3, ["--golden", "3"])])
async def test_a_check_runs_the_golden_cases(house: House, golden: int, said: list[str]) -> None:
    version = await registered(house, golden)
    async with house.running() as registrar:
        await registrar.start(version, Tracer([]).root())
        command = list(house.specs[0].command)
    assert command[command.index("application/json") + 1 : -2] == said


@pytest.mark.parametrize("report", [b"", b"[]", b'{"signature": 3}', b"\xff", b"[" * 200_000])
async def test_a_report_that_says_nothing_leaves_no_signature(house: House, report: bytes) -> None:
    version = await registered(house)
    async with house.running() as registrar:
        await registrar.start(version, Tracer([]).root())
        house.blobs.put_report(report)
        await house.end(house.jobs[version.name], GOOD)
        found = await house.settled(version)
    assert (found.state, found.content) == (ModelState.READY, version.content)


async def test_a_report_that_is_not_there_leaves_no_signature(house: House) -> None:
    version = await registered(house)
    async with house.running() as registrar:
        await registrar.start(version, Tracer([]).root())
        await house.end(house.jobs[version.name], GOOD)
        found = await house.settled(version)
    assert (found.state, found.content) == (ModelState.READY, version.content)


async def test_a_bad_end_is_why_the_version_failed(house: House) -> None:
    version = await registered(house)
    lines = ("there is no class Digits",)
    bad = Outcome(*causes.judge(Ending(ExitKind.EXITED, 1, last_log_lines=lines)), gone=True)
    async with house.running() as registrar:
        await registrar.start(version, Tracer([]).root())
        await house.end(house.jobs[version.name], bad)
        found = await house.settled(version)
    assert found.state is ModelState.FAILED
    assert found.cause is not None
    assert (found.cause.code, found.cause.last_log_lines) == (CauseCode.EXIT_CODE, lines)


async def test_what_refuses_the_check_for_good_fails_the_version(house: House) -> None:
    version = await registered(house)
    house.refusals = [FailedPrecondition("no backend runs images")]
    async with house.running() as registrar:
        await registrar.start(version, Tracer([]).root())
        found = await house.settled(version)
    assert found.cause is not None
    assert found.cause.code is CauseCode.MODEL_REFUSED
    assert "no backend runs images" in found.cause.message


async def test_what_refuses_it_for_now_is_tried_again(house: House) -> None:
    version = await registered(house)
    house.refusals = [ResourceExhausted("the queue is full"), ResourceExhausted("still full")]
    async with house.running() as registrar:
        await registrar.start(version, Tracer([]).root())
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            ticking = tasks.create_task(_tick(house.clock), name="clock")
            await house.submitted.wait()
            ticking.cancel()
    assert house.refusals == []
    assert len(house.jobs) == 1


async def test_a_check_that_a_dead_server_did_not_submit_is_submitted(house: House) -> None:
    version = await registered(house)
    async with house.running():
        async with asyncio.timeout(10):
            while not (await _now(house, version)).check_job:
                pass
    assert len(house.jobs) == 1
    assert (await _now(house, version)).check_job.endswith("check-digits-1")


async def test_a_check_that_was_submitted_and_not_noted_is_not_submitted_twice(
    house: House,
) -> None:
    version = await registered(house)
    async with house.running() as registrar:
        await registrar.start(version, Tracer([]).root())
        again = await house.submit(
            house.specs[0], house.callers[0], RequestKey("vision", "CheckModel", version.name, b"")
        )
    assert again == house.jobs[version.name]
    assert len(house.jobs) == 1


async def test_an_end_that_nobody_saw_is_seen_at_the_next_start(house: House) -> None:
    version = await registered(house)
    (done,) = await house.ledger.submit(
        [submission(replace(new_job(), project="vision"), "check-digits")]
    )
    assert isinstance(done, Submitted)
    await house.store.models.note_check(version.key, "projects/vision/jobs/check-digits-1")
    house.blobs.put_report(b"{}")
    await house.end(done.job, GOOD)
    async with house.running():
        found = await house.settled(version)
    assert found.state is ModelState.READY
    assert house.specs == []


async def test_a_check_that_is_not_there_fails_the_version(house: House) -> None:
    version = await registered(house)
    await house.store.models.note_check(version.key, "projects/vision/jobs/check-digits-9")
    async with house.running():
        found = await house.settled(version)
    assert found.cause is not None
    assert "check-digits-9" in found.cause.message


async def _now(house: House, version: ModelVersion) -> ModelVersion:
    found = await house.store.models.version(version.key)
    assert found is not None
    return found


async def _tick(clock: FakeClock) -> None:
    """Let the time pass for whoever waits."""
    while True:
        await clock.until_asleep()
        await clock.advance(AGAIN)
