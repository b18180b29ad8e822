"""An input that comes while its job runs: bounded, taken up again, and ended with a reason."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from hatoba.streams_in import InputFailed, streamed
from hatoba.v1 import artifact_pb2, common_pb2, job_pb2, runner_pb2, worker_pb2
from hatoba_worker.attempts import Attempt
from hatoba_worker.streams_in import (
    BATCH_ITEMS,
    WINDOW_BYTES,
    WINDOW_ITEMS,
    Feed,
    InputStreams,
    prepare,
)
from hatoba_worker.transfers import InputChanged, TransferFailed

FILE = artifact_pb2.ENTRY_TYPE_FILE
INPUT = job_pb2.Input(
    name="d",
    manifest=common_pb2.ManifestRef(digest="sha256:" + "1" * 64),
    mode=job_pb2.INPUT_MODE_STREAM,
)


class FakeTransfers:
    """A tree whose files say how large they claim to be; fails where it is told to."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self.sizes = sizes
        self.fetched: list[str] = []
        self.fail_at: dict[str, Exception] = {}

    async def upload(self, root: Path) -> common_pb2.ManifestRef:
        raise AssertionError(root)

    async def download(self, ref: common_pb2.ManifestRef, root: Path) -> None:
        raise AssertionError(root)

    async def manifest(self, ref: common_pb2.ManifestRef) -> artifact_pb2.Manifest:
        assert ref == INPUT.manifest
        entries = [
            artifact_pb2.ManifestEntry(path=path, type=FILE, size=size)
            for path, size in self.sizes.items()
        ]
        return artifact_pb2.Manifest(entries=entries)

    async def files(
        self, ref: common_pb2.ManifestRef, some: artifact_pb2.Manifest, root: Path
    ) -> None:
        for entry in some.entries:
            if entry.path in self.fail_at:
                raise self.fail_at[entry.path]
            self.fetched.append(entry.path)
        await asyncio.to_thread(_write, root, [entry.path for entry in some.entries])


def _write(root: Path, paths: list[str]) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)


class Looks:
    """Stands for the time that passes: each look may let the job read on."""

    def __init__(self) -> None:
        self.waited = asyncio.Event()
        self.go = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.waited.set()
        await self.go.wait()
        self.go.clear()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    prepare(str(tmp_path), INPUT)
    return tmp_path


def index(home: Path) -> list[dict[str, Any]]:
    text = (home / "streams" / "d.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def take(home: Path, count: int) -> None:
    with (home / "streams" / "d.taken").open("ab") as taken:
        taken.write(b"." * count)


def there(home: Path) -> set[str]:
    return {path.name for path in (home / "inputs" / "d").rglob("*") if path.is_file()}


async def fed(home: Path, transfers: FakeTransfers, looks: Looks) -> asyncio.Task[Any]:
    """A feed that runs until it has no room."""
    feed = Feed(home, INPUT, transfers, looks.sleep)
    task = asyncio.get_running_loop().create_task(feed.run(), name="feed")
    async with asyncio.timeout(20):
        await looks.waited.wait()
    return task


async def test_no_more_comes_than_the_window_holds(home: Path) -> None:
    names = [f"{n:03}" for n in range(3 * WINDOW_ITEMS)]
    transfers, looks = FakeTransfers(dict.fromkeys(names, 1)), Looks()
    task = await fed(home, transfers, looks)
    assert there(home) == set(names[:WINDOW_ITEMS])
    take(home, BATCH_ITEMS + 4)
    looks.waited.clear()
    looks.go.set()
    await looks.waited.wait()
    assert there(home) == set(names[BATCH_ITEMS + 4 : BATCH_ITEMS + WINDOW_ITEMS])
    task.cancel()


async def test_no_more_bytes_come_than_the_window_holds(home: Path) -> None:
    sizes = {f"{n}": WINDOW_BYTES // 4 for n in range(10)} | {"huge": 3 * WINDOW_BYTES}
    transfers, looks = FakeTransfers(sizes), Looks()
    task = await fed(home, transfers, looks)
    assert there(home) == {"0", "1", "2", "3"}
    for _ in range(10):
        take(home, 1)
        looks.go.set()
        await asyncio.to_thread(lambda: None)
    async with asyncio.timeout(20):
        # What is larger than the window comes alone.
        await task
    assert index(home)[-1] == {"end": 11}


async def test_another_worker_goes_on_where_the_first_stopped(home: Path) -> None:
    names = [f"{n:03}" for n in range(2 * WINDOW_ITEMS)]
    first, looks = FakeTransfers(dict.fromkeys(names, 1)), Looks()
    task = await fed(home, first, looks)
    task.cancel()
    take(home, WINDOW_ITEMS)
    # Killed in the middle of a line, with a file that nobody was told of.
    with (home / "streams" / "d.jsonl").open("a") as lines:
        lines.write('{"item": {"id": "0')
    second = FakeTransfers(dict.fromkeys(names, 1))
    feed = Feed(home, INPUT, second, Looks().sleep)
    async with asyncio.timeout(20):
        assert await feed.run() is None
    assert second.fetched == names[WINDOW_ITEMS:]
    assert [line["item"]["id"] for line in index(home)[:-1]] == names
    assert there(home) == set(names[WINDOW_ITEMS:])
    assert await Feed(home, INPUT, FakeTransfers({}), Looks().sleep).run() is None


def launched(home: Path) -> Attempt:
    launch = worker_pb2.LaunchAttempt(attempt="a", inputs=[INPUT])
    return Attempt(launch, "n" * 16, str(home), 0)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InputChanged("s3://b/k changed"), runner_pb2.EXIT_KIND_INPUT_CHANGED),
        (TransferFailed("no such chunk"), runner_pb2.EXIT_KIND_STAGING_FAILED),
    ],
)
async def test_what_cannot_come_ends_the_stream_with_its_reason(
    home: Path, error: Exception, kind: int
) -> None:
    transfers = FakeTransfers({f"{n:02}": 1 for n in range(40)})
    transfers.fail_at["20"] = error
    for transfer in (transfers, FakeTransfers({})):
        # The next worker reads it from the index.
        async with asyncio.TaskGroup() as tasks:
            streams = InputStreams(transfer, tasks)
            attempt = launched(home)
            streams.begin(attempt)
            streams.begin(attempt)
            await asyncio.gather(*streams._running["a"])
            failure = await streams.end("a")
        assert failure is not None
        assert failure.kind == kind
        assert str(error) in str(failure)
    items = streamed(home, home / "inputs", "d")
    with pytest.raises(InputFailed, match=str(error)):
        await asyncio.to_thread(list, items)


async def test_a_stream_of_a_dead_job_is_let_go(home: Path) -> None:
    transfers, looks = FakeTransfers({f"{n:03}": 1 for n in range(100)}), Looks()
    async with asyncio.TaskGroup() as tasks:
        streams = InputStreams(transfers, tasks, looks.sleep)
        streams.begin(launched(home))
        await looks.waited.wait()
        assert await streams.end("a") is None
        assert await streams.end("a") is None


def lines(home: Path, *told: dict[str, Any]) -> None:
    with (home / "streams" / "d.jsonl").open("a") as index:
        index.writelines(json.dumps(line) + "\n" for line in told)


def item(id: str) -> dict[str, Any]:
    return {"item": {"id": id, "path": id, "attributes": {}, "media_type": ""}, "size": 1}


def taken(home: Path) -> int:
    return (home / "streams" / "d.taken").stat().st_size


def reading(home: Path) -> Generator[str, None, None]:
    for _, one in streamed(home, home / "inputs", "d"):
        yield one["id"]


def test_an_item_is_done_with_when_the_next_is_asked_for(home: Path) -> None:
    lines(home, item("a"), item("b"), {"end": 2})
    read = reading(home)
    assert next(read) == "a"
    assert taken(home) == 0
    assert next(read) == "b"
    assert taken(home) == 1
    assert list(read) == []
    assert taken(home) == 2


def test_a_stream_is_read_on_and_not_again(home: Path) -> None:
    lines(home, item("a"), item("b"), item("c"))
    read = reading(home)
    assert [next(read), next(read)] == ["a", "b"]
    read.close()
    lines(home, {"end": 3})
    assert list(reading(home)) == ["b", "c"]
    with pytest.raises(InputFailed, match="mode cache"):
        list(reading(home))


def test_a_tree_without_items_has_its_files(tmp_path: Path) -> None:
    (tmp_path / "inputs" / "d" / "sub").mkdir(parents=True)
    (tmp_path / "inputs" / "d" / "sub" / "x").write_text("x")
    found = list(streamed(None, tmp_path / "inputs", "d"))
    assert [(path, one["id"]) for path, one in found] == [
        (tmp_path / "inputs" / "d" / "sub" / "x", "sub/x")
    ]
    with pytest.raises(InputFailed, match="no input 'e'"):
        list(streamed(None, tmp_path / "inputs", "e"))
