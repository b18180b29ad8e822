"""`hatoba-entrypoint run`: real processes, from the claim to the exit code."""

from __future__ import annotations

from runner_house import RunnerHouse

from hatoba.v1 import runner_pb2

EXITED = runner_pb2.EXIT_KIND_EXITED


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
    assert container.stdout() == "out\n"
    assert "err\n" in container.stderr()
    (started,) = [
        beat for beat in house.desk.heard.all("heartbeat") if beat.HasField("start_time")
    ][:1]
    assert started.start_time == commit.start_time
