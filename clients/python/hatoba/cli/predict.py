"""`hatoba predict NAME FILE`, and `hatoba predict MODEL --dataset D`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING, Any

import click

from hatoba.cli.batch_predict import batch_options, predict_dataset
from hatoba.cli.exits import Exit
from hatoba.cli.session import server_options, session, with_client

if TYPE_CHECKING:
    from hatoba.aio import AsyncClient
    from hatoba.predicting import Endpoint, Reply


@click.command()
@click.argument("asked", metavar="NAME|MODEL")
@click.argument("file", required=False, type=click.Path(dir_okay=False, allow_dash=True))
@click.option(
    "--content-type",
    default="",
    metavar="TYPE",
    help="What FILE holds. [default: as its ending says; `-`: application/json]",
)
@batch_options
@server_options()
def predict(asked: str, file: str | None, content_type: str, **said: Any) -> Exit:
    """Ask a deployment for a prediction, or a model for those of a whole dataset.

    `hatoba predict reader image.png` sends FILE (`-`: standard input) to the deployment `reader`
    and prints what comes back; the model and the trace id are told on stderr. It works while the
    server is away.

    `hatoba predict digits@production --dataset digits:3 --shards 4` is a job over all items, whose
    outputs become a dataset version.
    """
    if said["dataset"]:
        if file is not None or content_type:
            raise click.UsageError("FILE and --content-type do not go with --dataset")
        return predict_dataset(asked, said)
    if file is None:
        raise click.UsageError("say FILE (`-` is standard input), or --dataset DATASET")
    _refuse_batch_options(said)
    return _predict_one(asked, file, content_type)


def _refuse_batch_options(said: Mapping[str, Any]) -> None:
    context = click.get_current_context()
    given = [
        name
        for name in said
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(f"--{given[0].replace('_', '-')} goes with --dataset only")


def _predict_one(name: str, file: str, content_type: str) -> Exit:
    from hatoba.predicting import media_type_of, predict

    endpoint = _endpoint(name)
    with ExitStack() as stack:
        body = _opened(file, stack)
        media_type = content_type or media_type_of(file)
        _show(stack.enter_context(predict(endpoint, body, media_type)))
    return Exit.OK


def _opened(file: str, stack: ExitStack) -> IO[bytes]:
    if file == "-":
        return sys.stdin.buffer
    try:
        return stack.enter_context(open(file, "rb"))
    except OSError as error:
        raise click.UsageError(f"{file} cannot be read: {error.strerror}") from None


def _endpoint(name: str) -> Endpoint:
    """The embedded router without asking anybody; another server is asked where it answers."""
    from hatoba.predicting import deployment_path, embedded_endpoint

    current = session()
    found = embedded_endpoint(current.choice, deployment_path(_project(), name))
    return found or with_client(lambda client: _asked(client, name))


def _project() -> str:
    return session().project or os.environ.get("HATOBA_PROJECT", "")


async def _asked(client: AsyncClient, name: str) -> Endpoint:
    from hatoba.errors import Unavailable
    from hatoba.predicting import Endpoint
    from hatoba.v1 import deployment_pb2

    request = deployment_pb2.GetDeploymentRequest(project=client.project, name=name)
    found: deployment_pb2.Deployment = await client.call(request, deployment_pb2.Deployment)
    if not found.urls:
        raise Unavailable(
            f"no router serves {name} now", remedy=f"`hatoba deployments get {name}` says more"
        )
    return Endpoint(found.urls[0], client.server.token, client.server.ca_file)


def _show(reply: Reply) -> None:
    """The body alone on stdout, as it came."""
    last = b""
    for piece in reply.pieces:
        sys.stdout.buffer.write(piece)
        last = piece
    if last[-1:] != b"\n" and ("json" in reply.media_type or "text/" in reply.media_type):
        sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()
    click.secho(f"model {reply.model}, trace {reply.trace_id}", dim=True, err=True)
