"""The synchronous client, which brings its own loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import hatoba
from hatoba.errors import InvalidSpec, NotFound, Unavailable
from hatoba.v1 import admin_pb2, common_pb2, job_pb2

if TYPE_CHECKING:
    from tests.unit.client.conftest import FakeServer


@pytest.fixture
def client(fake: FakeServer, tmp_path: Path) -> Iterator[hatoba.Client]:
    (tmp_path / "token").write_text("t")
    with hatoba.Client(fake.address, token_file=str(tmp_path / "token")) as client:
        yield client


def test_a_job_from_submit_to_outputs(
    fake: FakeServer, client: hatoba.Client, tmp_path: Path
) -> None:
    Path("train.py").write_text("print(1)\n")
    record = fake.run_through(out=b"hello\n")
    job = client.submit(
        script="train.py", params={"lr": 0.1, "fast": True}, memory="1Gi", timeout=60
    )
    assert (job.name, job.state) == ("train-1", "SUCCEEDED")
    assert job.wait(30).uid == record.uid
    assert b"".join(piece.data for piece in job.logs(follow=True)) == b"hello\n"
    spec = fake.requests("SubmitJobRequest")[0].spec
    assert list(spec.command) == ["python", "train.py"]
    assert (spec.resources.memory_bytes, spec.timeout.seconds) == (2**30, 60)
    digest, manifest = next(iter(fake.manifests.items()))
    record.outputs.digest = digest
    assert (job.outputs(tmp_path / "out") / "train.py").read_text() == "print(1)\n"
    assert len(manifest.entries) == 1


def test_metrics_are_steps_and_values(fake: FakeServer, client: hatoba.Client) -> None:
    fake.add_job()
    points = [job_pb2.MetricPoint(step=n, value=n / 2) for n in range(3)]
    fake.series = [job_pb2.MetricSeries(key="loss", points=points)]
    job = client.job("train-1")
    assert job.metrics() == {"loss": [(0, 0.0), (1, 0.5), (2, 1.0)]}
    fake.series.append(job_pb2.MetricSeries(key="loss", index=1, points=points[:1]))
    assert job.metrics() == {"loss[0]": [(0, 0.0), (1, 0.5), (2, 1.0)], "loss[1]": [(0, 0.0)]}


def test_it_works_where_a_loop_runs_already(fake: FakeServer, client: hatoba.Client) -> None:
    fake.add_job()

    async def notebook() -> str:
        # A notebook's cell blocks its own loop for as long as the call takes.
        return await asyncio.to_thread(lambda: client.job("train-1").name)

    assert asyncio.run(notebook()) == "train-1"


def test_lists_events_and_cancel(fake: FakeServer, client: hatoba.Client) -> None:
    fake.run_through()
    assert [job.name for job in client.jobs()] == ["train-1"]
    assert [getattr(event, "seq", 0) for event in client.events("train-1", cursor="0")] == [
        1,
        2,
        3,
        4,
    ]
    assert client.job("train-1").cancel("enough").outcome == job_pb2.CANCEL_OUTCOME_CANCELLED
    assert client.job("train-1").rerun(params={"lr": 1}).name == "train-2"


def test_queues_are_kept(fake: FakeServer, client: hatoba.Client) -> None:
    queues = client.queues
    queues.create("gpu", weight=2, quota=common_pb2.Resources(gpus=4), labels={"a": "b"})
    queues.update("gpu", max_running=0, parent="", etag="e")
    queues.cordon("gpu", drain=True, reason="moving")
    queues.uncordon("gpu")
    queues.delete("gpu", etag="e")
    assert [one.name for one in queues.list()]
    assert queues.usage("gpu").queue
    assert [one.queue for one in queues.usages()]
    made = fake.requests("CreateQueueRequest")[0]
    assert (made.queue_id, made.queue.quota.gpus) == ("gpu", 4)
    changed = fake.requests("UpdateQueueRequest")[0]
    assert sorted(changed.update_mask.paths) == ["max_running", "parent"]
    assert (changed.queue.name, changed.queue.etag) == ("projects/default/queues/gpu", "e")
    first, second = fake.requests("CordonQueueRequest")
    assert (first.cordoned, first.drain, first.reason) == (True, True, "moving")
    assert not second.cordoned
    with pytest.raises(InvalidSpec, match="nothing to change"):
        queues.update("gpu")


def test_operators_look_cordon_and_back_up(fake: FakeServer, client: hatoba.Client) -> None:
    fake.replies["ListBackupsRequest"] = admin_pb2.ListBackupsResponse(
        backups=[admin_pb2.Backup(name="backups/b1")]
    )
    fake.replies["CheckStoreRequest"] = admin_pb2.CheckStoreResponse(
        problems=[admin_pb2.StoreProblem(invariant="I3")]
    )
    fake.replies["AdoptStoreRequest"] = admin_pb2.AdoptStoreResponse(adopted=["h1-a-0-1"])
    operations = client.operations
    assert operations.overview().server.phase == "serving"
    assert [one.name for one in operations.backends().backends] == ["hosts"]
    assert operations.cordon_backend("hosts", drain=True, reason="x").cordoned
    assert not operations.uncordon_backend("hosts").cordoned
    assert [one.name for one in operations.hosts()] == ["hosts/here"]
    assert operations.cordon_host("here", drain=True, reason="x").cordoned
    assert not operations.uncordon_host("here").cordoned
    assert operations.back_up("/tmp/b", with_blobs=True).name == "backups/b1"
    assert [one.name for one in operations.backups()] == ["backups/b1"]
    operations.delete_backup("b1")
    assert [one.invariant for one in operations.check_store(repair=True)] == ["I3"]
    assert list(operations.adopt_store(dry_run=True).adopted) == ["h1-a-0-1"]
    (backup,) = fake.requests("CreateBackupRequest")
    assert (backup.path, backup.with_blobs) == ("/tmp/b", True)
    assert fake.requests("CordonHostRequest")[0].drain
    assert fake.requests("CheckStoreRequest")[0].repair


def test_a_job_is_planned_moved_held_and_let_go(fake: FakeServer, client: hatoba.Client) -> None:
    full = "projects/default/jobs/train-1"
    fake.jobs[full] = fake.add_job("train-1", "QUEUED")
    fake.replies["PlanJobRequest"] = job_pb2.Explanation(message="there is room")
    assert client.plan("true", gpus=2, code=None).message == "there is room"
    assert fake.requests("PlanJobRequest")[0].spec.resources.gpus == 2
    job = client.job("train-1")
    job.update(priority=0, queue="night", etag="e")
    job.hold()
    job.release()
    job.cancel(indices="0-4")
    moved, held, released = fake.requests("UpdateJobRequest")
    assert sorted(moved.update_mask.paths) == ["priority", "queue"]
    assert (moved.queue, moved.etag) == ("night", "e")
    assert [list(one.update_mask.paths) for one in (held, released)] == [["hold"], ["hold"]]
    assert (held.hold, released.hold) == (True, False)
    assert fake.requests("CancelJobsRequest")[0].indices == "0-4"


def test_an_iterator_that_is_left_ends_its_stream(fake: FakeServer, client: hatoba.Client) -> None:
    fake.hold = True
    fake.run_through(out=b"x" * 100)
    pieces = client.job("train-1").logs(follow=True)
    assert next(pieces).data == b"x" * 8
    pieces.close()
    assert client.job("train-1").state == "SUCCEEDED"


def test_errors_come_to_the_caller(client: hatoba.Client) -> None:
    with pytest.raises(NotFound, match="nothing-1"):
        client.job("nothing-1")
    with pytest.raises(InvalidSpec, match="either a command or a script"):
        client.submit()
    with pytest.raises(InvalidSpec, match="memory: '12 GBs'"):
        client.submit("true", memory="12 GBs", code=None)


def test_a_job_without_outputs_says_so(
    fake: FakeServer, client: hatoba.Client, tmp_path: Path
) -> None:
    fake.add_job()
    with pytest.raises(NotFound, match="no outputs"):
        client.job("train-1").outputs(tmp_path / "out")


def test_a_server_that_is_not_there_is_told_and_leaves_no_thread() -> None:
    with (
        hatoba.Client("127.0.0.1:1") as client,
        pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"),
    ):
        client.jobs()
    with pytest.raises(RuntimeError, match="closed"):
        client.jobs()
    assert "hatoba-client" not in {thread.name for thread in threading.enumerate()}


def test_a_client_that_cannot_open_raises_where_it_is_made() -> None:
    with pytest.raises(InvalidSpec, match="not an address"):
        hatoba.Client("nowhere")
