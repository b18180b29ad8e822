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
    parse_time,
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
TIME = Parsed("TIME", parse_time)
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
    click.option(
        "--after-any",
        multiple=True,
        metavar="JOB",
        help="Wait until one of the jobs so named has succeeded.",
    ),
    click.option(
        "--after-end", multiple=True, metavar="JOB", help="Wait until this job has ended, however."
    ),
    click.option(
        "--replicas",
        type=click.IntRange(1, 4096),
        metavar="N",
        help="A gang: so many members that start together or not at all.",
    ),
    click.option(
        "--gang-policy",
        type=click.Choice(["fail", "restart"]),
        help="What one member's failure does to its gang. [default: fail]",
    ),
    click.option(
        "--gang-timeout",
        type=DURATION,
        metavar="DURATION",
        help="All members must have started within this. [default: 10m]",
    ),
    click.option(
        "--require",
        multiple=True,
        metavar="LABEL",
        help="Only hosts with this label: zone=a,b, !zone=a, ssd or !ssd.",
    ),
    click.option(
        "--prefer",
        multiple=True,
        metavar="LABEL",
        help="Hosts with this label first; as --require.",
    ),
    click.option(
        "--strategy",
        type=click.Choice(["spread", "pack"]),
        help="Of equal hosts the emptiest or the fullest. [default: spread]",
    ),
    click.option(
        "--apart-from",
        multiple=True,
        metavar="K=V",
        help="Never beside a job with this label.",
    ),
    click.option("--near", multiple=True, metavar="K=V", help="Only beside a job with this label."),
    click.option("--apart", is_flag=True, help="Each task on a host of its own."),
    click.option(
        "--device",
        "devices",
        multiple=True,
        metavar="NAME",
        help="Run it on this device and nowhere else; of several, one task on each.",
    ),
    click.option(
        "--device-selector",
        multiple=True,
        metavar="LABEL",
        help="On each device that has this label now; as --require.",
    ),
    click.option(
        "--start-after",
        type=TIME,
        metavar="TIME",
        help="Not before: 2026-12-01T08:00:00Z, or 2h from now.",
    ),
    click.option(
        "--deadline", type=TIME, metavar="TIME", help="Ended then if it has not by itself."
    ),
    click.option(
        "--max-queue-time",
        type=DURATION,
        metavar="DURATION",
        help="Given up when it found no place for so long.",
    ),
    click.option(
        "--stop-after",
        type=DURATION,
        metavar="DURATION",
        help="Stops itself after so long without the server. [default: never]",
    ),
    click.option(
        "--lost-after",
        type=DURATION,
        metavar="DURATION",
        help="Taken for lost after so long out of reach; 30s more than --stop-after. "
        "[default: never]",
    ),
    click.option("--never-preempt", is_flag=True, help="Nobody takes its place."),
    click.option(
        "--max-preemptions",
        type=click.IntRange(0, 1000),
        metavar="N",
        help="Others take its place at most so often. [default: 10]",
    ),
    click.option(
        "--preempt-grace",
        type=DURATION,
        metavar="DURATION",
        help="Time to save a checkpoint before its place is taken. [default: --stop-grace]",
    ),
    click.option(
        "--spot",
        type=click.Choice(["allow", "only", "prefer", "never"]),
        help="Whether on capacity that may be taken back. [default: allow]",
    ),
    click.option(
        "--retry-rule",
        "retry_rules",
        multiple=True,
        metavar="RULE",
        help='What to do about an ending: "on=OUT_OF_MEMORY limit=3 memory=2", "on=75,76 fail". '
        "The first that matches decides.",
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
        if value is not None and value is not False and value not in ((), ""):
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
