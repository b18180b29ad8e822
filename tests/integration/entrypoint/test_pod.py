"""`pod-init` and `pod-sidecar`: real processes on the volumes of one pod."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys

import pytest
from runner_house import Pod, RunnerHouse
from waiting import PATIENCE, until

from hatoba.v1 import job_pb2, runner_pb2

EXITED = runner_pb2.EXIT_KIND_EXITED
SIGNALED = runner_pb2.EXIT_KIND_SIGNALED
STOPPED = runner_pb2.EXIT_KIND_STOPPED
STOP = runner_pb2.RUNNER_ORDER_STOP
JOB = """
import json
from hatoba import current_job
job = current_job()
assert job.params == {"lr": 0.5}, job.params
assert job.input("data").joinpath("x").read_text() == "data"
assert job.latest_checkpoint.name == "step-7" and (job.latest_checkpoint / "w").exists()
job.log_metrics({"loss": 1.5}, step=8)
with job.checkpoint(8) as directory:
    (directory / "w").write_text("8")
(job.outputs / "made").write_text("out")
"""


@pytest.fixture
def pod(house: RunnerHouse) -> Pod:
    """A pod for the attempt `a-1`."""
    return Pod(house, "a-1")


async def staged(pod: Pod) -> None:
    """Run the init container; it ends well."""
    container = await pod.init()
    assert await container.code() == 0, await asyncio.to_thread(container.stderr)


async def ended(process: asyncio.subprocess.Process) -> int:
    """How the user's container ended."""
    async with asyncio.timeout(PATIENCE):
        return await process.wait()


async def test_what_is_staged_runs_and_is_committed_as_its_backend_saw_it(pod: Pod) -> None:
    desk = pod.house.desk
    launch = desk.expect("a-1", "python", "train.py")
    launch.params["lr"].number_value = 0.5
    launch.code.CopyFrom(desk.store({"train.py": JOB.encode()}))
    launch.inputs.add(name="data", manifest=desk.store({"x": b"data"}))
    restore = desk.store({"w": b"7"})
    desk.checkpoints["a-1"] = job_pb2.Checkpoint(step=7, manifest=restore)
    await staged(pod)
    sidecar = await pod.sidecar()
    user = await pod.user(sys.executable, "train.py")
    assert await ended(user) == 0
    pod.tell_exit(EXITED)
    sidecar.signal(signal.SIGTERM)
    commit = await pod.house.commit("a-1")
    assert await sidecar.code() == 0
    assert (commit.kind, commit.exit_code, commit.gone) == (EXITED, 0, False)
    assert commit.nonce == (await desk.heard.wait("claim", "a-1")).nonce
    assert desk.files(commit.outputs) == {"made": b"out"}
    (report,) = [one for one in desk.heard.all("metrics", "a-1") if one.samples]
    assert [(one.key, one.step, one.value) for one in report.samples] == [("loss", 8, 1.5)]
    (checkpoint,) = desk.heard.all("checkpoint", "a-1")
    assert (checkpoint.step, desk.files(checkpoint.manifest)) == (8, {"w": b"8"})


async def test_the_sidecar_tells_when_the_code_began_and_what_it_uses(pod: Pod) -> None:
    desk = pod.house.desk
    desk.expect("a-1", "sleep", "60")
    await staged(pod)
    sidecar = await pod.sidecar()
    user = await pod.user("sleep", "60")
    await desk.heard.until(
        lambda: any(beat.HasField("start_time") for beat in desk.heard.all("heartbeat", "a-1"))
    )
    user.kill()
    await ended(user)
    pod.tell_exit(SIGNALED, signal=9)
    sidecar.signal(signal.SIGTERM)
    commit = await pod.house.commit("a-1")
    assert (commit.kind, commit.signal) == (SIGNALED, 9)
    assert commit.HasField("start_time")


async def test_a_refused_claim_ends_with_83_and_stages_nothing(pod: Pod) -> None:
    pod.house.desk.expect("a-1", "true")
    pod.house.desk.verdicts["a-1"] = runner_pb2.CLAIM_VERDICT_DUPLICATE
    container = await pod.init()
    assert await container.code() == 83
    assert "another runner has it" in await asyncio.to_thread(container.stderr)
    assert not pod.home.exists()


async def test_an_init_container_that_comes_again_after_a_good_one_is_refused(pod: Pod) -> None:
    pod.house.desk.expect("a-1", "true")
    await staged(pod)
    container = await pod.init()
    assert await container.code() == 83
    assert len(pod.house.desk.heard.all("claim", "a-1")) == 1


async def test_what_cannot_be_staged_is_committed_and_the_pod_does_not_begin(pod: Pod) -> None:
    launch = pod.house.desk.expect("a-1", "true")
    launch.code.digest = f"sha256:{'0' * 64}"
    container = await pod.init()
    commit = await pod.house.commit("a-1")
    assert await container.code() == 86
    assert commit.kind == runner_pb2.EXIT_KIND_STAGING_FAILED
    assert not commit.HasField("start_time")


async def test_a_pod_that_is_taken_away_while_it_is_staged_is_preempted(pod: Pod) -> None:
    pod.house.desk.expect("a-1", "true").inputs.add(
        name="data", manifest=pod.house.desk.store({"x": b"data"})
    )
    # Its chunk never comes: staging goes on for ever.
    pod.house.desk.chunks.clear()
    container = await pod.init()
    await pod.house.desk.heard.wait("claim", "a-1")
    await until(lambda: (pod.home / "work").exists())
    container.signal(signal.SIGTERM)
    commit = await pod.house.commit("a-1")
    assert await container.code() == 143
    assert commit.kind == runner_pb2.EXIT_KIND_PREEMPTED


async def test_a_sidecar_without_its_volume_says_so(pod: Pod) -> None:
    sidecar = await pod.sidecar()
    assert await sidecar.code() == 78
    assert "the same volume" in await asyncio.to_thread(sidecar.stderr)


async def test_a_sidecar_that_was_killed_goes_on(pod: Pod) -> None:
    desk = pod.house.desk
    desk.expect("a-1", "sleep", "60")
    await staged(pod)
    first = await pod.sidecar()
    line = {"t": 1.0, "metrics": {"loss": 1.0}, "step": 1}
    (pod.home / "spool.jsonl").write_text(json.dumps(line) + "\n")
    user = await pod.user("sleep", "60")
    await desk.heard.wait("metrics", "a-1")
    first.signal(signal.SIGKILL)
    await first.code()
    second = await pod.sidecar()
    with (pod.home / "spool.jsonl").open("a") as spool:
        spool.write(json.dumps({**line, "step": 2}) + "\n")
    await desk.heard.until(lambda: len(desk.heard.all("metrics", "a-1")) > 1)
    user.kill()
    await ended(user)
    pod.tell_exit(SIGNALED, signal=9)
    second.signal(signal.SIGTERM)
    await pod.house.commit("a-1")
    reports = {each.report: each for each in desk.heard.all("metrics", "a-1")}
    assert sorted(one.step for each in reports.values() for one in each.samples) == [1, 2]


async def test_a_stop_is_left_to_the_kubelet_until_its_grace_is_over(pod: Pod) -> None:
    desk = pod.house.desk
    desk.expect("a-1", "sleep", "60")
    await staged(pod)
    order = runner_pb2.HeartbeatResponse(attempt="a-1", order=STOP)
    order.grace.FromMilliseconds(300)
    desk.orders["a-1"] = order
    sidecar = await pod.sidecar()
    user = await pod.user("sleep", "60")
    # SIGKILL, not SIGTERM: that one is the kubelet's.
    assert await ended(user) == -signal.SIGKILL
    assert (pod.home / "stop").exists()
    pod.tell_exit(SIGNALED, signal=9)
    sidecar.signal(signal.SIGTERM)
    commit = await pod.house.commit("a-1")
    assert commit.kind == STOPPED


async def test_the_jobs_timeout_is_kept_by_the_sidecar(pod: Pod) -> None:
    launch = pod.house.desk.expect("a-1", "sleep", "60")
    launch.timeout.FromMilliseconds(200)
    launch.stop_grace.FromSeconds(30)
    await staged(pod)
    sidecar = await pod.sidecar()
    user = await pod.user("sleep", "60")
    assert await ended(user) == -signal.SIGTERM
    pod.tell_exit(SIGNALED, signal=15)
    sidecar.signal(signal.SIGTERM)
    commit = await pod.house.commit("a-1")
    assert commit.kind == runner_pb2.EXIT_KIND_RUN_TIMEOUT


async def test_a_job_that_may_not_be_without_the_server_is_ended_by_the_sidecar(pod: Pod) -> None:
    launch = pod.house.desk.expect("a-1", "sleep", "60")
    launch.stop_after.FromMilliseconds(1500)
    launch.stop_grace.FromSeconds(30)
    await staged(pod)
    sidecar = await pod.sidecar()
    user = await pod.user("sleep", "60")
    await pod.house.desk.heard.until(
        lambda: any(beat.HasField("start_time") for beat in pod.house.desk.heard.all("heartbeat"))
    )
    await pod.house.desk.stop()
    assert await ended(user) == -signal.SIGTERM
    await pod.house.desk.start()
    pod.tell_exit(SIGNALED, signal=15)
    sidecar.signal(signal.SIGTERM)
    commit = await pod.house.commit("a-1")
    assert commit.kind == runner_pb2.EXIT_KIND_DISCONNECTED


@pytest.mark.parametrize(
    "kind",
    [
        runner_pb2.EXIT_KIND_OUT_OF_MEMORY,
        runner_pb2.EXIT_KIND_PREEMPTED,
        runner_pb2.EXIT_KIND_BACKEND_FAILED,
    ],
)
async def test_what_the_backend_says_of_the_end_is_committed_as_it_is(
    pod: Pod, kind: runner_pb2.ExitKind.ValueType
) -> None:
    pod.house.desk.expect("a-1", "true")
    await staged(pod)
    sidecar = await pod.sidecar()
    pod.tell_exit(kind, message="as it was seen")
    sidecar.signal(signal.SIGTERM)
    commit = await pod.house.commit("a-1")
    assert await sidecar.code() == 0
    assert (commit.kind, commit.message) == (kind, "as it was seen")


@pytest.mark.root
async def test_the_users_container_may_be_another_user(pod: Pod) -> None:
    desk = pod.house.desk
    launch = desk.expect("a-1", "sh", "job.sh")
    launch.code.CopyFrom(desk.store({"job.sh": b"ls"}))
    await staged(pod)
    for directory in (pod.house.root, *pod.house.root.parents):
        if directory.stat().st_uid == os.geteuid() and str(directory).startswith("/tmp/"):
            directory.chmod(directory.stat().st_mode | 0o055)
    (pod.house.root / "a-1").chmod(0o755)
    pod.shared.chmod(0o777)
    script = "echo made > $HATOBA_OUTPUTS/made; echo x >> job.sh; echo y > new"
    user = await pod.user("sh", "-ec", script, uid=65534)
    assert await ended(user) == 0
    pod.tell_exit(EXITED)
    sidecar = await pod.sidecar()
    sidecar.signal(signal.SIGTERM)
    commit = await pod.house.commit("a-1")
    assert desk.files(commit.outputs) == {"made": b"made\n"}


async def test_an_attempt_that_was_taken_away_ends_the_sidecar_with_83(pod: Pod) -> None:
    desk = pod.house.desk
    desk.expect("a-1", "sleep", "60")
    await staged(pod)
    desk.current = False
    line = {"t": 1.0, "metrics": {"loss": 1.0}, "step": 1}
    (pod.home / "spool.jsonl").write_text(json.dumps(line) + "\n")
    sidecar = await pod.sidecar()
    assert await sidecar.code() == 83
