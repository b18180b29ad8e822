"""One attempt from launch to forgetting, with a real keeper and real processes."""

from __future__ import annotations

import asyncio
import json
import os
import sys

import pytest
from server_process import runs
from waiting import until
from worker_house import House

from hatoba.v1 import job_pb2, runner_pb2

EXITED = runner_pb2.EXIT_KIND_EXITED
STOPPED = runner_pb2.EXIT_KIND_STOPPED
TRACE = "0123456789abcdef0123456789abcdef"


async def test_an_attempt_is_claimed_runs_and_is_committed_and_forgotten(house: House) -> None:
    house.shell("a-1", "echo out; echo err >&2; exit 3")
    claim = await house.heard.wait("claim", "a-1")
    started = await house.heard.wait("started", "a-1")
    commit = await house.commit("a-1")
    assert (commit.kind, commit.exit_code, commit.nonce) == (EXITED, 3, claim.nonce)
    assert commit.gone
    assert dict(commit.log_sizes) == {"stdout": 4, "stderr": 4}
    assert list(commit.last_log_lines) == ["err"]
    assert commit.start_time == started.time
    assert commit.end_time.ToNanoseconds() >= commit.start_time.ToNanoseconds()
    await house.forgotten("a-1")
    assert house.server.log("a-1") == b"out\n"
    assert house.server.log("a-1", "stderr") == b"err\n"
    await house.keeper_has()


async def test_what_a_job_finds_in_its_environment(house: House) -> None:
    launch = house.launch(
        "a-1",
        *(
            "/bin/sh",
            "-c",
            "pwd; env; cat $HATOBA_PARAMS; echo; ls -d $HATOBA_OUTPUTS $HATOBA_CHECKPOINTS",
        ),
        env={"GREETING": "hello"},
        traceparent=f"00-{TRACE}-0123456789abcdef-01",
    )
    launch.params["lr"].number_value = 0.5
    launch.params["epochs"].number_value = 5
    launch.params["name"].string_value = "ü"
    house.server.launch(launch)
    await house.commit("a-1")
    await house.forgotten("a-1")
    home = str(house.home("a-1"))
    text = house.server.log("a-1").decode()
    cwd, *lines = text.splitlines()
    found = dict(line.split("=", 1) for line in lines if "=" in line)
    assert cwd == f"{home}/work"
    assert found["GREETING"] == "hello"
    assert found["PYTHONUNBUFFERED"] == "1"
    assert found["HATOBA_ATTEMPT"] == "a-1"
    assert found["HATOBA_JOB"] == "projects/default/jobs/test-1"
    assert (found["HATOBA_INDEX"], found["HATOBA_TASK_COUNT"]) == ("0", "1")
    assert found["HATOBA_ATTEMPT_NUMBER"] == "1"
    assert found["HATOBA_DIR"] == home
    assert found["HATOBA_SPOOL"] == f"{home}/spool.jsonl"
    assert found["HATOBA_INPUTS"] == f"{home}/inputs"
    assert "HATOBA_RESTORE" not in found
    assert "CUDA_VISIBLE_DEVICES" not in found
    assert found["TRACEPARENT"].startswith(f"00-{TRACE}-")
    assert json.loads(text.splitlines()[-3]) == {"lr": 0.5, "epochs": 5, "name": "ü"}
    assert lines[-2:] == [f"{home}/checkpoints", f"{home}/outputs"]


async def test_the_client_is_importable_where_the_interpreter_lacks_it(house: House) -> None:
    code = "import hatoba, sys; print(hatoba.current_job().params, 'grpc' in sys.modules)"
    # Without site-packages no interpreter has it but by our help.
    python = bare_interpreter(house)
    launch = house.launch("a-1", "python3", "-c", code, environment={"python": python})
    launch.params["x"].bool_value = True
    house.server.launch(launch)
    assert (await house.commit("a-1")).exit_code == 0
    await house.logged("a-1", b"{'x': True} False\n")


def bare_interpreter(house: House) -> str:
    """A Python with nothing installed."""
    path = house.data / "bare" / "python3"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    path.chmod(0o755)
    return str(path)


async def test_a_span_for_each_part_of_the_way(house: House) -> None:
    house.run("a-1", "/bin/true", traceparent=f"00-{TRACE}-00f067aa0ba902b7-01")
    await house.commit("a-1")
    await house.heard.until(lambda: len(house.spans()) == 3)
    spans = {span.name: span for span in house.spans()}
    assert set(spans) == {"job.stage", "job.exec", "job.commit"}
    assert {span.trace_id for span in spans.values()} == {TRACE}
    assert {span.parent_span_id for span in spans.values()} == {"00f067aa0ba902b7"}
    assert spans["job.stage"].end_unix_nanos == spans["job.exec"].start_unix_nanos
    assert spans["job.exec"].end_unix_nanos == spans["job.commit"].start_unix_nanos
    assert all(span.process.startswith("hatoba-worker/") for span in spans.values())


async def test_an_unsampled_trace_makes_no_spans(house: House) -> None:
    house.run("a-1", "/bin/true", traceparent=f"00-{TRACE}-00f067aa0ba902b7-00")
    house.run("a-2", "/bin/true", traceparent=f"00-{TRACE}-00f067aa0ba902b7-01")
    await house.commit("a-1")
    await house.commit("a-2")
    await house.heard.until(lambda: len(house.spans()) == 3)
    assert {span.attributes["attempt"] for span in house.spans()} == {"a-2"}


async def test_a_doubled_launch_runs_once(house: House) -> None:
    script = f"echo once >> {house.data}/ran"
    launch = house.launch("a-1", "/bin/sh", "-c", script)
    house.server.launch(launch, launch)
    await house.commit("a-1")
    await house.forgotten("a-1")
    house.server.launch(launch)
    await house.heard.wait("gone", "a-1")
    assert (house.data / "ran").read_text() == "once\n"
    assert len(house.heard.all("claim", "a-1")) == 1


@pytest.mark.parametrize(
    "verdict",
    [
        runner_pb2.CLAIM_VERDICT_DUPLICATE,
        runner_pb2.CLAIM_VERDICT_SUPERSEDED,
        runner_pb2.CLAIM_VERDICT_CANCELLED,
    ],
)
async def test_what_is_not_granted_never_runs(
    house: House, verdict: runner_pb2.ClaimVerdict.ValueType
) -> None:
    house.server.verdicts["a-1"] = verdict
    house.shell("a-1", f"touch {house.data}/ran")
    await house.heard.wait("gone", "a-1")
    await house.keeper_has()
    assert not (house.data / "ran").exists()
    assert house.heard.all("commit", "a-1") == []


async def test_a_stop_is_seen_by_the_job_and_told_apart(house: House) -> None:
    house.shell(
        "a-1", "trap 'test -e $HATOBA_DIR/stop && echo seen; exit 7' TERM; echo up; sleep 60 & wait"
    )
    await house.logged("a-1", b"up\n")
    house.server.tell_stop("a-1")
    commit = await house.commit("a-1")
    assert (commit.kind, commit.exit_code) == (STOPPED, 7)
    await house.logged("a-1", b"seen\n")


async def test_a_job_that_ignores_its_stop_is_killed(house: House) -> None:
    house.shell("a-1", "trap '' TERM; echo up; while :; do sleep 60; done")
    await house.logged("a-1", b"up\n")
    house.server.tell_stop("a-1", grace=0.01)
    commit = await house.commit("a-1")
    assert (commit.kind, commit.signal) == (STOPPED, 9)


async def test_what_a_job_leaves_behind_is_gone_before_it_is_forgotten(house: House) -> None:
    house.shell(
        "a-1", "setsid sh -c 'trap \"\" TERM; echo $$; sleep 60 & wait; sleep 60' & exec sleep 60"
    )
    await house.logged("a-1", b"\n")
    pid = int(house.server.log("a-1"))
    house.server.tell_stop("a-1", grace=0.2)
    commit = await house.commit("a-1")
    assert not commit.gone
    await house.heard.wait("gone", "a-1")
    assert not await house.alive(pid)
    await house.forgotten("a-1")


async def test_a_stop_before_the_launch_refuses_it_and_outlives_the_worker(house: House) -> None:
    house.server.tell_stop("a-1")
    await house.heard.wait("gone", "a-1")
    await house.restart_worker()
    house.shell("a-1", f"touch {house.data}/ran")
    await house.heard.wait("gone", "a-1", count=2)
    assert house.heard.all("claim", "a-1") == []
    assert not (house.data / "ran").exists()


async def test_a_stop_between_claim_and_grant_means_that_nothing_runs(house: House) -> None:
    house.server.silent.add("claim")
    house.shell("a-1", f"touch {house.data}/ran")
    await house.heard.wait("claim", "a-1")
    house.server.tell_stop("a-1")
    house.server.grant("a-1")
    commit = await house.commit("a-1")
    assert commit.kind == STOPPED
    assert not commit.HasField("start_time")
    assert not (house.data / "ran").exists()


async def test_a_heartbeats_answer_can_stop_too(house: House) -> None:
    house.run("a-1", "sleep", "60")
    await house.heard.wait("started", "a-1")
    house.server.order_stop("a-1")
    assert (await house.commit("a-1")).kind == STOPPED


async def test_a_job_over_its_time_is_stopped(house: House) -> None:
    launch = house.launch("a-1", "sleep", "60")
    launch.timeout.FromMilliseconds(200)
    house.server.launch(launch)
    commit = await house.commit("a-1")
    assert commit.kind == runner_pb2.EXIT_KIND_RUN_TIMEOUT
    assert commit.message == "0.2 s"


async def test_the_time_goes_on_while_no_worker_runs(house: House) -> None:
    launch = house.launch("a-1", "sleep", "60")
    launch.timeout.FromMilliseconds(400)
    house.server.launch(launch)
    await house.heard.wait("started", "a-1")
    await house.kill_worker()
    await house.start_worker()
    commit = await house.commit("a-1")
    lived = commit.end_time.ToNanoseconds() - commit.start_time.ToNanoseconds()
    assert commit.kind == runner_pb2.EXIT_KIND_RUN_TIMEOUT
    assert 400e6 <= lived < 2000e6


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (("no-such-program",), runner_pb2.EXIT_KIND_NOT_FOUND),
        (("/etc/passwd",), runner_pb2.EXIT_KIND_NOT_EXECUTABLE),
        (("/bin/sh", "-c", "kill -SEGV $$"), runner_pb2.EXIT_KIND_SIGNALED),
    ],
)
async def test_ends_are_told_apart(
    house: House, command: tuple[str, ...], kind: runner_pb2.ExitKind.ValueType
) -> None:
    house.run("a-1", *command)
    commit = await house.commit("a-1")
    assert commit.kind == kind
    assert commit.gone
    assert (commit.signal == 11) == (kind == runner_pb2.EXIT_KIND_SIGNALED)
    await house.forgotten("a-1")


async def test_too_much_memory_is_an_end_of_its_own(house: House) -> None:
    resources = {"memory_bytes": 64 << 20}
    code = "b = bytearray(300 << 20); print(sum(b[::4096]))"
    house.run("a-1", sys.executable, "-c", code, resources=resources)
    commit = await house.commit("a-1")
    assert commit.kind == runner_pb2.EXIT_KIND_OUT_OF_MEMORY
    assert commit.usage.memory_limit_by in ("cgroup", "rlimit")
    assert "64 MiB are allowed" in commit.message


async def test_a_dropped_attempt_is_ended_and_nothing_is_committed(house: House) -> None:
    house.shell("a-1", "trap '' TERM; echo $$; while :; do sleep 60; done")
    await house.logged("a-1", b"\n")
    pid = int(house.server.log("a-1"))
    house.server.drop("a-1")
    await until(lambda: not runs(pid))
    await house.forgotten("a-1")
    await house.keeper_has()
    assert (await house.heard.wait("gone", "a-1")).fence == 1
    assert house.heard.all("commit", "a-1") == []


async def test_a_dropped_attempt_that_waits_for_its_answer_is_forgotten(house: House) -> None:
    house.server.silent.add("commit")
    house.run("a-1", "/bin/true")
    await house.commit("a-1")
    house.server.drop("a-1")
    await house.forgotten("a-1")
    await house.keeper_has()


async def test_gpus_are_named_to_the_job_and_hidden_from_others(house: House) -> None:
    await house.kill_worker()
    house.settings["gpus"] = 2
    await house.start_worker()
    assert list(house.heard.all("hello")[-1].gpus) == ["0", "1"]
    house.shell("a-1", "echo devices=$CUDA_VISIBLE_DEVICES", gpus=["1"])
    house.shell("a-2", "echo devices=$CUDA_VISIBLE_DEVICES")
    await house.logged("a-1", b"devices=1\n")
    await house.logged("a-2", b"devices=\n")


async def test_secrets_come_from_files_and_from_the_workers_own_variables(house: House) -> None:
    await house.kill_worker()
    house.secret("db-password", "s3cret\n")
    house.environ["HATOBA_SECRET_API_KEY"] = "k3y"
    await house.start_worker()
    assert {"db-password", "api_key"} <= set(house.heard.all("hello")[-1].secrets)
    refs = [job_pb2.SecretRef(name="db-password"), job_pb2.SecretRef(name="api-key", env="KEY")]
    house.shell("a-1", 'test "$DB_PASSWORD" = s3cret && test "$KEY" = k3y', secrets=refs)
    assert (await house.commit("a-1")).exit_code == 0
    kept = b"".join(p.read_bytes() for p in house.data.glob("*") if p.is_file())
    assert b"s3cret" not in kept


async def test_a_secret_that_comes_later_is_told_of(house: House) -> None:
    before = len(house.heard.all("hello"))
    await asyncio.to_thread(house.secret, "late", "x\n")
    await house.heard.wait("hello", count=before + 1)
    assert "late" in house.heard.all("hello")[-1].secrets


@pytest.mark.parametrize("mode", [None, 0o644])
async def test_a_secret_that_is_missing_or_open_to_others_fails_the_attempt(
    house: House, mode: int | None
) -> None:
    if mode is not None:
        house.secret("token", "x", mode)
    house.shell("a-1", "true", secrets=[job_pb2.SecretRef(name="token")])
    commit = await house.commit("a-1")
    assert commit.kind == runner_pb2.EXIT_KIND_SECRET_MISSING
    assert "token" in commit.message
    assert os.fspath(house.data / "secrets" / "token") in commit.message


async def test_a_home_that_was_used_comes_back_empty(house: House) -> None:
    house.shell("a-1", "true")
    await house.commit("a-1")
    await house.forgotten("a-1")
    house.shell("a-2", "touch made; mkdir $HATOBA_DIR/extra; chmod 755 .")
    await house.commit("a-2")
    await house.forgotten("a-2")
    house.shell("a-3", "ls -a . | wc -w; ls $HATOBA_DIR | tr '\\n' ' '; stat -c %a .")
    await house.logged("a-3", b"2\ncheckpoints outputs stderr.log stdout.log work 700\n")
