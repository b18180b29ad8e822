"""Options that describe a job, and what they are made into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from hatoba.errors import InvalidSpec
from hatoba.options import ParamValue, SubmitOptions
from hatoba.units import (
    parse_array,
    parse_cpus,
    parse_duration,
    parse_memory,
    parse_pair,
    typed_value,
)

F = TypeVar("F", bound=Callable[..., Any])


class Parsed(click.ParamType[Any]):
    """A click type around one of our parsers, whose errors are sentences of their own."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The parsed value; a bad one is a usage error."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _pair(what: str) -> Parsed:
    return Parsed("KEY=VALUE", lambda text: parse_pair(text, what))


CPUS = Parsed("N", parse_cpus)
MEMORY = Parsed("AMOUNT", parse_memory)
DURATION = Parsed("DURATION", parse_duration)
ARRAY = Parsed("0-LAST", parse_array)
PARAM = _pair("a parameter")
VARIABLE = _pair("an environment variable")
INPUT = _pair("an input")
LABEL = _pair("a label")

# In the order in which help lists them.
JOB_OPTIONS: list[Callable[[Any], Any]] = [
    click.option(
        "--name",
        metavar="NAME",
        help="Name of the job; a number is added. [default: the program's]",
    ),
    click.option("--queue", metavar="QUEUE", help="Queue to wait in. [default: default]"),
    click.option(
        "--backend", metavar="BACKEND", help="Where to run. [default: the server's default]"
    ),
    click.option(
        "--priority", type=click.IntRange(-1000, 1000), help="Higher goes first in its queue."
    ),
    click.option(
        "-p",
        "--param",
        "params",
        multiple=True,
        type=PARAM,
        metavar="K=V",
        help="Parameter: number, true, false or text. ${params.K} in the command is replaced.",
    ),
    click.option(
        "--env", multiple=True, type=VARIABLE, metavar="K=V", help="Environment variable."
    ),
    click.option(
        "--secret",
        "secrets",
        multiple=True,
        metavar="NAME[=ENVVAR]",
        help="Secret by name, resolved where the job runs; put into ENVVAR.",
    ),
    click.option(
        "--requirements",
        type=click.Path(exists=True, dir_okay=False),
        metavar="FILE",
        help="Requirements to build a cached environment from.",
    ),
    click.option(
        "--python", metavar="VERSION|PATH", help="Python to use. [default: the one of hatoba]"
    ),
    click.option("--image", metavar="REF", help="Container image to run in."),
    click.option(
        "--input",
        "inputs",
        multiple=True,
        type=INPUT,
        metavar="NAME=DIR|SOURCE[:MODE]",
        help="Directory to bring in, or datasets/faces:3, models/digits@production, "
        "jobs/digits-42/outputs. Mode: cache (default), copy (may be written to), stream.",
    ),
    click.option(
        "--cpus",
        type=CPUS,
        metavar="N",
        help="Processor cores, may be a fraction.",
    ),
    click.option(
        "--memory", type=MEMORY, metavar="AMOUNT", help="Memory, for example 4Gi or 12GB."
    ),
    click.option("--gpus", type=click.IntRange(0, 1024), metavar="N", help="Whole GPUs."),
    click.option(
        "--timeout",
        type=DURATION,
        metavar="DURATION",
        help="Longest run, for example 90s or 1h30m.",
    ),
    click.option(
        "--stop-grace",
        type=DURATION,
        metavar="DURATION",
        help="Time between the polite signal and the kill. [default: 10s]",
    ),
    click.option(
        "--retries",
        type=click.IntRange(0, 1000),
        metavar="N",
        help="Retries when the program itself fails. [default: 0]",
    ),
    click.option(
        "--array",
        type=ARRAY,
        metavar="0-LAST",
        help="Run so many tasks, each with its HATOBA_INDEX.",
    ),
    click.option(
        "--max-parallel",
        type=click.IntRange(0),
        metavar="N",
        help="Of an array at most so many at once.",
    ),
    click.option(
        "--fail-fast", is_flag=True, help="The first failed task of an array cancels the rest."
    ),
    click.option(
        "--after", multiple=True, metavar="JOB", help="Wait until this job has succeeded."
    ),
    click.option("--label", "labels", multiple=True, type=LABEL, metavar="K=V", help="Free label."),
    click.option("--hold", is_flag=True, help="Submit it held, to be released later."),
    click.option(
        "--code",
        type=click.Path(exists=True, file_okay=False),
        metavar="DIR",
        help="Directory to bring along. [default: .]",
    ),
    click.option("--no-code", is_flag=True, help="Bring no directory along."),
]


def job_options(function: F) -> F:
    """Every option that describes a job."""
    for option in reversed(JOB_OPTIONS):
        function = option(function)
    return function


def submit_options(said: dict[str, Any]) -> SubmitOptions:
    """What was said on the command line as options of a submit."""
    if not said["array"] and (said["max_parallel"] or said["fail_fast"]):
        raise InvalidSpec(
            "--max-parallel and --fail-fast are for arrays", remedy="add --array 0-LAST"
        )
    options = SubmitOptions()
    for name in SubmitOptions.__annotations__:
        value = said.get(name)
        if value not in (None, (), False, ""):
            options[name] = value  # type: ignore[literal-required]
    for name in ("env", "inputs", "labels"):
        if name in options:
            options[name] = unique(said[name], f"--{name.rstrip('s')}")  # type: ignore[literal-required]
    if "params" in options:
        options["params"] = params_of(said["params"])
    options["code"] = None if said["no_code"] else said["code"] or "."
    return options


def params_of(said: Sequence[tuple[str, str]]) -> dict[str, ParamValue]:
    """Parameters with their types: numbers, booleans, else texts."""
    return {name: typed_value(text) for name, text in unique(said, "-p").items()}


def unique(said: Sequence[tuple[str, str]], option: str) -> dict[str, str]:
    """Pairs as a mapping; a key said twice is refused rather than guessed."""
    found: dict[str, str] = {}
    for key, value in said:
        if key in found:
            raise InvalidSpec(
                f"{option} says {key!r} twice: {found[key]!r} and {value!r}", remedy="say it once"
            )
        found[key] = value
    return found
