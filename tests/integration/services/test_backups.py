"""Backups of a server that runs: whole, taken beside its work, and what they name is kept."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from command_line import server_command
from server_process import HatobaServer
from trees import put_tree
from wire import Wire

from hatoba.v1 import admin_pb2, common_pb2, job_pb2, schedule_pb2
from hatoba_scheduler.store.sqlite.doctor import visit
from tests.integration.services.conftest import held, refused, spec, submit, token_of
from tests.integration.services.test_schedules import HOUR, create, get, wind_back


async def backup(wire: Wire, **fields: Any) -> admin_pb2.Backup:
    return await wire.call(admin_pb2.CreateBackupRequest(**fields), admin_pb2.Backup)


async def backups(wire: Wire) -> list[admin_pb2.Backup]:
    found = await wire.once(admin_pb2.ListBackupsRequest(), admin_pb2.ListBackupsResponse)
    return list(found.backups)


def jobs_in(file: Path) -> set[str]:
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        return {uid for (uid,) in connection.execute("SELECT uid FROM jobs")}


async def test_a_backup_is_whole_while_jobs_come_and_go(
    own_server: HatobaServer, own_wire: Wire, tmp_path: Path
) -> None:
    before = [await submit(own_wire, spec("a", backend="null")) for _ in range(20)]
    done = asyncio.Event()

    async def flow() -> int:
        count = 0
        while not done.is_set():
            await submit(own_wire, spec("b", backend="null"))
            count += 1
        return count

    async with asyncio.TaskGroup() as group:
        flowing = [group.create_task(flow(), name="flow") for _ in range(8)]
        taken = [await backup(own_wire, path=str(tmp_path / f"copy-{n}")) for n in range(5)]
        done.set()
    assert sum(task.result() for task in flowing) > 0
    for one in taken:
        file = Path(one.path) / "hatoba.db"
        assert await asyncio.to_thread(visit, file, 0, mend=False) == []
        assert {job.uid for job in before} <= await asyncio.to_thread(jobs_in, file)
        note = json.loads(await asyncio.to_thread((Path(one.path) / "backup.json").read_text))
        assert (note["id"], note["last_event"]) == (one.name.split("/")[1], one.last_event)
        names = await asyncio.to_thread(os.listdir, one.path)
        assert sorted(names) == ["backup.json", "hatoba.db", "hatoba.toml"]
    assert [one.name for one in await backups(own_wire)] == [one.name for one in taken[::-1]]
    assert [one.last_event for one in taken] == sorted(one.last_event for one in taken)


async def test_what_a_backup_names_is_kept_and_goes_with_it(
    own_server: HatobaServer, own_wire: Wire
) -> None:
    made = spec("a", backend="null")
    made.code.CopyFrom(await put_tree(own_wire, {"main.py": b"print(1)"}))
    await submit(own_wire, made)
    taken = await backup(own_wire, with_blobs=True)
    assert taken.manifests == 1
    copied = Path(taken.path) / "blobs"
    digest = made.code.digest.removeprefix("sha256:")
    assert await asyncio.to_thread(os.listdir, copied / "manifests") == [digest]
    chunk = hashlib.sha256(b"print(1)").hexdigest()
    file = copied / "chunks" / chunk[:2] / chunk
    assert await asyncio.to_thread(file.read_bytes) == b"print(1)"
    for _ in range(2):
        end = admin_pb2.DeleteBackupRequest(name=taken.name)
        await own_wire.call(end, admin_pb2.DeleteBackupResponse)
    assert not await asyncio.to_thread(os.path.exists, taken.path)
    assert await backups(own_wire) == []


async def test_a_tree_without_files_and_a_file_without_bytes_are_copied_too(
    own_server: HatobaServer, own_wire: Wire
) -> None:
    trees = [await put_tree(own_wire, files) for files in ({}, {"empty.txt": b""})]
    for tree in trees:
        made = spec("a", backend="null")
        made.code.CopyFrom(tree)
        await submit(own_wire, made)
    taken = await backup(own_wire, with_blobs=True)
    copied = await asyncio.to_thread(os.listdir, Path(taken.path) / "blobs" / "manifests")
    assert set(copied) == {tree.digest.removeprefix("sha256:") for tree in trees}


async def test_bad_places(wire: Wire, tmp_path: Path) -> None:
    for path, code, words in (
        ("relative/x", grpc.StatusCode.INVALID_ARGUMENT, "absolute"),
        (str(tmp_path), grpc.StatusCode.ALREADY_EXISTS, "exists"),
        (str(tmp_path / "no" / "where"), grpc.StatusCode.INVALID_ARGUMENT, "no directory"),
        ("/proc/hatoba-backup", grpc.StatusCode.INVALID_ARGUMENT, "can be made"),
    ):
        found = await refused(backup(wire, path=path))
        assert found.code is code, found
        assert words in found.message
    assert await asyncio.to_thread(os.listdir, tmp_path) == []


async def test_only_administrators(server: HatobaServer, wire: Wire) -> None:
    user = await token_of(wire, admin_pb2.ROLE_USER)
    async with Wire(server, token=user.secret) as theirs:
        for request, reply in (
            (admin_pb2.CreateBackupRequest(), admin_pb2.Backup),
            (admin_pb2.AdoptStoreRequest(), admin_pb2.AdoptStoreResponse),
            (admin_pb2.CheckStoreRequest(), admin_pb2.CheckStoreResponse),
        ):
            found = await refused(theirs.once(request, reply))
            assert found.code is grpc.StatusCode.PERMISSION_DENIED


async def test_nothing_to_adopt(wire: Wire) -> None:
    request = admin_pb2.AdoptStoreRequest()
    found = await refused(wire.once(request, admin_pb2.AdoptStoreResponse))
    assert found.code is grpc.StatusCode.FAILED_PRECONDITION


async def test_the_doctor_visits_a_server_that_runs(
    own_server: HatobaServer, own_wire: Wire
) -> None:
    for _ in range(10):
        await submit(own_wire, spec("a", backend="null"))
    await submit(own_wire, spec("b", run_for=600))
    request = admin_pb2.CheckStoreRequest()
    found = await own_wire.call(request, admin_pb2.CheckStoreResponse)
    assert list(found.problems) == []
    assert any(one.startswith("I28") for one in found.checked)


async def test_what_went_wrong_is_mended_and_told(own_server: HatobaServer, own_wire: Wire) -> None:
    job = await submit(own_wire, held())
    await own_server.kill()
    await asyncio.to_thread(_spoil, own_server.data / "hatoba.db", job.uid)
    await own_server.start()
    for repair, repaired in ((False, False), (True, True)):
        request = admin_pb2.CheckStoreRequest(repair=repair)
        found = await own_wire.call(request, admin_pb2.CheckStoreResponse)
        (problem,) = found.problems
        assert (problem.invariant, problem.repaired) == ("I8", repaired)
    found = await own_wire.call(admin_pb2.CheckStoreRequest(), admin_pb2.CheckStoreResponse)
    assert list(found.problems) == []
    assert (await own_wire.job(job.name)).state == common_pb2.JOB_STATE_HELD
    events = job_pb2.WatchJobsRequest(jobs=[job.name], cursor="0")
    stream = own_wire.stream(events, job_pb2.WatchJobsResponse)
    seen = [message.event async for message in _first(stream, 2)]
    assert [event.reason for event in seen] == ["submit", "repair"]


async def _first(stream: Any, count: int) -> Any:
    async for message in stream:
        if message.HasField("event"):
            yield message
            count -= 1
            if not count:
                return


def _spoil(file: Path, uid: str) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        counts = json.dumps([0, 1, *[0] * 12])
        connection.execute("UPDATE jobs SET counts = ? WHERE uid = ?", (counts, uid))


async def test_the_same_commands_with_a_server_and_without(
    own_server: HatobaServer, own_wire: Wire, tmp_path: Path
) -> None:
    await submit(own_wire, held())
    for place in ("running", "stopped"):
        if place == "stopped":
            await own_server.terminate()
        target = str(tmp_path / place)
        made = await asyncio.to_thread(server_command, own_server, "backup", target)
        assert (made.code, made.out.strip()) == (0, target), made.err
        listed = await asyncio.to_thread(server_command, own_server, "backups", "list")
        assert target in listed.out
        assert "MANIFESTS" in listed.out
        doctor = await asyncio.to_thread(server_command, own_server, "doctor")
        assert (doctor.code, doctor.out) == (0, "")
        note = await asyncio.to_thread((tmp_path / place / "backup.json").read_text)
        name = json.loads(note)["id"]
        ended = await asyncio.to_thread(server_command, own_server, "backups", "delete", name)
        assert ended.code == 0
        assert place not in await asyncio.to_thread(os.listdir, tmp_path)
    again = await asyncio.to_thread(server_command, own_server, "backup", str(tmp_path))
    assert again.code == 1
    assert "exists" in again.err


@pytest.mark.parametrize("spoil", ["missing", "garbage"])
async def test_what_is_no_backup_is_not_restored(
    spoil: str, own_server: HatobaServer, tmp_path: Path
) -> None:
    await own_server.terminate()
    place = tmp_path / "copy"
    await asyncio.to_thread(place.mkdir)
    if spoil == "garbage":
        await asyncio.to_thread((place / "hatoba.db").write_bytes, b"garbage" * 2000)
    before = await asyncio.to_thread((own_server.data / "hatoba.db").read_bytes)
    done = await asyncio.to_thread(server_command, own_server, "restore", str(place), "--replace")
    assert done.code == 1
    assert "is no backup" in done.err
    assert await asyncio.to_thread((own_server.data / "hatoba.db").read_bytes) == before
    await own_server.start()


async def test_a_running_server_is_not_replaced(
    own_server: HatobaServer, own_wire: Wire, tmp_path: Path
) -> None:
    taken = await backup(own_wire, path=str(tmp_path / "copy"))
    done = await asyncio.to_thread(server_command, own_server, "restore", taken.path, "--replace")
    assert done.code == 75
    assert "hatoba server stop" in done.err


async def test_times_that_may_have_run_before_a_restore_do_not_run_again(
    own_server: HatobaServer, own_wire: Wire, project: str, tmp_path: Path
) -> None:
    made = await create(own_wire, project, cron="0 * * * *", spec=held("any"))
    taken = await backup(own_wire, path=str(tmp_path / "copy"))
    await own_server.terminate()
    done = await asyncio.to_thread(server_command, own_server, "restore", taken.path, "--replace")
    assert done.code == 0, done.err
    await wind_back(own_server, HOUR)
    await own_server.start()
    assert (await get(own_wire, made.name)).last_outcome == ""
    await own_wire.call(admin_pb2.AdoptStoreRequest(), admin_pb2.AdoptStoreResponse)
    after = await get(own_wire, made.name)
    assert after.last_outcome.startswith("left out: the store was restored")
    await own_wire.call(schedule_pb2.RunScheduleRequest(name=made.name), job_pb2.Job)
    listed = await own_wire.call(job_pb2.ListJobsRequest(project=project), job_pb2.ListJobsResponse)
    assert len(listed.jobs) == 1
