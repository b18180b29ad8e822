"""`hatoba run` and what follows it, as a person types it, with its exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from pathlib import Path

import pytest
from command_line import CommandLine
from server_process import HatobaServer
from wire import Wire, shell


@pytest.fixture
def cli(server: HatobaServer, tmp_path: Path) -> CommandLine:
    """The command line, talking to the shared server."""
    return CommandLine(server, tmp_path)


async def test_run_brings_the_directory_and_shows_what_the_job_writes(cli: CommandLine) -> None:
    (cli.work / "train.py").write_text(
        "import hatoba, pathlib\n"
        "job = hatoba.current_job()\n"
        "print('lr is', job.params['lr'])\n"
        "job.log_metrics({'loss': 0.5}, 1)\n"
        "(job.outputs / 'model.txt').write_text('weights')\n"
    )
    (cli.work / ".gitignore").write_text("*.big\n")
    (cli.work / "left.big").write_text("stays here")
    done = await cli("run", "-p", "lr=0.25", "--", "python", "train.py")
    assert done.code == 0, done.err
    assert done.out == "lr is 0.25\n"
    found = re.search(r"submitted (\S+)", done.err)
    assert found, done.err
    name = found[1]

    got = json.loads((await cli("jobs", "get", name, "-o", "json")).out)
    assert got["state"] == "SUCCEEDED"
    assert got["spec"]["params"] == {"lr": 0.25}
    assert (await cli("logs")).out == "lr is 0.25\n"
    assert (await cli("logs", name, "-f")).out == "lr is 0.25\n"
    assert "loss" in (await cli("jobs", "metrics", name)).out
    fetched = await cli("jobs", "outputs", name, "fetched")
    assert fetched.code == 0, fetched.err
    assert (cli.work / "fetched" / "model.txt").read_text() == "weights"
    assert name in (await cli("jobs", "list")).out


ENDS = {
    "failed": (["--", "sh", "-c", "echo on the way; exit 7"], 20, "7"),
    "timed out": (["--timeout", "300ms", "--stop-grace", "1s", "--", "sleep", "60"], 22, "timeout"),
}


@pytest.mark.parametrize("case", ENDS)
async def test_a_followed_job_gives_its_end_as_exit_code(case: str, cli: CommandLine) -> None:
    arguments, code, words = ENDS[case]
    done = await cli("run", "--no-code", *arguments)
    assert done.code == code, done
    assert words in done.err


async def test_a_followed_job_that_somebody_cancels(cli: CommandLine, server: HatobaServer) -> None:
    process = await cli.start("run", "--no-code", "--", "sh", "-c", "echo up; exec sleep 60")
    assert process.stdout is not None
    assert await process.stdout.readline() == b"up\n"
    listed = json.loads((await cli("jobs", "list", "--active", "-o", "json")).out)
    (job,) = [one for one in listed["jobs"] if one["spec"]["command"][-1].startswith("echo up")]
    assert (await cli("jobs", "cancel", job["name"])).code == 0
    _, err = await process.communicate()
    assert process.returncode == 21, err


async def test_a_job_whose_upstream_fails(cli: CommandLine, wire: Wire) -> None:
    first = shell("exit 3")
    first.hold = True
    job = await wire.submit(first)
    process = await cli.start("run", "--no-code", "--after", job.name, "--", "true")
    assert process.stderr is not None
    assert b"submitted" in await process.stderr.readline()
    assert (await cli("jobs", "release", job.name)).code == 0
    _, err = await process.communicate()
    assert process.returncode == 23, err


async def test_ctrl_c_detaches_and_the_job_goes_on(cli: CommandLine, tmp_path: Path) -> None:
    go = tmp_path / "go"
    waiting = f"echo up; while [ ! -e {go} ]; do sleep 0.01; done; echo over"
    process = await cli.start("run", "--no-code", "--", "sh", "-c", waiting)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert process.returncode == 130, err
    assert b"hatoba logs" in err
    assert b"hatoba jobs cancel" in err
    await asyncio.to_thread(go.touch)
    followed = await cli("logs", "-f")
    assert followed.out == "up\nover\n"


async def test_detached_it_prints_the_name_alone(cli: CommandLine) -> None:
    done = await cli("run", "--no-code", "--name", "quiet", "-d", "--", "true")
    assert done.code == 0
    assert re.fullmatch(r"quiet-\d+\n", done.out), done
    watched = await cli("jobs", "watch", done.out.strip())
    assert watched.code == 0, watched


async def test_a_run_outlives_the_death_of_its_server(
    own_server: HatobaServer, tmp_path: Path
) -> None:
    cli, go = CommandLine(own_server, tmp_path), tmp_path / "go"
    waiting = f"echo up; while [ ! -e {go} ]; do sleep 0.01; done; echo over; exit 3"
    process = await cli.start("run", "--no-code", "--", "sh", "-c", waiting)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"up\n"
    await own_server.restart()
    await asyncio.to_thread(go.touch)
    out, err = await process.communicate()
    assert (process.returncode, out) == (20, b"over\n"), err


async def test_no_colour_and_only_data_when_piped(cli: CommandLine) -> None:
    for command in (["status"], ["jobs", "list"], ["queues", "list"], ["backends", "list"]):
        done = await cli(*command)
        assert done.code == 0, done
        assert "\x1b" not in done.out + done.err


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="needs /proc")
async def test_stop_says_what_there_is_to_stop(cli: CommandLine, tmp_path: Path) -> None:
    done = await cli("server", "stop", "--data", str(tmp_path / "nothing"))
    assert done.code == 1
    assert "no server runs" in done.err
