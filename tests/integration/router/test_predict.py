"""`hatoba predict NAME FILE` against a real router."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from router_house import READER, RouterHouse, route
from scripted_feed import USER_TOKEN, access
from server_process import clean_environment

from hatoba.cli.exits import Exit

LAB = "projects/lab/deployments/reader"


@dataclass
class Done:
    """A command that ended."""

    code: int
    out: str
    err: str


@dataclass
class Shell:
    """Runs `hatoba predict` as a user of the house's directory does."""

    house: RouterHouse
    home: Path

    async def predict(
        self, *arguments: str, stdin: bytes = b"", env: dict[str, str] | None = None
    ) -> Done:
        """The command, ended."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "hatoba", "predict", *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={
                **clean_environment(),
                "HOME": str(self.home),
                "HATOBA_DATA": str(self.house.data),
                "HATOBA_CONFIG": str(self.home / "config"),
                "NO_COLOR": "1",
                **(env or {}),
            },
        )
        out, err = await process.communicate(stdin)
        return Done(process.returncode or 0, out.decode(), err.decode())


@pytest.fixture
async def shell(house: RouterHouse, tmp_path: Path) -> Shell:
    """A router with a replica that serves `reader` in two projects."""
    one = await house.replica("r-1")
    limited = route((7, 100, [one]), max_body_bytes=1_000)
    house.feed.put(limited, route((8, 100, [one]), deployment=LAB))
    await house.start()
    await house.feed.acknowledged(house.feed.cursor)
    (house.data / "admin.token").write_text(USER_TOKEN)
    return Shell(house, tmp_path)


async def test_a_file_goes_in_and_the_prediction_comes_out(shell: Shell, tmp_path: Path) -> None:
    question = tmp_path / "question.json"
    question.write_text('{"a": 1}')
    done = await shell.predict("reader", str(question))
    found = json.loads(done.out)
    assert (done.code, found["size"], found["replica"]) == (Exit.OK, 8, "r-1")
    assert found["headers"]["content-type"] == "application/json"
    assert found["headers"]["content-length"] == "8"
    assert done.out.endswith("}\n")
    trace = found["headers"]["traceparent"].split("-")[1]
    assert done.err == f"model digits:7, trace {trace}\n"


async def test_the_ending_or_the_option_says_what_is_sent(shell: Shell, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG")
    done = await shell.predict("reader", str(picture))
    assert json.loads(done.out)["headers"]["content-type"] == "image/png"
    done = await shell.predict("reader", "-", "--content-type", "text/plain", stdin=b"hello")
    found = json.loads(done.out)
    assert (found["headers"]["content-type"], found["size"]) == ("text/plain", 5)


async def test_a_project_and_a_server_that_is_named(shell: Shell, tmp_path: Path) -> None:
    done = await shell.predict("reader", "-", "--project", "lab", stdin=b"{}")
    assert "model digits:8" in done.err
    done = await shell.predict(LAB, "-", stdin=b"{}")
    assert "model digits:8" in done.err
    token = tmp_path / "token"
    token.write_text(USER_TOKEN)
    named = {"HATOBA_ADDRESS": f"127.0.0.1:{shell.house.feed.port}"}
    named["HATOBA_TOKEN_FILE"] = str(token)
    done = await shell.predict("reader", "-", stdin=b"{}", env=named)
    assert (done.code, json.loads(done.out)["replica"]) == (Exit.OK, "r-1")
    assert (await shell.predict("none", "-", env=named)).code == Exit.NOT_FOUND


async def test_the_server_need_not_be_there(shell: Shell) -> None:
    await shell.house.feed.stop()
    done = await shell.predict("reader", "-", stdin=b"{}")
    assert (done.code, json.loads(done.out)["size"]) == (Exit.OK, 2)


async def test_what_goes_wrong_is_said(shell: Shell, tmp_path: Path) -> None:
    done = await shell.predict("none", "-", stdin=b"{}")
    assert (done.code, done.out) == (Exit.NOT_FOUND, "")
    assert "there is no deployment at '/none' (404, trace " in done.err
    assert "hatoba deployments list" in done.err
    done = await shell.predict("reader", "-", stdin=b"x" * 2_000_000)
    assert (done.code, "larger than 1,000 bytes" in done.err) == (Exit.FAILURE, True)
    done = await shell.predict("reader", str(tmp_path / "none.json"))
    assert (done.code, "cannot be read" in done.err) == (Exit.USAGE, True)
    assert (await shell.predict("reader")).code == Exit.USAGE
    for name in ("digits:1", "a b", "p/lab/reader", "projects/lab/reader"):
        done = await shell.predict(name, "-", stdin=b"{}")
        assert (done.code, f"{name!r} is not the name" in done.err) == (Exit.USAGE, True)
    done = await shell.predict("reader", "-", "--shards", "3")
    assert (done.code, "--shards goes with --dataset only" in done.err) == (Exit.USAGE, True)
    shell.house.feed.grant(access("another", READER))
    await shell.house.feed.acknowledged(shell.house.feed.cursor)
    assert (await shell.predict("reader", "-", stdin=b"{}")).code == Exit.NOT_ALLOWED
    await shell.house.kill()
    done = await shell.predict("reader", "-", stdin=b"{}")
    assert (done.code, "does not answer" in done.err) == (Exit.UNAVAILABLE, True)
