"""`hatoba-entrypoint run`: real processes, from the claim to the exit code."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from cut_network import cut_network
from runner_house import PID_NAMESPACE, RunnerHouse
from server_process import died
from waiting import until

from hatoba.v1 import runner_pb2
from hatoba_worker.keeper import procfs

EXITED = runner_pb2.EXIT_KIND_EXITED
PREEMPTED = runner_pb2.EXIT_KIND_PREEMPTED
STOPPED = runner_pb2.EXIT_KIND_STOPPED
LIFE = "HATOBA_RUNNER_LIFE"


async def test_an_attempt_is_claimed_run_and_committed_and_its_code_is_the_runners(
    house: RunnerHouse,
) -> None:
    house.desk.expect("a-1", "/bin/sh", "-c", "echo out; echo err >&2; exit 3")
    container = await house.run("a-1")
    commit = await house.commit("a-1")
    assert await container.code() == 3
    assert (commit.kind, commit.exit_code) == (EXITED, 3)
    assert commit.nonce == (await house.desk.heard.wait("claim", "a-1")).nonce
    assert not commit.gone
    assert dict(commit.log_sizes) == {"stdout": 4, "stderr": 4}
    assert list(commit.last_log_lines) == ["err"]
    assert house.desk.log("a-1") == b"out\n"
    assert await asyncio.to_thread(container.stdout) == "out\n"
    assert "err\n" in await asyncio.to_thread(container.stderr)
    beats = house.desk.heard.all("heartbeat", "a-1")
    assert commit.start_time in [beat.start_time for beat in beats if beat.HasField("start_time")]


async def test_a_command_finds_its_container_and_its_job_and_nothing_of_ours(
    house: RunnerHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Other tests in this process may have imported what sets it.
    monkeypatch.delenv("GRPC_ENABLE_FORK_SUPPORT", raising=False)
    launch = house.desk.expect("a-1", "/bin/sh", "-c", "pwd; env", env={"GREETING": "hello"})
    launch.secrets.add(name="db-password")
    launch.environment.image = "anything:1"
    container = await house.run("a-1", IMAGE_SAYS="yes", DB_PASSWORD="s3cret", HATOBA_RUN="run-7")
    assert await container.code() == 0
    cwd, *lines = house.desk.log("a-1").decode().splitlines()
    found = dict(line.split("=", 1) for line in lines if "=" in line)
    home = found["HATOBA_DIR"]
    assert cwd == f"{home}/work"
    assert (found["IMAGE_SAYS"], found["GREETING"]) == ("yes", "hello")
    assert found["DB_PASSWORD"] == "s3cret"
    assert found["HATOBA_ATTEMPT"] == "a-1"
    ours = {"HATOBA_CREDENTIAL", "HATOBA_SERVER", "HATOBA_FENCE", "HATOBA_RUN", "HATOBA_RUNNER_DIR"}
    assert not ours & set(found)
    assert "GRPC_ENABLE_FORK_SUPPORT" not in found


@pytest.mark.parametrize(
    ("command", "kind", "code"),
    [
        (("/bin/sh", "-c", "kill -KILL $$"), runner_pb2.EXIT_KIND_SIGNALED, 137),
        (("/no/such/program",), runner_pb2.EXIT_KIND_NOT_FOUND, 127),
        (("/etc/passwd",), runner_pb2.EXIT_KIND_NOT_EXECUTABLE, 126),
        (("/bin/sh", "-c", "exit 83"), EXITED, 83),
    ],
)
async def test_ends_have_the_codes_that_shells_give_them(
    house: RunnerHouse,
    command: tuple[str, ...],
    kind: runner_pb2.ExitKind.ValueType,
    code: int,
) -> None:
    house.desk.expect("a-1", *command)
    container = await house.run("a-1")
    assert (await house.commit("a-1")).kind == kind
    assert await container.code() == code


async def test_a_doubled_run_starts_nothing_and_exits_83(
    house: RunnerHouse, tmp_path: Path
) -> None:
    starts = tmp_path / "starts"
    house.desk.expect("a-1", "/bin/sh", "-c", f"echo x >> {starts}; read line < {tmp_path}/go")
    os.mkfifo(tmp_path / "go")
    first = await house.run("a-1")
    await until(starts.exists)
    second = await house.run("a-1", HATOBA_RUNNER_DIR=str(tmp_path / "a-1-again"))
    assert await second.code() == 83
    assert "another runner has it" in await asyncio.to_thread(second.stderr)
    await asyncio.to_thread((tmp_path / "go").write_text, "go\n")
    assert await first.code() == 0
    assert starts.read_text() == "x\n"


async def test_what_is_missing_is_committed_and_nothing_is_started(house: RunnerHouse) -> None:
    house.desk.expect("a-1", "true").secrets.add(name="db-password")
    container = await house.run("a-1")
    commit = await house.commit("a-1")
    assert commit.kind == runner_pb2.EXIT_KIND_SECRET_MISSING
    assert "DB_PASSWORD" in commit.message
    assert await container.code() == 86


async def test_a_server_that_is_not_reached_ends_the_runner_before_it_begins(
    house: RunnerHouse,
) -> None:
    house.desk.expect("a-1", "true")
    await house.desk.stop()
    container = await house.run("a-1", HATOBA_CLAIM_SECONDS="0.2")
    assert await container.code() == 85
    assert "server.advertise" in await asyncio.to_thread(container.stderr)


async def test_a_credential_that_opens_nothing_is_a_wrong_setting(house: RunnerHouse) -> None:
    house.desk.expect("a-1", "true")
    house.desk.claims_denied = True
    container = await house.run("a-1")
    assert await container.code() == 78


async def test_a_setting_that_is_missing_is_named(house: RunnerHouse) -> None:
    container = await house.run("a-1", HATOBA_FENCE="soon")
    assert await container.code() == 78
    assert "HATOBA_FENCE is 'soon'" in await asyncio.to_thread(container.stderr)


async def test_a_commit_that_does_not_count_is_no_success(house: RunnerHouse) -> None:
    house.desk.expect("a-1", "true")
    house.desk.accepts = False
    container = await house.run("a-1")
    assert await container.code() == 83


async def test_members_of_a_gang_begin_together(house: RunnerHouse) -> None:
    house.desk.expect("a-1", "/bin/sh", "-c", "echo $MASTER_ADDR:$MASTER_PORT")
    house.desk.waits = 2
    house.desk.members["a-1"] = ("10.0.0.1:7001", "10.0.0.2:7002")
    container = await house.run("a-1", HATOBA_GANG_SIZE="2", HATOBA_ADDRESS="10.0.0.1:7001")
    assert await container.code() == 0
    claims = house.desk.heard.all("claim", "a-1")
    assert len(claims) == 3
    assert {claim.address for claim in claims} == {"10.0.0.1:7001"}
    assert len({claim.nonce for claim in claims}) == 1
    assert house.desk.log("a-1") == b"10.0.0.1:7001\n"


# -- signals --------------------------------------------------------------------------------------

HOOK = """
import signal, sys, time
from hatoba import current_job
job = current_job()
def save(*_):
    with job.checkpoint(5) as directory:
        (directory / "w").write_text("5")
    print("asked", job.checkpoint_requested, job.should_stop, flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(60)
"""


async def ready(house: RunnerHouse, attempt: str = "a-1") -> None:
    """The command has said that it is."""
    await house.desk.heard.until(lambda: b"ready\n" in house.desk.log(attempt))


async def test_sigterm_is_the_jobs_moment_to_save_and_the_attempt_is_preempted(
    house: RunnerHouse,
) -> None:
    house.desk.expect("a-1", sys.executable, "-c", HOOK)
    container = await house.run("a-1")
    await ready(house)
    container.signal(signal.SIGTERM)
    commit = await house.commit("a-1")
    assert await container.code() == 143
    assert commit.kind == PREEMPTED
    (checkpoint,) = house.desk.heard.all("checkpoint", "a-1")
    assert checkpoint.step == 5
    assert house.desk.files(checkpoint.manifest) == {"w": b"5"}
    assert b"asked True True\n" in house.desk.log("a-1")


async def test_a_platform_that_does_what_the_server_wants_stops_and_does_not_preempt(
    house: RunnerHouse,
) -> None:
    script = "trap 'sleep 1; exit 0' TERM; echo ready; while :; do sleep 0.1; done"
    house.desk.expect("a-1", "/bin/sh", "-c", script)
    container = await house.run("a-1")
    await ready(house)
    order = runner_pb2.HeartbeatResponse(attempt="a-1", order=runner_pb2.RUNNER_ORDER_STOP)
    order.grace.FromSeconds(20)
    house.desk.orders["a-1"] = order
    container.signal(signal.SIGTERM)
    assert (await house.commit("a-1")).kind == STOPPED
    assert await container.code() == 143


async def test_who_does_not_heed_sigterm_is_killed_in_time_for_the_commit(
    house: RunnerHouse,
) -> None:
    script = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    house.desk.expect("a-1", "/bin/sh", "-c", script)
    container = await house.run("a-1", HATOBA_TERM_SECONDS="10")
    await ready(house)
    container.signal(signal.SIGTERM)
    commit = await house.commit("a-1")
    assert (commit.kind, commit.signal) == (PREEMPTED, 9)
    assert await container.code() == 137


async def test_other_signals_are_the_commands(house: RunnerHouse) -> None:
    script = "trap 'echo usr1; exit 7' USR1; echo ready; while :; do sleep 0.1; done"
    house.desk.expect("a-1", "/bin/sh", "-c", script)
    container = await house.run("a-1")
    await ready(house)
    container.signal(signal.SIGUSR1)
    assert await container.code() == 7
    assert house.desk.log("a-1") == b"ready\nusr1\n"


# -- process 1, and deaths -------------------------------------------------------------------------

ORPHANS = """
for n in 1 2 3 4 5 6 7 8; do (setsid sh -c 'sleep 0.1' &) ; done
sleep 1.5
grep -s '^State:' /proc/[0-9]*/status | grep -c 'Z (zombie)'
echo parent $(cat /proc/1/cmdline | tr '\\0' ' ')
exit 5
"""


@pytest.mark.root
async def test_as_process_1_it_reaps_what_was_orphaned_and_has_the_commands_code(
    house: RunnerHouse,
) -> None:
    house.desk.expect("a-1", "/bin/sh", "-c", ORPHANS)
    container = await house.run("a-1", below=PID_NAMESPACE)
    assert await container.code() == 5
    zombies, first = house.desk.log("a-1").decode().splitlines()
    assert zombies == "0"
    assert "hatoba_worker.entrypoint run" in first


@pytest.mark.root
async def test_as_process_1_it_ends_on_sigterm(house: RunnerHouse) -> None:
    house.desk.expect("a-1", "/bin/sh", "-c", "echo ready; sleep 60")
    await house.run("a-1", below=PID_NAMESPACE)
    await ready(house)
    first = await asyncio.to_thread(runner_parents, house)
    os.kill(first[0], signal.SIGTERM)
    assert (await house.commit("a-1")).kind == PREEMPTED


def runner_parents(house: RunnerHouse) -> list[int]:
    """The processes that stand above runners of this house, by pid."""
    return [
        pid for pid in entrypoints(house) if "HATOBA_RUNNER_LIFE" not in procfs.environment(pid)
    ]


def runner_children(house: RunnerHouse) -> list[int]:
    """The runners themselves."""
    return [pid for pid in entrypoints(house) if LIFE in procfs.environment(pid)]


def entrypoints(house: RunnerHouse) -> list[int]:
    return [
        each.pid
        for each in procfs.everyone().values()
        if "-m hatoba_worker.entrypoint run" in procfs.command(each.pid)
        and "unshare" not in procfs.command(each.pid)
        and str(house.root) in procfs.environment(each.pid).get("HATOBA_RUNNER_DIR", "")
    ]


async def test_a_runner_that_dies_is_started_again_and_takes_up_the_command(
    house: RunnerHouse, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "go")
    script = f"echo ready; read line < {tmp_path}/go; echo $line; exit 4"
    house.desk.expect("a-1", "/bin/sh", "-c", script)
    container = await house.run("a-1")
    await ready(house)
    (runner,) = await asyncio.to_thread(runner_children, house)
    os.kill(runner, signal.SIGKILL)
    await asyncio.to_thread(died, runner, 10.0)
    await asyncio.to_thread((tmp_path / "go").write_text, "again\n")
    assert await container.code() == 4
    assert house.desk.log("a-1") == b"ready\nagain\n"
    assert len({commit.nonce for commit in house.desk.heard.all("commit", "a-1")}) == 1


async def test_a_parent_that_is_killed_takes_the_command_with_it(house: RunnerHouse) -> None:
    house.desk.expect("a-1", "/bin/sh", "-c", "echo ready; sleep 60")
    container = await house.run("a-1")
    await ready(house)
    container.signal(signal.SIGKILL)
    assert (await house.commit("a-1")).kind == PREEMPTED
    await until(lambda: not house.left("a-1"))


# -- without the server ----------------------------------------------------------------------------


async def test_without_its_network_it_goes_on_and_tells_everything_later(
    house: RunnerHouse, tmp_path: Path
) -> None:
    """The session's credential has expired meanwhile, as after a day."""
    os.mkfifo(tmp_path / "go")
    job = f"""
from hatoba import current_job
job = current_job()
print("ready", flush=True)
open("{tmp_path}/go").read()
job.log_metrics({{"loss": 2.0}}, step=1)
(job.outputs / "made").write_text("out")
print("done", flush=True)
"""
    house.desk.expect("a-1", sys.executable, "-c", job)
    async with cut_network(house.desk.port) as network:
        house.port = network.port
        container = await house.run("a-1")
        await ready(house)
        await network.cut()
        house.desk.expire()
        await asyncio.to_thread((tmp_path / "go").write_text, "go\n")
        await until(lambda: "done" in container.stdout())
        assert not house.desk.heard.all("commit", "a-1")
        await network.mend()
        commit = await house.commit("a-1")
        assert await container.code() == 0
    assert (commit.kind, house.desk.files(commit.outputs)) == (EXITED, {"made": b"out"})
    assert house.desk.log("a-1") == b"ready\ndone\n"
    (report,) = {each.report: each for each in house.desk.heard.all("metrics", "a-1")}.values()
    assert [sample.value for sample in report.samples] == [2.0]
    assert len({claim.nonce for claim in house.desk.heard.all("claim", "a-1")}) == 1


async def test_a_job_that_may_not_be_without_the_server_is_ended_by_its_runner(
    house: RunnerHouse,
) -> None:
    launch = house.desk.expect("a-1", "/bin/sh", "-c", "echo ready; sleep 60")
    launch.stop_after.FromMilliseconds(1500)
    async with cut_network(house.desk.port) as network:
        house.port = network.port
        container = await house.run("a-1")
        await ready(house)
        await network.cut()
        await until(lambda: not sleeping(house))
        await network.mend()
        assert (await house.commit("a-1")).kind == runner_pb2.EXIT_KIND_DISCONNECTED
        assert await container.code() == 143


def sleeping(house: RunnerHouse) -> bool:
    """Whether the command still runs."""
    return any("sleep 60" in command for command in house.left("a-1"))
