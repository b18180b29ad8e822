"""`hatoba models ...`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hatoba.cli.exits import Exit
from hatoba.cli.options import LABEL, PARAM, Parsed, params_of, unique
from hatoba.cli.output import age, emit, moment, output_option, pairs, table
from hatoba.cli.root import Group
from hatoba.cli.session import say, server_options, with_client
from hatoba.errors import InvalidSpec
from hatoba.units import parse_pair, say_bytes

if TYPE_CHECKING:
    from hatoba.aio import AsyncClient
    from hatoba.models import RegisterOptions
    from hatoba.v1 import model_pb2

METRIC = Parsed("KEY=NUMBER", lambda text: _metric(text))
EXPECT = click.option(
    "--expect",
    "expected",
    type=click.IntRange(0),
    metavar="N",
    help="Only if it points to version N now; 0: nowhere.",
)
LAST_LINES = 10


def _metric(text: str) -> tuple[str, float]:
    key, value = parse_pair(text, "a metric")
    try:
        return key, float(value)
    except ValueError:
        raise ValueError(f"{value!r} is not a number; write for example accuracy=0.97") from None


@click.group(cls=Group)
def models() -> None:
    """Models by name and number, and the aliases that point to them.

    A version is called `digits:7`, `digits@production` or, for the newest that is READY, `digits`.
    """


# -- looking ---------------------------------------------------------------------------------------


@models.command("list")
@output_option
@server_options()
def list_models(output: str) -> None:
    """List models by name, with their aliases."""
    from hatoba.v1 import model_pb2

    async def read(client: AsyncClient) -> Sequence[model_pb2.Model]:
        return await client.models.list()

    found = with_client(read)
    emit(model_pb2.ListModelsResponse(models=found), output, lambda: show_models(found))


def show_models(found: Sequence[model_pb2.Model]) -> None:
    """A table of models."""
    from hatoba.models import short_name

    rows = []
    for model in found:
        aliases = ", ".join(f"{one.alias} -> {one.version}" for one in model.aliases)
        latest = str(model.latest or "-")
        rows.append([short_name(model.name), latest, aliases or "-", age(model.create_time)])
    table(["MODEL", "LATEST", "ALIASES", "AGE"], rows, empty="no models")


@models.command("versions")
@click.argument("model")
@click.option(
    "--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many."
)
@output_option
@server_options()
def versions(model: str, limit: int, output: str) -> None:
    """List versions of MODEL, newest first."""
    from hatoba.v1 import model_pb2

    async def read(client: AsyncClient) -> Sequence[model_pb2.ModelVersion]:
        return await client.models.versions(model, limit=limit)

    found = with_client(read)
    reply = model_pb2.ListModelVersionsResponse(versions=found)
    emit(reply, output, lambda: show_versions(found))


def show_versions(found: Sequence[model_pb2.ModelVersion]) -> None:
    """A table of versions."""
    from hatoba.cli.charts import number
    from hatoba.models import short_name, state_word

    rows = []
    for one in found:
        metrics = ", ".join(f"{key} {number(value)}" for key, value in sorted(one.metrics.items()))
        aliases = ", ".join(one.aliases) or "-"
        source = short_name(one.job) if one.job else one.created_by
        state = state_word(one.state)
        made = age(one.create_time)
        rows.append([short_name(one.name), state, aliases, metrics or "-", source, made])
    table(["VERSION", "STATE", "ALIASES", "METRICS", "FROM", "AGE"], rows, empty="no versions")


@models.command("get")
@click.argument("version")
@output_option
@server_options()
def get(version: str, output: str) -> None:
    """Show one version: where it comes from, how good it is, how it is served."""

    async def read(client: AsyncClient) -> model_pb2.ModelVersion:
        return await client.models.get(version)

    found = with_client(read)
    emit(found, output, lambda: show_version(found))


def show_version(found: model_pb2.ModelVersion) -> None:
    """Everything about a version, for people."""
    from hatoba.cli.charts import number
    from hatoba.cli.details import param_text
    from hatoba.models import short_name, state_word
    from hatoba.plain import to_plain

    click.echo(f"{short_name(found.name)}  {state_word(found.state)}")
    params = to_plain(found).get("params", {}).items()
    pairs(
        [
            ("aliases", ", ".join(found.aliases)),
            ("files", f"{found.manifest.files} files, {say_bytes(found.manifest.total_bytes)}"),
            ("metrics", ", ".join(f"{k} {number(v)}" for k, v in sorted(found.metrics.items()))),
            ("params", ", ".join(f"{name}={param_text(value)}" for name, value in params)),
            ("job", _job_of(found)),
            ("datasets", ", ".join(map(short_name, found.datasets))),
            ("code", short_name(found.code_version) if found.code_version else ""),
            ("commit", found.git_commit),
            ("parent", short_name(found.parent) if found.parent else ""),
            ("handler", found.serving.handler or "none: it cannot be served"),
            ("environment", _environment(found.serving)),
            ("golden", _golden(found.serving)),
            ("takes", found.signature.input_type),
            ("gives", found.signature.output_type),
            ("check", short_name(found.check_job) if found.check_job else ""),
            ("about", found.description),
            ("labels", ", ".join(f"{key}={value}" for key, value in sorted(found.labels.items()))),
            ("made", f"{moment(found.create_time)} by {found.created_by}"),
            *failure_rows(found),
        ]
    )


def _job_of(found: model_pb2.ModelVersion) -> str:
    from hatoba.models import short_name

    if not found.job:
        return ""
    return short_name(found.job) + (f", attempt {found.attempt}" if found.attempt > 1 else "")


def _golden(serving: model_pb2.Serving) -> str:
    return f"{serving.golden} cases in golden.jsonl" if serving.golden else ""


def _environment(serving: model_pb2.Serving) -> str:
    environment = serving.environment
    lines = [line for line in environment.requirements.splitlines() if line.strip()]
    parts = [
        f"image {environment.image}" if environment.image else "",
        f"python {environment.python}" if environment.python else "",
        f"{len(lines)} requirements" if lines else "",
        environment.caller_interpreter,
    ]
    return ", ".join(part for part in parts if part)


def failure_rows(found: model_pb2.ModelVersion) -> list[tuple[str, str]]:
    """Why a version is FAILED: the cause, what its check wrote last, what to type next."""
    from hatoba.models import short_name

    if not found.cause.code:
        return []
    lines = [line.rstrip() for line in found.cause.last_log_lines][-LAST_LINES:]
    check = short_name(found.check_job) if found.check_job else ""
    return [
        ("cause", found.cause.message),
        ("last lines", "\n".join(lines)),
        ("next", f"hatoba logs {check.removeprefix('jobs/')}" if check else ""),
    ]


@models.command("compare")
@click.argument("names", nargs=-1, required=True, metavar="VERSION VERSION...")
@output_option
@server_options()
def compare(names: tuple[str, ...], output: str) -> None:
    """Set versions side by side: metrics, parameters, data and code; a mark where they differ."""
    from hatoba.v1 import model_pb2

    if len(names) < 2:
        raise click.UsageError("say at least two versions")

    async def read(client: AsyncClient) -> list[model_pb2.ModelVersion]:
        return [await client.models.get(name) for name in names]

    found = with_client(read)
    reply = model_pb2.ListModelVersionsResponse(versions=found)
    emit(reply, output, lambda: table(*comparison(found)))


def comparison(found: Sequence[model_pb2.ModelVersion]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: one column for each version, and a mark on rows that differ."""
    from hatoba.models import short_name

    facts = [_facts(one) for one in found]
    names = list(dict.fromkeys(name for fact in facts for name in fact))
    rows = []
    for name in names:
        cells = [fact.get(name, "-") for fact in facts]
        rows.append([name, *cells, "*" if len(set(cells)) > 1 else ""])
    return ["", *(short_name(one.name) for one in found), ""], rows


def _facts(one: model_pb2.ModelVersion) -> dict[str, str]:
    from hatoba.cli.charts import number
    from hatoba.cli.details import param_text
    from hatoba.models import short_name, state_word
    from hatoba.plain import to_plain

    facts = {"state": state_word(one.state)}
    facts |= {f"metric {key}": number(value) for key, value in sorted(one.metrics.items())}
    params = to_plain(one).get("params", {})
    facts |= {f"param {key}": param_text(params[key]) for key in sorted(params)}
    facts |= {
        "datasets": ", ".join(map(short_name, one.datasets)),
        "code": short_name(one.code_version) if one.code_version else "",
        "commit": one.git_commit[:12],
        "job": short_name(one.job) if one.job else "",
        "size": say_bytes(one.manifest.total_bytes),
        "handler": one.serving.handler,
        "golden": str(one.serving.golden or ""),
    }
    return {name: value for name, value in facts.items() if value}


@models.command("lineage")
@click.argument("name", metavar="REFERENCE")
@click.option(
    "--plot", type=click.Path(dir_okay=False), metavar="FILE.png", help="Draw it into a file."
)
@click.option(
    "--depth", type=click.IntRange(1, 100), default=10, show_default=True, help="Steps each way."
)
@output_option
@server_options()
def lineage(name: str, plot: str | None, depth: int, output: str) -> None:
    """Show what something came from and what became of it.

    \b
    Examples:
      hatoba models lineage digits@production
      hatoba models lineage datasets/faces:3 --plot faces.png
      hatoba models lineage jobs/digits-42
    """
    from hatoba.cli.lineage import draw, show_lineage

    async def read(client: AsyncClient) -> model_pb2.Lineage:
        return await client.models.lineage(name, depth)

    found = with_client(read)
    emit(found, output, lambda: show_lineage(found))
    if plot:
        draw(found, plot)
        click.echo(f"drawn into {plot}", err=True)


# -- aliases ---------------------------------------------------------------------------------------


@models.command("alias")
@click.argument("model")
@click.argument("alias")
@click.argument("version", type=click.IntRange(1))
@EXPECT
@click.option("--reason", default="", metavar="TEXT", help="Why.")
@output_option
@server_options()
def alias(
    model: str, alias: str, version: int, expected: int | None, reason: str, output: str
) -> None:
    """Point ALIAS of MODEL to VERSION, a number.

    Deployments that follow the alias roll out. A protected alias waits until somebody else
    approves the move.

    \b
    Example:
      hatoba models alias digits production 7 --expect 6
    """
    from hatoba.v1 import model_pb2

    async def move(client: AsyncClient) -> model_pb2.SetAliasResponse:
        return await client.models.set_alias(
            model, alias, version, expected=expected, reason=reason
        )

    reply = with_client(move)
    emit(reply, output, lambda: click.echo(move_line(reply.move)))
    if reply.move.state == model_pb2.ALIAS_MOVE_STATE_PENDING:
        say(f"{alias} is protected; somebody else runs: hatoba models approve {_move(reply.move)}")


@models.command("unalias")
@click.argument("model")
@click.argument("alias")
@EXPECT
@server_options()
def unalias(model: str, alias: str, expected: int | None) -> None:
    """Take ALIAS of MODEL away, unless deployments follow it."""

    async def take(client: AsyncClient) -> model_pb2.Model:
        return await client.models.delete_alias(model, alias, expected=expected)

    kept = any(one.alias == alias for one in with_client(take).aliases)
    done = f"{alias} is protected; somebody else has to approve: hatoba models moves {model}"
    click.echo(done if kept else f"{model} has no alias {alias} any more", err=True)


@models.command("protect")
@click.argument("model")
@click.argument("aliases", nargs=-1, metavar="[ALIAS]...")
@output_option
@server_options()
def protect(model: str, aliases: tuple[str, ...], output: str) -> None:
    """Have only these aliases of MODEL protected; none: no alias is.

    Moving a protected alias takes a second principal.
    """

    async def change(client: AsyncClient) -> model_pb2.Model:
        return await client.models.protect(model, *aliases)

    found = with_client(change)
    protected = ", ".join(found.protected_aliases) or "none"
    emit(found, output, lambda: click.echo(f"{model}: protected are {protected}"))


@models.command("moves")
@click.argument("model", default="")
@click.option("--pending", is_flag=True, help="Only those that wait for somebody.")
@output_option
@server_options()
def moves(model: str, pending: bool, output: str) -> None:
    """List moves of aliases, of MODEL or of all models, newest first."""
    from hatoba.v1 import model_pb2

    async def read(client: AsyncClient) -> Sequence[model_pb2.AliasMove]:
        return await client.models.moves(model, pending=pending)

    found = with_client(read)
    emit(model_pb2.ListAliasMovesResponse(moves=found), output, lambda: show_moves(found))


def show_moves(found: Sequence[model_pb2.AliasMove]) -> None:
    """A table of moves."""
    rows = [
        [
            _move(one),
            one.alias,
            f"{one.from_version or '-'} -> {one.to_version or '-'}",
            _move_state(one),
            one.requested_by,
            one.decided_by or "-",
            age(one.request_time),
            one.comment or one.reason,
        ]
        for one in found
    ]
    heads = ["MOVE", "ALIAS", "VERSION", "STATE", "ASKED BY", "DECIDED BY", "AGE", "WHY"]
    table(heads, rows, empty="no moves")


def move_line(move: model_pb2.AliasMove) -> str:
    """What became of a move, in a line."""
    goes = f"{move.alias}  {move.from_version or '-'} -> {move.to_version or '-'}"
    return f"{goes}  {_move_state(move)}"


def _move(move: model_pb2.AliasMove) -> str:
    return move.name.split("/models/")[-1]


def _move_state(move: model_pb2.AliasMove) -> str:
    from hatoba.v1 import model_pb2

    return model_pb2.AliasMoveState.Name(move.state).removeprefix("ALIAS_MOVE_STATE_")


def _decide(move: str, approve: bool, comment: str, output: str) -> None:

    async def send(client: AsyncClient) -> model_pb2.AliasMove:
        name = move if move.startswith("projects/") else f"projects/{client.project}/models/{move}"
        return await client.models.decide(name, approve, comment)

    found = with_client(send)
    emit(found, output, lambda: click.echo(move_line(found)))


COMMENT = click.option("--comment", default="", metavar="TEXT", help="A few words.")


@models.command("approve")
@click.argument("move")
@COMMENT
@output_option
@server_options()
def approve(move: str, comment: str, output: str) -> None:
    """Carry out MOVE, for example digits/moves/12, that somebody else asked for."""
    _decide(move, True, comment, output)


@models.command("reject")
@click.argument("move")
@COMMENT
@output_option
@server_options()
def reject(move: str, comment: str, output: str) -> None:
    """Refuse MOVE, for example digits/moves/12, that somebody else asked for."""
    _decide(move, False, comment, output)


# -- making, fetching, serving ---------------------------------------------------------------------


@models.command("register")
@click.argument("name")
@click.argument("path", type=click.Path(exists=True))
@click.option("--handler", default="", metavar="MODULE:CLASS", help="The class that answers.")
@click.option(
    "--code",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="Where the handler is imported from. [default: PATH]",
)
@click.option(
    "--example",
    metavar="FILE|JSON",
    help="An input such as a request has, which every replica must answer.",
)
@click.option(
    "--golden",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE.jsonl",
    help="Inputs with their answers, which every replica must give: lines of "
    '{"input", "expected", "tolerance"}.',
)
@click.option(
    "--requirements",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="Requirements of its environment.",
)
@click.option("--python", metavar="VERSION|PATH", help="Its Python. [default: the one of hatoba]")
@click.option("--image", metavar="REF", help="Container image to run in.")
@click.option(
    "--metric", "metrics", multiple=True, type=METRIC, metavar="K=N", help="How good it is."
)
@click.option(
    "-p",
    "--param",
    "params",
    multiple=True,
    type=PARAM,
    metavar="K=V",
    help="Made with this value.",
)
@click.option("--job", default="", metavar="JOB", help="The job whose outputs it is.")
@click.option("--parent", default="", metavar="VERSION", help="The version it was made from.")
@click.option("--dataset", "datasets", multiple=True, metavar="REF", help="Data it was made from.")
@click.option("-m", "--message", default="", metavar="TEXT", help="A few words on the version.")
@click.option("--label", "labels", multiple=True, type=LABEL, metavar="K=V", help="Free label.")
@click.option(
    "--max-batch", type=click.IntRange(0, 4096), default=0, help="Answer so many inputs at once."
)
@click.option(
    "--batch-wait-ms", type=click.FloatRange(0, 10_000), default=0.0, help="Wait for them so long."
)
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait for its check.")
@output_option
@server_options()
def register(name: str, path: str, wait: bool, output: str, **said: Any) -> Exit:
    """Make the next version of model NAME out of the directory or file PATH.

    With a handler, a job in the model's environment imports it and has it answer the example, and
    the golden cases as expected: the version becomes READY, or FAILED with the reason.

    \b
    Examples:
      hatoba models register digits out/ --handler serve:Digits --code . --example one.json
      hatoba models register digits out/ --handler serve:Digits --example one.json --golden g.jsonl
      hatoba models register words words.bin --metric f1=0.91
    """
    from hatoba.models import short_name, state_word
    from hatoba.v1 import model_pb2

    options = register_options(said)

    async def send(client: AsyncClient) -> model_pb2.ModelVersion:
        made = await client.models.register(name, path, wait=False, **options)
        if not wait or not made.check_job:
            return made
        say(f"{short_name(made.name)} is checked by {short_name(made.check_job)}")
        return await client.models.checked(made)

    found = with_client(send)
    line = f"{short_name(found.name)}  {state_word(found.state)}"
    emit(found, output, lambda: click.echo(line))
    if found.state != model_pb2.MODEL_STATE_FAILED:
        return Exit.OK
    for title, text in failure_rows(found):
        if text:
            click.echo(f"  {title}  " + text.replace("\n", "\n    "), err=True)
    return Exit.FAILURE


def register_options(said: dict[str, Any]) -> RegisterOptions:
    """What was said on the command line, as options of `register`."""
    from hatoba.models import RegisterOptions

    options = RegisterOptions()
    for key in RegisterOptions.__annotations__:
        value = said.get(key)
        if value not in (None, (), "", 0):
            options[key] = value  # type: ignore[literal-required]
    options["description"] = said["message"]
    options["metrics"] = dict(said["metrics"])
    options["params"] = params_of(said["params"])
    options["labels"] = unique(said["labels"], "--label")
    if said["example"]:
        options["example"] = example_of(said["example"])
    return options


def example_of(text: str) -> Any:
    """A file that is there, else JSON."""
    # JSON may be longer than a path, of which Path.is_file would make an error.
    if os.path.isfile(text):
        return Path(text)
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidSpec(
            f"--example {text[:60]!r} is neither a file nor JSON: {error}",
            remedy="name a file, or quote JSON for the shell",
        ) from None


@models.command("download")
@click.argument("version")
@click.argument("directory", type=click.Path(file_okay=False), metavar="DIR")
@server_options()
def download(version: str, directory: str) -> None:
    """Fetch the files of VERSION into DIR, which must be absent or empty."""
    from hatoba.models import short_name

    async def receive(client: AsyncClient) -> model_pb2.ModelVersion:
        return await client.models.download(version, directory)

    found = with_client(receive)
    click.echo(f"{short_name(found.name)} is in {directory}", err=True)


@models.command("serve")
@click.argument("version")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="0: any free one.",
)
@click.option("--python", default="", metavar="VERSION|PATH", help="Another Python than its own.")
@server_options()
def serve(version: str, host: str, port: int, python: str) -> None:
    """Serve VERSION here, in the foreground: the same code, environment and server as deployed.

    Needs the extra `worker`. Ctrl-C ends it.

    \b
    Examples:
      hatoba models serve digits@production
      curl -d '{"pixels": [...]}' -H content-type:application/json localhost:8000/predict
    """
    from hatoba.cli.serving import Place, bring, run

    place = Place(host, port, python)

    async def fetch(client: AsyncClient) -> list[str]:
        return await bring(client, version, place)

    run(with_client(fetch))


@models.command("delete")
@click.argument("version")
@server_options()
def delete(version: str) -> None:
    """Remove VERSION, named by its number, unless something uses it: then its users are named."""
    from hatoba.models import short_name

    async def remove(client: AsyncClient) -> model_pb2.ModelVersion:
        return await client.models.delete(version)

    click.echo(f"removed {short_name(with_client(remove).name)}", err=True)
