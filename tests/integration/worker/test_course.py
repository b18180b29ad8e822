"""One attempt from launch to forgetting, with a real keeper and real processes."""

from __future__ import annotations

from worker_house import House

from hatoba.v1 import runner_pb2

EXITED = runner_pb2.EXIT_KIND_EXITED


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
    assert await house.kept_by_keeper() == []
