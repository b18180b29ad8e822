"""Serves one model in the foreground, as a host would: its environment, and the same server.

    python -m hatoba_worker.local_serving --config FILE --environment FILE --cache DIR

The configuration is the model server's; the environment is a `hatoba.v1.Environment` as proto JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import structlog
from google.protobuf import json_format

from hatoba.v1 import job_pb2
from hatoba_worker.environments import Environments, Interpreter, Tenant
from hatoba_worker.failures import AttemptFailed
from hatoba_worker.staging import link_library

NO_ENVIRONMENT = 78
LOOK_SECONDS = 0.05


def main() -> int:
    """Serve until the server ends or a signal comes; the server's exit code."""
    parser = argparse.ArgumentParser(prog="hatoba-local-serving", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the model server's settings")
    parser.add_argument("--environment", type=Path, required=True, help="what it runs in")
    parser.add_argument("--cache", type=Path, required=True, help="where environments are built")
    options = parser.parse_args()
    # What is built says so in its own log; this terminal is the server's.
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    try:
        return asyncio.run(_serve(options))
    except AttemptFailed as failed:
        _say(str(failed), *failed.lines)
        return NO_ENVIRONMENT
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


async def _serve(options: argparse.Namespace) -> int:
    config = json.loads(await asyncio.to_thread(options.config.read_text, "utf-8"))
    interpreter = await _resolved(options)
    library = options.cache / "lib"
    await asyncio.to_thread(_prepare, library)
    process = await asyncio.create_subprocess_exec(
        *[interpreter.python or sys.executable, "-m", "hatoba_worker.serving", "serve"],
        *["--config", str(options.config)],
        env=_environment(interpreter, library),
        # Ctrl-C reaches it through us, once.
        start_new_session=True,
        cwd=config["code_dir"],
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _pass_on, process, number)
    async with asyncio.TaskGroup() as tasks:
        telling = tasks.create_task(_tell(config), name="tell")
        code = await process.wait()
        telling.cancel()
    return code


async def _resolved(options: argparse.Namespace) -> Interpreter:
    """The interpreter of the environment, built when it is not there; raises AttemptFailed."""
    text = await asyncio.to_thread(options.environment.read_text, "utf-8")
    wanted = json_format.Parse(text, job_pb2.Environment())
    if wanted.requirements:
        _say("building the model's environment, once")
    async with asyncio.TaskGroup() as tasks:
        environments = Environments(options.cache, os.environ, tasks, embedded=True)
        await asyncio.to_thread((options.cache / "venvs").mkdir, 0o700, True, True)
        log = f"{options.config.parent}/build.log"
        # Raised outside the group, which would wrap it.
        found = await _outcome(environments.resolve(Tenant("local", wanted, log)))
    if isinstance(found, AttemptFailed):
        raise found
    return found


async def _outcome(resolving: Coroutine[Any, Any, Interpreter]) -> Interpreter | AttemptFailed:
    try:
        return await resolving
    except AttemptFailed as failed:
        return failed


def _prepare(library: Path) -> None:
    library.mkdir(mode=0o700, parents=True, exist_ok=True)
    link_library(library)


def _environment(interpreter: Interpreter, library: Path) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("HATOBA_")}
    if interpreter.bin:
        ours["PATH"] = f"{interpreter.bin}:{ours.get('PATH', os.defpath)}"
    parts = [ours.get("PYTHONPATH", ""), str(library)]
    return ours | {"PYTHONPATH": ":".join(part for part in parts if part), "PYTHONUNBUFFERED": "1"}


def _pass_on(process: asyncio.subprocess.Process, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


async def _tell(config: dict[str, object]) -> None:
    """Say where it listens, once it does."""
    ready = Path(str(config["ready_file"]))
    while not await asyncio.to_thread(ready.exists):  # noqa: ASYNC110 - the server is a process of its own
        await asyncio.sleep(LOOK_SECONDS)
    told = json.loads(await asyncio.to_thread(ready.read_text, "utf-8"))
    _say(f"serving {config['name']} on http://{told['host']}:{told['port']}/predict")


def _say(*lines: str) -> None:
    sys.stderr.write("".join(f"hatoba: {line}\n" for line in lines))


if __name__ == "__main__":
    sys.exit(main())
