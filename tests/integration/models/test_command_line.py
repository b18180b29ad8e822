"""`hatoba models` against a real server: register, look, draw, serve here what was registered."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import urllib.request
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from command_line import CommandLine, Done
from server_process import HatobaServer
from waiting import PATIENCE, until

HANDLER = """\
import json
from pathlib import Path

class Doubler:
    def __init__(self, model_dir):
        self.factor = json.loads((Path(model_dir) / "factor.json").read_text())

    def predict(self, inputs):
        return {"value": inputs["value"] * self.factor}
"""


class Cli(CommandLine):
    """Typed in a directory that holds a model and its handler."""

    def write(self) -> None:
        (self.work / "model").mkdir(parents=True)
        (self.work / "model" / "factor.json").write_text("2")
        (self.work / "code").mkdir()
        (self.work / "code" / "serve.py").write_text(HANDLER)

    async def run(self, *arguments: str) -> Done:
        """`hatoba models ...`."""
        return await self("models", *arguments)

    @asynccontextmanager
    async def serving(self, *arguments: str) -> AsyncIterator[str]:
        """The address at which `serve` says that it answers; ended by Ctrl-C."""
        process = await self.start("models", "serve", *arguments, "--port", "0")
        assert process.stderr is not None
        said = ""
        try:
            async with asyncio.timeout(PATIENCE):
                while not (found := re.search(r"on (http://\S+)/predict", said)):
                    line = await process.stderr.readline()
                    assert line, said
                    said += line.decode()
            yield found[1]
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGINT)
            async with asyncio.timeout(PATIENCE):
                await process.wait()


@pytest.fixture
def cli(server: HatobaServer, tmp_path: Path) -> Cli:
    made = Cli(server, tmp_path)
    made.write()
    return made


@pytest.fixture
def model() -> str:
    return f"m{uuid.uuid4().hex[:10]}"


GOOD = ("model", "--code", "code", "--example", '{"value": 3}')


def ask(url: str, body: bytes) -> tuple[int, object]:
    request = urllib.request.Request(f"{url}/predict", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
        return reply.status, json.load(reply)


async def is_ready(url: str) -> None:
    def look() -> bool:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=PATIENCE) as reply:
                return bool(reply.status == 200)
        except urllib.error.HTTPError as error:
            error.close()
            return False

    await until(look)


async def test_a_model_is_registered_looked_at_and_served_here(cli: Cli, model: str) -> None:
    metric = ("--metric", "accuracy=0.97")
    code, out, err = await cli.run("register", model, *GOOD, "--handler", "serve:Doubler", *metric)
    assert (code, out.split()) == (0, [f"{model}:1", "READY"]), err
    assert f"checked by jobs/check-{model}-1" in err
    assert (await cli.run("alias", model, "production", "1"))[0] == 0
    code, out, _ = await cli.run("get", f"{model}@production")
    assert code == 0
    for words in ("READY", "serve:Doubler", "accuracy 0.97", "application/json"):
        assert words in out
    code, _, err = await cli.run("lineage", f"{model}:1", "--plot", "line.png")
    assert code == 0, err
    assert (cli.work / "line.png").read_bytes().startswith(b"\x89PNG")
    async with cli.serving(f"{model}@production") as url:
        await is_ready(url)
        assert await asyncio.to_thread(ask, url, b'{"value": 21}') == (200, {"value": 42})


async def test_a_handler_that_cannot_be_imported_is_told_at_register(cli: Cli, model: str) -> None:
    code, out, err = await cli.run("register", model, *GOOD, "--handler", "serve:Tripler")
    assert (code, out.split()) == (1, [f"{model}:1", "FAILED"])
    assert "Tripler" in err
    assert f"hatoba logs check-{model}-1" in err
    code, _, err = await cli.run("serve", f"{model}:1")
    assert code == 2
    assert "FAILED" in err


async def test_an_environment_is_built_for_serving(cli: Cli, model: str) -> None:
    (cli.work / "requirements.txt").write_text("# nothing but Python\n")
    own = ("--requirements", "requirements.txt", "--handler", "serve:Doubler")
    code, _, err = await cli.run("register", model, *GOOD, *own)
    assert code == 0, err
    async with cli.serving(model) as url:
        await is_ready(url)
        assert await asyncio.to_thread(ask, url, b'{"value": 2}') == (200, {"value": 4})


async def test_what_was_registered_comes_back(cli: Cli, model: str) -> None:
    code, out, _ = await cli.run("register", model, "model/factor.json", "-o", "json")
    assert (code, json.loads(out)["state"]) == (0, "READY")
    code, _, err = await cli.run("download", model, "back")
    assert code == 0, err
    assert os.listdir(cli.work / "back") == ["factor.json"]
    code, _, err = await cli.run("serve", model)
    assert code == 2
    assert "no handler" in err


TRAIN = """\
import json, sys
from pathlib import Path
import hatoba

job = hatoba.current_job()
out = Path("trained"); out.mkdir()
(out / "factor.json").write_text("3")
job.log_metrics({"accuracy": 0.5}, step=1)
job.log_metrics({"accuracy": 0.75}, step=2)
job.log_model(sys.argv[1], out, handler=sys.argv[2], example={"value": 2})
"""


async def test_what_a_job_logs_is_a_version_that_can_be_served(cli: Cli, model: str) -> None:
    (cli.work / "code" / "train.py").write_text(TRAIN)
    run = ("run", "--code", "code", "--name", model, "-p", "lr=0.1", "--", "python", "train.py")
    code, _, err = await cli(*run, model, "serve:Doubler")
    assert code == 0, err
    code, out, _ = await cli.run("get", model)
    for words in ("READY", f"jobs/{model}-1", "accuracy 0.75", "lr=0.1", "serve:Doubler"):
        assert words in out, out
    code, out, _ = await cli("jobs", "get", f"{model}-1")
    assert f"models/{model}:1" in out
    code, out, _ = await cli.run("lineage", f"{model}:1")
    assert f"jobs/{model}-1  made-by" in out
    assert f"code/{model}:1  code-of" in out
    async with cli.serving(f"{model}:1") as url:
        await is_ready(url)
        assert await asyncio.to_thread(ask, url, b'{"value": 2}') == (200, {"value": 6})


async def test_a_job_whose_model_does_not_answer_its_example_fails(cli: Cli, model: str) -> None:
    (cli.work / "code" / "train.py").write_text(TRAIN)
    run = ("run", "--code", "code", "--name", model, "--", "python", "train.py")
    code, _, err = await cli(*run, model, "serve:Tripler")
    assert code == 20
    assert "Tripler" in err
    code, _, err = await cli.run("get", model)
    assert (code, "no model version" in err) == (3, True)
