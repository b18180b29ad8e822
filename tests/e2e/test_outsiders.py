"""Clients that have nothing of ours but the address and a token: grpcurl, by reflection."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from server_process import HatobaServer

# Building grpcurl takes a minute where it was never built.
pytestmark = pytest.mark.timeout(300)
ROOT = Path(__file__).resolve().parents[2]
NO_GO = 3


@pytest.fixture(scope="module")
def grpcurl() -> Path:
    """The program, built once; skipped where there is no Go to build it with."""
    done = subprocess.run(
        [ROOT / "tools" / "build" / "go_tool.sh", "grpcurl"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == NO_GO:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return ROOT / "build" / "bin" / "grpcurl"


class Outsider:
    """Calls by name, with JSON."""

    def __init__(self, program: Path, server: HatobaServer, token: str | None = None) -> None:
        self._server = server
        bearer = server.token() if token is None else token
        self._begin = [str(program), "-plaintext", "-H", f"authorization: Bearer {bearer}"]

    async def run(self, *arguments: str, code: int = 0) -> str:
        """One grpcurl; its output."""
        process = await asyncio.create_subprocess_exec(
            *self._begin, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        out, err = await process.communicate()
        assert process.returncode == code, err.decode()
        return out.decode() or err.decode()

    async def call(self, method: str, request: dict[str, Any]) -> list[dict[str, Any]]:
        """The replies of one call."""
        text = await self.run("-d", json.dumps(request), self._server.address, method)
        decoder, replies = json.JSONDecoder(), []
        while text := text.lstrip():
            reply, end = decoder.raw_decode(text)
            replies.append(reply)
            text = text[end:]
        return replies


async def test_grpcurl_lists_submits_watches_and_cancels(
    grpcurl: Path, server: HatobaServer
) -> None:
    outsider = Outsider(grpcurl, server)
    services = (await outsider.run(server.address, "list")).split()
    for name in ("Job", "Queue", "Artifact", "Runner", "Worker", "Admin"):
        assert f"hatoba.v1.{name}Service" in services
    described = await outsider.run(server.address, "describe", "hatoba.v1.JobService")
    assert "rpc SubmitJob ( .hatoba.v1.SubmitJobRequest )" in described

    spec = {"name": "outside", "command": ["sleep", "604"], "stopGrace": "0.2s"}
    request = {"spec": spec, "requestId": "grpcurl-1"}
    (job,) = await outsider.call("hatoba.v1.JobService/SubmitJob", request)
    (same,) = await outsider.call("hatoba.v1.JobService/SubmitJob", request)
    assert same["uid"] == job["uid"]
    (cancelled,) = await outsider.call(
        "hatoba.v1.JobService/CancelJobs", {"jobs": [job["name"]], "requestId": "grpcurl-2"}
    )
    assert cancelled["results"][0]["job"] == job["name"]
    watched = await outsider.call(
        "hatoba.v1.JobService/WatchJobs", {"jobs": [job["name"]], "cursor": "0"}
    )
    assert watched[-1]["end"] == {"reason": "terminal"}
    ends = [one["event"] for one in watched if one.get("event", {}).get("jobTerminal")]
    assert [event["jobTo"] for event in ends] == ["JOB_STATE_CANCELLED"]


async def test_reflection_needs_a_token_and_health_does_not(
    grpcurl: Path, server: HatobaServer
) -> None:
    stranger = Outsider(grpcurl, server, token="htb_not-a-token")
    said = await stranger.run(server.address, "list", code=1)
    assert "Unauthenticated" in said or "token" in said
    protos = ["-import-path", str(ROOT / "tests" / "e2e"), "-proto", "health.proto"]
    said = await stranger.run(*protos, server.address, "grpc.health.v1.Health/Check")
    assert "SERVING" in said
