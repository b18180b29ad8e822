"""Inputs where jobs run: copied, shared read-only, streamed; and what was changed behind us."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from s3_server import CREDENTIALS, S3Server
from server_process import HatobaServer, running_server
from waiting import until

from hatoba.aio import AsyncClient, AsyncJob
from hatoba.v1 import common_pb2
from tests.integration.datasets.conftest import NO_PROXY, client_of, configure, contents, folder

PYTHON = sys.executable
SUCCEEDED = common_pb2.JOB_STATE_SUCCEEDED
PATIENCE = 60.0


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def house(
    tmp_path_factory: pytest.TempPathFactory, s3: S3Server
) -> AsyncIterator[HatobaServer]:
    """A server with a worker."""
    data = configure(tmp_path_factory.mktemp("inputs") / "data", s3.endpoint)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (CREDENTIALS | NO_PROXY).items():
            patch.setenv(name, value)
        async with running_server(data) as one:
            yield one


@pytest.fixture
async def sdk(house: HatobaServer) -> AsyncIterator[AsyncClient]:
    """The SDK, in a project that no other test uses."""
    async with client_of(house, f"p{uuid.uuid4().hex[:10]}") as one:
        yield one


async def run(client: AsyncClient, script: str, *, retries: int = 0, **inputs: str) -> AsyncJob:
    """Run a Python script with inputs to its end."""
    job = await client.submit(
        [PYTHON, "-c", f"import hatoba, os, sys\njob = hatoba.current_job()\n{script}"],
        code=None,
        inputs=inputs,
        retries=retries,
        name="reads",
    )
    await job.wait(PATIENCE)
    return job


async def said(job: AsyncJob) -> str:
    """What a job that ended well wrote."""
    log = b"".join([piece.data async for piece in job.logs()]).decode()
    assert job.record.state == SUCCEEDED, (job.record.cause.message, log)
    return log.strip()


async def test_a_copy_may_be_written_to_and_the_cache_may_not(
    sdk: AsyncClient, tmp_path: Path
) -> None:
    await sdk.datasets.push(folder(tmp_path / "d", {"a/x.txt": "x"}), labels_from_folders=True)
    script = """
for name in ("own", "shared"):
    path = job.inputs[name] / "a" / "x.txt"
    print(name, oct(path.stat().st_mode & 0o222), path.read_text(), list(job.items(name)))
    if name == "own":
        path.write_text("changed")
"""
    for _ in range(2):
        log = await said(await run(sdk, script, own="datasets/d:copy", shared="datasets/d:1"))
        own, shared = log.splitlines()
        assert own.startswith("own 0o200 x")
        assert shared.startswith("shared 0o0 x")
        assert "'label': 'a'" in shared


async def test_what_was_written_through_the_cache_is_fetched_anew(
    sdk: AsyncClient, house: HatobaServer, tmp_path: Path
) -> None:
    await sdk.datasets.push(folder(tmp_path / "d", {"x.txt": "good", "y.txt": "y"}))
    script = """
path = job.inputs["d"] / "x.txt"
print(path.read_text())
path.chmod(0o644)
path.write_text("evil")
"""
    for _ in range(3):
        assert await said(await run(sdk, script, d="datasets/d")) == "good"
    assert "cache.spoiled" in (house.data / "worker.log").read_text()


STREAM = """
import json, pathlib
seen, most = [], 0
for path, item in job.stream("d"):
    seen.append((item["id"], path.read_text() if path else None, item["attributes"]))
    most = max(most, sum(len(files) for _, _, files in os.walk(job.inputs_dir / "d")))
print(json.dumps([seen, most]))
"""


async def test_a_stream_brings_items_in_order_and_keeps_few(
    sdk: AsyncClient, tmp_path: Path
) -> None:
    files = {f"{n % 3}/{n:04}.txt": f"content {n}" for n in range(300)}
    items = [
        {"id": f"i{n}", "path": f"{n % 3}/{n:04}.txt", "attributes": {"label": n}}
        for n in reversed(range(300))
    ]
    items.insert(7, {"id": "facts", "attributes": {"label": "none"}})
    items.insert(9, {"id": "again", "path": items[8]["path"]})
    await sdk.datasets.push(folder(tmp_path / "d", files), items=items)
    seen, most = json.loads(await said(await run(sdk, STREAM, d="datasets/d:stream")))
    assert [id for id, _, _ in seen] == [item["id"] for item in items]
    assert seen[7] == ["facts", None, {"label": "none"}]
    assert seen[9][1] == seen[8][1]
    assert all(text is None or text.startswith("content") for _, text, _ in seen)
    assert 1 <= most <= 64


async def test_a_stream_without_items_comes_in_the_trees_order(
    sdk: AsyncClient, tmp_path: Path
) -> None:
    await sdk.datasets.push(folder(tmp_path / "d", {"b": "2", "a/x": "1", "c": "3"}))
    seen, _ = json.loads(await said(await run(sdk, STREAM, d="datasets/d:stream")))
    assert [id for id, _, _ in seen] == ["a/x", "b", "c"]
    whole, _ = json.loads(await said(await run(sdk, STREAM, d="datasets/d")))
    assert whole == seen, "the same loop reads inputs that are there"


async def test_a_stream_goes_on_when_the_worker_is_killed(
    sdk: AsyncClient, house: HatobaServer, tmp_path: Path
) -> None:
    files = {f"{n:04}": str(n) for n in range(400)}
    await sdk.datasets.push(folder(tmp_path / "d", files))
    mark = tmp_path / "go"
    script = f"""
import pathlib, time
told = []
for path, item in job.stream("d"):
    told.append(path.read_text())
    if len(told) == 100:
        pathlib.Path({str(tmp_path / "half")!r}).touch()
        while not pathlib.Path({str(mark)!r}).exists():
            time.sleep(0.01)
print(told == [str(n) for n in range(400)])
"""
    job = await sdk.submit(
        [PYTHON, "-c", f"import hatoba\njob = hatoba.current_job()\n{script}"],
        code=None,
        inputs={"d": "datasets/d:stream"},
    )
    await until((tmp_path / "half").exists, patience=PATIENCE)
    await house.kill_worker()
    mark.touch()
    await job.wait(PATIENCE)
    assert await said(job) == "True"


async def test_outputs_of_a_job_are_another_ones_input(sdk: AsyncClient) -> None:
    first = await run(sdk, '(job.outputs / "model.txt").write_text("weights")')
    script = 'print((job.input("m") / "model.txt").read_text())'
    second = await run(sdk, script, m=f"jobs/{first.name}/outputs")
    assert await said(second) == "weights"
    assert second.record.spec.inputs[0].source == f"{first.record.name}/outputs"


@pytest.mark.parametrize("mode", ["cache", "stream"])
async def test_a_changed_object_ends_the_attempt_with_its_cause(
    sdk: AsyncClient, s3: S3Server, mode: str
) -> None:
    bucket = f"b{uuid.uuid4().hex[:12]}"
    s3.make_bucket(bucket)
    s3.put(bucket, {"d/a": b"a", "d/b": b"b"})
    await sdk.datasets.import_bucket(f"s3://{bucket}/d", "d")
    reads = 'print([p.read_text() for p, _ in job.stream("d")])'
    assert await said(await run(sdk, reads, d="datasets/d:stream")) == "['a', 'b']"
    s3.put(bucket, {"d/b": b"B"})
    job = await run(sdk, reads, retries=3, d=f"datasets/d:{mode}")
    cause = job.record.cause
    assert cause.code == common_pb2.CAUSE_CODE_INPUT_CHANGED
    assert cause.origin == common_pb2.ORIGIN_USER
    assert not cause.retryable
    assert f"s3://{bucket}/d/b" in cause.message
    for data in (b"b", b"B"):
        # An entity tag of S3's is the MD5 of the bytes.
        assert hashlib.md5(data, usedforsecurity=False).hexdigest() in cause.message
    assert (await job.task(0)).attempt == 1, "the same again would find the same"


async def test_a_vanished_object_ends_the_attempt_before_it_starts(
    sdk: AsyncClient, s3: S3Server
) -> None:
    bucket = f"b{uuid.uuid4().hex[:12]}"
    s3.make_bucket(bucket)
    s3.put(bucket, {"d/a": b"a"})
    await sdk.datasets.import_bucket(f"s3://{bucket}/d", "d")
    s3.store(bucket).delete("d/a")
    job = await run(sdk, "print('ran')", d="datasets/d")
    assert job.record.cause.code == common_pb2.CAUSE_CODE_INPUT_CHANGED
    assert f"s3://{bucket}/d/a" in job.record.cause.message
    assert not job.record.HasField("start_time")


def git(directory: Path, *arguments: str) -> None:
    """Run git as somebody."""
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", "-C", str(directory), *who, *arguments], check=True)


async def test_code_is_recorded_with_where_it_came_from(sdk: AsyncClient, tmp_path: Path) -> None:
    code = folder(tmp_path / "code", {"train.py": "print(1)\n"})
    git(code, "init", "-q")
    git(code, "remote", "add", "origin", "https://ann:secret@example.org/team/code.git")
    git(code, "add", ".")
    git(code, "commit", "-q", "-m", "first")
    first = await sdk.submit([PYTHON, "train.py"], code=code, name="train")
    recorded = await sdk.code.get("train")
    assert first.record.spec.code_version == recorded.name
    assert recorded.manifest == first.record.spec.code
    assert recorded.git_remote == "https://example.org/team/code.git"
    assert (len(recorded.git_commit), recorded.dirty) == (40, False)
    assert await sdk.code.patch("train") == ""
    again = await sdk.submit([PYTHON, "train.py"], code=code, name="train")
    assert again.record.spec.code_version == recorded.name
    folder(code, {"train.py": "print(2)\n", "new.py": "x"})
    changed = await sdk.submit([PYTHON, "train.py"], code=code, name="train")
    second = await sdk.code.get("code/train:2")
    assert changed.record.spec.code_version == second.name
    assert (second.dirty, second.git_commit) == (True, recorded.git_commit)
    patch = await sdk.code.patch("train:2")
    assert "-print(1)\n+print(2)\n" in patch
    assert "# not known to git: 'new.py'" in patch
    assert [one.version for one in await sdk.code.versions("train")] == [2, 1]
    await sdk.code.pull("train:1", tmp_path / "old")
    assert contents(tmp_path / "old") == {"train.py": b"print(1)\n"}
    for job in (first, again, changed):
        await job.wait(PATIENCE)
