"""Outputs that become a dataset version: in order, once, and not at all when they should not."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from domain_rows import CANCEL, NOW, intent, new_job, view_of

from hatoba.v1 import artifact_pb2, job_pb2
from hatoba_plugins.clock import FakeClock
from hatoba_scheduler.config import BlobsConfig
from hatoba_scheduler.control.items import ItemReader
from hatoba_scheduler.control.ledger import Ledger
from hatoba_scheduler.control.publisher import Publisher
from hatoba_scheduler.control.specs import SpecCache
from hatoba_scheduler.domain.datasets import DatasetVersionRecord, NewDatasetVersion
from hatoba_scheduler.domain.records import Job, ManifestRef
from hatoba_scheduler.domain.states import AttemptState
from hatoba_scheduler.domain.transitions import Outcome, ended, launch, running, submitted
from hatoba_scheduler.store.base import Submission, Submitted
from hatoba_scheduler.store.blobs import ChunkStore, Piece
from hatoba_scheduler.store.datasets import DatasetKey
from hatoba_scheduler.store.errors import StorageFull
from hatoba_scheduler.store.places import open_place
from hatoba_scheduler.store.publications import Publication
from hatoba_scheduler.store.sqlite import open_store
from hatoba_scheduler.store.sqlite.publications import SqlitePublications
from hatoba_scheduler.store.sqlite.store import SqliteStore

KEY = DatasetKey("default", "faces-predictions")
MODEL = "projects/default/models/digits/versions/7"
DATA = "projects/default/datasets/faces/versions/3"
Files = dict[str, bytes]


def spec(**publish: Any) -> job_pb2.JobSpec:
    return job_pb2.JobSpec(
        name="predict-digits",
        command=["true"],
        inputs=[
            job_pb2.Input(name="model", source=MODEL),
            job_pb2.Input(name="data", source=DATA),
        ],
        publish=job_pb2.Publish(
            **{"dataset": "faces-predictions", "folder": "predictions", **publish}
        ),
    )


def lines(*ids: str, **attributes: Any) -> bytes:
    return b"".join(json.dumps({"id": id, "attributes": attributes}).encode() + b"\n" for id in ids)


def shard(*ids: str, errors: int = 0) -> Files:
    """What one task leaves."""
    summary = {"total": len(ids) + errors, "done": len(ids), "errors": errors, "first_errors": []}
    return {
        "predictions/items.jsonl": lines(*ids, label="3", split="test"),
        "summary.json": json.dumps(summary).encode(),
    }


class House:
    """A store, a ledger and a publisher of one server."""

    def __init__(self, store: SqliteStore, chunks: ChunkStore, clock: FakeClock) -> None:
        self.store, self.chunks, self.clock = store, chunks, clock
        self.ledger = Ledger(store)
        self.specs = SpecCache(store)
        self.publisher = Publisher(self.ledger, store, self.specs, chunks, clock)

    async def submit(self, wanted: job_pb2.JobSpec, size: int = 1) -> Job:
        job = new_job("uid-1", size=size)
        text, publishes = wanted.SerializeToString(), wanted.HasField("publish")
        item = Submission(job, wanted.name, text, submitted(job, NOW), publishes=publishes)
        (result,) = await self.ledger.submit([item])
        assert isinstance(result, Submitted)
        return result.job

    async def end(self, job: Job, index: int, outcome: Outcome) -> None:
        """One task's whole life."""
        steps: list[Callable[[Any], Any]] = [
            lambda rows: launch(rows, intent(rows, index), NOW),
            lambda rows: running(view_of(rows, index), NOW.time, "", NOW),
            lambda rows: ended(view_of(rows, index), outcome, NOW),
        ]
        for step in steps:
            await self.ledger.decide(job.uid, step)

    async def carry_out(
        self, wanted: job_pb2.JobSpec, tasks: Sequence[Files | None], order: Sequence[int] = ()
    ) -> Job:
        """A job whose tasks succeed with these outputs, in this order."""
        job = await self.submit(wanted, len(tasks))
        for index in order or range(len(tasks)):
            files = tasks[index]
            outputs = await self.keep(files) if files is not None else None
            await self.end(job, index, Outcome(AttemptState.SUCCEEDED, None, outputs=outputs))
        return job

    async def keep(self, files: Files) -> ManifestRef:
        manifest = artifact_pb2.Manifest()
        async with self.chunks.upload() as upload:
            for path, data in sorted(files.items()):
                sha = hashlib.sha256(data).digest()
                entry = manifest.entries.add(
                    path=path, type=artifact_pb2.ENTRY_TYPE_FILE, mode=0o644, size=len(data)
                )
                if data:
                    entry.chunks.add(sha256=sha, size=len(data))
                    await upload.add(Piece(sha, data, last=True))
            await upload.commit()
        ref = await self.chunks.put_manifest(manifest)
        return ManifestRef(ref.digest, ref.total_bytes, ref.files)

    async def settled(self, uid: str = "uid-1") -> Publication:
        """What became of it, once that is known."""
        async with asyncio.timeout(10):
            while True:
                found = await self.store.publications.settled([uid])
                if found:
                    return found[uid]
                await self.clock.advance(1.0)

    async def version(self) -> DatasetVersionRecord:
        version = await self.store.datasets.version(KEY)
        assert version is not None
        return version

    async def items(self) -> list[bytes]:
        version = await self.version()
        assert version.items is not None
        reader = ItemReader(self.chunks)
        return [line async for some in reader.lines(version.items.digest) for line in some.lines]

    async def ids(self) -> list[str]:
        return [json.loads(line)["id"] for line in await self.items()]


@asynccontextmanager
async def opened(
    directory: Path, *, publishing: bool = True, clock: FakeClock | None = None
) -> AsyncIterator[House]:
    """A server on this directory, until it is killed; without publishing it dies before that."""
    clock = clock or FakeClock()
    now = lambda: round(clock.time() * 1e6)  # noqa: E731
    store = await open_store(directory, now)
    place = await asyncio.to_thread(open_place, BlobsConfig(), directory / "blobs")
    try:
        async with ChunkStore.open(place, store.blob_index, now) as chunks:
            house = House(store, chunks, clock)
            await house.ledger.recover()
            await house.publisher.recover()
            loops = [house.ledger.run, house.publisher.run][: 2 if publishing else 1]
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(run(), name=f"loop-{run}") for run in loops]
                yield house
                for one in running:
                    one.cancel()
    finally:
        await store.close()


async def test_outputs_become_a_version_in_the_order_of_the_tasks(tmp_path: Path) -> None:
    shards = [shard("a", "b"), shard("c"), shard(), shard("d", "e")]
    async with opened(tmp_path) as house:
        job = await house.carry_out(spec(), shards, order=[3, 1, 0, 2])
        published, summary = await house.settled()
        version = await house.version()
        assert await house.ids() == ["a", "b", "c", "d", "e"]
    assert (published, summary) == (version.resource, "5 of 5, 0 errors")
    assert (version.item_count, version.splits, version.item_labels) == (
        5,
        (("test", 5),),
        (("3", 5),),
    )
    origins = version.origins
    assert (origins.source, origins.job) == (
        f"jobs/{job.name}",
        f"projects/default/jobs/{job.name}",
    )
    assert (origins.model_version, origins.made_from) == (MODEL, (DATA,))
    assert (version.created_by, version.manifest.files) == ("tester", 0)


async def test_files_beside_the_items_are_the_versions_files(tmp_path: Path) -> None:
    first = shard("a") | {"predictions/masks/a.png": b"A", "other/x": b"no"}
    second = shard("b") | {"predictions/masks/b.png": b"B", "predictions/legend.txt": b"same"}
    first["predictions/legend.txt"] = b"same"
    async with opened(tmp_path) as house:
        await house.carry_out(spec(), [first, second])
        await house.settled()
        manifest = await house.chunks.manifest((await house.version()).manifest.digest)
    assert [entry.path for entry in manifest.entries] == [
        "legend.txt",
        "masks/a.png",
        "masks/b.png",
    ]


async def test_without_a_folder_all_outputs_are_the_versions(tmp_path: Path) -> None:
    outputs = {"items.jsonl": lines("a"), "a.txt": b"A"}
    async with opened(tmp_path) as house:
        await house.carry_out(spec(folder=""), [outputs])
        assert await house.settled() == ((await house.version()).resource, "")
        assert (await house.version()).manifest.files == 1


async def test_many_items_are_all_there(tmp_path: Path) -> None:
    """More than a chunk of them, and shards whose last line has no end."""
    wide = "x" * 30_000
    shards = []
    for number in range(3):
        data = lines(*(f"{number}-{at:03}" for at in range(150)), prediction=wide)
        shards.append({"predictions/items.jsonl": data.removesuffix(b"\n")})
    async with opened(tmp_path) as house:
        await house.carry_out(spec(), shards)
        await house.settled()
        ids = await house.ids()
        version = await house.version()
        assert version.items is not None
        tree = await house.chunks.manifest(version.items.digest)
    assert ids == [f"{number}-{at:03}" for number in range(3) for at in range(150)]
    assert len(tree.entries[0].chunks) == 2


@pytest.mark.parametrize(("most", "is_published"), [(None, True), (2, True), (1, False)])
async def test_errors_are_counted_and_may_be_too_many(
    tmp_path: Path, most: int | None, is_published: bool
) -> None:
    limit = {} if most is None else {"max_errors": most}
    shards = [shard("a", "b", errors=1), shard("c", errors=1)]
    async with opened(tmp_path) as house:
        await house.carry_out(spec(**limit), shards)
        published, summary = await house.settled()
        version = await house.store.datasets.version(KEY)
    assert summary == "3 of 5, 2 errors"
    assert (version is not None) is is_published
    assert is_published or published.startswith("not published: 2 items failed, and 1 may")


BAD: list[tuple[list[Files | None], str]] = [
    ([shard("a"), None], "task 1 left no predictions/items.jsonl"),
    ([{"summary.json": b"{}", **shard("a")} | {"summary.json": b"{}"}], "has no counts"),
    ([shard("a") | {"summary.json": b"{"}], "summary.json of task 0 is not JSON"),
    ([shard("a") | {"summary.json": b'{"total": -1}'}], "has no counts"),
    ([shard("a") | {"summary.json": b"[" * 200_000}], "summary.json of task 0 is not JSON"),
    (
        [shard("a") | {"summary.json": b'{"total": %b, "done": 0, "errors": 0}' % (b"9" * 4300)}],
        "has no counts",
    ),
    ([shard("a") | {"summary.json": b" " * (1024 * 1024 + 1)}], "has 1,048,577 bytes"),
    ([shard("a"), shard("b", "a")], "its id is there before"),
    ([{"predictions/items.jsonl": b"nonsense\n"}], "must be one JSON object"),
    (
        [shard("a") | {"predictions/x": b"1"}, shard("b") | {"predictions/x": b"2"}],
        "task 1 left another 'x' than a task before it",
    ),
    (
        [shard("a") | {"predictions/x": b"1"}, shard("b") | {"predictions/x/y": b"2"}],
        "not published: ",
    ),
]


@pytest.mark.parametrize(("tasks", "why"), BAD, ids=[why for _, why in BAD])
async def test_what_cannot_become_a_version_says_why(
    tmp_path: Path, tasks: list[Files | None], why: str
) -> None:
    async with opened(tmp_path) as house:
        await house.carry_out(spec(), tasks)
        published, _ = await house.settled()
        assert await house.store.datasets.version(KEY) is None
    assert published.startswith("not published: ")
    assert why in published


async def test_a_job_that_failed_publishes_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        job = await house.submit(spec(), 2)
        outputs = await house.keep(shard("a"))
        await house.end(job, 0, Outcome(AttemptState.SUCCEEDED, None, outputs=outputs))
        await house.end(job, 1, Outcome(AttemptState.FAILED, CANCEL))
        assert await house.settled() == Publication("", "")
        assert await house.store.datasets.version(KEY) is None


async def test_a_job_that_does_not_ask_publishes_nothing(tmp_path: Path) -> None:
    plain = spec()
    plain.ClearField("publish")
    async with opened(tmp_path) as house:
        await house.carry_out(plain, [shard("a")])
        assert await house.store.publications.due() == []
        assert await house.store.publications.settled(["uid-1"]) == {}


async def test_a_server_that_died_before_it_published_does_at_its_next_start(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, publishing=False) as house:
        await house.carry_out(spec(), [shard("a"), shard("b")])
        assert await house.store.publications.due() == ["uid-1"]
    for _ in range(2):
        async with opened(tmp_path) as house:
            await house.settled()
            dataset = await house.store.datasets.dataset(KEY)
            assert dataset is not None
            assert (dataset.versions, await house.ids()) == (1, ["a", "b"])


async def test_a_server_that_died_while_the_job_ran_publishes_at_its_end(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        job = await house.submit(spec(), 1)
        outputs = await house.keep(shard("a"))
    async with opened(tmp_path) as house:
        await house.end(job, 0, Outcome(AttemptState.SUCCEEDED, None, outputs=outputs))
        assert (await house.settled()).published.endswith("versions/1")


async def test_a_version_that_was_made_and_not_noted_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version of the dataset lies between: it is the job that tells."""
    async with opened(tmp_path) as house:
        noted = asyncio.Event()
        tree = await house.keep({"x": b"1"})
        other = NewDatasetVersion("default", KEY.dataset, tree, None, 1, NOW.time, "somebody")
        honest = SqlitePublications.settle

        async def settle(self: SqlitePublications, job_uid: str, publication: Publication) -> None:
            if not noted.is_set():
                noted.set()
                await house.store.datasets.create_version(other)
                raise StorageFull("no room for the note")
            await honest(self, job_uid, publication)

        monkeypatch.setattr(SqlitePublications, "settle", settle)
        await house.carry_out(spec(), [shard("a")])
        await noted.wait()
        assert (await house.settled()).published.endswith("versions/1")
        dataset = await house.store.datasets.dataset(KEY)
        assert dataset is not None
        assert dataset.versions == 2


async def test_one_that_cannot_be_stored_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, publishing=False) as house:
        await house.carry_out(spec(), [shard("a")])
        other = new_job("uid-2")
        wanted = spec(dataset="other")
        item = Submission(
            other, "other", wanted.SerializeToString(), submitted(other, NOW), publishes=True
        )
        (result,) = await house.ledger.submit([item])
        assert isinstance(result, Submitted)
        outputs = await house.keep(shard("b"))
        await house.end(result.job, 0, Outcome(AttemptState.SUCCEEDED, None, outputs=outputs))
    async with opened(tmp_path) as house:
        honest = SqlitePublications.settle

        async def settle(self: SqlitePublications, job_uid: str, publication: Publication) -> None:
            if job_uid == "uid-1":
                raise StorageFull("never any room")
            await honest(self, job_uid, publication)

        monkeypatch.setattr(SqlitePublications, "settle", settle)
        assert (await house.settled("uid-2")).published.endswith("datasets/other/versions/1")
