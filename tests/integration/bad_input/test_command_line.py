"""Bad input on the command line and in job files: a sentence, a place, a remedy, an exit code."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from command_line import CommandLine
from wire import Wire

from tests.integration.bad_input.conftest import everything

if TYPE_CHECKING:
    from tests.integration.bad_input.conftest import Ground

USAGE = 2


@dataclass(frozen=True)
class Typed:
    """A command line, or a job file; its exit code, and words that have to be said."""

    arguments: Sequence[str]
    words: tuple[str, ...]
    code: int = USAGE
    text: str = ""
    environment: tuple[tuple[str, str], ...] = ()


def run(*arguments: str, words: tuple[str, ...], code: int = USAGE) -> Typed:
    """`hatoba run` with bad options."""
    return Typed(["run", "--no-code", *arguments, "--", "true"], words, code)


def job(text: str, *words: str, code: int = USAGE) -> Typed:
    """A job file that is wrong."""
    return Typed(["jobs", "submit", "-f", "job.yaml"], words, code, text)


COMMANDS = {
    "memory with a unit of its own": run("--memory", "12 GBs", words=("'12 GBs'", "12GB or 4Gi")),
    "memory of less than none": run("--memory", "-5Gi", words=("'-5Gi'", "memory")),
    "cpus that are no number": run("--cpus", "NaN", words=("cpus",)),
    "negative cpus": run("--cpus", "-1", words=("--cpus", "-1")),
    "duration without a unit": run("--timeout", "10", words=("'10'", "90s")),
    "array that begins at one": run("--array", "1-5", words=("'1-5'", "0-4")),
    "array that is no range": run("--array", "five", words=("'five'", "0-9")),
    "parameter without a value": run("-p", "lr", words=("'lr'", "KEY=VALUE")),
    "parameter twice": run("-p", "lr=1", "-p", "lr=2", words=("'lr'", "twice")),
    "max-parallel without an array": run("--max-parallel", "2", words=("--array",)),
    "requirements that are not there": run("--requirements", "gone.txt", words=("gone.txt",)),
    "unknown option": run("--memroy", "1Gi", words=("--memory",)),
    "unknown queue": run("--queue", "narow", words=("'narow'", "'narrow'"), code=1),
    "unknown backend": run("--backend", "hots", words=("'hots'", "'hosts'"), code=1),
    "unknown secret": run("--secret", "key", words=("'key'", "0600"), code=1),
    "nothing to run": Typed(["run"], ("COMMAND",)),
    "unknown command": Typed(["jbos"], ("'jbos'", "hatoba jobs")),
    "unknown subcommand": Typed(["jobs", "cancle", "held-1"], ("'cancle'", "hatoba jobs cancel")),
    "job that is not there": Typed(["jobs", "get", "gone-7"], ("'gone-7'", "jobs list"), 3),
    "log of a job that is not there": Typed(["logs", "gone-7"], ("'gone-7'",), 3),
    "unknown context": Typed(["--context", "lab", "jobs", "list"], ("lab",), 3),
    "address that is none": Typed(["--address", "nowhere", "jobs", "list"], ("HOST:PORT",)),
    "token in plain text": Typed(
        ["--address", "http://example.org:70", "jobs", "list"], ("plain text", "https://")
    ),
    "token file that is not there": Typed(["--token-file", "gone", "jobs", "list"], ("gone",)),
    "server that does not answer": Typed(
        ["--address", "127.0.0.1:1", "jobs", "list"], ("127.0.0.1:1",), 5
    ),
    "job file that is not there": Typed(["jobs", "submit", "-f", "gone.yaml"], ("gone.yaml",)),
    "second server on the directory": Typed(
        ["server", "start"], ("already uses", "hatoba server stop"), 75
    ),
    "server that listens nowhere": Typed(
        ["server", "start", "--data", "other", "--listen", "nowhere"], ("nowhere",)
    ),
}
FILES = {
    "tab": job("command: [true]\nresources:\n\tcpus: 1\n", "job.yaml:3:1", "tab", "spaces"),
    "key twice": job("command: [a]\nname: x\nname: y\n", "job.yaml:3:1", "name"),
    "unknown key": job("comand: [true]\n", "job.yaml:1:1", "'comand'", "'command'"),
    "unknown key within": job(
        "command: [true]\nresources:\n  memroy: 1Gi\n", "job.yaml:3:3", "'memroy'", "memory"
    ),
    "memory with a unit of its own": job(
        "command: [true]\nresources: {memory: 12 GBs}\n", "job.yaml:2:21", "'12 GBs'", "12GB"
    ),
    "NaN": job("command: [true]\nresources: {cpus: .nan}\n", "job.yaml:2", "cpus"),
    "negative number": job(
        "command: [true]\nresources: {cpus: -1}\n", "job.yaml:2:19", "cpus", "-1"
    ),
    "priority that is text": job("command: [true]\npriority: high\n", "job.yaml:2:11", "'high'"),
    "list where a text is wanted": job("command: [true]\nname: [a]\n", "job.yaml:2:7", "name"),
    "no command": job("name: x\n", "job.yaml:1", "command"),
    "empty command": job("command: []\n", "job.yaml:1", "empty"),
    "nothing": job("\n# nothing\n", "job.yaml:1:1", "no job"),
    "not YAML": job("command: [true\n", "job.yaml:", "not YAML"),
    "a list of jobs": job("- command: [true]\n", "job.yaml:1:1"),
    "a name the server refuses": job("command: [true]\nname: Train\n", "job.yaml:2:7", "'Train'"),
    "a queue that is not there": job(
        "command: [true]\nqueue: narow\n", "job.yaml:2:8", "'narow'", "'narrow'"
    ),
    "aliases without end": job(
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(
            f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else '*a'] * 10)}]\n" for n in range(8)
        )
        + "command: *a7\n",
        "job.yaml:",
    ),
    "an object from outside": job("command: !!python/object/apply:os.getpid []\n", "job.yaml:1"),
}
CASES = {**COMMANDS, **{f"file: {name}": case for name, case in FILES.items()}}


@pytest.mark.parametrize("name", CASES)
async def test_it_is_refused_in_words(name: str, ground: Ground, tmp_path: Path) -> None:
    case, cli = CASES[name], CommandLine(ground.server, tmp_path)
    if case.text:
        await asyncio.to_thread((cli.work / "job.yaml").write_text, case.text)
    async with Wire(ground.server) as wire:
        before = await everything(wire)
        code, out, said = await cli(*case.arguments)
        assert (code, out) == (case.code, ""), said
        assert "Traceback" not in said
        assert "fault of hatoba" not in said
        for word in case.words:
            assert word in said, said
        assert await everything(wire) == before
