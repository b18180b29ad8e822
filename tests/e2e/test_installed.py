"""The installed wheel, with protobuf 6 and with protobuf 7: a server, a worker and a job."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from server_process import ColdLauncher, HatobaServer
from wire import Wire, shell

from hatoba.v1 import common_pb2

VERSION = "import google.protobuf; print(google.protobuf.__version__)"


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("lock", "major"), [("server", b"7."), ("server-pb6", b"6.")])
async def test_a_job_runs_to_its_end(
    lock: str, major: bytes, installed: Callable[[str], Path], tmp_path: Path
) -> None:
    python = (await asyncio.to_thread(installed, lock)) / "python"
    process = await asyncio.create_subprocess_exec(
        python, "-I", "-c", VERSION, stdout=asyncio.subprocess.PIPE
    )
    assert (await process.communicate())[0].startswith(major)
    launcher = ColdLauncher(python)
    server = HatobaServer(tmp_path / "data", launcher=launcher)
    try:
        await server.start()
        async with Wire(server) as wire:
            job = await wire.submit(shell("echo installed; exit 3"))
            ended = await wire.ended(job.name)
            assert (ended.state, ended.cause.exit_code) == (common_pb2.JOB_STATE_FAILED, 3)
            assert await wire.log(job.name) == b"installed\n"
    finally:
        await server.close()
        await asyncio.to_thread(launcher.close)
